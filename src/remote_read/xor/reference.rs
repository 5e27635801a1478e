//! Reference implementation of the decoder, one bit at a time, in the words of the format's description.
//!
//! Only tests and the bench use it: they compare the results and the speed of [`decode`](super::decode()) with it.

use super::Error;
use crate::prom::Sample;

/// Decodes the samples of a chunk.
///
/// # Errors
/// [`Error`] if the chunk is invalid.
pub fn decode(chunk: &[u8]) -> Result<Vec<Sample>, Error> {
    let mut reader = BitReader { bytes: chunk, position: 0, count: 0 };
    reader.count = reader.read_bits(16)? as usize;
    let mut samples = Vec::new();
    let (mut timestamp_ms, mut delta, mut value, mut leading, mut trailing) = (0i64, 0u64, 0u64, 0, 0);
    for i in 0..reader.count {
        match i {
            0 => {
                let zigzag = reader.read_varint()?;
                timestamp_ms = (zigzag >> 1).cast_signed() ^ -(zigzag & 1).cast_signed();
                value = reader.read_bits(64)?;
            }
            1 => delta = reader.read_varint()?,
            _ => {
                let mut prefix = 0;
                while prefix < 4 && reader.read_bits(1)? == 1 {
                    prefix += 1;
                }
                let width = [0, 14, 17, 20, 64][prefix];
                let dod = reader.read_bits(width)?;
                let is_negative = (1..64).contains(&width) && dod > 1 << (width - 1);
                delta = delta.wrapping_add(dod);
                if is_negative {
                    delta = delta.wrapping_sub(1 << width);
                }
            }
        }
        if i > 0 {
            timestamp_ms = timestamp_ms.wrapping_add_unsigned(delta);
            if reader.read_bits(1)? == 1 {
                if reader.read_bits(1)? == 1 {
                    leading = reader.read_bits(5)? as u32;
                    let significant = match reader.read_bits(6)? as u32 {
                        0 => 64,
                        significant => significant,
                    };
                    if leading + significant > 64 {
                        return Err(Error::InvalidBitWindow { leading, significant });
                    }
                    trailing = 64 - leading - significant;
                }
                value ^= reader.read_bits(64 - leading - trailing)? << trailing;
            }
        }
        samples.push(Sample { timestamp_ms, value: f64::from_bits(value) });
    }
    Ok(samples)
}

struct BitReader<'a> {
    bytes: &'a [u8],
    position: usize,
    count: usize,
}

impl BitReader<'_> {
    fn read_bits(&mut self, width: u32) -> Result<u64, Error> {
        let mut value = 0;
        for _ in 0..width {
            let byte = self
                .bytes
                .get(self.position / 8)
                .ok_or(Error::Truncated { length: self.bytes.len(), count: self.count })?;
            value = value << 1 | u64::from(byte >> (7 - self.position % 8) & 1);
            self.position += 1;
        }
        Ok(value)
    }

    fn read_varint(&mut self) -> Result<u64, Error> {
        let mut value = 0;
        for i in 0..10 {
            let byte = self.read_bits(8)?;
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
