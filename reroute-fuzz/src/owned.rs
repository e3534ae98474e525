//! Values that programs are given as map values, for as long as this process wants them.
#![allow(unsafe_code)]

use reroute_common::flow::{Flow, MAX_PIECES, Piece, Stream};
use reroute_common::table::{Client, Server};
use reroute_ebpf::cell::Shared;

/// Integers only: zeros are a value.
///
/// # Safety
/// All-zero bytes are a valid value of the type.
unsafe trait Zeroed {}
// SAFETY: integers and arrays of them.
unsafe impl Zeroed for Flow {}
// SAFETY: as above.
unsafe impl Zeroed for Stream {}
// SAFETY: as above.
unsafe impl Zeroed for Client {}
// SAFETY: as above.
unsafe impl Zeroed for Server {}
// SAFETY: as above.
unsafe impl Zeroed for u64 {}
// SAFETY: as above.
unsafe impl Zeroed for [Piece; MAX_PIECES as usize] {}

/// A value on the heap that is only ever read and written through [`Shared`].
pub(crate) struct Owned<T>(*mut T);

#[allow(private_bounds)]
impl<T: Zeroed> Owned<T> {
    pub(crate) fn new() -> Self {
        // SAFETY: by `Zeroed`.
        Owned(Box::into_raw(unsafe { Box::<T>::new_zeroed().assume_init() }))
    }
}

impl<T> Owned<T> {
    /// Not to be used after `self` is gone: whoever holds an `Owned` hands it out to calls only.
    pub(crate) fn shared(&self) -> Shared<T> {
        // SAFETY: valid until `self` is dropped.
        unsafe { Shared::new(self.0) }
    }
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        // SAFETY: made by `Box::into_raw`, freed once.
        drop(unsafe { Box::from_raw(self.0) });
    }
}
