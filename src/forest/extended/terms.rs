//! The terms of a split, in two forms: weights of a byte for forests that are fitted here, and `f32` for any other.
//!
//! A random direction does not need 24 bits for each weight. Weights are drawn as multiples of [`UNIT`], so that all of a
//! split fits one line of the cache, which is half of the memory. Sums are equal bit for bit in both forms.

/// Terms side by side: the default number of a split, which makes a record of one or two lines of the cache.
pub const TERMS: usize = 16;
/// The unit of the weights of fitted forests. A direction is accurate to one percent, and nearly four deviations long.
pub const UNIT: f32 = 1.0 / 32.0;

/// The weight of each byte. A load takes less time than a conversion.
static WEIGHTS: [f64; 256] = {
    let mut weights = [0.0; 256];
    let mut byte = 0;
    while byte < weights.len() {
        weights[byte] = (byte as u8).cast_signed() as f64 * UNIT as f64;
        byte += 1;
    }
    weights
};

/// Weights and columns of [`TERMS`] terms. A split with fewer terms has weights of 0 at the end, which change no sum.
pub trait Terms: Copy {
    /// The weight of a term.
    fn weight(&self, i: usize) -> f64;

    /// The column of a term.
    fn column(&self, i: usize) -> usize;

    /// The sums and, added in their order, the terms of a row of finite values. The sums side by side hide the latency
    /// of the additions.
    #[inline(always)]
    fn add_to<const N: usize, const G: usize>(
        mut sums: [f64; G],
        terms: [&Self; G],
        row: &[f64; N],
    ) -> [f64; G] {
        const { assert!(N.is_power_of_two()) };
        for i in 0..TERMS {
            for (sum, terms) in sums.iter_mut().zip(terms) {
                // A column is below the width of the row; the compiler sees only the mask.
                *sum += terms.weight(i) * row[terms.column(i) & (N - 1)];
            }
        }
        sums
    }
}

/// Terms with weights of any `f32`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct FullTerms {
    pub coefficients: [f32; TERMS],
    pub columns: [u16; TERMS],
}

impl FullTerms {
    /// At most [`TERMS`] pairs of a column and its weight.
    pub fn new(pairs: &[(u16, f32)]) -> Self {
        let mut terms = Self::default();
        for (to, &(column, coefficient)) in pairs.iter().enumerate() {
            (terms.columns[to], terms.coefficients[to]) = (column, coefficient);
        }
        terms
    }
}

impl Terms for FullTerms {
    #[inline(always)]
    fn weight(&self, i: usize) -> f64 {
        f64::from(self.coefficients[i])
    }

    #[inline(always)]
    fn column(&self, i: usize) -> usize {
        usize::from(self.columns[i])
    }
}

/// Terms with weights of few [`UNIT`]s, of the first columns.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ShortTerms {
    /// In [`UNIT`]s, two's complement.
    weights: [u8; TERMS],
    columns: [u8; TERMS],
}

impl ShortTerms {
    /// The same terms; `None` if a weight or a column is another.
    pub fn from_full(full: &FullTerms) -> Option<Self> {
        let mut terms = Self::default();
        for i in 0..TERMS {
            let weight = full.coefficients[i] / UNIT;
            let rounded = weight as i8;
            terms.weights[i] = rounded.cast_unsigned();
            if f32::from(rounded) != weight {
                return None;
            }
            terms.columns[i] = u8::try_from(full.columns[i]).ok()?;
        }
        Some(terms)
    }

    /// The weights in [`UNIT`]s.
    pub fn weight_bytes(&self) -> &[u8; TERMS] {
        &self.weights
    }

    /// The columns.
    pub fn column_bytes(&self) -> &[u8; TERMS] {
        &self.columns
    }

    /// The same terms with `f32` weights.
    pub fn to_full(self) -> FullTerms {
        FullTerms {
            coefficients: self.weights.map(|weight| f32::from(weight.cast_signed()) * UNIT),
            columns: self.columns.map(u16::from),
        }
    }
}

impl Terms for ShortTerms {
    #[inline(always)]
    fn weight(&self, i: usize) -> f64 {
        WEIGHTS[usize::from(self.weights[i])]
    }

    #[inline(always)]
    fn column(&self, i: usize) -> usize {
        usize::from(self.columns[i])
    }
}

/// The multiple of [`UNIT`] nearest to a draw from N(0, 1), in the range of [`ShortTerms`]. Never 0: a split of one column
/// needs a weight.
pub fn to_coefficient(draw: f32) -> f32 {
    (draw.abs() / UNIT).round().clamp(1.0, i8::MAX.into()).copysign(draw) * UNIT
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn drawn_terms_are_the_same_in_both_forms(
            draws in prop::array::uniform16(-6.0_f32..6.0),
            columns in prop::array::uniform16(0_u16..256),
        ) {
            let full = FullTerms { coefficients: draws.map(to_coefficient), columns };
            let is_near = |(coefficient, draw): (&f32, f32)| {
                coefficient.signum() == draw.signum() && (coefficient - draw.clamp(-3.97, 3.97)).abs() <= UNIT
            };
            prop_assert!(full.coefficients.iter().zip(draws).all(is_near));
            let short = ShortTerms::from_full(&full).expect("weights of few units");
            prop_assert_eq!(short.to_full(), full);
            let row: [f64; 256] = std::array::from_fn(|i| (i as f64 * 0.7).sin() * 1e3);
            let sum = |[sum]: [f64; 1]| sum.to_bits();
            prop_assert_eq!(
                sum(Terms::add_to([0.1], [&short], &row)),
                sum(Terms::add_to([0.1], [&full], &row))
            );
        }
    }

    #[test]
    fn other_terms_have_no_short_form() {
        let of = |column, coefficient| ShortTerms::from_full(&FullTerms::new(&[(column, coefficient)]));
        assert!(of(255, 127.0 / 32.0).is_some() && of(0, -4.0).is_some());
        for (column, coefficient) in [(256, 1.0), (0, 4.0), (0, 0.01), (0, 1e30), (0, -4.1)] {
            assert_eq!(of(column, coefficient), None, "{column}, {coefficient}");
        }
    }
}
