//! host3 stands for ESXi: an sshd, an `esxcfg-route`, no agent. Its own SCVM is scvm3; another one drives it.

use crate::support::*;
use anyhow::bail;
use lab::supervisor::esxi::{AUTHORIZED_KEYS, IDENTITY, KNOWN_HOSTS, SAYS, SSHD_CONFIG};
use lab::{Lab, Options, ServerKind, Writer, wait_for};
use reroute_core::esxi::DrivenView;
use reroute_core::ids::{BootNs, HostId, ScvmId};
use reroute_core::timeline::Event;
use std::path::{Path, PathBuf};
use std::time::Duration;

const DRIVEN: u32 = 3;
const X: HostId = HostId(DRIVEN);
const HOME: ScvmId = ScvmId(DRIVEN);
/// Logins are rehearsed this often here.
const REHEARSE: Duration = Duration::from_secs(2);
/// The goal for a failover.
const GOAL_MS: f64 = 2000.0;

fn driven(name: &str, change: impl FnOnce(Options) -> Options) -> Lab {
    let options = Options::named(name).server(ServerKind::Controllable).esxi(DRIVEN);
    let lab = healthy(change(options.timing("rehearse_ms", REHEARSE.as_millis() as u64)));
    lab.drive(DRIVEN, DRIVEN).expect("route");
    lab
}

fn view(lab: &Lab) -> anyhow::Result<DrivenView> {
    let host = lab.view()?.hosts.into_iter().find(|h| h.host == X);
    host.and_then(|h| h.driven).ok_or_else(|| anyhow::anyhow!("host3 is not driven"))
}

/// A writer on host3, served by its own SCVM; another one drives it, and has rehearsed.
fn at_home(lab: &Lab) -> Writer<'_> {
    let writer = lab.writer(DRIVEN, 3, &["--outstanding", "4"]).expect("writer");
    writer.wait_writes(now(), 200, SOON).expect("writes");
    at(lab, HOME);
    let rehearsed = wait_for("a rehearsal", SOON, || match view(lab)? {
        v @ DrivenView { by: Some(by), next_hop: Some(_), error: None, .. } if by != HOME => Ok(v),
        other => bail!("{other:?}"),
    });
    let hop = rehearsed.map_err(|e| lab.explain(e)).expect("rehearsed").next_hop;
    assert_eq!(hop, Some([10, 10, 85, 23].into()));
    writer
}

fn at(lab: &Lab, scvm: ScvmId) {
    lab.wait_view("host3's login", SOON, |view| match login(view, DRIVEN) {
        Some((at, ..)) if at == scvm => None,
        other => Some(format!("{other:?}")),
    })
    .expect("the login follows");
}

/// Waits until its login is elsewhere and writes go on there; gives where.
fn away(lab: &Lab, writer: &Writer) -> ScvmId {
    let view = lab
        .wait_view("host3 served elsewhere", SOON, |view| match login(view, DRIVEN) {
            Some((at, ..)) if at != HOME => None,
            other => Some(format!("{other:?}, {:?}", view.hosts.iter().find(|h| h.host == X))),
        })
        .expect("the login moves");
    writer.wait_writes(now(), 200, SOON).map_err(|e| lab.explain(e)).expect("writes go on");
    login(&view, DRIVEN).expect("at").0
}

/// When each next hop was set, and by whom.
fn set_since(lab: &Lab, from: BootNs) -> Vec<(BootNs, String)> {
    let journal = lab.journal().expect("journal");
    let set = |e: &Event| matches!(e, Event::NextHopSet { host: X, .. });
    journal.iter().filter(|e| e.at >= from && set(&e.event)).map(|e| (e.at, e.node.clone())).collect()
}

fn status(lab: &Lab) -> String {
    String::from_utf8_lossy(&lab.agent("meta", &["status"]).expect("status").stdout).into_owned()
}

fn switch(lab: &Lab, scvm: ScvmId, up: bool) {
    // The management network first: nobody hears that the other has no carrier.
    for network in ["mgt", "sto"] {
        let port = format!("{network}-scvm{}", scvm.0);
        let out =
            lab.exec("switch", &["ip", "link", "set", &port, if up { "up" } else { "down" }]).expect("ip");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }
}

