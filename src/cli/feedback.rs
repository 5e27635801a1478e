//! `promforest feedback`: tells a running sidecar what an incident was.

use super::{http_client, print};
use crate::detect::IncidentFeedback;
use crate::error::BoxError;
use crate::http::Url;
use crate::http::client::Request;
use crate::models::registry::periods::GroupSelector;
use crate::pipeline::DEFAULT_URL;
use crate::time;
use bytes::Bytes;
use clap::Args;
use hyper::Method;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use serde_json::json;
use std::path::PathBuf;
use std::time::Duration;

/// Longest wait for the answer.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Most bytes of the answer.
const ANSWER_LIMIT: usize = 1 << 20;

#[derive(Debug, Args)]
pub struct FeedbackArgs {
    /// URL of the sidecar, which runs with --web.enable-admin-api
    #[arg(long, value_name = "URL", default_value = DEFAULT_URL)]
    url: Url,
    /// File with the credentials, TLS and proxy of the request (promtool's format)
    #[arg(long = "http.config.file", value_name = "FILE")]
    http_config_file: Option<PathBuf>,
    /// The detector; without it, any
    #[arg(long, value_name = "NAME")]
    detector: Option<String>,
    /// Selector of the group, such as {instance="web1:9100"}
    #[arg(long, value_name = "SELECTOR", default_value = "{}")]
    group: GroupSelector,
    /// A time within the incident, as in 2026-01-31T12:00:00Z or in seconds since 1970
    #[arg(long, value_name = "TIME", value_parser = time::parse)]
    at: i64,
    /// real: it does not count against the budget, and is not learned; false: it ends, counts twice, and is learned
    #[arg(value_name = "real|false")]
    feedback: IncidentFeedback,
}

pub async fn run(args: FeedbackArgs) -> Result<(), BoxError> {
    let FeedbackArgs { url, http_config_file, detector, group, at, feedback } = args;
    let body = json!({
        "detector": detector, "group": group, "at": time::format_timestamp(at), "feedback": feedback,
    });
    let request = Request {
        method: Method::POST,
        url: url.with_path_and_query("/api/v1/feedback", &[])?,
        headers: HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/json"))]),
        body: Bytes::from(body.to_string()),
        timeout: TIMEOUT,
        limit: ANSWER_LIMIT,
    };
    let response = http_client(http_config_file.as_deref())?.request(request).await?;
    if !response.status.is_success() {
        return Err(format!("{url} answered {}: {}", response.status, response.reason()).into());
    }
    Ok(print(&String::from_utf8_lossy(&response.body))?)
}
