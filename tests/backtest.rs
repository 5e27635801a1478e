//! `promforest backtest`: a table and a real Prometheus give the same scores, and each error is one line.

mod support;

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use support::command::{CommandOutput, run_in};
use support::{Process, PrometheusVersion, each_version, free_port, http, now_ms, wait};

const MINUTE_MS: i64 = 60_000;
const DEVICES: [&str; 2] = ["eth0", "lo"];

fn backtest(dir: &Path, args: &[&str]) -> CommandOutput {
    run_in(dir, &[&["backtest"], args].concat())
}

/// Bytes of a minute: a wave of six hours, and for an hour from `incident` on a hundred times as many.
fn increase(minute: i64, incident: i64, device: usize) -> f64 {
    let wave = 1000.0 + 500.0 * (minute as f64 / 360.0 * std::f64::consts::TAU).sin();
    let jitter = (minute * 7919 % 101) as f64 * (1 + device) as f64;
    let burst = device == 0 && (incident..incident + 60).contains(&minute);
    if burst { 100.0 * wave } else { wave + jitter }
}

/// Counters of two devices, a row a minute.
fn counters(minutes: i64, incident: i64) -> Vec<[f64; 2]> {
    let mut totals = [0.0; 2];
    let row = |minute| {
        for (device, total) in totals.iter_mut().enumerate() {
            *total += increase(minute, incident, device).round();
        }
        totals
    };
    (0..minutes).map(row).collect()
}

fn series(device: &str) -> String {
    format!("node_network_receive_bytes_total{{device=\"{device}\"}}")
}

fn csv(begin_ms: i64, rows: &[[f64; 2]], labels: Option<(usize, usize)>) -> String {
    let names = DEVICES.map(|device| format!("\"{}\"", series(device).replace('"', "\"\"")));
    let mut csv = format!("timestamp,{}{}\n", names.join(","), if labels.is_some() { ",label" } else { "" });
    for (i, [eth0, lo]) in rows.iter().enumerate() {
        write!(csv, "{},{eth0},{lo}", begin_ms + i as i64 * MINUTE_MS).expect("text");
        if let Some((from, to)) = labels {
            write!(csv, ",{}", u8::from((from..to).contains(&i))).expect("text");
        }
        csv.push('\n');
    }
    csv
}

/// Timestamp and score of each row of a CSV that was written.
fn scores(path: &Path) -> Vec<(i64, String, String)> {
    let text = fs::read_to_string(path).expect("written");
    let header: Vec<&str> = text.lines().next().expect("a header").split(',').collect();
    let column_index = |name: &str| header.iter().position(|cell| *cell == name).expect("a column");
    let (time, score, complete) =
        (column_index("timestamp"), column_index("score"), column_index("complete"));
    let row = |line: &str| {
        let cells: Vec<&str> = line.split(',').collect();
        (
            cells[time].parse().expect("the cell has milliseconds"),
            cells[score].to_string(),
            cells[complete].to_string(),
        )
    };
    text.lines().skip(1).map(row).collect()
}

const HISTORY: i64 = 2 * 24 * 60;
const RANGE: i64 = 12 * 60;
const INCIDENT: i64 = HISTORY + 400;
const CONFIG: &str = "detectors: [{name: net, match: ['node_network_receive_bytes_total'], \
                      transform: rate(2m), training: {min_history: 1h}}]";

