//! Gathers the facts: requests to the endpoints, to the servers behind them, and to the sidecar.
//!
//! Each request has a timeout and a limit of its answer. Requests to one server that do not depend on each other run at the
//! same time.

use super::facts::{Answer, EndpointAnswer, Facts, NoAnswer, Selected, Server, Sidecar};
use super::known::Known;
use super::prometheus_config::PrometheusConfig;
use super::rules;
use crate::config::Config;
use crate::detector::Detector;
use crate::error::chain;
use crate::history::{self, Api as HistoryApi, HistoryClient};
use crate::http::Url;
use crate::http::client::{BufferedResponse, Client};
use crate::http::config::ClientConfig;
use crate::prom::{Labels, METRIC_NAME, Sample, Selector, exposition};
use crate::remote_write::TimeSeries;
use crate::remote_write::message::Metadata;
use crate::time::{self, DAY_MS, now_ms};
use crate::{http, remote_write};
use hyper::header::{CONTENT_TYPE, DATE, HeaderName, HeaderValue};
use jiff::fmt::rfc2822::DateTimeParser;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;

/// The series of the trial write.
pub const TRIAL_METRIC: &str = "promforest_doctor_write";
/// Longest wait for one answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Most bytes of an answer.
const LIMIT: usize = 64 << 20;
/// Attempts to read the sample of the trial write back: some servers show it a moment later.
const READ_BACK_ATTEMPTS: usize = 15;
/// Pause between two attempts. VictoriaMetrics shows a sample after two seconds.
const READ_BACK_PAUSE: Duration = Duration::from_millis(300);
/// Steps in which the beginning of the history is looked for.
const HISTORY_STEP_SECONDS: u32 = 900;
/// Age of samples of series that count as present; PromQL's.
const RECENT_MS: i64 = 300_000;

/// Whether the check may write one sample to each endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrialWrite {
    /// One sample of [`TRIAL_METRIC`].
    Allowed,
    /// None.
    Forbidden,
}

/// Gathers all facts.
pub async fn gather(config: &Config, sidecar: &Url, trial_write: TrialWrite) -> Facts {
    let now_ms = now_ms();
    let (mut written, mut read) = (Vec::new(), Vec::new());
    let sample = (trial_write == TrialWrite::Allowed).then(|| trial_series(now_ms));
    for endpoint in &config.remote_write {
        written.push(write_trial(endpoint, sample.as_ref()).await);
    }
    for endpoint in &config.history {
        read.push(read_trial(endpoint, now_ms).await);
    }
    let mut servers = Vec::new();
    for (base, http) in bases(config) {
        let is_written = config.remote_write.iter().zip(&written).any(|(endpoint, trial)| {
            base_of(&endpoint.url) == Some(base.clone())
                && matches!(&trial.answer, Ok(answer) if (200..300).contains(&answer.status))
        });
        servers.push(Api::new(&base, http).server(config, now_ms, is_written).await);
    }
    let sidecar_facts = gather_sidecar(sidecar).await;
    let memory_bytes = is_local(sidecar).then(machine_memory).flatten();
    let sidecar_url = sidecar.to_string();
    Facts { now_ms, sidecar_url, sidecar: sidecar_facts, written, read, servers, memory_bytes }
}

fn trial_series(now_ms: i64) -> TimeSeries {
    let labels = Labels::new([(METRIC_NAME, TRIAL_METRIC)]).expect("one name");
    TimeSeries { labels, samples: vec![Sample { timestamp_ms: now_ms, value: trial_value(now_ms) }] }
}

/// The value of the trial's sample, by which it is recognised: a whole number, as VictoriaMetrics rounds others.
fn trial_value(now_ms: i64) -> f64 {
    now_ms as f64
}

async fn write_trial(endpoint: &remote_write::Config, series: Option<&TimeSeries>) -> EndpointAnswer {
    let url = endpoint.url.to_string();
    let Some(series) = series else { return EndpointAnswer { url, answer: Err(NoAnswer::NotAsked) } };
    let message = endpoint.protobuf_message;
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static(message.content_type())),
        (
            HeaderName::from_static("x-prometheus-remote-write-version"),
            HeaderValue::from_static(message.version()),
        ),
    ];
    let body = message.encode(std::slice::from_ref(series), Metadata::Omitted);
    let timeout = endpoint.remote_timeout.min(TIMEOUT);
    let response = match Client::new(&endpoint.http) {
        Ok(client) => client.post(&endpoint.url, &headers, body, timeout, LIMIT).await,
        Err(error) => Err(error),
    };
    EndpointAnswer { url, answer: answer(response) }
}

