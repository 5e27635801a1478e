//! Sends HTTP requests over pooled connections, without credentials and redirects, so that both the client and its OAuth2
//! token cache can use it.

use super::config::ProxyConfig;
use super::connector::{Connector, ProxyResolver};
use super::secret::ReadFileError;
use super::tls::{self, TlsConfig, TlsMaterial};
use super::url::{InvalidUrl, Url};
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{
    CONTENT_LENGTH, HeaderMap, HeaderValue, PROXY_AUTHORIZATION, TRANSFER_ENCODING, USER_AGENT,
};
use hyper::{Method, StatusCode};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};
use tracing::warn;

/// A response of which the head has arrived.
pub type IncomingResponse = hyper::Response<Incoming>;

/// The `User-Agent` of every request.
pub const AGENT: &str = concat!("promforest/", env!("CARGO_PKG_VERSION"));
/// Bytes read of the body of an unsuccessful response, which is shown in errors.
const ERROR_BODY_LIMIT: usize = 64 << 10;
/// Redirects that the client follows; the limit of Go's client.
pub const MAX_REDIRECTS: usize = 10;

/// A failed request.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The connection cannot be opened, or broke.
    #[error("request to {url} failed")]
    Request {
        /// The URL.
        url: Url,
        /// The cause.
        source: hyper_util::client::legacy::Error,
    },
    /// The TLS connection failed.
    #[error("request to {url} failed: {}", tls::advice(source))]
    Encryption {
        /// The URL.
        url: Url,
        /// The cause.
        source: rustls::Error,
    },
    /// The certificates or keys are invalid.
    #[error("tls_config")]
    Tls(#[from] tls::Error),
    /// A file of the configuration cannot be read.
    #[error(transparent)]
    File(#[from] ReadFileError),
    /// A secret is not a valid header value.
    #[error("{0} contains a character that a header cannot have")]
    Header(&'static str),
    /// The endpoint returned no OAuth2 token.
    #[error("no token from {url}: {reason}")]
    Token {
        /// The token endpoint.
        url: Url,
        /// The fault of the response.
        reason: String,
    },
    /// A redirect that would change the method to GET.
    #[error("{url} answered {status}: {method} requests are not redirected to {location:?}")]
    RedirectRefused {
        /// The URL.
        url: Url,
        /// The request's method.
        method: Method,
        /// The status code.
        status: StatusCode,
        /// The `Location` header.
        location: String,
    },
    /// A redirect without a valid URL.
    #[error("{url} redirects to an invalid URL")]
    InvalidLocation {
        /// The URL.
        url: Url,
        /// The fault of the `Location` header.
        source: InvalidUrl,
    },
    /// More redirects than allowed.
    #[error("{url} redirects more than {MAX_REDIRECTS} times")]
    TooManyRedirects {
        /// The first URL.
        url: Url,
    },
    /// The body is larger than the limit of the request.
    #[error("the response of {url} is larger than the limit of {limit} bytes")]
    TooLarge {
        /// The URL.
        url: Url,
        /// The limit, in bytes.
        limit: usize,
    },
    /// The body broke off.
    #[error("the response of {url} cannot be read")]
    Body {
        /// The URL.
        url: Url,
        /// The cause.
        source: hyper::Error,
    },
    /// The response did not arrive within the timeout of the request.
    #[error("{url} did not answer within {timeout:?}")]
    Timeout {
        /// The URL.
        url: Url,
        /// The timeout.
        timeout: Duration,
    },
}

/// A request.
#[derive(Clone, Debug)]
pub struct Request {
    /// The method.
    pub method: Method,
    /// The URL.
    pub url: Url,
    /// Headers beside those of the client's configuration.
    pub headers: HeaderMap,
    /// The body; empty for none.
    pub body: Bytes,
    /// Time until the end of the response, redirects and token requests included.
    pub timeout: Duration,
    /// Limit of the response body, in bytes. A larger body is an error; that of an unsuccessful response is cut.
    pub limit: usize,
}

/// A response with its body. The body of an unsuccessful response is cut at the request's limit or at 64 KiB.
#[derive(Debug)]
pub struct BufferedResponse {
    /// The status code.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl BufferedResponse {
    /// The first line of the body, shortened: the server's description of an error.
    pub fn reason(&self) -> String {
        let text = String::from_utf8_lossy(&self.body[..self.body.len().min(512)]).into_owned();
        text.lines().next().unwrap_or_default().trim().to_string()
    }
}

/// A response whose body is still arriving.
#[derive(Debug)]
pub struct ResponseStream {
    /// The status code.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    body: Incoming,
    url: Url,
    /// End of the request's timeout.
    deadline: Instant,
    timeout: Duration,
}

impl ResponseStream {
    /// Waits for the response to a request to `url`, together with the URL that sent it. The timeout starts now and also
    /// bounds the body.
    pub(super) async fn open(
        url: Url,
        timeout: Duration,
        response: impl Future<Output = Result<(Url, IncomingResponse), Error>>,
    ) -> Result<Self, Error> {
        let deadline = Instant::now() + timeout;
        let Ok(result) = timeout_at(deadline, response).await else {
            return Err(Error::Timeout { url, timeout });
        };
        let (url, response) = result?;
        let (head, body) = response.into_parts();
        Ok(Self { status: head.status, headers: head.headers, body, url, deadline, timeout })
    }

    /// The next bytes of the body; none at its end.
    ///
    /// # Errors
    /// [`Error::Body`] if the body breaks off before the end that its headers define, [`Error::Timeout`] after the
    /// timeout of the request.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            let frame = match timeout_at(self.deadline, self.body.frame()).await {
                Ok(frame) => frame,
                Err(_) => return Err(Error::Timeout { url: self.url.clone(), timeout: self.timeout }),
            };
            let Some(frame) = frame else { return Ok(None) };
            let frame = frame.map_err(|source| Error::Body { url: self.url.clone(), source })?;
            // Other frames are trailers.
            if let Ok(data) = frame.into_data() {
                return Ok(Some(data));
            }
        }
    }

    /// True if the headers define the end of the body. Otherwise a truncated body looks complete.
    pub fn is_delimited(&self) -> bool {
        self.headers.contains_key(TRANSFER_ENCODING) || self.headers.contains_key(CONTENT_LENGTH)
    }

    /// Reads the body; of an unsuccessful response its beginning.
    ///
    /// # Errors
    /// As [`next`](Self::next), and [`Error::TooLarge`] for a body above `limit`.
    pub async fn collect(mut self, limit: usize) -> Result<BufferedResponse, Error> {
        if !self.status.is_success() {
            return self.collect_beginning(limit.min(ERROR_BODY_LIMIT)).await;
        }
        let mut body = BytesMut::new();
        while let Some(data) = self.next().await? {
            if data.len() > limit - body.len() {
                return Err(Error::TooLarge { url: self.url, limit });
            }
            body.extend_from_slice(&data);
        }
        Ok(self.with_body(body))
    }

    /// Reads the first `limit` bytes of the body, and ignores the rest.
    ///
    /// # Errors
    /// As [`next`](Self::next).
    pub async fn collect_beginning(mut self, limit: usize) -> Result<BufferedResponse, Error> {
        let mut body = BytesMut::new();
        while body.len() < limit {
            let Some(data) = self.next().await? else { break };
            body.extend_from_slice(&data[..data.len().min(limit - body.len())]);
        }
        Ok(self.with_body(body))
    }

    fn with_body(self, body: BytesMut) -> BufferedResponse {
        BufferedResponse { status: self.status, headers: self.headers, body: body.freeze() }
    }
}

