use super::*;
use crate::time::DAY_MS;

const STEP_MS: i64 = 300_000;
const N_POINTS: usize = 1440;
/// 16 November 2026, a Monday.
const BEGIN_MS: i64 = 1_794_787_200_000;

/// Reproducible pseudo-random numbers in [0, 1).
fn noise(seed: usize) -> f64 {
    let mut x = (seed as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((x ^ (x >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

/// The points of the timeline: five days with a gap.
fn points() -> impl Iterator<Item = usize> {
    (0..N_POINTS).filter(|i| !(610..640).contains(i))
}

/// A daily rhythm in [0, 1], lowest at three o'clock.
fn rhythm(point: usize) -> f64 {
    let hour = point as f64 / 12.0;
    0.5 - 0.5 * (std::f64::consts::TAU * (hour - 3.0) / 24.0).cos()
}

fn trial(index: usize, max_samples: usize) -> Trial {
    let mean = 0.021 + 0.012 * (index as f64 - 5.0).powi(2) * if index < 5 { 0.9 } else { 0.35 };
    let kl: Vec<f64> = (0..5).map(|fold| mean * (0.7 + 0.6 * noise(100 * index + fold))).collect();
    let quantile_kl = kl.iter().map(|kl| 0.4 * kl).collect();
    Trial { max_samples, kl, quantile_kl }
}

/// A skewed bell as 200 densities.
fn bell(centre: f64, width: f64, salt: usize) -> Vec<f64> {
    let height = |bin: usize| {
        let at = (bin as f64 + 0.5) / 100.0 - 1.0;
        let skew = if at < centre { 2.2 } else { 0.6 };
        let bell = (-((at - centre) / (width * skew)).powi(2) / 2.0).exp();
        if bell < 0.004 { 0.0 } else { 14.0 * bell * (0.9 + 0.2 * noise(salt + bin)) }
    };
    (0..200).map(height).collect()
}

fn fold_histograms(fold: usize) -> FoldHistograms {
    let shift = 0.008 * noise(fold);
    FoldHistograms {
        kl: 0.015 + 0.014 * noise(fold + 40),
        train: bell(0.105, 0.028, 1000 * fold),
        test: bell(0.1 - shift, 0.03, 1000 * fold + 500),
    }
}

/// The score of a point, with an incident and a deployment.
fn score(point: usize) -> f64 {
    let burst = if (300..318).contains(&point) || (1000..1004).contains(&point) { 0.5 } else { 0.0 };
    0.72 + 0.1 * rhythm(point) + 0.14 * noise(point).powi(3) + burst * noise(point + 7).sqrt()
}

fn feature_names() -> Vec<String> {
    let kinds = ["receive_bytes", "transmit_bytes", "receive_packets", "transmit_packets"];
    let devices = ["eth0", "eth1", "lo", "docker0", "bond0"];
    let name =
        |kind: &str, device: &str| format!("rate(node_network_{kind}_total{{device=\"{device}\"}}[1m])");
    kinds.iter().flat_map(|kind| devices.map(|device| name(kind, device))).collect()
}

/// Minimum and maximum of a feature at each point; one feature is constant.
fn feature_series(j: usize) -> Vec<[f32; 2]> {
    let size = [2.4e8, 8.1e6, 1200.0, 0.35, 5.2e4][j % 5] * [1.0, 0.6, 0.001, 0.0007][j / 5];
    let value = |i: usize| {
        if j == 12 {
            return [0.0, 0.0];
        }
        let base = [0.15, 0.6, 0.92][j % 3] + [0.85, 0.4, 0.08][j % 3] * rhythm(i + 40 * j);
        let burst = if (300..318).contains(&i) && j < 10 { 1.4 } else { 0.0 };
        let at = |salt: usize| base * (0.9 + 0.2 * noise(i * 31 + j * 7919 + salt)) + burst;
        let (a, b) = (at(0), at(1));
        [(size * a.min(b)) as f32, (size * a.max(b)) as f32]
    };
    points().map(value).collect()
}

fn feature_summary(name: String, series: &[[f32; 2]]) -> FeatureSummary {
    let mut all: Vec<f32> = series.iter().flatten().copied().collect();
    all.sort_by(f32::total_cmp);
    FeatureSummary { name, least: all[0], median: all[all.len() / 2], greatest: all[all.len() - 1] }
}

fn excluded(from: usize, to: usize, reason: &str, n_rows: usize) -> ExcludedRange {
    ExcludedRange {
        from_ms: BEGIN_MS + from as i64 * STEP_MS,
        to_ms: BEGIN_MS + to as i64 * STEP_MS - 1,
        reason: reason.into(),
        n_rows,
    }
}

/// Five days of a server: a daily rhythm, an incident, a deployment and a gap.
fn realistic(promotion: PromotionDecision) -> Training {
    let sizes = [8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384, 23_040];
    let names = feature_names();
    let features: Vec<Vec<[f32; 2]>> = (0..names.len()).map(feature_series).collect();
    let facts = [
        ("Kind", "isolation_forest"),
        ("Trees", "100"),
        ("Contamination", "auto"),
        ("Rows", "28 800 of 29 160"),
        ("Features", "20"),
        ("Range", "16 Nov to 21 Nov 2026"),
        ("Random state", "0"),
        ("Time to train", "4.2 s"),
    ];
    Training {
        model: "node_network".into(),
        zone: Zone::default(),
        group: Some(r#"{instance="db-7.example.org:9100", job="node"}"#.into()),
        facts: facts.map(|(name, value)| (name.to_string(), value.to_string())).into(),
        promotion,
        sweep: sizes.into_iter().enumerate().map(|(i, max_samples)| trial(i, max_samples)).collect(),
        chosen: 5,
        folds: (0..5).map(fold_histograms).collect(),
        features: names
            .into_iter()
            .zip(&features)
            .map(|(name, series)| feature_summary(name, series))
            .collect(),
        timeline: Timeline {
            times_ms: points().map(|point| BEGIN_MS + point as i64 * STEP_MS).collect(),
            step_ms: STEP_MS,
            score: points().map(score).collect(),
            features,
            excluded: vec![
                excluded(300, 318, "alert DiskFull", 360),
                excluded(870, 960, "moved to the new rack, traffic over the backup line", 1800),
            ],
        },
    }
}

/// The smallest content.
fn bare() -> Training {
    Training {
        model: "m".into(),
        zone: Zone::default(),
        group: None,
        facts: Vec::new(),
        promotion: PromotionDecision::Saved,
        sweep: vec![Trial { max_samples: 256, kl: vec![0.0], quantile_kl: vec![0.0] }],
        chosen: 0,
        folds: Vec::new(),
        timeline: Timeline::default(),
        features: Vec::new(),
    }
}

/// Panics unless every tag is closed in order, every attribute is quoted and unique, and no numeric attribute is NaN or
/// infinite.
fn check(html: &str) {
    let script = html.find("<script>").expect("a script");
    let (body, style) = (&html[..script], html.find("</style>").expect("a style"));
    let body = body[style..].strip_prefix("</style>").expect("the end of the style");
    let mut open = vec!["html", "head"];
    let mut rest = body;
    while let Some(begin) = rest.find('<') {
        assert!(!rest[..begin].contains('>'), "a stray > in {:?}", &rest[..begin]);
        let end = begin + rest[begin..].find('>').expect("the end of a tag");
        let tag = &rest[begin + 1..end];
        rest = &rest[end + 1..];
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name));
            continue;
        }
        let (tag, closed) = match tag.strip_suffix('/') {
            Some(tag) => (tag, true),
            None => (tag, false),
        };
        let (name, mut attributes) = tag.split_once(' ').unwrap_or((tag, ""));
        assert!(!name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric()), "{tag:?}");
        let mut seen = Vec::new();
        while !attributes.trim().is_empty() {
            let (key, after) = attributes.split_once("=\"").unwrap_or_else(|| panic!("no value in {tag:?}"));
            let (value, after) = after.split_once('"').unwrap_or_else(|| panic!("no end in {tag:?}"));
            assert!(!seen.contains(&key.trim()), "{key} twice in {tag:?}");
            let is_text = ["title", "aria-label", "class"].contains(&key.trim());
            assert!(is_text || !(value.contains("NaN") || value.contains("inf")), "{key} is {value}");
            seen.push(key.trim());
            attributes = after;
        }
        if !closed {
            open.push(name);
        }
    }
    assert_eq!(open, ["html", "body"]);
}

/// The part of the page from one heading to the next.
fn section<'a>(html: &'a str, heading: &str) -> &'a str {
    let (_, after) = html.split_once(heading).unwrap_or_else(|| panic!("no {heading:?}"));
    after.split("</section>").next().expect("splits give at least one part")
}

