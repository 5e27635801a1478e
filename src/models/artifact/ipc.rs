//! The Arrow files of a model.
//!
//! The crate's own file reader trusts the lengths in the footer and allocates by them. So the footer
//! is walked here: every block and every buffer must lie inside the file, columns have the types that
//! we write, and only then the crate's decoder, which validates the arrays themselves, gets to work.

use super::{Error, FOREST, GOLDEN, TOLERANCE, json};
use crate::forest::{self, Tree, TreeArrays};
use crate::models::{Fitted, Kind};
use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Float64Type, Int32Type, Int64Type, UInt32Type};
use arrow_array::{
    Array, ArrayRef, BooleanArray, FixedSizeListArray, Float32Array, Float64Array, RecordBatch,
};
use arrow_array::{Int32Array, Int64Array, UInt32Array};
use arrow_buffer::Buffer;
use arrow_ipc::reader::{FileDecoder, read_footer_length};
use arrow_ipc::writer::FileWriter;
use arrow_ipc::{Block, root_as_footer, root_as_message};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use std::sync::Arc;

/// Rows of `golden.arrow` from each of: inside of the range of training, its edges, beyond it.
const GOLDEN_INSIDE: usize = 8;

fn field(name: &str, data_type: DataType) -> Field {
    Field::new(name, data_type, false)
}

fn forest_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        field("tree", DataType::UInt32),
        field("left_child", DataType::Int32),
        field("right_child", DataType::Int32),
        field("feature", DataType::Int32),
        field("threshold", DataType::Float64),
        field("n_node_samples", DataType::Int64),
        field("missing_go_to_left", DataType::Boolean),
    ]))
}

fn golden_schema(n_features: usize) -> SchemaRef {
    let values = DataType::FixedSizeList(Arc::new(field("item", DataType::Float32)), n_features as i32);
    Arc::new(Schema::new(vec![
        field("row", values),
        field("score_samples", DataType::Float64),
        field("decision", DataType::Float64),
        field("score", DataType::Float64),
    ]))
}

fn write(schema: &SchemaRef, columns: Vec<ArrayRef>) -> Vec<u8> {
    let batch = RecordBatch::try_new(schema.clone(), columns).expect("columns of the schema's types");
    let mut writer = FileWriter::try_new(Vec::new(), schema).expect("a vector takes any bytes");
    writer.write(&batch).expect("a vector takes any bytes");
    writer.into_inner().expect("a vector takes any bytes")
}

/// `forest.arrow`: the nodes of all trees, one row each, by scikit-learn's names.
pub fn forest(fitted: &Fitted) -> Vec<u8> {
    let Fitted::IsolationForest(forest) = fitted;
    let mut number: Vec<u32> = Vec::new();
    let (mut left, mut right, mut feature): (Vec<i32>, Vec<i32>, Vec<i32>) = Default::default();
    let (mut threshold, mut n_node_samples, mut missing): (Vec<f64>, Vec<i64>, Vec<bool>) =
        Default::default();
    for (i, tree) in forest.trees().enumerate() {
        number.extend(std::iter::repeat_n(i as u32, tree.left_child.len()));
        let narrow = |index: &i64| *index as i32;
        left.extend(tree.left_child.iter().map(narrow));
        right.extend(tree.right_child.iter().map(narrow));
        feature.extend(tree.feature.iter().map(narrow));
        threshold.extend(tree.threshold);
        n_node_samples.extend(tree.n_node_samples);
        missing.extend(tree.missing_go_to_left);
    }
    let columns: Vec<ArrayRef> = vec![
        Arc::new(UInt32Array::from(number)),
        Arc::new(Int32Array::from(left)),
        Arc::new(Int32Array::from(right)),
        Arc::new(Int32Array::from(feature)),
        Arc::new(Float64Array::from(threshold)),
        Arc::new(Int64Array::from(n_node_samples)),
        Arc::new(BooleanArray::from(missing)),
    ];
    write(&forest_schema(), columns)
}

