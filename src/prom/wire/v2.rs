//! Remote write 2.0: `io.prometheus.write.v2.Request`.
//!
//! Labels are references to symbols, and the references change from request to request; the text of the
//! symbols does not. Each symbol is therefore hashed once, however many series use it, and the hash of a series
//! combines the hashes of its symbols.

use super::labels::{
    EXEMPLAR_OWNER, InvalidSeries, MAX_LABELS, SERIES_OWNER, Symbol, SymbolTable, parse_label_name,
    parse_label_value,
};
use super::protobuf::{FieldReader, LENGTH_DELIMITED, Malformed, RequestPart, VARINT};
use super::rejections::RejectReason;
use super::request::{RequestParser, parse_usual_sample};
use crate::prom::Sample;
use xxhash_rust::xxh3::xxh3_128_with_seed;

/// Most symbols of a request.
pub const MAX_SYMBOLS: usize = 1_000_000;

/// Multipliers of the halves of the hash over a series' symbols: 2^64 divided by the golden ratio, made odd, and any other
/// odd number. The hashes of the symbols are uniform already; the multipliers make their order count.
const MULTIPLIERS: [u64; 2] = [0x9e37_79b9_7f4a_7c15, 0xf39c_c060_5ced_c835];
/// Multiplier of the names of labels, no small power of the other: any odd number else.
const NAME_MULTIPLIER: u128 = 0xc2b2_ae3d_27d4_eb4f_1656_67b1_9e37_79f9;

/// Key of packed label references in a `TimeSeries`.
const REFERENCES_KEY: u8 = 1 << 3 | LENGTH_DELIMITED;
/// Key and length of a sample of the usual form.
const SAMPLE_FIELD: [u8; 2] = [2 << 3 | LENGTH_DELIMITED, 16];
/// Key of metadata in a `TimeSeries`.
const METADATA_KEY: u8 = 5 << 3 | LENGTH_DELIMITED;

pub fn parse_request(parser: &mut RequestParser<'_>) -> Result<(), Malformed> {
    let message = parser.message;
    // Senders write symbols before series, but protobuf allows any order.
    let mut first_series = None;
    let mut request = FieldReader::new(message);
    while !request.is_empty() {
        let start = message.len() - request.remaining();
        match request.read_key()? {
            (4, LENGTH_DELIMITED) => {
                let symbol = request.read_bytes()?;
                let end = message.len() - request.remaining();
                if parser.scratch.symbols.len() == MAX_SYMBOLS {
                    return Err(Malformed::TooMany { what: RequestPart::Symbols, limit: MAX_SYMBOLS });
                }
                let hash = xxh3_128_with_seed(symbol, parser.seed);
                parser.scratch.symbols.push(Symbol {
                    start: (end - symbol.len()) as u32,
                    length: symbol.len() as u32,
                    hash: [hash as u64, (hash >> 64) as u64],
                });
            }
            (5, LENGTH_DELIMITED) => {
                first_series.get_or_insert(start);
                request.read_bytes()?;
            }
            (field @ (4 | 5), wire_type) => {
                return Err(Malformed::WireType { message: "Request", field, wire_type });
            }
            // Series of version 1.0.
            (1, LENGTH_DELIMITED) => {
                request.read_bytes()?;
                parser.counts.other_version += 1;
            }
            (_, wire_type) => request.skip_field(wire_type)?,
        }
    }
    if parser.scratch.symbols.first().is_some_and(|symbol| symbol.length > 0) {
        return Err(Malformed::FirstSymbolNotEmpty);
    }
    let Some(first_series) = first_series else { return Ok(()) };
    if parser.scratch.symbols.is_empty() {
        return Err(Malformed::FirstSymbolNotEmpty);
    }
    let mut request = FieldReader::new(&message[first_series..]);
    while !request.is_empty() {
        match request.read_key()? {
            (5, _) => {
                let series_bytes = request.read_bytes()?;
                let end = message.len() - request.remaining();
                parse_series(parser, series_bytes, end)?;
            }
            (_, wire_type) => request.skip_field(wire_type)?,
        }
    }
    Ok(())
}