#[test]
fn a_page_is_well_formed_small_and_reproducible() {
    let training = realistic(PromotionDecision::Promoted("champion".into()));
    let html = training.html();
    check(&html);
    assert!(html.len() < 600_000, "{} bytes", html.len());
    assert_eq!(html, training.html());
    assert!(!html.contains("http://") && !html.contains("https://"));
    let figures = section(&html, "Scores and features over time").matches("<figcaption>").count();
    assert_eq!(figures, 1 + 19, "the scores, and 20 features of which one was constant");
}

#[test]
fn the_summary_names_the_chosen_size_and_its_rank() {
    let mut training = bare();
    let size = |max_samples, kl: [f64; 2]| Trial { max_samples, kl: Vec::new(), quantile_kl: kl.to_vec() };
    training.sweep = vec![size(64, [0.05, 0.07]), size(256, [0.02, 0.024]), size(1024, [0.03, 0.04])];
    training.chosen = 1;
    let summary = |training: &Training| {
        let html = training.html();
        let (_, after) = html.split_once("<p class=\"summary\">").expect("a summary");
        after.split("</p>").next().expect("splits give at least one part").to_string()
    };
    assert!(summary(&training).contains("Trees of 256 rows"));
    assert!(summary(&training).contains("by 0.022 nats, the least of 3 sizes."));
    training.chosen = 0;
    let rank = "by 0.06 nats, where the least of 3 sizes is 0.022 ± 0.002, with trees of 256.";
    assert!(summary(&training).contains(rank), "{}", summary(&training));
    training.sweep.truncate(1);
    assert!(summary(&training).contains("the only size that was tried."));
    training.sweep[0].quantile_kl[0] = f64::INFINITY;
    assert!(summary(&training).contains("is not finite"));

    let mut bins = vec![0.0; 200];
    (bins[99], bins[100]) = (25.0, 75.0);
    training.folds = vec![FoldHistograms { kl: 0.0, train: bins, test: vec![0.0; 200] }];
    assert!(!summary(&training).contains("anomalous"), "no test rows, no share");
    training.folds[0].test[150] = 100.0;
    assert!(summary(&training).contains("It finds 25\u{202f}% of the fitted rows anomalous, and 0\u{202f}%"));
}

