//! Estimates of projections by integers, which tell the side of a split for most walks.
//!
//! The values of a row, rounded to 16 bits, and weights of a byte are multiplied and added many at once. A sum differs from
//! the projection by [`MARGIN`] units at most. Inside of the range of the split, and not that near to the cut or an end, it
//! decides as the projection does. Elsewhere the projection itself is needed.

#[cfg(target_arch = "x86_64")]
mod x86;

use super::super::terms::{ShortTerms, TERMS, UNIT};
use super::super::tree::Split;
use super::{GROUP, LANES, Walk, request};

/// Most columns of a row.
const MAX_COLUMNS: usize = 128;
/// Greatest difference of a projection from its estimate, in units of the rounded values: a unit for each of [`TERMS`]
/// weights of at most 4, and one for the rounding of sums.
const MARGIN: f64 = 4.0 * TERMS as f64 + 1.0;

/// A row in integers.
pub(super) struct RoundedRow {
    /// Upper and lower byte of each value plus 32,768 units.
    bytes: [[u8; MAX_COLUMNS]; 2],
    /// The value of a unit, a power of two.
    unit: f64,
}

impl RoundedRow {
    /// A row of finite values; `None` if it is too wide, or the processor has no instructions for it.
    pub fn new(row: &[f64]) -> Option<Self> {
        (row.len() <= MAX_COLUMNS && is_supported()).then(|| Self::round(row))
    }

    fn round(row: &[f64]) -> Self {
        let greatest = row.iter().fold(f64::from(f32::MIN_POSITIVE), |max, value| max.max(value.abs()));
        // All values are below the power of two after the greatest one.
        let power_of_two = f64::from_bits(greatest.to_bits() >> 52 << 52);
        let unit = power_of_two * 2.0 / 32_768.0;
        let mut bytes = [[0; MAX_COLUMNS]; 2];
        for (column, value) in row.iter().enumerate() {
            let rounded = (value / unit + 32_768.5) as u16;
            [bytes[0][column], bytes[1][column]] = rounded.to_be_bytes();
        }
        Self { bytes, unit }
    }

    /// Steps the walks of these lanes, all at splits, that go to a certain side inside of the range of their split. Writes
    /// the lanes of the others to `uncertain`, in their order, and returns their number.
    pub fn step_certain(
        &self,
        splits: &[Split<ShortTerms>],
        walks: &mut [Walk; LANES],
        lanes: &[usize],
        uncertain: &mut [usize; LANES],
    ) -> usize {
        let (scale, margin) = (self.unit * f64::from(UNIT), self.unit * MARGIN);
        let mut n_uncertain = 0;
        for group in lanes.chunks(GROUP) {
            // Walks that lack in the last group repeat its first.
            let at =
                std::array::from_fn(|i| &splits[walks[group.get(i).unwrap_or(&group[0]) % LANES].at.index()]);
            let sums = sums(&self.bytes, at.map(|split| &split.terms));
            for ((&lane, Split { plane, children, .. }), sum) in group.iter().zip(at).zip(sums) {
                let value = f64::from(sum) * scale;
                let is_inside = (value >= plane.low + margin) & (value <= plane.high - margin);
                let is_certain = is_inside & ((value - plane.cut).abs() > margin);
                let next = children[usize::from(value > plane.cut)];
                let walk = &mut walks[lane % LANES];
                walk.at = if is_certain { next } else { walk.at };
                request(splits, walk.at);
                uncertain[n_uncertain] = lane;
                n_uncertain += usize::from(!is_certain);
            }
        }
        n_uncertain
    }
}

/// The sums of the terms of a row of bytes, in units of the row and of the weights.
fn sums(bytes: &[[u8; MAX_COLUMNS]; 2], terms: [&ShortTerms; GROUP]) -> [i32; GROUP] {
    #[cfg(target_arch = "x86_64")]
    return x86::sums(bytes, terms);
    #[cfg(not(target_arch = "x86_64"))]
    plain_sums(bytes, terms)
}

/// [`sums`] without instructions of the processor.
#[cfg(any(test, not(target_arch = "x86_64")))]
fn plain_sums(bytes: &[[u8; MAX_COLUMNS]; 2], terms: [&ShortTerms; GROUP]) -> [i32; GROUP] {
    let product = |(weight, column): (&u8, &u8)| {
        let value = u16::from_be_bytes(bytes.map(|bytes| bytes[usize::from(*column)]));
        i32::from(weight.cast_signed()) * (i32::from(value) - 32_768)
    };
    terms.map(|terms| terms.weight_bytes().iter().zip(terms.column_bytes()).map(product).sum())
}

/// True if the sums are faster than projections.
fn is_supported() -> bool {
    #[cfg(target_arch = "x86_64")]
    return x86::is_supported();
    #[cfg(not(target_arch = "x86_64"))]
    false
}

#[cfg(test)]
mod tests {
    use super::super::super::terms::FullTerms;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn estimates_are_near_the_projections(
            row in prop::collection::vec(-1.0_f32..=1.0, 1..=MAX_COLUMNS),
            scale in prop::sample::select(vec![0.0, 1e-45, 1e-3, 1.0, 1e6, f32::MAX]),
            pairs in prop::collection::vec((0..MAX_COLUMNS, any::<i8>()), GROUP * TERMS),
        ) {
            let row: Vec<f64> = row.iter().map(|value| f64::from(value * scale)).collect();
            let pair = |(column, weight): &(usize, i8)| ((column % row.len()) as u16, f32::from(*weight) * UNIT);
            let pairs: Vec<(u16, f32)> = pairs.iter().map(pair).collect();
            let terms: Vec<ShortTerms> = pairs
                .chunks(TERMS)
                .map(|pairs| ShortTerms::from_full(&FullTerms::new(pairs)).expect("weights of few units"))
                .collect();
            let rounded = RoundedRow::round(&row);
            let terms = std::array::from_fn(|i| &terms[i]);
            let estimates = plain_sums(&rounded.bytes, terms);
            if is_supported() {
                prop_assert_eq!(sums(&rounded.bytes, terms), estimates);
            }
            for (pairs, estimate) in pairs.chunks(TERMS).zip(estimates) {
                let projection: f64 =
                    pairs.iter().map(|(column, weight)| f64::from(*weight) * row[usize::from(*column)]).sum();
                let difference = projection - f64::from(estimate) * rounded.unit * f64::from(UNIT);
                prop_assert!(difference.abs() <= MARGIN * rounded.unit, "{} {:?}", difference, rounded.unit);
            }
        }
    }
}
