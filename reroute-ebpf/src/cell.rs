//! Map values are shared with other CPUs and with userspace: every access goes through here, as an atomic.

/// A field of a live map value (or, in host tests, of a value that outlives it).
pub struct Shared<T>(*mut T);

impl<T> Clone for Shared<T> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Shared<T> {}

impl<T> Shared<T> {
    /// # Safety
    /// `ptr` is valid and aligned for the life of the program run, and everybody else accesses it atomically too.
    #[inline(always)]
    pub const unsafe fn new(ptr: *mut T) -> Self {
        Shared(ptr)
    }
    #[inline(always)]
    pub const fn as_ptr(self) -> *mut T {
        self.0
    }
}

/// `at!(value.field)`: the shared field of a shared value.
#[macro_export]
macro_rules! at {
    ($value:ident . $($field:tt)+) => {{
        // SAFETY: a field of a live value is as live as the value.
        unsafe { $crate::cell::Shared::new(&raw mut (*$value.as_ptr()).$($field)+) }
    }};
}

/// A number that the compiler knows nothing about, and the verifier all that it knew; it costs a move.
///
/// The compiler leaves out bounds that it can prove, in ways that older verifiers cannot follow (before Linux 6.10,
/// every number that came of an OR is any number), and compares differences in place of the numbers that they are of.
#[inline(always)]
pub fn opaque(number: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    {
        // Of a constant the verifier sees as much as the compiler.
        if core::intrinsics::is_val_statically_known(number) {
            return number;
        }
        let mut number = number;
        // A move to where it is: an assembly without any instruction leaves two line numbers to the next one, which the
        // kernel refuses.
        // SAFETY: changes nothing.
        unsafe {
            core::arch::asm!("{0} = {0}", inout(reg) number, options(pure, nomem, nostack, preserves_flags));
        }
        number
    }
    #[cfg(not(target_arch = "bpf"))]
    number
}

impl<T, const N: usize> Shared<[T; N]> {
    /// Element `index`; one past the end is folded back inside, so that the verifier sees the bound.
    #[inline(always)]
    pub fn element(self, index: u32) -> Shared<T> {
        let mut i = opaque(index as u64) as usize;
        if N.is_power_of_two() {
            i &= N - 1;
        } else if i >= N {
            i = N - 1;
        }
        // SAFETY: `i` is below N.
        Shared(unsafe { self.0.cast::<T>().add(i) })
    }
}

impl Shared<[u8; 16]> {
    /// An address that userspace wrote once, before the programs were attached.
    #[inline(always)]
    pub fn address(self) -> [u8; 16] {
        // SAFETY: valid by the contract of `new`, and no longer written.
        unsafe { *self.0 }
    }
}

macro_rules! shared {
    ($int:ty, $atomic:ident) => {
        impl Shared<$int> {
            #[inline(always)]
            pub fn get(self) -> $int {
                // SAFETY: valid and aligned by the contract of `new`; all access is atomic.
                unsafe { atomic::$atomic::load(self.0) }
            }
            #[inline(always)]
            pub fn set(self, value: $int) {
                // SAFETY: as above.
                unsafe { atomic::$atomic::store(self.0, value) }
            }
            /// Counts, where the order against other fields means nothing.
            #[inline(always)]
            pub fn count(self, n: $int) {
                // SAFETY: as above.
                unsafe { atomic::$atomic::count(self.0, n) }
            }
            /// Adds before anything that follows is read or written.
            #[inline(always)]
            pub fn increase(self, n: $int) -> $int {
                // SAFETY: as above.
                unsafe { atomic::$atomic::add(self.0, n) }
            }
            #[inline(always)]
            pub fn decrease(self, n: $int) -> $int {
                self.increase((0 as $int).wrapping_sub(n))
            }
            #[inline(always)]
            pub fn swap(self, value: $int) -> $int {
                // SAFETY: as above.
                unsafe { atomic::$atomic::swap(self.0, value) }
            }
            /// Whether `old` stood there; then `new` does now.
            #[inline(always)]
            pub fn replace(self, old: $int, new: $int) -> bool {
                // SAFETY: as above.
                unsafe { atomic::$atomic::replace(self.0, old, new) }
            }
            #[inline(always)]
            pub fn or(self, bits: $int) -> $int {
                // SAFETY: as above.
                unsafe { atomic::$atomic::or(self.0, bits) }
            }
            #[inline(always)]
            pub fn and(self, bits: $int) -> $int {
                // SAFETY: as above.
                unsafe { atomic::$atomic::and(self.0, bits) }
            }
            /// Raises to `value`, never lowers; gives what stands then. Contention is between three NICs at most:
            /// whoever loses eight times in a row is outrun by as many newer values.
            #[inline(always)]
            pub fn raise(self, value: $int) -> $int {
                for _ in 0..8 {
                    let now = self.get();
                    if now >= value {
                        return now;
                    }
                    if self.replace(now, value) {
                        return value;
                    }
                }
                self.get()
            }
        }
    };
}
shared!(u32, w32);
shared!(u64, w64);

