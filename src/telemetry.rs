//! Logs and the process' own metrics.

use clap::ValueEnum;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use std::borrow::Cow;
use std::fmt;
use std::time::{Duration, Instant};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, time::FormatTime, time::SystemTime};
use tracing_subscriber::registry::LookupSpan;

/// A metric with labels that are known when it is counted.
pub type OneLabel<M> = Family<[(&'static str, Cow<'static, str>); 1], M>;

/// Counts what would fill the log, and lets a line through from time to time.
pub struct LogThrottle {
    interval: Duration,
    last_logged: Option<Instant>,
    count: usize,
}

impl LogThrottle {
    /// Nothing is said yet; then a line has to wait for so long after the one before.
    pub fn new(interval: Duration) -> Self {
        Self { interval, last_logged: None, count: 0 }
    }

    /// What to say: the count since the last time. `None` when that was just now.
    pub fn add(&mut self, count: usize) -> Option<usize> {
        self.count += count;
        if self.last_logged.is_some_and(|last| last.elapsed() < self.interval) {
            return None;
        }
        self.last_logged = Some(Instant::now());
        Some(std::mem::take(&mut self.count))
    }
}

/// `--log.level`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    /// Every request.
    Debug,
    /// What changes.
    Info,
    /// What went wrong and was mended.
    Warn,
    /// What lost data or needs a person.
    Error,
}

/// `--log.format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Keys and values, as Prometheus logs.
    Logfmt,
    /// One JSON object a line.
    Json,
}

/// Sends logs to standard error.
pub fn init_logs(level: LogLevel, format: LogFormat) {
    let level = match level {
        LogLevel::Debug => tracing::Level::DEBUG,
        LogLevel::Info => tracing::Level::INFO,
        LogLevel::Warn => tracing::Level::WARN,
        LogLevel::Error => tracing::Level::ERROR,
    };
    // A log that nobody reads any more would be complained about on standard error, which is the log: a panic.
    let builder = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_max_level(level)
        .log_internal_errors(false);
    match format {
        LogFormat::Logfmt => builder.event_format(Logfmt).init(),
        LogFormat::Json => builder.json().flatten_event(true).with_target(false).init(),
    }
}

struct Logfmt;

impl<S, N> FormatEvent<S, N> for Logfmt
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'w> FormatFields<'w> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        out.write_str("time=")?;
        SystemTime.format_time(&mut out)?;
        write!(out, " level={}", event.metadata().level())?;
        let mut fields = LogfmtFields::default();
        event.record(&mut fields);
        write!(out, " msg={}", Quoted(&fields.message))?;
        writeln!(out, "{}", fields.others)
    }
}

#[derive(Default)]
struct LogfmtFields {
    message: String,
    others: String,
}

impl LogfmtFields {
    fn add(&mut self, field: &Field, value: &str) {
        use fmt::Write;
        if field.name() == "message" {
            value.clone_into(&mut self.message);
        } else {
            write!(self.others, " {}={}", field.name(), Quoted(value)).expect("a string takes any text");
        }
    }
}

impl Visit for LogfmtFields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, &format!("{value:?}"));
    }
}

/// Quoted where logfmt needs it.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let needs_no_quotes = |c: char| c.is_ascii_graphic() && !matches!(c, '"' | '=' | '\\');
        if !self.0.is_empty() && self.0.chars().all(needs_no_quotes) {
            f.write_str(self.0)
        } else {
            write!(f, "{:?}", self.0)
        }
    }
}

/// CPU, memory and files of this process, from `/proc`.
#[derive(Debug)]
pub struct ProcessCollector;

/// Kernel clock ticks a second: the unit of `/proc/self/stat`, 100 on every Linux since 2.6.
const TICKS_PER_SECOND: f64 = 100.0;

impl ProcessCollector {
    /// Registers the metrics; without `/proc` there are none.
    pub fn register(registry: &mut Registry) {
        registry.register_collector(Box::new(Self));
    }
}

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Ok(stat) = std::fs::read_to_string("/proc/self/stat") else { return Ok(()) };
        let Some((_, fields)) = stat.rsplit_once(") ") else { return Ok(()) };
        // Numbered from 3, the first field after the name; see proc(5).
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
        gauge("process_start_time_seconds", "Start of the process", boot + field(22) / TICKS_PER_SECOND)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeated_line_is_logged_once_per_interval() {
        let interval = Duration::from_secs(60);
        let mut throttle = LogThrottle::new(interval);
        assert_eq!(throttle.add(3), Some(3));
        assert_eq!((throttle.add(1), throttle.add(1)), (None, None));
        throttle.last_logged = throttle.last_logged.and_then(|last| last.checked_sub(interval));
        assert_eq!(throttle.add(1), Some(3), "what was not said is in the sum");
    }
}