#[test]
fn prometheus_and_a_table_of_the_same_samples_give_the_same_scores() {
    let rows = counters(HISTORY + RANGE, INCIDENT);
    // Before the newest block, which Prometheus cuts at even hours.
    let begin_ms = (now_ms() / 86_400_000 - 4) * 86_400_000;
    let start_ms = begin_ms + HISTORY * MINUTE_MS;
    let all = each_version(|version: PrometheusVersion| {
        let dir = tempfile::tempdir().expect("a folder");
        let path = |name: &str| dir.path().join(name);
        let mut metrics = String::from("# TYPE node_network_receive_bytes counter\n");
        for (device, name) in DEVICES.iter().enumerate() {
            for (i, row) in rows.iter().enumerate() {
                let seconds = (begin_ms + i as i64 * MINUTE_MS) / 1000;
                let labels = format!("device=\"{name}\",job=\"node\",instance=\"web1\"");
                writeln!(metrics, "node_network_receive_bytes_total{{{labels}}} {} {seconds}", row[device])
                    .expect("text");
            }
        }
        metrics.push_str("# EOF\n");
        fs::write(path("metrics.txt"), metrics).expect("written");
        fs::write(path("prometheus.yml"), "scrape_configs: []\n").expect("written");
        let program = version.prometheus();
        let mut promtool = Command::new(program.with_file_name("promtool"));
        promtool.args(["tsdb", "create-blocks-from", "openmetrics", "metrics.txt", "data"]);
        let blocks = promtool.current_dir(dir.path()).output().expect("promtool runs");
        assert!(blocks.status.success(), "{}", String::from_utf8_lossy(&blocks.stderr));
        let port = free_port();
        let address = format!("127.0.0.1:{port}");
        let args = [
            "--config.file=prometheus.yml".into(),
            "--storage.tsdb.path=data".into(),
            "--storage.tsdb.retention.time=100d".into(),
            format!("--web.listen-address={address}"),
        ];
        let mut prometheus = Process::start("prometheus", &program, &args, dir.path());
        wait("Prometheus is ready", Duration::from_secs(60), &mut [&mut prometheus], || {
            let answer = http::get(&address, "/-/ready").map_err(|err| err.to_string())?;
            if answer.status == 200 { Ok(()) } else { Err(answer.body) }
        });
        let sources = format!("remote_read: [{{url: 'http://{address}/api/v1/read'}}]\n");
        fs::write(path("promforest.yml"), sources + CONFIG).expect("written");
        let time = |ms: i64| promforest::time::format_timestamp(ms);
        let end_ms = start_ms + (RANGE - 1) * MINUTE_MS;
        let (start, end) = (time(start_ms), time(end_ms));
        let args = ["--config.file", "promforest.yml", "--start", &start, "--end", &end];
        let output = backtest(dir.path(), &[&args[..], &["--output", "scores.csv"]].concat());
        assert_eq!((output.status, &*output.stderr), (0, ""), "{version}");
        assert!(output.stdout.contains("instance=\"web1\""), "{}", output.stdout);
        assert!(output.stdout.contains("device=\"eth0\""), "{}", output.stdout);

        fs::write(path("history.csv"), csv(begin_ms, &rows[..HISTORY as usize], None)).expect("written");
        fs::write(path("range.csv"), csv(start_ms, &rows[HISTORY as usize..], None)).expect("written");
        let tables = ["--input", "range.csv", "--history", "history.csv", "--output", "table.csv"];
        let output = backtest(dir.path(), &[&args[..2], &tables].concat());
        assert_eq!((output.status, &*output.stderr), (0, ""), "{version}");
        let (of_prometheus, of_table) = (scores(&path("scores.csv")), scores(&path("table.csv")));
        assert_eq!(of_prometheus, of_table, "{version}");
        assert_eq!(of_table.len(), RANGE as usize);
        of_table
    });
    assert_eq!(all[0], all[1], "whoever kept the samples");
    let minutes_above_threshold: Vec<i64> = all[0]
        .iter()
        .filter(|(_, score, _)| score.parse::<f64>().is_ok_and(|score| score >= 1.0))
        .map(|(time, ..)| (time - begin_ms) / MINUTE_MS)
        .collect();
    assert!(
        minutes_above_threshold.iter().any(|minute| (INCIDENT..INCIDENT + 3).contains(minute)),
        "{minutes_above_threshold:?}"
    );
}

