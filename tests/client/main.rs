//! The HTTP client against real servers: TLS, credentials, tokens, proxies, redirects. Each client is
//! made from the text of a configuration file.

#[path = "../support/mod.rs"]
mod support;

mod credentials;
mod routes;
mod tls;

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
                    client
                        .write_all(format!("HTTP/1.1 {status}\r\n\r\n").as_bytes())
                        .await
                        .expect("the connection is open");
                }
                Ok(to) => {
                    client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.expect("the connection is open");
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
