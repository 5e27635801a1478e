use super::*;
use crate::config::Config;
use crate::history::{self, HistoryClient};
use crate::http::Url;
use crate::models::registry::directory::{Directory, Retention};
use crate::models::registry::{NewVersion, Registry};
use crate::models::{ModelCard, artifact};
use crate::pipeline::engine::tests::{Bench, START_MS, model, send_stale_markers, series};
use crate::pipeline::engine::{self, EngineHandle};
use crate::prom::wire::snappy;
use crate::prom::{METRIC_NAME, Sample, proto};
use crate::report::zone::Zone;
use prost::Message as _;
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use tempfile::TempDir;

const METRIC: &str = "node_network_receive_bytes_total";

/// The engine of two groups, a and b, that serve a model of two features, and a watcher of an empty registry.
struct Fixture {
    watcher: RegistryWatcher,
    engine: EngineHandle,
    backends: Arc<Backends>,
    folder: TempDir,
}

fn group(instance: &str) -> Labels {
    Labels::new([("instance", instance), ("job", "node")]).expect("valid")
}

fn feature(device: &str) -> Labels {
    Labels::new([(METRIC_NAME, METRIC), ("device", device)]).expect("valid")
}

/// The name of the registered models of a group.
fn name(instance: &str) -> String {
    registry::group_model_name("node_network", &["instance".into()], None, &group(instance))
}

/// A model of two features for every group.
fn two_features() -> Arc<Model> {
    let model = model(vec![feature("eth0"), feature("lo")], 60_000);
    Arc::new(Model { card: ModelCard::default(), ..Model::clone(&model) })
}

impl Fixture {
    fn new() -> Self {
        Self::after(|_| {})
    }

    /// The fixture after some more samples.
    fn after(send: impl FnOnce(&mut Bench)) -> Self {
        let mut bench = Bench::new("");
        for instance in ["a", "b"] {
            for device in ["eth0", "lo"] {
                let labels =
                    [(METRIC_NAME, METRIC), ("device", device), ("instance", instance), ("job", "node")];
                bench.send(vec![series(&labels, &[(START_MS, 0.0), (START_MS + 15_000, 1.0)])]);
            }
        }
        let serving = two_features();
        bench.install(&BTreeMap::from(["a", "b"].map(|instance| (group(instance), serving.clone()))));
        send(&mut bench);
        let config = bench.config();
        let (engine, commands) = engine::channel();
        std::thread::spawn(move || bench.engine.run(commands));
        let folder = TempDir::new().expect("a temporary folder");
        let backends = Arc::new(Backends {
            detectors: config.detectors.clone(),
            history_clients: Vec::new(),
            endpoints: Vec::new(),
            registry: Registry::Directory(Directory::new(folder.path().into(), Retention::default())),
            registry_config: config.registry.clone(),
            report_zone: Zone::default(),
        });
        let (_, backends_rx) = watch::channel(backends.clone());
        let metrics = Metrics::new(&mut prometheus_client::registry::Registry::default());
        Self {
            watcher: RegistryWatcher::new(engine.downgrade(), backends_rx, metrics),
            engine,
            backends,
            folder,
        }
    }

    /// Registers a version for a group and makes it the champion.
    async fn promote(&self, instance: &str) -> u64 {
        let model = two_features();
        let version = NewVersion { model: &model, report: None, note: String::new() };
        let registry = &self.backends.registry;
        let number = registry.register(&name(instance), &version).await.expect("registered");
        registry.promote(&name(instance), "champion", number).await.expect("promoted");
        number
    }

    /// The folder of a group's models.
    fn models(&self, instance: &str) -> PathBuf {
        self.folder.path().join(name(instance))
    }

    /// Polls once; the texts of the failures.
    async fn poll(&mut self) -> Vec<String> {
        let failures = self.watcher.poll(&self.backends.clone()).await;
        let failures = failures.expect("the registry answers").expect("the engine runs");
        failures.iter().map(|error| crate::error::chain(error)).collect()
    }

    async fn deployments(&self) -> Vec<Deployment> {
        self.engine.downgrade().list_deployments().await.expect("the engine runs")
    }

    /// The version that serves a group; `None` for the unregistered first model.
    async fn served(&self, instance: &str) -> Option<u64> {
        let deployments = self.deployments().await;
        let deployment = deployments.into_iter().find(|deployment| deployment.labels == group(instance));
        let (model, version) = deployment.expect("a group").champion.expect("a champion");
        version.filter(|_| model == name(instance))
    }

