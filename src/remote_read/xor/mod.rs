//! Decodes XOR chunks, the format in which Prometheus stores and streams the samples of a series: the second
//! difference of the timestamps, and each value XORed with the previous one, both in a variable number of bits
//! (Pelkonen et al. 2015, "Gorilla", with other widths; Prometheus, `tsdb/docs/format/chunks.md`).
//!
//! Each load reads at least 57 bits: it covers the timestamp and the header of the value, and the bounds are checked
//! once for each sample. The alternative, a reader of single bits, spends most of its time on counting them; it is the
//! [reference implementation](mod@reference).

pub mod encode;
pub mod reference;

use crate::prom::Sample;

/// Bytes that are not a valid chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The bytes end before the last sample.
    #[error("a chunk of {length} bytes does not hold the {count} samples that it declares")]
    Truncated {
        /// Length of the chunk, in bytes.
        length: usize,
        /// Number of samples that the header declares.
        count: usize,
    },
    /// A varint has more than ten bytes or more than 64 bits.
    #[error("a varint of the chunk does not fit 64 bits")]
    Varint,
    /// The window of changed bits exceeds a value.
    #[error(
        "a value of the chunk has {leading} leading zeros and {significant} bits after them, more than 64"
    )]
    InvalidBitWindow {
        /// Leading zeros before the changed bits.
        leading: u32,
        /// Number of changed bits.
        significant: u32,
    },
}

/// Bytes of one load. It has at least 57 bits after any bit offset of its first byte.
const WORD_BYTES: usize = 8;
/// Most bytes from the first byte of a sample to the end of its last load: an offset of 7 bits, 4 + 64 bits of the
/// timestamp, 13 + 64 bits of the value, and a load at the last bit.
const MAX_SAMPLE_BYTES: usize = (7 + 4 + 64 + 13 + 64) / 8 + WORD_BYTES;

/// Appends the samples of a chunk, in the order of the chunk. Bits after the last sample are ignored.
///
/// # Errors
/// [`Error`] if the chunk is invalid; then `samples` is unchanged.
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
    // Each sample after the second has at least two bits: the check bounds the memory that is allocated.
    if count > rest.len() * 4 + 2 {
        return Err(truncated);
    }
    samples.reserve(count - 1);

    // The last bytes are read from a padded copy, so that no load is a special case.
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

/// The previous sample, which the next one is encoded against.
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

    /// Decodes the second sample, whose delta is already in `self`. Returns its length in bits.
    fn decode_second(&mut self, bytes: &[u8]) -> Result<usize, Error> {
        self.timestamp_ms = self.timestamp_ms.wrapping_add_unsigned(self.delta);
        self.decode_value(bytes, 0, read_word(bytes, 0))
    }

    /// Decodes a sample after the second, at bit `offset`. Returns its length in bits.
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

    /// Decodes the value at bit `offset`, whose first bits are the top of `word`. Returns its length in bits.
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
            // Prometheus continues with the wrapped result of the subtraction.
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

/// The delta of deltas in the `width` bits after `prefix` bits. Values above half of the range are negative; half of the
/// range itself is positive, unlike in two's complement.
#[inline]
fn delta_of_delta(word: u64, prefix: u32, width: u32) -> u64 {
    let bits = word << prefix >> (64 - width);
    if bits > 1 << (width - 1) { bits.wrapping_sub(1 << width) } else { bits }
}

/// At least 57 bits at bit `offset`, left-aligned.
#[inline]
fn read_word(bytes: &[u8], offset: usize) -> u64 {
    let word = bytes[offset / 8..]
        .first_chunk::<WORD_BYTES>()
        .expect("a sample starts MAX_SAMPLE_BYTES before the end");
    u64::from_be_bytes(*word) << (offset % 8)
}

/// The `width` bits at bit `offset`, from 1 to 64.
#[inline]
fn read_bits(bytes: &[u8], offset: usize, width: u32) -> u64 {
    match width {
        ..=57 => read_word(bytes, offset) >> (64 - width),
        _ => (read_word(bytes, offset) >> 32 << 32 | read_word(bytes, offset + 32) >> 32) >> (64 - width),
    }
}

/// Reads a varint of Go's `encoding/binary`; `None` if the bytes end inside it.
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
pub(crate) mod tests;
