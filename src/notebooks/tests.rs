use super::*;
use crate::prom::{Labels, METRIC_NAME, Sample};
use crate::window::{IncidentState, ModelRole, Score, Window};
use arrow_array::RecordBatch;
use arrow_array::cast::AsArray;
use arrow_array::types::Float64Type;
use arrow_ipc::reader::StreamReader;
use http_body_util::BodyExt;
use prometheus_client::metrics::gauge::Gauge;

/// Two groups with these numbers of samples; the rows of the first have scores, one of them without an incident state.
struct FakeSource([usize; 2]);

impl FakeSource {
    fn parts(&self, query: &TableQuery) -> Vec<GroupPart> {
        let part = |(number, n_samples): (usize, &usize)| {
            let group = Labels::new([("instance", ["a", "b"][number])]).expect("valid");
            let mut window = Window::new(i64::MAX / 2);
            let feature = Labels::new([(METRIC_NAME, "rx"), ("device", "eth0")]).expect("valid");
            let column = window.get_or_add_column(&feature).expect("few");
            for timestamp_ms in 0..*n_samples as i64 {
                let value = timestamp_ms as f64 * 0.1;
                window.push(column, Sample { timestamp_ms, value });
                let state = IncidentState { threshold: 0.5, is_incident: timestamp_ms == 2 };
                let incident_state = (timestamp_ms > 0).then_some(state);
                if number == 0 {
                    let score = Score { decision: -value, score: value, incident_state };
                    window.set_score(ModelRole::Champion, timestamp_ms, score);
                }
            }
            GroupPart::new(query, "net", &group, &window)
        };
        self.0.iter().enumerate().rev().map(part).collect()
    }
}

impl GroupSource for FakeSource {
    async fn groups(&self, query: Arc<TableQuery>, _: &WorkPermit) -> Result<Vec<GroupPart>, server::Error> {
        Ok(self.parts(&query))
    }
}

fn server(max_samples: usize) -> NotebookServer {
    let metrics = Metrics::new(&mut Registry::default());
    NotebookServer { max_samples, ..NotebookServer::new(WorkPermits::new(Gauge::default()), metrics) }
}

async fn body(response: Response) -> Vec<u8> {
    response.into_body().collect().await.expect("a complete body").to_bytes().to_vec()
}

async fn batches(table: Table, query: &str) -> Vec<RecordBatch> {
    let response = server(100).handle(table, query, &HeaderMap::new(), &FakeSource([3, 2])).await;
    assert_eq!(response.status(), StatusCode::OK);
    let body = body(response).await;
    let reader = StreamReader::try_new(&body[..], None).expect("a stream");
    reader.map(|batch| batch.expect("a batch")).collect()
}

fn floats(batch: &RecordBatch, name: &str) -> Vec<Option<f64>> {
    let column = batch.column_by_name(name).expect("a column").as_primitive::<Float64Type>();
    column.iter().collect()
}

#[tokio::test]
async fn a_score_without_an_incident_state_has_nulls() {
    let [batch] = batches(Table::Scores, "").await.try_into().expect("one batch");
    assert_eq!(floats(&batch, "anomaly_score"), [Some(0.0), Some(0.1), Some(0.2)]);
    assert_eq!(floats(&batch, "decision"), [Some(-0.0), Some(-0.1), Some(-0.2)]);
    assert_eq!(floats(&batch, "threshold"), [None, Some(0.5), Some(0.5)]);
    let incident = batch.column_by_name("incident").expect("a column").as_boolean();
    assert_eq!(incident.iter().collect::<Vec<_>>(), [None, Some(false), Some(true)]);
}

#[tokio::test]
async fn rows_stand_by_group_and_time_and_in_the_range() {
    let [batch] = batches(Table::Window, "").await.try_into().expect("one batch");
    assert_eq!(floats(&batch, "value"), [0.0, 0.1, 0.2, 0.0, 0.1].map(Some));
    let [batch] = batches(Table::Window, "start=0.001&end=0.001").await.try_into().expect("one batch");
    assert_eq!(floats(&batch, "value"), [0.1; 2].map(Some));
    assert!(batches(Table::Window, "start=9").await.is_empty());
}

#[tokio::test]
async fn a_table_above_the_limit_is_rejected_before_it_begins() {
    for (table, n_samples) in [(Table::Window, 5), (Table::Scores, 12)] {
        let handle =
            async |limit| server(limit).handle(table, "", &HeaderMap::new(), &FakeSource([3, 2])).await;
        assert_eq!(handle(n_samples).await.status(), StatusCode::OK);
        let response = handle(n_samples - 1).await;
        assert_eq!(response.status(), StatusCode::BAD_REQUEST);
        let text = String::from_utf8(body(response).await).expect("text");
        assert_eq!(text.trim(), format!("the query exceeds the limit of {} samples", n_samples - 1));
    }
}

#[tokio::test]
async fn nothing_is_sent_to_a_client_that_disconnected() {
    let query = TableQuery::parse(Table::Window, "", |_| Ok(())).expect("valid");
    let plan = TablePlan::new(Table::Window, FakeSource([100_000, 1]).parts(&query));
    for format in [Format::Arrow, Format::Parquet] {
        let (writer, body) = Body::channel();
        drop(body);
        assert!(send_table(&plan, format, writer).await.is_err(), "{format:?}");
    }
}
