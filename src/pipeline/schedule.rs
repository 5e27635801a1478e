//! The schedule of a group's trainings.
//!
//! Groups that start together would be renewed together every day, and read all of their history from Prometheus at
//! once. Each group therefore has its own times of renewal, which follow from its identity: those of a fleet are even over
//! the interval, and a restart does not move them.

use crate::detector::Detector;
use crate::models::ModelCard;
use crate::prom::Labels;
use crate::time;
use crate::train::{ShortHistory, TrainingReason};
use std::time::{Duration, Instant};
use xxhash_rust::xxh3::xxh3_64;

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
/// Shortest interval whose renewals have times of their own: the history of a shorter one has few hours.
const MIN_SPREAD_INTERVAL: Duration = Duration::from_secs(3600);
/// Parts of an interval. The renewal of a young model, whose interval grows, is early by one part at most, and one that was
/// missed is made up for within one part.
const PARTS: u32 = 4;

/// The times at which a group renews its models: one an interval.
#[derive(Clone, Copy, Debug)]
struct RenewalTimes {
    /// Share of the interval at which they are, in [0, 1).
    phase: f64,
}

impl RenewalTimes {
    /// The times of a group.
    fn of_group(detector: &Detector, group: &Labels) -> Self {
        let hash = xxh3_64(format!("{}{group}", detector.name).as_bytes());
        // 53 bits, so that the share stays below 1.
        Self { phase: (hash >> 11) as f64 / (1u64 << 53) as f64 }
    }

    /// Time from now to the renewal of a model of this age, which is due after an interval. Growing intervals are shorter
    /// than the `longest`.
    fn until_next(self, interval: Duration, longest: Duration, age: Duration, now_ms: i64) -> Duration {
        let left = interval.saturating_sub(age);
        if interval < MIN_SPREAD_INTERVAL {
            return left;
        }
        let interval_ms = time::millis(interval);
        let offset_ms = (self.phase * interval_ms as f64) as i64;
        let part_ms = interval_ms / i64::from(PARTS);
        let latest_ms = now_ms + interval_ms - time::millis(age.min(interval));
        let step_ms = if interval == longest { interval_ms } else { part_ms };
        let last_time_ms = latest_ms - (latest_ms - offset_ms).rem_euclid(step_ms);
        let next_ms = match last_time_ms > now_ms {
            true => last_time_ms,
            false => now_ms + part_ms - (now_ms - offset_ms).rem_euclid(part_ms),
        };
        Duration::from_millis((next_ms - now_ms).unsigned_abs())
    }
}

