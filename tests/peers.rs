//! Other programs than one Prometheus as senders and receivers, each with the files of its example: scores arrive soon, from
//! a model of the history that the receiver has, and every scrape has its score.

mod support;

use std::collections::BTreeMap;
use std::fs;
use support::example::{Example, TIMEOUT, wait_for_ok};
use support::mimir;
use support::prometheus::{PrometheusApi, Series, start_receiver, storage_path};
use support::victoriametrics::VictoriaMetrics;
use support::{Process, PrometheusVersion, each_version, now_ms, wait};

/// Rows that are scored while both programs run.
const N_ROWS: usize = 2;
/// Samples of an hour.
const MIN_HISTORY_SAMPLES: f64 = 4.0 * 240.0;

/// The only series of a selector with samples since a time, and these samples. A query covers more than the test takes.
fn stored_since(api: &PrometheusApi, selector: &str, since_ms: i64) -> Result<Series, String> {
    let mut found = api.query(&format!("{selector}[10m]"))?;
    for series in &mut found {
        series.samples.retain(|(timestamp_ms, _)| *timestamp_ms >= since_ms);
    }
    found.retain(|series| !series.samples.is_empty());
    if found.len() == 1 { Ok(found.remove(0)) } else { Err(format!("{} series for {selector}", found.len())) }
}

/// Waits until rows since a time have scores, each scrape from the first score to the last, unless it is counted as one whose
/// rates have no full range: scrapes do not follow the history at its interval. Returns the labels of the scores.
fn check_scores(
    example: &Example,
    processes: &mut [&mut Process],
    api: &PrometheusApi,
    since_ms: i64,
) -> BTreeMap<String, String> {
    let stored = |selector| stored_since(api, selector, since_ms);
    let scores = wait("rows have scores", TIMEOUT, processes, || {
        let scores = stored("anomaly_score")?;
        let times = scores.timestamps();
        let (Some(first_ms), Some(last_ms)) = (times.first(), times.last()) else {
            return Err("no score".into());
        };
        // A sender may write a scrape to the receiver after promforest writes its score.
        let mut scrapes = stored("node_network_receive_bytes_total")?.timestamps();
        scrapes.retain(|timestamp_ms| (first_ms..=last_ms).contains(&timestamp_ms));
        let n_scrapes = scrapes.len();
        scrapes.retain(|timestamp_ms| times.contains(timestamp_ms));
        let n_too_short = example.metric("promforest_rows_total", &[("state", "too_short")]);
        let is_each_counted = (n_scrapes - scrapes.len()) as f64 <= n_too_short;
        if times.len() >= N_ROWS && times == scrapes && is_each_counted {
            Ok(scores)
        } else {
            Err(format!("{times:?}, {n_too_short} of {n_scrapes} scrapes too short, {scrapes:?}"))
        }
    });
    let read = example.metric("promforest_history_samples_total", &[]);
    assert!(read >= MIN_HISTORY_SAMPLES, "{read} samples of history\n{}", processes[0].tail());
    scores.labels
}

/// No score was given up, no request of the sender was refused.
fn check_nothing_lost(example: &Example, promforest: &Process) {
    let failed = example.metric("promforest_remote_write_samples_failed_total", &[]);
    assert_eq!(failed, 0.0, "{}", promforest.tail());
    let requests = |labels: &[(&str, &str)]| example.metric("promforest_ingest_requests_total", labels);
    assert_eq!(requests(&[]), requests(&[("code", "204")]), "{}", promforest.tail());
}

/// The labels of the exporter's scores, with these besides.
fn score_labels(example: &Example, more: &[(&str, &str)]) -> BTreeMap<String, String> {
    let instance = example.hosts.address();
    let own = [
        ("__name__", "anomaly_score"),
        ("detector", "node_network"),
        ("instance", &instance),
        ("job", "node"),
    ];
    own.iter().chain(more).map(|(name, value)| ((*name).into(), (*value).into())).collect()
}

