//! One connection, followed as the programs follow it, without a kernel: segments go in, counts come out.
//!
//! Everything that tests read of lines, clients and pieces is read here.

use crate::owned::Owned;
use reroute_common::class;
use reroute_common::flow::{
    CALL_SLOTS, FLOW_PIECES, Flow, MAX_PIECES, Piece, Stream, call, state, stream as bits,
};
use reroute_common::table::{Client, LATENCY_BUCKETS, Server, orphan};
use reroute_ebpf::at;
use reroute_ebpf::cell::Shared;
use reroute_ebpf::flow::{self, Lines};
use reroute_ebpf::follow::{self, Place, Segment};
use reroute_ebpf::{held, stream};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;

type Pieces = [Piece; MAX_PIECES as usize];

/// A search visits 64 pieces of all: so small a room is searched whole.
const SMALL: u32 = 64;

/// Pieces for segments that come early; several connections may share them.
pub struct Room {
    pieces: Owned<Pieces>,
    /// How many may be used.
    limit: Cell<u32>,
}

impl Room {
    /// Room for `limit` pieces; [`MAX_PIECES`] is what the programs have.
    pub fn new(limit: u32) -> Room {
        let room = Room { pieces: Owned::new(), limit: Cell::new(limit) };
        room.clear(limit);
        room
    }
    /// Nothing is held, and `limit` pieces may be.
    pub fn clear(&self, limit: u32) {
        self.limit.set(limit.min(MAX_PIECES));
        let pieces = self.pieces.shared();
        let reach = if limit <= SMALL { SMALL } else { MAX_PIECES };
        for i in 0..reach {
            let piece = pieces.element(i);
            // What may not be used is in use for ever.
            at!(piece.held_at).set(if i < limit { 0 } else { u64::MAX });
        }
    }
    /// Pieces that somebody holds.
    pub fn used(&self) -> u32 {
        let pieces = self.pieces.shared();
        let held = |i: &u32| {
            let piece = pieces.element(*i);
            at!(piece.held_at).get() != 0
        };
        (0..self.limit.get()).filter(held).count() as u32
    }
}

#[derive(Clone, Copy)]
struct View {
    pieces: Shared<Pieces>,
    limit: u32,
    woken: Shared<u64>,
}

impl Lines for View {
    fn line(&self, _: u32) -> Option<Shared<Flow>> {
        None
    }
    fn client(&self, _: u32) -> Option<Shared<Client>> {
        None
    }
    fn piece(&self, index: u32) -> Option<Shared<Piece>> {
        let index = if self.limit <= SMALL { index % SMALL } else { index };
        (index < MAX_PIECES).then(|| self.pieces.element(index))
    }
    fn wake(&self, _: u32) {
        let woken = self.woken;
        woken.count(1);
    }
}

/// A call that waits: its class, and when it came, ns (in units of 4096).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    pub class: u32,
    pub since: u64,
}

/// What was counted, and what waits.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Counts {
    pub calls: [u64; class::COUNT],
    pub replies: [u64; class::COUNT],
    pub latency: [[u64; LATENCY_BUCKETS]; class::COUNT],
    /// Calls that wait, by XID.
    pub waiting: BTreeMap<u32, Waiting>,
    pub orphans: u32,
    /// Of the orphans: calls that found no slot.
    pub untracked: u64,
    pub streams_lost: u64,
}

impl fmt::Debug for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let latency: Vec<String> = self
            .latency
            .iter()
            .enumerate()
            .flat_map(|(class, buckets)| buckets.iter().enumerate().map(move |(i, n)| (class, i, n)))
            .filter(|(_, _, n)| **n > 0)
            .map(|(class, bucket, n)| format!("{n} of class {class} in bucket {bucket}"))
            .collect();
        let Counts { calls, replies, waiting, orphans, untracked, streams_lost, .. } = self;
        write!(f, "calls {calls:?}, replies {replies:?}, waiting {waiting:?}, orphans {orphans} ")?;
        write!(f, "({untracked} untracked), streams lost {streams_lost}, latency {latency:?}")
    }
}

