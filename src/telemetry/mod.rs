//! Logs, log throttling and metrics of the process.

mod logs;
mod page;
mod process;
mod throttle;

pub use logs::{LogFormat, LogLevel, init_logs};
pub use page::PageFormat;
pub use process::ProcessCollector;
pub use throttle::LogThrottle;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::{Metric, Registry};
use std::borrow::Cow;
use std::fmt;

/// A family of metrics with one label.
pub type OneLabel<M> = Family<[(&'static str, Cow<'static, str>); 1], M>;

/// Registers a metric and returns it.
pub fn register<M: Metric + Clone + Default>(registry: &mut Registry, name: &str, help: &str) -> M {
    let metric = M::default();
    registry.register(name, help, AlwaysDescribed(metric.clone()));
    metric
}

/// A metric whose help and type are on the page before its first sample, so that the page describes all metrics.
#[derive(Debug)]
struct AlwaysDescribed<M>(M);

impl<M: Metric> EncodeMetric for AlwaysDescribed<M> {
    fn encode(&self, encoder: MetricEncoder<'_>) -> fmt::Result {
        self.0.encode(encoder)
    }

    fn metric_type(&self) -> MetricType {
        self.0.metric_type()
    }
}