/// One server scrapes, sends, stores and answers.
#[test]
fn one_prometheus() {
    each_version(|version| {
        let folder = tempfile::tempdir().expect("a folder");
        let (mut prometheus, address) = start_receiver(version, folder.path());
        let deploy = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/");
        let example = Example::new("prometheus", &[("localhost:9090", &address), ("../../", deploy)]);
        example.write_history(&address, "/api/v1/write", "", &[]);
        // It goes on with the storage, and with the example's configuration.
        prometheus.terminate(TIMEOUT);
        let api = PrometheusApi(address.clone());
        let began_ms = now_ms();
        let storage = format!("--storage.tsdb.path={}", storage_path(folder.path(), &address).display());
        let listen = format!("--web.listen-address={address}");
        let args = ["--config.file=prometheus.yml", "--web.enable-remote-write-receiver", &storage, &listen];
        let mut prometheus = example.start("prometheus", &version.prometheus(), &args);
        wait_for_ok(&mut prometheus, &address, "/-/ready");
        let mut promforest = example.start_promforest();
        check_scores(&example, &mut [&mut promforest, &mut prometheus], &api, began_ms);
        check_nothing_lost(&example, &promforest);
        let rules = api.data("rules").expect("an answer")["groups"].to_string();
        assert!(rules.contains("AnomalyIncident"), "{version}: {rules}");
    });
}

/// An agent answers no query: history comes from the server that it writes to.
#[test]
fn prometheus_in_agent_mode() {
    each_version(|version| {
        let folder = tempfile::tempdir().expect("a folder");
        let (mut central, address) = start_receiver(version, folder.path());
        let example = Example::new("agent", &[("central:9090", &address)]);
        example.write_history(&address, "/api/v1/write", "", &[("cluster", "eu")]);
        let api = PrometheusApi(address);
        let flag = match version {
            PrometheusVersion::V2 => "--enable-feature=agent",
            PrometheusVersion::V3 => "--agent",
        };
        let began_ms = now_ms();
        let listen = format!("--web.listen-address=127.0.0.1:{}", support::free_port());
        let mut agent =
            example.start("agent", &version.prometheus(), &[flag, "--config.file=prometheus.yml", &listen]);
        let mut promforest = example.start_promforest();
        let found = check_scores(&example, &mut [&mut promforest, &mut agent, &mut central], &api, began_ms);
        assert_eq!(found, score_labels(&example, &[("cluster", "eu")]), "{version}");
        check_nothing_lost(&example, &promforest);
        // The agent's own metrics go the same way.
        let own = api.query(r#"promforest_rows_total{state="complete", cluster="eu"}"#).expect("an answer");
        assert!(!own.is_empty(), "{version}: {}", agent.tail());
    });
}

/// Samples pass through the collector's own model of data, which adds labels with the version of its receiver: a new version
/// changes no feature.
#[test]
fn an_opentelemetry_collector() {
    let folder = tempfile::tempdir().expect("a folder");
    let (mut prometheus, address) = start_receiver(PrometheusVersion::V3, folder.path());
    let example = Example::new("otel-collector", &[("localhost:9090", &address)]);
    let older = [
        (
            "otel_scope_name",
            "github.com/open-telemetry/opentelemetry-collector-contrib/receiver/prometheusreceiver",
        ),
        ("otel_scope_version", "0.100.0"),
    ];
    example.write_history(&address, "/api/v1/write", "", &older);
    let api = PrometheusApi(address);
    let began_ms = now_ms();
    // Its own metrics have a fixed port.
    fs::write(example.folder.path().join("more.yml"), "service: {telemetry: {metrics: {level: none}}}\n")
        .expect("writable");
    let args = ["--config=otelcol.yml", "--config=more.yml"];
    let mut collector = example.start("otelcol", &support::otelcol(), &args);
    let mut promforest = example.start_promforest();
    let processes = &mut [&mut promforest, &mut collector, &mut prometheus];
    let found = check_scores(&example, processes, &api, began_ms);
    assert_eq!(found, score_labels(&example, &[]));
    check_nothing_lost(&example, &promforest);
    let stored = stored_since(&api, "node_network_receive_bytes_total", began_ms).expect("stored");
    assert_ne!(stored.labels["otel_scope_version"], "0.100.0");
    assert!(stored.labels["otel_scope_name"].ends_with("prometheusreceiver"), "{:?}", stored.labels);
    let own = r#"promforest_missing_features{job="node"}"#;
    let own = wait("promforest's own metrics are stored", TIMEOUT, &mut [&mut collector], || {
        let series = api.query(own)?;
        if series.len() == 1 { Ok(series[0].labels.clone()) } else { Err(format!("{series:?}")) }
    });
    assert_eq!(own["instance"], example.hosts.address());
}

/// History is VictoriaMetrics' export.
#[test]
fn victoriametrics_and_vmagent() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut store = VictoriaMetrics::start(folder.path());
    let example = Example::new("victoriametrics", &[("localhost:8428", &store.address)]);
    example.write_history(&store.address, "/api/v1/write", "", &[]);
    let api = PrometheusApi(store.address.clone());
    let began_ms = now_ms();
    let write_to = |address: &str| format!("-remoteWrite.url=http://{address}/api/v1/write");
    let (to_store, to_promforest) = (write_to(&store.address), write_to(&example.promforest));
    let listen = format!("-httpListenAddr=127.0.0.1:{}", support::free_port());
    let args = [
        "-promscrape.config=vmagent.yml",
        "-remoteWrite.flushInterval=1s",
        "-remoteWrite.tmpDataPath=vmagent",
        &to_store,
        &to_promforest,
        &listen,
    ];
    let mut vmagent = example.start("vmagent", &support::vmagent(), &args);
    let mut promforest = example.start_promforest();
    let processes = &mut [&mut promforest, &mut vmagent, &mut store.process];
    check_scores(&example, processes, &api, began_ms);
    let failed = example.metric("promforest_remote_write_samples_failed_total", &[]);
    assert_eq!(failed, 0.0, "{}", promforest.tail());
}

