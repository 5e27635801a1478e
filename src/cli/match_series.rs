//! `promforest match`: the series of an exporter's page that each detector selects.

use super::{OutputFormat, load_config, parse_label};
use crate::error::BoxError;
use crate::features::Transform;
use crate::http::Url;
use crate::http::client::Client;
use crate::prom::{Labels, exposition};
use clap::Args;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, Args)]
pub struct MatchArgs {
    /// Configuration file; without one, the node_network detector
    #[arg(long = "config.file", value_name = "FILE")]
    config_file: Option<PathBuf>,
    /// URL of the exporter's page
    #[arg(long, value_name = "URL", default_value = "http://localhost:9100/metrics")]
    url: Url,
    /// Label that Prometheus adds to scraped series, such as job=node; may be repeated
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = parse_label)]
    labels: Vec<(String, String)>,
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
    let response = Client::default().get(&args.url, Duration::from_secs(10), PAGE_LIMIT).await?;
    if !response.status.is_success() {
        return Err(format!("{} answered {}: {}", args.url, response.status, response.reason()).into());
    }
    let text = std::str::from_utf8(&response.body)?;
    let series = exposition::parse_series(text, &target_labels(&args))?;
    let matched: Vec<MatchedDetector> = config
        .detectors
        .iter()
        .map(|detector| {
            let selected: Vec<&Labels> =
                series.iter().filter(|labels| detector.matchers.iter().any(|s| s.matches(labels))).collect();
            let mut groups: BTreeMap<Labels, Vec<Labels>> = BTreeMap::new();
            for labels in &selected {
                let (group, feature) = labels.split(&detector.by);
                groups.entry(group).or_default().push(feature);
            }
            MatchedDetector {
                detector: detector.name.clone(),
                selected: selected.len(),
                groups: groups
                    .into_iter()
                    .map(|(labels, features)| matched_group(&labels, features, detector.transform))
                    .collect(),
            }
        })
        .collect();
    match args.output {
        OutputFormat::Json => println!("{}", serde_json::to_string_pretty(&matched)?),
        OutputFormat::Text => print_matched(&matched, series.len(), &args.url),
    }
    Ok(())
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
