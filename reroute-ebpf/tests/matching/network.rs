//! A client, a server, and a network between them that does what the tape says. We sit at the server's door.

use crate::case::{Body, Case, Exchange, Weather, Xid};
use crate::reference::Reference;
use crate::side::{Side, Tape};
use crate::wire::{self, Filling};
use reroute_common::flow::{FLOW_PIECES, PIECE_BYTES};
use reroute_fuzz::rig::Rig;
use std::collections::VecDeque;
use std::ops::Range;

/// The clock's unit, ns: that of a call's time, so that ages are exact.
const UNIT: u64 = 4096;
/// What is held is not held for longer.
const LONGEST: u64 = 15_000_000_000;

pub struct Network {
    pub rig: Rig,
    pub reference: Reference,
    pub weather: Weather,
    pub client: Side,
    pub server: Side,
    tape: Tape,
    began_at: u64,
    next_xid: u32,
    /// What the client will ask.
    pub to_ask: VecDeque<Exchange>,
    /// Calls on their way, in order, and how they will be answered.
    asked: VecDeque<(u32, Option<Body>)>,
    xids: Vec<u32>,
    /// Calls that the server has, and will answer.
    to_answer: Vec<(u32, Body)>,
    /// Where each reply ends, and what it answers.
    answered: Vec<(usize, u32)>,
    /// Whether the programs are there yet.
    attached: bool,
    /// Nothing bad happens any more.
    pub calm: bool,
}

impl Network {
    pub fn new(case: &Case, rig: Rig) -> Network {
        let attached = case.weather != Weather::Midstream;
        if attached {
            rig.open(case.first[0], case.first[1]);
        }
        Network {
            began_at: rig.now,
            rig,
            reference: Reference::default(),
            weather: case.weather,
            client: Side::new(case.first[0]),
            server: Side::new(case.first[1]),
            tape: Tape::new(case.tape.clone()),
            next_xid: case.first_xid,
            to_ask: case.exchanges.iter().cloned().collect(),
            asked: VecDeque::new(),
            xids: vec![],
            to_answer: vec![],
            answered: vec![],
            attached,
            calm: false,
        }
    }

    /// Until everything was asked, delivered and answered.
    pub fn run(&mut self) {
        while self.step() {}
        self.attach();
    }

    fn attach(&mut self) {
        if !self.attached {
            self.attached = true;
            self.rig.find();
        }
    }

    fn step(&mut self) -> bool {
        let replies = self.is_bad(Weather::Disorder) && self.tape.below(2) == 1;
        let flying = if replies { self.server.flight.len() } else { self.client.flight.len() };
        match self.tape.below(16) {
            4 if !self.to_ask.is_empty() => {
                for _ in 0..1 + self.tape.below(8) {
                    self.ask();
                }
            }
            2 | 3 | 5 | 6 if self.client.unsent() > 0 && self.client.flight.len() < 64 => {
                self.client.send(&mut self.tape)
            }
            7 if flying > 0 => self.arrive(replies, false),
            8 if flying > 0 => {
                let i = self.tape.below(flying);
                let side = if replies { &mut self.server } else { &mut self.client };
                side.flight.remove(i);
            }
            9 if flying > 0 => self.arrive(replies, true),
            10 if self.client.sent > 0 => self.client.send_again(&mut self.tape),
            11 if !self.to_answer.is_empty() => self.answer(),
            12 if self.server.unsent() > 0 => self.send_replies(),
            13 if self.server.sent > 0 => {
                self.server.send_again(&mut self.tape);
                self.show_replies_in_order();
            }
            14 => self.show(self.server.sent..self.server.sent),
            15 => self.wait(),
            _ => return self.progress(),
        }
        true
    }

