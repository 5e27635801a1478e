//! Metrics of the source.

use crate::telemetry::{OneLabel, register};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// See the [module](self).
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Records taken in, those that are read again included.
    pub records: Counter,
    /// Records of which nothing, or not everything, could be used.
    pub poison: Counter,
    /// Records that retention removed before they were read.
    pub lost: Counter,
    /// Partitions of this member.
    pub partitions: Gauge,
    lag: OneLabel<Gauge>,
    commits: OneLabel<Counter>,
    rebalances: OneLabel<Counter>,
    errors: Counter,
}

impl Metrics {
    /// Registers the metrics.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            records: register(
                registry,
                "kafka_records",
                "Records taken in, with those before the committed offset that fill the windows again",
            ),
            poison: register(
                registry,
                "kafka_poison_records",
                "Records that are no valid write request, of which the valid part is used, or whose header is wrong",
            ),
            lost: register(
                registry,
                "kafka_lost_records",
                "Records that the topic's retention removed before they were read",
            ),
            partitions: register(registry, "kafka_assigned_partitions", "Partitions that this member reads"),
            lag: register(
                registry,
                "kafka_lag_records",
                "Records of the partitions of this member that are not read yet, by partition",
            ),
            commits: register(registry, "kafka_commits", "Commits of offsets, by outcome"),
            rebalances: register(
                registry,
                "kafka_rebalances",
                "Changes of the partitions of this member, by kind",
            ),
            errors: register(registry, "kafka_errors", "Errors of the client, such as a broker that is away"),
        };
        for outcome in ["committed", "failed"] {
            drop(metrics.commits.get_or_create(&[("outcome", outcome.into())]));
        }
        for kind in ["assigned", "revoked", "lost"] {
            drop(metrics.rebalances.get_or_create(&[("kind", kind.into())]));
        }
        metrics
    }

    /// Counts a commit.
    pub fn count_commit(&self, is_committed: bool) {
        let outcome = if is_committed { "committed" } else { "failed" };
        self.commits.get_or_create(&[("outcome", outcome.into())]).inc();
    }

    /// Counts a change of the partitions.
    pub fn count_rebalance(&self, kind: &'static str) {
        self.rebalances.get_or_create(&[("kind", kind.into())]).inc();
    }

    /// Counts an error of the client.
    pub fn count_error(&self) {
        self.errors.inc();
    }

    /// Sets the number of records of a partition that are not read yet.
    pub fn set_lag(&self, partition: i32, records: i64) {
        self.lag.get_or_create(&[("partition", partition.to_string().into())]).set(records);
    }

    /// Forgets the lag of a partition.
    pub fn remove_lag(&self, partition: i32) {
        self.lag.remove(&[("partition", partition.to_string().into())]);
    }
}
