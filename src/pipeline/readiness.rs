//! The readiness of the sidecar, as `/-/ready` and the web pages report it.

use super::engine::Readiness;
use super::reload::Reloader;
use crate::snapshot::SnapshotStore;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::watch;

/// See the [module](self).
#[derive(Clone)]
pub struct ReadinessProbe {
    /// Readiness of the detectors.
    pub detectors: watch::Receiver<Readiness>,
    /// Knows the senders and the engine.
    pub reloader: Arc<Reloader>,
    /// The reason why the topic is not read, while there is one.
    pub source_failure: Option<watch::Receiver<Option<String>>>,
    /// The snapshots.
    pub snapshot_store: SnapshotStore,
}

impl ReadinessProbe {
    /// The readiness now.
    pub fn current(&self) -> Readiness {
        let detectors = self.detectors.borrow().clone();
        let missing_senders = self.reloader.missing_senders().map(String::from);
        let overdue = self.reloader.engine.progress().overdue_message(Instant::now());
        let source = self.source_failure.as_ref().and_then(|failure| failure.borrow().clone());
        let source = source.map(|failure| format!("kafka: {failure}"));
        detectors.with([missing_senders, overdue, source], self.snapshot_store.failure_message())
    }
}

impl Readiness {
    /// This readiness with a line for each reason against it, and with a warning, which leaves it as it is.
    fn with(self, reasons: [Option<String>; 3], warning: Option<String>) -> Self {
        let ready = self.ready && reasons.iter().all(Option::is_none);
        let lines: Vec<String> =
            [self.text].into_iter().chain(reasons.into_iter().flatten()).chain(warning).collect();
        Self { ready, text: lines.join("\n") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stuck_engine_and_missing_senders_are_not_ready_and_failed_snapshots_are() {
        let detectors = Readiness { ready: true, text: "net: 1 of 1 groups have a model".into() };
        let with = |reasons: [Option<&str>; 3], warning: Option<&str>| {
            let text = |text: Option<&str>| text.map(String::from);
            detectors.clone().with(reasons.map(text), text(warning))
        };
        assert_eq!(with([None; 3], None), detectors);
        let not_ready = with([None, Some("scoring: no progress for 16 s"), None], None);
        assert_eq!(
            (not_ready.ready, &*not_ready.text),
            (false, "net: 1 of 1 groups have a model\nscoring: no progress for 16 s")
        );
        assert!(!with([Some("remote write: stopped"), None, None], None).ready);
        let warned = with([None; 3], Some("snapshots cannot be written"));
        assert!(warned.ready && warned.text.ends_with("\nsnapshots cannot be written"), "{warned:?}");
    }
}