pub struct Rig {
    line: Owned<Flow>,
    client: Owned<Client>,
    server: Owned<Server>,
    woken: Owned<u64>,
    room: Rc<Room>,
    index: u32,
    /// What the clock says, boot ns.
    pub now: u64,
}

impl Rig {
    /// A connection in line `index` of which nothing was seen yet.
    pub fn new(room: Rc<Room>, index: u32, now: u64) -> Rig {
        let (line, client) = (Owned::<Flow>::new(), Owned::<Client>::new());
        let shared = line.shared();
        at!(shared.state).set(state::OPEN);
        Rig { line, client, server: Owned::new(), woken: Owned::new(), room, index, now }
    }

    /// SYN and SYN-ACK went by; the first bytes have these sequence numbers.
    pub fn open(&self, client_first: u32, server_first: u32) {
        let line = self.line.shared();
        stream::begin(at!(line.rx), client_first.wrapping_sub(1));
        self.ack(client_first);
        stream::begin(at!(line.tx), server_first.wrapping_sub(1));
    }

    /// The connection was there before us.
    pub fn find(&self) {
        flow::uncertain(self.line.shared(), self.client.shared());
    }

    fn place(&self) -> Place {
        Place {
            slot: 1,
            index: self.index,
            line: self.line.shared(),
            client: self.client.shared(),
            server: self.server.shared(),
            now: self.now,
        }
    }

    fn view(&self) -> View {
        View { pieces: self.room.pieces.shared(), limit: self.room.limit.get(), woken: self.woken.shared() }
    }

    /// Bytes come in: those of `packet` from `offset` on.
    pub fn call_bytes(&self, packet: &[u8], offset: usize, seq: u32) {
        if offset < packet.len() {
            let segment = Segment { seq, offset: offset as u32, len: (packet.len() - offset) as u32 };
            follow::calls(packet, self.view(), &self.place(), segment);
        }
    }

    /// Bytes leave, with the number of the byte that the server expects next. None at all: a bare ACK.
    pub fn reply_bytes(&self, packet: &[u8], offset: usize, seq: u32, ack: u32) {
        self.ack(ack);
        if offset < packet.len() {
            let segment = Segment { seq, offset: offset as u32, len: (packet.len() - offset) as u32 };
            follow::replies(packet, &self.place(), segment);
        }
    }

    /// What egress does with an ACK number.
    fn ack(&self, ack: u32) {
        let line = self.line.shared();
        let (rx, tx) = (at!(line.rx), at!(line.tx));
        at!(line.server_acked).set(ack);
        at!(tx.flags).or(bits::ACKED);
        if at!(rx.flags).get() & bits::SYNCED != 0 && held::passed_us(line) {
            flow::uncertain(line, self.client.shared());
        }
    }

    /// FIN came in.
    pub fn fin(&self) {
        let line = self.line.shared();
        at!(line.rx.flags).or(bits::FIN);
    }

    /// The connection begins anew in its line.
    pub fn reopen(&self, client_first: u32, server_first: u32) {
        flow::reopen(self.line.shared(), self.client.shared(), self.now);
        self.open(client_first, server_first);
    }