/// Thanos Receive stores, with labels of its own, and Thanos Query answers.
#[test]
fn thanos_receive_and_query() {
    let address = || format!("127.0.0.1:{}", support::free_port());
    let (receive, receive_http, query, store) = (address(), address(), address(), address());
    let example =
        Example::new("thanos", &[("thanos-receive:19291", &receive), ("thanos-query:9090", &query)]);
    let args = [
        "receive",
        "--label=receive_replica=\"0\"",
        "--tsdb.out-of-order.time-window=30m",
        "--tsdb.path=receive",
        &format!("--remote-write.address={receive}"),
        &format!("--grpc-address={store}"),
        &format!("--receive.local-endpoint={store}"),
        &format!("--http-address={receive_http}"),
    ];
    let mut receiver = example.start("thanos-receive", &support::thanos(), &args);
    wait_for_ok(&mut receiver, &receive_http, "/-/ready");
    let args = [
        "query",
        &format!("--endpoint={store}"),
        &format!("--http-address={query}"),
        &format!("--grpc-address={}", address()),
    ];
    let mut querier = example.start("thanos-query", &support::thanos(), &args);
    wait_for_ok(&mut querier, &query, "/-/ready");
    example.write_history(&receive, "/api/v1/receive", "", &[("cluster", "eu"), ("replica", "a")]);
    let api = PrometheusApi(query);
    let began_ms = now_ms();
    let listen = format!("--web.listen-address={}", address());
    let args = ["--config.file=prometheus.yml", "--storage.tsdb.path=prometheus", &listen];
    let mut prometheus = example.start("prometheus", &PrometheusVersion::V3.prometheus(), &args);
    let mut promforest = example.start_promforest();
    let processes = &mut [&mut promforest, &mut prometheus, &mut receiver, &mut querier];
    let found = check_scores(&example, processes, &api, began_ms);
    assert_eq!(found, score_labels(&example, &[("receive_replica", "0"), ("tenant_id", "default-tenant")]));
    check_nothing_lost(&example, &promforest);
}

