//! Signals: shutdown under load, a second signal, a pause, a broken pipe.

use crate::TIMEOUT;
use crate::support::client::folder;
use crate::support::remote_write::{body, post, response_status, series};
use crate::support::sidecar::{CONFIG, Sidecar};
use crate::support::stack::{
    Collectors, JOB_NODE, NODE_NETWORK, RANGE_MS, RemoteWriteReceiver, Scraping, Stack,
};
use crate::support::{PROGRAM, each_version, free_port, http, now_ms};
use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

#[test]
fn f27_the_end_under_load_loses_no_request_that_was_accepted() {
    let mut sidecar = Sidecar::start(&[]);
    let address = sidecar.address();
    let (accepted, rejected) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let status = thread::scope(|scope| {
        let (address, accepted, rejected) = (&address, &accepted, &rejected);
        for sender in 0..8 {
            scope.spawn(move || {
                for i in 0.. {
                    let body = body(vec![series("a", sender, &[(now_ms(), f64::from(i))])]);
                    match post(address, &body) {
                        Ok(204) => accepted.fetch_add(1, Ordering::Relaxed),
                        Ok(503) => rejected.fetch_add(1, Ordering::Relaxed),
                        Ok(other) => panic!("{other}"),
                        Err(_) => break,
                    };
                }
            });
        }
        let until = Instant::now() + TIMEOUT;
        while accepted.load(Ordering::Relaxed) < 200 {
            assert!(Instant::now() < until, "{accepted:?}");
            thread::sleep(Duration::from_millis(10));
        }
        sidecar.process.terminate(TIMEOUT)
    });
    assert_eq!(status.code(), Some(0));
    assert!(TcpStream::connect(&address).is_err(), "nobody listens any more");
}

#[test]
fn f27_a_second_signal_ends_at_once() {
    let mut sidecar = Sidecar::start(&[]);
    // A request under way, that the first signal waits for.
    let mut stream = sidecar.connect();
    stream
        .write_all(
            b"POST /api/v1/write HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n",
        )
        .expect("sent");
    assert_eq!(response_status(&mut stream).expect("an answer"), 100);
    sidecar.process.signal("TERM");
    sidecar.wait_for_log("shutting down");
    let log = sidecar.process.log_file();
    let status = sidecar.process.terminate(TIMEOUT);
    assert_eq!(status.code(), Some(0));
    let log = fs::read_to_string(log).expect("a log");
    assert!(log.contains("second signal: ending at once") && !log.contains("msg=stopped"), "{log}");
}

#[test]
fn f28_a_broken_pipe_is_survived() {
    let folder = folder(&[("promforest.yml", CONFIG)]);
    let address = format!("127.0.0.1:{}", free_port());
    let mut child = Command::new(PROGRAM)
        .args([
            "--config.file=promforest.yml",
            "--log.level=debug",
            &format!("--web.listen-address={address}"),
        ])
        .current_dir(folder.path())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    // The log is not read.
    drop(child.stderr.take());
    let until = Instant::now() + TIMEOUT;
    while http::get(&address, "/-/healthy").is_err() {
        assert!(Instant::now() < until, "it does not listen");
        thread::sleep(Duration::from_millis(50));
    }
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-s", "PIPE", &id]).status().expect("kill").success());
    for _ in 0..20 {
        assert_eq!(post(&address, &body(vec![series("a", 0, &[(now_ms(), 1.0)])])).expect("an answer"), 204);
    }
    assert!(child.try_wait().expect("a child").is_none(), "it goes on");
    child.kill().expect("the program runs");
    child.wait().expect("the program ends");
}

/// A pause of the process that is longer than the timeout of Prometheus leaves no row out and scores none twice.
#[test]
fn f28_after_a_pause_every_row_is_scored_once() {
    each_version(|version| {
        let queue = "    remote_timeout: 2s\n    queue_config: {batch_send_deadline: 1s}";
        let mut stack = Stack::new(version, Collectors::Network, &Scraping { queue, ..JOB_NODE });
        stack.start_prometheus(RemoteWriteReceiver::Enabled);
        stack.configure(NODE_NETWORK);
        stack.start_promforest();
        stack.wait("the first scores", Duration::from_secs(90), |at| at.scores().map(drop));
        stack.wait_for_score_at(now_ms() + 2_000);
        let promforest = stack.promforest.as_ref().expect("the program runs");
        promforest.signal("STOP");
        thread::sleep(Duration::from_secs(12));
        promforest.signal("CONT");
        stack.wait_for_score_at(now_ms() + 2_000);
        stack.check_scores(RANGE_MS);
        stack.check_nothing_lost();
    });
}
