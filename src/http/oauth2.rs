//! Tokens by OAuth 2.0's client credentials grant (RFC 6749, section 4.4): fetched, kept, fetched again.

use super::client::{Client, Error, Request};
use super::config::{ClientConfig, OAuth2};
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

/// A token is replaced this long before its end: it may still be on its way then.
const EXPIRY_MARGIN: Duration = Duration::from_secs(10);
/// How long the endpoint may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of an answer; Go's client reads as many.
const RESPONSE_LIMIT: usize = 1 << 20;

/// The tokens of one client.
pub struct TokenCache {
    config: OAuth2,
    client: Client,
    current: Mutex<Option<Token>>,
}

struct Token {
    header: HeaderValue,
    expires_at: Option<Instant>,
}

/// An `Authorization` header, and whether its token was fetched for this request.
pub struct AuthHeader {
    /// The header's value.
    pub header: HeaderValue,
    /// Was it fetched just now?
    pub is_fresh: bool,
}

/// Section 5.1. Some endpoints write the number as a string.
#[derive(Deserialize)]
struct TokenResponse {
    access_token: String,
    token_type: Option<String>,
    expires_in: Option<Value>,
}

impl TokenCache {
    /// Fetches nothing yet.
    ///
    /// # Errors
    /// As [`Client::new`].
    pub fn new(config: &OAuth2) -> Result<Self, Error> {
        let client_config = ClientConfig {
            tls: config.tls.clone(),
            proxy: config.proxy.clone(),
            // The question holds the secret: it goes to the address that is configured and to no other.
            follow_redirects: false,
            ..ClientConfig::default()
        };
        Ok(Self { config: config.clone(), client: Client::new(&client_config)?, current: Mutex::default() })
    }

    /// The token in force, fetched if there is none, or if it is the one that was `refused`.
    ///
    /// # Errors
    /// [`Error`] when the endpoint gives none.
    pub async fn auth_header(&self, rejected: Option<&HeaderValue>) -> Result<AuthHeader, Error> {
        // Whoever comes while it is fetched waits for it.
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
        // Section 2.3.1: every endpoint should take the header, but some want the form.
        if matches!(response.status, StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED) {
            response =
                self.request_token(None, format!("{form}&client_id={id}&client_secret={secret}")).await?;
        }
        let url = &self.config.token_url;
        if !response.status.is_success() {
            let reason = format!("{}: {}", response.status, response.reason());
            return Err(Error::Token { url: url.clone(), reason });
        }
        // The parser's message could show a part of the token.
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
    ) -> Result<super::client::Response, Error> {
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
        // In a box: a client asks for tokens, and asking takes a client.
        Box::pin(self.client.request(request)).await
    }
}

/// A text as a part of a form, and, by the same section 2.3.1, of the header.
fn encode(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
        b' ' => "+".into(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}
