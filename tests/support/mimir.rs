//! A front of a Prometheus with Mimir's paths, tenants and answers to write requests.

use super::http;
use promforest::prom::proto::WriteRequest;
use promforest::prom::wire::snappy;
use prost::Message as _;
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// The only tenant.
pub const TENANT: &str = "infrastructure";

/// An answer instead of that of Prometheus: status, further headers that each end with a line feed, text.
pub type Answer = (u16, &'static str, &'static str);

/// Starts the front, which runs until the end of the process; its address. `answer` gets the number of promforest's write
/// request, from 0, and the names of its series.
pub fn start(
    prometheus: String,
    answer: impl Fn(usize, &[String]) -> Option<Answer> + Send + Sync + 'static,
) -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has a free port");
    let address = listener.local_addr().expect("a bound socket has an address").to_string();
    let answer = Arc::new((AtomicUsize::new(0), answer));
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (prometheus, answer) = (prometheus.clone(), answer.clone());
            // A client that closed its connection sends again.
            thread::spawn(move || serve(stream, &prometheus, &answer.0, &answer.1));
        }
    });
    address
}

/// Answers one request and closes the connection.
fn serve(
    mut stream: TcpStream,
    prometheus: &str,
    n_writes: &AtomicUsize,
    answer: &impl Fn(usize, &[String]) -> Option<Answer>,
) -> io::Result<()> {
    let (head, body) = http::read_request(&mut stream)?;
    let headers = http::headers(&head);
    let path = head.split(' ').nth(1).unwrap_or_default();
    let tenant = headers.get("x-scope-orgid").map(String::as_str);
    let target = match path {
        _ if tenant != Some(TENANT) => return write_answer(&mut stream, (401, "", "no org id")),
        "/api/v1/push" => "/api/v1/write",
        "/prometheus/api/v1/read" => "/api/v1/read",
        _ => return write_answer(&mut stream, (404, "", "404 page not found")),
    };
    let is_promforest = headers.get("user-agent").is_some_and(|agent| agent.starts_with("promforest"));
    if target == "/api/v1/write" && is_promforest {
        let mut buffer = Vec::new();
        let message = snappy::decompress(&body, 32 << 20, &mut buffer).expect("snappy");
        let request = WriteRequest::decode(message).expect("a write request");
        let names = request.timeseries.iter().flat_map(|series| &series.labels);
        let names: Vec<String> =
            names.filter(|label| label.name == "__name__").map(|label| label.value.clone()).collect();
        if let Some(answer) = answer(n_writes.fetch_add(1, Ordering::Relaxed), &names) {
            return write_answer(&mut stream, answer);
        }
    }
    let mut upstream = TcpStream::connect(prometheus)?;
    let kept = head.lines().skip(1).filter(|line| !line.to_ascii_lowercase().starts_with("connection:"));
    let kept: String = kept.filter(|line| !line.is_empty()).map(|line| format!("{line}\r\n")).collect();
    write!(upstream, "POST {target} HTTP/1.1\r\nConnection: close\r\n{kept}\r\n")?;
    upstream.write_all(&body)?;
    io::copy(&mut upstream, &mut stream).map(drop)
}

fn write_answer(stream: &mut TcpStream, (status, headers, text): Answer) -> io::Result<()> {
    let length = text.len() + 1;
    write!(
        stream,
        "HTTP/1.1 {status} Status\r\nConnection: close\r\nContent-Type: text/plain; charset=utf-8\r\n{headers}\
         Content-Length: {length}\r\n\r\n{text}\n"
    )
}
