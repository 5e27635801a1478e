//! The API that changes what is learned and reported: feedback on incidents, and maintenance.
//!
//! Both are kept in the registry before the engine acts on them, so that a request that was answered is not forgotten.
//! A request has to be JSON: a page of another site in a browser cannot send that without being allowed to.

use super::engine::EngineHandle;
use super::engine::feedback::{FeedbackError, GroupIncident};
use crate::detect::IncidentFeedback;
use crate::error::chain;
use crate::http::request_body::{BodyLimits, BodyReceiver, ReceiveError};
use crate::http::response::{self, Response};
use crate::http::server::RequestBody;
use crate::models::registry::periods::{GroupSelector, Period, PeriodKind};
use crate::time::{self, HOUR_MS, now_ms};
use crate::train::Backends;
use hyper::StatusCode;
use hyper::header::{CONTENT_TYPE, HeaderMap};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// Limits of the requests' bodies.
const LIMITS: BodyLimits = BodyLimits {
    body: 64 << 10,
    in_flight: 1 << 20,
    small_body: 64 << 10,
    reserved_for_small: 0,
    timeout: Duration::from_secs(10),
};
/// Longest duration of an incident: the end of one that is still open.
const MAX_INCIDENT_MS: i64 = 3 * HOUR_MS;

/// See the [module](self).
#[derive(Clone)]
pub struct AdminApi {
    /// The engine.
    pub engine: EngineHandle,
    /// The registry.
    pub backends: watch::Receiver<Arc<Backends>>,
    /// Wakes the watcher of maintenance.
    pub maintenance_changed: Arc<Notify>,
    receiver: BodyReceiver,
}

/// The reason for an answer without success.
type Refusal = (StatusCode, String);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FeedbackRequest {
    detector: Option<String>,
    #[serde(default)]
    group: GroupSelector,
    at: String,
    feedback: IncidentFeedback,
}

