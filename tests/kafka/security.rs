//! Encrypted connections and credentials.

use crate::cluster::{Cluster, TIMEOUT, spawn_router};
use crate::support::client::Authority;
use crate::support::kafka::Broker;
use crate::support::{Process, free_port, http, now_ms, remote_write, wait};
use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

/// The passwords of the user `promforest`: of PLAIN, and of SCRAM.
const PASSWORDS: [&str; 2] = ["plain-hunter2", "scram-hunter2"];
/// Time in which a client that cannot connect tries again.
const RETRY_TIME: Duration = Duration::from_secs(8);
/// Most processor time of such a client meanwhile, its start included.
const MAX_CPU_SECONDS: f64 = 3.0;

/// Starts a broker with a listener for credentials, and one for client certificates. Returns their ports too. The folder
/// has the files of the clients.
fn start_broker(folder: &Path) -> (Broker, [u16; 2]) {
    let (authority, other) = (Authority::new("authority"), Authority::new("other"));
    let (server, client) = (authority.identity("127.0.0.1"), authority.identity("client"));
    let write = |name: &str, text: &str| fs::write(folder.join(name), text).expect("writable");
    write("ca.pem", &authority.pem);
    write("other.pem", &other.pem);
    write("server.pem", &format!("{}{}", server.key, server.cert));
    write("client.pem", &client.cert);
    write("client.key", &client.key);
    write("password", &format!("{}\n", PASSWORDS[1]));
    let ports = [free_port(), free_port()];
    let listeners = [("SECURE", "SASL_SSL", ports[0]), ("MUTUAL", "SSL", ports[1])];
    let properties = format!(
        "ssl.keystore.type=PEM\n\
         ssl.keystore.location={folder}/server.pem\n\
         ssl.truststore.type=PEM\n\
         ssl.truststore.location={folder}/ca.pem\n\
         listener.name.mutual.ssl.client.auth=required\n\
         listener.name.secure.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-512\n\
         listener.name.secure.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \
         user_promforest=\"{}\";\n\
         listener.name.secure.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule \
         required;\n",
        PASSWORDS[0],
        folder = folder.display()
    );
    let user = format!("SCRAM-SHA-512=[name=promforest,password={}]", PASSWORDS[1]);
    (Broker::start_with(folder, &listeners, &properties, &["--add-scram", &user]), ports)
}

/// Processor time of a process, in seconds.
fn cpu_seconds(process: &Process) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", process.id())).expect("the program runs");
    let (_, fields) = stat.rsplit_once(") ").expect("a name in parentheses");
    let ticks = fields.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<f64>().expect("a number"));
    ticks.sum::<f64>() / 100.0
}

