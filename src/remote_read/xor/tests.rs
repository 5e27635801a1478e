//! Chunks of Prometheus, invalid chunks, and a reference encoder.

use super::*;
use crate::prom::STALE_BITS;
use proptest::prelude::*;

fn from_hex(hex: &str) -> Vec<u8> {
    let digit = |i: usize| u8::from_str_radix(&hex[i..i + 2], 16).expect("two digits");
    (0..hex.len()).step_by(2).map(digit).collect()
}

fn decoded(chunk: &[u8]) -> Result<Vec<Sample>, Error> {
    let mut samples = Vec::new();
    decode(chunk, &mut samples).map(|()| samples)
}

fn sample(timestamp_ms: i64, value: f64) -> Sample {
    Sample { timestamp_ms, value }
}

/// Chunks and their samples. Prometheus 2.42 encodes the same bytes.
fn vectors() -> Vec<(&'static str, Vec<Sample>)> {
    const START: i64 = 1_700_000_000_000;
    let borders = [
        0,
        100_000,
        200_000,
        308_192,
        408_193,
        516_387,
        616_389,
        781_927,
        881_930,
        1_047_470,
        1_147_474,
        1_771_766,
        1_871_771,
        2_496_065,
        2_596_071,
        1_099_514_323_853,
        1_099_514_423_859,
    ];
    let odd = f64::from_bits(1f64.to_bits() ^ 0x8000_0000_0000_0001);
    vec![
        ("0000", vec![]),
        ("000180a0abfef9623ff0000000000000", vec![sample(START, 1.0)]),
        (
            "000380a0abfef9623ff00000000000009875c25fff6c06",
            vec![sample(START, 1.0), sample(START + 15_000, 2.0), sample(START + 30_000, 3.0)],
        ),
        (
            "000480a0abfef9623ff8000000000000987530fd002000000000000a8010000000000004",
            vec![
                sample(START, 1.5),
                sample(START + 15_000, 1.5),
                Sample::stale(START + 30_000),
                sample(START + 45_000, 1.5),
            ],
        ),
        ("000301800000000000000001c00c", vec![sample(-1, -0.0), sample(0, 0.0), sample(1, 0.0)]),
        (
            "0003003ff000000000000001c004000000000000000a8000000000000001",
            vec![sample(0, 1.0), sample(1, odd), sample(2, 1.0)],
        ),
        (
            "0011000000000000000000a08d0614000a00161000b78001a0000d0001708000bbc0001d00000e8000178000000000\
             040000bfffffffffffe00001e0000020000000000fffffff000000000000",
            borders.iter().map(|timestamp_ms| sample(*timestamp_ms, 0.0)).collect(),
        ),
    ]
}

#[test]
fn decodes_what_prometheus_encodes() {
    for (hex, samples) in vectors() {
        let chunk = from_hex(hex);
        assert_eq!(decoded(&chunk).expect(hex), samples, "{hex}");
        assert_eq!(reference::decode(&chunk).expect(hex), samples, "{hex}");
        // Bits after the last sample are padding.
        assert_eq!(decoded(&[chunk, vec![0xff; 30]].concat()).expect(hex), samples, "{hex}");
    }
}

#[test]
fn appends_to_existing_samples() {
    let mut samples = vec![sample(1, 1.0)];
    decode(&from_hex("000180a0abfef9623ff0000000000000"), &mut samples).expect("a chunk");
    assert_eq!(samples.len(), 2);
    decode(&from_hex("000280a0abfef9623ff0000000000000"), &mut samples).expect_err("one sample is missing");
    assert_eq!(samples.len(), 2, "an invalid chunk adds no samples");
}

