//! The kernel's ring buffer, awaited on the agent's runtime.

use super::SensorError;
use aya::maps::{MapData, RingBuf};
use reroute_common::event::Event;
use tokio::io::unix::AsyncFd;

/// Transitions the programs report, in their order. Needs a tokio runtime with I/O.
pub struct Events {
    ring: AsyncFd<RingBuf<MapData>>,
}

impl Events {
    pub(super) fn new(ring: RingBuf<MapData>) -> Result<Events, SensorError> {
        let ring = super::raw::watch(ring)
            .map_err(|source| SensorError::Io { what: "watching the ring buffer", source })?;
        Ok(Events { ring })
    }

    /// An event, if one is there now.
    pub fn try_next(&mut self) -> Option<Event> {
        loop {
            let ring = self.ring.get_mut();
            let item = ring.next()?;
            if let Some(event) = decode(&item) {
                return Some(event);
            }
        }
    }

    /// The next event. Safe to cancel: none is lost.
    pub async fn next(&mut self) -> Result<Event, SensorError> {
        loop {
            if let Some(event) = self.try_next() {
                return Ok(event);
            }
            let mut guard = self
                .ring
                .readable()
                .await
                .map_err(|source| SensorError::Io { what: "waiting for the ring buffer", source })?;
            guard.clear_ready();
            // What came between the look and the clearing is found by looking again.
        }
    }
}

/// None: not an event of this version's size.
fn decode(bytes: &[u8]) -> Option<Event> {
    let long = |i: usize| bytes.get(i..i + 8)?.try_into().ok().map(u64::from_ne_bytes);
    let word = |i: usize| bytes.get(i..i + 4)?.try_into().ok().map(u32::from_ne_bytes);
    if bytes.len() != size_of::<Event>() {
        return None;
    }
    Some(Event {
        at: long(0)?,
        kind: word(8)?,
        client: word(12)?,
        flow: word(16)?,
        waiting: word(20)?,
        age_ns: long(24)?,
        limit: long(32)?,
        way: word(40)?,
        _pad: 0,
    })
}
