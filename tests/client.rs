//! The HTTP client against real servers: TLS, credentials, tokens, proxies, redirects. Each client is
//! made from the text of a configuration file.

#[path = "support/mod.rs"]
mod support;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Method;
use hyper::header::{AUTHORIZATION, HeaderMap, LOCATION, PROXY_AUTHORIZATION};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use promforest::error::chain;
use promforest::http::Url;
use promforest::http::client::{BufferedResponse, Client, Error, Request};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ServerConfig, SupportedProtocolVersion, version};
use std::convert::Infallible;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use support::client::{Authority, Identity, client, folder};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

const TIMEOUT: Duration = Duration::from_secs(10);

impl Identity {
    /// A server with this certificate, that wants one of `clients` if there is one.
    fn server(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        clients: Option<&Authority>,
    ) -> ServerConfig {
        let crypto = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(crypto.clone())
            .with_protocol_versions(versions)
            .expect("versions");
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(authority) => builder.with_client_cert_verifier(
                WebPkiClientVerifier::builder_with_provider(authority.roots(), crypto)
                    .build()
                    .expect("roots"),
            ),
        };
        let cert = CertificateDer::from_pem_slice(self.cert.as_bytes()).expect("PEM");
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).expect("PEM");
        builder.with_single_cert(vec![cert], key).expect("they fit")
    }

    fn tls(&self) -> Option<ServerConfig> {
        Some(self.server(rustls::ALL_VERSIONS, None))
    }
}

/// A request as a server saw it.
#[derive(Clone, Debug)]
struct ReceivedRequest {
    /// The method and the target, as in `GET /path`.
    line: String,
    headers: HeaderMap,
    body: String,
}

impl ReceivedRequest {
    fn header(&self, name: impl AsRef<str>) -> Option<&str> {
        self.headers.get(name.as_ref()).map(|value| value.to_str().expect("text"))
    }
}

type TestResponse = hyper::Response<Full<Bytes>>;

fn response_with(status: u16, body: &str) -> TestResponse {
    let body = Full::new(Bytes::from(body.to_string()));
    hyper::Response::builder().status(status).body(body).expect("an answer")
}

fn redirect(status: u16, location: impl ToString) -> TestResponse {
    let mut response = response_with(status, "");
    response.headers_mut().insert(LOCATION, location.to_string().parse().expect("a location"));
    response
}

/// A server of one test; `answer` gets the number of the request, from 0.
struct Server {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<ReceivedRequest>>>,
}

impl Server {
    async fn start(
        tls: Option<ServerConfig>,
        respond: impl Fn(usize, &ReceivedRequest) -> TestResponse + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let server = Self { address: listener.local_addr().expect("bound"), requests: Arc::default() };
        let acceptor = tls.map(|tls| TlsAcceptor::from(Arc::new(tls)));
        let (respond, requests) = (Arc::new(respond), server.requests.clone());
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (acceptor, respond, requests) = (acceptor.clone(), respond.clone(), requests.clone());
                tokio::spawn(async move {
                    match acceptor {
                        None => serve(tcp, requests, &*respond).await,
                        Some(acceptor) => {
                            // Clients that trust nobody are part of the tests.
                            if let Ok(tls) = acceptor.accept(tcp).await {
                                serve(tls, requests, &*respond).await;
                            }
                        }
                    }
                });
            }
        });
        server
    }

    /// Says `fine` to everyone.
    async fn always_ok(tls: Option<ServerConfig>) -> Self {
        Self::start(tls, |_, _| response_with(200, "fine")).await
    }

    fn url(&self, scheme: &str, host: &str, path: &str) -> Url {
        format!("{scheme}://{host}:{}{path}", self.address.port()).parse().expect("a URL")
    }

    fn http(&self) -> Url {
        self.url("http", "127.0.0.1", "/")
    }

    fn https(&self) -> Url {
        self.url("https", "127.0.0.1", "/")
    }

    fn requests(&self) -> Vec<ReceivedRequest> {
        self.requests.lock().expect("no panic").clone()
    }
}

