//! XOR chunks as their description reads, one bit after another.
//!
//! Nothing that runs uses it. It is what [`decode`](super::decode()) is compared with: for equality in the tests,
//! for speed in the bench.

use super::Error;
use crate::prom::Sample;

/// The samples of a chunk.
///
/// # Errors
/// [`Error`] when the bytes are no chunk.
pub fn decode(chunk: &[u8]) -> Result<Vec<Sample>, Error> {
    let mut bits = Bits { bytes: chunk, at: 0, count: 0 };
    bits.count = bits.take(16)? as usize;
    let mut samples = Vec::new();
    let (mut timestamp_ms, mut delta, mut value, mut leading, mut trailing) = (0i64, 0u64, 0u64, 0, 0);
    for i in 0..bits.count {
        match i {
            0 => {
                let zigzag = bits.varint()?;
                timestamp_ms = (zigzag >> 1).cast_signed() ^ -(zigzag & 1).cast_signed();
                value = bits.take(64)?;
            }
            1 => delta = bits.varint()?,
            _ => {
                let mut prefix = 0;
                while prefix < 4 && bits.take(1)? == 1 {
                    prefix += 1;
                }
                let width = [0, 14, 17, 20, 64][prefix];
                let change = bits.take(width)?;
                let is_negative = (1..64).contains(&width) && change > 1 << (width - 1);
                delta = delta.wrapping_add(change);
                if is_negative {
                    delta = delta.wrapping_sub(1 << width);
                }
            }
        }
        if i > 0 {
            timestamp_ms = timestamp_ms.wrapping_add_unsigned(delta);
            if bits.take(1)? == 1 {
                if bits.take(1)? == 1 {
                    leading = bits.take(5)? as u32;
                    let significant = match bits.take(6)? as u32 {
                        0 => 64,
                        significant => significant,
                    };
                    if leading + significant > 64 {
                        return Err(Error::Window { leading, significant });
                    }
                    trailing = 64 - leading - significant;
                }
                value ^= bits.take(64 - leading - trailing)? << trailing;
            }
        }
        samples.push(Sample { timestamp_ms, value: f64::from_bits(value) });
    }
    Ok(samples)
}

struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
    count: usize,
}

impl Bits<'_> {
    fn take(&mut self, width: u32) -> Result<u64, Error> {
        let mut value = 0;
        for _ in 0..width {
            let byte = self
                .bytes
                .get(self.at / 8)
                .ok_or(Error::Truncated { length: self.bytes.len(), count: self.count })?;
            value = value << 1 | u64::from(byte >> (7 - self.at % 8) & 1);
            self.at += 1;
        }
        Ok(value)
    }

    fn varint(&mut self) -> Result<u64, Error> {
        let mut value = 0;
        for i in 0..10 {
            let byte = self.take(8)?;
            if i == 9 && byte > 1 {
                return Err(Error::Varint);
            }
            value |= (byte & 0x7f) << (7 * i);
            if byte < 0x80 {
                break;
            }
        }
        Ok(value)
    }
}
