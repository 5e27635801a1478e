//! Writes the scores of a backtest as a table: one row per timestamp of the range.

use super::BacktestResult;
use crate::detect::Assessment;
use arrow_array::{ArrayRef, BooleanArray, Float64Array, Int8Array, Int64Array, RecordBatch, StringArray};
use parquet::arrow::ArrowWriter;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Maximum number of contributions in a row.
const MAX_CONTRIBUTIONS: usize = 5;

/// An error while writing the table.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be created.
    #[error("cannot write {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The Parquet file cannot be written.
    #[error("cannot write {}", path.display())]
    Parquet {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: parquet::errors::ParquetError,
    },
    /// The CSV file cannot be written.
    #[error("cannot write {}", path.display())]
    Csv {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: csv::Error,
    },
    /// A label of the group has the name of an output column.
    #[error("the group's label {0:?} is the name of a column of the output")]
    Column(String),
}

/// Names of the columns, without the group's labels.
const NAMES: [&str; 10] = [
    "timestamp",
    "score",
    "decision",
    "threshold",
    "incident",
    "complete",
    "top_metric",
    "top_reason",
    "contributions",
    "label",
];

/// Writes Parquet, or CSV if the path ends in `.csv`. Columns: `timestamp` (ms), the group's labels, `score`,
/// `decision`, `threshold`, `incident`, `complete`, `top_metric`, `top_reason`, `contributions` (a JSON object
/// of the features with the largest deviations and their shares), and `label` if the range has labels. Scores of an
/// incomplete row are null.
///
/// # Errors
/// [`Error`] if the file cannot be written, or two columns have one name.
pub fn write(path: &Path, result: &BacktestResult) -> Result<(), Error> {
    if let Some((name, _)) = result.group.iter().find(|(name, _)| NAMES.contains(name)) {
        return Err(Error::Column(name.into()));
    }
    let columns = columns(result);
    let io_error = |source| Error::Io { path: path.into(), source };
    if path.extension().is_some_and(|extension| extension == "csv") {
        return write_csv(path, &columns).map_err(|source| Error::Csv { path: path.into(), source });
    }
    let parquet_error = |source| Error::Parquet { path: path.into(), source };
    let named = columns.into_iter().map(|(name, array)| (name, array, true));
    let batch = RecordBatch::try_from_iter_with_nullable(named).expect("columns of one length");
    let file = File::create(path).map_err(io_error)?;
    let mut writer = ArrowWriter::try_new(file, batch.schema(), None).map_err(parquet_error)?;
    writer.write(&batch).map_err(parquet_error)?;
    writer.close().map_err(parquet_error)?;
    Ok(())
}

fn columns(result: &BacktestResult) -> Vec<(String, ArrayRef)> {
    let BacktestResult { group, features, timestamps, labels, assessments, .. } = result;
    let number = |value: fn(&Assessment) -> f64| -> ArrayRef {
        Arc::new(
            assessments.iter().map(|assessment| assessment.as_ref().map(value)).collect::<Float64Array>(),
        )
    };
    let text = |value: &dyn Fn(&Assessment) -> Option<String>| -> ArrayRef {
        Arc::new(assessments.iter().map(|assessment| value(assessment.as_ref()?)).collect::<StringArray>())
    };
    let flag = |value: fn(&Assessment) -> bool| -> ArrayRef {
        Arc::new(BooleanArray::from_iter(
            assessments.iter().map(|assessment| Some(assessment.as_ref().is_some_and(value))),
        ))
    };
    let top = |assessment: &Assessment| assessment.contributions(1).next();
    let contributions = |assessment: &Assessment| {
        let shares: serde_json::Map<String, serde_json::Value> = assessment
            .contributions(MAX_CONTRIBUTIONS)
            .map(|(feature, _, share)| (features[feature].clone(), share.into()))
            .collect();
        Some(serde_json::Value::from(shares).to_string())
    };
    let mut columns: Vec<(String, ArrayRef)> = Vec::new();
    let mut add = |name: &str, array: ArrayRef| columns.push((name.to_string(), array));
    add("timestamp", Arc::new(Int64Array::from(timestamps.clone())));
    for (name, value) in group.iter() {
        add(name, Arc::new(StringArray::from_iter_values(timestamps.iter().map(|_| value))));
    }
    add("score", number(|assessment| assessment.score));
    add("decision", number(|assessment| assessment.decision));
    add("threshold", number(|assessment| assessment.threshold));
    add("incident", flag(|assessment| assessment.incident));
    add("complete", flag(|_| true));
    add("top_metric", text(&|assessment| top(assessment).map(|(feature, ..)| features[feature].clone())));
    add("top_reason", text(&|assessment| top(assessment).map(|(_, reason, _)| reason.as_str().to_string())));
    add("contributions", text(&contributions));
    if let Some(labels) = labels {
        add("label", Arc::new(Int8Array::from_iter_values(labels.iter().map(|label| i8::from(*label)))));
    }
    columns
}

fn write_csv(path: &Path, columns: &[(String, ArrayRef)]) -> Result<(), csv::Error> {
    use arrow_array::Array;
    use arrow_array::cast::AsArray;
    use arrow_array::types::{Float64Type, Int8Type, Int64Type};
    use arrow_schema::DataType;
    let cell = |array: &ArrayRef, row: usize| match array.data_type() {
        _ if array.is_null(row) => String::new(),
        DataType::Int64 => array.as_primitive::<Int64Type>().value(row).to_string(),
        DataType::Int8 => array.as_primitive::<Int8Type>().value(row).to_string(),
        DataType::Float64 => array.as_primitive::<Float64Type>().value(row).to_string(),
        DataType::Boolean => array.as_boolean().value(row).to_string(),
        _ => array.as_string::<i32>().value(row).to_string(),
    };
    let mut writer = csv::Writer::from_path(path)?;
    writer.write_record(columns.iter().map(|(name, _)| name))?;
    for row in 0..columns[0].1.len() {
        writer.write_record(columns.iter().map(|(_, array)| cell(array, row)))?;
    }
    writer.flush()?;
    Ok(())
}
