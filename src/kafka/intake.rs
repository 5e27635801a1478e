//! The records that the source hands over, and the partitions that come and go.

use super::Compression;
use crate::ingest;
use crate::prom::wire::ProtocolVersion;
use std::collections::BTreeMap;

/// A record of a partition.
#[derive(Debug)]
pub struct Record {
    /// The partition.
    pub partition: i32,
    /// The offset of the record.
    pub offset: i64,
    /// Time at which it was produced, in milliseconds.
    pub produced_ms: i64,
    /// Message of the value.
    pub format: ProtocolVersion,
    /// Compression of the value.
    pub compression: Compression,
    /// The value.
    pub value: Vec<u8>,
    /// True if the record is before the committed offset: its rows are written.
    pub is_committed: bool,
}

/// The outcome of a record.
#[derive(Debug)]
pub struct RecordOutcome {
    /// An error if the record, or a part of it, is invalid.
    pub result: Result<(), ingest::Error>,
    /// True if rows wait for their scores: the source pauses until they have them.
    pub is_behind: bool,
}

/// A position in a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The offset after the last record.
    pub offset: i64,
    /// Time at which that record was produced, in milliseconds.
    pub produced_ms: i64,
}

/// The progress through all partitions.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// For each partition, the position before which every row is written or given up.
    pub settled: BTreeMap<i32, Position>,
    /// True if rows wait for their scores.
    pub is_behind: bool,
}

/// The owner of the windows. Its methods wait, and return `None` once the owner is gone.
pub trait Intake: Send + 'static {
    /// Takes in a record.
    fn push(&self, record: Record) -> Option<RecordOutcome>;
    /// The progress so far.
    fn progress(&self) -> Option<Progress>;
    /// Adds a partition, whose rows of the records before `committed` are written. Returns the offset before which the
    /// windows have every record, if its groups are in memory.
    fn assign(&self, partition: i32, committed: Option<i64>) -> Option<Option<i64>>;
    /// Removes a partition: its groups are not written any more.
    fn revoke(&self, partition: i32) -> Option<()>;
}
