//! The program's own address: who is let in, how many, and what becomes of them when the process is told to end, to
//! stop, to read its files again. Prometheus servers, an old one and a current one, come through TLS and passwords.
//!
//! In `tests/data/web-config`, `NAME.good.yml` is valid, and `NAME.good.txt` is what `check web-config` says of it;
//! `NAME.bad.yml` is not, and `NAME.bad.txt` is what standard error says. `FILE` stands for the path, and `FOLDER`
//! for the folder that the file is in.

mod support;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use promforest::error::chain;
use promforest::http::Url;
use promforest::http::client::Client;
use promforest::prom::proto::{Label, Sample, TimeSeries, WriteRequest};
use promforest::prom::wire::snappy;
use prost::Message;
use std::fmt::Write as _;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use support::client::{Authority, client, folder};
use support::prometheus::PrometheusApi;
use support::stack::{Collectors, JOB_NODE, NODE_NETWORK, RANGE_MS, RemoteWriteReceiver, Scraping, Stack};
use support::{Process, PrometheusVersion, each_version, free_port, http, now_ms, wait};
use tempfile::TempDir;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const PROGRAM: &str = env!("CARGO_BIN_EXE_promforest");
/// Long enough for anything that happens at all, on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Of the program, as README.md has it.
const MAX_CONNECTIONS: f64 = 512.0;

/// It watches everything, and talks to nobody.
const CONFIG: &str = "remote_write: []\nremote_read: []\ndetectors: [{name: all, match: ['{job=~\".+\"}'], transform: value}]\n";

// ------------------------------------------------------------------------------------------ the program

/// A sidecar in a folder of its own.
struct Sidecar {
    process: Process,
    port: u16,
    folder: TempDir,
}

impl Sidecar {
    /// Starts it with [`CONFIG`]; with a `web.yml` among the files, behind that.
    fn start(files: &[(&str, &str)]) -> Self {
        Self::start_with_command(&[PROGRAM], files)
    }

    /// Does so by the words of a command line that its arguments are added to.
    fn start_with_command(command: &[&str], files: &[(&str, &str)]) -> Self {
        let folder = folder(files);
        if !files.iter().any(|(name, _)| *name == "promforest.yml") {
            fs::write(folder.path().join("promforest.yml"), CONFIG).expect("writable");
        }
        let port = free_port();
        let mut args: Vec<String> = command[1..].iter().map(ToString::to_string).collect();
        args.push("--config.file=promforest.yml".into());
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
        Self { process, port, folder }
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    fn url(&self, scheme: &str, path: &str) -> Url {
        format!("{scheme}://{}{path}", self.address()).parse().expect("a URL")
    }

    /// A client by the keys of a remote write block; paths begin at the sidecar's folder.
    fn client(&self, keys: &str) -> Client {
        client(self.folder.path(), keys)
    }

    fn write_file(&self, name: &str, text: &str) {
        fs::write(self.folder.path().join(name), text).expect("writable");
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address()).expect("it listens");
        stream.set_read_timeout(Some(TIMEOUT)).expect("a timeout");
        stream
    }

    /// One of its metrics, without encryption; nothing counted is 0.
    fn metric(&self, name: &str) -> f64 {
        let page = http::get(&self.address(), "/metrics").expect("a page").body;
        http::metric(&page, name, &[]).unwrap_or(0.0)
    }

    /// Waits until a metric is as it should be.
    fn wait_for_metric(&mut self, name: &str, condition: impl Fn(f64) -> bool) -> f64 {
        let address = self.address();
        wait(name, TIMEOUT, &mut [&mut self.process], || {
            let page = http::get(&address, "/metrics").map_err(|error| error.to_string())?.body;
            let value = http::metric(&page, name, &[]).unwrap_or(0.0);
            if condition(value) { Ok(value) } else { Err(format!("{name} is {value}")) }
        })
    }

    /// Writes series by a connection of its own; the status.
    fn write(&self, series: Vec<TimeSeries>) -> std::io::Result<u16> {
        post(&self.address(), &body(series))
    }

    /// Memory that is resident now, in bytes.
    fn memory(&self) -> usize {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("Linux");
        line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") << 10
    }

    /// Waits until it has written something to its log.
    fn wait_for_log(&mut self, text: &str) {
        let log = self.process.log_file();
        wait(text, TIMEOUT, &mut [&mut self.process], || {
            let log = fs::read_to_string(&log).map_err(|error| error.to_string())?;
            if log.contains(text) { Ok(()) } else { Err(log) }
        });
    }
}

