//! What is asked of whoever comes in, and how that changes while the process runs.
//!
//! Certificates end and users go, so the file of `--web.config.file` and the files that it names are looked at
//! again and again; Prometheus' toolkit reads them anew for every request, which here would cost as much as the
//! request. What is found has to be the same at two looks, so that a file that is just being written is not
//! taken for a finished one. A change that is wrong leaves what was in force before.

use super::basic_auth::Verdict;
use super::server::Answer;
use super::tls;
use super::web_config::{RateLimit, WebConfig};
use crate::yaml::{self, FileError};
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
const LOOK_EVERY: Duration = Duration::from_secs(2);
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
    #[error("{0} cannot be added or taken away while promforest runs: restart it")]
    Kind(&'static str),
}

/// Why a request is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No user, or not the user's password.
    Unauthorized,
    /// More than `rate_limit` allows.
    TooMany,
    /// Too many passwords wait to be compared.
    Busy,
}

impl Refusal {
    /// For labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unauthorized => "unauthorized",
            Self::TooMany => "rate_limit",
            Self::Busy => "busy",
        }
    }

    /// The answer.
    pub fn answer(self) -> Answer {
        let (status, text) = match self {
            Self::Unauthorized => (StatusCode::UNAUTHORIZED, "name and password are wanted\n"),
            // Not 429, as the toolkit says: Prometheus drops what is answered so.
            Self::TooMany => (StatusCode::SERVICE_UNAVAILABLE, "more requests than rate_limit allows\n"),
            Self::Busy => (StatusCode::SERVICE_UNAVAILABLE, "too many passwords wait to be compared\n"),
        };
        let mut answer = Answer::new(text.into());
        *answer.status_mut() = status;
        match self {
            Self::Unauthorized => {
                answer.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Basic"))
            }
            Self::TooMany | Self::Busy => {
                answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"))
            }
        };
        answer
    }
}

/// What is asked at one time.
#[derive(Default)]
pub struct Policy {
    acceptor: Option<TlsAcceptor>,
    config: WebConfig,
    bucket: Option<Mutex<Bucket>>,
}

impl Policy {
    fn load(file: Option<&Path>) -> Result<Self, Error> {
        let config = file.map_or_else(|| Ok(WebConfig::default()), WebConfig::load)?;
        let server = config.tls.as_ref().map(tls::build_server).transpose()?;
        let acceptor = server.map(|server| TlsAcceptor::from(Arc::new(server)));
        let bucket = config.rate_limit.map(|limit| Mutex::new(Bucket::new(limit, Instant::now())));
        Ok(Self { acceptor, config, bucket })
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
    pub async fn admit(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        if let Some(bucket) = &self.bucket
            && !bucket.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now())
        {
            return Err(Refusal::TooMany);
        }
        let users = &self.config.users;
        if users.is_empty() {
            return Ok(());
        }
        match users.admit(headers.get(AUTHORIZATION)).await {
            Verdict::Right => Ok(()),
            Verdict::Wrong => Err(Refusal::Unauthorized),
            Verdict::Busy => Err(Refusal::Busy),
        }
    }
}

/// Time that is saved up for requests, of which each costs an interval.
struct Bucket {
    limit: RateLimit,
    saved: Duration,
    at: Instant,
}

impl Bucket {
    fn new(limit: RateLimit, now: Instant) -> Self {
        Self { limit, saved: limit.interval.saturating_mul(limit.burst.get()), at: now }
    }

    fn take(&mut self, now: Instant) -> bool {
        let most = self.limit.interval.saturating_mul(self.limit.burst.get());
        self.saved = self.saved.saturating_add(now.saturating_duration_since(self.at)).min(most);
        self.at = now;
        let left = self.saved.checked_sub(self.limit.interval);
        self.saved = left.unwrap_or(self.saved);
        left.is_some()
    }
}

#[derive(Default)]
struct Metrics {
    successful: Gauge,
    failures: Counter,
}

