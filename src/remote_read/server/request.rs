//! Decodes a `ReadRequest` field by field, with limits on its counts. With prost, a query of two bytes on the wire would
//! take a hundred bytes of memory before any limit applies.

use super::error::Error;
use crate::prom::matcher::Selector;
use crate::prom::proto::{LabelMatcher, ResponseType, label_matcher};
use crate::prom::wire::protobuf::{FieldReader, LENGTH_DELIMITED, VARINT};
use prost::Message;

/// Queries of a request: Prometheus sends one.
pub const MAX_QUERIES: usize = 16;
/// Matchers of a request.
const MAX_MATCHERS: usize = 256;
/// Regular expressions of a request.
pub const MAX_REGEX_MATCHERS: usize = 32;
/// Memory of a compiled regular expression with its caches, at most.
pub const REGEX_BYTES: usize = 3 << 20;
/// Response types that a client may accept.
const MAX_RESPONSE_TYPES: usize = 16;

/// The format of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseFormat {
    /// One compressed message.
    Samples,
    /// A stream of frames with chunks.
    Chunks,
}

/// A decoded request.
#[derive(Clone, Debug, PartialEq)]
pub struct RemoteReadRequest {
    /// The queries, in the order of the request.
    pub queries: Vec<Query>,
    /// The format of the response.
    pub format: ResponseFormat,
}

/// A request for the samples of some series.
#[derive(Clone, Debug, PartialEq)]
pub struct Query {
    /// Start of the range, inclusive.
    pub start_ms: i64,
    /// End of the range, inclusive.
    pub end_ms: i64,
    /// Selects the series.
    pub selector: Selector,
}

impl RemoteReadRequest {
    /// Decodes a `ReadRequest`. Calls `reserve` with the memory that its regular expressions take.
    ///
    /// # Errors
    /// [`Error`] if the message is invalid, exceeds a limit, has an invalid matcher or accepts no known format, and
    /// those of `reserve`.
    pub fn decode(message: &[u8], reserve: impl FnOnce(usize) -> Result<(), Error>) -> Result<Self, Error> {
        let mut reader = FieldReader::new(message);
        let (mut queries, mut response_types) = (Vec::new(), Vec::new());
        let (mut n_matchers, mut n_regex_matchers) = (0, 0);
        while !reader.is_empty() {
            match reader.read_key()? {
                (1, LENGTH_DELIMITED) => {
                    check_limit("queries", queries.len() + 1, MAX_QUERIES)?;
                    let (range, label_matchers) =
                        decode_query(reader.read_bytes()?, &mut n_matchers, &mut n_regex_matchers)?;
                    queries.push((range, label_matchers));
                }
                (2, VARINT) => push_response_type(&mut response_types, reader.read_varint()?)?,
                (2, LENGTH_DELIMITED) => {
                    let mut packed = FieldReader::new(reader.read_bytes()?);
                    while !packed.is_empty() {
                        push_response_type(&mut response_types, packed.read_varint()?)?;
                    }
                }
                (_, wire_type) => reader.skip_field(wire_type)?,
            }
        }
        let format = choose_format(response_types)?;
        reserve(n_regex_matchers * REGEX_BYTES)?;
        let to_query = |(number, ((start_ms, end_ms), matchers)): (usize, (_, Vec<LabelMatcher>))| {
            let selector = Selector::from_proto(matchers);
            let selector = selector.map_err(|source| Error::Query { number: number + 1, source })?;
            Ok(Query { start_ms, end_ms, selector })
        };
        let queries = queries.into_iter().enumerate().map(to_query).collect::<Result<_, Error>>()?;
        Ok(Self { queries, format })
    }
}

type TimeRange = (i64, i64);

fn decode_query(
    message: &[u8],
    n_matchers: &mut usize,
    n_regex_matchers: &mut usize,
) -> Result<(TimeRange, Vec<LabelMatcher>), Error> {
    let mut reader = FieldReader::new(message);
    let (mut start_ms, mut end_ms, mut label_matchers) = (0, 0, Vec::new());
    while !reader.is_empty() {
        match reader.read_key()? {
            (1, VARINT) => start_ms = reader.read_varint()?.cast_signed(),
            (2, VARINT) => end_ms = reader.read_varint()?.cast_signed(),
            (3, LENGTH_DELIMITED) => {
                *n_matchers += 1;
                check_limit("matchers", *n_matchers, MAX_MATCHERS)?;
                let matcher = LabelMatcher::decode(reader.read_bytes()?)?;
                let is_regex = matches!(matcher.r#type(), label_matcher::Type::Re | label_matcher::Type::Nre);
                *n_regex_matchers += usize::from(is_regex);
                check_limit("regular expressions", *n_regex_matchers, MAX_REGEX_MATCHERS)?;
                label_matchers.push(matcher);
            }
            (_, wire_type) => reader.skip_field(wire_type)?,
        }
    }
    Ok(((start_ms, end_ms), label_matchers))
}

fn push_response_type(response_types: &mut Vec<i32>, response_type: u64) -> Result<(), Error> {
    check_limit("accepted response types", response_types.len() + 1, MAX_RESPONSE_TYPES)?;
    // Protobuf truncates an enum to the lowest 32 bits.
    response_types.push(response_type as i32);
    Ok(())
}

/// The first known response type; SAMPLES for an older client that sends none.
fn choose_format(accepted: Vec<i32>) -> Result<ResponseFormat, Error> {
    let first_known = accepted.iter().find_map(|response_type| ResponseType::try_from(*response_type).ok());
    match first_known {
        Some(ResponseType::Samples) => Ok(ResponseFormat::Samples),
        Some(ResponseType::StreamedXorChunks) => Ok(ResponseFormat::Chunks),
        None if accepted.is_empty() => Ok(ResponseFormat::Samples),
        None => Err(Error::UnknownResponseTypes(accepted)),
    }
}

/// Compares a count with its limit.
///
/// # Errors
/// [`Error::Limit`].
pub fn check_limit(what: &'static str, count: usize, limit: usize) -> Result<(), Error> {
    if count > limit { Err(Error::Limit { what, limit }) } else { Ok(()) }
}
