//! The maps, by the names they are pinned under.

use crate::at;
use crate::cell::Shared;
use crate::flow::Lines;
use crate::parse::{End, Frame, Wanted};
use crate::timer::Scan;
use aya_ebpf::bindings::{BPF_F_MMAPABLE, bpf_timer};
use aya_ebpf::btf_maps;
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::{Array, HashMap, PerCpuArray, RingBuf};
use reroute_common::event::Event;
use reroute_common::flow::{Flow, MAX_FLOWS, MAX_PIECES, Piece, Watch};
use reroute_common::pulse;
use reroute_common::table::{AddressKey, Client, Config, MAX_CLIENTS, MAX_INTERFACES, Server};

#[map]
static CONFIG: Array<Config> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static CLIENTS: Array<Client> = Array::with_max_entries(MAX_CLIENTS, BPF_F_MMAPABLE);
#[map]
static ADDRESSES: HashMap<AddressKey, u32> = HashMap::with_max_entries(4 * MAX_CLIENTS, 0);
#[map]
static FLOWS: Array<Flow> = Array::with_max_entries(MAX_FLOWS, BPF_F_MMAPABLE);
#[map]
static WATCHES: Array<Watch> = Array::with_max_entries(WATCHES_COUNT, BPF_F_MMAPABLE);
/// Segments that came before their turn.
#[map]
static PIECES: Array<Piece> = Array::with_max_entries(MAX_PIECES, 0);
#[map]
static SERVER: Array<Server> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(256 * 1024, 0);
/// A pulse does not fit on the stack beside everything else.
#[map]
static SCRATCH: PerCpuArray<[u64; pulse::LEN / 8]> = PerCpuArray::with_max_entries(1, 0);

/// The frame at hand, by direction. On the stack the verifier would follow every way of parsing through all that
/// comes after; of what it finds here it remembers nothing, and looks at the rest once.
#[map]
static FRAMES: PerCpuArray<Frame> = PerCpuArray::with_max_entries(2, 0);
/// The same for what the timer adds up. It runs on one CPU at a time.
#[map]
static SCAN: Array<Scan> = Array::with_max_entries(1, 0);
/// The same for a number.
#[map]
static NUMBERS: PerCpuArray<u32> = PerCpuArray::with_max_entries(1, 0);

/// The timer, and what only it writes.
#[repr(C)]
pub struct TimerValue {
    pub timer: bpf_timer,
    /// The last time that the timer itself came late, boot ns.
    pub rebased_at: u64,
    /// How late at most, of late, ns.
    pub stood_still: u64,
    /// When that was, boot ns.
    pub stood_at: u64,
}
// SAFETY: the kernel guards the timer; the rest is written by its callback alone.
unsafe impl Sync for TimerValue {}

#[btf_map]
pub static TIMER: btf_maps::Array<TimerValue, 1> = btf_maps::Array::new();

pub const WATCHES_COUNT: u32 = MAX_FLOWS / 64;

macro_rules! entry {
    ($name:ident, $map:ident, $t:ty) => {
        #[inline(always)]
        pub fn $name(index: u32) -> Option<Shared<$t>> {
            // SAFETY: array entries live as long as the map, which outlives the run.
            $map.get_ptr_mut(index).map(|p| unsafe { Shared::new(p) })
        }
    };
}
entry!(config_at, CONFIG, Config);
entry!(server_at, SERVER, Server);
entry!(client, CLIENTS, Client);
entry!(flow, FLOWS, Flow);
entry!(watch, WATCHES, Watch);
entry!(piece, PIECES, Piece);
entry!(scan_at, SCAN, Scan);
entry!(scratch_at, SCRATCH, [u64; pulse::LEN / 8]);

/// The direction a frame goes.
#[derive(Clone, Copy)]
pub enum Way {
    In = 0,
    Out = 1,
}

/// This CPU's frame of a direction, as the last packet left it.
#[inline(always)]
pub fn frame<'a>(way: Way) -> Option<&'a mut Frame> {
    // SAFETY: one packet per direction and CPU at a time; nobody else sees this CPU's entry.
    FRAMES.get_ptr_mut(way as u32).map(|frame| unsafe { &mut *frame })
}

