//! Access control: TLS, basic authentication and rate limit, reloaded while the server runs.
//!
//! The file of `--web.config.file` and the files that it names are polled. Prometheus' toolkit reads them for each
//! request, which here would cost as much as the request. A change is loaded once two polls read the same contents, so
//! that a file is not read while it is written. After an invalid change the previous policy stays in use.

use super::basic_auth::PasswordCheck;
use super::response::{self, Response};
use super::secret;
use super::tls;
use super::web_config::{RateLimit, WebConfig};
use crate::yaml::FileError;
use hyper::StatusCode;
use hyper::header::{AUTHORIZATION, HeaderMap, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tracing::{error, info};

/// Interval at which the files are polled.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// A policy that cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is invalid.
    #[error(transparent)]
    File(#[from] FileError),
    /// A certificate or key has become invalid since the file was read.
    #[error("tls_server_config")]
    Tls(#[from] tls::Error),
    /// A reload would turn TLS or authentication on or off. A partly written file looks the same.
    #[error("{0} cannot be added or removed by a reload: restart promforest")]
    RestartRequired(&'static str),
}

/// Reason to deny a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DenyReason {
    /// Unknown user or wrong password.
    Unauthorized,
    /// More requests than `rate_limit` allows.
    RateLimited,
    /// Too many password checks in progress.
    Busy,
}

impl DenyReason {
    /// The value of the label `reason`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unauthorized => "unauthorized",
            Self::RateLimited => "rate_limit",
            Self::Busy => "busy",
        }
    }

    /// The response.
    pub fn into_response(self) -> Response {
        let (status, text) = match self {
            Self::Unauthorized => (StatusCode::UNAUTHORIZED, "authentication required"),
            // Not 429, as in the toolkit: Prometheus drops requests answered 429.
            Self::RateLimited => (StatusCode::SERVICE_UNAVAILABLE, "more requests than rate_limit allows"),
            Self::Busy => (StatusCode::SERVICE_UNAVAILABLE, "too many password checks in progress"),
        };
        let mut response = response::text(status, text);
        match self {
            Self::Unauthorized => {
                response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Basic"))
            }
            Self::RateLimited | Self::Busy => {
                response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"))
            }
        };
        response
    }
}

/// The requirements on requests at one time.
#[derive(Default)]
pub struct AccessPolicy {
    acceptor: Option<TlsAcceptor>,
    config: WebConfig,
    token_bucket: Option<Mutex<TokenBucket>>,
}

impl AccessPolicy {
    fn load(file: Option<&Path>) -> Result<Self, Error> {
        let config = file.map_or_else(|| Ok(WebConfig::default()), WebConfig::load)?;
        let server = config.tls.as_ref().map(tls::build_server).transpose()?;
        let acceptor = server.map(|server| TlsAcceptor::from(Arc::new(server)));
        let token_bucket = config.rate_limit.map(|limit| Mutex::new(TokenBucket::new(limit, Instant::now())));
        Ok(Self { acceptor, config, token_bucket })
    }

    /// The TLS acceptor; none without TLS.
    pub fn acceptor(&self) -> Option<&TlsAcceptor> {
        self.acceptor.as_ref()
    }

    /// Headers of every response.
    pub fn headers(&self) -> &HeaderMap {
        &self.config.headers
    }

    /// Checks the rate limit and the credentials of a request.
    ///
    /// # Errors
    /// [`DenyReason`] if the request is denied.
    pub async fn admit(&self, headers: &HeaderMap) -> Result<(), DenyReason> {
        if let Some(token_bucket) = &self.token_bucket
            && !token_bucket.lock().unwrap_or_else(PoisonError::into_inner).try_take(Instant::now())
        {
            return Err(DenyReason::RateLimited);
        }
        let users = &self.config.users;
        if users.is_empty() {
            return Ok(());
        }
        match users.authenticate(headers.get(AUTHORIZATION)).await {
            PasswordCheck::Valid => Ok(()),
            PasswordCheck::Invalid => Err(DenyReason::Unauthorized),
            PasswordCheck::Busy => Err(DenyReason::Busy),
        }
    }
}

/// The credit of the rate limit, in time: each request costs one interval.
struct TokenBucket {
    limit: RateLimit,
    credit: Duration,
    updated: Instant,
}

impl TokenBucket {
    fn new(limit: RateLimit, now: Instant) -> Self {
        Self { limit, credit: limit.interval.saturating_mul(limit.burst.get()), updated: now }
    }

    fn try_take(&mut self, now: Instant) -> bool {
        let capacity = self.limit.interval.saturating_mul(self.limit.burst.get());
        self.credit = self.credit.saturating_add(now.saturating_duration_since(self.updated)).min(capacity);
        self.updated = now;
        let remaining = self.credit.checked_sub(self.limit.interval);
        self.credit = remaining.unwrap_or(self.credit);
        remaining.is_some()
    }
}

