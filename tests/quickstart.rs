//! `deploy/quickstart.sh` beside a program that takes a port after its first check, and with simulated hosts.

mod support;

use serde_json::Value;
use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;
use support::{PROGRAM, Process, PrometheusVersion, free_port, http, node_exporter, wait};

const LIMIT: Duration = Duration::from_secs(120);
/// For trainings without optimization, and a day of scores.
const DEMO_LIMIT: Duration = Duration::from_secs(600);

/// A program that waits for the file `taken` before it starts the given one.
fn delayed(dir: &Path, program: &Path) -> PathBuf {
    let script = format!(
        "#!/bin/sh\ncase $* in *--version*) ;; *)\n    touch {0}/waiting\n    \
         until [ -e {0}/taken ]; do sleep 0.1; done ;;\nesac\nexec {1} \"$@\"\n",
        dir.display(),
        program.display()
    );
    let path = dir.join("delayed");
    fs::write(&path, script).expect("the folder is writable");
    fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("the file is this test's");
    path
}

/// Answers every request with 200 OK.
fn answer_all(listener: &TcpListener) {
    for stream in listener.incoming() {
        let mut stream = stream.expect("a connection");
        let mut head = [0; 4096];
        // The client may have closed the connection.
        let _ = stream.read(&mut head);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    }
}

/// The quickstart with promforest at this port, and its files in `dir`.
fn quickstart_command(dir: &Path, port: u16) -> Command {
    let mut command = Command::new("bash");
    command
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/quickstart.sh"))
        .env("PROMETHEUS_PORT", free_port().to_string())
        .env("NODE_EXPORTER_PORT", free_port().to_string())
        .env("PROMFOREST_PORT", port.to_string())
        .env("TMPDIR", dir);
    command
}

/// Runs the quickstart with programs that wait, and takes promforest's port meanwhile. Returns its port and output.
fn run_quickstart(
    prometheus: &dyn Fn(&Path) -> PathBuf,
    promforest: &dyn Fn(&Path) -> PathBuf,
) -> (u16, String) {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path();
    let port = free_port();
    let mut command = quickstart_command(dir, port);
    command
        .env("PROMETHEUS_BIN", prometheus(dir))
        .env("NODE_EXPORTER_BIN", node_exporter())
        .env("PROMFOREST_BIN", promforest(dir));
    let mut quickstart = Process::spawn("quickstart", command, dir);
    wait("a program that waits", LIMIT, &mut [&mut quickstart], || {
        if dir.join("waiting").exists() { Ok(()) } else { Err("none".to_string()) }
    });
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("the port is free");
    thread::spawn(move || answer_all(&listener));
    fs::write(dir.join("taken"), "").expect("the folder is writable");
    let status = quickstart.wait_for_exit(LIMIT);
    let output = fs::read_to_string(dir.join("quickstart.log")).expect("the log was written");
    assert_eq!(status.code(), Some(1), "{output}");
    (port, output)
}

#[test]
fn a_port_that_is_taken_before_its_use_is_an_error() {
    let prometheus = |dir: &Path| delayed(dir, &PrometheusVersion::V3.prometheus());
    let (port, output) = run_quickstart(&prometheus, &|_| PROGRAM.into());
    let message =
        format!("error: port {port} on 127.0.0.1 is in use; choose another one with PROMFOREST_PORT");
    assert!(output.contains(&message), "{output}");
}

#[test]
fn the_answer_of_another_program_is_not_promforests() {
    let promforest = |dir: &Path| delayed(dir, Path::new(PROGRAM));
    let (_, output) = run_quickstart(&|_| PrometheusVersion::V3.prometheus(), &promforest);
    assert!(output.contains("error: promforest has stopped"), "{output}");
    assert!(!output.contains("promforest listens on port"), "{output}");
}

/// Waits until a line of the output has all of these texts.
fn wait_for_line(quickstart: &mut Process, texts: &[&str]) {
    let log = quickstart.log_file();
    wait(&texts.join(" ... "), DEMO_LIMIT, &mut [quickstart], || {
        let output = fs::read_to_string(&log).unwrap_or_default();
        let has_all = |line: &str| texts.iter().all(|text| line.contains(text));
        if output.lines().any(has_all) { Ok(()) } else { Err("another output".to_string()) }
    });
}

#[test]
fn a_demo_shows_a_replayed_day_and_live_incidents() {
    let folder = tempfile::tempdir().expect("a folder");
    let port = free_port();
    let mut command = quickstart_command(folder.path(), port);
    command
        .env("PROMFOREST_DEMO", "1")
        .env("DEMO_DAYS", "3")
        .env("PROMETHEUS_BIN", PrometheusVersion::V3.prometheus())
        .env("PROMFOREST_BIN", PROGRAM);
    let mut quickstart = Process::spawn("quickstart", command, folder.path());
    wait_for_line(&mut quickstart, &[&format!("==> The page of promforest: http://127.0.0.1:{port}/")]);
    let output = quickstart.log();
    assert!(
        output.contains("replayed: counters") && output.contains("live:     the same counters"),
        "{output}"
    );

    let address = format!("127.0.0.1:{port}");
    let get = |path: &str| http::get(&address, path).expect("an answer").body;
    let groups: Value = serde_json::from_str(&get("/api/v1/groups")).expect("JSON");
    let groups = groups["data"]["groups"].as_array().expect("a list");
    assert_eq!(groups.len(), 5, "{groups:?}");
    let mut n_incidents = 0;
    for group in groups {
        assert_eq!(group["state"], "scored", "{group}");
        n_incidents += group["incidentsLastDay"].as_u64().expect("a count");
        let page = get(&format!("/{}", group["page"].as_str().expect("a path")));
        assert!(page.contains("class=\"expected\""), "the usual range of the time of day: {page}");
    }
    assert!((3..=12).contains(&n_incidents), "three are simulated: {groups:?}");
    wait_for_line(&mut quickstart, &["simulated on web-1 until"]);
    // Scrapes that a busy machine delays are incidents of other hosts.
    wait_for_line(&mut quickstart, &["open incidents: ", "web-1"]);

    assert_eq!(quickstart.terminate(LIMIT).code(), Some(143), "{}", quickstart.log());
    let left = fs::read_dir(folder.path()).expect("the folder is there").flatten();
    let left: Vec<_> = left.map(|entry| entry.file_name()).filter(|name| name != "quickstart.log").collect();
    assert!(left.is_empty(), "{left:?}");
}
