//! A hole in the stream of calls: segments came out of order, or one was lost and is sent again.
//!
//! The receiver's TCP holds back what lies beyond a hole, so nothing in it is late for us either. The state of the
//! stream is kept as it stood at the hole's beginning and followed through the bytes that fill it, while `rx` goes on
//! from the next record it recognises. When the hole is full, the two must meet on a record's boundary: then no call
//! was missed, and the orphan that stood for them goes. Four holes at a time; a further one keeps its orphan.

use crate::at;
use crate::cell::Shared;
use crate::stream;
use reroute_common::flow::{Flow, HOLES, Hole, Stream, stream as bits};

#[inline(always)]
pub fn any(line: Shared<Flow>) -> bool {
    at!(line.open_holes).get() != 0
}

#[inline(always)]
pub fn is_open(line: Shared<Flow>, index: u32) -> bool {
    at!(line.open_holes).get() & (1 << (index & (HOLES as u32 - 1))) != 0
}

/// Bytes from `start` to `end` are missing. Called before `rx` is given up. False: there are too many already.
#[inline(always)]
pub fn open(line: Shared<Flow>, start: u32, end: u32, opaque: impl Fn(u32) -> u32) -> bool {
    let open = at!(line.open_holes).get();
    let mut index = HOLES as u32;
    let mut i = HOLES as u32;
    while i > 0 {
        i -= 1;
        if open & (1 << i) == 0 {
            index = i;
        }
    }
    if index == HOLES as u32 {
        return false;
    }
    let index = opaque(index) & (HOLES as u32 - 1);
    let rx = at!(line.rx);
    let hole = at!(line.holes).element(index);
    let followed = at!(hole.stream);
    copy(rx, followed);
    at!(followed.remaining).set(at!(rx.remaining).get());
    at!(followed.gathered).set(at!(rx.gathered).get());
    at!(followed.next_seq).set(start);
    at!(followed.lost).set(0);
    at!(followed.flags).set(at!(rx.flags).get() & (bits::SYNCED | bits::SEEN | bits::PENDING));
    at!(hole.end).set(end);
    at!(line.open_holes).set(open | 1 << index);
    true
}

#[inline(always)]
pub fn close(line: Shared<Flow>, index: u32) {
    let open = at!(line.open_holes).get();
    at!(line.open_holes).set(open & !(1 << (index & (HOLES as u32 - 1))));
}

#[inline(always)]
pub fn close_all(line: Shared<Flow>) {
    at!(line.open_holes).set(0);
}

/// `rx` has found a record at `seq`: that is where the hole it was lost by last has to lead to.
#[inline(always)]
pub fn resumed(line: Shared<Flow>, seq: u32) {
    for index in 0..HOLES as u32 {
        let hole = at!(line.holes).element(index);
        let followed = at!(hole.stream);
        if is_open(line, index) && at!(followed.lost).get() == 0 {
            at!(followed.lost).set(1);
            at!(hole.resumed_at).set(seq);
        }
    }
}

/// How many bytes of a segment at `seq` lie before the hole's end.
#[inline(always)]
pub fn share(hole: Shared<Hole>, seq: u32, len: u32) -> u32 {
    let before = at!(hole.end).get().wrapping_sub(seq) as i32;
    if before <= 0 {
        0
    } else if (before as u32) < len {
        before as u32
    } else {
        len
    }
}

/// How the two streams meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meeting {
    /// Bytes are missing still.
    NotYet,
    /// Nothing was missed.
    Seamless,
    /// Nothing was missed, and the call whose header the hole's stream holds is complete.
    SeamlessWithCall,
    /// They do not fit: calls may have been missed.
    Torn,
}

