//! One HTTP client for remote write and remote read.

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

/// Sent with every request.
pub const AGENT: &str = concat!("promforest/", env!("CARGO_PKG_VERSION"));

/// An `http://` address with a host. Clones share it.
#[derive(Clone, Debug, PartialEq)]
pub struct Url(Arc<Uri>);

/// A text that is no address for the client.
#[derive(Debug, thiserror::Error)]
pub enum InvalidUrl {
    /// Not an address at all.
    #[error("{text:?} is not a URL")]
    Syntax {
        /// The text.
        text: String,
        /// The parser's reason.
        source: hyper::http::uri::InvalidUri,
    },
    /// Not `http`, or without a host.
    #[error("{0:?} is not an http:// URL with a host")]
    Unsupported(String),
}

impl FromStr for Url {
    type Err = InvalidUrl;

    fn from_str(text: &str) -> Result<Self, InvalidUrl> {
        let uri: Uri = text.parse().map_err(|source| InvalidUrl::Syntax { text: text.into(), source })?;
        if uri.scheme_str() == Some("http") && uri.host().is_some_and(|host| !host.is_empty()) {
            Ok(Self(Arc::new(uri)))
        } else {
            Err(InvalidUrl::Unsupported(text.into()))
        }
    }
}

impl Url {
    /// Host and port, as in Prometheus' `instance` label.
    pub fn authority(&self) -> String {
        self.0.authority().map(ToString::to_string).unwrap_or_default()
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection, or it broke.
    #[error("request to {url} failed")]
    Request {
        /// The address.
        url: Url,
        /// Why.
        source: hyper_util::client::legacy::Error,
    },
    /// The answer broke off, or is larger than allowed.
    #[error("the answer of {url} cannot be read")]
    Body {
        /// The address.
        url: Url,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It took too long.
    #[error("{url} did not answer within {timeout:?}")]
    Timeout {
        /// The address.
        url: Url,
        /// The limit.
        timeout: Duration,
    },
}

/// An answer, its body read to the end or to the limit.
#[derive(Debug)]
pub struct Answer {
    /// Status code.
    pub status: StatusCode,
    /// Headers.
    pub headers: HeaderMap,
    /// Body.
    pub body: Bytes,
}

impl Answer {
    /// The first line of the body, shortened: what the other side says is wrong.
    pub fn reason(&self) -> String {
        let text = String::from_utf8_lossy(&self.body[..self.body.len().min(512)]).into_owned();
        text.lines().next().unwrap_or_default().trim().to_string()
    }
}

/// A client with a pool of kept-alive connections. Clones share it.
#[derive(Clone)]
pub struct Client(Pool<HttpConnector, Full<Bytes>>);

impl Default for Client {
    fn default() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(Duration::from_secs(10)));
        connector.set_keepalive(Some(Duration::from_secs(60)));
        Self(Pool::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(connector))
    }
}

impl Client {
    /// Posts a snappy-compressed protobuf message, the body of both remote write and remote read.
    ///
    /// # Errors
    /// [`Error`] without a whole answer in `timeout`, or with one of more than `limit` bytes.
    pub async fn post(
        &self,
        url: &Url,
        headers: &[(HeaderName, HeaderValue)],
        body: Bytes,
        timeout: Duration,
        limit: usize,
    ) -> Result<Answer, Error> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = Uri::clone(&url.0);
        let own = [
            (CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf")),
            (CONTENT_ENCODING, HeaderValue::from_static("snappy")),
        ];
        request.headers_mut().extend(own.into_iter().chain(headers.iter().cloned()));
        self.send(url, request, timeout, limit).await
    }

    /// Gets a page.
    ///
    /// # Errors
    /// As [`post`](Self::post).
    pub async fn get(&self, url: &Url, timeout: Duration, limit: usize) -> Result<Answer, Error> {
        let mut request = Request::new(Full::default());
        *request.uri_mut() = Uri::clone(&url.0);
        self.send(url, request, timeout, limit).await
    }

    async fn send(
        &self,
        url: &Url,
        mut request: Request<Full<Bytes>>,
        timeout: Duration,
        limit: usize,
    ) -> Result<Answer, Error> {
        request.headers_mut().insert(USER_AGENT, HeaderValue::from_static(AGENT));
        let exchange = async {
            let response = self
                .0
                .request(request)
                .await
                .map_err(|source| Error::Request { url: url.clone(), source })?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, limit)
                .collect()
                .await
                .map_err(|source| Error::Body { url: url.clone(), source })?
                .to_bytes();
            Ok(Answer { status: head.status, headers: head.headers, body })
        };
        match tokio::time::timeout(timeout, exchange).await {
            Ok(answer) => answer,
            Err(_) => Err(Error::Timeout { url: url.clone(), timeout }),
        }
    }
}
