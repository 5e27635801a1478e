//! Reads tables from Parquet or CSV files, distinguished by content.
//!
//! A table has a numeric column for each feature, and may have a column `timestamp` in milliseconds. Empty and null cells
//! become NaN. The values stay `f64`; [`DataTable::select`] rounds them to the `f32` of a forest.
//!
//! A file that can be misread is rejected: timestamps in another unit, and the index that pandas writes beside the
//! columns of a data frame.

use arrow_array::cast::AsArray;
use arrow_array::types;
use arrow_array::{Array, ArrayRef};
use arrow_schema::{DataType, TimeUnit};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};

/// Name of the column with the time.
const TIMESTAMP: &str = "timestamp";
/// Name of the column that marks known anomalies; it is not a feature.
const LABEL: &str = "label";
/// Prefix of the columns in which pandas stores an index without a name.
const PANDAS_INDEX: &str = "__index_level_";
/// Timestamps that are seconds of the years 2001 to 5138. As milliseconds, they are days of 1970 to 1973.
const SECONDS: std::ops::Range<i64> = 1_000_000_000..100_000_000_000;
/// The least timestamp that is in microseconds: as milliseconds, it is in the year 5138.
const MICROSECONDS: i64 = 100_000_000_000_000;
/// First bytes of a Parquet file.
const PARQUET_MAGIC: &[u8] = b"PAR1";
/// Most cells of a table. Five days of 15 s with a thousand columns have 29 million.
const MAX_CELLS: usize = 1 << 28;

/// A table of numbers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DataTable {
    /// Milliseconds since the epoch of each row; `None` without a column `timestamp`.
    pub timestamps: Option<Vec<i64>>,
    /// Name and values of each feature, in the order of the file, shape `[n_rows]` each.
    pub columns: Vec<(String, Vec<f64>)>,
    /// Marks of known anomalies, shape `[n_rows]`; `None` without a column `label`.
    pub label: Option<Vec<f64>>,
}

/// A file that is not a valid table.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The file starts like Parquet and is not valid Parquet.
    #[error("{} cannot be read as Parquet", path.display())]
    Parquet {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: parquet::errors::ParquetError,
    },
    /// A batch of the file is corrupt.
    #[error("{} cannot be read as Parquet", path.display())]
    Arrow {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: arrow_schema::ArrowError,
    },
    /// The file is not valid CSV.
    #[error("{} cannot be read as CSV", path.display())]
    Csv {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: csv::Error,
    },
    /// A cell is not a number.
    #[error("{}: line {line}, column {column:?}: {value:?} is not a number", path.display())]
    Cell {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// The column.
        column: String,
        /// The invalid value.
        value: String,
    },
    /// A column is not numeric.
    #[error("{}: column {column:?} is of type {data_type}, must be numeric", path.display())]
    Type {
        /// The file.
        path: PathBuf,
        /// The column.
        column: String,
        /// Type of the column.
        data_type: DataType,
    },
    /// A timestamp is missing or not a whole number of milliseconds.
    #[error("{}: row {row} has timestamp {value}, must be whole milliseconds since 1970", path.display())]
    Timestamp {
        /// The file.
        path: PathBuf,
        /// The row, from 1.
        row: usize,
        /// The invalid value.
        value: f64,
    },
    /// The timestamps have another unit.
    #[error("{}: timestamp {value} is in {unit}, must be in milliseconds since 1970", path.display())]
    TimestampUnit {
        /// The file.
        path: PathBuf,
        /// The oldest timestamp.
        value: i64,
        /// Its unit.
        unit: &'static str,
    },
    /// The table has no timestamps.
    #[error("{} has no column timestamp", .0.display())]
    NoTimestamps(PathBuf),
    /// Two rows have one timestamp.
    #[error("{} has timestamp {value} twice", path.display())]
    DuplicateTimestamp {
        /// The file.
        path: PathBuf,
        /// The timestamp.
        value: i64,
    },
    /// A column is the index of a pandas data frame.
    #[error("{}: column {name:?} is the index of a data frame: write the file without it, or name it timestamp", path.display())]
    PandasIndex {
        /// The file.
        path: PathBuf,
        /// Name of the column.
        name: String,
    },
    /// The name of a column is empty or not unique.
    #[error("{}: column {number} is named {name:?}, must have a name of its own", path.display())]
    ColumnName {
        /// The file.
        path: PathBuf,
        /// The column, from 1.
        number: usize,
        /// Name of the column.
        name: String,
    },
    /// The table has more cells than the limit.
    #[error("{} has more than {MAX_CELLS} cells", path.display())]
    Oversized {
        /// The file.
        path: PathBuf,
    },
    /// The table has no row or no feature.
    #[error("{} has {n_rows} rows and {n_columns} columns of values, must have at least one of each", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
        /// Number of rows.
        n_rows: usize,
        /// Number of features.
        n_columns: usize,
    },
    /// The table lacks a requested column.
    #[error("the table has no column {0:?}")]
    MissingColumn(String),
}

