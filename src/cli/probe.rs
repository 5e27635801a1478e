//! `promforest check healthy` and `promforest check ready`: one request to a running sidecar.

use super::{http_client, print};
use crate::error::BoxError;
use crate::http::Url;
use crate::pipeline::DEFAULT_URL;
use clap::Args;
use std::path::PathBuf;
use std::time::Duration;

/// Longest wait for the answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Most bytes of the answer.
const ANSWER_LIMIT: usize = 1 << 20;

#[derive(Debug, Args)]
pub struct ProbeArgs {
    /// URL of the sidecar
    #[arg(long, value_name = "URL", default_value = DEFAULT_URL)]
    url: Url,
    /// File with the credentials, TLS and proxy of the request (promtool's format)
    #[arg(long = "http.config.file", value_name = "FILE")]
    http_config_file: Option<PathBuf>,
}

/// Prints the answer at this path; a status other than 2xx is an error.
pub async fn run(args: ProbeArgs, path: &str) -> Result<(), BoxError> {
    let ProbeArgs { url, http_config_file } = args;
    let client = http_client(http_config_file.as_deref())?;
    let response = client.get(&url.with_path_and_query(path, &[])?, TIMEOUT, ANSWER_LIMIT).await?;
    print(&format!("{}\n", String::from_utf8_lossy(&response.body).trim_end()))?;
    if response.status.is_success() {
        Ok(())
    } else {
        Err(format!("{url} answered {}", response.status).into())
    }
}
