use super::*;
use crate::forest::MaxSamples;
use proptest::prelude::*;

const N_ROWS: usize = 400;

/// Even values in `[0, 1)`, unrelated for every `k`: splitmix64's output function.
fn noise(k: usize) -> f32 {
    let z = (k as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 40) as f32 / 16_777_216.0
}

fn column(value: impl Fn(usize) -> f32) -> Vec<f32> {
    (0..N_ROWS).map(value).collect()
}

fn fit_with(params: &ExtendedParams, columns: &[Vec<f32>]) -> Extended {
    let values = columns.concat();
    let table = Table::new(&values, columns[0].len(), columns.len()).expect("a table");
    Extended::fit(params, &table, NonZeroUsize::MIN).expect("fits")
}

fn fit(columns: &[Vec<f32>]) -> Extended {
    fit_with(&ExtendedParams::default(), columns)
}

/// Two that move together on scales of their own, and between them one that does not move.
fn columns() -> [Vec<f32>; 3] {
    let follow = column(|k| 1e6 * (noise(k) + 0.05 * noise(N_ROWS + k)));
    [column(noise), column(|_| 7.0), follow]
}

#[test]
fn constant_columns_take_no_part() {
    let extended = fit(&columns());
    let coordinates = extended.coordinates();
    assert_eq!((coordinates.columns(), coordinates.n_features(), coordinates.width()), (&[0, 2][..], 3, 4));
    let score = extended.score_samples(&[0.5, 7.0, 5e5]);
    assert_eq!(extended.score_samples(&[0.5, -1e9, 5e5]), score);
    assert_eq!(coordinates.scales()[1].sigma(), 0.07, "but it has a scale");
}

#[test]
fn coordinates_are_of_one_scale() {
    let [a, constant, b] = columns();
    let coordinates = fit(&[a.clone(), constant, b.clone()]).coordinates;
    let mut n_usual = [0; 4];
    for row in 0..N_ROWS {
        for (n_usual, value) in n_usual.iter_mut().zip(coordinates.apply(&[a[row], 7.0, b[row]])) {
            *n_usual += usize::from(value.abs() <= 2.576);
        }
    }
    assert!(n_usual.iter().all(|n_usual| (390..=400).contains(n_usual)), "{n_usual:?}");
}

#[test]
fn a_row_off_the_common_movement_stands_out() {
    let extended = fit(&columns());
    let off = extended.score_samples(&[0.2, 7.0, 8e5]);
    for on in [0.2, 0.5, 0.8] {
        let usual = extended.score_samples(&[on, 7.0, 1e6 * (on + 0.025)]);
        assert!(off < usual - 0.1 && usual > Extended::OFFSET, "{off}, {usual}");
    }
}

#[test]
fn the_further_out_the_lower_and_nothing_blinds_it() {
    let extended = fit(&columns());
    let score = |value| extended.score_samples(&[value, 7.0, 5e5]);
    let out = [2.0, 20.0, 2e3, 2e30].map(score);
    assert!(out.is_sorted_by(|near, far| near > far) && out[0] < -0.5, "{out:?}");
    let endless = score(f32::INFINITY);
    assert!(endless < -0.9, "{endless}");
    let unknown = extended.score_samples(&[f32::NAN, f32::NAN, 5e5]);
    assert!(unknown > Extended::OFFSET, "{unknown}");
}

#[test]
fn one_column_has_no_residual() {
    let extended = fit(&[column(noise)]);
    assert_eq!((extended.coordinates().width(), extended.coordinates().residuals()), (1, None));
    assert!(extended.score_samples(&[3.0]) < extended.score_samples(&[0.5]) - 0.1);
}

