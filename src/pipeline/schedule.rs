//! When a group's model is trained.

use crate::config::Detector;
use crate::models::Card;
use crate::prom::duration;
use crate::train::trainer::Reason;
use std::time::{Duration, Instant};

/// Pause between two looks at whether features came or went.
const SCHEMA_CHECK: Duration = Duration::from_secs(5);
/// Pauses between two trainings that a feature's coming or going asks for.
const SHORTEST_SCHEMA_PAUSE: Duration = Duration::from_secs(15);
const LONGEST_SCHEMA_PAUSE: Duration = Duration::from_secs(600);
/// Pause before another look for a scrape's remaining samples.
const SOON: Duration = Duration::from_secs(1);
/// Pause after a training that failed, and the longest one while history grows.
const RETRY_PAUSE: Duration = Duration::from_secs(60);

/// What a group remembers of its trainings.
pub struct Schedule {
    training: bool,
    /// Columns that the last training knew of. A new one is looked at once at the next, since
    /// history may know it better than the window does.
    considered: usize,
    /// Without a time the model is somebody else's to renew.
    due: Option<Instant>,
    schema_due: Instant,
    /// Doubles while features keep coming and going, so that a flapping interface does not keep
    /// the machine training.
    schema_pause: Duration,
    schema_trained: Option<Instant>,
    have_ms: i64,
    have_at: Instant,
}

impl Schedule {
    /// Of a group without a model or history.
    pub fn new(detector: &Detector, now: Instant) -> Self {
        Self {
            training: false,
            considered: 0,
            due: Some(now),
            schema_due: now,
            schema_pause: SHORTEST_SCHEMA_PAUSE,
            schema_trained: None,
            have_ms: -detector.transform.settling_ms(),
            have_at: now,
        }
    }

    /// Columns that the last training knew of.
    pub fn considered(&self) -> usize {
        self.considered
    }

    /// Is it time, and why? `changed` tells whether features came or went; it is asked now and then,
    /// and only of a group that has a model.
    pub fn due(&mut self, has_model: bool, changed: impl FnOnce() -> bool, now: Instant) -> Option<Reason> {
        let is_due = self.due.is_some_and(|due| now >= due);
        match (self.training, has_model) {
            (true, _) => None,
            (false, false) => is_due.then_some(Reason::First),
            (false, true) if is_due => Some(Reason::Scheduled),
            (false, true) if now < self.schema_due => None,
            (false, true) => {
                self.schema_due = now + SCHEMA_CHECK;
                changed().then_some(Reason::Schema)
            }
        }
    }

    /// Are there other columns than the last training knew of, and none that is under way?
    pub fn has_grown(&self, n_columns: usize) -> bool {
        !self.training && self.considered != n_columns
    }

    /// A training begins that knows of so many columns.
    pub fn start(&mut self, reason: Reason, n_columns: usize, now: Instant) {
        if reason == Reason::Schema {
            let quiet =
                self.schema_trained.is_none_or(|then| now.duration_since(then) > 2 * LONGEST_SCHEMA_PAUSE);
            let pause = if quiet { SHORTEST_SCHEMA_PAUSE } else { self.schema_pause };
            self.schema_due = now + pause;
            self.schema_pause = (2 * pause).min(LONGEST_SCHEMA_PAUSE);
            self.schema_trained = Some(now);
        }
        self.training = true;
        self.considered = n_columns;
    }

    /// Nobody will report on a training any more: ask again.
    pub fn defer(&mut self) {
        self.training = false;
    }

    /// What is missing comes within seconds.
    pub fn ask_soon(&mut self, now: Instant) {
        self.training = false;
        self.due = Some(now + SOON);
    }

    /// The columns are others now.
    pub fn reset_columns(&mut self, n_columns: usize) {
        self.training = false;
        self.considered = n_columns;
    }

    /// Training found too little history.
    pub fn too_short(&mut self, detector: &Detector, have_ms: i64, now: Instant) {
        self.training = false;
        self.have_ms = have_ms;
        self.have_at = now;
        let lacking = duration::millis(detector.training.minimum) - have_ms;
        let lacking = Duration::from_millis(u64::try_from(lacking).unwrap_or(0));
        self.due = Some(now + lacking.clamp(Duration::from_secs(1), RETRY_PAUSE));
    }

    /// Training failed.
    pub fn failed(&mut self, now: Instant) {
        self.training = false;
        self.due = Some(now + RETRY_PAUSE);
    }

    /// Nothing better is to be had for now.
    pub fn postpone(&mut self, detector: &Detector, now: Instant) {
        self.training = false;
        self.due = Some(now + detector.training.every);
    }

    /// The group's own model was made so long ago, whether it serves or not: the next is due when its time
    /// is over. One that is not the group's own is not renewed by us.
    pub fn renew(&mut self, detector: &Detector, card: &Card, age: Duration, now: Instant) {
        self.due = match (&card.group, &card.history) {
            (Some(_), Some(history)) => {
                Some(now + detector.training.pause(history.observed_ms).saturating_sub(age))
            }
            _ => None,
        };
    }

    /// The next model is to be made otherwise: soon, where it is ours to make.
    pub fn hurry(&mut self, now: Instant) {
        self.due = self.due.map(|due| due.min(now));
    }

    /// How much of the first model's history there is, in [0, 1). The time that the transform takes to
    /// settle is part of it: it has to be waited for too.
    pub fn progress(&self, detector: &Detector, last_received: Instant, now: Instant) -> f64 {
        let grown_ms = duration::millis(now.min(last_received).saturating_duration_since(self.have_at));
        let settling_ms = detector.transform.settling_ms();
        let have_ms = self.have_ms + grown_ms + settling_ms;
        let minimum_ms = duration::millis(detector.training.minimum) + settling_ms;
        (have_ms as f64 / minimum_ms as f64).clamp(0.0, 0.99)
    }
}
