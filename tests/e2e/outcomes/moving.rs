//! Faults that move a login, change a path, or take a route away.

use super::*;
use lab::faults::{Fault, Kind};
use lab::topology::Node;
use reroute_core::ids::{Network, Path, ScvmId};
use reroute_core::proto::FenceProof;

/// `host1` is the host of whatever is struck: the default target of each kind is the first.
const HOST: u32 = 1;
const HOME: ScvmId = ScvmId(1);

pub fn moves(lab: &Lab, outcome: &Outcome) {
    if lab.options().hypervisor {
        domain_known(lab);
    }
    let writers = writers(lab, 1);
    all_go_on(&writers, now());
    nothing_said(lab, outcome);
    let before: Vec<_> = logins(lab);
    let struck = strike(lab, outcome);
    match outcome.then {
        Then::Moves { within } => login_moves(lab, outcome, &struck, within),
        Then::ChangesPath { to, within, .. } => path_changes(lab, outcome, &struck, to, within),
        Then::Nothing { .. } => unreachable!("walked in a lab that is shared"),
    }
    // Some faults end by themselves.
    cause_is_said(lab, outcome, struck.at);
    all_go_on(&writers, now());
    if let Then::Moves { .. } = outcome.then {
        // Nobody else had a reason.
        let after = logins(lab);
        assert_eq!(before[1..], after[1..], "{}: host2 and host3 stay", outcome.fault);
    } else {
        assert_eq!(before, logins(lab), "{}: no login changes", outcome.fault);
    }

    let healed_at = now();
    lab.heal().expect("heal");
    if let Then::ChangesPath { back_within, .. } = outcome.then {
        // A link may have come back by itself before.
        let home = home(Network::Storage);
        let (at, _) = first(lab, struck.at, "the way back", |e| routed(e, HOST).filter(|p| *p == home));
        within("back", healed_at, at, back_within);
        assert_eq!(before, logins(lab), "{}: no login changes on the way back", outcome.fault);
    }
    // What was held up comes in now, if ever.
    all_go_on(&writers, now());
    writers.into_iter().for_each(assert_intact);
}

fn home(network: Network) -> Path {
    Path { scvm: HOME, network }
}

fn logins(lab: &Lab) -> Vec<Option<(ScvmId, u64, FenceProof)>> {
    let view = lab.view().expect("view");
    (1..=lab::topology::PAIRS).map(|host| login(&view, host)).collect()
}

fn login_moves(lab: &Lab, outcome: &Outcome, struck: &Injected, bound: Duration) {
    assert_eq!(Fault::find(outcome.fault).expect("fault").kind, Kind::Scvm);
    let (at, path) = first(lab, struck.at, "the new route", |e| routed(e, HOST));
    within(outcome.fault, struck.at, at, bound);
    assert_ne!(path.scvm, HOME);
    assert_eq!(path.network, Network::Storage);
    lab.wait_view("the login at another SCVM", SOON, |view| match login(view, HOST) {
        Some((scvm, ..)) if scvm == path.scvm => None,
        other => Some(format!("{other:?}")),
    })
    .expect("the login moves");
}

fn path_changes(lab: &Lab, outcome: &Outcome, struck: &Injected, to: Network, bound: Duration) {
    let (at, path) = first(lab, struck.at, "the new route", |e| routed(e, HOST));
    within(outcome.fault, struck.at, at, bound);
    assert_eq!(path, home(to));
    let hop = lab.next_hop(HOST).expect("route");
    assert_eq!(hop, Some(Node::Scvm(HOST).management().to_string()));
}