fn series(name: &str, instance: usize, samples: &[(i64, f64)]) -> TimeSeries {
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

fn body(timeseries: Vec<TimeSeries>) -> Vec<u8> {
    snappy::compress(&WriteRequest { timeseries, ..Default::default() }.encode_to_vec())
}

fn post(address: &str, body: &[u8]) -> std::io::Result<u16> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    write!(stream, "POST /api/v1/write HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len())?;
    stream.write_all(body)?;
    response_status(&mut stream)
}

/// The status of the answer that comes first.
fn response_status(stream: &mut TcpStream) -> std::io::Result<u16> {
    let mut head = [0; 12];
    stream.read_exact(&mut head)?;
    let code = std::str::from_utf8(&head[9..]).ok().and_then(|code| code.parse().ok());
    code.ok_or_else(|| std::io::Error::new(ErrorKind::InvalidData, format!("{head:?}")))
}

fn get_healthy(stream: &mut TcpStream) -> u16 {
    stream.write_all(b"GET /-/healthy HTTP/1.1\r\nHost: a\r\n\r\n").expect("sent");
    response_status(stream).expect("an answer")
}

// ------------------------------------------------------------------------------------------ who is let in

fn check_web_config(file: &Path) -> (Option<i32>, String, String) {
    let command = Command::new(PROGRAM).args(["check", "web-config"]).arg(file).output();
    let Output { status, stdout, stderr } = command.expect("the program runs");
    let folder = file.parent().expect("a folder").display().to_string();
    let text = |bytes| {
        let text = String::from_utf8(bytes).expect("UTF-8");
        text.replace(&file.display().to_string(), "FILE").replace(&folder, "FOLDER")
    };
    (status.code(), text(stdout), text(stderr))
}

/// Prometheus in the sidecar's folder, by the `prometheus.yml` there.
fn prometheus_beside(sidecar: &Sidecar, version: PrometheusVersion, port: u16) -> Process {
    let args = [
        "--config.file=prometheus.yml".to_string(),
        "--storage.tsdb.path=prometheus".into(),
        format!("--web.listen-address=127.0.0.1:{port}"),
    ];
    Process::start("prometheus", &version.prometheus(), &args, sidecar.folder.path())
}

#[test]
fn web_configurations_are_checked_with_every_error() {
    let folder = Path::new(ROOT).join("tests/data/web-config");
    let mut files = 0;
    for entry in fs::read_dir(folder).expect("the folder") {
        let file = entry.expect("a file").path();
        let name = file.display().to_string();
        if !name.ends_with(".yml") {
            continue;
        }
        files += 1;
        let text = fs::read_to_string(file.with_extension("txt")).expect("the text beside it");
        if name.ends_with(".good.yml") {
            assert_eq!(check_web_config(&file), (Some(0), text, String::new()), "{name}");
        } else {
            let (status, stdout, stderr) = check_web_config(&file);
            assert_eq!((status, &*stdout, &*stderr), (Some(1), "", &*text), "{name}");
            // The sidecar does not start with it either.
            let output = Command::new(PROGRAM)
                .args(["--web.listen-address=127.0.0.1:0", "--web.config.file"])
                .arg(&file)
                .output()
                .expect("it runs");
            assert_eq!(output.status.code(), Some(1), "{name}");
            assert!(
                String::from_utf8_lossy(&output.stderr).starts_with(&format!("promforest: {name} has ")),
                "{name}"
            );
        }
    }
    assert!(files >= 8);
    let example = Path::new(ROOT).join("deploy/web.yml");
    let (status, stdout, stderr) = check_web_config(&example);
    assert_eq!((status, &*stdout, &*stderr), (Some(0), "FILE is valid: no encryption, 0 users\n", ""));
}

/// `ann:secret`, at bcrypt's lowest cost.
fn basic_auth_users(password: &str) -> String {
    format!("basic_auth_users:\n  ann: {}\n", bcrypt::hash(password, 4).expect("a hash"))
}

const TLS: &str = "tls_server_config: {cert_file: cert.pem, key_file: key.pem, client_auth_type: RequireAndVerifyClientCert, client_ca_file: ca.pem}\n";
const BASIC_AUTH: &str = "basic_auth: {username: ann, password: secret}";

#[tokio::test]
async fn a_certificate_and_a_password_are_required_for_every_path() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let (server, trusted_client, untrusted_client) =
        (ours.identity("127.0.0.1"), ours.identity("prometheus"), theirs.identity("prometheus"));
    let headers = "http_server_config: {headers: {X-Frame-Options: deny}}\n";
    let web = format!("{TLS}{headers}{}", basic_auth_users("secret"));
    let sidecar = Sidecar::start(&[
        ("web.yml", &web),
        ("cert.pem", &server.cert),
        ("key.pem", &server.key),
        ("ca.pem", &ours.pem),
        ("trusted_client.pem", &trusted_client.cert),
        ("trusted_client.key", &trusted_client.key),
        ("untrusted_client.pem", &untrusted_client.cert),
        ("untrusted_client.key", &untrusted_client.key),
    ]);
    let trusted_tls =
        "tls_config: {ca_file: ca.pem, cert_file: trusted_client.pem, key_file: trusted_client.key}";
    let paths = ["/", "/metrics", "/-/healthy", "/-/ready", "/api/v1/write", "/nowhere"];
    for path in paths {
        let url = sidecar.url("https", path);
        for (credentials, keys) in [
            ("nobody", String::new()),
            ("another's password", "\nbasic_auth: {username: ann, password: wrong}".into()),
            ("somebody unknown", "\nbasic_auth: {username: eve, password: secret}".into()),
            ("a token", "\nauthorization: {credentials: secret}".into()),
        ] {
            let answer = sidecar.client(&format!("{trusted_tls}{keys}")).get(&url, TIMEOUT, 1 << 20).await;
            let answer = answer.unwrap_or_else(|error| panic!("{path}, {credentials}: {}", chain(&error)));
            assert_eq!(answer.status, 401, "{path}, {credentials}");
            assert_eq!(answer.headers["www-authenticate"], "Basic", "{path}, {credentials}");
            assert_eq!(answer.headers["x-frame-options"], "deny", "{path}, {credentials}");
        }
        for (certificate, keys) in [
            ("no certificate", "tls_config: {ca_file: ca.pem}"),
            (
                "another authority's",
                "tls_config: {ca_file: ca.pem, cert_file: untrusted_client.pem, key_file: untrusted_client.key}",
            ),
        ] {
            let answer = sidecar.client(&format!("{keys}\n{BASIC_AUTH}")).get(&url, TIMEOUT, 1 << 20).await;
            assert!(answer.is_err(), "{path}, {certificate}: {:?}", answer.map(|answer| answer.status));
        }
        let unencrypted = sidecar.client(BASIC_AUTH).get(&sidecar.url("http", path), TIMEOUT, 1 << 20).await;
        assert!(unencrypted.is_err(), "{path}: unencrypted");
    }
    let authorized = sidecar.client(&format!("{trusted_tls}\n{BASIC_AUTH}"));
    let page = authorized.get(&sidecar.url("https", "/metrics"), TIMEOUT, 1 << 20).await.expect("let in");
    assert_eq!(page.status, 200);
    assert_eq!(page.headers["x-frame-options"], "deny");
    let page = String::from_utf8(page.body.to_vec()).expect("text");
    let value = |name, labels: &[(&str, &str)]| http::metric(&page, name, labels).unwrap_or(0.0);
    let denied = value("promforest_http_requests_denied_total", &[("reason", "unauthorized")]);
    assert_eq!(denied, 4.0 * paths.len() as f64);
    assert!(value("promforest_http_tls_handshake_failures_total", &[]) >= 3.0 * paths.len() as f64);
}