/// After bytes have been filled in. Anything but `NotYet` ends the hole.
#[inline(always)]
pub fn meet(line: Shared<Flow>, index: u32) -> Meeting {
    let rx = at!(line.rx);
    let hole = at!(line.holes).element(index);
    let followed = at!(hole.stream);
    let end = at!(hole.end).get();
    if at!(followed.next_seq).get() != end {
        return Meeting::NotYet;
    }
    let boundary = end.wrapping_add(at!(followed.remaining).get());
    let has_resumed = at!(followed.lost).get() != 0;
    let meeting = if at!(followed.gathered).get() != 0 {
        // A header reaches over the hole's end, into bytes that nobody reads again.
        Meeting::Torn
    } else if has_resumed {
        if at!(hole.resumed_at).get() != boundary || at!(followed.more).get() != 0 {
            Meeting::Torn
        } else if at!(followed.flags).get() & bits::PENDING != 0 {
            Meeting::SeamlessWithCall
        } else {
            Meeting::Seamless
        }
    } else {
        let ahead = boundary.wrapping_sub(at!(rx.next_seq).get());
        if (ahead as i32) < 0 {
            Meeting::Torn
        } else {
            copy(followed, rx);
            at!(rx.gathered).set(0);
            at!(rx.remaining).set(ahead);
            let kept = at!(rx.flags).get() & !(bits::SYNCED | bits::PENDING);
            let taken = at!(followed.flags).get() & (bits::SYNCED | bits::PENDING);
            at!(rx.flags).set(kept | taken);
            if stream::ended(rx) { Meeting::SeamlessWithCall } else { Meeting::Seamless }
        }
    };
    close(line, index);
    meeting
}

/// Header and fragment state.
#[inline(always)]
fn copy(from: Shared<Stream>, to: Shared<Stream>) {
    let (source, target) = (at!(from.header), at!(to.header));
    // SAFETY: 32 bytes each, in one line that only ingress writes; 8-aligned, since Stream is and 16 bytes go before.
    unsafe { *target.as_ptr().cast::<[u64; 4]>() = *source.as_ptr().cast::<[u64; 4]>() };
    at!(to.more).set(at!(from.more).get());
}

#[cfg(test)]
mod tests {
    use crate::at;
    use crate::cell::Shared;
    use crate::flow::Lines;
    use crate::follow::{Place, Segment, calls};
    use crate::stream;
    use reroute_common::flow::{CALL_SLOTS, Flow, call as packed};
    use reroute_common::table::{Client, Server};
    use std::collections::BTreeSet;

    fn leak<T>() -> Shared<T> {
        // SAFETY: integers: zeros are a value; leaked, it lives for ever.
        unsafe { Shared::new(Box::leak(Box::<T>::new_zeroed().assume_init())) }
    }

    #[derive(Clone, Copy)]
    struct NoTimer;
    impl Lines for NoTimer {
        fn line(&self, _: u32) -> Option<Shared<Flow>> {
            None
        }
        fn client(&self, _: u32) -> Option<Shared<Client>> {
            None
        }
        fn wake(&self, _: u32) {}
    }

    struct Server64 {
        place: Place,
        bytes: Vec<u8>,
        first: u32,
    }

    impl Server64 {
        /// A connection that will carry these calls.
        fn new(bodies: &[usize], first: u32) -> Server64 {
            let place = Place {
                slot: 1,
                index: 0,
                line: leak(),
                client: leak(),
                server: leak::<Server>(),
                now: 1 << 30,
            };
            let line = place.line;
            stream::begin(at!(line.rx), first.wrapping_sub(1));
            let mut bytes = vec![];
            for (xid, body) in bodies.iter().enumerate() {
                bytes.extend((0x8000_0000_u32 | (40 + *body as u32)).to_be_bytes());
                for word in [xid as u32, 0, 2, 100_003, 3, 7, 0, 0, 0, 0] {
                    bytes.extend(word.to_be_bytes());
                }
                bytes.resize(bytes.len() + body, 0x77);
            }
            Server64 { place, bytes, first }
        }
        fn deliver(&self, from: usize, to: usize) {
            let segment = Segment {
                seq: self.first.wrapping_add(from as u32),
                offset: from as u32,
                len: (to - from) as u32,
            };
            calls(&self.bytes[..], NoTimer, &self.place, segment);
        }
        fn xids(&self) -> BTreeSet<u32> {
            let line = self.place.line;
            let held = (0..CALL_SLOTS as u32).map(|i| at!(line.calls).element(i).get());
            held.filter(|c| *c != 0).map(packed::xid).collect()
        }
        fn orphans(&self) -> u32 {
            let client = self.place.client;
            at!(client.orphans).get()
        }
    }