/// See the [module](self). The default lets everybody in.
#[derive(Default)]
pub struct Gate {
    file: Option<PathBuf>,
    policy: watch::Sender<Arc<Policy>>,
    metrics: Metrics,
}

impl Gate {
    /// Reads the file; without one, everybody is let in.
    ///
    /// # Errors
    /// [`Error`] with everything that is wrong.
    pub fn open(file: Option<PathBuf>) -> Result<Self, Error> {
        let policy = Arc::new(Policy::load(file.as_deref())?);
        let metrics = Metrics::default();
        metrics.successful.set(1);
        Ok(Self { file, policy: watch::Sender::new(policy), metrics })
    }

    /// Registers its metrics.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "web_config_last_reload_successful",
            "Whether what the web configuration file and its certificates say now is in force",
            self.metrics.successful.clone(),
        );
        registry.register(
            "web_config_reload_failures",
            "Changes of the web configuration file or its certificates that were wrong",
            self.metrics.failures.clone(),
        );
    }

    /// What is asked now.
    pub fn policy(&self) -> Arc<Policy> {
        self.policy.borrow().clone()
    }

    /// Follows the files for as long as it is polled.
    pub async fn follow(&self) {
        let Some(file) = &self.file else { return std::future::pending().await };
        let mut paths = self.paths(file);
        // What was read last, and what was seen last.
        let mut read = contents(&paths).await;
        let mut seen = read.clone();
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let now = contents(&paths).await;
            let is_settled = now == seen;
            seen = now;
            if !is_settled || seen == read {
                continue;
            }
            read.clone_from(&seen);
            match self.change(file) {
                Ok(()) => {
                    self.metrics.successful.set(1);
                    info!(component = "http", "web configuration loaded");
                    let others = self.paths(file);
                    if others != paths {
                        paths = others;
                        read = contents(&paths).await;
                        seen.clone_from(&read);
                    }
                }
                Err(error) => {
                    self.metrics.successful.set(0);
                    self.metrics.failures.inc();
                    error!(
                        component = "http",
                        err = yaml::chain(&error),
                        "the web configuration is wrong now, the old one stays"
                    );
                }
            }
        }
    }

    fn paths(&self, file: &Path) -> Vec<PathBuf> {
        [file.to_path_buf()].into_iter().chain(self.policy().config.files()).collect()
    }

    fn change(&self, file: &Path) -> Result<(), Error> {
        let (old, new) = (self.policy(), Policy::load(Some(file))?);
        if old.acceptor.is_some() != new.acceptor.is_some() {
            return Err(Error::Kind("tls_server_config"));
        }
        if old.config.users.is_empty() != new.config.users.is_empty() {
            return Err(Error::Kind("basic_auth_users"));
        }
        self.policy.send_replace(Arc::new(new));
        Ok(())
    }
}

/// What is in these files; nothing for one that cannot be read.
async fn contents(paths: &[PathBuf]) -> Vec<Option<Vec<u8>>> {
    let read = |path: PathBuf| {
        let mut bytes = Vec::new();
        File::open(path).ok()?.take(FILE_LIMIT).read_to_end(&mut bytes).ok()?;
        Some(bytes)
    };
    let paths = paths.to_vec();
    let look = tokio::task::spawn_blocking(move || paths.into_iter().map(read).collect());
    // The runtime is ending.
    look.await.unwrap_or_default()
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
        let mut bucket = Bucket::new(limit, start);
        let takes = |bucket: &mut Bucket, now| (0..5).filter(|_| bucket.take(now)).count();
        assert_eq!(takes(&mut bucket, start), 3);
        assert_eq!(takes(&mut bucket, start + interval / 2), 0);
        assert_eq!(takes(&mut bucket, start + 2 * interval), 2);
        assert_eq!(takes(&mut bucket, start + 100 * interval), 3, "and not above its size");
        assert_eq!(takes(&mut bucket, start), 0, "a clock that stands still");
    }
}
