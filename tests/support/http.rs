//! HTTP as a test needs it: one request, one connection, version 1.0, so that nothing comes chunked.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(10);

/// An answer.
#[derive(Debug)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Body.
    pub body: String,
}

/// Gets a page. `address` is `HOST:PORT`.
pub fn get(address: &str, path: &str) -> io::Result<Response> {
    exchange(address, "GET", path)
}

/// Posts nothing to a path.
pub fn post(address: &str, path: &str) -> io::Result<Response> {
    exchange(address, "POST", path)
}

/// Posts a message of remote write or read, compressed, and returns the status and the body.
pub fn post_message(address: &str, path: &str, message: &[u8]) -> io::Result<(u16, Vec<u8>)> {
    send(
        address,
        "POST",
        path,
        "Content-Type: application/x-protobuf\r\nContent-Encoding: snappy\r\n",
        message,
    )
}

fn exchange(address: &str, method: &str, path: &str) -> io::Result<Response> {
    let (status, body) = send(address, method, path, "", &[])?;
    Ok(Response { status, body: String::from_utf8_lossy(&body).into() })
}

fn send(address: &str, method: &str, path: &str, headers: &str, body: &[u8]) -> io::Result<(u16, Vec<u8>)> {
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
        io::Error::new(io::ErrorKind::InvalidData, format!("no HTTP answer: {text:?}"))
    };
    let end = bytes.windows(4).position(|bytes| bytes == b"\r\n\r\n").ok_or_else(broken)?;
    let head = String::from_utf8_lossy(&bytes[..end]);
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(broken)?;
    Ok((status, bytes[end + 4..].to_vec()))
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
