//! HTTP as a test needs it: one request, one connection, version 1.0, so that nothing comes chunked.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(10);

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Body.
    pub body: String,
}

/// Gets a page. `address` is `HOST:PORT`.
pub fn get(address: &str, path: &str) -> io::Result<Answer> {
    exchange(address, "GET", path)
}

/// Posts nothing to a path.
pub fn post(address: &str, path: &str) -> io::Result<Answer> {
    exchange(address, "POST", path)
}

fn exchange(address: &str, method: &str, path: &str) -> io::Result<Answer> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    write!(stream, "{method} {path} HTTP/1.0\r\nHost: {address}\r\nContent-Length: 0\r\n\r\n")?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let broken = || io::Error::new(io::ErrorKind::InvalidData, format!("no HTTP answer: {text:?}"));
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(broken)?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(broken)?;
    Ok(Answer { status, body: body.into() })
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
        let of_this_name = series.is_empty() || series.starts_with('{');
        let selected = labels.iter().all(|(name, value)| series.contains(&format!("{name}=\"{value}\"")));
        if of_this_name && selected {
            let value: f64 = value.parse().unwrap_or_else(|err| panic!("{line:?}: {err}"));
            *sum.get_or_insert(0.0) += value;
        }
    }
    sum
}