/// Reads the `TimeSeries` that ends at `end` in the message.
#[inline]
fn parse_series(parser: &mut RequestParser<'_>, message: &[u8], end: usize) -> Result<(), Malformed> {
    let n_symbols = parser.scratch.symbols.len();
    let mut current = parser.begin_series()?;
    if let Some(series) = UsualSeries::split(message, &parser.scratch.symbols) {
        parser.counts.metadata += usize::from(series.has_metadata);
        let start = end - message.len();
        return parser.push_usual_series(start..start + series.label_bytes, series.sample, series.hash);
    }
    let (n_histograms, n_exemplars) = (parser.counts.histograms, parser.counts.exemplars);
    let mut references = LabelReferences::default();
    let mut fields = FieldReader::new(message);
    while !fields.is_empty() {
        let start = end - fields.remaining();
        match fields.read_key()? {
            (1, wire_type @ (LENGTH_DELIMITED | VARINT)) => {
                references.read_field(&mut fields, wire_type, &parser.scratch.symbols)?;
                parser.push_label_field(&mut current, start, end - fields.remaining());
            }
            (2, LENGTH_DELIMITED) => parser.push_sample(fields.read_bytes()?)?,
            (3, LENGTH_DELIMITED) => parser.push_histogram(fields.read_bytes()?)?,
            (4, LENGTH_DELIMITED) => {
                parser.check_sample_limit(1)?;
                parser.counts.exemplars += 1;
                let (exemplar_references, timestamp_ms) =
                    parse_exemplar(fields.read_bytes()?, &parser.scratch.symbols)?;
                match exemplar_references.check(EXEMPLAR_OWNER, n_symbols) {
                    Ok(()) => parser.count_exemplar(&mut current, timestamp_ms),
                    Err(invalid) => parser.rejections.add(RejectReason::Exemplar, 1, || invalid.to_string()),
                }
            }
            (5, LENGTH_DELIMITED) => {
                parser.counts.metadata += 1;
                if let Some(reference) = find_unknown_symbol(fields.read_bytes()?, n_symbols)? {
                    let example = || format!("metadata refers to symbol {reference} of {n_symbols}");
                    parser.rejections.add(RejectReason::Metadata, 1, example);
                }
            }
            (field @ 1..=5, wire_type) => {
                return Err(Malformed::WireType { message: "TimeSeries", field, wire_type });
            }
            (_, wire_type) => fields.skip_field(wire_type)?,
        }
    }
    let is_empty = current.first_sample == parser.scratch.samples.len()
        && (parser.counts.histograms, parser.counts.exemplars) == (n_histograms, n_exemplars);
    if is_empty {
        let example = || "a series has neither samples nor histograms nor exemplars".into();
        parser.rejections.add(RejectReason::NoSamples, 1, example);
        return Ok(());
    }
    match references.check(SERIES_OWNER, n_symbols) {
        Ok(()) => parser.end_series(current, references.hash()),
        Err(invalid) => parser.reject_series(&current, || invalid.to_string()),
    }
    Ok(())
}

/// A `TimeSeries` as nearly all are: packed references below 2^14 to known symbols of at most [`MAX_LABELS`] labels, one
/// sample of the [usual form](parse_usual_sample), and metadata of known symbols or none. Any other series is read field by
/// field.
struct UsualSeries {
    /// Length of the field of the references.
    label_bytes: usize,
    hash: u128,
    sample: Sample,
    has_metadata: bool,
}

impl UsualSeries {
    #[inline]
    fn split(message: &[u8], symbols: &[Symbol]) -> Option<Self> {
        let [REFERENCES_KEY, length @ ..0x80, rest @ ..] = message else { return None };
        let (mut packed, rest) = rest.split_at_checked(usize::from(*length))?;
        let label_bytes = message.len() - rest.len();
        let (&SAMPLE_FIELD, rest) = rest.split_first_chunk()? else { return None };
        let (sample, rest) = rest.split_first_chunk()?;
        let sample = parse_usual_sample(sample)?;
        let has_metadata = match rest {
            [] => false,
            [METADATA_KEY, length @ ..0x80, metadata @ ..]
                if metadata.len() == usize::from(*length)
                    && matches!(find_unknown_symbol(metadata, symbols.len()), Ok(None)) =>
            {
                true
            }
            _ => return None,
        };
        let mut references = LabelReferences::default();
        while !packed.is_empty() {
            let [name, value] = [next_short_varint(&mut packed)?, next_short_varint(&mut packed)?];
            references.push_known(symbols.get(name)?);
            references.push_known(symbols.get(value)?);
        }
        let is_usual = references.count <= 2 * MAX_LABELS;
        is_usual.then(|| Self { label_bytes, hash: references.hash(), sample, has_metadata })
    }
}

/// The next varint, if it has one byte or two.
#[inline(always)]
fn next_short_varint(bytes: &mut &[u8]) -> Option<usize> {
    match **bytes {
        [byte, ref rest @ ..] if byte < 0x80 => {
            *bytes = rest;
            Some(byte.into())
        }
        [low, high, ref rest @ ..] if high < 0x80 => {
            *bytes = rest;
            Some(usize::from(low & 0x7f) | usize::from(high) << 7)
        }
        _ => None,
    }
}

/// The label references read so far, with their hash.
#[derive(Default)]
struct LabelReferences {
    /// Hashes of the names and of the values: two chains of multiplications, each half as long.
    hashes: [[u64; 2]; 2],
    count: usize,
    /// The first reference to an unknown symbol.
    first_unknown: Option<u32>,
}

