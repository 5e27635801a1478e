//! One HTTP client for all that goes out: remote write, remote read, an exporter's page.
//!
//! It does what Prometheus' client does with the same configuration, but for one thing: a POST that
//! is answered 301, 302 or 303 does not become a GET, which would look like a success and write
//! nothing. It fails, and says where the address has gone.

use super::config::{Auth, ClientConfig, ReadFileError};
use super::oauth2::TokenCache;
use super::tls::{self, TlsMaterial};
use super::transport::{Connector, ProxyResolver};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{
    AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, HeaderMap, HeaderName,
    HeaderValue, LOCATION, PROXY_AUTHORIZATION, TRANSFER_ENCODING, USER_AGENT,
};
use hyper::{Method, StatusCode, Uri};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};
use tracing::warn;

type IncomingResponse = hyper::Response<Incoming>;

/// Sent with every request.
pub const AGENT: &str = concat!("promforest/", env!("CARGO_PKG_VERSION"));
/// Of the body of an answer that says no, this much is read at most: it is for a person.
const ERROR_BODY_LIMIT: usize = 64 << 10;
/// Redirects that are followed; as many as Go's client follows.
const MAX_REDIRECTS: usize = 10;

/// An `http://` or `https://` address with a host. Clones share it.
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
    /// Neither `http` nor `https`, or without a host.
    #[error("{0:?} is not an http:// or https:// URL with a host")]
    Unsupported(String),
    /// It would be shown wherever the address is.
    #[error("credentials in a URL are not supported: use basic_auth")]
    Credentials,
}

impl FromStr for Url {
    type Err = InvalidUrl;

