//! Reloads of the configuration.

use super::*;

#[test]
fn a_reload_keeps_what_did_not_change() {
    let mut bench = serving();
    scrape(&mut bench, 1);
    let before = bench.content();
    let more = "detectors:\n  - {name: other, match: [up]}\n";
    let default = Arc::new(Config::default());
    bench.reload(default.clone(), vec![Arc::default()]);
    assert_eq!(bench.content(), before);
    scrape(&mut bench, 2);
    assert_eq!(bench.content().len(), before.len() + 3, "two samples and a score");
    let other = Arc::new(Config::parse(more).expect("valid"));
    let rows = bench.engine.metrics.row_counts();
    assert!(rows.iter().any(|(_, count)| *count > 0), "{rows:?}");
    bench.reload(other, vec![Arc::default()]);
    assert!(bench.content().is_empty());
    assert_eq!(bench.engine.metrics.row_counts(), rows, "rows of removed detectors stay counted");
}

/// A reload that changes nothing of the window keeps it and the model, in another order and among other detectors.
#[test]
fn f25_a_reload_changes_a_detector_and_keeps_its_window() {
    let mut bench = serving();
    scrape(&mut bench, 1);
    let before = bench.content();
    let detector = |more: &str| {
        let matchers = r#"{__name__=~"node_network_(receive|transmit)_(bytes|packets)_total", device!~"veth.*|cali.*|tap.*"}"#;
        format!("  - {{name: node_network, match: ['{matchers}'], {more}}}\n")
    };
    let other = "  - {name: other, match: [up]}\n";
    for (i, more) in [
        "alerts: {budget: 1/week}",
        "grace: 20s",
        "training: {interval: 1h}",
        "window: 12h",
        "window: 1h",
        "model: {kind: isolation_forest}",
    ]
    .into_iter()
    .enumerate()
    {
        let parts = [detector(more), other.to_string()];
        let order = if i % 2 == 0 { [1, 0] } else { [0, 1] };
        let text = format!("detectors:\n{}", order.map(|i| parts[i].as_str()).concat());
        bench.reload(Arc::new(Config::parse(&text).expect("valid")), vec![Arc::default()]);
        assert_eq!(bench.content(), before, "{more}");
        assert!(bench.groups()[0].1.model_info(ModelRole::Champion).is_some(), "{more}");
    }
    let (_, group) = bench.groups().remove(0);
    assert!(matches!(group.detector.model, crate::models::ModelParams::IsolationForest(_)), "it is in force");
    scrape(&mut bench, 2);
    assert_eq!(bench.content().len(), before.len() + 3, "scores go on");

    for more in ["by: [instance]", "transform: rate(2m)", "transform: value"] {
        let mut bench = serving();
        let text = format!("detectors:\n{}", detector(more));
        bench.reload(Arc::new(Config::parse(&text).expect("valid")), vec![Arc::default()]);
        assert!(bench.content().is_empty(), "{more}: rows are others");
    }
}

#[test]
fn an_endpoint_that_stays_keeps_its_cursor_over_a_reload() {
    let mut bench = serving();
    scrape(&mut bench, 1);
    let other = "remote_write: [{url: 'http://other/'}, {url: 'http://localhost:9090/api/v1/write', remote_timeout: 5s}]";
    bench.reload(Arc::new(Config::parse(other).expect("valid")), vec![Arc::default(), Arc::default()]);
    assert!(
        bench.engine.next_batch(0, None, 100, START_MS * 2).is_none(),
        "a new target begins with the next score"
    );
    assert!(bench.engine.next_batch(1, None, 100, START_MS * 2).is_some());
}

/// Tenants of one server have the same URL and different headers.
#[test]
fn endpoints_with_one_url_have_cursors_of_their_own() {
    let tenants = |names: &[&str]| {
        let url = "http://localhost:9090/api/v1/write";
        let blocks =
            names.iter().map(|name| format!("{{url: '{url}', headers: {{X-Scope-OrgID: '{name}'}}}}"));
        let text = format!("remote_write: [{}]", blocks.collect::<Vec<_>>().join(", "));
        Arc::new(Config::parse(&text).expect("valid"))
    };
    let mut bench = serving();
    bench.reload(tenants(&["a", "b"]), vec![Arc::default(), Arc::default()]);
    scrape(&mut bench, 1);
    let batch = bench.engine.next_batch(0, None, 100, START_MS * 2).expect("a score");
    bench.engine.advance(0, None, &batch.positions, START_MS * 2);
    assert!(bench.engine.next_batch(0, None, 100, START_MS * 2).is_none());
    bench.reload(tenants(&["b", "a"]), vec![Arc::default(), Arc::default()]);
    assert!(bench.engine.next_batch(1, None, 100, START_MS * 2).is_none(), "a has it");
    assert!(bench.engine.next_batch(0, None, 100, START_MS * 2).is_some(), "b does not");

    let keys = remote_write::cursor_keys(&tenants(&["a", "b", "a"]).remote_write);
    assert!(keys[0] != keys[1] && keys[2] == format!("{} 2", keys[0]), "{keys:?}");
    assert!(
        keys.iter().all(|key| !key.contains("a\n") && key.starts_with("http://localhost:9090/api/v1/write "))
    );
}
