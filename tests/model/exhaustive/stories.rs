//! The stories that are searched. Rounds are of 50 ms.

use super::story::Happens::*;
use super::story::*;
use reroute_core::ids::FencePolicy::*;
use reroute_core::ids::ScvmId;

const HOST: Node = Node::Host;
const META: Node = Node::Meta(0);
const AT_A: Node = Node::Scvm(A);

/// Everything the adversary knows, among this many servers.
fn all(servers: u32) -> Vec<Trouble> {
    let mut all = vec![Trouble::Drop];
    // A little; longer than an affirmation; nearly a session; longer than the leases of leader and session together.
    all.extend([1, 5, 9, 20].map(Trouble::Delay));
    all.extend([1, 5, 20].map(Trouble::Twice));
    all.extend([1, 6].map(Trouble::CrashHost));
    all.extend([1, 6].map(Trouble::CrashMeta));
    all.push(Trouble::SecondLeader);
    let mut nodes = vec![HOST, META];
    for id in (1..=servers).map(ScvmId) {
        let at = Node::Scvm(id);
        nodes.push(at);
        all.extend([1, 6].map(|down| Trouble::CrashAgent(id, down)));
        all.extend([2, 14].map(|down| Trouble::Reboot(id, down)));
        all.push(Trouble::LoseSight(id));
        all.extend([HOST, META].map(|from| Trouble::Cut(from, at, 12)));
    }
    all.extend([Trouble::Cut(HOST, META, 12), Trouble::Cut(META, Node::Store, 12)]);
    all.extend(nodes.iter().flat_map(|node| [3, 9, 22].map(|rounds| Trouble::Freeze(*node, rounds))));
    all
}

/// To B, back to A, and away again: A hangs with a call in progress, then B, then A.
pub fn there_and_back(policies: &[reroute_core::ids::FencePolicy]) -> Story {
    let mut story = Story::new("there and back", policies);
    story.happens = vec![(1, Hang(A)), (9, Resume(A)), (12, Hang(B)), (22, Hang(A)), (30, Resume(A))];
    story.rounds = 34;
    story.budget = 1;
    story.troubles = all(policies.len() as u32);
    story
}

/// A hangs with a call in progress, is cut off from everybody, and comes back.
fn hung_and_cut_off(until: u32) -> [(u32, Happens); 6] {
    [
        (1, Hang(A)),
        (3, Cut(AT_A, HOST)),
        (3, Cut(AT_A, META)),
        (until, Heal(AT_A, HOST)),
        (until, Heal(AT_A, META)),
        (until + 4, Resume(A)),
    ]
}

/// A hangs with a call in progress and is cut off from Meta and the host: only the end of its leases covers that.
pub fn cut_off() -> Story {
    let mut story = Story::new("cut off", &[Storage, Kill]);
    story.happens = hung_and_cut_off(22).into();
    story.rounds = 34;
    story.budget = 1;
    story.troubles = all(2);
    story
}

/// Operators: a planned move, one back, an eviction, after which the host logs in again.
pub fn operators() -> Story {
    let mut story = Story::new("operators", &[Wait, Kill]);
    story.happens = vec![(1, Pin(B)), (10, Pin(A)), (20, Evict)];
    story.rounds = 34;
    story.budget = 1;
    story.troubles = all(2);
    story
}

/// The same with clocks at the ends of what is allowed: each pair drifts apart by up to 10 %.
pub fn drifting() -> Vec<Story> {
    let rates =
        [[955, 955, 1045, 1045], [1045, 955, 955, 1045], [955, 1045, 1045, 955], [1045, 955, 1045, 955]];
    let story = |rates: [u64; 4]| {
        let mut story = cut_off();
        story.name = format!("{} {rates:?}", story.name);
        story.rates = rates.to_vec();
        story.troubles = vec![
            Trouble::Drop,
            Trouble::Delay(5),
            Trouble::Delay(9),
            Trouble::CrashHost(1),
            Trouble::CrashMeta(1),
            Trouble::SecondLeader,
        ];
        story
    };
    rates.map(story).into()
}

/// The first leader keeps A and is cut off from the store, the host and the second leader's side.
pub fn two_leaders() -> Story {
    let mut story = Story::new("two leaders", &[Storage, Kill]);
    let second = Node::Meta(1);
    story.happens = vec![
        (1, Hang(A)),
        (2, Cut(META, Node::Store)),
        (2, Cut(META, HOST)),
        (2, Cut(META, Node::Scvm(B))),
        (2, SecondLeader),
        (2, Cut(second, AT_A)),
        (3, Cut(AT_A, HOST)),
        (30, Resume(A)),
    ];
    story.rounds = 34;
    story.budget = 1;
    story.troubles = all(2);
    story
}

/// One move away from a hung server, and two troubles anywhere in it.
pub fn one_move() -> Story {
    let mut story = Story::new("one move", &[Storage, Kill]);
    story.happens = vec![(1, Hang(A)), (14, Resume(A))];
    story.rounds = 20;
    story.window = 4..9;
    story.budget = 2;
    story.troubles = vec![
        Trouble::Drop,
        Trouble::Delay(1),
        Trouble::Delay(9),
        Trouble::Twice(5),
        Trouble::CrashHost(1),
        Trouble::CrashAgent(A, 1),
        Trouble::CrashAgent(B, 1),
        Trouble::CrashMeta(1),
        Trouble::SecondLeader,
        Trouble::Cut(META, AT_A, 12),
        Trouble::Freeze(META, 9),
        Trouble::Freeze(AT_A, 3),
    ];
    story
}

