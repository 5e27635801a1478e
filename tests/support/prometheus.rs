//! Prometheus' HTTP API.

use super::example::wait_for_ok;
use super::{Process, PrometheusVersion, free_port, http};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// A server of a version that scrapes nothing and accepts remote write, with its files in a folder.
pub fn start_receiver(version: PrometheusVersion, folder: &Path) -> (Process, String) {
    let address = format!("127.0.0.1:{}", free_port());
    let storage = storage_path(folder, &address);
    let config = storage.with_extension("yml");
    fs::write(&config, "storage: {tsdb: {out_of_order_time_window: 30m}}\n").expect("writable");
    let args = [
        format!("--config.file={}", config.display()),
        format!("--storage.tsdb.path={}", storage.display()),
        format!("--web.listen-address={address}"),
        "--web.enable-remote-write-receiver".into(),
    ];
    let name = format!("receiver-{address}");
    let mut process = Process::start(&name, &version.prometheus(), &args, folder);
    wait_for_ok(&mut process, &address, "/-/ready");
    (process, address)
}

/// One series of an answer.
#[derive(Clone, Debug)]
pub struct Series {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its samples: milliseconds since the epoch, and the value.
    pub samples: Vec<(i64, f64)>,
}

impl Series {
    /// The samples' timestamps.
    pub fn timestamps(&self) -> Vec<i64> {
        self.samples.iter().map(|(timestamp_ms, _)| *timestamp_ms).collect()
    }
}

/// The storage of such a server.
pub fn storage_path(folder: &Path, address: &str) -> PathBuf {
    folder.join(address.replace([':', '.'], "-"))
}

/// A server's API at `HOST:PORT`.
#[derive(Clone, Debug)]
pub struct PrometheusApi(pub String);

impl PrometheusApi {
    /// An instant query; a selector with a range gives the samples as they are stored.
    pub fn query(&self, expression: &str) -> Result<Vec<Series>, String> {
        self.data(&format!("query?query={}", http::encode(expression))).map(|data| series(&data))
    }

    /// A query over the last `seconds`, every `step` seconds.
    pub fn query_range(&self, expression: &str, seconds: u32, step: u32) -> Result<Vec<Series>, String> {
        let end = super::now_ms() / 1000;
        let start = end - i64::from(seconds);
        let query = http::encode(expression);
        let path = format!("query_range?query={query}&start={start}&end={end}&step={step}");
        self.data(&path).map(|data| series(&data))
    }

    /// The values of a label among the selected series.
    pub fn label_values(&self, label: &str, selector: &str) -> Result<Vec<String>, String> {
        let data = self.data(&format!("label/{label}/values?match[]={}", http::encode(selector)))?;
        Ok(list(&data).iter().map(text).collect())
    }

    /// The `data` of an answer.
    pub fn data(&self, path: &str) -> Result<Value, String> {
        let path = format!("/api/v1/{path}");
        let answer = http::get(&self.0, &path).map_err(|err| format!("{path}: {err}"))?;
        let mut body: Value = serde_json::from_str(&answer.body)
            .map_err(|err| format!("{path}: {} {err}: {}", answer.status, answer.body))?;
        if answer.status == 200 && body["status"] == "success" {
            Ok(body["data"].take())
        } else {
            Err(format!("{path}: {} {}", answer.status, answer.body))
        }
    }
}

/// The items of a list.
pub fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// A string.
pub fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is no string")).into()
}

fn series(data: &Value) -> Vec<Series> {
    let parse_series = |value: &Value| {
        let labels = value["metric"].as_object().expect("a series has labels").iter();
        let samples = if value["values"].is_array() {
            list(&value["values"]).iter().map(sample).collect()
        } else {
            vec![sample(&value["value"])]
        };
        Series { labels: labels.map(|(name, value)| (name.clone(), text(value))).collect(), samples }
    };
    match data["resultType"].as_str() {
        Some("scalar") => vec![Series { labels: BTreeMap::new(), samples: vec![sample(&data["result"])] }],
        _ => list(&data["result"]).iter().map(parse_series).collect(),
    }
}

/// `[seconds, "value"]`.
fn sample(pair: &Value) -> (i64, f64) {
    let seconds = pair[0].as_f64().expect("a timestamp is a number");
    let value = text(&pair[1]);
    ((seconds * 1000.0).round() as i64, value.parse().unwrap_or_else(|err| panic!("{value:?}: {err}")))
}
