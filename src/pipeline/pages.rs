//! The web pages, and the same as JSON.
//!
//! All groups are summarized at most once in [`FLEET_MAX_AGE`], and for a tenth of the time at most, in slices of the engine's time, and pages are written
//! on at most [`MAX_WRITERS`] threads: readers cost a score a few milliseconds at most, however many they are. A page is
//! written to its end and holds its turn until then, since a client that hangs up ends neither a command of the engine
//! nor work on a blocking thread.

use super::admin::AdminApi;
use super::metrics::Metrics;
use super::options::{DEFAULT_URL, Options, ShownConfig};
use super::readiness::ReadinessProbe;
use super::reload::Reloader;
use crate::build_info::{self, REVISION, RUST_VERSION, VERSION};
use crate::http::parse_query;
use crate::http::response::{PagesBeingSent, Response};
use crate::http::server::RequestBody;
use crate::models::registry;
use crate::prom::Labels;
use crate::status::data_path::DataPath;
use crate::status::fleet::{Fleet, FleetQuery};
use crate::status::group_page::{CommandFlags, PageContext, shell_quoted};
use crate::status::overview::Overview;
use crate::status::server::{self, Sidecar};
use crate::status::{ICON, SCRIPT, json, style_sheet};
use crate::time::now_ms;
use crate::{ingest, remote_write};
use hyper::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LOCATION,
    REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use hyper::{StatusCode, Uri};
use serde_json::json as value;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, Semaphore};

/// Age up to which the summaries of the groups are used again.
const FLEET_MAX_AGE: Duration = Duration::from_secs(1);

/// The same, in multiples of the time that it took to summarize the groups.
const FLEET_MAX_AGE_RATIO: u32 = 10;

/// Pages that are written at the same time.
const MAX_WRITERS: usize = 2;

/// The policy of the pages: nothing from another origin, no inline script or style, no frame around them.
const POLICY: &str = "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

const HTML: &str = "text/html; charset=utf-8";
const JSON: &str = "application/json";

/// See the [module](self).
pub struct Pages {
    counts: CountSources,
    readiness: ReadinessProbe,
    reloader: Arc<Reloader>,
    /// The URL of this process on its own machine.
    url: String,
    started_ms: i64,
    /// The latest summaries, and the time until which they are used.
    fleet: Mutex<Option<(Instant, Arc<Fleet>)>>,
    writers: Writers,
    being_sent: PagesBeingSent,
}

/// The turns of pages that are written at the same time.
#[derive(Clone)]
struct Writers(Arc<Semaphore>);

impl Default for Writers {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_WRITERS)))
    }
}

impl Writers {
    /// Waits for a turn, and does the work in a task of its own, which holds the turn until it ends. `None` at a
    /// shutdown.
    async fn run<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> Option<T> {
        let permit = self.0.clone().acquire_owned().await.ok()?;
        let task = async move {
            let _permit = permit;
            work.await
        };
        tokio::spawn(task).await.ok()
    }
}

/// The metrics that the data path is counted from.
pub struct CountSources {
    /// Samples received.
    pub ingest: ingest::Metrics,
    /// Rows.
    pub engine: Metrics,
    /// Samples written.
    pub remote_write: remote_write::Metrics,
}

/// A page or a document, before its headers.
struct Page {
    status: StatusCode,
    content_type: &'static str,
    text: String,
}

impl Page {
    fn html(text: String) -> Self {
        Self { status: StatusCode::OK, content_type: HTML, text }
    }

    fn json(data: &serde_json::Value) -> Self {
        Self { status: StatusCode::OK, content_type: JSON, text: json::success(data) }
    }

