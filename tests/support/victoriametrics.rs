//! VictoriaMetrics, and reading a server's history.

use super::{Process, free_port, http, wait};
use promforest::history::{Api, Config, HistoryClient, Metrics};
use promforest::prom::matcher::Matcher;
use promforest::prom::{Labels, Sample, Selector};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// Long enough for a start on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(120);

/// A single-node VictoriaMetrics.
pub struct VictoriaMetrics {
    /// The process.
    pub process: Process,
    /// Host and port.
    pub address: String,
}

impl VictoriaMetrics {
    /// Starts it with an empty store in a folder.
    pub fn start(folder: &Path) -> Self {
        let address = format!("127.0.0.1:{}", free_port());
        let args = [
            format!("-httpListenAddr={address}"),
            "-storageDataPath=victoria-metrics-data".into(),
            "-retentionPeriod=30d".into(),
            "-memory.allowedBytes=200MB".into(),
        ];
        let mut process = Process::start("victoria-metrics", &super::victoria_metrics(), &args, folder);
        wait("VictoriaMetrics is healthy", TIMEOUT, &mut [&mut process], || {
            let answer = http::get(&address, "/health").map_err(|err| err.to_string())?;
            if answer.status == 200 { Ok(()) } else { Err(answer.body) }
        });
        Self { process, address }
    }

    /// Its samples, by export.
    pub fn export(&self, selector: &str, range: (i64, i64)) -> BTreeMap<Labels, Vec<Sample>> {
        read_history(Api::Export, &format!("http://{}", self.address), selector, &[], range)
    }
}

/// The samples of a source in a range.
pub fn read_history(
    api: Api,
    url: &str,
    selector: &str,
    group: &[Matcher],
    range: (i64, i64),
) -> BTreeMap<Labels, Vec<Sample>> {
    let config = Config { api, url: url.parse().expect("a URL"), ..Config::default() };
    read_source(&config, selector, group, range)
}

/// The samples of a configured source in a range.
pub fn read_source(
    config: &Config,
    selector: &str,
    group: &[Matcher],
    range: (i64, i64),
) -> BTreeMap<Labels, Vec<Sample>> {
    let client = HistoryClient::new(config, &Metrics::default()).expect("a client");
    let selector = Selector::parse(selector).expect("a selector");
    let mut series: BTreeMap<Labels, Vec<Sample>> = BTreeMap::new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let read = client.read(None, &selector, group, range, |slice| {
        for (labels, samples) in slice {
            series.entry(labels).or_default().extend(samples);
        }
    });
    runtime
        .block_on(read)
        .unwrap_or_else(|error| panic!("{}: {}", config.url, promforest::error::chain(&error)));
    series
}
