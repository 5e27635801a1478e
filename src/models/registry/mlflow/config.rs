//! The section `mlflow` of the configuration file, and the credentials for the server.

use crate::http::config::{Auth, ClientConfig};
use crate::http::{SecretSource, Url};
use crate::yaml::Section;

/// The section of the configuration file.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The server.
    pub tracking_uri: Url,
    /// The experiment of the runs.
    pub experiment: String,
    /// The registered model of a detector, and the prefix of its groups' names; `None` for the
    /// detector's name. Several detectors would share it.
    pub model: Option<String>,
    /// The HTTP client.
    pub client: ClientConfig,
}

impl Config {
    /// Reads the section. The caller reads `alias`.
    pub fn read(mut section: Section<'_, '_>) -> Self {
        let tracking_uri = section.require("tracking_uri").and_then(|node| node.parse(str::parse));
        let config = Self {
            tracking_uri: tracking_uri.unwrap_or_else(|| "http://localhost:5000".parse().expect("a URL")),
            experiment: section.get("experiment").and_then(|node| node.text()).unwrap_or("promforest".into()),
            model: section.get("model").and_then(|node| node.text()),
            client: ClientConfig::read(&mut section),
        };
        section.deny_unknown();
        config
    }
}

/// The credentials of the configuration, or those of the environment variables that MLflow's clients
/// read.
pub fn resolve_auth(config: &ClientConfig) -> Auth {
    let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let secret = |value: String| SecretSource::Inline(value.into());
    match (&config.auth, variable("MLFLOW_TRACKING_TOKEN"), variable("MLFLOW_TRACKING_USERNAME")) {
        (Auth::None, _, Some(username)) => {
            let password = variable("MLFLOW_TRACKING_PASSWORD").unwrap_or_default();
            Auth::Basic { username: secret(username), password: secret(password) }
        }
        (Auth::None, Some(token), None) => {
            Auth::Token { scheme: "Bearer".into(), credentials: secret(token) }
        }
        (configured, _, _) => configured.clone(),
    }
}
