//! A small ESXi host: its table, changed by the commands that the machine asks for; and tables that are none.

use super::table::{Unexpected, parse, to_address};
use super::*;
use proptest::prelude::*;

const SERVICE: Ipv4Addr = Ipv4Addr::new(192, 168, 33, 2);
const X: HostId = HostId(3);
const T0: BootNs = BootNs(1000 * SEC);

fn storage(scvm: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 10, 85, 20 + scvm)
}

fn table(hop: Option<Ipv4Addr>) -> String {
    let hop = hop.map_or(String::new(), |at| format!("192.168.33.2     255.255.255.255  {at:<16} vmk1\n"));
    format!(
        "VMkernel Routes:\nNetwork          Netmask          Gateway          Interface       \n\
         10.10.85.0       255.255.255.0    Local Subnet     vmk1            \n\
         192.168.33.0     255.255.255.0    Local Subnet     vmk2\n{hop}\
         192.168.85.0     255.255.255.0    Local Subnet     vmk0\n\
         default          0.0.0.0          192.168.85.1     vmk0            \n"
    )
}

#[test]
fn a_table_is_read_whole() {
    let rows = parse(&table(Some(storage(1)))).unwrap();
    assert_eq!(rows.len(), 5);
    assert_eq!(to_address(&rows, SERVICE), Found::Via(storage(1)));
    assert_eq!(to_address(&parse(&table(None)).unwrap(), SERVICE), Found::None);
    // With a line below the head.
    let ruled = table(None).replacen("vmk1", "vmk9", 1).replacen(
        "Interface       \n",
        "Interface\n-------  -------  ----  ---\n",
        1,
    );
    assert_eq!(parse(&ruled).unwrap().len(), 4);
}

#[test]
fn what_is_no_table_is_named() {
    let good = table(Some(storage(1)));
    for (text, words) in [
        (String::new(), "empty"),
        ("\n\n".into(), "empty"),
        ("None\n".into(), "\"None\""),
        ("VMkernel Routes:\n".into(), "before its head"),
        (good.trim_end().to_string(), "mid-line"),
        (good.replace("VMkernel Routes:", "Sysinfo error: Not found"), "Sysinfo error"),
        (good.replace("Interface", "Gateway"), "Network"),
        (good.replace("10.10.85.21 ", "None "), "None"),
        (good.replace("10.10.85.21 ", ""), "192.168.33.2"),
        (good.replace("255.255.255.255", "255.0.255.255"), "255.0.255.255"),
        (good.replace("10.10.85.0 ", "10.10.85.7 "), "10.10.85.7"),
        (good.replace("default          0.0.0.0", "default  255.0.0.0"), "default"),
        (good.replace("vmk0", "vmk0 extra"), "extra"),
        (format!("{good}\u{7}bell\n"), "bell"),
        (format!("Warning: something\n{good}"), "Warning"),
        (good.replace("Local Subnet", "10.0.0.1"), "without any local subnet"),
        ("x".repeat(70 << 10), "64 KiB"),
    ] {
        let Unexpected(what) = parse(&text).unwrap_err();
        assert!(what.contains(words), "{words:?} in {what:?}");
        assert!(what.chars().all(|c| !c.is_control()), "{what:?}");
    }
}

#[test]
fn a_route_that_nobody_sets_here_is_strange() {
    let strange = |text: String| match to_address(&parse(&text).unwrap(), SERVICE) {
        Found::Strange(what) => what,
        other => panic!("{other:?}"),
    };
    assert!(
        strange(table(Some(storage(1))).replace("10.10.85.21 ", "Local Subnet ")).contains("on link of vmk1")
    );
    let row = "192.168.33.2 255.255.255.255 10.10.85.22 vmk1\n";
    assert!(strange(table(Some(storage(1))) + row).contains("2 routes"));
}

proptest! {
    #[test]
    fn whatever_is_read_says_nothing_or_the_truth(text in "\\PC{0,200}\n") {
        prop_assert!(parse(&text).is_err());
    }

    /// A table that lost or gained something reads as it was, as another whole table, or not at all; never half.
    #[test]
    fn a_damaged_table_gives_no_next_hop_that_was_not_in_it(at in 0usize..400, cut in 1usize..40) {
        let good = table(Some(storage(1)));
        let (from, to) = (at.min(good.len()), (at + cut).min(good.len()));
        let damaged = format!("{}{}", &good[..from], &good[to..]);
        if let Ok(rows) = parse(&damaged)
            && let Found::Via(hop) = to_address(&rows, SERVICE)
        {
            // Digits may be missing; that address is no SCVM's, or it is the one that stood there.
            prop_assert!(hop == storage(1) || !settings().hops.contains_key(&hop), "{hop}");
        }
    }
}

