//! One sidecar with a folder of its own.

use super::{PROGRAM, Process, client, free_port, http, remote_write, wait};
use promforest::http::Url;
use promforest::http::client::Client;
use promforest::prom::proto::TimeSeries;
use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::thread;
use std::time::Duration;
use tempfile::TempDir;

/// Long enough for every step, on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(120);

/// Watches every series, and has no endpoint.
pub const CONFIG: &str = "remote_write: []\nremote_read: []\ndetectors: [{name: all, match: ['{job=~\".+\"}'], transform: value}]\n";

/// A sidecar in a folder of its own.
pub struct Sidecar {
    /// The process.
    pub process: Process,
    /// Its port on 127.0.0.1.
    pub port: u16,
    /// Its working folder.
    pub folder: TempDir,
    args: Vec<String>,
}

impl Sidecar {
    /// Starts it with [`CONFIG`]; with a `web.yml` among the files, behind that.
    pub fn start(files: &[(&str, &str)]) -> Self {
        Self::start_at(free_port(), files)
    }

    /// Starts it at a port.
    pub fn start_at(port: u16, files: &[(&str, &str)]) -> Self {
        Self::start_by(&[PROGRAM], port, files)
    }

    /// Starts it by a command, to which the arguments are appended.
    pub fn start_with_command(command: &[&str], files: &[(&str, &str)]) -> Self {
        Self::start_by(command, free_port(), files)
    }

    fn start_by(command: &[&str], port: u16, files: &[(&str, &str)]) -> Self {
        let folder = client::folder(files);
        if !files.iter().any(|(name, _)| *name == "promforest.yml") {
            fs::write(folder.path().join("promforest.yml"), CONFIG).expect("writable");
        }
        let mut args: Vec<String> = command[1..].iter().map(ToString::to_string).collect();
        args.push("--config.file=promforest.yml".into());
        args.push("--web.enable-lifecycle".into());
        args.push(format!("--web.listen-address=127.0.0.1:{port}"));
        if files.iter().any(|(name, _)| *name == "web.yml") {
            args.push("--web.config.file=web.yml".into());
        }
        let mut process = Process::start("promforest", Path::new(command[0]), &args, folder.path());
        let log = process.log_file();
        wait("promforest listens", TIMEOUT, &mut [&mut process], || {
            let log = fs::read_to_string(&log).map_err(|error| error.to_string())?;
            if log.contains("msg=listening") { Ok(()) } else { Err(log) }
        });
        Self { process, port, folder, args }
    }

    /// Ends it as a power cut would.
    pub fn kill(&mut self) {
        self.process.signal("KILL");
        self.process.wait_for_exit(TIMEOUT);
    }

    /// Starts it again, with the same folder and port.
    pub fn restart(&mut self) {
        self.process = Process::start("promforest", Path::new(PROGRAM), &self.args, self.folder.path());
        let address = self.address();
        wait("promforest is healthy", TIMEOUT, &mut [&mut self.process], || {
            let answer = http::get(&address, "/-/healthy").map_err(|error| error.to_string())?;
            if answer.status == 200 { Ok(()) } else { Err(answer.body) }
        });
    }

    /// Its host and port.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// A URL of it.
    pub fn url(&self, scheme: &str, path: &str) -> Url {
        format!("{scheme}://{}{path}", self.address()).parse().expect("a URL")
    }

    /// A client by the keys of a remote write block; paths begin at the sidecar's folder.
    pub fn client(&self, keys: &str) -> Client {
        client::client(self.folder.path(), keys)
    }

    /// Writes a file in its folder.
    pub fn write_file(&self, name: &str, text: &str) {
        fs::write(self.folder.path().join(name), text).expect("writable");
    }

    /// A connection to it.
    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address()).expect("the program listens");
        stream.set_read_timeout(Some(TIMEOUT)).expect("a timeout");
        stream.set_nodelay(true).expect("a socket");
        stream
    }

    /// The sum of the series of one of its metrics, without encryption; 0 if there is none.
    pub fn metric(&self, name: &str) -> f64 {
        self.metric_with(name, &[])
    }

    /// The sum over the series with these labels.
    pub fn metric_with(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let page = http::get(&self.address(), "/metrics").expect("a page").body;
        http::metric(&page, name, labels).unwrap_or(0.0)
    }

    /// Waits until a metric meets a condition; its value.
    pub fn wait_for_metric(&mut self, name: &str, condition: impl Fn(f64) -> bool) -> f64 {
        let address = self.address();
        wait(name, TIMEOUT, &mut [&mut self.process], || {
            let page = http::get(&address, "/metrics").map_err(|error| error.to_string())?.body;
            let value = http::metric(&page, name, &[]).unwrap_or(0.0);
            if condition(value) { Ok(value) } else { Err(format!("{name} is {value}")) }
        })
    }

    /// Writes series on a connection of its own; the status of the response.
    pub fn write_series(&self, series: Vec<TimeSeries>) -> std::io::Result<u16> {
        remote_write::post(&self.address(), &remote_write::body(series))
    }

    /// Waits until its log holds a text.
    pub fn wait_for_log(&mut self, text: &str) {
        let log = self.process.log_file();
        wait(text, TIMEOUT, &mut [&mut self.process], || {
            let log = fs::read_to_string(&log).map_err(|error| error.to_string())?;
            if log.contains(text) { Ok(()) } else { Err(log) }
        });
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        if !thread::panicking() {
            let log = self.process.log();
            assert!(!log.contains("panicked"), "{log}");
        }
    }
}
