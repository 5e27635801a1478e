//! Prefetches on x86-64. Other machines load the item, which takes longer in a warm cache.
#![allow(unsafe_code)]

/// Requests the lines of the cache that hold an item.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub fn prefetch<T: Copy>(items: &[T], index: usize) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    const LINE: usize = 64;
    let item = items.as_ptr().wrapping_add(index).cast::<i8>();
    for line in 0..size_of::<T>().div_ceil(LINE) {
        // SAFETY: a prefetch reads nothing that the program sees, and faults at no address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(item.wrapping_add(LINE * line)) };
    }
}

/// Loads the item.
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
pub fn prefetch<T: Copy>(items: &[T], index: usize) {
    std::hint::black_box(items.get(index).copied());
}