    fn from_str(text: &str) -> Result<Self, InvalidUrl> {
        let uri: Uri = text.parse().map_err(|source| InvalidUrl::Syntax { text: text.into(), source })?;
        if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err(InvalidUrl::Credentials);
        }
        let is_supported = matches!(uri.scheme_str(), Some("http" | "https"));
        if is_supported && uri.host().is_some_and(|host| !host.is_empty()) {
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

    /// Are both in one folder of one server, as Prometheus' `/api/v1/write` and `/api/v1/read` are?
    pub fn is_sibling(&self, other: &Self) -> bool {
        let folder = |url: &Self| url.0.path().rsplit_once('/').map(|(folder, _)| folder.to_string());
        self.0.scheme() == other.0.scheme()
            && self.0.authority() == other.0.authority()
            && folder(self) == folder(other)
    }

    fn is_encrypted(&self) -> bool {
        self.0.scheme_str() == Some("https")
    }

    /// May what is shown here be shown there? On the same host, as Go's client does it, whatever the
    /// port; but nothing that was encrypted goes on in the open.
    fn may_send_credentials_to(&self, next: &Self) -> bool {
        self.0.host() == next.0.host() && (next.is_encrypted() || !self.is_encrypted())
    }

    /// The address that a `Location` means here (RFC 3986, section 4.2).
    fn join(&self, location: &str) -> Result<Self, InvalidUrl> {
        let scheme = self.0.scheme_str().unwrap_or_default();
        let authority = self.authority();
        let is_scheme = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric());
        if location.split_once("://").is_some_and(|(scheme, _)| is_scheme(scheme)) {
            location.parse()
        } else if location.starts_with("//") {
            format!("{scheme}:{location}").parse()
        } else if location.starts_with('/') {
            format!("{scheme}://{authority}{location}").parse()
        } else {
            let folder = self.0.path().rsplit_once('/').map_or("", |(folder, _)| folder);
            format!("{scheme}://{authority}{folder}/{location}").parse()
        }
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
    /// No encrypted connection.
    #[error("request to {url} failed: {}", tls::advice(source))]
    Encryption {
        /// The address.
        url: Url,
        /// Why.
        source: rustls::Error,
    },
    /// Certificates or keys are of no use.
    #[error("tls_config")]
    Tls(#[from] tls::Error),
    /// A file of the configuration is not there, or not any more.
    #[error(transparent)]
    File(#[from] ReadFileError),
    /// What a file holds cannot be sent.
    #[error("{0} contains a character that a header cannot have")]
    Header(&'static str),
    /// No OAuth2 token.
    #[error("no token from {url}: {reason}")]
    Token {
        /// Where it was asked for.
        url: Url,
        /// What is wrong with the answer.
        reason: String,
    },
    /// A redirect that cannot be followed with this method.
    #[error("{url} answered {status}: {method} requests are not redirected to {location:?}")]
    RedirectRefused {
        /// The address.
        url: Url,
        /// The request's method.
        method: Method,
        /// The status code.
        status: StatusCode,
        /// Where it is now.
        location: String,
    },
    /// A redirect to nowhere.
    #[error("{url} redirects to an invalid URL")]
    InvalidLocation {
        /// The address.
        url: Url,
        /// What is wrong with its `Location`.
        source: InvalidUrl,
    },
    /// Redirects without an end.
    #[error("{url} redirects more than {MAX_REDIRECTS} times")]
    TooManyRedirects {
        /// The address.
        url: Url,
    },
    /// The answer is larger than allowed.
    #[error("the response of {url} is larger than the limit of {limit} bytes")]
    TooLarge {
        /// The address.
        url: Url,
        /// The limit, in bytes.
        limit: usize,
    },
    /// The answer broke off.
    #[error("the response of {url} cannot be read")]
    Body {
        /// The address.
        url: Url,
        /// Why.
        source: hyper::Error,
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

/// An answer. Its body is whole, unless it says no: then what is above the limit, or above 64 KiB, is left out.
#[derive(Debug)]
pub struct Response {
    /// Status code.
    pub status: StatusCode,
    /// Headers.
    pub headers: HeaderMap,
    /// Body.
    pub body: Bytes,
}

impl Response {
    /// The first line of the body, shortened: what the other side says is wrong.
    pub fn reason(&self) -> String {
        let text = String::from_utf8_lossy(&self.body[..self.body.len().min(512)]).into_owned();
        text.lines().next().unwrap_or_default().trim().to_string()
    }
}

/// An answer whose body is still on its way.
#[derive(Debug)]
pub struct ResponseStream {
    /// Status code.
    pub status: StatusCode,
    /// Headers.
    pub headers: HeaderMap,
    body: Incoming,
    url: Url,
    /// When the time of the request is over.
    deadline: Instant,
    timeout: Duration,
}

impl ResponseStream {
    /// The next bytes of the body; none once it has ended as its headers say that it ends.
    ///
    /// # Errors
    /// [`Error::Body`] when it breaks off, [`Error::Timeout`] when the time of the request is over.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            let frame = match timeout_at(self.deadline, self.body.frame()).await {
                Ok(frame) => frame,
                Err(_) => return Err(Error::Timeout { url: self.url.clone(), timeout: self.timeout }),
            };
            let Some(frame) = frame else { return Ok(None) };
            let frame = frame.map_err(|source| Error::Body { url: self.url.clone(), source })?;
            // Anything else is a trailer.
            if let Ok(data) = frame.into_data() {
                return Ok(Some(data));
            }
        }
    }

    /// Do the headers say where the body ends? What has no such end can be cut off unseen.
    pub fn is_delimited(&self) -> bool {
        self.headers.contains_key(TRANSFER_ENCODING) || self.headers.contains_key(CONTENT_LENGTH)
    }

    /// The answer with its body; of one that says no, the beginning.
    ///
    /// # Errors
    /// As [`next`](Self::next), and [`Error::Body`] for a body above `limit`.
    pub async fn collect(mut self, limit: usize) -> Result<Response, Error> {
        let is_success = self.status.is_success();
        let limit = if is_success { limit } else { limit.min(ERROR_BODY_LIMIT) };
        let mut body = BytesMut::new();
        while is_success || body.len() < limit {
            let Some(data) = self.next().await? else { break };
            let room = limit - body.len();
            if is_success && data.len() > room {
                return Err(Error::TooLarge { url: self.url, limit });
            }
            body.extend_from_slice(&data[..data.len().min(room)]);
        }
        Ok(Response { status: self.status, headers: self.headers, body: body.freeze() })
    }
}

/// A request.
#[derive(Clone, Debug)]
pub struct Request {
    /// Its method.
    pub method: Method,
    /// Where it goes.
    pub url: Url,
    /// Headers beside those of the client's configuration.
    pub headers: HeaderMap,
    /// Body; empty for none.
    pub body: Bytes,
    /// How long it may take until the whole answer is there, redirects and tokens included.
    pub timeout: Duration,
    /// Most bytes of the answer's body; a longer one is an error, or cut where the answer says no.
    pub limit: usize,
}

/// A client with a pool of kept-alive connections. Clones share it.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    config: ClientConfig,
    proxy_resolver: Arc<ProxyResolver>,
    token_cache: Option<TokenCache>,
    connections: Mutex<Connections>,
}

/// The pool, and the certificates that its connections are made with.
struct Connections {
    material: TlsMaterial,
    pool: Pool<Connector, Full<Bytes>>,
}

impl Default for Client {
    /// Without credentials, trusting whom this machine trusts.
    fn default() -> Self {
        Self::new(&ClientConfig::default()).expect("the default configuration names no files")
    }
}

impl Client {
    /// A client that does what its configuration says.
    ///
    /// # Errors
    /// [`Error::Tls`] and [`Error::File`] when the certificates are of no use.
    pub fn new(config: &ClientConfig) -> Result<Self, Error> {
        if config.tls.insecure_skip_verify {
            warn!(component = "http", "insecure_skip_verify is set: server certificates are not verified");
        }
        let token_cache = match &config.auth {
            Auth::OAuth2(oauth2) => Some(TokenCache::new(oauth2)?),
            _ => None,
        };
        let proxy_resolver = Arc::new(ProxyResolver::new(&config.proxy));
        let connections = Connections::new(config, &proxy_resolver, TlsMaterial::read(&config.tls)?)?;
        let connections = Mutex::new(connections);
        Ok(Self(Arc::new(Inner { config: config.clone(), proxy_resolver, token_cache, connections })))
    }

    /// Posts a snappy-compressed protobuf message, the body of both remote write and remote read.
    ///
    /// # Errors
    /// As [`request`](Self::request).
    pub async fn post(
        &self,
        url: &Url,
        headers: &[(HeaderName, HeaderValue)],
        body: Bytes,
        timeout: Duration,
        limit: usize,
    ) -> Result<Response, Error> {
        let protocol_headers = [
            (CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf")),
            (CONTENT_ENCODING, HeaderValue::from_static("snappy")),
        ];
        let headers = protocol_headers.into_iter().chain(headers.iter().cloned()).collect();
        self.request(Request { method: Method::POST, url: url.clone(), headers, body, timeout, limit }).await
    }

    /// Gets a page.
    ///
    /// # Errors
    /// As [`request`](Self::request).
    pub async fn get(&self, url: &Url, timeout: Duration, limit: usize) -> Result<Response, Error> {
        let (url, headers, body) = (url.clone(), HeaderMap::new(), Bytes::new());
        self.request(Request { method: Method::GET, url, headers, body, timeout, limit }).await
    }

    /// Sends a request, with the credentials and headers of the configuration, and follows redirects.
    ///
    /// # Errors
    /// [`Error`] without a whole answer in the request's time and limit. An answer that says no is
    /// an answer.
    pub async fn request(&self, request: Request) -> Result<Response, Error> {
        let limit = request.limit;
        self.open(request).await?.collect(limit).await
    }

    /// As [`request`](Self::request), but the body of the answer is left to be read while it comes; the
    /// request's limit is not looked at.
    ///
    /// # Errors
    /// [`Error`] without the head of an answer in the request's time.
    pub async fn open(&self, request: Request) -> Result<ResponseStream, Error> {
        let (url, timeout) = (request.url.clone(), request.timeout);
        let deadline = Instant::now() + timeout;
        match timeout_at(deadline, self.follow_redirects(request)).await {
            Ok(result) => {
                let (url, response) = result?;
                let (head, body) = response.into_parts();
                Ok(ResponseStream {
                    status: head.status,
                    headers: head.headers,
                    body,
                    url,
                    deadline,
                    timeout,
                })
            }
            Err(_) => Err(Error::Timeout { url, timeout }),
        }
    }

    /// The answer, and whose it is.
    async fn follow_redirects(&self, mut request: Request) -> Result<(Url, IncomingResponse), Error> {
        let first = request.url.clone();
        let mut may_send_credentials = true;
        for _ in 0..=MAX_REDIRECTS {
            let response = self.send_authorized(&request, may_send_credentials).await?;
            let Some(next) = self.redirect_target(&request, &response)? else {
                return Ok((request.url, response));
            };
            // Once lost, trust does not come back: the way may lead through a stranger.
            may_send_credentials &= request.url.may_send_credentials_to(&next);
            if !may_send_credentials {
                request.headers.remove(AUTHORIZATION);
                request.headers.remove(COOKIE);
            }
            request.url = next;
        }
        Err(Error::TooManyRedirects { url: first })
    }

    /// Where an answer leads, if it does.
    fn redirect_target(&self, request: &Request, response: &IncomingResponse) -> Result<Option<Url>, Error> {
        if !self.0.config.follow_redirects
            || !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308)
        {
            return Ok(None);
        }
        let Some(location) = response.headers().get(LOCATION) else { return Ok(None) };
        let location = String::from_utf8_lossy(location.as_bytes());
        let url = request.url.clone();
        if request.method != Method::GET && !matches!(response.status().as_u16(), 307 | 308) {
            let (method, location) = (request.method.clone(), location.into_owned());
            return Err(Error::RedirectRefused { url, method, status: response.status(), location });
        }
        url.join(&location).map(Some).map_err(|source| Error::InvalidLocation { url, source })
    }

    async fn send_authorized(
        &self,
        request: &Request,
        may_send_credentials: bool,
    ) -> Result<IncomingResponse, Error> {
        if !may_send_credentials {
            return self.send(request, HeaderMap::new()).await;
        }
        let mut headers = self.0.config.headers.clone();
        let Some(token_cache) = &self.0.token_cache else {
            headers.extend(self.authorization()?.map(|value| (AUTHORIZATION, value)));
            return self.send(request, headers).await;
        };
        let auth = token_cache.auth_header(None).await?;
        headers.insert(AUTHORIZATION, auth.header.clone());
        let response = self.send(request, headers.clone()).await?;
        if auth.is_fresh || response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        // A token can be withdrawn before its end.
        headers.insert(AUTHORIZATION, token_cache.auth_header(Some(&auth.header)).await?.header);
        self.send(request, headers).await
    }

    /// The `Authorization` header that is configured.
    fn authorization(&self) -> Result<Option<HeaderValue>, Error> {
        let (text, key) = match &self.0.config.auth {
            Auth::None | Auth::OAuth2(_) => return Ok(None),
            Auth::Basic { username, password } => {
                let pair = format!("{}:{}", username.read()?, password.read()?);
                (format!("Basic {}", BASE64_STANDARD.encode(pair)), "basic_auth")
            }
            Auth::Token { scheme, credentials } => {
                (format!("{scheme} {}", credentials.read()?), "authorization")
            }
        };
        let mut value = HeaderValue::try_from(text).map_err(|_| Error::Header(key))?;
        value.set_sensitive(true);
        Ok(Some(value))
    }

    async fn send(&self, request: &Request, headers: HeaderMap) -> Result<IncomingResponse, Error> {
        let url = &request.url;
        let mut message = hyper::Request::new(Full::new(request.body.clone()));
        *message.method_mut() = request.method.clone();
        *message.uri_mut() = Uri::clone(&url.0);
        *message.headers_mut() = request.headers.clone();
        // One by one: `extend` would keep a header of the request beside the configured one.
        for (name, value) in &headers {
            message.headers_mut().insert(name, value.clone());
        }
        message.headers_mut().insert(USER_AGENT, HeaderValue::from_static(AGENT));
        if let Some(value) = self.0.proxy_resolver.authorization(&url.0) {
            message.headers_mut().insert(PROXY_AUTHORIZATION, value);
        }
        let failed = |source: hyper_util::client::legacy::Error| match tls::find_rustls_error(&source) {
            Some(cause) => Error::Encryption { url: url.clone(), source: cause.clone() },
            None => Error::Request { url: url.clone(), source },
        };
        self.pool()?.request(message).await.map_err(failed)
    }

    /// The connections; new ones when the certificates have changed.
    fn pool(&self) -> Result<Pool<Connector, Full<Bytes>>, Error> {
        let Inner { config, proxy_resolver, connections, .. } = &*self.0;
        // Files of a few kilobytes, from memory: cheaper than to watch them.
        let material = TlsMaterial::read(&config.tls)?;
        let mut connections = connections.lock().expect("no thread panics while it holds the lock");
        if connections.material != material {
            *connections = Connections::new(config, proxy_resolver, material)?;
        }
        Ok(connections.pool.clone())
    }
}

impl Connections {
    fn new(
        config: &ClientConfig,
        proxy_resolver: &Arc<ProxyResolver>,
        material: TlsMaterial,
    ) -> Result<Self, Error> {
        let tls = tls::build(&config.tls, &material)?;
        let connector = Connector::new(tls, config.tls.server_name.clone(), proxy_resolver.clone());
        let pool = Pool::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(connector);
        Ok(Self { material, pool })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        text.parse().expect("a URL")
    }

    #[test]
    fn only_what_the_client_can_reach_is_a_url() {
        assert_eq!(url("https://host:8443/a?b=c").to_string(), "https://host:8443/a?b=c");
        let error = |text: &str| text.parse::<Url>().expect_err("no URL").to_string();
        assert_eq!(error("ftp://host/"), "\"ftp://host/\" is not an http:// or https:// URL with a host");
        assert!(!error("https://me:hunter2@host/").contains("hunter2"));
    }

    #[test]
    fn a_location_may_be_relative() {
        let here = url("https://host:8443/a/b?c=d");
        for (location, there) in [
            ("http://other/x", "http://other/x"),
            ("//other/x?y=1", "https://other/x?y=1"),
            ("/x", "https://host:8443/x"),
            ("/x?back=http://other/", "https://host:8443/x?back=http://other/"),
            ("x?y=2", "https://host:8443/a/x?y=2"),
        ] {
            assert_eq!(here.join(location).expect(location), url(there));
        }
        assert!(here.join("gopher://other/").is_err());
        assert!(here.join("/a b").is_err());
        assert_eq!(url("http://host").join("x").expect("a path"), url("http://host/x"));
    }

    #[test]
    fn credentials_are_sent_to_the_same_host_only_and_never_downgraded_to_http() {
        let may_send = |here: &str, there: &str| url(here).may_send_credentials_to(&url(there));
        assert!(may_send("http://host/a", "http://host/b"));
        assert!(may_send("http://host/", "https://host/"));
        assert!(may_send("https://host/", "https://host:8443/"));
        assert!(!may_send("https://host/", "http://host/"));
        assert!(!may_send("https://host/", "https://other/"));
        assert!(!may_send("https://host/", "https://host.other/"));
    }
}
