//! Encodes batches while they are sent, as an Arrow IPC stream or as Parquet.

use super::request::Format;
use arrow_array::RecordBatch;
use arrow_ipc::writer::StreamWriter;
use arrow_schema::SchemaRef;
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;
use std::mem::take;

/// Rows of a row group of Parquet, which is kept until it is complete.
const ROW_GROUP_ROWS: usize = 65_536;
/// Bytes of a cell in an encoder, which holds a batch and its encoded form, or a row group.
const BYTES_PER_CELL: usize = 16;

/// An encoder into memory, whose bytes are taken as they come.
pub(super) enum Encoder {
    Arrow(Box<StreamWriter<Vec<u8>>>),
    Parquet(Box<ArrowWriter<Vec<u8>>>),
}

impl Encoder {
    /// Memory of an encoder.
    pub fn n_bytes(schema: &SchemaRef) -> usize {
        ROW_GROUP_ROWS * BYTES_PER_CELL * schema.fields().len()
    }

    /// An encoder for batches of this schema.
    pub fn new(format: Format, schema: &SchemaRef) -> Self {
        match format {
            Format::Arrow => {
                let writer = StreamWriter::try_new(Vec::new(), schema).expect("a vector takes any bytes");
                Self::Arrow(Box::new(writer))
            }
            Format::Parquet => {
                let properties = WriterProperties::builder()
                    .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
                    .set_compression(Compression::SNAPPY)
                    .build();
                let writer = ArrowWriter::try_new(Vec::new(), schema.clone(), Some(properties));
                Self::Parquet(Box::new(writer.expect("Parquet has the types of the schema")))
            }
        }
    }

    /// Encodes a batch. Returns the bytes that are complete.
    ///
    /// # Panics
    /// If the batch has another schema.
    pub fn write(&mut self, batch: &RecordBatch) -> Bytes {
        let bytes = match self {
            Self::Arrow(writer) => {
                writer.write(batch).expect("a vector takes any bytes");
                take(writer.get_mut())
            }
            Self::Parquet(writer) => {
                writer.write(batch).expect("a vector takes any bytes");
                writer.sync().expect("a vector takes any bytes");
                take(writer.inner_mut())
            }
        };
        bytes.into()
    }

    /// The last bytes.
    pub fn finish(self) -> Bytes {
        let bytes = match self {
            Self::Arrow(writer) => writer.into_inner().expect("a vector takes any bytes"),
            Self::Parquet(writer) => writer.into_inner().expect("a vector takes any bytes"),
        };
        bytes.into()
    }
}
