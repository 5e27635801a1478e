//! Labels on the wire: their limits, the errors they can have, and the symbol table of version 2.0.

use super::protobuf::Malformed;
use crate::prom::{Labels, labels};

/// Most labels of a series.
pub const MAX_LABELS: usize = 64;
/// Most bytes of a label name.
pub const MAX_NAME_BYTES: usize = 1 << 10;
/// Most bytes of a label value.
pub const MAX_VALUE_BYTES: usize = 16 << 10;

/// Owners of labels, as error texts name them.
pub const SERIES_OWNER: &str = "the series";
pub const EXEMPLAR_OWNER: &str = "an exemplar";

/// Labels that make one series invalid; the other series of the request are kept.
#[derive(Debug, thiserror::Error)]
pub enum InvalidSeries {
    /// The bytes of a label are not a `Label` message.
    #[error("a label is not a protobuf message")]
    Malformed(#[from] Malformed),
    /// A name or value is not UTF-8.
    #[error("a label name or value is not UTF-8: {0:?}")]
    Utf8(String),
    /// More than [`MAX_LABELS`].
    #[error("{whose} has {count} labels, above the limit of {MAX_LABELS}")]
    TooManyLabels {
        /// The owner: the series, or an exemplar.
        whose: &'static str,
        /// Their number.
        count: usize,
    },
    /// A name above [`MAX_NAME_BYTES`] or a value above [`MAX_VALUE_BYTES`].
    #[error("the {what} {start:?}... has {length} bytes, above the limit of {limit}")]
    TooLong {
        /// Name or value.
        what: &'static str,
        /// Its first bytes.
        start: String,
        /// Its length, in bytes.
        length: usize,
        /// The limit, in bytes.
        limit: usize,
    },
    /// A name without a value.
    #[error("{whose} has {count} label references, which is not an even number")]
    OddReferenceCount {
        /// The owner: the series, or an exemplar.
        whose: &'static str,
        /// Their number.
        count: usize,
    },
    /// A reference to an unknown symbol.
    #[error("{whose} refers to symbol {reference} of {symbols}")]
    UnknownSymbol {
        /// The owner: the series, or an exemplar.
        whose: &'static str,
        /// Index of the symbol.
        reference: u32,
        /// Number of symbols in the request.
        symbols: usize,
    },
    /// The pairs are not a label set.
    #[error(transparent)]
    Labels(#[from] labels::InvalidLabels),
    /// The metric name is missing.
    #[error("series {0} has no metric name")]
    NoMetricName(Labels),
}

/// The symbol table of a request of version 2.0.
#[derive(Clone, Copy)]
pub struct SymbolTable<'a> {
    pub message: &'a [u8],
    pub symbols: &'a [Symbol],
}

/// One symbol: its place in the message, and the hash of its text.
pub struct Symbol {
    pub start: u32,
    pub length: u32,
    /// Low and high half of the hash: a `u128` would need padding.
    pub hash: [u64; 2],
}

impl<'a> SymbolTable<'a> {
    pub fn get(self, reference: u32) -> Result<&'a [u8], InvalidSeries> {
        let invalid =
            InvalidSeries::UnknownSymbol { whose: SERIES_OWNER, reference, symbols: self.symbols.len() };
        let symbol = self.symbols.get(reference as usize).ok_or(invalid)?;
        Ok(&self.message[symbol.start as usize..][..symbol.length as usize])
    }
}

/// A label set with a metric name from pairs of text in any order, with the limits of labels on the wire.
///
/// # Errors
/// [`InvalidSeries`] if the pairs are not a valid label set with a metric name, or exceed a limit.
pub fn parse_pairs(pairs: impl IntoIterator<Item = (String, String)>) -> Result<Labels, InvalidSeries> {
    let pairs: Vec<(String, String)> = pairs.into_iter().collect();
    if pairs.len() > MAX_LABELS {
        return Err(InvalidSeries::TooManyLabels { whose: SERIES_OWNER, count: pairs.len() });
    }
    for (name, value) in &pairs {
        parse_label_name(name.as_bytes())?;
        parse_label_value(value.as_bytes())?;
    }
    let labels = Labels::new(pairs)?;
    match labels.metric_name() {
        "" => Err(InvalidSeries::NoMetricName(labels)),
        _ => Ok(labels),
    }
}

pub fn parse_label_name(bytes: &[u8]) -> Result<&str, InvalidSeries> {
    parse_text("label name", bytes, MAX_NAME_BYTES)
}

pub fn parse_label_value(bytes: &[u8]) -> Result<&str, InvalidSeries> {
    parse_text("label value", bytes, MAX_VALUE_BYTES)
}

fn parse_text<'a>(what: &'static str, bytes: &'a [u8], limit: usize) -> Result<&'a str, InvalidSeries> {
    let start = || String::from_utf8_lossy(&bytes[..bytes.len().min(40)]).into_owned();
    if bytes.len() > limit {
        return Err(InvalidSeries::TooLong { what, start: start(), length: bytes.len(), limit });
    }
    std::str::from_utf8(bytes).map_err(|_| InvalidSeries::Utf8(start()))
}
