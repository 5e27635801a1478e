//! Requests that an endpoint rejects are divided until only the rejected samples are lost.

use super::*;

#[tokio::test]
async fn f13_one_bad_series_of_a_batch_loses_only_its_own_sample() {
    for bad in 0..7 {
        let fake =
            FakeReceiver::start(|_, series| reply(if has_bad_sample(series) { 400 } else { 204 })).await;
        let rows = rows(1, 7, |_, j| if j == bad { BAD } else { j as f64 });
        let mut sender = RunningSender::start(&rows, config(fake.url.clone()));
        sender.finish().await;
        let good: Vec<_> = rows.all().into_iter().filter(|(_, _, value)| *value != BAD).collect();
        assert_eq!(sorted(fake.written()), sorted(good), "the others, each once");
        assert_eq!(sender.counts(), (6, 1, 0));
        assert_eq!(sender.metrics.retries.get(), 0, "a part is another request");
        assert!(fake.requests().len() <= 7, "two requests a halving: {}", fake.requests().len());
    }
}

#[tokio::test]
async fn one_bad_sample_of_a_series_is_the_only_one_lost_and_order_is_kept() {
    let fake = FakeReceiver::start(|_, series| reply(if has_bad_sample(series) { 400 } else { 204 })).await;
    let rows = rows(100, 1, |i, _| if i == 61 { BAD } else { i as f64 });
    let mut sender = RunningSender::start(&rows, config(fake.url.clone()));
    sender.finish().await;
    let good: Vec<_> = rows.all().into_iter().filter(|(_, _, value)| *value != BAD).collect();
    assert_eq!(fake.written(), good, "the others, each once, the older first");
    assert_eq!(sender.counts(), (99, 1, 0));
}

#[tokio::test]
async fn a_series_with_only_rejected_samples_does_not_affect_the_others() {
    let fake = FakeReceiver::start(|_, series| reply(if has_bad_sample(series) { 422 } else { 204 })).await;
    let rows = rows(8, 4, |_, j| if j == 2 { BAD } else { j as f64 });
    let mut sender = RunningSender::start(&rows, config(fake.url.clone()));
    sender.finish().await;
    assert_eq!(sender.counts(), (24, 8, 0));
    assert_eq!(fake.written().len(), 24);
}

#[tokio::test]
async fn a_request_that_is_too_large_is_sent_in_parts() {
    let too_large =
        |series: &[TimeSeries]| series.iter().map(|series| series.samples.len()).sum::<usize>() > 5;
    let fake = FakeReceiver::start(move |_, series| reply(if too_large(series) { 413 } else { 204 })).await;
    let rows = rows(8, 4, |i, j| (10 * i + j) as f64);
    let mut sender = RunningSender::start(&rows, config(fake.url.clone()));
    sender.finish().await;
    assert_eq!(sorted(fake.written()), sorted(rows.all()));
    assert_eq!(sender.counts(), (32, 0, 0));
}

/// Later requests stay below the size of the rejected one.
#[tokio::test]
async fn after_413_requests_are_smaller() {
    let size = |series: &[TimeSeries]| series.iter().map(|series| series.samples.len()).sum::<usize>();
    let fake = FakeReceiver::start(move |_, series| reply(if size(series) > 60 { 413 } else { 204 })).await;
    let rows = rows(100, 4, |i, j| (10 * i + j) as f64);
    let config = Config { max_samples_per_send: 200, ..config(fake.url.clone()) };
    let mut sender = RunningSender::start(&rows, config);
    sender.finish().await;
    assert_eq!(sorted(fake.written()), sorted(rows.all()));
    let rejected = fake.requests().iter().filter(|request| request.status == 413).count();
    assert_eq!(rejected, 3, "200, and its halves, once");
    assert_eq!(sender.counts(), (400, 0, 0));
}

#[tokio::test]
async fn a_rejection_that_is_not_about_the_data_causes_no_further_requests() {
    for status in [301, 405, 415, 429] {
        let fake = FakeReceiver::start(move |i, _| reply(if i == 0 { status } else { 204 })).await;
        let rows = rows(4, 2, |i, j| (10 * i + j) as f64);
        let config = Config { max_samples_per_send: 4, retry_on_http_429: false, ..config(fake.url.clone()) };
        let mut sender = RunningSender::start(&rows, config);
        sender.finish().await;
        assert_eq!(fake.requests().len(), 2, "{status}: one request for each batch");
        assert_eq!(sender.counts(), (4, 4, 0), "{status}");
    }
}

#[test]
fn halving_loses_nothing() {
    let rows = rows(5, 3, |i, j| (10 * i + j) as f64);
    let series = |labels: &Labels| {
        let samples =
            rows.state().rows.iter().map(|(t, v)| Sample { timestamp_ms: *t, value: v[0] }).collect();
        TimeSeries { labels: labels.clone(), samples }
    };
    let labels = rows.state().series.clone();
    let whole: Vec<TimeSeries> = labels.iter().map(series).collect();
    let mut parts = vec![whole.clone()];
    let mut single = Vec::new();
    while let Some(part) = parts.pop() {
        match split_in_half(part.clone()) {
            Some([older, newer]) => parts.extend([newer, older]),
            None => single.extend(part),
        }
    }
    assert!(single.iter().all(|series| series.samples.len() == 1));
    let cut = whole.iter().flat_map(|series| {
        series
            .samples
            .iter()
            .map(|sample| TimeSeries { labels: series.labels.clone(), samples: vec![*sample] })
    });
    assert_eq!(single, cut.collect::<Vec<_>>());
    assert!(split_in_half(Vec::new()).is_none());
}

