//! The command line: commands, shared arguments and exit codes.

mod backtest;
mod docs;
mod doctor;
mod feedback;
mod generate;
mod maintenance;
mod match_series;
mod model_location;
mod models;
mod probe;
mod route;
mod sweep;
mod train;
mod training_data;

use crate::build_info;
use crate::config::Config;
use crate::error::BoxError;
use crate::http::Url;
use crate::http::client::Client;
use crate::http::config::ClientConfig;
use crate::http::tls::ClientAuth;
use crate::http::web_config::WebConfig;
use crate::models::registry::Registry;
use crate::pipeline::{self, Options};
use crate::prom::shard::Shard;
use crate::report::text::plain_plural;
use crate::telemetry::{self, LogFormat, LogLevel};
use crate::yaml::{self, Document};
use backtest::BacktestArgs;
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use doctor::DoctorArgs;
use feedback::FeedbackArgs;
use maintenance::MaintenanceCommand;
use match_series::MatchArgs;
use models::ModelsCommand;
use probe::ProbeArgs;
use route::RouteArgs;
use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use train::TrainArgs;

/// Default of `--storage.path`.
const STORAGE: &str = "promforest-data";

/// Anomaly detection beside Prometheus: samples in by remote write, an isolation forest in memory,
/// anomaly series out by remote write.
#[derive(Debug, Parser)]
#[command(name = "promforest", version = build_info::LINE, args_conflicts_with_subcommands = true)]
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
    /// Take remote write and put it into a Kafka topic, the series of a target into one partition
    Route(RouteArgs),
    /// Check a file and print every error with its line, or ask a running sidecar for its state
    #[command(subcommand)]
    Check(Check),
    /// Check the whole set-up: configuration, Prometheus and running sidecar, with a remedy for each finding
    Doctor(DoctorArgs),
    /// Show the series of an exporter's page that the detectors would select
    Match(MatchArgs),
    /// Choose, fit and register models on the history of Prometheus or on a table
    Train(TrainArgs),
    /// Replay past samples and report the incidents that would have been detected
    Backtest(BacktestArgs),
    /// Tell a running sidecar that an incident was real, or a false alarm
    Feedback(FeedbackArgs),
    /// Start, end and list times in which no incident opens and nothing is learned
    #[command(subcommand)]
    Maintenance(MaintenanceCommand),
    /// List, promote, import, export and score models
    #[command(subcommand)]
    Models(ModelsCommand),
    /// Print the completions of a shell, to be sourced by it
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the manual page, in roff
    Man,
    /// Print a generated page of the reference, as Markdown
    Docs {
        /// The page
        page: docs::Page,
    },
}

#[derive(Debug, Subcommand)]
enum Check {
    /// Check a configuration file
    Config {
        /// The file
        file: PathBuf,
    },
    /// Check a file for --web.config.file: encryption, users, headers
    WebConfig {
        /// The file
        file: PathBuf,
    },
    /// Check that a running sidecar is alive
    Healthy(ProbeArgs),
    /// Check that each detector of a running sidecar has a model for at least one group, and print what is missing
    Ready(ProbeArgs),
}

