//! Clients of simulated tiers, judged as the kernel's timer judges them: false alarms over hours, and how fast a
//! server that stops answering is noticed.

#![allow(clippy::disallowed_macros, reason = "a test may print its figures")]

use super::*;
use proptest::prelude::*;

const POLL_NS: u64 = 250 * MS;
const TICK_NS: u64 = MS;
const HOST: HostId = HostId(7);
const US: u64 = 1_000;
const BOUNDS: Bounds = Bounds { floor_ns: 10 * MS, default_ns: 50 * MS, ceiling_ns: 2 * SEC };

/// SplitMix64: the same numbers in every run.
struct Random(u64);
impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
    /// In [0, 1).
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// A closed loop of `lanes` calls at a tier: `latency(start, random)` gives how long a call takes.
struct Client<F> {
    limits: Limits,
    histogram: [[u64; LATENCY_BUCKETS]; class::COUNT],
    /// Start and end of each lane's call, and whether it was alarmed about.
    lanes: Vec<(u64, u64, bool)>,
    /// Between a reply and the next call.
    think_ns: u64,
    limit_ns: u64,
    now: u64,
    random: Random,
    latency: F,
    /// When, and how old the call was.
    alarms: Vec<(u64, u64)>,
    /// Limits set, in order.
    changes: Vec<(u64, u64)>,
}

impl<F: FnMut(u64, &mut Random) -> u64> Client<F> {
    fn new(bounds: Bounds, lanes: usize, think_ns: u64, latency: F) -> Self {
        let now = 1000 * SEC;
        let histogram = [[0; LATENCY_BUCKETS]; class::COUNT];
        Client {
            limits: Limits::new(bounds),
            histogram,
            lanes: vec![(now, now, false); lanes],
            think_ns,
            limit_ns: 0,
            now,
            random: Random(42),
            latency,
            alarms: Vec::new(),
            changes: Vec::new(),
        }
    }

    fn run(&mut self, ns: u64) {
        let end = self.now + ns;
        while self.now < end {
            self.poll();
            let until = self.now + POLL_NS;
            for lane in 0..self.lanes.len() {
                self.lane(lane, until);
            }
            self.now = until;
        }
    }

    fn lane(&mut self, lane: usize, until: u64) {
        loop {
            let (start, end, alarmed) = self.lanes[lane];
            // The limit in force from `now` to `until`: the tick after the call has reached it raises the alarm.
            let due = self.now.max(start + self.limit_ns + TICK_NS);
            if start < end && !alarmed && due < until.min(end) {
                self.alarms.push((due, due - start));
                self.lanes[lane].2 = true;
            }
            if end >= until {
                return;
            }
            if start < end {
                let bucket = ((end - start) / US).max(1).ilog2() as usize;
                self.histogram[lane % class::COUNT][bucket.min(LATENCY_BUCKETS - 1)] += 1;
            }
            let next = end + (self.think_ns as f64 * 2.0 * self.random.unit()) as u64 + 1;
            self.lanes[lane] = (next, next + (self.latency)(next, &mut self.random).max(1), false);
        }
    }

    fn poll(&mut self) {
        let latency = Latency { host: HOST, replies: self.histogram, limit_ns: self.limit_ns };
        for SetLimit { host, limit_ns } in self.limits.handle(&[latency], BootNs(self.now)) {
            assert_eq!(host, HOST);
            assert_ne!(limit_ns, self.limit_ns, "only news");
            self.limit_ns = limit_ns;
            self.changes.push((self.now, limit_ns));
        }
    }

    fn alarms_since(&self, at: u64) -> usize {
        self.alarms.iter().filter(|(when, _)| *when >= at).count()
    }

    /// The server stops answering now; age of the call that is alarmed about first, ns.
    fn hang(&mut self) -> u64 {
        let hung_at = self.now;
        for lane in &mut self.lanes {
            lane.1 = lane.1.max(hung_at + 3600 * SEC);
        }
        self.run(3 * SEC);
        self.alarms.iter().find(|(at, _)| *at >= hung_at).expect("noticed").1
    }
}

type Tier = fn(u64, &mut Random) -> u64;

