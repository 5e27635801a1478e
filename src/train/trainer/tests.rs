use super::*;
use crate::config::Config;
use crate::features::Schema;
use crate::features::rate::RateSemantics;
use crate::history::{self, HistoryClient};
use crate::models::registry::Registry;
use crate::models::registry::directory::{Directory, Retention};
use crate::prom::{Labels, METRIC_NAME, Sample};
use crate::report::zone::Zone;
use crate::train::pool::Pool;
use crate::window::Window;
use crate::window::grid::Grid;
use std::io::{Read as _, Write as _};
use std::path::Path;
use tempfile::TempDir;

const STEP_MS: i64 = 15_000;

fn feature(device: &str) -> Labels {
    Labels::new([(METRIC_NAME, "rx"), ("device", device)]).expect("valid")
}

/// A window with an hour of these counters.
fn window(devices: &[&str]) -> Window {
    window_of(devices, 240)
}

/// A window with this number of steps of these counters.
fn window_of(devices: &[&str], steps: i64) -> Window {
    let mut window = Window::new(2 * 3_600_000);
    let now_ms = time::now_ms();
    for device in devices {
        let column = window.get_or_add_column(&feature(device)).expect("few");
        for i in 0..=steps {
            let timestamp_ms = now_ms - (steps - i) * STEP_MS;
            window.push(column, Sample { timestamp_ms, value: (i * i % 97 + i * 1500) as f64 });
        }
    }
    window
}

fn test_job(backends: &Backends, devices: &[&str]) -> TrainingJob {
    TrainingJob {
        group: 0,
        detector: backends.detectors[0].clone(),
        labels: Labels::new([("job", "node")]).expect("valid"),
        window: window(devices),
        first_sample_at: Instant::now(),
        checkpoint: None,
        trained_history_ms: None,
        learned_to_ms: i64::MAX,
        closed_to_ms: i64::MAX,
        reason: TrainingReason::First,
        pool: None,
    }
}

fn test_backends(registry: Registry) -> Backends {
    let text = "detectors: [{name: net, match: [rx], by: [job], training: {min_history: 10m}}]";
    let config = Config::parse(text).expect("a valid configuration");
    let (detectors, registry_config) = (config.detectors, config.registry);
    Backends {
        detectors,
        history_clients: Vec::new(),
        endpoints: Vec::new(),
        registry,
        registry_config,
        report_zone: Zone::default(),
    }
}

async fn execute(
    job: TrainingJob,
    backends: &Backends,
    circuit_breaker: &CircuitBreaker,
) -> Result<TrainingOutcome, String> {
    TrainingRun::new(job, backends, circuit_breaker, &Semaphore::new(MAX_TRAINING_VALUES)).execute().await
}

#[tokio::test]
async fn the_model_of_the_registry_waits_for_its_features() {
    let folder = TempDir::new().expect("a temporary folder");
    let backends =
        test_backends(Registry::Directory(Directory::new(folder.path().into(), Retention::default())));
    let run =
        async |job| execute(job, &backends, &CircuitBreaker::default()).await.expect("the training succeeds");
    let first = run(test_job(&backends, &["eth0", "lo"])).await;
    assert!(matches!(first, TrainingOutcome::Model { is_new: true, .. }));
    assert!(matches!(run(test_job(&backends, &["eth0"])).await, TrainingOutcome::WaitingForFeatures));
    let again = run(test_job(&backends, &["eth0", "lo"])).await;
    assert!(matches!(again, TrainingOutcome::Model { is_new: false, .. }));
    // After the grace period, a missing feature counts as gone.
    let waited = TrainingJob {
        first_sample_at: Instant::now() - backends.detectors[0].grace,
        ..test_job(&backends, &["eth0"])
    };
    let TrainingOutcome::Model { deployed, is_new: true, .. } = run(waited).await else {
        panic!("a new model")
    };
    assert_eq!((deployed.info.n_features, deployed.info.version()), (1, Some(2)));
}

