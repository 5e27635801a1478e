//! Benchmarks of the web pages of 1,000 groups, a tenth of them in an incident: the work between the engine's summaries and
//! the bytes of a page.

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use promforest::detect::DeviationReason;
use promforest::prom::Labels;
use promforest::status::data_path::DataPath;
use promforest::status::fleet::{Fleet, FleetQuery};
use promforest::status::group::{DeviatingFeature, GroupSummary, MAX_SCORES, OpenIncident, Scoring};
use promforest::status::json;
use promforest::status::overview::Overview;
use promforest::status::server::Sidecar;

const GROUPS: usize = 1000;
const NOW_MS: i64 = 1_794_787_200_000;

fn main() {
    divan::main();
}

fn incident() -> OpenIncident {
    let feature = |device: usize| DeviatingFeature {
        name: format!("rate(node_network_receive_bytes_total{{device=\"eth{device}\"}}[1m])"),
        reason: DeviationReason::Unsteady,
        share: 0.3,
        value: 1.25e6,
        expected_range: [4e4, 6e4, 8e4],
    };
    let scores = (0..MAX_SCORES as i64).map(|row| (NOW_MS - 1_800_000 + row * 15_000, (row % 7) as f64));
    OpenIncident {
        since_ms: NOW_MS - 600_000,
        score: 3.2,
        threshold: 1.1,
        peak: 4.5,
        feedback: None,
        scores: scores.collect(),
        features: (0..3).map(feature).collect(),
    }
}

fn groups() -> Vec<GroupSummary> {
    let group = |i: usize| GroupSummary {
        detector: "node_network".into(),
        labels: Labels::new([("job", "node"), ("instance", format!("host-{i:04}:9100").as_str())])
            .expect("valid labels"),
        scoring: Scoring::Scored { worst: (i % 20) as f64 / 10.0, threshold: 1.1 },
        newest_scored_ms: Some(NOW_MS - 8_000),
        model: Some((format!("node_network.host-{i}"), Some(3))),
        is_in_maintenance: false,
        incident: i.is_multiple_of(10).then(incident),
        last_day: vec![(NOW_MS - 7_200_000, NOW_MS - 3_600_000), (NOW_MS - 600_000, NOW_MS)],
        incidents_per_day: 0.5,
        budget: 1.0,
    };
    (0..GROUPS).rev().map(group).collect()
}

/// Sorting and indexing for the search.
#[divan::bench]
fn fleet(bencher: Bencher) {
    bencher.counter(ItemsCount::new(GROUPS)).with_inputs(groups).bench_values(Fleet::new);
}

/// The first page, with 500 cells, 50 incidents and the ribbon.
#[divan::bench]
fn overview(bencher: Bencher) {
    let (fleet, sidecar, data_path) = (Fleet::new(groups()), Sidecar::default(), DataPath::default());
    let query = FleetQuery::default();
    bencher.counter(ItemsCount::new(GROUPS)).bench_local(|| {
        let overview = Overview {
            fleet: &fleet,
            sidecar: &sidecar,
            data_path: &data_path,
            query: &query,
            grafana_url: None,
            now_ms: NOW_MS,
        };
        black_box(overview.html())
    });
}

/// A page of `/api/v1/groups`.
#[divan::bench]
fn groups_as_json(bencher: Bencher) {
    let fleet = Fleet::new(groups());
    let query = FleetQuery::default();
    bencher.bench_local(|| black_box(json::success(&json::groups(&fleet.page(&query)))));
}
