//! Connections that are slow, cut, idle or many; the limits of memory and of new series.

use crate::encode::series;
use crate::support::http::Response;
use crate::support::now_ms;
use crate::v2::{SymbolTable, assert_written_counts, v2_samples};
use crate::{IngestCounters, LIMIT, MIB, Receiver, TIMEOUT, ValidSeries, post_head, write_accepted};
use promforest::prom::proto::v2;
use promforest::prom::wire::snappy;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

#[test]
fn f17_a_replay_of_two_hours_is_204_or_503() {
    let receiver = Receiver::start();
    let now = now_ms();
    let statuses: Vec<u16> = thread::scope(|scope| {
        let shard = |shard: i64| {
            let receiver = &receiver;
            scope.spawn(move || {
                let request = |i: i64| {
                    let mut symbols = SymbolTable::new();
                    let start = now - 7_200_000 + i * 1_800_000;
                    let series: Vec<_> = (0..50)
                        .map(|n| {
                            let samples: Vec<_> = (0..20).map(|k| (start + k * 15_000, 1.0)).collect();
                            symbols.watched(&format!("r{shard}_{n}"), &samples)
                        })
                        .collect();
                    receiver.write_v2(&symbols.request(series)).status
                };
                (0..4).map(request).collect::<Vec<_>>()
            })
        };
        let shards: Vec<_> = (0..20).map(shard).collect();
        shards.into_iter().flat_map(|shard| shard.join().expect("no panic")).collect()
    });
    assert!(statuses.iter().all(|status| [204, 503].contains(status)), "{statuses:?}");
    let n_accepted = statuses.iter().filter(|status| **status == 204).count();
    assert_eq!(receiver.counts().received(), 1000.0 * n_accepted as f64);
    assert_eq!(receiver.counts().stored(), 1000.0 * n_accepted as f64);
}

#[test]
fn f30_many_new_series_leave_the_known_ones_alone() {
    let receiver = Receiver::start();
    let now = now_ms();
    assert_eq!(write_accepted(&receiver, "known", &series("known", &[(now, 1.0)])).0, 1.0);
    for i in 0..20 {
        let mut symbols = SymbolTable::new();
        let all: Vec<_> = (0..2000)
            .map(|n| v2::TimeSeries {
                labels_refs: symbols.labels(&[("__name__", "new"), ("n", &(2000 * i + n).to_string())]),
                samples: v2_samples(&[(now, 1.0)]),
                ..Default::default()
            })
            .collect();
        assert_written_counts("F30", &receiver.write_v2(&symbols.request(all)), 204, [2000, 0, 0]);
    }
    assert_eq!(receiver.counts().dropped("unwatched"), 40_000.0);
    let known = [series("known", &[(now, 1.0)]), series("known", &[(now + 1000, 1.0)])].concat();
    assert_eq!(write_accepted(&receiver, "known", &known), (1.0, 1.0, 0.0));
}

#[test]
fn b50_a_slow_body_and_a_slow_head() {
    let receiver = Receiver::start();
    let started = Instant::now();
    let body = snappy::compress(&ValidSeries::new(1).series());
    let slow_body = {
        let mut stream = receiver.connect();
        let head = format!("{}\r\nHost: test\r\n\r\n", post_head(&[], body.len()));
        stream.write_all(head.as_bytes()).expect("sent");
        let mut sender = stream.try_clone().expect("a socket");
        // The thread ends when the receiver has closed the connection.
        thread::spawn(move || {
            for byte in body {
                thread::sleep(Duration::from_secs(1));
                if sender.write_all(&[byte]).is_err() {
                    break;
                }
            }
        });
        stream
    };
    let mut slow_head = receiver.connect();
    slow_head.write_all(b"POST /api/v1/write HTTP/1.1\r\nHost: te").expect("sent");
    // Slow clients do not delay others.
    assert_eq!(receiver.write(&ValidSeries::new(2).series()).status, 204);

    let mut slow_body = slow_body;
    let answer = Response::read(&mut slow_body);
    // Not 408: a sender drops what is answered so.
    assert_eq!((answer.status, answer.only_line()), (503, "the body did not arrive within 10s"));
    assert_eq!(answer.headers["retry-after"], "5");
    let mut rest = Vec::new();
    // The end of the connection, or its reset by the bytes that still come.
    assert!(slow_body.read_to_end(&mut rest).map_or_else(|e| e.kind() != ErrorKind::WouldBlock, |n| n == 0));
    let took = started.elapsed();
    assert!((Duration::from_secs(9)..TIMEOUT).contains(&took), "{took:?}");
    let mut rest = Vec::new();
    slow_head.read_to_end(&mut rest).expect("it is closed");
    assert_eq!(receiver.counts().responses_for(503, "read_timeout", "1.0"), 1.0);
    assert!(!ValidSeries::new(1).is_duplicate(&receiver));
}

