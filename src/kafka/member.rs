//! A member of the consumer group: its partitions, their starts and their commits.
//!
//! The callbacks run on the thread that polls, so they may wait.

use super::client::{ClientLog, LOG_INTERVAL, PARTITIONS_HEADER};
use super::intake::{Intake, Position};
use super::options::{Phase, SourceOptions};
use super::split::is_placed;
use super::start::{Start, StartFacts};
use crate::telemetry::LogThrottle;
use crate::time::{millis, now_ms};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::types::{RDKafkaErrorCode, RDKafkaRespErr};
use rdkafka::{ClientContext, Offset, Statistics, TopicPartitionList};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tracing::{info, warn};

/// Longest wait for an answer of a broker.
const BROKER_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause before a broker that did not answer is asked again.
const RETRY_DELAY: Duration = Duration::from_millis(500);
/// Time that the rows of a partition may take to be written when the partition goes.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);
/// Bytes of a header that are read: more than a number has.
const MAX_HEADER_BYTES: usize = 32;
/// Pause between two looks at the progress.
pub const PROGRESS_INTERVAL: Duration = Duration::from_millis(5);

/// A partition of this member.
#[derive(Clone, Copy, Debug)]
struct Partition {
    /// The offset after the last record that was taken in.
    position: i64,
    /// Records before this offset are written.
    written_to: i64,
    /// The offset that was committed last.
    committed: i64,
}

/// The part of a member that changes while it runs.
struct State {
    partitions: BTreeMap<i32, Partition>,
    /// The number of partitions of the topic.
    n_partitions: Option<usize>,
    poison: LogThrottle,
}

/// See the [module](self).
pub struct Member<'a, I> {
    /// The topic.
    pub options: &'a SourceOptions,
    /// The owner of the windows.
    pub intake: &'a I,
    phase: &'a watch::Receiver<Phase>,
    failure: &'a watch::Sender<Option<String>>,
    log: ClientLog,
    state: Mutex<State>,
}

impl<'a, I: Intake + Sync> Member<'a, I> {
    /// A member without partitions.
    pub fn new(
        options: &'a SourceOptions,
        intake: &'a I,
        phase: &'a watch::Receiver<Phase>,
        failure: &'a watch::Sender<Option<String>>,
    ) -> Self {
        let poison = LogThrottle::new(LOG_INTERVAL);
        let state = State { partitions: BTreeMap::new(), n_partitions: None, poison };
        Self { options, intake, phase, failure, log: ClientLog::default(), state: Mutex::new(state) }
    }

    /// The phase of the shutdown.
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The offset before which the records of a partition are written, if the partition is this member's.
    pub fn written_to(&self, partition: i32) -> Option<i64> {
        self.state().partitions.get(&partition).map(|partition| partition.written_to)
    }

    /// Records that a record was taken in.
    pub fn advance(&self, partition: i32, position: i64) {
        if let Some(partition) = self.state().partitions.get_mut(&partition) {
            partition.position = position;
        }
        self.options.metrics.records.inc();
    }

    /// Counts a record that is no valid write request.
    pub fn count_poison(&self, partition: i32, offset: i64, err: &str) {
        self.options.metrics.poison.inc();
        if let Some(count) = self.state().poison.add(1) {
            warn!(
                component = "kafka",
                topic = self.options.config.topic,
                partition,
                offset,
                err,
                count,
                "record skipped, or the invalid part of it"
            );
        }
    }

    /// Counts an error of the client.
    fn count_error(&self, error: &KafkaError, reason: &str) {
        self.options.metrics.count_error();
        self.log.add_error(error, reason);
    }

    /// Checks the number of partitions that a record names in its header. Another number than the topic's is a change if
    /// its series are placed by it, and else none of `promforest route`.
    ///
    /// # Errors
    /// The reason why the record is to be skipped.
    pub fn check_header(&self, header: &[u8], partition: i32, value: &[u8]) -> Result<(), String> {
        let text = String::from_utf8_lossy(&header[..header.len().min(MAX_HEADER_BYTES)]);
        let n_partitions = text.parse().map_or(0, |number: u32| number as usize);
        let expected = self.state().n_partitions;
        if expected == Some(n_partitions) {
            return Ok(());
        }
        if n_partitions == 0 || !is_placed(value, partition, &self.options.config.by, n_partitions) {
            return Err(format!(
                "{text:?} in its header {PARTITIONS_HEADER} is not the number of partitions that its series are divided by"
            ));
        }
        self.check_n_partitions(n_partitions);
        Ok(())
    }