#[test]
fn input_never_becomes_a_tag() {
    let evil = r#"</svg></title></script><script>alert("1")</script> ' onload="x""#.to_string();
    let mut training = realistic(PromotionDecision::Gated(vec![evil.clone(), "plain".into()]));
    training.model = evil.clone();
    training.group = Some(evil.clone());
    training.facts.push((evil.clone(), evil.clone()));
    training.features[0].name = evil.clone();
    training.timeline.excluded[0].reason = evil.clone();
    let html = training.html();
    check(&html);
    assert_eq!(html.matches("<script>").count(), 1);
    assert!(!html.contains("onload=\""));
    training.promotion = PromotionDecision::Promoted(evil);
    check(&training.html());
}

#[test]
fn a_page_with_little_or_no_content_is_well_formed() {
    check(&bare().html());
    let mut training = bare();
    training.sweep.clear();
    check(&training.html());
    training.sweep = vec![Trial::default()];
    training.promotion = PromotionDecision::Gated(Vec::new());
    training.folds = vec![FoldHistograms { kl: 0.0, train: vec![0.0; 200], test: Vec::new() }];
    check(&training.html());

    // One fold, one size, one feature, one point.
    let mut training = realistic(PromotionDecision::Saved);
    training.sweep.truncate(1);
    training.chosen = 0;
    training.folds.truncate(1);
    training.features.truncate(1);
    training.timeline.features.truncate(1);
    training.timeline.times_ms.truncate(1);
    check(&training.html());

    // Fewer numbers than announced.
    training.timeline.features.clear();
    training.timeline.score.clear();
    check(&training.html());
}

#[test]
fn non_finite_and_huge_values_break_no_plot() {
    let mut training = realistic(PromotionDecision::Saved);
    let strange = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, f64::MAX, f64::MIN, -1.0, 1e-300];
    for (i, value) in strange.into_iter().enumerate() {
        training.sweep[i].kl[i % 5] = value;
        training.sweep[i].quantile_kl[i % 5] = value;
        training.timeline.score[10 * i] = value;
        training.timeline.features[i][20 * i] = [value as f32, f32::NAN];
        training.features[i].least = value as f32;
        training.folds[i % 5].train[90 + i] = value;
        training.folds[i % 5].kl = value;
        check(&training.html());
    }
    training.timeline.times_ms = (0..N_POINTS as i64).map(|i| i64::MIN / 2 + i * (i64::MAX / 1500)).collect();
    training.timeline.excluded[0] =
        ExcludedRange { from_ms: i64::MIN, to_ms: i64::MAX, reason: "all".into(), n_rows: usize::MAX };
    check(&training.html());
    training.timeline.times_ms = vec![i64::MAX; 3];
    check(&training.html());
    for trial in &mut training.sweep {
        trial.kl.fill(f64::NAN);
        trial.quantile_kl.fill(f64::NAN);
    }
    training.timeline.score.fill(f64::NAN);
    check(&training.html());
}

