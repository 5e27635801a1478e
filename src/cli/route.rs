//! `promforest route`: remote write in, Kafka records out.

use crate::error::BoxError;
use crate::telemetry::{LogFormat, LogLevel};
use clap::Args;
use std::path::PathBuf;

/// Arguments of the command.
#[derive(Debug, Args)]
pub struct RouteArgs {
    /// Configuration file of the sidecars, of which the section `kafka` is used
    #[arg(long = "config.file", value_name = "FILE")]
    config_file: PathBuf,
    /// Address to listen on for remote write
    #[arg(long = "web.listen-address", value_name = "ADDRESS", default_value = ":9598")]
    listen_address: String,
    /// File for TLS and basic auth at that address (Prometheus' format)
    #[arg(long = "web.config.file", value_name = "FILE")]
    web_config_file: Option<PathBuf>,
    /// Lowest severity of logged messages
    #[arg(long = "log.level", value_name = "LEVEL", default_value = "info")]
    log_level: LogLevel,
    /// Format of the log, on standard error
    #[arg(long = "log.format", value_name = "FORMAT", default_value = "logfmt")]
    log_format: LogFormat,
}

/// Runs the router until a signal ends it.
#[cfg(feature = "kafka")]
pub fn run(args: RouteArgs) -> Result<(), BoxError> {
    use crate::pipeline::route::{self, RouteOptions};
    crate::telemetry::init_logs(args.log_level, args.log_format);
    let RouteArgs { config_file, listen_address, web_config_file, .. } = args;
    let options = RouteOptions { config_file, listen_address, web_config_file };
    super::block_on(async { Ok(route::run(options).await?) })
}

/// A program without the feature has no router.
#[cfg(not(feature = "kafka"))]
pub fn run(_: RouteArgs) -> Result<(), BoxError> {
    Err(crate::kafka::config::NOT_BUILT.into())
}