    /// Refuses all records if the topic has another number of partitions than before. It moves the groups to other
    /// partitions, whose owners do not have their windows.
    fn check_n_partitions(&self, n_partitions: usize) {
        let expected = *self.state().n_partitions.get_or_insert(n_partitions);
        if expected == n_partitions {
            return;
        }
        let text = format!(
            "the partitions of topic {} changed between {expected} and {n_partitions}, so targets change their partition: \
             make a new topic, and let `promforest route` and the sidecars use it",
            self.options.config.topic
        );
        self.failure.send_if_modified(|failure| {
            let is_new = failure.is_none();
            if is_new {
                tracing::error!(component = "kafka", err = text, "no record is read any more");
                *failure = Some(text);
            }
            is_new
        });
    }

    /// True if records are refused.
    pub fn is_refusing(&self) -> bool {
        self.failure.borrow().is_some()
    }

    /// Commits the positions before which all rows are written, and waits for the answer. `None` if the intake is gone.
    pub fn commit(&self, consumer: &BaseConsumer<Self>) -> Option<()> {
        let mut settled = self.intake.progress()?.settled;
        settled.retain(|id, Position { offset, .. }| {
            let mut state = self.state();
            let partition = state.partitions.get_mut(id).filter(|known| known.committed < *offset);
            partition.map(|partition| partition.committed = *offset).is_some()
        });
        self.commit_positions(consumer, settled);
        Some(())
    }

    fn commit_positions(
        &self,
        consumer: &BaseConsumer<Self>,
        positions: impl IntoIterator<Item = (i32, Position)>,
    ) {
        let mut list = TopicPartitionList::new();
        for (id, Position { offset, produced_ms }) in positions {
            let mut element = list.add_partition(&self.options.config.topic, id);
            // The offset is not negative.
            let _ = element.set_offset(Offset::Offset(offset));
            element.set_metadata(produced_ms.to_string());
        }
        if list.count() == 0 {
            return;
        }
        // An asynchronous commit reports no failure.
        let result = consumer.commit(&list, CommitMode::Sync);
        self.options.metrics.count_commit(result.is_ok());
        let Err(error) = result else { return };
        self.count_error(&error, "");
        for element in list.elements() {
            // The next commit names the partition again.
            if let Some(partition) = self.state().partitions.get_mut(&element.partition()) {
                partition.committed = i64::MIN;
            }
        }
    }

    /// Starts the partitions anew whose next record is gone: the client does not go on with them by itself.
    pub fn restart_lost_partitions(&self, consumer: &BaseConsumer<Self>) {
        let topic = &self.options.config.topic;
        let positions: Vec<(i32, i64)> =
            self.state().partitions.iter().map(|(id, partition)| (*id, partition.position)).collect();
        for (id, position) in positions {
            match consumer.fetch_watermarks(topic, id, BROKER_TIMEOUT) {
                // An offset beyond the end belongs to an earlier topic of this name.
                Ok((low, high)) if !(low..=high).contains(&position) => {
                    let mut list = TopicPartitionList::new();
                    list.add_partition(topic, id);
                    self.revoke(consumer, &list);
                    self.assign(consumer, &[id]);
                }
                Ok(_) => {}
                Err(error) => self.count_error(&error, ""),
            }
        }
    }

    fn count_lost(&self, partition: i32, from: i64, to: i64) {
        let records = (to - from).max(0);
        self.options.metrics.lost.inc_by(records.unsigned_abs());
        warn!(
            component = "kafka",
            topic = self.options.config.topic,
            partition,
            from,
            to,
            records,
            "retention removed records before they were read: the sources of history fill the gap"
        );
    }

    /// Starts to read partitions that this member gets.
    fn assign(&self, consumer: &BaseConsumer<Self>, ids: &[i32]) {
        // A change of other members' partitions names none.
        let starts = loop {
            if ids.is_empty() {
                break Vec::new();
            }
            match self.find_starts(consumer, ids) {
                Ok(starts) => break starts,
                Err(_) if self.phase() != Phase::Running => break Vec::new(),
                Err(error) => self.count_error(&error, ""),
            }
            thread::sleep(RETRY_DELAY);
        };
        let topic = &self.options.config.topic;
        let (mut list, mut first) = (TopicPartitionList::new(), Vec::new());
        for (id, Start { from, committed, n_lost, is_first }) in starts {
            if is_first {
                first.push((id, Position { offset: from, produced_ms: now_ms() }));
            }
            if n_lost > 0 {
                self.count_lost(id, committed - n_lost, committed);
            }
            info!(component = "kafka", topic, partition = id, from, committed, "partition assigned");
            let partition = Partition { position: from, written_to: committed, committed };
            self.state().partitions.insert(id, partition);
            // The offset is not negative.
            let _ = list.add_partition_offset(topic, id, Offset::Offset(from));
        }
        self.options.metrics.count_rebalance("assigned");
        if let Err(error) = consumer.incremental_assign(&list) {
            self.count_error(&error, "");
        }
        self.commit_positions(consumer, first);
    }

