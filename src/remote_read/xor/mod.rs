//! Chunks of type XOR, the samples of a series as Prometheus keeps and streams them: the timestamps as the
//! change of the change, the values XORed with the one before, both in as many bits as it takes
//! (Pelkonen et al. 2015, "Gorilla", with other widths; Prometheus, `tsdb/docs/format/chunks.md`).
//!
//! The stream has no alignment, so that a reader of single bits spends its time on counting them. This one
//! looks at 57 bits at once: the change of a timestamp and the header of a value are one load, and bounds are
//! looked after once a sample. [`plain`] is what it is compared with.

pub mod encode;
pub mod reference;

use crate::prom::Sample;

/// Why bytes are no chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The bytes end before the samples.
    #[error("a chunk of {length} bytes does not hold the {count} samples that it declares")]
    Truncated {
        /// Bytes of the chunk.
        length: usize,
        /// Samples that its header declares.
        count: usize,
    },
    /// A varint of more than ten bytes, or above 64 bits.
    #[error("a varint of the chunk does not fit 64 bits")]
    Varint,
    /// No value has these bits.
    #[error(
        "a value of the chunk has {leading} leading zeros and {significant} bits after them, more than 64"
    )]
    InvalidBitWindow {
        /// Zeros before the bits that changed.
        leading: u32,
        /// The bits that changed.
        significant: u32,
    },
}

/// Bytes that one look takes: the 57 bits from any bit on are in them.
const WORD_BYTES: usize = 8;
/// Bytes from the one in which a sample begins to the end of the last look at it: 4 + 64 bits of a timestamp,
/// 13 + 64 of a value, at any bit of the first byte, and a look at the last of them.
const MAX_SAMPLE_BYTES: usize = (7 + 4 + 64 + 13 + 64) / 8 + WORD_BYTES;

/// Appends the samples of a chunk, in the order of the chunk. Bits after the last sample are padding.
///
/// # Errors
/// [`Error`] when the bytes are no chunk; nothing is appended then.
pub fn decode(chunk: &[u8], samples: &mut Vec<Sample>) -> Result<(), Error> {
    let n_before = samples.len();
    let result = append_samples(chunk, samples);
    if result.is_err() {
        samples.truncate(n_before);
    }
    result
}

fn append_samples(chunk: &[u8], samples: &mut Vec<Sample>) -> Result<(), Error> {
    let truncated = |count| Error::Truncated { length: chunk.len(), count };
    let (count, mut rest) = chunk.split_first_chunk().ok_or(truncated(0))?;
    let count = usize::from(u16::from_be_bytes(*count));
    if count == 0 {
        return Ok(());
    }
    let truncated = truncated(count);
    let first = read_varint(&mut rest)?.ok_or(truncated)?;
    let (value, mut rest) = rest.split_first_chunk().ok_or(truncated)?;
    let mut state = XorState {
        timestamp_ms: (first >> 1).cast_signed() ^ -(first & 1).cast_signed(),
        value: u64::from_be_bytes(*value),
        ..XorState::default()
    };
    samples.push(state.sample());
    if count == 1 {
        return Ok(());
    }
    state.delta = read_varint(&mut rest)?.ok_or(truncated)?;
    // Two bits a sample at least, but for the second: memory is taken for what can be there.
    if count > rest.len() * 4 + 2 {
        return Err(truncated);
    }
    samples.reserve(count - 1);

    // The last bytes are read from a copy with room behind it, so that no look is a special case.
    let tail_start = rest.len().saturating_sub(MAX_SAMPLE_BYTES);
    let mut tail = [0; 2 * MAX_SAMPLE_BYTES];
    tail[..rest.len() - tail_start].copy_from_slice(&rest[tail_start..]);
    let locate = |bit: usize| match bit / 8 + MAX_SAMPLE_BYTES <= rest.len() {
        true => (rest, bit),
        false => (&tail[..], bit - tail_start * 8),
    };
    let mut bit = 0;
    for i in 1..count {
        let (bytes, offset) = locate(bit);
        bit += if i == 1 { state.decode_second(bytes)? } else { state.decode_next(bytes, offset)? };
        if bit > rest.len() * 8 {
            return Err(truncated);
        }
        samples.push(state.sample());
    }
    Ok(())
}

