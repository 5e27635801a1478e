//! Reads a slice by Prometheus' remote read.
//!
//! Chunks in a stream of frames are requested: the server need not decode them, and neither side holds the whole
//! response in memory. The alternative, one message with all samples, is used where the server does not support the
//! stream or stores chunks of an unknown encoding.

use super::collector::ResponseCollector;
use super::error::Error;
use super::request::{Endpoint, RESPONSE_LIMIT, Slice, content_type};
use crate::http::client::Request;
use crate::prom::proto::{LabelMatcher, Query, ReadRequest, ResponseType};
use crate::prom::wire::snappy;
use crate::remote_read::frames::{ChunkedReader, SAMPLES_CONTENT_TYPE, STREAMED_CONTENT_TYPE};
use bytes::Bytes;
use hyper::Method;
use hyper::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, HeaderName, HeaderValue};
use prost::Message;

/// The content types of a response, for errors.
const CONTENT_TYPES: &str =
    "application/x-protobuf or application/x-streamed-protobuf; proto=prometheus.ChunkedReadResponse";

/// Reads a slice; the server chooses one of the response types.
pub async fn receive(
    endpoint: &Endpoint<'_>,
    slice: &Slice<'_>,
    response_types: &[ResponseType],
    collector: &mut ResponseCollector,
) -> Result<(), Error> {
    let stream = endpoint.send(request(endpoint, slice, response_types)).await?;
    let mut stream = endpoint.check_status(stream).await?;
    if content_type(&stream).starts_with(STREAMED_CONTENT_TYPE) {
        if !stream.is_delimited() {
            return Err(Error::MissingLength { url: endpoint.url.clone() });
        }
        let mut reader = ChunkedReader::default();
        while let Some(bytes) = stream.next().await? {
            reader.push(&bytes);
            while let Some(message) = reader.pop()? {
                collector.push_frame(&message)?;
            }
        }
        reader.finish()?;
    } else if content_type(&stream).starts_with(SAMPLES_CONTENT_TYPE) {
        let response = stream.collect(RESPONSE_LIMIT).await?;
        let mut buffer = Vec::new();
        let message = snappy::decompress(&response.body, RESPONSE_LIMIT, &mut buffer)?;
        collector.push_response(message)?;
    } else {
        return Err(endpoint.content_type_error(&stream, CONTENT_TYPES));
    }
    Ok(())
}

fn request(endpoint: &Endpoint<'_>, slice: &Slice<'_>, response_types: &[ResponseType]) -> Request {
    let query = Query {
        start_timestamp_ms: slice.start_ms,
        end_timestamp_ms: slice.end_ms,
        matchers: slice.matchers.iter().map(LabelMatcher::from).collect(),
    };
    let accepted_response_types =
        response_types.iter().map(|response_type| i32::from(*response_type)).collect();
    let request = ReadRequest { queries: vec![query], accepted_response_types };
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static(SAMPLES_CONTENT_TYPE)),
        (CONTENT_ENCODING, HeaderValue::from_static("snappy")),
        (ACCEPT_ENCODING, HeaderValue::from_static("snappy")),
        (HeaderName::from_static("x-prometheus-remote-read-version"), HeaderValue::from_static("0.1.0")),
    ];
    Request {
        method: Method::POST,
        url: endpoint.url.clone(),
        headers: headers.into_iter().collect(),
        body: Bytes::from(snappy::compress(&request.encode_to_vec())),
        timeout: endpoint.timeout,
        limit: RESPONSE_LIMIT,
    }
}
