//! The unsafe corner of the sensor: shared views of maps, and the ring buffer's registration with tokio.
#![allow(unsafe_code)]

use aya::maps::{MapData, RingBuf};
use std::io;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

pub(super) fn watch(ring: RingBuf<MapData>) -> io::Result<AsyncFd<RingBuf<MapData>>> {
    // SAFETY: the ring owns its map's descriptor: it stays open, and the same, as long as the ring lives.
    unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }.map_err(Into::into)
}
