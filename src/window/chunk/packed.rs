//! Values of one column in as few bits each as the column needs.
//!
//! The values of a column in one chunk are near each other, and their bits, read as an integer, ascend with them. So a
//! value is kept as the difference of its bits to the least of the column, without the zeros that all differences end
//! with: those of integers have many. All differences of a column have the same width, so that a value can be read by its
//! position. A column that does not change takes no bits.
//!
//! Not taken: the XOR encoding of Prometheus' chunks. A value can be read only after all before it, and training reads
//! the window row by row. Counters of a network interface are no smaller in it (4.0 and 2.8 bytes a value for
//! bytes and packets, 3.6 and 2.5 in this form).

use arrow_buffer::Buffer;

/// Bits that one load holds, after an offset of up to seven bits in its first byte.
const MAX_WIDTH: u32 = u64::BITS - 7;
/// Bytes after the last column, so that a load at its last bit is in range.
const PADDING: usize = size_of::<u64>();

/// The form of a column's values.
#[derive(Clone, Copy, Debug)]
pub struct Packing {
    /// The least bits of a value.
    base: u64,
    /// Position of the first difference among the bytes of the chunk.
    first_byte: u32,
    /// Bits of a difference.
    width: u8,
    /// Zeros that all differences end with, which are left out.
    shift: u8,
}

/// The packed values of a column.
#[derive(Clone, Copy, Debug)]
pub struct PackedValues<'a> {
    packing: Packing,
    bytes: &'a [u8],
    len: usize,
}

impl<'a> PackedValues<'a> {
    /// The values of a column: `len` of them, in the bytes of their chunk.
    pub fn new(packing: Packing, bytes: &'a [u8], len: usize) -> Self {
        Self { packing, bytes, len }
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The value at a position below [`len`](Self::len).
    #[inline]
    pub fn get(&self, position: usize) -> f64 {
        let Packing { base, first_byte, width, shift } = self.packing;
        let bit = position * usize::from(width);
        let word = self.bytes[first_byte as usize + bit / 8..].first_chunk().expect("the bytes are padded");
        let mask = u64::MAX.checked_shr(u64::BITS - u32::from(width)).unwrap_or(0);
        let difference = u64::from_le_bytes(*word) >> (bit % 8) & mask;
        f64::from_bits(base + (difference << shift))
    }
}

/// Packs columns one after the other.
#[derive(Debug, Default)]
pub struct Packer {
    bytes: Vec<u8>,
}

impl Packer {
    /// Appends the values of a column.
    pub fn pack(&mut self, values: &[f64]) -> Packing {
        let base = values.iter().map(|value| value.to_bits()).min().unwrap_or(0);
        let differences = || values.iter().map(|value| value.to_bits() - base);
        let all_bits = differences().fold(0, |all, difference| all | difference);
        let shift = if all_bits == 0 { 0 } else { all_bits.trailing_zeros() };
        let width = match u64::BITS - (all_bits >> shift).leading_zeros() {
            // Whole words: they begin at a byte.
            width if width > MAX_WIDTH => u64::BITS,
            width => width,
        };
        let shift = if width == u64::BITS { 0 } else { shift };
        let first_byte = self.bytes.len() as u32;
        let (mut pending, mut n_pending) = (0_u128, 0);
        for difference in differences() {
            pending |= u128::from(difference >> shift) << n_pending;
            n_pending += width;
            while n_pending >= u8::BITS {
                self.bytes.push(pending as u8);
                pending >>= u8::BITS;
                n_pending -= u8::BITS;
            }
        }
        if n_pending > 0 {
            self.bytes.push(pending as u8);
        }
        Packing { base, first_byte, width: width as u8, shift: shift as u8 }
    }

    /// The bytes of all columns.
    pub fn finish(mut self) -> Buffer {
        self.bytes.reserve_exact(PADDING);
        self.bytes.extend([0; PADDING]);
        self.bytes.shrink_to_fit();
        self.bytes.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prom::STALE_BITS;
    use proptest::prelude::*;

    fn any_column() -> impl Strategy<Value = Vec<f64>> {
        let counter = (0..1_u64 << 53, prop::collection::vec(0..1_u64 << 30, 0..300), 0..40_u32);
        let counter = counter.prop_map(|(start, increments, shift)| {
            let ascend = |value: &mut u64, increment: u64| {
                *value = value.wrapping_add(increment >> shift);
                Some(*value as f64)
            };
            increments.into_iter().scan(start, ascend).collect()
        });
        let bits = prop_oneof![Just(STALE_BITS), Just(0), Just((-0.0_f64).to_bits()), any::<u64>()];
        let of_bits = |bits: Vec<u64>| bits.into_iter().map(f64::from_bits).collect();
        prop_oneof![
            counter,
            prop::collection::vec(bits, 0..300).prop_map(of_bits),
            // Each width: differences of so many bits.
            (0..=64_u32, any::<u64>(), prop::collection::vec(any::<u64>(), 1..40)).prop_map(
                move |(width, base, differences)| {
                    let kept = u64::MAX.checked_shr(64 - width).unwrap_or(0);
                    of_bits(differences.iter().map(|bits| (bits & kept).wrapping_add(base & !kept)).collect())
                }
            ),
        ]
    }

    proptest! {
        #[test]
        fn every_value_keeps_its_bits(columns in prop::collection::vec(any_column(), 0..4)) {
            let mut packer = Packer::default();
            let packings: Vec<Packing> = columns.iter().map(|values| packer.pack(values)).collect();
            let bytes = packer.finish();
            for (values, packing) in columns.iter().zip(packings) {
                let packed = PackedValues::new(packing, &bytes, values.len());
                for (position, value) in values.iter().enumerate() {
                    prop_assert_eq!(packed.get(position).to_bits(), value.to_bits(), "{:?}", packing);
                }
            }
        }
    }

    #[test]
    fn widths_follow_the_values() {
        let width = |values: &[f64]| Packer::default().pack(values).width;
        assert_eq!(width(&[7.0; 128]), 0);
        assert_eq!(width(&[0.0, 1.0]), 10, "the ones of the exponent");
        // Integers from 2^40 on have at most 12 zeros in common, and these a range of 2^20.
        let counter: Vec<f64> =
            (0..128).map(|i| (1_u64 << 40) as f64 + f64::from(i * 8192 + i % 2)).collect();
        assert_eq!(width(&counter), 20);
        assert_eq!(width(&[1.0, -1.0]), 1, "the sign alone");
        assert_eq!(width(&[0.1, -0.3]), 64);
    }
}
