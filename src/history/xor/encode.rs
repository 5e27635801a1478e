//! Writes chunks, bit for bit as Prometheus does (`tsdb/chunkenc/xor.go`).

use crate::prom::Sample;

/// Appends a chunk of these samples, at most [`u16::MAX`] of them, in the order of time.
pub fn encode(samples: &[Sample], out: &mut Vec<u8>) {
    let count = u16::try_from(samples.len()).expect("a chunk has a few samples");
    let mut bits = Bits { out, pending: 0, used: 0 };
    bits.write(count.into(), 16);
    let Some((first, others)) = samples.split_first() else { return };
    let zigzag = (first.timestamp_ms << 1) ^ (first.timestamp_ms >> 63);
    bits.varint(zigzag.cast_unsigned());
    bits.write(first.value.to_bits(), 64);
    let mut before = first;
    let mut delta_before = None;
    let mut window = None;
    for sample in others {
        let delta = sample.timestamp_ms.wrapping_sub(before.timestamp_ms).cast_unsigned();
        match delta_before {
            None => bits.varint(delta),
            Some(delta_before) => bits.change(delta.wrapping_sub(delta_before).cast_signed()),
        }
        bits.value(sample.value.to_bits() ^ before.value.to_bits(), &mut window);
        delta_before = Some(delta);
        before = sample;
    }
    bits.finish();
}

/// A stream of bits, the most significant first.
struct Bits<'o> {
    out: &'o mut Vec<u8>,
    /// Bits that are no whole byte yet, from the top.
    pending: u8,
    used: u32,
}

impl Bits<'_> {
    /// The lowest `width` bits, at most 64.
    fn write(&mut self, bits: u64, mut width: u32) {
        while width > 0 {
            let taken = width.min(8 - self.used);
            width -= taken;
            let part = (bits >> width) as u8 & (0xff >> (8 - taken));
            self.pending |= part << (8 - self.used - taken);
            self.used += taken;
            if self.used == 8 {
                self.out.push(self.pending);
                (self.pending, self.used) = (0, 0);
            }
        }
    }

    fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.write(number & 0x7f | 0x80, 8);
            number >>= 7;
        }
        self.write(number, 8);
    }

    /// By how much the distance of two timestamps differs from the one before. The widths are not two's
    /// complement's: 8192 has 14 bits, -8192 has not.
    fn change(&mut self, change: i64) {
        let fits = |width: u32| (1 - (1 << (width - 1))..=1 << (width - 1)).contains(&change);
        let bits = change.cast_unsigned();
        if change == 0 {
            self.write(0, 1);
        } else if let Some((prefix, width)) =
            [(0b10, 14), (0b110, 17), (0b1110, 20)].into_iter().find(|(_, width)| fits(*width))
        {
            let prefix_width = 64 - u64::leading_zeros(prefix);
            self.write(prefix, prefix_width);
            self.write(bits, width);
        } else {
            self.write(0b1111, 4);
            self.write(bits, 64);
        }
    }

    /// The bits in which a value differs from the one before: those that change, within the window of the last
    /// one if they lie there, else with a new window. Without a window the first one is new.
    fn value(&mut self, changed: u64, window: &mut Option<(u32, u32)>) {
        if changed == 0 {
            return self.write(0, 1);
        }
        // Five bits hold it.
        let leading = changed.leading_zeros().min(31);
        let trailing = changed.trailing_zeros();
        let fitting = window.filter(|(most, least)| leading >= *most && trailing >= *least);
        if let Some((leading, trailing)) = fitting {
            self.write(0b10, 2);
            return self.write(changed >> trailing, 64 - leading - trailing);
        }
        *window = Some((leading, trailing));
        let significant = 64 - leading - trailing;
        self.write(0b11, 2);
        self.write(leading.into(), 5);
        // Of 64 these are the lowest six bits: zero.
        self.write(significant.into(), 6);
        self.write(changed >> trailing, significant);
    }

    fn finish(self) {
        if self.used > 0 {
            self.out.push(self.pending);
        }
    }
}
