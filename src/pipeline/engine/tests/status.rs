//! The state of the groups for the web pages.

use super::*;
use crate::status::group::{GroupSummary, NotScored, RECENT_MS, Scoring};
use crate::status::group_page::{CommandFlags, PageContext};

fn at_ms(i: i64) -> i64 {
    START_MS + i * 15_000
}

/// The summary of the only group at the time of a scrape.
fn summary(bench: &mut Bench, i: i64) -> GroupSummary {
    let page = bench.engine.summaries(0, Instant::now(), at_ms(i));
    assert_eq!((page.groups.len(), page.next), (1, None));
    page.groups.into_iter().next().expect("one group")
}

fn reason(bench: &mut Bench, i: i64) -> NotScored {
    match summary(bench, i).scoring {
        Scoring::NotScored(reason) => reason,
        scored => panic!("{scored:?}"),
    }
}

/// Twenty scrapes of a device with a label, after eight of both.
fn after_change(device: &str, label: Option<(&str, &str)>) -> Bench {
    let mut bench = serving();
    (1..=8).for_each(|i| scrape(&mut bench, i));
    for i in 9..=40 {
        let metric = (METRIC_NAME, "node_network_receive_bytes_total");
        let mut labels = vec![metric, ("device", device), ("instance", "a"), ("job", "node")];
        labels.extend(label);
        bench.send(vec![series(&labels, &[(at_ms(i), i as f64 * 100.0)])]);
    }
    bench.tick(Instant::now() + Duration::from_secs(60));
    bench
}

#[test]
fn a_group_learns_is_scored_and_goes_down() {
    let mut bench = Bench::new("");
    scrape(&mut bench, 0);
    assert!(matches!(reason(&mut bench, 0), NotScored::Learning { progress, .. } if progress < 1.0));
    let mut bench = serving();
    (1..=8).for_each(|i| scrape(&mut bench, i));
    let scored = summary(&mut bench, 8);
    assert!(matches!(scored.scoring, Scoring::Scored { worst, threshold: 1.0 } if worst > 0.0), "{scored:?}");
    assert_eq!(scored.newest_scored_ms, Some(at_ms(8)));
    assert_eq!(scored.model, Some(("net".into(), Some(1))));
    let later = 8 + RECENT_MS / 15_000 + 1;
    assert_eq!(reason(&mut bench, later), NotScored::TargetDown { silent_ms: RECENT_MS + 15_000 });
}

#[test]
fn a_changed_label_and_a_missing_feature_are_named() {
    let mut bench = after_change("eth0", Some(("rack", "r1")));
    let changed = reason(&mut bench, 40);
    assert!(
        matches!(&changed, NotScored::LabelChanged { label, from, to, .. } if (&**label, &**from, &**to) == ("rack", "", "r1")),
        "{changed:?}"
    );
    let mut bench = after_change("eth0", None);
    let feature = r#"rate(node_network_receive_bytes_total{device="lo"}[1m])"#.to_string();
    assert_eq!(reason(&mut bench, 40), NotScored::FeatureMissing { feature, n_missing: 1 });
}

#[test]
fn pages_of_summaries_hold_every_group_once() {
    let mut bench = Bench::new("");
    for instance in ["a", "b", "c"] {
        let labels =
            [(METRIC_NAME, "node_network_receive_bytes_total"), ("device", "lo"), ("instance", instance)];
        bench.send(vec![series(&labels, &[(START_MS, 1.0)])]);
    }
    // The budget is used up from the start: a page has one group.
    let long_ago = Instant::now().checked_sub(Duration::from_secs(1)).expect("a clock beyond a second");
    let (mut instances, mut next) = (Vec::new(), Some(0));
    while let Some(from) = next {
        let page = bench.engine.summaries(from, long_ago, START_MS);
        assert_eq!(page.groups.len(), 1);
        instances.extend(page.groups.iter().map(|group| group.labels.get("instance").to_string()));
        next = page.next;
    }
    assert_eq!(instances, ["a", "b", "c"]);
}

#[test]
fn a_group_is_found_by_its_detector_and_labels() {
    let mut bench = serving();
    (1..=8).for_each(|i| scrape(&mut bench, i));
    let (_, group) = bench.groups().remove(0);
    let labels = group.labels.clone();
    let next = deployed_as(&two_features(), 2);
    group.install(next, WarmStart::default(), Instant::now(), &mut |_| {});
    let detail = |detector: &str, labels: &Labels| {
        bench.engine.group_detail(detector, labels, Instant::now(), at_ms(8))
    };
    let found = detail("node_network", &labels).expect("the group");
    let commands = CommandFlags { registry: "--storage.path data ".into(), ..CommandFlags::default() };
    let html = found.html(&PageContext { commands, ..PageContext::default() }, at_ms(8));
    for text in [
        "device=&quot;eth0&quot;",
        "promforest models rollback --storage.path data net --alias champion",
        "class=\"value\"",
    ] {
        assert!(html.contains(text), "{text}");
    }
    assert!(detail("other", &labels).is_none() && detail("node_network", &Labels::default()).is_none());
}
