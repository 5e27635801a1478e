//! A `ReadRequest`, taken apart by hand: two bytes on the wire would be a query of a hundred in memory.

use super::Error;
use crate::prom::matcher::Selector;
use crate::prom::proto::{LabelMatcher, ResponseType, label_matcher};
use crate::prom::wire::protobuf::{LENGTH_DELIMITED, Reader, VARINT};
use prost::Message;

/// Queries of a request: Prometheus sends one.
const QUERIES: usize = 16;
/// Matchers of a request, and those of them that are patterns, each of which takes up to three megabytes.
const MATCHERS: usize = 256;
const PATTERNS: usize = 32;
/// Kinds of answers that a client may name.
const FORMS: usize = 16;

/// The kind of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// One compressed message.
    Samples,
    /// A stream of frames with chunks.
    Chunks,
}

/// What is asked, and how it shall be answered.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// The queries, in their order.
    pub queries: Vec<Query>,
    /// The kind of the answer.
    pub form: Form,
}

/// Samples of some series.
#[derive(Clone, Debug, PartialEq)]
pub struct Query {
    /// Timestamp of the first sample that is wanted.
    pub start_ms: i64,
    /// Timestamp of the last one.
    pub end_ms: i64,
    /// Which series.
    pub selector: Selector,
}

impl Request {
    /// Reads a `ReadRequest`.
    ///
    /// # Errors
    /// [`Error`] when it is none, or asks for more, or for something else, than can be answered.
    pub fn decode(message: &[u8]) -> Result<Self, Error> {
        let mut reader = Reader::new(message);
        let (mut queries, mut forms) = (Vec::new(), Vec::new());
        let (mut matchers, mut patterns) = (0, 0);
        while !reader.is_empty() {
            match reader.key()? {
                (1, LENGTH_DELIMITED) => {
                    at_most("queries", queries.len() + 1, QUERIES)?;
                    let (range, selected) = query(reader.bytes()?, &mut matchers, &mut patterns)?;
                    queries.push((range, selected));
                }
                (2, VARINT) => add(&mut forms, reader.varint()?)?,
                (2, LENGTH_DELIMITED) => {
                    let mut packed = Reader::new(reader.bytes()?);
                    while !packed.is_empty() {
                        add(&mut forms, packed.varint()?)?;
                    }
                }
                (_, wire_type) => reader.skip(wire_type)?,
            }
        }
        let form = form(forms)?;
        let query = |(number, ((start_ms, end_ms), matchers)): (usize, (_, Vec<LabelMatcher>))| {
            let selector = Selector::from_proto(matchers);
            let selector = selector.map_err(|source| Error::Query { number: number + 1, source })?;
            Ok(Query { start_ms, end_ms, selector })
        };
        let queries = queries.into_iter().enumerate().map(query).collect::<Result<_, Error>>()?;
        Ok(Self { queries, form })
    }
}

type Range = (i64, i64);

fn query(
    message: &[u8],
    matchers: &mut usize,
    patterns: &mut usize,
) -> Result<(Range, Vec<LabelMatcher>), Error> {
    let mut reader = Reader::new(message);
    let (mut start_ms, mut end_ms, mut selected) = (0, 0, Vec::new());
    while !reader.is_empty() {
        match reader.key()? {
            (1, VARINT) => start_ms = reader.varint()?.cast_signed(),
            (2, VARINT) => end_ms = reader.varint()?.cast_signed(),
            (3, LENGTH_DELIMITED) => {
                *matchers += 1;
                at_most("matchers", *matchers, MATCHERS)?;
                let matcher = LabelMatcher::decode(reader.bytes()?)?;
                let is_pattern =
                    matches!(matcher.r#type(), label_matcher::Type::Re | label_matcher::Type::Nre);
                *patterns += usize::from(is_pattern);
                at_most("regular expressions", *patterns, PATTERNS)?;
                selected.push(matcher);
            }
            (_, wire_type) => reader.skip(wire_type)?,
        }
    }
    Ok(((start_ms, end_ms), selected))
}

fn add(forms: &mut Vec<i32>, form: u64) -> Result<(), Error> {
    at_most("accepted response types", forms.len() + 1, FORMS)?;
    // As protobuf reads an enum: the lowest 32 bits.
    forms.push(form as i32);
    Ok(())
}

/// The first that is known; SAMPLES for a client that knows of no other.
fn form(accepted: Vec<i32>) -> Result<Form, Error> {
    let known = accepted.iter().find_map(|form| ResponseType::try_from(*form).ok());
    match known {
        Some(ResponseType::Samples) => Ok(Form::Samples),
        Some(ResponseType::StreamedXorChunks) => Ok(Form::Chunks),
        None if accepted.is_empty() => Ok(Form::Samples),
        None => Err(Error::Form(accepted)),
    }
}

fn at_most(what: &'static str, count: usize, limit: usize) -> Result<(), Error> {
    if count > limit { Err(Error::Limit { what, limit }) } else { Ok(()) }
}
