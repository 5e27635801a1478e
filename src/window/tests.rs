use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

fn feature(i: usize) -> Labels {
    let device = format!("eth{i}");
    Labels::new([("__name__", "rx"), ("device", device.as_str())]).expect("valid")
}

/// A sample whose value depends on column and time, so that repetitions do not conflict.
fn sample(column: usize, timestamp_ms: i64) -> Sample {
    let value = (column as f64).mul_add(1e6, timestamp_ms as f64);
    Sample { timestamp_ms, value }
}

/// Every visible cell by feature and time: the content of a window, without its layout.
fn content(window: &Window) -> BTreeMap<(Labels, i64), u64> {
    let mut all = BTreeMap::new();
    for (labels, column, _) in window.features() {
        let mut samples = Vec::new();
        window.samples(column, i64::MIN, i64::MAX, &mut samples);
        all.extend(samples.iter().map(|s| ((labels.clone(), s.timestamp_ms), s.value.to_bits())));
    }
    all
}

fn filled(length_ms: i64, cells: &[(usize, i64)]) -> Window {
    let mut window = Window::new(length_ms);
    for (i, timestamp_ms) in cells {
        let column = window.get_or_add_column(&feature(*i)).expect("fewer columns than the limit");
        window.push(column, sample(*i, *timestamp_ms));
    }
    window
}

#[test]
fn three_states_of_a_cell() {
    let mut window = Window::new(60_000);
    let column = window.get_or_add_column(&feature(0)).expect("fewer columns than the limit");
    let stale = Sample { timestamp_ms: 2000, value: f64::from_bits(crate::prom::STALE_BITS) };
    let nan = Sample { timestamp_ms: 3000, value: f64::NAN };
    assert_eq!(window.push(column, stale), PushOutcome::Stored);
    assert_eq!(window.push(column, nan), PushOutcome::Stored);
    let mut samples = Vec::new();
    window.samples(column, 0, 5000, &mut samples);
    assert_eq!(samples, [stale, nan]);
    assert!(samples[0].is_stale() && !samples[1].is_stale());
    assert_eq!(window.newest_sample(column, 3000, 5000), None);
}

#[test]
fn duplicates_conflicts_and_the_edge_of_the_window() {
    let mut window = Window::new(10_000);
    let column = window.get_or_add_column(&feature(0)).expect("fewer columns than the limit");
    let at = |timestamp_ms, value| Sample { timestamp_ms, value };
    assert_eq!(window.push(column, at(20_000, 1.0)), PushOutcome::Stored);
    assert_eq!(window.push(column, at(20_000, 1.0)), PushOutcome::Duplicate);
    assert_eq!(window.push(column, at(20_000, 2.0)), PushOutcome::Conflict);
    assert_eq!(window.push(column, at(10_000, 1.0)), PushOutcome::TooOld);
    assert_eq!(window.push(column, at(10_001, 1.0)), PushOutcome::Stored);
    assert_eq!(window.newest_sample(column, 19_999, 20_000), Some(at(20_000, 1.0)));
}

#[test]
fn scores_are_stored_beside_the_samples_and_can_be_replaced() {
    // Enough rows for sealed chunks.
    let cells: Vec<_> = (0..1000).map(|i| (0, i * 1000)).collect();
    let mut window = filled(i64::MAX / 4, &cells);
    for timestamp_ms in [5_000, 900_000, 5_000] {
        window.set_score(
            ModelRole::Champion,
            timestamp_ms,
            Score { decision: timestamp_ms as f64, score: 1.0, incident_state: None },
        );
    }
    window.set_score(ModelRole::Champion, 5_000, Score { decision: -0.25, score: 1.5, incident_state: None });
    let scores: Vec<_> = window.scores(ModelRole::Champion, 0, i64::MAX).collect();
    assert_eq!(
        scores,
        [
            (5_000, Score { decision: -0.25, score: 1.5, incident_state: None }),
            (900_000, Score { decision: 900_000.0, score: 1.0, incident_state: None })
        ]
    );
    assert_eq!(window.score(ModelRole::Champion, 6_000), None);
}

