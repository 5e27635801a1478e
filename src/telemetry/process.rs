//! Metrics of the process, from `/proc`, with the names that Prometheus' client libraries use.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

/// CPU time, memory and open files of this process.
#[derive(Debug)]
pub struct ProcessCollector {
    /// Seconds since the epoch. The system clock at the registration is used: the boot time that `/proc/self/stat`
    /// counts from is hidden from services with `ProcSubset=pid`.
    started: f64,
}

/// Kernel clock ticks per second, the unit of `/proc/self/stat`: 100 on every Linux since 2.6.
const TICKS_PER_SECOND: f64 = 100.0;

impl ProcessCollector {
    /// Registers the metrics. Without `/proc` they are absent.
    pub fn register(registry: &mut Registry) {
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        registry.register_collector(Box::new(Self { started }));
    }
}

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Ok(stat) = std::fs::read_to_string("/proc/self/stat") else { return Ok(()) };
        let Some((_, fields)) = stat.rsplit_once(") ") else { return Ok(()) };
        // proc(5) numbers the field after the name 3.
        let fields: Vec<f64> = fields.split(' ').map(|field| field.parse().unwrap_or(0.0)).collect();
        let field = |number: usize| fields.get(number - 3).copied().unwrap_or(0.0);
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
        if let Some(max) = max_open_files() {
            gauge("process_max_fds", "Maximum number of open file descriptors", max)?;
        }
        gauge("process_start_time_seconds", "Start time of the process since the epoch", self.started)
    }
}

/// The soft limit of open files; `None` if there is none.
fn max_open_files() -> Option<f64> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let soft = limits.lines().find_map(|line| line.strip_prefix("Max open files")?.split_whitespace().next());
    soft?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::encoding::text::encode;

    #[test]
    fn the_standard_process_metrics() {
        let mut registry = Registry::default();
        ProcessCollector::register(&mut registry);
        let mut page = String::new();
        encode(&mut page, &registry).expect("it encodes");
        let value = |name: &str| -> f64 {
            let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("{name}: {page}"))
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        assert!((now - value("process_start_time_seconds")).abs() < 60.0);
        assert!(value("process_max_fds") >= value("process_open_fds") && value("process_open_fds") > 0.0);
        assert!(value("process_resident_memory_bytes") > 1e6);
    }
}
