//! Remote write 2.0: `io.prometheus.write.v2.Request`.
//!
//! Labels are numbers of symbols, and the numbers are another request's business: what names a
//! series from request to request is the symbols' text. So each symbol is hashed once, whichever
//! number of series use it, and a series' hash is one over the hashes of its symbols.

use super::protobuf::{LENGTH_DELIMITED, Malformed, Reader, VARINT};
use super::{
    AN_EXEMPLAR, InvalidSeries, MAX_LABELS, MAX_SYMBOLS, Reading, Reason, Symbol, Symbols, THE_SERIES,
    label_name, label_value,
};
use xxhash_rust::xxh3::xxh3_128_with_seed;

/// Multiplier of the hash over a series' symbols: 2^128 divided by the golden ratio, made odd. The
/// symbols' hashes are random already and only have to be told apart by their places.
const MULTIPLIER: u128 = 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835;

pub fn read(reading: &mut Reading<'_>) -> Result<(), Malformed> {
    let message = reading.message;
    // Symbols stand before the series that need them, but nobody has to write them so.
    let mut first_series = None;
    let mut request = Reader::new(message);
    while !request.is_empty() {
        let start = message.len() - request.remaining();
        match request.key()? {
            (4, LENGTH_DELIMITED) => {
                let symbol = request.bytes()?;
                let end = message.len() - request.remaining();
                if reading.scratch.symbols.len() == MAX_SYMBOLS {
                    return Err(Malformed::TooMany { what: "symbols", limit: MAX_SYMBOLS });
                }
                let hash = xxh3_128_with_seed(symbol, reading.seed);
                reading.scratch.symbols.push(Symbol {
                    start: (end - symbol.len()) as u32,
                    length: symbol.len() as u32,
                    hash: [hash as u64, (hash >> 64) as u64],
                });
            }
            (5, LENGTH_DELIMITED) => {
                first_series.get_or_insert(start);
                request.bytes()?;
            }
            (field @ (4 | 5), wire_type) => {
                return Err(Malformed::WireType { message: "Request", field, wire_type });
            }
            // Series of 1.0.
            (1, LENGTH_DELIMITED) => {
                request.bytes()?;
                reading.counts.foreign += 1;
            }
            (_, wire_type) => request.skip(wire_type)?,
        }
    }
    if reading.scratch.symbols.first().is_some_and(|symbol| symbol.length > 0) {
        return Err(Malformed::FirstSymbol);
    }
    let Some(first_series) = first_series else { return Ok(()) };
    if reading.scratch.symbols.is_empty() {
        return Err(Malformed::FirstSymbol);
    }
    let mut request = Reader::new(&message[first_series..]);
    while !request.is_empty() {
        match request.key()? {
            (5, _) => {
                let part = request.bytes()?;
                let end = message.len() - request.remaining();
                series(reading, part, end)?;
            }
            (_, wire_type) => request.skip(wire_type)?,
        }
    }
    Ok(())
}

/// Reads the `TimeSeries` that ends at `end` in the message.
#[inline]
fn series(reading: &mut Reading<'_>, message: &[u8], end: usize) -> Result<(), Malformed> {
    let n_symbols = reading.scratch.symbols.len();
    let mut current = reading.begin()?;
    let (n_histograms, n_exemplars) = (reading.counts.histograms, reading.counts.exemplars);
    let mut references = References::default();
    let mut fields = Reader::new(message);
    while !fields.is_empty() {
        let start = end - fields.remaining();
        match fields.key()? {
            (1, wire_type @ (LENGTH_DELIMITED | VARINT)) => {
                references.take(&mut fields, wire_type, &reading.scratch.symbols)?;
                reading.label_field(&mut current, start, end - fields.remaining());
            }
            (2, LENGTH_DELIMITED) => reading.sample(fields.bytes()?)?,
            (3, LENGTH_DELIMITED) => reading.histogram(fields.bytes()?)?,
            (4, LENGTH_DELIMITED) => {
                reading.bound_samples(1)?;
                reading.counts.exemplars += 1;
                let (own, timestamp_ms) = exemplar(fields.bytes()?, &reading.scratch.symbols)?;
                match own.check(AN_EXEMPLAR, n_symbols) {
                    Ok(()) => reading.exemplar(&mut current, timestamp_ms),
                    Err(invalid) => reading.refused.add(Reason::Exemplar, 1, || invalid.to_string()),
                }
            }
            (5, LENGTH_DELIMITED) => {
                reading.counts.metadata += 1;
                if let Some(reference) = bad_metadata(fields.bytes()?, n_symbols)? {
                    let example = || format!("metadata refers to symbol {reference} of {n_symbols}");
                    reading.refused.add(Reason::Metadata, 1, example);
                }
            }
            (field @ 1..=5, wire_type) => {
                return Err(Malformed::WireType { message: "TimeSeries", field, wire_type });
            }
            (_, wire_type) => fields.skip(wire_type)?,
        }
    }
    let is_empty = current.first_sample == reading.scratch.samples.len()
        && (reading.counts.histograms, reading.counts.exemplars) == (n_histograms, n_exemplars);
    if is_empty {
        let example = || "a series has neither samples nor histograms nor exemplars".into();
        reading.refused.add(Reason::NoSamples, 1, example);
        return Ok(());
    }
    match references.check(THE_SERIES, n_symbols) {
        Ok(()) => reading.end(current, references.hash),
        Err(invalid) => reading.refuse(&current, || invalid.to_string()),
    }
    Ok(())
}