/// Two minutes are too short for a model, so that a pooled model serves. It is not registered.
#[tokio::test]
async fn a_pooled_model_serves_until_there_is_history() {
    let folder = TempDir::new().expect("a temporary folder");
    let backends =
        test_backends(Registry::Directory(Directory::new(folder.path().into(), Retention::default())));
    let run =
        async |job| execute(job, &backends, &CircuitBreaker::default()).await.expect("the training succeeds");
    let transform = backends.detectors[0].transform;
    let schema = Schema { features: vec![feature("eth0")], transform, grid: Grid::Exact };
    let pool = |windows| Some(Pool { schema: schema.clone(), windows });
    let short =
        |pool| TrainingJob { window: window_of(&["eth0"], 8), pool, ..test_job(&backends, &["eth0"]) };
    assert!(matches!(
        run(short(None)).await,
        TrainingOutcome::TooShort(ShortHistory { have_ms: 60_000, required_ms: 600_000 })
    ));
    let too_few = pool(vec![window_of(&["eth0"], 8)]);
    assert!(matches!(run(short(too_few)).await, TrainingOutcome::TooShort(_)));
    let others = || pool(vec![window(&["eth0"]), window(&["eth0"])]);
    let outcome = run(short(others())).await;
    let TrainingOutcome::Pooled { history: ShortHistory { have_ms: 60_000, .. }, deployed, .. } = outcome
    else {
        panic!("a pooled model")
    };
    assert!(deployed.info.is_pooled());
    assert_eq!((deployed.info.name.as_str(), deployed.info.version()), ("net", None));
    // A group with enough history does not use the pool.
    let own = run(TrainingJob { pool: others(), ..test_job(&backends, &["eth0"]) }).await;
    let TrainingOutcome::Model { deployed, is_new: true, .. } = own else { panic!("a fitted model") };
    assert_eq!(deployed.info.version(), Some(1));
    assert!(!deployed.info.is_pooled());
}

#[tokio::test]
async fn f15_a_model_of_days_is_not_replaced_by_one_of_hours() {
    let folder = TempDir::new().expect("a temporary folder");
    let backends =
        test_backends(Registry::Directory(Directory::new(folder.path().into(), Retention::default())));
    let run =
        async |job| execute(job, &backends, &CircuitBreaker::default()).await.expect("the training succeeds");
    let scheduled = |trained_history_ms| TrainingJob {
        reason: TrainingReason::Scheduled,
        trained_history_ms,
        ..test_job(&backends, &["eth0"])
    };
    // The window has an hour.
    let lost = run(scheduled(Some(5 * 86_400_000))).await;
    assert!(matches!(lost, TrainingOutcome::HistoryLost { have_ms: 3_500_000..=3_600_000 }));
    assert!(matches!(run(scheduled(Some(3_600_000))).await, TrainingOutcome::Model { .. }));
    // After a change of the schema, no row is scored without a new model.
    let schema = TrainingJob { reason: TrainingReason::LostFeature, ..scheduled(Some(5 * 86_400_000)) };
    assert!(matches!(run(schema).await, TrainingOutcome::Model { .. }));
}

#[tokio::test]
async fn a_registry_that_hung_is_not_asked_during_the_cooldown() {
    // The registry accepts connections and never answers.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("it is bound");
    let text = format!("registry: {{mlflow: {{tracking_uri: 'http://{address}'}}}}");
    let config = Config::parse(&text).expect("a valid configuration");
    let registry = Registry::open(&config.registry, Path::new("")).expect("a client");
    let backends = test_backends(registry);
    let started = Instant::now();
    let circuit_breaker = CircuitBreaker::default();
    circuit_breaker.open_registry(started);
    let first = execute(test_job(&backends, &["eth0"]), &backends, &circuit_breaker).await;
    assert!(matches!(
        first,
        Ok(TrainingOutcome::Model { deployed, .. }) if deployed.info.version().is_none()
    ));
    let scheduled = TrainingJob { reason: TrainingReason::Scheduled, ..test_job(&backends, &["eth0"]) };
    let Err(reason) = execute(scheduled, &backends, &circuit_breaker).await else {
        panic!("a model is registered during the cooldown")
    };
    assert_eq!(reason, "the registry is in cooldown");
    assert!(started.elapsed() < REGISTRY_TIMEOUT, "{:?}", started.elapsed());
}