#[test]
fn labels_are_compared_and_rows_with_gaps_are_reported() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = |name: &str| dir.path().join(name);
    // Values that are ready: their names are no series.
    let value = |minute: i64| increase(minute, INCIDENT, 0);
    let table = |minutes: std::ops::Range<i64>, is_range: bool| {
        let mut csv =
            String::from(if is_range { "timestamp,load,idle,label\n" } else { "timestamp,load,idle\n" });
        for minute in minutes {
            let load = if minute == INCIDENT + 200 { String::new() } else { value(minute).to_string() };
            let label = u8::from((INCIDENT..INCIDENT + 60).contains(&minute));
            let label = if is_range { format!(",{label}") } else { String::new() };
            writeln!(csv, "{},{load},0{label}", minute * MINUTE_MS).expect("text");
        }
        csv
    };
    fs::write(path("history.csv"), table(0..HISTORY, false)).expect("written");
    fs::write(path("range.csv"), table(HISTORY..HISTORY + RANGE, true)).expect("written");
    let args = ["--input", "range.csv", "--history", "history.csv"];
    for output in ["scores.csv", "scores.parquet"] {
        let files = ["--output", output, "--report", "report.html"];
        let output = backtest(dir.path(), &[&args[..], &files].concat());
        assert_eq!((output.status, &*output.stderr), (0, ""));
        assert!(output.stdout.contains("719 of 720 rows scored"), "{}", output.stdout);
        assert!(output.stdout.contains("1 of 1 labelled anomalies found"), "{}", output.stdout);
        assert!(output.stdout.contains(": load unusual for this hour\n"), "{}", output.stdout);
    }
    let rows = scores(&path("scores.csv"));
    let gap = (INCIDENT + 200 - HISTORY) as usize;
    assert_eq!((rows[gap].1.as_str(), rows[gap].2.as_str()), ("", "false"));
    assert!(fs::read(path("scores.parquet")).expect("written").starts_with(b"PAR1"));

    let page = fs::read_to_string(path("report.html")).expect("written");
    for text in
        ["Labelled anomalies with an incident: 1 of 1", "load unusual for this hour", "Alerts per day"]
    {
        assert!(page.contains(text), "{text}");
    }

    let small_budget = backtest(dir.path(), &[&args[..], &["--budget", "0.1"]].concat());
    assert_eq!(small_budget.status, 0);
    assert!(small_budget.stdout.contains("for a budget of 0.1 a day"), "{}", small_budget.stdout);
}

/// Writes the counters as `history.csv` and `range.csv`, and the configuration; those that are away at a minute are empty.
fn write_tables(dir: &Path, is_missing: impl Fn(usize, i64) -> bool) {
    let text = csv(0, &counters(HISTORY + RANGE, INCIDENT), None);
    let mut lines = text.lines();
    let header = lines.next().expect("a header").to_string() + "\n";
    let row = |(line, minute): (&str, i64)| {
        let [time, eth0, lo] = line.split(',').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let cell = |device, value| if is_missing(device, minute) { "" } else { value };
        format!("{time},{},{}\n", cell(0, eth0), cell(1, lo))
    };
    let rows: Vec<String> = lines.zip(0..).map(row).collect();
    let (history, range) = rows.split_at(HISTORY as usize);
    for (name, rows) in [("history.csv", history), ("range.csv", range)] {
        fs::write(dir.join(name), header.clone() + &rows.concat()).expect("written");
    }
    fs::write(dir.join("promforest.yml"), CONFIG).expect("written");
}

/// The events that a backtest of these tables prints, ascending.
fn backtest_events(dir: &Path, input: &str, files: &[&str]) -> Vec<String> {
    let args = ["--config.file", "promforest.yml", "--history", "history.csv", "--input", input];
    let output = backtest(dir, &[&args[..], files].concat());
    assert_eq!((output.status, &*output.stderr), (0, ""));
    output.stdout.lines().filter(|line| line.contains(" UTC, ")).map(String::from).collect()
}

/// As live, a model is made anew without an interface that has gone, and with it when it is back.
#[test]
fn a_vanished_interface_raises_no_alert_and_hides_none() {
    let dir = tempfile::tempdir().expect("a folder");
    let gone = HISTORY + 100..HISTORY + 500;
    write_tables(dir.path(), |device, minute| device == 1 && gone.contains(&minute));
    let events = backtest_events(dir.path(), "range.csv", &["--output", "scores.csv"]);
    let scored = |minutes: std::ops::Range<i64>| {
        let rows = scores(&dir.path().join("scores.csv"));
        minutes.filter(|minute| rows[(minute - HISTORY) as usize].2 == "true").count() as i64
    };
    // Two minutes until it is gone for good, and two in which there is no rate of it when it is back.
    assert_eq!(scored(HISTORY..gone.start), 100);
    let (without, after) = (gone.end - gone.start, HISTORY + RANGE - gone.end);
    assert!(scored(gone.clone()) >= without - 4, "{} of {without}", scored(gone.clone()));
    assert!(
        scored(gone.end..HISTORY + RANGE) >= after - 4,
        "{} of {after}",
        scored(gone.end..HISTORY + RANGE)
    );
    let lo = "rate(node_network_receive_bytes_total{device=\"lo\"}[2m])";
    let [removed, incident, added] = &events[..] else { panic!("{events:?}") };
    assert!(removed.ends_with(&format!(" UTC, removed: {lo}")), "{removed}");
    assert!(incident.contains("score") && incident.contains("device=\"eth0\""), "{incident}");
    assert!(added.ends_with(&format!(" UTC, added: {lo}")), "{added}");
}