#[test]
fn rows_are_scored_over_encrypted_connections_with_credentials() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().to_path_buf();
    let (broker, [secure, mutual]) = start_broker(&path);
    let tls = |keys: &str| format!("tls_config: {{{keys}}}");
    let sasl = |mechanism: &str, password: &str| {
        format!("sasl: {{mechanism: {mechanism}, username: promforest, {password}}}")
    };
    let trusted = tls(&format!("ca_file: {}/ca.pem", path.display()));
    let scram = sasl("SCRAM-SHA-512", &format!("password_file: {}/password", path.display()));
    let plain = sasl("PLAIN", &format!("password: {}", PASSWORDS[0]));
    let secure_brokers = format!("brokers: ['127.0.0.1:{secure}']");
    let mutual_brokers = format!("brokers: ['127.0.0.1:{mutual}']");

    // The router and the member of the cluster use SCRAM.
    let connection = format!("{secure_brokers}, {trusted}, {scram}");
    let mut cluster = Cluster::start_beside(folder, broker, &connection, "producer");
    let mut member = cluster.start_member("pf-0");
    cluster.send_rows(30);
    cluster.wait_for_scores(&mut [&mut member]);

    // Clients that cannot connect, each with a part of the line that it logs; and some that can.
    let faults = [
        (
            "password",
            format!("{secure_brokers}, {trusted}, {}", sasl("SCRAM-SHA-512", "password: hunter2")),
            "section=kafka.sasl",
            "uthentication failed",
        ),
        (
            "plain-password",
            format!("{secure_brokers}, {trusted}, {}", sasl("PLAIN", "password: hunter2")),
            "section=kafka.sasl",
            "uthentication failed",
        ),
        (
            "mechanism",
            format!("{secure_brokers}, {trusted}, {}", sasl("SCRAM-SHA-256", "password: hunter2")),
            "section=kafka.sasl",
            "PLAIN,SCRAM-SHA-512",
        ),
        (
            "authority",
            format!("{secure_brokers}, {}, {scram}", tls(&format!("ca_file: {}/other.pem", path.display()))),
            "section=kafka.tls_config",
            "certificate verify failed",
        ),
        (
            "platform",
            format!("{secure_brokers}, {}, {scram}", tls("")),
            "section=kafka.tls_config",
            "certificate verify failed",
        ),
        (
            "name",
            format!("brokers: ['localhost:{secure}'], {trusted}, {scram}"),
            "section=kafka.tls_config",
            "certificate verify failed",
        ),
        ("no-tls", format!("{secure_brokers}, {plain}"), "section=kafka.tls_config", "closed by peer"),
        ("no-credentials", format!("{secure_brokers}, {trusted}"), "no answer of Kafka", "closed by peer"),
        ("no-certificate", format!("{mutual_brokers}, {trusted}"), "section=kafka.tls_config", "certificate"),
    ];
    let certificate =
        format!("ca_file: {0}/ca.pem, cert_file: {0}/client.pem, key_file: {0}/client.key", path.display());
    let working = [
        ("plain", format!("{secure_brokers}, {trusted}, {plain}")),
        ("mutual", format!("{mutual_brokers}, {}", tls(&certificate))),
        (
            "unverified",
            format!("brokers: ['localhost:{secure}'], {}, {scram}", tls("insecure_skip_verify: true")),
        ),
    ];
    let spawn = |name: &str, connection: &str| spawn_router(name, &path, connection, "");
    let mut routers: Vec<_> = faults.iter().map(|(name, connection, ..)| spawn(name, connection)).collect();
    let body = remote_write::body(vec![remote_write::series("load", 0, &[(now_ms(), 1.0)])]);
    for (name, connection) in &working {
        let (mut router, address) = spawn(name, connection);
        wait(name, TIMEOUT, &mut [&mut router], || match remote_write::post(&address, &body) {
            Ok(204) => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }
    for ((name, _, section, reason), (router, address)) in faults.iter().zip(&mut routers) {
        let log = router.log_file();
        wait(name, TIMEOUT, &mut [router], || {
            let log = fs::read_to_string(&log).map_err(|error| error.to_string())?;
            let is_named =
                |line: &str| line.contains("level=WARN") && line.contains(section) && line.contains(reason);
            if log.lines().any(is_named) { Ok(()) } else { Err(log) }
        });
        let answer = http::post_body(address, "/api/v1/write", "", &body).expect("a response");
        assert!(answer.status == 503 && answer.body.contains("Kafka does not answer"), "{name}: {answer:?}");
        assert_eq!(http::get(address, "/-/healthy").expect("a response").status, 200, "{name}");
        assert_eq!(http::get(address, "/-/ready").expect("a response").status, 503, "{name}");
    }
    thread::sleep(RETRY_TIME);
    for ((name, ..), (router, _)) in faults.iter().zip(&mut routers) {
        router.assert_running();
        let log = router.log();
        assert!(cpu_seconds(router) < MAX_CPU_SECONDS, "{name}: {} s\n{log}", cpu_seconds(router));
        assert!(log.lines().count() < 20, "{name}: {log}");
        assert!(!log.contains("hunter2"), "{name}: {log}");
    }

    // A member with a wrong password runs on, and says so.
    let config = fs::read_to_string(member.folder.path().join("promforest.yml")).expect("a file");
    let wrong = config.replace(&scram, &sasl("SCRAM-SHA-512", "password: hunter2"));
    member.write_file("promforest.yml", &wrong);
    let answer = http::post(&member.address(), "/-/reload").expect("a response");
    assert!(
        answer.status == 500 && answer.body.contains("a change of `kafka` needs a restart"),
        "{answer:?}"
    );
    member.kill();
    member.restart();
    member.wait_for_log("section=kafka.sasl");
    member.wait_for_metric("promforest_kafka_errors_total", |errors| errors > 0.0);
    for page in ["/api/v1/status/config", "/config"] {
        let page = http::get(&member.address(), page).expect("a page");
        assert!(
            page.status == 200 && page.body.contains("secret") && !page.body.contains("hunter2"),
            "{page:?}"
        );
    }
    assert!(!member.process.log().contains("hunter2"));

    // With the right one it goes on after the last commit.
    member.write_file("promforest.yml", &config);
    member.kill();
    cluster.send_rows(5);
    member.restart();
    cluster.wait_for_scores(&mut [&mut member]);
}
