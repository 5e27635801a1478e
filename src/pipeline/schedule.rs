//! The schedule of a group's trainings.

use crate::detector::Detector;
use crate::models::ModelCard;
use crate::time;
use crate::train::{ShortHistory, TrainingReason};
use std::time::{Duration, Instant};

/// Pause between two checks for features that appeared or vanished.
const SCHEMA_CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// Pauses between two trainings that a changed feature causes.
const MIN_SCHEMA_PAUSE: Duration = Duration::from_secs(15);
const MAX_SCHEMA_PAUSE: Duration = Duration::from_secs(600);
/// Pause before another check for the remaining samples of a scrape.
const SHORT_RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Pause after a failed training, and the longest one while history grows.
const RETRY_PAUSE: Duration = Duration::from_secs(60);

/// Shortest time that a champion serves before its renewal, unless its interval is shorter.
const START_PAUSE: Duration = Duration::from_secs(600);

/// See the [module](self).
pub struct TrainingSchedule {
    is_training: bool,
    /// Number of columns at the last training. A new column is considered once at the next training, since the
    /// history may hold more of it than the window.
    known_columns: usize,
    /// Time of the next training; `None` for a model that the sidecar does not renew.
    due: Option<Instant>,
    schema_check_due: Instant,
    /// Doubles while features keep changing, so that a flapping interface does not keep
    /// the machine training.
    schema_pause: Duration,
    schema_trained_at: Option<Instant>,
    /// True if the last model stayed out of service: the features that it has are no reason to train again.
    is_model_held: bool,
    /// Length of the history at the last training, and the length that a first model needs.
    history: ShortHistory,
    history_measured_at: Instant,
}

impl TrainingSchedule {
    /// The schedule of a group without model and history.
    pub fn new(detector: &Detector, now: Instant) -> Self {
        Self {
            is_training: false,
            known_columns: 0,
            due: Some(now),
            schema_check_due: now,
            schema_pause: MIN_SCHEMA_PAUSE,
            schema_trained_at: None,
            is_model_held: false,
            history: ShortHistory {
                have_ms: -detector.transform.warm_up_ms(),
                required_ms: time::millis(detector.training.min_history),
            },
            history_measured_at: now,
        }
    }

    /// Number of columns at the last training.
    pub fn known_columns(&self) -> usize {
        self.known_columns
    }

    /// Schedules the renewal of a model that stays out of service.
    pub fn hold(&mut self, detector: &Detector, card: &ModelCard, now: Instant) {
        self.schedule_renewal(detector, card, Duration::ZERO, now);
        self.is_training = false;
        self.is_model_held = true;
    }

    /// True if the last model stayed out of service.
    pub fn is_model_held(&self) -> bool {
        self.is_model_held
    }

    /// The reason to train now, if the time has come.
    pub fn due(&self, has_model: bool, now: Instant) -> Option<TrainingReason> {
        let reason = if has_model { TrainingReason::Scheduled } else { TrainingReason::First };
        (!self.is_training && self.due.is_some_and(|due| now >= due)).then_some(reason)
    }

    /// True if it is time to check for features that appeared or vanished. The next check is due after a pause.
    pub fn take_schema_check(&mut self, now: Instant) -> bool {
        let is_due = !self.is_training && now >= self.schema_check_due;
        if is_due {
            self.schema_check_due = now + SCHEMA_CHECK_INTERVAL;
        }
        is_due
    }

    /// True if there are columns that the last training did not consider, and no training is running.
    pub fn has_new_columns(&self, n_columns: usize) -> bool {
        !self.is_training && self.known_columns != n_columns
    }

    /// Starts a training on this number of columns.
    pub fn start(&mut self, reason: TrainingReason, n_columns: usize, now: Instant) {
        if matches!(reason, TrainingReason::NewFeature | TrainingReason::LostFeature) {
            let is_stable =
                self.schema_trained_at.is_none_or(|then| now.duration_since(then) > 2 * MAX_SCHEMA_PAUSE);
            let pause = if is_stable { MIN_SCHEMA_PAUSE } else { self.schema_pause };
            self.schema_check_due = now + pause;
            self.schema_pause = (2 * pause).min(MAX_SCHEMA_PAUSE);
            self.schema_trained_at = Some(now);
        }
        self.is_training = true;
        self.known_columns = n_columns;
    }

    /// Ends a training whose result will not arrive.
    pub fn end_training(&mut self) {
        self.is_training = false;
    }

