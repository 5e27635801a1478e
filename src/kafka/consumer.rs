//! Reads the topic, and commits beside it: a commit waits for its answer.

use super::client::{self, PARTITIONS_HEADER};
use super::intake::{Intake, Record};
use super::member::{Member, PROGRESS_INTERVAL};
use super::options::{Phase, SourceOptions};
use crate::time::now_ms;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::types::RDKafkaErrorCode;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tracing::error;

/// Longest wait for a record. A shutdown waits for it.
const POLL_TIMEOUT: Duration = Duration::from_millis(100);
/// Interval of commits.
const COMMIT_INTERVAL: Duration = Duration::from_secs(1);
/// Time without a poll after which a member counts as stuck, in milliseconds; Kafka's default.
const MAX_POLL_INTERVAL_MS: u128 = 300_000;
/// Pause before a consumer that failed is replaced.
const REPLACE_DELAY: Duration = Duration::from_secs(10);
/// Time that rows may wait for their scores before the partitions are paused: a paused client reads ahead no more.
const PAUSE_AFTER: Duration = Duration::from_secs(1);

/// The reason for which a consumer ends before the phase says so.
enum End {
    /// The intake has ended.
    IntakeEnded,
    /// The client cannot be made, or failed for good.
    Client(client::Error),
}

impl From<KafkaError> for End {
    fn from(error: KafkaError) -> Self {
        Self::Client(error.into())
    }
}

/// Reads until the phase is [`Phase::Closed`] or the intake is gone. A consumer that fails is replaced.
pub fn read(
    options: &SourceOptions,
    intake: &(impl Intake + Sync),
    phase: &watch::Receiver<Phase>,
    failure: &watch::Sender<Option<String>>,
) {
    while *phase.borrow() != Phase::Closed {
        let text = match read_as(Member::new(options, intake, phase, failure), options) {
            Ok(()) | Err(End::IntakeEnded) => return,
            Err(End::Client(error)) => crate::error::chain(&error),
        };
        error!(component = "kafka", err = text, "the consumer failed, another one is started");
        options.metrics.count_error();
        failure.send_replace(Some(text));
        let until = Instant::now() + REPLACE_DELAY;
        while Instant::now() < until && *phase.borrow() == Phase::Running {
            thread::sleep(POLL_TIMEOUT);
        }
        failure.send_replace(None);
    }
}

/// Reads as a member of the group.
fn read_as<I: Intake + Sync>(member: Member<'_, I>, options: &SourceOptions) -> Result<(), End> {
    let consumer = connect(member, options).map_err(End::Client)?;
    thread::scope(|scope| {
        let (running, ended) = sync_channel(0);
        let member = consumer.context();
        scope.spawn(|| commit_regularly(&consumer, ended));
        let result = poll(&consumer);
        drop::<SyncSender<()>>(running);
        result?;
        // The rows that were in the windows are written by now.
        member.commit(&consumer).ok_or(End::IntakeEnded)
    })
}

/// Reads until the phase is [`Phase::Closed`].
fn poll<I: Intake + Sync>(consumer: &BaseConsumer<Member<'_, I>>) -> Result<(), End> {
    loop {
        match consumer.context().phase() {
            Phase::Running => {}
            // The rows that are in the windows are being written.
            Phase::Held => {
                thread::sleep(PROGRESS_INTERVAL);
                continue;
            }
            Phase::Closed => return Ok(()),
        }
        match consumer.poll(POLL_TIMEOUT) {
            Some(Ok(message)) => take(consumer, &message)?,
            Some(Err(error)) => handle_error(consumer, error)?,
            None => {}
        }
    }
}

/// Commits every second until `ended` is closed.
fn commit_regularly<I: Intake + Sync>(consumer: &BaseConsumer<Member<'_, I>>, ended: Receiver<()>) {
    while ended.recv_timeout(COMMIT_INTERVAL) == Err(RecvTimeoutError::Timeout) {
        if consumer.context().commit(consumer).is_none() {
            return;
        }
    }
}