#[test]
fn memory_is_bounded_by_the_length() {
    let cells: Vec<_> = (0..100_000).map(|i| (i % 3, i as i64 * 1000)).collect();
    let window = filled(600_000, &cells);
    assert_eq!(window.timestamps(i64::MIN, i64::MAX).count(), 600);
    assert!(window.chunks.len() <= 600 / chunk::CHUNK_ROWS + 1);
}

/// Each of a hundred targets has timestamps of its own, which are rows without a cell of the others.
#[test]
fn the_memory_of_a_group_of_many_targets_is_that_of_its_samples() {
    const SCRAPES: i64 = 1440;
    let fill = |n_targets: usize| {
        let mut window = Window::new(SCRAPES * 15_000);
        let columns: Vec<Column> =
            (0..200).map(|i| window.get_or_add_column(&feature(i)).expect("few")).collect();
        for scrape in 0..SCRAPES {
            for (i, column) in columns.iter().enumerate() {
                let phase = (i % n_targets) as i64 * 150;
                window.push(*column, sample(i, scrape * 15_000 + phase));
            }
        }
        window.n_bytes() / columns.len()
    };
    let (of_one, of_many) = (fill(1), fill(100));
    assert!(of_one < 6 << 10, "{of_one} bytes a series");
    // Each row has a timestamp and each cell a row.
    assert!(of_many < 15 << 10, "{of_many} bytes a series");
}

/// A row takes memory for its own cells only: senders of samples choose the timestamps.
#[test]
fn a_row_costs_its_cells_and_not_all_columns() {
    let mut window = Window::new(i64::MAX / 4);
    for i in 0..1000 {
        let column = window.get_or_add_column(&feature(i)).expect("few");
        window.push(column, sample(i, 0));
    }
    let before = window.n_bytes();
    let column = window.find_column(&feature(999)).expect("known");
    // In descending order, so that each row is inserted before the others, in sealed rows too.
    for i in (1..100_000).rev() {
        window.push(column, sample(999, i * 7));
    }
    let grown = window.n_bytes() - before;
    assert!(grown < 100_000 * 48, "{grown} bytes for 100,000 samples");
}

#[test]
fn a_copy_shares_the_sealed_chunks() {
    let cells: Vec<_> = (0..1000).map(|i| (0, i * 1000)).collect();
    let window = filled(i64::MAX / 4, &cells);
    let copy = window.clone();
    assert!(!window.chunks.is_empty());
    let address = |chunk: &Chunk| match chunk {
        Chunk::Sealed(rows) => Arc::as_ptr(rows),
        Chunk::Thawed(_) => panic!("the chunks are sealed"),
    };
    assert!(window.chunks.iter().map(address).eq(copy.chunks.iter().map(address)));

    // The copy does not get late samples.
    let mut later = window.clone();
    let column = later.get_or_add_column(&feature(1)).expect("fewer columns than the limit");
    assert_eq!(later.push(column, sample(1, 3_000)), PushOutcome::Stored);
    let mut last = later.clone();
    assert_eq!(last.push(column, sample(1, 4_000)), PushOutcome::Stored);
    let added = |window: &Window| content(window).len() - 1000;
    assert_eq!([&copy, &later, &last].map(added), [0, 1, 2]);
}

