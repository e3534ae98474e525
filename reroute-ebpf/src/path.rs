//! Which of a host's connections speak for it: those by the network that it came by last.
//!
//! A host that changes its path to the same server leaves old connections behind, which this kernel has open and the
//! host has not: what is still on its way in them would be executed after newer calls. So a connection that the host
//! has *completed* by another network shuts all those from before; no message is needed, and no moment is left in
//! between. A SYN alone changes nothing: it may be late itself. Whoever answers our SYN+ACK, with the number that only
//! this tells, is there now.

use crate::at;
use crate::cell::Shared;
use crate::parse::{Frame, tcp};
use crate::stream;
use reroute_common::flow::{Flow, UNPROVEN, stream as bits};
use reroute_common::table::Client;

/// How `Client::path` names a network; 0: none is known.
#[inline(always)]
fn number(network: u32) -> u32 {
    network + 1
}

/// A line begins without our having seen its SYN.
#[inline(always)]
pub fn adopt(line: Shared<Flow>, client: Shared<Client>, network: u32) {
    if at!(client.path).get() == 0 {
        at!(client.path).set(number(network));
    }
    at!(line.generation).set(at!(client.generation).get());
}

/// A line begins with a SYN.
#[inline(always)]
pub fn begin(line: Shared<Flow>, client: Shared<Client>, network: u32) {
    adopt(line, client, network);
    at!(line.generation).set(at!(client.generation).get() | UNPROVEN);
}

/// Nothing is to be found out about the line.
#[inline(always)]
pub fn is_settled(line: Shared<Flow>, client: Shared<Client>) -> bool {
    at!(line.generation).get() == at!(client.generation).get()
}

/// Whether a host without a line for it may go on in a connection by this network.
#[inline(always)]
pub fn is_known(client: Shared<Client>, network: u32) -> bool {
    let path = at!(client.path).get();
    path == 0 || path == number(network)
}

/// A SYN+ACK leaves. False: it is the one from before. Under a SYN cookie each has a number of its own, and the client
/// may answer any: the last one counts.
#[inline(always)]
pub fn greets(line: Shared<Flow>, frame: &Frame) -> bool {
    let tx = at!(line.tx);
    let is_new = at!(tx.flags).get() & bits::SEEN == 0
        || (at!(line.generation).get() & UNPROVEN != 0
            && at!(tx.next_seq).get() != frame.sequence.wrapping_add(1));
    if is_new {
        stream::begin(tx, frame.sequence);
    }
    is_new
}

/// Whether a segment is from who has seen our SYN+ACK: the server has said nothing since. One that has not come by here
/// tells nothing.
#[inline(always)]
pub fn answers(line: Shared<Flow>, frame: &Frame) -> bool {
    let tx = at!(line.tx);
    at!(tx.flags).get() & bits::SEEN == 0
        || (frame.flags & tcp::ACK != 0 && frame.acknowledgment == at!(tx.next_seq).get())
}

/// Whether a segment of this line, that is no SYN, speaks for its host; `answers`: it [`answers`] the SYN+ACK. The first
/// one that does shuts the connections by other networks.
#[inline(always)]
pub fn speaks(line: Shared<Flow>, client: Shared<Client>, network: u32, answers: bool) -> bool {
    let (begun, now) = (at!(line.generation).get(), at!(client.generation).get());
    if begun == now {
        return true;
    }
    if begun & UNPROVEN == 0 || !answers {
        return false;
    }
    // Changes since its SYN.
    let changes = now.wrapping_sub(begun) & !UNPROVEN;
    let opened = at!(line.opened_at).get();
    let mut generation = now;
    if at!(client.path).get() == number(network) {
        // One: another connection by the same new path was a little quicker.
        if changes > 1 {
            return false;
        }
    } else {
        // One begun later is complete already: this one is late.
        if changes != 0 || opened < at!(client.newest_at).get() {
            return false;
        }
        generation = now.wrapping_add(1) & !UNPROVEN;
        at!(client.path).set(number(network));
        at!(client.generation).set(generation);
    }
    at!(client.newest_at).raise(opened);
    at!(line.generation).set(generation);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Rig {
        client: Client,
        lines: Vec<Flow>,
    }

    impl Rig {
        fn new() -> Rig {
            // SAFETY: integers all of it.
            Rig { client: unsafe { core::mem::zeroed() }, lines: Vec::new() }
        }
        fn client(&mut self) -> Shared<Client> {
            // SAFETY: lives as long as the rig, and one thread uses it.
            unsafe { Shared::new(&raw mut self.client) }
        }
        fn line(&mut self, index: usize) -> Shared<Flow> {
            // SAFETY: as above; no line is added while this is in use.
            unsafe { Shared::new(&raw mut self.lines[index]) }
        }
        fn syn(&mut self, network: u32, at: u64) -> usize {
            // SAFETY: integers all of it.
            self.lines.push(unsafe { core::mem::zeroed() });
            let index = self.lines.len() - 1;
            self.lines[index].opened_at = at;
            let client = self.client();
            begin(self.line(index), client, network);
            self.lines[index].key.network = network;
            index
        }
        fn says(&mut self, index: usize) -> bool {
            let network = self.lines[index].key.network;
            let client = self.client();
            speaks(self.line(index), client, network, true)
        }
        fn open(&mut self, network: u32, at: u64) -> usize {
            let index = self.syn(network, at);
            assert!(self.says(index));
            index
        }
    }

    #[test]
    fn a_new_path_shuts_the_old_one() {
        let mut rig = Rig::new();
        let (old, other) = (rig.open(1, 10), rig.open(1, 11));
        assert!(rig.says(old) && rig.says(other), "several by one network");
        let new = rig.syn(2, 20);
        assert!(rig.says(old), "a SYN alone changes nothing");
        assert!(rig.says(new));
        assert!(!rig.says(old) && !rig.says(other));
        // And back: those from before stay shut.
        let back = rig.open(1, 30);
        assert!(rig.says(back) && !rig.says(new) && !rig.says(old));
    }

    #[test]
    fn several_may_open_by_the_new_path_at_once() {
        let mut rig = Rig::new();
        let old = rig.open(1, 10);
        let (slow, quick) = (rig.syn(2, 20), rig.syn(2, 21));
        assert!(rig.says(quick) && rig.says(slow));
        assert!(rig.says(quick) && !rig.says(old));
    }

    #[test]
    fn a_late_handshake_shuts_nobody() {
        let mut rig = Rig::new();
        let old = rig.open(1, 10);
        let late = rig.syn(2, 20);
        let again = rig.open(1, 30);
        assert!(!rig.says(late), "the host has gone on without it");
        assert!(rig.says(again) && rig.says(old));
        let third = rig.open(0, 40);
        assert!(!rig.says(late) && !rig.says(again) && rig.says(third));
    }

    #[test]
    fn what_was_there_before_us_is_the_path() {
        let mut rig = Rig::new();
        let before = rig.syn(1, 10);
        let client = rig.client();
        adopt(rig.line(before), client, 1);
        assert!(rig.says(before) && is_known(rig.client(), 1) && !is_known(rig.client(), 2));
        rig.open(2, 20);
        assert!(!rig.says(before) && is_known(rig.client(), 2) && !is_known(rig.client(), 1));
    }
}