#[tokio::test]
async fn client_certificates_are_verified_as_configured() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let server = ours.identity("127.0.0.1");
    let identities = [
        ("dns", ours.identity("prometheus.example.com")),
        ("address", ours.identity("10.0.0.7")),
        ("other", ours.identity("other.example.com")),
        ("stranger", theirs.identity("prometheus.example.com")),
    ];
    let mut files = vec![
        ("cert.pem".to_string(), server.cert.clone()),
        ("key.pem".to_string(), server.key.clone()),
        ("ca.pem".to_string(), ours.pem.clone()),
    ];
    for (name, identity) in &identities {
        files.push((format!("{name}.pem"), identity.cert.clone()));
        files.push((format!("{name}.key"), identity.key.clone()));
    }
    for (keys, accepted) in [
        ("", "none dns address other stranger"),
        ("client_auth_type: RequestClientCert", "none dns address other stranger"),
        ("client_auth_type: RequireAnyClientCert", "dns address other stranger"),
        ("client_auth_type: VerifyClientCertIfGiven, client_ca_file: ca.pem", "none dns address other"),
        ("client_auth_type: RequireAndVerifyClientCert, client_ca_file: ca.pem", "dns address other"),
        (
            "client_auth_type: RequireAndVerifyClientCert, client_ca_file: ca.pem, \
             client_allowed_sans: [prometheus.example.com, 10.0.0.7]",
            "dns address",
        ),
    ] {
        for version in ["TLS12", "TLS13"] {
            let web = format!(
                "tls_server_config: {{cert_file: cert.pem, key_file: key.pem, max_version: {version}, {keys}}}\n"
            );
            let mut files: Vec<(&str, &str)> =
                files.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
            files.push(("web.yml", &web));
            let sidecar = Sidecar::start(&files);
            let mut connected = Vec::new();
            for name in ["none", "dns", "address", "other", "stranger"] {
                let certificate = match name {
                    "none" => String::new(),
                    name => format!(", cert_file: {name}.pem, key_file: {name}.key"),
                };
                let client = sidecar.client(&format!("tls_config: {{ca_file: ca.pem{certificate}}}"));
                if client.get(&sidecar.url("https", "/-/healthy"), TIMEOUT, 1 << 10).await.is_ok() {
                    connected.push(name);
                }
            }
            assert_eq!(connected.join(" "), accepted, "{version} {keys}");
        }
    }
}