fn answer(response: Result<BufferedResponse, http::client::Error>) -> Result<Answer, NoAnswer> {
    match response {
        Ok(response) => Ok(Answer { status: response.status.as_u16(), reason: response.reason() }),
        Err(error) => Err(NoAnswer::Failed(chain(&error))),
    }
}

/// Whether a source of history answers.
async fn read_trial(source: &history::Config, now_ms: i64) -> EndpointAnswer {
    let answer = match read_trial_values(source, now_ms).await {
        Ok(_) => Ok(Answer { status: 200, reason: String::new() }),
        Err(reason) => Err(NoAnswer::Failed(reason)),
    };
    EndpointAnswer { url: source.url.to_string(), answer }
}

/// The values of the last minute of the trial's series.
async fn read_trial_values(source: &history::Config, now_ms: i64) -> Known<Vec<f64>> {
    let config = history::Config { remote_timeout: source.remote_timeout.min(TIMEOUT), ..source.clone() };
    let selector = Selector::parse(TRIAL_METRIC).expect("a selector");
    let client = HistoryClient::new(&config, &history::Metrics::default()).map_err(|error| chain(&error))?;
    let mut values = Vec::new();
    let on_slice = |series: Vec<history::SeriesSamples>| {
        values.extend(series.iter().flat_map(|(_, samples)| samples).map(|sample| sample.value));
    };
    client
        .read(None, &selector, &[], (now_ms - 60_000, now_ms + 1), on_slice)
        .await
        .map_err(|error| chain(&error))?;
    Ok(values)
}

/// The addresses of the HTTP APIs behind the endpoints, with the clients of these.
fn bases(config: &Config) -> Vec<(Url, &ClientConfig)> {
    let written = config.remote_write.iter().map(|endpoint| (base_of(&endpoint.url), &endpoint.http));
    let read = config.history.iter().map(|source| (history_base(source), &source.http));
    let mut bases: Vec<(Url, &ClientConfig)> = Vec::new();
    for (base, http) in written.chain(read).filter_map(|(base, http)| Some((base?, http))) {
        if !bases.iter().any(|(other, _)| *other == base) {
            bases.push((base, http));
        }
    }
    bases
}

/// The address whose `/api/v1/write` or `/api/v1/read` this is.
fn base_of(endpoint: &Url) -> Option<Url> {
    let text = endpoint.expose();
    let path = text.split('?').next().unwrap_or_default();
    let base = ["/api/v1/write", "/api/v1/read"].iter().find_map(|end| path.strip_suffix(end))?;
    base.parse().ok()
}

/// The address of the HTTP API of a source of history.
fn history_base(source: &history::Config) -> Option<Url> {
    match source.api {
        HistoryApi::RemoteRead => base_of(&source.url),
        HistoryApi::Export | HistoryApi::Query => source.url.to_string().trim_end_matches('/').parse().ok(),
    }
}

/// The HTTP API of a server.
struct Api<'c> {
    base: &'c Url,
    client: Result<Client, String>,
}

/// The envelope of an answer.
#[derive(Deserialize)]
struct Envelope {
    #[serde(default)]
    data: Value,
}

/// The result of an instant query.
#[derive(Deserialize)]
struct Vector {
    result: Vec<VectorSample>,
}

/// The result of a range query.
#[derive(Deserialize)]
struct Matrix {
    result: Vec<MatrixSeries>,
}

#[derive(Deserialize)]
struct MatrixSeries {
    values: Vec<(f64, String)>,
}

#[derive(Deserialize)]
struct VectorSample {
    metric: BTreeMap<String, String>,
    value: (f64, String),
}

impl<'c> Api<'c> {
    fn new(base: &'c Url, http: &ClientConfig) -> Self {
        Self { base, client: Client::new(http).map_err(|error| chain(&error)) }
    }

    async fn get(&self, path: &str, query: &[(&str, String)]) -> Known<BufferedResponse> {
        let client = self.client.as_ref().map_err(Clone::clone)?;
        let url = self.base.with_path_and_query(path, query).map_err(|error| chain(&error))?;
        let response = client.get(&url, TIMEOUT, LIMIT).await.map_err(|error| chain(&error))?;
        match response.status.is_success() {
            true => Ok(response),
            false => Err(format!("{path} answers {}: {}", response.status, response.reason())),
        }
    }

