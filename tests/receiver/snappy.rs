//! Bodies that are not snappy, declare a wrong size or exceed the limit.

use crate::encode::varint;
use crate::support::http::Response;
use crate::{LIMIT, MIB, Receiver, ValidSeries, assert_rejected, post_head};
use promforest::prom::wire::snappy;
use std::io::Write;
use std::thread;

#[test]
fn b8_b9_b10_b11_b12_b15_b16_bodies_that_are_not_snappy() {
    let receiver = Receiver::start();
    let valid = snappy::compress(&ValidSeries::new(1).series());
    let overwritten = |byte: u8| [&[byte], &valid[1..]].concat();
    // One literal of `ab`, and a header that says 1 and 3.
    let header = |declared: u8| vec![declared, 0x04, b'a', b'b'];
    let not_snappy = "the body is not in snappy's block format";
    for (what, body) in [
        ("B8: nothing", Vec::new()),
        ("B11: first byte", overwritten(b'0')),
        ("B11: first byte", overwritten(0x7f)),
        ("B15: the header says less", header(1)),
        ("B15: the header says more", header(3)),
        ("B16: a copy with offset 0", vec![0x08, 0x00, b'a', 0x0d, 0x00]),
        ("B16: a copy beyond the start", vec![0x08, 0x00, b'a', 0x0d, 0x09]),
        ("half of a body", valid[..valid.len() / 2].to_vec()),
    ] {
        assert_rejected(&receiver, what, &[], &body, 400, not_snappy);
    }
    // Read as a header, these say what cannot be.
    for (what, body, declared) in
        [("B10: text", &b"up 1\n"[..], 117), ("B12: frames", b"\xff\x06\x00\x00sNaPpY", 895)]
    {
        let length = body.len();
        let text = format!(
            "the snappy header declares {declared} bytes, more than a body of {length} bytes can hold"
        );
        assert_rejected(&receiver, what, &[], body, 400, &text);
    }
    let answer = receiver.post(&[], &overwritten(0xff));
    assert_eq!(answer.status, 400, "B11: first byte");
    assert!(answer.only_line().contains("snappy"), "{answer:?}");
    let answer = receiver.request("POST /api/v1/write HTTP/1.1", b"");
    assert_eq!((answer.status, answer.only_line()), (400, not_snappy), "B8: no length either");
    assert_eq!(receiver.post(&[], &[0]).status, 204, "B9: an empty request");
    assert_eq!(receiver.counts().received(), 0.0);
}

#[test]
fn b13_b14_bombs_are_refused_by_their_header() {
    let receiver = Receiver::start();
    assert_eq!(receiver.get("/metrics").status, 200);
    let before = receiver.process.peak_bytes();
    for body in [&b"\xff\xff\xff\xff\x0f"[..], b"\xff\xff\xff\xff\x0f\x00\x00\x00\x00\x00"] {
        assert_rejected(
            &receiver,
            "B13",
            &[],
            body,
            400,
            "the snappy header declares 4294967295 bytes, above the limit of 33554432",
        );
    }
    assert_rejected(
        &receiver,
        "B13: within the limit, and impossible",
        &[],
        b"\x80\x80\x80\x10\x00",
        400,
        "the snappy header declares 33554432 bytes, more than a body of 5 bytes can hold",
    );
    let grown = receiver.process.peak_bytes() - before;
    assert!(grown < 4 * MIB, "B13: {} KiB", grown / 1024);

    // An honest one: a literal, then copies of 64 bytes for 3 each.
    let bomb = [varint(64 * MIB as u64), vec![0, 0], [0xfe, 0x01, 0x00].repeat(MIB - 1)].concat();
    for _ in 0..3 {
        assert_rejected(
            &receiver,
            "B14",
            &[],
            &bomb,
            400,
            "the snappy header declares 67108864 bytes, above the limit of 33554432",
        );
    }
    let grown = receiver.process.peak_bytes() - before;
    assert!(grown < 24 * MIB, "B14: {} KiB, for bodies of 3 MiB", grown / 1024);
}

#[test]
fn b17_bodies_above_the_limit() {
    let receiver = Receiver::start();
    let before = receiver.process.peak_bytes();
    let text = "the body is larger than the limit of 33554432 bytes";
    // Announced: refused before the first byte is sent.
    let mut stream = receiver.connect();
    let head = format!("{}\r\nHost: test\r\n\r\n", post_head(&[], LIMIT + 1));
    stream.write_all(head.as_bytes()).expect("sent");
    let answer = Response::read(&mut stream);
    assert_eq!((answer.status, answer.only_line()), (413, text));
    let grown = receiver.process.peak_bytes() - before;
    assert!(grown < 4 * MIB, "announced: {} KiB", grown / 1024);

    // Chunked: refused when the limit is passed, long before the end.
    let mut stream = receiver.connect();
    let head = "POST /api/v1/write HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).expect("sent");
    let mut sender = stream.try_clone().expect("a socket");
    let sent = thread::spawn(move || {
        let chunk = [b"100000\r\n", &vec![0; MIB][..], b"\r\n"].concat();
        // 16 GiB, if nobody stops it.
        (0..16 << 10).find(|_| sender.write_all(&chunk).is_err())
    });
    let answer = Response::read(&mut stream);
    assert_eq!((answer.status, answer.only_line()), (413, text));
    drop(stream);
    let chunks = sent.join().expect("no panic").expect("it is stopped");
    assert!((32..200).contains(&chunks), "stopped after {chunks} MiB");
    assert_eq!(receiver.counts().responses(413), 2.0);
    let grown = receiver.process.peak_bytes() - before;
    assert!(grown < 128 * MIB, "chunked: {} KiB", grown / 1024);

    // The limit itself is allowed.
    let mut stream = receiver.connect();
    let head = format!("{}\r\nHost: test\r\n\r\n", post_head(&[], LIMIT));
    stream.write_all(head.as_bytes()).expect("sent");
    stream.write_all(&vec![0xff; LIMIT]).expect("the receiver reads the bytes");
    assert_eq!(Response::read(&mut stream).status, 400);
}
