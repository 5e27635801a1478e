//! Feedback of people: which incident a request names. Maintenance: which groups it concerns.

use super::jobs::four_groups;
use super::*;
use crate::models::registry::periods::{Period, PeriodKind};
use crate::pipeline::maintenance::MaintenancePlan;
use crate::train::history::FiringAlert;

const MINUTE: i64 = 60_000;

fn find(bench: &Bench, groups: &str, minute: i64) -> Result<(String, i64), String> {
    let groups = groups.parse().expect("a selector");
    let found = bench.engine.find_incident(None, &groups, START_MS + minute * MINUTE);
    let minutes = |at_ms: i64| (at_ms - START_MS) / MINUTE;
    found
        .map(|found| (found.labels.get("instance").to_string(), minutes(found.incident.start_ms)))
        .map_err(|error| error.to_string())
}

#[test]
fn a_request_names_one_group_and_a_time_within_its_incident() {
    let bench = four_groups([Some(10), None, None, Some(20)]);
    for minute in [10, 25, 39] {
        assert_eq!(find(&bench, r#"{instance="a"}"#, minute), Ok(("a".into(), 10)));
    }
    let [start, end] = [10, 39].map(|minute| crate::time::format_timestamp(START_MS + minute * MINUTE));
    let at = crate::time::format_timestamp(START_MS + 50 * MINUTE);
    for (groups, minute, error) in [
        (
            r#"{instance="a"}"#,
            50,
            format!(r#"{{instance="a", job="node"}} has no incident at {at}; the nearest is from {start} to {end}"#),
        ),
        (
            r#"{instance="b"}"#,
            50,
            format!(r#"{{instance="b", job="node"}} has no incident at {at}, nor any within seven days"#),
        ),
        (
            r#"{instance="x"}"#,
            10,
            r#"no group matches {instance="x"}; there is {instance="a", job="node"}"#.into(),
        ),
        (
            r#"{job="node"}"#,
            10,
            r#"4 groups match {job="node"}, such as {instance="a", job="node"} of node_network: name one, and the detector"#
                .into(),
        ),
    ] {
        assert_eq!(find(&bench, groups, minute), Err(error));
    }
}

#[test]
fn a_maintenance_concerns_the_groups_that_it_matches_also_later_ones() {
    let mut bench = four_groups([None; 4]);
    let maintenance = |groups: &str, from_ms, to_ms| Period {
        kind: PeriodKind::Maintenance,
        detector: None,
        groups: groups.parse().expect("a selector"),
        from_ms,
        to_ms,
        comment: String::new(),
    };
    let labels = Labels::new([("alertname", "Down"), ("instance", "d")]).expect("valid");
    let alert = FiringAlert { labels, from_ms: START_MS, to_ms: START_MS + MINUTE, is_firing: false };
    bench.engine.set_maintenance(MaintenancePlan {
        periods: vec![
            maintenance(r#"{instance=~"a|e"}"#, START_MS, None),
            maintenance(r#"{instance="b"}"#, START_MS, Some(START_MS + MINUTE)),
            Period { kind: PeriodKind::Real, ..maintenance("{}", START_MS, None) },
        ],
        alerts: [(("node_network".into(), None), vec![alert])].into(),
    });
    let rx = |instance: &str| {
        let name = (METRIC_NAME, "node_network_receive_bytes_total");
        series(&[name, ("device", "lo"), ("instance", instance), ("job", "node")], &[(START_MS, 0.0)])
    };
    bench.send(vec![rx("e"), rx("f")]);
    let mut active_at = |minute: i64| -> String {
        bench.engine.tick(Instant::now(), START_MS + minute * MINUTE);
        let groups = bench.groups().into_iter().filter(|(_, group)| group.is_in_maintenance());
        groups.map(|(_, group)| group.labels.get("instance").to_string()).collect()
    };
    assert_eq!(active_at(1), "abde");
    assert_eq!(active_at(2), "ae");
    assert_eq!(bench.metric(r#"maintenance_active{detector="node_network",instance="a",job="node"}"#), 1);
    assert_eq!(bench.metric(r#"maintenance_active{detector="node_network",instance="b",job="node"}"#), 0);
}