#[test]
fn b62_chunks_that_end_too_early_or_declare_too_much() {
    for (length, count, chunk) in [
        (0, 0, from_hex("")),
        (1, 0, from_hex("00")),
        (2, 1, from_hex("0001")),
        (2, 65535, from_hex("ffff")),
        (16, 2, from_hex("000280a0abfef9623ff0000000000000")),
        (23, 65535, from_hex("ffff80a0abfef9623ff00000000000009875c25fff6c06")),
        // The padding has room for more unchanged samples, but not for this number.
        (13, 6, from_hex("00060000000000000000000100")),
    ] {
        assert_eq!(decoded(&chunk), Err(Error::Truncated { length, count }), "{chunk:x?}");
        assert_eq!(reference::decode(&chunk), Err(Error::Truncated { length, count }), "{chunk:x?}");
    }
    for (hex, _) in vectors().into_iter().skip(1) {
        let chunk = from_hex(hex);
        for length in 0..chunk.len() {
            assert!(decoded(&chunk[..length]).is_err(), "{hex} {length}");
        }
    }
}

#[test]
fn b62_a_window_beyond_the_value_is_rejected() {
    // After two samples: dod 0, value changed, a new window of 5 leading zeros and 60 bits.
    let mut chunk = BitBuffer::default();
    chunk
        .put_bits(2, 16)
        .put_bits(0, 8)
        .put_bits(0, 64)
        .put_bits(1, 8)
        .put_bits(0b11, 2)
        .put_bits(5, 5)
        .put_bits(60, 6)
        .put_bits(0, 64);
    let window = Err(Error::InvalidBitWindow { leading: 5, significant: 60 });
    assert_eq!(decoded(&chunk.bytes), window);
    assert_eq!(reference::decode(&chunk.bytes), window);
}

#[test]
fn a_window_that_was_never_set_is_the_whole_value() {
    let mut chunk = BitBuffer::default();
    chunk
        .put_bits(2, 16)
        .put_bits(0, 8)
        .put_bits(0, 64)
        .put_bits(1, 8)
        .put_bits(0b10, 2)
        .put_bits(2.5f64.to_bits(), 64);
    assert_eq!(decoded(&chunk.bytes), Ok(vec![sample(0, 0.0), sample(1, 2.5)]));
}

#[test]
fn varints_stay_within_64_bits() {
    for (tail, is_valid) in [("01", true), ("02", false), ("80", false)] {
        let chunk = from_hex(&format!("0001ffffffffffffffffff{tail}3ff0000000000000"));
        assert_eq!(decoded(&chunk).is_ok(), is_valid, "{tail}");
        assert_eq!(decoded(&chunk), reference::decode(&chunk));
    }
}

/// A growing buffer of bits.
#[derive(Default)]
struct BitBuffer {
    bytes: Vec<u8>,
    used: usize,
}

impl BitBuffer {
    fn put_bits(&mut self, value: u64, width: u32) -> &mut Self {
        for i in (0..width).rev() {
            if self.used.is_multiple_of(8) {
                self.bytes.push(0);
            }
            let last = self.bytes.last_mut().expect("a byte was pushed");
            *last |= ((value >> i & 1) as u8) << (7 - self.used % 8);
            self.used += 1;
        }
        self
    }

    fn put_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.put_bits(value & 0x7f | 0x80, 8);
            value >>= 7;
        }
        self.put_bits(value, 8);
    }
}

