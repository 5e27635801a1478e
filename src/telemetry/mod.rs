//! Logs, log throttling and metrics of the process.

mod logs;
mod page;
mod process;
mod throttle;

pub use logs::{LogFormat, LogLevel, init_logs};
pub use page::PageFormat;
pub use process::ProcessCollector;
pub use throttle::LogThrottle;

use prometheus_client::metrics::family::Family;
use prometheus_client::registry::{Metric, Registry};
use std::borrow::Cow;

/// A family of metrics with one label.
pub type OneLabel<M> = Family<[(&'static str, Cow<'static, str>); 1], M>;

/// Registers a metric and returns it.
pub fn register<M: Metric + Clone + Default>(registry: &mut Registry, name: &str, help: &str) -> M {
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}