/// Reads `forest.arrow`.
///
/// # Errors
/// [`Error::Arrow`] and [`Error::Forest`].
pub fn read_forest(bytes: &[u8], meta: json::Forest) -> Result<Fitted, Error> {
    let Kind::IsolationForest = meta.kind;
    let batch = read(FOREST, bytes, &forest_schema())?;
    let numbers = batch.column(0).as_primitive::<UInt32Type>().values();
    let index = |column: usize| {
        let values = batch.column(column).as_primitive::<Int32Type>().values();
        move |rows: std::ops::Range<usize>| values[rows].iter().map(|value| i64::from(*value)).collect()
    };
    let (left, right, feature) = (index(1), index(2), index(3));
    let threshold = batch.column(4).as_primitive::<Float64Type>().values();
    let n_node_samples = batch.column(5).as_primitive::<Int64Type>().values();
    let missing = batch.column(6).as_boolean();
    let mut trees = Vec::new();
    let mut start = 0;
    for same in numbers.chunk_by(|a, b| a == b) {
        let rows = start..start + same.len();
        start = rows.end;
        let number = trees.len();
        if same[0] as usize != number {
            let reason = format!("row {} belongs to tree {}, must be tree {number}", rows.start, same[0]);
            return Err(Error::Arrow { file: FOREST, reason });
        }
        let arrays = TreeArrays {
            left_child: left(rows.clone()),
            right_child: right(rows.clone()),
            feature: feature(rows.clone()),
            threshold: threshold[rows.clone()].to_vec(),
            n_node_samples: n_node_samples[rows.clone()].to_vec(),
            missing_go_to_left: rows.map(|row| missing.value(row)).collect(),
        };
        let context = || format!("tree {number}");
        let tree = Tree::from_arrays(&arrays, meta.n_features);
        trees.push(tree.map_err(|source| Error::Forest { context: context(), source })?);
    }
    if trees.len() != meta.n_estimators {
        let reason = format!("there are {} trees, must be {}", trees.len(), meta.n_estimators);
        return Err(Error::Arrow { file: FOREST, reason });
    }
    let whole = |source| Error::Forest { context: "the forest".into(), source };
    let forest = forest::Forest::new(&trees, meta.max_samples, meta.offset).map_err(whole)?;
    let forest = match meta.ranges {
        Some(ranges) => forest.with_ranges(ranges).map_err(whole)?,
        None => forest,
    };
    Ok(Fitted::IsolationForest(forest))
}

/// `golden.arrow`: rows inside of the range of training, at its edges and beyond, and their scores.
pub fn golden(fitted: &Fitted) -> Vec<u8> {
    let n_features = fitted.n_features();
    let Fitted::IsolationForest(forest) = fitted;
    // A forest grown elsewhere does not know its range.
    let range = |feature: usize| forest.ranges().get(feature).copied().unwrap_or([0.0, 1.0]);
    let at = |share: f32| move |[least, greatest]: [f32; 2]| least + share * (greatest - least);
    let mut rows: Vec<Vec<f32>> = Vec::new();
    for i in 0..GOLDEN_INSIDE {
        // Every feature at another place of its range.
        let share = |feature: usize| ((i * 37 + feature * 61) % 101) as f32 / 100.0;
        rows.push((0..n_features).map(|feature| at(share(feature))(range(feature))).collect());
    }
    for share in [0.0, 1.0, 1.5, -3.0, 1e6] {
        rows.push((0..n_features).map(|feature| at(share)(range(feature))).collect());
    }
    rows.push(vec![f32::NAN; n_features]);
    rows.push(vec![f32::INFINITY; n_features]);
    let live: Vec<_> = rows.iter().map(|row| fitted.score(row)).collect();
    let score_samples: Vec<f64> = rows.iter().map(|row| fitted.score_samples(row)).collect();
    let values = Arc::new(Float32Array::from(rows.concat()));
    let item = Arc::new(field("item", DataType::Float32));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(FixedSizeListArray::new(item, n_features as i32, values, None)),
        Arc::new(Float64Array::from(score_samples)),
        Arc::new(live.iter().map(|score| Some(score.decision)).collect::<Float64Array>()),
        Arc::new(live.iter().map(|score| Some(score.score)).collect::<Float64Array>()),
    ];
    write(&golden_schema(n_features), columns)
}

