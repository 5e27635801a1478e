//! Memory, disk and limits against the number of groups.

use crate::config::Config;
use crate::detector::Detector;
use crate::doctor::facts::{Facts, Selected, Server, Sidecar};
use crate::doctor::finding::Finding;
use crate::doctor::known::Known;
use crate::models::registry;
use crate::report::text::plain_plural;
use std::time::Duration;

/// Most bytes of a sample in the window: 12 KiB for the 1,440 samples of six hours at 15 s.
const SAMPLE_BYTES: f64 = 12.0 * 1024.0 / 1440.0;
/// Interval of scrapes where it is not known.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(15);
/// Bytes of a model's folder: 0.8 MB for the four features of a network interface.
const MODEL_BYTES: f64 = 1e6;
/// Versions that the registry keeps beside those of `keep_versions`: champion and challenger.
const VERSIONS_WITH_ALIAS: f64 = 2.0;
/// Share of the machine's memory that the sidecar may take before it is a finding.
const MAX_MEMORY_SHARE: f64 = 0.5;

/// The findings of the sidecar's size.
pub fn all(config: &Config, facts: &Facts) -> Vec<Finding> {
    let Ok(sidecar) = &facts.sidecar else { return Vec::new() };
    vec![limits(sidecar), memory(config, facts, sidecar), disk(config, sidecar)]
}

fn limits(sidecar: &Sidecar) -> Finding {
    const CHECK: &str = "limits";
    let dropped = sidecar.metric("promforest_ingest_samples_dropped_total", ("reason", "series_limit"));
    if dropped == 0.0 {
        return Finding::ok(CHECK, format!("within the limits: {}", groups(sidecar)));
    }
    Finding::error(
        CHECK,
        format!(
            "dropped, because their series or groups are beyond the limits: {}",
            plain_plural(dropped as usize, "sample")
        ),
        "select fewer series by `match`, raise `global.series_limit` or `global.group_limit`, or run several sidecars",
    )
}

fn memory(config: &Config, facts: &Facts, sidecar: &Sidecar) -> Finding {
    const CHECK: &str = "memory";
    let expected = facts.servers.iter().map(|server| expected_bytes(config, server)).fold(0.0, f64::max);
    let resident = sidecar.metric("process_resident_memory_bytes", ("", ""));
    let sizes = format!(
        "{}; {} resident, and {} for full windows",
        groups(sidecar),
        format_bytes(resident),
        format_bytes(expected)
    );
    let Some(memory) = facts.memory_bytes else { return Finding::ok(CHECK, sizes) };
    if resident.max(expected) <= MAX_MEMORY_SHARE * memory {
        return Finding::ok(CHECK, format!("{sizes}, of {}", format_bytes(memory)));
    }
    Finding::warning(
        CHECK,
        format!("{sizes}, of {}: more than half", format_bytes(memory)),
        "shorten `window`, select fewer series by `match`, or add memory",
    )
}

/// Bytes of the windows of all detectors once they are full.
fn expected_bytes(config: &Config, server: &Server) -> f64 {
    let of_detector = |(detector, selected): (&Detector, &Known<Selected>)| {
        let series = selected.as_ref().map_or(&[][..], |selected| &selected.recent);
        let interval = |job: &str| server.config.as_ref().ok().and_then(|config| config.interval(job));
        let samples = series.iter().map(|labels| {
            let interval = interval(labels.get("job")).unwrap_or(DEFAULT_INTERVAL);
            detector.window.as_secs_f64() / interval.as_secs_f64().max(0.001)
        });
        samples.sum::<f64>() * SAMPLE_BYTES
    };
    config.detectors.iter().map(|detector| &**detector).zip(&server.selected).map(of_detector).sum()
}

fn groups(sidecar: &Sidecar) -> String {
    plain_plural(sidecar.n_groups, "group")
}

/// Bytes that the models and snapshots of all groups take once each group has all versions that the registry keeps. A
/// snapshot is written beside the one that it replaces.
fn expected_disk_bytes(config: &Config, sidecar: &Sidecar, snapshot_bytes: f64) -> f64 {
    let keep = config.registry.keep;
    let bytes_per_group = match config.registry.store {
        registry::Store::Directory(_) => {
            (keep.versions as f64 * MODEL_BYTES).min(keep.bytes as f64) + VERSIONS_WITH_ALIAS * MODEL_BYTES
        }
        registry::Store::Mlflow(_) => 0.0,
    };
    2.0 * snapshot_bytes + sidecar.n_groups as f64 * bytes_per_group
}

fn disk(config: &Config, sidecar: &Sidecar) -> Finding {
    const CHECK: &str = "disk";
    let failures = sidecar.metric("promforest_snapshot_failures_total", ("operation", "write"));
    let snapshot_bytes = sidecar.metric("promforest_snapshot_size_bytes", ("", ""));
    let size = format_bytes(snapshot_bytes);
    if failures > 0.0 {
        return Finding::error(
            CHECK,
            format!(
                "{} could not be written; those on disk take {size}",
                plain_plural(failures as usize, "snapshot")
            ),
            "free space in --storage.path, and let promforest write there",
        );
    }
    let taken = format!("snapshots of {} take {size}", groups(sidecar));
    let free =
        sidecar.metrics.iter().find(|(labels, _)| labels.metric_name() == "promforest_storage_free_bytes");
    let Some(free) = free.map(|(_, bytes)| *bytes).filter(|bytes| bytes.is_finite()) else {
        return Finding::ok(CHECK, format!("{taken}; the free space is not known"));
    };
    let expected = expected_disk_bytes(config, sidecar, snapshot_bytes);
    let sizes = format!(
        "{taken}; {} are free, and models and snapshots take up to {}",
        format_bytes(free),
        format_bytes(expected)
    );
    if free >= expected {
        return Finding::ok(CHECK, sizes);
    }
    Finding::warning(CHECK, sizes, "free space in --storage.path, or lower registry.keep_versions")
}

/// A size with a binary unit.
fn format_bytes(bytes: f64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut size, mut unit) = (bytes, 0);
    while size >= 1024.0 && unit + 1 < units.len() {
        size /= 1024.0;
        unit += 1;
    }
    format!("{size:.0} {}", units[unit])
}