    async fn data<T: DeserializeOwned>(&self, path: &str, query: &[(&str, String)]) -> Known<T> {
        let response = self.get(path, query).await?;
        let read = serde_json::from_slice::<Envelope>(&response.body)
            .and_then(|envelope| serde_json::from_value(envelope.data));
        read.map_err(|error| format!("{path}: {error}"))
    }

    async fn query(&self, expression: String) -> Known<Vec<VectorSample>> {
        Ok(self.data::<Vector>("/api/v1/query", &[("query", expression)]).await?.result)
    }

    async fn server(&self, config: &Config, now_ms: i64, is_written: bool) -> Server {
        let alerts = [("type", "alert".to_string())];
        let (build, yaml, rules, jobs, read_back) = tokio::join!(
            self.get("/api/v1/status/buildinfo", &[]),
            self.data::<Value>("/api/v1/status/config", &[]),
            self.data("/api/v1/rules", &alerts),
            self.query("count by (job) (promforest_build_info)".into()),
            self.read_back(config, now_ms, is_written),
        );
        let clock_ahead_ms = build.as_ref().ok().and_then(clock_ahead_ms);
        let parse_config = |data: Value| match data["yaml"].as_str() {
            // VictoriaMetrics has an empty one.
            Some("") | None => Err("/api/v1/status/config: no configuration".into()),
            Some(text) => PrometheusConfig::parse(text),
        };
        let of_job = |sample: VectorSample| sample.metric.get("job").cloned().unwrap_or_default();
        let mut selected = Vec::new();
        for detector in &config.detectors {
            selected.push(self.selected(detector, now_ms).await);
        }
        Server {
            url: self.base.to_string(),
            version: build.and_then(|response| version(&response)),
            clock_ahead_ms,
            config: yaml.and_then(parse_config),
            rules: rules.and_then(rules::parse_loaded),
            promforest_jobs: jobs.map(|jobs| jobs.into_iter().map(of_job).collect()),
            read_back,
            selected,
        }
    }

    /// True if the trial's sample is found; `None` if none was written. A source of history of this server is asked, as
    /// an instant query of VictoriaMetrics does not return the last 30 seconds.
    async fn read_back(&self, config: &Config, now_ms: i64, is_written: bool) -> Option<Known<bool>> {
        if !is_written {
            return None;
        }
        let is_of_server = |source: &&history::Config| history_base(source).as_ref() == Some(self.base);
        let source = config.history.iter().find(is_of_server);
        for attempt in 0..READ_BACK_ATTEMPTS {
            if attempt > 0 {
                tokio::time::sleep(READ_BACK_PAUSE).await;
            }
            let found = match source {
                Some(source) => read_trial_values(source, now_ms).await,
                None => self.query(TRIAL_METRIC.into()).await.map(|found| {
                    found.iter().filter_map(|sample| sample.value.1.parse().ok()).collect::<Vec<f64>>()
                }),
            };
            match found {
                Ok(values) if values.contains(&trial_value(now_ms)) => return Some(Ok(true)),
                Ok(_) => {}
                Err(reason) => return Some(Err(reason)),
            }
        }
        Some(Ok(false))
    }

    async fn selected(&self, detector: &Detector, now_ms: i64) -> Known<Selected> {
        let selectors: Vec<String> = detector.matchers.iter().map(ToString::to_string).collect();
        let day_ago: Vec<String> = selectors.iter().map(|selector| format!("{selector} offset 1d")).collect();
        let (recent, last_day, history) = tokio::join!(
            self.series(&selectors, now_ms - RECENT_MS),
            self.series(&selectors, now_ms - DAY_MS),
            self.query(format!("count({})", day_ago.join(" or "))),
        );
        let recent = recent?;
        let metric_names = match recent.is_empty() {
            true => self.data("/api/v1/label/__name__/values", &[]).await?,
            false => Vec::new(),
        };
        let has_day_of_history = !history?.is_empty();
        let history_since_ms = match has_day_of_history || recent.is_empty() {
            true => None,
            // A back end may lack range queries.
            false => self.oldest_of_day(&selectors, now_ms).await.ok().flatten(),
        };
        Ok(Selected { recent, last_day: last_day?, has_day_of_history, history_since_ms, metric_names })
    }