/// The target has these instructions (`-C target-cpu=v3`), but its `core` was built without their types.
#[cfg(target_arch = "bpf")]
mod atomic {
    use core::intrinsics::{self as cpu, AtomicOrdering::SeqCst};

    macro_rules! words {
        ($name:ident, $int:ty) => {
            pub mod $name {
                use super::*;

                #[inline(always)]
                pub unsafe fn load(p: *mut $int) -> $int {
                    // SAFETY: by the caller.
                    unsafe { p.read_volatile() }
                }
                #[inline(always)]
                pub unsafe fn store(p: *mut $int, value: $int) {
                    // SAFETY: by the caller.
                    unsafe { p.write_volatile(value) }
                }
                #[inline(always)]
                pub unsafe fn count(p: *mut $int, n: $int) {
                    // SAFETY: by the caller.
                    unsafe { cpu::atomic_xadd::<$int, $int, { cpu::AtomicOrdering::Relaxed }>(p, n) };
                }
                #[inline(always)]
                pub unsafe fn add(p: *mut $int, n: $int) -> $int {
                    // SAFETY: by the caller.
                    unsafe { cpu::atomic_xadd::<$int, $int, { SeqCst }>(p, n) }
                }
                #[inline(always)]
                pub unsafe fn swap(p: *mut $int, value: $int) -> $int {
                    // SAFETY: by the caller.
                    unsafe { cpu::atomic_xchg::<$int, { SeqCst }>(p, value) }
                }
                #[inline(always)]
                pub unsafe fn replace(p: *mut $int, old: $int, new: $int) -> bool {
                    // SAFETY: by the caller.
                    unsafe { cpu::atomic_cxchg::<$int, { SeqCst }, { SeqCst }>(p, old, new).0 == old }
                }
                #[inline(always)]
                pub unsafe fn or(p: *mut $int, bits: $int) -> $int {
                    // SAFETY: by the caller.
                    unsafe { cpu::atomic_or::<$int, $int, { SeqCst }>(p, bits) }
                }
                #[inline(always)]
                pub unsafe fn and(p: *mut $int, bits: $int) -> $int {
                    // SAFETY: by the caller.
                    unsafe { cpu::atomic_and::<$int, $int, { SeqCst }>(p, bits) }
                }
            }
        };
    }
    words!(w32, u32);
    words!(w64, u64);
}

#[cfg(not(target_arch = "bpf"))]
mod atomic {
    use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};

    macro_rules! words {
        ($name:ident, $int:ty, $atomic:ty) => {
            pub mod $name {
                use super::*;

                unsafe fn of<'a>(p: *mut $int) -> &'a $atomic {
                    // SAFETY: by the caller.
                    unsafe { <$atomic>::from_ptr(p) }
                }
                pub unsafe fn load(p: *mut $int) -> $int {
                    // SAFETY: by the caller.
                    unsafe { of(p) }.load(Relaxed)
                }
                pub unsafe fn store(p: *mut $int, value: $int) {
                    // SAFETY: by the caller.
                    unsafe { of(p) }.store(value, Relaxed);
                }
                pub unsafe fn count(p: *mut $int, n: $int) {
                    // SAFETY: by the caller.
                    unsafe { of(p) }.fetch_add(n, Relaxed);
                }
                pub unsafe fn add(p: *mut $int, n: $int) -> $int {
                    // SAFETY: by the caller.
                    unsafe { of(p) }.fetch_add(n, SeqCst)
                }
                pub unsafe fn swap(p: *mut $int, value: $int) -> $int {
                    // SAFETY: by the caller.
                    unsafe { of(p) }.swap(value, SeqCst)
                }
                pub unsafe fn replace(p: *mut $int, old: $int, new: $int) -> bool {
                    // SAFETY: by the caller.
                    unsafe { of(p) }.compare_exchange(old, new, SeqCst, SeqCst).is_ok()
                }
                pub unsafe fn or(p: *mut $int, bits: $int) -> $int {
                    // SAFETY: by the caller.
                    unsafe { of(p) }.fetch_or(bits, SeqCst)
                }
                pub unsafe fn and(p: *mut $int, bits: $int) -> $int {
                    // SAFETY: by the caller.
                    unsafe { of(p) }.fetch_and(bits, SeqCst)
                }
            }
        };
    }
    words!(w32, u32, AtomicU32);
    words!(w64, u64, AtomicU64);
}
