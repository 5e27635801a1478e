//! The router: takes remote write, and puts each target's series into one partition.
//!
//! It has no state. A request is answered 204 once every broker in sync has its records, and 503 otherwise, so the sender
//! sends it again: records may come twice, which changes no score.

use super::Config;
use super::client::{self, ClientLog, PARTITIONS_HEADER};
use super::split::Split;
use crate::http::request_body::{BodyReceiver, ReceivedBody};
use crate::http::response::{self, PagesBeingSent, Response, method_not_allowed};
use crate::http::server::RequestBody;
use crate::ingest::{self, AcceptedCounts, Error};
use crate::prom::Labels;
use crate::prom::wire::{ParsedRequest, ProtocolVersion, Scratch, snappy};
use crate::telemetry::{OneLabel, register};
use crate::tenant::{self, Tenant};
use hyper::header::HeaderMap;
use hyper::{Method, Request, StatusCode};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::Semaphore;
use tracing::info;

/// Requests that are decoded at a time: each takes up to 100 MB.
const MAX_DECODING: usize = 2;
/// Longest wait for an answer of a broker.
const BROKER_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause before the brokers are asked again for the topic.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// Metrics of the router.
#[derive(Clone)]
pub struct Metrics {
    records: OneLabel<Counter>,
    bytes: Counter,
}

impl Metrics {
    /// Registers the metrics.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            records: register(registry, "route_records", "Records handed to Kafka, by outcome"),
            bytes: register(registry, "route_record_bytes", "Bytes of the values of acknowledged records"),
        };
        for outcome in ["acknowledged", "failed"] {
            drop(metrics.records.get_or_create(&[("outcome", outcome.into())]));
        }
        metrics
    }

    fn count(&self, outcome: &'static str, records: usize) {
        self.records.get_or_create(&[("outcome", outcome.into())]).inc_by(records as u64);
    }
}

/// The log of the client.
#[derive(Default)]
struct Context(ClientLog);

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.0.add_line(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.0.add_error(&error, reason);
    }
}

/// See the [module](self).
pub struct Router {
    config: Config,
    /// The tenants that requests name, if there are any.
    tenants: Option<Arc<tenant::Config>>,
    producer: FutureProducer<Context>,
    /// Known once a broker has answered. It stays the same, as the partition of a target does.
    n_partitions: OnceLock<usize>,
    receiver: BodyReceiver,
    decoding: Semaphore,
    metrics: Metrics,
    ingest_metrics: ingest::Metrics,
    registry: Registry,
    pages: PagesBeingSent,
}

impl Router {
    /// A router that has not asked a broker yet; `registry` has its metrics.
    ///
    /// # Errors
    /// [`client::Error`] for files that cannot be read, and settings that the client rejects.
    pub fn new(
        config: Config,
        tenants: Option<Arc<tenant::Config>>,
        metrics: Metrics,
        ingest_metrics: ingest::Metrics,
        registry: Registry,
    ) -> Result<Self, client::Error> {
        let producer = client::client_config(&config)?
            .set("acks", "all")
            // Retries keep the order. An idempotent producer would too, and ends for good when brokers lose records.
            .set("max.in.flight.requests.per.connection", "1")
            // A topic that a producer makes has one partition.
            .set("allow.auto.create.topics", "false")
            .set("compression.type", "lz4")
            .set("linger.ms", "5")
            .set("message.timeout.ms", "10000")
            .set("queue.buffering.max.kbytes", "65536")
            .create_with_context(Context::default())?;
        Ok(Self {
            config,
            tenants,
            producer,
            n_partitions: OnceLock::new(),
            receiver: ingest::body_receiver(),
            decoding: Semaphore::new(MAX_DECODING),
            metrics,
            ingest_metrics,
            registry,
            pages: PagesBeingSent::default(),
        })
    }

    /// Asks for the partitions of the topic until a broker answers.
    pub async fn connect(self: Arc<Self>) {
        while self.n_partitions.get().is_none() {
            let router = self.clone();
            let found = tokio::task::spawn_blocking(move || router.find_partitions()).await;
            if let Ok(Some(n_partitions)) = found {
                info!(component = "kafka", topic = self.config.topic, partitions = n_partitions, "connected");
                self.n_partitions.get_or_init(|| n_partitions);
                return;
            }
            tokio::time::sleep(RETRY_DELAY).await;
        }
    }

    fn find_partitions(&self) -> Option<usize> {
        let client = self.producer.client();
        let metadata = client.fetch_metadata(Some(&self.config.topic), BROKER_TIMEOUT).ok()?;
        let topic = metadata.topics().first()?;
        if let Some(code) = topic.error() {
            client.context().error(KafkaError::MetadataFetch(code.into()), "");
        }
        Some(topic.partitions().len()).filter(|n_partitions| *n_partitions > 0)
    }