/// A certificate, its authority and a password are changed while it runs; what is wrong changes nothing.
#[tokio::test]
async fn f42_access_control_follows_the_files() {
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let (first, second) = (old.identity("127.0.0.1"), new.identity("127.0.0.1"));
    let tls = "tls_server_config: {cert_file: cert.pem, key_file: key.pem}\n";
    let mut sidecar = Sidecar::start(&[
        ("web.yml", &format!("{tls}{}", basic_auth_users("secret"))),
        ("cert.pem", &first.cert),
        ("key.pem", &first.key),
        ("old.pem", &old.pem),
        ("new.pem", &new.pem),
    ]);
    let url = sidecar.url("https", "/metrics");
    let scrape = async |sidecar: &Sidecar, ca: &str, password: &str| {
        let keys =
            format!("tls_config: {{ca_file: {ca}}}\nbasic_auth: {{username: ann, password: {password}}}");
        let answer = sidecar.client(&keys).get(&url, TIMEOUT, 1 << 20).await.ok()?;
        Some((answer.status.as_u16(), String::from_utf8(answer.body.to_vec()).expect("text")))
    };
    let status =
        async |sidecar: &Sidecar, ca: &str, password: &str| scrape(sidecar, ca, password).await.map(|a| a.0);
    assert_eq!(status(&sidecar, "old.pem", "secret").await, Some(200));

    // A key that does not belong to the certificate, and then half a file.
    sidecar.write_file("key.pem", &second.key);
    sidecar.wait_for_log("KeyMismatch");
    assert_eq!(status(&sidecar, "old.pem", "secret").await, Some(200));
    sidecar.write_file("web.yml", "tls_server_config: {cert_file: cert.pem\n");
    sidecar.wait_for_log("not valid YAML");
    // What would open the door.
    sidecar.write_file("web.yml", "");
    sidecar.wait_for_log("tls_server_config cannot be added or removed by a reload");
    sidecar.write_file("key.pem", &first.key);
    sidecar.write_file("web.yml", tls);
    sidecar.wait_for_log("basic_auth_users cannot be added or removed by a reload");
    assert_eq!(status(&sidecar, "old.pem", "wrong").await, Some(401));
    let (_, page) = scrape(&sidecar, "old.pem", "secret").await.expect("the old one stays");
    let metric = |page: &str, name| http::metric(page, name, &[]);
    assert_eq!(metric(&page, "promforest_web_config_last_reload_successful"), Some(0.0));
    assert!(metric(&page, "promforest_web_config_reload_failures_total") >= Some(4.0));

    sidecar.write_file("cert.pem", &second.cert);
    sidecar.write_file("key.pem", &second.key);
    sidecar.write_file("web.yml", &format!("{tls}{}", basic_auth_users("another")));
    sidecar.wait_for_log("web configuration loaded");
    assert_eq!(status(&sidecar, "new.pem", "secret").await, Some(401), "the old password is none any more");
    assert_eq!(status(&sidecar, "old.pem", "another").await, None, "the old authority's certificate is gone");
    let (status, page) = scrape(&sidecar, "new.pem", "another").await.expect("the new one");
    assert_eq!(status, 200);
    assert_eq!(metric(&page, "promforest_web_config_last_reload_successful"), Some(1.0));
    sidecar.process.assert_running();
}

#[test]
fn more_requests_than_the_limit_are_503_and_never_429() {
    let sidecar = Sidecar::start(&[("web.yml", "rate_limit: {interval: 1h, burst: 3}\n")]);
    let mut seen: Vec<u16> = (0..5).map(|_| sidecar.write(Vec::new()).expect("an answer")).collect();
    let mut stream = sidecar.connect();
    seen.extend([get_healthy(&mut stream)]);
    assert_eq!(seen, [204, 204, 204, 503, 503, 503]);
}

/// Who has shown the right password is let in while others try as many as there are connections, and more.
#[test]
fn wrong_passwords_do_not_block_right_ones() {
    let web = format!("basic_auth_users:\n  ann: {}\n", bcrypt::hash("secret", 8).expect("a hash"));
    let sidecar = Sidecar::start(&[("web.yml", &web)]);
    let start_scrape = |password: &str| {
        let mut stream = sidecar.connect();
        let basic = BASE64_STANDARD.encode(format!("ann:{password}"));
        let head = format!("GET /metrics HTTP/1.0\r\nHost: a\r\nAuthorization: Basic {basic}\r\n\r\n");
        stream.write_all(head.as_bytes()).expect("sent");
        stream
    };
    let scrape_authorized = || {
        let mut page = String::new();
        start_scrape("secret").read_to_string(&mut page).expect("an answer");
        assert!(page.starts_with("HTTP/1.0 200 OK"), "{page}");
        http::metric(&page, "promforest_http_requests_denied_total", &[("reason", "unauthorized")])
    };
    assert_eq!(scrape_authorized(), Some(0.0));
    let n_wrong_passwords = 2 * MAX_CONNECTIONS as usize;
    let wrong_scrapes: Vec<TcpStream> =
        (0..n_wrong_passwords).map(|i| start_scrape(&i.to_string())).collect();
    // Before most of them were compared.
    let n_denied = scrape_authorized().expect("a counter");
    assert!(n_denied < n_wrong_passwords as f64 / 4.0, "{n_denied} of {n_wrong_passwords}");
    let statuses = wrong_scrapes.into_iter().map(|mut stream| response_status(&mut stream).unwrap_or(0));
    assert!(statuses.filter(|code| *code == 503).count() > 0, "nobody was told to come again");
}