/// An endpoint that answers every request with this status.
fn endpoint(status: &'static str) -> HistoryClient {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/api/v1/read", listener.local_addr().expect("it is bound"));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            let mut head = [0; 4096];
            let _ = stream.read(&mut head);
            let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    let config = history::Config { url: url.parse().expect("a URL"), ..history::Config::default() };
    HistoryClient::new(&config, &history::Metrics::default()).expect("a client")
}

/// The window has as much history as the model was trained on.
#[tokio::test]
async fn a_model_is_renewed_although_remote_read_fails() {
    for (status, alerts, is_renewed) in [
        ("503 Service Unavailable", &[][..], true),
        ("400 Bad Request", &[], true),
        ("400 Bad Request", &["Down"], true),
        // What the alerts exclude is not learned by mistake.
        ("503 Service Unavailable", &["Down"], false),
    ] {
        let folder = TempDir::new().expect("a temporary folder");
        let mut backends =
            test_backends(Registry::Directory(Directory::new(folder.path().into(), Retention::default())));
        backends.history_clients = vec![endpoint(status)];
        let detector = Arc::make_mut(&mut backends.detectors[0]);
        detector.training.exclude_alerts = alerts.iter().map(|alert| (*alert).to_string()).collect();
        let scheduled = |trained_history_ms| TrainingJob {
            reason: TrainingReason::Scheduled,
            trained_history_ms: Some(trained_history_ms),
            ..test_job(&backends, &["eth0"])
        };
        let outcome = execute(scheduled(3_600_000), &backends, &CircuitBreaker::default()).await;
        let is_model = matches!(outcome, Ok(TrainingOutcome::Model { .. }));
        assert_eq!(is_model, is_renewed, "{status} {alerts:?}: {:?}", outcome.err());
        let outcome = execute(scheduled(5 * 86_400_000), &backends, &CircuitBreaker::default()).await;
        assert!(!matches!(outcome, Ok(TrainingOutcome::Model { .. })), "{status}: of days by one of hours");
    }
}

#[tokio::test]
async fn an_endpoint_in_cooldown_is_not_asked_for_alerts() {
    let folder = TempDir::new().expect("a temporary folder");
    let mut backends =
        test_backends(Registry::Directory(Directory::new(folder.path().into(), Retention::default())));
    backends.history_clients = vec![endpoint("503 Service Unavailable")];
    Arc::make_mut(&mut backends.detectors[0]).training.exclude_alerts = vec!["Down".into()];
    let circuit_breaker = CircuitBreaker::default();
    circuit_breaker.open_client(
        &backends.history_clients[0].config.url,
        None,
        Instant::now(),
        Duration::ZERO,
    );
    let scheduled = TrainingJob { reason: TrainingReason::Scheduled, ..test_job(&backends, &["eth0"]) };
    let error = execute(scheduled, &backends, &circuit_breaker).await.err().expect("alerts are unknown");
    assert_eq!(error, "alerts unknown: the source of history is in cooldown");
}

/// A tenant that its back end rejects is in cooldown alone; a server that cannot be reached is so for all.
#[test]
fn the_cooldown_of_a_tenant_is_its_own() {
    let url: crate::http::Url = "http://a/api/v1/read".parse().expect("a URL");
    let [a, b] = ["a", "b"].map(|id| id.parse().expect("an ID"));
    let circuit_breaker = CircuitBreaker::default();
    let now = Instant::now();
    circuit_breaker.open_client(&url, Some(&a), now, Duration::from_secs(20));
    let is_open = |breaker: &CircuitBreaker| [&a, &b].map(|id| breaker.is_client_open(&url, Some(id)));
    assert_eq!(is_open(&circuit_breaker), [true, false]);
    circuit_breaker.open_client(&url, None, now, Duration::from_secs(20));
    assert_eq!(is_open(&circuit_breaker), [true, true]);
    circuit_breaker.reset_expired(now + Duration::from_secs(60));
    assert_eq!(is_open(&circuit_breaker), [true, false], "nine times as long as the read took");
    circuit_breaker.reset_expired(now + Duration::from_secs(180));
    assert_eq!(is_open(&circuit_breaker), [false, false]);
}