/// Mimir's answers to the first write requests of promforest, and to all with the series of incidents.
fn answer_as_mimir(n_writes: usize, names: &[String]) -> Option<mimir::Answer> {
    match n_writes {
        0 => Some((
            429,
            "Retry-After: 1\r\n",
            "the request has been rejected because the tenant exceeded the ingestion rate limit, set to 10000 items/s with \
             a maximum allowed burst of 200000. This limit is applied on the total number of samples, exemplars and \
             metadata received across all distributors (err-mimir-tenant-max-ingestion-rate). To adjust the related \
             per-tenant limits, configure -distributor.ingestion-rate-limit and -distributor.ingestion-burst-size, or \
             contact your service administrator.",
        )),
        1 => Some((
            429,
            "",
            "the request has been rejected because the tenant exceeded the request rate limit, set to 10 requests/s across \
             all distributors with a maximum allowed burst of 20 (err-mimir-tenant-max-request-rate). To adjust the \
             related per-tenant limits, configure -distributor.request-rate-limit and \
             -distributor.request-burst-size, or contact your service administrator.",
        )),
        2 => Some((
            500,
            "Retry-After: 1\r\n",
            "exceeded configured distributor remote timeout: failed pushing to ingester mimir-ingester-0: context \
             deadline exceeded",
        )),
        _ if names.iter().any(|name| name == "anomaly_incident") => Some((
            400,
            "",
            "received a series whose number of labels exceeds the limit (actual: 4, limit: 3) series: 'anomaly_incident' \
             (err-mimir-max-label-names-per-series). To adjust the related per-tenant limit, configure \
             -validation.max-label-names-per-series, or contact your service administrator.",
        )),
        _ => None,
    }
}

/// Mimir limits rates and samples: nothing is lost by the former, and by the latter only the samples that it refuses, whose
/// reason is in the log.
#[test]
fn answers_of_mimir() {
    let version = PrometheusVersion::V3;
    let folder = tempfile::tempdir().expect("a folder");
    let (mut store, address) = start_receiver(version, folder.path());
    let mimir = mimir::start(address.clone(), answer_as_mimir);
    let example = Example::new("mimir", &[("mimir:8080", &mimir)]);
    let tenant = format!("X-Scope-OrgID: {}\r\n", mimir::TENANT);
    example.write_history(&mimir, "/api/v1/push", &tenant, &[]);
    let api = PrometheusApi(address);
    let began_ms = now_ms();
    let listen = format!("--web.listen-address=127.0.0.1:{}", support::free_port());
    let args = ["--config.file=prometheus.yml", "--storage.tsdb.path=data", &listen];
    let mut prometheus = example.start("prometheus", &version.prometheus(), &args);
    let mut promforest = example.start_promforest();
    check_scores(&example, &mut [&mut promforest, &mut prometheus, &mut store], &api, began_ms);
    assert_eq!(example.metric("promforest_remote_write_retries_total", &[]), 3.0, "{}", promforest.tail());
    let failed =
        |labels: &[(&str, &str)]| example.metric("promforest_remote_write_samples_failed_total", labels);
    assert!(failed(&[("reason", "rejected")]) >= N_ROWS as f64, "{}", promforest.tail());
    assert_eq!(failed(&[("reason", "rejected")]), failed(&[]), "{}", promforest.tail());
    let log = promforest.log();
    for id in ["tenant-max-ingestion-rate", "tenant-max-request-rate", "max-label-names-per-series"] {
        assert!(log.contains(&format!("(err-mimir-{id})")), "no {id} in {log}");
    }
    assert!(log.contains("distributor remote timeout"), "{log}");
    let stored = |name: &str| api.query(&format!("{name}[10m]")).expect("an answer").len();
    assert_eq!((stored("anomaly_incident"), stored("anomaly_threshold")), (0, 1));
}
