//! `promforest doctor`: checks the configuration, the Prometheus servers that it names, and the running sidecar.

use super::{OutputFormat, block_on, print};
use crate::config::Config;
use crate::doctor::{self, TrialWrite};
use crate::error::BoxError;
use crate::http::Url;
use crate::pipeline::DEFAULT_URL;
use crate::tenant::Tenant;
use crate::yaml::Document;
use clap::Args;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Configuration file; without one, node_network against http://localhost:9090
    #[arg(long = "config.file", value_name = "FILE")]
    config_file: Option<PathBuf>,
    /// The tenant whose back ends are checked; needed if the configuration has `tenants`
    #[arg(long, value_name = "ID")]
    tenant: Option<Tenant>,
    /// URL of the running sidecar
    #[arg(long, value_name = "URL", default_value = DEFAULT_URL)]
    url: Url,
    /// Writes no sample; without it, one of the series promforest_doctor_write to each remote_write endpoint
    #[arg(long)]
    no_write: bool,
    /// Output format
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    output: OutputFormat,
}

/// Exit codes: 0 if nothing is wrong, 1 for warnings or errors, 2 if the checks could not be run.
pub fn run(args: DoctorArgs) -> ExitCode {
    match block_on(examine(args)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("promforest: {}", crate::error::chain(&*error));
            ExitCode::from(2)
        }
    }
}

async fn examine(args: DoctorArgs) -> Result<bool, BoxError> {
    let (config, warnings) = match &args.config_file {
        Some(file) => {
            let Document { value, warnings, .. } = Config::load_to_show(file)?;
            (value, warnings)
        }
        None => (Config::default(), Vec::new()),
    };
    config.check_tenant(args.tenant.as_ref())?;
    let config = args.tenant.as_ref().map_or_else(|| config.clone(), |tenant| config.of_tenant(tenant));
    let trial_write = if args.no_write { TrialWrite::Forbidden } else { TrialWrite::Allowed };
    let report = doctor::examine(&config, &warnings, &args.url, trial_write).await;
    print(&match args.output {
        OutputFormat::Text => report.to_text(),
        OutputFormat::Json => report.to_json(),
    })?;
    Ok(report.is_well())
}