/// What a sample is told relative to.
#[derive(Default)]
struct XorState {
    timestamp_ms: i64,
    delta: u64,
    value: u64,
    leading: u32,
    trailing: u32,
}

impl XorState {
    fn sample(&self) -> Sample {
        Sample { timestamp_ms: self.timestamp_ms, value: f64::from_bits(self.value) }
    }

    /// The second sample, whose delta is known. Returns the bits that it takes.
    fn decode_second(&mut self, bytes: &[u8]) -> Result<usize, Error> {
        self.timestamp_ms = self.timestamp_ms.wrapping_add_unsigned(self.delta);
        self.decode_value(bytes, 0, read_word(bytes, 0))
    }

    /// A sample after the second, from bit `at` on. Returns the bits that it takes.
    #[inline]
    fn decode_next(&mut self, bytes: &[u8], offset: usize) -> Result<usize, Error> {
        let word = read_word(bytes, offset);
        let (n_bits, dod) = match word.leading_ones() {
            0 => (1, 0),
            1 => (16, delta_of_delta(word, 2, 14)),
            2 => (20, delta_of_delta(word, 3, 17)),
            3 => (24, delta_of_delta(word, 4, 20)),
            _ => (68, read_bits(bytes, offset + 4, 64)),
        };
        self.delta = self.delta.wrapping_add(dod);
        self.timestamp_ms = self.timestamp_ms.wrapping_add_unsigned(self.delta);
        let word = if n_bits == 68 { read_word(bytes, offset + n_bits) } else { word << n_bits };
        Ok(n_bits + self.decode_value(bytes, offset + n_bits, word)?)
    }

    /// The value, from bit `at` on, which `word` begins with. Returns the bits that it takes.
    #[inline]
    fn decode_value(&mut self, bytes: &[u8], offset: usize, word: u64) -> Result<usize, Error> {
        if word >> 63 == 0 {
            return Ok(1);
        }
        let mut n_bits = 2;
        if word >> 62 & 1 == 1 {
            n_bits += 5 + 6;
            let leading = (word >> 57 & 31) as u32;
            let significant = match (word >> 51 & 63) as u32 {
                0 => 64,
                significant => significant,
            };
            // Prometheus goes on with what the subtraction wraps to.
            self.trailing = 64u32
                .checked_sub(leading + significant)
                .ok_or(Error::InvalidBitWindow { leading, significant })?;
            self.leading = leading;
        }
        let significant = 64 - self.leading - self.trailing;
        self.value ^= read_bits(bytes, offset + n_bits, significant) << self.trailing;
        Ok(n_bits + significant as usize)
    }
}

/// The change of a delta, `width` bits after `prefix` bits. What stands above half of the range is negative:
/// not two's complement, which would end one earlier.
#[inline]
fn delta_of_delta(word: u64, prefix: u32, width: u32) -> u64 {
    let bits = word << prefix >> (64 - width);
    if bits > 1 << (width - 1) { bits.wrapping_sub(1 << width) } else { bits }
}

/// The bits from bit `at` on, 57 of them at least, the first one on top.
#[inline]
fn read_word(bytes: &[u8], offset: usize) -> u64 {
    let word =
        bytes[offset / 8..].first_chunk::<WORD_BYTES>().expect("a sample begins REACH bytes before the end");
    u64::from_be_bytes(*word) << (offset % 8)
}

/// `width` bits from bit `at` on, 1 to 64 of them.
#[inline]
fn read_bits(bytes: &[u8], offset: usize, width: u32) -> u64 {
    match width {
        ..=57 => read_word(bytes, offset) >> (64 - width),
        _ => (read_word(bytes, offset) >> 32 << 32 | read_word(bytes, offset + 32) >> 32) >> (64 - width),
    }
}

/// A varint as Go's `encoding/binary` has it; none when the bytes end inside.
fn read_varint(bytes: &mut &[u8]) -> Result<Option<u64>, Error> {
    let mut value = 0;
    for (i, &byte) in bytes.iter().take(10).enumerate() {
        if i == 9 && byte > 1 {
            return Err(Error::Varint);
        }
        value |= u64::from(byte & 0x7f) << (7 * i);
        if byte < 0x80 {
            *bytes = &bytes[i + 1..];
            return Ok(Some(value));
        }
    }
    Ok(None)
}

#[cfg(test)]
pub(super) mod tests;
