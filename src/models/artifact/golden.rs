//! `golden.arrow`: a few rows and their scores, with which a reader checks the forest that it read.

use super::{Error, GOLDEN, TOLERANCE, ipc};
use crate::models::{self, FittedModel};
use crate::window::Score;
use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Float64Type};
use arrow_array::{ArrayRef, Float32Array, Float64Array};
use arrow_schema::{DataType, SchemaRef};
use std::sync::Arc;

/// Rows inside of the range of training.
const N_INSIDE: usize = 8;

fn schema(n_features: usize) -> SchemaRef {
    ipc::schema([
        ("row", ipc::list_type(DataType::Float32, n_features)),
        ("score_samples", DataType::Float64),
        ("decision", DataType::Float64),
        ("score", DataType::Float64),
    ])
}

/// About the least and the greatest value of each feature in training.
fn ranges(fitted: &FittedModel) -> Vec<[f32; 2]> {
    match fitted {
        // An imported forest has no ranges.
        FittedModel::IsolationForest(forest) if forest.ranges().is_empty() => {
            vec![[0.0, 1.0]; forest.n_features()]
        }
        FittedModel::IsolationForest(forest) => forest.ranges().to_vec(),
        FittedModel::Extended(detector) => detector.typical_ranges(),
    }
}

/// The file: rows inside of the range of training, at its edges and beyond, and their scores.
pub fn write(fitted: &FittedModel) -> Vec<u8> {
    let n_features = fitted.n_features();
    let ranges = ranges(fitted);
    let value_at = |share: f32, feature: usize| {
        let [least, greatest] = ranges[feature];
        least + share * (greatest - least)
    };
    let mut rows: Vec<Vec<f32>> = Vec::new();
    for i in 0..N_INSIDE {
        // Every feature is at another position in its range.
        let share = |feature: usize| ((i * 37 + feature * 61) % 101) as f32 / 100.0;
        rows.push((0..n_features).map(|feature| value_at(share(feature), feature)).collect());
    }
    for share in [0.0, 1.0, 1.5, -3.0, 1e6] {
        rows.push((0..n_features).map(|feature| value_at(share, feature)).collect());
    }
    rows.push(vec![f32::NAN; n_features]);
    rows.push(vec![f32::INFINITY; n_features]);
    let scores = score_rows(fitted, rows.iter().map(Vec::as_slice));
    let column = |number: usize| -> ArrayRef {
        Arc::new(Float64Array::from_iter_values(scores.iter().map(|scores| scores[number])))
    };
    let rows = ipc::list_column(Arc::new(Float32Array::from(rows.concat())), n_features);
    let columns: Vec<ArrayRef> = vec![rows, column(0), column(1), column(2)];
    ipc::write(&schema(n_features), columns)
}

/// `score_samples`, decision and score of each row. For an extended forest, the rows follow those of training at the
/// same interval.
fn score_rows<'r>(fitted: &FittedModel, rows: impl Iterator<Item = &'r [f32]>) -> Vec<[f64; 3]> {
    match fitted {
        FittedModel::IsolationForest(forest) => {
            let score = |row| {
                let Score { decision, score, .. } = models::score(forest, row);
                [forest.score_samples(row), decision, score]
            };
            rows.map(score).collect()
        }
        FittedModel::Extended(detector) => {
            let mut detector = detector.as_ref().clone();
            let assess = |row| {
                let next_ms = detector.newest_ms().unwrap_or(0).saturating_add(detector.interval_ms());
                let assessment = detector.assess(next_ms, row);
                assessment.map_or([f64::NAN; 3], |assessment| {
                    [assessment.decision - 0.5, assessment.decision, assessment.score]
                })
            };
            rows.map(assess).collect()
        }
    }
}

/// Scores the rows of `golden.arrow` again.
///
/// # Errors
/// [`Error::Golden`] if a score differs, [`Error::Arrow`] for another file.
pub fn verify(bytes: &[u8], fitted: &FittedModel) -> Result<(), Error> {
    let n_features = fitted.n_features();
    let batch = ipc::read(GOLDEN, bytes, &schema(n_features))?;
    let values = batch.column(0).as_fixed_size_list().values().as_primitive::<Float32Type>().values();
    let expected = |column: usize| batch.column(column).as_primitive::<Float64Type>().values();
    let rows = values.chunks_exact(n_features).take(batch.num_rows());
    for (row, scores) in score_rows(fitted, rows).into_iter().enumerate() {
        for (column, found) in (1..).zip(scores) {
            let expected = expected(column)[row];
            let difference = (found - expected).abs();
            if difference.is_nan() || difference > TOLERANCE * expected.abs().max(1.0) {
                return Err(Error::Golden { row, expected, found });
            }
        }
    }
    Ok(())
}
