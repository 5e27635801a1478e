//! The configuration file: composes the sections of all rooms and checks what must fit across them.

use crate::detector::Detector;
use crate::http::{self, Url, hide_query_values};
use crate::models::{self, registry};
use crate::tenant::Tenant;
pub use crate::yaml::FileError as Error;
use crate::yaml::{self, Document, Key, KeyTable, Node, Section};
use crate::{detect, detector, history, kafka, remote_write, tenant};
use saphyr::{LoadableYamlNode, Scalar, Yaml, YamlEmitter};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Scrape interval of common Prometheus configurations. It only sets the default of `grace`.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(15);

const KEY_TABLES: [KeyTable; 2] = [
    KeyTable::new(
        &[""],
        &[
            Key::optional("global", "Settings for the whole file"),
            Key::computed(
                "remote_write",
                "Prometheus at `localhost:9090`",
                "Endpoints that receive the scores; `[]` for none",
            ),
            Key::computed(
                "remote_read",
                "Prometheus at `localhost:9090` if scores are written there and there is no `history`, else `[]`",
                "Endpoints that serve history by remote read; `[]` for none. Without any source of history models are \
                 trained on the window alone, as are those of native histograms, of which no source returns count and sum",
            ),
            Key::with_default(
                "history",
                "[]",
                "Servers that serve history without remote read. All sources are asked, these in their order, and then \
                 those of `remote_read`; of two samples of one time the first counts",
            ),
            Key::optional(
                "kafka",
                "A Kafka topic that samples are read from, beside those that are sent by HTTP",
            ),
            Key::optional(
                "tenants",
                "Tenants that share the sidecar and see nothing of each other; a change of `header` or `label` needs a restart",
            ),
            Key::optional("registry", "Storage of models"),
            Key::optional(
                "grafana_url",
                "URL of a dashboard of one group, such as `http://grafana:3000/d/promforest-group`, that the web pages \
                 link to with `var-detector`, a variable for each label of the group, `from` and `to`",
            ),
            Key::computed(
                "detectors",
                "`node_network`, as in the file above",
                "Detectors, with distinct names",
            ),
        ],
    ),
    KeyTable::new(
        &["global"],
        &[
            Key::with_default(
                "scrape_interval",
                "15s",
                "Only sets the default of `grace`; the interval of rows is read off the samples",
            ),
            Key::with_default(
                "series_limit",
                "200000",
                "Watched series of all groups; samples of further ones are dropped and counted as `series_limit`. Each takes \
                 up to 12 KiB for six hours at 15 s",
            ),
            Key::with_default(
                "group_limit",
                "20000",
                "Groups of all detectors; samples of further ones are dropped and counted as `series_limit`",
            ),
        ],
    ),
];

/// The keys of the file, section by section.
pub fn key_tables() -> Vec<KeyTable> {
    [
        &KEY_TABLES[..],
        &remote_write::KEY_TABLES,
        &history::KEY_TABLES,
        &http::config::KEY_TABLES,
        &kafka::config::KEY_TABLES,
        &kafka::security::KEY_TABLES,
        &tenant::KEY_TABLES,
        &registry::KEY_TABLES,
        &detector::KEY_TABLES,
        &detect::KEY_TABLES,
        &models::KEY_TABLES,
    ]
    .concat()
}

/// Limits on what senders make the sidecar keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Watched series of all groups: 10,000 hosts of 20 by default. At six hours of 15 s each takes up to 12 KiB.
    pub series: usize,
    /// Groups of all detectors: each has a window, metrics and a model of its own, however few its series are.
    pub groups: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { series: 200_000, groups: 20_000 }
    }
}

/// The section `global`.
struct Global {
    scrape_interval: Duration,
    limits: Limits,
}

impl Default for Global {
    fn default() -> Self {
        Self { scrape_interval: DEFAULT_INTERVAL, limits: Limits::default() }
    }
}

