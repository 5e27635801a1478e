//! The HTTP client of remote write, remote read and the registry.
//!
//! It behaves as Prometheus' client with the same configuration, except that a POST answered 301, 302 or 303 fails: as a
//! GET, it would look like a success and write nothing.

use super::config::{Auth, ClientConfig};
use super::oauth2::TokenCache;
use super::transport::{IncomingResponse, MAX_REDIRECTS, Transport};
use super::url::{Url, hide_values_after_mark};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use hyper::header::{
    AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, COOKIE, HeaderMap, HeaderName, HeaderValue, LOCATION,
};
use hyper::{Method, StatusCode};
use std::sync::Arc;
use std::time::Duration;

pub use super::transport::{AGENT, BufferedResponse, Error, Request, ResponseStream};

/// A client with a pool of kept-alive connections. Clones share it.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    config: ClientConfig,
    token_cache: Option<TokenCache>,
    transport: Transport,
}

impl Default for Client {
    /// A client without credentials that trusts the platform's authorities.
    fn default() -> Self {
        Self::new(&ClientConfig::default()).expect("the default configuration names no files")
    }
}

impl Client {
    /// A client with this configuration.
    ///
    /// # Errors
    /// [`Error::Tls`] and [`Error::File`] if the certificates are invalid.
    pub fn new(config: &ClientConfig) -> Result<Self, Error> {
        let token_cache = match &config.auth {
            Auth::OAuth2(oauth2) => Some(TokenCache::new(oauth2)?),
            _ => None,
        };
        let transport = Transport::new(&config.tls, &config.proxy)?;
        Ok(Self(Arc::new(Inner { config: config.clone(), token_cache, transport })))
    }

    /// Posts a snappy-compressed protobuf message, the body of remote write and remote read requests.
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
    ) -> Result<BufferedResponse, Error> {
        let protocol_headers = [
            (CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf")),
            (CONTENT_ENCODING, HeaderValue::from_static("snappy")),
        ];
        let headers = protocol_headers.into_iter().chain(headers.iter().cloned()).collect();
        self.request(Request { method: Method::POST, url: url.clone(), headers, body, timeout, limit }).await
    }

    /// Sends a GET request.
    ///
    /// # Errors
    /// As [`request`](Self::request).
    pub async fn get(&self, url: &Url, timeout: Duration, limit: usize) -> Result<BufferedResponse, Error> {
        let (url, headers, body) = (url.clone(), HeaderMap::new(), Bytes::new());
        self.request(Request { method: Method::GET, url, headers, body, timeout, limit }).await
    }

    /// Sends a request with the credentials and headers of the configuration, and follows redirects.
    ///
    /// # Errors
    /// [`Error`] without a complete response within the timeout and limit of the request. An unsuccessful status is
    /// not an error.
    pub async fn request(&self, request: Request) -> Result<BufferedResponse, Error> {
        let limit = request.limit;
        self.open(request).await?.collect(limit).await
    }

    /// As [`request`](Self::request), but the caller reads the body while it arrives. The limit of the request does not
    /// apply.
    ///
    /// # Errors
    /// [`Error`] without the head of a response within the timeout of the request.
    pub async fn open(&self, request: Request) -> Result<ResponseStream, Error> {
        let (url, timeout) = (request.url.clone(), request.timeout);
        ResponseStream::open(url, timeout, self.follow_redirects(request)).await
    }

    /// The response, with the URL that sent it.
    async fn follow_redirects(&self, mut request: Request) -> Result<(Url, IncomingResponse), Error> {
        let first = request.url.clone();
        let mut may_send_credentials = true;
        for _ in 0..=MAX_REDIRECTS {
            let response = self.send_authorized(&request, may_send_credentials).await?;
            let Some(next) = self.redirect_target(&request, &response)? else {
                return Ok((request.url, response));
            };
            // After a redirect to another host, no later one gets the credentials: that host chose the URL.
            may_send_credentials &= request.url.may_send_credentials_to(&next);
            if !may_send_credentials {
                request.headers.remove(AUTHORIZATION);
                request.headers.remove(COOKIE);
            }
            request.url = next;
        }
        Err(Error::TooManyRedirects { url: first })
    }

    /// The URL of a redirect to follow, if any.
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
            let (method, location) = (request.method.clone(), hide_values_after_mark(&location));
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
            return self.0.transport.send(request, &HeaderMap::new()).await;
        }
        let mut headers = self.0.config.headers.clone();
        let Some(token_cache) = &self.0.token_cache else {
            headers.extend(self.authorization()?.map(|value| (AUTHORIZATION, value)));
            return self.0.transport.send(request, &headers).await;
        };
        let auth = token_cache.auth_header(None).await?;
        headers.insert(AUTHORIZATION, auth.header.clone());
        let response = self.0.transport.send(request, &headers).await?;
        if auth.is_fresh || response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        // The server may have revoked the token before its expiry.
        headers.insert(AUTHORIZATION, token_cache.auth_header(Some(&auth.header)).await?.header);
        self.0.transport.send(request, &headers).await
    }

    /// The configured `Authorization` header.
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
}
