//! Commands and exit codes.

mod backtest;
mod training_data;
mod models;
mod train;

use crate::config::Config;
use crate::detector::Detector;
use crate::features::Transform;
use crate::http::Url;
use crate::http::client::Client;
use crate::http::tls::ClientAuth;
use crate::http::web_config::WebConfig;
use crate::models::registry::Registry;
use crate::pipeline::{self, Options};
use crate::prom::{Labels, METRIC_NAME};
use crate::telemetry::{self, LogFormat, LogLevel};
use backtest::BacktestArgs;
use clap::{Args, Parser, Subcommand, ValueEnum};
use models::ModelsCommand;
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use train::TrainArgs;

/// Where `--storage.path` points unless it is given.
const STORAGE: &str = "promforest-data";

/// Anomaly detection beside Prometheus: samples in by remote write, an isolation forest in memory,
/// anomaly series out by remote write.
#[derive(Debug, Parser)]
#[command(name = "promforest", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<CliCommand>,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Debug, Subcommand)]
enum CliCommand {
    /// Run the sidecar (the same as no command)
    Run(RunArgs),
    /// Check a file and print every error with its line
    #[command(subcommand)]
    Check(Check),
    /// Show which series of an exporter's page the detectors would watch
    Match(MatchArgs),
    /// Choose, fit and register models on the history of Prometheus or on a table
    Train(TrainArgs),
    /// Replay the past: what would have been found, and how often it would have called
    Backtest(BacktestArgs),
    /// See, move, import and export models
    #[command(subcommand)]
    Models(ModelsCommand),
}

#[derive(Debug, Subcommand)]
enum Check {
    /// A configuration file
    Config {
        /// The file
        file: PathBuf,
    },
    /// A file for --web.config.file: encryption, users, headers
    WebConfig {
        /// The file
        file: PathBuf,
    },
}

#[derive(Debug, Args)]
struct RunArgs {
    /// Configuration file; without one, node_network against http://localhost:9090
    #[arg(long = "config.file", value_name = "FILE")]
    config_file: Option<PathBuf>,
    /// Address to listen on for remote write and the web pages
    #[arg(long = "web.listen-address", value_name = "ADDRESS", default_value = ":9599")]
    listen_address: String,
    /// File that says who is let in at that address, and how: TLS, basic auth (Prometheus' format)
    #[arg(long = "web.config.file", value_name = "FILE")]
    web_config_file: Option<PathBuf>,
    /// Folder for what outlives the process: models
    #[arg(long = "storage.path", value_name = "FOLDER", default_value = STORAGE)]
    storage_path: PathBuf,
    /// Least severe messages to log
    #[arg(long = "log.level", value_name = "LEVEL", default_value = "info")]
    log_level: LogLevel,
    /// Format of the log, on standard error
    #[arg(long = "log.format", value_name = "FORMAT", default_value = "logfmt")]
    log_format: LogFormat,
}

/// Which registry a command works with: the one that the sidecar has with the same flags.
#[derive(Debug, Args)]
struct RegistryArgs {
    /// Configuration file; without one, node_network against http://localhost:9090
    #[arg(long = "config.file", value_name = "FILE")]
    config_file: Option<PathBuf>,
    /// Folder for what outlives the process: models
    #[arg(long = "storage.path", value_name = "FOLDER", default_value = STORAGE)]
    storage_path: PathBuf,
}

impl RegistryArgs {
    fn config(&self) -> Result<Config, BoxError> {
        load_config(self.config_file.as_deref())
    }

    fn open(&self, config: &Config) -> Result<Registry, BoxError> {
        Ok(Registry::open(&config.registry, &self.storage_path)?)
    }

    /// The flags that were given, each with a blank before it, for a command line to copy.
    fn given_flags(&self) -> String {
        let config = self.config_file.iter().map(|file| format!(" --config.file {}", file.display()));
        let storage = Some(&self.storage_path).filter(|path| path.as_path() != Path::new(STORAGE));
        config.chain(storage.map(|path| format!(" --storage.path {}", path.display()))).collect()
    }
}

/// The configuration of a file; without one, the defaults.
fn load_config(file: Option<&Path>) -> Result<Config, BoxError> {
    Ok(file.map_or_else(|| Ok(Config::default()), Config::load)?)
}

/// The detector of this name; without one, all of them.
fn select_detectors(config: &Config, name: Option<&str>) -> Result<Vec<Arc<Detector>>, BoxError> {
    let Some(name) = name else { return Ok(config.detectors.clone()) };
    let detector = config.detectors.iter().find(|detector| detector.name == name);
    let names: Vec<&str> = config.detectors.iter().map(|detector| detector.name.as_str()).collect();
    let detector =
        detector.ok_or_else(|| format!("no detector is named {name:?}; there are {}", names.join(", ")))?;
    Ok(vec![detector.clone()])
}

#[derive(Debug, Args)]
struct MatchArgs {
    /// Configuration file; without one, the node_network detector
    #[arg(long = "config.file", value_name = "FILE")]
    config_file: Option<PathBuf>,
    /// The exporter's page
    #[arg(long, value_name = "URL", default_value = "http://localhost:9100/metrics")]
    url: Url,
    /// A label that Prometheus adds when it scrapes, such as job=node; may be repeated
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = parse_label)]
    labels: Vec<(String, String)>,
    /// How to print the result
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    output: OutputFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum OutputFormat {
    /// For people
    Text,
    /// For scripts
    Json,
}

fn parse_label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.into(), value.into())),
        _ => Err("write NAME=VALUE".into()),
    }
}

