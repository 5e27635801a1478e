//! Encodes XOR chunks with the same bits as Prometheus (`tsdb/chunkenc/xor.go`).

use crate::prom::Sample;

/// Appends a chunk of at most [`u16::MAX`] samples, ascending.
///
/// # Panics
/// If there are more samples.
pub fn encode(samples: &[Sample], out: &mut Vec<u8>) {
    let count = u16::try_from(samples.len()).expect("a chunk has a few samples");
    let mut writer = BitWriter { out, pending: 0, n_pending: 0 };
    writer.write_bits(count.into(), 16);
    let Some((first, rest)) = samples.split_first() else { return };
    let zigzag = (first.timestamp_ms << 1) ^ (first.timestamp_ms >> 63);
    writer.write_varint(zigzag.cast_unsigned());
    writer.write_bits(first.value.to_bits(), 64);
    let mut previous = first;
    let mut previous_delta = None;
    let mut window = None;
    for sample in rest {
        let delta = sample.timestamp_ms.wrapping_sub(previous.timestamp_ms).cast_unsigned();
        match previous_delta {
            None => writer.write_varint(delta),
            Some(previous_delta) => {
                writer.write_delta_of_delta(delta.wrapping_sub(previous_delta).cast_signed())
            }
        }
        writer.write_value(sample.value.to_bits() ^ previous.value.to_bits(), &mut window);
        previous_delta = Some(delta);
        previous = sample;
    }
    writer.finish();
}

/// Appends bits to bytes, the most significant bit first.
struct BitWriter<'o> {
    out: &'o mut Vec<u8>,
    /// Bits of the incomplete last byte, left-aligned.
    pending: u8,
    n_pending: u32,
}

impl BitWriter<'_> {
    /// Writes the lowest `width` bits, at most 64.
    fn write_bits(&mut self, bits: u64, mut width: u32) {
        while width > 0 {
            let n_bits = width.min(8 - self.n_pending);
            width -= n_bits;
            let part = (bits >> width) as u8 & (0xff >> (8 - n_bits));
            self.pending |= part << (8 - self.n_pending - n_bits);
            self.n_pending += n_bits;
            if self.n_pending == 8 {
                self.out.push(self.pending);
                (self.pending, self.n_pending) = (0, 0);
            }
        }
    }

    fn write_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.write_bits(value & 0x7f | 0x80, 8);
            value >>= 7;
        }
        self.write_bits(value, 8);
    }

    /// Writes the delta of deltas. The ranges differ from two's complement: 8192 fits 14 bits, -8192 does not.
    fn write_delta_of_delta(&mut self, dod: i64) {
        let fits = |width: u32| (1 - (1 << (width - 1))..=1 << (width - 1)).contains(&dod);
        let bits = dod.cast_unsigned();
        if dod == 0 {
            self.write_bits(0, 1);
        } else if let Some((prefix, width)) =
            [(0b10, 14), (0b110, 17), (0b1110, 20)].into_iter().find(|(_, width)| fits(*width))
        {
            let prefix_width = 64 - u64::leading_zeros(prefix);
            self.write_bits(prefix, prefix_width);
            self.write_bits(bits, width);
        } else {
            self.write_bits(0b1111, 4);
            self.write_bits(bits, 64);
        }
    }

    /// Writes the changed bits of a value, in the previous window if they fit there, else with a new window.
    fn write_value(&mut self, xor: u64, window: &mut Option<(u32, u32)>) {
        if xor == 0 {
            return self.write_bits(0, 1);
        }
        // The field has five bits.
        let leading = xor.leading_zeros().min(31);
        let trailing = xor.trailing_zeros();
        let reused_window = window.filter(|(window_leading, window_trailing)| {
            leading >= *window_leading && trailing >= *window_trailing
        });
        if let Some((leading, trailing)) = reused_window {
            self.write_bits(0b10, 2);
            return self.write_bits(xor >> trailing, 64 - leading - trailing);
        }
        *window = Some((leading, trailing));
        let significant = 64 - leading - trailing;
        self.write_bits(0b11, 2);
        self.write_bits(leading.into(), 5);
        // The field has six bits: 64 is written as zero.
        self.write_bits(significant.into(), 6);
        self.write_bits(xor >> trailing, significant);
    }

    fn finish(self) {
        if self.n_pending > 0 {
            self.out.push(self.pending);
        }
    }
}