fn told(lab: &Lab, writer: &Writer, what: &str, from: BootNs) -> f64 {
    let (wanted, _) =
        first(lab, from, "the wish", |e| matches!(e.event, Event::NextHopWanted { .. }).then_some(()));
    let (set, took) = first(lab, from, "the next hop", |e| match e.event {
        Event::NextHopSet { host: X, took_ns, .. } => Some(took_ns),
        _ => None,
    });
    let gap = gap_ms(writer, from);
    println!(
        "{what}: gap {gap:.1} ms; wanted after {:.1} ms, set after {:.1} ms ({:.1} ms over ssh)",
        wanted.since(from) as f64 / 1e6,
        set.since(from) as f64 / 1e6,
        took as f64 / 1e6,
    );
    gap
}

#[test]
fn a_killed_server_is_left_over_ssh_and_returned_to() {
    let lab = driven("esxi", |o| o);
    let writer = at_home(&lab);
    let home = lab.writer(1, 1, &[]).expect("writer");
    let killed = lab.fault("server-killed", Some("scvm3")).expect("fault");
    let there = away(&lab, &writer);
    let gap = told(&lab, &writer, "server-killed", killed.at);
    assert!(gap <= GOAL_MS, "{gap} ms");
    assert_eq!(set_since(&lab, killed.at).len(), 1, "once");
    // And now somebody else drives it than the one that serves it.
    wait_for("another one appointed", SOON, || match view(&lab)?.by {
        Some(by) if by != there => Ok(()),
        other => bail!("{other:?}"),
    })
    .expect("appointed");
    let healed = now();
    lab.heal().expect("heal");
    at(&lab, HOME);
    writer.wait_writes(now(), 200, SOON).expect("writes go on at home");
    let (set, _) = set_since(&lab, healed).remove(0);
    println!("way back: {:.1} s after the server was started", set.since(healed) as f64 / 1e9);
    assert!(set.since(healed) >= 3_000_000_000, "home has to be well for a while");
    // It stays.
    writer.wait_writes(now(), 2000, SOON).expect("writes");
    assert_eq!(set_since(&lab, killed.at).len(), 2);
    assert_intact(writer);
    assert_intact(home);
}

/// The SCVM says nothing any more: others are asked, and the lease of such clients ends.
#[test]
fn an_scvm_that_is_cut_off_is_left_over_ssh() {
    let lab = driven("cutoff", |o| o.timing("session_no_agent_ms", 1000));
    let writer = at_home(&lab);
    let cut = now();
    switch(&lab, HOME, false);
    away(&lab, &writer);
    let gap = told(&lab, &writer, "SCVM cut off (lease of 1 s)", cut);
    assert!(gap <= GOAL_MS, "{gap} ms");
    let (_, pieces) = first(&lab, cut, "the evidence", |e| match &e.event {
        Event::NextHopWanted { evidence, .. } => Some(evidence.len()),
        _ => None,
    });
    assert!(pieces >= 2, "not by its silence alone");
    switch(&lab, HOME, true);
    at(&lab, HOME);
    writer.wait_writes(now(), 200, SOON).expect("writes go on at home");
    assert_intact(writer);
}

#[test]
fn the_appointed_one_may_die_with_the_server() {
    let lab = driven("appointed", |o| o);
    let writer = at_home(&lab);
    let by = view(&lab).expect("view").by.expect("appointed");
    let third = ScvmId((1..=3).find(|i| ScvmId(*i) != by && ScvmId(*i) != HOME).unwrap());
    let began = now();
    switch(&lab, by, false);
    lab.fault("server-killed", Some("scvm3")).expect("fault");
    let there = away(&lab, &writer);
    let gap = told(&lab, &writer, "server killed, and the appointed SCVM cut off", began);
    assert!(gap <= GOAL_MS, "{gap} ms");
    assert_eq!(there, third, "the only one left");
    assert!(set_since(&lab, began).iter().all(|(_, node)| *node == format!("scvm{}", third.0)));
    assert_intact(writer);
}