/// The alerts fired during all of the history, or during all but a few rows.
#[tokio::test]
async fn a_group_without_a_model_gets_one_of_excluded_rows() {
    let folder = TempDir::new().expect("a temporary folder");
    let backends =
        test_backends(Registry::Directory(Directory::new(folder.path().into(), Retention::default())));
    for from_ms in [0, time::now_ms() - 3_420_000] {
        let fit = |reason| {
            let job = TrainingJob { reason, ..test_job(&backends, &["eth0"]) };
            let exclusion = Exclusion { from_ms, to_ms: i64::MAX, reason: "Down fired".into() };
            let group_fit = GroupFit {
                job: Arc::new(job),
                history_ms: time::millis(backends.detectors[0].training.history),
                exclusions: vec![exclusion],
                is_history_partial: false,
                name: "net".into(),
                alias: "champion".into(),
                pinned: None,
                exemption: None,
                zone: Zone::default(),
                now_ms: time::now_ms(),
            };
            group_fit.run(Vec::new())
        };
        assert!(fit(TrainingReason::First).is_ok());
        assert!(fit(TrainingReason::LostFeature).is_ok());
        for reason in [TrainingReason::Scheduled, TrainingReason::NewFeature] {
            assert!(matches!(fit(reason), Err(NotTrained::AllExcluded { n_rows: 200.. })));
        }
    }
}

#[tokio::test]
async fn a_rollback_survives_trainings_and_a_restart() {
    let folder = TempDir::new().expect("a temporary folder");
    let open =
        || test_backends(Registry::Directory(Directory::new(folder.path().into(), Retention::default())));
    let backends = open();
    let name = registry::group_model_name("net", &["job".into()], None, &test_job(&backends, &[]).labels);
    let run = async |backends: &Backends, reason, devices: &[&str]| {
        let job = TrainingJob { reason, ..test_job(backends, devices) };
        execute(job, backends, &CircuitBreaker::default()).await.expect("the training succeeds")
    };
    let champion = async || {
        let aliases = backends.registry.aliases_of([name.as_str()]).await.expect("read");
        aliases[&name].version("champion")
    };
    run(&backends, TrainingReason::First, &["eth0"]).await;
    run(&backends, TrainingReason::Scheduled, &["eth0"]).await;
    assert_eq!(backends.registry.roll_back(&name, "champion").await.expect("two versions"), (2, 1));
    for expected in 3..=5 {
        let outcome = run(&backends, TrainingReason::Scheduled, &["eth0"]).await;
        let TrainingOutcome::Challenger { version, pinned: 1, .. } = outcome else { panic!("it is pinned") };
        assert_eq!((version, champion().await), (expected, Some(1)));
    }

    let restarted = open();
    let loaded = run(&restarted, TrainingReason::First, &["eth0"]).await;
    let TrainingOutcome::Model { deployed, is_new: false, .. } = loaded else { panic!("it is registered") };
    assert_eq!(deployed.info.version(), Some(1));
    let outcome = run(&restarted, TrainingReason::NewFeature, &["eth0", "lo"]).await;
    assert!(matches!(outcome, TrainingOutcome::Challenger { version: 6, pinned: 1, .. }), "it serves on");
    let challenger = restarted.registry.load(&name, 6, RateSemantics::V3).await.expect("a model");
    assert_eq!(challenger.schema.features.len(), 2);

    // Without a feature of its own, the pinned version scores nothing.
    let outcome = run(&restarted, TrainingReason::LostFeature, &["lo"]).await;
    assert!(matches!(outcome, TrainingOutcome::Model { is_new: true, .. }));
    assert_eq!(champion().await, Some(7));
    let note = restarted.registry.versions(&name).await.expect("read").pop().expect("the newest").note;
    assert!(
        note.ends_with("promoted without a check: the group lacks a feature of the version before"),
        "{note}"
    );
    let outcome = run(&restarted, TrainingReason::Scheduled, &["lo"]).await;
    assert!(
        matches!(outcome, TrainingOutcome::Challenger { version: 8, pinned: 7, .. }),
        "the pin goes over"
    );
    backends.registry.promote(&name, "champion", 8).await.expect("promoted");
    run(&restarted, TrainingReason::Scheduled, &["lo"]).await;
    assert_eq!(champion().await, Some(9), "a person promoted");
}

