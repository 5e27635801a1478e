//! What is asked of whoever comes in, and how that changes while the process runs.
//!
//! Certificates end and users go, so the file of `--web.config.file` and the files that it names are looked at
//! again and again; Prometheus' toolkit reads them anew for every request, which here would cost as much as the
//! request. What is found has to be the same at two looks, so that a file that is just being written is not
//! taken for a finished one. A change that is wrong leaves what was in force before.

use super::basic_auth::PasswordCheck;
use super::server::Response;
use super::tls;
use super::web_config::{RateLimit, WebConfig};
use crate::yaml::FileError;
use hyper::StatusCode;
use hyper::header::{AUTHORIZATION, HeaderMap, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tracing::{error, info};

/// Pause between two looks at the files.
const POLL_INTERVAL: Duration = Duration::from_secs(2);
/// Bytes of a file that are compared: more than any certificate has.
const FILE_LIMIT: u64 = 1 << 20;

/// Why there is no gate, or no other one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is wrong.
    #[error(transparent)]
    File(#[from] FileError),
    /// What it names has changed since it was read.
    #[error("tls_server_config")]
    Tls(#[from] tls::Error),
    /// Half a file looks like this, and so does a mistake.
    #[error("{0} cannot be added or removed by a reload: restart promforest")]
    RestartRequired(&'static str),
}

/// Why a request is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DenyReason {
    /// No user, or not the user's password.
    Unauthorized,
    /// More than `rate_limit` allows.
    RateLimited,
    /// Too many passwords wait to be compared.
    Busy,
}

impl DenyReason {
    /// For labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unauthorized => "unauthorized",
            Self::RateLimited => "rate_limit",
            Self::Busy => "busy",
        }
    }

    /// The answer.
    pub fn into_response(self) -> Response {
        let (status, text) = match self {
            Self::Unauthorized => (StatusCode::UNAUTHORIZED, "authentication required\n"),
            // Not 429, as the toolkit says: Prometheus drops what is answered so.
            Self::RateLimited => (StatusCode::SERVICE_UNAVAILABLE, "more requests than rate_limit allows\n"),
            Self::Busy => (StatusCode::SERVICE_UNAVAILABLE, "too many password checks in progress\n"),
        };
        let mut response = Response::new(text.into());
        *response.status_mut() = status;
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

/// What is asked at one time.
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

    /// Encryption, where it is wanted.
    pub fn acceptor(&self) -> Option<&TlsAcceptor> {
        self.acceptor.as_ref()
    }

    /// Headers of every answer.
    pub fn headers(&self) -> &HeaderMap {
        &self.config.headers
    }

    /// Lets a request in.
    ///
    /// # Errors
    /// Why not.
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

/// Time that is saved up for requests, of which each costs an interval.
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

/// See the [module](self). The default lets everybody in.
#[derive(Default)]
pub struct AccessControl {
    file: Option<PathBuf>,
    policy: watch::Sender<Arc<AccessPolicy>>,
    metrics: Metrics,
}

impl AccessControl {
    /// Reads the file; without one, everybody is let in.
    ///
    /// # Errors
    /// [`Error`] with everything that is wrong.
    pub fn open(file: Option<PathBuf>) -> Result<Self, Error> {
        let policy = Arc::new(AccessPolicy::load(file.as_deref())?);
        let metrics = Metrics::default();
        metrics.successful.set(1);
        Ok(Self { file, policy: watch::Sender::new(policy), metrics })
    }

    /// Registers its metrics.
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

    /// What is asked now.
    pub fn policy(&self) -> Arc<AccessPolicy> {
        self.policy.borrow().clone()
    }

    /// Follows the files for as long as it is polled.
    pub async fn watch_files(&self) {
        let Some(file) = &self.file else { return std::future::pending().await };
        let mut paths = self.paths(file);
        // What was read last, and what was seen last.
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

/// What is in these files; nothing for one that cannot be read.
async fn read_files(paths: &[PathBuf]) -> Vec<Option<Vec<u8>>> {
    let read_file = |path: PathBuf| {
        let mut bytes = Vec::new();
        File::open(path).ok()?.take(FILE_LIMIT).read_to_end(&mut bytes).ok()?;
        Some(bytes)
    };
    let paths = paths.to_vec();
    let reading = tokio::task::spawn_blocking(move || paths.into_iter().map(read_file).collect());
    // The runtime is ending.
    reading.await.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroU32;

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
        assert_eq!(takes(&mut bucket, start + 100 * interval), 3, "and not above its size");
        assert_eq!(takes(&mut bucket, start), 0, "a clock that stands still");
    }
}
