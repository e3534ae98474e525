use super::*;
use std::cell::RefCell;

struct Table {
    lines: Vec<Shared<Flow>>,
    clients: Vec<Shared<Client>>,
    server: Shared<Server>,
    woken: RefCell<Vec<u32>>,
}

/// Values live to the end of the test process, as map values do to the end of the map.
fn leak<T>() -> Shared<T> {
    // SAFETY: integers: zeros are a value; leaked, it lives for ever.
    unsafe { Shared::new(Box::leak(Box::<T>::new_zeroed().assume_init())) }
}

impl Lines for Table {
    fn line(&self, index: u32) -> Option<Shared<Flow>> {
        (index < MAX_FLOWS).then(|| self.lines[(index % WAYS) as usize])
    }
    /// In [`claim`], when nobody adds up what its line has counted.
    fn client(&self, slot: u32) -> Option<Shared<Client>> {
        let server = self.server;
        let begun = at!(server.sums_begun).get();
        assert_eq!(begun, at!(server.sums_ended).get() + 1, "and whoever adds up knows");
        self.clients.get(slot as usize).copied()
    }
    fn piece(&self, _: u32) -> Option<Shared<Piece>> {
        None
    }
    fn wake(&self, index: u32) {
        self.woken.borrow_mut().push(index);
    }
}

fn found(t: &Table, port: u16) -> Option<(u32, Shared<Flow>)> {
    let index = find(t, &key(port));
    Some((index, t.line(index)?))
}

fn take(t: &Table, at: (u32, Shared<Flow>), client: Shared<Client>, call: Call, now: u64) {
    at!(client.in_progress).increase(1);
    accept(t, at, client, t.server, call, now);
}

/// One set, whatever the hash says.
fn table() -> Table {
    Table {
        lines: (0..WAYS).map(|_| leak()).collect(),
        clients: (0..2).map(|_| leak()).collect(),
        server: leak(),
        woken: RefCell::default(),
    }
}

fn key(port: u16) -> FlowKey {
    FlowKey { remote: [9; 16], local: [8; 16], remote_port: port, local_port: 2049, network: 1 }
}

#[test]
fn free_lines_go_first_then_closed_then_idle_and_never_a_live_one() {
    let t = table();
    let now = 1_000 * IDLE;
    for port in 0..WAYS as u16 {
        let (_, line) = claim(&t, t.server, &key(port), 1, now + port as u64 * 1_000_000).unwrap();
        at!(line.rx.flags).set(stream::ACKED);
    }
    let later = now + 1_000_000_000;
    assert!(claim(&t, t.server, &key(100), 1, later).is_none(), "all live");
    let (_, line) = found(&t, 5).unwrap();
    at!(line.state).set(state::CLOSED);
    assert!(found(&t, 5).is_some(), "a closed flow is still found");
    assert!(claim(&t, t.server, &key(100), 1, later).is_some());
    assert!(found(&t, 5).is_none());
    let server = t.server;
    assert_eq!(at!(server.evicted_flows).get(), 0, "closed lines are not evicted, they are used again");
    // The one that is idle longest is evicted, and its calls become orphans.
    let (index, line) = found(&t, 0).unwrap();
    let client = t.clients[1];
    take(&t, (index, line), client, Call { xid: 7, class: 1 }, later);
    assert_eq!((at!(client.in_progress).get(), t.woken.borrow().clone()), (1, vec![index]));
    assert!(claim(&t, t.server, &key(101), 1, now + 2 * IDLE).is_some());
    assert!(found(&t, 0).is_none());
    assert_eq!(at!(server.evicted_flows).get(), 1);
    assert_eq!((at!(client.in_progress).get(), at!(client.orphans).get()), (0, 1));
}

#[test]
fn strangers_and_the_half_open_make_room_for_the_known() {
    let t = table();
    let now = 1_000 * IDLE;
    for port in 0..WAYS as u16 {
        let stranger = port < 2;
        let (_, line) = claim(&t, t.server, &key(port), !stranger as u32, now + port as u64 * 1_000).unwrap();
        // Port 1 is a stranger's and open, port 2 a client's and half open.
        if port != 0 && port != 2 {
            at!(line.rx.flags).set(stream::ACKED);
        }
    }
    let later = now + 1_000_000;
    let mut gone = vec![];
    for port in 100..104 {
        let known: Vec<u16> = (0..WAYS as u16).filter(|p| found(&t, *p).is_some()).collect();
        if let Some((_, line)) = claim(&t, t.server, &key(port), 1, later) {
            at!(line.rx.flags).set(stream::ACKED);
        }
        gone.extend(known.into_iter().filter(|p| found(&t, *p).is_none()));
    }
    assert_eq!(gone, [0, 1, 2], "in this order, and no live one");
    assert!(claim(&t, t.server, &key(104), 0, later).is_none(), "a stranger takes nothing from a client");
    assert!(claim(&t, t.server, &key(104), 0, later + 2 * IDLE).is_none(), "not even what is idle");
    // What was counted for those that went is their client's.
    let client = t.clients[1];
    let (_, line) = found(&t, 3).unwrap();
    at!(line.rx.packets).set(5);
    at!(line.calls_seen).element(2).set(3);
    at!(line.state).set(state::CLOSED);
    assert!(claim(&t, t.server, &key(105), 1, later).is_some());
    assert_eq!((at!(client.rx_packets).get(), at!(client.calls).element(2).get()), (5, 3));
}

#[test]
fn a_call_is_answered_once_by_its_xid() {
    let t = table();
    let (index, line) = claim(&t, t.server, &key(1), 1, 1).unwrap();
    let client = t.clients[1];
    let start = 10_000_000_000;
    for xid in [3, 4, 3] {
        take(&t, (index, line), client, Call { xid, class: 2 }, start);
    }
    assert_eq!((at!(client.in_progress).get(), at!(line.waiting).get()), (2, 2));
    assert!(answer(line, client, 67, start).is_none(), "same slot, another XID");
    assert!(waits_for(line, 3) && !waits_for(line, 67));
    assert!(answer(line, client, 3, start + 5_000_000).is_some());
    assert!(answer(line, client, 3, start + 5_000_000).is_none());
    assert_eq!((at!(client.in_progress).get(), at!(client.orphans).get()), (1, 0));
    let latency = at!(client.latency).element(2);
    assert_eq!(latency.element(bucket(5_000_000)).get(), 1);
    let (age, oldest) = oldest_call(line, start + 80_000_000);
    assert_eq!(oldest, call::pack(4, 2, start));
    assert!(still_waits(line, oldest) && !still_waits(line, call::pack(4, 2, start + 5_000_000)));
    assert!((79_990_000..=80_010_000).contains(&age), "{age}");
    abandon(line, client, 0, orphan::ENDED);
    assert_eq!((at!(client.in_progress).get(), at!(client.orphans).get()), (0, 1));
    assert_eq!(oldest_call(line, start + 80_000_000), (0, 0));
}

#[test]
fn buckets_are_powers_of_two_of_microseconds() {
    for (ns, expected) in
        [(0, 0), (1_999, 0), (2_000, 1), (3_999, 1), (4_000, 2), (1_024_000, 10), (u64::MAX, 23)]
    {
        assert_eq!(bucket(ns), expected, "{ns}");
    }
}
