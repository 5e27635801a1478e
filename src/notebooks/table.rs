//! Builds a table, batch by batch, from the views of its groups.
//!
//! Both tables are long: any groups fit into one schema. Texts that repeat are dictionaries, complete before the first
//! row, so that a stream holds each of them once.

use super::request::{Table, TableQuery};
use crate::prom::Labels;
use crate::remote_write::message::CHAMPION_SERIES;
use crate::window::{Column, ModelRole, Score, View, Window};
use arrow_array::builder::StringBuilder;
use arrow_array::types::Int32Type;
use arrow_array::{
    ArrayRef, BooleanArray, DictionaryArray, Float64Array, Int32Array, RecordBatch, TimestampMillisecondArray,
};
use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// Rows of a batch, at most.
const BATCH_ROWS: usize = 16_384;
/// Columns before the labels of the groups.
const KEY_COLUMNS: [&str; 2] = ["timestamp", "detector"];
/// Columns of the samples, after the labels.
const WINDOW_COLUMNS: [&str; 2] = ["feature", "value"];
/// Columns of the scores, after the labels.
const SCORE_COLUMNS: [&str; 4] = ["anomaly_score", "threshold", "incident", "decision"];
/// Prefix of a label with the name of another column, as Prometheus has it.
const EXPORTED: &str = "exported_";

/// One group at one moment.
#[derive(Debug)]
pub struct GroupPart {
    detector: String,
    group: Labels,
    /// The features of a window; none for scores.
    features: Vec<(Labels, Column)>,
    view: View,
}

impl GroupPart {
    /// The part of a table that this group has. Shares the sealed chunks of the window.
    pub fn new(query: &TableQuery, detector: &str, group: &Labels, window: &Window) -> Self {
        let (features, roles): (Vec<_>, &[ModelRole]) = match query.table {
            Table::Window => {
                (window.features().map(|(labels, column)| (labels.clone(), column)).collect(), &[])
            }
            Table::Scores => (Vec::new(), &[ModelRole::Champion]),
        };
        let columns: Vec<Column> = features.iter().map(|(_, column)| *column).collect();
        let view = window.view(&columns, roles, query.start_ms.saturating_sub(1), query.end_ms);
        Self { detector: detector.into(), group: group.clone(), features, view }
    }

    /// Memory that is not shared with the window, and the texts of the features in the dictionary.
    pub fn n_bytes(&self) -> usize {
        let of_feature =
            |(labels, _): &(Labels, Column)| 2 * labels.n_text_bytes() + size_of::<(Labels, Column)>();
        self.view.n_bytes() + size_of::<Self>() + self.features.iter().map(of_feature).sum::<usize>()
    }

    fn n_samples(&self, table: Table) -> usize {
        match table {
            Table::Window => self.features.iter().map(|(_, column)| self.view.n_samples(*column)).sum(),
            Table::Scores => CHAMPION_SERIES * self.view.n_scores(ModelRole::Champion),
        }
    }

    fn samples(&self, column: Column) -> impl Iterator<Item = (i64, f64)> + use<> {
        let mut samples = Vec::new();
        self.view.samples(column, &mut samples);
        samples.into_iter().map(|sample| (sample.timestamp_ms, sample.value))
    }

    fn scores(&self) -> impl Iterator<Item = (i64, Score)> + use<> {
        self.view.scores(ModelRole::Champion).collect::<Vec<_>>().into_iter()
    }
}

/// A sample with the numbers of its group and of its feature, in the order of the plan.
struct SampleRow {
    timestamp_ms: i64,
    part: usize,
    feature: usize,
    value: f64,
}

/// A score with the number of its group.
struct ScoreRow {
    timestamp_ms: i64,
    part: usize,
    score: Score,
}

/// The groups of a table by detector and labels, and its dictionaries.
#[derive(Debug)]
pub struct TablePlan {
    table: Table,
    schema: SchemaRef,
    parts: Vec<GroupPart>,
    detectors: TextColumn,
    labels: Vec<TextColumn>,
    /// By the features of all groups, one group after the other.
    features: TextColumn,
}

