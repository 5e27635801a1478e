//! The past, from Prometheus by remote read: what training learns from, and what a restart needs.
//!
//! Answers of type SAMPLES are asked for, group by group and in slices of time, so that no answer
//! is large: a day of one host's interfaces is about two megabytes decoded.

pub mod xor;

use crate::http::client::{self, Client, Url};
use crate::http::config::ClientConfig;
use crate::prom::labels;
use crate::prom::matcher::Matcher;
use crate::prom::proto::{LabelMatcher, Query, ReadRequest, ReadResponse, ResponseType};
use crate::prom::wire::snappy;
use crate::prom::{Labels, Sample, Selector};
use crate::yaml::Section;
use bytes::Bytes;
use http_body_util::LengthLimitError;
use hyper::header::{ACCEPT_ENCODING, CONTENT_TYPE, HeaderName, HeaderValue};
use prost::Message;
use std::time::Duration;

/// A `remote_read` block. Names and defaults are Prometheus'.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where to ask.
    pub url: Url,
    /// How to get there.
    pub http: ClientConfig,
    /// How long one answer may take.
    pub remote_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        let url = "http://localhost:9090/api/v1/read".parse().expect("a URL");
        Self { url, http: ClientConfig::default(), remote_timeout: Duration::from_secs(60) }
    }
}

impl Config {
    /// Reads a block of the configuration file.
    pub fn read(mut section: Section<'_, '_>) -> Self {
        let default = Self::default();
        let url = section.require("url").and_then(|node| node.parse(str::parse));
        let remote_timeout = section.duration("remote_timeout", default.remote_timeout);
        let http = ClientConfig::read(&mut section);
        section.finish();
        Self { url: url.unwrap_or(default.url), http, remote_timeout }
    }
}

/// A source that can be asked.
pub struct Source {
    /// Its block.
    pub config: Config,
    /// The connections to it.
    pub client: Client,
}

impl Source {
    /// Gets ready to ask; no connection is made yet.
    ///
    /// # Errors
    /// As [`Client::new`].
    pub fn new(config: &Config) -> Result<Self, client::Error> {
        Ok(Self { config: config.clone(), client: Client::new(&config.http)? })
    }
}

/// The first slice, and the shortest one that a limit on the other side can bring it down to.
const LONGEST_SLICE_MS: i64 = 24 * 3_600_000;
const SHORTEST_SLICE_MS: i64 = 60_000;
/// Bytes of an answer, as received and decompressed. A slice above it is halved.
const ANSWER_LIMIT: usize = 64 << 20;

