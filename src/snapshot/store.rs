//! The directory of the snapshots.
//!
//! A file is written atomically, and a corrupt one is renamed instead of removed, so that it can be examined.

use super::GroupState;
use super::format::{Error, MAX_FILE_BYTES, TooLarge, decode};
use crate::fs::{free_bytes, sync_directory, write_atomically};
use crate::models::artifact;
use crate::prom::Labels;
use crate::telemetry::register;
use crate::time::now_ms;
use crate::window::Window;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tracing::{info, warn};

/// Extension of snapshots.
const EXTENSION: &str = "snapshot";
/// Extension of renamed corrupt snapshots.
const CORRUPT_EXTENSION: &str = "corrupt";

/// Metrics of snapshots.
#[derive(Clone, Debug)]
pub struct Metrics {
    failures: Family<[(&'static str, &'static str); 1], Counter>,
    groups: Family<[(&'static str, &'static str); 1], Counter>,
    written: Counter,
    last_success: Gauge<f64, AtomicU64>,
    duration: Gauge<f64, AtomicU64>,
    size: Gauge,
    free: Gauge<f64, AtomicU64>,
}

impl Metrics {
    /// Registers the metrics.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            failures: register(
                registry,
                "snapshot_failures",
                "Failed reads and writes of snapshots, and groups that the last round at a shutdown did not reach, by operation; scoring continues without them",
            ),
            groups: register(
                registry,
                "snapshot_groups",
                "Snapshots found at startup by outcome; corrupt ones are renamed, incompatible ones belong to another configuration",
            ),
            written: register(registry, "snapshot_written", "Group snapshots written"),
            last_success: register(
                registry,
                "snapshot_last_success_timestamp_seconds",
                "Time at which every changed group was last on disk; 0 before the first time",
            ),
            duration: register(
                registry,
                "snapshot_duration_seconds",
                "Duration of the last snapshot of all groups",
            ),
            size: register(registry, "snapshot_size_bytes", "Size of all snapshot files"),
            free: register(
                registry,
                "storage_free_bytes",
                "Free space in --storage.path after the start and after each snapshot of all groups; NaN if it is not known",
            ),
        };
        metrics.free.set(f64::NAN);
        for operation in ["read", "write", "shutdown"] {
            drop(metrics.failures.get_or_create(&[("operation", operation)]));
        }
        for outcome in ["restored", "incompatible", "corrupt"] {
            drop(metrics.groups.get_or_create(&[("outcome", outcome)]));
        }
        metrics
    }

    /// Counts a snapshot found at startup.
    pub fn count_group(&self, outcome: &'static str) {
        self.groups.get_or_create(&[("outcome", outcome)]).inc();
    }

    fn count_failure(&self, operation: &'static str) {
        self.failures.get_or_create(&[("operation", operation)]).inc();
    }
}

/// The directory of the snapshots.
#[derive(Clone, Debug)]
pub struct SnapshotStore {
    path: PathBuf,
    metrics: Metrics,
    /// True after a change that is not durable until the directory is synced.
    unsynced: bool,
    /// True if the last round failed: a full disk is logged once and not in every round. Clones share the value.
    failing: Arc<AtomicBool>,
}

impl SnapshotStore {
    /// A store at this path. The first write creates the directory.
    pub fn new(path: PathBuf, metrics: Metrics) -> Self {
        Self { path, metrics, unsynced: false, failing: Arc::default() }
    }

    /// The failure of the last round, if any, as text.
    pub fn failure_message(&self) -> Option<String> {
        let failing = self.failing.load(Ordering::Relaxed);
        failing.then(|| {
            format!("snapshots cannot be written to {}: a restart will read the history", self.path.display())
        })
    }

    /// Reads all snapshots. Corrupt ones are renamed and skipped.
    pub fn load(&self) -> Vec<(GroupState, Window)> {
        self.measure_free();
        let paths = match self.list() {
            Ok(paths) => paths,
            Err(source) => {
                self.metrics.count_failure("read");
                warn!(component = "snapshot", path = %self.path.display(), err = %source, "snapshot directory cannot be read, starting without snapshots");
                return Vec::new();
            }
        };
        let mut loaded = Vec::new();
        for path in paths {
            let bytes = match read_file(&path) {
                Ok(bytes) => bytes,
                Err(source) => {
                    self.metrics.count_failure("read");
                    warn!(component = "snapshot", path = %path.display(), err = %source, "snapshot cannot be read");
                    continue;
                }
            };
            match decode(&bytes) {
                Ok(snapshot) => loaded.push(snapshot),
                Err(error) => self.quarantine(&path, &error),
            }
        }
        loaded
    }