fn fast(_: u64, random: &mut Random) -> u64 {
    150 * US + (100.0 * random.unit()) as u64 * US
}
fn slow(_: u64, random: &mut Random) -> u64 {
    190 * MS + (20.0 * random.unit()) as u64 * MS
}
fn bimodal(_: u64, random: &mut Random) -> u64 {
    if random.unit() < 0.01 { 80 * MS } else { 100 * US }
}
/// Whatever comes in during the flush waits for its end.
fn flush(at: u64, random: &mut Random) -> u64 {
    let phase = at % (10 * SEC);
    if phase < 300 * MS { 300 * MS - phase + 200 * US } else { fast(at, random) }
}
/// Exponential, mean 8 ms.
fn disk(_: u64, random: &mut Random) -> u64 {
    (-(1.0 - random.unit()).ln() * 8e6) as u64
}

const TIERS: [(&str, Tier, usize, u64); 7] = [
    ("fast, 0.2 ms", fast, 4, 2 * MS),
    ("steady 200 ms", slow, 4, 0),
    ("steady 200 ms, one call at a time", slow, 1, 100 * MS),
    ("bimodal, 1 % at 80 ms", bimodal, 4, 2 * MS),
    ("bimodal, 5 calls per second", bimodal, 1, 200 * MS),
    ("flush of 300 ms every 10 s", flush, 4, 2 * MS),
    ("disk, exponential, 8 ms", disk, 4, 0),
];

/// From the very first call when the default lies above what the tier needs; with the shorter default, the calls that
/// come before a tier is known are asked about.
#[test]
fn no_tier_is_alarmed_about_for_hours() {
    const HOURS: u64 = 4;
    for (name, tier, lanes, think) in TIERS {
        let wide = Bounds { default_ns: 500 * MS, ..BOUNDS };
        let mut client = Client::new(wide, lanes, think, tier);
        client.run(HOURS * 3600 * SEC);
        assert_eq!(client.alarms, [], "{name}, default 500 ms");

        let mut client = Client::new(BOUNDS, lanes, think, tier);
        let begin = client.now;
        client.run(HOURS * 3600 * SEC);
        let learnt = begin + 60 * SEC;
        let (first, later) = (client.alarms.len() - client.alarms_since(learnt), client.alarms_since(learnt));
        let limit = client.limit_ns;
        let noticed = client.hang();
        println!(
            "{name}: default 50 ms: {first} alarms in the first minute, {later} in the {HOURS} h after it; limit {} ms, a \
             hang is noticed by a call {:.1} ms old; default 500 ms: none at all",
            limit / MS,
            noticed as f64 / 1e6
        );
        assert_eq!(later, 0, "{name}: {:?}", &client.alarms[..client.alarms.len().min(20)]);
        assert!(first <= 2 * lanes, "{name}: {first} alarms while learning");
        assert!(noticed <= limit + 2 * TICK_NS, "{name}: {noticed}");
    }
}

#[test]
fn a_fast_client_is_judged_by_the_floor_once_known() {
    let mut client = Client::new(BOUNDS, 4, MS, fast as Tier);
    client.run(10 * SEC);
    assert_eq!(client.limit_ns, 50 * MS, "not known yet");
    client.run(10 * SEC);
    assert_eq!(client.limit_ns, 10 * MS);
    assert!(client.hang() <= 12 * MS);
}

#[test]
fn latency_that_grows_raises_the_limit_up_to_the_ceiling_only() {
    // Twice as slow every minute: 0.2 ms, and beyond the ceiling after a quarter of an hour.
    let begin = 1000 * SEC;
    let growing = move |at: u64, _: &mut Random| {
        (200e3 * 2_f64.powf((at - begin) as f64 / (60 * SEC) as f64)).min(5e9) as u64
    };
    let mut client = Client::new(BOUNDS, 8, 0, growing);
    client.run(11 * 60 * SEC);
    assert_eq!(client.alarms, [], "0.4 s by now, and never a jump");
    client.run(10 * 60 * SEC);
    assert_eq!(client.limit_ns, BOUNDS.ceiling_ns);
    assert!(client.changes.iter().all(|(_, limit)| *limit <= BOUNDS.ceiling_ns));
    let worst = client.alarms.first().expect("calls of 5 s are too slow").1;
    assert!((1_900 * MS..=2_010 * MS).contains(&worst), "held to the ceiling: {worst}");
}