#[derive(Debug, Args)]
struct RunArgs {
    /// Configuration file; without one, node_network against http://localhost:9090
    #[arg(long = "config.file", value_name = "FILE")]
    config_file: Option<PathBuf>,
    /// Address to listen on for remote write and the web pages
    #[arg(long = "web.listen-address", value_name = "ADDRESS", default_value = ":9599")]
    listen_address: String,
    /// Listens on the socket that systemd has opened (socket activation), instead of the address
    #[arg(long = "web.systemd-socket")]
    systemd_socket: bool,
    /// File for TLS and basic auth at that address (Prometheus' format)
    #[arg(long = "web.config.file", value_name = "FILE")]
    web_config_file: Option<PathBuf>,
    /// Address of the pages for other machines, as behind a proxy that removes its path
    #[arg(long = "web.external-url", value_name = "URL")]
    external_url: Option<Url>,
    /// Enables reloads of the configuration by POST /-/reload; SIGHUP always reloads it
    #[arg(long = "web.enable-lifecycle")]
    enable_lifecycle: bool,
    /// Enables feedback on incidents and maintenance by POST /api/v1/feedback and /api/v1/maintenance
    #[arg(long = "web.enable-admin-api")]
    enable_admin_api: bool,
    /// Watch only a part of the targets, as in 0/3: those whose hash of job and instance, as in Prometheus' hashmod
    /// modulo COUNT, is INDEX
    #[arg(long, value_name = "INDEX/COUNT")]
    shard: Option<Shard>,
    /// Folder for models and snapshots, of one sidecar alone
    #[arg(long = "storage.path", value_name = "FOLDER", default_value = STORAGE)]
    storage_path: PathBuf,
    /// Name of this member of the Kafka consumer group, as the name of the pod
    #[arg(long = "kafka.group-instance-id", value_name = "NAME")]
    kafka_group_instance_id: Option<String>,
    /// Lowest severity of logged messages
    #[arg(long = "log.level", value_name = "LEVEL", default_value = "info")]
    log_level: LogLevel,
    /// Format of the log, on standard error
    #[arg(long = "log.format", value_name = "FORMAT", default_value = "logfmt")]
    log_format: LogFormat,
}

impl RunArgs {
    /// Names and values of the flags.
    fn flags(&self) -> Vec<(&'static str, String)> {
        let path = |file: &Option<PathBuf>| file.as_deref().unwrap_or(Path::new("")).display().to_string();
        let name = |value: &dyn fmt::Debug| format!("{value:?}").to_lowercase();
        vec![
            ("config.file", path(&self.config_file)),
            ("kafka.group-instance-id", self.kafka_group_instance_id.clone().unwrap_or_default()),
            ("log.format", name(&self.log_format)),
            ("log.level", name(&self.log_level)),
            ("shard", self.shard.map(|shard| shard.to_string()).unwrap_or_default()),
            ("storage.path", self.storage_path.display().to_string()),
            ("web.config.file", path(&self.web_config_file)),
            ("web.enable-admin-api", self.enable_admin_api.to_string()),
            ("web.enable-lifecycle", self.enable_lifecycle.to_string()),
            ("web.external-url", self.external_url.as_ref().map(ToString::to_string).unwrap_or_default()),
            ("web.listen-address", self.listen_address.clone()),
            ("web.systemd-socket", self.systemd_socket.to_string()),
        ]
    }
}

/// The registry of a command: the registry that the sidecar uses with the same flags.
#[derive(Debug, Args)]
struct RegistryArgs {
    /// Configuration file; without one, node_network against http://localhost:9090
    #[arg(long = "config.file", value_name = "FILE")]
    config_file: Option<PathBuf>,
    /// Folder for models and snapshots
    #[arg(long = "storage.path", value_name = "FOLDER", default_value = STORAGE)]
    storage_path: PathBuf,
}

impl RegistryArgs {
    fn config(&self) -> Result<Config, BoxError> {
        load_config(self.config_file.as_deref())
    }

    /// The registry; one in a folder need not exist yet.
    fn open_or_create(&self, config: &Config) -> Result<Registry, BoxError> {
        Ok(Registry::open(&config.registry, &self.storage_path)?)
    }

    /// The registry of a sidecar: other flags than the sidecar's would name an empty one.
    fn open(&self, config: &Config) -> Result<Registry, BoxError> {
        let registry = self.open_or_create(config)?;
        if let Registry::Directory(directory) = &registry
            && !directory.root().exists()
            && !self.storage_path.exists()
        {
            let folder = directory.root().display();
            return Err(format!("there is no registry in {folder}: give --storage.path and --config.file as the sidecar has them").into());
        }
        Ok(registry)
    }

    /// The command that promotes a version, for the user.
    fn promote_command(&self, model: &str, version: u64) -> String {
        let config = self.config_file.iter().map(|file| format!(" --config.file {}", file.display()));
        let storage = Some(&self.storage_path).filter(|path| path.as_path() != Path::new(STORAGE));
        let flags: String =
            config.chain(storage.map(|path| format!(" --storage.path {}", path.display()))).collect();
        format!("promforest models promote{flags} {model} {version}")
    }
}