    fn measure_free(&self) {
        // The directory itself may not exist yet.
        let free = self.path.parent().and_then(|storage| free_bytes(storage).ok());
        self.metrics.free.set(free.map_or(f64::NAN, |bytes| bytes as f64));
    }

    fn quarantine(&self, path: &Path, error: &Error) {
        self.metrics.count_group("corrupt");
        let corrupt_path = path.with_extension(CORRUPT_EXTENSION);
        let moved = fs::rename(path, &corrupt_path);
        warn!(
            component = "snapshot",
            path = %path.display(),
            err = crate::error::chain(error),
            renamed_to = moved.is_ok().then(|| corrupt_path.display().to_string()),
            "snapshot cannot be used, history is read instead"
        );
    }

    /// Paths of the snapshots, sorted.
    fn list(&self) -> io::Result<Vec<PathBuf>> {
        let entries = match fs::read_dir(&self.path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut files = Vec::new();
        for entry in entries {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == EXTENSION) {
                files.push(path);
            }
        }
        files.sort();
        Ok(files)
    }

    /// File name of a group's snapshot.
    pub fn file_name(detector: &str, group: &Labels) -> String {
        let digest = artifact::sha256_hex(group.to_string().as_bytes());
        format!("{detector}.{}.{EXTENSION}", &digest[..16])
    }

    /// Writes a group's snapshot, in full or not at all.
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let path = self.path.join(name);
        let result = fs::create_dir_all(&self.path).and_then(|()| write_atomically(&path, bytes));
        match &result {
            Ok(()) => {
                self.unsynced = true;
                self.metrics.written.inc();
            }
            Err(_) => self.metrics.count_failure("write"),
        }
        result
    }

    /// Counts groups that the round at a shutdown did not reach.
    pub fn count_unreached(&self, groups: usize) {
        self.metrics.failures.get_or_create(&[("operation", "shutdown")]).inc_by(groups as u64);
    }

    /// Counts a snapshot that is too large to be read again. The group starts from the history.
    pub fn skip(&self, name: &str, error: &TooLarge) {
        self.metrics.count_failure("write");
        warn!(component = "snapshot", file = name, err = %error, "snapshot is not written");
    }

    /// Ends a round of writes: removes the files that are not in `names` and syncs the directory.
    pub fn finish_round(&mut self, names: &HashSet<String>, duration: Duration, failed: Option<io::Error>) {
        let result = match failed {
            Some(error) => Err(error),
            None => self.remove_stale(names).inspect_err(|_| self.metrics.count_failure("write")),
        };
        self.metrics.duration.set(duration.as_secs_f64());
        self.measure_free();
        match result {
            Ok(size) => {
                self.metrics.size.set(i64::try_from(size).unwrap_or(i64::MAX));
                self.metrics.last_success.set(now_ms() as f64 / 1000.0);
                if self.failing.swap(false, Ordering::Relaxed) {
                    info!(component = "snapshot", path = %self.path.display(), "snapshots are written again");
                }
            }
            Err(source) => {
                if !self.failing.swap(true, Ordering::Relaxed) {
                    warn!(component = "snapshot", path = %self.path.display(), err = %source, "snapshots cannot be written, scoring continues");
                }
            }
        }
    }

    /// Removes the files that are not in `names` and returns the size of the others, in bytes.
    fn remove_stale(&mut self, names: &HashSet<String>) -> io::Result<u64> {
        let mut size = 0;
        for path in self.list()? {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if names.contains(&name) {
                // The file may be deleted from outside at any time.
                size += fs::metadata(&path).map_or(0, |metadata| metadata.len());
            } else {
                let removed = fs::remove_file(&path);
                removed.or_else(|error| match error.kind() {
                    io::ErrorKind::NotFound => Ok(()),
                    _ => Err(error),
                })?;
                self.unsynced = true;
            }
        }
        if self.unsynced {
            sync_directory(&self.path)?;
            self.unsynced = false;
        }
        Ok(size)
    }
}

fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    if size > MAX_FILE_BYTES {
        let message = format!("{size} bytes, must be at most {MAX_FILE_BYTES}");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
    }
    let mut bytes = Vec::with_capacity(size as usize);
    file.take(MAX_FILE_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}
