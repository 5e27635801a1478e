//! The API that changes what is learned and reported: feedback on incidents, and maintenance.
//!
//! Both are kept in the registry before the engine acts on them, so that a request that was answered is not forgotten.
//! A request has to be JSON: a page of another site in a browser cannot send that without being allowed to. The form of the
//! web pages is told from one of another site by its origin.

use super::engine::EngineHandle;
use super::engine::feedback::{FeedbackError, GroupIncident};
use crate::detect::IncidentFeedback;
use crate::detector::{self, Detector};
use crate::error::chain;
use crate::http::request_body::{BodyLimits, BodyReceiver, ReceiveError};
use crate::http::response::{self, Response};
use crate::http::same_origin::is_same_origin;
use crate::http::server::RequestBody;
use crate::http::{Url, parse_query};
use crate::models::registry::periods::{GroupSelector, Period, PeriodKind, nothing_to_end};
use crate::prom::Labels;
use crate::status::group::group_path;
use crate::time::{self, HOUR_MS, now_ms};
use crate::train::Backends;
use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::{CONTENT_TYPE, HeaderMap};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc, watch};

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
    /// Ids of groups whose snapshots are not to wait for the next round.
    pub urgent_snapshots: mpsc::Sender<u32>,
    receiver: BodyReceiver,
}

/// The reason for an answer without success.
pub type Refusal = (StatusCode, String);

const FORM: &str = "application/x-www-form-urlencoded";

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
    #[serde(skip)]
    labels: Labels,
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

impl FeedbackRequest {
    /// Reads the fields of a form.
    fn from_form(text: &str) -> Result<Self, Refusal> {
        let mut fields = parse_query(text);
        let mut field = |name: &str| {
            let position = fields.iter().position(|(other, _)| other == name);
            let missing = || (StatusCode::BAD_REQUEST, format!("{name} is missing"));
            position.map(|position| fields.swap_remove(position).1).ok_or_else(missing)
        };
        let bad_request = |text: String| (StatusCode::BAD_REQUEST, text);
        Ok(Self {
            detector: Some(field("detector")?),
            group: field("group")?.parse().map_err(|error| bad_request(chain(&error)))?,
            at: field("at")?,
            feedback: field("feedback")?.parse().map_err(bad_request)?,
        })
    }
}

/// The answer without `--web.enable-admin-api`.
pub fn not_enabled() -> Refusal {
    (StatusCode::FORBIDDEN, "the admin API is not enabled: start with --web.enable-admin-api".into())
}

impl AdminApi {
    /// The API of an engine and the registry of its configuration.
    pub fn new(
        engine: EngineHandle,
        backends: watch::Receiver<Arc<Backends>>,
        maintenance_changed: Arc<Notify>,
        urgent_snapshots: mpsc::Sender<u32>,
    ) -> Self {
        let receiver = BodyReceiver::new(LIMITS);
        Self { engine, backends, maintenance_changed, urgent_snapshots, receiver }
    }

    /// Answers `POST /api/v1/feedback`.
    pub async fn feedback(&self, headers: &HeaderMap, body: RequestBody) -> Response {
        answer(self.feedback_as_json(headers, body).await)
    }

    /// Answers the form of a page with the path of the group's page.
    ///
    /// # Errors
    /// The status and the text of the answer.
    pub async fn feedback_form(
        &self,
        headers: &HeaderMap,
        body: RequestBody,
        external_url: Option<&Url>,
    ) -> Result<String, Refusal> {
        if !is_same_origin(headers, external_url) {
            let text = "the form is not one of these pages; behind a proxy, start with --web.external-url";
            return Err((StatusCode::FORBIDDEN, text.into()));
        }
        let body = self.receive(headers, body, FORM).await?;
        let request = FeedbackRequest::from_form(&String::from_utf8_lossy(&body))?;
        let answer = self.apply_feedback(request).await?;
        Ok(group_path(&answer.detector, &answer.labels))
    }

    /// Answers `POST /api/v1/maintenance`.
    pub async fn maintenance(&self, headers: &HeaderMap, body: RequestBody) -> Response {
        answer(self.change_maintenance(headers, body).await)
    }