    /// The simplest thing that leads on. False: nothing is left to be done.
    fn progress(&mut self) -> bool {
        if !self.client.flight.is_empty() {
            let next = self.client.flight.remove(0);
            self.deliver(next);
        } else if self.client.taken < self.client.sent {
            let missing = self.client.cut(self.client.taken, self.client.sent, &mut self.tape);
            self.deliver(missing);
        } else if self.client.unsent() > 0 {
            self.client.send(&mut self.tape);
        } else if !self.server.flight.is_empty() {
            let next = self.server.flight.remove(0);
            self.show(next);
        } else if self.server.taken < self.server.sent {
            let missing = self.server.cut(self.server.taken, self.server.sent, &mut self.tape);
            self.show(missing);
        } else if self.server.unsent() > 0 {
            self.send_replies();
        } else if !self.to_answer.is_empty() {
            self.answer();
        } else if !self.to_ask.is_empty() {
            self.ask();
        } else {
            return false;
        }
        true
    }

    fn arrive(&mut self, replies: bool, stays: bool) {
        let side = if replies { &mut self.server } else { &mut self.client };
        let i = self.tape.below(side.flight.len());
        let segment = side.flight[i].clone();
        if !stays {
            side.flight.remove(i);
        }
        if replies { self.show(segment) } else { self.deliver(segment) }
    }

    /// Replies leave the server in order, but where the weather is against it.
    fn send_replies(&mut self) {
        self.server.send(&mut self.tape);
        self.show_replies_in_order();
    }

    fn show_replies_in_order(&mut self) {
        if !self.is_bad(Weather::Disorder) {
            for segment in std::mem::take(&mut self.server.flight) {
                self.show(segment);
            }
        }
    }

    fn is_bad(&self, weather: Weather) -> bool {
        self.weather == weather && !self.calm
    }

    fn wait(&mut self) {
        let units = [1, 0, 3, 250, 6_000, 60_000][self.tape.below(6)];
        let late = self.rig.now - self.began_at > LONGEST;
        self.rig.now += UNIT * if late { 1 } else { units };
        // A call's time is never 0: one unit of the 30-bit clock is not exact.
        if (self.rig.now / UNIT).is_multiple_of(1 << 30) {
            self.rig.now += UNIT;
        }
    }

    fn choose_xid(&mut self, rule: Xid) -> u32 {
        let used: Vec<u32> =
            self.answered.iter().filter(|(end, _)| *end <= self.server.taken).map(|a| a.1).collect();
        let times = |xids: &[u32], xid: u32| xids.iter().filter(|x| **x == xid).count();
        let xid = match rule {
            Xid::Next => None,
            Xid::Any(xid) => Some(xid),
            Xid::Used(i) => used.iter().nth_back(usize::from(i) % used.len().max(1)).copied(),
            Xid::Waiting(i) => {
                self.xids.iter().nth_back(usize::from(i) % self.xids.len().clamp(1, 16)).copied()
            }
        };
        // An XID that comes while it is waited for counts once. Where calls are seen early, or replies late, nobody
        // could tell which is which.
        let free = |xid: &u32| self.weather == Weather::Tcp || times(&self.xids, *xid) == times(&used, *xid);
        if let Some(xid) = xid.filter(free) {
            return xid;
        }
        self.next_xid = (1..).map(|n| self.next_xid.wrapping_add(n)).find(free).unwrap();
        self.next_xid
    }

    /// The client writes a call.
    fn ask(&mut self) {
        let Some(exchange) = self.to_ask.pop_front() else { return };
        if let (Weather::Garbage, Some((of_client, bytes))) = (self.weather, &exchange.garbage) {
            let side = if *of_client { &mut self.client } else { &mut self.server };
            side.write_garbage(bytes);
            return;
        }
        let xid = self.choose_xid(exchange.xid);
        let body = self.in_this_weather(exchange.call);
        let payload = wire::call(xid, exchange.procedure, body.len, body.filling);
        self.client.write(&payload, wire::CALL, &body.cuts);
        self.asked.push_back((xid, exchange.reply));
        self.xids.push(xid);
    }