impl DataTable {
    /// Reads a file.
    ///
    /// # Errors
    /// [`Error`] if the file cannot be read or is not a valid table.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let io = |source| Error::Io { path: path.into(), source };
        let mut file = File::open(path).map_err(io)?;
        let mut magic = Vec::new();
        file.by_ref().take(PARQUET_MAGIC.len() as u64).read_to_end(&mut magic).map_err(io)?;
        file.rewind().map_err(io)?;
        let columns = if magic == PARQUET_MAGIC { parquet(path, file)? } else { csv(path, file)? };
        Self::from_columns(path, columns)
    }

    fn from_columns(path: &Path, columns: Vec<(String, Vec<f64>)>) -> Result<Self, Error> {
        let mut table = Self::default();
        let mut timestamps = None;
        let n_rows = columns.first().map_or(0, |(_, values)| values.len());
        for (i, (name, values)) in columns.into_iter().enumerate() {
            let is_duplicate = table.columns.iter().any(|(existing, _)| *existing == name);
            match name.as_str() {
                _ if is_duplicate || name.is_empty() => {
                    return Err(Error::ColumnName { path: path.into(), number: i + 1, name });
                }
                TIMESTAMP if timestamps.is_none() => timestamps = Some(values),
                LABEL if table.label.is_none() => table.label = Some(values),
                TIMESTAMP | LABEL => {
                    return Err(Error::ColumnName { path: path.into(), number: i + 1, name });
                }
                _ if name.starts_with(PANDAS_INDEX) => {
                    return Err(Error::PandasIndex { path: path.into(), name });
                }
                _ => table.columns.push((name, values)),
            }
        }
        if n_rows == 0 || table.columns.is_empty() {
            return Err(Error::Empty { path: path.into(), n_rows, n_columns: table.columns.len() });
        }
        table.timestamps = timestamps.map(|timestamps| to_milliseconds(path, timestamps)).transpose()?;
        Ok(table)
    }

    /// The timestamps of a table of rows in any order. `path` is the file in an error.
    ///
    /// # Errors
    /// [`Error::NoTimestamps`] or [`Error::DuplicateTimestamp`].
    pub fn unique_timestamps(&self, path: &Path) -> Result<&[i64], Error> {
        let timestamps = self.timestamps.as_deref().ok_or_else(|| Error::NoTimestamps(path.into()))?;
        let mut sorted = timestamps.to_vec();
        sorted.sort_unstable();
        match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(Error::DuplicateTimestamp { path: path.into(), value: pair[0] }),
            None => Ok(timestamps),
        }
    }

    /// Number of rows.
    pub fn n_rows(&self) -> usize {
        self.columns.first().map_or(0, |(_, values)| values.len())
    }

    /// The columns of these names as input for a forest: shape `[n_rows, n_names]`, column-major, rounded to `f32`.
    ///
    /// # Errors
    /// [`Error::MissingColumn`].
    pub fn select(&self, names: &[String]) -> Result<Vec<f32>, Error> {
        let mut selected = Vec::with_capacity(names.len() * self.n_rows());
        for name in names {
            let column = self.columns.iter().find(|(existing, _)| existing == name);
            let (_, values) = column.ok_or_else(|| Error::MissingColumn(name.clone()))?;
            selected.extend(values.iter().map(|value| *value as f32));
        }
        Ok(selected)
    }
}

/// The numbers of the column `timestamp` as milliseconds.
fn to_milliseconds(path: &Path, values: Vec<f64>) -> Result<Vec<i64>, Error> {
    let to_timestamp = |(row, value): (usize, f64)| {
        // Doubles represent every whole number up to 2^53; 2^53 ms are beyond the year 200,000.
        let is_whole = value.fract() == 0.0 && value.abs() < (1_u64 << 53) as f64;
        is_whole.then_some(value as i64).ok_or_else(|| Error::Timestamp {
            path: path.into(),
            row: row + 1,
            value,
        })
    };
    let timestamps: Vec<i64> = values.into_iter().enumerate().map(to_timestamp).collect::<Result<_, _>>()?;
    let unit = match timestamps.iter().min() {
        Some(oldest) if SECONDS.contains(oldest) => Some((*oldest, "seconds")),
        Some(oldest) if *oldest >= MICROSECONDS => Some((*oldest, "microseconds")),
        _ => None,
    };
    match unit {
        Some((value, unit)) => Err(Error::TimestampUnit { path: path.into(), value, unit }),
        None => Ok(timestamps),
    }
}