/// Label references that are being read.
#[derive(Default)]
struct References {
    hash: u128,
    count: usize,
    /// The first one without a symbol.
    missing: Option<u32>,
}

impl References {
    /// Takes one, or a packed list. A number beyond 32 bits loses the upper ones, as everywhere.
    #[inline]
    fn take(&mut self, fields: &mut Reader<'_>, wire_type: u8, symbols: &[Symbol]) -> Result<(), Malformed> {
        if wire_type == VARINT {
            self.push(fields.varint()? as u32, symbols);
            return Ok(());
        }
        let mut packed = Reader::new(fields.bytes()?);
        while !packed.is_empty() {
            self.push(packed.varint()? as u32, symbols);
        }
        Ok(())
    }

    #[inline]
    fn push(&mut self, reference: u32, symbols: &[Symbol]) {
        self.count += 1;
        match symbols.get(reference as usize) {
            Some(Symbol { hash: [low, high], .. }) => {
                let symbol = u128::from(*high) << 64 | u128::from(*low);
                self.hash = self.hash.wrapping_add(symbol).wrapping_mul(MULTIPLIER);
            }
            None => {
                self.missing.get_or_insert(reference);
            }
        }
    }

    fn check(&self, whose: &'static str, n_symbols: usize) -> Result<(), InvalidSeries> {
        match self.missing {
            Some(reference) => Err(InvalidSeries::Reference { whose, reference, symbols: n_symbols }),
            None if self.count % 2 == 1 => Err(InvalidSeries::Odd { whose, count: self.count }),
            None if self.count > 2 * MAX_LABELS => {
                Err(InvalidSeries::TooManyLabels { whose, count: self.count / 2 })
            }
            None => Ok(()),
        }
    }
}

/// Label references and timestamp of an `Exemplar`.
fn exemplar(message: &[u8], symbols: &[Symbol]) -> Result<(References, i64), Malformed> {
    let (mut references, mut timestamp_ms) = (References::default(), 0);
    let mut fields = Reader::new(message);
    while !fields.is_empty() {
        match fields.key()? {
            (1, wire_type @ (LENGTH_DELIMITED | VARINT)) => {
                references.take(&mut fields, wire_type, symbols)?
            }
            (3, VARINT) => timestamp_ms = fields.varint()?.cast_signed(),
            (field @ (1 | 3), wire_type) => {
                return Err(Malformed::WireType { message: "Exemplar", field, wire_type });
            }
            (_, wire_type) => fields.skip(wire_type)?,
        }
    }
    Ok((references, timestamp_ms))
}

/// The first symbol that a `Metadata` refers to in vain.
fn bad_metadata(message: &[u8], n_symbols: usize) -> Result<Option<u32>, Malformed> {
    let mut references = [0; 2];
    let mut fields = Reader::new(message);
    while !fields.is_empty() {
        match fields.key()? {
            (field @ (3 | 4), VARINT) => references[field as usize - 3] = fields.varint()? as u32,
            (field @ (3 | 4), wire_type) => {
                return Err(Malformed::WireType { message: "Metadata", field, wire_type });
            }
            (_, wire_type) => fields.skip(wire_type)?,
        }
    }
    Ok(references.into_iter().find(|reference| *reference as usize >= n_symbols))
}

/// Name and value of each label. There are as many references as [`References::check`] lets pass.
pub fn pairs<'a>(
    label_fields: &[u8],
    symbols: Symbols<'a>,
) -> Result<Vec<(&'a str, &'a str)>, InvalidSeries> {
    let mut references: Vec<u32> = Vec::new();
    let mut fields = Reader::new(label_fields);
    while !fields.is_empty() {
        if fields.key()?.1 == VARINT {
            references.push(fields.varint()? as u32);
            continue;
        }
        let mut packed = Reader::new(fields.bytes()?);
        while !packed.is_empty() {
            references.push(packed.varint()? as u32);
        }
    }
    let text = |reference: u32| symbols.get(reference);
    let pair = |[name, value]: &[u32; 2]| Ok((label_name(text(*name)?)?, label_value(text(*value)?)?));
    references.as_chunks().0.iter().map(pair).collect()
}

impl<'a> Symbols<'a> {
    fn get(self, reference: u32) -> Result<&'a [u8], InvalidSeries> {
        let invalid = InvalidSeries::Reference { whose: THE_SERIES, reference, symbols: self.all.len() };
        let symbol = self.all.get(reference as usize).ok_or(invalid)?;
        Ok(&self.message[symbol.start as usize..][..symbol.length as usize])
    }
}
