//! The command-line options, and the configuration with a client for each address in it.

use super::{Error, systemd};
use crate::config::Config;
use crate::detector::check_sharding;
use crate::history::{self, HistoryClient};
use crate::http::Url;
use crate::http::client::Client;
use crate::models::registry::Registry;
use crate::prom::shard::Shard;
use crate::report::zone::Zone;
use crate::train::Backends;
use crate::yaml::Document;
use std::fs::{File, TryLockError};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::TcpListener;
use tracing::warn;

/// The file in the storage directory that a sidecar locks. Those of the registry have another name.
const STORAGE_LOCK: &str = "sidecar.lock";

/// The URL of a sidecar without options, for commands on the same machine.
pub const DEFAULT_URL: &str = "http://localhost:9599";

/// The URL of a process that listens at this address, for commands on the same machine.
pub fn own_url(address: SocketAddr, is_encrypted: bool) -> String {
    let scheme = if is_encrypted { "https" } else { "http" };
    match address.ip().is_unspecified() {
        true => format!("{scheme}://localhost:{}", address.port()),
        false => format!("{scheme}://{address}"),
    }
}

/// Options of the command line.
#[derive(Clone, Debug)]
pub struct Options {
    /// The configuration file; the defaults apply without one.
    pub config_file: Option<PathBuf>,
    /// The address to listen on.
    pub listen_address: String,
    /// True if the service manager has opened the socket, instead of the address.
    pub systemd_socket: bool,
    /// TLS and authentication of the address; without a file, access is open.
    pub web_config_file: Option<PathBuf>,
    /// True if `POST /-/reload` reloads the configuration.
    pub enable_lifecycle: bool,
    /// True if `POST /api/v1/feedback` and `POST /api/v1/maintenance` are answered.
    pub enable_admin_api: bool,
    /// The address of the pages for other machines, as behind a proxy.
    pub external_url: Option<Url>,
    /// The part of the targets whose groups are watched; without it, all.
    pub shard: Option<Shard>,
    /// The directory of snapshots, and of models with a relative path.
    pub storage_path: PathBuf,
    /// The name in the consumer group, in place of the configuration's.
    pub kafka_group_instance_id: Option<String>,
    /// Names and values of all flags, for display.
    pub flags: Vec<(&'static str, String)>,
}

/// The parts of a configuration that the pages use.
#[derive(Clone, Debug)]
pub struct ShownConfig {
    /// The file as YAML, without its secrets; empty without a file.
    pub yaml: String,
    /// A dashboard of one group.
    pub grafana_url: Option<Url>,
}

/// A configuration, and a client for each address in it.
pub struct LoadedConfig {
    /// The configuration.
    pub config: Arc<Config>,
    /// The parts that the pages use.
    pub shown_config: ShownConfig,
    /// A client for each remote-write endpoint.
    pub endpoints: Vec<Client>,
    /// The clients that training and gap filling use.
    pub backends: Arc<Backends>,
}

/// Reads a configuration file, and returns it as YAML without secrets too. Logs its warnings.
///
/// # Errors
/// [`Error::Config`].
pub fn load_config(file: &Path) -> Result<(Config, String), Error> {
    let Document { value, text, warnings } = Config::load_to_show(file)?;
    for warning in warnings {
        warn!(component = "config", file = %file.display(), line = warning.line, "{}", warning.message);
    }
    Ok((value, text))
}

impl Options {
    /// Reads the configuration file and builds the clients.
    ///
    /// # Errors
    /// [`Error::Config`], [`Error::DividedGroups`], [`Error::ShardOfKafka`], [`Error::Client`] or [`Error::Registry`].
    pub fn load(&self, metrics: &history::Metrics) -> Result<LoadedConfig, Error> {
        let (mut config, yaml) = match &self.config_file {
            Some(file) => load_config(file)?,
            None => (Config::default(), String::new()),
        };
        if self.shard.is_some() {
            check_sharding(&config.detectors)?;
            if config.kafka.is_some() {
                return Err(Error::ShardOfKafka);
            }
        }
        if let (Some(kafka), Some(id)) = (&mut config.kafka, &self.kafka_group_instance_id) {
            kafka.group_instance_id = Some(id.clone());
        }
        let client_error = |url: &Url| {
            let url = url.clone();
            move |source| Error::Client { url, source }
        };
        let endpoints = config.remote_write.iter();
        let endpoints =
            endpoints.map(|endpoint| Client::new(&endpoint.http).map_err(client_error(&endpoint.url)));
        let history_clients = config.history.iter();
        let history_clients =
            history_clients.map(|read| HistoryClient::new(read, metrics).map_err(client_error(&read.url)));
        let registry = Registry::open(&config.registry, &self.storage_path)
            .map_err(|source| Error::Registry { source })?;
        let backends = Backends {
            detectors: config.detectors.clone(),
            history_clients: history_clients.collect::<Result<_, _>>()?,
            endpoints: config.remote_write.clone(),
            registry,
            registry_config: config.registry.clone(),
            report_zone: Zone::from_environment().unwrap_or_else(|error| {
                warn!(component = "train", err = %error, "reports show times in UTC");
                Zone::default()
            }),
        };
        Ok(LoadedConfig {
            endpoints: endpoints.collect::<Result<_, _>>()?,
            backends: Arc::new(backends),
            shown_config: ShownConfig { yaml, grafana_url: config.grafana_url.clone() },
            config: Arc::new(config),
        })
    }