    pub fn counts(&self) -> Counts {
        let (line, client) = (self.line.shared(), self.client.shared());
        let mut counts = Counts {
            orphans: at!(client.orphans).get(),
            untracked: at!(client.orphaned).element(orphan::UNTRACKED as u32).get(),
            streams_lost: at!(client.streams_lost).get(),
            ..Counts::default()
        };
        for class in 0..class::COUNT {
            let (calls, replies) = (at!(line.calls_seen), at!(line.replies_seen));
            counts.calls[class] =
                at!(client.calls).element(class as u32).get() + calls.element(class as u32).get();
            counts.replies[class] =
                at!(client.replies).element(class as u32).get() + replies.element(class as u32).get();
            let latency = at!(client.latency).element(class as u32);
            for (i, bucket) in counts.latency[class].iter_mut().enumerate() {
                *bucket = latency.element(i as u32).get();
            }
        }
        let slots = (0..CALL_SLOTS as u32).map(|i| at!(line.calls).element(i).get());
        counts.waiting = slots
            .filter(|held| *held != 0)
            .map(|held| {
                let since = (self.now & !0xfff) - call::age_ns(held, self.now);
                (call::xid(held), Waiting { class: call::class(held), since })
            })
            .collect();
        counts
    }

    /// Pieces that the line says it holds.
    pub fn pieces(&self) -> u32 {
        let line = self.line.shared();
        at!(line.pieces).get()
    }
    pub fn held_segments(&self) -> u64 {
        let server = self.server.shared();
        at!(server.held_segments).get()
    }
    /// Whether calls and replies are being followed.
    pub fn is_followed(&self) -> (bool, bool) {
        let line = self.line.shared();
        let synced = |s: Shared<Stream>| at!(s.flags).get() & bits::SYNCED != 0;
        (synced(at!(line.rx)), synced(at!(line.tx)))
    }

    /// What holds after any segment, whatever was in it.
    ///
    /// # Panics
    /// When it does not.
    pub fn check(&self) {
        let (line, client) = (self.line.shared(), self.client.shared());
        let slots = (0..CALL_SLOTS as u32).filter(|i| at!(line.calls).element(*i).get() != 0).count() as u32;
        let (waiting, in_progress) = (at!(line.waiting).get(), at!(client.in_progress).get());
        assert_eq!(
            (waiting, in_progress),
            (slots, slots),
            "waiting, in progress: as many as slots are taken"
        );
        let woken = self.woken.shared();
        assert!(waiting == 0 || woken.get() > 0, "the timer knows that calls wait");
        let causes = (0..orphan::COUNT as u32).map(|i| at!(client.orphaned).element(i).get());
        assert_eq!(causes.sum::<u64>(), u64::from(at!(client.orphans).get()), "each orphan has one cause");
        for s in [at!(line.rx), at!(line.tx)] {
            assert!(at!(s.gathered).get() < 28, "less than a header is gathered");
            assert!(at!(s.remaining).get() <= reroute_ebpf::rpc::MAX_FRAGMENT);
            if at!(s.flags).get() & bits::SYNCED == 0 {
                let rest = (at!(s.gathered).get(), at!(s.remaining).get(), at!(s.more).get());
                assert_eq!(rest, (0, 0, 0), "a lost stream is in the middle of nothing");
            }
        }
    }

    /// The list of pieces is whole, ours, and ahead of the stream: as long as none of them is stale.
    ///
    /// # Panics
    /// When it is not.
    pub fn check_pieces(&self) {
        let line = self.line.shared();
        let count = at!(line.pieces).get();
        let mut next = at!(line.first_piece).get();
        let mut last = 0;
        let mut seen = 0;
        let rx = at!(line.rx);
        while next != 0 {
            seen += 1;
            assert!(seen <= FLOW_PIECES, "the list ends");
            let Some(piece) = self.view().piece(next - 1) else { panic!("piece {next} is none") };
            assert_ne!(at!(piece.held_at).get(), 0, "what is let go is not in the list");
            assert_eq!(at!(piece.flow).get(), self.index);
            assert!((1..=reroute_common::flow::PIECE_BYTES as u32).contains(&at!(piece.len).get()));
            let ahead = at!(piece.seq).get().wrapping_sub(at!(rx.next_seq).get()) as i32;
            assert!(ahead > 0, "what is next is not held");
            last = next;
            next = at!(piece.next).get();
        }
        assert_eq!((count, at!(line.last_piece).get()), (seen, last), "pieces, last piece");
    }
}