    /// Answers one request.
    pub async fn handle(self: Arc<Self>, request: Request<RequestBody>) -> Response {
        let (head, body) = request.into_parts();
        match (&head.method, head.uri.path()) {
            (&Method::POST, "/api/v1/write") => {
                let (version, result) = match ingest::negotiate(&head.headers) {
                    Ok(version) => (Some(version), self.clone().write(version, &head.headers, body).await),
                    Err(error) => (None, Err(error)),
                };
                self.ingest_metrics.count_answered(version, &result);
                ingest::response(version, &result)
            }
            (&Method::GET | &Method::HEAD, "/metrics") => {
                self.ingest_metrics.set_in_flight(self.receiver.in_flight());
                self.pages.respond_with_metrics(&self.registry, &head.headers)
            }
            (&Method::GET | &Method::HEAD, "/-/healthy") => {
                response::text(StatusCode::OK, "promforest route is healthy")
            }
            (&Method::GET | &Method::HEAD, "/-/ready") => match self.n_partitions.get() {
                Some(n_partitions) => response::text(
                    StatusCode::OK,
                    &format!("{} has {n_partitions} partitions", self.config.topic),
                ),
                None => response::text(StatusCode::SERVICE_UNAVAILABLE, "Kafka does not answer"),
            },
            (_, "/api/v1/write") => {
                self.ingest_metrics.count_method_not_allowed();
                method_not_allowed("POST")
            }
            (_, "/metrics" | "/-/healthy" | "/-/ready") => method_not_allowed("GET, HEAD"),
            _ => response::text(StatusCode::NOT_FOUND, "not found"),
        }
    }

    async fn write(
        self: Arc<Self>,
        version: ProtocolVersion,
        headers: &HeaderMap,
        body: RequestBody,
    ) -> Result<AcceptedCounts, Error> {
        let tenant = self.tenants.as_ref().map(|tenants| tenants.of_request(headers)).transpose()?;
        let body = self.receiver.receive(body).await?;
        let n_partitions = *self.n_partitions.get().ok_or(Error::Overloaded("Kafka does not answer"))?;
        // The semaphore is never closed.
        let permit = self.decoding.acquire().await;
        let router = self.clone();
        let split =
            tokio::task::spawn_blocking(move || router.split(version, tenant.as_ref(), &body, n_partitions))
                .await;
        let split = split.map_err(|_| Error::Overloaded("a request cannot be decoded"))??;
        let delivered = self.deliver(split.records, n_partitions);
        drop(permit);
        delivered.await?;
        match split.rejections.is_empty() {
            true => Ok(split.accepted),
            false => Err(Error::PartialWrite { rejections: split.rejections, stats: split.accepted }),
        }
    }

    /// Decodes a request and splits it.
    fn split(
        &self,
        version: ProtocolVersion,
        tenant: Option<&Tenant>,
        body: &ReceivedBody,
        n_partitions: usize,
    ) -> Result<Split, Error> {
        let mut buffer = Vec::new();
        let message = snappy::decompress(&body.bytes, ingest::BODY_LIMIT, &mut buffer)?;
        let mut scratch = Scratch::default();
        // The sidecars know the limit of timestamps; the seed is for their index.
        let request = ParsedRequest::parse(version, message, 0, i64::MAX, &mut scratch)?;
        let label = |labels: Labels| match (&self.tenants, tenant) {
            (Some(tenants), Some(tenant)) => tenants.label.add(&labels, tenant),
            _ => labels,
        };
        let split = Split::new(&request, label, &self.config.by, n_partitions);
        let split = split.map_err(|_| Error::TooLarge)?;
        let n_samples: usize = request.series().map(|series| series.samples.len()).sum();
        self.ingest_metrics.count_received(
            &request.counts,
            n_samples + request.rejected_samples,
            &split.rejections,
        );
        Ok(split)
    }

    /// Hands over the records, and returns a future that ends when all are acknowledged.
    fn deliver(
        &self,
        records: Vec<(i32, Vec<u8>)>,
        n_partitions: usize,
    ) -> impl Future<Output = Result<(), Error>> + use<> {
        let n_partitions = n_partitions.to_string();
        let mut deliveries = Vec::new();
        let (mut n_full, mut n_bytes) = (0, 0);
        for (partition, value) in records {
            let header = Header { key: PARTITIONS_HEADER, value: Some(&n_partitions) };
            let record = FutureRecord::<(), Vec<u8>>::to(&self.config.topic)
                .partition(partition)
                .headers(OwnedHeaders::new().insert(header))
                .payload(&value);
            match self.producer.send_result(record) {
                Ok(delivery) => deliveries.push(delivery),
                Err(_) => n_full += 1,
            }
            n_bytes += value.len();
        }
        let metrics = self.metrics.clone();
        async move {
            let n_records = deliveries.len();
            let mut n_acknowledged = 0;
            for delivery in deliveries {
                n_acknowledged += usize::from(matches!(delivery.await, Ok(Ok(_))));
            }
            metrics.count("acknowledged", n_acknowledged);
            metrics.count("failed", n_records + n_full - n_acknowledged);
            if n_full > 0 {
                return Err(Error::Overloaded("the queue to Kafka is full"));
            }
            if n_acknowledged < n_records {
                return Err(Error::Overloaded("Kafka did not acknowledge the records"));
            }
            metrics.bytes.inc_by(n_bytes as u64);
            Ok(())
        }
    }
}