#[test]
fn a_fill_series_by_series_thaws_a_chunk_once() {
    let cells: Vec<_> = (0..50).flat_map(|column| (0..1400).map(move |i| (column, i * 1000))).collect();
    let mut window = Window::new(i64::MAX / 4);
    let mut thawed = 0;
    for (i, timestamp_ms) in &cells {
        let before: Vec<bool> = window.chunks.iter().map(is_thawed).collect();
        let column = window.get_or_add_column(&feature(*i)).expect("fewer columns than the limit");
        assert_eq!(window.push(column, sample(*i, *timestamp_ms)), PushOutcome::Stored);
        let after = window.chunks.iter().map(is_thawed);
        thawed += before.into_iter().zip(after).filter(|(before, after)| !before & after).count();
    }
    assert_eq!(thawed, window.chunks.len());
    // The next rows seal the chunks again.
    let cells: Vec<_> = (1400..1700).map(|i| (0, i * 1000)).collect();
    for (i, timestamp_ms) in &cells {
        let column = window.get_or_add_column(&feature(*i)).expect("fewer columns than the limit");
        window.push(column, sample(*i, *timestamp_ms));
    }
    assert!(!window.chunks.iter().any(is_thawed));
}

fn is_thawed(chunk: &Chunk) -> bool {
    matches!(chunk, Chunk::Thawed(_))
}

#[test]
fn a_view_holds_the_requested_columns_at_one_moment() {
    let cells: Vec<_> = (0..900).map(|i| (i % 3, (i / 3) as i64 * 1000)).collect();
    let mut window = filled(i64::MAX / 4, &cells);
    let score = Score { decision: 0.5, score: 1.0, incident_state: None };
    for timestamp_ms in [100_000, 299_000] {
        window.set_score(ModelRole::Champion, timestamp_ms, score);
    }
    assert!(!window.chunks.is_empty() && window.open.timestamps().len() > 1);
    let column = |i: usize| window.find_column(&feature(i)).expect("known");
    let columns = [column(2), column(0)];
    for (after_ms, to_ms) in [(i64::MIN, i64::MAX), (99_000, 101_000), (298_000, 299_000), (400_000, 500_000)]
    {
        let view = window.view(&columns, &[ModelRole::Champion], after_ms, to_ms);
        let mut later = window.clone();
        later.push(column(0), sample(0, 300_000));
        for column in columns {
            let (mut expected, mut seen) = (Vec::new(), Vec::new());
            window.samples(column, after_ms, to_ms, &mut expected);
            view.samples(column, &mut seen);
            assert_eq!(seen, expected);
        }
        let expected: Vec<_> = window.scores(ModelRole::Champion, after_ms, to_ms).collect();
        assert_eq!(view.scores(ModelRole::Champion).collect::<Vec<_>>(), expected);
    }
}

proptest! {
    /// The window equals a map of cells within its length, for any order with repetitions.
    #[test]
    fn any_order_and_repetition_gives_the_same_window(
        cells in prop::collection::vec((0..4_usize, 0..700_i64), 1..900),
        length_steps in 1..900_i64,
        seed in any::<u64>(),
    ) {
        let cells: Vec<_> = cells.into_iter().map(|(i, step)| (i, step * 1000)).collect();
        let length_ms = length_steps * 1000;
        let newest = cells.iter().map(|(_, t)| *t).max().expect("at least one cell");
        let expected: BTreeMap<_, _> = cells
            .iter()
            .filter(|(_, t)| *t > newest - length_ms)
            .map(|(i, t)| ((feature(*i), *t), sample(*i, *t).value.to_bits()))
            .collect();
        let mut shuffled = [cells.clone(), cells.clone()].concat();
        let mut state = seed;
        for i in (1..shuffled.len()).rev() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            shuffled.swap(i, (state >> 33) as usize % (i + 1));
        }
        prop_assert_eq!(&content(&filled(length_ms, &cells)), &expected);
        prop_assert_eq!(&content(&filled(length_ms, &shuffled)), &expected);
    }
}

