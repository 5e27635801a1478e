//! Tenants whose series have the same labels: what the engine keeps, writes, learns and asks for is a tenant's own.

use super::*;
use crate::notebooks::{GroupSource, Table, TableQuery};
use crate::remote_read::server::{Query, Queryable, ReadableSeries, WorkPermits};
use crate::snapshot;
use crate::tenant::Tenant;
use crate::train::{ModelFitter, TrainingSet};

const CONFIG: &str = "\
    tenants: {group_limit: 3, series_limit: 5, tenant_limit: 2}\n\
    detectors: [{name: net, match: [rx], by: [job, instance], transform: value, training: {min_history: 10m}}]";

fn tenant(id: &str) -> Tenant {
    id.parse().expect("an ID")
}

/// A sample of a device of a host, in a request of a tenant. `label` is what the series itself has as its tenant.
fn send_labelled(
    bench: &mut Bench,
    id: &str,
    host: &str,
    device: &str,
    label: &str,
    (at, value): (i64, f64),
) {
    let labels =
        [(METRIC_NAME, "rx"), ("device", device), ("instance", host), ("job", "node"), ("tenant", label)];
    let labels: Vec<_> = labels.into_iter().filter(|(_, value)| !value.is_empty()).collect();
    let body = compress(vec![series(&labels, &[(START_MS + at * 15_000, value)])]);
    let written =
        bench.engine.ingest(ProtocolVersion::V1, Some(&tenant(id)), &body, Instant::now(), START_MS * 2);
    written.expect("accepted");
}

fn send(bench: &mut Bench, id: &str, host: &str, at: i64, value: f64) {
    send_labelled(bench, id, host, "lo", "", (at, value));
}

fn trained(job: &TrainingJob) -> TrainingOutcome {
    let rows = TrainingSet::from_window(&job.detector, &job.window, &[], job.learned_to_ms).expect("enough");
    let fitter = ModelFitter::for_detector(&job.detector, Some(job.labels.clone()), now_ms());
    let model = Arc::new(fitter.fit(&rows).expect("the parameters suit").model);
    let deployed = DeployedModel::new(model, job.labels.to_string(), Some(1));
    TrainingOutcome::Model { deployed, is_new: true, warm_start: WarmStart::default(), seconds: 1.0 }
}

/// Tenants of which each has a host `h` with a model of its own.
fn serving(ids: &[&str]) -> Bench {
    let mut bench = Bench::new(CONFIG);
    for (level, id) in ids.iter().enumerate() {
        for i in 0..200 {
            send(&mut bench, id, "h", i, 1000.0 * level as f64 + (i * i % 97) as f64);
        }
    }
    bench.tick(Instant::now());
    for _ in ids {
        let job = bench.jobs.try_recv().expect("a first training");
        assert!(job.pool.is_none(), "the other is another tenant's");
        bench.engine.handle_training_outcome(job.group, trained(&job), Instant::now());
    }
    bench
}

/// The series that an endpoint is sent of a tenant, each with its number of samples.
fn written(bench: &mut Bench, id: &str) -> Vec<(String, usize)> {
    let mut lines = Vec::new();
    while let Some(batch) = bench.engine.next_batch(0, Some(&tenant(id)), 100, START_MS * 2) {
        lines.extend(batch.series.iter().map(|series| (series.labels.to_string(), series.samples.len())));
        bench.engine.advance(0, Some(&tenant(id)), &batch.positions, START_MS);
    }
    lines
}

fn windows(bench: &mut Bench) -> BTreeMap<String, Vec<f64>> {
    let of_group = |(_, group): (u32, &mut Group)| {
        let mut samples = Vec::new();
        for (_, column) in group.window().features() {
            group.window().samples(column, i64::MIN, i64::MAX, &mut samples);
        }
        (group.labels.to_string(), samples.iter().map(|sample| sample.value).collect())
    };
    bench.groups().into_iter().map(of_group).collect()
}