fn settings() -> Settings {
    let hops = (1..=3).flat_map(|i: u8| {
        let scvm = ScvmId(i.into());
        let management = Ipv4Addr::new(192, 168, 85, 20 + i);
        [
            (storage(i), Path { scvm, network: Network::Storage }),
            (management, Path { scvm, network: Network::Management }),
        ]
    });
    Settings { service: SERVICE, hops: hops.collect(), rehearse_ns: 60 * SEC, forget_ns: Settings::FORGET_NS }
}

fn wish(number: u64, to: u8, leave: &[u32]) -> Wish {
    Wish {
        number,
        to: Path { scvm: ScvmId(to.into()), network: Network::Storage },
        leave: leave.iter().map(|i| ScvmId(*i)).collect(),
        reason: "test".into(),
    }
}

/// An ESXi host with its table, and an SCVM's machine; each command takes 100 ms.
struct Rig {
    machine: Driver,
    now: BootNs,
    hop: Option<Ipv4Addr>,
    /// What the host answers instead.
    broken: Option<DriveError>,
    /// Output instead of the table.
    output: Option<String>,
    /// Adding says that it worked, and does nothing.
    deaf: bool,
    changes: Vec<(Option<Ipv4Addr>, Ipv4Addr)>,
    looks: u32,
    reports: Vec<DriveReport>,
    journal: Vec<Event>,
    due: Vec<(BootNs, Command)>,
    /// Meta repeats this every second.
    order: Option<Option<Wish>>,
}

impl Rig {
    fn new(hop: Option<Ipv4Addr>) -> Rig {
        Rig {
            machine: Driver::new(settings(), [X]),
            now: T0,
            hop,
            broken: None,
            output: None,
            deaf: false,
            changes: Vec::new(),
            looks: 0,
            reports: Vec::new(),
            journal: Vec::new(),
            due: Vec::new(),
            order: Some(None),
        }
    }

    fn feed(&mut self, input: Input) {
        for effect in self.machine.handle(input, self.now) {
            match effect {
                Effect::Run { host, command } => {
                    assert_eq!(host, X);
                    assert!(self.due.is_empty(), "one at a time");
                    self.due.push((self.now.plus(100 * MS), command));
                }
                Effect::Report { report, .. } => self.reports.push(report),
                Effect::Journal(event) => self.journal.push(event),
            }
        }
    }

    fn carry_out(&mut self, command: Command) -> Result<String, DriveError> {
        if let Some(error) = &self.broken {
            return Err(error.clone());
        }
        if let Command::Replace { address, from, to } = command {
            assert_eq!(address, SERVICE);
            self.changes.push((from, to));
            if from.is_some() && self.hop != from {
                return Err(DriveError::CommandFailed { code: 1, said: "no such route".into() });
            }
            if !self.deaf {
                self.hop = Some(to);
            }
        } else {
            self.looks += 1;
        }
        Ok(self.output.clone().unwrap_or_else(|| table(self.hop)))
    }

    /// Time passes; Meta repeats its order.
    fn run(&mut self, ns: u64) {
        let end = self.now.plus(ns);
        while self.now < end {
            if let Some(wish) = &self.order
                && self.now.0.is_multiple_of(SEC)
            {
                self.feed(Input::Appointed { host: X, wish: wish.clone() });
            }
            self.now = self.now.plus(50 * MS);
            if let Some((_, command)) = self.due.pop_if(|(at, _)| *at <= self.now) {
                let result = self.carry_out(command);
                self.feed(Input::Ran { host: X, result, took_ns: 100 * MS });
            }
            self.feed(Input::Tick);
        }
    }

    fn wish(&mut self, wish: Wish) {
        self.order = Some(Some(wish.clone()));
        self.feed(Input::Appointed { host: X, wish: Some(wish) });
    }

    fn last(&self) -> &DriveReport {
        self.reports.last().expect("a report")
    }
}