/// The kind and the sweep of the configuration are not ignored.
#[test]
fn the_model_is_the_detectors_or_an_error() {
    let dir = tempfile::tempdir().expect("a folder");
    write_tables(dir.path(), |_, _| false);
    let configure = |training: &str, model: &str| {
        let config = CONFIG
            .replace("{min_history: 1h}", &format!("{{min_history: 1h{training}}}, model: {{{model}}}"));
        fs::write(dir.path().join("promforest.yml"), config).expect("written");
    };
    let scores_of = |training: &str, model: &str| {
        configure(training, model);
        backtest_events(dir.path(), "range.csv", &["--output", "scores.csv"]);
        scores(&dir.path().join("scores.csv"))
    };
    let swept = scores_of(", sweep: [8]", "");
    assert_eq!(swept, scores_of("", "max_samples: 8"));
    assert_ne!(swept, scores_of("", ""));

    configure("", "kind: isolation_forest");
    let args = ["--config.file", "promforest.yml", "--history", "history.csv", "--input", "range.csv"];
    let output = backtest(dir.path(), &args);
    assert_eq!((output.status, &*output.stdout), (1, ""));
    assert_eq!(
        output.stderr,
        "promforest: detector net trains an isolation_forest: it has no incidents; \
         `promforest models score` replays its scores\n"
    );
}

/// The incident stays one, and the assessments before the removal stay the same.
#[test]
fn retraining_does_not_change_earlier_scores() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = |name: &str| dir.path().join(name);
    let gone = INCIDENT + 20;
    write_tables(dir.path(), |device, minute| device == 0 && minute >= gone);
    let before = (gone - HISTORY) as usize;
    let range = fs::read_to_string(path("range.csv")).expect("written");
    let prefix: Vec<&str> = range.split_inclusive('\n').take(1 + before).collect();
    fs::write(path("before.csv"), prefix.concat()).expect("written");
    backtest_events(dir.path(), "before.csv", &["--output", "prefix.csv"]);
    let events = backtest_events(dir.path(), "range.csv", &["--output", "whole.csv"]);
    assert_eq!(scores(&path("whole.csv"))[..before], scores(&path("prefix.csv")));
    let [incident, removed] = &events[..] else { panic!("{events:?}") };
    assert!(incident.contains("device=\"eth0\""), "{incident}");
    assert!(removed.contains("removed: ") && removed.contains("device=\"eth0\""), "{removed}");
}

/// A new interface joins the model within the range, and the plot has its values and rows without it.
#[test]
fn a_new_interface_is_watched_and_plotted() {
    let dir = tempfile::tempdir().expect("a folder");
    write_tables(dir.path(), |device, minute| device == 0 && minute < HISTORY - 500);
    let files = ["--output", "scores.csv", "--report", "report.html"];
    let events = backtest_events(dir.path(), "range.csv", &files);
    let added = events.iter().position(|line| line.contains("added: ") && line.contains("device=\"eth0\""));
    let incident = events.iter().position(|line| line.contains("score") && line.contains("device=\"eth0\""));
    assert!(added.is_some() && added < incident, "{events:?}");
    let page = fs::read_to_string(dir.path().join("report.html")).expect("written");
    assert!(page.contains("added: ") && !page.contains("NaN"));
}