/// Reference implementation of the encoder.
pub fn reference_encode(samples: &[Sample]) -> Vec<u8> {
    let mut bits = BitBuffer::default();
    bits.put_bits(samples.len() as u64, 16);
    let (mut previous, mut delta, mut window) = (sample(0, 0.0), 0u64, None);
    for (i, sample) in samples.iter().enumerate() {
        let timestamp_ms = sample.timestamp_ms;
        let new_delta = timestamp_ms.wrapping_sub(previous.timestamp_ms).cast_unsigned();
        match i {
            0 => {
                bits.put_varint((timestamp_ms << 1 ^ timestamp_ms >> 63).cast_unsigned());
                bits.put_bits(sample.value.to_bits(), 64);
                previous = *sample;
                continue;
            }
            1 => bits.put_varint(new_delta),
            _ => {
                let dod = new_delta.wrapping_sub(delta);
                let fits =
                    |width: u32| (-(1 << (width - 1)) + 1..=1 << (width - 1)).contains(&dod.cast_signed());
                match dod {
                    0 => bits.put_bits(0, 1),
                    _ if fits(14) => bits.put_bits(0b10, 2).put_bits(dod, 14),
                    _ if fits(17) => bits.put_bits(0b110, 3).put_bits(dod, 17),
                    _ if fits(20) => bits.put_bits(0b1110, 4).put_bits(dod, 20),
                    _ => bits.put_bits(0b1111, 4).put_bits(dod, 64),
                };
            }
        }
        let xor = sample.value.to_bits() ^ previous.value.to_bits();
        let (leading, trailing) = (xor.leading_zeros().min(31), xor.trailing_zeros());
        match window {
            _ if xor == 0 => bits.put_bits(0, 1),
            Some((l, t)) if leading >= l && trailing >= t => {
                bits.put_bits(0b10, 2).put_bits(xor >> t, 64 - l - t)
            }
            _ => {
                window = Some((leading, trailing));
                let significant = 64 - leading - trailing;
                bits.put_bits(0b11, 2).put_bits(leading.into(), 5).put_bits((significant & 63).into(), 6);
                bits.put_bits(xor >> trailing, significant)
            }
        };
        (previous, delta) = (*sample, new_delta);
    }
    bits.bytes
}

/// The bytes of the encoder under test.
fn encoded(samples: &[Sample]) -> Vec<u8> {
    let mut chunk = Vec::new();
    super::encode::encode(samples, &mut chunk);
    chunk
}

#[test]
fn encodes_the_bytes_that_prometheus_writes() {
    for (hex, samples) in vectors() {
        assert_eq!(encoded(&samples), from_hex(hex), "{samples:?}");
        assert_eq!(reference_encode(&samples), from_hex(hex), "{samples:?}");
    }
}

/// Constant, counting, jumping or arbitrary values; a scrape interval with and without jitter, or arbitrary times.
fn any_samples() -> impl Strategy<Value = Vec<Sample>> {
    let value = prop_oneof![
        Just(0u64),
        Just(STALE_BITS),
        (-1e9..1e9f64).prop_map(f64::to_bits),
        (0..100_000u32).prop_map(|n| f64::from(n).to_bits()),
        any::<u64>(),
    ];
    let delta = prop_oneof![
        Just(15_000i64),
        14_990..15_010i64,
        0..20_000i64,
        -1_000_000..1_000_000i64,
        any::<i64>(),
    ];
    let start = prop_oneof![Just(1_700_000_000_000), any::<i64>()];
    (start, prop::collection::vec((delta, value), 0..150)).prop_map(|(mut timestamp_ms, pairs)| {
        let mut samples = Vec::new();
        for (delta, bits) in pairs {
            timestamp_ms = timestamp_ms.wrapping_add(delta);
            samples.push(sample(timestamp_ms, f64::from_bits(bits)));
        }
        samples
    })
}

proptest! {
    #[test]
    fn decodes_what_was_encoded(samples in any_samples()) {
        let chunk = reference_encode(&samples);
        prop_assert_eq!(&encoded(&samples), &chunk);
        prop_assert_eq!(decoded(&chunk), Ok(samples));
    }

    #[test]
    fn agrees_with_the_reference_decoder_on_any_bytes(
        count in 0..200u16,
        tail in prop::collection::vec(prop_oneof![Just(0u8), any::<u8>()], 0..200),
    ) {
        let chunk = [&count.to_be_bytes()[..], &tail].concat();
        prop_assert_eq!(decoded(&chunk).ok(), reference::decode(&chunk).ok());
    }

    #[test]
    fn survives_a_flipped_bit(samples in any_samples(), at in any::<prop::sample::Index>()) {
        let mut chunk = reference_encode(&samples);
        let bit = at.index(chunk.len() * 8);
        chunk[bit / 8] ^= 1 << (bit % 8);
        prop_assert_eq!(decoded(&chunk).ok(), reference::decode(&chunk).ok());
    }
}
