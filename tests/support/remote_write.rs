//! Write requests of version 1.0.

use promforest::prom::proto::{Label, Sample, TimeSeries, WriteRequest};
use promforest::prom::wire::snappy;
use prost::Message;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// Long enough for a response on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A time series of the job `node`.
pub fn series(name: &str, instance: usize, samples: &[(i64, f64)]) -> TimeSeries {
    let instance = instance.to_string();
    let labels = [("__name__", name), ("instance", &instance), ("job", "node")];
    TimeSeries {
        labels: labels.map(|(name, value)| Label { name: name.into(), value: value.into() }).to_vec(),
        samples: samples
            .iter()
            .map(|(timestamp, value)| Sample { timestamp: *timestamp, value: *value })
            .collect(),
        ..Default::default()
    }
}

/// The body of a write request: protobuf, compressed.
pub fn body(timeseries: Vec<TimeSeries>) -> Vec<u8> {
    snappy::compress(&WriteRequest { timeseries, ..Default::default() }.encode_to_vec())
}

/// Posts a write request on a connection of its own; the status of the response.
pub fn post(address: &str, body: &[u8]) -> io::Result<u16> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    write!(stream, "POST /api/v1/write HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len())?;
    stream.write_all(body)?;
    response_status(&mut stream)
}

/// The status of the next response.
pub fn response_status(stream: &mut TcpStream) -> io::Result<u16> {
    let mut head = [0; 12];
    stream.read_exact(&mut head)?;
    let code = std::str::from_utf8(&head[9..]).ok().and_then(|code| code.parse().ok());
    code.ok_or_else(|| io::Error::new(ErrorKind::InvalidData, format!("{head:?}")))
}