/// Only an agent is dead: its server serves on.
#[test]
fn a_dead_agent_is_no_dead_server() {
    let lab = driven("agent", |o| o);
    let writer = at_home(&lab);
    let killed = lab.fault("agent-killed", Some("scvm3")).expect("fault");
    writer.wait_writes(now(), 3000, SOON).expect("writes");
    wait_for("the lost session", SOON, || match lab.view()?.sessions.iter().find(|s| s.scvm == HOME) {
        Some(s) if s.state == reroute_core::proto::SessionState::Lost && s.age_ns > 3_000_000_000 => Ok(()),
        other => bail!("{other:?}"),
    })
    .expect("lost");
    lab.heal().expect("heal");
    writer.wait_writes(now(), 200, SOON).expect("writes");
    assert!(set_since(&lab, killed.at).is_empty());
    println!("agent killed: gap {:.1} ms", gap_ms(&writer, killed.at));
    assert_intact(writer);
}

/// Something that keeps SCVMs from host3's routes.
struct Trouble<'a> {
    lab: &'a Lab,
}

impl Trouble<'_> {
    fn file(&self, name: &str) -> PathBuf {
        self.lab.root().join(name)
    }

    fn host(&self, name: &str) -> PathBuf {
        self.file("host3").join(name)
    }

    fn exec(&self, command: &[&str]) {
        let out = self.lab.exec("host3", command).expect("exec");
        assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
    }

    fn firewall(&self, verdict: &str) {
        let rule = format!(
            "add table ip esxi; add chain ip esxi in {{ type filter hook input priority 0; }}; add rule ip esxi in tcp dport 22 {verdict}"
        );
        self.exec(&["nft", &rule]);
    }

    fn open(&self) {
        self.exec(&["nft", "delete table ip esxi"]);
    }

    /// Another key than the one that lies there.
    fn other_key(&self, file: &Path, prefix: &str) {
        let key = self.file(IDENTITY).with_file_name("other");
        let _ = std::fs::remove_file(&key);
        let made = std::process::Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(&key)
            .status();
        assert!(made.expect("ssh-keygen").success());
        let public = std::fs::read_to_string(key.with_extension("pub")).expect("key");
        std::fs::write(file, format!("{prefix}{public}")).expect("written");
    }

    fn sshd(&self, change: impl Fn(String) -> String) {
        let config = self.host(SSHD_CONFIG);
        let text = std::fs::read_to_string(&config).expect("config");
        std::fs::write(&config, change(text)).expect("written");
        self.lab.stop_process("host3/sshd", SOON).expect("stopped");
        self.lab.start_process("host3/sshd").expect("started");
    }
}

fn named(lab: &Lab, name: &str) -> DrivenView {
    wait_for(&format!("{name} in status"), REHEARSE + Duration::from_secs(8), || match view(lab)? {
        v if v.error.as_ref().is_some_and(|e| e.name() == name) => Ok(v),
        other => bail!("{other:?}"),
    })
    .map_err(|e| lab.explain(e))
    .expect(name)
}

fn mended(lab: &Lab) {
    wait_for("a rehearsal that works", REHEARSE + Duration::from_secs(8), || match view(lab)? {
        v if v.error.is_none() && v.rehearsed_ns.is_some() => Ok(()),
        other => bail!("{other:?}"),
    })
    .map_err(|e| lab.explain(e))
    .expect("mended");
}