/// Sends requests over pooled, kept-alive connections.
pub struct Transport {
    tls: TlsConfig,
    proxy_resolver: Arc<ProxyResolver>,
    connections: Mutex<ConnectionPool>,
}

/// The pool, and the contents of the certificate files that its connections use.
struct ConnectionPool {
    material: TlsMaterial,
    pool: Pool<Connector, Full<Bytes>>,
}

impl Transport {
    /// Reads the certificates and, if configured, the proxy's environment variables.
    ///
    /// # Errors
    /// [`Error::Tls`] and [`Error::File`] if the certificates are invalid.
    pub fn new(tls: &TlsConfig, proxy: &ProxyConfig) -> Result<Self, Error> {
        if tls.insecure_skip_verify {
            warn!(component = "http", "insecure_skip_verify is set: server certificates are not verified");
        }
        let proxy_resolver = Arc::new(ProxyResolver::new(proxy));
        let connections = ConnectionPool::new(tls, &proxy_resolver, TlsMaterial::read(tls)?)?;
        Ok(Self { tls: tls.clone(), proxy_resolver, connections: Mutex::new(connections) })
    }

    /// Sends a request with further headers, which replace those of the request, and waits for the head of the
    /// response. Applies neither the timeout nor the limit of the request.
    ///
    /// # Errors
    /// [`Error::Request`] and [`Error::Encryption`]; [`Error::Tls`] and [`Error::File`] after a change of the
    /// certificates.
    pub async fn send(&self, request: &Request, headers: &HeaderMap) -> Result<IncomingResponse, Error> {
        let url = &request.url;
        let mut message = hyper::Request::new(Full::new(request.body.clone()));
        *message.method_mut() = request.method.clone();
        *message.uri_mut() = url.as_uri().clone();
        *message.headers_mut() = request.headers.clone();
        // `extend` would keep the values of the request beside the further ones.
        for (name, value) in headers {
            message.headers_mut().insert(name, value.clone());
        }
        message.headers_mut().insert(USER_AGENT, HeaderValue::from_static(AGENT));
        if let Some(value) = self.proxy_resolver.authorization(url.as_uri()) {
            message.headers_mut().insert(PROXY_AUTHORIZATION, value);
        }
        let to_error = |source: hyper_util::client::legacy::Error| match tls::find_rustls_error(&source) {
            Some(cause) => Error::Encryption { url: url.clone(), source: cause.clone() },
            None => Error::Request { url: url.clone(), source },
        };
        self.pool()?.request(message).await.map_err(to_error)
    }

    /// The pool; a new one after a change of the certificate files.
    fn pool(&self) -> Result<Pool<Connector, Full<Bytes>>, Error> {
        // The files have a few kilobytes and are cached by the system: reading them is cheaper than watching them.
        let material = TlsMaterial::read(&self.tls)?;
        let mut connections = self.connections.lock().expect("no thread panics while it holds the lock");
        if connections.material != material {
            *connections = ConnectionPool::new(&self.tls, &self.proxy_resolver, material)?;
        }
        Ok(connections.pool.clone())
    }
}

impl ConnectionPool {
    fn new(
        tls: &TlsConfig,
        proxy_resolver: &Arc<ProxyResolver>,
        material: TlsMaterial,
    ) -> Result<Self, Error> {
        let client_config = tls::build_client(tls, &material)?;
        let connector = Connector::new(client_config, tls.server_name.clone(), proxy_resolver.clone());
        let pool = Pool::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(connector);
        Ok(Self { material, pool })
    }
}
