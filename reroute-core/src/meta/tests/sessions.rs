//! Sessions as hosts and SCVMs together show them: long before an SCVM's lease ends, but never on one host's word alone.

use super::*;
use crate::proto::Health;

const Y: HostId = HostId(2);
const AT: u64 = 10_000;

/// Three SCVMs with a session each, two hosts that find all paths well, at `AT` ms.
struct Reports {
    master: SessionMaster,
    seq: u64,
}

impl Reports {
    fn new() -> Reports {
        let mut settings = settings(1);
        let y = HostInfo { id: Y, name: "y".into(), local_scvm: B, ..settings.hosts[0].clone() };
        settings.hosts.push(y);
        let master = SessionMaster::new(settings, BTreeMap::new(), BootNs(AT * MS));
        let mut reports = Reports { master, seq: 0 };
        for scvm in [A, B, C] {
            let open = ToMeta::SessionOpen { boot: Incarnation(1), health: well() };
            reports.send(NodeId::Scvm(scvm), open, 0);
        }
        reports.keepalives(0);
        reports.found(X, Health::Healthy, Health::Healthy, 0);
        reports.found(Y, Health::Healthy, Health::Healthy, 0);
        assert_eq!(reports.of_a(0).0, SessionState::Alive);
        reports
    }

    fn send(&mut self, from: NodeId, msg: ToMeta, ms: u64) {
        self.seq += 1;
        let (request, incarnation) = (RequestId(self.seq), Incarnation(7));
        let message = Input::Message { request, from, incarnation, seq: self.seq, msg };
        handle(&mut self.master, message, BootNs((AT + ms) * MS));
    }

    /// From A, B and C.
    fn keepalives(&mut self, ms: u64) {
        [A, B, C].into_iter().for_each(|scvm| self.keepalive(scvm, ms));
    }

    fn keepalive(&mut self, scvm: ScvmId, ms: u64) {
        self.send(NodeId::Scvm(scvm), ToMeta::KeepAlive { term: Term(1), health: well() }, ms);
    }

    /// What a host has found of both paths to A.
    fn found(&mut self, host: HostId, storage: Health, management: Health, ms: u64) {
        let path = |network, state| PathHealth {
            path: Path { scvm: A, network },
            state,
            rtt_ns: None,
            last_reply_age_ns: None,
        };
        let paths = vec![path(Network::Storage, storage), path(Network::Management, management)];
        let report = HostReport { paths, ..HostReport::default() };
        self.send(NodeId::Host(host), ToMeta::HostReport { report }, ms);
    }

    /// State and reason, as everybody is shown them.
    fn of_a(&mut self, ms: u64) -> (SessionState, String) {
        let now = BootNs((AT + ms) * MS);
        handle(&mut self.master, Input::Tick, now);
        let view = self.master.view(now);
        let session = view.sessions.into_iter().find(|s| s.scvm == A).unwrap();
        (session.state, session.reason)
    }
}

#[test]
fn what_one_host_found_makes_it_suspect_at_once_and_by_name() {
    let mut r = Reports::new();
    let before = r.master.generation();
    r.found(X, Health::Failed, Health::Failed, 30);
    assert!(r.master.generation() > before, "it is pushed to all");
    assert_eq!(r.of_a(30), (SessionState::Suspect, "x found it failed".into()));
    // And well again with the next word of that host.
    r.found(X, Health::Recovering, Health::Failed, 60);
    assert_eq!(r.of_a(60).0, SessionState::Alive);
}

#[test]
fn a_path_is_not_the_server() {
    let mut r = Reports::new();
    r.found(X, Health::Failed, Health::Healthy, 30);
    r.found(Y, Health::Failed, Health::Suspect, 30);
    assert_eq!(r.of_a(30).0, SessionState::Alive);
}

#[test]
fn two_hosts_and_its_own_silence_make_it_lost_long_before_its_lease_ends() {
    let mut r = Reports::new();
    r.found(X, Health::Failed, Health::Failed, 150);
    r.found(Y, Health::Failed, Health::Failed, 150);
    assert_eq!(r.of_a(200).0, SessionState::Suspect, "a keepalive may still be on its way");
    let (state, reason) = r.of_a(201);
    assert_eq!(state, SessionState::Lost);
    assert!(reason.contains("x, y"), "{reason}");
    // The same without them: suspect after three, lost with the lease.
    let mut r = Reports::new();
    assert_eq!(r.of_a(300).0, SessionState::Alive);
    assert_eq!(r.of_a(301).0, SessionState::Suspect);
    assert_eq!(r.of_a(500).0, SessionState::Suspect);
    assert_eq!(r.of_a(600).0, SessionState::Lost);
}

#[test]
fn one_host_or_hosts_alone_make_nothing_lost() {
    let mut r = Reports::new();
    r.found(X, Health::Failed, Health::Failed, 150);
    assert_eq!(r.of_a(290).0, SessionState::Suspect);
    // It speaks to Meta, whatever they find.
    for ms in (300..900).step_by(100) {
        r.keepalives(ms);
        r.found(X, Health::Failed, Health::Failed, ms);
        r.found(Y, Health::Failed, Health::Failed, ms);
        let (state, reason) = r.of_a(ms + 90);
        assert_eq!((state, reason.as_str()), (SessionState::Suspect, "x, y found it failed"));
    }
}

#[test]
fn one_that_was_lost_early_begins_anew() {
    let mut r = Reports::new();
    r.found(X, Health::Failed, Health::Failed, 150);
    r.found(Y, Health::Failed, Health::Failed, 150);
    assert_eq!(r.of_a(250).0, SessionState::Lost);
    r.keepalive(A, 260);
    assert_eq!(r.of_a(260).0, SessionState::Lost, "what follows from its end may be in a record");
    r.send(NodeId::Scvm(A), ToMeta::SessionOpen { boot: Incarnation(1), health: well() }, 270);
    assert_eq!(r.of_a(270).0, SessionState::Suspect);
    r.found(X, Health::Healthy, Health::Healthy, 280);
    r.found(Y, Health::Healthy, Health::Healthy, 280);
    assert_eq!(r.of_a(280).0, SessionState::Alive);
}

#[test]
fn what_hosts_said_long_ago_is_nothing() {
    let mut r = Reports::new();
    r.found(X, Health::Failed, Health::Failed, 0);
    r.found(Y, Health::Failed, Health::Failed, 0);
    for ms in (100..=2000).step_by(100) {
        r.keepalives(ms);
        assert_eq!(r.of_a(ms).0, SessionState::Suspect);
    }
    r.keepalives(2001);
    assert_eq!(r.of_a(2001).0, SessionState::Alive);
}
