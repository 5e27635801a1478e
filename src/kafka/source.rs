//! The thread that reads the topic.

use super::Intake;
use super::options::{Phase, SourceOptions};
use std::io;
use std::thread::{self, JoinHandle};
use std::time::Duration;
use tokio::sync::watch;
use tracing::warn;

#[cfg(feature = "kafka")]
use super::consumer::read;

/// Time that the last commit may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// See the [module](self).
#[derive(Debug)]
pub struct Source {
    phase: watch::Sender<Phase>,
    failure: watch::Receiver<Option<String>>,
    thread: JoinHandle<()>,
}

impl Source {
    /// Starts the thread, which holds `guard` while it runs.
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn start(
        options: SourceOptions,
        intake: impl Intake + Sync,
        guard: impl Send + 'static,
    ) -> io::Result<Self> {
        let (phase, phase_rx) = watch::channel(Phase::Running);
        let (failure, failure_rx) = watch::channel(None);
        let thread = thread::Builder::new().name("kafka".into()).spawn(move || {
            let _guard = guard;
            read(&options, &intake, &phase_rx, &failure);
        })?;
        Ok(Self { phase, failure: failure_rx, thread })
    }

    /// The reason why no record is read, while there is one.
    pub fn failure(&self) -> watch::Receiver<Option<String>> {
        self.failure.clone()
    }

    /// Reads no further record.
    pub fn hold(&self) {
        self.phase.send_replace(Phase::Held);
    }

    /// Commits the offsets of what is written, and ends the thread.
    pub async fn close(self) {
        self.phase.send_replace(Phase::Closed);
        let thread = self.thread;
        let joined = tokio::task::spawn_blocking(move || thread.join().is_ok());
        if tokio::time::timeout(CLOSE_TIMEOUT, joined).await.is_err() {
            warn!(component = "kafka", limit = ?CLOSE_TIMEOUT, "the last offsets are not committed: the next start reads their records again");
        }
    }
}

/// A configuration with a topic is an error without the feature.
#[cfg(not(feature = "kafka"))]
fn read(_: &SourceOptions, _: &impl Intake, _: &watch::Receiver<Phase>, _: &watch::Sender<Option<String>>) {}