impl TablePlan {
    /// A plan of these groups, in any order.
    pub fn new(table: Table, mut parts: Vec<GroupPart>) -> Self {
        parts.iter_mut().for_each(|part| part.features.sort_unstable());
        parts.sort_by(|a, b| (&a.detector, &a.group).cmp(&(&b.detector, &b.group)));
        let names: BTreeSet<&str> =
            parts.iter().flat_map(|part| part.group.iter().map(|(name, _)| name)).collect();
        let schema = Arc::new(schema(table, &names));
        let label = |name: &&str| {
            let values = parts.iter().map(|part| part.group.get(name));
            TextColumn::new(values.map(|value| (!value.is_empty()).then(|| value.to_string())))
        };
        let labels = names.iter().map(label).collect();
        let detectors = TextColumn::new(parts.iter().map(|part| Some(part.detector.clone())));
        let features = parts.iter().flat_map(|part| &part.features);
        let features = TextColumn::new(features.map(|(labels, _)| Some(labels.to_string())));
        Self { table, schema, parts, detectors, labels, features }
    }

    /// Number of samples that the series of the table have in remote read.
    pub fn n_samples(&self) -> usize {
        self.parts.iter().map(|part| part.n_samples(self.table)).sum()
    }

    /// The columns.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// The rows by group, feature and timestamp.
    pub fn batches(&self) -> Box<dyn Iterator<Item = RecordBatch> + Send + '_> {
        match self.table {
            Table::Window => Box::new(batched(self.sample_rows(), |rows| self.sample_batch(rows))),
            Table::Scores => Box::new(batched(self.score_rows(), |rows| self.score_batch(rows))),
        }
    }

    fn sample_rows(&self) -> impl Iterator<Item = SampleRow> + Send {
        let columns =
            self.parts.iter().enumerate().flat_map(|(number, part)| {
                part.features.iter().map(move |(_, column)| (number, part, *column))
            });
        columns.enumerate().flat_map(|(feature, (number, part, column))| {
            let row = move |(timestamp_ms, value)| SampleRow { timestamp_ms, part: number, feature, value };
            part.samples(column).map(row)
        })
    }

    fn score_rows(&self) -> impl Iterator<Item = ScoreRow> + Send {
        self.parts.iter().enumerate().flat_map(|(number, part)| {
            part.scores().map(move |(timestamp_ms, score)| ScoreRow { timestamp_ms, part: number, score })
        })
    }

    fn sample_batch(&self, rows: &[SampleRow]) -> RecordBatch {
        let mut columns = self.key_columns(rows.iter().map(|row| (row.timestamp_ms, row.part)));
        columns.push(self.features.rows(rows.iter().map(|row| row.feature)));
        columns.push(Arc::new(Float64Array::from_iter_values(rows.iter().map(|row| row.value))));
        self.batch(columns)
    }

    fn score_batch(&self, rows: &[ScoreRow]) -> RecordBatch {
        let mut columns = self.key_columns(rows.iter().map(|row| (row.timestamp_ms, row.part)));
        let scores = || rows.iter().map(|row| row.score);
        let states = || scores().map(|score| score.incident_state);
        columns.push(Arc::new(Float64Array::from_iter_values(scores().map(|score| score.score))));
        columns.push(Arc::new(Float64Array::from_iter(states().map(|state| Some(state?.threshold)))));
        columns.push(Arc::new(BooleanArray::from_iter(states().map(|state| Some(state?.is_incident)))));
        columns.push(Arc::new(Float64Array::from_iter_values(scores().map(|score| score.decision))));
        self.batch(columns)
    }

    /// Timestamp, detector and labels of rows with this timestamp and group.
    fn key_columns(&self, rows: impl Iterator<Item = (i64, usize)> + Clone) -> Vec<ArrayRef> {
        let timestamps = rows.clone().map(|(timestamp_ms, _)| timestamp_ms);
        let timestamps = TimestampMillisecondArray::from_iter_values(timestamps).with_timezone("UTC");
        let parts = rows.map(|(_, part)| part);
        let texts = [&self.detectors].into_iter().chain(&self.labels);
        let texts = texts.map(|column| column.rows(parts.clone()));
        [Arc::new(timestamps) as ArrayRef].into_iter().chain(texts).collect()
    }

    fn batch(&self, columns: Vec<ArrayRef>) -> RecordBatch {
        RecordBatch::try_new(self.schema.clone(), columns).expect("columns of the schema's types")
    }
}