#[tokio::test]
async fn b79_only_the_beginning_of_an_endless_rejection_is_read() {
    for (status, requests) in [(400, 1), (503, 2)] {
        let script = move |i, _: &[TimeSeries]| {
            if i > 0 {
                return reply(204);
            }
            let mut reply = Reply::new("no! ".repeat(10 << 18).into());
            *reply.status_mut() = StatusCode::from_u16(status).expect("a status");
            reply
        };
        let fake = FakeReceiver::start(script).await;
        let mut sender = RunningSender::start(&rows(1, 1, |_, _| 1.0), config(fake.url.clone()));
        sender.finish().await;
        assert_eq!(fake.requests().len(), requests, "{status}");
        assert_eq!(sender.failed(FailureReason::Rejected), u64::from(status == 400), "{status}");
    }
}

#[tokio::test]
async fn f35_a_second_writer_is_distinguished_from_bad_data() {
    let reject_with = |text: &'static str| {
        move |_: usize, _: &[TimeSeries]| {
            let mut reply = Reply::new(text.into());
            *reply.status_mut() = StatusCode::BAD_REQUEST;
            reply
        }
    };
    for (text, conflicting) in
        [("out of order sample", 8), ("duplicate sample for timestamp", 8), ("label name is too long", 0)]
    {
        let fake = FakeReceiver::start(reject_with(text)).await;
        let rows = rows(4, 2, |i, j| (10 * i + j) as f64);
        let config = Config { max_samples_per_send: 2, ..config(fake.url.clone()) };
        let mut sender = RunningSender::start(&rows, config);
        sender.finish().await;
        assert_eq!(sender.counts(), (0, 8, 0), "{text}");
        assert_eq!(sender.metrics.conflicting.get(), conflicting, "{text}");
    }
}

/// The number of requests does not grow with the number of samples.
#[tokio::test]
async fn an_endpoint_that_rejects_everything_gets_few_requests() {
    let fake = FakeReceiver::start(|_, _| reply(400)).await;
    let rows = rows(400, 10, |i, j| (10 * i + j) as f64);
    let config = Config { max_samples_per_send: 100, ..config(fake.url.clone()) };
    let mut sender = RunningSender::start(&rows, config);
    sender.finish().await;
    assert_eq!(sender.counts(), (0, 4000, 0));
    // 40 batches of 100 samples: 99 splits of the first one, 8 of the next two, then one each.
    assert_eq!(fake.requests().len(), 199 + 2 * 17 + 37 * 3);
}

/// Between two batches of which nothing was accepted there are pauses that double; scores accumulate meanwhile.
#[tokio::test]
async fn rejected_batches_are_paced() {
    let fake = FakeReceiver::start(|_, _| reply(400)).await;
    let rows = rows(5, 1, |i, _| i as f64);
    let config = Config { max_samples_per_send: 1, ..config(fake.url.clone()) };
    let mut sender = RunningSender::start(&rows, config);
    sender.wake.notify_one();
    wait_until("five rejections", || fake.requests().len() == 5).await;
    let times: Vec<Instant> = fake.requests().iter().map(|request| request.received_at).collect();
    for (pair, least) in times.windows(2).zip([10, 20, 40, 40]) {
        let pause = pair[1].duration_since(pair[0]);
        assert!(pause >= Duration::from_millis(least), "{pause:?}, must be at least {least} ms");
    }
    sender.finish().await;
    assert_eq!(sender.counts(), (0, 5, 0));
}

/// After an endpoint has rejected everything, it accepts all but one series.
#[tokio::test]
async fn a_bad_series_is_found_after_batches_of_which_nothing_was_accepted() {
    let fake =
        FakeReceiver::start(|i, series| reply(if i < 20 || has_bad_sample(series) { 400 } else { 204 }))
            .await;
    let rows = rows(100, 4, |i, j| if j == 2 { BAD } else { (10 * i + j) as f64 });
    let config = Config { max_samples_per_send: 4, ..config(fake.url.clone()) };
    let mut sender = RunningSender::start(&rows, config);
    sender.finish().await;
    let (written, rejected, _) = sender.counts();
    assert!(written >= 3 * 80 && written + rejected == 400, "{written} {rejected}");
}

/// After a batch of which nothing was accepted, only the older rows of the next one may be bad.
#[tokio::test]
async fn an_endpoint_that_accepts_again_loses_only_what_is_bad() {
    let fake = FakeReceiver::start(|_, series| reply(if has_bad_sample(series) { 409 } else { 204 })).await;
    let rows = rows(64, 10, |i, j| if i < 35 { BAD } else { (10 * i + j) as f64 });
    let config = Config { max_samples_per_send: 320, ..config(fake.url.clone()) };
    let mut sender = RunningSender::start(&rows, config);
    sender.finish().await;
    assert_eq!(sender.counts(), (290, 350, 0));
}