/// Calls that come in from `from` on are answered when the stall ends.
fn stalled(from: u64, to: u64) -> impl FnMut(u64, &mut Random) -> u64 {
    move |at, random| if (from..to).contains(&at) { to - at + 300 * US } else { fast(at, random) }
}

#[test]
fn late_replies_of_a_stall_leave_the_limit_alone() {
    for length in [50 * MS, 300 * MS, SEC, 5 * SEC, 30 * SEC] {
        let from = 1200 * SEC;
        let mut client = Client::new(BOUNDS, 8, MS, stalled(from, from + length));
        client.run(from - client.now + length + 20 * SEC);
        assert_eq!(client.limit_ns, 10 * MS, "after a stall of {length} ns: {:?}", client.changes);
        assert!(client.alarms_since(from) >= 8, "noticed, connection by connection");
        assert!(client.hang() <= 12 * MS);
    }
}

#[test]
fn two_stalls_raise_the_limit_for_a_minute() {
    let (first, second) = (1200 * SEC, 1220 * SEC);
    let (mut one, mut two) = (stalled(first, first + SEC), stalled(second, second + SEC));
    let both =
        move |at: u64, random: &mut Random| if at < second { one(at, random) } else { two(at, random) };
    let mut client = Client::new(BOUNDS, 8, MS, both);
    client.run(second + 2 * SEC - client.now);
    assert_eq!(client.limit_ns, BOUNDS.ceiling_ns, "twice within a minute: it may be the tier");
    client.run(60 * SEC);
    assert_eq!(client.limit_ns, 10 * MS, "and then not again: {:?}", client.changes);
}

#[test]
fn a_tier_that_turns_slow_is_learnt_within_seconds() {
    let turn = 1200 * SEC;
    let turned =
        move |at: u64, random: &mut Random| if at < turn { fast(at, random) } else { slow(at, random) };
    let mut client = Client::new(BOUNDS, 4, MS, turned);
    client.run(turn + 10 * SEC - client.now);
    let settled = client.now;
    println!("0.2 ms -> 200 ms: {} alarms until it is learnt", client.alarms.len());
    client.run(3600 * SEC);
    assert_eq!(client.alarms_since(settled), 0);
    assert_eq!(client.limit_ns, 524_288 * US);
}

#[test]
fn an_idle_client_comes_back_to_what_it_left() {
    let mut client = Client::new(BOUNDS, 4, 0, slow as Tier);
    client.run(100 * SEC);
    let (limit, alarms) = (client.limit_ns, client.alarms.len());
    // Nothing for twenty minutes: even what the window forgets leaves its mark.
    for lane in &mut client.lanes {
        *lane = (client.now, client.now, false);
    }
    let idle = client.now + 1200 * SEC;
    while client.now < idle {
        client.poll();
        client.now += POLL_NS;
    }
    for lane in &mut client.lanes {
        *lane = (client.now, client.now, false);
    }
    assert_eq!(client.limit_ns, limit);
    client.run(100 * SEC);
    assert_eq!(client.alarms.len(), alarms, "the first call after it included");
}

fn shown(replies: u64, limit_ns: u64) -> Latency {
    let mut latency = Latency { host: HOST, replies: Default::default(), limit_ns };
    latency.replies[1][7] = replies;
    latency
}

#[test]
fn a_new_agent_adopts_the_limit_in_force() {
    let mut limits = Limits::new(BOUNDS);
    assert_eq!(limits.handle(&[shown(1_000_000, 1_048_576 * US)], BootNs(SEC)), []);
    let at = |i: u64| BootNs(SEC + i * POLL_NS);
    for i in 1..200 {
        assert_eq!(limits.handle(&[shown(1_000_000 + i * 1000, 1_048_576 * US)], at(i)), [], "{i}");
    }
    let fallen = (200..260)
        .find_map(|i| limits.handle(&[shown(1_000_000 + i * 1000, 1_048_576 * US)], at(i)).first().copied());
    assert_eq!(fallen, Some(SetLimit { host: HOST, limit_ns: 10 * MS }), "after a minute of its own eyes");
    // Out of this configuration's bounds: not even that long.
    let wide = shown(5, 60 * SEC);
    let set = Limits::new(BOUNDS).handle(&[wide], BootNs(SEC));
    assert_eq!(set, [SetLimit { host: HOST, limit_ns: 2 * SEC }]);
}