    fn all(n: usize) -> BTreeSet<u32> {
        (0..n as u32).collect()
    }

    #[test]
    fn segments_that_changed_places_hide_nothing() {
        // Cut inside the second record; the segment with its header comes last.
        let s = Server64::new(&[0, 3000, 10], u32::MAX - 100);
        s.deliver(0, 44);
        s.deliver(1500, 3088);
        assert_eq!(s.orphans(), 1, "a header is missing");
        s.deliver(44, 1500);
        assert_eq!((s.orphans(), s.xids()), (0, all(2)));
        s.deliver(3088, s.bytes.len());
        assert_eq!((s.orphans(), s.xids()), (0, all(3)));
    }

    #[test]
    fn what_was_recognised_beyond_the_hole_must_meet_what_fills_it() {
        // Three whole records in a segment each; the middle one is lost and sent again, in two pieces.
        let s = Server64::new(&[100, 100, 100], 7);
        s.deliver(0, 144);
        s.deliver(288, 432);
        assert_eq!((s.orphans(), s.xids()), (1, BTreeSet::from([0, 2])));
        s.deliver(144, 200);
        assert_eq!(s.orphans(), 1);
        s.deliver(200, 288);
        assert_eq!((s.orphans(), s.xids()), (0, all(3)));
    }

    #[test]
    fn a_record_that_hides_beyond_the_hole_keeps_its_orphan() {
        // The second record's header lies beyond the hole, in a segment that begins in the middle of the first.
        let s = Server64::new(&[1000, 100, 100], 7);
        s.deliver(1000, 1188); // end of record 0, all of record 1: cannot be recognised
        s.deliver(1188, 1332); // record 2
        assert_eq!(s.xids(), BTreeSet::from([2]));
        s.deliver(0, 1000);
        assert_eq!(s.orphans(), 1, "record 1 was never seen: {:?}", s.xids());
    }

    /// Any cut, any order within a small window, bytes sent again: with no orphan left, no call was missed.
    #[test]
    fn without_orphans_nothing_is_missing() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % below
        };
        let mut clean = 0;
        for _ in 0..5000 {
            let bodies: Vec<usize> = (0..1 + random(12)).map(|_| random(400)).collect();
            let s = Server64::new(&bodies, random(usize::MAX >> 32) as u32);
            let mut cuts = vec![0, s.bytes.len()];
            cuts.extend((0..random(12)).map(|_| random(s.bytes.len())));
            cuts.sort();
            cuts.dedup();
            let mut parts: Vec<(usize, usize)> = cuts.windows(2).map(|w| (w[0], w[1])).collect();
            for _ in 0..random(3) {
                let (a, b) = (random(parts.len()), random(3));
                let b = (a + b).min(parts.len() - 1);
                parts.swap(a, b);
            }
            if random(4) == 0 {
                let again = parts[random(parts.len())];
                parts.push(again);
            }
            for (from, to) in &parts {
                s.deliver(*from, *to);
            }
            if s.orphans() == 0 {
                clean += 1;
                assert_eq!(s.xids(), all(bodies.len()), "{bodies:?} as {parts:?}");
            }
        }
        println!("{clean} of 5000 followed to the end");
        assert!(clean > 3500, "most of these are followed to the end: {clean}");
    }
}