/// The timer's alone.
#[inline(always)]
pub fn scan() -> Option<Shared<Scan>> {
    scan_at(0)
}
#[inline(always)]
pub fn config() -> Option<Shared<Config>> {
    config_at(0)
}
#[inline(always)]
pub fn server() -> Option<Shared<Server>> {
    server_at(0)
}
#[inline(always)]
pub fn scratch() -> Option<Shared<[u64; pulse::LEN / 8]>> {
    scratch_at(0)
}

/// What to look for at this end of a packet. `pulse_port`: none, if it is out of range.
#[inline(always)]
pub fn wanted(config: Shared<Config>, end: End, pulse_port: u32) -> Wanted {
    let address = at!(config.service_address);
    // SAFETY: an address is 16 bytes at an offset divisible by 8: four words.
    let words: Shared<[u32; 4]> = unsafe { Shared::new(address.as_ptr().cast()) };
    Wanted {
        end,
        // RFC 4291 §2.5.5.2.
        is_ipv4: words.element(2).get() == u32::from_be(0xffff),
        service: words.element(3).get(),
        port: at!(config.service_port).get(),
        pulse_port,
    }
}

/// The network an interface belongs to; none: not ours.
#[inline(always)]
pub fn network(config: Shared<Config>, interface: u32) -> Option<u32> {
    for i in 0..MAX_INTERFACES as u32 {
        let known = at!(config.interfaces).element(i);
        if at!(known.index).get() == interface {
            return Some(at!(known.network).get());
        }
    }
    None
}

/// The line of a frame's flow.
#[inline(always)]
pub fn locate(frame: &mut Frame) -> Option<(u32, Shared<Flow>)> {
    // Of what is read back the verifier knows nothing: it need not follow each way of having found it.
    // SAFETY: this CPU's frame.
    let recall = |frame: &Frame| unsafe { (&raw const frame.seen.line).read_volatile() };
    let index = recall(frame);
    if let Some(line) = flow(index)
        && crate::flow::is_of(line, &frame.key)
    {
        return Some((index, line));
    }
    let found = crate::flow::find(&Tables, &frame.key);
    // SAFETY: as above.
    unsafe { (&raw mut frame.seen.line).write_volatile(found) };
    let index = recall(frame);
    Some((index, flow(index)?))
}

/// The client with this address on this network; 0: nobody registered.
#[inline(always)]
pub fn slot(network: u32, address: &[u8; 16]) -> u32 {
    let key = AddressKey { network, address: *address };
    // SAFETY: a slot number is one word: it is read whole, old or new.
    unsafe { ADDRESSES.get(key) }.copied().unwrap_or(0)
}

#[inline(always)]
pub fn emit(event: &Event) {
    if EVENTS.output::<Event>(event, 0).is_err()
        && let Some(server) = server()
    {
        crate::at!(server.lost_events).count(1);
    }
}

/// The tables of the running program.
#[derive(Clone, Copy)]
pub struct Tables;

impl Lines for Tables {
    #[inline(always)]
    fn line(&self, index: u32) -> Option<Shared<Flow>> {
        flow(index)
    }
    #[inline(always)]
    fn client(&self, slot: u32) -> Option<Shared<Client>> {
        client(slot)
    }
    #[inline(always)]
    fn piece(&self, index: u32) -> Option<Shared<Piece>> {
        piece(index)
    }
    #[inline(always)]
    fn opaque(&self, number: u32) -> u32 {
        let Some(cell) = NUMBERS.get_ptr_mut(0) else { return number };
        // SAFETY: this CPU's entry, read back at once.
        unsafe {
            cell.write_volatile(number);
            cell.read_volatile()
        }
    }
    #[inline(always)]
    fn wake(&self, index: u32) {
        if let Some(watch) = watch(index / 64) {
            let lines = at!(watch.lines);
            let bit = 1 << (index % 64);
            if lines.get() & bit == 0 {
                lines.or(bit);
            }
        }
    }
}