#[derive(Debug, Serialize)]
struct FeedbackAnswer {
    detector: String,
    group: String,
    start: String,
    end: String,
    feedback: IncidentFeedback,
    budget_correction: f64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct MaintenanceRequest {
    action: MaintenanceAction,
    detector: Option<String>,
    groups: GroupSelector,
    start: Option<String>,
    end: Option<String>,
    #[serde(default)]
    comment: String,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum MaintenanceAction {
    Start,
    End,
}

impl AdminApi {
    /// The API of an engine and the registry of its configuration.
    pub fn new(
        engine: EngineHandle,
        backends: watch::Receiver<Arc<Backends>>,
        maintenance_changed: Arc<Notify>,
    ) -> Self {
        Self { engine, backends, maintenance_changed, receiver: BodyReceiver::new(LIMITS) }
    }

    /// Answers `POST /api/v1/feedback`.
    pub async fn feedback(&self, headers: &HeaderMap, body: RequestBody) -> Response {
        answer(self.apply_feedback(headers, body).await)
    }

    /// Answers `POST /api/v1/maintenance`.
    pub async fn maintenance(&self, headers: &HeaderMap, body: RequestBody) -> Response {
        answer(self.change_maintenance(headers, body).await)
    }

    async fn apply_feedback(
        &self,
        headers: &HeaderMap,
        body: RequestBody,
    ) -> Result<FeedbackAnswer, Refusal> {
        let request: FeedbackRequest = self.receive(headers, body).await?;
        let FeedbackRequest { detector, group, feedback, .. } = request;
        let at_ms = parse_time(&request.at)?;
        let found = self.engine.find_incident(detector, group, at_ms).await.ok_or_else(shutting_down)?;
        let found = found.map_err(|error| (feedback_status(&error), error.to_string()))?;
        let GroupIncident { group, detector, labels, by, incident, is_open } = found;
        let end_ms = match (is_open, feedback) {
            (true, IncidentFeedback::Real) => incident.start_ms + MAX_INCIDENT_MS,
            _ => incident.last_ms,
        };
        let bad_request = |error: &dyn std::error::Error| (StatusCode::BAD_REQUEST, chain(error));
        self.record(Period {
            kind: feedback.into(),
            detector: Some(detector.clone()),
            groups: GroupSelector::of_group(&labels, &by).map_err(|error| bad_request(&error))?,
            from_ms: incident.start_ms,
            to_ms: Some(end_ms),
            comment: String::new(),
        })
        .await?;
        let applied = self.engine.apply_feedback(group, incident.start_ms, feedback).await;
        let no_model = || (StatusCode::SERVICE_UNAVAILABLE, format!("{labels} has no model in service yet"));
        let budget_correction = applied.ok_or_else(shutting_down)?.ok_or_else(no_model)?;
        Ok(FeedbackAnswer {
            detector,
            group: labels.to_string(),
            start: time::format_timestamp(incident.start_ms),
            end: time::format_timestamp(incident.last_ms),
            feedback,
            budget_correction,
        })
    }

    async fn change_maintenance(
        &self,
        headers: &HeaderMap,
        body: RequestBody,
    ) -> Result<Vec<Period>, Refusal> {
        let request: MaintenanceRequest = self.receive(headers, body).await?;
        let MaintenanceRequest { action, detector, groups, start, end, comment } = request;
        let (start_ms, end_ms) =
            (start.as_deref().map(parse_time).transpose()?, end.as_deref().map(parse_time).transpose()?);
        let from_ms = start_ms.unwrap_or_else(now_ms);
        let registry = self.registry();
        match action {
            MaintenanceAction::Start => {
                let kind = PeriodKind::Maintenance;
                self.record(Period { kind, detector, groups, from_ms, to_ms: end_ms, comment }).await?;
            }
            MaintenanceAction::End => {
                let at_ms = end_ms.unwrap_or_else(now_ms);
                let ended = registry.registry.end_maintenance(detector.as_deref(), &groups, at_ms).await;
                if ended.map_err(|error| unavailable(&error))? == 0 {
                    return Err((
                        StatusCode::NOT_FOUND,
                        format!("there is no maintenance of {groups} to end"),
                    ));
                }
            }
        }
        self.maintenance_changed.notify_one();
        let mut periods = registry.registry.periods().await.map_err(|error| unavailable(&error))?;
        periods.retain(|period| period.kind == PeriodKind::Maintenance);
        Ok(periods)
    }

    fn registry(&self) -> Arc<Backends> {
        self.backends.borrow().clone()
    }

    async fn record(&self, period: Period) -> Result<(), Refusal> {
        period.check().map_err(|error| (StatusCode::BAD_REQUEST, chain(&error)))?;
        self.registry().registry.record_period(period).await.map_err(|error| unavailable(&error))
    }

    /// Reads a request.
    async fn receive<T: DeserializeOwned>(
        &self,
        headers: &HeaderMap,
        body: RequestBody,
    ) -> Result<T, Refusal> {
        let content_type =
            headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        if content_type.split(';').next().map(str::trim) != Some("application/json") {
            let text = format!("Content-Type is {content_type:?}, must be application/json");
            return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, text));
        }
        let body = self.receiver.receive(body).await.map_err(|error| match error {
            ReceiveError::TooLarge => {
                (StatusCode::PAYLOAD_TOO_LARGE, format!("the body has more than {} bytes", LIMITS.body))
            }
            ReceiveError::Timeout | ReceiveError::Interrupted(_) => {
                (StatusCode::REQUEST_TIMEOUT, "the body did not arrive".into())
            }
            ReceiveError::Overloaded => (StatusCode::SERVICE_UNAVAILABLE, "too many requests".into()),
        })?;
        serde_json::from_slice(&body.bytes).map_err(|error| (StatusCode::BAD_REQUEST, error.to_string()))
    }
}

fn answer(result: Result<impl Serialize, Refusal>) -> Response {
    match result.map(|content| serde_json::to_string(&content).expect("numbers and text")) {
        Ok(text) => {
            let mut response = response::text(StatusCode::OK, &text);
            response
                .headers_mut()
                .insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("application/json"));
            response
        }
        Err((status, text)) => response::text(status, &text),
    }
}

fn feedback_status(error: &FeedbackError) -> StatusCode {
    match error {
        FeedbackError::NoGroup { .. } | FeedbackError::NoIncident { .. } => StatusCode::NOT_FOUND,
        FeedbackError::SeveralGroups { .. } => StatusCode::BAD_REQUEST,
    }
}

fn shutting_down() -> Refusal {
    (StatusCode::SERVICE_UNAVAILABLE, "shutting down".into())
}

fn unavailable(error: &crate::models::registry::Error) -> Refusal {
    (StatusCode::SERVICE_UNAVAILABLE, format!("the registry failed: {}", chain(error)))
}

fn parse_time(text: &str) -> Result<i64, Refusal> {
    time::parse(text).map_err(|error| (StatusCode::BAD_REQUEST, error))
}
