mod agentless;
mod blocks;
mod chaos;
mod driven;
mod holders;
mod lease;
mod nodes;
mod operator;
mod proofs;
mod retarget;
mod sessions;
mod table;
mod world;

use super::*;

pub(super) const A: ScvmId = ScvmId(1);
pub(super) const B: ScvmId = ScvmId(2);
pub(super) const C: ScvmId = ScvmId(3);
pub(super) const X: HostId = HostId(1);

/// Three SCVMs, one of each policy, and one host.
pub(super) fn settings(term: u64) -> Settings {
    let scvm = |id: ScvmId, policy| ScvmInfo {
        id,
        name: format!("s{}", id.0),
        storage: [10, 0, 0, id.0 as u8].into(),
        management: [10, 1, 0, id.0 as u8].into(),
        policy,
    };
    Settings {
        cluster: "test".into(),
        term: Term(term),
        scvms: vec![scvm(A, FencePolicy::Storage), scvm(B, FencePolicy::Kill), scvm(C, FencePolicy::Storage)],
        hosts: vec![HostInfo {
            id: X,
            name: "x".into(),
            private: [192, 168, 33, 1].into(),
            storage: [10, 0, 0, 101].into(),
            management: [10, 1, 0, 101].into(),
            local_scvm: A,
            has_agent: true,
        }],
        keepalive_ns: 100 * MS,
        session_ns: 500 * MS,
        longest_session_ns: 1000 * MS,
        leader_ns: 300 * MS,
        affirm_ns: 100 * MS,
        agentless: Agentless::default(),
        planned_drain_ns: 400 * MS,
        resend_ns: 200 * MS,
    }
}

pub(super) fn well() -> ServerHealth {
    ServerHealth { listening: true, process_alive: true, ..ServerHealth::default() }
}

/// The master with a store that confirms its lease at once.
pub(super) fn handle(m: &mut SessionMaster, input: Input, now: BootNs) -> Vec<Effect> {
    let mut effects = m.handle(input, now);
    while let Some(at) = effects.iter().position(|e| *e == Effect::ConfirmLease) {
        effects.remove(at);
        effects.extend(m.handle(Input::LeaseConfirmed, now));
    }
    effects
}
