//! The progress of the engine's thread, as readiness and the supervision see it.
//!
//! The thread records each command. The clock sends one every second, so that a thread that handles none is stuck: a
//! lock or a loop holds it. Checks are counted instead of time, so that a process that was stopped for an hour is not
//! ended when it continues.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Age of the last tick at which the sidecar is not ready.
const MAX_TICK_AGE: Duration = Duration::from_secs(15);
/// Interval of the checks for progress.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Consecutive checks without progress after which the thread counts as stuck. No command takes a minute.
const MAX_CHECKS_WITHOUT_PROGRESS: u32 = 60;

/// See the [module](self).
#[derive(Debug)]
pub struct EngineProgress {
    started: Instant,
    n_commands: AtomicU64,
    /// Time of the last tick, in milliseconds since `started`.
    ticked_ms: AtomicU64,
}

impl EngineProgress {
    /// The progress of an engine that starts now.
    pub(super) fn new(now: Instant) -> Self {
        Self { started: now, n_commands: AtomicU64::new(0), ticked_ms: AtomicU64::new(0) }
    }

    /// Records that the thread takes the next command.
    pub(super) fn record_command(&self) {
        self.n_commands.fetch_add(1, Ordering::Relaxed);
    }

    /// Records a tick.
    pub(super) fn record_tick(&self, now: Instant) {
        let ticked_ms = now.duration_since(self.started).as_millis();
        self.ticked_ms.store(u64::try_from(ticked_ms).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// The reason why the sidecar is not ready, if the last tick is too old.
    pub fn overdue_message(&self, now: Instant) -> Option<String> {
        let ticked = Duration::from_millis(self.ticked_ms.load(Ordering::Relaxed));
        let age = now.duration_since(self.started).saturating_sub(ticked);
        (age > MAX_TICK_AGE).then(|| format!("scoring: no progress for {} s", age.as_secs()))
    }

    /// Waits until the thread is stuck.
    pub async fn wait_until_stuck(&self) {
        let mut check = StuckCheck::default();
        while !check.is_stuck_after(self.n_commands.load(Ordering::Relaxed)) {
            tokio::time::sleep(CHECK_INTERVAL).await;
        }
    }
}

/// The consecutive checks without progress.
#[derive(Default)]
struct StuckCheck {
    n_commands: Option<u64>,
    n_checks: u32,
}

impl StuckCheck {
    /// Checks the number of commands, and returns true if the thread is stuck.
    fn is_stuck_after(&mut self, n_commands: u64) -> bool {
        let has_progress = self.n_commands.replace(n_commands) != Some(n_commands);
        self.n_checks = if has_progress { 0 } else { self.n_checks + 1 };
        self.n_checks >= MAX_CHECKS_WITHOUT_PROGRESS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_ages_with_the_last_tick() {
        let now = Instant::now();
        let progress = EngineProgress::new(now);
        let message = |seconds| progress.overdue_message(now + Duration::from_secs(seconds));
        assert_eq!(message(15), None);
        assert_eq!(message(16).as_deref(), Some("scoring: no progress for 16 s"));
        progress.record_tick(now + Duration::from_secs(20));
        assert_eq!(message(35), None);
        assert_eq!(message(3620).as_deref(), Some("scoring: no progress for 3600 s"));
    }

    #[test]
    fn a_thread_without_a_command_for_a_minute_is_stuck() {
        let mut check = StuckCheck::default();
        for n_commands in 0..100 {
            assert!((0..60).all(|_| !check.is_stuck_after(n_commands)), "it is slow");
        }
        assert!(check.is_stuck_after(99));
    }

    #[test]
    fn an_engine_records_its_commands_and_ticks() {
        let bench = crate::pipeline::engine::tests::Bench::new("");
        let (engine, commands) = crate::pipeline::engine::channel();
        let progress = engine.progress();
        let thread = std::thread::spawn(move || bench.engine.run(commands));
        engine.downgrade().tick().expect("the engine runs");
        drop(engine);
        thread.join().expect("no panic");
        assert_eq!(progress.n_commands.load(Ordering::Relaxed), 2, "the tick and the end");
    }
}
