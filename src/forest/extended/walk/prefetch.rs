//! Prefetches on x86-64. Other machines load a value of the record, which takes longer in a warm cache.
#![allow(unsafe_code)]

use super::super::tree::Split;

/// Requests both lines of the record of a split.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub fn prefetch(splits: &[Split], index: usize) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    let record = splits.as_ptr().wrapping_add(index).cast::<i8>();
    // SAFETY: a prefetch reads nothing that the program sees, and faults at no address.
    unsafe {
        _mm_prefetch::<_MM_HINT_T0>(record);
        _mm_prefetch::<_MM_HINT_T0>(record.wrapping_add(64));
    }
}

/// Loads from both lines of the record of a split.
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
pub fn prefetch(splits: &[Split], index: usize) {
    let loaded = splits.get(index).map(|split| (split.terms.coefficients[0], split.plane.cut));
    std::hint::black_box(loaded);
}
