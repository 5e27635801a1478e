//! The HTTP API: one function answers each request.

use super::admin::AdminApi;
use super::engine::{EngineHandle, Readiness};
use super::pages::{self, Pages};
use super::reload::Reloader;
use crate::budget::{BudgetLease, ByteBudget};
use crate::http::request_body::BodyReceiver;
use crate::http::response::{self, Response};
use crate::http::server::RequestBody;
use crate::ingest::{self, AcceptedCounts, Metrics, WriteBody};
use crate::prom::wire::ProtocolVersion;
use crate::remote_read::server::RemoteReadServer;
use crate::snapshot::SnapshotStore;
use crate::telemetry::PageFormat;
use bytes::Bytes;
use hyper::header::{ACCEPT, ALLOW, CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::{Method, Request, StatusCode};
use prometheus_client::registry::Registry;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::watch;

/// Most bytes of all pages of `/metrics` that are being sent: a client may read slowly, and a page of many groups is large.
const MAX_METRICS_PAGES_BYTES: usize = 64 << 20;
/// The paths of the admin API.
const FEEDBACK: &str = "/api/v1/feedback";
const MAINTENANCE: &str = "/api/v1/maintenance";

/// State that the routes share.
#[derive(Clone)]
pub struct AppState {
    /// The engine.
    pub engine: EngineHandle,
    /// Receives the bodies of write requests within bounds.
    pub receiver: BodyReceiver,
    /// Answers remote read.
    pub remote_read_server: RemoteReadServer,
    /// Metrics of `/metrics`.
    pub metrics_registry: Arc<Registry>,
    /// Bytes of the pages of `/metrics` that are being sent.
    pub metrics_pages: ByteBudget,
    /// Metrics of write requests.
    pub ingest_metrics: Metrics,
    /// State of `/-/ready`.
    pub readiness: watch::Receiver<Readiness>,
    /// The snapshots; `/-/ready` reports their failures, and stays ready.
    pub snapshot_store: SnapshotStore,
    /// Reloads the configuration.
    pub reloader: Arc<Reloader>,
    /// True if `/-/reload` is enabled.
    pub enable_lifecycle: bool,
    /// The web pages.
    pub pages: Arc<Pages>,
    /// Answers feedback and maintenance, if enabled.
    pub admin: Option<AdminApi>,
}

/// Answers one request.
pub async fn handle_request(state: AppState, request: Request<RequestBody>) -> Response {
    let (head, body) = request.into_parts();
    match (&head.method, head.uri.path()) {
        (&Method::POST, "/api/v1/write") => {
            let (version, result) = match ingest::negotiate(&head.headers) {
                Ok(version) => (Some(version), write(&state, version, body).await),
                Err(error) => (None, Err(error)),
            };
            state.ingest_metrics.count_answered(version, &result);
            ingest::response(version, &result)
        }
        (&Method::POST, "/api/v1/read") => state.remote_read_server.handle(body, &state.engine).await,
        (&Method::GET | &Method::HEAD, "/metrics") => {
            state.ingest_metrics.set_in_flight(state.receiver.in_flight());
            metrics_page(&state.metrics_registry, &state.metrics_pages, &head.headers)
        }
        (&Method::GET | &Method::HEAD, "/-/healthy") => {
            response::text(StatusCode::OK, "promforest is healthy")
        }
        (&Method::GET | &Method::HEAD, "/-/ready") => {
            let readiness = state.readiness.borrow().clone();
            let missing_senders = state.reloader.missing_senders().map(String::from);
            let overdue = state.engine.progress().overdue_message(Instant::now());
            let is_ready = readiness.ready && missing_senders.is_none() && overdue.is_none();
            let code = if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            let lines: Vec<String> = [readiness.text]
                .into_iter()
                .chain(missing_senders)
                .chain(overdue)
                .chain(state.snapshot_store.failure_message())
                .collect();
            response::text(code, &lines.join("\n"))
        }
        (&Method::POST | &Method::PUT, "/-/reload") if !state.enable_lifecycle => response::text(
            StatusCode::FORBIDDEN,
            "reloads by HTTP are not enabled: start with --web.enable-lifecycle, or send SIGHUP",
        ),
        (&Method::POST | &Method::PUT, "/-/reload") => match state.reloader.reload_detached().await {
            Ok(()) => response::text(StatusCode::OK, "configuration loaded"),
            Err(error) => {
                response::text(StatusCode::INTERNAL_SERVER_ERROR, &format!("failed to reload: {error}"))
            }
        },
        (&Method::GET | &Method::HEAD, path) if pages::is_page(path) => state.pages.handle(&head.uri).await,
        (&Method::POST, path @ (FEEDBACK | MAINTENANCE)) => match &state.admin {
            None => response::text(
                StatusCode::FORBIDDEN,
                "the admin API is not enabled: start with --web.enable-admin-api",
            ),
            Some(admin) if path == FEEDBACK => admin.feedback(&head.headers, body).await,
            Some(admin) => admin.maintenance(&head.headers, body).await,
        },
        (_, "/api/v1/write") => {
            let response = method_not_allowed("POST");
            state.ingest_metrics.count_method_not_allowed();
            response
        }
        (_, "/api/v1/read") => {
            let response = method_not_allowed("POST");
            state.remote_read_server.count_response(response.status());
            response
        }
        (_, FEEDBACK | MAINTENANCE) => method_not_allowed("POST"),
        (_, "/-/reload") => method_not_allowed("POST, PUT"),
        (_, "/metrics" | "/-/healthy" | "/-/ready") => method_not_allowed("GET, HEAD"),
        (_, path) if pages::is_page(path) => method_not_allowed("GET, HEAD"),
        _ => response::text(StatusCode::NOT_FOUND, "not found"),
    }
}

async fn write(
    state: &AppState,
    version: ProtocolVersion,
    body: RequestBody,
) -> Result<AcceptedCounts, ingest::Error> {
    let body = state.receiver.receive(body).await?;
    state.engine.write(WriteBody { body, version }).await
}

fn method_not_allowed(methods: &'static str) -> Response {
    let mut response = response::text(StatusCode::METHOD_NOT_ALLOWED, &format!("allowed here: {methods}"));
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(methods));
    response
}

