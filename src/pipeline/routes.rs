//! The paths that promforest answers.

use super::Handle;
use super::engine::Readiness;
use crate::history::server::Server;
use crate::http::server::{Answer, Arriving};
use crate::ingest::{self, Metrics, Receiver, Written};
use crate::prom::wire::Version;
use crate::snapshot::Folder;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, StatusCode};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use std::pin::Pin;
use std::sync::Arc;
use tokio::sync::watch;

type Reload = dyn Fn() -> Pin<Box<dyn Future<Output = Result<(), String>> + Send>> + Send + Sync;

/// What the routes need.
#[derive(Clone)]
pub struct State {
    /// Where samples go.
    pub engine: Handle,
    /// The bounds on bodies.
    pub receiver: Receiver,
    /// Who answers remote read.
    pub reads: Server,
    /// What `/metrics` shows.
    pub registry: Arc<Registry>,
    /// What is counted of requests.
    pub ingest: Metrics,
    /// What `/-/ready` says.
    pub readiness: watch::Receiver<Readiness>,
    /// Where snapshots are written: trouble with them is told, and nothing to wait for.
    pub snapshots: Folder,
    /// What `/-/reload` does.
    pub reload: Arc<Reload>,
}

/// Answers one request.
pub async fn answer(state: State, request: Request<Arriving>) -> Answer {
    let (head, body) = request.into_parts();
    match (&head.method, head.uri.path()) {
        (&Method::POST, "/api/v1/write") => {
            let (version, result) = match ingest::negotiate(&head.headers) {
                Ok(version) => (Some(version), write(&state, version, body).await),
                Err(error) => (None, Err(error)),
            };
            state.ingest.answered(version, &result);
            ingest::response(version, &result)
        }
        (&Method::POST, "/api/v1/read") => state.reads.answer(body, &state.engine).await,
        (&Method::GET | &Method::HEAD, "/metrics") => {
            state.ingest.in_flight(state.receiver.in_flight());
            metrics(&state.registry)
        }
        (&Method::GET | &Method::HEAD, "/-/healthy") => text(StatusCode::OK, "promforest is healthy"),
        (&Method::GET | &Method::HEAD, "/-/ready") => {
            let readiness = state.readiness.borrow().clone();
            let code = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            let lines: Vec<String> = [readiness.text].into_iter().chain(state.snapshots.trouble()).collect();
            text(code, &lines.join("\n"))
        }
        (&Method::POST | &Method::PUT, "/-/reload") => match (state.reload)().await {
            Ok(()) => text(StatusCode::OK, "configuration loaded"),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &format!("failed to reload: {error}")),
        },
        (&Method::GET | &Method::HEAD, "/") => landing(),
        (_, "/api/v1/write") => {
            let answer = not_allowed("POST");
            state.ingest.not_allowed();
            answer
        }
        (_, "/api/v1/read") => {
            let answer = not_allowed("POST");
            state.reads.answered(answer.status());
            answer
        }
        (_, "/-/reload") => not_allowed("POST, PUT"),
        (_, "/" | "/metrics" | "/-/healthy" | "/-/ready") => not_allowed("GET, HEAD"),
        _ => text(StatusCode::NOT_FOUND, "not found"),
    }
}

async fn write(state: &State, version: Version, body: Arriving) -> Result<Written, ingest::Error> {
    state.engine.write(state.receiver.receive(version, body).await?).await
}

fn text(code: StatusCode, text: &str) -> Answer {
    let mut answer = Answer::new(format!("{text}\n").into());
    *answer.status_mut() = code;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    answer
}

fn not_allowed(methods: &'static str) -> Answer {
    let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, &format!("allowed here: {methods}"));
    answer.headers_mut().insert(ALLOW, HeaderValue::from_static(methods));
    answer
}

fn metrics(registry: &Registry) -> Answer {
    let mut page = String::new();
    if encode(&mut page, registry).is_err() {
        return text(StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be encoded");
    }
    let mut answer = Answer::new(page.into());
    let content_type = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    answer.headers_mut().insert(CONTENT_TYPE, content_type);
    answer
}

fn landing() -> Answer {
    let page = concat!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>promforest</title>",
        "<h1>promforest ",
        env!("CARGO_PKG_VERSION"),
        "</h1><p>Anomaly detection beside Prometheus.</p><ul>",
        "<li><a href=\"metrics\">metrics</a></li>",
        "<li><a href=\"-/ready\">ready</a></li>",
        "<li><a href=\"-/healthy\">healthy</a></li></ul></html>\n",
    );
    let mut answer = Answer::new(page.into());
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    answer
}
