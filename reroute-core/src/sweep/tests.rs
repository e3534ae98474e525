use super::*;
use std::collections::BTreeSet;

const T0: BootNs = BootNs(1_000_000_000);

fn probe(target: u16, size: Size, round: u8) -> Probe {
    Probe { target: Index(target), size, round }
}

/// A network in which each address does as `behaves` says of a request: answer after so many ns, or not.
fn run(count: u16, settings: Settings, behaves: impl Fn(Probe) -> Option<u64>) -> (Vec<Outcome>, u64, usize) {
    let (mut sweep, mut effects) = Sweep::new(count, settings);
    let (mut now, mut sent) = (T0, 0);
    let mut coming: Vec<(BootNs, Probe)> = Vec::new();
    for _ in 0..10_000 {
        for effect in std::mem::take(&mut effects) {
            match effect {
                Effect::Send(probes) => {
                    sent += probes.len();
                    let answers = probes.iter().filter_map(|p| Some((now.plus(behaves(*p)?), *p)));
                    coming.extend(answers);
                    sweep.handle(Input::Sent(probes), now);
                }
                Effect::Done => return (sweep.outcomes(), now.since(T0), sent),
            }
        }
        now = now.plus(100_000);
        coming.sort_by_key(|(at, _)| *at);
        while coming.first().is_some_and(|(at, _)| *at <= now) {
            let (at, p) = coming.remove(0);
            sweep.handle(Input::Reply(p), at);
        }
        effects = sweep.handle(Input::Tick, now);
    }
    panic!("the sweep does not end");
}

#[test]
fn everybody_answers_in_one_round() {
    let (outcomes, took, sent) = run(500, Settings::default(), |_| Some(200_000));
    assert!(outcomes.iter().all(|o| *o == Outcome::Answers { rtt_ns: 200_000 }));
    assert_eq!(sent, 500);
    assert!(took <= MS, "{took}");
}

#[test]
fn the_dead_are_asked_three_times_and_do_not_hold_up_for_longer() {
    let (outcomes, took, sent) =
        run(500, Settings::default(), |p| (!p.target.0.is_multiple_of(100)).then_some(200_000));
    let dead: Vec<usize> = (0..500).filter(|i| outcomes[*i] == Outcome::Silent).collect();
    assert_eq!(dead, [0, 100, 200, 300, 400]);
    assert_eq!(sent, 500 + 5 * 2 * 2);
    assert!((6 * MS..7 * MS).contains(&took), "{took}");
}

#[test]
fn a_lost_echo_is_no_dead_address() {
    let (outcomes, _, _) = run(10, Settings::default(), |p| (p.round == 2).then_some(300_000));
    assert!(outcomes.iter().all(|o| *o == Outcome::Answers { rtt_ns: 300_000 }), "{outcomes:?}");
}

#[test]
fn patience_follows_the_slowest_answer() {
    // Full frames to the second address need longer than the first round's patience would allow.
    let (outcomes, _, sent) = run(2, Settings { tries: 4, ..Settings::default() }, |p| match p.target.0 {
        0 => Some(1_900_000),
        _ => Some(3_500_000),
    });
    assert_eq!(outcomes, [Outcome::Answers { rtt_ns: 1_900_000 }, Outcome::Answers { rtt_ns: 3_500_000 }]);
    assert_eq!(sent, 2, "nobody was asked twice");
    let (mut sweep, _) = Sweep::new(1, Settings::default());
    sweep.handle(Input::Sent(vec![probe(0, Size::Full, 0)]), T0);
    sweep.slowest_ns = 10 * SEC;
    assert_eq!(sweep.patience_ns(), 200 * MS, "and has an end");
}

#[test]
fn small_frames_only() {
    let (outcomes, ..) = run(1, Settings::default(), |p| (p.size == Size::Small).then_some(100_000));
    assert_eq!(outcomes, [Outcome::SmallOnly { rtt_ns: 100_000, told: None }]);
}

#[test]
fn an_obstacle_is_kept_and_asked_again() {
    let by = [10, 0, 0, 9].into();
    let (mut sweep, _) = Sweep::new(1, Settings { tries: 2, ..Settings::default() });
    let what = Obstacle::Prohibited { by };
    sweep.handle(Input::Sent(vec![probe(0, Size::Full, 0)]), T0);
    sweep.handle(Input::Obstacle { probe: probe(0, Size::Full, 0), what }, T0);
    let again = [probe(0, Size::Full, 1), probe(0, Size::Small, 1)];
    assert_eq!(sweep.handle(Input::Tick, T0.plus(2 * MS)), [Effect::Send(again.to_vec())]);
    sweep.handle(Input::Sent(again.to_vec()), T0.plus(2 * MS));
    assert_eq!(sweep.handle(Input::Tick, T0.plus(4 * MS)), [Effect::Done]);
    assert_eq!(sweep.outcomes(), [Outcome::Refused(what)]);
    assert_eq!(sweep.wake_at(), None);
}

#[test]
fn answers_that_nobody_asked_for_count_for_nothing() {
    let (mut sweep, _) = Sweep::new(1, Settings::default());
    sweep.handle(Input::Reply(probe(0, Size::Full, 0)), T0);
    sweep.handle(Input::Reply(probe(0, Size::Full, 5)), T0);
    sweep.handle(Input::Reply(probe(7, Size::Full, 0)), T0);
    assert_eq!(sweep.outcomes(), [Outcome::Silent]);
}

#[test]
fn nothing_to_sweep() {
    let (sweep, effects) = Sweep::new(0, Settings::default());
    assert_eq!((effects, sweep.is_done()), (vec![Effect::Done], true));
}

#[test]
fn findings_by_name() {
    let (by, mac) = (std::net::Ipv4Addr::new(10, 0, 0, 9), Mac([2, 0, 0, 0, 0, 1]));
    let link = |on_link, macs: &[Mac]| LinkFacts { on_link, macs: macs.iter().copied().collect() };
    let two: BTreeSet<Mac> = [mac, Mac([2, 0, 0, 0, 0, 2])].into();
    let there = link(true, &[mac]);
    let small = |told| Outcome::SmallOnly { rtt_ns: 1, told };
    let needed = Obstacle::FragmentationNeeded { by, mtu: 1400 };
    for (outcome, link, want) in [
        (Outcome::Answers { rtt_ns: 1 }, there.clone(), Diagnosis::Up { rtt_ns: 1 }),
        (
            Outcome::Answers { rtt_ns: 1 },
            LinkFacts { on_link: true, macs: two.clone() },
            Diagnosis::DuplicateAddress { macs: two },
        ),
        (small(None), there.clone(), Diagnosis::Mtu { next_hop: None }),
        (small(Some(needed)), there.clone(), Diagnosis::Mtu { next_hop: Some(1400) }),
        (Outcome::Silent, there.clone(), Diagnosis::Filtered { by: None }),
        (
            Outcome::Refused(Obstacle::Prohibited { by }),
            link(false, &[]),
            Diagnosis::Filtered { by: Some(by) },
        ),
        (Outcome::Silent, link(true, &[]), Diagnosis::Down),
        (Outcome::Refused(Obstacle::Unreachable { by }), link(true, &[]), Diagnosis::Down),
        (Outcome::Silent, link(false, &[]), Diagnosis::WrongSubnet),
        (Outcome::Refused(Obstacle::NoRoute), link(false, &[]), Diagnosis::WrongSubnet),
        (Outcome::Refused(Obstacle::NotSent { errno: 105 }), there, Diagnosis::NotSent { errno: 105 }),
    ] {
        assert_eq!(diagnose(outcome, &link), want, "{outcome:?} {link:?}");
    }
}
