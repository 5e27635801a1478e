//! Values of one column in as few bits each as the column needs.
//!
//! The values of a column in one chunk are near each other, or near a line: a counter ascends. Their bits, read as an
//! integer, ascend with them. So a value is kept as the distance of its bits from a line below the column, without the
//! zeros that all distances end with: those of integers have many. All distances of a column have the same width, so that
//! a value can be read by its position. A column that does not change takes no bits.
//!
//! Not taken: the XOR encoding of Prometheus' chunks. A value can be read only after all before it, and training reads
//! the window row by row. Counters of a network interface are larger in it (4.0 and 2.8 bytes a value for bytes and
//! packets, 3.2 and 2.0 in this form).

use arrow_buffer::Buffer;

/// Bits that one load holds, after an offset of up to seven bits in its first byte.
const MAX_WIDTH: u32 = u64::BITS - 7;
/// Bytes after the last column, so that a load at its last bit is in range.
const PADDING: usize = size_of::<u64>();

/// The form of a column's values.
#[derive(Clone, Copy, Debug, Default)]
pub struct Packing {
    /// Start of the line. As bytes, so that a record of it has no padding.
    base: [u8; size_of::<u64>()],
    /// Rise of the line from one value to the next, without the zeros.
    slope: u32,
    /// Position of the first distance among the bytes of the chunk.
    first_byte: u32,
    /// Number of values.
    len: u16,
    /// Bits of a distance.
    width: u8,
    /// Zeros that all distances end with, which are left out.
    shift: u8,
}

/// The packed values of a column.
#[derive(Clone, Copy, Debug)]
pub struct PackedValues<'a> {
    packing: Packing,
    bytes: &'a [u8],
}

impl<'a> PackedValues<'a> {
    /// The values of a column in the bytes of their chunk.
    pub fn new(packing: Packing, bytes: &'a [u8]) -> Self {
        Self { packing, bytes }
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        usize::from(self.packing.len)
    }

    /// The value at a position below [`len`](Self::len).
    #[inline]
    pub fn get(&self, position: usize) -> f64 {
        f64::from_bits(self.bits(position))
    }

    /// The bits of the value at a position below [`len`](Self::len).
    #[inline]
    pub fn bits(&self, position: usize) -> u64 {
        let Packing { base, slope, first_byte, width, shift, .. } = self.packing;
        let bit = position * usize::from(width);
        let word = self.bytes[first_byte as usize + bit / 8..].first_chunk().expect("the bytes are padded");
        let mask = u64::MAX.checked_shr(u64::BITS - u32::from(width)).unwrap_or(0);
        let distance = u64::from_le_bytes(*word) >> (bit % 8) & mask;
        let rise = u64::from(slope) * position as u64;
        u64::from_ne_bytes(base).wrapping_add(rise.wrapping_add(distance) << shift)
    }
}

/// A line below a column, in units of the last bit that differs.
#[derive(Clone, Copy, Default)]
struct Line {
    offset: i64,
    slope: u32,
}

impl Line {
    /// The line that rises from the first value to the last one; a level one if none does.
    fn below(values: impl Iterator<Item = u64> + Clone) -> Self {
        let (first, last) = (values.clone().next().unwrap_or(0), values.clone().last().unwrap_or(0));
        let rise = last.saturating_sub(first) / (values.clone().count() as u64).saturating_sub(1).max(1);
        let slope = u32::try_from(rise).unwrap_or(0);
        let at_zero = Self { offset: 0, slope };
        Self { offset: at_zero.distances(values).map(|distance| distance as i64).min().unwrap_or(0), slope }
    }

    /// The distances of values from the line.
    fn distances(self, values: impl Iterator<Item = u64> + Clone) -> impl Iterator<Item = u64> + Clone {
        let lines =
            (0..).map(move |position| (self.offset as u64).wrapping_add(u64::from(self.slope) * position));
        values.zip(lines).map(|(value, line)| value.wrapping_sub(line))
    }

    /// Bits of a distance.
    fn width(self, values: impl Iterator<Item = u64> + Clone) -> u32 {
        u64::BITS - self.distances(values).fold(0, |all, distance| all | distance).leading_zeros()
    }
}

/// Packs columns one after the other.
#[derive(Debug, Default)]
pub struct Packer {
    bytes: Vec<u8>,
}

impl Packer {
    /// Appends the bits of the values of a column, at most 65,535.
    pub fn pack(&mut self, bits: impl Iterator<Item = u64> + Clone) -> Packing {
        let least = bits.clone().min().unwrap_or(0);
        let all_bits = bits.clone().fold(0, |all, bits| all | (bits - least));
        let mut shift = if all_bits == 0 { 0 } else { all_bits.trailing_zeros() };
        let values = |shift: u32| bits.clone().map(move |bits| (bits - least) >> shift);
        let (level, tilted) = (Line::default(), Line::below(values(shift)));
        let widths = [level, tilted].map(|line| line.width(values(shift)));
        let (mut line, mut width) =
            if widths[1] < widths[0] { (tilted, widths[1]) } else { (level, widths[0]) };
        if width > MAX_WIDTH {
            // Whole words: they begin at a byte.
            (line, shift, width) = (level, 0, u64::BITS);
        }
        let first_byte = self.bytes.len() as u32;
        let (mut pending, mut n_pending) = (0_u128, 0);
        for distance in line.distances(values(shift)) {
            pending |= u128::from(distance) << n_pending;
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
        let base = least.wrapping_add((line.offset as u64) << shift).to_ne_bytes();
        let len = u16::try_from(bits.count()).expect("a chunk has fewer rows");
        Packing { base, slope: line.slope, first_byte, len, width: width as u8, shift: shift as u8 }
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

    fn bits(values: &[f64]) -> impl Iterator<Item = u64> + Clone {
        values.iter().map(|value| value.to_bits())
    }

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
            let packings: Vec<Packing> = columns.iter().map(|values| packer.pack(bits(values))).collect();
            let bytes = packer.finish();
            for (values, packing) in columns.iter().zip(packings) {
                prop_assert_eq!(usize::from(packing.len), values.len());
                let packed = PackedValues::new(packing, &bytes);
                for (position, value) in values.iter().enumerate() {
                    prop_assert_eq!(packed.get(position).to_bits(), value.to_bits(), "{:?}", packing);
                }
            }
        }
    }

    #[test]
    fn widths_follow_the_values() {
        let width = |values: &[f64]| Packer::default().pack(bits(values)).width;
        assert_eq!(width(&[7.0; 128]), 0);
        assert_eq!(width(&[0.0, 1.0, 0.0]), 10, "the ones of the exponent");
        // Integers from 2^40 on have at most 12 zeros in common, and these a range of 2^20.
        let counter: Vec<f64> =
            (0..128).map(|i| (1_u64 << 40) as f64 + f64::from(i * 8192 + i % 2)).collect();
        assert_eq!(width(&counter), 1, "all but a straight line");
        let falling: Vec<f64> = counter.iter().rev().copied().collect();
        assert_eq!(width(&falling), 20);
        assert_eq!(width(&[1.0, -1.0, 1.0]), 1, "the sign alone");
        assert_eq!(width(&[0.1, -0.3]), 64);
    }
}
