//! Changes of the models of a group.

use super::sequential::*;
use super::*;
use crate::history::SeriesSamples;
use crate::time;
use crate::train::{ModelFitter, TrainingSet, catch_up, training_set};
use crate::window::build;

/// A model comes after the grace period of rows that it scores.
#[test]
fn a_row_that_was_closed_without_a_model_is_counted_once() {
    let now = Instant::now();
    let mut bench = Bench::new("");
    push(&mut bench, 190..230);
    bench.tick(now + Duration::from_secs(3600));
    let count = |bench: &Bench, state: &str| {
        bench.metric(&format!(r#"rows_total{{detector="node_network",state="{state}"}}"#))
    };
    assert_eq!(count(&bench, "no_model"), 40);
    let labels = bench.groups()[0].1.labels.clone();
    bench.install(&BTreeMap::from([(labels, sequential_model())]));
    push(&mut bench, 230..235);
    let n_scored = bench.groups()[0].1.window().scores(ModelRole::Champion, i64::MIN, i64::MAX).count();
    assert_eq!(n_scored, 35, "the rows after its training");
    assert_eq!((count(&bench, "no_model"), count(&bench, "complete")), (40, 5));
}

/// The registry's look at the past takes a moment, in which rows come.
#[test]
fn a_challenger_observes_every_row() {
    let model = sequential_model();
    let mut bench = running(&model, 260);
    let history: Vec<SeriesSamples> = in_prometheus(0..256).into_iter().map(without_group_labels).collect();
    let detection =
        model.fitted.as_online().cloned().map(Box::new).map(|start| {
            catch_up::advance(start, &model, &Default::default(), [].into(), &history, time(255))
        });
    let (id, _) = bench.groups().remove(0);
    bench.engine.deploy(
        id,
        ModelRole::Challenger,
        Some(deployed(&model)),
        WarmStart { detection, ..WarmStart::default() },
        Instant::now(),
    );
    push(&mut bench, 260..320);
    let (_, group) = bench.groups().remove(0);
    let [champion, challenger] = [ModelRole::Champion, ModelRole::Challenger].map(|role| {
        let scores = group.window().scores(role, time(259), i64::MAX);
        scores.map(|(at, score)| (at, score.decision, score.score)).collect::<Vec<_>>()
    });
    assert_eq!((challenger.len(), challenger == champion), (60, true));
    assert_eq!(
        group.window().scores(ModelRole::Challenger, i64::MIN, time(259)).count(),
        0,
        "of before it says nothing"
    );
}

/// The model that the group would be trained anew to, while remote read returns the scrapes before this one.
fn renewed(bench: &mut Bench, scrapes_to: i64) -> Arc<Model> {
    let group = bench.groups().remove(0).1;
    let (detector, scored_to_ms) = (group.detector.clone(), group.scored_to_ms());
    let history: Vec<SeriesSamples> =
        in_prometheus(0..scrapes_to).into_iter().map(without_group_labels).collect();
    let joined = build::join(&history, group.window(), time::millis(detector.training.history));
    let rows = TrainingSet::from_window(&detector, &joined, &[], scored_to_ms).expect("rows");
    let trained = ModelFitter::for_detector(&detector, None, 0).fit(&rows);
    Arc::new(trained.expect("the parameters suit the rows").model)
}

#[test]
fn a_renewed_model_scores_rows_that_remote_read_had_before_remote_write() {
    let old = sequential_model();
    let mut bench = running(&old, 260);
    // The first half of a row, when the training is asked for: Prometheus has it all, and five more.
    bench.send(vec![rx("eth0", &[(time(260), counters(260)[0].1)])]);
    let to_ms = bench.groups().remove(0).1.scored_to_ms();
    assert_eq!(to_ms, time(260) - 1);
    let new = renewed(&mut bench, 266);
    assert_eq!(new.fitted.newest_ms(), Some(time(259)));

    // The old model goes on while the new one is trained.
    push(&mut bench, 260..263);
    let before = bench.content();
    bench.groups().remove(0).1.install(deployed(&new), WarmStart::default(), Instant::now(), &mut |_| {});
    assert_eq!(bench.content(), before, "scores stay");
    push(&mut bench, 263..300);

    let mut expected = BTreeMap::new();
    for (model, from, to) in [(&old, 260, 263), (&new, 263, 300)] {
        let history: Vec<SeriesSamples> =
            in_prometheus(0..300).into_iter().map(without_group_labels).collect();
        let window = build::from_series(history.iter(), i64::MAX / 4);
        let mut detection = model.fitted.as_online().cloned().map(Box::new).expect("it is ordered");
        let newest_ms = detection.newest_ms().expect("it has seen rows");
        training_set::for_each_full_row(&model.schema, &window, newest_ms, i64::MAX, |at_ms, values| {
            let Some(assessment) = detection.assess(at_ms, values) else { return };
            if (time(from)..time(to)).contains(&at_ms) {
                expected.insert(at_ms, assessment.decision.to_bits());
            }
        });
    }
    assert_eq!(expected.len(), 40);
    let content = bench.content().into_iter();
    let is_new = |at: &i64, feature: &Labels| *at >= time(260) && *feature == Labels::default();
    let scores = content.filter(|((_, feature, at), _)| is_new(at, feature));
    assert_eq!(scores.map(|((_, _, at), bits)| (at, bits)).collect::<BTreeMap<_, _>>(), expected);
}

/// An incident stays open for ten minutes after the deviation, also under a model that has not seen it.
#[test]
fn an_open_incident_survives_a_change_of_model() {
    let model = sequential_model();
    let is_open = |bench: &mut Bench, i: i64| {
        let score = bench.groups().remove(0).1.window().score(ModelRole::Champion, time(i)).expect("scored");
        score.incident_state.expect("it raises some").is_incident
    };
    let mut uninterrupted = running(&model, 400);
    let last = (300..400).rev().find(|i| is_open(&mut uninterrupted, *i)).expect("an incident");
    // It is brought up to date by a past in which nothing happened.
    let mut without_incident = model.fitted.as_online().cloned().map(Box::new).expect("it is ordered");
    let history: Vec<SeriesSamples> = in_prometheus(0..last).into_iter().map(without_group_labels).collect();
    let mut rows = Vec::new();
    training_set::for_each_full_row(
        &model.schema,
        &build::from_series(history.iter(), i64::MAX / 4),
        i64::MIN,
        i64::MAX,
        |_, values| {
            rows.push(values.to_vec());
        },
    );
    let first = last - rows.len() as i64;
    for i in 200..last - 1 {
        // The noise has a period of 101.
        let calm_row = if (300..310).contains(&i) { i - 101 } else { i };
        without_incident.assess(time(i), &rows[(calm_row - first) as usize]);
    }
    let mut bench = running(&model, last - 1);
    let warm_start = WarmStart { detection: Some(without_incident), ..WarmStart::default() };
    bench.groups().remove(0).1.install(deployed(&model), warm_start, Instant::now(), &mut |_| {});
    push(&mut bench, last - 1..=last);
    assert!(is_open(&mut bench, last));
}