    /// The server writes a reply to any call that it has.
    fn answer(&mut self) {
        let (xid, body) = self.to_answer.remove(self.tape.below(self.to_answer.len()));
        let body = self.in_this_weather(body);
        let payload = wire::reply(xid, body.len, body.filling);
        self.server.write(&payload, wire::REPLY, &body.cuts);
        self.answered.push((self.server.bytes.len(), xid));
    }

    /// Nobody can find a lost stream again in a body that looks like records.
    fn in_this_weather(&self, body: Body) -> Body {
        let plain = self.weather == Weather::Tcp || body.filling == Filling::Zeros;
        Body { filling: if plain { body.filling } else { Filling::Text }, ..body }
    }

    /// A segment reaches the server, by our door.
    pub fn deliver(&mut self, segment: Range<usize>) {
        let early = segment.start > self.client.taken;
        let pieces = segment.len().div_ceil(PIECE_BYTES) as u32;
        if self.weather == Weather::Tcp && early && self.rig.pieces() + pieces > FLOW_PIECES {
            // Nobody promises to hold that much: it is lost, and sent again.
            return;
        }
        // A call that was answered before us, and whose copy is the first thing that we see, looks like one that waits:
        // no number of an ACK has gone by yet that would tell. That much has to be left to luck.
        if !self.attached && segment.start >= self.client.taken && self.tape.below(8) == 0 {
            self.attach();
        }
        let passes_by = self.attached && !(self.is_bad(Weather::Bypass) && self.tape.below(8) == 1);
        self.client.take(&segment);
        if passes_by {
            let seq = self.client.seq(segment.start);
            self.rig.call_bytes(&self.client.bytes[..segment.end], segment.start, seq);
        }
        let stream = &self.client.bytes[..self.client.taken];
        for call in self.reference.calls(stream, &self.client.garbage, self.rig.now) {
            let Some((xid, reply)) = self.asked.pop_front() else { panic!("{call:#x} was never asked") };
            assert_eq!(xid, call, "the reference reads what was written");
            self.to_answer.extend(reply.map(|body| (xid, body)));
        }
        self.compare();
    }

    /// A segment leaves the server, by our door.
    pub fn show(&mut self, segment: Range<usize>) {
        self.server.sent = self.server.sent.max(segment.end);
        self.server.take(&segment);
        if self.attached {
            let (seq, ack) = (self.server.seq(segment.start), self.client.seq(self.client.taken));
            self.rig.reply_bytes(&self.server.bytes[..segment.end], segment.start, seq, ack);
        }
        let stream = &self.server.bytes[..self.server.taken];
        self.reference.replies(stream, &self.server.garbage, self.rig.now);
        self.compare();
    }

    fn compare(&self) {
        self.rig.check();
        self.rig.check_pieces();
        if self.weather == Weather::Tcp {
            assert_eq!(
                self.rig.counts(),
                self.reference.counts(),
                "left: the programs, right: the reference"
            );
        }
    }

    /// The client asks something, in one segment, and is answered in one. Gives the XID, and whether it waited meanwhile.
    pub fn exchange(&mut self) -> (u32, bool) {
        let waiting = self.rig.counts().waiting;
        let set = |xid: u32| waiting.keys().filter(|other| *other % 8 == xid % 8).count();
        // A slot is free for it; and 0 is nobody to those who find a stream of replies again.
        let room = |xid: &u32| *xid != 0 && !waiting.contains_key(xid) && set(*xid) < 8;
        self.next_xid = (1..).map(|n| self.next_xid.wrapping_add(n)).find(room).unwrap();
        let xid = self.next_xid;
        let nothing = Body { len: 16, cuts: vec![], filling: Filling::Zeros };
        self.client.write(&wire::call(xid, 2, 16, Filling::Zeros), wire::CALL, &[]);
        self.asked.push_back((xid, Some(nothing)));
        let segment = self.client.sent..self.client.bytes.len();
        self.client.sent = segment.end;
        self.deliver(segment);
        let waits = self.rig.counts().waiting.contains_key(&xid);
        self.answer();
        let segment = self.server.sent..self.server.bytes.len();
        self.show(segment);
        (xid, waits)
    }
}
