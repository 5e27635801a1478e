use super::format::{FORMAT, MAGIC, encode_within, split_line};
use super::*;
use crate::models::artifact;
use crate::prom::Sample;
use crate::window::{IncidentState, ModelRole, Score, Window};
use arrow_array::Float64Array;
use prometheus_client::registry::Registry;
use proptest::prelude::*;
use std::collections::HashSet;
use std::fs;
use std::time::Duration;

fn labels(text: &[(&str, &str)]) -> Labels {
    Labels::new(text.iter().copied()).expect("valid")
}

fn snapshot() -> (GroupState, Window) {
    let mut window = Window::new(3_600_000);
    for device in ["eth0", "lo", "a \"quoted\"\n name"] {
        let column = window
            .get_or_add_column(&labels(&[("__name__", "rx"), ("device", device)]))
            .expect("fewer columns than the limit");
        for i in 0..300 {
            let value = if i % 50 == 7 { f64::NAN } else { i as f64 / 3.0 };
            window.push(column, Sample { timestamp_ms: i * 15_000, value });
        }
        window.push(column, Sample::stale(300 * 15_000));
    }
    let incident_state = Some(IncidentState { threshold: 1.5, is_incident: true });
    window.set_score(ModelRole::Champion, 4_000_000, Score { decision: -0.1, score: 1.2, incident_state });
    let contribution = SavedContribution {
        feature: labels(&[("__name__", "rx")]),
        reason: "jumped".into(),
        share: 0.1 + 0.2,
        value: Some(7.25),
        expected_range: [None, Some(1.0 / 3.0), Some(f64::MAX)],
    };
    let state = GroupState {
        log: None,
        detector: "net".into(),
        selection_key: "rate(1m)".into(),
        group: labels(&[("job", "node")]),
        champion: Some(ModelCheckpoint {
            name: "net".into(),
            version: 3,
            digest: "00".into(),
            processed_to_ms: 4_000_000,
            checkpoint: None,
        }),
        challenger: None,
        newest_scored_ms: Some(4_000_000),
        cursors: BTreeMap::from([("http://localhost/".into(), i64::MIN)]),
        contributions: vec![(4_000_000, vec![contribution]), (4_015_000, Vec::new())],
        incidents: vec![PastIncident::new(4_000_000, 4_500_000)],
        is_incident: true,
        stale_ms: vec![4_500_000],
    };
    (state, window)
}

/// All cells of a window.
fn cells(window: &Window) -> Vec<(Vec<i64>, Vec<Option<u64>>)> {
    let (timestamps, columns) = window.to_arrow();
    let bits = |column: &Float64Array| column.iter().map(|cell| cell.map(f64::to_bits)).collect();
    columns.iter().map(|column| (timestamps.values().to_vec(), bits(column))).collect()
}

#[test]
fn f45_a_snapshot_is_read_as_it_was_written() {
    let (state, window) = snapshot();
    let bytes = encode(state.clone(), &window).expect("small");
    let (restored, restored_window) = decode(&bytes).expect("an encoded snapshot");
    assert_eq!(restored, state);
    assert_eq!(cells(&restored_window), cells(&window));
    assert_eq!(restored_window.length_ms(), window.length_ms());
}

/// A group of a hundred targets: each has timestamps of its own, so most cells of a table of rows are absent.
fn window_of_many_targets() -> Window {
    let mut window = Window::new(7_200_000);
    for target in 0..100 {
        let instance = format!("host{target:02}");
        for name in ["rx", "tx"] {
            let feature = labels(&[("__name__", name), ("instance", &instance)]);
            let column = window.get_or_add_column(&feature).expect("fewer columns than the limit");
            for scrape in 0..200 {
                let timestamp_ms = scrape * 15_000 + target * 137;
                window.push(column, Sample { timestamp_ms, value: scrape as f64 });
            }
        }
    }
    window
}

#[test]
fn f45_a_group_of_many_targets_has_a_snapshot_of_its_cells() {
    let (state, window) = (snapshot().0, window_of_many_targets());
    let bytes = encode(state.clone(), &window).expect("small");
    let n_cells = 100 * 2 * 200;
    assert!(bytes.len() < n_cells * 20, "{} bytes for {n_cells} cells", bytes.len());
    let (restored, restored_window) = decode(&bytes).expect("an encoded snapshot");
    assert_eq!(restored, state);
    assert!(cells(&restored_window) == cells(&window));
}

/// A file above the limit could not be read at the start.
#[test]
fn a_snapshot_above_the_limit_is_not_written() {
    let (state, window) = snapshot();
    let size = encode(state.clone(), &window).expect("small").len() as u64;
    assert!(encode_within(state.clone(), &window, size).is_ok());
    let error = encode_within(state.clone(), &window, size - 1).expect_err("too large").to_string();
    assert_eq!(error, format!("the snapshot has {size} bytes, above the limit of {}", size - 1));
    assert!(encode_within(state, &window, 100).is_err());
}

#[test]
fn f22_corruption_is_detected() {
    let (state, window) = snapshot();
    let bytes = encode(state, &window).expect("small");
    let error = |bytes: &[u8]| decode(bytes).map(|_| ()).expect_err("no snapshot").to_string();
    let magic = "the first line is not \"promforest snapshot\", a format and a checksum";
    assert_eq!(error(b""), magic);
    assert_eq!(error(&[0; 4096]), magic);
    assert_eq!(error(b"PK\x03\x04\n"), magic);
    let later = [b"promforest snapshot 3", &bytes[21..]].concat();
    assert_eq!(error(&later), "the format is \"3\", this version reads 2");
    let corrupt = "the checksum does not match: the file is corrupt or truncated";
    let first_line = bytes.iter().position(|byte| *byte == b'\n').expect("a line") + 1;
    for length in [first_line, first_line + 1, bytes.len() / 2, bytes.len() - 1] {
        assert_eq!(error(&bytes[..length]), corrupt, "{length}");
    }
    for position in (first_line..bytes.len()).step_by(997) {
        let mut flipped = bytes.clone();
        flipped[position] ^= 1 << (position % 8);
        assert_eq!(error(&flipped), corrupt, "{position}");
    }
}