/// Both servers write and scrape with everything that they can show, also after the certificate was changed.
#[test]
fn f42_prometheus_writes_and_scrapes_through_tls_and_a_password() {
    each_version(|version| {
        let (old, new) = (Authority::new("old"), Authority::new("new"));
        let (first, second, client) =
            (old.identity("127.0.0.1"), new.identity("127.0.0.1"), old.identity("prometheus"));
        let web = format!("{TLS}{}", basic_auth_users("secret"));
        let both = format!("{}{}", old.pem, new.pem);
        let mut sidecar = Sidecar::start(&[
            ("web.yml", &web),
            ("cert.pem", &first.cert),
            ("key.pem", &first.key),
            ("ca.pem", &old.pem),
            ("both.pem", &both),
            ("us.pem", &client.cert),
            ("us.key", &client.key),
        ]);
        let (address, port) = (sidecar.address(), free_port());
        let keys = "tls_config: {ca_file: both.pem, cert_file: us.pem, key_file: us.key}";
        let password = "basic_auth: {username: ann, password: secret}";
        sidecar.write_file(
            "prometheus.yml",
            &format!(
                "global: {{scrape_interval: 1s}}\n\
                 scrape_configs:\n  \
                 - job_name: promforest\n    scheme: https\n    {keys}\n    {password}\n    \
                 static_configs: [{{targets: ['{address}']}}]\n\
                 remote_write:\n  \
                 - url: https://{address}/api/v1/write\n    {keys}\n    {password}\n    \
                 queue_config: {{batch_send_deadline: 1s}}\n"
            ),
        );
        let mut prometheus = prometheus_beside(&sidecar, version, port);
        let api = PrometheusApi(format!("127.0.0.1:{port}"));
        let mut wait_for_samples = |what: &str, more_than: f64| {
            wait(&format!("{version}: {what}"), TIMEOUT, &mut [&mut prometheus, &mut sidecar.process], || {
                let single_value = |query: &str| match &api.query(query)?[..] {
                    [series] => Ok(series.samples[0].1),
                    others => Err(format!("{query}: {} series", others.len())),
                };
                let up = single_value("up{job=\"promforest\"}")?;
                let samples = single_value("promforest_ingest_samples_total")?;
                if up == 1.0 && samples > more_than { Ok(samples) } else { Err(format!("{up}, {samples}")) }
            })
        };
        let before = wait_for_samples("samples come", 100.0);
        fs::write(sidecar.folder.path().join("cert.pem"), &second.cert).expect("writable");
        fs::write(sidecar.folder.path().join("key.pem"), &second.key).expect("writable");
        let log = sidecar.process.log_file();
        wait("the new certificate", TIMEOUT, &mut [&mut sidecar.process], || {
            let log = fs::read_to_string(&log).expect("a log");
            if log.contains("web configuration loaded") { Ok(()) } else { Err(log) }
        });
        // Connections that are kept go on as they began; new ones get the new certificate.
        prometheus.kill();
        let mut prometheus = prometheus_beside(&sidecar, version, port);
        wait(
            &format!("{version}: samples go on"),
            TIMEOUT,
            &mut [&mut prometheus, &mut sidecar.process],
            || {
                let samples =
                    api.query("promforest_ingest_samples_total and on () up{job=\"promforest\"} == 1")?;
                let samples = samples.first().ok_or("none yet")?.samples[0].1;
                if samples > before + 100.0 { Ok(()) } else { Err(samples.to_string()) }
            },
        );
    });
}

// ------------------------------------------------------------------------------------------ how many

/// Ten thousand, or as many as this process may have.
fn n_idle_connections() -> usize {
    let limits = fs::read_to_string("/proc/self/limits").expect("Linux");
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).expect("a limit");
    let limit: usize =
        line.split_whitespace().next().and_then(|soft| soft.parse().ok()).unwrap_or(usize::MAX);
    10_000.min(limit - 200)
}