#[test]
fn series_of_two_tenants_with_the_same_labels_are_two() {
    let mut bench = Bench::new(CONFIG);
    for at in 0..3 {
        send(&mut bench, "a", "h", at, 1.0);
        send(&mut bench, "b", "h", at, 2.0);
    }
    // What the sender claims to be changes nothing, and gives no second series.
    send_labelled(&mut bench, "a", "h", "lo", "b", (3, 3.0));
    let group = |id: &str| format!(r#"{{instance="h", job="node", tenant="{id}"}}"#);
    let expected = [(group("a"), vec![1.0, 1.0, 1.0, 3.0]), (group("b"), vec![2.0; 3])];
    assert_eq!(windows(&mut bench), BTreeMap::from(expected));
}

#[test]
fn a_tenant_at_a_limit_leaves_the_others_alone_and_is_named() {
    let mut bench = Bench::new(CONFIG);
    for host in ["g", "h", "i", "j", "k"] {
        send(&mut bench, "a", host, 0, 1.0);
    }
    for device in ["lo", "eth0", "eth1"] {
        send_labelled(&mut bench, "a", "g", device, "", (1, 1.0));
    }
    for host in ["g", "h"] {
        send(&mut bench, "b", host, 0, 1.0);
        send(&mut bench, "c", host, 0, 1.0);
    }
    let dropped = |reason: &str| format!(r#"ingest_samples_dropped_total{{reason="{reason}"}}"#);
    let count = |bench: &Bench, reason| bench.metric(&dropped(reason));
    assert_eq!(windows(&mut bench).len(), 5, "three of a, two of b");
    assert_eq!((count(&bench, "tenant_series_limit"), count(&bench, "tenant_limit")), (2, 2));
    assert_eq!(bench.metric(r#"tenant_samples_dropped_total{tenant="a"}"#), 2);
    send_labelled(&mut bench, "a", "g", "eth2", "", (1, 1.0));
    assert_eq!(bench.metric(r#"tenant_samples_dropped_total{tenant="a"}"#), 3, "a sixth series");
    // The counter of a tenant that is gone goes too, and another one has room.
    let later = Instant::now() + Duration::from_secs(7 * 3600);
    bench.tick(later);
    assert!(windows(&mut bench).is_empty());
    let mut page = String::new();
    prometheus_client::encoding::text::encode(&mut page, &bench.registry).expect("encodes");
    assert!(!page.contains("tenant=\"a\""), "{page}");
    send(&mut bench, "c", "g", 0, 1.0);
    assert_eq!(windows(&mut bench).len(), 1);
}

#[test]
fn a_series_without_a_valid_tenant_makes_no_group() {
    let mut bench = Bench::new(CONFIG);
    for label in ["", "a|b", ".."] {
        let labels = [(METRIC_NAME, "rx"), ("instance", "h"), ("job", "node"), ("tenant", label)];
        let labels: Vec<_> = labels.into_iter().filter(|(_, value)| !value.is_empty()).collect();
        bench.send(vec![series(&labels, &[(START_MS, 1.0)])]);
    }
    assert!(windows(&mut bench).is_empty());
    assert_eq!(bench.metric(r#"ingest_samples_dropped_total{reason="no_tenant"}"#), 3);
}

#[test]
fn a_batch_has_the_scores_of_one_tenant_without_the_label() {
    let mut bench = serving(&["a", "b"]);
    send(&mut bench, "a", "h", 200, 1.0);
    send(&mut bench, "b", "h", 200, 1000.0);
    send(&mut bench, "b", "h", 201, 1000.0);
    assert!(bench.engine.next_batch(0, None, 100, START_MS * 2).is_none());
    assert_eq!(bench.engine.tenants_of_endpoint(0), [(tenant("a"), true), (tenant("b"), true)]);
    let names = |lines: Vec<(String, usize)>| lines.into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    let n_samples = |lines: &[(String, usize)]| lines.iter().map(|(_, n)| n).sum::<usize>();
    let (a, b) = (written(&mut bench, "a"), written(&mut bench, "b"));
    assert_eq!(bench.engine.tenants_of_endpoint(0), [(tenant("a"), false), (tenant("b"), false)]);
    assert!(n_samples(&b) > n_samples(&a), "{a:?} {b:?}");
    assert!(a.iter().all(|(name, _)| !name.contains("tenant")), "{a:?}");
    assert_eq!(names(a)[0], r#"net_anomaly{instance="h", job="node"}"#);

    // The ends of a group go where its scores went.
    let later = Instant::now() + Duration::from_secs(7 * 3600);
    bench.tick(later);
    let ends = written(&mut bench, "a");
    assert!(ends.iter().all(|(name, n)| *n == 1 && !name.contains("tenant")), "{ends:?}");
    assert!(!ends.is_empty() && names(ends) == names(written(&mut bench, "b")));
}

/// Neither remote read nor the tables show a tenant what another has, whatever the selector.
#[tokio::test]
async fn a_reader_sees_the_groups_of_its_tenant_as_its_back_end_does() {
    let mut bench = serving(&["a", "b"]);
    send(&mut bench, "b", "only-b", 0, 2.0);
    let (engine, commands) = channel();
    let view = |id: &str| TenantView { engine: engine.clone(), tenant: id.parse().ok() };
    let [a, none, b] = ["a", "", "b"].map(view);
    drop(engine);
    let thread = std::thread::spawn(move || bench.engine.run(commands));
    let permits = WorkPermits::new(prometheus_client::metrics::gauge::Gauge::default());
    let permit = permits.acquire().await.expect("a free turn");
    let select = async |view: &TenantView, selector: &str| {
        let selector = crate::prom::Selector::parse(selector).expect("a selector");
        let query = Query { start_ms: 0, end_ms: i64::MAX, selector };
        let selected = view.select(query, &permit).await.expect("there is room");
        let mut found: Vec<(String, f64)> = Vec::new();
        for series in selected {
            let mut samples = Vec::new();
            series.append_samples(&mut samples);
            found.push((series.labels().to_string(), samples.first().map_or(f64::NAN, |s| s.value)));
        }
        found.sort_by(|one, other| one.0.cmp(&other.0));
        found
    };
    let series = |host: &str| format!(r#"rx{{device="lo", instance="{host}", job="node"}}"#);
    assert_eq!(select(&a, "rx").await, [(series("h"), 0.0)]);
    assert_eq!(select(&b, "rx").await, [(series("h"), 1000.0), (series("only-b"), 2.0)]);
    assert_eq!(select(&a, r#"{tenant=~"a|b",job="node"}"#).await, []);
    assert_eq!(select(&a, r#"{instance=~"only.*"}"#).await, []);
    assert_eq!(select(&none, r#"{job="node"}"#).await, [], "without a tenant nothing is shown");
    let outputs = select(&a, r#"{detector="net"}"#).await;
    assert!(outputs.iter().all(|(labels, _)| !labels.contains("tenant")), "{outputs:?}");

    let groups = async |view: &TenantView, query: &str| {
        let query = TableQuery::parse(Table::Window, query, |_| Ok(())).expect("valid");
        view.groups(Arc::new(query), &permit).await.expect("there is room").len()
    };
    assert_eq!((groups(&a, "").await, groups(&b, "").await, groups(&none, "").await), (1, 2, 0));
    assert_eq!(groups(&a, "match[]={tenant=\"b\"}").await, 0);
    drop((a, none, b));
    thread.join().expect("no panic");
}

#[test]
fn a_pool_has_groups_of_the_tenant_only() {
    let mut bench = serving(&["a", "b"]);
    send(&mut bench, "b", "new", 200, 1000.0);
    bench.tick(Instant::now());
    let job = bench.jobs.try_recv().expect("a first training");
    assert_eq!(job.labels.get("tenant"), "b");
    let pool = job.pool.expect("one group is like it");
    let levels = pool.windows.iter().map(|window| {
        let mut samples = Vec::new();
        let (_, column) = window.features().next().expect("a feature");
        window.samples(column, i64::MIN, i64::MAX, &mut samples);
        samples[0].value
    });
    assert_eq!(levels.collect::<Vec<_>>(), [1000.0], "b's own");
}

#[test]
fn a_gap_fill_asks_for_the_groups_of_one_tenant() {
    let mut bench = serving(&["a", "b"]);
    let mut now = Instant::now();
    for id in ["a", "b"] {
        (200..203).for_each(|i| send(&mut bench, id, "h", i, 1.0));
        send(&mut bench, id, "h", 230, 1.0);
    }
    for id in ["a", "b"] {
        bench.engine.tick(now, START_MS + 231 * 15_000);
        let Ok(BackfillRequest::Fill { detector, tenant: asked, groups, .. }) =
            bench.backfill_requests.try_recv()
        else {
            panic!("{id}: not asked")
        };
        assert_eq!((asked, groups.len()), (Some(tenant(id)), 1));
        assert_eq!(groups[0].get("tenant"), id);
        assert!(bench.backfill_requests.try_recv().is_err(), "the other waits");
        // The back end of the one answers as late as may be: the other's scoring does not resume meanwhile.
        if id == "a" {
            for seconds in [5, 9] {
                bench.engine.tick(now + Duration::from_secs(seconds), START_MS + 231 * 15_000);
            }
            now += Duration::from_secs(11);
            bench.engine.tick(now, START_MS + 231 * 15_000);
            assert_eq!(bench.metric(r#"gap_fill_timeouts_total{detector="net"}"#), 1, "a's own");
            assert_eq!(bench.metric("gap_fill_pending_groups"), 2);
        }
        // An answer without a tenant, or with that of nobody, is not used.
        let sample = vec![Sample { timestamp_ms: START_MS + 210 * 15_000, value: 7.0 }];
        let labels = Labels::new([(METRIC_NAME, "rx"), ("device", "lo"), ("instance", "h"), ("job", "node")]);
        bench.engine.apply_backfill(&detector, &[(labels.expect("valid"), sample)], now);
        bench.engine.finish_gap_fill(true, now);
    }
    assert!(windows(&mut bench).values().flatten().all(|value| *value != 7.0));
}

#[test]
fn jobs_and_snapshots_are_a_tenants_own() {
    let mut bench = serving(&["a", "b"]);
    let groups: Vec<Labels> = bench.groups().iter().map(|(_, group)| group.labels.clone()).collect();
    let detector = bench.config().detectors[0].clone();
    let jobs: Vec<String> = groups
        .iter()
        .map(|group| crate::pipeline::output_series::job_incident_labels(&detector, group, None).to_string())
        .collect();
    let job = |id: &str| format!(r#"anomaly_job_incident{{detector="net", job="node", tenant="{id}"}}"#);
    assert_eq!(jobs, [job("a"), job("b")]);

    let mut snapshots = Vec::new();
    let mut after = None;
    while let Some(step) = bench.engine.next_snapshot(after) {
        after = Some(step.id);
        let bytes = step.snapshot.expect("it has changed").encode().expect("small");
        snapshots.push(snapshot::decode(&bytes).expect("its own bytes"));
    }
    let before = windows(&mut bench);
    let restore = |config: &str, outcome: &'static str| {
        let mut bench = Bench::new(config);
        bench.engine.restore(snapshots.clone(), Instant::now(), |found| assert_eq!(found, outcome));
        bench
    };
    let mut again = restore(CONFIG, "restored");
    assert_eq!(windows(&mut again), before);
    send(&mut again, "c", "h", 0, 1.0);
    assert_eq!(again.metric(r#"ingest_samples_dropped_total{reason="tenant_limit"}"#), 1, "they count");
    // Without tenants, or with another label, they are no groups of these detectors.
    restore(&CONFIG[CONFIG.find("detectors").expect("there")..], "incompatible");
    restore(&CONFIG.replace("tenants: {", "tenants: {label: org, "), "incompatible");
}

#[test]
fn a_job_incident_is_written_to_its_tenant() {
    let mut bench = serving(&["a", "b"]);
    let labels = |id| Labels::new([(METRIC_NAME, "anomaly_job_incident"), ("job", "node"), ("tenant", id)]);
    let sample = Sample { timestamp_ms: START_MS, value: 1.0 };
    let of_jobs = ["a", "b"].map(|id| (labels(id).expect("valid"), vec![sample]));
    let samples = super::super::jobs::JobSamples { series: of_jobs.to_vec(), ended: Vec::new() };
    ["a", "b"].iter().for_each(|id| drop(written(&mut bench, id)));
    bench.engine.publish_jobs(&samples, START_MS);
    for id in ["a", "b"] {
        assert_eq!(written(&mut bench, id), [(r#"anomaly_job_incident{job="node"}"#.to_string(), 1)]);
    }
}
