//! Real programs for tests: the programs themselves, ports, HTTP, waiting.
//!
//! A missing program is a failure and never a skipped test; `tests/components.sh` installs them all.
#![allow(dead_code)] // each test file uses its part

pub mod client;
pub mod command;
pub mod example;
pub mod hosts;
pub mod http;
#[cfg(feature = "kafka")]
pub mod kafka;
pub mod mimir;
pub mod mlflow;
pub mod prometheus;
pub mod reference;
pub mod remote_write;
pub mod sidecar;
pub mod stack;
pub mod victoriametrics;

use std::collections::HashSet;
use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use std::{env, fmt, panic, thread};

/// The program under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_promforest");
/// Lines of each log that a failure shows.
const TAIL_LINES: usize = 15;
/// Pause between two polls.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// The Prometheus servers that the tests run against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrometheusVersion {
    /// Debian's 2.x.
    V2,
    /// A current 3.x.
    V3,
}

impl PrometheusVersion {
    /// Every version.
    pub const ALL: [Self; 2] = [Self::V2, Self::V3];

    /// The server of this version: `PROMETHEUS_2` or `PROMETHEUS_3`, or else `prometheus` in `PATH`.
    pub fn prometheus(self) -> PathBuf {
        let (variable, prefix) = match self {
            Self::V2 => ("PROMETHEUS_2", "prometheus, version 2."),
            Self::V3 => ("PROMETHEUS_3", "prometheus, version 3."),
        };
        let program = program(variable, &["prometheus"]);
        let output = Command::new(&program).arg("--version").output();
        let output = output.unwrap_or_else(|err| panic!("{} does not run: {err}", program.display()));
        // 2.x prints it on standard output, releases before 2.43 on standard error.
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(
            text.starts_with(prefix),
            "{} prints {:?} instead of {prefix:?}: set {variable}\n{HELP}",
            program.display(),
            text.lines().next().unwrap_or_default(),
        );
        program
    }

    /// promtool of this version: `PROMTOOL_2` or `PROMTOOL_3`, or else `promtool` in `PATH`.
    pub fn promtool(self) -> PathBuf {
        let variable = match self {
            Self::V2 => "PROMTOOL_2",
            Self::V3 => "PROMTOOL_3",
        };
        program(variable, &["promtool"])
    }
}

impl fmt::Display for PrometheusVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V2 => "Prometheus 2",
            Self::V3 => "Prometheus 3",
        })
    }
}

const HELP: &str = "tests/components.sh installs the missing programs: eval \"$(tests/components.sh)\"";

/// node_exporter: `NODE_EXPORTER`, or else the one in `PATH`.
pub fn node_exporter() -> PathBuf {
    program("NODE_EXPORTER", &["prometheus-node-exporter", "node_exporter"])
}

/// VictoriaMetrics: `VICTORIAMETRICS`, or else the one in `PATH`.
pub fn victoria_metrics() -> PathBuf {
    program("VICTORIAMETRICS", &["victoria-metrics", "victoria-metrics-prod"])
}

/// vmagent: `VMAGENT`, or else the one in `PATH`.
pub fn vmagent() -> PathBuf {
    program("VMAGENT", &["vmagent", "vmagent-prod"])
}

/// The collector of `tests/components/otelcol`: `OTELCOL`, or else the one in `PATH`.
pub fn otelcol() -> PathBuf {
    program("OTELCOL", &["otelcol", "otelcol-contrib"])
}

/// Thanos: `THANOS`, or else the one in `PATH`.
pub fn thanos() -> PathBuf {
    program("THANOS", &["thanos"])
}

/// The maker of packages: `NFPM`, or else the one in `PATH`.
pub fn nfpm() -> PathBuf {
    program("NFPM", &["nfpm"])
}

/// jsonnet: `JSONNET`, or else the one in `PATH`.
pub fn jsonnet() -> PathBuf {
    program("JSONNET", &["jsonnet"])
}

/// The program of `tests/components/kubernetes`: `MANIFESTS`, or else the one in `PATH`.
pub fn manifests() -> PathBuf {
    program("MANIFESTS", &["manifests"])
}

/// The browser: `CHROMIUM`, or else the one in `PATH`.
pub fn chromium() -> PathBuf {
    program("CHROMIUM", &["chromium"])
}

/// The Java runtime: `JAVA`, or else the one in `PATH`.
pub fn java() -> PathBuf {
    program("JAVA", &["java"])
}

/// The folder of Kafka's jars: `KAFKA_LIBS`.
pub fn kafka_libs() -> PathBuf {
    let libs = env::var_os("KAFKA_LIBS").map(PathBuf::from).unwrap_or_default();
    assert!(libs.is_dir(), "KAFKA_LIBS={} is no folder\n{HELP}", libs.display());
    libs
}

fn program(variable: &str, names: &[&str]) -> PathBuf {
    if let Some(path) = env::var_os(variable).filter(|path| !path.is_empty()) {
        let path = PathBuf::from(path);
        assert!(path.is_file(), "{variable}={} is no program\n{HELP}", path.display());
        return path;
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path).flat_map(|dir| names.iter().map(move |name| dir.join(name)));
    found.into_iter().find(|path| path.is_file()).unwrap_or_else(|| {
        panic!("{variable} is not set, and there is no {} in PATH\n{HELP}", names.join(" or "))
    })
}

