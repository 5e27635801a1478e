//! The request to a source, and the responses that are errors whatever the API.

use super::error::Error;
use crate::http::client::{self, BufferedResponse, Client, Request, ResponseStream};
use crate::http::{Url, encode_query};
use crate::prom::matcher::Matcher;
use crate::remote_write::response::parse_retry_after;
use crate::tenant::{self, Tenant};
use crate::time;
use bytes::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use hyper::{Method, StatusCode};
use serde::Deserialize;
use std::time::Duration;

/// Bytes of a response that is held as a whole, as received and decompressed. A slice above the limit is halved.
pub const RESPONSE_LIMIT: usize = 32 << 20;

/// One slice of time of the series that some matchers select.
pub struct Slice<'a> {
    /// The tenant of the series, if the requests are divided by tenant.
    pub tenant: Option<&'a Tenant>,
    /// Select the series.
    pub matchers: &'a [Matcher],
    /// First millisecond.
    pub start_ms: i64,
    /// Last millisecond.
    pub end_ms: i64,
}

impl Slice<'_> {
    /// Length in milliseconds.
    pub fn length_ms(&self) -> i64 {
        self.end_ms - self.start_ms + 1
    }

    /// All matchers as a selector in PromQL's syntax.
    pub fn promql(&self) -> String {
        let texts: Vec<String> = self.matchers.iter().map(ToString::to_string).collect();
        format!("{{{}}}", texts.join(","))
    }
}

/// A time as PromQL's API takes it: seconds since the epoch.
pub fn format_time(timestamp_ms: i64) -> String {
    let sign = if timestamp_ms < 0 { "-" } else { "" };
    let timestamp_ms = timestamp_ms.unsigned_abs();
    format!("{sign}{}.{:03}", timestamp_ms / 1000, timestamp_ms % 1000)
}

/// The request to a source.
pub struct Endpoint<'a> {
    /// The client of its configuration.
    pub client: &'a Client,
    /// URL of its configuration.
    pub url: &'a Url,
    /// Longest duration of the request.
    pub timeout: Duration,
    /// The tenant that the request names.
    pub tenant: Option<(&'a tenant::Config, &'a Tenant)>,
}

impl Endpoint<'_> {
    /// Posts a form to a path below the URL. A form has no limit of its length, as a URL has.
    pub async fn post_form(&self, path: &str, form: &[(&str, String)]) -> Result<ResponseStream, Error> {
        let url = self.url.with_path_and_query(path, &[])?;
        let content_type = HeaderValue::from_static("application/x-www-form-urlencoded");
        let headers = [(CONTENT_TYPE, content_type)].into_iter().collect();
        let body = Bytes::from(encode_query(form.iter().map(|(name, value)| (*name, value.as_str()))));
        Ok(self
            .send(Request {
                method: Method::POST,
                url,
                headers,
                body,
                timeout: self.timeout,
                limit: RESPONSE_LIMIT,
            })
            .await?)
    }

    /// Sends a request.
    pub async fn send(&self, mut request: Request) -> Result<ResponseStream, client::Error> {
        if let Some((tenants, tenant)) = self.tenant {
            tenants.set_header(tenant, &mut request.headers);
        }
        self.client.open(request).await
    }

    /// The response, if it is a success.
    pub async fn check_status(&self, stream: ResponseStream) -> Result<ResponseStream, Error> {
        if stream.status.is_success() {
            return Ok(stream);
        }
        let response = stream.collect(RESPONSE_LIMIT).await?;
        Err(Error::UnexpectedStatus {
            url: self.url.clone(),
            status: response.status,
            reason: reason(&response),
            retry_after: retry_after(response.status, &response.headers),
        })
    }

    /// The error for a response of another content type.
    pub fn content_type_error(&self, stream: &ResponseStream, expected: &'static str) -> Error {
        let content_type = content_type(stream).to_string();
        Error::ContentType { url: self.url.clone(), content_type, expected }
    }
}

/// The content type of a response; empty without one.
pub fn content_type(stream: &ResponseStream) -> &str {
    stream.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// The error of a JSON answer of PromQL's API.
#[derive(Deserialize)]
struct ApiError {
    error: String,
}

/// The server's description of an error, on one line.
fn reason(response: &BufferedResponse) -> String {
    match serde_json::from_slice::<ApiError>(&response.body) {
        Ok(ApiError { error }) => {
            error.lines().next().unwrap_or_default().chars().take(512).collect::<String>().trim().to_string()
        }
        Err(_) => response.reason(),
    }
}

/// The pause that an overloaded server asks for.
fn retry_after(status: StatusCode, headers: &HeaderMap) -> Option<Duration> {
    let is_overloaded = matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
    let text = headers.get(RETRY_AFTER).filter(|_| is_overloaded)?.to_str().ok()?;
    parse_retry_after(text, time::now_ms())
}
