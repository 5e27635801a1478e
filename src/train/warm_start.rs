//! The state of a group from before this process: recent samples, written scores, the state of its model.

use super::backends::GroupReader;
use super::history::{ALERT_LOOKBACK_MS, FiringAlert};
use super::{catch_up, exclusion, history};
use crate::detect::{OnlineDetector, PastIncident};
use crate::detector::Detector;
use crate::history::SeriesSamples;
use crate::models::DeployedModel;
use crate::models::registry::periods::{self, Period, PeriodKind};
use crate::snapshot::ModelCheckpoint;
use crate::time;
use std::time::{Duration, Instant};

/// Time that an endpoint may take to return the newest score. A model does not wait longer for its service.
const WATERMARK_TIMEOUT: Duration = Duration::from_secs(10);

/// State from before this process, for a model that starts to serve.
#[derive(Default)]
pub struct WarmStart {
    /// Samples within the window, with features as labels.
    pub recent: Vec<SeriesSamples>,
    /// The scores that are written.
    pub watermark: WriteWatermark,
    /// The published incidents, ascending; `None` if they are not known.
    pub incidents: Option<Vec<PastIncident>>,
    /// The feedback that is recorded, for incidents that a snapshot has restored.
    pub feedback: Vec<Period>,
    /// The times in which alerts of `exclude_alerts` fired since the training of the model.
    pub alerts: Vec<FiringAlert>,
    /// State of the model after the rows since its training, from history or a snapshot.
    pub detection: Option<Box<OnlineDetector>>,
    /// True if a source of history that may have more did not answer.
    pub is_incomplete: bool,
}

impl WarmStart {
    /// The state for a model that never served, with the [recent samples](recent_samples) of its training.
    pub(super) async fn of_new_model(
        reader: &mut GroupReader<'_>,
        recent: Vec<SeriesSamples>,
        now_ms: i64,
    ) -> Self {
        let detector = reader.detector;
        let earliest_ms = first_scorable_ms(detector, detector.transform.lookback_ms(), now_ms);
        let watermark = WriteWatermark::read(reader, earliest_ms, now_ms).await;
        let periods = reader.read_periods().await;
        let incidents = read_incidents(reader, &periods, now_ms).await;
        Self { recent, watermark: watermark.unwrap_or_default(), incidents, ..Self::default() }
    }

    /// The state for a registered model: it resumes from the checkpoint if that is of this model, and otherwise assesses
    /// the rows since its training, as far as the endpoints return them.
    pub(super) async fn of_registered_model(
        reader: &mut GroupReader<'_>,
        deployed: &DeployedModel,
        checkpoint: Option<&ModelCheckpoint>,
        now_ms: i64,
    ) -> Self {
        let (detector, model) = (reader.detector, &deployed.model);
        let lookback_ms = model.schema.transform.lookback_ms();
        let earliest_ms = first_scorable_ms(detector, lookback_ms, now_ms);
        let watermark = WriteWatermark::read(reader, earliest_ms, now_ms).await;
        let is_watermark_known = watermark.is_some();
        let watermark = watermark.unwrap_or_default();
        let resumed = checkpoint
            .and_then(|checkpoint| Some((checkpoint.processed_to_ms, checkpoint.resume(deployed)?)));
        // The group scores the rows that are not written yet, but none that are older than its window.
        let (processed_to_ms, replay_to_ms) = match &resumed {
            Some((processed_to_ms, _)) => (*processed_to_ms, earliest_ms),
            None => {
                let replay_to_ms = watermark.min_ms().unwrap_or(now_ms);
                (model.fitted.newest_ms().unwrap_or(now_ms).min(replay_to_ms), replay_to_ms)
            }
        };
        let start_ms = window_start_ms(detector, now_ms);
        let since_ms = processed_to_ms.max(now_ms - time::millis(detector.training.history)) - lookback_ms;
        // With a checkpoint, the snapshot has restored the window; otherwise the window must be filled.
        let from_ms = if resumed.is_some() { since_ms } else { since_ms.min(start_ms) };
        let history = reader.read((from_ms, now_ms)).await;
        let (alerts, _) = reader.read_alerts((from_ms - ALERT_LOOKBACK_MS, now_ms)).await;
        let periods = reader.read_periods().await;
        let suspended = exclusion::suspended_times(&periods, alerts.iter(), &detector.name, reader.labels);
        let (incidents, feedback) = match checkpoint {
            Some(_) => (None, feedback_of(&periods, reader)),
            None => (read_incidents(reader, &periods, now_ms).await, Vec::new()),
        };
        let start = match resumed {
            Some((_, detection)) => detection,
            None => model.fitted.as_online().cloned().map(|fitted| {
                // The alert state belongs to the group, whatever model it was saved with.
                let alerts = checkpoint.and_then(ModelCheckpoint::alert_state);
                Box::new(match alerts {
                    Some(alerts) => fitted.with_alert_state(alerts),
                    None => fitted,
                })
            }),
        };
        let advance = |detection| {
            let config = &detector.alerts;
            catch_up::advance(detection, model, config, suspended, &history.series, replay_to_ms)
        };
        let detection = start.map(advance);
        Self {
            recent: samples_after(&history.series, start_ms),
            watermark,
            incidents,
            feedback,
            alerts,
            detection,
            is_incomplete: !is_watermark_known || history.failure.is_some(),
        }
    }
}

