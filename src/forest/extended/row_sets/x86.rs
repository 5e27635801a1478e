//! Sets of rows with AVX-512, AVX2 or SSE2, whichever the processor has.
#![allow(unsafe_code)]

use super::super::layout::SplitsByLevel;
use super::{BLOCK, Block, LANES, Lanes, add_path_lengths as add};
use std::arch::x86_64::*;

/// Adds the path length of each row in each tree.
pub fn add_path_lengths(nodes: &SplitsByLevel, block: &Block, sums: &mut [f64; BLOCK]) {
    if is_x86_feature_detected!("avx512f") && has_bmi() {
        // SAFETY: the processor has the features of the function.
        unsafe { add_with_avx512(nodes, block, sums) }
    } else if is_x86_feature_detected!("avx2") && has_bmi() {
        // SAFETY: the processor has the features of the function.
        unsafe { add_with_avx2(nodes, block, sums) }
    } else {
        add(Sse2, nodes, block, sums);
    }
}

fn has_bmi() -> bool {
    is_x86_feature_detected!("bmi1") && is_x86_feature_detected!("bmi2")
}

#[target_feature(enable = "avx512f,bmi1,bmi2")]
fn add_with_avx512(nodes: &SplitsByLevel, block: &Block, sums: &mut [f64; BLOCK]) {
    add(Avx512::new(), nodes, block, sums);
}

/// As with SSE2, but the compiler uses the wider instructions of AVX2.
#[target_feature(enable = "avx2,bmi1,bmi2")]
fn add_with_avx2(nodes: &SplitsByLevel, block: &Block, sums: &mut [f64; BLOCK]) {
    add(Sse2, nodes, block, sums);
}

/// SSE2, which every processor of this architecture has.
#[derive(Clone, Copy)]
struct Sse2;

impl Lanes for Sse2 {
    #[inline(always)]
    fn less(self, values: &[f64; LANES], limit: f64) -> u8 {
        // SAFETY: the processor has SSE2.
        collect(values, |values| unsafe { _mm_movemask_pd(_mm_cmplt_pd(values, _mm_set1_pd(limit))) })
    }

    #[inline(always)]
    fn greater(self, values: &[f64; LANES], limit: f64) -> u8 {
        // SAFETY: the processor has SSE2.
        collect(values, |values| unsafe { _mm_movemask_pd(_mm_cmplt_pd(_mm_set1_pd(limit), values)) })
    }
}

/// The bits of each pair of values, from the low end.
#[inline(always)]
fn collect(values: &[f64; LANES], bits_of: impl Fn(__m128d) -> i32) -> u8 {
    let mut bits = 0;
    for (number, values) in values.as_chunks::<2>().0.iter().enumerate() {
        // SAFETY: the processor has SSE2, and the load reads both values.
        let values = unsafe { _mm_loadu_pd(values.as_ptr()) };
        bits |= bits_of(values) << (2 * number);
    }
    bits as u8
}

/// AVX-512. Exists only in functions that have the feature.
#[derive(Clone, Copy)]
struct Avx512(());

impl Avx512 {
    #[target_feature(enable = "avx512f")]
    fn new() -> Self {
        Self(())
    }
}

impl Lanes for Avx512 {
    #[inline(always)]
    fn less(self, values: &[f64; LANES], limit: f64) -> u8 {
        // SAFETY: the processor has the instructions, and the load reads the eight values.
        unsafe {
            let values = _mm512_loadu_pd(values.as_ptr());
            _mm512_cmp_pd_mask::<_CMP_LT_OQ>(values, _mm512_set1_pd(limit))
        }
    }

    #[inline(always)]
    fn greater(self, values: &[f64; LANES], limit: f64) -> u8 {
        // SAFETY: the processor has the instructions, and the load reads the eight values.
        unsafe {
            let values = _mm512_loadu_pd(values.as_ptr());
            _mm512_cmp_pd_mask::<_CMP_GT_OQ>(values, _mm512_set1_pd(limit))
        }
    }
}

/// The sums with SSE2, and with the other instructions that the processor has.
#[cfg(test)]
pub fn with_each(nodes: &SplitsByLevel, block: &Block) -> Vec<[f64; BLOCK]> {
    let mut all = vec![[0.0; BLOCK]];
    add(Sse2, nodes, block, &mut all[0]);
    if is_x86_feature_detected!("avx2") && has_bmi() {
        let mut sums = [0.0; BLOCK];
        // SAFETY: the processor has the features of the function.
        unsafe { add_with_avx2(nodes, block, &mut sums) };
        all.push(sums);
    }
    all
}