    /// Schedules the next training within seconds: the missing samples arrive by then.
    pub fn retry_soon(&mut self, now: Instant) {
        self.is_training = false;
        self.due = Some(now + SHORT_RETRY_PAUSE);
    }

    /// Replaces the number of columns after a change of the window.
    pub fn reset_columns(&mut self, n_columns: usize) {
        self.known_columns = n_columns;
    }

    /// Training found too little history.
    pub fn record_too_short(&mut self, history: ShortHistory, now: Instant) {
        self.is_training = false;
        self.history = history;
        self.history_measured_at = now;
        let missing_ms = history.required_ms - history.have_ms;
        let missing = Duration::from_millis(u64::try_from(missing_ms).unwrap_or(0));
        self.due = Some(now + missing.clamp(Duration::from_secs(1), RETRY_PAUSE));
    }

    /// Training failed.
    pub fn record_failure(&mut self, now: Instant) {
        self.is_training = false;
        self.due = Some(now + RETRY_PAUSE);
    }

    /// Postpones the next training by a full interval: the model stays.
    pub fn postpone(&mut self, detector: &Detector, now: Instant) {
        self.is_training = false;
        self.is_model_held = true;
        self.due = Some(now + detector.training.interval);
    }

    /// Schedules the renewal of the champion of this age, which begins to serve. A restart is no reason to train: a model
    /// that is due serves for a while first.
    pub fn schedule_after_start(
        &mut self,
        detector: &Detector,
        card: &ModelCard,
        age: Duration,
        now: Instant,
    ) {
        self.schedule_renewal(detector, card, Duration::ZERO, now);
        self.due = self.due.map(|due| (due - age.min(due - now)).max(due.min(now + START_PAUSE)));
    }

    /// Schedules the renewal of the group's own model of this age. A model that is not the group's own is not renewed.
    pub fn schedule_renewal(&mut self, detector: &Detector, card: &ModelCard, age: Duration, now: Instant) {
        self.is_model_held = false;
        self.due = match (&card.group, &card.training_range) {
            (Some(_), Some(history)) => {
                Some(now + detector.training.retrain_interval(history.observed_ms).saturating_sub(age))
            }
            _ => None,
        };
    }

    /// Brings the next training forward to now, if the sidecar renews the model.
    pub fn bring_forward(&mut self, now: Instant) {
        self.due = self.due.map(|due| due.min(now));
    }

    /// Length of the history that a first model needs.
    pub fn required_history(&self) -> Duration {
        Duration::from_millis(u64::try_from(self.history.required_ms).unwrap_or(0))
    }

    /// Share of the history that a first model needs, in [0, 1). The warm-up of the transform counts as part of it,
    /// since it has to pass too.
    pub fn progress(&self, detector: &Detector, last_received: Instant, now: Instant) -> f64 {
        let received_ms =
            time::millis(now.min(last_received).saturating_duration_since(self.history_measured_at));
        let warm_up_ms = detector.transform.warm_up_ms();
        let history_ms = self.history.have_ms + received_ms + warm_up_ms;
        let minimum_ms = self.history.required_ms + warm_up_ms;
        (history_ms as f64 / minimum_ms as f64).clamp(0.0, 0.99)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::TrainingRange;
    use crate::prom::Labels;

    #[test]
    fn a_restart_is_no_reason_to_train() {
        let detector = Detector::node_network(Duration::from_secs(15));
        let now = Instant::now();
        let due_seconds = |observed_ms: i64, age_seconds: u64| {
            let training_range =
                TrainingRange { from_ms: 0, to_ms: observed_ms, observed_ms, n_rows: 100, n_excluded: 0 };
            let card = ModelCard {
                group: Some(Labels::default()),
                training_range: Some(training_range),
                ..ModelCard::default()
            };
            let mut schedule = TrainingSchedule::new(&detector, now);
            schedule.schedule_after_start(&detector, &card, Duration::from_secs(age_seconds), now);
            schedule.due.map(|due| due.duration_since(now).as_secs())
        };
        let five_days_ms = 5 * 24 * 3_600_000;
        assert_eq!(due_seconds(five_days_ms, 0), Some(24 * 3600));
        assert_eq!(due_seconds(five_days_ms, 23 * 3600), Some(3600));
        assert_eq!(due_seconds(five_days_ms, 30 * 24 * 3600), Some(600), "it was due long ago");
        assert_eq!(due_seconds(8 * 60_000, 3600), Some(120), "a young model serves for its whole interval");
    }
}