fn connect<'a, I: Intake + Sync>(
    member: Member<'a, I>,
    options: &SourceOptions,
) -> Result<BaseConsumer<Member<'a, I>>, client::Error> {
    let config = &options.config;
    let session_ms = config.session_timeout.as_millis();
    let mut client = client::client_config(config)?;
    client
        .set("group.id", &config.group_id)
        .set("partition.assignment.strategy", "cooperative-sticky")
        .set("session.timeout.ms", session_ms.to_string())
        // Not below the session's.
        .set("max.poll.interval.ms", session_ms.max(MAX_POLL_INTERVAL_MS).to_string())
        .set("heartbeat.interval.ms", (session_ms / 10).max(100).to_string())
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "error")
        // Records that are read ahead, of all partitions.
        .set("queued.max.messages.kbytes", "32768")
        // A batch may be hundreds of times as large without its compression.
        .set("fetch.max.bytes", "4194304")
        .set("statistics.interval.ms", "5000");
    if let Some(id) = &config.group_instance_id {
        client.set("group.instance.id", id);
    }
    let consumer: BaseConsumer<Member<'a, I>> = client.create_with_context(member)?;
    consumer.subscribe(&[&config.topic])?;
    Ok(consumer)
}

/// Hands over a record, and waits until its rows are scored.
fn take<I: Intake + Sync>(
    consumer: &BaseConsumer<Member<'_, I>>,
    message: &BorrowedMessage<'_>,
) -> Result<(), End> {
    if push(consumer.context(), message)? { wait_for_scores(consumer) } else { Ok(()) }
}

/// Hands over a record. True if rows wait for their scores.
fn push<I: Intake + Sync>(member: &Member<'_, I>, message: &BorrowedMessage<'_>) -> Result<bool, End> {
    let (partition, offset) = (message.partition(), message.offset());
    let Some(written_to) = member.written_to(partition) else { return Ok(false) };
    let value = message.payload().unwrap_or_default();
    let header = header(message).map_or(Ok(()), |header| member.check_header(header, partition, value));
    if member.is_refusing() {
        return Ok(false);
    }
    // A record that is skipped moves the offset as an empty one does.
    let value = if header.is_ok() { value } else { &[] };
    let config = &member.options.config;
    let record = Record {
        partition,
        offset,
        produced_ms: message.timestamp().to_millis().unwrap_or_else(now_ms),
        format: config.format,
        compression: config.compression,
        value: value.to_vec(),
        is_committed: offset < written_to,
    };
    let outcome = member.intake.push(record).ok_or(End::IntakeEnded)?;
    member.advance(partition, offset + 1);
    if let Err(error) = header.and(outcome.result.map_err(|error| error.to_string())) {
        member.count_poison(partition, offset, &error);
    }
    Ok(outcome.is_behind)
}

/// The number of partitions that the partition of a record was chosen among, if its producer says it.
fn header<'m>(message: &'m BorrowedMessage<'_>) -> Option<&'m [u8]> {
    let header = message.headers()?.iter().find(|header| header.key == PARTITIONS_HEADER)?;
    Some(header.value.unwrap_or_default())
}

/// Waits until all rows are scored. After [`PAUSE_AFTER`] the client goes on without records.
fn wait_for_scores<I: Intake + Sync>(consumer: &BaseConsumer<Member<'_, I>>) -> Result<(), End> {
    let member = consumer.context();
    let started = Instant::now();
    let mut paused = None;
    while member.intake.progress().ok_or(End::IntakeEnded)?.is_behind && member.phase() == Phase::Running {
        if paused.is_none() && started.elapsed() >= PAUSE_AFTER {
            let assignment = consumer.assignment()?;
            consumer.pause(&assignment)?;
            paused = Some(assignment);
        }
        if paused.is_none() {
            thread::sleep(PROGRESS_INTERVAL);
            continue;
        }
        match consumer.poll(PROGRESS_INTERVAL) {
            // Of a partition that has just come.
            Some(Ok(message)) => drop(push(member, &message)?),
            Some(Err(error)) => handle_error(consumer, error)?,
            None => {}
        }
    }
    if let Some(assignment) = paused {
        // Partitions that have gone meanwhile are errors of their own.
        let _ = consumer.resume(&assignment);
    }
    Ok(())
}

fn handle_error<I: Intake + Sync>(
    consumer: &BaseConsumer<Member<'_, I>>,
    error: KafkaError,
) -> Result<(), End> {
    let member = consumer.context();
    match error {
        KafkaError::MessageConsumptionFatal(_) => return Err(error.into()),
        KafkaError::MessageConsumption(RDKafkaErrorCode::AutoOffsetReset) => {
            member.restart_lost_partitions(consumer);
        }
        // The context has counted it.
        _ => {}
    }
    Ok(())
}