/// The server is in `tests/data/labelled`.
#[test]
fn the_anomalies_of_a_real_server_are_found_and_explained() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/labelled");
    let file = |name: &str| data.join(name).to_str().expect("UTF-8").to_string();
    let dir = tempfile::tempdir().expect("a folder");
    let tables = ["--history", &file("train.parquet"), "--input", &file("test.parquet")];
    let output = backtest(dir.path(), &[&tables[..], &["--output", "scores.csv"]].concat());
    assert_eq!((output.status, &*output.stderr), (0, ""));
    let mut reader = csv::Reader::from_path(dir.path().join("scores.csv")).expect("written");
    let names: Vec<String> = reader.headers().expect("a header").iter().map(String::from).collect();
    let column_index = |name: &str| names.iter().position(|cell| cell == name).expect(name);
    let (score, incident, top, label) =
        (column_index("score"), column_index("incident"), column_index("top_metric"), column_index("label"));
    let rows: Vec<csv::StringRecord> = reader.records().map(|row| row.expect("a row")).collect();
    let is_incident = |row: usize| &rows[row][incident] == "true";
    let is_false_incident =
        |row: &usize| is_incident(*row) && (*row == 0 || !is_incident(*row - 1)) && &rows[*row][label] == "0";
    // Two weeks; some of these begin just before what experts marked.
    let n_false_incidents = (0..rows.len()).filter(is_false_incident).count();
    assert!(n_false_incidents <= 22, "{n_false_incidents} in 15 days, for a budget of one a day");

    let causes = fs::read_to_string(file("causes.csv")).expect("the file exists");
    let (mut found, mut explained) = (0, 0);
    for line in causes.lines().skip(1) {
        let cells: Vec<&str> = line.split(',').collect();
        let [first, last] = [0, 1].map(|cell| cells[cell].parse::<usize>().expect("a row"));
        let value = |row: &usize| rows[*row][score].parse::<f64>().expect("a number");
        let peak = (first..=last).max_by(|a, b| value(a).total_cmp(&value(b))).expect("rows");
        found += usize::from((first..=last).any(is_incident));
        explained += usize::from(cells[2].split(' ').any(|metric| metric == &rows[peak][top]));
    }
    assert!(found >= 5, "{found} of 6");
    assert!(explained >= 5, "{explained} of 6");
}

#[test]
fn errors_are_one_line() {
    let dir = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).expect("written");
    write("a.csv", "timestamp,load\n1000,1\n2000,2\n");
    write("b.csv", "timestamp,load\n3000,1\n4000,2\n");
    write("other.csv", "timestamp,cpu\n3000,1\n");
    write("more.csv", "timestamp,load,cpu\n1000,1,1\n");
    write("twice.csv", "timestamp,load\n1000,1\n1000,2\n");
    write("bare.csv", "load\n1\n");
    for (input, history, reason) in [
        ("a.csv", "b.csv", "b.csv has timestamp 3000, must be before 1000, where a.csv begins"),
        ("other.csv", "a.csv", "a.csv has no column \"cpu\""),
        ("b.csv", "more.csv", "b.csv has no column \"cpu\""),
        ("b.csv", "twice.csv", "twice.csv has timestamp 1000 twice"),
        ("bare.csv", "a.csv", "bare.csv has no column timestamp"),
        ("b.csv", "missing.csv", "cannot read missing.csv"),
        (
            "b.csv",
            "a.csv",
            "too few rows to train on: 2 rows lie before the range, and the columns reach back 12m",
        ),
    ] {
        let output = backtest(dir.path(), &["--input", input, "--history", history]);
        assert_eq!((output.status, &*output.stdout), (1, ""), "{input} {history}");
        assert!(output.stderr.contains(reason) && output.stderr.lines().count() == 1, "{}", output.stderr);
    }
    let output = backtest(dir.path(), &["--input", "a.csv"]);
    assert_eq!(output.status, 1);
    assert!(output.stderr.contains("--history or --model is needed"), "{}", output.stderr);
    for (args, reason) in [
        (&["--output", "x"][..], "--start"),
        (
            &["--start", "2026-01-01T00:00:00Z", "--budget", "0"],
            "a budget of 0 alerts per day is not from 0.1 to 24",
        ),
    ] {
        let output = backtest(dir.path(), args);
        assert_eq!(output.status, 2, "{args:?}");
        assert!(output.stderr.contains(reason), "{}", output.stderr);
    }
}
