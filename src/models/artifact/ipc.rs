//! Arrow files of one batch, with a reader for untrusted bytes.
//!
//! The reader of the `arrow` crate allocates by the lengths in the footer without a check. This reader checks first
//! that every block and buffer lies inside of the file and that columns have the expected types; then the crate's
//! decoder validates the arrays.

use super::Error;
use arrow_array::{Array, ArrayRef, FixedSizeListArray, RecordBatch};
use arrow_buffer::Buffer;
use arrow_ipc::reader::{FileDecoder, read_footer_length};
use arrow_ipc::writer::FileWriter;
use arrow_ipc::{Block, FieldNode, root_as_footer, root_as_message};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use std::sync::Arc;

/// A schema of columns without nulls.
pub fn schema(columns: impl IntoIterator<Item = (&'static str, DataType)>) -> SchemaRef {
    let fields: Vec<Field> = columns.into_iter().map(|(name, data_type)| field(name, data_type)).collect();
    Arc::new(Schema::new(fields))
}

/// The type of a column with `width` values in every row.
pub fn list_type(item: DataType, width: usize) -> DataType {
    DataType::FixedSizeList(Arc::new(field("item", item)), width as i32)
}

/// A column with `width` values in every row, from the values in row-major order.
pub fn list_column(values: ArrayRef, width: usize) -> ArrayRef {
    let item = Arc::new(field("item", values.data_type().clone()));
    Arc::new(FixedSizeListArray::new(item, width as i32, values, None))
}

fn field(name: &str, data_type: DataType) -> Field {
    Field::new(name, data_type, false)
}

/// A file of these columns.
///
/// # Panics
/// If the columns differ from the schema's types, or in length.
pub fn write(schema: &SchemaRef, columns: Vec<ArrayRef>) -> Vec<u8> {
    let batch = RecordBatch::try_new(schema.clone(), columns).expect("columns of the schema's types");
    let mut writer = FileWriter::try_new(Vec::new(), schema).expect("a vector takes any bytes");
    writer.write(&batch).expect("a vector takes any bytes");
    writer.into_inner().expect("a vector takes any bytes")
}

/// Reads a file of one batch with this schema; only columns that may have nulls have some. A column of lists
/// may hold more values than its rows have.
///
/// # Errors
/// [`Error::Arrow`].
pub(super) fn read(file: &'static str, bytes: &[u8], schema: &SchemaRef) -> Result<RecordBatch, Error> {
    decode(bytes, schema).map_err(|reason| Error::Arrow { file, reason })
}

/// Reads like [`read`], for files outside of a model's folder.
///
/// # Errors
/// The reason why the bytes are invalid.
pub fn decode(bytes: &[u8], schema: &SchemaRef) -> Result<RecordBatch, String> {
    let truncated = || "the file is cut off".to_string();
    let trailer: [u8; 10] = bytes.last_chunk().copied().ok_or_else(truncated)?;
    let footer_length = read_footer_length(trailer).map_err(|error| error.to_string())?;
    let body = bytes.len() - trailer.len();
    let footer =
        bytes.get(body.checked_sub(footer_length).ok_or_else(truncated)?..body).ok_or_else(truncated)?;
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
    let size = |value: i64| usize::try_from(value).map_err(|_| truncated());
    let (offset, header_length) = (size(block.offset())?, size(block.metaDataLength().into())?);
    let length = header_length.checked_add(size(block.bodyLength())?).ok_or_else(truncated)?;
    let end = offset.checked_add(length).filter(|end| *end <= body).ok_or_else(truncated)?;
    let block_bytes = &bytes[offset..end];
    let nullable = schema.fields().iter().any(|field| field.is_nullable());
    check_buffers(block_bytes.get(..header_length).ok_or_else(truncated)?, length - header_length, nullable)?;
    let decoder = FileDecoder::new(schema.clone(), footer.version());
    let batch = decoder
        .read_record_batch(block, &Buffer::from(block_bytes))
        .map_err(|error| error.to_string())?
        .ok_or("the batch is missing")?;
    let has_nulls = |column: &ArrayRef, field: &Field| !field.is_nullable() && column.null_count() > 0;
    match batch.columns().iter().zip(schema.fields()).find(|(column, field)| has_nulls(column, field)) {
        Some((_, field)) => Err(format!("column {} has nulls, must have none", field.name())),
        None => Ok(batch),
    }
}

/// Every buffer of the batch lies inside of its body, every column has the batch's length, and, in a batch of
/// plain numbers that may be null, every cell has its bit.
fn check_buffers(header: &[u8], body_length: usize, nullable: bool) -> Result<(), String> {
    // A continuation marker and the length come before the message.
    let message = header.get(8..).ok_or("the batch is cut off")?;
    let message = root_as_message(message).map_err(|error| format!("the batch cannot be read: {error}"))?;
    let batch = message.header_as_record_batch().ok_or("the block is no batch")?;
    if batch.compression().is_some() {
        return Err("the batch is compressed, must not be".into());
    }
    for buffer in batch.buffers().iter().flatten() {
        let inside = buffer.offset() >= 0
            && buffer.length() >= 0
            && buffer.offset().checked_add(buffer.length()).is_some_and(|end| end <= body_length as i64);
        if !inside {
            return Err(format!(
                "a buffer of {} bytes at {} is outside of the file",
                buffer.length(),
                buffer.offset()
            ));
        }
    }
    let rows = batch.length();
    let fits = |length: i64| length >= 0 && length <= (8 * body_length) as i64;
    // A column of numbers has two buffers: the validity bits and the values.
    let validity_bytes = |column: usize| {
        batch.buffers().map(|buffers| (2 * column < buffers.len()).then(|| buffers.get(2 * column).length()))
    };
    let has_validity = |column: usize, node: &FieldNode| {
        nullable && validity_bytes(column).flatten().is_some_and(|bytes| 8 * bytes >= node.length())
    };
    let is_valid = |(column, node): (usize, &FieldNode)| {
        fits(node.length()) && (node.null_count() == 0 || has_validity(column, node))
    };
    if !fits(rows) || !batch.nodes().iter().flatten().enumerate().all(is_valid) {
        return Err(format!("a batch of {rows} rows does not fit into the file"));
    }
    Ok(())
}