impl Global {
    fn read(mut section: Section<'_, '_>) -> Self {
        let default = Limits::default();
        let scrape_interval = section.duration("scrape_interval", DEFAULT_INTERVAL);
        let limits = Limits {
            series: section.count("series_limit", default.series, 1),
            groups: section.count("group_limit", default.groups, 1),
        };
        section.deny_unknown();
        Self { scrape_interval, limits }
    }
}

/// The whole configuration. A section that the file omits has its default.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Limits on series and groups.
    pub limits: Limits,
    /// Endpoints that receive the scores.
    pub remote_write: Vec<remote_write::Config>,
    /// The sources of history: those of `history`, then those of `remote_read`.
    pub history: Vec<history::Config>,
    /// The Kafka topic that samples are read from.
    pub kafka: Option<kafka::Config>,
    /// The tenants that share the sidecar, if there are any.
    pub tenants: Option<Arc<tenant::Config>>,
    /// Storage of models.
    pub registry: registry::Config,
    /// A dashboard of one group.
    pub grafana_url: Option<Url>,
    /// Detectors, with distinct names.
    pub detectors: Vec<Arc<Detector>>,
}

impl Default for Config {
    /// The detector [`Detector::node_network`] and a Prometheus on this machine.
    fn default() -> Self {
        Self::parse("").expect("the empty file is valid")
    }
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// [`Error`] with all errors of the file.
    pub fn load(path: &Path) -> Result<Self, Error> {
        yaml::load(path, Self::read)
    }

    /// Reads a file, and returns it as YAML without its comments and secrets too, with its warnings.
    ///
    /// # Errors
    /// [`Error`] with all errors of the file.
    pub fn load_to_show(path: &Path) -> Result<Document<Self>, Error> {
        let document = yaml::load_document(path, Self::read)?;
        Ok(Document { text: redact(&document.text), ..document })
    }

    /// Reads the text of a file. Relative paths in it start at the working directory.
    ///
    /// # Errors
    /// All errors of the text, with their lines.
    pub fn parse(text: &str) -> Result<Self, Vec<yaml::Error>> {
        yaml::read(text, Path::new(""), Self::read)
    }

    /// The configuration that a sidecar of this tenant alone would have: its endpoints have the tenant's header, and the
    /// detectors do not know the label.
    pub fn of_tenant(&self, tenant: &Tenant) -> Self {
        let mut config = self.clone();
        let Some(tenants) = config.tenants.take() else { return config };
        for endpoint in &mut config.remote_write {
            tenants.set_header(tenant, &mut endpoint.http.headers);
            endpoint.tenants = None;
        }
        for source in &mut config.history {
            tenants.set_header(tenant, &mut source.http.headers);
            source.tenants = None;
        }
        let of_tenant = |detector: &Arc<Detector>| detector.of_tenant(tenant).map(Arc::new);
        config.detectors = config.detectors.iter().filter_map(of_tenant).collect();
        config
    }

    /// Checks that a command which reads the back ends names a tenant if the configuration has some.
    ///
    /// # Errors
    /// The reason, as text.
    pub fn check_tenant(&self, tenant: Option<&Tenant>) -> Result<(), String> {
        match (&self.tenants, tenant) {
            (Some(_), None) => Err("the configuration has tenants: choose one by --tenant".into()),
            (None, Some(tenant)) => {
                Err(format!("--tenant={tenant}: the configuration has no section tenants"))
            }
            _ => Ok(()),
        }
    }

