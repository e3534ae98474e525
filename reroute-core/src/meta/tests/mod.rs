mod blocks;
mod chaos;
mod holders;
mod nodes;
mod retarget;
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
        }],
        keepalive_ns: 100 * MS,
        session_ns: 500 * MS,
        longest_session_ns: 1000 * MS,
        affirm_ns: 100 * MS,
        planned_drain_ns: 400 * MS,
        resend_ns: 200 * MS,
    }
}

pub(super) fn well() -> ServerHealth {
    ServerHealth { listening: true, process_alive: true, ..ServerHealth::default() }
}
