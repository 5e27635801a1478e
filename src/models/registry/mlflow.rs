//! An MLflow server as the registry, over its REST interface and its artifact proxy.
//!
//! A training is a run with one nested run per size of its sweep. The model and the training report are artifacts of
//! the run, and the registered version points to them. Files pass through the tracking server (`mlflow-artifacts:`), so
//! that promforest needs no keys of the artifact store.
//!
//! Models are logged as files of a run, which MLflow 2 and 3 support. Models that a version 3 client logged can be read
//! too.

mod aliases;
mod artifacts;
mod config;
mod metrics;
mod error;
mod periods;

pub use config::Config;
pub use error::Error;
use metrics::{kl_metrics, sweep_metrics};

use super::{CHALLENGER, ModelAliases, ModelVersion, NewVersion};
use crate::http::client::{self, Client, Request};
use crate::http::config::ClientConfig;
use crate::http::{Url, encode_query, percent_encode};
use crate::models::artifact::{self, Files};
use crate::time;
use bytes::Bytes;
use hyper::Method;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use serde_json::{Value, json};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// Timeout of one call. Uploads of some megabytes through a proxy take seconds.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Most bytes of a response without an artifact.
const RESPONSE_LIMIT: usize = 16 << 20;
/// Items of one page of a listing.
const PAGE_SIZE: usize = 200;
/// Most parameters, tags or metrics of one call: the server accepts 100 of each.
const BATCH_SIZE: usize = 100;

const PROMOTED: &str = "promforest.promoted_at";
const ROLLED_BACK: &str = "promforest.rolled_back";
const NOTE: &str = "promforest.note";
/// Prefix of the tags of a registered model that hold [`ModelAliases::pinned_below`], one for each alias.
const PINNED_BELOW: &str = "promforest.pinned_below.";

/// An MLflow server.
pub struct Mlflow {
    base: String,
    experiment: String,
    client: Client,
    /// True for a server that cannot search for a list of names: version 2.
    lacks_name_lists: AtomicBool,
}

impl Mlflow {
    /// A client of the server; sends no request yet.
    ///
    /// # Errors
    /// The client's configuration is invalid.
    pub fn new(config: &Config) -> Result<Self, client::Error> {
        Ok(Self {
            base: config.tracking_uri.expose().trim_end_matches('/').into(),
            experiment: config.experiment.clone(),
            client: Client::new(&ClientConfig {
                auth: config::resolve_auth(&config.client),
                ..config.client.clone()
            })?,
            lacks_name_lists: AtomicBool::new(false),
        })
    }

    /// See [`Registry::versions`](super::Registry::versions).
    ///
    /// # Errors
    /// [`Error`].
    pub async fn versions(&self, model: &str) -> Result<Vec<ModelVersion>, Error> {
        let filter = format!("name='{}'", model.replace('\'', ""));
        let items = self.list_all("model-versions/search", "model_versions", &filter).await?;
        let mut versions: Vec<ModelVersion> = items.iter().filter_map(parse_version).collect();
        versions.sort_by_key(|version| version.number);
        Ok(versions)
    }

    /// See [`Registry::files`](super::Registry::files).
    ///
    /// # Errors
    /// [`Error`].
    pub async fn files(&self, model: &str, version: u64) -> Result<Files, Error> {
        let query = [("name", model), ("version", &version.to_string())];
        let response = self.get("model-versions/get-download-uri", &query).await?;
        self.download_folder(&text_field(&response, "artifact_uri")).await
    }

