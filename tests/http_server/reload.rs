//! Reload of the configuration.

use crate::support::remote_write::series;
use crate::support::sidecar::{CONFIG, Sidecar};
use crate::support::{PROGRAM, Process, free_port, http, now_ms, wait};
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

#[test]
fn f25_a_wrong_file_says_where_and_changes_nothing() {
    let sidecar = Sidecar::start(&[]);
    let now = now_ms();
    let write = |i: i64| sidecar.write_series(vec![series("a", 0, &[(now + i, 1.0)])]).expect("an answer");
    assert_eq!(write(0), 204);
    let duplicates = || sidecar.metric("promforest_ingest_samples_dropped_total");
    for (what, wrong, line) in [
        ("syntax", CONFIG.replace("}]\n", "\n"), 3),
        ("an unknown key", CONFIG.replace("transform", "tranform"), 3),
        ("a regular expression", CONFIG.replace(".+", "(.+"), 3),
        ("a target", CONFIG.replace("remote_write: []", "remote_write: [{url: 'nowhere'}]"), 1),
    ] {
        sidecar.write_file("promforest.yml", &wrong);
        let answer = http::post(&sidecar.address(), "/-/reload").expect("an answer");
        assert_eq!(answer.status, 500, "{what}: {}", answer.body);
        let location = answer.body.find("promforest.yml:").map(|at| answer.body[at + 15..].to_string());
        let reported_line = location.and_then(|rest| rest.split(':').next()?.parse().ok());
        assert!(
            reported_line.is_some_and(|found: usize| found.abs_diff(line) <= 1),
            "{what}: {}",
            answer.body
        );
        assert_eq!(sidecar.metric("promforest_config_last_reload_successful"), 0.0, "{what}");
        let before = duplicates();
        assert_eq!(write(0), 204, "{what}");
        assert_eq!(duplicates(), before + 1.0, "{what}: the window is the same");
    }
    sidecar.write_file("promforest.yml", CONFIG);
    assert_eq!(http::post(&sidecar.address(), "/-/reload").expect("an answer").status, 200);
    assert_eq!(sidecar.metric("promforest_config_last_reload_successful"), 1.0);
    let before = duplicates();
    assert_eq!(write(0), 204);
    assert_eq!(duplicates(), before + 1.0, "a reload of the same file keeps the window");
}

/// The endpoint takes a request and never answers, so that the reload waits for its sender. The client is gone by then.
#[test]
fn a_client_that_hangs_up_does_not_cut_a_reload_short() {
    let endpoint = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let config = format!(
        "remote_write: [{{url: 'http://{}/'}}]\nremote_read: []\ndetectors: [{{name: all, match: [m], transform: value, \
         training: {{min_history: 10m}}, model: {{kind: isolation_forest}}}}]\n",
        endpoint.local_addr().expect("bound")
    );
    let mut sidecar = Sidecar::start(&[("promforest.yml", &config)]);
    let now = now_ms();
    let samples: Vec<(i64, f64)> = (0..100).map(|i| (now - 15_000 * (99 - i), (i % 7) as f64)).collect();
    assert_eq!(sidecar.write_series(vec![series("m", 0, &samples)]).expect("an answer"), 204);
    sidecar.wait_for_log("model in service");
    let (_held, _) = endpoint.accept().expect("the sender connects");
    let loaded =
        |sidecar: &Sidecar| sidecar.metric("promforest_config_last_reload_success_timestamp_seconds");
    let before = loaded(&sidecar);
    let mut client = TcpStream::connect(sidecar.address()).expect("a connection");
    client.write_all(b"POST /-/reload HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").expect("sent");
    std::thread::sleep(Duration::from_millis(200));
    let ready = http::get(&sidecar.address(), "/-/ready").expect("an answer");
    assert!(ready.status == 503 && ready.body.contains("a reload is in progress"), "{}", ready.body);
    drop(client);
    wait("the reload ends", Duration::from_secs(60), &mut [], || {
        if loaded(&sidecar) > before { Ok(()) } else { Err("not yet".into()) }
    });
    let ready = http::get(&sidecar.address(), "/-/ready").expect("an answer");
    assert_eq!((ready.status, &*ready.body), (200, "all: 1 of 1 groups have a model\n"));
    let (_next, _) = endpoint.accept().expect("the next sender connects");
}

#[test]
fn reloads_by_http_have_to_be_enabled() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("promforest.yml"), CONFIG).expect("writable");
    let address = format!("127.0.0.1:{}", free_port());
    let args = ["--config.file=promforest.yml".to_string(), format!("--web.listen-address={address}")];
    let mut process = Process::start("promforest", Path::new(PROGRAM), &args, folder.path());
    let answer = wait("an answer", Duration::from_secs(60), &mut [&mut process], || {
        http::post(&address, "/-/reload").map_err(|error| error.to_string())
    });
    assert_eq!(answer.status, 403);
    assert!(answer.body.contains("--web.enable-lifecycle"), "{}", answer.body);
}

/// The memory of a removed detector is free for the next one.
#[test]
fn f26_a_detector_that_is_removed_frees_its_memory() {
    const GROUPS: usize = 40;
    let detectors = |name: &str| {
        CONFIG
            .replace("name: all", &format!("name: {name}"))
            .replace("{job=~\".+\"}", &format!("{{__name__=~\"{name}.*\"}}"))
            // How many models are trained at a time depends on the machine.
            .replace("transform:", "training: {min_history: 5h}, transform:")
    };
    let mut sidecar = Sidecar::start(&[("promforest.yml", &detectors("first"))]);
    let fill = |sidecar: &Sidecar, name: &str| {
        let now = now_ms();
        for group in 0..GROUPS {
            // As scrapes come: one after another, each with all series.
            let scrape = |i: i64| {
                let sample = (now - 15_000 * (1000 - i), (i * i % 977) as f64 * 1.1);
                (0..10).map(move |n| (n, sample))
            };
            let all = (0..1000).flat_map(scrape);
            let all = all.map(|(n, sample)| series(&format!("{name}_{n}"), group, &[sample])).collect();
            assert_eq!(sidecar.write_series(all).expect("an answer"), 204);
        }
        sidecar.process.resident_bytes()
    };
    let empty = sidecar.process.resident_bytes();
    let first = fill(&sidecar, "first");
    assert!(first > empty + (8 << 20), "{empty}, then {first}");
    let n_groups = |page: &str, name: &str| {
        page.lines()
            .filter(|line| line.starts_with("promforest_training_progress_ratio{") && line.contains(name))
            .count()
    };
    sidecar.wait_for_metric("promforest_index_series", |series| series >= 10.0 * GROUPS as f64);
    let page = http::get(&sidecar.address(), "/metrics").expect("a page").body;
    assert_eq!(n_groups(&page, "\"first\""), GROUPS);
    sidecar.write_file("promforest.yml", &detectors("second"));
    assert_eq!(http::post(&sidecar.address(), "/-/reload").expect("an answer").status, 200);
    let page = http::get(&sidecar.address(), "/metrics").expect("a page").body;
    assert_eq!(n_groups(&page, "\"first\""), 0);
    sidecar.wait_for_metric("promforest_index_series", |series| series == 0.0);
    let second = fill(&sidecar, "second");
    println!("resident: {empty} without, {first} with the first, {second} with the second");
    assert!(second - empty < (first - empty) * 3 / 2, "{empty}, {first}, {second}");
}