#[test]
fn b50_idle_connections_are_bounded_and_do_not_block_writes() {
    let mut sidecar = Sidecar::start(&[]);
    let first = sidecar.write(vec![series("a", 0, &[(now_ms(), 1.0)])]).expect("an answer");
    assert_eq!(first, 204);
    let before = sidecar.memory();
    let stop = AtomicBool::new(false);
    let (sent, evicted) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let mut idle = Vec::new();
    thread::scope(|scope| {
        // A sender that keeps its connection and has it taken away now and then, as Prometheus would.
        scope.spawn(|| {
            let mut stream = sidecar.connect();
            while !stop.load(Ordering::Relaxed) {
                match stream
                    .write_all(b"GET /-/healthy HTTP/1.1\r\nHost: a\r\n\r\n")
                    .and_then(|()| response_status(&mut stream))
                {
                    Ok(code) => {
                        assert_eq!(code, 200);
                        sent.fetch_add(1, Ordering::Relaxed);
                        // The rest of the answer.
                        let _ = stream.read(&mut [0; 1024]).expect("the rest");
                    }
                    Err(_) => {
                        evicted.fetch_add(1, Ordering::Relaxed);
                        stream = sidecar.connect();
                    }
                }
                thread::sleep(Duration::from_millis(5));
            }
        });
        for i in 0..n_idle_connections() {
            idle.push(sidecar.connect());
            if i % 1000 == 999 {
                // Whoever comes has its place at once.
                let code = sidecar.write(vec![series("a", 0, &[(now_ms(), i as f64)])]).expect("an answer");
                assert_eq!(code, 204);
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(sent.load(Ordering::Relaxed) > 10, "{sent:?}");
    let connections = sidecar.metric("promforest_http_connections");
    assert!(connections <= MAX_CONNECTIONS, "{connections}");
    let n_evicted = sidecar.metric("promforest_http_connections_evicted_total");
    assert!(n_evicted >= idle.len() as f64 - MAX_CONNECTIONS, "{n_evicted} of {}", idle.len());
    let grown = sidecar.memory().saturating_sub(before);
    println!(
        "{} idle connections: {grown} bytes more, a sender that goes on lost its connection {evicted:?} times in {sent:?} requests",
        idle.len()
    );
    assert!(grown < 64 << 20, "{grown} bytes more for {} connections", idle.len());
    drop(idle);
    sidecar.wait_for_metric("promforest_http_connections", |n| n < 10.0);
}

/// Whoever sends a request as a whole has a place beside as many as there may be that send a part of theirs.
#[test]
fn b50_unfinished_requests_are_evicted() {
    let mut sidecar = Sidecar::start(&[]);
    let mut slow: Vec<TcpStream> = (0..MAX_CONNECTIONS as usize).map(|_| sidecar.connect()).collect();
    let head = "POST /api/v1/write HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 99\r\n\r\n";
    let start_upload = |stream: &mut TcpStream| {
        stream.write_all(head.as_bytes()).and_then(|()| stream.read_exact(&mut [0; 25]))?;
        stream.write_all(b"x")
    };
    // Some may be sent away before they are asked for the rest.
    let n_started = slow.iter_mut().filter_map(|stream| start_upload(stream).ok()).count();
    assert!(n_started > 0, "none was asked");
    for i in 0..100 {
        let written = sidecar.write(vec![series("a", 0, &[(now_ms() + i, 1.0)])]);
        assert_eq!(written.expect("an answer"), 204);
    }
    // Who is told that it was too slow had kept its place to the end.
    let is_closed = |stream: &mut TcpStream| {
        stream.set_nonblocking(true).expect("a socket");
        matches!(stream.read(&mut [0; 1]), Ok(0))
    };
    let n_closed = slow.iter_mut().filter_map(|stream| is_closed(stream).then_some(())).count();
    assert!(n_closed > 0, "none made room");
    drop(slow);
    sidecar.wait_for_metric("promforest_http_connections", |n| n < 10.0);
    assert_eq!(sidecar.metric("promforest_ingest_samples_total"), 100.0);
}

/// Both servers are served as if they were alone beside clients that announce the largest bodies and send nothing,
/// and as many as there are places for that send a byte now and then, and come again when they are sent away.
#[test]
fn b50_f29_prometheus_writes_beside_slow_and_greedy_clients() {
    each_version(|version| {
        let mut sidecar = Sidecar::start(&[]);
        let (address, port) = (sidecar.address(), free_port());
        sidecar.write_file(
            "prometheus.yml",
            &format!(
                "global: {{scrape_interval: 1s}}\n\
                 scrape_configs: [{{job_name: prometheus, static_configs: [{{targets: ['127.0.0.1:{port}']}}]}}]\n\
                 remote_write: [{{url: 'http://{address}/api/v1/write', queue_config: {{batch_send_deadline: 1s}}}}]\n"
            ),
        );
        let mut prometheus = prometheus_beside(&sidecar, version, port);
        let begin_upload = |length: usize| {
            let mut stream = TcpStream::connect(&address).ok()?;
            let head = format!("POST /api/v1/write HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n");
            stream.write_all(head.as_bytes()).ok()?;
            Some(stream)
        };
        sidecar.wait_for_metric("promforest_ingest_samples_total", |samples| samples > 100.0);
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                let lengths = [32 << 20; 4].into_iter().chain([1000; MAX_CONNECTIONS as usize]);
                let mut clients: Vec<(usize, Option<TcpStream>)> =
                    lengths.map(|length| (length, None)).collect();
                while !stop.load(Ordering::Relaxed) {
                    for (length, stream) in &mut clients {
                        if stream.as_mut().is_none_or(|stream| stream.write_all(b"x").is_err()) {
                            *stream = begin_upload(*length);
                        }
                    }
                    thread::sleep(Duration::from_millis(200));
                }
            });
            sidecar.wait_for_metric("promforest_http_connections_evicted_total", |evicted| evicted > 100.0);
            let before = sidecar.metric("promforest_ingest_samples_total");
            sidecar.wait_for_metric("promforest_ingest_samples_total", |samples| samples > before + 5000.0);
            stop.store(true, Ordering::Relaxed);
        });
        let page = http::get(&address, "/metrics").expect("a page").body;
        let overloaded = http::metric(&page, "promforest_ingest_requests_total", &[("reason", "overloaded")]);
        assert_eq!(overloaded, None, "{version}");
        prometheus.assert_running();
        // What it could not send it says with every try.
        assert!(!prometheus.log().contains("non-recoverable"), "{version}: {}", prometheus.tail());
    });
}

#[test]
fn f43_running_out_of_file_descriptors_is_survived() {
    let limited = ["sh", "-c", "ulimit -n 64; exec \"$0\" \"$@\"", PROGRAM];
    let mut sidecar = Sidecar::start_with_command(&limited, &[]);
    let idle: Vec<TcpStream> = (0..200).map(|_| sidecar.connect()).collect();
    for i in 0..5 {
        let code = sidecar.write(vec![series("a", 0, &[(now_ms(), f64::from(i))])]).expect("an answer");
        assert_eq!(code, 204);
    }
    assert!(sidecar.metric("promforest_http_accept_failures_total") >= 1.0);
    let lines = sidecar.process.log().matches("cannot accept a connection").count();
    assert!((1..=10).contains(&lines), "{lines} lines");
    drop(idle);
    let failures = sidecar.metric("promforest_http_accept_failures_total");
    assert_eq!(sidecar.write(vec![series("a", 0, &[(now_ms(), 1.0)])]).expect("an answer"), 204);
    assert_eq!(sidecar.metric("promforest_http_accept_failures_total"), failures);
    sidecar.process.assert_running();
}