    /// Creates the storage directory, locks it against other sidecars and writes a probe file, so that a directory that
    /// cannot be written ends the start instead of the first snapshot. The lock lasts until the file is dropped, or the
    /// process ends in whatever way. Commands beside the sidecar take no such lock.
    ///
    /// # Errors
    /// [`Error::Storage`] or [`Error::StorageInUse`].
    pub fn prepare_storage(&self) -> Result<File, Error> {
        let path = &self.storage_path;
        let prepare = || {
            std::fs::create_dir_all(path)?;
            let probe = path.join(format!(".probe-{}", std::process::id()));
            std::fs::write(&probe, "promforest\n")?;
            std::fs::remove_file(&probe)
        };
        prepare().map_err(|source| Error::Storage { path: path.clone(), source })?;
        let lock_path = path.join(STORAGE_LOCK);
        let lock = File::options().create(true).truncate(false).write(true).open(&lock_path);
        let lock = lock.map_err(|source| Error::Storage { path: lock_path, source })?;
        match lock.try_lock() {
            Ok(()) => Ok(lock),
            Err(TryLockError::WouldBlock) => Err(Error::StorageInUse { path: path.clone() }),
            Err(TryLockError::Error(error)) => {
                warn!(component = "snapshot", err = %error, "a second promforest in this storage directory would not be noticed");
                Ok(lock)
            }
        }
    }

    /// The socket of the service manager, or the listen address.
    ///
    /// # Errors
    /// [`Error::Listen`].
    pub async fn bind(&self) -> Result<TcpListener, Error> {
        if self.systemd_socket {
            let address = "the socket of the service manager".into();
            return systemd::listener().map_err(|source| Error::Listen { address, source });
        }
        bind(&self.listen_address).await
    }
}

/// A listener at this address. `:9599` stands for every address of the machine, as in Prometheus.
///
/// # Errors
/// [`Error::Listen`].
pub async fn bind(address: &str) -> Result<TcpListener, Error> {
    let error = |source| Error::Listen { address: address.into(), source };
    let Some(port) = address.strip_prefix(':') else {
        return TcpListener::bind(address).await.map_err(error);
    };
    let port = port.parse().map_err(|e| error(std::io::Error::new(std::io::ErrorKind::InvalidInput, e)))?;
    match TcpListener::bind(SocketAddr::from(([0_u16; 8], port))).await {
        Ok(listener) => Ok(listener),
        // The machine has no IPv6.
        Err(_) => TcpListener::bind(SocketAddr::from(([0_u8; 4], port))).await.map_err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_url_is_the_default_without_options() {
        let url = |address: &str, is_encrypted| own_url(address.parse().expect("an address"), is_encrypted);
        assert_eq!([url("[::]:9599", false), url("0.0.0.0:9599", false)], [DEFAULT_URL; 2]);
        assert_eq!(url("127.0.0.1:9700", false), "http://127.0.0.1:9700");
        assert_eq!(url("[::1]:9599", true), "https://[::1]:9599");
    }
}
