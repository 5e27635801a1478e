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
    for (labels, column) in window.features() {
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
    let (before, after) = cells.split_at(600);
    let mut window = filled(i64::MAX / 4, before);
    let score = Score { decision: 0.5, score: 1.0, incident_state: None };
    window.set_score(ModelRole::Champion, 199_000, score);
    for (i, timestamp_ms) in after {
        let column = window.find_column(&feature(*i)).expect("known");
        window.push(column, sample(*i, *timestamp_ms));
    }
    window.set_score(ModelRole::Champion, 299_000, score);
    assert!(!window.chunks.is_empty() && window.newest.len() > 1);
    let column = |i: usize| window.find_column(&feature(i)).expect("known");
    let columns = [column(2), column(0)];
    for (after_ms, to_ms) in
        [(i64::MIN, i64::MAX), (198_000, 201_000), (298_000, 299_000), (400_000, 500_000)]
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
            window.features().map(|(_, column)| inside(window, window.newest_of(column))).collect()
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

#[test]
fn a_feature_keeps_its_newest_sample_wherever_its_row_is() {
    let mut window = Window::new(100_000);
    let [gone, live] = [0, 1].map(|i| window.get_or_add_column(&feature(i)).expect("few"));
    window.push(gone, sample(0, 1_000));
    window.push(live, sample(1, 1_000));
    // Rows of the other feature move the first one to columns, to a chunk, and out of the window.
    for i in 2..500 {
        assert_eq!(window.newest_of(gone), Some(sample(0, 1_000)), "{i}");
        window.push(live, sample(1, i * 1000));
        assert_eq!(window.newest_of(live), Some(sample(1, i * 1000)));
    }
    assert!(window.start_ms() > 1_000 && window.newest_sample(gone, i64::MIN, i64::MAX).is_none());
    // A late sample, in a row that is sealed.
    let late = sample(0, 410_000);
    assert_eq!(window.push(gone, late), PushOutcome::Stored);
    assert_eq!(window.newest_of(gone), Some(late));
    window.push(gone, sample(0, 405_000));
    assert_eq!(window.newest_of(gone), Some(late));
}

/// Rows of few cells, as those of a hundred targets: their number is bounded, though no column has many cells.
#[test]
fn many_rows_of_few_cells_are_sealed() {
    let mut window = Window::new(i64::MAX / 4);
    let columns: Vec<Column> =
        (0..900).map(|i| window.get_or_add_column(&feature(i)).expect("few")).collect();
    for i in 0..100_000_i64 {
        window.push(columns[i as usize * 7 % 900], sample(0, i));
    }
    assert!(window.chunks.len() >= 3 && window.n_bytes() < 4 << 20, "{} bytes", window.n_bytes());
    assert_eq!(window.timestamps(i64::MIN, i64::MAX).count(), 100_000);
    assert_eq!(content(&window).len(), 100_000);
}

/// A step of a window's life.
#[derive(Clone, Debug)]
enum Step {
    /// A row after all others, with some of the features.
    Row {
        gap: i64,
        features: u8,
    },
    /// A sample up to `age` before the newest row, of any bits.
    Late {
        feature: usize,
        age: i64,
        bits: u64,
    },
    /// A score of a row up to `age` before the newest one.
    Score {
        role: ModelRole,
        age: i64,
        score: f64,
    },
    Rename {
        feature: usize,
    },
    Shrink,
    Copy,
    Reread,
}

fn step() -> impl Strategy<Value = Step> {
    let bits = prop_oneof![
        Just(1.0_f64.to_bits()),
        Just(2.0_f64.to_bits()),
        Just(crate::prom::STALE_BITS),
        Just(f64::NAN.to_bits()),
    ];
    let role = prop_oneof![Just(ModelRole::Champion), Just(ModelRole::Challenger)];
    let age = || prop_oneof![0..4_i64, 0..60_i64, 0..400_i64];
    prop_oneof![
        40 => (prop_oneof![8 => Just(1_i64), 1 => 2..90_i64], any::<u8>())
            .prop_map(|(gap, features)| Step::Row { gap, features }),
        8 => (0..8_usize, age(), bits).prop_map(|(feature, age, bits)| Step::Late { feature, age, bits }),
        12 => (role, age(), any::<f64>()).prop_map(|(role, age, score)| Step::Score { role, age, score }),
        1 => (0..8_usize).prop_map(|feature| Step::Rename { feature }),
        1 => Just(Step::Shrink),
        1 => Just(Step::Copy),
        1 => Just(Step::Reread),
    ]
}

/// The content of a window, as maps.
#[derive(Default)]
struct Expected {
    cells: BTreeMap<(usize, i64), u64>,
    scores: BTreeMap<(ModelRole, i64), u64>,
    newest_ms: i64,
}

impl Expected {
    /// The newest sample of each feature.
    fn newest(&self) -> BTreeMap<Labels, (i64, u64)> {
        self.cells.iter().map(|((name, time_ms), bits)| (feature(*name), (*time_ms, *bits))).collect()
    }
}

/// The newest sample of each feature that is in the window.
fn newest(window: &Window) -> BTreeMap<Labels, (i64, u64)> {
    let newest = |(labels, column): (&Labels, Column)| {
        let sample = window.newest_of(column).filter(|sample| sample.timestamp_ms > window.start_ms());
        let in_range = window.newest_sample(column, i64::MIN, i64::MAX);
        let bits = |sample: Sample| (sample.timestamp_ms, sample.value.to_bits());
        assert_eq!(sample.map(bits), in_range.map(bits));
        Some((labels.clone(), sample.map(bits)?))
    };
    window.features().filter_map(newest).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Samples, scores and copies in any order give the window that maps of cells give, wherever its rows are stored.
    #[test]
    fn any_life_gives_the_window_of_maps(steps in prop::collection::vec(step(), 1..700)) {
        let mut window = Window::new(300_000);
        let mut names: Vec<usize> = (0..8).collect();
        let mut expected = Expected::default();
        let push = |window: &mut Window, expected: &mut Expected, name: usize, time_ms: i64, bits: u64| {
            let column = window.get_or_add_column(&feature(name)).expect("few");
            let outcome = window.push(column, Sample { timestamp_ms: time_ms, value: f64::from_bits(bits) });
            if time_ms <= expected.newest_ms - window.length_ms() {
                return outcome == PushOutcome::TooOld;
            }
            expected.newest_ms = expected.newest_ms.max(time_ms);
            match *expected.cells.entry((name, time_ms)).or_insert(bits) == bits {
                true => matches!(outcome, PushOutcome::Stored | PushOutcome::Duplicate),
                false => outcome == PushOutcome::Conflict,
            }
        };
        prop_assert!(push(&mut window, &mut expected, names[0], 0, 0));
        for (i, step) in steps.into_iter().enumerate() {
            match step {
                Step::Row { gap, features } => {
                    let time_ms = expected.newest_ms + gap * 1000;
                    for i in (0..8).filter(|i| features >> i & 1 == 1) {
                        prop_assert!(push(&mut window, &mut expected, names[i], time_ms, i as u64));
                    }
                }
                Step::Late { feature, age, bits } => {
                    let time_ms = expected.newest_ms - age * 1000;
                    prop_assert!(push(&mut window, &mut expected, names[feature], time_ms, bits));
                }
                Step::Score { role, age, score } => {
                    let time_ms = expected.newest_ms - age * 1000;
                    if time_ms > window.start_ms() && expected.cells.keys().any(|(_, time)| *time == time_ms) {
                        window.set_score(role, time_ms, Score { decision: score, score, incident_state: None });
                        expected.scores.insert((role, time_ms), score.to_bits());
                    }
                }
                Step::Rename { feature: i } => {
                    let (old, new) = (names[i], names[i] + 8);
                    if let Some(column) = window.find_column(&feature(old)) {
                        window.rename_feature(column, feature(new));
                        let cells = std::mem::take(&mut expected.cells).into_iter();
                        let name = |name| if name == old { new } else { name };
                        expected.cells = cells.map(|((of, time), bits)| ((name(of), time), bits)).collect();
                        names[i] = new;
                    }
                }
                Step::Shrink => window.set_length((window.length_ms() - 20_000).max(20_000)),
                Step::Copy => {
                    let labels: Vec<Labels> = window.features().map(|(labels, _)| labels.clone()).collect();
                    let before = window.clone();
                    window = window.with_features(&labels);
                    prop_assert_eq!(content(&before), content(&window));
                }
                Step::Reread => {
                    let labels: Vec<Labels> = window.features().map(|(labels, _)| labels.clone()).collect();
                    let (timestamps, columns) = window.to_arrow();
                    window = Window::from_arrow(window.length_ms(), &labels, &timestamps, &columns).expect("own");
                }
            }
            let start_ms = expected.newest_ms - window.length_ms();
            expected.cells.retain(|(_, time), _| *time > start_ms);
            expected.scores.retain(|(_, time), _| *time > start_ms);
            if i % 16 == 0 {
                prop_assert_eq!(newest(&window), expected.newest());
            }
        }
        prop_assert_eq!(newest(&window), expected.newest());
        let cells = expected.cells.iter().map(|((name, time), bits)| ((feature(*name), *time), *bits));
        prop_assert_eq!(content(&window), cells.collect::<BTreeMap<_, _>>());
        for role in ModelRole::ALL {
            let scores = expected.scores.iter().filter(|((of, _), _)| *of == role);
            let bits: Vec<_> = scores.map(|((_, time), bits)| (*time, *bits, *bits)).collect();
            let scores = window.scores(role, i64::MIN, i64::MAX);
            let found: Vec<_> = scores
                .map(|(time, score)| (time, score.decision.to_bits(), score.score.to_bits())).collect();
            prop_assert_eq!(found, bits);
        }
    }
}
