//! Sweeps over real wires: who answers, and what is wrong by name.

use lab::many::{Many, WIRE, address};
use reroute_agent::sweep::{Options, Report, arp, sweep};
use reroute_core::ids::MS;
use reroute_core::sweep::{Diagnosis, LinkFacts, Outcome, Settings, diagnose};
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

fn options() -> Options {
    Options { interface: Some(WIRE.into()), mtu: 1500, settings: Settings::default() }
}

fn run(many: &Many, addresses: &[Ipv4Addr]) -> Report {
    many.here.run(|| sweep(addresses, &options())).expect("namespace").expect("sweep")
}

/// What a sweep and ARP together say of one address.
fn finding(many: &Many, address: Ipv4Addr, on_link: bool) -> Diagnosis {
    let outcome = run(many, &[address]).outcomes[0];
    let found = many.here.run(|| arp::who_has(WIRE, &[address], 100 * MS)).expect("namespace").expect("ARP");
    diagnose(outcome, &LinkFacts { on_link, macs: found.get(&address).cloned().unwrap_or_default() })
}

fn nft(many: &Many, rules: &str) {
    let status = many.there.run(|| Command::new("nft").arg(rules).stdin(Stdio::null()).status());
    assert!(status.expect("namespace").expect("nft").success(), "{rules}");
}

#[test]
fn five_hundred_answer_and_the_dead_are_named() {
    let dead = [17, 100, 333, 498, 499];
    let many = Many::new((0..500).filter(|i| !dead.contains(i))).expect("wire");
    let all: Vec<Ipv4Addr> = (0..500).map(address).collect();
    let report = run(&many, &all);
    let silent: Vec<u16> =
        (0..500).filter(|i| !matches!(report.outcomes[usize::from(*i)], Outcome::Answers { .. })).collect();
    assert_eq!(silent, dead, "in {} us", report.took_ns / 1000);
}

#[test]
fn each_defect_has_its_name() {
    let many = Many::new(0..4).expect("wire");
    assert!(matches!(finding(&many, address(0), true), Diagnosis::Up { .. }));
    assert_eq!(finding(&many, address(9), true), Diagnosis::Down);
    assert_eq!(finding(&many, [10, 99, 0, 1].into(), false), Diagnosis::WrongSubnet);

    let impostor = many.impostor(3).expect("impostor");
    match finding(&many, address(3), true) {
        Diagnosis::DuplicateAddress { macs } => assert_eq!(macs.len(), 2),
        other => panic!("{other:?}"),
    }
    drop(impostor);

    nft(&many, "add table ip t; add chain ip t in { type filter hook input priority 0; }");
    nft(&many, &format!("add rule ip t in ip daddr {} icmp type echo-request drop", address(1)));
    let reject = "icmp type echo-request reject with icmp type admin-prohibited";
    nft(&many, &format!("add rule ip t in ip daddr {} {reject}", address(2)));
    assert_eq!(finding(&many, address(1), true), Diagnosis::Filtered { by: None });
    assert_eq!(finding(&many, address(2), true), Diagnosis::Filtered { by: Some(address(2)) });

    many.narrow(1300).expect("mtu");
    assert_eq!(finding(&many, address(0), true), Diagnosis::Mtu { next_hop: None });
}

#[test]
fn what_cannot_be_swept_is_refused() {
    let many = Many::new(0..1).expect("wire");
    let none = Options { interface: Some("nosuch0".into()), ..options() };
    let error =
        many.here.run(|| sweep(&[address(0)], &none)).expect("namespace").expect_err("no such interface");
    assert_eq!(error.raw_os_error(), Some(19), "ENODEV: {error}");
    let many_more = vec![address(0); 5000];
    assert!(many.here.run(|| sweep(&many_more, &options())).expect("namespace").is_err());
    assert!(run(&many, &[]).outcomes.is_empty());
}
