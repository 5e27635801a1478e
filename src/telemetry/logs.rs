//! Logs as logfmt or JSON, on standard error. A line of logfmt in the journal has a priority, and neither time nor level: the
//! journal keeps them.

use clap::ValueEnum;
use std::os::unix::fs::MetadataExt;
use std::{env, fmt, fs};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, time::FormatTime, time::SystemTime};
use tracing_subscriber::registry::LookupSpan;

/// Least severity of log lines (`--log.level`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    /// Single requests too.
    Debug,
    /// Lifecycle events.
    Info,
    /// Faults that promforest recovered from.
    Warn,
    /// Faults that lose data or need an operator.
    Error,
}

/// Format of log lines (`--log.format`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// `key=value` pairs, as in Prometheus.
    Logfmt,
    /// One JSON object per line.
    Json,
}

/// Writes logs to standard error.
pub fn init_logs(level: LogLevel, format: LogFormat) {
    let level = match level {
        LogLevel::Debug => tracing::Level::DEBUG,
        LogLevel::Info => tracing::Level::INFO,
        LogLevel::Warn => tracing::Level::WARN,
        LogLevel::Error => tracing::Level::ERROR,
    };
    // tracing reports a failed write on standard error. If standard error itself is closed, that report panics.
    let builder = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_max_level(level)
        .log_internal_errors(false);
    match format {
        LogFormat::Logfmt => builder.event_format(Logfmt { is_journal: is_journal() }).init(),
        LogFormat::Json => builder.json().flatten_event(true).with_target(false).init(),
    }
}

/// True if standard error is the journal's, as systemd says.
fn is_journal() -> bool {
    let Ok(stream) = env::var("JOURNAL_STREAM") else { return false };
    let stderr = fs::metadata("/proc/self/fd/2");
    stderr.is_ok_and(|stderr| stream == format!("{}:{}", stderr.dev(), stderr.ino()))
}

/// The priority of a level in the journal, as in syslog (RFC 5424).
fn priority(level: tracing::Level) -> u8 {
    match level {
        tracing::Level::ERROR => 3,
        tracing::Level::WARN => 4,
        tracing::Level::INFO => 6,
        _ => 7,
    }
}

struct Logfmt {
    is_journal: bool,
}

impl<S, N> FormatEvent<S, N> for Logfmt
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'w> FormatFields<'w> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        if self.is_journal {
            write!(out, "<{}>", priority(*event.metadata().level()))?;
        } else {
            out.write_str("time=")?;
            SystemTime.format_time(&mut out)?;
            write!(out, " level={} ", event.metadata().level())?;
        }
        let mut fields = LogfmtFields::default();
        event.record(&mut fields);
        write!(out, "msg={}", Quoted(&fields.message))?;
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

/// A value of logfmt, quoted if it contains spaces, quotes, `=` or backslashes.
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