    fn read(mut top: Section<'_, '_>) -> Self {
        let global = top.get("global").and_then(Node::section);
        let Global { scrape_interval, limits } = global.map(Global::read).unwrap_or_default();
        let mut remote_write = match top.get("remote_write") {
            Some(list) => read_sections(&list).map(remote_write::Config::read).collect(),
            None => vec![remote_write::Config::default()],
        };
        let mut history: Vec<history::Config> = match top.get("history") {
            Some(list) => read_sections(&list).map(history::Config::read).collect(),
            None => Vec::new(),
        };
        match top.get("remote_read") {
            Some(list) => history.extend(read_sections(&list).map(history::Config::read_remote_read)),
            None if history.is_empty() => history = default_remote_read(&remote_write),
            None => {}
        }
        let kafka = top.get("kafka").and_then(Node::section).map(kafka::Config::read);
        let registry = top
            .get("registry")
            .and_then(Node::section)
            .map_or_else(registry::Config::default, registry::Config::read);
        let tenants = top.get("tenants").and_then(Node::section);
        let tenants =
            tenants.map(|section| tenant::Config::read(section, limits.series, limits.groups)).map(Arc::new);
        let mut detectors = match top.get("detectors") {
            Some(list) => read_detectors(&list, scrape_interval),
            None => vec![Detector::node_network(scrape_interval)],
        };
        let grafana_url = top.get("grafana_url").and_then(|node| node.parse(str::parse));
        check_shared_model(&top, &registry, detectors.len());
        if let Some(tenants) = &tenants {
            divide_by_tenant(&top, tenants, &mut detectors, &mut remote_write, &mut history);
        }
        if let Some(kafka) = &kafka {
            check_partitions(&top, kafka, &detectors);
        }
        top.deny_unknown();
        let detectors = detectors.into_iter().map(Arc::new).collect();
        Self { limits, remote_write, history, kafka, tenants, registry, grafana_url, detectors }
    }
}

/// Keys whose values are secret, with everything below them.
const SECRET_KEYS: [&str; 8] = [
    "password",
    "credentials",
    "client_secret",
    "bearer_token",
    "key",
    "headers",
    "proxy_connect_header",
    "endpoint_params",
];

/// The YAML of a valid file with `<secret>` in place of its secrets.
fn redact(text: &str) -> String {
    let mut documents = Yaml::load_from_str(text).unwrap_or_default();
    let Some(document) = documents.first_mut() else { return String::new() };
    redact_node(document, false);
    let mut out = String::new();
    match YamlEmitter::new(&mut out).dump(document) {
        Ok(()) => out.trim_start_matches("---").trim_start().to_string(),
        Err(_) => String::new(),
    }
}

fn redact_node(node: &mut Yaml<'_>, is_secret: bool) {
    match node {
        Yaml::Mapping(mapping) => {
            for (key, value) in mapping.iter_mut() {
                let is_secret_key = key.as_str().is_some_and(|key| SECRET_KEYS.contains(&key));
                redact_node(value, is_secret || is_secret_key);
            }
        }
        Yaml::Sequence(items) => items.iter_mut().for_each(|item| redact_node(item, is_secret)),
        node => {
            let shown = if is_secret { Some("<secret>".into()) } else { node.as_str().and_then(shown_url) };
            if let Some(text) = shown {
                *node = Yaml::Value(Scalar::String(text.into()));
            }
        }
    }
}

/// A URL without its secrets; `None` for another text.
fn shown_url(text: &str) -> Option<String> {
    match text.contains("://") {
        // The password of a proxy stands in its URL.
        true if text.contains('@') => Some("<secret>".into()),
        true => Some(hide_query_values(text)),
        false => None,
    }
}

/// The Prometheus on this machine if scores are written to it, with the client of that block: an address that nobody
/// configured is not asked otherwise.
fn default_remote_read(remote_write: &[remote_write::Config]) -> Vec<history::Config> {
    let default = history::Config::default();
    let sibling = remote_write.iter().find(|endpoint| endpoint.url.is_sibling(&default.url));
    sibling.map(|endpoint| history::Config { http: endpoint.http.clone(), ..default }).into_iter().collect()
}

fn read_sections<'n, 'y>(list: &Node<'n, 'y>) -> impl Iterator<Item = Section<'n, 'y>> {
    list.items().unwrap_or_default().into_iter().filter_map(Node::section)
}

