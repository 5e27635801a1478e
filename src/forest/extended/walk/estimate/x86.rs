//! Sums of integers with the instructions of AVX-512 for bytes.
#![allow(unsafe_code)]

use super::super::super::terms::ShortTerms;
use super::{GROUP, MAX_COLUMNS};
use std::arch::x86_64::*;

/// True if the processor has the instructions.
pub fn is_supported() -> bool {
    is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vbmi")
        && is_x86_feature_detected!("avx512vnni")
}

/// The sums of the terms of a row of bytes.
///
/// # Panics
/// If the processor lacks the instructions.
pub fn sums(bytes: &[[u8; MAX_COLUMNS]; 2], terms: [&ShortTerms; GROUP]) -> [i32; GROUP] {
    assert!(is_supported(), "no row is rounded without the instructions");
    // SAFETY: the processor has the features of the function.
    unsafe { sums_with_avx512(bytes, terms) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vnni")]
fn sums_with_avx512(bytes: &[[u8; MAX_COLUMNS]; 2], terms: [&ShortTerms; GROUP]) -> [i32; GROUP] {
    // SAFETY: the loads read the halves of the arrays.
    let halves = bytes.each_ref().map(|bytes| unsafe {
        let (low, high) = bytes.split_at(MAX_COLUMNS / 2);
        [_mm512_loadu_si512(low.as_ptr().cast()), _mm512_loadu_si512(high.as_ptr().cast())]
    });
    let load = |bytes: [&[u8; 16]; 4]| {
        // SAFETY: each load reads the 16 bytes of an array.
        let [a, b, c, d] = bytes.map(|bytes| unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) });
        let low = _mm512_inserti32x4::<1>(_mm512_castsi128_si512(a), b);
        _mm512_inserti32x4::<3>(_mm512_inserti32x4::<2>(low, c), d)
    };
    let zero = _mm512_setzero_si512();
    // Four sums of four terms for each split.
    let quarters = |terms: [&ShortTerms; 4]| {
        let weights = load(terms.map(|terms| terms.weight_bytes()));
        let columns = load(terms.map(|terms| terms.column_bytes()));
        let [upper, lower] = halves.map(|[low, high]| {
            _mm512_dpbusd_epi32(zero, _mm512_permutex2var_epi8(low, columns, high), weights)
        });
        let offset = _mm512_slli_epi32::<15>(_mm512_dpbusd_epi32(zero, _mm512_set1_epi8(1), weights));
        _mm512_sub_epi32(_mm512_add_epi32(_mm512_slli_epi32::<8>(upper), lower), offset)
    };
    let [a, b, c, d, e, f, g, h] = terms;
    let (first, second) = (quarters([a, b, c, d]), quarters([e, f, g, h]));
    let halves = _mm512_add_epi32(_mm512_unpacklo_epi32(first, second), _mm512_unpackhi_epi32(first, second));
    let sums = _mm512_add_epi32(halves, _mm512_shuffle_epi32::<0b01_00_11_10>(halves));
    let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 0, 0, 0, 0, 0, 0, 0, 0);
    let sums = _mm512_castsi512_si256(_mm512_permutexvar_epi32(order, sums));
    let mut out = [0; GROUP];
    // SAFETY: the array has room for eight integers.
    unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), sums) };
    out
}