fn csv(path: &Path, file: File) -> Result<Vec<(String, Vec<f64>)>, Error> {
    let csv_error = |source| Error::Csv { path: path.into(), source };
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(file);
    let header = reader.headers().map_err(csv_error)?.clone();
    let mut columns: Vec<(String, Vec<f64>)> =
        header.iter().map(|name| (name.to_string(), Vec::new())).collect();
    let mut record = csv::StringRecord::new();
    let mut cells = 0;
    while reader.read_record(&mut record).map_err(csv_error)? {
        cells += record.len();
        if cells > MAX_CELLS {
            return Err(Error::Oversized { path: path.into() });
        }
        for ((name, values), cell) in columns.iter_mut().zip(&record) {
            let value = if cell.is_empty() { Ok(f64::NAN) } else { cell.parse() };
            values.push(value.map_err(|_| Error::Cell {
                path: path.into(),
                line: record.position().map_or(0, csv::Position::line),
                column: name.clone(),
                value: cell.into(),
            })?);
        }
    }
    Ok(columns)
}

fn parquet(path: &Path, file: File) -> Result<Vec<(String, Vec<f64>)>, Error> {
    let parquet_error = |source| Error::Parquet { path: path.into(), source };
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(parquet_error)?;
    let schema = builder.schema().clone();
    let n_rows = usize::try_from(builder.metadata().file_metadata().num_rows()).unwrap_or(usize::MAX);
    if n_rows.checked_mul(schema.fields().len()).is_none_or(|cells| cells > MAX_CELLS) {
        return Err(Error::Oversized { path: path.into() });
    }
    let mut columns: Vec<(String, Vec<f64>)> =
        schema.fields().iter().map(|field| (field.name().clone(), Vec::new())).collect();
    for batch in builder.build().map_err(parquet_error)? {
        let batch = batch.map_err(|source| Error::Arrow { path: path.into(), source })?;
        for ((name, values), array) in columns.iter_mut().zip(batch.columns()) {
            let numbers = numbers(array, name == TIMESTAMP).ok_or_else(|| Error::Type {
                path: path.into(),
                column: name.clone(),
                data_type: array.data_type().clone(),
            })?;
            values.extend(numbers);
        }
    }
    Ok(columns)
}

/// The values of a column, null as NaN, times in milliseconds; `None` if the column is not numeric.
fn numbers(array: &ArrayRef, is_time: bool) -> Option<Vec<f64>> {
    macro_rules! widen {
        ($type:ty) => {
            array.as_primitive::<$type>().iter().map(|value| value.map_or(f64::NAN, |v| v as f64)).collect()
        };
    }
    Some(match array.data_type() {
        DataType::Int8 => widen!(types::Int8Type),
        DataType::Int16 => widen!(types::Int16Type),
        DataType::Int32 => widen!(types::Int32Type),
        DataType::Int64 => widen!(types::Int64Type),
        DataType::UInt8 => widen!(types::UInt8Type),
        DataType::UInt16 => widen!(types::UInt16Type),
        DataType::UInt32 => widen!(types::UInt32Type),
        DataType::UInt64 => widen!(types::UInt64Type),
        DataType::Float32 => widen!(types::Float32Type),
        DataType::Float64 => widen!(types::Float64Type),
        DataType::Boolean => array
            .as_boolean()
            .iter()
            .map(|value| value.map_or(f64::NAN, |v| f64::from(u8::from(v))))
            .collect(),
        DataType::Timestamp(unit, _) if is_time => times(array, *unit),
        _ => return None,
    })
}

