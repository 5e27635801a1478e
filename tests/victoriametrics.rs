//! VictoriaMetrics as the store of samples and scores, vmagent as the sender, and PromQL's query API: history without
//! remote read, against real servers.

mod support;

use promforest::history::Api;
use promforest::models::FittedModel;
use promforest::models::artifact;
use promforest::prom::matcher::Matcher;
use promforest::prom::proto::{Label, Sample as WireSample, TimeSeries};
use promforest::prom::{Labels, STALE_BITS, Sample};
use promforest::time::DAY_MS;
use std::collections::{BTreeMap, BTreeSet};
use std::thread;
use std::time::Duration;
use support::prometheus::start_receiver;
use support::sidecar::Sidecar;
use support::victoriametrics::{VictoriaMetrics, read_history};
use support::{Process, PrometheusVersion, free_port, http, now_ms, remote_write, wait};

/// Long enough for every step, on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(300);
/// Distance of rows.
const INTERVAL_MS: i64 = 10_000;

fn post(address: &str, series: Vec<TimeSeries>) {
    let status = remote_write::post(address, &remote_write::body(series)).expect("a response");
    assert!((200..300).contains(&status), "{address} answered {status}");
}

/// Series with values and labels that a text could damage, and one that ends and begins again. VictoriaMetrics keeps decimals
/// of few digits exactly, but no negative zero.
fn awkward_series(from_ms: i64) -> Vec<TimeSeries> {
    let text = "back\\slash \"quote\" a|b.* é";
    let series = |name: &str, value: &dyn Fn(i64) -> f64| {
        let labels = [("__name__", name), ("instance", "a:1"), ("job", "node"), ("text", text)];
        TimeSeries {
            labels: labels.map(|(name, value)| Label { name: name.into(), value: value.into() }).to_vec(),
            samples: (0..200)
                .map(|i| WireSample { timestamp: from_ms + i * 15_001, value: value(i) })
                .collect(),
            ..Default::default()
        }
    };
    let stale = f64::from_bits(STALE_BITS);
    vec![
        series("bytes_total", &|i| ((i % 150) * 1_234_567_891_011) as f64),
        series("seconds_total", &|i| (1_234_567 + i) as f64 / 100.0),
        series("load", &|i| if i == 90 { stale } else { -0.25 * (i + 1) as f64 }),
        series("ratio", &|i| if i == 50 { f64::INFINITY } else { i as f64 / 1000.0 }),
    ]
}

fn without(
    series: &BTreeMap<Labels, Vec<Sample>>,
    is_left_out: fn(&Sample) -> bool,
) -> BTreeMap<Labels, Vec<Sample>> {
    let filtered =
        |samples: &Vec<Sample>| samples.iter().filter(|sample| !is_left_out(sample)).copied().collect();
    series.iter().map(|(labels, samples)| (labels.clone(), filtered(samples))).collect()
}

/// Equal samples give equal rows and rates, to the last bit.
#[test]
fn every_source_returns_the_same_samples() {
    let folder = tempfile::tempdir().expect("a folder");
    let vm = VictoriaMetrics::start(folder.path());
    let servers = PrometheusVersion::ALL.map(|version| start_receiver(version, folder.path()));
    let (from_ms, to_ms) = (now_ms() - 3_100_000, now_ms());
    let sent = awkward_series(from_ms);
    let n_samples: usize = sent.iter().map(|series| series.samples.len()).sum();
    for address in servers.iter().map(|(_, address)| address).chain([&vm.address]) {
        post(address, sent.clone());
    }
    let selector =
        r#"{__name__=~"bytes_total|seconds_total|load|ratio",text=~"back\\\\slash \"quote\" a\\|b\\.\\* é"}"#;
    let group = [Matcher::equal("job", "node"), Matcher::one_of("instance", ["a:1", "b-2", ""])];
    let read = |api, url: String| read_history(api, &url, selector, &group, (from_ms - 1, to_ms));
    let count = |series: &BTreeMap<Labels, Vec<Sample>>| series.values().map(Vec::len).sum::<usize>();

    let expected = read(Api::RemoteRead, format!("http://{}/api/v1/read", servers[0].1));
    assert_eq!((expected.len(), count(&expected)), (4, n_samples));
    let exported = wait("the samples can be exported", TIMEOUT, &mut [], || {
        let exported = read(Api::Export, format!("http://{}", vm.address));
        if count(&exported) == n_samples {
            Ok(exported)
        } else {
            Err(format!("{} samples", count(&exported)))
        }
    });
    assert_eq!(exported, expected);
    assert_eq!(read(Api::RemoteRead, format!("http://{}/api/v1/read", servers[1].1)), expected);
    let present = without(&expected, Sample::is_stale);
    assert_eq!(count(&present), n_samples - 1);
    for (_, address) in &servers {
        assert_eq!(read(Api::Query, format!("http://{address}")), present);
    }
    // VictoriaMetrics' markers are ordinary NaNs there.
    let queried = read(Api::Query, format!("http://{}", vm.address));
    assert_eq!(count(&queried), n_samples);
    assert_eq!(without(&queried, |sample| sample.value.is_nan()), present);
    // The first sample of a range is that after its start.
    let tail =
        read_history(Api::Query, &format!("http://{}", servers[0].1), "load", &[], (from_ms + 15_001, to_ms));
    assert_eq!(tail.values().next().expect("a series")[0].timestamp_ms, from_ms + 30_002);
}