/// The configuration of a file; without one, the defaults.
fn load_config(file: Option<&Path>) -> Result<Config, BoxError> {
    Ok(file.map_or_else(|| Ok(Config::default()), Config::load)?)
}

/// The client of a command; without a file, one without credentials.
fn http_client(config_file: Option<&Path>) -> Result<Client, BoxError> {
    let Some(file) = config_file else { return Ok(Client::default()) };
    let config = yaml::load(file, |mut section| {
        let config = ClientConfig::read(&mut section);
        section.deny_unknown();
        config
    })?;
    Ok(Client::new(&config)?)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum OutputFormat {
    /// Plain text
    Text,
    /// JSON
    Json,
}

fn parse_label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.into(), value.into())),
        _ => Err("write NAME=VALUE".into()),
    }
}

/// Runs the command line. Exit codes: 0 for success, 1 for a failure (the reason is on standard error), 2 for wrong
/// usage. `doctor` has its own.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        None => run(cli.run),
        Some(CliCommand::Run(args)) => run(args),
        Some(CliCommand::Route(args)) => route::run(args),
        Some(CliCommand::Check(Check::Config { file })) => check_config(&file),
        Some(CliCommand::Check(Check::WebConfig { file })) => check_web_config(&file),
        Some(CliCommand::Check(Check::Healthy(args))) => block_on(probe::run(args, "/-/healthy")),
        Some(CliCommand::Check(Check::Ready(args))) => block_on(probe::run(args, "/-/ready")),
        Some(CliCommand::Doctor(args)) => return doctor::run(args),
        Some(CliCommand::Match(args)) => block_on(match_series::run(args)),
        Some(CliCommand::Train(args)) => block_on(train::run(args)),
        Some(CliCommand::Backtest(args)) => block_on(backtest::run(args)),
        Some(CliCommand::Feedback(args)) => block_on(feedback::run(args)),
        Some(CliCommand::Maintenance(command)) => block_on(maintenance::run(command)),
        Some(CliCommand::Models(command)) => block_on(models::run(command)),
        Some(CliCommand::Completions { shell }) => generate::print_completions(shell),
        Some(CliCommand::Man) => generate::print_manual(),
        Some(CliCommand::Docs { page }) => docs::run(page),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("promforest: {}", crate::error::chain(&*error));
            ExitCode::FAILURE
        }
    }
}

/// Writes to standard output. A closed pipe, as of `head`, is no failure.
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
    // Shutdown does not wait for a fit in progress.
    runtime.shutdown_background();
    result
}

fn run(args: RunArgs) -> Result<(), BoxError> {
    telemetry::init_logs(args.log_level, args.log_format);
    let options = Options {
        flags: args.flags(),
        config_file: args.config_file,
        listen_address: args.listen_address,
        systemd_socket: args.systemd_socket,
        web_config_file: args.web_config_file,
        external_url: args.external_url,
        shard: args.shard,
        enable_lifecycle: args.enable_lifecycle,
        enable_admin_api: args.enable_admin_api,
        storage_path: args.storage_path,
        kafka_group_instance_id: args.kafka_group_instance_id,
    };
    block_on(async { Ok(pipeline::run(options).await?) })
}

fn check_config(file: &Path) -> Result<(), BoxError> {
    let Document { value, warnings, .. } = Config::load_to_show(file)?;
    println!("{} is valid: {}", file.display(), summary(&value));
    for warning in warnings {
        println!("{}:{}: warning: {}", file.display(), warning.line, warning.message);
    }
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
    println!("{} is valid: {tls}, {}", file.display(), plain_plural(config.users.len(), "user"));
    Ok(())
}

fn summary(config: &Config) -> String {
    let names: Vec<&str> = config.detectors.iter().map(|detector| detector.name.as_str()).collect();
    format!(
        "{} ({}), {}, {}",
        plain_plural(names.len(), "detector"),
        names.join(", "),
        plain_plural(config.remote_write.len(), "remote write endpoint"),
        plain_plural(config.history.len(), "history source"),
    )
}