/// The gate checks a model with a new feature, because the model without it can serve on.
#[tokio::test]
async fn a_model_with_a_new_feature_passes_through_the_gate() {
    let folder = TempDir::new().expect("a temporary folder");
    let mut backends =
        test_backends(Registry::Directory(Directory::new(folder.path().into(), Retention::default())));
    let detector = Arc::make_mut(&mut backends.detectors[0]);
    detector.training.gate.max_kl = Some(0.0);
    let run = async |reason| {
        let job = TrainingJob { reason, ..test_job(&backends, &["eth0"]) };
        execute(job, &backends, &CircuitBreaker::default()).await.expect("the training succeeds")
    };
    assert!(matches!(run(TrainingReason::First).await, TrainingOutcome::Model { .. }));
    for reason in [TrainingReason::Scheduled, TrainingReason::NewFeature] {
        assert!(matches!(run(reason).await, TrainingOutcome::Gated { .. }), "{reason:?}");
    }
    assert!(matches!(run(TrainingReason::LostFeature).await, TrainingOutcome::Model { .. }));
}

/// Half a minute is enough by the configuration, and differences look back over a minute.
#[tokio::test]
async fn a_history_is_too_short_until_a_model_can_be_fitted() {
    let folder = TempDir::new().expect("a temporary folder");
    let mut backends =
        test_backends(Registry::Directory(Directory::new(folder.path().into(), Retention::default())));
    Arc::make_mut(&mut backends.detectors[0]).training.min_history = Duration::from_secs(30);
    let run = async |steps| {
        let job = TrainingJob { window: window_of(&["eth0"], steps), ..test_job(&backends, &["eth0"]) };
        execute(job, &backends, &CircuitBreaker::default()).await.expect("no failure")
    };
    // Rates of one minute, a lag of one minute, and eight rows.
    let required_ms = 60_000 + 7 * STEP_MS;
    let TrainingOutcome::TooShort(short) = run(8).await else { panic!("too short") };
    assert_eq!(short, ShortHistory { have_ms: 60_000, required_ms });
    let n_steps = 4 + required_ms / STEP_MS;
    let TrainingOutcome::TooShort(short) = run(n_steps - 1).await else { panic!("too short") };
    assert_eq!((short.have_ms, short.required_ms), (required_ms - STEP_MS, required_ms));
    assert!(matches!(run(n_steps).await, TrainingOutcome::Model { .. }));
}

/// A young model is trained every few minutes.
#[tokio::test]
async fn a_rejected_model_is_registered_once_per_interval() {
    let folder = TempDir::new().expect("a temporary folder");
    let mut backends =
        test_backends(Registry::Directory(Directory::new(folder.path().into(), Retention::default())));
    Arc::make_mut(&mut backends.detectors[0]).training.gate.max_kl = Some(1e-9);
    let run = async |reason| {
        let job = TrainingJob { reason, ..test_job(&backends, &["eth0"]) };
        execute(job, &backends, &CircuitBreaker::default()).await.expect("no failure")
    };
    let first = run(TrainingReason::LostFeature).await;
    assert!(matches!(first, TrainingOutcome::Model { deployed, .. } if deployed.info.version() == Some(1)));
    let gated_version = async || match run(TrainingReason::Scheduled).await {
        TrainingOutcome::Gated { version, .. } => version,
        _ => panic!("the gate rejects every model"),
    };
    assert_eq!((gated_version().await, gated_version().await, gated_version().await), (Some(2), None, None));
    Arc::make_mut(&mut backends.detectors[0]).training.interval = Duration::ZERO;
    let job = TrainingJob { reason: TrainingReason::Scheduled, ..test_job(&backends, &["eth0"]) };
    let next = execute(job, &backends, &CircuitBreaker::default()).await.expect("no failure");
    assert!(matches!(next, TrainingOutcome::Gated { version: Some(3), .. }));
}

