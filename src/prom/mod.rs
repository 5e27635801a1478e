//! Prometheus' data model and formats: label sets, selectors, durations, the wire format of remote write.

pub mod duration;
pub mod exposition;
mod label_pool;
pub mod labels;
pub mod matcher;
mod regex;
pub mod shard;
pub mod wire;

/// Messages generated from `proto/`: promforest sends them, and the tests compare [`wire`] with them.
pub mod proto {
    #![allow(missing_docs, clippy::all)]

    // Generated code refers to messages of other packages by paths relative to its own.
    mod prometheus {
        include!(concat!(env!("OUT_DIR"), "/prometheus.rs"));
    }
    mod io {
        pub mod prometheus {
            pub mod write {
                pub mod v2 {
                    include!(concat!(env!("OUT_DIR"), "/io.prometheus.write.v2.rs"));
                }
            }
        }
    }

    pub use io::prometheus::write::v2;
    pub use prometheus::*;
}

pub use label_pool::LabelPool;
pub use labels::{Labels, METRIC_NAME};
pub use matcher::Selector;

/// The bits of a staleness marker, a NaN that ends a series. Compare bits, not `is_nan`.
///
/// Source: Prometheus, `model/value.StaleNaN`.
pub const STALE_BITS: u64 = 0x7ff0_0000_0000_0002;

/// One sample of a series.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Milliseconds since the epoch.
    pub timestamp_ms: i64,
    /// Any float; a staleness marker keeps its bits.
    pub value: f64,
}

impl Sample {
    /// A staleness marker.
    pub fn stale(timestamp_ms: i64) -> Self {
        Self { timestamp_ms, value: f64::from_bits(STALE_BITS) }
    }

    /// True if this sample is a staleness marker.
    pub fn is_stale(&self) -> bool {
        self.value.to_bits() == STALE_BITS
    }
}

/// Compares bits: NaN equals itself, and a staleness marker differs from other NaNs.
impl PartialEq for Sample {
    fn eq(&self, other: &Self) -> bool {
        self.timestamp_ms == other.timestamp_ms && self.value.to_bits() == other.value.to_bits()
    }
}