fn read_detectors(list: &Node<'_, '_>, scrape_interval: Duration) -> Vec<Detector> {
    let mut detectors: Vec<Detector> = Vec::new();
    let items = list.items();
    for item in items.iter().flatten() {
        let Some(section) = item.clone().section() else { continue };
        let detector = Detector::read(section, scrape_interval);
        let is_duplicate = detectors.iter().any(|other| other.name == detector.name);
        // A missing name is reported by Detector::read.
        if is_duplicate && !detector.name.is_empty() {
            item.error(format!("a second detector named {:?}", detector.name));
        }
        detectors.push(detector);
    }
    if items.is_some_and(|items| items.is_empty()) {
        list.error("at least one detector is needed");
    }
    detectors
}

fn check_shared_model(top: &Section<'_, '_>, registry: &registry::Config, n_detectors: usize) {
    if let registry::Store::Mlflow(mlflow) = &registry.store
        && let Some(model) = &mlflow.model
        && n_detectors > 1
    {
        top.error(format!(
            "registry.mlflow.model: {n_detectors} detectors would share the model {model}; without the key each has its own name"
        ));
    }
}

/// Divides the groups of all detectors, and the requests to all endpoints, by tenant.
fn divide_by_tenant(
    top: &Section<'_, '_>,
    tenants: &Arc<tenant::Config>,
    detectors: &mut [Detector],
    remote_write: &mut [remote_write::Config],
    history: &mut [history::Config],
) {
    for detector in detectors {
        if let Err(reason) = detector.divide_by_tenant(&tenants.label) {
            top.error(format!("tenants.label: {reason}"));
        }
    }
    let written =
        remote_write.iter_mut().map(|endpoint| (&endpoint.url, &endpoint.http, &mut endpoint.tenants));
    let read = history.iter_mut().map(|source| (&source.url, &source.http, &mut source.tenants));
    for (url, http, of_endpoint) in written.chain(read) {
        if http.headers.contains_key(&tenants.header) {
            top.error(format!(
                "tenants.header: {} is in `headers` of {url}: `tenants` sets it",
                tenants.header
            ));
        }
        *of_endpoint = Some(tenants.clone());
    }
}

/// A detector that does not group by a label of the partitions would have groups in several of them.
fn check_partitions(top: &Section<'_, '_>, kafka: &kafka::Config, detectors: &[Detector]) {
    for detector in detectors {
        if let Some(label) = kafka.by.iter().find(|label| !detector.by.contains(label)) {
            top.error(format!(
                "kafka.by: {label} is not in `by` of detector {:?}: a group of it would be in several partitions",
                detector.name
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(not(feature = "kafka"))]
    #[test]
    fn a_program_without_kafka_says_so() {
        let errors = Config::parse("kafka: {brokers: [a], topic: b}").expect_err("not built");
        assert_eq!(errors[0].message, format!("kafka: {}", kafka::config::NOT_BUILT));
    }

    #[test]
    fn a_shown_file_has_no_secrets() {
        let text = r#"
remote_write:
  - url: http://host/write # a comment
    basic_auth: {username: me, password: hunter2}
    headers: {X-Token: hunter2}
    proxy_url: http://me:hunter2@proxy/
    oauth2: {client_id: id, client_secret: hunter2, token_url: "http://host/token", endpoint_params: {a: hunter2}}
    tls_config: {key: hunter2, key_file: key.pem}
remote_read: [{url: "http://host/read?db=hunter2&p=hunter2", authorization: {credentials: hunter2}}]
kafka: {sasl: {username: me, password: hunter2}, tls_config: {key: hunter2}}
"#;
        let shown = redact(text);
        assert!(!shown.contains("hunter2") && !shown.contains('#'), "{shown}");
        assert_eq!(shown.matches("<secret>").count(), 11, "{shown}");
        for kept in ["username: me", "http://host/write", "client_id: id", "key_file: key.pem", "read?db="] {
            assert!(shown.contains(kept), "{kept}: {shown}");
        }
    }
}
