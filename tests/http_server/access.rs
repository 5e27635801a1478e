//! Access control: TLS, client certificates, passwords, rate limit; and its files, which are read again.
//!
//! In `tests/data/web-config`, `NAME.good.yml` is valid, and `NAME.good.txt` is the output of `check web-config`;
//! `NAME.bad.yml` is invalid, and `NAME.bad.txt` is the text on standard error. `FILE` stands for the path, and
//! `FOLDER` for the folder of the file.

use crate::support::client::Authority;
use crate::support::prometheus::PrometheusApi;
use crate::support::remote_write::response_status;
use crate::support::sidecar::Sidecar;
use crate::support::{PROGRAM, each_version, free_port, http, wait};
use crate::{MAX_CONNECTIONS, ROOT, TIMEOUT, get_healthy, prometheus_beside};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use promforest::error::chain;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Output};

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
                .expect("the program runs");
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
    let page = authorized
        .get(&sidecar.url("https", "/metrics"), TIMEOUT, 1 << 20)
        .await
        .expect("the request is admitted");
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
    // A file without access control.
    sidecar.write_file("web.yml", "");
    sidecar.wait_for_log("tls_server_config cannot be added or removed by a reload");
    sidecar.write_file("key.pem", &first.key);
    sidecar.write_file("web.yml", tls);
    sidecar.wait_for_log("basic_auth_users cannot be added or removed by a reload");
    assert_eq!(status(&sidecar, "old.pem", "wrong").await, Some(401));
    let (_, page) = scrape(&sidecar, "old.pem", "secret").await.expect("the old file stays in force");
    let metric = |page: &str, name| http::metric(page, name, &[]);
    assert_eq!(metric(&page, "promforest_web_config_last_reload_successful"), Some(0.0));
    assert!(metric(&page, "promforest_web_config_reload_failures_total") >= Some(4.0));

    sidecar.write_file("cert.pem", &second.cert);
    sidecar.write_file("key.pem", &second.key);
    sidecar.write_file("web.yml", &format!("{tls}{}", basic_auth_users("another")));
    sidecar.wait_for_log("web configuration loaded");
    assert_eq!(status(&sidecar, "new.pem", "secret").await, Some(401), "the old password is none any more");
    assert_eq!(status(&sidecar, "old.pem", "another").await, None, "the old authority's certificate is gone");
    let (status, page) = scrape(&sidecar, "new.pem", "another").await.expect("the new file is in force");
    assert_eq!(status, 200);
    assert_eq!(metric(&page, "promforest_web_config_last_reload_successful"), Some(1.0));
    sidecar.process.assert_running();
}

#[test]
fn more_requests_than_the_limit_are_503_and_never_429() {
    let sidecar = Sidecar::start(&[("web.yml", "rate_limit: {interval: 1h, burst: 3}\n")]);
    let mut seen: Vec<u16> = (0..5).map(|_| sidecar.write_series(Vec::new()).expect("an answer")).collect();
    let mut stream = sidecar.connect();
    seen.extend([get_healthy(&mut stream)]);
    assert_eq!(seen, [204, 204, 204, 503, 503, 503]);
}

/// A client with a verified password is admitted while others try more passwords than there are connections.
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
