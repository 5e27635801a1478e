//! The sender as the public compliance suite for remote write senders runs it: a program that scrapes a page each
//! second and writes its samples by remote write 2.0.
//!
//! The samples pass through promforest's real sender; a queue of scrapes replaces the windows.
//! `tests/compliance/sender.sh` runs the suite with it.

use promforest::http::Url;
use promforest::http::client::Client;
use promforest::prom::{Labels, METRIC_NAME, Sample};
use promforest::remote_write::message::ProtobufMessage;
use promforest::remote_write::sender::Sender;
use promforest::remote_write::{Batch, BatchSource, Config, CursorPosition, Metrics, TimeSeries};
use promforest::time;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::{Notify, watch};

const SCRAPE_INTERVAL: Duration = Duration::from_secs(1);
const PAGE_LIMIT: usize = 16 << 20;
/// Longest time for the remaining samples at the end; the suite waits for it.
const DRAIN: Duration = Duration::from_secs(1);

/// Scrapes that are not acknowledged, and how many of them were handed out.
#[derive(Default)]
struct Queue {
    scrapes: VecDeque<Vec<(Labels, Sample)>>,
    n_handed_out: usize,
}

#[derive(Clone, Default)]
struct Scrapes(Arc<Mutex<Queue>>);

impl Scrapes {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().expect("no thread panics while it holds the lock")
    }
}

impl BatchSource for Scrapes {
    async fn next_batch(&self, max_samples: usize) -> Option<Batch> {
        let mut queue = self.queue();
        let first = queue.scrapes.front_mut()?;
        if first.len() > max_samples {
            let rest = first.split_off(max_samples);
            queue.scrapes.insert(1, rest);
        }
        let mut room = max_samples;
        let fits = |scrape: &&Vec<(Labels, Sample)>| {
            let fits = scrape.len() <= room;
            room = room.saturating_sub(scrape.len());
            fits
        };
        let mut series: BTreeMap<Labels, Vec<Sample>> = BTreeMap::new();
        let mut handed_out = 0;
        for scrape in queue.scrapes.iter().take_while(fits) {
            handed_out += 1;
            for (labels, sample) in scrape {
                let samples = series.entry(labels.clone()).or_default();
                // A page may give its samples a time, the same each time.
                if samples.last().is_none_or(|last| last.timestamp_ms < sample.timestamp_ms) {
                    samples.push(*sample);
                }
            }
        }
        queue.n_handed_out = handed_out;
        let series = series.into_iter().map(|(labels, samples)| TimeSeries { labels, samples });
        Some(Batch { series: series.collect(), positions: Vec::new() })
    }

    async fn advance(&self, _: Vec<CursorPosition>) {
        let mut queue = self.queue();
        let handed_out = queue.n_handed_out;
        queue.scrapes.drain(..handed_out);
    }
}

/// A sample of a page in the text format.
struct Line {
    labels: Vec<(String, String)>,
    value: f64,
    timestamp_ms: Option<i64>,
}

fn sample(line: &str) -> Option<Line> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return None;
    }
    let end_of_name = line.find(|c: char| c == '{' || c.is_whitespace())?;
    let mut labels = vec![(METRIC_NAME.to_string(), line[..end_of_name].to_string())];
    let mut rest = &line[end_of_name..];
    if let Some(mut inside) = rest.strip_prefix('{') {
        loop {
            inside = inside.trim_start_matches([',', ' ']);
            if let Some(after) = inside.strip_prefix('}') {
                rest = after;
                break;
            }
            let (name, quoted) = inside.split_once('=')?;
            let mut value = String::new();
            let mut characters = quoted.trim_start().strip_prefix('"')?.chars();
            loop {
                match characters.next()? {
                    '"' => break,
                    '\\' => value.push(match characters.next()? {
                        'n' => '\n',
                        other => other,
                    }),
                    other => value.push(other),
                }
            }
            labels.push((name.trim().to_string(), value));
            inside = characters.as_str();
        }
    }
    // An exemplar comes after a number sign.
    let mut fields = rest.split('#').next()?.split_whitespace();
    let value = fields.next()?.parse().ok()?;
    Some(Line { labels, value, timestamp_ms: fields.next().and_then(|text| text.parse().ok()) })
}

/// The series that a scrape of Prometheus would store: those of the page with the target's labels, and `up`.
fn series(page: Option<&str>, instance: &str, now_ms: i64) -> BTreeMap<Labels, Sample> {
    let up = Line {
        labels: vec![(METRIC_NAME.to_string(), "up".to_string())],
        value: f64::from(u8::from(page.is_some())),
        timestamp_ms: None,
    };
    let lines = page.unwrap_or_default().lines().filter_map(sample);
    let labelled = lines.chain([up]).filter_map(|Line { labels: own, value, timestamp_ms }| {
        let target =
            [("job".to_string(), "test".to_string()), ("instance".to_string(), instance.to_string())];
        let exported = own.into_iter().map(|(name, value)| match name.as_str() {
            "job" | "instance" => (format!("exported_{name}"), value),
            _ => (name, value),
        });
        let labels = Labels::new(exported.chain(target)).ok()?;
        Some((labels, Sample { timestamp_ms: timestamp_ms.unwrap_or(now_ms), value }))
    });
    labelled.collect()
}

async fn scrape(client: Client, url: Url, scrapes: Scrapes, wake: Arc<Notify>) {
    let mut clock = tokio::time::interval(SCRAPE_INTERVAL);
    let mut before = BTreeSet::new();
    loop {
        clock.tick().await;
        let answer = client.get(&url, SCRAPE_INTERVAL, PAGE_LIMIT).await;
        let page = answer.ok().filter(|answer| answer.status.is_success());
        let page = page.map(|answer| String::from_utf8_lossy(&answer.body).into_owned());
        let now_ms = time::now_ms();
        let now = series(page.as_deref(), &url.authority(), now_ms);
        let names: BTreeSet<Labels> = now.keys().cloned().collect();
        let gone = before.difference(&names).map(|labels: &Labels| (labels.clone(), Sample::stale(now_ms)));
        scrapes.queue().scrapes.push_back(now.into_iter().chain(gone).collect());
        before = names;
        wake.notify_one();
    }
}

#[tokio::main]
async fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [page, target] = &args[..] else { panic!("usage: compliance_sender PAGE_URL WRITE_URL") };
    let page: Url = page.parse().unwrap_or_else(|error| panic!("{error}"));
    let target: Url = match target.parse() {
        Ok(target) => target,
        Err(error) => {
            eprintln!("{error}");
            // The suite ends altogether when it cannot end us.
            return tokio::signal::ctrl_c().await.expect("signals can be listened for");
        }
    };
    let (scrapes, wake) = (Scrapes::default(), Arc::new(Notify::new()));
    let (closing, closed) = watch::channel(false);
    let sender = Sender {
        source: scrapes.clone(),
        config: Config {
            url: target,
            protobuf_message: ProtobufMessage::V2,
            // Prometheus': the suite counts the requests of some seconds.
            batch_send_deadline: Duration::from_secs(5),
            ..Config::default()
        },
        tenant: None,
        client: Client::default(),
        metrics: Metrics::new(&mut prometheus_client::registry::Registry::default()),
        wake: wake.clone(),
        closing: closed,
    };
    let sending = tokio::spawn(sender.run());
    let scraping = tokio::spawn(scrape(Client::default(), page, scrapes, wake));
    tokio::signal::ctrl_c().await.expect("signals can be listened for");
    scraping.abort();
    closing.send_replace(true);
    // A target that does not answer keeps the rest.
    let _ = tokio::time::timeout(DRAIN, sending).await;
}