// ------------------------------------------------------------------------------------------ the end

#[test]
fn f27_the_end_under_load_loses_no_request_that_was_accepted() {
    let sidecar = Sidecar::start(&[]);
    let address = sidecar.address();
    let (accepted, rejected) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let Sidecar { process, folder: _folder, .. } = sidecar;
    let status = thread::scope(|scope| {
        let (address, accepted, rejected) = (&address, &accepted, &rejected);
        for sender in 0..8 {
            scope.spawn(move || {
                for i in 0.. {
                    let body = body(vec![series("a", sender, &[(now_ms(), f64::from(i))])]);
                    match post(address, &body) {
                        Ok(204) => accepted.fetch_add(1, Ordering::Relaxed),
                        Ok(503) => rejected.fetch_add(1, Ordering::Relaxed),
                        Ok(other) => panic!("{other}"),
                        Err(_) => break,
                    };
                }
            });
        }
        let until = Instant::now() + TIMEOUT;
        while accepted.load(Ordering::Relaxed) < 200 {
            assert!(Instant::now() < until, "{accepted:?}");
            thread::sleep(Duration::from_millis(10));
        }
        process.terminate(TIMEOUT)
    });
    assert_eq!(status.code(), Some(0));
    assert!(TcpStream::connect(&address).is_err(), "nobody listens any more");
}

#[test]
fn f27_a_second_signal_ends_at_once() {
    let mut sidecar = Sidecar::start(&[]);
    // A request under way, that the first signal waits for.
    let mut stream = sidecar.connect();
    stream
        .write_all(
            b"POST /api/v1/write HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n",
        )
        .expect("sent");
    assert_eq!(response_status(&mut stream).expect("an answer"), 100);
    sidecar.process.signal("TERM");
    sidecar.wait_for_log("shutting down");
    let log = sidecar.process.log_file();
    let status = sidecar.process.terminate(TIMEOUT);
    assert_eq!(status.code(), Some(0));
    let log = fs::read_to_string(log).expect("a log");
    assert!(log.contains("second signal: ending at once") && !log.contains("msg=stopped"), "{log}");
}

// ------------------------------------------------------------------------------------------ signals

#[test]
fn f28_a_broken_pipe_is_survived() {
    let folder = folder(&[("promforest.yml", CONFIG)]);
    let address = format!("127.0.0.1:{}", free_port());
    let mut child = Command::new(PROGRAM)
        .args([
            "--config.file=promforest.yml",
            "--log.level=debug",
            &format!("--web.listen-address={address}"),
        ])
        .current_dir(folder.path())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    // Nobody reads what it logs.
    drop(child.stderr.take());
    let until = Instant::now() + TIMEOUT;
    while http::get(&address, "/-/healthy").is_err() {
        assert!(Instant::now() < until, "it does not listen");
        thread::sleep(Duration::from_millis(50));
    }
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-s", "PIPE", &id]).status().expect("kill").success());
    for _ in 0..20 {
        assert_eq!(post(&address, &body(vec![series("a", 0, &[(now_ms(), 1.0)])])).expect("an answer"), 204);
    }
    assert!(child.try_wait().expect("a child").is_none(), "it goes on");
    child.kill().expect("it runs");
    child.wait().expect("it ends");
}

/// It stands still for longer than Prometheus waits for an answer; then everything is there once.
#[test]
fn f28_after_a_pause_every_row_is_scored_once() {
    each_version(|version| {
        let queue = "    remote_timeout: 2s\n    queue_config: {batch_send_deadline: 1s}";
        let mut stack = Stack::new(version, Collectors::Network, &Scraping { queue, ..JOB_NODE });
        stack.start_prometheus(RemoteWriteReceiver::Enabled);
        stack.configure(NODE_NETWORK);
        stack.start_promforest();
        stack.wait("the first scores", Duration::from_secs(90), |at| at.scores().map(drop));
        stack.wait_for_score_at(now_ms() + 2_000);
        let promforest = stack.promforest.as_ref().expect("it runs");
        promforest.signal("STOP");
        thread::sleep(Duration::from_secs(12));
        promforest.signal("CONT");
        stack.wait_for_score_at(now_ms() + 2_000);
        stack.check_scores(RANGE_MS);
        stack.check_nothing_lost();
    });
}

// ------------------------------------------------------------------------------------------ files read again