/// The rows in batches of [`BATCH_ROWS`].
fn batched<R>(
    mut rows: impl Iterator<Item = R>,
    batch: impl Fn(&[R]) -> RecordBatch,
) -> impl Iterator<Item = RecordBatch> {
    std::iter::from_fn(move || {
        let rows: Vec<R> = rows.by_ref().take(BATCH_ROWS).collect();
        (!rows.is_empty()).then(|| batch(&rows))
    })
}

fn schema(table: Table, labels: &BTreeSet<&str>) -> Schema {
    let dictionary = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
    let last: &[&str] = match table {
        Table::Window => &WINDOW_COLUMNS,
        Table::Scores => &SCORE_COLUMNS,
    };
    let field = |name: &str| match name {
        "timestamp" => {
            Field::new(name, DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into())), false)
        }
        "detector" | "feature" => Field::new(name, dictionary.clone(), false),
        "incident" => Field::new(name, DataType::Boolean, true),
        name => Field::new(name, DataType::Float64, name == "threshold"),
    };
    let is_taken = |name: &str| KEY_COLUMNS.contains(&name) || last.contains(&name);
    let label_field = |label: &&str| {
        let mut name = (*label).to_string();
        while is_taken(&name) || (name != **label && labels.contains(&*name)) {
            name.insert_str(0, EXPORTED);
        }
        Field::new(name, dictionary.clone(), true)
    };
    let fields = KEY_COLUMNS.iter().map(|name| field(name)).chain(labels.iter().map(label_field));
    Schema::new(fields.chain(last.iter().map(|name| field(name))).collect::<Vec<_>>())
}

/// Texts by number, each once in a dictionary.
#[derive(Debug)]
struct TextColumn {
    keys: Vec<Option<i32>>,
    dictionary: ArrayRef,
}

impl TextColumn {
    fn new(texts: impl Iterator<Item = Option<String>>) -> Self {
        let mut known: HashMap<String, i32> = HashMap::new();
        let mut dictionary = StringBuilder::new();
        let mut key = |text: String| {
            let next = known.len() as i32;
            *known.entry(text).or_insert_with_key(|text| {
                dictionary.append_value(text);
                next
            })
        };
        let keys = texts.map(|text| text.map(&mut key)).collect();
        Self { keys, dictionary: Arc::new(dictionary.finish()) }
    }

    /// A column with the texts of these numbers.
    fn rows(&self, numbers: impl Iterator<Item = usize>) -> ArrayRef {
        let keys: Int32Array = numbers.map(|number| self.keys[number]).collect();
        Arc::new(DictionaryArray::<Int32Type>::new(keys, self.dictionary.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_with_the_name_of_a_column_is_exported() {
        let labels = BTreeSet::from(["exported_value", "incident", "timestamp", "value"]);
        let names = |table| {
            let names =
                schema(table, &labels).fields().iter().map(|field| field.name().clone()).collect::<Vec<_>>();
            names.join(" ")
        };
        assert_eq!(
            names(Table::Window),
            "timestamp detector exported_value incident exported_timestamp exported_exported_value feature value"
        );
        assert_eq!(
            names(Table::Scores),
            "timestamp detector exported_value exported_incident exported_timestamp value anomaly_score threshold \
             incident decision"
        );
    }

    #[test]
    fn batches_are_bounded() {
        let count = |n: usize| {
            let sizes = std::cell::RefCell::new(Vec::new());
            let batch = |rows: &[usize]| {
                sizes.borrow_mut().push(rows.len());
                RecordBatch::new_empty(Arc::new(Schema::empty()))
            };
            batched(0..n, batch).for_each(drop);
            sizes.into_inner()
        };
        assert_eq!(count(0), [0; 0]);
        assert_eq!(count(BATCH_ROWS), [BATCH_ROWS]);
        assert_eq!(count(BATCH_ROWS + 1), [BATCH_ROWS, 1]);
    }
}