fn times(array: &ArrayRef, unit: TimeUnit) -> Vec<f64> {
    macro_rules! milliseconds {
        ($type:ty, $ms:expr) => {
            array
                .as_primitive::<$type>()
                .iter()
                .map(|time| time.map_or(f64::NAN, |t| $ms(t) as f64))
                .collect()
        };
    }
    match unit {
        TimeUnit::Second => milliseconds!(types::TimestampSecondType, |t: i64| t.saturating_mul(1000)),
        TimeUnit::Millisecond => milliseconds!(types::TimestampMillisecondType, |t: i64| t),
        TimeUnit::Microsecond => milliseconds!(types::TimestampMicrosecondType, |t: i64| t.div_euclid(1000)),
        TimeUnit::Nanosecond => {
            milliseconds!(types::TimestampNanosecondType, |t: i64| t.div_euclid(1_000_000))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::{Float64Array, Int32Array, RecordBatch, StringArray, TimestampMicrosecondArray};
    use std::io::Write;
    use std::sync::Arc;

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(bytes).expect("writable");
        file
    }

    fn parquet_of(columns: Vec<(&str, ArrayRef)>) -> tempfile::NamedTempFile {
        let batch = RecordBatch::try_from_iter(columns).expect("columns of one length");
        let mut bytes = Vec::new();
        let mut writer =
            parquet::arrow::ArrowWriter::try_new(&mut bytes, batch.schema(), None).expect("a writer");
        writer.write(&batch).expect("written");
        writer.close().expect("written");
        file(&bytes)
    }

    #[test]
    fn both_formats_give_the_same_table() {
        let csv = file(b"timestamp, load ,n,label\n1000,0.5,3,0\n2000,,4,1\n");
        let parquet = parquet_of(vec![
            ("timestamp", Arc::new(TimestampMicrosecondArray::from(vec![1_000_000, 2_000_000]))),
            ("load", Arc::new(Float64Array::from(vec![Some(0.5), None]))),
            ("n", Arc::new(Int32Array::from(vec![3, 4]))),
            ("label", Arc::new(arrow_array::BooleanArray::from(vec![false, true]))),
        ]);
        for path in [csv.path(), parquet.path()] {
            let table = DataTable::read(path).expect("a table");
            assert_eq!(table.timestamps, Some(vec![1000, 2000]));
            assert_eq!(table.label, Some(vec![0.0, 1.0]));
            assert_eq!(table.n_rows(), 2);
            let selected = table.select(&["n".into(), "load".into()]).expect("both columns exist");
            assert_eq!(selected[..3], [3.0, 4.0, 0.5]);
            assert!(selected[3].is_nan());
            let missing = table.select(&["m".into()]).expect_err("not there").to_string();
            assert_eq!(missing, r#"the table has no column "m""#);
        }
    }

    #[test]
    fn errors_name_what_is_wrong() {
        for (text, message) in [
            ("a,b\n1,2\n3,x\n", r#": line 3, column "b": "x" is not a number"#),
            ("a,a\n1,2\n", r#": column 2 is named "a", must have a name of its own"#),
            ("timestamp,a\n1.5,2\n", ": row 1 has timestamp 1.5, must be whole milliseconds since 1970"),
            (
                "timestamp,a\n1700000015,1\n1700000000,2\n",
                ": timestamp 1700000000 is in seconds, must be in milliseconds since 1970",
            ),
            (
                "timestamp,a\n1700000000000000,1\n",
                ": timestamp 1700000000000000 is in microseconds, must be in milliseconds since 1970",
            ),
            (
                "__index_level_0__,a\n1,2\n",
                r#": column "__index_level_0__" is the index of a data frame: write the file without it, or name it timestamp"#,
            ),
            ("timestamp\n1\n", " has 1 rows and 0 columns of values, must have at least one of each"),
            ("", " has 0 rows and 0 columns of values, must have at least one of each"),
        ] {
            let file = file(text.as_bytes());
            let error = DataTable::read(file.path()).expect_err("wrong").to_string();
            assert_eq!(error, format!("{}{message}", file.path().display()));
        }
        assert!(matches!(DataTable::read(file(b"a,b\n1\n").path()), Err(Error::Csv { .. })));
        for (text, message) in [
            ("timestamp,a\n2,1\n1,1\n2,3\n", " has timestamp 2 twice"),
            ("a\n1\n", " has no column timestamp"),
        ] {
            let file = file(text.as_bytes());
            let table = DataTable::read(file.path()).expect("a table");
            let error = table.unique_timestamps(file.path()).expect_err("wrong").to_string();
            assert_eq!(error, format!("{}{message}", file.path().display()));
        }
        let text_column = parquet_of(vec![("host", Arc::new(StringArray::from(vec!["a"])))]);
        let error = DataTable::read(text_column.path()).expect_err("text").to_string();
        assert!(error.ends_with(r#": column "host" is of type Utf8, must be numeric"#), "{error}");
        for broken in [&b"PAR1"[..], b"PAR1 but no footer PAR1"] {
            assert!(matches!(DataTable::read(file(broken).path()), Err(Error::Parquet { .. })));
        }
    }
}