/// A page of `/metrics` that is being sent.
struct MetricsPage {
    text: String,
    _lease: BudgetLease,
}

impl AsRef<[u8]> for MetricsPage {
    fn as_ref(&self) -> &[u8] {
        self.text.as_bytes()
    }
}

fn metrics_page(registry: &Registry, pages: &ByteBudget, headers: &HeaderMap) -> Response {
    let accept: Vec<&str> = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    let format = PageFormat::negotiate(&accept.join(","));
    let Ok(text) = format.encode(registry) else {
        return response::text(StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be encoded");
    };
    let mut lease = pages.lease();
    // One page is sent, however large it is.
    if lease.resize(text.len(), MAX_METRICS_PAGES_BYTES.max(text.len())).is_err() {
        return response::text(StatusCode::SERVICE_UNAVAILABLE, "too many pages of metrics are being sent");
    }
    let mut response = Response::new(Bytes::from_owner(MetricsPage { text, _lease: lease }).into());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(format.content_type()));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::register;
    use prometheus_client::metrics::gauge::Gauge;

    #[test]
    fn pages_of_metrics_share_a_limit_until_they_are_sent() {
        let mut registry = Registry::default();
        let _: Gauge = register(&mut registry, "gauge", &"x".repeat(MAX_METRICS_PAGES_BYTES));
        let (pages, headers) = (ByteBudget::default(), HeaderMap::new());
        let page = metrics_page(&registry, &pages, &headers);
        assert_eq!(page.status(), StatusCode::OK, "one page is sent, however large it is");
        assert!(pages.in_use() > MAX_METRICS_PAGES_BYTES);
        assert_eq!(metrics_page(&registry, &pages, &headers).status(), StatusCode::SERVICE_UNAVAILABLE);
        drop(page);
        assert_eq!(pages.in_use(), 0);
        assert_eq!(metrics_page(&registry, &pages, &headers).status(), StatusCode::OK);
    }
}