/// A server cut off, and two troubles anywhere from there to the end of its leases.
pub fn cut_off_twice() -> Story {
    let mut story = cut_off();
    story.name = "cut off, two troubles".into();
    story.window = 2..18;
    story.budget = 2;
    story.troubles = vec![
        Trouble::Drop,
        Trouble::Delay(9),
        Trouble::CrashHost(1),
        Trouble::CrashMeta(1),
        Trouble::SecondLeader,
        Trouble::Freeze(AT_A, 22),
        Trouble::Freeze(META, 9),
    ];
    story
}

// --- a client without an agent: where it calls is where it is to be served ---

fn without_agent(name: &str) -> Story {
    let mut story = Story::new(name, &[Storage, Kill]);
    story.has_agent = false;
    story.budget = 1;
    let of_host = |t: &Trouble| matches!(t, Trouble::CrashHost(_) | Trouble::Freeze(HOST, _));
    story.troubles =
        all(2).into_iter().filter(|t| !of_host(t) && *t != Trouble::Cut(HOST, META, 12)).collect();
    story.troubles.extend([A, B].map(Trouble::NextHop));
    story
}

/// To B, back to A, and away again: somebody changes its next hop when a server hangs.
pub fn next_hop_there_and_back() -> Story {
    let mut story = without_agent("without an agent: there and back");
    story.happens = vec![
        (1, Hang(A)),
        (3, NextHop(B)),
        (9, Resume(A)),
        (12, Hang(B)),
        (14, NextHop(A)),
        (22, Hang(A)),
        (24, NextHop(B)),
        (30, Resume(A)),
        (32, Evict),
    ];
    story.rounds = 38;
    story
}

/// A hangs with a call in progress, is cut off, and comes back after its leases.
pub fn next_hop_cut_off() -> Story {
    let mut story = without_agent("without an agent: cut off");
    story.happens = hung_and_cut_off(32).into();
    story.happens.push((5, NextHop(B)));
    story.rounds = 42;
    story
}

/// The same, and two troubles anywhere from there to the end of its leases.
pub fn next_hop_cut_off_twice() -> Story {
    let mut story = next_hop_cut_off();
    story.name = "without an agent: cut off, two troubles".into();
    story.window = 2..24;
    story.budget = 2;
    story.troubles = vec![
        Trouble::Drop,
        Trouble::Delay(9),
        Trouble::CrashMeta(1),
        Trouble::SecondLeader,
        Trouble::Reboot(B, 2),
        Trouble::Freeze(AT_A, 22),
        Trouble::NextHop(A),
        Trouble::NextHop(B),
    ];
    story
}

/// Nobody renews anything for longer than its lease, and its next hop goes to and fro.
pub fn meta_away() -> Story {
    let mut story = without_agent("without an agent: Meta is away");
    story.happens = vec![
        (2, Cut(META, AT_A)),
        (2, Cut(META, Node::Scvm(B))),
        (8, NextHop(B)),
        (12, NextHop(A)),
        (26, Heal(META, AT_A)),
        (26, Heal(META, Node::Scvm(B))),
        (34, NextHop(B)),
    ];
    story.rounds = 42;
    story
}

// --- one per safeguard: what shows that it is needed ---

/// Nobody meddles: a hung server wakes up after the move.
pub fn a_hung_server_wakes_up() -> Story {
    let mut story = there_and_back(&[Storage, Kill]);
    story.budget = 0;
    story
}

/// Away, back, and away again when A is cut off: A's answer to the first move turns up while the last one waits for a
/// proof. (A mere copy would not do: Meta knows its number.)
pub fn an_old_answer() -> Story {
    let mut story = Story::new("an old answer", &[Storage, Kill]);
    story.happens = vec![
        (1, Hang(A)),
        (10, Resume(A)),
        (15, Hang(B)),
        (24, Resume(B)),
        (30, Cut(AT_A, HOST)),
        (30, Cut(AT_A, META)),
    ];
    story.rounds = 48;
    story.window = 4..10;
    story.budget = 1;
    story.troubles = (26..=36).map(Trouble::Delay).collect();
    story
}

/// A pulse that affirmed A before it was cut off comes when B has opened.
pub fn a_late_affirmation() -> Story {
    let mut story = cut_off();
    story.window = 0..4;
    story.troubles = (14..=24).step_by(2).map(Trouble::Delay).collect();
    story
}

/// Meta's last answer to A before it was cut off comes late.
pub fn a_late_answer() -> Story {
    let mut story = cut_off();
    story.window = 0..4;
    story.troubles = (5..=9).map(Trouble::Delay).collect();
    story
}

/// The release is told to Meta, does not reach A, and the host's agent dies; then A is with the host, and both are
/// without Meta.
pub fn a_forgotten_release() -> Story {
    let mut story = Story::new("a forgotten release", &[Storage, Kill]);
    story.happens =
        vec![(1, Cut(AT_A, HOST)), (1, Cut(AT_A, META)), (8, Cut(HOST, META)), (8, Heal(AT_A, HOST))];
    story.rounds = 26;
    story.window = 3..9;
    story.budget = 1;
    story.troubles = vec![Trouble::CrashHost(1), Trouble::CrashHost(2), Trouble::CrashHost(4)];
    story
}

/// Nobody meddles: a client without an agent is moved while the lease of the server it left still runs there.
pub fn a_longer_lease() -> Story {
    let mut story = next_hop_cut_off();
    story.budget = 0;
    story
}

/// Nobody meddles: a server that was passed over meets Meta again.
pub fn a_new_session() -> Story {
    let mut story = next_hop_cut_off();
    story.name = "a new session".into();
    story.budget = 0;
    story
}

/// Nobody meddles: two leaders, each with its own side.
pub fn a_leader_of_its_own() -> Story {
    let mut story = two_leaders();
    story.budget = 0;
    story
}
