use super::*;
use crate::forest::MaxSamples;

const MINUTE_MS: i64 = 60_000;
const DAY: i64 = 24 * 60;
const THREADS: NonZeroUsize = NonZeroUsize::new(2).expect("2 is not zero");

/// A server: traffic in and out with a daily rhythm, an error counter that stays 0, and a clock drift.
fn row(minute: i64) -> Vec<f32> {
    let mut state = (minute as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d;
    let mut noise = || {
        // xorshift64* (Vigna 2016).
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    let hour = minute.rem_euclid(DAY) as f32 / 60.0;
    let load = 500.0 - 450.0 * (hour * std::f32::consts::PI / 12.0).cos();
    let in_ = load * (1.0 + 0.1 * noise());
    vec![in_, 0.5 * in_ + 10.0 * noise(), 0.0, 5.0 + noise()]
}

const IN: usize = 0;
const ERRORS: usize = 2;

fn fit(minutes: std::ops::Range<i64>, params: &ExtendedParams, threads: NonZeroUsize) -> OnlineDetector {
    let timestamps: Vec<i64> = minutes.clone().map(|minute| minute * MINUTE_MS).collect();
    let rows: Vec<Vec<f32>> = minutes.map(row).collect();
    let values: Vec<f32> = (0..4).flat_map(|feature| rows.iter().map(move |row| row[feature])).collect();
    let table = Table::new(&values, rows.len(), 4).expect("a valid shape");
    OnlineDetector::fit(&timestamps, &table, params, DEFAULT_BUDGET, threads).expect("the rows are valid")
}

fn fitted(days: i64) -> OnlineDetector {
    fit(0..days * DAY, &ExtendedParams::default(), THREADS)
}

/// The assessment with the highest score of these minutes.
fn highest_score(
    detector: &mut OnlineDetector,
    minutes: std::ops::Range<i64>,
    change: impl Fn(&mut [f32]),
) -> Assessment {
    let assessments = minutes.filter_map(|minute| {
        let mut values = row(minute);
        change(&mut values);
        detector.assess(minute * MINUTE_MS, &values)
    });
    assessments.max_by(|a, b| a.score.total_cmp(&b.score)).expect("at least one row")
}

#[test]
fn a_normal_day_has_few_incidents() {
    let mut detector = fitted(5);
    let (mut incidents, mut open) = (0, false);
    for minute in 5 * DAY..8 * DAY {
        let assessment = detector.assess(minute * MINUTE_MS, &row(minute)).expect("the next row");
        assert!(assessment.score.is_finite() && assessment.score >= 0.0 && assessment.decision.abs() <= 0.5);
        incidents += usize::from(assessment.incident && !open);
        open = assessment.incident;
    }
    assert!(incidents <= 5, "{incidents} in three days, for a budget of one a day");
}

#[test]
fn noon_traffic_at_three_in_the_morning_is_an_incident() {
    let mut detector = fitted(5);
    let noon = row(5 * DAY + 12 * 60)[IN];
    let night = 5 * DAY + 3 * 60;
    highest_score(&mut detector, 5 * DAY..night, |_| {});
    let assessment = highest_score(&mut detector, night..night + 3, |values| values[IN] = noon);
    assert!(assessment.incident && assessment.score > 1.0, "{assessment:?}");
    assert_eq!(assessment.contributions(1).next().map(|(feature, ..)| feature), Some(IN));
    // The same value at noon scores low.
    let mut detector = fitted(5);
    highest_score(&mut detector, 5 * DAY..5 * DAY + 12 * 60, |_| {});
    let at_noon = highest_score(&mut detector, 5 * DAY + 12 * 60..5 * DAY + 12 * 60 + 3, |_| {});
    assert!(assessment.score > 3.0 * at_noon.score, "{assessment:?} {at_noon:?}");
}

#[test]
fn a_level_that_rises_slowly_is_unusual_for_its_hour() {
    let mut detector = fitted(5);
    let night = 5 * DAY + 60;
    highest_score(&mut detector, 5 * DAY..night, |_| {});
    let mut last = None;
    for minute in night..night + 240 {
        let mut values = row(minute);
        values[IN] += 2.0 * (minute - night) as f32;
        last = detector.assess(minute * MINUTE_MS, &values);
    }
    let assessment = last.expect("the next row");
    assert_eq!(
        assessment.contributions(1).next().map(|(m, why, _)| (m, why)),
        Some((IN, DeviationReason::UnusualForThisHour))
    );
    let [low, middle, high] = assessment.expected_range[IN];
    assert!(
        low < middle && middle < high && high < f64::from(row(night)[IN]) + 480.0,
        "{:?}",
        assessment.expected_range[IN]
    );
}

#[test]
fn a_feature_constant_in_training_is_detected_when_it_moves() {
    let mut detector = fitted(3);
    let assessment = highest_score(&mut detector, 3 * DAY..3 * DAY + 3, |values| values[ERRORS] = 1.0);
    assert!(assessment.incident, "{assessment:?}");
    assert_eq!(assessment.contributions(1).next().map(|(feature, ..)| feature), Some(ERRORS));
}

/// The most that a score is above its threshold in twelve rows with a change, after three minutes of a host at 5 s. In
/// four rows of the last minute, its traffic is `odd` times the usual, and the first three rows are earlier by a gap.
fn first_minutes_score(odd: f32, gap_ms: i64, change: impl Fn(usize, &mut [f32])) -> f64 {
    let feature = |feature: usize| move |second: usize| row(second as i64)[3] * [100.0, 20.0, 1.0][feature];
    let n_rows = 36;
    let trained = |number: usize| {
        move |row: usize| feature(number)(row) * if (31..35).contains(&row) { odd } else { 1.0 }
    };
    let timestamps = (0..n_rows as i64).map(|row| if row < 3 { row * 5_000 - gap_ms } else { row * 5_000 });
    let timestamps: Vec<i64> = timestamps.collect();
    let idle = |_: usize| 0.0;
    let values = (0..3).flat_map(|number| (0..n_rows).map(trained(number))).chain((0..n_rows).map(idle));
    let values: Vec<f32> = values.collect();
    let table = Table::new(&values, n_rows, 4).expect("a valid shape");
    let fit = OnlineDetector::fit(&timestamps, &table, &ExtendedParams::default(), DEFAULT_BUDGET, THREADS);
    let mut detector = fit.expect("the rows are valid");
    let scores = (0..12).map(|number| {
        let now = n_rows + number;
        let mut values = [feature(0)(now), feature(1)(now), feature(2)(now), 0.0];
        change(number, &mut values);
        let assessment = detector.assess(now as i64 * 5_000, &values).expect("the next row");
        assessment.score / assessment.threshold
    });
    scores.fold(0.0, f64::max)
}

#[test]
fn in_the_first_minutes_only_what_is_many_times_the_usual_is_an_incident() {
    // A rate over a minute rises for a minute.
    let times = |factor: f32| {
        move |number: usize, values: &mut [f32]| {
            let factor = 1.0 + (factor - 1.0) * (number + 1) as f32 / 12.0;
            values[..2].iter_mut().for_each(|value| *value *= factor);
        }
    };
    let awakes = |_: usize, values: &mut [f32]| values[3] = 13.0;
    let [thrice, awake, burst] = [
        first_minutes_score(1.0, 0, times(3.0)),
        first_minutes_score(1.0, 0, awakes),
        first_minutes_score(1.0, 0, times(15.0)),
    ];
    let after_gap = first_minutes_score(1.0, DAY * MINUTE_MS, times(3.0));
    assert!(after_gap < 1.0, "the host was off for a day: {after_gap}");
    assert!(thrice < 1.0 && awake < 0.5 && burst > 1.1, "{thrice} {awake} {burst}");
    let [usual, burst] =
        [first_minutes_score(34.0, 0, times(34.0)), first_minutes_score(34.0, 0, times(3000.0))];
    assert!(usual < 1.0 && burst > 1.0, "after 20 s of 34 times the usual: {usual} {burst}");
}

fn set_alerts(detector: &mut OnlineDetector, alerts: &str, metrics: [&str; 4]) {
    let text = format!("detectors: [{{name: a, match: [up], alerts: {alerts}}}]");
    let config = crate::config::Config::parse(&text).expect("valid");
    let feature = |name| Labels::new([(crate::prom::METRIC_NAME, name)]).expect("valid");
    detector.set_alerts(&config.detectors[0].alerts, &metrics.map(feature));
}

#[test]
fn masked_deviations_raise_no_alert() {
    let noon = 5 * DAY + 12 * 60;
    let assess_with = |text: &str, by: f32| {
        let mut detector = fitted(5);
        set_alerts(&mut detector, text, ["in", "out", "errors", "clock"]);
        highest_score(&mut detector, 5 * DAY..noon, |_| {});
        highest_score(&mut detector, noon..noon + 2, |values| values[IN] *= by)
    };
    let all = assess_with("{}", 3.0);
    for (text, up, down) in [
        ("{direction: up}", true, false),
        ("{direction: down}", false, true),
        ("{min_deviation: [{match: in, absolute: 100}]}", true, true),
        ("{min_deviation: [{match: in, absolute: 1e6}]}", false, false),
        ("{min_deviation: [{match: in, relative: 1.0}]}", true, false),
        ("{min_deviation: [{match: '{__name__=~\"out|clock\"}', absolute: 1e6}]}", true, true),
    ] {
        for (by, is_detected) in [(3.0, up), (0.1, down)] {
            let assessment = assess_with(text, by);
            assert_eq!(
                assessment.score >= 1.0,
                is_detected,
                "{text}, {by} times: {} of {}",
                assessment.score,
                all.score
            );
            let first = assessment.contributions(1).next().map(|(feature, ..)| feature);
            assert!(!is_detected || first == Some(IN), "{text}, {by} times: {first:?}");
        }
    }
}

#[test]
fn an_hour_of_history_is_enough_for_a_model() {
    let at = |step: i64| step * 15_000;
    let timestamps: Vec<i64> = (0..240).map(at).collect();
    let rows: Vec<Vec<f32>> = (0..240).map(row).collect();
    let values: Vec<f32> = (0..4).flat_map(|feature| rows.iter().map(move |row| row[feature])).collect();
    let table = Table::new(&values, rows.len(), 4).expect("a valid shape");
    let mut detector = OnlineDetector::fit(&timestamps, &table, &ExtendedParams::default(), 1.0, THREADS)
        .expect("the rows are valid");
    for step in 240..320 {
        let assessment = detector.assess(at(step), &row(step)).expect("the next row");
        assert!(!assessment.incident && assessment.score < 0.8, "{assessment:?}");
        assert!(assessment.expected_range[IN].iter().all(|value| value.is_nan()), "no completed day");
    }
    let burst = (320..323).map(|step| {
        let mut values = row(step);
        values[..2].iter_mut().for_each(|value| *value *= 15.0);
        detector.assess(at(step), &values).expect("the next row").incident
    });
    assert!(burst.collect::<Vec<bool>>().contains(&true), "15 times the traffic within 30 s");
}

#[test]
fn one_feature_and_constant_features_are_enough() {
    for value in [0.0, 7.0] {
        let timestamps: Vec<i64> = (0..300).map(|minute| minute * MINUTE_MS).collect();
        let values = vec![value; 300];
        let table = Table::new(&values, 300, 1).expect("a valid shape");
        let mut detector = OnlineDetector::fit(&timestamps, &table, &ExtendedParams::default(), 1.0, THREADS)
            .expect("the rows are valid");
        let calm = detector.assess(300 * MINUTE_MS, &[value]).expect("the next row");
        assert_eq!((calm.score, calm.incident), (0.0, false));
        let assessment = detector.assess(301 * MINUTE_MS, &[value + 100.0]).expect("the next row");
        assert!(assessment.incident, "{assessment:?}");
    }
}

#[test]
fn the_same_rows_give_the_same_bits_on_any_number_of_threads() {
    let params = ExtendedParams { max_samples: MaxSamples::Auto, ..ExtendedParams::default() };
    let mut detectors =
        [1, 2, 5].map(|n| fit(0..2 * DAY, &params, NonZeroUsize::new(n).expect("n is not zero")));
    for minute in 2 * DAY..2 * DAY + 300 {
        let assessments =
            detectors.each_mut().map(|d| d.assess(minute * MINUTE_MS, &row(minute)).expect("the next row"));
        assert_eq!(assessments[0].score.to_bits(), assessments[1].score.to_bits());
        assert_eq!(assessments[0].decision.to_bits(), assessments[2].decision.to_bits());
    }
}

#[test]
fn a_maintenance_has_scores_and_neither_an_incident_nor_a_threshold_of_its_own() {
    let burst = |values: &mut [f32]| values[IN] *= 20.0;
    let minutes = 5 * DAY + 100..5 * DAY + 160;
    let mut open = fitted(5);
    assert!(highest_score(&mut open, minutes.clone(), burst).incident);
    let mut suspended = fitted(5);
    suspended.set_suspended([minutes.start * MINUTE_MS..=(minutes.end - 1) * MINUTE_MS].into());
    let during = highest_score(&mut suspended, minutes.clone(), burst);
    assert!(!during.incident && during.score > during.threshold, "{} {}", during.score, during.threshold);
    let hours = |detector: &OnlineDetector| detector.thresholds.row.hours().1;
    assert_ne!(hours(&open), hours(&suspended));
    let after = highest_score(&mut suspended, minutes.end..minutes.end + 5, burst);
    assert!(after.incident, "the maintenance is over");
}

#[test]
fn an_incident_of_a_week_does_not_change_the_past() {
    // An assessment depends on past rows only.
    let mut detector = fitted(3);
    let mut copy = detector.clone();
    for minute in 3 * DAY..3 * DAY + 120 {
        let assessment = detector.assess(minute * MINUTE_MS, &row(minute));
        assert_eq!(assessment, copy.assess(minute * MINUTE_MS, &row(minute)));
    }
    highest_score(&mut detector, 3 * DAY + 120..3 * DAY + 200, |values| values[IN] = 1e9);
    assert!(highest_score(&mut copy, 3 * DAY + 120..3 * DAY + 200, |_| {}).score < 2.0);
}

#[test]
fn a_row_that_is_not_newer_is_ignored_and_changes_nothing() {
    let mut detector = fitted(2);
    let mut copy = detector.clone();
    detector.assess(2 * DAY * MINUTE_MS, &row(2 * DAY));
    copy.assess(2 * DAY * MINUTE_MS, &row(2 * DAY));
    for late in [2 * DAY, 2 * DAY - 1] {
        assert_eq!(copy.assess(late * MINUTE_MS, &[9.0; 4]), None);
    }
    let next = 2 * DAY + 1;
    assert_eq!(detector.assess(next * MINUTE_MS, &row(next)), copy.assess(next * MINUTE_MS, &row(next)));
}

#[test]
fn values_that_are_not_finite_are_scored_as_usual() {
    let mut detector = fitted(2);
    let assessment = highest_score(&mut detector, 2 * DAY..2 * DAY + 5, |values| {
        values[IN] = f32::NAN;
        values[ERRORS] = f32::NEG_INFINITY;
    });
    assert!(assessment.score.is_finite(), "{assessment:?}");
}

#[test]
fn more_varying_features_than_a_forest_takes_are_an_error() {
    let n_features = crate::forest::MAX_FEATURES / 4 + 1;
    let values: Vec<f32> = (0..n_features).flat_map(|_| [1.0, 2.0]).collect();
    let table = Table::new(&values, 2, n_features).expect("a valid shape");
    let result = OnlineDetector::fit(&[0, MINUTE_MS], &table, &ExtendedParams::default(), 1.0, THREADS);
    let message = result.expect_err("too many").to_string();
    assert!(message.contains("number of features that vary") && message.contains("at most"), "{message}");
}

/// A process that continues from a checkpoint gives the same bits, within an incident too.
#[test]
fn f45_a_resumed_detector_gives_the_same_scores() {
    let trained = fitted(3);
    let mut detector = trained.clone().with_budget(2.0);
    let mut incidents = 0;
    for minute in 3 * DAY..4 * DAY {
        let mut values = row(minute);
        if minute % 300 < 20 {
            values[IN] *= 4.0;
        }
        if minute % 97 == 0 || minute % 300 == 10 {
            let text = serde_json::to_string(&detector.checkpoint()).expect("numbers and text");
            let checkpoint = serde_json::from_str(&text).expect("a written checkpoint");
            let resumed = trained.resume(checkpoint).expect("a state of this model").with_budget(2.0);
            assert_eq!(resumed, detector, "{minute}");
            detector = resumed;
        }
        let assessment = detector.assess(minute * MINUTE_MS, &values).expect("the next row");
        incidents += usize::from(assessment.incident);
    }
    assert!(incidents > 20, "{incidents} rows of incidents");
    let two = fit(0..2 * DAY, &ExtendedParams::default(), THREADS);
    assert!(two.resume(detector.checkpoint()).is_ok(), "a model of as many features");
}

/// A feature that begins late raises no incident, keeps whole days of the others, and survives a checkpoint.
#[test]
fn a_feature_that_begins_late_is_learned_beside_the_others() {
    let n_rows = 3 * DAY;
    let timestamps: Vec<i64> = (0..n_rows).map(|minute| minute * MINUTE_MS).collect();
    let fit_late = |begin: i64| {
        let value = |minute: i64, feature: usize| match feature {
            IN if minute < begin => f32::NAN,
            _ => row(minute)[feature],
        };
        let values: Vec<f32> =
            (0..4).flat_map(|feature| (0..n_rows).map(move |minute| value(minute, feature))).collect();
        let table = Table::new(&values, n_rows as usize, 4).expect("a valid shape");
        OnlineDetector::fit(&timestamps, &table, &ExtendedParams::default(), DEFAULT_BUDGET, THREADS)
    };
    for begin in [n_rows - 90, n_rows - 5, n_rows - 3 * DAY / 2] {
        let mut detector = fit_late(begin).expect("the rows are valid");
        let text = serde_json::to_string(&detector.checkpoint()).expect("numbers and text");
        let mut resumed = detector
            .resume(serde_json::from_str(&text).expect("a written checkpoint"))
            .expect("a state of this model");
        let mut open = 0;
        for minute in n_rows..n_rows + DAY {
            let assessment = detector.assess(minute * MINUTE_MS, &row(minute)).expect("the next row");
            let again = resumed.assess(minute * MINUTE_MS, &row(minute)).expect("the next row");
            assert_eq!(
                (assessment.score.to_bits(), assessment.incident),
                (again.score.to_bits(), again.incident),
                "{minute}"
            );
            open += usize::from(assessment.incident);
        }
        // An hour of the night does not show the values of noon.
        assert!(open < 30 || begin > n_rows - DAY, "{open} minutes, begun at {begin}");
        let burst = highest_score(&mut detector, n_rows + DAY..n_rows + DAY + 3, |values| values[1] = 2e4);
        assert!(burst.incident && burst.deviations[0].feature == 1, "{burst:?}");
    }
    let never = fit_late(n_rows).expect_err("no values").to_string();
    assert!(never.contains("NaN, must be finite"), "{never}");
}

#[test]
fn a_training_table_has_a_limited_number_of_values() {
    let n_rows = MAX_TRAINING_VALUES / 100 + 1;
    let values = vec![0.0; n_rows * 100];
    let timestamps: Vec<i64> = (0..n_rows as i64).collect();
    let table = Table::new(&values, n_rows, 100).expect("its shape");
    let error = TrainingMatrix::new(&timestamps, &table, Vec::new()).err().expect("too many");
    assert_eq!(
        error.to_string(),
        "number of training values gives 20000100 on a table of 200001 rows and 100 features, must be at most \
         20000000: a shorter history or fewer features"
    );
}

/// Bytes and packets that a link receives, and those that it sends: the load varies much, the size of a packet little.
fn link_row(minute: i64) -> [f32; 4] {
    let load = row(minute)[IN] * (row(minute + 1000 * DAY)[3] - 4.0);
    let bytes = |days: i64| load * 160.0 * row(minute + days * DAY)[3];
    [bytes(2000), load, bytes(3000), load]
}

const LINK_SIZES: [[usize; 2]; 2] = [[0, 1], [2, 3]];

fn fitted_to_a_link(days: i64, mean_sizes: &[[usize; 2]]) -> OnlineDetector {
    let minutes = 0..days * DAY;
    let timestamps: Vec<i64> = minutes.clone().map(|minute| minute * MINUTE_MS).collect();
    let values: Vec<f32> =
        (0..4).flat_map(|feature| minutes.clone().map(move |minute| link_row(minute)[feature])).collect();
    let table = Table::new(&values, timestamps.len(), 4).expect("a valid shape");
    let matrix = TrainingMatrix::new(&timestamps, &table, mean_sizes.to_vec()).expect("the rows are valid");
    let fitted = matrix.fit(&ExtendedParams::default(), THREADS).expect("the parameters are valid");
    OnlineDetector::from_training(fitted).0.with_budget(0.1)
}

/// The row at which what lasts opens an incident, in half an hour of packets of 0.75 times the usual size.
fn incident_of_small_packets(mut detector: OnlineDetector) -> Option<Assessment> {
    let afternoon = 5 * DAY + 15 * 60;
    let mut assess = |minute: i64| {
        let mut values = link_row(minute);
        if minute >= afternoon {
            LINK_SIZES.iter().for_each(|[bytes, _]| values[*bytes] *= 0.75);
        }
        detector.assess(minute * MINUTE_MS, &values).expect("the next row")
    };
    (5 * DAY..afternoon).for_each(|minute| drop(assess(minute)));
    (afternoon..afternoon + 30).map(assess).find(|row| row.opened_by == Some(AlertScore::Lasting))
}

#[test]
fn another_size_of_packets_is_an_incident_though_bytes_and_packets_are_usual() {
    assert_eq!(incident_of_small_packets(fitted_to_a_link(5, &[])), None);
    let incident = incident_of_small_packets(fitted_to_a_link(5, &LINK_SIZES)).expect("an incident");
    let (_, reason, _) = incident.contributions(1).next().expect("a contribution");
    assert_eq!(reason, DeviationReason::OfUnusualPacketSize);
}

#[test]
fn the_size_of_packets_is_usual_where_the_deviations_of_both_are_filtered() {
    let mut detector = fitted_to_a_link(5, &LINK_SIZES);
    let metrics = ["bytes_in", "packets_in", "bytes_out", "packets_out"];
    set_alerts(&mut detector, "{min_deviation: [{match: '{__name__=~\".+\"}', absolute: 1e9}]}", metrics);
    assert_eq!(incident_of_small_packets(detector), None);
}

/// Load of 1.6 times the usual one, of which only the rise of packets counts.
#[test]
fn load_is_no_other_size_of_packets_where_the_deviation_of_one_rate_is_filtered() {
    let mut detector = fitted_to_a_link(5, &LINK_SIZES);
    set_alerts(
        &mut detector,
        "{min_deviation: [{match: bytes, absolute: 1e9}]}",
        ["bytes", "packets", "bytes", "packets"],
    );
    let afternoon = 5 * DAY + 15 * 60;
    let rows = (5 * DAY..afternoon + 30).map(|minute| {
        let load = if minute < afternoon { 1.0 } else { 1.6 };
        detector
            .assess(minute * MINUTE_MS, &link_row(minute).map(|value| load * value))
            .expect("the next row")
    });
    let by_size = |row: &Assessment| {
        row.incident && row.contributions(4).any(|(_, why, _)| why == DeviationReason::OfUnusualPacketSize)
    };
    assert_eq!(rows.filter(by_size).count(), 0);
}

#[test]
fn a_resumed_detector_remembers_the_size_of_packets() {
    let trained = fitted_to_a_link(3, &LINK_SIZES);
    let mut detector = trained.clone();
    for minute in 3 * DAY..3 * DAY + 60 {
        detector.assess(minute * MINUTE_MS, &link_row(minute)).expect("the next row");
    }
    let text = serde_json::to_string(&detector.checkpoint()).expect("numbers and text");
    let checkpoint: Checkpoint = serde_json::from_str(&text).expect("a written checkpoint");
    let resumed = trained.resume(checkpoint.clone()).expect("a state of this model");
    assert_eq!(resumed.with_budget(0.1), detector);
    let other = fitted_to_a_link(3, &[]);
    let error = other.resume(checkpoint).expect_err("a state with mean sizes").to_string();
    assert_eq!(error, "number of lasting deviations is 6, must be 4");
}
