//! The incident of a job: its samples and their order.

use super::*;
use crate::detect::PastIncident;
use crate::snapshot::GroupState;
use crate::window::{IncidentState, Score};

const MINUTE: i64 = 60_000;
const JOB: &str = r#"anomaly_job_incident{detector="node_network", job="node"}"#;

/// The state of a group that is scored every minute for an hour, with an incident of half an hour from this minute on.
fn restored(bench: &Bench, instance: &str, incident_from: Option<i64>) -> (GroupState, Window) {
    let detector = &bench.config().detectors[0];
    let mut window = Window::new(detector.window.as_millis() as i64);
    let feature = Labels::new([(METRIC_NAME, "node_network_receive_bytes_total"), ("device", "lo")]);
    let column = window.get_or_add_column(&feature.expect("valid")).expect("room");
    for minute in 0..60 {
        let timestamp_ms = START_MS + minute * MINUTE;
        window.push(column, Sample { timestamp_ms, value: 0.0 });
        let is_incident = incident_from.is_some_and(|from| (from..from + 30).contains(&minute));
        let incident_state = Some(IncidentState { threshold: 1.0, is_incident });
        window.set_score(
            ModelRole::Champion,
            timestamp_ms,
            Score { decision: 0.1, score: 0.5, incident_state },
        );
    }
    let past_incident = |from| PastIncident::new(START_MS + from * MINUTE, START_MS + (from + 29) * MINUTE);
    let state = GroupState {
        detector: detector.name.clone(),
        selection_key: detector.selection_key(),
        group: Labels::new([("job", "node"), ("instance", instance)]).expect("valid"),
        champion: None,
        challenger: None,
        newest_scored_ms: Some(START_MS + 59 * MINUTE),
        cursors: bench.engine.groups.cursor_keys().into_iter().map(|key| (key, START_MS + HOUR_MS)).collect(),
        contributions: Vec::new(),
        incidents: incident_from.into_iter().map(past_incident).collect(),
        is_incident: false,
        stale_ms: Vec::new(),
        log: None,
    };
    (state, window)
}

/// A bench with four groups, of which these have an incident from a minute on.
pub(super) fn four_groups(incidents: [Option<i64>; 4]) -> Bench {
    let mut bench = Bench::new("");
    let groups = ["a", "b", "c", "d"].into_iter().zip(incidents);
    let snapshots = groups.map(|(instance, from)| restored(&bench, instance, from)).collect();
    bench.engine.restore(snapshots, Instant::now(), |_| {});
    bench
}

/// The samples of the job from one minute to another, as minute and value, with a tick of the engine a second.
fn job_samples(bench: &mut Bench, minutes: std::ops::Range<i64>) -> Vec<(f64, f64)> {
    let mut samples = Vec::new();
    for second in minutes.start * 60..minutes.end * 60 {
        let now_ms = START_MS + second * 1000;
        bench.engine.tick(Instant::now(), now_ms);
        while let Some(batch) = bench.engine.next_batch(0, None, 100, now_ms) {
            for series in batch.series.iter().filter(|series| series.labels.to_string() == JOB) {
                let minute = |sample: &Sample| (sample.timestamp_ms - START_MS) as f64 / MINUTE as f64;
                samples.extend(series.samples.iter().map(|sample| (minute(sample), sample.value)));
            }
            bench.engine.advance(0, None, &batch.positions, now_ms);
        }
    }
    samples
}

#[test]
fn a_job_has_a_sample_a_minute_and_one_at_each_change() {
    let mut bench = four_groups([Some(10), Some(12), Some(20), None]);
    let samples = job_samples(&mut bench, 15..55);
    let ones: Vec<f64> =
        samples.iter().filter(|(_, value)| *value == 1.0).map(|(minute, _)| *minute).collect();
    let (first, last) = (ones[0].floor(), ones[ones.len() - 1].floor());
    assert_eq!((first, last), (20.0, 41.0), "until the third is alone: {samples:?}");
    assert!(samples.len() <= 42, "{} samples in 40 minutes", samples.len());
    assert!(samples.windows(2).all(|pair| pair[0].0 < pair[1].0), "ascending");
}

#[test]
fn a_restart_continues_the_incident_of_a_job() {
    let mut bench = four_groups([Some(10), Some(12), Some(20), None]);
    assert_eq!(job_samples(&mut bench, 30..32)[0].1, 1.0, "its groups opened before the start");
    let mut calm = four_groups([Some(10), Some(12), None, None]);
    assert_eq!(job_samples(&mut calm, 30..32)[0].1, 0.0);
}

#[test]
fn a_job_of_two_groups_has_no_series_and_one_that_shrinks_ends() {
    let mut bench = four_groups([None; 4]);
    assert!(!job_samples(&mut bench, 15..17).is_empty());
    bench.reload(
        Arc::new(Config::parse("detectors: [{name: other, match: [up]}]").expect("valid")),
        vec![Arc::default()],
    );
    let samples = job_samples(&mut bench, 20..21);
    assert_eq!(samples.len(), 1);
    assert!(samples[0].1.is_nan(), "a staleness marker: {samples:?}");
    assert!(job_samples(&mut bench, 21..24).is_empty());
}

#[test]
fn an_incident_that_a_late_row_opened_counts_for_the_job() {
    let mut bench = four_groups([Some(10), Some(12), None, None]);
    assert!(job_samples(&mut bench, 30..33).iter().all(|(_, value)| *value == 0.0));
    let late = restored(&bench, "e", Some(20));
    bench.engine.restore(vec![late], Instant::now(), |_| {});
    let samples = job_samples(&mut bench, 34..39);
    assert_eq!(samples.last().map(|(_, value)| *value), Some(1.0), "since minute 20: {samples:?}");
}

#[test]
fn an_incident_from_before_the_window_was_open_until_its_last_row() {
    let mut bench = Bench::new("");
    let (state, mut window) = restored(&bench, "a", Some(10));
    let column = window.features().map(|(_, column)| column).next().expect("a column");
    window.push(column, Sample { timestamp_ms: window.start_ms() + 2 * window.length_ms(), value: 0.0 });
    bench.engine.restore(vec![(state, window)], Instant::now(), |_| {});
    let (_, group) = bench.groups().remove(0);
    let at = |minute: i64| {
        let found = group.incident_at(START_MS + minute * MINUTE, i64::MIN);
        found.map(|(start_ms, is_open)| ((start_ms - START_MS) / MINUTE, is_open))
    };
    assert_eq!([9, 20, 39, 40].map(at), [None, Some((10, true)), Some((10, true)), Some((10, false))]);
}

#[test]
fn groups_that_vanish_in_their_incidents_end_that_of_the_job() {
    let mut bench = four_groups([Some(30), Some(30), Some(30), None]);
    let samples = job_samples(&mut bench, 30..80);
    let last = samples.iter().rfind(|(_, value)| *value == 1.0).map(|(minute, _)| minute.floor());
    assert_eq!(last, Some(68.0), "ten minutes after their last rows: {samples:?}");
}
