use super::data_path::DataPath;
use super::fleet::{Fleet, FleetQuery, PAGE_SIZE};
use super::group::{
    DeviatingFeature, GroupDetail, GroupSummary, NotScored, OpenIncident, PastIncident, Scoring,
};
use super::group_page::{CommandFlags, PageContext};
use super::overview::Overview;
use super::server::Sidecar;
use super::{json, server, style_sheet};
use crate::detect::{self, DeviationReason, IncidentFeedback};
use crate::prom::Labels;
use crate::window::{IncidentState, ModelRole, Score, Window};
use std::time::Duration;

const NOW_MS: i64 = 1_794_787_200_000;
const EVIL: &str = r#"</a><script>alert("1")</script> ' onload="x""#;

fn labels(instance: &str) -> Labels {
    Labels::new([("job", "node"), ("instance", instance)]).expect("valid labels")
}

fn group(instance: &str) -> GroupSummary {
    GroupSummary {
        detector: "node_network".into(),
        labels: labels(instance),
        scoring: Scoring::Scored { worst: 0.42, threshold: 1.0 },
        newest_scored_ms: Some(NOW_MS - 8_000),
        model: Some(("node_network.node".into(), Some(3))),
        is_in_maintenance: false,
        incident: None,
        last_day: Vec::new(),
        incidents_per_day: 0.0,
        budget: 1.0,
    }
}

fn in_incident(instance: &str) -> GroupSummary {
    let feature = DeviatingFeature {
        name: r#"rate(rx{device="eth0"}[1m])"#.into(),
        reason: DeviationReason::UnusualForThisHour,
        share: 0.8,
        value: 1_250_000.0,
        expected_range: [40_000.0, 60_000.0, 80_000.0],
    };
    let incident = OpenIncident {
        since_ms: NOW_MS - 200_000,
        score: 3.21,
        threshold: 1.05,
        peak: 4.5,
        feedback: None,
        scores: (0..20).map(|row| (NOW_MS - 300_000 + row * 15_000, 0.3 * row as f64)).collect(),
        features: vec![feature],
    };
    let scoring = Scoring::Scored { worst: 4.5, threshold: 1.05 };
    GroupSummary {
        scoring,
        incident: Some(incident),
        last_day: vec![(NOW_MS - 200_000, NOW_MS)],
        ..group(instance)
    }
}

fn not_scored(instance: &str, reason: NotScored) -> GroupSummary {
    GroupSummary { scoring: Scoring::NotScored(reason), model: None, ..group(instance) }
}

fn sidecar() -> Sidecar {
    Sidecar {
        version: "0.1.0",
        shard: None,
        started_ms: NOW_MS - 7_519_000,
        is_ready: true,
        readiness: vec!["node_network: 1 of 1 groups have a model".into()],
        p99_seconds: Some(0.042),
        registry: "data/models".into(),
        endpoints: vec!["http://prometheus:9090/api/v1/write".into()],
        external_url: None,
    }
}

fn data_path() -> DataPath {
    DataPath::new(
        (1000, vec![("unwatched", 900), ("duplicate", 4), ("conflict", 0)]),
        vec![("complete", 20), ("incomplete", 3), ("late", 0)],
        (80, vec![("too_old", 5)]),
    )
}

fn overview(groups: Vec<GroupSummary>, query: &FleetQuery) -> String {
    let (fleet, sidecar, data_path) = (Fleet::new(groups), sidecar(), data_path());
    let grafana_url = "https://grafana.example/d/one?orgId=1".parse().expect("a URL");
    Overview {
        fleet: &fleet,
        sidecar: &sidecar,
        data_path: &data_path,
        query,
        grafana_url: Some(&grafana_url),
        now_ms: NOW_MS,
    }
    .html()
}