    /// The files of a model that a client of version 2 or 3 logged in a run under `path`.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn run_files(&self, run: &str, path: &str) -> Result<Files, Error> {
        let response = self.get("runs/get", &[("run_id", run)]).await?;
        let info = &response["run"]["info"];
        let files = self.download_folder(&format!("{}/{path}", text_field(info, "artifact_uri"))).await?;
        if !files.is_empty() {
            return Ok(files);
        }
        let experiment_id = text_field(info, "experiment_id");
        let outputs = response["run"]["outputs"]["model_outputs"].as_array().cloned().unwrap_or_default();
        for output in outputs {
            let id = text_field(&output, "model_id");
            let model = self.get(&format!("logged-models/{}", percent_encode(&id)), &[]).await?;
            if text_field(&model["model"]["info"], "name") == path {
                return self
                    .download_folder(&format!("mlflow-artifacts:/{experiment_id}/models/{id}/artifacts"))
                    .await;
            }
        }
        Err(Error::NoModel { run: run.into(), path: path.into() })
    }

    /// See [`Registry::register`](super::Registry::register).
    ///
    /// # Errors
    /// [`Error`]. The run is then marked as failed.
    pub async fn register(&self, model: &str, new_version: &NewVersion<'_>) -> Result<u64, Error> {
        let experiment_id = self.get_or_create_experiment().await?;
        let now_ms = time::now_ms();
        let name = format!("{model} {}", crate::time::format_timestamp(now_ms));
        let run = self.start_run(&experiment_id, &name, None).await?;
        let result = self.log_and_register(&run, &experiment_id, model, new_version).await;
        let status = if result.is_ok() { "FINISHED" } else { "FAILED" };
        let ended = self.end_run(&run.id, status).await;
        let version = result?;
        ended?;
        Ok(version)
    }

    async fn log_and_register(
        &self,
        run: &Run,
        experiment_id: &str,
        model: &str,
        new_version: &NewVersion<'_>,
    ) -> Result<u64, Error> {
        let card = &new_version.model.card;
        let mut params = card.params.clone();
        let mut metrics = vec![("n_features".to_string(), new_version.model.schema.features.len() as f64, 0)];
        if let Some(training_range) = &card.training_range {
            params.push(("training_from".into(), crate::time::format_timestamp(training_range.from_ms)));
            params.push(("training_to".into(), crate::time::format_timestamp(training_range.to_ms)));
            metrics.push(("n_rows".into(), training_range.n_rows as f64, 0));
            metrics.push(("n_excluded_rows".into(), training_range.n_excluded as f64, 0));
        }
        if let Some(validation) = &card.validation {
            metrics.extend(kl_metrics(validation.best()));
            metrics.extend(validation.trials.iter().flat_map(sweep_metrics));
            metrics.push(("alert_rate".into(), validation.held_out.alert_rate, 0));
            let incidents = validation.held_out.incidents_per_day;
            metrics.extend(incidents.map(|incidents| ("incidents_per_day".into(), incidents, 0)));
        }
        let mut tags = vec![("mlflow.note.content".to_string(), new_version.note.clone())];
        tags.extend(
            card.detector.iter().map(|detector| ("promforest.detector".to_string(), detector.clone())),
        );
        tags.extend(card.group.iter().map(|group| ("promforest.group".to_string(), group.to_string())));
        self.log_batches(&run.id, &params, &metrics, &tags).await?;
        for trial in card.validation.iter().flat_map(|validation| &validation.trials) {
            let name = format!("max_samples {}", trial.max_samples);
            let child = self.start_run(experiment_id, &name, Some(&run.id)).await?;
            let params = [("max_samples".to_string(), trial.max_samples.to_string())];
            self.log_batches(&child.id, &params, &kl_metrics(trial), &[]).await?;
            self.end_run(&child.id, "FINISHED").await?;
        }
        let folder = format!("{}/model", run.artifact_uri);
        self.upload_folder(&folder, artifact::to_files(new_version.model)).await?;
        if let Some(report) = new_version.report {
            self.upload(&format!("{}/report.html", run.artifact_uri), report.as_bytes().to_vec()).await?;
        }
        let created = self.post("registered-models/create", json!({"name": model})).await;
        if let Err(error) = created
            && !error.has_code("RESOURCE_ALREADY_EXISTS")
        {
            return Err(error);
        }
        let tags: Vec<Value> = [(NOTE, new_version.note.clone())].iter().map(key_value).collect();
        let body = json!({
            "name": model, "source": folder, "run_id": run.id, "tags": tags, "description": new_version.note,
        });
        let response = self.post("model-versions/create", body).await?;
        let version = text_field(&response["model_version"], "version");
        version.parse().map_err(|_| self.missing_field("model-versions/create", "version"))
    }

    /// See [`Registry::promote`](super::Registry::promote).
    ///
    /// # Errors
    /// [`Error`].
    pub async fn promote(&self, model: &str, alias: &str, version: u64) -> Result<(), Error> {
        // A challenger has not served yet.
        if alias == CHALLENGER {
            return self.set_alias(model, alias, version).await;
        }
        let now_ms = time::now_ms();
        let aliases = self.model_aliases(model).await?;
        if let Some(previous) = aliases.version(alias).filter(|previous| *previous != version) {
            self.record_promotion(model, previous, now_ms - 1).await?;
        }
        self.move_alias(model, &aliases, alias, version).await?;
        self.set_tag(model, version, ROLLED_BACK, "false").await?;
        self.set_tag(model, version, PROMOTED, &now_ms.to_string()).await
    }

    /// Marks a version as promoted that another client has promoted: a rollback returns to it.
    async fn record_promotion(&self, model: &str, version: u64, promoted_ms: i64) -> Result<(), Error> {
        let query = [("name", model), ("version", &version.to_string())];
        let response = self.get("model-versions/get", &query).await?;
        match parse_version(&response["model_version"]) {
            Some(ModelVersion { promoted_ms: None, .. }) => {
                self.set_tag(model, version, PROMOTED, &promoted_ms.to_string()).await
            }
            _ => Ok(()),
        }
    }

    /// See [`Registry::promote_trained`](super::Registry::promote_trained).
    ///
    /// # Errors
    /// [`Error`].
    pub async fn promote_trained(
        &self,
        model: &str,
        alias: &str,
        version: u64,
    ) -> Result<Option<u64>, Error> {
        let aliases = self.model_aliases(model).await?;
        let pinned = aliases.pinned_version(alias);
        self.promote(model, if pinned.is_some() { CHALLENGER } else { alias }, version).await?;
        if aliases.has_promoted_challenger(alias) && pinned.is_none() {
            self.remove_alias(model, CHALLENGER).await?;
        }
        Ok(pinned)
    }

    /// Replaces the limit of the pins of an alias; see [`ModelAliases::pinned_below`].
    ///
    /// # Errors
    /// [`Error`].
    pub async fn set_pinned_below(&self, model: &str, alias: &str, limit: u64) -> Result<(), Error> {
        let body =
            json!({"name": model, "key": format!("{PINNED_BELOW}{alias}"), "value": limit.to_string()});
        self.post("registered-models/set-tag", body).await.map(drop)
    }

    /// Points an alias to a version. Of the two calls, an interruption after the first leaves the pin of a version as it
    /// is.
    async fn move_alias(
        &self,
        model: &str,
        aliases: &ModelAliases,
        alias: &str,
        version: u64,
    ) -> Result<(), Error> {
        let limit = aliases.pinned_below_after_move(alias, version);
        if limit > version {
            self.set_pinned_below(model, alias, limit).await?;
            return self.set_alias(model, alias, version).await;
        }
        self.set_alias(model, alias, version).await?;
        self.set_pinned_below(model, alias, limit).await
    }

    /// See [`Registry::roll_back`](super::Registry::roll_back).
    ///
    /// # Errors
    /// [`Error`].
    pub async fn roll_back(&self, model: &str, alias: &str, from: u64, to: u64) -> Result<(), Error> {
        let aliases = self.model_aliases(model).await?;
        self.move_alias(model, &aliases, alias, to).await?;
        self.set_tag(model, from, ROLLED_BACK, "true").await
    }

    /// See [`Registry::remove_alias`](super::Registry::remove_alias).
    ///
    /// # Errors
    /// [`Error`].
    pub async fn remove_alias(&self, model: &str, alias: &str) -> Result<(), Error> {
        let address = format!("{}/api/2.0/mlflow/registered-models/alias", self.base);
        self.call(Method::DELETE, &address, Some(json!({"name": model, "alias": alias}))).await.map(drop)
    }

    async fn set_alias(&self, model: &str, alias: &str, version: u64) -> Result<(), Error> {
        let body = json!({"name": model, "alias": alias, "version": version.to_string()});
        self.post("registered-models/alias", body).await.map(drop)
    }

    async fn set_tag(&self, model: &str, version: u64, key: &str, value: &str) -> Result<(), Error> {
        let body = json!({"name": model, "version": version.to_string(), "key": key, "value": value});
        self.post("model-versions/set-tag", body).await.map(drop)
    }

    /// The id of the experiment, which is created if it does not exist.
    async fn get_or_create_experiment(&self) -> Result<String, Error> {
        let query = [("experiment_name", self.experiment.as_str())];
        match self.get("experiments/get-by-name", &query).await {
            Err(error) if error.has_code("RESOURCE_DOES_NOT_EXIST") => {}
            response => return Ok(text_field(&response?["experiment"], "experiment_id")),
        }
        match self.post("experiments/create", json!({"name": self.experiment})).await {
            // Another client has created the experiment.
            Err(error) if error.has_code("RESOURCE_ALREADY_EXISTS") => {
                let response = self.get("experiments/get-by-name", &query).await?;
                Ok(text_field(&response["experiment"], "experiment_id"))
            }
            response => Ok(text_field(&response?, "experiment_id")),
        }
    }

    async fn start_run(&self, experiment_id: &str, name: &str, parent: Option<&str>) -> Result<Run, Error> {
        let mut tags = vec![
            ("mlflow.source.name", "promforest".to_string()),
            ("mlflow.source.type", "JOB".to_string()),
            ("mlflow.user", "promforest".to_string()),
            ("promforest.version", env!("CARGO_PKG_VERSION").to_string()),
        ];
        tags.extend(parent.map(|parent| ("mlflow.parentRunId", parent.to_string())));
        let tags: Vec<Value> = tags.iter().map(key_value).collect();
        let body = json!({"experiment_id": experiment_id, "run_name": name, "start_time": time::now_ms(), "tags": tags});
        let response = self.post("runs/create", body).await?;
        let info = &response["run"]["info"];
        let run = Run { id: text_field(info, "run_id"), artifact_uri: text_field(info, "artifact_uri") };
        if run.id.is_empty() { Err(self.missing_field("runs/create", "run_id")) } else { Ok(run) }
    }

    async fn end_run(&self, run: &str, status: &str) -> Result<(), Error> {
        let body = json!({"run_id": run, "status": status, "end_time": time::now_ms()});
        self.post("runs/update", body).await.map(drop)
    }

    async fn log_batches(
        &self,
        run: &str,
        params: &[(String, String)],
        metrics: &[(String, f64, usize)],
        tags: &[(String, String)],
    ) -> Result<(), Error> {
        let timestamp = time::now_ms();
        let metric = |(key, value, step): &(String, f64, usize)| {
            // JSON has no such number; MLflow accepts the text.
            let value = if value.is_finite() { json!(value) } else { json!(value.to_string()) };
            json!({"key": key, "value": value, "timestamp": timestamp, "step": step})
        };
        let metrics: Vec<Value> = metrics.iter().map(metric).collect();
        let params: Vec<Value> = params.iter().map(key_value).collect();
        let tags: Vec<Value> = tags.iter().map(key_value).collect();
        let batches = metrics.len().max(params.len()).max(tags.len()).div_ceil(BATCH_SIZE);
        let batch = |items: &[Value], i: usize| {
            items.iter().skip(i * BATCH_SIZE).take(BATCH_SIZE).cloned().collect::<Vec<_>>()
        };
        for i in 0..batches {
            let body = json!({"run_id": run, "metrics": batch(&metrics, i), "params": batch(&params, i), "tags": batch(&tags, i)});
            self.post("runs/log-batch", body).await?;
        }
        Ok(())
    }

    async fn get(&self, call: &str, query: &[(&str, &str)]) -> Result<Value, Error> {
        let query = encode_query(query.iter().copied());
        self.call(Method::GET, &format!("{}/api/2.0/mlflow/{call}?{query}", self.base), None).await
    }

    async fn post(&self, call: &str, body: Value) -> Result<Value, Error> {
        self.call(Method::POST, &format!("{}/api/2.0/mlflow/{call}", self.base), Some(body)).await
    }

    /// All pages of a listing.
    async fn list_all(&self, call: &str, field: &'static str, filter: &str) -> Result<Vec<Value>, Error> {
        let mut items = Vec::new();
        let mut token = String::new();
        loop {
            let page_size = PAGE_SIZE.to_string();
            let mut query = vec![("filter", filter), ("max_results", page_size.as_str())];
            if !token.is_empty() {
                query.push(("page_token", token.as_str()));
            }
            let mut response = self.get(call, &query).await?;
            if let Value::Array(more) = response[field].take() {
                items.extend(more);
            }
            let next = text_field(&response, "next_page_token");
            if next.is_empty() || next == token {
                return Ok(items);
            }
            token = next;
        }
    }

    async fn call(&self, method: Method, address: &str, body: Option<Value>) -> Result<Value, Error> {
        let content =
            body.map(|body| (HeaderValue::from_static("application/json"), Bytes::from(body.to_string())));
        let response = self.send(method, address, content, RESPONSE_LIMIT).await?;
        serde_json::from_slice(&response)
            .map_err(|_| Error::UnexpectedResponse { url: without_query(address), field: "JSON" })
    }

    async fn send(
        &self,
        method: Method,
        address: &str,
        content: Option<(HeaderValue, Bytes)>,
        limit: usize,
    ) -> Result<Bytes, Error> {
        let url: Url = address
            .parse()
            .map_err(|_| Error::UnexpectedResponse { url: without_query(address), field: "an address" })?;
        let (headers, body) = match content {
            Some((content_type, body)) => (HeaderMap::from_iter([(CONTENT_TYPE, content_type)]), body),
            None => (HeaderMap::new(), Bytes::new()),
        };
        let request = Request { method, url, headers, body, timeout: TIMEOUT, limit };
        let response = self.client.request(request).await?;
        if response.status.is_success() {
            return Ok(response.body);
        }
        // A proxy before MLflow may answer in plain text.
        let error_body: Value = serde_json::from_slice(&response.body).unwrap_or_default();
        let message = text_field(&error_body, "message");
        let reason = if message.is_empty() {
            response.reason()
        } else {
            message.lines().next().unwrap_or_default().into()
        };
        Err(Error::Refused {
            url: without_query(address),
            status: response.status,
            code: text_field(&error_body, "error_code"),
            reason,
        })
    }

    fn missing_field(&self, call: &str, field: &'static str) -> Error {
        Error::UnexpectedResponse { url: format!("{}/api/2.0/mlflow/{call}", self.base), field }
    }
}

struct Run {
    id: String,
    artifact_uri: String,
}

fn parse_version(item: &Value) -> Option<ModelVersion> {
    let tags = item["tags"].as_array().into_iter().flatten();
    let tags: Vec<(String, String)> =
        tags.map(|tag| (text_field(tag, "key"), text_field(tag, "value"))).collect();
    let tag = |key: &str| tags.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str());
    Some(ModelVersion {
        number: text_field(item, "version").parse().ok()?,
        created_ms: item["creation_timestamp"].as_i64().unwrap_or_default(),
        promoted_ms: tag(PROMOTED).and_then(|value| value.parse().ok()),
        rolled_back: tag(ROLLED_BACK) == Some("true"),
        note: tag(NOTE).map_or_else(|| text_field(item, "description"), str::to_string),
    })
}

fn key_value<K: AsRef<str>>((key, value): &(K, String)) -> Value {
    json!({"key": key.as_ref(), "value": value})
}

/// A text field; empty if absent, because MLflow omits empty fields.
fn text_field(value: &Value, field: &str) -> String {
    value[field].as_str().unwrap_or_default().to_string()
}

/// An address without its query, for messages.
fn without_query(address: &str) -> String {
    address.split('?').next().unwrap_or_default().to_string()
}