    /// The next sample of a feature of group a.
    async fn send(&self, device: &str, timestamp_ms: i64, value: f64) {
        let samples = vec![(feature(device).union(&group("a")), vec![Sample { timestamp_ms, value }])];
        let detector = self.backends.detectors[0].clone();
        self.engine.downgrade().backfill(detector, samples).await.expect("the engine runs");
    }
}

#[tokio::test]
async fn a_version_that_cannot_be_read_keeps_no_other_group_from_its_version() {
    let mut fixture = Fixture::new();
    let (of_a, of_b) = (fixture.promote("a").await, fixture.promote("b").await);
    let version = fixture.models("a").join(of_a.to_string());
    let files = artifact::read_files(&version).expect("a version");
    fs::remove_dir_all(&version).expect("removed");
    let failures = fixture.poll().await;
    assert_eq!(failures, [format!("model {} has no version {of_a}", name("a"))]);
    assert_eq!((fixture.served("a").await, fixture.served("b").await), (None, Some(of_b)));
    artifact::save(&files, &version).expect("it is there again");
    assert!(fixture.poll().await.is_empty());
    assert_eq!(fixture.served("a").await, Some(of_a), "it is tried again");
}

/// Another program moves the alias in the list of versions.
async fn move_champion(fixture: &Fixture, from: u64, to: u64) {
    let list = fixture.models("a").join("registry.json");
    let mut content: serde_json::Value =
        serde_json::from_slice(&fs::read(&list).expect("a list")).expect("JSON");
    assert_eq!(content["aliases"]["champion"], from);
    content["aliases"]["champion"] = to.into();
    fs::write(&list, content.to_string()).expect("written");
}

#[tokio::test]
async fn a_version_that_another_program_moves_back_to_is_pinned() {
    let mut fixture = Fixture::new();
    let first = fixture.promote("a").await;
    let model = two_features();
    let version = NewVersion { model: &model, report: None, note: String::new() };
    let second = fixture.backends.registry.register(&name("a"), &version).await.expect("registered");
    let pinned = |fixture: &Fixture| {
        fixture.watcher.metrics.pinned.get_or_create(&metric_labels("node_network", &group("a"))).get()
    };
    move_champion(&fixture, first, second).await;
    assert!(fixture.poll().await.is_empty());
    assert_eq!((fixture.served("a").await, pinned(&fixture)), (Some(second), 0));
    move_champion(&fixture, second, first).await;
    assert!(fixture.poll().await.is_empty());
    assert_eq!((fixture.served("a").await, pinned(&fixture)), (Some(first), 1));
    fixture.backends.registry.unpin(&name("a"), "champion").await.expect("released");
    assert!(fixture.poll().await.is_empty());
    assert_eq!(pinned(&fixture), 0);
}

#[tokio::test]
async fn a_champion_is_not_scored_as_its_own_challenger() {
    let mut fixture = Fixture::new();
    let version = fixture.promote("a").await;
    fixture.backends.registry.promote(&name("a"), CHALLENGER, version).await.expect("promoted");
    fixture.poll().await;
    let deployments = fixture.deployments().await;
    let deployment = deployments.into_iter().find(|deployment| deployment.labels == group("a"));
    assert_eq!(deployment.expect("a group").challenger, None);
}

#[tokio::test]
async fn a_damaged_list_of_versions_keeps_no_other_group_from_its_version() {
    let mut fixture = Fixture::new();
    let (of_a, of_b) = (fixture.promote("a").await, fixture.promote("b").await);
    let list = fixture.models("a").join("registry.json");
    let content = fs::read(&list).expect("a list");
    fs::write(&list, "{").expect("written");
    let failures = fixture.poll().await;
    assert!(failures.len() == 1 && failures[0].contains("registry.json cannot be read"), "{failures:?}");
    assert_eq!((fixture.served("a").await, fixture.served("b").await), (None, Some(of_b)));
    fs::write(&list, content).expect("written");
    assert!(fixture.poll().await.is_empty());
    assert_eq!(fixture.served("a").await, Some(of_a));
}