/// Two counters of a host at these times. The load follows the hour of the day.
fn host(times: impl IntoIterator<Item = i64>) -> Vec<TimeSeries> {
    let total = |timestamp_ms: i64| {
        let days = (timestamp_ms % DAY_MS) as f64 / DAY_MS as f64;
        let noise = (timestamp_ms / INTERVAL_MS).wrapping_mul(2_654_435_761) % 1000;
        (timestamp_ms - (now_ms() / DAY_MS - 40) * DAY_MS)
            + noise
            + (2e6 * (1.0 - (days * std::f64::consts::TAU).cos())) as i64
    };
    let times: Vec<i64> = times.into_iter().collect();
    let series = |name, factor: i64| {
        let samples: Vec<(i64, f64)> =
            times.iter().map(|time| (*time, (factor * total(*time)) as f64)).collect();
        remote_write::series(name, 0, &samples)
    };
    vec![series("rx_total", 1), series("tx_total", 3)]
}

/// Waits for the next time of the grid, and sends its row.
fn send_row(addresses: &[&str]) -> i64 {
    let next_ms = (now_ms() / INTERVAL_MS + 1) * INTERVAL_MS;
    thread::sleep(Duration::from_millis(u64::try_from(next_ms - now_ms()).unwrap_or(0)));
    addresses.iter().for_each(|address| post(address, host([next_ms])));
    next_ms
}

/// Sends rows until the scores of all these rows are stored.
fn wait_for_scores(sidecar: &Sidecar, vm: &VictoriaMetrics, rows: &mut Vec<i64>) {
    let until_ms = now_ms() + i64::try_from(TIMEOUT.as_millis()).expect("short");
    let wanted = rows.clone();
    loop {
        rows.push(send_row(&[&vm.address, &sidecar.address()]));
        let stored = vm.export("net_anomaly", (wanted[0] - 1, now_ms()));
        let times: BTreeSet<i64> = stored.values().flatten().map(|sample| sample.timestamp_ms).collect();
        let missing: Vec<i64> = wanted.iter().filter(|row| !times.contains(row)).copied().collect();
        if missing.is_empty() {
            return;
        }
        assert!(now_ms() < until_ms, "without a score: {missing:?}\n{}", sidecar.process.tail());
    }
}

fn start_sidecar(vm: &VictoriaMetrics) -> Sidecar {
    let config = format!(
        "remote_write: [{{url: 'http://{address}/api/v1/write', queue_config: {{sample_age_limit: 6h}}}}]\n\
         history: [{{url: 'http://{address}', api: export}}]\n\
         detectors:\n  - name: net\n    match: ['{{__name__=~\"rx_total|tx_total\"}}']\n    transform: rate(1m)\n    \
         window: 1h\n    grace: 10s\n    training: {{history: 3d, min_history: 1h, interval: 1d}}\n",
        address = vm.address
    );
    Sidecar::start(&[("promforest.yml", &config)])
}