#[test]
fn each_trouble_has_its_name_changes_nothing_and_is_got_over() {
    let lab = driven("trouble", |o| o);
    let writer = at_home(&lab);
    let began = now();
    let t = Trouble { lab: &lab };
    let hop = lab.next_hop(DRIVEN).expect("route");
    let known = t.file(KNOWN_HOSTS);
    let authorized = t.host(AUTHORIZED_KEYS);
    let keep = |path: &PathBuf| std::fs::read_to_string(path).expect("kept");
    let (known_text, authorized_text) = (keep(&known), keep(&authorized));
    let says = t.host(SAYS);
    type Step<'a> = Box<dyn Fn() + 'a>;
    let cases: Vec<(&str, Step, Step)> = vec![
        (
            "timed_out",
            Box::new(|| {
                lab.signal("host3/sshd", libc::SIGSTOP).expect("stop");
            }),
            Box::new(|| {
                lab.signal("host3/sshd", libc::SIGCONT).expect("cont");
            }),
        ),
        (
            "host_key",
            Box::new(|| t.other_key(&known, "192.168.85.13 ")),
            Box::new(|| std::fs::write(&known, &known_text).expect("mended")),
        ),
        (
            "key_refused",
            Box::new(|| t.other_key(&authorized, "")),
            Box::new(|| std::fs::write(&authorized, &authorized_text).expect("mended")),
        ),
        (
            "login_refused",
            Box::new(|| t.sshd(|c| c.replace("PermitRootLogin prohibit-password", "PermitRootLogin no"))),
            Box::new(|| t.sshd(|c| c.replace("PermitRootLogin no", "PermitRootLogin prohibit-password"))),
        ),
        ("filtered", Box::new(|| t.firewall("drop")), Box::new(|| t.open())),
        ("refused", Box::new(|| t.firewall("reject with tcp reset")), Box::new(|| t.open())),
        (
            "unreachable",
            Box::new(|| t.firewall("reject with icmp type host-unreachable")),
            Box::new(|| t.open()),
        ),
        (
            "unexpected",
            Box::new(|| std::fs::write(&says, "VMkernel Routes:\nNone\n").expect("written")),
            Box::new(|| std::fs::remove_file(&says).expect("mended")),
        ),
        (
            "command_failed",
            Box::new(|| {
                t.exec(&["chmod", "-x", &lab.root_inside().join("host3/bin/esxcfg-route").to_string_lossy()])
            }),
            Box::new(|| {
                t.exec(&["chmod", "+x", &lab.root_inside().join("host3/bin/esxcfg-route").to_string_lossy()])
            }),
        ),
    ];
    for (name, break_it, mend) in cases {
        let broken = now();
        break_it();
        let found = named(&lab, name);
        println!(
            "{name} after {:.1} s: {}",
            now().since(broken) as f64 / 1e9,
            found.error.as_ref().expect("error")
        );
        let text = status(&lab);
        assert!(text.contains(&format!("cannot drive its next hop ({name}")), "{text}");
        assert_eq!(lab.next_hop(DRIVEN).expect("route"), hop);
        mend();
        mended(&lab);
    }
    assert!(set_since(&lab, began).is_empty());
    writer.wait_writes(now(), 200, SOON).expect("nobody felt it");
    assert_intact(writer);
}

#[test]
fn what_keeps_it_from_leaving_is_named_and_it_leaves_when_that_is_mended() {
    let lab = driven("late", |o| o);
    let writer = at_home(&lab);
    let hop = lab.next_hop(DRIVEN).expect("route");
    lab.signal("host3/sshd", libc::SIGSTOP).expect("stop");
    let killed = lab.fault("server-killed", Some("scvm3")).expect("fault");
    let found = named(&lab, "timed_out");
    assert!(found.wish.is_some(), "{found:?}");
    assert_eq!(lab.next_hop(DRIVEN).expect("route"), hop);
    let mended = now();
    lab.signal("host3/sshd", libc::SIGCONT).expect("cont");
    away(&lab, &writer);
    println!("served {:.1} s after sshd went on", now().since(mended) as f64 / 1e9);
    assert_eq!(set_since(&lab, killed.at).len(), 1);
    assert_intact(writer);
}

/// Whatever another hand has set there stays, until it is taken away.
#[test]
fn a_foreign_next_hop_is_an_error_and_stays() {
    let lab = driven("foreign", |o| o);
    let writer = at_home(&lab);
    let t = Trouble { lab: &lab };
    let began = now();
    t.exec(&["ip", "route", "replace", "192.168.33.2/32", "via", "10.10.85.99"]);
    named(&lab, "foreign");
    lab.fault("server-killed", Some("scvm3")).expect("fault");
    let found = wait_for("the wish", SOON, || match view(&lab)? {
        v if v.wish.is_some() && v.error.is_some() => Ok(v),
        other => bail!("{other:?}"),
    })
    .expect("wanted");
    assert_eq!(found.error.map(|e| e.name()), Some("foreign"));
    assert_eq!(lab.next_hop(DRIVEN).expect("route").as_deref(), Some("10.10.85.99"));
    assert!(set_since(&lab, began).is_empty());
    t.exec(&["ip", "route", "del", "192.168.33.2/32"]);
    away(&lab, &writer);
    assert_intact(writer);
}
