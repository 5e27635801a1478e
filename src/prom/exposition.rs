//! Prometheus' text format, as far as the names of series: an exporter's page becomes a list of labels.

use super::labels;
use super::{Labels, METRIC_NAME};

/// Reasons to reject a page.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The text is not in the format.
    #[error(transparent)]
    Syntax(std::io::Error),
    /// The labels of a series are invalid.
    #[error(transparent)]
    Labels(#[from] labels::InvalidLabels),
}

/// Every series of a page, with the target's labels added. A label of the page that the target has too gets the
/// prefix `exported_`, as in Prometheus.
///
/// # Errors
/// [`Error`].
pub fn parse_series(page: &str, target: &[(String, String)]) -> Result<Vec<Labels>, Error> {
    use prometheus_parse::{Scrape, Value};
    let scrape = Scrape::parse(page.lines().map(|line| Ok(line.to_owned()))).map_err(Error::Syntax)?;
    let mut all = Vec::new();
    for sample in &scrape.samples {
        // The parser returns a histogram or summary as one sample; each bucket is a series.
        let parts: Vec<Option<(&str, String)>> = match &sample.value {
            Value::Histogram(buckets) => {
                buckets.iter().map(|b| Some(("le", format_float(b.less_than)))).collect()
            }
            Value::Summary(quantiles) => {
                quantiles.iter().map(|q| Some(("quantile", format_float(q.quantile)))).collect()
            }
            _ => vec![None],
        };
        for part in parts {
            let bucket = part.map(|(name, value)| (name.to_string(), value));
            let name = match &bucket {
                Some((name, _)) if name == "le" => format!("{}_bucket", sample.metric),
                _ => sample.metric.clone(),
            };
            let own = sample.labels.iter().map(|(name, value)| {
                let is_taken = target.iter().any(|(other, _)| other == name);
                (if is_taken { format!("exported_{name}") } else { name.clone() }, value.clone())
            });
            let target = target.iter().cloned();
            all.push(Labels::new(
                [(METRIC_NAME.to_string(), name)].into_iter().chain(own).chain(target).chain(bucket),
            )?);
        }
    }
    Ok(all)
}

/// The value of `le` and `quantile` as exporters write it.
fn format_float(value: f64) -> String {
    if value == f64::INFINITY { "+Inf".into() } else { value.to_string() }
}