impl LabelReferences {
    /// Reads one reference or a packed list. Numbers above 32 bits lose the upper bits, as protobuf specifies.
    #[inline]
    fn read_field(
        &mut self,
        fields: &mut FieldReader<'_>,
        wire_type: u8,
        symbols: &[Symbol],
    ) -> Result<(), Malformed> {
        if wire_type == VARINT {
            self.push(fields.read_varint()? as u32, symbols);
            return Ok(());
        }
        let mut packed = FieldReader::new(fields.read_bytes()?);
        while !packed.is_empty() {
            self.push(packed.read_varint()? as u32, symbols);
        }
        Ok(())
    }

    #[inline]
    fn push(&mut self, reference: u32, symbols: &[Symbol]) {
        match symbols.get(reference as usize) {
            Some(symbol) => self.push_known(symbol),
            None => {
                self.count += 1;
                self.first_unknown.get_or_insert(reference);
            }
        }
    }

    #[inline(always)]
    fn push_known(&mut self, symbol: &Symbol) {
        for ((hash, symbol), multiplier) in
            self.hashes[self.count % 2].iter_mut().zip(symbol.hash).zip(MULTIPLIERS)
        {
            *hash = hash.wrapping_add(symbol).wrapping_mul(multiplier);
        }
        self.count += 1;
    }

    fn hash(&self) -> u128 {
        let [names, values] = self.hashes.map(|[low, high]| u128::from(high) << 64 | u128::from(low));
        names.wrapping_mul(NAME_MULTIPLIER).wrapping_add(values)
    }

    fn check(&self, whose: &'static str, n_symbols: usize) -> Result<(), InvalidSeries> {
        match self.first_unknown {
            Some(reference) => Err(InvalidSeries::UnknownSymbol { whose, reference, symbols: n_symbols }),
            None if self.count % 2 == 1 => Err(InvalidSeries::OddReferenceCount { whose, count: self.count }),
            None if self.count > 2 * MAX_LABELS => {
                Err(InvalidSeries::TooManyLabels { whose, count: self.count / 2 })
            }
            None => Ok(()),
        }
    }
}

/// Label references and timestamp of an `Exemplar`.
fn parse_exemplar(message: &[u8], symbols: &[Symbol]) -> Result<(LabelReferences, i64), Malformed> {
    let (mut references, mut timestamp_ms) = (LabelReferences::default(), 0);
    let mut fields = FieldReader::new(message);
    while !fields.is_empty() {
        match fields.read_key()? {
            (1, wire_type @ (LENGTH_DELIMITED | VARINT)) => {
                references.read_field(&mut fields, wire_type, symbols)?
            }
            (3, VARINT) => timestamp_ms = fields.read_varint()?.cast_signed(),
            (field @ (1 | 3), wire_type) => {
                return Err(Malformed::WireType { message: "Exemplar", field, wire_type });
            }
            (_, wire_type) => fields.skip_field(wire_type)?,
        }
    }
    Ok((references, timestamp_ms))
}

/// The first reference of a `Metadata` to an unknown symbol.
fn find_unknown_symbol(message: &[u8], n_symbols: usize) -> Result<Option<u32>, Malformed> {
    let mut references = [0; 2];
    let mut fields = FieldReader::new(message);
    while !fields.is_empty() {
        match fields.read_key()? {
            (field @ (3 | 4), VARINT) => references[field as usize - 3] = fields.read_varint()? as u32,
            (field @ (3 | 4), wire_type) => {
                return Err(Malformed::WireType { message: "Metadata", field, wire_type });
            }
            (_, wire_type) => fields.skip_field(wire_type)?,
        }
    }
    Ok(references.into_iter().find(|reference| *reference as usize >= n_symbols))
}

/// Name and value of each label. [`LabelReferences::check`] has accepted the number of references.
pub fn decode_labels<'a>(
    label_fields: &[u8],
    symbols: SymbolTable<'a>,
) -> Result<Vec<(&'a str, &'a str)>, InvalidSeries> {
    let mut references: Vec<u32> = Vec::new();
    let mut fields = FieldReader::new(label_fields);
    while !fields.is_empty() {
        if fields.read_key()?.1 == VARINT {
            references.push(fields.read_varint()? as u32);
            continue;
        }
        let mut packed = FieldReader::new(fields.read_bytes()?);
        while !packed.is_empty() {
            references.push(packed.read_varint()? as u32);
        }
    }
    let symbol_text = |reference: u32| symbols.get(reference);
    let decode_label = |[name, value]: &[u32; 2]| {
        Ok((parse_label_name(symbol_text(*name)?)?, parse_label_value(symbol_text(*value)?)?))
    };
    references.as_chunks().0.iter().map(decode_label).collect()
}
