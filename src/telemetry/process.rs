//! Metrics of the process, from `/proc`, with the names that Prometheus' client libraries use.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use std::fmt;

/// CPU time, memory and open files of this process.
#[derive(Debug)]
pub struct ProcessCollector;

/// Kernel clock ticks per second, the unit of `/proc/self/stat`: 100 on every Linux since 2.6.
const TICKS_PER_SECOND: f64 = 100.0;

impl ProcessCollector {
    /// Registers the metrics. Without `/proc` they are absent.
    pub fn register(registry: &mut Registry) {
        registry.register_collector(Box::new(Self));
    }
}

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Ok(stat) = std::fs::read_to_string("/proc/self/stat") else { return Ok(()) };
        let Some((_, fields)) = stat.rsplit_once(") ") else { return Ok(()) };
        // proc(5) numbers the field after the name 3.
        let fields: Vec<f64> = fields.split(' ').map(|field| field.parse().unwrap_or(0.0)).collect();
        let field = |number: usize| fields.get(number - 3).copied().unwrap_or(0.0);
        let boot = std::fs::read_to_string("/proc/stat").unwrap_or_default();
        let boot =
            boot.lines().find_map(|line| line.strip_prefix("btime ")?.parse::<f64>().ok()).unwrap_or(0.0);
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let resident = status.lines().find_map(|line| {
            let kib = line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?;
            kib.parse::<f64>().ok()
        });
        let files = std::fs::read_dir("/proc/self/fd").map_or(0.0, |files| files.count() as f64);

        let mut counter = |name, help, value: f64| {
            let metric = ConstCounter::new(value);
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
        };
        counter(
            "process_cpu_seconds",
            "User and system CPU time",
            (field(14) + field(15)) / TICKS_PER_SECOND,
        )?;
        let mut gauge = |name, help, value: f64| {
            let metric = ConstGauge::new(value);
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
        };
        gauge("process_resident_memory_bytes", "Resident memory", resident.unwrap_or(0.0) * 1024.0)?;
        gauge("process_virtual_memory_bytes", "Virtual memory", field(23))?;
        gauge("process_open_fds", "Open file descriptors", files)?;
        gauge(
            "process_start_time_seconds",
            "Start time of the process since the epoch",
            boot + field(22) / TICKS_PER_SECOND,
        )
    }
}
