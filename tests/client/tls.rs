//! Certificates of servers and clients.

use super::*;

#[tokio::test]
async fn only_certificates_of_the_configured_authority_are_trusted() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let server = Server::always_ok(ours.identity("127.0.0.1").tls()).await;
    let folder = folder(&[("ca.pem", &ours.pem), ("other.pem", &theirs.pem)]);
    let trusting = client(folder.path(), "tls_config: {ca_file: ca.pem}");
    assert_eq!(get_ok(&trusting, &server.https()).await, "fine");

    let untrusted = format!(
        "request to {} failed: its certificate is signed by an authority that is not trusted: \
         set tls_config.ca_file: invalid peer certificate: UnknownIssuer",
        server.https()
    );
    let other = client(folder.path(), "tls_config: {ca_file: other.pem}");
    assert_eq!(get_error(&other, &server.https()).await, untrusted);
    assert_eq!(get_error(&Client::default(), &server.https()).await, untrusted);

    let insecure = client(folder.path(), "tls_config: {ca_file: other.pem, insecure_skip_verify: true}");
    assert_eq!(get_ok(&insecure, &server.https()).await, "fine");
    assert_eq!(server.requests().len(), 2);
}

#[tokio::test]
async fn a_new_authority_in_the_file_needs_no_reload() {
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let server = Server::always_ok(new.identity("127.0.0.1").tls()).await;
    let folder = folder(&[("ca.pem", &old.pem)]);
    let client = client(folder.path(), "tls_config: {ca_file: ca.pem}");
    assert!(get_error(&client, &server.https()).await.contains("UnknownIssuer"));
    fs::write(folder.path().join("ca.pem"), &new.pem).expect("writable");
    assert_eq!(get_ok(&client, &server.https()).await, "fine");
    fs::write(folder.path().join("ca.pem"), "half a certifi").expect("writable");
    let message = get_error(&client, &server.https()).await;
    assert_eq!(message, "tls_config: ca or ca_file: no certificate in it");
}

#[tokio::test]
async fn the_certificate_has_to_be_for_the_name() {
    let authority = Authority::new("authority");
    let server = Server::always_ok(authority.identity("prometheus.internal").tls()).await;
    let folder = folder(&[("ca.pem", &authority.pem)]);
    let by_host = client(folder.path(), "tls_config: {ca_file: ca.pem}");
    let message = get_error(&by_host, &server.https()).await;
    assert!(
        message.contains("for another name: if this is expected, set tls_config.server_name"),
        "{message}"
    );
    assert!(message.contains("prometheus.internal"), "{message}");
    let by_name = client(folder.path(), "tls_config: {ca_file: ca.pem, server_name: prometheus.internal}");
    assert_eq!(get_ok(&by_name, &server.https()).await, "fine");
}

#[tokio::test]
async fn a_server_may_require_a_client_certificate() {
    let (servers, clients) = (Authority::new("servers"), Authority::new("clients"));
    let tls = servers.identity("127.0.0.1").server(rustls::ALL_VERSIONS, Some(&clients));
    let server = Server::always_ok(Some(tls)).await;
    let (untrusted_identity, client_identity) =
        (servers.identity("promforest"), clients.identity("promforest"));
    let files = [
        ("ca.pem", &*servers.pem),
        ("cert.pem", &*untrusted_identity.cert),
        ("key.pem", &*untrusted_identity.key),
    ];
    let folder = folder(&files);

    let anonymous = client(folder.path(), "tls_config: {ca_file: ca.pem}");
    let message = get_error(&anonymous, &server.https()).await;
    assert!(message.contains("it may require a client certificate, or another one"), "{message}");
    let client =
        client(folder.path(), "tls_config: {ca_file: ca.pem, cert_file: cert.pem, key_file: key.pem}");
    let message = get_error(&client, &server.https()).await;
    assert!(message.contains("tls_config.cert_file and key_file"), "{message}");

    fs::write(folder.path().join("cert.pem"), &client_identity.cert).expect("writable");
    let message = get_error(&client, &server.https()).await;
    assert!(message.contains("the certificate and its key cannot be used"), "{message}");
    fs::write(folder.path().join("key.pem"), &client_identity.key).expect("writable");
    assert_eq!(get_ok(&client, &server.https()).await, "fine");
}

#[tokio::test]
async fn incompatible_versions_and_protocols_are_explained() {
    let authority = Authority::new("authority");
    let old = authority.identity("127.0.0.1").server(&[&version::TLS12], None);
    let server = Server::always_ok(Some(old)).await;
    let folder = folder(&[("ca.pem", &authority.pem)]);
    let new = client(folder.path(), "tls_config: {ca_file: ca.pem, min_version: TLS13}");
    let message = get_error(&new, &server.https()).await;
    assert!(message.contains("ProtocolVersion"), "{message}");
    let both = client(folder.path(), "tls_config: {ca_file: ca.pem, max_version: TLS12}");
    assert_eq!(get_ok(&both, &server.https()).await, "fine");

    let unencrypted = Server::always_ok(None).await;
    let message = get_error(&both, &unencrypted.https()).await;
    assert!(message.contains("it does not speak TLS: the URL may need http://"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn match_reads_an_encrypted_page() {
    let authority = Authority::new("authority");
    let server = Server::start(authority.identity("127.0.0.1").tls(), |_, _| {
        response_with(200, "node_network_receive_bytes_total{device=\"eth0\"} 1\n")
    })
    .await;
    let folder = folder(&[("ca.pem", &authority.pem)]);
    let run = |store: &Path| {
        std::process::Command::new(env!("CARGO_BIN_EXE_promforest"))
            .args(["match", "--url", &server.https().to_string()])
            .env("SSL_CERT_FILE", store)
            .env_remove("SSL_CERT_DIR")
            .output()
            .expect("the program runs")
    };
    let output = run(&folder.path().join("ca.pem"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("eth0"));
}

#[test]
fn a_reload_with_a_broken_authority_changes_nothing() {
    let authority = Authority::new("authority");
    let config =
        "remote_write:\n  - url: https://127.0.0.1:1/\n    tls_config: {ca_file: ca.pem}\nremote_read: []\n";
    let folder = folder(&[("ca.pem", &authority.pem), ("promforest.yml", config)]);
    let address = format!("127.0.0.1:{}", support::free_port());
    let file = folder.path().join("promforest.yml").display().to_string();
    let args = [
        format!("--web.listen-address={address}"),
        format!("--config.file={file}"),
        "--web.enable-lifecycle".into(),
    ];
    let program = Path::new(env!("CARGO_BIN_EXE_promforest"));
    let mut process = support::Process::start("promforest", program, &args, folder.path());
    support::wait("healthy", TIMEOUT, &mut [&mut process], || {
        support::http::get(&address, "/-/healthy").map_err(|error| error.to_string())
    });
    let reload = || support::http::post(&address, "/-/reload").expect("an answer");
    assert_eq!(reload().status, 200);
    fs::write(folder.path().join("ca.pem"), "nothing").expect("writable");
    let failed_reload = reload();
    assert_eq!(failed_reload.status, 500);
    let message = "promforest.yml:3: remote_write[0].tls_config: ca or ca_file: no certificate in it";
    assert!(failed_reload.body.contains(message), "{}", failed_reload.body);
    fs::write(folder.path().join("ca.pem"), &authority.pem).expect("writable");
    assert_eq!(reload().status, 200);
    process.kill();
}
