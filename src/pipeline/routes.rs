//! The HTTP API: one function answers each request.

use super::admin::{self, AdminApi};
use super::engine::{EngineHandle, TenantView};
use super::pages::{self, Pages};
use super::readiness::ReadinessProbe;
use super::reload::Reloader;
use crate::http::request_body::BodyReceiver;
use crate::http::response::{self, PagesBeingSent, Response, method_not_allowed};
use crate::http::server::RequestBody;
use crate::ingest::{self, AcceptedCounts, Metrics, WriteBody};
use crate::notebooks::{NotebookServer, Table};
use crate::prom::wire::ProtocolVersion;
use crate::remote_read::server::RemoteReadServer;
use crate::tenant::{self, Tenant};
use hyper::header::HeaderMap;
use hyper::http::request::Parts;
use hyper::{Method, Request, StatusCode};
use prometheus_client::registry::Registry;
use std::sync::Arc;

/// The paths of tables.
const WINDOW: &str = "/api/v1/window";
const SCORES: &str = "/api/v1/scores";
/// The paths of the admin API.
const FEEDBACK: &str = "/api/v1/feedback";
const MAINTENANCE: &str = "/api/v1/maintenance";
/// The target of the forms on the pages.
const FEEDBACK_FORM: &str = "/feedback";

/// State that the routes share.
#[derive(Clone)]
pub struct AppState {
    /// The engine.
    pub engine: EngineHandle,
    /// The tenants that the requests name, if there are any.
    pub tenants: Option<Arc<tenant::Config>>,
    /// Receives the bodies of write requests within bounds.
    pub receiver: BodyReceiver,
    /// Answers remote read.
    pub remote_read_server: RemoteReadServer,
    /// Answers tables.
    pub notebook_server: NotebookServer,
    /// Metrics of `/metrics`.
    pub metrics_registry: Arc<Registry>,
    /// The pages of `/metrics` that are being sent.
    pub metrics_pages: PagesBeingSent,
    /// Metrics of write requests.
    pub ingest_metrics: Metrics,
    /// State of `/-/ready`.
    pub readiness: ReadinessProbe,
    /// Reloads the configuration.
    pub reloader: Arc<Reloader>,
    /// True if `/-/reload` is enabled.
    pub enable_lifecycle: bool,
    /// The web pages.
    pub pages: Arc<Pages>,
    /// Answers feedback and maintenance, if enabled.
    pub admin: Option<AdminApi>,
}

/// Answers one request. Reads are counted here, whoever answers them.
pub async fn handle_request(state: AppState, request: Request<RequestBody>) -> Response {
    let (head, body) = request.into_parts();
    let response = respond(&state, &head, body).await;
    match head.uri.path() {
        "/api/v1/read" => state.remote_read_server.count_response(response.status()),
        WINDOW | SCORES => state.notebook_server.count_response(response.status()),
        _ => {}
    }
    response
}

async fn respond(state: &AppState, head: &Parts, body: RequestBody) -> Response {
    match (&head.method, head.uri.path()) {
        (&Method::POST, "/api/v1/write") => {
            let (version, result) = match ingest::negotiate(&head.headers) {
                Ok(version) => (Some(version), write(state, version, &head.headers, body).await),
                Err(error) => (None, Err(error)),
            };
            state.ingest_metrics.count_answered(version, &result);
            ingest::response(version, &result)
        }
        (&Method::POST, "/api/v1/read") => match view(state, &head.headers) {
            Ok(view) => state.remote_read_server.handle(body, &view).await,
            Err(error) => response::text(StatusCode::BAD_REQUEST, &error.to_string()),
        },
        (&Method::GET, path @ (WINDOW | SCORES)) => {
            let table = if path == WINDOW { Table::Window } else { Table::Scores };
            let query = head.uri.query().unwrap_or_default();
            match view(state, &head.headers) {
                Ok(view) => state.notebook_server.handle(table, query, &head.headers, &view).await,
                Err(error) => response::text(StatusCode::BAD_REQUEST, &error.to_string()),
            }
        }
        (&Method::GET | &Method::HEAD, "/metrics") => {
            state.ingest_metrics.set_in_flight(state.receiver.in_flight());
            state.metrics_pages.respond_with_metrics(&state.metrics_registry, &head.headers)
        }
        (&Method::GET | &Method::HEAD, "/-/healthy") => {
            response::text(StatusCode::OK, "promforest is healthy")
        }
        (&Method::GET | &Method::HEAD, "/-/ready") => {
            let readiness = state.readiness.current();
            let code = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            response::text(code, &readiness.text)
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
        (&Method::GET | &Method::HEAD, path) if pages::is_page(path) => {
            state.pages.handle(head.uri.clone()).await
        }
        (&Method::POST, path @ (FEEDBACK | MAINTENANCE)) => match &state.admin {
            None => {
                let (status, text) = admin::not_enabled();
                response::text(status, &text)
            }
            Some(admin) if path == FEEDBACK => admin.feedback(&head.headers, body).await,
            Some(admin) => admin.maintenance(&head.headers, body).await,
        },
        (&Method::POST, FEEDBACK_FORM) => {
            state.pages.feedback(state.admin.as_ref(), &head.headers, body).await
        }
        (_, "/api/v1/write") => {
            let response = method_not_allowed("POST");
            state.ingest_metrics.count_method_not_allowed();
            response
        }
        (_, WINDOW | SCORES) => method_not_allowed("GET"),
        (_, "/api/v1/read" | FEEDBACK | MAINTENANCE | FEEDBACK_FORM) => method_not_allowed("POST"),
        (_, "/-/reload") => method_not_allowed("POST, PUT"),
        (_, "/metrics" | "/-/healthy" | "/-/ready") => method_not_allowed("GET, HEAD"),
        (_, path) if pages::is_page(path) => method_not_allowed("GET, HEAD"),
        _ => response::text(StatusCode::NOT_FOUND, "not found"),
    }
}

/// The tenant that a request names; `None` without tenants.
fn tenant_of(state: &AppState, headers: &HeaderMap) -> Result<Option<Tenant>, tenant::RequestError> {
    state.tenants.as_ref().map(|tenants| tenants.of_request(headers)).transpose()
}

/// The groups that the tenant of a request may read.
fn view(state: &AppState, headers: &HeaderMap) -> Result<TenantView, tenant::RequestError> {
    Ok(TenantView { engine: state.engine.clone(), tenant: tenant_of(state, headers)? })
}

async fn write(
    state: &AppState,
    version: ProtocolVersion,
    headers: &HeaderMap,
    body: RequestBody,
) -> Result<AcceptedCounts, ingest::Error> {
    let tenant = tenant_of(state, headers)?;
    let body = state.receiver.receive(body).await?;
    state.engine.write(WriteBody { body, version, tenant }).await
}
