//! Parts of a world that are shared between states until one of them changes, and clocks.

use reroute_core::ids::BootNs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

/// Copied when written to; its hash is computed once per change.
#[derive(Clone, Debug)]
pub struct Part<T> {
    value: Arc<T>,
    hash: u64,
    dirty: bool,
}

impl<T: Clone + Hash> Part<T> {
    pub fn new(value: T) -> Part<T> {
        Part { value: Arc::new(value), hash: 0, dirty: true }
    }
    pub fn edit(&mut self) -> &mut T {
        self.dirty = true;
        Arc::make_mut(&mut self.value)
    }
    pub fn seal(&mut self) {
        if self.dirty {
            let mut hasher = DefaultHasher::new();
            self.value.hash(&mut hasher);
            self.hash = hasher.finish();
            self.dirty = false;
        }
    }
    pub fn digest(&self) -> u64 {
        self.hash
    }
}

impl<T> std::ops::Deref for Part<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

/// A node's clock: a zero and a rate of its own; it stands while its node is frozen.
#[derive(Clone, Debug, Hash)]
pub struct Clock {
    zero: u64,
    /// Parts per thousand of true time.
    rate: u64,
    stopped_at: Option<u64>,
    /// True time it has stood still for, ns.
    lost: u64,
}

impl Clock {
    pub fn new(zero: u64, rate: u64) -> Clock {
        Clock { zero, rate, stopped_at: None, lost: 0 }
    }
    pub fn at(&self, now: u64) -> BootNs {
        let ran = self.stopped_at.unwrap_or(now) - self.lost;
        BootNs(self.zero + ran / 1000 * self.rate)
    }
    pub fn stop(&mut self, now: u64) {
        self.stopped_at = Some(now);
    }
    pub fn go_on(&mut self, now: u64) {
        if let Some(at) = self.stopped_at.take() {
            self.lost += now - at;
        }
    }
    pub fn stands(&self) -> bool {
        self.stopped_at.is_some()
    }
}