#[test]
fn b50_connections_that_are_cut() {
    let receiver = Receiver::start();
    let good = ValidSeries::new(1);
    let body = snappy::compress(&good.series());
    let whole = [format!("{}\r\nHost: a\r\n\r\n", post_head(&[], body.len())).into_bytes(), body].concat();
    for end in 0..whole.len() {
        let mut stream = receiver.connect();
        stream.write_all(&whole[..end]).expect("sent");
    }
    assert_eq!(receiver.counts().received(), 0.0);
    assert!(!good.is_duplicate(&receiver), "nothing is used");
}

#[test]
fn malformed_heads_are_counted() {
    let receiver = Receiver::start();
    let heads = [
        "GET\r\n\r\n".to_string(),
        "GET / HTTP/9.9\r\n\r\n".into(),
        "GET / HTTP/1.1\r\nHost test\r\n\r\n".into(),
        format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(70_000)),
        format!("GET / HTTP/1.1\r\nHost: test\r\nX: {}\r\n\r\n", "x".repeat(200_000)),
    ];
    for head in &heads {
        let mut stream = receiver.connect();
        // The receiver may close the connection before all is sent.
        let _ = stream.write_all(head.as_bytes());
        let _ = stream.read_to_end(&mut Vec::new());
    }
    let page = receiver.get("/metrics").body;
    let line = format!("promforest_http_requests_malformed_total {}\n", heads.len());
    assert!(page.contains(&line), "{page}");
}

#[test]
fn b50_continue_pipelining_and_keep_alive() {
    let receiver = Receiver::start();
    let bodies: Vec<Vec<u8>> = (1..=3).map(|i| snappy::compress(&ValidSeries::new(i).series())).collect();

    let mut stream = receiver.connect();
    let head = post_head(&[("Expect", "100-continue")], bodies[0].len());
    stream.write_all(format!("{head}\r\nHost: a\r\n\r\n").as_bytes()).expect("sent");
    assert_eq!(Response::read(&mut stream).status, 100);
    stream.write_all(&bodies[0]).expect("sent");
    assert_eq!(Response::read(&mut stream).status, 204);
    // A request that is refused by its head is not asked for its body.
    let mut rejected_stream = receiver.connect();
    let head = post_head(&[("Expect", "100-continue"), ("Content-Encoding", "gzip")], 1000);
    rejected_stream.write_all(format!("{head}\r\nHost: a\r\n\r\n").as_bytes()).expect("sent");
    assert_eq!(Response::read(&mut rejected_stream).status, 415);

    // On the connection that was used before: one after another, without waiting for answers.
    let mut pipeline = Vec::new();
    for body in &bodies[1..] {
        pipeline.extend(format!("{}\r\nHost: a\r\n\r\n", post_head(&[], body.len())).into_bytes());
        pipeline.extend(body);
    }
    pipeline.extend(b"POST /api/v1/write HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx");
    pipeline.extend(b"GET /-/healthy HTTP/1.1\r\nHost: a\r\n\r\n");
    stream.write_all(&pipeline).expect("sent");
    let statuses: Vec<u16> = (0..4).map(|_| Response::read(&mut stream).status).collect();
    assert_eq!(statuses, [204, 204, 400, 200]);
    assert_eq!(receiver.counts().stored(), 3.0);

    // An empty chunked body, and one in chunks of a byte.
    let mut chunked =
        b"POST /api/v1/write HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    chunked.extend(bodies[0].iter().flat_map(|byte| [b"1\r\n", &[*byte][..], b"\r\n"].concat()));
    chunked.extend(b"0\r\n\r\n");
    stream.write_all(&chunked).expect("sent");
    assert_eq!(Response::read(&mut stream).status, 204);
    assert_eq!(receiver.counts().dropped("duplicate"), 1.0);
}

#[test]
fn b50_idle_connections_do_not_block_writes() {
    let receiver = Receiver::start();
    let idle: Vec<TcpStream> = (0..300).map(|_| receiver.connect()).collect();
    let started = Instant::now();
    assert_eq!(receiver.write(&ValidSeries::new(1).series()).status, 204);
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    drop(idle);
}

/// Begins a body, of which so many bytes are sent, and waits until it is asked for.
fn begin_upload(receiver: &Receiver, extra: &str, sent: &[u8]) -> TcpStream {
    let mut stream = receiver.connect();
    let head = "POST /api/v1/write HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n";
    stream.write_all(format!("{head}{extra}\r\n\r\n").as_bytes()).expect("sent");
    assert_eq!(Response::read(&mut stream).status, 100, "{extra}");
    stream.write_all(sent).expect("the receiver reads the bytes");
    stream
}

