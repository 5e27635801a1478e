//! Remote write 2.0 and the change to 1.0.

use super::*;

fn v2(url: Url) -> Config {
    Config { protobuf_message: ProtobufMessage::V2, ..config(url) }
}

/// A response with the count of written samples.
fn reply_with_written(status: u16, samples: &str) -> Reply {
    let mut reply = reply(status);
    let name = HeaderName::from_static("x-prometheus-remote-write-samples-written");
    reply.headers_mut().insert(name, samples.parse().expect("a header"));
    reply
}

fn reply_all_written(status: u16, series: &[TimeSeries]) -> Reply {
    reply_with_written(status, &n_samples(series).to_string())
}

#[tokio::test]
async fn b78_requests_are_remote_write_2_0_when_configured() {
    for status in [200, 202, 204] {
        let fake = FakeReceiver::start(move |_, series| reply_all_written(status, series)).await;
        let values = [f64::INFINITY, 5e-324, 1.5, f64::from_bits(crate::prom::STALE_BITS)];
        let rows = rows(4, 3, |i, _| values[i]);
        let mut sender = RunningSender::start(&rows, v2(fake.url.clone()));
        sender.finish().await;
        let [request] = &fake.requests()[..] else { panic!("one request") };
        for (name, value) in [
            ("content-type", "application/x-protobuf;proto=io.prometheus.write.v2.Request"),
            ("content-encoding", "snappy"),
            ("x-prometheus-remote-write-version", "2.0.0"),
            ("user-agent", client::AGENT),
        ] {
            assert_eq!(request.headers[name], value, "{name}");
        }
        for series in &request.series {
            let bits: Vec<u64> = series.samples.iter().map(|sample| sample.value.to_bits()).collect();
            assert_eq!(bits, values.map(f64::to_bits), "values leave bit for bit");
        }
        assert_eq!(sender.counts(), (12, 0, 0), "{status}");
        assert_eq!(sender.metrics.fallbacks.get(), 0);
    }
}

/// An endpoint of 1.0 that ignores the content type finds nothing in a message of 2.0 and accepts it.
#[tokio::test]
async fn b82_b84_an_endpoint_that_does_not_support_2_0_gets_1_0_from_then_on() {
    let unaware: [fn() -> Reply; 4] =
        [|| reply(204), || reply(200), || reply_with_written(204, "0"), || reply(415)];
    for (n, first_reply) in unaware.into_iter().enumerate() {
        let fake = FakeReceiver::start(move |i, _| if i == 0 { first_reply() } else { reply(204) }).await;
        let rows = rows(6, 2, |i, j| (10 * i + j) as f64);
        let config = Config { max_samples_per_send: 4, ..v2(fake.url.clone()) };
        let mut sender = RunningSender::start(&rows, config);
        sender.finish().await;
        let requests = fake.requests();
        let versions: Vec<&str> = requests.iter().map(ReceivedRequest::version).collect();
        assert_eq!(versions, ["2.0.0", "0.1.0", "0.1.0", "0.1.0"], "{n}");
        assert_eq!(requests[0].series, requests[1].series, "{n}: the same once more");
        let in_1_0: usize = requests[1..].iter().map(ReceivedRequest::n_samples).sum();
        assert_eq!((in_1_0, sender.counts()), (12, (12, 0, 0)), "{n}");
        assert_eq!((sender.metrics.fallbacks.get(), sender.metrics.retries.get()), (1, 0), "{n}");
    }
}

#[tokio::test]
async fn b84_an_endpoint_that_rejects_both_versions_is_not_retried_forever() {
    let fake = FakeReceiver::start(|_, _| reply(415)).await;
    let mut sender = RunningSender::start(&rows(1, 2, |_, j| j as f64), v2(fake.url.clone()));
    sender.finish().await;
    assert_eq!(fake.requests().len(), 2);
    assert_eq!(sender.counts(), (0, 2, 0));
}

#[tokio::test]
async fn b83_lower_or_invalid_counts_are_losses_and_nothing_is_sent_again() {
    for (count, written) in [("5", 5), ("many", 0), ("-3", 0), ("7", 6)] {
        let fake = FakeReceiver::start(move |_, _| reply_with_written(204, count)).await;
        let mut sender = RunningSender::start(&rows(3, 2, |i, j| (10 * i + j) as f64), v2(fake.url.clone()));
        sender.finish().await;
        assert_eq!(fake.requests().len(), 1, "{count}");
        assert_eq!(sender.counts(), (written, 0, 0), "{count}");
        assert_eq!(sender.failed(FailureReason::Unconfirmed), 6 - written, "{count}");
    }
}

#[tokio::test]
async fn a_rejection_of_2_0_with_a_written_count_is_trusted() {
    let fake = FakeReceiver::start(|_, _| reply_with_written(400, "5")).await;
    let mut sender = RunningSender::start(&rows(3, 2, |i, j| (10 * i + j) as f64), v2(fake.url.clone()));
    sender.finish().await;
    assert_eq!((fake.requests().len(), sender.counts()), (1, (5, 1, 0)));

    let fake = FakeReceiver::start(|_, series| match has_bad_sample(series) {
        true => reply(400),
        false => reply_all_written(204, series),
    })
    .await;
    let bad = rows(3, 2, |i, j| if (i, j) == (1, 1) { BAD } else { 1.0 });
    let mut sender = RunningSender::start(&bad, v2(fake.url.clone()));
    sender.finish().await;
    assert_eq!(sender.counts(), (5, 1, 0), "the valid samples are sent again where none was written");
}