    fn into_response(self, being_sent: &PagesBeingSent) -> Response {
        let mut response = being_sent.respond(self.text);
        if response.status() != StatusCode::OK {
            return response;
        }
        *response.status_mut() = self.status;
        let headers: [(HeaderName, &'static str); 5] = [
            (CONTENT_TYPE, self.content_type),
            (CONTENT_SECURITY_POLICY, POLICY),
            (X_CONTENT_TYPE_OPTIONS, "nosniff"),
            // With no-referrer, a form of the page would not have its origin.
            (REFERRER_POLICY, "same-origin"),
            (CACHE_CONTROL, "no-cache"),
        ];
        for (name, value) in headers {
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        response
    }
}

/// True if the path is one of the pages.
pub fn is_page(path: &str) -> bool {
    const PATHS: [&str; 13] = [
        "/",
        "/static/style.css",
        "/static/page.js",
        "/static/icon.svg",
        "/status",
        "/config",
        "/flags",
        "/api/v1/groups",
        "/api/v1/incidents",
        "/api/v1/status/runtimeinfo",
        "/api/v1/status/buildinfo",
        "/api/v1/status/config",
        "/api/v1/status/flags",
    ];
    PATHS.contains(&path) || path.starts_with("/groups/")
}

impl Pages {
    /// The pages of the process with this URL.
    pub fn new(
        counts: CountSources,
        readiness: ReadinessProbe,
        reloader: Arc<Reloader>,
        url: String,
    ) -> Self {
        let (fleet, writers, being_sent) = (Mutex::default(), Writers::default(), PagesBeingSent::default());
        Self { counts, readiness, reloader, url, started_ms: now_ms(), fleet, writers, being_sent }
    }

    /// Answers a request for one of the [pages](is_page).
    pub async fn handle(self: &Arc<Self>, uri: Uri) -> Response {
        let pages = self.clone();
        let write = async move {
            let page = pages.page(&uri).await.unwrap_or_else(shutting_down);
            page.into_response(&pages.being_sent)
        };
        let response = self.writers.run(write).await;
        response.unwrap_or_else(|| shutting_down().into_response(&self.being_sent))
    }

    /// One of the pages. `None` at a shutdown.
    async fn page(self: &Arc<Self>, uri: &Uri) -> Option<Page> {
        let params = parse_query(uri.query().unwrap_or_default());
        match uri.path() {
            "/static/style.css" => Some(file("text/css; charset=utf-8", style_sheet())),
            "/static/page.js" => Some(file("text/javascript; charset=utf-8", SCRIPT)),
            "/static/icon.svg" => Some(file("image/svg+xml", ICON)),
            "/config" => Some(Page::html(server::config_page(&self.reloader.shown_config().yaml))),
            "/flags" => Some(Page::html(server::flags_page(&self.reloader.options.flags))),
            "/api/v1/status/config" => Some(Page::json(&value!({"yaml": self.reloader.shown_config().yaml}))),
            "/api/v1/status/flags" => Some(Page::json(&self.flags())),
            "/api/v1/status/buildinfo" => Some(Page::json(
                &value!({"version": VERSION, "revision": REVISION, "rustVersion": RUST_VERSION}),
            )),
            path => match path.strip_prefix("/groups/") {
                Some(detector) => self.group_page(detector, params).await,
                None => self.fleet_page(path.to_string(), params).await,
            },
        }
    }

    fn flags(&self) -> serde_json::Value {
        let flags = self.reloader.options.flags.iter();
        flags.map(|(name, flag)| ((*name).to_string(), value!(flag))).collect()
    }

    /// A page about all groups. `None` at a shutdown.
    async fn fleet_page(self: &Arc<Self>, path: String, params: Vec<(String, String)>) -> Option<Page> {
        let (fleet, pages) = (self.fleet().await?, self.clone());
        let write = move || {
            let query = FleetQuery::from_params(&params);
            let (sidecar, data_path) = (pages.sidecar(), pages.data_path());
            let ShownConfig { grafana_url, .. } = pages.reloader.shown_config();
            match path.as_str() {
                "/api/v1/groups" => Page::json(&json::groups(&fleet.page(&query))),
                "/api/v1/incidents" => Page::json(&json::incidents(&fleet)),
                "/api/v1/status/runtimeinfo" => Page::json(&json::sidecar(&sidecar, &fleet, &data_path)),
                "/status" => Page::html(server::status_page(&sidecar, &fleet, &data_path, now_ms())),
                _ => {
                    let (fleet, sidecar, data_path) = (&*fleet, &sidecar, &data_path);
                    let (grafana_url, now_ms) = (grafana_url.as_ref(), now_ms());
                    let query = &query;
                    let overview = Overview { fleet, sidecar, data_path, query, grafana_url, now_ms };
                    Page::html(overview.html())
                }
            }
        };
        tokio::task::spawn_blocking(write).await.ok()
    }

    /// The page of the group with these labels. `None` at a shutdown.
    async fn group_page(&self, detector: &str, labels: Vec<(String, String)>) -> Option<Page> {
        let detector = parse_query(detector).into_iter().next().map(|(name, _)| name).unwrap_or_default();
        let detail = match Labels::new(labels) {
            Ok(labels) => self.reloader.engine.group_detail(detector, labels).await,
            Err(_) => None,
        };
        let Some(detail) = detail else {
            let message = "There is no such group: its target is gone for longer than the window, or the configuration has changed.";
            let text = server::message_page("No such group", message, "../");
            return Some(Page { status: StatusCode::NOT_FOUND, content_type: HTML, text });
        };
        let context = PageContext {
            commands: self.command_flags(),
            grafana_url: self.reloader.shown_config().grafana_url,
            has_admin_api: self.reloader.options.enable_admin_api,
        };
        let write = move || Page::html(detail.html(&context, now_ms()));
        tokio::task::spawn_blocking(write).await.ok()
    }

    /// Answers the form of a group's page: goes back to the page, or says why not.
    pub async fn feedback(
        &self,
        admin: Option<&AdminApi>,
        headers: &HeaderMap,
        body: RequestBody,
    ) -> Response {
        let external_url = self.reloader.options.external_url.as_ref();
        let result = match admin {
            Some(admin) => admin.feedback_form(headers, body, external_url).await,
            None => Err(super::admin::not_enabled()),
        };
        let location = result.and_then(|path| {
            let location = HeaderValue::try_from(format!("{path}#incidents"));
            location.map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
        });
        match location {
            Ok(location) => {
                let mut response = Page { status: StatusCode::SEE_OTHER, ..Page::html(String::new()) }
                    .into_response(&self.being_sent);
                response.headers_mut().insert(LOCATION, location);
                response
            }
            Err((status, message)) => {
                let text = server::message_page("No feedback was recorded", &message, "");
                Page { status, content_type: HTML, text }.into_response(&self.being_sent)
            }
        }
    }

    /// The flags by which commands find this process and its registry.
    fn command_flags(&self) -> CommandFlags {
        let Options { config_file, storage_path, .. } = &self.reloader.options;
        let flag =
            |name: &str, path: &Path| format!("--{name} {} ", shell_quoted(&path.display().to_string()));
        let config = config_file.as_deref().map(|file| flag("config.file", file));
        let registry = config.unwrap_or_default() + &flag("storage.path", storage_path);
        let is_default = self.url == DEFAULT_URL;
        let url = if is_default { String::new() } else { format!("--url {} ", shell_quoted(&self.url)) };
        CommandFlags { registry, url }
    }

    /// The summaries of all groups. `None` if the engine is gone.
    async fn fleet(&self) -> Option<Arc<Fleet>> {
        let mut latest = self.fleet.lock().await;
        if let Some((until, fleet)) = &*latest
            && Instant::now() < *until
        {
            return Some(fleet.clone());
        }
        let began = Instant::now();
        let groups = self.reloader.engine.summaries().await?;
        let fleet = Arc::new(tokio::task::spawn_blocking(move || Fleet::new(groups)).await.ok()?);
        let max_age = FLEET_MAX_AGE.max(FLEET_MAX_AGE_RATIO * began.elapsed());
        *latest = Some((Instant::now() + max_age, fleet.clone()));
        Some(fleet)
    }

    fn sidecar(&self) -> Sidecar {
        let readiness = self.readiness.current();
        let backends = self.reloader.backends.borrow().clone();
        let storage = &self.reloader.options.storage_path;
        Sidecar {
            version: build_info::LINE,
            shard: self.reloader.options.shard.map(|shard| shard.to_string()),
            started_ms: self.started_ms,
            is_ready: readiness.ready,
            readiness: readiness.text.lines().map(String::from).collect(),
            p99_seconds: self.counts.remote_write.latency_p99(),
            registry: match &backends.registry_config.store {
                registry::Store::Directory(path) => storage.join(path).display().to_string(),
                registry::Store::Mlflow(mlflow) => mlflow.tracking_uri.to_string(),
            },
            endpoints: backends.endpoints.iter().map(|endpoint| endpoint.url.to_string()).collect(),
            external_url: self.reloader.options.external_url.as_ref().map(ToString::to_string),
        }
    }

    fn data_path(&self) -> DataPath {
        let CountSources { ingest, engine, remote_write } = &self.counts;
        DataPath::new(ingest.counts(), engine.row_counts(), remote_write.counts())
    }
}

fn file(content_type: &'static str, text: &str) -> Page {
    Page { status: StatusCode::OK, content_type, text: text.into() }
}

fn shutting_down() -> Page {
    let text = server::message_page("Shutting down", "The sidecar is about to end.", "");
    Page { status: StatusCode::SERVICE_UNAVAILABLE, content_type: HTML, text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    #[tokio::test]
    async fn a_page_holds_its_turn_until_it_is_written_also_without_the_client() {
        let writers = Writers::default();
        let (started, wait_for_start) = oneshot::channel();
        let (finish, wait_for_finish) = oneshot::channel::<()>();
        let work = async move {
            let _ = started.send(());
            let _ = wait_for_finish.await;
        };
        let turns = writers.clone();
        let request = tokio::spawn(async move { turns.run(work).await });
        wait_for_start.await.expect("the work starts");
        request.abort();
        assert!(request.await.expect_err("aborted").is_cancelled());
        assert_eq!(writers.0.available_permits(), MAX_WRITERS - 1);
        drop(finish);
        assert!(writers.0.acquire_many(MAX_WRITERS as u32).await.is_ok());
    }
}
