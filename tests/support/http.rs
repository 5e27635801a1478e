//! HTTP for tests: one request on one connection with version 1.0, so that nothing is chunked; and responses that are
//! read from a connection that stays open.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of the head of a request.
const MAX_HEAD: usize = 16 << 10;

/// A response with a text for a body.
#[derive(Debug)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Headers, by their names in lower case.
    pub headers: BTreeMap<String, String>,
    /// Body.
    pub body: String,
}

impl Response {
    /// Reads one response and leaves the connection open.
    pub fn read(stream: &mut TcpStream) -> Self {
        Self::read_for_method(stream, "GET")
    }

    /// Reads the response to a request of this method: that to `HEAD` has no body.
    pub fn read_for_method(stream: &mut TcpStream, method: &str) -> Self {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte).unwrap_or_else(|error| {
                panic!("no response, only {:?}: {error}", String::from_utf8_lossy(&head))
            });
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).expect("ASCII");
        let status = status(&head).expect("a status");
        let headers = headers(&head);
        let length = headers.get("content-length").map_or(0, |length| length.parse().expect("a length"));
        let mut body = vec![0; if method == "HEAD" { 0 } else { length }];
        stream.read_exact(&mut body).expect("the whole body");
        Self { status, headers, body: String::from_utf8(body).expect("UTF-8") }
    }

    /// The body, which must be one line.
    #[track_caller]
    pub fn only_line(&self) -> &str {
        let line = self.body.strip_suffix('\n').expect("a line");
        assert!(!line.contains('\n') && !line.is_empty(), "{:?}", self.body);
        line
    }
}

fn status(head: &str) -> Option<u16> {
    head.split(' ').nth(1)?.parse().ok()
}

/// Reads one request with a body of known length: its head, and the body.
pub fn read_request(stream: &mut TcpStream) -> io::Result<(String, Vec<u8>)> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
        assert!(head.len() < MAX_HEAD, "a long head");
    }
    let head = String::from_utf8(head).expect("ASCII");
    let length = headers(&head).get("content-length").map_or(0, |length| length.parse().expect("a length"));
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    Ok((head, body))
}

/// The headers of a request or response, by their names in lower case.
pub fn headers(head: &str) -> BTreeMap<String, String> {
    let pairs = head.lines().skip(1).filter_map(|line| line.split_once(": "));
    pairs.map(|(name, value)| (name.to_ascii_lowercase(), value.to_string())).collect()
}

/// Gets a page. `address` is `HOST:PORT`.
pub fn get(address: &str, path: &str) -> io::Result<Response> {
    exchange(address, "GET", path)
}

/// Gets a page with further headers that each end with a line feed.
pub fn get_with(address: &str, path: &str, headers: &str) -> io::Result<Response> {
    let (head, body) = send(address, "GET", path, headers, &[])?;
    let status = status(&head).unwrap_or_default();
    Ok(Response { status, headers: self::headers(&head), body: String::from_utf8_lossy(&body).into() })
}

/// Gets bytes, with the status.
pub fn get_bytes(address: &str, path: &str) -> io::Result<(u16, Vec<u8>)> {
    let (head, body) = send(address, "GET", path, "", &[])?;
    Ok((status(&head).unwrap_or_default(), body))
}

/// Posts nothing to a path.
pub fn post(address: &str, path: &str) -> io::Result<Response> {
    exchange(address, "POST", path)
}

/// Posts JSON to a path.
pub fn post_json(address: &str, path: &str, body: &str) -> io::Result<Response> {
    let (head, body) = send(address, "POST", path, "Content-Type: application/json\r\n", body.as_bytes())?;
    let status = status(&head).unwrap_or_default();
    Ok(Response { status, headers: headers(&head), body: String::from_utf8_lossy(&body).into() })
}

/// Posts a form to a path, with further headers that each end with a line feed.
pub fn post_form(address: &str, path: &str, headers: &str, form: &str) -> io::Result<Response> {
    let headers = format!("Content-Type: application/x-www-form-urlencoded\r\n{headers}");
    let (head, body) = send(address, "POST", path, &headers, form.as_bytes())?;
    let status = status(&head).unwrap_or_default();
    Ok(Response { status, headers: self::headers(&head), body: String::from_utf8_lossy(&body).into() })
}

/// Posts a body to a path, with further headers that each end with a line feed.
pub fn post_body(address: &str, path: &str, headers: &str, body: &[u8]) -> io::Result<Response> {
    let (head, body) = send(address, "POST", path, headers, body)?;
    let status = status(&head).unwrap_or_default();
    Ok(Response { status, headers: self::headers(&head), body: String::from_utf8_lossy(&body).into() })
}

/// Posts a message of remote write or read, compressed, and returns the status and the body.
pub fn post_message(address: &str, path: &str, message: &[u8]) -> io::Result<(u16, Vec<u8>)> {
    let headers = "Content-Type: application/x-protobuf\r\nContent-Encoding: snappy\r\n";
    let (head, body) = send(address, "POST", path, headers, message)?;
    Ok((status(&head).unwrap_or_default(), body))
}

fn exchange(address: &str, method: &str, path: &str) -> io::Result<Response> {
    let (head, body) = send(address, method, path, "", &[])?;
    let status = status(&head).unwrap_or_default();
    Ok(Response { status, headers: headers(&head), body: String::from_utf8_lossy(&body).into() })
}

/// Sends a request; the head of the response, with its status, and the body.
fn send(
    address: &str,
    method: &str,
    path: &str,
    headers: &str,
    body: &[u8],
) -> io::Result<(String, Vec<u8>)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let length = body.len();
    let head =
        format!("{method} {path} HTTP/1.0\r\nHost: {address}\r\n{headers}Content-Length: {length}\r\n\r\n");
    stream.write_all(&[head.as_bytes(), body].concat())?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let broken = || {
        let text = String::from_utf8_lossy(&bytes);
        io::Error::new(io::ErrorKind::InvalidData, format!("no HTTP response: {text:?}"))
    };
    let end = bytes.windows(4).position(|bytes| bytes == b"\r\n\r\n").ok_or_else(broken)?;
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    status(&head).ok_or_else(broken)?;
    Ok((head, bytes[end + 4..].to_vec()))
}

/// Percent-encodes a part of a query string.
pub fn encode(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}

/// The sum of the samples of one metric on a page in the text format, over the series that have all these
/// labels; `None` when there is none.
pub fn metric(page: &str, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let mut sum = None;
    for line in page.lines() {
        let Some(rest) = line.strip_prefix(name) else { continue };
        let Some((series, value)) = rest.rsplit_once(' ') else { continue };
        let is_same_name = series.is_empty() || series.starts_with('{');
        let selected = labels.iter().all(|(name, value)| series.contains(&format!("{name}=\"{value}\"")));
        if is_same_name && selected {
            let value: f64 = value.parse().unwrap_or_else(|err| panic!("{line:?}: {err}"));
            *sum.get_or_insert(0.0) += value;
        }
    }
    sum
}
