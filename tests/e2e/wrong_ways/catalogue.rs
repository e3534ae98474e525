//! The lab's faults of links do what they say, and stop doing it.

use lab::Options;
use lab::faults::{Action, FAULTS, FOR_TESTS, Fault};
use lab::topology::Node;
use std::time::{Duration, Instant};

/// Whether one of `count` pings is answered within a second each, and how long the first answer took.
fn ping(lab: &lab::Lab, from: &str, to: &str, count: u32) -> (u32, Duration) {
    let began = Instant::now();
    let count = count.to_string();
    let out = lab.exec(from, &["ping", "-q", "-i", "0.01", "-c", &count, "-W", "3", to]).expect("ping");
    let text = String::from_utf8_lossy(&out.stdout);
    let received = text.split(", ").find_map(|part| part.strip_suffix(" received"));
    let received = received.and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("{text}"));
    (received, began.elapsed())
}

fn passes(lab: &lab::Lab, from: &str, to: &str) -> bool {
    ping(lab, from, to, 1).0 == 1
}

#[test]
fn links_are_disturbed_as_named_and_mended() {
    let lab = lab::Lab::start(Options::named("links").without_agents()).expect("lab");
    let scvm = Node::Scvm(1);
    let (sto, mgt) = (scvm.storage().to_string(), scvm.management().to_string());
    let between = |from: &str| (passes(&lab, from, &sto), passes(&lab, from, &mgt));
    assert_eq!((between("host1"), between("meta")), ((true, true), (true, true)));

    // What passes from host1 and from Meta, by storage and by management.
    let cases = [
        ("storage-blackhole", (false, true), (false, true)),
        ("one-way-loss", (false, true), (false, true)),
        ("meta-cut", (true, true), (false, false)),
        ("host-cut", (false, false), (true, true)),
    ];
    for (name, host, meta) in cases {
        lab.fault(name, Some("scvm1")).expect(name);
        assert_eq!((between("host1"), between("meta")), (host, meta), "{name}");
        let private = passes(&lab, "host1", "192.168.33.2");
        assert_eq!(private, name != "host-cut", "{name}");
        lab.heal().expect("heal");
        assert_eq!((between("host1"), between("meta")), ((true, true), (true, true)), "{name} healed");
    }

    lab.fault("lossy-5", Some("scvm1")).expect("lossy-5");
    let (received, _) = ping(&lab, "host1", &sto, 300);
    assert!((200..300).contains(&received), "{received} of 300 passed both ways");
    lab.heal().expect("heal");

    lab.fault("storage-delay-2s", Some("scvm1")).expect("storage-delay-2s");
    let out = lab.exec("host1", &["ping", "-q", "-c", "1", "-W", "8", &sto]).expect("ping");
    let text = String::from_utf8_lossy(&out.stdout);
    let times = text.lines().find_map(|l| l.split_once("= ")).unwrap_or_else(|| panic!("{text}")).1;
    let ms: f64 = times.split('/').next().and_then(|t| t.parse().ok()).unwrap_or_else(|| panic!("{text}"));
    // Each way, and the link address may have to be asked for.
    assert!((4000.0..9000.0).contains(&ms), "{text}");
    lab.heal().expect("heal");
    assert!(ping(&lab, "host1", &sto, 1).1 < Duration::from_secs(2));

    lab.fault("scvm-frozen", Some("scvm1")).expect("scvm-frozen");
    let stopped = |name: &str| {
        let pid = lab.process(name).expect("process").pid;
        let stat = std::fs::read_to_string(lab.root().join(format!("../../proc/{pid}/stat")));
        let stat = stat.unwrap_or_else(|_| panic!("{name}"));
        stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'))
    };
    assert!(stopped("scvm1/server") && !stopped("scvm2/server"));
    assert!(!passes(&lab, "meta", &sto));
    // The pings have been kept, and it goes on by itself.
    lab::wait_for("the thaw", Duration::from_secs(20), || match passes(&lab, "meta", &sto) {
        true => Ok(()),
        false => anyhow::bail!("frozen"),
    })
    .expect("thaw");
    assert!(!stopped("scvm1/server"));
    lab.heal().expect("heal");
}

#[test]
fn every_fault_is_named_once() {
    let mut names: Vec<&str> = FAULTS.iter().chain(FOR_TESTS).map(|f| f.name).collect();
    names.sort_unstable();
    let count = names.len();
    names.dedup();
    assert_eq!(names.len(), count);
    assert!(matches!(Fault::find("meta-restarted").expect("named").action, Action::Restart("agent")));
}
