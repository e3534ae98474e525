//! The unsafe corner of the sensor: maps seen through shared memory, commands as bytes, the ring buffer's
//! registration with tokio.
#![allow(unsafe_code)]

use aya::Pod;
use aya::maps::{MapData, RingBuf};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::ffi::c_void;
use std::io;
use std::marker::PhantomData;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// An array map in shared memory. Every access is atomic, word by word, as in the kernel.
pub(super) struct View<T> {
    start: *mut c_void,
    bytes: usize,
    entries: u32,
    value: PhantomData<T>,
}

// SAFETY: plain shared memory, accessed by atomics alone.
unsafe impl<T> Send for View<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for View<T> {}

impl<T: Pod> View<T> {
    /// `map` is an array of `entries` values of type `T`, made with BPF_F_MMAPABLE; the kernel refuses another size.
    pub fn open(map: &MapData, entries: u32) -> io::Result<View<T>> {
        const { assert!(size_of::<T>().is_multiple_of(8) && align_of::<T>() <= 8) };
        let bytes = (size_of::<T>() * entries as usize).next_multiple_of(rustix::param::page_size());
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh mapping, wherever the kernel puts it.
        let start =
            unsafe { mmap(std::ptr::null_mut(), bytes, protection, MapFlags::SHARED, map.fd().as_fd(), 0)? };
        Ok(View { start, bytes, entries, value: PhantomData })
    }

    fn offset(&self, index: u32, offset: usize, size: usize) -> Option<usize> {
        (index < self.entries && offset.is_multiple_of(size) && offset + size <= size_of::<T>())
            .then_some(index as usize * size_of::<T>() + offset)
    }

    /// Field of 8 bytes at `offset` of an entry.
    pub fn long(&self, index: u32, offset: usize) -> Option<&AtomicU64> {
        let at = self.offset(index, offset, 8)?;
        // SAFETY: inside the mapping, aligned, and accessed by atomics alone.
        Some(unsafe { AtomicU64::from_ptr(self.start.cast::<u8>().add(at).cast()) })
    }

    /// Field of 4 bytes at `offset` of an entry.
    pub fn word(&self, index: u32, offset: usize) -> Option<&AtomicU32> {
        let at = self.offset(index, offset, 4)?;
        // SAFETY: inside the mapping, aligned, and accessed by atomics alone.
        Some(unsafe { AtomicU32::from_ptr(self.start.cast::<u8>().add(at).cast()) })
    }

    /// A copy of an entry; fields that change meanwhile are each old or new.
    pub fn read(&self, index: u32) -> Option<T> {
        let mut value = std::mem::MaybeUninit::<T>::uninit();
        for i in 0..size_of::<T>() / 8 {
            let long = self.long(index, i * 8)?.load(Ordering::Relaxed);
            // SAFETY: word `i` lies inside the value, which is aligned for no more than a word.
            unsafe { value.as_mut_ptr().cast::<u64>().add(i).write_unaligned(long) };
        }
        // SAFETY: every byte was written, and any bytes make a Pod.
        Some(unsafe { value.assume_init() })
    }
}

impl<T> Drop for View<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `open`; no reference into it outlives the view.
        let _ = unsafe { munmap(self.start, self.bytes) };
    }
}

pub(super) fn bytes_of<T: Pod>(value: &T) -> &[u8] {
    // SAFETY: a Pod is its bytes.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) }
}

/// None: too few bytes.
pub(super) fn from_bytes<T: Pod>(bytes: &[u8]) -> Option<T> {
    // SAFETY: any bytes make a Pod, and there are enough.
    (bytes.len() >= size_of::<T>()).then(|| unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

pub(super) fn watch(ring: RingBuf<MapData>) -> io::Result<AsyncFd<RingBuf<MapData>>> {
    // SAFETY: the ring owns its map's descriptor: it stays open, and the same, as long as the ring lives.
    unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }.map_err(Into::into)
}