#[test]
fn a_wish_is_looked_at_carried_out_and_read_back() {
    let mut rig = Rig::new(Some(storage(1)));
    rig.run(SEC);
    assert_eq!((rig.looks, rig.last().wish, &rig.last().outcome), (1, 0, &Ok(Some(storage(1)))));
    rig.wish(wish(7, 2, &[1]));
    rig.run(500 * MS);
    assert_eq!(rig.changes, [(Some(storage(1)), storage(2))]);
    assert_eq!((rig.last().wish, &rig.last().outcome), (7, &Ok(Some(storage(2)))));
    assert_eq!(rig.last().took_ns, 200 * MS, "the look and the change");
    let set = |e: &Event| matches!(e, Event::NextHopSet { to, .. } if *to == storage(2));
    assert_eq!(rig.journal.iter().filter(|e| set(e)).count(), 1);
    // The same wish again changes nothing; the report comes again, should it have been lost.
    let reports = rig.reports.len();
    rig.run(3 * SEC);
    assert_eq!(rig.changes.len(), 1);
    assert!(rig.reports.len() > reports && rig.last().wish == 7);
    // Without a route of its own there is nothing to remove.
    rig.hop = None;
    rig.wish(wish(8, 3, &[]));
    rig.run(500 * MS);
    assert_eq!(rig.changes.last(), Some(&(None, storage(3))));
}

#[test]
fn what_is_there_already_is_not_set() {
    let mut rig = Rig::new(Some(storage(2)));
    rig.wish(wish(1, 2, &[1]));
    rig.run(500 * MS);
    assert!(rig.changes.is_empty());
    assert_eq!((rig.last().wish, &rig.last().outcome), (1, &Ok(Some(storage(2)))));
}

#[test]
fn foreign_and_unexpected_routes_and_tables_are_errors_and_nothing_is_changed() {
    let gateway = Ipv4Addr::new(10, 10, 85, 99);
    let cases: [(Option<Ipv4Addr>, Option<String>, &str); 5] = [
        (Some(gateway), None, "foreign"),
        (Some(storage(3)), None, "elsewhere"),
        (Some(storage(1)), Some("None\n".into()), "unexpected"),
        (Some(storage(1)), Some(String::new()), "unexpected"),
        (
            Some(storage(1)),
            Some(table(Some(storage(1))) + "192.168.33.2 255.255.255.255 10.10.85.22 vmk1\n"),
            "foreign",
        ),
    ];
    for (hop, output, name) in cases {
        let mut rig = Rig::new(hop);
        rig.output = output;
        rig.wish(wish(1, 2, &[1]));
        rig.run(10 * SEC);
        assert_eq!(rig.last().outcome.as_ref().unwrap_err().name(), name);
        assert!(rig.changes.is_empty() && rig.hop == hop, "{name}");
        let faults = rig.journal.iter().filter(|e| matches!(e, Event::Fault { .. })).count();
        assert_eq!(faults, 1, "said once: {:?}", rig.journal);
        // Mended: it goes on by itself.
        (rig.hop, rig.output) = (Some(storage(1)), None);
        rig.run(6 * SEC);
        assert_eq!((rig.hop, rig.last().wish), (Some(storage(2)), 1), "{name}");
    }
}

#[test]
fn a_change_that_does_not_stand_is_an_error() {
    let mut rig = Rig::new(Some(storage(1)));
    rig.deaf = true;
    rig.wish(wish(1, 2, &[1]));
    rig.run(SEC);
    assert_eq!(rig.last().outcome.as_ref().unwrap_err().name(), "not_taken");
}

#[test]
fn failures_are_tried_again_with_growing_pauses_and_a_rehearsal_finds_them() {
    let mut rig = Rig::new(Some(storage(1)));
    rig.run(SEC);
    let looks = rig.looks;
    rig.broken = Some(DriveError::KeyRefused);
    // Within its period.
    rig.run(61 * SEC);
    assert_eq!(rig.last().outcome, Err(DriveError::KeyRefused));
    assert_eq!(rig.looks, looks);
    rig.run(300 * SEC);
    let pauses: Vec<u64> =
        rig.reports.iter().filter(|r| r.outcome.is_err()).map(|r| r.again_ns / SEC).collect();
    assert_eq!(&pauses[..8], [1, 2, 4, 8, 16, 32, 60, 60]);
    rig.broken = None;
    rig.run(61 * SEC);
    assert_eq!(rig.last().outcome, Ok(Some(storage(1))));
    // Somebody waits for a change: it is tried at once, and more often.
    rig.broken = Some(DriveError::Refused);
    rig.wish(wish(1, 2, &[1]));
    rig.run(30 * SEC);
    let pauses: Vec<u64> = rig.reports.iter().filter(|r| r.wish == 1).map(|r| r.again_ns / MS).collect();
    assert_eq!(&pauses[..7], [200, 400, 800, 1600, 3200, 5000, 5000]);
}