#[test]
fn if_all_is_constant_every_row_is_at_the_threshold() {
    for max_samples in [1, 2, 5, 256, 1_000] {
        let max_samples = MaxSamples::count(max_samples).expect("above 0");
        let params = ExtendedParams { max_samples, ..Default::default() };
        let extended = fit_with(&params, &[column(|_| 3.0), column(|_| 0.0)]);
        assert_eq!(
            (extended.coordinates().columns(), extended.coordinates().residuals()),
            (&[0, 1][..], None)
        );
        for row in [[3.0, 0.0], [4.0, -1e30], [f32::NAN, f32::INFINITY]] {
            assert_eq!(extended.score_samples(&row), Extended::OFFSET);
        }
    }
}

#[test]
fn a_table_scores_as_its_rows() {
    let columns = columns();
    let (extended, values) = (fit(&columns), columns.concat());
    let table = Table::new(&values, N_ROWS, 3).expect("a table");
    let mut scores = vec![0.0; N_ROWS];
    extended.score_table(&table, &mut scores);
    for (row, score) in scores.into_iter().enumerate() {
        let values = [columns[0][row], columns[1][row], columns[2][row]];
        assert_eq!(extended.score_samples(&values).to_bits(), score.to_bits());
    }
}

#[test]
fn unsuitable_tables_are_refused() {
    let refusal = |values: &[f32], n_rows, n_features| {
        let table = Table::new(values, n_rows, n_features).expect("a table");
        let error = Extended::fit(&ExtendedParams::default(), &table, NonZeroUsize::MIN);
        error.expect_err("refused").to_string()
    };
    assert_eq!(refusal(&[], 0, 3), "table has 0 rows and 3 features, must have at least one of each");
    assert_eq!(
        refusal(&[1.0, 2.0, 3.0, f32::NAN], 2, 2),
        "value in row 1 of feature 1 is NaN, must be finite"
    );
    let wide: Vec<f32> = (0..2 * (MAX_VARYING + 1)).map(|k| k as f32).collect();
    assert_eq!(
        refusal(&wide, 2, MAX_VARYING + 1),
        "number of columns that vary gives 2049 on a table of 2 rows and 2049 features, must be at most 2048"
    );
}

#[test]
fn a_forest_of_another_width_is_refused() {
    let (two, one) = (fit(&columns()), fit(&[column(noise)]));
    let error = Extended::new(two.coordinates, one.forest).expect_err("refused").to_string();
    assert_eq!(error, "width of the forest is 1, must be 4, the number of columns and residuals");
}

#[test]
fn constant_columns_before_the_one_that_varies() {
    let extended = fit(&[vec![0.0; N_ROWS], vec![7.0; N_ROWS], column(noise)]);
    assert_eq!(extended.coordinates().columns(), [2]);
    assert!(extended.score_samples(&[0.0, 7.0, 1e6]) < extended.score_samples(&[0.0, 7.0, noise(0)]));
}

fn finite() -> impl Strategy<Value = f32> {
    prop_oneof![
        any::<u32>().prop_map(f32::from_bits).prop_filter("finite", |value| value.is_finite()),
        prop::sample::select(vec![0.0, -0.0, 1.0, f32::MIN, f32::MAX, f32::from_bits(1), f32::MIN_POSITIVE]),
    ]
}

proptest! {
    /// Whatever finite values a history has, a model comes of it, and it scores every row.
    #[test]
    fn any_finite_table_gives_a_model(
        values in (1..6_usize, 1..12_usize)
            .prop_flat_map(|(n_features, n_rows)| {
                prop::collection::vec(prop::collection::vec(finite(), n_rows), n_features)
            }),
        odd in any::<u32>().prop_map(f32::from_bits),
    ) {
        let n_estimators = NonZeroUsize::new(3).expect("above 0");
        let extended = fit_with(&ExtendedParams { n_estimators, ..Default::default() }, &values);
        let first: Vec<f32> = values.iter().map(|column| column[0]).collect();
        for row in [first, vec![odd; values.len()]] {
            let score = extended.score_samples(&row);
            prop_assert!((-1.0..=0.0).contains(&score), "{score}");
        }
    }
}