/// Timestamps in milliseconds of the newest written scores. A score that is older than the window is not written any more,
/// so the timestamps are not below the first row that the window can score.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WriteWatermark {
    /// The newest score of all sources of history.
    pub to_ms: Option<i64>,
    /// The newest score of each remote-write endpoint, if one of the sources of history serves it.
    pub by_endpoint: Vec<Option<i64>>,
}

impl WriteWatermark {
    /// All endpoints that can be read have the scores up to here.
    pub fn min_ms(&self) -> Option<i64> {
        self.by_endpoint.iter().chain([&self.to_ms]).flatten().min().copied()
    }

    /// Reads the newest scores of a group. Returns `None` if no endpoint has any and one that may have some does not
    /// answer in time; such an endpoint is then in cooldown.
    async fn read(reader: &mut GroupReader<'_>, earliest_ms: i64, now_ms: i64) -> Option<Self> {
        let GroupReader { backends, detector, labels, .. } = *reader;
        let range = (now_ms - time::millis(detector.training.history), now_ms);
        let mut watermark = Self { to_ms: None, by_endpoint: vec![None; backends.endpoints.len()] };
        let mut is_known = true;
        for client in &backends.history_clients {
            if reader.is_in_cooldown(client) {
                is_known = false;
                continue;
            }
            let started = Instant::now();
            let newest_score = history::read_newest_score(client, detector, labels, range);
            match tokio::time::timeout(WATERMARK_TIMEOUT, newest_score).await {
                Ok(Ok(newest_ms)) => {
                    let to_ms = newest_ms.map(|newest_ms| newest_ms.max(earliest_ms));
                    watermark.to_ms = watermark.to_ms.max(to_ms);
                    let endpoints = backends.endpoints.iter().zip(&mut watermark.by_endpoint);
                    let siblings =
                        endpoints.filter(|(endpoint, _)| client.config.serves(&endpoint.url, &endpoint.http));
                    siblings.for_each(|(_, written_to_ms)| *written_to_ms = to_ms);
                }
                Ok(Err(error)) if !error.is_recoverable() => {}
                failed => {
                    reader.open_client(client, failed.ok().and_then(Result::err).as_ref(), started);
                    is_known = false;
                }
            }
        }
        (is_known || watermark.to_ms.is_some()).then_some(watermark)
    }
}

/// The published incidents of a group; `None` if no endpoint has any, or none answers in time.
async fn read_incidents(
    reader: &mut GroupReader<'_>,
    periods: &[Period],
    now_ms: i64,
) -> Option<Vec<PastIncident>> {
    let GroupReader { backends, detector, labels, .. } = *reader;
    let range = (now_ms - time::millis(detector.training.history), now_ms);
    let mut incidents = Vec::new();
    for client in &backends.history_clients {
        if reader.is_in_cooldown(client) {
            continue;
        }
        let started = Instant::now();
        let read = history::read_incidents(client, detector, labels, range);
        match tokio::time::timeout(WATERMARK_TIMEOUT, read).await {
            // Of several endpoints that hold the incidents, the fullest counts.
            Ok(Ok(found)) => incidents = if found.len() > incidents.len() { found } else { incidents },
            Ok(Err(_)) => {}
            Err(_) => reader.open_client(client, None, started),
        }
    }
    if incidents.is_empty() {
        return None;
    }
    periods::restore_feedback(&mut incidents, periods, &reader.detector.name, reader.labels);
    Some(incidents)
}

/// The recorded feedback on incidents of a group.
fn feedback_of(periods: &[Period], reader: &GroupReader<'_>) -> Vec<Period> {
    let is_feedback = |period: &&Period| {
        period.kind != PeriodKind::Maintenance && period.concerns(&reader.detector.name, reader.labels)
    };
    periods.iter().filter(is_feedback).cloned().collect()
}

/// The samples of a history that are within the window.
pub(super) fn recent_samples(
    detector: &Detector,
    history: &[SeriesSamples],
    now_ms: i64,
) -> Vec<SeriesSamples> {
    samples_after(history, window_start_ms(detector, now_ms))
}

/// Time after which samples are within the window.
fn window_start_ms(detector: &Detector, now_ms: i64) -> i64 {
    now_ms - time::millis(detector.window)
}

/// Time after which rows can be scored: the window has the samples of their whole lookback.
fn first_scorable_ms(detector: &Detector, lookback_ms: i64, now_ms: i64) -> i64 {
    window_start_ms(detector, now_ms) + lookback_ms
}

fn samples_after(series: &[SeriesSamples], since_ms: i64) -> Vec<SeriesSamples> {
    let recent = series.iter().map(|(labels, samples)| {
        let start = samples.partition_point(|sample| sample.timestamp_ms <= since_ms);
        (labels.clone(), samples[start..].to_vec())
    });
    recent.filter(|(_, samples)| !samples.is_empty()).collect()
}