/// Runs a scenario against every Prometheus in parallel; fails if one of them fails.
pub fn each_version<T: Send>(scenario: impl Fn(PrometheusVersion) -> T + Sync) -> Vec<T> {
    in_parallel(PrometheusVersion::ALL.map(|version| (version, version)), scenario)
}

/// Runs an action on an item of each Prometheus in parallel; fails if one of them fails.
pub fn in_parallel<I: Send, T: Send>(
    items: impl IntoIterator<Item = (PrometheusVersion, I)>,
    action: impl Fn(I) -> T + Sync,
) -> Vec<T> {
    let action = &action;
    let results: Vec<_> = thread::scope(|scope| {
        let start = |(version, item): (PrometheusVersion, I)| {
            // The name stands in the panic's message.
            let thread = thread::Builder::new().name(version.to_string());
            thread.spawn_scoped(scope, move || action(item)).expect("a thread can be started")
        };
        let running: Vec<_> = items.into_iter().map(start).collect();
        running.into_iter().map(thread::ScopedJoinHandle::join).collect()
    });
    results.into_iter().map(|result| result.unwrap_or_else(|cause| panic::resume_unwind(cause))).collect()
}

/// A free TCP port of 127.0.0.1, never the same twice.
pub fn free_port() -> u16 {
    static HANDED_OUT: Mutex<Option<HashSet<u16>>> = Mutex::new(None);
    loop {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has a free port");
        let port = listener.local_addr().expect("a bound socket has an address").port();
        let mut handed_out = HANDED_OUT.lock().expect("no thread panics while it holds the lock");
        if handed_out.get_or_insert_default().insert(port) {
            return port;
        }
    }
}

/// Milliseconds since the epoch.
pub fn now_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970");
    i64::try_from(now.as_millis()).expect("the clock is before the year 292278994")
}

/// A running program, which is killed on drop. Its output goes to a log file.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a program; its log is `NAME.log` in `dir`, appended to.
    pub fn start(name: &str, program: &Path, args: &[String], dir: &Path) -> Self {
        let mut command = Command::new(program);
        command.args(args);
        Self::spawn(name, command, dir)
    }

    /// Starts a prepared command in `dir`, with its log there.
    pub fn spawn(name: &str, mut command: Command, dir: &Path) -> Self {
        let log = dir.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log).expect("the log can be written");
        let child = command
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a file can be cloned"))
            .stderr(file)
            .spawn()
            .unwrap_or_else(|err| panic!("{:?} does not start: {err}", command.get_program()));
        Self { name: name.into(), child, log }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal by its name, such as `TERM`.
    pub fn signal(&self, signal: &str) {
        let id = self.child.id().to_string();
        let sent = Command::new("sh").args(["-c", "kill -s \"$0\" \"$1\"", signal, &id]).status();
        assert!(sent.is_ok_and(|status| status.success()), "SIG{signal} cannot be sent to {}", self.name);
    }

    /// Sends SIGTERM and waits for the end.
    pub fn terminate(&mut self, limit: Duration) -> ExitStatus {
        self.signal("TERM");
        self.wait_for_exit(limit)
    }

    /// Waits for the end; fails after the limit.
    pub fn wait_for_exit(&mut self, limit: Duration) -> ExitStatus {
        let until = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().expect("the process is ours") {
                return status;
            }
            assert!(Instant::now() < until, "{} still runs after {limit:?}\n{}", self.name, self.tail());
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Memory that is resident now, in bytes.
    pub fn resident_bytes(&self) -> usize {
        self.status_bytes("VmRSS:")
    }

    /// The most memory that was ever resident, in bytes.
    pub fn peak_bytes(&self) -> usize {
        self.status_bytes("VmHWM:")
    }

    fn status_bytes(&self, key: &str) -> usize {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id())).expect("the program runs");
        let value = status.lines().find_map(|line| line.strip_prefix(key)).expect("Linux");
        value.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") * 1024
    }

    /// Waits for an end that another process causes.
    pub fn wait_for_end(&mut self) {
        let _ = self.child.wait();
    }

    /// Sends SIGKILL.
    pub fn kill(self) {
        drop(self);
    }

    /// Fails when the process has ended.
    pub fn assert_running(&mut self) {
        if let Some(status) = self.child.try_wait().expect("the process is ours") {
            panic!("{} has ended with {status}\n{}", self.name, self.tail());
        }
    }

    /// The file of its output.
    pub fn log_file(&self) -> PathBuf {
        self.log.clone()
    }

    /// Its output.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// The end of its log, for a message.
    pub fn tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let end = &lines[lines.len().saturating_sub(TAIL_LINES)..];
        format!("---- the end of the log of {}:\n{}\n", self.name, end.join("\n"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The process may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Polls until the result is `Ok`. An `Err` describes the state so far; at the deadline, or when one of the processes
/// has ended, the panic's message holds it and the ends of their logs.
pub fn wait<T>(
    what: &str,
    limit: Duration,
    processes: &mut [&mut Process],
    mut poll: impl FnMut() -> Result<T, String>,
) -> T {
    let until = Instant::now() + limit;
    loop {
        let observed = match poll() {
            Ok(found) => return found,
            Err(seen) => seen,
        };
        processes.iter_mut().for_each(|process| process.assert_running());
        if Instant::now() >= until {
            let tails: String = processes.iter().map(|process| process.tail()).collect();
            panic!("not within {limit:?}: {what}; seen last: {observed}\n{tails}");
        }
        thread::sleep(POLL_INTERVAL);
    }
}
