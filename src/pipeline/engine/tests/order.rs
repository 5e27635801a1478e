//! Requests in any order give the same windows and scores.

use super::*;

fn captures() -> Vec<Vec<TimeSeries>> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/captures/remote-write");
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .expect("the captures")
        .map(|entry| entry.expect("readable").path())
        .collect();
    files.sort();
    let decode = |path: &std::path::PathBuf| {
        let body = std::fs::read(path).expect("readable");
        let mut buffer = Vec::new();
        let message = snappy::decompress(&body, ingest::BODY_LIMIT, &mut buffer).expect("snappy");
        WriteRequest::decode(message).expect("a WriteRequest").timeseries
    };
    files.iter().map(decode).collect()
}

const CAPTURED: &str = r#"
remote_read: []
detectors:
  - name: net
    match: ['{__name__=~"node_network_(receive|transmit)_(bytes|packets)_total"}']
    transform: rate(20s)
"#;

/// Models of one device, which all captures have, for the groups of the captures.
fn captured_models(requests: &[Vec<TimeSeries>]) -> BTreeMap<Labels, Arc<Model>> {
    let mut bench = Bench::new(CAPTURED);
    requests.iter().for_each(|request| bench.send(request.clone()));
    let mut models = BTreeMap::new();
    for (_, group) in bench.groups() {
        let features = group.window().features().map(|(labels, ..)| labels.clone());
        let mut eth0: Vec<Labels> = features.filter(|labels| labels.get("device") == "eth0").collect();
        eth0.sort();
        models.insert(group.labels.clone(), model(eth0, 20_000));
    }
    models
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }
}

/// Cuts requests at random series, repeats some pieces, and shuffles them.
fn disturbed(requests: &[Vec<TimeSeries>], random: &mut Random) -> Vec<Vec<TimeSeries>> {
    let mut pieces = Vec::new();
    for request in requests {
        let mut rest = request.clone();
        while rest.len() > 1 && random.below(3) > 0 {
            let piece = rest.split_off(random.below(rest.len()));
            if random.below(4) == 0 {
                pieces.push(piece.clone());
            }
            pieces.push(piece);
        }
        pieces.push(rest);
    }
    for i in (1..pieces.len()).rev() {
        pieces.swap(i, random.below(i + 1));
    }
    pieces
}

#[test]
fn f18_captures_in_any_order_give_the_same_window_and_scores() {
    let requests = captures();
    let models = captured_models(&requests);
    assert_eq!(models.len(), 2, "the exporter is scraped by two jobs");
    let run = |requests: &[Vec<TimeSeries>]| {
        let mut bench = Bench::new(CAPTURED);
        for request in requests {
            bench.send(request.clone());
            bench.install(&models);
        }
        bench.content()
    };
    let expected = run(&requests);
    let scores = expected.keys().filter(|(_, feature, _)| *feature == Labels::default()).count();
    assert!(scores > 10, "{scores} scores");
    for seed in 0..12 {
        assert!(run(&disturbed(&requests, &mut Random(seed))) == expected, "seed {seed}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any order of the samples of a few scrapes, in any pieces, gives the same scores.
    #[test]
    fn f18_samples_in_any_order_give_the_same_scores(seed in any::<u64>(), lost in prop::collection::vec(0..40_usize, 0..4)) {
        let mut random = Random(seed);
        let samples: Vec<TimeSeries> = (0..20_i64)
            .flat_map(|i| ["eth0", "lo"].map(|device| rx(device, &[(START_MS + i * 15_000, (i * i) as f64)])))
            .enumerate()
            .filter(|(i, _)| !lost.contains(i))
            .map(|(_, series)| series)
            .collect();
        let run = |requests: Vec<Vec<TimeSeries>>| {
            let mut bench = Bench::new("remote_read: []");
            let model = two_features();
            for request in requests {
                bench.send(request);
                let models = bench.groups().iter().map(|(_, group)| (group.labels.clone(), model.clone())).collect();
                bench.install(&models);
            }
            bench.content()
        };
        let expected = run(vec![samples.clone()]);
        prop_assert_eq!(run(disturbed(&[samples], &mut random)), expected);
    }
}

#[test]
fn f36_two_replicas_are_distinguished_from_one_that_is_late() {
    let interleaved_groups = |offsets_ms: [i64; 3], replicas_ms: &[i64]| {
        let mut bench = serving();
        for i in 1..12 {
            for phase_ms in replicas_ms {
                let at_ms = START_MS + i * 15_000 + phase_ms + offsets_ms[i as usize % 3];
                for device in ["eth0", "lo"] {
                    bench.send(vec![rx(device, &[(at_ms, (i * 1500 + phase_ms / 10) as f64)])]);
                }
            }
        }
        bench.tick(Instant::now() + EVICT_INTERVAL);
        bench.metric("interleaved_groups")
    };
    assert_eq!(interleaved_groups([0, 3, -5], &[0]), 0);
    assert_eq!(interleaved_groups([0, 4_000, 0], &[0]), 0, "one scrape of three is late");
    assert_eq!(interleaved_groups([0, 3, -5], &[0, 4_000]), 1);

    // Without a phase of its own the first one's values stay.
    let mut bench = serving();
    scrape(&mut bench, 1);
    bench.send(vec![rx("eth0", &[(START_MS + 15_000, 7.0)])]);
    assert_eq!(bench.metric(r#"ingest_samples_dropped_total{reason="conflict"}"#), 1);
}