/// The text between tags, with single spaces.
fn text(html: &str) -> String {
    let without_tags = html.split('<').map(|part| part.split_once('>').map_or(part, |(_, text)| text));
    without_tags.collect::<Vec<_>>().join(" ").split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn the_first_page_states_the_incident_and_the_state_of_the_fleet() {
    let page = overview(vec![group("a:9100"), in_incident("db:9100")], &FleetQuery::default());
    let text = text(&page);
    for expected in [
        "1 open incident",
        "2 of 2 groups scored",
        "newest score 8s old",
        "acknowledged within 42 ms (p99)",
        "models in data/models",
        "scores to http://prometheus:9090/api/v1/write",
        "db:9100",
        "since 15 Nov 2026 23:56:40 UTC (3m20s), score 3.21 , peak 4.5, threshold 1.05",
        "rate(rx{device=&quot;eth0&quot;}[1m]) 1.25M 40k to 80k unusual for this hour 80 %",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    assert!(page.contains(r#"href="groups/node_network?instance=db%3A9100&amp;job=node""#), "{page}");
    let calm = overview(vec![group("a:9100")], &FleetQuery::default());
    assert!(calm.contains("<h1>No open incident</h1>") && !calm.contains("incident-card"));
    assert!(overview(Vec::new(), &FleetQuery::default()).contains("<h1>No samples yet</h1>"));
}

#[test]
fn the_budget_is_used_up_with_the_fourth_that_what_only_lasts_may_add() {
    let of = |incidents_per_day| GroupSummary { incidents_per_day, budget: 2.0, ..group("a:9100") };
    for (incidents_per_day, meter) in
        [(2.0, r#"<meter min="0" max="2.5" value="2">"#), (3.0, r#"<meter min="0" max="2.5" value="2.5">"#)]
    {
        let page = overview(vec![of(incidents_per_day)], &FleetQuery::default());
        assert!(page.contains(meter), "{page}");
    }
}

#[test]
fn an_incident_has_a_picture_and_a_link_to_grafana() {
    let page = overview(vec![in_incident("db:9100")], &FleetQuery::default());
    let link = "https://grafana.example/d/one?orgId=1&amp;var-detector=node_network&amp;var-instance=db%3A9100&amp;var-job=node&amp;from=1794785200000&amp;to=now";
    assert!(page.contains(link), "{page}");
    assert!(page.contains("class=\"limit\"") && page.contains("class=\"curve\""), "score and threshold");
    let mut begun = in_incident("db:9100");
    if let Some(incident) = &mut begun.incident {
        incident.scores.truncate(1);
    }
    assert!(!overview(vec![begun], &FleetQuery::default()).contains("picture"), "one score is no line");
}

#[test]
fn the_ribbon_has_the_incidents_of_the_last_24_hours() {
    let hour_ms = 3_600_000;
    let with = |instance: &str, last_day: Vec<(i64, i64)>| GroupSummary { last_day, ..group(instance) };
    let mut groups = vec![
        with("a:9100", vec![(NOW_MS - 25 * hour_ms, NOW_MS - 23 * hour_ms), (NOW_MS - hour_ms, NOW_MS)]),
        with("b:9100", vec![(NOW_MS - hour_ms, NOW_MS - hour_ms / 2)]),
        group("calm:9100"),
    ];
    let page = overview(groups.clone(), &FleetQuery::default());
    let ribbon =
        &page[page.find("Last 24 hours").expect("a ribbon")..page.find("<h2>Fleet").expect("a fleet")];
    let text = text(ribbon);
    for expected in ["3 incidents in 2 groups", "at most 2 at once", "2 incidents", "1 incident"] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    assert!(!ribbon.contains("calm") && ribbon.matches("class=\"past-incident\"").count() == 3, "{ribbon}");
    assert!(ribbon.find("a:9100") < ribbon.find("b:9100"), "the longest first");
    groups = (0..40).map(|i| with(&format!("{i}:9100"), vec![(NOW_MS - hour_ms, NOW_MS)])).collect();
    assert!(overview(groups, &FleetQuery::default()).contains("And 28 more groups."), "bounded");
    assert!(overview(vec![group("calm:9100")], &FleetQuery::default()).contains("No incident."));
}

#[test]
fn buttons_are_shown_with_the_admin_api_only() {
    let mut detail = detail(in_incident("db:9100"));
    let without = detail.html(&PageContext::default(), NOW_MS);
    assert!(!without.contains("<form") && without.contains("--web.enable-admin-api"));
    let context = PageContext { has_admin_api: true, ..PageContext::default() };
    let html = detail.html(&context, NOW_MS);
    assert_eq!(
        html.matches("<form class=\"feedback\" method=\"post\" action=\"../feedback\">").count(),
        2,
        "{html}"
    );
    for expected in [
        r#"name="detector" value="node_network""#,
        r#"name="group" value="{instance=&quot;db:9100&quot;, job=&quot;node&quot;}""#,
        r#"name="at" value="2026-11-15T23:56:40.000Z""#,
        r#"name="feedback" value="false">This was fine"#,
        r#"name="feedback" value="real">This was real"#,
    ] {
        assert!(html.contains(expected), "{expected}: {html}");
    }
    detail.last_week[0].feedback = Some((IncidentFeedback::False, NOW_MS));
    assert!(detail.html(&context, NOW_MS).contains("<b>false alarm</b>"));
}

#[test]
fn a_group_that_is_not_scored_has_a_reason() {
    let feature = || "rate(rx[1m])".to_string();
    let changed =
        NotScored::LabelChanged { feature: feature(), label: "pod".into(), from: "a".into(), to: "b".into() };
    let cases = [
        (
            NotScored::Learning { progress: 0.4, required: Duration::from_secs(3600) },
            "learning 40\u{202f}% of the 1h",
        ),
        (NotScored::TargetDown { silent_ms: 400_000 }, "target down: no sample for 6m40s"),
        (changed, "label pod changed from &quot;a&quot; to &quot;b&quot;"),
        (NotScored::FeatureMissing { feature: feature(), n_missing: 1 }, "feature missing: rate(rx[1m])"),
        (
            NotScored::FeatureMissing { feature: feature(), n_missing: 3 },
            "3 features missing, such as rate(rx[1m])",
        ),
        (NotScored::FillingGap, "a gap"),
        (NotScored::Loading, "not loaded"),
        (NotScored::NoCompleteRow, "no row was complete"),
    ];
    for (reason, expected) in cases {
        let value = json::summary(&not_scored("a:9100", reason.clone()));
        assert_eq!(value["state"], reason.as_str());
        assert_eq!(value["reason"], reason.to_string());
        let page = overview(vec![not_scored("a:9100", reason)], &FleetQuery::default());
        assert!(page.contains(expected) && page.contains("cell unscored"), "{expected}: {page}");
    }
}

#[test]
fn long_names_are_cut_where_there_are_many() {
    let long = "x".repeat(5_000);
    let missing = NotScored::FeatureMissing { feature: long.clone(), n_missing: 1 };
    let page = overview(vec![group(&long), not_scored(&long, missing)], &FleetQuery::default());
    let in_links = page.matches(&format!("instance={long}&amp;job=node\"")).count();
    assert_eq!((in_links, page.matches(&long).count()), (3, 3), "a link needs the whole name");
}

#[test]
fn a_feedback_command_names_the_sidecar_and_one_group() {
    let summary = GroupSummary {
        labels: Labels::new([("instance", "db:9100")]).expect("valid labels"),
        ..in_incident("db:9100")
    };
    let commands = CommandFlags { url: "--url http://127.0.0.1:9700 ".into(), ..CommandFlags::default() };
    let context = PageContext { commands, ..PageContext::default() };
    let text = text(&detail(summary).html(&context, NOW_MS));
    let command = "promforest feedback --url http://127.0.0.1:9700 --detector node_network --group '{instance=&quot;db:9100&quot;, job=&quot;&quot;}'";
    assert!(text.contains(command), "{text}");
}

#[test]
fn maintenance_is_shown() {
    let group = GroupSummary { is_in_maintenance: true, ..group("a:9100") };
    assert_eq!(json::summary(&group)["maintenance"], true);
    let page = overview(vec![group], &FleetQuery::default());
    assert!(page.contains("highest score 0.42, in maintenance"), "{page}");
}

#[test]
fn pages_hold_500_groups_and_a_search_finds_one() {
    let groups: Vec<_> = (0..1201).map(|i| group(&format!("Host-{i:04}:9100"))).collect();
    let fleet = Fleet::new(groups.clone());
    let page = |search: &str, page: usize| fleet.page(&FleetQuery { search: search.into(), page });
    assert_eq!([0, 1, 2, 3, 9].map(|number| page("", number).groups.len()), [500, 500, 500, 201, 201]);
    assert_eq!((page("", 9).page, page("", 9).n_pages, page("", 9).n_groups), (3, 3, 1201));
    assert_eq!(page("HOST-0007", 1).groups[0].labels, labels("Host-0007:9100"));
    assert_eq!(page("nothing", 1).groups.len(), 0);
    let html = overview(groups, &FleetQuery { search: "host".into(), page: 2 });
    assert_eq!(html.matches("class=\"cell ").count(), PAGE_SIZE);
    assert!(html.contains("page 2 of 3") && html.contains("?q=host&amp;page=3"), "links to pages");
    let params = [("q", " a b "), ("page", "-1"), ("other", "x")];
    let query = FleetQuery::from_params(&params.map(|(name, value)| (name.to_string(), value.to_string())));
    assert_eq!(query, FleetQuery { search: "a b".into(), page: 1 });
}

#[test]
fn text_from_outside_never_becomes_a_tag() {
    let mut evil = in_incident(EVIL);
    evil.detector = EVIL.into();
    if let Some(incident) = &mut evil.incident {
        incident.features[0].name = EVIL.into();
    }
    let missing = NotScored::FeatureMissing { feature: EVIL.into(), n_missing: 1 };
    let query = FleetQuery { search: EVIL.into(), page: 1 };
    let found = overview(vec![evil.clone(), not_scored(EVIL, missing)], &query);
    let pages = [
        found,
        detail(evil).html(&PageContext::default(), NOW_MS),
        server::config_page(EVIL),
        server::message_page(EVIL, EVIL, ""),
    ];
    for page in pages {
        assert!(!page.contains("<script>") && !page.contains("onload=\""), "{page}");
        assert!(
            !page.contains(" style=") && !page.contains("//") || page.contains("http://prometheus"),
            "{page}"
        );
    }
}

#[test]
fn pages_need_nothing_that_the_policy_forbids() {
    let page = overview(vec![in_incident("a:9100")], &FleetQuery::default());
    for forbidden in ["<style", " style=\"", "src=\"http", "rel=\"stylesheet\" href=\"http", "onclick"] {
        assert!(!page.contains(forbidden), "{forbidden}");
    }
    assert!(!style_sheet().contains("url(http") && !style_sheet().contains("@import"));
}

#[test]
fn the_data_path_adds_up() {
    let path = data_path();
    let stages: Vec<_> = path.stages.iter().map(|stage| (stage.name, stage.count)).collect();
    let expected = [
        ("received", 1000),
        ("watched", 100),
        ("rows", 23),
        ("scored", 20),
        ("output", 85),
        ("acknowledged", 80),
    ];
    assert_eq!(stages, expected);
    let failed = path.stages.iter().find(|stage| stage.dropped.contains(&("too_old", 5)));
    assert_eq!(failed.map(|stage| stage.unit), Some("samples"));
    let text = text(&path.section().into_string());
    for reason in ["900 unwatched", "4 duplicate", "3 incomplete", "5 too old"] {
        assert!(text.contains(reason), "{reason}: {text}");
    }
    assert!(!text.contains("conflict"), "no count, no line: {text}");
}

#[test]
fn the_api_has_the_values_of_the_pages() {
    let fleet = Fleet::new(vec![group("a:9100"), in_incident("db:9100")]);
    let groups = json::groups(&fleet.page(&FleetQuery::default()));
    assert_eq!((&groups["total"], &groups["pages"]), (&2.into(), &1.into()));
    assert_eq!(groups["groups"][0]["worstScore"], 0.42);
    let incidents = json::incidents(&fleet);
    let incident = &incidents["incidents"][0];
    assert_eq!(incident["labels"]["instance"], "db:9100");
    assert_eq!(incident["since"], "2026-11-15T23:56:40.000Z");
    assert_eq!(incident["features"][0]["value"], 1_250_000.0);
    assert_eq!(incident["features"][0]["expectedUpper"], 80_000.0);
    assert_eq!(incident["features"][0]["reason"], "unusual_for_this_hour");
    let info = json::sidecar(&sidecar(), &fleet, &data_path());
    assert_eq!((&info["groupsScored"], &info["openIncidents"]), (&2.into(), &1.into()));
    assert_eq!(info["dataPath"][0]["dropped"]["unwatched"], 900);
    let envelope: serde_json::Value = serde_json::from_str(&json::success(&info)).expect("JSON");
    assert_eq!((&envelope["status"], &envelope["data"]), (&"success".into(), &info));
}

/// A group with an hour of scores, and an incident of five minutes.
fn detail(summary: GroupSummary) -> GroupDetail {
    let mut window = Window::new(6 * 3_600_000);
    let feature = Labels::new([("__name__", "rx"), ("device", "eth0")]).expect("valid labels");
    let column = window.get_or_add_column(&feature).expect("room");
    for row in 0..240 {
        let timestamp_ms = NOW_MS - 3_600_000 + row * 15_000;
        let is_incident = (100..120).contains(&row);
        window.push(column, crate::prom::Sample { timestamp_ms, value: row as f64 });
        let score = if is_incident { 2.0 } else { 0.5 };
        let incident_state = Some(IncidentState { threshold: 1.0, is_incident });
        window.set_score(ModelRole::Champion, timestamp_ms, Score { decision: 0.1, score, incident_state });
    }
    let from_ms = NOW_MS - 3_600_000 + 100 * 15_000;
    let contributions = vec![(feature, DeviationReason::Jumped, 12.0)];
    GroupDetail {
        summary,
        window,
        champion: None,
        schema: None,
        detector: None,
        challenger: None,
        incidents: vec![PastIncident { from_ms, to_ms: from_ms + 19 * 15_000, contributions }],
        last_week: vec![detect::PastIncident::new(from_ms, from_ms + 19 * 15_000)],
        alias: "champion".into(),
        by: ["job", "instance"].map(String::from).into(),
    }
}

#[test]
fn the_page_of_a_group_has_its_scores_and_incidents() {
    let html = detail(in_incident("db:9100")).html(&PageContext::default(), NOW_MS);
    let text = text(&html);
    for expected in [
        "Group of node_network",
        "db:9100",
        "An incident opens at 1.05".to_lowercase().as_str(),
        "Open incident",
        r#"promforest feedback --detector node_network --group '{instance=&quot;db:9100&quot;, job=&quot;node&quot;}' --at 2026-11-15T23:56:40.000Z real"#,
        "40k to 80k",
        "15 Nov 2026 23:25 4m45s 2 rx{device=&quot;eth0&quot;} jumped",
        "No model yet.",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    assert!(
        html.contains("class=\"score\"") && html.contains("class=\"incident\""),
        "a plot with the incident"
    );
    assert!(html.contains("href=\"../static/style.css\""));
    let unscored = detail(not_scored("a", NotScored::FillingGap));
    let empty =
        GroupDetail { window: Window::new(1000), incidents: Vec::new(), last_week: Vec::new(), ..unscored };
    assert!(empty.html(&PageContext::default(), NOW_MS).contains("No row was scored."));
}
