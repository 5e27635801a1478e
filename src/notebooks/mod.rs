//! `GET /api/v1/window` and `GET /api/v1/scores`: the windows and the scores as tables for pandas, polars and DuckDB.
//!
//! A request takes one of remote read's turns and has its bounds of memory, samples and time. The engine only shares its
//! sealed chunks; a table is encoded while it is sent, a batch at a time. Both tables are long, with the features of a
//! window as rows. The alternative, a column for each feature, has another schema for each group, so that a response
//! could hold one group only; a pivot of the long form is one call.

mod encode;
mod error;
mod request;
mod table;

use crate::http::body::{Body, BodyWriter, Disconnected};
use crate::http::response::Response;
use crate::remote_read::server::{self, MAX_SAMPLES, RESPONSE_TIMEOUT, WorkPermit, WorkPermits};
use crate::telemetry::{OneLabel, register};
use encode::Encoder;
use hyper::StatusCode;
use hyper::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use request::Format;
use std::sync::Arc;
use table::TablePlan;
use tokio::time::timeout;
use tracing::{debug, warn};

pub use error::Error;
pub use request::{Table, TableQuery};
pub use table::GroupPart;

/// An owner of windows.
pub trait GroupSource: Sync {
    /// The groups that a query selects, in any order. Work that outlasts the future holds a clone of the permit, which
    /// also counts the memory of the groups.
    ///
    /// # Errors
    /// [`server::Error::ShuttingDown`] if the owner has ended; those of [`WorkPermit::reserve`].
    fn groups(
        &self,
        query: Arc<TableQuery>,
        permit: &WorkPermit,
    ) -> impl Future<Output = Result<Vec<GroupPart>, server::Error>> + Send;
}

/// The server; clones share its limits and metrics.
#[derive(Clone)]
pub struct NotebookServer {
    permits: WorkPermits,
    metrics: Metrics,
    max_samples: usize,
}

impl NotebookServer {
    /// A server that shares these turns.
    pub fn new(permits: WorkPermits, metrics: Metrics) -> Self {
        Self { permits, metrics, max_samples: MAX_SAMPLES }
    }

    /// Handles one request with this query of its URL. The caller [counts](Self::count_response) the response.
    pub async fn handle(
        &self,
        table: Table,
        query: &str,
        headers: &HeaderMap,
        source: &impl GroupSource,
    ) -> Response {
        self.respond(table, query, headers, source).await.unwrap_or_else(|error| {
            debug!(component = "notebooks", err = %error, "request rejected");
            error.to_response()
        })
    }

    /// Counts a response by its status.
    pub fn count_response(&self, status: StatusCode) {
        self.metrics.requests.get_or_create(&[("code", status.as_str().to_string().into())]).inc();
    }

    async fn respond(
        &self,
        table: Table,
        query: &str,
        headers: &HeaderMap,
        source: &impl GroupSource,
    ) -> Result<Response, Error> {
        let accept = headers.get_all(ACCEPT).iter().map(|value| value.to_str().unwrap_or("?"));
        let format = Format::negotiate(&accept.collect::<Vec<_>>().join(","))?;
        let permit = self.permits.acquire().await?;
        let plan = timeout(RESPONSE_TIMEOUT, self.plan(table, query.into(), source, &permit)).await;
        let plan = plan.map_err(|_| server::Error::QueryTimeout)??;
        let (writer, body) = Body::channel();
        tokio::spawn(send(plan, format, writer, self.metrics.clone(), permit));
        let mut response = Response::new(body);
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(format.content_type()));
        Ok(response)
    }

    /// Selects the groups. Patterns are compiled and columns counted on a blocking thread.
    async fn plan(
        &self,
        table: Table,
        query: String,
        source: &impl GroupSource,
        permit: &WorkPermit,
    ) -> Result<TablePlan, Error> {
        let of_request = permit.clone();
        let parse = move || TableQuery::parse(table, &query, |bytes| of_request.reserve(bytes));
        let query = Arc::new(permit.run_blocking(parse).await??);
        let groups = source.groups(query, permit).await?;
        let max_samples = self.max_samples;
        let plan = move || {
            let plan = TablePlan::new(table, groups);
            server::check_limit("samples", plan.n_samples(), max_samples).map(|()| plan)
        };
        let plan = permit.run_blocking(plan).await??;
        permit.reserve(Encoder::n_bytes(plan.schema()))?;
        Ok(plan)
    }
}

/// Sends a table, within [`RESPONSE_TIMEOUT`].
async fn send(plan: TablePlan, format: Format, writer: BodyWriter, metrics: Metrics, _permit: WorkPermit) {
    match timeout(RESPONSE_TIMEOUT, send_table(&plan, format, writer)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            metrics.truncated.inc();
            debug!(component = "notebooks", err = %error, "response truncated");
        }
        Err(_) => {
            metrics.truncated.inc();
            warn!(component = "notebooks", limit = ?RESPONSE_TIMEOUT, "response truncated: the client reads too slowly");
        }
    }
}

async fn send_table(plan: &TablePlan, format: Format, writer: BodyWriter) -> Result<(), Disconnected> {
    let mut encoder = Encoder::new(format, plan.schema());
    for batch in plan.batches() {
        let bytes = encoder.write(&batch);
        if !bytes.is_empty() {
            writer.send(bytes).await?;
        }
        tokio::task::yield_now().await;
    }
    writer.send(encoder.finish()).await?;
    writer.end().await
}

/// Metrics of the server.
#[derive(Clone)]
pub struct Metrics {
    requests: OneLabel<Counter>,
    truncated: Counter,
}

impl Metrics {
    /// Registers the metrics.
    pub fn new(registry: &mut Registry) -> Self {
        Self {
            requests: register(
                registry,
                "notebook_requests",
                "Requests for windows and scores as tables by status code",
            ),
            truncated: register(
                registry,
                "notebook_responses_truncated",
                "Tables that ended early because the client disconnected or read too slowly",
            ),
        }
    }
}

#[cfg(test)]
mod tests;
