//! Fetches, caches and renews tokens of OAuth 2.0's client credentials grant (RFC 6749, section 4.4).

use super::config::OAuth2;
use super::transport::{BufferedResponse, Error, Request, ResponseStream, Transport};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::{Method, StatusCode};
use serde::Deserialize;
use serde_json::Value;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// Time before its expiry at which a token is replaced: the request that carries it takes some time.
const EXPIRY_MARGIN: Duration = Duration::from_secs(10);
/// Timeout of a token request.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Limit of a token response, in bytes; the limit of Go's client.
const RESPONSE_LIMIT: usize = 1 << 20;

/// The token of one client.
pub struct TokenCache {
    config: OAuth2,
    transport: Transport,
    current: Mutex<Option<Token>>,
}

struct Token {
    header: HeaderValue,
    expires_at: Option<Instant>,
}

/// An `Authorization` header.
pub struct AuthHeader {
    /// The header's value.
    pub header: HeaderValue,
    /// True if the token was fetched for this request.
    pub is_fresh: bool,
}

/// The response of section 5.1. Some endpoints write `expires_in` as a string.
#[derive(Deserialize)]
struct TokenResponse {
    access_token: String,
    token_type: Option<String>,
    expires_in: Option<Value>,
}

impl TokenCache {
    /// An empty cache.
    ///
    /// # Errors
    /// As [`Transport::new`].
    pub fn new(config: &OAuth2) -> Result<Self, Error> {
        let transport = Transport::new(&config.tls, &config.proxy)?;
        Ok(Self { config: config.clone(), transport, current: Mutex::default() })
    }

    /// The current token; a new one if there is none, or if the current one was `rejected`.
    ///
    /// # Errors
    /// [`Error`] if the endpoint returns no token.
    pub async fn auth_header(&self, rejected: Option<&HeaderValue>) -> Result<AuthHeader, Error> {
        // The lock is held while a token is fetched: concurrent requests wait for it.
        let mut current = self.current.lock().await;
        if let Some(token) = &*current
            && token.expires_at.is_none_or(|expires_at| Instant::now() < expires_at)
            && rejected != Some(&token.header)
        {
            return Ok(AuthHeader { header: token.header.clone(), is_fresh: false });
        }
        let token = self.fetch().await?;
        let header = token.header.clone();
        *current = Some(token);
        Ok(AuthHeader { header, is_fresh: true })
    }

    async fn fetch(&self) -> Result<Token, Error> {
        let secret = self.config.client_secret.read()?;
        let (id, secret) = (encode(&self.config.client_id), encode(&secret));
        let mut form = "grant_type=client_credentials".to_string();
        if !self.config.scopes.is_empty() {
            form += &format!("&scope={}", encode(&self.config.scopes.join(" ")));
        }
        for (name, value) in &self.config.endpoint_params {
            form += &format!("&{}={}", encode(name), encode(value.expose()));
        }
        let basic = format!("Basic {}", BASE64_STANDARD.encode(format!("{id}:{secret}")));
        let mut response = self.request_token(Some(basic), form.clone()).await?;
        // Section 2.3.1: endpoints must support the header, but some require the form.
        if matches!(response.status, StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED) {
            response =
                self.request_token(None, format!("{form}&client_id={id}&client_secret={secret}")).await?;
        }
        let url = &self.config.token_url;
        if !response.status.is_success() {
            let reason = format!("{}: {}", response.status, response.reason());
            return Err(Error::Token { url: url.clone(), reason });
        }
        // The parser's message may contain a part of the token.
        let no_token = || Error::Token { url: url.clone(), reason: "the response has no token".into() };
        let token: TokenResponse = serde_json::from_slice(&response.body).map_err(|_| no_token())?;
        let scheme = token.token_type.filter(|kind| !kind.eq_ignore_ascii_case("bearer") && !kind.is_empty());
        let header = format!("{} {}", scheme.as_deref().unwrap_or("Bearer"), token.access_token);
        let mut header = HeaderValue::try_from(header).map_err(|_| no_token())?;
        header.set_sensitive(true);
        let seconds = token.expires_in.and_then(|value| match value {
            Value::String(text) => text.parse().ok(),
            value => value.as_u64(),
        });
        let lifetime = seconds.filter(|seconds| *seconds > 0).map(Duration::from_secs);
        let expires_at =
            lifetime.and_then(|lifetime| Instant::now().checked_add(lifetime.saturating_sub(EXPIRY_MARGIN)));
        Ok(Token { header, expires_at })
    }

    async fn request_token(
        &self,
        authorization: Option<String>,
        form: String,
    ) -> Result<BufferedResponse, Error> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        if let Some(mut value) = authorization.and_then(|text| HeaderValue::try_from(text).ok()) {
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        let request = Request {
            method: Method::POST,
            url: self.config.token_url.clone(),
            headers,
            body: Bytes::from(form),
            timeout: TIMEOUT,
            limit: RESPONSE_LIMIT,
        };
        // Redirects are not followed: the request contains the secret.
        let response = async {
            let response = self.transport.send(&request, &HeaderMap::new()).await?;
            Ok((request.url.clone(), response))
        };
        ResponseStream::open(request.url.clone(), request.timeout, response)
            .await?
            .collect(request.limit)
            .await
    }
}

/// Encodes a text for the form and, by section 2.3.1, for the header.
fn encode(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
        b' ' => "+".into(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}