    /// Asks the brokers and the intake for the facts of each partition.
    fn find_starts(&self, consumer: &BaseConsumer<Self>, ids: &[i32]) -> KafkaResult<Vec<(i32, Start)>> {
        let topic = &self.options.config.topic;
        let metadata = consumer.fetch_metadata(Some(topic), BROKER_TIMEOUT)?;
        let metadata =
            metadata.topics().first().ok_or(KafkaError::MetadataFetch(RDKafkaErrorCode::UnknownTopic))?;
        if let Some(code) = metadata.error() {
            return Err(KafkaError::MetadataFetch(code.into()));
        }
        self.check_n_partitions(metadata.partitions().len());
        let mut list = TopicPartitionList::new();
        for id in ids {
            list.add_partition(topic, *id);
        }
        let committed = consumer.committed_offsets(list, BROKER_TIMEOUT)?;
        // Before the offsets by time: a record that arrives meanwhile must not lie before a start at the end.
        let watermarks = ids.iter().map(|id| consumer.fetch_watermarks(topic, *id, BROKER_TIMEOUT));
        let watermarks: Vec<(i64, i64)> = watermarks.collect::<KafkaResult<_>>()?;
        let mut times = TopicPartitionList::new();
        for element in committed.elements() {
            element.error()?;
            let written_ms: i64 = element.metadata().parse().unwrap_or_else(|_| now_ms());
            let from_ms = written_ms.saturating_sub(millis(self.options.rewind)).max(0);
            times.add_partition_offset(topic, element.partition(), Offset::Offset(from_ms))?;
        }
        let rewound = consumer.offsets_for_times(times, BROKER_TIMEOUT)?;
        let offset_in = |list: &TopicPartitionList, id| match list.find_partition(topic, id)?.offset() {
            Offset::Offset(offset) => Some(offset),
            _ => None,
        };
        let mut starts = Vec::new();
        for (id, (low, high)) in ids.iter().zip(watermarks) {
            let (committed, rewound) = (offset_in(&committed, *id), offset_in(&rewound, *id));
            let Some(held) = self.intake.assign(*id, committed) else { break };
            let facts = StartFacts { low, high, committed, held, rewound };
            starts.push((*id, facts.start()));
        }
        Ok(starts)
    }

    /// Writes what is scored, commits, and stops to read partitions that go to another member. Partitions that are lost
    /// may have another owner already.
    fn revoke(&self, consumer: &BaseConsumer<Self>, list: &TopicPartitionList) {
        let is_lost = consumer.assignment_lost();
        let ids: Vec<i32> = list.elements().iter().map(|element| element.partition()).collect();
        if !is_lost {
            if self.phase() == Phase::Running {
                self.wait_until_settled(&ids);
            }
            self.commit(consumer);
        }
        for id in ids {
            info!(
                component = "kafka",
                topic = self.options.config.topic,
                partition = id,
                is_lost,
                "partition revoked"
            );
            self.intake.revoke(id);
            self.state().partitions.remove(&id);
            self.options.metrics.remove_lag(id);
        }
        self.options.metrics.count_rebalance(if is_lost { "lost" } else { "revoked" });
        if let Err(error) = consumer.incremental_unassign(list) {
            self.count_error(&error, "");
        }
    }

    /// Waits until the rows of these partitions are written, at most [`FLUSH_TIMEOUT`].
    fn wait_until_settled(&self, ids: &[i32]) {
        let until = Instant::now() + FLUSH_TIMEOUT;
        while Instant::now() < until {
            let Some(progress) = self.intake.progress() else { return };
            let is_settled = |id: &i32| {
                let position = self.state().partitions.get(id).map_or(0, |partition| partition.position);
                progress.settled.get(id).is_none_or(|settled| settled.offset >= position)
            };
            if ids.iter().all(is_settled) {
                return;
            }
            thread::sleep(PROGRESS_INTERVAL);
        }
    }
}

impl<I: Intake + Sync> ClientContext for Member<'_, I> {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.log.add_line(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.count_error(&error, reason);
    }

    fn stats(&self, statistics: Statistics) {
        let Some(topic) = statistics.topics.get(&self.options.config.topic) else { return };
        for (id, partition) in &self.state().partitions {
            if let Some(high) =
                topic.partitions.get(id).map(|known| known.hi_offset).filter(|high| *high >= 0)
            {
                self.options.metrics.set_lag(*id, (high - partition.position).max(0));
            }
        }
    }
}

impl<I: Intake + Sync> ConsumerContext for Member<'_, I> {
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        change: RDKafkaRespErr,
        list: &mut TopicPartitionList,
    ) {
        if change == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            let ids: Vec<i32> = list.elements().iter().map(|element| element.partition()).collect();
            self.assign(consumer, &ids);
        } else {
            self.revoke(consumer, list);
        }
        self.options.metrics.partitions.set(self.state().partitions.len() as i64);
    }
}
