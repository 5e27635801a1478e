//! `golden.arrow`: a few rows and their scores, so that a reader knows that it reads the forest that was
//! saved.

use super::{Error, GOLDEN, TOLERANCE, ipc};
use crate::models::Fitted;
use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Float64Type};
use arrow_array::{ArrayRef, Float32Array, Float64Array};
use arrow_schema::{DataType, SchemaRef};
use std::sync::Arc;

/// Rows inside of the range of training.
const INSIDE: usize = 8;

fn schema(n_features: usize) -> SchemaRef {
    ipc::schema([
        ("row", ipc::list_of(DataType::Float32, n_features)),
        ("score_samples", DataType::Float64),
        ("decision", DataType::Float64),
        ("score", DataType::Float64),
    ])
}

/// About the least and the greatest value of each feature in training.
fn ranges(fitted: &Fitted) -> Vec<[f32; 2]> {
    match fitted {
        // A forest grown elsewhere does not know its range.
        Fitted::IsolationForest(forest) if forest.ranges().is_empty() => {
            vec![[0.0, 1.0]; forest.n_features()]
        }
        Fitted::IsolationForest(forest) => forest.ranges().to_vec(),
        Fitted::Extended(extended) => {
            let scales = extended.coordinates().scales().iter();
            scales.map(|scale| [-3.0, 3.0].map(|k| (scale.center() + k * scale.sigma()) as f32)).collect()
        }
    }
}

/// The file: rows inside of the range of training, at its edges and beyond, and their scores.
pub fn write(fitted: &Fitted) -> Vec<u8> {
    let n_features = fitted.n_features();
    let ranges = ranges(fitted);
    let at = |share: f32, feature: usize| {
        let [least, greatest] = ranges[feature];
        least + share * (greatest - least)
    };
    let mut rows: Vec<Vec<f32>> = Vec::new();
    for i in 0..INSIDE {
        // Every feature at another place of its range.
        let share = |feature: usize| ((i * 37 + feature * 61) % 101) as f32 / 100.0;
        rows.push((0..n_features).map(|feature| at(share(feature), feature)).collect());
    }
    for share in [0.0, 1.0, 1.5, -3.0, 1e6] {
        rows.push((0..n_features).map(|feature| at(share, feature)).collect());
    }
    rows.push(vec![f32::NAN; n_features]);
    rows.push(vec![f32::INFINITY; n_features]);
    let live: Vec<_> = rows.iter().map(|row| fitted.score(row)).collect();
    let score_samples = rows.iter().map(|row| fitted.score_samples(row));
    let columns: Vec<ArrayRef> = vec![
        ipc::list(Arc::new(Float32Array::from(rows.concat())), n_features),
        Arc::new(Float64Array::from_iter_values(score_samples)),
        Arc::new(Float64Array::from_iter_values(live.iter().map(|score| score.decision))),
        Arc::new(Float64Array::from_iter_values(live.iter().map(|score| score.score))),
    ];
    ipc::write(&schema(n_features), columns)
}

/// Scores the rows of `golden.arrow` again.
///
/// # Errors
/// [`Error::Golden`] when one comes out differently, [`Error::Arrow`] for another file.
pub fn check(bytes: &[u8], fitted: &Fitted) -> Result<(), Error> {
    let n_features = fitted.n_features();
    let batch = ipc::read(GOLDEN, bytes, &schema(n_features))?;
    let values = batch.column(0).as_fixed_size_list().values().as_primitive::<Float32Type>().values();
    let expected = |column: usize| batch.column(column).as_primitive::<Float64Type>().values();
    for (row, values) in values.chunks_exact(n_features).take(batch.num_rows()).enumerate() {
        let live = fitted.score(values);
        let found = [fitted.score_samples(values), live.decision, live.score];
        for (column, found) in (1..).zip(found) {
            let expected = expected(column)[row];
            let difference = (found - expected).abs();
            if difference.is_nan() || difference > TOLERANCE * expected.abs().max(1.0) {
                return Err(Error::Golden { row, expected, found });
            }
        }
    }
    Ok(())
}