#[tokio::test]
async fn a_group_of_many_features_reads_a_shorter_history() {
    let devices: Vec<String> = (0..1_000).map(|i| format!("eth{i}")).collect();
    let devices: Vec<&str> = devices.iter().map(String::as_str).collect();
    let folder = TempDir::new().expect("a temporary folder");
    let backends =
        test_backends(Registry::Directory(Directory::new(folder.path().into(), Retention::default())));
    let circuit_breaker = CircuitBreaker::default();
    let history_of = |window: Window, min_history: Duration, circuit_breaker: &CircuitBreaker| {
        let mut job = TrainingJob { window, ..test_job(&backends, &["lo"]) };
        Arc::make_mut(&mut job.detector).training.min_history = min_history;
        let values = Semaphore::new(0);
        let mut run = TrainingRun::new(job, &backends, circuit_breaker, &values);
        run.shorten_history().map(|()| run.history_ms)
    };
    let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
    let few = history_of(window(&["eth0", "lo"]), minutes(10), &circuit_breaker);
    assert_eq!(few, Ok(time::millis(backends.detectors[0].training.history)));
    let many = history_of(window_of(&devices, 20), minutes(10), &circuit_breaker);
    assert_eq!(many, Ok(20_000 * STEP_MS));
    let error = history_of(window_of(&devices, 20), minutes(6_000), &circuit_breaker);
    assert_eq!(
        error.expect_err("too short"),
        "1000 features fit into 20000000 training values for 3d11h20m, training.min_history is 4d4h"
    );
}

/// Trainings side by side have as many values as one may have alone.
#[tokio::test]
async fn a_large_training_waits_for_those_that_run() {
    let folder = TempDir::new().expect("a temporary folder");
    let backends =
        test_backends(Registry::Directory(Directory::new(folder.path().into(), Retention::default())));
    let values = Semaphore::new(MAX_TRAINING_VALUES / VALUES_PER_PERMIT);
    let circuit_breaker = CircuitBreaker::default();
    let run_on = |window: Window| {
        let job = TrainingJob { window, ..test_job(&backends, &["lo"]) };
        TrainingRun::new(job, &backends, &circuit_breaker, &values)
    };
    // 14 days of a row every 15 s, or every 5 s while the interval is not known.
    let (small, young) = (run_on(window(&["eth0", "lo"])), run_on(window_of(&["eth0"], 1)));
    let small = small.reserve_values().await.expect("the semaphore is open");
    let young = young.reserve_values().await.expect("the semaphore is open");
    assert_eq!([small.num_permits(), young.num_permits()], [161, 241]);
    let devices: Vec<String> = (0..1_000).map(|i| format!("eth{i}")).collect();
    let devices: Vec<&str> = devices.iter().map(String::as_str).collect();
    let large = run_on(window_of(&devices, 20));
    let waits = tokio::time::timeout(Duration::from_millis(20), large.reserve_values()).await.is_err();
    assert!(waits, "nothing else runs beside it");
    drop((small, young));
    assert_eq!(large.reserve_values().await.map(|permit| permit.num_permits()), Some(20_000));
}

#[tokio::test]
async fn trainers_of_one_queue_train_each_group_once() {
    let folder = TempDir::new().expect("a temporary folder");
    let backends =
        test_backends(Registry::Directory(Directory::new(folder.path().into(), Retention::default())));
    let (queue, jobs) = mpsc::channel(4);
    for group in 0..4 {
        let labels = Labels::new([("job", format!("node{group}").as_str())]).expect("valid");
        let job = TrainingJob { group, labels, ..test_job(&backends, &["eth0"]) };
        queue.try_send(job).expect("room for four");
    }
    drop(queue);
    let trainer = Trainer::new(jobs, watch::channel(Arc::new(backends)).1);
    let trained = Arc::new(std::sync::Mutex::new(Vec::new()));
    let run = |trainer: Trainer| {
        let trained = trained.clone();
        tokio::spawn(trainer.run(move |group, outcome| {
            let is_new = matches!(outcome, TrainingOutcome::Model { is_new: true, .. });
            trained.lock().expect("no panic").push((group, is_new));
            std::future::ready(())
        }))
    };
    for trainer in [run(trainer.clone()), run(trainer)] {
        trainer.await.expect("the queue is closed");
    }
    let mut trained = trained.lock().expect("no panic").clone();
    trained.sort_unstable();
    assert_eq!(trained, [0, 1, 2, 3].map(|group| (group, true)));
}
