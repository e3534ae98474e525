//! The C library's memory functions, for libFuzzer.
//!
//! `aya-ebpf` defines its own, on every target, and they return nothing: C++ takes what happens to be in the register for
//! the destination, and crashes. The linker leads all calls here (`--wrap`, see `build.rs`).

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::atomic::{AtomicPtr, Ordering};

const RTLD_NEXT: *mut c_void = -1_isize as *mut c_void;

unsafe extern "C" {
    fn dlsym(handle: *mut c_void, symbol: *const c_char) -> *mut c_void;
}

/// The function of that name in the library that comes after this program: glibc.
fn libc(name: &CStr, known: &AtomicPtr<c_void>) -> *mut c_void {
    let mut function = known.load(Ordering::Relaxed);
    if function.is_null() {
        // SAFETY: the name ends in a zero byte.
        function = unsafe { dlsym(RTLD_NEXT, name.as_ptr()) };
        known.store(function, Ordering::Relaxed);
    }
    function
}

type Copy = unsafe extern "C" fn(*mut c_void, *const c_void, usize) -> *mut c_void;
type Set = unsafe extern "C" fn(*mut c_void, c_int, usize) -> *mut c_void;

/// # Safety
/// As memcpy(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __wrap_memcpy(to: *mut c_void, from: *const c_void, n: usize) -> *mut c_void {
    static KNOWN: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());
    // SAFETY: that is its type; the rest by the caller.
    unsafe { std::mem::transmute::<*mut c_void, Copy>(libc(c"memcpy", &KNOWN))(to, from, n) }
}

/// # Safety
/// As memmove(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __wrap_memmove(to: *mut c_void, from: *const c_void, n: usize) -> *mut c_void {
    static KNOWN: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());
    // SAFETY: that is its type; the rest by the caller.
    unsafe { std::mem::transmute::<*mut c_void, Copy>(libc(c"memmove", &KNOWN))(to, from, n) }
}

/// # Safety
/// As memset(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __wrap_memset(to: *mut c_void, byte: c_int, n: usize) -> *mut c_void {
    static KNOWN: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());
    // SAFETY: that is its type; the rest by the caller.
    unsafe { std::mem::transmute::<*mut c_void, Set>(libc(c"memset", &KNOWN))(to, byte, n) }
}