    async fn feedback_as_json(
        &self,
        headers: &HeaderMap,
        body: RequestBody,
    ) -> Result<FeedbackAnswer, Refusal> {
        self.apply_feedback(self.receive_json(headers, body).await?).await
    }

    async fn apply_feedback(&self, request: FeedbackRequest) -> Result<FeedbackAnswer, Refusal> {
        let FeedbackRequest { detector, group, feedback, .. } = request;
        let at_ms = parse_time(&request.at)?;
        self.select_detectors(detector.as_deref())?;
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
        // The registry has the feedback, but the last snapshot may lack the incident. Without room, the next round writes it.
        let _ = self.urgent_snapshots.try_send(group);
        Ok(FeedbackAnswer {
            detector,
            group: labels.to_string(),
            start: time::format_timestamp(incident.start_ms),
            end: time::format_timestamp(incident.last_ms),
            feedback,
            budget_correction,
            labels,
        })
    }

    async fn change_maintenance(
        &self,
        headers: &HeaderMap,
        body: RequestBody,
    ) -> Result<Vec<Period>, Refusal> {
        let request: MaintenanceRequest = self.receive_json(headers, body).await?;
        let MaintenanceRequest { action, detector, groups, start, end, comment } = request;
        let (start_ms, end_ms) =
            (start.as_deref().map(parse_time).transpose()?, end.as_deref().map(parse_time).transpose()?);
        let from_ms = start_ms.unwrap_or_else(now_ms);
        let registry = self.registry();
        match action {
            MaintenanceAction::Start => {
                let detectors = self.select_detectors(detector.as_deref())?;
                let by = detectors.iter().flat_map(|detector| &detector.by);
                groups.check_labels(by).map_err(|error| (StatusCode::BAD_REQUEST, error.to_string()))?;
                let kind = PeriodKind::Maintenance;
                self.record(Period { kind, detector, groups, from_ms, to_ms: end_ms, comment }).await?;
            }
            MaintenanceAction::End => {
                let at_ms = end_ms.unwrap_or_else(now_ms);
                let ended = registry.registry.end_maintenance(detector.as_deref(), &groups, at_ms).await;
                if ended.map_err(|error| unavailable(&error))? == 0 {
                    return Err((StatusCode::NOT_FOUND, nothing_to_end(detector.as_deref(), &groups)));
                }
            }
        }
        self.maintenance_changed.notify_one();
        let mut periods = registry.registry.periods().await.map_err(|error| unavailable(&error))?;
        periods.retain(|period| period.kind == PeriodKind::Maintenance);
        Ok(periods)
    }

    /// The detector of this name; without one, all of them.
    fn select_detectors(&self, name: Option<&str>) -> Result<Vec<Arc<Detector>>, Refusal> {
        let selected = detector::select(&self.registry().detectors, name);
        selected.map_err(|error| (StatusCode::BAD_REQUEST, error.to_string()))
    }

    fn registry(&self) -> Arc<Backends> {
        self.backends.borrow().clone()
    }

    async fn record(&self, period: Period) -> Result<(), Refusal> {
        period.check().map_err(|error| (StatusCode::BAD_REQUEST, chain(&error)))?;
        self.registry().registry.record_period(period).await.map_err(|error| unavailable(&error))
    }

    /// Reads a request in JSON.
    async fn receive_json<T: DeserializeOwned>(
        &self,
        headers: &HeaderMap,
        body: RequestBody,
    ) -> Result<T, Refusal> {
        let body = self.receive(headers, body, "application/json").await?;
        serde_json::from_slice(&body).map_err(|error| (StatusCode::BAD_REQUEST, error.to_string()))
    }

    /// Reads a body of a media type.
    async fn receive(
        &self,
        headers: &HeaderMap,
        body: RequestBody,
        media_type: &str,
    ) -> Result<Bytes, Refusal> {
        let content_type =
            headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        if content_type.split(';').next().map(str::trim) != Some(media_type) {
            let text = format!("Content-Type is {content_type:?}, must be {media_type}");
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
        Ok(body.bytes)
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
