//! `promforest match`: the series of an exporter's page, or of a Prometheus, that each detector selects.

use super::{OutputFormat, load_config, parse_label};
use crate::config::Config;
use crate::detector::FeatureIdentity;
use crate::error::BoxError;
use crate::features::Transform;
use crate::http::Url;
use crate::http::client::Client;
use crate::prom::{Labels, Sample, exposition};
use crate::time::now_ms;
use bytes::Bytes;
use clap::Args;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, Args)]
pub struct MatchArgs {
    /// Configuration file; without one, the node_network detector
    #[arg(long = "config.file", value_name = "FILE")]
    config_file: Option<PathBuf>,
    /// URL of an exporter's page
    #[arg(long, value_name = "URL", default_value = "http://localhost:9100/metrics")]
    url: Url,
    /// Label that Prometheus adds to scraped series, such as job=node; may be repeated
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = parse_label)]
    labels: Vec<(String, String)>,
    /// URL of a Prometheus, whose series of the last five minutes are matched instead of an exporter's page
    #[arg(long, value_name = "URL", conflicts_with_all = ["url", "labels"])]
    prometheus: Option<Url>,
    /// Output format
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    output: OutputFormat,
}

/// The series of a page that one detector selects.
#[derive(Debug, Serialize)]
struct MatchedDetector {
    detector: String,
    selected: usize,
    groups: Vec<MatchedGroup>,
}

#[derive(Debug, Serialize)]
struct MatchedGroup {
    labels: BTreeMap<String, String>,
    columns: Vec<String>,
}

/// Largest page, in bytes. A page rarely exceeds a few MiB.
const PAGE_LIMIT: usize = 64 << 20;

pub async fn run(args: MatchArgs) -> Result<(), BoxError> {
    let config = load_config(args.config_file.as_deref())?;
    let (source, series) = match &args.prometheus {
        Some(prometheus) => (prometheus, read_prometheus(prometheus, &config).await?),
        None => {
            let page = get(&args.url).await?;
            (&args.url, exposition::parse_series(std::str::from_utf8(&page)?, &target_labels(&args))?)
        }
    };
    let matched: Vec<MatchedDetector> = config
        .detectors
        .iter()
        .map(|detector| {
            let selected: Vec<&Labels> =
                series.iter().filter(|labels| detector.matchers.iter().any(|s| s.matches(labels))).collect();
            let mut groups: BTreeMap<Labels, Vec<(Labels, Vec<Sample>)>> = BTreeMap::new();
            let at_one_time = Sample { timestamp_ms: 0, value: 0.0 };
            for labels in &selected {
                let group = labels.split(&detector.by).0;
                groups.entry(group).or_default().push(((*labels).clone(), vec![at_one_time]));
            }
            let features = |mut series: Vec<(Labels, Vec<Sample>)>| {
                FeatureIdentity::default().rename(detector, &mut series);
                series.into_iter().map(|(feature, _)| feature).collect()
            };
            MatchedDetector {
                detector: detector.name.clone(),
                selected: selected.len(),
                groups: groups
                    .into_iter()
                    .map(|(labels, series)| matched_group(&labels, features(series), detector.transform))
                    .collect(),
            }
        })
        .collect();
    match args.output {
        OutputFormat::Json => println!("{}", serde_json::to_string_pretty(&matched)?),
        OutputFormat::Text => print_matched(&matched, series.len(), source),
    }
    Ok(())
}

async fn get(url: &Url) -> Result<Bytes, BoxError> {
    let response = Client::default().get(url, Duration::from_secs(10), PAGE_LIMIT).await?;
    if !response.status.is_success() {
        return Err(format!("{url} answered {}: {}", response.status, response.reason()).into());
    }
    Ok(response.body)
}

/// An answer of Prometheus' `/api/v1/series`.
#[derive(Deserialize)]
struct SeriesAnswer {
    data: Vec<BTreeMap<String, String>>,
}

/// The series of a Prometheus that a detector selects and that had a sample in the last five minutes, each once.
async fn read_prometheus(prometheus: &Url, config: &Config) -> Result<Vec<Labels>, BoxError> {
    let selectors = config.detectors.iter().flat_map(|detector| &detector.matchers);
    let mut query: Vec<(&str, String)> =
        selectors.map(|selector| ("match[]", selector.to_string())).collect();
    query.push(("start", (now_ms() / 1000 - 300).to_string()));
    let url = prometheus.with_path_and_query("/api/v1/series", &query)?;
    let answer: SeriesAnswer = serde_json::from_slice(&get(&url).await?)
        .map_err(|error| format!("{prometheus} answered no list of series: {error}"))?;
    answer.data.into_iter().map(|labels| Ok(Labels::new(labels)?)).collect()
}

/// The labels that Prometheus adds: those of the flags, and `instance`, by default the scraped address.
fn target_labels(args: &MatchArgs) -> Vec<(String, String)> {
    let mut labels = args.labels.clone();
    if !labels.iter().any(|(name, _)| name == "instance") {
        labels.push(("instance".into(), args.url.authority()));
    }
    labels
}

fn matched_group(labels: &Labels, mut features: Vec<Labels>, transform: Transform) -> MatchedGroup {
    features.sort();
    MatchedGroup {
        labels: labels.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect(),
        columns: features.iter().map(|feature| transform.expression(feature)).collect(),
    }
}

fn print_matched(matched: &[MatchedDetector], n_series: usize, url: &Url) {
    println!("{url}: {n_series} series");
    for detector in matched {
        println!("\ndetector {} selects {} of them", detector.detector, detector.selected);
        for group in &detector.groups {
            let labels: Vec<String> =
                group.labels.iter().map(|(name, value)| format!("{name}={value:?}")).collect();
            println!("  group {{{}}}: {} columns", labels.join(", "), group.columns.len());
            for column in &group.columns {
                println!("    {column}");
            }
        }
    }
}