#[test]
fn f25_a_wrong_file_says_where_and_changes_nothing() {
    let sidecar = Sidecar::start(&[]);
    let now = now_ms();
    let write = |i: i64| sidecar.write(vec![series("a", 0, &[(now + i, 1.0)])]).expect("an answer");
    assert_eq!(write(0), 204);
    let duplicates = || sidecar.metric("promforest_ingest_samples_dropped_total");
    for (what, wrong, line) in [
        ("syntax", CONFIG.replace("}]\n", "\n"), 3),
        ("an unknown key", CONFIG.replace("transform", "tranform"), 3),
        ("a regular expression", CONFIG.replace(".+", "(.+"), 3),
        ("a target", CONFIG.replace("remote_write: []", "remote_write: [{url: 'nowhere'}]"), 1),
    ] {
        sidecar.write_file("promforest.yml", &wrong);
        let answer = http::post(&sidecar.address(), "/-/reload").expect("an answer");
        assert_eq!(answer.status, 500, "{what}: {}", answer.body);
        let location = answer.body.find("promforest.yml:").map(|at| answer.body[at + 15..].to_string());
        let reported_line = location.and_then(|rest| rest.split(':').next()?.parse().ok());
        assert!(
            reported_line.is_some_and(|found: usize| found.abs_diff(line) <= 1),
            "{what}: {}",
            answer.body
        );
        assert_eq!(sidecar.metric("promforest_config_last_reload_successful"), 0.0, "{what}");
        let before = duplicates();
        assert_eq!(write(0), 204, "{what}");
        assert_eq!(duplicates(), before + 1.0, "{what}: the window is the same");
    }
    sidecar.write_file("promforest.yml", CONFIG);
    assert_eq!(http::post(&sidecar.address(), "/-/reload").expect("an answer").status, 200);
    assert_eq!(sidecar.metric("promforest_config_last_reload_successful"), 1.0);
    let before = duplicates();
    assert_eq!(write(0), 204);
    assert_eq!(duplicates(), before + 1.0, "a reload of the same file keeps the window");
}

/// What a detector held is there for the next one.
#[test]
fn f26_a_detector_that_is_removed_frees_its_memory() {
    const GROUPS: usize = 40;
    let detectors = |name: &str| {
        CONFIG
            .replace("name: all", &format!("name: {name}"))
            .replace("{job=~\".+\"}", &format!("{{__name__=~\"{name}.*\"}}"))
    };
    let mut sidecar = Sidecar::start(&[("promforest.yml", &detectors("first"))]);
    let fill = |sidecar: &Sidecar, name: &str| {
        let now = now_ms();
        for group in 0..GROUPS {
            // As scrapes come: one after another, each with all series.
            let scrape = |i: i64| {
                let sample = (now - 15_000 * (1000 - i), (i * i % 977) as f64 * 1.1);
                (0..10).map(move |n| (n, sample))
            };
            let all = (0..1000).flat_map(scrape);
            let all = all.map(|(n, sample)| series(&format!("{name}_{n}"), group, &[sample])).collect();
            assert_eq!(sidecar.write(all).expect("an answer"), 204);
        }
        sidecar.memory()
    };
    let empty = sidecar.memory();
    let first = fill(&sidecar, "first");
    assert!(first > empty + (8 << 20), "{empty}, then {first}");
    let n_groups = |page: &str, name: &str| {
        page.lines()
            .filter(|line| line.starts_with("promforest_training_progress_ratio{") && line.contains(name))
            .count()
    };
    sidecar.wait_for_metric("promforest_index_series", |series| series >= 10.0 * GROUPS as f64);
    let page = http::get(&sidecar.address(), "/metrics").expect("a page").body;
    assert_eq!(n_groups(&page, "\"first\""), GROUPS);
    sidecar.write_file("promforest.yml", &detectors("second"));
    assert_eq!(http::post(&sidecar.address(), "/-/reload").expect("an answer").status, 200);
    let page = http::get(&sidecar.address(), "/metrics").expect("a page").body;
    assert_eq!(n_groups(&page, "\"first\""), 0);
    sidecar.wait_for_metric("promforest_index_series", |series| series == 0.0);
    let second = fill(&sidecar, "second");
    println!("resident: {empty} without, {first} with the first, {second} with the second");
    assert!(second - empty < (first - empty) * 3 / 2, "{empty}, {first}, {second}");
}

// ------------------------------------------------------------------------------------------ the storage folder

#[test]
fn f21_a_storage_folder_is_made_or_refused_in_one_line() {
    let folder = folder(&[("file", "")]);
    let start = |storage: &Path| {
        let mut command = Command::new(PROGRAM);
        command.args(["--web.listen-address=127.0.0.1:0", "--storage.path"]).arg(storage);
        command.current_dir(folder.path()).stdout(Stdio::null()).stderr(Stdio::piped());
        command.spawn().expect("it starts")
    };
    for (storage, reason) in [
        (folder.path().join("file"), "File exists (os error 17)"),
        (folder.path().join("file/below"), "Not a directory (os error 20)"),
        // Nobody can write there, not even root.
        ("/proc/sys/promforest".into(), "No such file or directory (os error 2)"),
        ("/proc/self".into(), "No such file or directory (os error 2)"),
    ] {
        let output = start(&storage).wait_with_output().expect("it ends");
        assert_eq!(output.status.code(), Some(1), "{}", storage.display());
        let mut expected = String::new();
        writeln!(expected, "promforest: cannot use the storage folder {}: {reason}", storage.display())
            .expect("text");
        assert_eq!(String::from_utf8_lossy(&output.stderr), expected);
    }
    let missing = folder.path().join("a/b/c");
    let mut child = start(&missing);
    let until = Instant::now() + TIMEOUT;
    while !missing.is_dir() {
        assert!(Instant::now() < until && child.try_wait().expect("a child").is_none(), "it is not made");
        thread::sleep(Duration::from_millis(20));
    }
    child.kill().expect("it runs");
    child.wait().expect("it ends");
}
