//! Methods and headers of a write request.

use crate::support::http::Response;
use crate::{Receiver, ValidSeries, assert_rejected};
use promforest::prom::wire::snappy;
use std::io::Write;

#[test]
fn b1_other_methods() {
    let receiver = Receiver::start();
    for method in ["GET", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"] {
        let mut stream = receiver.connect();
        stream
            .write_all(format!("{method} /api/v1/write HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes())
            .expect("sent");
        let answer = Response::read_for_method(&mut stream, method);
        assert_eq!(answer.status, 405, "{method}");
        assert_eq!(answer.headers["allow"], "POST", "{method}");
        if method != "HEAD" {
            assert_eq!(answer.only_line(), "allowed here: POST");
        }
    }
    assert_eq!(receiver.counts().responses(405), 6.0);
}

#[test]
fn b2_b3_b6_other_types_and_encodings() {
    let receiver = Receiver::start();
    let valid = snappy::compress(&ValidSeries::new(1).series());
    // The headers are looked at before the body: a corrupt one makes no difference.
    for body in [&valid[..], b"corrupt"] {
        for (number, value) in [
            ("B2", "application/json"),
            ("B2", "image/png"),
            ("B3", "yolo"),
            ("B3", "application/x-protobuf;proto=yolo"),
            ("B3", "application/x-protobuf;proto"),
        ] {
            let text = format!(
                "content type {value:?} is not supported: send application/x-protobuf;proto=prometheus.WriteRequest or application/x-protobuf;proto=io.prometheus.write.v2.Request"
            );
            assert_rejected(&receiver, number, &[("Content-Type", value)], body, 415, &text);
        }
        for value in ["gzip", "deflate", "zstd", "identity", "snappy, gzip"] {
            let text =
                format!("content encoding {value:?} is not supported: send snappy, in its block format");
            assert_rejected(&receiver, "B6", &[("Content-Encoding", value)], body, 415, &text);
        }
    }
}

#[test]
fn b4_b5_b7_headers_that_do_not_matter() {
    let receiver = Receiver::start();
    let many: &[&[(&str, &str)]] = &[
        &[],
        &[("Content-Type", ""), ("Content-Encoding", "")],
        &[("Content-Type", "application/x-protobuf")],
        &[("Content-Type", "application/x-protobuf;proto=prometheus.WriteRequest")],
        &[("Content-Type", "Application/X-Protobuf ; Proto = \"prometheus.WriteRequest\"")],
        &[("Content-Encoding", "SNAPPY")],
        &[("X-Prometheus-Remote-Write-Version", "9.9.9")],
        &[("X-Prometheus-Remote-Write-Version", "2.0.0"), ("Content-Type", "application/x-protobuf")],
        &[("User-Agent", "somebody/1"), ("Retry-Attempt", "17"), ("X-Other", "\u{e9}")],
    ];
    for (i, headers) in many.iter().enumerate() {
        let good = ValidSeries::new(i + 1);
        let answer = receiver.post(headers, &snappy::compress(&good.series()));
        assert_eq!((answer.status, &*answer.body), (204, ""), "{headers:?}");
        assert!(good.is_duplicate(&receiver), "{headers:?}");
    }
}