#[test]
fn two_days_of_history_train_a_model_of_the_hour_and_no_row_is_lost() {
    let folder = tempfile::tempdir().expect("a folder");
    let vm = VictoriaMetrics::start(folder.path());
    let end_ms = now_ms() / INTERVAL_MS * INTERVAL_MS;
    let past: Vec<i64> = (end_ms - 49 * DAY_MS / 24..=end_ms).step_by(INTERVAL_MS as usize).collect();
    past.chunks(2000).for_each(|times| post(&vm.address, host(times.iter().copied())));
    wait("the past is stored", TIMEOUT, &mut [], || {
        let stored = vm.export("rx_total", (0, now_ms())).values().map(Vec::len).sum::<usize>();
        if stored == past.len() { Ok(()) } else { Err(format!("{stored} samples")) }
    });

    let mut sidecar = start_sidecar(&vm);
    let first_ms = send_row(&[&vm.address, &sidecar.address()]);
    let mut rows = vec![first_ms];
    let until_ms = first_ms + i64::try_from(TIMEOUT.as_millis()).expect("short");
    while sidecar.metric("promforest_training_runs_total") == 0.0 {
        assert!(now_ms() < until_ms, "no model\n{}", sidecar.process.tail());
        rows.push(send_row(&[&vm.address, &sidecar.address()]));
    }
    let mut rows = rows.split_off(rows.len() - 1);
    wait_for_scores(&sidecar, &vm, &mut rows);
    check_first_model(&sidecar);

    // Rows that only VictoriaMetrics has: a gap in the stream, and a sidecar that is away.
    rows.extend((0..3).map(|_| send_row(&[&vm.address])));
    wait_for_scores(&sidecar, &vm, &mut rows);
    assert!(sidecar.metric("promforest_gap_fill_samples_total") > 0.0, "{}", sidecar.process.tail());
    sidecar.kill();
    rows.extend((0..3).map(|_| send_row(&[&vm.address])));
    sidecar.restart();
    wait_for_scores(&sidecar, &vm, &mut rows);
    assert_eq!(sidecar.metric("promforest_history_skipped_total"), 0.0);
}

/// The first version was trained on both days, and has a usual range at each hour.
fn check_first_model(sidecar: &Sidecar) {
    let mut folders = vec![sidecar.folder.path().to_path_buf()];
    let mut found = None;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder").flatten() {
            if entry.path().is_dir() {
                folders.push(entry.path());
            } else if entry.file_name() == "forest.arrow" {
                found = Some(folder.clone());
            }
        }
    }
    let files = artifact::read_files(&found.expect("a version")).expect("a version is there as a whole");
    let model = artifact::read_model(&files).expect("a valid model");
    let range = model.card.training_range.expect("it was trained");
    assert!(range.to_ms - range.from_ms > 2 * DAY_MS, "{range:?}");
    let FittedModel::Extended(detection) = model.fitted else { panic!("no extended forest") };
    let hours: Vec<i64> = (1..=24).map(|hour| range.to_ms + hour * DAY_MS / 24).collect();
    let expected = detection.expected_ranges(&hours, &[0]);
    assert!(expected.iter().flatten().flatten().all(|value| value.is_finite()), "{expected:?}");
    let middle: Vec<f64> = expected.iter().map(|ranges| ranges[0][1]).collect();
    let (least, greatest) = middle.iter().fold((f64::MAX, f64::MIN), |(a, b), x| (a.min(*x), b.max(*x)));
    assert!(greatest > 1.01 * least, "the usual value depends on the hour: {middle:?}");
}

#[test]
fn vmagent_falls_back_to_the_compression_of_prometheus() {
    let sidecar = Sidecar::start(&[]);
    let folder = tempfile::tempdir().expect("a folder");
    let address = format!("127.0.0.1:{}", free_port());
    let args = [
        format!("-httpListenAddr={address}"),
        format!("-remoteWrite.url=http://{}/api/v1/write", sidecar.address()),
        "-remoteWrite.flushInterval=1s".into(),
        "-remoteWrite.tmpDataPath=vmagent-data".into(),
    ];
    let mut vmagent = Process::start("vmagent", &support::vmagent(), &args, folder.path());
    wait("vmagent is healthy", TIMEOUT, &mut [&mut vmagent], || {
        let answer = http::get(&address, "/health").map_err(|err| err.to_string())?;
        if answer.status == 200 { Ok(()) } else { Err(answer.body) }
    });
    post(&address, host([now_ms()]));
    wait("the samples arrive", TIMEOUT, &mut [&mut vmagent], || {
        let received = sidecar.metric("promforest_ingest_samples_total");
        if received >= 2.0 { Ok(()) } else { Err(format!("{received} samples")) }
    });
    assert!(
        sidecar.metric_with("promforest_ingest_requests_total", &[("code", "415")]) >= 1.0,
        "{}",
        vmagent.log()
    );
}