fn in_flight_bytes(counts: &IngestCounters) -> usize {
    counts.value("in_flight_bytes") as usize
}

fn wait_until(receiver: &Receiver, what: &str, condition: impl Fn(&IngestCounters) -> bool) {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let counts = receiver.counts();
        if condition(&counts) {
            return;
        }
        assert!(Instant::now() < deadline, "{what}: {:#?}", counts.0);
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn overload_is_503_and_never_429() {
    let receiver = Receiver::start();
    let body = snappy::compress(&ValidSeries::new(1).series());
    // Small bodies may take the whole budget.
    let almost_whole_body = vec![0xff; MIB - 1];
    let slow_uploads: Vec<TcpStream> = (0..64)
        .map(|_| begin_upload(&receiver, &format!("Content-Length: {MIB}"), &almost_whole_body))
        .collect();
    wait_until(&receiver, "all is taken", |counts| in_flight_bytes(counts) == 64 * MIB);
    let before = receiver.counts();
    thread::scope(|scope| {
        for i in 0..50 {
            let (receiver, body) = (&receiver, &body);
            scope.spawn(move || {
                let answer = if i % 2 == 0 {
                    receiver.post(&[], body)
                } else {
                    let head = "POST /api/v1/write HTTP/1.1\r\nTransfer-Encoding: chunked";
                    receiver.request(head, b"1\r\nx\r\n0\r\n\r\n")
                };
                assert_eq!(answer.status, 503);
                assert_eq!(answer.only_line(), "overloaded: too many bytes in flight; try again");
                let retry_after_seconds: u16 =
                    answer.headers["retry-after"].parse().expect("the header has seconds");
                assert!((1..=5).contains(&retry_after_seconds), "{retry_after_seconds}");
            });
        }
    });
    let after = receiver.counts();
    assert_eq!(after.responses_for(503, "overloaded", "1.0"), 50.0);
    assert_eq!(after.responses(429), 0.0);
    assert_eq!(after.received(), before.received());
    assert_written_counts("2.0", &receiver.write_v2(&ValidSeries::new(1).series()), 503, [0, 0, 0]);
    // The pages stay.
    assert_eq!(receiver.get("/-/healthy").status, 200);
    drop(slow_uploads);
    wait_until(&receiver, "all is given back", |counts| in_flight_bytes(counts) == 0);
    assert_eq!(receiver.post(&[], &body).status, 204, "the budget is given back");
}

/// An announced length reserves nothing, and large bodies leave room for small ones.
#[test]
fn f29_stalled_large_bodies_do_not_block_small_ones() {
    let receiver = Receiver::start();
    let large = format!("Content-Length: {LIMIT}");
    let announced: Vec<TcpStream> = [&large, "Transfer-Encoding: chunked"]
        .into_iter()
        .cycle()
        .take(8)
        .map(|extra| begin_upload(&receiver, extra, b""))
        .collect();
    assert_eq!(receiver.write(&ValidSeries::new(1).series()).status, 204);
    // The answer may come a moment before the bytes are given back.
    wait_until(&receiver, "nothing is held", |counts| in_flight_bytes(counts) == 0);

    let almost_whole_body = vec![0xff; LIMIT - 1];
    let mut first = begin_upload(&receiver, &large, &almost_whole_body);
    wait_until(&receiver, "it is there but for a byte", |counts| in_flight_bytes(counts) == LIMIT);
    // A second one finds no room, and gives back what it had.
    let mut second = begin_upload(&receiver, &large, b"");
    // The receiver may close the connection before all is sent.
    let _ = second.write_all(&almost_whole_body);
    wait_until(&receiver, "the second is refused", |counts| {
        counts.responses_for(503, "overloaded", "1.0") == 1.0 && in_flight_bytes(counts) == LIMIT
    });
    assert_eq!(receiver.write(&ValidSeries::new(2).series()).status, 204);
    wait_until(&receiver, "the small one is given back", |counts| in_flight_bytes(counts) == LIMIT);
    // Nothing is wrong with the first.
    first.write_all(b"\xff").expect("the receiver reads the bytes");
    assert_eq!(Response::read(&mut first).status, 400);
    wait_until(&receiver, "all is given back", |counts| in_flight_bytes(counts) == 0);
    drop(announced);
}

#[test]
fn many_senders_at_once() {
    let receiver = Receiver::start();
    let now = now_ms();
    thread::scope(|scope| {
        for sender in 0..16 {
            let receiver = &receiver;
            scope.spawn(move || {
                for i in 0..20 {
                    let message = series(&format!("s{sender}"), &[(now - i * 1000, 1.0)]);
                    assert_eq!(receiver.write(&message).status, 204);
                }
            });
        }
    });
    let counts = receiver.counts();
    assert_eq!((counts.received(), counts.stored()), (320.0, 320.0));
}
