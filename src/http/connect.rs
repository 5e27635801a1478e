//! Connections: direct or through a proxy, plain or encrypted.
//!
//! A proxy gets requests for `http` addresses itself; for `https` ones it is asked for a tunnel.

use super::config::{ProxyConfig, Via};
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

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// The proxy did not give what it was asked for.
#[derive(Debug, thiserror::Error)]
#[error("through the proxy {proxy}")]
struct ProxyError {
    /// Its address, without name and password.
    proxy: Uri,
    source: Cause,
}

/// Which requests take which proxy.
#[derive(Debug)]
pub struct Proxies {
    matcher: Option<Matcher>,
    connect_header: HeaderMap,
}

impl Proxies {
    /// As configured; the environment is read now.
    pub fn new(config: &ProxyConfig) -> Self {
        let matcher = match &config.via {
            Via::Direct => None,
            Via::Url { url, no_proxy } => {
                Some(Matcher::builder().all(url.expose()).no(no_proxy.as_str()).build())
            }
            Via::Environment => Some(Matcher::from_env()),
        };
        Self { matcher, connect_header: config.connect_header.clone() }
    }

    fn intercept(&self, uri: &Uri) -> Option<Intercept> {
        self.matcher.as_ref()?.intercept(uri)
    }

    /// What a request shows to the proxy that passes it on; a tunnel's proxy does not see the request.
    pub fn authorization(&self, uri: &Uri) -> Option<HeaderValue> {
        if uri.scheme_str() == Some("https") {
            return None;
        }
        self.intercept(uri)?.basic_auth().cloned()
    }
}

/// Makes the connections of one client.
#[derive(Clone)]
pub struct Connector {
    tcp: HttpConnector,
    tls: Arc<ClientConfig>,
    names: Arc<dyn ResolveServerName + Send + Sync>,
    proxies: Arc<Proxies>,
}

impl Connector {
    /// `server_name`, if given, is the name that every certificate at the end of the way has to be for.
    pub fn new(tls: ClientConfig, server_name: Option<ServerName<'static>>, proxies: Arc<Proxies>) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(Duration::from_secs(10)));
        tcp.set_keepalive(Some(Duration::from_secs(60)));
        let names: Arc<dyn ResolveServerName + Send + Sync> = match server_name {
            Some(name) => Arc::new(FixedServerNameResolver::new(name)),
            None => Arc::new(DefaultServerNameResolver::default()),
        };
        Self { tcp, tls: Arc::new(tls), names, proxies }
    }

    async fn connect(self, uri: Uri) -> Result<Connection, Cause> {
        let Some(proxy) = self.proxies.intercept(&uri) else {
            let io = HttpsConnector::new(self.tcp, self.tls, false, self.names).call(uri).await?;
            return Ok(Connection { io: Box::new(io), proxied: false });
        };
        let failed = |source| ProxyError { proxy: proxy.uri().clone(), source };
        let mut to_proxy = HttpsConnector::from((self.tcp, self.tls.clone()));
        if uri.scheme_str() != Some("https") {
            let io = to_proxy.call(proxy.uri().clone()).await.map_err(failed)?;
            return Ok(Connection { io: Box::new(io), proxied: true });
        }
        let mut headers = self.proxies.connect_header.clone();
        if let Some(authorization) = proxy.basic_auth() {
            headers.insert(PROXY_AUTHORIZATION, authorization.clone());
        }
        let tunnel = Tunnel::new(proxy.uri().clone(), to_proxy).with_headers(headers);
        let mut https = HttpsConnector::new(tunnel, self.tls, true, self.names);
        let io = https.call(uri).await.map_err(failed)?;
        Ok(Connection { io: Box::new(io), proxied: false })
    }
}

impl Service<Uri> for Connector {
    type Response = Connection;
    type Error = Cause;
    type Future = Pin<Box<dyn Future<Output = Result<Connection, Cause>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Cause>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect(uri))
    }
}

trait Io: Read + Write + Send + Unpin {}

impl<T: Read + Write + Send + Unpin> Io for T {}

/// A connection, whatever it consists of.
pub struct Connection {
    io: Box<dyn Io>,
    /// Does a proxy read the requests?
    proxied: bool,
}

impl connect::Connection for Connection {
    fn connected(&self) -> Connected {
        Connected::new().proxy(self.proxied)
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
