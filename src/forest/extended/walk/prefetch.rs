//! Prefetches on x86-64. Other machines load a value of the record, which takes longer in a warm cache.
#![allow(unsafe_code)]

use super::super::terms::Terms;
use super::super::tree::Split;

/// Requests the lines of the record of a split: one, or two for the longer form.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub fn prefetch<T: Terms>(splits: &[Split<T>], index: usize) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    let record = splits.as_ptr().wrapping_add(index).cast::<i8>();
    for line in 0..size_of::<Split<T>>() / 64 {
        // SAFETY: a prefetch reads nothing that the program sees, and faults at no address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(record.wrapping_add(64 * line)) };
    }
}

/// Loads from the lines of the record of a split.
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
pub fn prefetch<T: Terms>(splits: &[Split<T>], index: usize) {
    let loaded = splits.get(index).map(|split| (split.terms.weight(0), split.plane.cut));
    std::hint::black_box(loaded);
}