    /// The first time of the last day, in steps of a quarter of an hour, at which one of these selectors has a sample.
    async fn oldest_of_day(&self, selectors: &[String], now_ms: i64) -> Known<Option<i64>> {
        let query = [
            ("query", format!("count({})", selectors.join(" or "))),
            ("start", ((now_ms - DAY_MS) / 1000).to_string()),
            ("end", (now_ms / 1000).to_string()),
            ("step", HISTORY_STEP_SECONDS.to_string()),
        ];
        let matrix: Matrix = self.data("/api/v1/query_range", &query).await?;
        let first = matrix.result.iter().filter_map(|series| series.values.first());
        Ok(first.map(|(seconds, _)| (seconds * 1000.0) as i64).min())
    }

    /// The series of these selectors that have a sample since a time.
    async fn series(&self, selectors: &[String], since_ms: i64) -> Known<Vec<Labels>> {
        let mut query: Vec<(&str, String)> =
            selectors.iter().map(|selector| ("match[]", selector.clone())).collect();
        query.push(("start", (since_ms / 1000).to_string()));
        let series: Vec<BTreeMap<String, String>> = self.data("/api/v1/series", &query).await?;
        let labels = |pairs| Labels::new::<String, String>(pairs).map_err(|error| error.to_string());
        series.into_iter().map(labels).collect()
    }
}

fn version(response: &BufferedResponse) -> Known<String> {
    let read = serde_json::from_slice::<Envelope>(&response.body).map_err(|error| error.to_string())?;
    let version = read.data["version"].as_str().map(String::from);
    version.ok_or_else(|| "/api/v1/status/buildinfo: no version".into())
}

/// Distance of a server's clock ahead of this one, by the `Date` of its response, which has no fractions of a second.
fn clock_ahead_ms(response: &BufferedResponse) -> Option<i64> {
    let date = response.headers.get(DATE)?.to_str().ok()?;
    let date = DateTimeParser::new().parse_timestamp(date).ok()?;
    let ahead_ms = date.as_millisecond() - now_ms();
    Some(if (-1000..0).contains(&ahead_ms) { 0 } else { ahead_ms })
}

/// The state of the sidecar, in an answer of `/api/v1/status/runtimeinfo`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RuntimeInfo {
    version: String,
    shard: Option<String>,
    newest_score: Option<String>,
    readiness: Vec<String>,
    groups: usize,
}

async fn gather_sidecar(url: &Url) -> Known<Sidecar> {
    let api = Api { base: url, client: Ok(Client::default()) };
    let (page, info) =
        tokio::join!(api.get("/metrics", &[]), api.data::<RuntimeInfo>("/api/v1/status/runtimeinfo", &[]));
    let (page, info) = (page?, info?);
    let text = std::str::from_utf8(&page.body).map_err(|error| error.to_string())?;
    let newest = info.newest_score.as_deref().map(time::parse).transpose()?;
    let shard = info.shard.as_deref().map(str::parse).transpose();
    Ok(Sidecar {
        version: info.version,
        shard: shard.map_err(|error| chain(&error))?,
        newest_score_ms: newest,
        readiness: info.readiness,
        n_groups: info.groups,
        metrics: exposition::parse_values(text, &[]).map_err(|error| chain(&error))?,
        clock_ahead_ms: clock_ahead_ms(&page),
    })
}

fn is_local(url: &Url) -> bool {
    let authority = url.authority();
    ["localhost", "127.", "[::1]"].iter().any(|host| authority.starts_with(host))
}

/// Memory of this machine in bytes, from `/proc/meminfo`.
fn machine_memory() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kib = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    Some(kib.trim().strip_suffix(" kB")?.parse::<f64>().ok()? * 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_api_of_an_endpoint_is_beside_it() {
        let base = |text: &str| base_of(&text.parse().expect("a URL")).map(|url| url.expose());
        assert_eq!(base("http://a:9090/api/v1/write").as_deref(), Some("http://a:9090/"));
        assert_eq!(base("http://a/prom/api/v1/read?tenant=x").as_deref(), Some("http://a/prom"));
        assert_eq!(base("http://a/api/v1/push"), None);
    }

    #[test]
    fn servers_behind_several_endpoints_are_asked_once() {
        let text = "remote_write: [{url: 'http://a/api/v1/write'}, {url: 'http://b/api/v1/push'}]\n\
                    remote_read: [{url: 'http://a/api/v1/read'}, {url: 'http://c/api/v1/read'}]";
        let config = Config::parse(text).expect("valid");
        let bases: Vec<String> = bases(&config).iter().map(|(url, _)| url.authority()).collect();
        assert_eq!(bases, ["a", "c"]);
    }
}