/// A file with this content and a valid checksum.
fn with_valid_checksum(content: &[u8]) -> Vec<u8> {
    [format!("{MAGIC} {FORMAT} {}\n", artifact::sha256_hex(content)).as_bytes(), content].concat()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// No forged snapshot causes a panic.
    #[test]
    fn f22_forged_snapshots_do_not_panic(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        is_sparse in any::<bool>(),
    ) {
        let (state, mut window) = snapshot();
        if is_sparse {
            window = window_of_many_targets();
        }
        let bytes = encode(state, &window).expect("small");
        let (_, content) = split_line(&bytes).expect("a line");
        let (head, arrow) = split_line(content).expect("another line");
        let mut arrow = arrow.to_vec();
        for (index, byte) in edits {
            // The offsets of an Arrow file are at both ends.
            let (position, end) = (index.index(3000), index.index(2) == 0);
            let position = if end { arrow.len() - 1 - position } else { position };
            arrow[position] = byte;
        }
        let _ = decode(&with_valid_checksum(&[head, b"\n", &arrow].concat()));
    }
}

fn store(path: &std::path::Path) -> (SnapshotStore, Registry) {
    let mut registry = Registry::default();
    let metrics = Metrics::new(&mut registry);
    (SnapshotStore::new(path.join("snapshots"), metrics), registry)
}

fn metric(registry: &Registry, line: &str) -> f64 {
    let mut page = String::new();
    prometheus_client::encoding::text::encode(&mut page, registry).expect("the metrics are valid");
    let value = page.lines().find_map(|text| text.strip_prefix(line)?.trim().parse().ok());
    value.unwrap_or_else(|| panic!("no {line} in\n{page}"))
}

#[test]
fn f22_corrupt_snapshots_are_renamed_and_the_others_are_read() {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut store, registry) = store(dir.path());
    assert!(store.load().is_empty(), "no directory yet");
    let (state, window) = snapshot();
    let good = encode(state.clone(), &window).expect("small");
    let name = SnapshotStore::file_name("net", &state.group);
    store.write(&name, &good).expect("the directory is ours");
    let bad: [(&str, &[u8]); 4] = [
        ("empty", b""),
        ("cut", &good[..good.len() / 2]),
        ("future", b"promforest snapshot 99 00\n"),
        ("junk", &[7; 100]),
    ];
    let path_of = |name: &str| dir.path().join("snapshots").join(name);
    for (name, bytes) in bad {
        fs::write(path_of(&format!("{name}.snapshot")), bytes).expect("the directory is ours");
    }
    fs::write(path_of("unfinished.tmp"), &good[..10]).expect("the directory is ours");
    let loaded = store.load();
    assert_eq!(loaded.into_iter().map(|(state, _)| state).collect::<Vec<_>>(), [state]);
    assert_eq!(metric(&registry, "snapshot_groups_total{outcome=\"corrupt\"}"), 4.0);
    for (name, bytes) in bad {
        assert_eq!(fs::read(path_of(&format!("{name}.corrupt"))).expect("the file was renamed"), bytes);
    }
    assert_eq!(store.load().len(), 1, "renamed files are not read again");
    assert_eq!(metric(&registry, "snapshot_groups_total{outcome=\"corrupt\"}"), 4.0);
}

#[test]
fn files_of_removed_groups_are_removed() {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut store, registry) = store(dir.path());
    store.write("a.snapshot", b"12345").expect("the directory is ours");
    store.write("b.snapshot", b"123").expect("the directory is ours");
    store.finish_round(&HashSet::from(["a.snapshot".to_string()]), Duration::from_secs(2), None);
    assert!(!dir.path().join("snapshots/b.snapshot").exists());
    assert_eq!(metric(&registry, "snapshot_size_bytes"), 5.0);
    assert_eq!(metric(&registry, "snapshot_duration_seconds"), 2.0);
    assert!(metric(&registry, "snapshot_last_success_timestamp_seconds") > 1e9);
}

#[test]
fn f20_f21_a_directory_that_cannot_be_written_is_counted() {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut store, registry) = store(dir.path());
    // A file has the name of the directory: this fails for root, too.
    fs::write(dir.path().join("snapshots"), "").expect("the directory is ours");
    assert!(store.load().is_empty());
    let error = store.write("a.snapshot", b"1").expect_err("no directory");
    store.finish_round(&HashSet::new(), Duration::ZERO, Some(error));
    assert_eq!(metric(&registry, "snapshot_failures_total{operation=\"write\"}"), 1.0);
    assert_eq!(metric(&registry, "snapshot_failures_total{operation=\"read\"}"), 1.0);
    assert_eq!(metric(&registry, "snapshot_last_success_timestamp_seconds"), 0.0);
    let path = dir.path().join("snapshots").display().to_string();
    assert!(store.clone().failure_message().expect("a failure").contains(&path));
    fs::remove_file(dir.path().join("snapshots")).expect("the directory is ours");
    store.write("a.snapshot", b"1").expect("the directory can be created");
    store.finish_round(&HashSet::from(["a.snapshot".into()]), Duration::ZERO, None);
    assert_eq!(store.failure_message(), None);
    assert!(metric(&registry, "snapshot_last_success_timestamp_seconds") > 0.0);
}