#[test]
fn a_limit_that_the_kernel_did_not_take_is_set_again_and_counters_that_fall_start_anew() {
    let mut limits = Limits::new(BOUNDS);
    let default = [SetLimit { host: HOST, limit_ns: 50 * MS }];
    assert_eq!(limits.handle(&[shown(0, 0)], BootNs(SEC)), default);
    assert_eq!(limits.handle(&[shown(0, 0)], BootNs(2 * SEC)), default, "still 0 there");
    assert_eq!(limits.handle(&[shown(0, 50 * MS)], BootNs(3 * SEC)), []);
    for i in 0..100 {
        limits.handle(&[shown(i * 1000, 50 * MS)], BootNs(3 * SEC + i * POLL_NS));
    }
    assert_eq!(limits.limit(HOST), Some(10 * MS));
    assert_eq!(limits.handle(&[shown(3, 10 * MS)], BootNs(60 * SEC)), default);
    limits.handle(&[], BootNs(61 * SEC));
    assert_eq!(limits.limit(HOST), None);
}

proptest! {
    /// Whatever the kernel shows, and however time jumps: within the bounds, and only news.
    #[test]
    fn every_limit_is_within_the_bounds(
        steps in prop::collection::vec((0..LATENCY_BUCKETS, 0..class::COUNT, 0_u64..u64::MAX / 4, 0..100 * SEC, any::<bool>()), 1..60),
        floor in 1_u64..100, default in 1_u64..3000, ceiling in 100_u64..5000,
    ) {
        let bounds = Bounds { floor_ns: floor * MS, default_ns: default * MS, ceiling_ns: ceiling * MS };
        let mut limits = Limits::new(bounds);
        let mut shown = Latency { host: HOST, replies: Default::default(), limit_ns: 0 };
        let mut now = BootNs(0);
        for (bucket, class, count, gap, fresh) in steps {
            now = now.plus(gap);
            if fresh {
                shown.replies = Default::default();
            }
            shown.replies[class][bucket] = shown.replies[class][bucket].saturating_add(count);
            for set in limits.handle(&[shown], now) {
                prop_assert!((bounds.floor_ns..=bounds.ceiling_ns).contains(&set.limit_ns));
                prop_assert_ne!(set.limit_ns, shown.limit_ns);
                shown.limit_ns = set.limit_ns;
            }
            prop_assert_eq!(limits.limit(HOST), Some(shown.limit_ns));
        }
    }

    /// A busy client's latencies that come back are never above its limit; those of one episode never move it.
    #[test]
    fn what_recurs_is_covered_and_what_does_not_is_not(
        usual in 0_usize..12, rare in 0_usize..LATENCY_BUCKETS, every in 5_u64..28, once in 0_usize..LATENCY_BUCKETS,
        rate in 20_u64..5000, offset in 0_u64..60,
    ) {
        let mut limits = Limits::new(BOUNDS);
        let mut shown = Latency { host: HOST, replies: Default::default(), limit_ns: 0 };
        let covers = |bucket: usize| (2000_u64 << (bucket + 1)).clamp(BOUNDS.floor_ns, BOUNDS.ceiling_ns);
        let lasting = covers(usual.max(rare));
        for i in 0..4 * 400_u64 {
            let now = BootNs(500 * SEC + i * POLL_NS);
            shown.replies[1][usual] += rate.div_ceil(4).max(10);
            if i % (4 * every) == 0 {
                shown.replies[2][rare] += 1;
            }
            if i == 4 * (300 + offset) {
                shown.replies[3][once] += 64;
            }
            for set in limits.handle(&[shown], now) {
                shown.limit_ns = set.limit_ns;
            }
            if i > 4 * 240 {
                // More often than not `once` lies far above: it must not be seen in the limit.
                prop_assert_eq!(shown.limit_ns, lasting, "second {}", i / 4);
            }
        }
    }
}