/// See the [module](self).
pub struct TrainingSchedule {
    renewal_times: RenewalTimes,
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
    pub fn new(detector: &Detector, group: &Labels, now: Instant) -> Self {
        Self {
            renewal_times: RenewalTimes::of_group(detector, group),
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
    pub fn hold(&mut self, detector: &Detector, card: &ModelCard, now: Instant, now_ms: i64) {
        self.schedule_renewal(detector, card, now, now_ms);
        self.is_training = false;
        self.is_model_held = true;
    }

    /// True if the last model stayed out of service.
    pub fn is_model_held(&self) -> bool {
        self.is_model_held
    }

    /// The reason to train now and the time since it is one, if the time has come.
    pub fn due(&self, has_model: bool, now: Instant) -> Option<(TrainingReason, Duration)> {
        let reason = if has_model { TrainingReason::Scheduled } else { TrainingReason::First };
        let due = self.due.filter(|due| !self.is_training && now >= *due)?;
        Some((reason, now - due))
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

    /// Postpones the next training to the next time of renewal: the model stays.
    pub fn postpone(&mut self, detector: &Detector, now: Instant, now_ms: i64) {
        self.is_training = false;
        self.is_model_held = true;
        let interval = detector.training.interval;
        self.due = Some(now + self.renewal_times.until_next(interval, interval, Duration::ZERO, now_ms));
    }

    /// Schedules the renewal of the champion, which begins to serve. A restart is no reason to train: a model that is due
    /// serves for a while first.
    pub fn schedule_after_start(&mut self, detector: &Detector, card: &ModelCard, now: Instant, now_ms: i64) {
        self.schedule_renewal(detector, card, now, now_ms);
        if let Some(interval) = renewal_interval(detector, card) {
            self.due = self.due.map(|due| due.max(now + interval.min(START_PAUSE)));
        }
    }

    /// Schedules the renewal of the group's own model. A model that is not the group's own is not renewed.
    pub fn schedule_renewal(&mut self, detector: &Detector, card: &ModelCard, now: Instant, now_ms: i64) {
        self.is_model_held = false;
        let longest = detector.training.interval;
        let until_next =
            |interval| self.renewal_times.until_next(interval, longest, card.age(now_ms), now_ms);
        self.due = renewal_interval(detector, card).map(|interval| now + until_next(interval));
    }

    /// Schedules the renewal of a model that a person chose: it serves for a full interval, however old it is.
    pub fn schedule_after_choice(&mut self, detector: &Detector, card: &ModelCard, now: Instant) {
        self.is_model_held = false;
        self.due = renewal_interval(detector, card).map(|interval| now + interval);
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

/// Time between the training of a model and its renewal; `None` for a model that is not the group's own.
fn renewal_interval(detector: &Detector, card: &ModelCard) -> Option<Duration> {
    let (Some(_), Some(history)) = (&card.group, &card.training_range) else { return None };
    Some(detector.training.retrain_interval(history.observed_ms))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::TrainingRange;
    use crate::prom::Labels;

    const HOUR_MS: i64 = 3_600_000;

    fn card(created_ms: i64, observed_ms: i64) -> ModelCard {
        let training_range =
            TrainingRange { from_ms: 0, to_ms: observed_ms, observed_ms, n_rows: 100, n_excluded: 0 };
        ModelCard {
            group: Some(Labels::default()),
            training_range: Some(training_range),
            created_ms,
            ..ModelCard::default()
        }
    }

    /// Milliseconds from now to the renewal of a model of this age, of a history in hours, after a start.
    fn due_ms(host: u32, observed_hours: i64, age_ms: i64, now_ms: i64) -> i64 {
        let detector = Detector::node_network(Duration::from_secs(15));
        let now = Instant::now();
        let group = Labels::new([("instance", format!("host{host}").as_str())]).expect("valid");
        let mut schedule = TrainingSchedule::new(&detector, &group, now);
        let card = card(now_ms - age_ms, observed_hours * HOUR_MS);
        schedule.schedule_after_start(&detector, &card, now, now_ms);
        time::millis(schedule.due.expect("it is renewed").duration_since(now))
    }

    #[test]
    fn the_renewals_of_a_fleet_are_even_over_the_day() {
        let now_ms = 1_700_000_000_000;
        for (age_hours, span_hours) in [(0, 24), (300, 6)] {
            let mut by_quarter = [0; 4];
            for host in 0..1_000 {
                let due_ms = due_ms(host, 14 * 24, age_hours * HOUR_MS, now_ms);
                assert!((600_000..=span_hours * HOUR_MS).contains(&due_ms), "{host}: {due_ms}");
                by_quarter[(4 * due_ms / (span_hours * HOUR_MS)).min(3) as usize] += 1;
            }
            assert!(by_quarter.iter().all(|n| (200..=300).contains(n)), "{age_hours}: {by_quarter:?}");
        }
    }

    #[test]
    fn a_restart_does_not_move_a_renewal() {
        let now_ms = 1_700_000_000_000;
        for host in 0..100 {
            let due = due_ms(host, 14 * 24, 0, now_ms);
            let after_restart = due_ms(host, 14 * 24, due / 2, now_ms + due / 2);
            assert!(after_restart == due - due / 2 || after_restart == 600_000, "{due} {after_restart}");
            let next = due_ms(host, 14 * 24, 0, now_ms + due + 5_000);
            assert!(next == 24 * HOUR_MS - 5_000 || due == 600_000, "once a day: {due} {next}");
            let young = due_ms(host, 48, 0, now_ms);
            assert!((9 * HOUR_MS..=12 * HOUR_MS).contains(&young), "{young}");
        }
    }

    #[test]
    fn a_restart_is_no_reason_to_train() {
        let now_ms = 1_700_000_000_000;
        for host in 0..100 {
            let missed = due_ms(host, 14 * 24, 30 * 24 * HOUR_MS, now_ms);
            assert!((600_000..=6 * HOUR_MS).contains(&missed), "it was due long ago: {missed}");
        }
        assert_eq!(due_ms(0, 1, 14 * 60_000, now_ms), 600_000, "a young model serves for a while first");
        let detector = Detector::node_network(Duration::from_secs(15));
        let now = Instant::now();
        let mut schedule = TrainingSchedule::new(&detector, &Labels::default(), now);
        schedule.schedule_after_choice(&detector, &card(0, 14 * 24 * HOUR_MS), now);
        assert_eq!(schedule.due, Some(now + Duration::from_secs(24 * 3600)), "a person chose it");
    }
}