#[derive(Default)]
struct Metrics {
    successful: Gauge,
    failures: Counter,
}

/// See the [module](self). The default admits all requests.
#[derive(Default)]
pub struct AccessControl {
    file: Option<PathBuf>,
    policy: watch::Sender<Arc<AccessPolicy>>,
    metrics: Metrics,
}

impl AccessControl {
    /// Reads the file. Without a file, all requests are admitted.
    ///
    /// # Errors
    /// [`Error`] with all errors of the file.
    pub fn open(file: Option<PathBuf>) -> Result<Self, Error> {
        let policy = Arc::new(AccessPolicy::load(file.as_deref())?);
        let metrics = Metrics::default();
        metrics.successful.set(1);
        Ok(Self { file, policy: watch::Sender::new(policy), metrics })
    }

    /// Registers the metrics.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "web_config_last_reload_successful",
            "Whether the last reload of the web configuration and its certificates succeeded",
            self.metrics.successful.clone(),
        );
        registry.register(
            "web_config_reload_failures",
            "Failed reloads of the web configuration or its certificates",
            self.metrics.failures.clone(),
        );
    }

    /// The current policy.
    pub fn policy(&self) -> Arc<AccessPolicy> {
        self.policy.borrow().clone()
    }

    /// Polls the files and loads their changes, until the future is dropped.
    pub async fn watch_files(&self) {
        let Some(file) = &self.file else { return std::future::pending().await };
        let mut paths = self.paths(file);
        // The contents in use, and those of the last poll.
        let mut loaded = read_files(&paths).await;
        let mut last_seen = loaded.clone();
        loop {
            tokio::time::sleep(POLL_INTERVAL).await;
            let current = read_files(&paths).await;
            let is_stable = current == last_seen;
            last_seen = current;
            if !is_stable || last_seen == loaded {
                continue;
            }
            loaded.clone_from(&last_seen);
            match self.reload(file) {
                Ok(()) => {
                    self.metrics.successful.set(1);
                    info!(component = "http", "web configuration loaded");
                    let new_paths = self.paths(file);
                    if new_paths != paths {
                        paths = new_paths;
                        loaded = read_files(&paths).await;
                        last_seen.clone_from(&loaded);
                    }
                }
                Err(error) => {
                    self.metrics.successful.set(0);
                    self.metrics.failures.inc();
                    error!(
                        component = "http",
                        err = crate::error::chain(&error),
                        "cannot reload the web configuration, the previous one stays in use"
                    );
                }
            }
        }
    }

    fn paths(&self, file: &Path) -> Vec<PathBuf> {
        [file.to_path_buf()].into_iter().chain(self.policy().config.files()).collect()
    }

    fn reload(&self, file: &Path) -> Result<(), Error> {
        let (old, new) = (self.policy(), AccessPolicy::load(Some(file))?);
        if old.acceptor.is_some() != new.acceptor.is_some() {
            return Err(Error::RestartRequired("tls_server_config"));
        }
        if old.config.users.is_empty() != new.config.users.is_empty() {
            return Err(Error::RestartRequired("basic_auth_users"));
        }
        self.policy.send_replace(Arc::new(new));
        Ok(())
    }
}

/// The contents of the files; none for a file that cannot be read.
async fn read_files(paths: &[PathBuf]) -> Vec<Option<Vec<u8>>> {
    let read_file = |path: PathBuf| {
        let mut bytes = Vec::new();
        secret::open_bounded(&path).ok()?.read_to_end(&mut bytes).ok()?;
        Some(bytes)
    };
    let paths = paths.to_vec();
    let reading = tokio::task::spawn_blocking(move || paths.into_iter().map(read_file).collect());
    // The task fails only when the runtime shuts down.
    reading.await.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroU32;

    #[test]
    fn denials_are_plain_text() {
        for reason in [DenyReason::Unauthorized, DenyReason::RateLimited, DenyReason::Busy] {
            let headers = reason.into_response().headers().clone();
            assert_eq!(headers[hyper::header::CONTENT_TYPE], "text/plain; charset=utf-8");
        }
    }

    #[test]
    fn a_bucket_fills_up_again() {
        let interval = Duration::from_millis(100);
        let limit = RateLimit { interval, burst: NonZeroU32::new(3).expect("above 0") };
        let start = Instant::now();
        let mut bucket = TokenBucket::new(limit, start);
        let takes = |bucket: &mut TokenBucket, now| (0..5).filter(|_| bucket.try_take(now)).count();
        assert_eq!(takes(&mut bucket, start), 3);
        assert_eq!(takes(&mut bucket, start + interval / 2), 0);
        assert_eq!(takes(&mut bucket, start + 2 * interval), 2);
        assert_eq!(takes(&mut bucket, start + 100 * interval), 3, "the bucket has a size");
        assert_eq!(takes(&mut bucket, start), 0, "no time has passed");
    }
}