async fn serve<A>(
    io: impl AsyncRead + AsyncWrite + Unpin,
    requests: Arc<Mutex<Vec<ReceivedRequest>>>,
    respond: &A,
) where
    A: Fn(usize, &ReceivedRequest) -> TestResponse,
{
    let service = service_fn(|request: hyper::Request<hyper::body::Incoming>| {
        let requests = requests.clone();
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.expect("a body").to_bytes();
            let request = ReceivedRequest {
                line: format!("{} {}", head.method, head.uri),
                headers: head.headers,
                body: String::from_utf8_lossy(&body).into_owned(),
            };
            let mut requests = requests.lock().expect("no panic");
            let response = respond(requests.len(), &request);
            requests.push(request);
            Ok::<_, Infallible>(response)
        }
    });
    // A client may go away.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(io), service).await;
}

/// A proxy that opens tunnels to where `to` says, whatever it is asked for; or none, for `Err`.
async fn start_tunnel_proxy(to: Result<SocketAddr, &'static str>) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let connect_heads: Arc<Mutex<Vec<String>>> = Arc::default();
    let log = connect_heads.clone();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(client.read_u8().await.expect("a question"));
            }
            log.lock().expect("no panic").push(String::from_utf8(head).expect("text"));
            match to {
                Err(status) => {
                    client.write_all(format!("HTTP/1.1 {status}\r\n\r\n").as_bytes()).await.expect("open");
                }
                Ok(to) => {
                    client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.expect("open");
                    let mut server = TcpStream::connect(to).await.expect("the server");
                    tokio::spawn(async move {
                        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                    });
                }
            }
        }
    });
    (address, connect_heads)
}

fn client_with(keys: &str) -> Client {
    client(folder(&[]).path(), keys)
}

async fn get(client: &Client, url: &Url) -> Result<BufferedResponse, Error> {
    client.get(url, TIMEOUT, 1 << 20).await
}

async fn send(
    client: &Client,
    method: Method,
    url: &Url,
    body: &'static str,
) -> Result<BufferedResponse, Error> {
    let (url, headers, body) = (url.clone(), HeaderMap::new(), Bytes::from(body));
    client.request(Request { method, url, headers, body, timeout: TIMEOUT, limit: 1 << 20 }).await
}

/// The body of an answer that has to be 200.
async fn get_ok(client: &Client, url: &Url) -> String {
    let answer = get(client, url).await.unwrap_or_else(|error| panic!("{url}: {}", chain(&error)));
    assert_eq!(answer.status, 200, "{url}");
    String::from_utf8(answer.body.to_vec()).expect("text")
}

async fn get_error(client: &Client, url: &Url) -> String {
    chain(&get(client, url).await.expect_err("no answer"))
}

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

#[tokio::test]
async fn credentials_and_headers_are_sent_with_every_request() {
    let server = Server::always_ok(None).await;
    let folder = folder(&[("password", "hunter2\n"), ("token", "first\n")]);
    let basic = client(
        folder.path(),
        "basic_auth: {username: promforest, password_file: password}\nheaders: {X-Scope-OrgID: '42'}",
    );
    get_ok(&basic, &server.http()).await;
    let bearer = client(folder.path(), "authorization: {credentials_file: token}");
    get_ok(&bearer, &server.http()).await;
    fs::write(folder.path().join("token"), "second").expect("writable");
    get_ok(&bearer, &server.http()).await;
    get_ok(&client_with("authorization: {type: Token, credentials: third}"), &server.http()).await;

    let seen = server.requests();
    let authorizations: Vec<_> =
        seen.iter().map(|seen| seen.header(AUTHORIZATION).expect("a header")).collect();
    // printf promforest:hunter2 | base64
    assert_eq!(
        authorizations,
        ["Basic cHJvbWZvcmVzdDpodW50ZXIy", "Bearer first", "Bearer second", "Token third"]
    );
    assert_eq!((seen[0].header("x-scope-orgid"), seen[1].header("x-scope-orgid")), (Some("42"), None));

    fs::remove_file(folder.path().join("token")).expect("it is there");
    let message = get_error(&bearer, &server.http()).await;
    assert!(message.starts_with("cannot read ") && message.contains("token: No such file"), "{message}");
    fs::write(folder.path().join("token"), "two\nlines").expect("writable");
    assert_eq!(
        get_error(&bearer, &server.http()).await,
        "authorization contains a character that a header cannot have"
    );
    assert_eq!(server.requests().len(), 4);
}

