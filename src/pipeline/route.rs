//! The process of `promforest route`: a listener, and the router behind it.

use super::options::{bind, load_config};
use super::{DRAIN_TIMEOUT, Error, register_build};
use crate::config::Config;
use crate::http::access::AccessControl;
use crate::http::server::{self, Server};
use crate::ingest;
use crate::kafka;
use crate::kafka::router::{self, Router};
use crate::pipeline::signals::Signals;
use crate::prom::wire::ProtocolVersion;
use crate::telemetry::ProcessCollector;
use prometheus_client::registry::Registry;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::watch;
use tracing::info;

/// Options of the command line.
#[derive(Clone, Debug)]
pub struct RouteOptions {
    /// The configuration file, of which `kafka` is used.
    pub config_file: PathBuf,
    /// The address to listen on.
    pub listen_address: String,
    /// TLS and authentication of the address.
    pub web_config_file: Option<PathBuf>,
}

/// Runs the router until a signal ends it.
///
/// # Errors
/// [`Error`] when it cannot start.
pub async fn run(options: RouteOptions) -> Result<(), Error> {
    let access = Arc::new(AccessControl::open(options.web_config_file.clone())?);
    let (Config { kafka, tenants, .. }, _) = load_config(&options.config_file)?;
    let config: kafka::Config = kafka.ok_or(Error::NoTopic)?;
    if config.format != ProtocolVersion::V1 || config.compression != kafka::Compression::None {
        return Err(Error::RouteFormat);
    }
    let mut registry = Registry::default();
    ProcessCollector::register(&mut registry);
    let own = registry.sub_registry_with_prefix("promforest");
    register_build(own);
    access.register(own);
    let server_metrics = server::Metrics::new(own);
    let (metrics, ingest_metrics) = (router::Metrics::new(own), ingest::Metrics::new(own));
    let topic = config.topic.clone();
    let router = Router::new(config, tenants, metrics, ingest_metrics, registry);
    let router = Arc::new(router.map_err(|error| Error::Kafka(crate::error::chain(&error)))?);
    let listener = bind(&options.listen_address).await?;
    let mut signals = Signals::install()?;

    let address =
        listener.local_addr().map_err(|source| Error::System { what: "read the own address", source })?;
    info!(version = crate::build_info::VERSION, address = %address, topic, "listening");
    let (stop, stop_rx) = watch::channel(false);
    let connecting = tokio::spawn(router.clone().connect());
    let watcher = tokio::spawn({
        let access = access.clone();
        async move { access.watch_files().await }
    });
    let server = Server { access, metrics: server_metrics };
    let route = move |request| router.clone().handle(request);
    let mut server = tokio::spawn(server.serve(listener, route, stop_rx));
    signals.wait_for_shutdown().await;
    info!("shutting down");
    stop.send_replace(true);
    connecting.abort();
    watcher.abort();
    if tokio::time::timeout(DRAIN_TIMEOUT, &mut server).await.is_err() {
        server.abort();
    }
    info!("stopped");
    Ok(())
}
