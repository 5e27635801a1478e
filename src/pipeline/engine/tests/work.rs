//! The rows of one command are bounded; the others follow after other commands.

use super::sequential::*;
use super::*;

const N_ROWS: i64 = 1_500;
const FIRST_MS: i64 = START_MS + 200 * STEP_MS;

fn at(i: i64) -> i64 {
    FIRST_MS + i * 2_000
}

/// The samples of a device at these rows.
fn samples(device: usize, rows: impl IntoIterator<Item = i64>) -> TimeSeries {
    let samples: Vec<_> = rows.into_iter().map(|i| (at(i), counters(i)[device].1)).collect();
    rx(counters(0)[device].0, &samples)
}

fn n_scored(bench: &mut Bench) -> usize {
    bench.groups()[0].1.window().scores(ModelRole::Champion, FIRST_MS - 1, i64::MAX).count()
}

fn count(bench: &Bench, state: &str) -> u64 {
    bench.metric(&format!(r#"rows_total{{detector="node_network",state="{state}"}}"#))
}

/// The rest of the rows, and the number of rounds that it took.
fn finish(bench: &mut Bench, now: Instant) -> usize {
    let mut rounds = 0;
    while !bench.engine.backlog.is_empty() {
        assert!(rounds < 100, "the rows end");
        bench.engine.advance_backlog(now, now_ms());
        rounds += 1;
    }
    rounds
}

#[test]
fn one_request_scores_a_bounded_number_of_rows_and_the_rest_follows() {
    for model in [sequential_model(), two_features()] {
        let mut bench = running(&model, 200);
        bench.send(vec![samples(0, 0..N_ROWS), samples(1, 0..N_ROWS)]);
        assert!(n_scored(&mut bench) < 500, "{}", n_scored(&mut bench));
        assert!(!bench.engine.backlog.is_empty());
        let now = Instant::now();
        assert!(finish(&mut bench, now) >= 1);
        assert!(n_scored(&mut bench) > N_ROWS as usize - 100);

        let mut one_by_one = running(&model, 200);
        for i in 0..N_ROWS {
            one_by_one.send(vec![samples(0, [i]), samples(1, [i])]);
        }
        assert!(one_by_one.engine.backlog.is_empty());
        assert!(outcome(&mut bench) == outcome(&mut one_by_one));
        assert_eq!(count(&bench, "complete"), count(&one_by_one, "complete"));
    }
}

#[test]
fn one_tick_closes_a_bounded_number_of_rows_and_the_rest_follows() {
    let mut bench = running(&sequential_model(), 200);
    bench.send(vec![samples(0, 0..N_ROWS)]);
    assert!(bench.engine.backlog.is_empty(), "they wait for the other device");
    let now = Instant::now() + Duration::from_secs(3_600);
    bench.tick(now);
    let closed = count(&bench, "incomplete");
    assert!((400..500).contains(&closed), "{closed}");
    finish(&mut bench, now);
    assert_eq!(count(&bench, "incomplete"), N_ROWS as u64 - 1, "but the newest, which may become complete");
}

/// Rows without a sample of the model are passed, however many are at the front.
#[test]
fn many_rows_of_other_features_hold_up_no_later_row() {
    let mut bench = running(&sequential_model(), 200);
    let others: Vec<_> = (0..N_ROWS).map(|i| (at(i) + 1, 1.0)).collect();
    bench.send(vec![rx("eth9", &others)]);
    let now = Instant::now();
    assert!(finish(&mut bench, now) >= 1);
    bench.send(vec![samples(0, 0..40), samples(1, 0..40)]);
    finish(&mut bench, now);
    assert!(n_scored(&mut bench) > 0);
}

/// The first sample of a slot may be one that the model does not know.
#[test]
fn a_sample_of_another_feature_first_in_a_slot_hides_no_row() {
    let mut model = Model::clone(&sequential_model());
    let slot_start_ms = (START_MS - 5_000).rem_euclid(STEP_MS);
    model.schema.grid = Grid::Slots { interval_ms: STEP_MS, slot_start_ms };
    let mut bench = running(&Arc::new(model), 200);
    for i in 200..260 {
        bench.send(vec![rx("eth9", &[(time(i) - 3_000, 1.0)])]);
        push(&mut bench, [i]);
    }
    assert_eq!(n_scored(&mut bench), 60);
}

#[test]
fn rows_that_wait_for_their_turn_are_scored_after_a_reload() {
    let mut bench = running(&sequential_model(), 200);
    bench.send(vec![samples(0, 0..N_ROWS), samples(1, 0..N_ROWS)]);
    assert!(n_scored(&mut bench) < 500);
    let config = bench.config();
    bench.reload(config, vec![Arc::default()]);
    finish(&mut bench, Instant::now());
    assert!(n_scored(&mut bench) > N_ROWS as usize - 100, "{}", n_scored(&mut bench));
}