proptest! {
    /// A window read back from columns is equal bit for bit, and takes further samples alike.
    #[test]
    fn a_window_survives_the_round_trip_through_arrow(
        cells in prop::collection::vec((0..4_usize, 0..700_i64), 1..900),
        later in prop::collection::vec((0..5_usize, 0..800_i64), 0..50),
    ) {
        let mut window = filled(500_000, &cells.iter().map(|(i, t)| (*i, t * 1000)).collect::<Vec<_>>());
        let incident_state = Some(IncidentState { threshold: 2.5, is_incident: true });
        let times: Vec<i64> = window.timestamps(i64::MIN, i64::MAX).step_by(3).collect();
        for time in &times {
            window.set_score(ModelRole::Champion, *time, Score { decision: -0.0, score: f64::NAN, incident_state });
        }
        let features: Vec<Labels> = window.features().map(|(labels, ..)| labels.clone()).collect();
        let (timestamps, columns) = window.to_arrow();
        let mut again = Window::from_arrow(500_000, &features, &timestamps, &columns).expect("columns of a window");
        prop_assert_eq!(again.newest_ms(), window.newest_ms());
        let of_cells = Window::from_cells(500_000, &features, &window.to_cells()).expect("cells of a window");
        prop_assert_eq!(of_cells.newest_ms(), window.newest_ms());
        prop_assert_eq!(content(&of_cells), content(&window));
        prop_assert!(of_cells.scores(ModelRole::Champion, i64::MIN, i64::MAX).map(|(time, _)| time).eq(
            window.scores(ModelRole::Champion, i64::MIN, i64::MAX).map(|(time, _)| time)
        ));
        for (i, time) in &later {
            for window in [&mut window, &mut again] {
                let column = window.get_or_add_column(&feature(*i)).expect("fewer columns than the limit");
                window.push(column, sample(*i, time * 1000));
            }
        }
        prop_assert_eq!(content(&again), content(&window));
        let bits = |window: &Window| -> Vec<(i64, u64, u64)> {
            let scores = window.scores(ModelRole::Champion, i64::MIN, i64::MAX);
            scores.map(|(time, score)| (time, score.decision.to_bits(), score.score.to_bits())).collect()
        };
        prop_assert_eq!(bits(&again), bits(&window));
        // A sample that has left the window is no longer the newest one of its feature.
        let inside = |window: &Window, newest: Option<Sample>| newest.filter(|s| s.timestamp_ms > window.start_ms());
        let newest = |window: &Window| -> Vec<Option<Sample>> {
            window.features().map(|(_, _, newest)| inside(window, newest)).collect()
        };
        prop_assert_eq!(newest(&again), newest(&window));
    }
}

#[test]
fn invalid_columns_are_rejected() {
    let window = filled(10_000, &[(0, 1000), (1, 2000)]);
    let (timestamps, columns) = window.to_arrow();
    let error_of = |features: &[Labels], timestamps: &arrow_array::Int64Array, n: usize| {
        Window::from_arrow(10_000, features, timestamps, &columns[..n]).expect_err("no window").to_string()
    };
    let both = [feature(0), feature(1)];
    assert_eq!(error_of(&both, &timestamps, 7), "number of columns is 7, must be 8");
    assert_eq!(
        error_of(&[feature(0), feature(0)], &timestamps, 8),
        "feature is rx{device=\"eth0\"}, must be there once"
    );
    assert_eq!(error_of(&both, &vec![2, 1].into(), 8), "timestamp of a row is 1, must be after 2");
    assert_eq!(error_of(&both, &vec![1].into(), 8), "length of a column is 2, must be 1");
    let error_of_cells = |columns: Vec<u16>, timestamps: Vec<i64>| {
        let values = vec![0.0; columns.len()].into();
        let cells = arrow::ArrowCells { columns: columns.into(), timestamps: timestamps.into(), values };
        Window::from_cells(10_000, &both, &cells).expect_err("no window").to_string()
    };
    assert_eq!(error_of_cells(vec![8], vec![1]), "column of a cell is 8, must be below 8");
    assert_eq!(error_of_cells(vec![6, 6], vec![1, 1]), "timestamp of a cell is 1, must be after 1");
}