/// Why there is no history.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No answer.
    #[error("remote read failed")]
    Http(#[from] client::Error),
    /// The other side does not serve the query.
    #[error("remote read: {url} answered {status}: {reason}")]
    Refused {
        /// Where.
        url: Url,
        /// Its status.
        status: hyper::StatusCode,
        /// The first line of its body.
        reason: String,
    },
    /// The answer is of another kind than the one asked for.
    #[error("remote read: {url} answered with content type {content_type:?}, not application/x-protobuf")]
    ContentType {
        /// Where.
        url: Url,
        /// What came.
        content_type: String,
    },
    /// The body cannot be decompressed.
    #[error("remote read: the answer cannot be decompressed")]
    Snappy(#[from] snappy::Error),
    /// The body is no answer.
    #[error("remote read: the answer is no ReadResponse")]
    Protobuf(#[from] prost::DecodeError),
    /// One query was asked, and not one result came.
    #[error("remote read: {results} results for one query")]
    Results {
        /// How many came.
        results: usize,
    },
    /// A series without a valid label set.
    #[error("remote read: an invalid series")]
    Labels(#[from] labels::Invalid),
}

impl Error {
    /// May the same question be answered later? A source without remote read will never answer.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Http(_) => true,
            Self::Refused { status, .. } => status.is_server_error(),
            _ => false,
        }
    }

    /// May a shorter slice succeed?
    fn is_too_large(&self) -> bool {
        match self {
            Self::Snappy(snappy::Error::TooLarge { .. }) => true,
            Self::Http(client::Error::Body { source, .. }) => source.is::<LengthLimitError>(),
            Self::Refused { status, reason, .. } => status.as_u16() == 400 && reason.contains("limit"),
            _ => false,
        }
    }
}

/// A series of the past, samples ascending, staleness markers among them.
pub type Series = (Labels, Vec<Sample>);

/// Reads the series that a selector selects in a group, over `(after_ms, to_ms]`, in slices.
/// `each` gets the slices in the order of time; a series may be in several.
///
/// # Errors
/// [`Error`] for the first slice that fails; what came before it stays valid.
pub async fn read(
    client: &Client,
    config: &Config,
    selector: &Selector,
    group: &[Matcher],
    (after_ms, to_ms): (i64, i64),
    mut each: impl FnMut(Vec<Series>),
) -> Result<(), Error> {
    let mut slice_ms = LONGEST_SLICE_MS;
    let mut start_ms = after_ms + 1;
    while start_ms <= to_ms {
        let end_ms = to_ms.min(start_ms + slice_ms - 1);
        match slice(client, config, selector, group, start_ms, end_ms).await {
            Ok(series) => {
                each(series);
                start_ms = end_ms + 1;
            }
            Err(error) if error.is_too_large() && slice_ms > SHORTEST_SLICE_MS => slice_ms /= 2,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

async fn slice(
    client: &Client,
    config: &Config,
    selector: &Selector,
    group: &[Matcher],
    start_ms: i64,
    end_ms: i64,
) -> Result<Vec<Series>, Error> {
    let matchers = selector.to_proto().chain(group.iter().map(LabelMatcher::from)).collect();
    let request = ReadRequest {
        queries: vec![Query { start_timestamp_ms: start_ms, end_timestamp_ms: end_ms, matchers }],
        accepted_response_types: vec![ResponseType::Samples.into()],
    };
    let headers = [
        (ACCEPT_ENCODING, HeaderValue::from_static("snappy")),
        (HeaderName::from_static("x-prometheus-remote-read-version"), HeaderValue::from_static("0.1.0")),
    ];
    let body = Bytes::from(snappy::compress(&request.encode_to_vec()));
    let answer = client.post(&config.url, &headers, body, config.remote_timeout, ANSWER_LIMIT).await?;
    if !answer.status.is_success() {
        return Err(Error::Refused {
            url: config.url.clone(),
            status: answer.status,
            reason: answer.reason(),
        });
    }
    let content_type =
        answer.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !content_type.starts_with("application/x-protobuf") {
        return Err(Error::ContentType { url: config.url.clone(), content_type: content_type.into() });
    }
    let mut buffer = Vec::new();
    let message = snappy::decompress(&answer.body, ANSWER_LIMIT, &mut buffer)?;
    decode(message, start_ms, end_ms)
}

/// Decodes a `ReadResponse` for one query and clips it to the range.
///
/// # Errors
/// [`Error`] when it is no such message.
pub fn decode(message: &[u8], start_ms: i64, end_ms: i64) -> Result<Vec<Series>, Error> {
    let mut response = ReadResponse::decode(message)?;
    if response.results.len() != 1 {
        return Err(Error::Results { results: response.results.len() });
    }
    let series = response.results.remove(0).timeseries.into_iter().map(|series| {
        let labels = Labels::new(series.labels.into_iter().map(|label| (label.name, label.value)))?;
        let mut samples: Vec<Sample> = series
            .samples
            .iter()
            .map(|sample| Sample { timestamp_ms: sample.timestamp, value: sample.value })
            .filter(|sample| (start_ms..=end_ms).contains(&sample.timestamp_ms))
            .collect();
        samples.sort_by_key(|sample| sample.timestamp_ms);
        Ok((labels, samples))
    });
    series.collect()
}

#[cfg(test)]
mod tests;
