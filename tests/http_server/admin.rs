//! The admin API: who may call it, and its errors.

use super::support::sidecar::Sidecar;
use super::support::{PROGRAM, http};

const UNKNOWN_DETECTOR: &str = r#"no detector is named "al"; there are all"#;

#[test]
fn the_admin_api_has_to_be_enabled() {
    let sidecar = Sidecar::start(&[]);
    for path in ["/api/v1/feedback", "/api/v1/maintenance"] {
        let answer = http::post_json(&sidecar.address(), path, "{}").expect("an answer");
        assert_eq!(answer.status, 403, "{path}");
        assert!(answer.body.contains("--web.enable-admin-api"), "{}", answer.body);
    }
}

#[test]
fn requests_are_json_and_name_what_exists() {
    let sidecar = Sidecar::start_with_command(&[PROGRAM, "--web.enable-admin-api"], &[]);
    let address = sidecar.address();
    let (feedback, maintenance) = ("/api/v1/feedback", "/api/v1/maintenance");
    // A form of another site can send that.
    assert_eq!(http::post(&address, feedback).expect("an answer").status, 415);
    assert_eq!(http::get(&address, maintenance).expect("an answer").status, 405);
    let too_long = format!(r#"{{"action": "start", "groups": "{{}}", "comment": "{}"}}"#, "x".repeat(1001));
    let huge = " ".repeat(100_000);
    for (path, body, status, text) in [
        (feedback, "{", 400, "EOF"),
        (feedback, r#"{"at": "noon", "feedback": "real"}"#, 400, r#""noon" is no time"#),
        (feedback, r#"{"at": "5", "feedback": "maybe"}"#, 400, "unknown variant `maybe`"),
        (feedback, r#"{"at": "5", "feedback": "real", "group": "{a"}"#, 400, "selector"),
        (feedback, r#"{"at": "5", "feedback": "real"}"#, 404, "no group matches {}: there is none yet"),
        (feedback, &huge, 413, "65536 bytes"),
        (maintenance, r#"{"action": "start"}"#, 400, "missing field `groups`"),
        (
            maintenance,
            r#"{"action": "start", "groups": "{}", "start": "9", "end": "8"}"#,
            400,
            "must be at least",
        ),
        (maintenance, &too_long, 400, "1000 bytes"),
        (maintenance, r#"{"action": "end", "groups": "{job=\"x\"}"}"#, 404, "no maintenance of"),
        (
            maintenance,
            r#"{"action": "end", "groups": "{}", "detector": "al"}"#,
            404,
            r#"of {} of detector "al""#,
        ),
        (
            maintenance,
            r#"{"action": "start", "groups": "{job=\"x\"}", "detector": "al"}"#,
            400,
            UNKNOWN_DETECTOR,
        ),
        (maintenance, r#"{"action": "start", "groups": "{}", "detector": "al"}"#, 400, UNKNOWN_DETECTOR),
        (feedback, r#"{"at": "5", "feedback": "real", "detector": "al"}"#, 400, UNKNOWN_DETECTOR),
    ] {
        let answer = http::post_json(&address, path, body).expect("an answer");
        assert_eq!(answer.status, status, "{body:.100}: {}", answer.body);
        assert!(answer.body.contains(text), "{body:.100}: {}", answer.body);
    }
    let start = r#"{"action": "start", "groups": "{job=\"x\"}"}"#;
    let answer = http::post_json(&address, maintenance, start).expect("an answer");
    assert_eq!((answer.status, answer.headers["content-type"].as_str()), (200, "application/json"));
    let end = start.replace("start", "end");
    assert_eq!(http::post_json(&address, maintenance, &end).expect("an answer").status, 200);
}