/// Scores the rows of `golden.arrow` again.
///
/// # Errors
/// [`Error::Golden`] when one comes out differently, [`Error::Arrow`] for another file.
pub fn check_golden(bytes: &[u8], fitted: &Fitted) -> Result<(), Error> {
    let n_features = fitted.n_features();
    let batch = read(GOLDEN, bytes, &golden_schema(n_features))?;
    let values = batch.column(0).as_fixed_size_list().values().as_primitive::<Float32Type>().values();
    let expected = |column: usize| batch.column(column).as_primitive::<Float64Type>().values();
    for (row, values) in values.chunks_exact(n_features).take(batch.num_rows()).enumerate() {
        let live = fitted.score(values);
        let found = [fitted.score_samples(values), live.decision, live.score];
        for (column, found) in (1..).zip(found) {
            let expected = expected(column)[row];
            // Refuses NaN too.
            if !((found - expected).abs() <= TOLERANCE * expected.abs().max(1.0)) {
                return Err(Error::Golden { row, expected, found });
            }
        }
    }
    Ok(())
}

/// Reads a file of one batch with this schema and no nulls.
fn read(file: &'static str, bytes: &[u8], schema: &SchemaRef) -> Result<RecordBatch, Error> {
    decode(bytes, schema).map_err(|reason| Error::Arrow { file, reason })
}

fn decode(bytes: &[u8], schema: &SchemaRef) -> Result<RecordBatch, String> {
    let cut = || "the file is cut off".to_string();
    let trailer: [u8; 10] = bytes.last_chunk().copied().ok_or_else(cut)?;
    let footer_length = read_footer_length(trailer).map_err(|error| error.to_string())?;
    let body = bytes.len() - trailer.len();
    let footer = bytes.get(body.checked_sub(footer_length).ok_or_else(cut)?..body).ok_or_else(cut)?;
    let footer = root_as_footer(footer).map_err(|error| format!("the footer cannot be read: {error}"))?;
    let names: Vec<&str> = footer
        .schema()
        .and_then(|schema| schema.fields())
        .iter()
        .flatten()
        .filter_map(|f| f.name())
        .collect();
    let expected: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    if names != expected {
        return Err(format!("the columns are {}, must be {}", names.join(", "), expected.join(", ")));
    }
    let blocks: Vec<&Block> = footer.recordBatches().iter().flatten().collect();
    let &[block] = blocks.as_slice() else {
        return Err(format!("the file has {} batches, must be 1", blocks.len()));
    };
    let size = |value: i64| usize::try_from(value).map_err(|_| cut());
    let (offset, head) = (size(block.offset())?, size(block.metaDataLength().into())?);
    let length = head.checked_add(size(block.bodyLength())?).ok_or_else(cut)?;
    let end = offset.checked_add(length).filter(|end| *end <= body).ok_or_else(cut)?;
    let block_bytes = &bytes[offset..end];
    check_buffers(block_bytes.get(..head).ok_or_else(cut)?, length - head)?;
    let decoder = FileDecoder::new(schema.clone(), footer.version());
    let batch = decoder
        .read_record_batch(block, &Buffer::from(block_bytes))
        .map_err(|error| error.to_string())?
        .ok_or("the batch is missing")?;
    match batch.columns().iter().zip(schema.fields()).find(|(column, _)| column.null_count() > 0) {
        Some((_, field)) => Err(format!("column {} has nulls, must have none", field.name())),
        None => Ok(batch),
    }
}

/// Every buffer of the batch lies inside of its body, and every column has the batch's length.
fn check_buffers(head: &[u8], body: usize) -> Result<(), String> {
    // A continuation marker and the length come before the message.
    let message = head.get(8..).ok_or("the batch is cut off")?;
    let message = root_as_message(message).map_err(|error| format!("the batch cannot be read: {error}"))?;
    let batch = message.header_as_record_batch().ok_or("the block is no batch")?;
    if batch.compression().is_some() {
        return Err("the batch is compressed, must not be".into());
    }
    for buffer in batch.buffers().iter().flatten() {
        let inside = buffer.offset() >= 0
            && buffer.length() >= 0
            && buffer.offset().checked_add(buffer.length()).is_some_and(|end| end <= body as i64);
        if !inside {
            return Err(format!(
                "a buffer of {} bytes at {} is outside of the file",
                buffer.length(),
                buffer.offset()
            ));
        }
    }
    let rows = batch.length();
    let fits = |length: i64| length >= 0 && length <= (8 * body) as i64;
    if !fits(rows)
        || batch.nodes().iter().flatten().any(|node| !fits(node.length()) || node.null_count() != 0)
    {
        return Err(format!("a batch of {rows} rows does not fit into the file"));
    }
    Ok(())
}
