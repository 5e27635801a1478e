//! Reads a slice by PromQL's query API: an instant query of a range selector, `{...}[DURATION]`, returns raw samples.
//!
//! Range selectors leave staleness markers out, so that a series that ended looks like one with a gap. Rows and rates are
//! the same, as neither uses markers. Only the time at which a feature is known to be gone is later, by the grace period.
//! An answer is one document that is held as a whole; a slice whose answer is too large is halved.

use super::collector::ResponseCollector;
use super::error::Error;
use super::request::{Endpoint, RESPONSE_LIMIT, Slice, content_type, format_time};
use crate::prom::Sample;
use serde::de::{self, Deserialize, Deserializer, IgnoredAny, SeqAccess, Visitor};
use std::collections::BTreeMap;
use std::fmt;

/// Content types of the response: VictoriaMetrics answers a range selector with that of its export.
const CONTENT_TYPES: [&str; 2] = ["application/json", "application/stream+json"];

/// The answer to a successful query.
#[derive(serde::Deserialize)]
struct Answer {
    data: Data,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Data {
    result_type: String,
    result: Vec<Series>,
}

#[derive(serde::Deserialize)]
struct Series {
    metric: BTreeMap<String, String>,
    #[serde(default)]
    values: Vec<QuerySample>,
    /// Samples of native histograms.
    #[serde(default)]
    histograms: Vec<IgnoredAny>,
}

/// A pair of a time in seconds and a value as text.
struct QuerySample(Sample);

impl<'de> Deserialize<'de> for QuerySample {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_tuple(2, SampleVisitor)
    }
}

struct SampleVisitor;

impl<'de> Visitor<'de> for SampleVisitor {
    type Value = QuerySample;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a time and a value")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut pair: A) -> Result<QuerySample, A::Error> {
        let seconds: f64 = pair.next_element()?.ok_or_else(|| de::Error::invalid_length(0, &self))?;
        let Value(value) = pair.next_element()?.ok_or_else(|| de::Error::invalid_length(1, &self))?;
        if pair.next_element::<IgnoredAny>()?.is_some() {
            return Err(de::Error::invalid_length(3, &self));
        }
        // A time has three decimals, which rounding restores.
        Ok(QuerySample(Sample { timestamp_ms: (seconds * 1000.0).round() as i64, value }))
    }
}

/// A value as text: `"0.1"`, `"+Inf"`, `"NaN"`.
struct Value(f64);

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(ValueVisitor)
    }
}

struct ValueVisitor;

impl Visitor<'_> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number as text")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Value, E> {
        text.parse().map(Value).map_err(|_| E::invalid_value(de::Unexpected::Str(text), &self))
    }
}

/// Reads a slice.
pub async fn receive(
    endpoint: &Endpoint<'_>,
    slice: &Slice<'_>,
    collector: &mut ResponseCollector,
) -> Result<(), Error> {
    let form = [
        // Prometheus 2 includes both ends of the range, others only the later one; the collector clips.
        ("query", format!("{}[{}ms]", slice.promql(), slice.length_ms())),
        ("time", format_time(slice.end_ms)),
        // Thanos answers with an error instead of a part.
        ("partial_response", "false".to_string()),
    ];
    let stream = endpoint.post_form("/api/v1/query", &form).await?;
    let stream = endpoint.check_status(stream).await?;
    if !CONTENT_TYPES.iter().any(|expected| content_type(&stream).starts_with(expected)) {
        return Err(endpoint.content_type_error(&stream, CONTENT_TYPES[0]));
    }
    let response = stream.collect(RESPONSE_LIMIT).await?;
    push_answer(&response.body, collector)
}

fn push_answer(body: &[u8], collector: &mut ResponseCollector) -> Result<(), Error> {
    let Answer { data: Data { result_type, result } } = serde_json::from_slice(body)?;
    if result_type != "matrix" {
        return Err(Error::ResultType { result_type });
    }
    for Series { metric, values, histograms } in result {
        collector.count_histograms(histograms.len());
        collector.push_samples(metric, values.into_iter().map(|QuerySample(sample)| sample))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collect(body: &str) -> Result<Vec<(String, Vec<Sample>)>, Error> {
        let mut collector = ResponseCollector::new(1_700_000_000_001, 1_700_000_060_000);
        push_answer(body.as_bytes(), &mut collector)?;
        Ok(collector.finish().into_iter().map(|(labels, samples)| (labels.to_string(), samples)).collect())
    }

    #[test]
    fn times_and_values_are_exact_and_the_start_of_a_closed_range_is_clipped() {
        let body = r#"{"status":"success","data":{"resultType":"matrix","result":[
            {"metric":{"__name__":"a","job":"n"},"values":[[1700000000,"7"],[1700000000.001,"0.1"],
             [1700000015.123,"9007199254740993"],[1700000029.999,"+Inf"],[1700000060,"1e-300"]]},
            {"metric":{"__name__":"h"},"histograms":[[1700000001,{"count":"1"}]]}]}}"#;
        let sample = |timestamp_ms, value| Sample { timestamp_ms, value };
        let expected = vec![
            sample(1_700_000_000_001, 0.1),
            sample(1_700_000_015_123, 9_007_199_254_740_992.0),
            sample(1_700_000_029_999, f64::INFINITY),
            sample(1_700_000_060_000, 1e-300),
        ];
        assert_eq!(collect(body).expect("valid"), [(r#"a{job="n"}"#.to_string(), expected)]);
    }

    #[test]
    fn an_error_names_what_is_wrong() {
        let series = |values: &str| {
            format!(
                r#"{{"data":{{"resultType":"matrix","result":[{{"metric":{{}},"values":[{values}]}}]}}}}"#
            )
        };
        for (body, expected) in [
            (series(r#"[1,"one"]"#), "invalid value: string \"one\", expected a number as text"),
            (series("[1,2]"), "invalid type: integer `2`, expected a number as text"),
            (series("[1]"), "invalid length 1, expected a time and a value"),
            (series(r#"[1,"2",3]"#), "invalid length 3"),
            (r#"{"data":{"resultType":"vector","result":[]}}"#.into(), "a vector, not a matrix"),
            (r#"{"status":"success"}"#.into(), "missing field `data`"),
            ("<html>".into(), "expected value at line 1 column 1"),
        ] {
            let text = crate::error::chain(&collect(&body).expect_err(expected));
            assert!(text.contains(expected) && text.starts_with("history: "), "{text}");
        }
    }
}
