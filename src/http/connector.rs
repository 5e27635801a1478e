//! Opens connections: direct or through a proxy, with or without TLS.
//!
//! A proxy receives requests to `http` URLs itself. For `https` URLs it opens a tunnel.

use super::config::{ProxyConfig, ProxyMode};
use crate::error::BoxError;
use hyper::Uri;
use hyper::header::{HeaderMap, HeaderValue, PROXY_AUTHORIZATION};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::{DefaultServerNameResolver, FixedServerNameResolver, HttpsConnector, ResolveServerName};
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{self, Connected, HttpConnector};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tower_service::Service;

/// A connection through a proxy failed.
#[derive(Debug, thiserror::Error)]
#[error("through the proxy {proxy}")]
struct ProxyError {
    /// The proxy's URL without credentials.
    proxy: Uri,
    source: BoxError,
}

/// Finds the proxy of a request.
#[derive(Debug)]
pub struct ProxyResolver {
    matcher: Option<Matcher>,
    connect_header: HeaderMap,
}

impl ProxyResolver {
    /// A resolver with this configuration; reads the environment variables if they are configured.
    pub fn new(config: &ProxyConfig) -> Self {
        let matcher = match &config.mode {
            ProxyMode::Direct => None,
            ProxyMode::Url { url, no_proxy } => {
                Some(Matcher::builder().all(url.expose()).no(no_proxy.as_str()).build())
            }
            ProxyMode::Environment => Some(Matcher::from_env()),
        };
        Self { matcher, connect_header: config.connect_header.clone() }
    }

    fn intercept(&self, uri: &Uri) -> Option<Intercept> {
        self.matcher.as_ref()?.intercept(uri)
    }

    /// The `Proxy-Authorization` header of a request that a proxy forwards; none for a tunnel, whose proxy does not see
    /// the request.
    pub fn authorization(&self, uri: &Uri) -> Option<HeaderValue> {
        if uri.scheme_str() == Some("https") {
            return None;
        }
        self.intercept(uri)?.basic_auth().cloned()
    }
}

/// Opens the connections of one client.
#[derive(Clone)]
pub struct Connector {
    tcp: HttpConnector,
    tls: Arc<ClientConfig>,
    server_name_resolver: Arc<dyn ResolveServerName + Send + Sync>,
    proxy_resolver: Arc<ProxyResolver>,
}

impl Connector {
    /// A connector. Server certificates must be valid for `server_name`, or for the URL's host if absent.
    pub fn new(
        tls: ClientConfig,
        server_name: Option<ServerName<'static>>,
        proxy_resolver: Arc<ProxyResolver>,
    ) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(Duration::from_secs(10)));
        tcp.set_keepalive(Some(Duration::from_secs(60)));
        let server_name_resolver: Arc<dyn ResolveServerName + Send + Sync> = match server_name {
            Some(name) => Arc::new(FixedServerNameResolver::new(name)),
            None => Arc::new(DefaultServerNameResolver::default()),
        };
        Self { tcp, tls: Arc::new(tls), server_name_resolver, proxy_resolver }
    }

    async fn connect(self, uri: Uri) -> Result<Connection, BoxError> {
        let Some(proxy) = self.proxy_resolver.intercept(&uri) else {
            let io =
                HttpsConnector::new(self.tcp, self.tls, false, self.server_name_resolver).call(uri).await?;
            return Ok(Connection { io: Box::new(io), is_proxied: false });
        };
        let to_error = |source| ProxyError { proxy: proxy.uri().clone(), source };
        let mut to_proxy = HttpsConnector::from((self.tcp, self.tls.clone()));
        if uri.scheme_str() != Some("https") {
            let io = to_proxy.call(proxy.uri().clone()).await.map_err(to_error)?;
            return Ok(Connection { io: Box::new(io), is_proxied: true });
        }
        let mut headers = self.proxy_resolver.connect_header.clone();
        if let Some(authorization) = proxy.basic_auth() {
            headers.insert(PROXY_AUTHORIZATION, authorization.clone());
        }
        let tunnel = Tunnel::new(proxy.uri().clone(), to_proxy).with_headers(headers);
        let mut https = HttpsConnector::new(tunnel, self.tls, true, self.server_name_resolver);
        let io = https.call(uri).await.map_err(to_error)?;
        Ok(Connection { io: Box::new(io), is_proxied: false })
    }
}

impl Service<Uri> for Connector {
    type Response = Connection;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Connection, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect(uri))
    }
}

trait Io: Read + Write + Send + Unpin {}

impl<T: Read + Write + Send + Unpin> Io for T {}

/// A connection of any kind.
pub struct Connection {
    io: Box<dyn Io>,
    /// True if a proxy receives the requests.
    is_proxied: bool,
}

impl connect::Connection for Connection {
    fn connected(&self) -> Connected {
        Connected::new().proxy(self.is_proxied)
    }
}

impl Read for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl Write for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }
}
