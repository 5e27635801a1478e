//! Sets of rows with AVX-512, AVX2 or SSE2, whichever the processor has.
#![allow(unsafe_code)]

use super::super::Forest;
use super::{BLOCK, Block, Lanes, N_WORDS, RowSet, Sums, WORD, add_path_lengths as add, add_to_each};
use std::arch::x86_64::*;

/// See [`min_rows`](super::min_rows).
pub fn min_rows() -> usize {
    if has_avx512() { 96 } else { 256 }
}

fn has_avx512() -> bool {
    is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") && has_bmi()
}

fn has_bmi() -> bool {
    is_x86_feature_detected!("bmi1") && is_x86_feature_detected!("bmi2")
}

/// Adds the path length of each row in each tree.
pub fn add_path_lengths(forest: &Forest, block: &Block, sums: &mut Sums) {
    if has_avx512() {
        // SAFETY: the processor has the features of the function.
        unsafe { add_with_avx512(forest, block, sums) }
    } else if is_x86_feature_detected!("avx2") && has_bmi() {
        // SAFETY: the processor has the features of the function.
        unsafe { add_with_avx2(forest, block, sums) }
    } else {
        add(&mut Sse2, forest, block, sums);
    }
}

#[target_feature(enable = "avx512f,avx512bw,bmi1,bmi2")]
fn add_with_avx512(forest: &Forest, block: &Block, sums: &mut Sums) {
    add(&mut Avx512::new(), forest, block, sums);
}

/// As with SSE2, but the compiler uses the shorter instructions of AVX2.
#[target_feature(enable = "avx2,bmi1,bmi2")]
fn add_with_avx2(forest: &Forest, block: &Block, sums: &mut Sums) {
    add(&mut Sse2, forest, block, sums);
}

/// SSE2, which every processor of this architecture has.
struct Sse2;

impl Lanes for Sse2 {
    #[inline(always)]
    fn greater(&self, values: &[f32; WORD], threshold: f32) -> u64 {
        let mut rows = 0;
        for (number, values) in values.as_chunks::<16>().0.iter().enumerate() {
            // SAFETY: the processor has SSE2, and each load reads four of the sixteen values.
            let bits = unsafe {
                let threshold = _mm_set1_ps(threshold);
                let greater = |first: usize| {
                    let values = _mm_loadu_ps(values.as_ptr().add(first));
                    _mm_castps_si128(_mm_cmplt_ps(threshold, values))
                };
                let low = _mm_packs_epi32(greater(0), greater(4));
                let high = _mm_packs_epi32(greater(8), greater(12));
                _mm_movemask_epi8(_mm_packs_epi16(low, high))
            };
            rows |= (bits as u64) << (16 * number);
        }
        rows
    }

    #[inline(always)]
    fn add_leaf(&mut self, rows: &RowSet, path_length: f64, sums: &mut Sums) {
        add_to_each(rows, path_length, sums);
    }

    fn finish_tree(&mut self, _: &mut Sums) {}
}

/// AVX-512, with the leaves of a tree by number: a mask selects 32 numbers, but only 8 sums.
///
/// Exists only in functions that have the features.
struct Avx512 {
    /// The number of the leaf of each row.
    leaf_numbers: [[u16; WORD]; N_WORDS],
    /// The path length of each leaf. No leaf is without rows, so there are no more than rows.
    path_lengths: [f64; BLOCK],
    n_leaves: usize,
}

impl Avx512 {
    /// No leaves, in a function with the features.
    #[target_feature(enable = "avx512f,avx512bw")]
    fn new() -> Self {
        Self { leaf_numbers: [[0; WORD]; N_WORDS], path_lengths: [0.0; BLOCK], n_leaves: 0 }
    }
}

impl Lanes for Avx512 {
    #[inline(always)]
    fn greater(&self, values: &[f32; WORD], threshold: f32) -> u64 {
        let mut rows = 0;
        for (number, values) in values.as_chunks::<16>().0.iter().enumerate() {
            // SAFETY: the processor has the instructions, and the load reads the sixteen values.
            let greater = unsafe {
                let values = _mm512_loadu_ps(values.as_ptr());
                _mm512_cmp_ps_mask::<_CMP_GT_OQ>(values, _mm512_set1_ps(threshold))
            };
            rows |= u64::from(greater) << (16 * number);
        }
        rows
    }

    #[inline(always)]
    fn add_leaf(&mut self, rows: &RowSet, path_length: f64, _: &mut Sums) {
        let leaf_number = self.n_leaves % BLOCK;
        self.path_lengths[leaf_number] = path_length;
        self.n_leaves += 1;
        for (leaf_numbers, rows) in self.leaf_numbers.iter_mut().zip(rows) {
            for (half, leaf_numbers) in leaf_numbers.as_chunks_mut::<32>().0.iter_mut().enumerate() {
                let place = leaf_numbers.as_mut_ptr().cast();
                // SAFETY: the processor has the instructions, and load and store have 32 numbers each. A store of
                // selected numbers is slower.
                unsafe {
                    let leaf_number = _mm512_set1_epi16(leaf_number as i16);
                    let before = _mm512_loadu_si512(place);
                    let rows = (rows >> (32 * half)) as u32;
                    _mm512_storeu_si512(place, _mm512_mask_blend_epi16(rows, before, leaf_number));
                }
            }
        }
    }

    #[inline(always)]
    fn finish_tree(&mut self, sums: &mut Sums) {
        for (sums, leaf_numbers) in sums.iter_mut().zip(&self.leaf_numbers) {
            for (sum, leaf_number) in sums.iter_mut().zip(leaf_numbers) {
                *sum += self.path_lengths[usize::from(*leaf_number) % BLOCK];
            }
        }
        self.n_leaves = 0;
    }
}

#[cfg(test)]
mod tests;