#[test]
fn constants_are_marked_and_not_drawn() {
    let mut training = realistic(PromotionDecision::Saved);
    for feature in &mut training.features {
        (feature.least, feature.median, feature.greatest) = (7.0, 7.0, 7.0);
    }
    for series in &mut training.timeline.features {
        series.fill([7.0, 7.0]);
    }
    training.timeline.score.fill(0.5);
    let html = training.html();
    check(&html);
    assert_eq!(section(&html, "Ranges of the features").matches(">constant<").count(), 20);
    assert_eq!(section(&html, "Scores and features over time").matches("<figcaption>").count(), 1);
}

#[test]
fn of_many_features_those_with_the_largest_range_are_drawn() {
    let mut training = realistic(PromotionDecision::Saved);
    let feature = |i: usize| {
        let greatest = if i % 50 == 3 { 30.0 } else { 10.0 + i as f32 / 1e4 };
        FeatureSummary { name: format!("metric_{i:04}"), least: 9.0, median: 9.5, greatest }
    };
    training.features = (0..1024).map(feature).collect();
    training.timeline.features = vec![vec![[9.0, 30.0]; N_POINTS]; 1024];
    let html = training.html();
    check(&html);
    assert!(html.len() < 1_500_000, "{} bytes", html.len());
    let plots = section(&html, "Scores and features over time");
    assert_eq!(plots.matches("<figcaption>").count(), 1 + 24);
    assert!((3..1024).step_by(50).all(|i| plots.contains(&format!("metric_{i:04}"))));
    assert!(plots.contains("The 24 of 1\u{202f}024 features"));
    assert!(section(&html, "Ranges of the features").contains("<details>"));
}

#[test]
fn gaps_interrupt_the_line() {
    let mut training = realistic(PromotionDecision::Saved);
    let line = |training: &Training| {
        let html = training.html();
        let (_, d) = html.split_once(r#"<path class="score" d=""#).expect("the line of scores");
        d.split('"').next().expect("splits give at least one part").to_string()
    };
    assert_eq!(line(&training).matches('M').count(), 2, "one gap");
    training.timeline.score[100] = f64::NAN;
    assert_eq!(line(&training).matches('M').count(), 3);
    // A single stretch between two gaps keeps its length.
    training.timeline.score[102] = f64::NAN;
    let line = line(&training);
    assert_eq!(line.matches('M').count(), 4);
    assert!(line.split('M').skip(1).all(|run| run.contains('l')));
}

#[test]
#[ignore = "writes pages for inspection into the folder that REPORT_DIR names"]
fn pages_for_inspection() {
    let folder = std::path::PathBuf::from(std::env::var_os("REPORT_DIR").expect("REPORT_DIR"));
    let write = |name: &str, training: &Training| {
        std::fs::write(folder.join(name), training.html()).expect("a folder that can be written");
    };
    write("promoted.html", &realistic(PromotionDecision::Promoted("champion".into())));
    let reasons = [
        "the decisions of unseen rows differ by 0.021 nats, the limit is 0.02",
        "it finds 6.1 % of the last day anomalous, the model in service 0.4 %",
    ];
    let mut gated = realistic(PromotionDecision::Gated(reasons.map(String::from).into()));
    gated.chosen = 7;
    write("gated.html", &gated);
    write("bare.html", &bare());
    let mut small = realistic(PromotionDecision::Saved);
    small.sweep.truncate(1);
    small.chosen = 0;
    small.folds.truncate(1);
    small.features.truncate(1);
    small.timeline.features.truncate(1);
    for time_ms in &mut small.timeline.times_ms {
        *time_ms = BEGIN_MS + (*time_ms - BEGIN_MS) * 70;
    }
    small.timeline.step_ms *= 70;
    small.timeline.score[500] = 90.0;
    small.timeline.excluded = (0..40)
        .map(|i| ExcludedRange {
            from_ms: BEGIN_MS + (i * i) * DAY_MS / 5,
            to_ms: BEGIN_MS + (i * i) * DAY_MS / 5 + DAY_MS,
            reason: format!("alert Number{i}"),
            n_rows: 5760,
        })
        .collect();
    write("small.html", &small);
}
