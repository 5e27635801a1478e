//! The HTTP API: one function answers each request.

use super::engine::{EngineHandle, Readiness};
use super::reload::Reloader;
use crate::http::request_body::BodyReceiver;
use crate::http::response::{self, Response};
use crate::http::server::RequestBody;
use crate::ingest::{self, AcceptedCounts, Metrics, WriteBody};
use crate::prom::wire::ProtocolVersion;
use crate::remote_read::server::RemoteReadServer;
use crate::snapshot::SnapshotStore;
use crate::telemetry::PageFormat;
use hyper::header::{ACCEPT, ALLOW, CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::{Method, Request, StatusCode};
use prometheus_client::registry::Registry;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::watch;

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
            metrics_page(&state.metrics_registry, &head.headers)
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
        (&Method::GET | &Method::HEAD, "/") => landing_page(),
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
        (_, "/-/reload") => method_not_allowed("POST, PUT"),
        (_, "/" | "/metrics" | "/-/healthy" | "/-/ready") => method_not_allowed("GET, HEAD"),
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

fn metrics_page(registry: &Registry, headers: &HeaderMap) -> Response {
    let accept: Vec<&str> = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    let format = PageFormat::negotiate(&accept.join(","));
    let Ok(page) = format.encode(registry) else {
        return response::text(StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be encoded");
    };
    let mut response = Response::new(page.into());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(format.content_type()));
    response
}

fn landing_page() -> Response {
    let page = concat!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>promforest</title>",
        "<h1>promforest ",
        env!("CARGO_PKG_VERSION"),
        "</h1><p>Anomaly detection beside Prometheus.</p><ul>",
        "<li><a href=\"metrics\">metrics</a></li>",
        "<li><a href=\"-/ready\">ready</a></li>",
        "<li><a href=\"-/healthy\">healthy</a></li></ul></html>\n",
    );
    let mut response = Response::new(page.into());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    response
}