#[tokio::test]
async fn a_promotion_while_the_target_is_down_is_followed_when_it_returns() {
    let mut fixture = Fixture::after(|bench| send_stale_markers(bench, 2));
    let version = fixture.promote("a").await;
    for _ in 0..2 {
        assert!(fixture.poll().await.is_empty());
        assert_eq!(fixture.served("a").await, None, "the group has none of its features");
    }
    // The features come back one after the other.
    fixture.send("eth0", START_MS + 45_000, 2.0).await;
    fixture.poll().await;
    assert_eq!(fixture.served("a").await, None);
    fixture.send("lo", START_MS + 45_000, 2.0).await;
    fixture.poll().await;
    assert_eq!(fixture.served("a").await, Some(version));
}

#[tokio::test]
async fn an_offer_that_a_reload_overtakes_is_made_again() {
    let mut fixture = Fixture::new();
    let version = fixture.promote("a").await;
    let before = fixture.deployments().await;
    let config = Config { detectors: fixture.backends.detectors.clone(), ..Config::default() };
    fixture.engine.reload(Arc::new(config), vec![Arc::default()]).await.expect("the engine runs");
    let backends = fixture.backends.clone();
    let mut poll =
        Poll::new(&backends, &champion_slots(&backends, &before)).await.expect("the registry answers");
    let detector = &backends.detectors[0];
    let slot = Slot { detector, deployment: &before[0], role: ModelRole::Champion };
    fixture.watcher.reconcile(&backends, &mut poll, slot).await.expect("read").expect("the engine runs");
    assert_eq!(fixture.served("a").await, None, "the group has another id now");
    fixture.poll().await;
    assert_eq!(fixture.served("a").await, Some(version));
}

/// A Prometheus whose remote read fails once, and then has these samples of each feature of group a.
fn prometheus(times_ms: std::ops::Range<i64>) -> Url {
    let series = ["eth0", "lo"].map(|device| {
        let labels = feature(device).union(&group("a"));
        let label = |(name, value): (&str, &str)| proto::Label { name: name.into(), value: value.into() };
        let sample = |i| proto::Sample { timestamp: START_MS + i * 15_000, value: i as f64 };
        proto::TimeSeries {
            labels: labels.iter().map(label).collect(),
            samples: times_ms.clone().map(sample).collect(),
            ..Default::default()
        }
    });
    let result = proto::QueryResult { timeseries: series.into() };
    let body = snappy::compress(&proto::ReadResponse { results: vec![result] }.encode_to_vec());
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/api/v1/read", listener.local_addr().expect("it is bound"));
    std::thread::spawn(move || {
        for (i, stream) in listener.incoming().enumerate() {
            let mut stream = stream.expect("a connection");
            let _ = stream.read(&mut [0; 4096]);
            let (status, body) = if i == 0 { ("503 Not Ready", &[][..]) } else { ("200 OK", &body[..]) };
            let head = format!(
                "HTTP/1.1 {status}\r\nContent-Type: application/x-protobuf\r\nContent-Length: {}\r\n\
                 Connection: close\r\n\r\n",
                body.len()
            );
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
        }
    });
    url.parse().expect("a URL")
}

#[tokio::test]
async fn history_that_comes_later_joins_later() {
    let mut fixture = Fixture::new();
    let version = fixture.promote("a").await;
    let url = prometheus(-3..1);
    let config = history::Config { url, ..history::Config::default() };
    let client = HistoryClient::new(&config, &history::Metrics::default()).expect("a client");
    let Backends { detectors, registry, registry_config, .. } = &*fixture.backends;
    fixture.backends = Arc::new(Backends {
        detectors: detectors.clone(),
        history_clients: vec![client],
        endpoints: Vec::new(),
        registry: registry.clone(),
        registry_config: registry_config.clone(),
        report_zone: Zone::default(),
    });
    fixture.poll().await;
    assert_eq!(fixture.served("a").await, Some(version), "it serves without its history");
    assert!(fixture.deployments().await[0].lacks_history);
    fixture.poll().await;
    assert!(fixture.deployments().await[0].lacks_history, "the endpoint is in cooldown");
    fixture.watcher.circuit_breaker = CircuitBreaker::default();
    fixture.poll().await;
    let deployment = fixture.deployments().await.remove(0);
    assert_eq!((deployment.lacks_history, fixture.served("a").await), (false, Some(version)));
    // The samples of the gap are in the window now, and are not stored again.
    fixture.send("lo", START_MS - 15_000, 1.0).await;
    assert_eq!(fixture.deployments().await[0].newest_scored_ms, Some(START_MS + 15_000));
}