#[test]
fn who_is_not_appointed_any_more_does_nothing() {
    let mut rig = Rig::new(Some(storage(1)));
    rig.run(SEC);
    // Meta falls silent while a look is under way: nothing follows from it.
    rig.feed(Input::Appointed { host: X, wish: Some(wish(1, 2, &[1])) });
    let (_, command) = rig.due.pop().expect("a look");
    rig.order = None;
    rig.now = rig.now.plus(4 * SEC);
    let result = rig.carry_out(command);
    rig.feed(Input::Ran { host: X, result, took_ns: 4 * SEC });
    rig.run(200 * SEC);
    assert!(rig.changes.is_empty() && rig.due.is_empty());
    assert_eq!(rig.machine.wake_at(), None);
}

#[test]
fn a_host_that_is_not_configured_here_is_somebody_elses() {
    let mut machine = Driver::new(settings(), []);
    let effects = machine.handle(Input::Appointed { host: X, wish: Some(wish(1, 2, &[1])) }, T0);
    let [Effect::Report { host: X, report: DriveReport { outcome: Err(error), failures: FAILURES, .. } }] =
        &effects[..]
    else {
        panic!("{effects:?}")
    };
    assert_eq!(error.name(), "local");
}

#[test]
fn the_last_wish_counts_whatever_runs() {
    let mut rig = Rig::new(Some(storage(1)));
    rig.wish(wish(1, 2, &[1]));
    rig.run(150 * MS);
    assert!(matches!(rig.due.first(), Some((_, Command::Replace { .. }))));
    rig.wish(wish(2, 3, &[1, 2]));
    rig.run(SEC);
    assert_eq!(rig.hop, Some(storage(3)));
    assert_eq!(rig.last().wish, 2);
    // Taken back before it was carried out: no change.
    let mut rig = Rig::new(Some(storage(1)));
    rig.wish(wish(1, 2, &[1]));
    rig.order = Some(None);
    rig.feed(Input::Appointed { host: X, wish: None });
    rig.run(5 * SEC);
    assert!(rig.changes.is_empty());
}

proptest! {
    /// Whatever the host does and whoever else changes it: only next hops that were to be left are replaced, one command
    /// runs at a time, and in the end the wish is carried out.
    #[test]
    fn only_what_was_to_be_left_is_replaced(
        steps in proptest::collection::vec((0u8..6, 0u8..5, 0u64..3000), 1..60)
    ) {
        let mut rig = Rig::new(Some(storage(1)));
        let mut number = 0;
        let mut leave = vec![];
        for (what, which, ms) in steps {
            match what {
                0 => rig.hop = Some(storage(which)),
                1 => rig.hop = None,
                2 => rig.broken = [None, Some(DriveError::Refused)][usize::from(which % 2)].clone(),
                3 => rig.output = [None, Some("rubbish\n".to_string())][usize::from(which % 2)].clone(),
                4 => rig.deaf = which == 0,
                _ => {
                    number += 1;
                    leave = vec![1, 2];
                    rig.wish(wish(number, 3, &leave));
                }
            }
            rig.run(ms * MS);
        }
        for (from, to) in &rig.changes {
            prop_assert_eq!(*to, storage(3));
            prop_assert!(from.is_none() || *from == Some(storage(1)) || *from == Some(storage(2)), "{:?}", from);
        }
        (rig.broken, rig.output, rig.deaf) = (None, None, false);
        rig.hop = Some(storage(2));
        if number > 0 && rig.machine.hosts[&X].open().is_some() {
            rig.run(10 * SEC);
            prop_assert_eq!(rig.hop, Some(storage(3)));
        }
    }
}