/// Tokens 0, 1, 2 ..., each for `seconds`.
async fn token_endpoint(seconds: u64) -> Server {
    Server::start(None, move |i, _| {
        response_with(
            200,
            &format!(r#"{{"access_token": "token{i}", "token_type": "bearer", "expires_in": {seconds}}}"#),
        )
    })
    .await
}

fn oauth2(endpoint: &Server, more: &str) -> Client {
    let url = endpoint.url("http", "127.0.0.1", "/token");
    client_with(&format!("oauth2: {{client_id: 'a b', client_secret: 'p&w', token_url: '{url}'{more}}}"))
}

#[tokio::test]
async fn a_token_is_fetched_once_and_again_before_it_ends() {
    let (endpoint, server) = (token_endpoint(11).await, Server::always_ok(None).await);
    let client = oauth2(&endpoint, ", scopes: [metrics.write, b], endpoint_params: {audience: 'x/y'}");
    get_ok(&client, &server.http()).await;
    get_ok(&client, &server.http()).await;
    // Ten seconds before its end a token is not used any more.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    get_ok(&client, &server.http()).await;

    let authorizations: Vec<_> =
        server.requests().iter().map(|seen| seen.header(AUTHORIZATION).map(str::to_string)).collect();
    let token = |i: usize| Some(format!("Bearer token{i}"));
    assert_eq!(authorizations, [token(0), token(0), token(1)]);
    let token_requests = endpoint.requests();
    assert_eq!(token_requests.len(), 2);
    assert_eq!(token_requests[0].line, "POST /token");
    assert_eq!(token_requests[0].body, "grant_type=client_credentials&scope=metrics.write+b&audience=x%2Fy");
    // printf a+b:p%%26w | base64
    assert_eq!(token_requests[0].header(AUTHORIZATION), Some("Basic YStiOnAlMjZ3"));
}

#[tokio::test]
async fn a_token_that_is_withdrawn_is_replaced() {
    let endpoint = token_endpoint(3600).await;
    let server = Server::start(None, |i, seen| {
        let withdrawn = i > 0 && seen.header(AUTHORIZATION) == Some("Bearer token0");
        response_with(if withdrawn { 401 } else { 200 }, "")
    })
    .await;
    let client = oauth2(&endpoint, "");
    get_ok(&client, &server.http()).await;
    get_ok(&client, &server.http()).await;
    assert_eq!((server.requests().len(), endpoint.requests().len()), (3, 2));

    let never = Server::start(None, |_, _| response_with(401, "no")).await;
    let client = oauth2(&endpoint, "");
    assert_eq!(get(&client, &never.http()).await.expect("an answer").status, 401);
    assert_eq!(never.requests().len(), 1, "a fresh token that is refused is not replaced at once");
    assert_eq!(get(&client, &never.http()).await.expect("an answer").status, 401);
    assert_eq!(never.requests().len(), 3);
}

#[tokio::test]
async fn an_endpoint_may_want_the_secret_in_the_form() {
    let endpoint = Server::start(None, |_, seen| {
        let in_form = seen.body.ends_with("&client_id=a+b&client_secret=p%26w");
        if in_form {
            response_with(200, r#"{"access_token": "x", "expires_in": "60"}"#)
        } else {
            response_with(401, "")
        }
    })
    .await;
    let server = Server::always_ok(None).await;
    get_ok(&oauth2(&endpoint, ""), &server.http()).await;
    assert_eq!(server.requests()[0].header(AUTHORIZATION), Some("Bearer x"));

    for (status, body, reason) in [
        (403, "unknown client\nsecond line", "403 Forbidden: unknown client"),
        (200, "{}", "the response has no token"),
        (302, "", "302 Found: "),
    ] {
        let endpoint = Server::start(None, move |_, _| response_with(status, body)).await;
        let message = get_error(&oauth2(&endpoint, ""), &server.http()).await;
        assert_eq!(
            message,
            format!("no token from {}: {reason}", endpoint.url("http", "127.0.0.1", "/token"))
        );
    }
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn a_proxy_passes_on_what_is_not_encrypted() {
    let proxy = Server::always_ok(None).await;
    let client = client_with(&format!(
        "proxy_url: http://me:hunter2@{}\nno_proxy: 127.0.0.1\nbasic_auth: {{username: a}}",
        proxy.address
    ));
    get_ok(&client, &"http://prometheus.internal:9090/a?b=c".parse().expect("a URL")).await;
    let seen = proxy.requests().remove(0);
    assert_eq!(seen.line, "GET http://prometheus.internal:9090/a?b=c");
    assert_eq!(seen.header("host"), Some("prometheus.internal:9090"));
    // printf me:hunter2 | base64; printf a: | base64
    assert_eq!(seen.header(PROXY_AUTHORIZATION), Some("Basic bWU6aHVudGVyMg=="));
    assert_eq!(seen.header(AUTHORIZATION), Some("Basic YTo="));

    let near = Server::always_ok(None).await;
    get_ok(&client, &near.http()).await;
    assert_eq!((near.requests().len(), proxy.requests().len()), (1, 1));
    assert_eq!(near.requests()[0].header(PROXY_AUTHORIZATION), None);
}

#[tokio::test]
async fn a_proxy_opens_tunnels_for_what_is_encrypted() {
    let authority = Authority::new("authority");
    let server = Server::always_ok(authority.identity("prometheus.internal").tls()).await;
    let folder = folder(&[("ca.pem", &authority.pem)]);
    let client_through = |proxy: SocketAddr| {
        client(
            folder.path(),
            &format!(
                "tls_config: {{ca_file: ca.pem}}\nproxy_url: http://me:hunter2@{proxy}\n\
                 proxy_connect_header: {{X-Key: [one, two]}}\nbasic_auth: {{username: a}}"
            ),
        )
    };
    let url = "https://prometheus.internal:9090/a".parse().expect("a URL");
    let (proxy, connect_heads) = start_tunnel_proxy(Ok(server.address)).await;
    assert_eq!(get_ok(&client_through(proxy), &url).await, "fine");
    let connect_heads = connect_heads.lock().expect("no panic").join("");
    assert!(connect_heads.starts_with("CONNECT prometheus.internal:9090 HTTP/1.1\r\n"), "{connect_heads}");
    let connect_heads = connect_heads.to_lowercase();
    for line in ["proxy-authorization: basic bwu6ahvudgvymg==", "x-key: one", "x-key: two"] {
        assert!(connect_heads.contains(&format!("{line}\r\n")), "{connect_heads}");
    }
    assert!(!connect_heads.contains("\r\nauthorization:"), "{connect_heads}");
    let seen = server.requests().remove(0);
    assert_eq!((&*seen.line, seen.header(PROXY_AUTHORIZATION)), ("GET /a", None));
    assert_eq!(seen.header(AUTHORIZATION), Some("Basic YTo="));

    let (proxy, _) = start_tunnel_proxy(Err("403 Forbidden")).await;
    let message = get_error(&client_through(proxy), &url).await;
    assert!(message.contains(&format!("through the proxy http://{proxy}/: tunnel error")), "{message}");
    assert!(!message.contains("hunter2"), "{message}");
}

#[tokio::test]
async fn a_get_follows_redirects() {
    let other = Server::start(None, |_, _| response_with(200, "there")).await;
    let there = other.url("http", "127.0.0.1", "/there");
    let server = Server::start(None, move |_, seen| match seen.line.as_str() {
        "GET /a/b" => redirect(301, "c"),
        "GET /a/c" => redirect(302, "/d?e=f"),
        "GET /d?e=f" => redirect(308, &there),
        _ => response_with(404, ""),
    })
    .await;
    assert_eq!(get_ok(&Client::default(), &server.url("http", "127.0.0.1", "/a/b")).await, "there");

    let without_redirects = client_with("follow_redirects: false");
    let answer = get(&without_redirects, &server.url("http", "127.0.0.1", "/a/b")).await.expect("an answer");
    assert_eq!(answer.status, 301);

    let redirect_loop = Server::start(None, |_, _| redirect(302, "/")).await;
    let message = get_error(&Client::default(), &redirect_loop.http()).await;
    assert!(message.ends_with("redirects more than 10 times"), "{message}");
    assert_eq!(redirect_loop.requests().len(), 11);
    let nowhere = Server::start(None, |_, _| redirect(302, "gopher://somewhere/")).await;
    let message = get_error(&Client::default(), &nowhere.http()).await;
    assert!(message.contains("redirects to an invalid URL: \"gopher://somewhere/\" is not"), "{message}");
}

#[tokio::test]
async fn b85_a_post_is_repeated_or_fails_and_never_becomes_a_get() {
    let server = Server::start(None, |_, seen| match seen.line.as_str() {
        "POST /307" => redirect(307, "/there"),
        "PUT /308" => redirect(308, "/there"),
        "POST /302" => redirect(302, "/there"),
        _ => response_with(200, ""),
    })
    .await;
    let url = |path: &str| server.url("http", "127.0.0.1", path);
    let client = Client::default();
    assert_eq!(send(&client, Method::POST, &url("/307"), "body").await.expect("an answer").status, 200);
    assert_eq!(send(&client, Method::PUT, &url("/308"), "other").await.expect("an answer").status, 200);
    let seen: Vec<(String, String)> =
        server.requests().into_iter().map(|seen| (seen.line, seen.body)).collect();
    let line = |line: &str, body: &str| (line.to_string(), body.to_string());
    assert_eq!(
        seen,
        [
            line("POST /307", "body"),
            line("POST /there", "body"),
            line("PUT /308", "other"),
            line("PUT /there", "other")
        ]
    );
    let message = chain(&send(&client, Method::POST, &url("/302"), "body").await.expect_err("no answer"));
    let expected =
        format!("{} answered 302 Found: POST requests are not redirected to \"/there\"", url("/302"));
    assert_eq!(message, expected);
    assert_eq!(server.requests().len(), 5);
}

#[tokio::test]
async fn b85_another_host_gets_no_credentials() {
    let stranger = Server::always_ok(None).await;
    let there = stranger.url("http", "localhost", "/there");
    let back = stranger.url("http", "127.0.0.1", "/back");
    let server = Server::start(None, move |_, seen| {
        if seen.line == "GET /near" { redirect(307, &back) } else { redirect(307, &there) }
    })
    .await;
    let client = client_with("basic_auth: {username: a}\nheaders: {X-Key: hunter2}");
    get_ok(&client, &server.url("http", "127.0.0.1", "/far")).await;
    get_ok(&client, &server.url("http", "127.0.0.1", "/near")).await;
    let credential_headers = |seen: &ReceivedRequest| {
        (seen.headers.contains_key(AUTHORIZATION), seen.headers.contains_key("x-key"))
    };
    assert_eq!(server.requests().iter().map(credential_headers).collect::<Vec<_>>(), [(true, true); 2]);
    assert_eq!(
        stranger.requests().iter().map(credential_headers).collect::<Vec<_>>(),
        [(false, false), (true, true)]
    );
}

#[tokio::test]
async fn the_limit_and_the_timeout_hold() {
    let server = Server::start(None, |_, _| response_with(200, &"x".repeat(1000))).await;
    let client = Client::default();
    assert_eq!(client.get(&server.http(), TIMEOUT, 1000).await.expect("an answer").body.len(), 1000);
    let error = client.get(&server.http(), TIMEOUT, 999).await.expect_err("too long");
    assert!(matches!(error, Error::TooLarge { limit: 999, .. }), "{error}");
    let (silent, _connect_heads) = start_tunnel_proxy(Ok(server.address)).await;
    let url = format!("https://{silent}/").parse().expect("a URL");
    let error = client.get(&url, Duration::from_millis(100), 1000).await.expect_err("too late");
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
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
