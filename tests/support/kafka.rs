//! A Kafka broker, and a client of its own.

use super::{Process, free_port, wait};
use rdkafka::ClientConfig;
use rdkafka::TopicPartitionList;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use rdkafka::topic_partition_list::Offset;
use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Long enough for a start on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(120);
/// Little memory, and a quick start.
const JAVA_OPTIONS: [&str; 6] =
    ["-Xms64m", "-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xss512k", "-XX:-UsePerfData"];

/// A single broker, which is its own controller.
pub struct Broker {
    /// The process, unless it is stopped.
    pub process: Option<Process>,
    /// Host and port.
    pub address: String,
    folder: PathBuf,
}

impl Broker {
    /// Starts a broker with an empty log in a folder.
    pub fn start(folder: &Path) -> Self {
        Self::start_with(folder, &[], "", &[])
    }

    /// Starts a broker with further listeners, each a name, a protocol and a port, with their properties, and with arguments
    /// for the format of its log.
    pub fn start_with(
        folder: &Path,
        listeners: &[(&str, &str, u16)],
        properties: &str,
        format: &[&str],
    ) -> Self {
        let (port, controller_port) = (free_port(), free_port());
        let data = folder.join("kafka-data");
        let addresses: String =
            listeners.iter().map(|(name, _, port)| format!(",{name}://127.0.0.1:{port}")).collect();
        let protocols: String =
            listeners.iter().map(|(name, protocol, _)| format!(",{name}:{protocol}")).collect();
        let properties = format!(
            "process.roles=broker,controller\n\
             node.id=1\n\
             controller.quorum.voters=1@127.0.0.1:{controller_port}\n\
             listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}{addresses}\n\
             advertised.listeners=PLAINTEXT://127.0.0.1:{port}{addresses}\n\
             controller.listener.names=CONTROLLER\n\
             listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT{protocols}\n\
             inter.broker.listener.name=PLAINTEXT\n\
             log.dirs={}\n\
             offsets.topic.num.partitions=1\n\
             offsets.topic.replication.factor=1\n\
             transaction.state.log.num.partitions=1\n\
             transaction.state.log.replication.factor=1\n\
             transaction.state.log.min.isr=1\n\
             share.coordinator.state.topic.num.partitions=1\n\
             share.coordinator.state.topic.replication.factor=1\n\
             share.coordinator.state.topic.min.isr=1\n\
             group.initial.rebalance.delay.ms=0\n\
             group.min.session.timeout.ms=1000\n\
             num.network.threads=1\n\
             num.io.threads=2\n\
             num.recovery.threads.per.data.dir=1\n\
             auto.create.topics.enable=false\n\
             log.cleaner.dedupe.buffer.size=4194304\n\
             {properties}",
            data.display()
        );
        fs::write(folder.join("server.properties"), properties).expect("writable");
        let mut broker =
            Self { process: None, address: format!("127.0.0.1:{port}"), folder: folder.to_path_buf() };
        let arguments = ["format", "-t", "AAAAAAAAAAAAAAAAAAAAAA", "-c", "server.properties"];
        let mut formatting = broker.java("kafka.tools.StorageTool", &[&arguments, format].concat());
        let output = formatting.output().expect("Java runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        broker.restart();
        broker
    }

    fn java(&self, class: &str, args: &[&str]) -> Command {
        let mut command = Command::new(super::java());
        let classes = super::kafka_libs().join("*");
        command.args(JAVA_OPTIONS).arg("-cp").arg(classes).arg(class).args(args).current_dir(&self.folder);
        command
    }

    /// Starts the broker again, with the log that it has.
    pub fn restart(&mut self) {
        let command = self.java("kafka.Kafka", &["server.properties"]);
        let mut process = Process::spawn("kafka", command, &self.folder);
        wait("Kafka listens", TIMEOUT, &mut [&mut process], || {
            TcpStream::connect(&self.address).map(drop).map_err(|error| error.to_string())
        });
        self.process = Some(process);
    }

    /// Ends the broker as a power cut would.
    pub fn kill(&mut self) {
        self.process.take().expect("the broker runs").kill();
    }

    fn client(&self) -> ClientConfig {
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", &self.address);
        client
    }

    fn admin(&self) -> AdminClient<DefaultClientContext> {
        self.client().create().expect("a client")
    }

    /// Makes a topic, whose batches the broker compresses in this way.
    pub fn create_topic(&self, name: &str, n_partitions: i32, compression: &str) {
        let topic = NewTopic::new(name, n_partitions, TopicReplication::Fixed(1))
            .set("compression.type", compression);
        let options = AdminOptions::new().operation_timeout(Some(TIMEOUT));
        let created = run(self.admin().create_topics(&[topic], &options)).expect("an answer");
        assert!(created.iter().all(Result::is_ok), "{created:?}");
    }

    /// Gives a topic more partitions.
    pub fn add_partitions(&self, topic: &str, n_partitions: usize) {
        let more = rdkafka::admin::NewPartitions::new(topic, n_partitions);
        let added = run(self.admin().create_partitions(&[more], &AdminOptions::new())).expect("an answer");
        assert!(added.iter().all(Result::is_ok), "{added:?}");
    }

    /// Deletes the records of all partitions up to now, as retention does.
    pub fn trim(&self, topic: &str, n_partitions: i32) {
        let mut offsets = TopicPartitionList::new();
        for partition in 0..n_partitions {
            offsets.add_partition_offset(topic, partition, Offset::End).expect("an offset");
        }
        run(self.admin().delete_records(&offsets, &AdminOptions::new())).expect("an answer");
    }

    /// Writes one record, with this number of partitions in its header.
    pub fn produce(&self, topic: &str, partition: i32, n_partitions: &str, value: &[u8]) {
        let producer: ThreadedProducer<_> =
            self.client().create_with_context(rdkafka::producer::DefaultProducerContext).expect("a client");
        let header = Header { key: "partitions", value: Some(n_partitions) };
        let record = BaseRecord::<(), [u8]>::to(topic).partition(partition).payload(value);
        let record = record.headers(OwnedHeaders::new().insert(header));
        producer.send(record).map_err(|(error, _)| error).expect("there is room");
        producer.flush(TIMEOUT).expect("an acknowledgement");
    }

    /// The records of a topic with their partitions.
    pub fn records(&self, topic: &str, n_partitions: i32) -> Vec<(i32, Vec<u8>)> {
        let consumer: BaseConsumer = self.client().set("group.id", "records").create().expect("a client");
        let mut list = TopicPartitionList::new();
        list.add_partition_range(topic, 0, n_partitions - 1);
        list.set_all_offsets(Offset::Beginning).expect("offsets");
        consumer.assign(&list).expect("an assignment");
        let n_records: i64 =
            self.watermarks(topic, n_partitions).iter().map(|(first, next)| next - first).sum();
        let record = |_| {
            let message = consumer.poll(TIMEOUT).expect("a record in time").expect("no error");
            (message.partition(), message.payload().unwrap_or_default().to_vec())
        };
        (0..n_records).map(record).collect()
    }

    /// First and next offset of each partition.
    pub fn watermarks(&self, topic: &str, n_partitions: i32) -> Vec<(i64, i64)> {
        let consumer: BaseConsumer = self.client().create().expect("a client");
        let of = |partition| consumer.fetch_watermarks(topic, partition, TIMEOUT).expect("an answer");
        (0..n_partitions).map(of).collect()
    }

    /// The committed offset of each partition; -1 before the first commit.
    pub fn committed(&self, group: &str, topic: &str, n_partitions: i32) -> Vec<i64> {
        let consumer: BaseConsumer = self.client().set("group.id", group).create().expect("a client");
        let mut list = TopicPartitionList::new();
        list.add_partition_range(topic, 0, n_partitions - 1);
        let list = consumer.committed_offsets(list, TIMEOUT).expect("an answer");
        let offset = |partition| match list.find_partition(topic, partition).map(|known| known.offset()) {
            Some(Offset::Offset(offset)) => offset,
            _ => -1,
        };
        (0..n_partitions).map(offset).collect()
    }
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future)
}