type BoxError = Box<dyn std::error::Error>;

/// Runs the command line. 0: done; 1: it failed, and standard error says why; 2: wrong usage.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        None => run(cli.run),
        Some(CliCommand::Run(args)) => run(args),
        Some(CliCommand::Check(Check::Config { file })) => check_config(&file),
        Some(CliCommand::Check(Check::WebConfig { file })) => check_web_config(&file),
        Some(CliCommand::Match(args)) => block_on(match_series(args)),
        Some(CliCommand::Train(args)) => block_on(train::run(args)),
        Some(CliCommand::Backtest(args)) => block_on(backtest::run(args)),
        Some(CliCommand::Models(command)) => block_on(models::run(command)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("promforest: {}", crate::error::chain(&*error));
            ExitCode::FAILURE
        }
    }
}

/// Writes to standard output. A reader that has seen enough, as `head` has, is no failure.
fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

fn block_on<T>(future: impl Future<Output = Result<T, BoxError>>) -> Result<T, BoxError> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(future);
    // A fit that is under way is not waited for.
    runtime.shutdown_background();
    result
}

fn run(args: RunArgs) -> Result<(), BoxError> {
    telemetry::init_logs(args.log_level, args.log_format);
    let options = Options {
        config_file: args.config_file,
        listen_address: args.listen_address,
        web_config_file: args.web_config_file,
        storage_path: args.storage_path,
    };
    block_on(async { Ok(pipeline::run(options).await?) })
}

fn check_config(file: &Path) -> Result<(), BoxError> {
    let config = Config::load(file)?;
    println!("{} is valid: {}", file.display(), summary(&config));
    Ok(())
}

fn check_web_config(file: &Path) -> Result<(), BoxError> {
    let config = WebConfig::load(file)?;
    let tls = match config.tls.as_ref().map(|tls| &tls.client_auth) {
        None => "no encryption",
        Some(ClientAuth::None) => "TLS",
        Some(ClientAuth::Unverified { .. }) => "TLS, client certificates not verified",
        Some(ClientAuth::Verified { is_mandatory: false, .. }) => {
            "TLS, client certificates verified if there are"
        }
        Some(ClientAuth::Verified { is_mandatory: true, .. }) => "TLS, client certificates verified",
    };
    println!("{} is valid: {tls}, {}", file.display(), plural(config.users.len(), "user"));
    Ok(())
}

fn summary(config: &Config) -> String {
    let names: Vec<&str> = config.detectors.iter().map(|detector| detector.name.as_str()).collect();
    format!(
        "{} ({}), {}, {}",
        plural(names.len(), "detector"),
        names.join(", "),
        plural(config.remote_write.len(), "remote write target"),
        plural(config.remote_read.len(), "remote read source"),
    )
}

/// `1 row`, `2 rows`.
fn plural(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// What one detector makes of a page.
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

/// An exporter's page is rarely above a few MiB.
const PAGE_LIMIT: usize = 64 << 20;

async fn match_series(args: MatchArgs) -> Result<(), BoxError> {
    let config = load_config(args.config_file.as_deref())?;
    let response = Client::default().get(&args.url, Duration::from_secs(10), PAGE_LIMIT).await?;
    if !response.status.is_success() {
        return Err(format!("{} answered {}: {}", args.url, response.status, response.reason()).into());
    }
    let text = std::str::from_utf8(&response.body)?;
    let series = parse_series(text, &target_labels(&args))?;
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

/// Prometheus adds `instance`, the address it scrapes, unless it is told another one.
fn target_labels(args: &MatchArgs) -> Vec<(String, String)> {
    let mut labels = args.labels.clone();
    if !labels.iter().any(|(name, _)| name == "instance") {
        labels.push(("instance".into(), args.url.authority()));
    }
    labels
}

/// Every series of a page in the text format, with the target's labels added.
fn parse_series(page: &str, target: &[(String, String)]) -> Result<Vec<Labels>, BoxError> {
    use prometheus_parse::{Scrape, Value};
    let scrape = Scrape::parse(page.lines().map(|line| Ok(line.to_owned())))?;
    let mut all = Vec::new();
    for sample in &scrape.samples {
        // Histograms and summaries come as one sample; on the wire each bucket is a series.
        let parts: Vec<Option<(&str, String)>> = match &sample.value {
            Value::Histogram(buckets) => {
                buckets.iter().map(|b| Some(("le", format_float(b.less_than)))).collect()
            }
            Value::Summary(quantiles) => {
                quantiles.iter().map(|q| Some(("quantile", format_float(q.quantile)))).collect()
            }
            _ => vec![None],
        };
        for part in parts {
            let bucket = part.map(|(name, value)| (name.to_string(), value));
            let name = match &bucket {
                Some((name, _)) if name == "le" => format!("{}_bucket", sample.metric),
                _ => sample.metric.clone(),
            };
            // A label of the page that the target has too is set aside, as Prometheus does.
            let own = sample.labels.iter().map(|(name, value)| {
                let is_taken = target.iter().any(|(other, _)| other == name);
                (if is_taken { format!("exported_{name}") } else { name.clone() }, value.clone())
            });
            let target = target.iter().cloned();
            all.push(Labels::new(
                [(METRIC_NAME.to_string(), name)].into_iter().chain(own).chain(target).chain(bucket),
            )?);
        }
    }
    Ok(all)
}

/// As exporters write it.
fn format_float(value: f64) -> String {
    if value == f64::INFINITY { "+Inf".into() } else { value.to_string() }
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
        println!("\ndetector {} watches {} of them", detector.detector, detector.selected);
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
