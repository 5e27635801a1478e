//! Periods as tags of the experiment, one each. Unlike a registered model, the experiment exists before the first model.

use super::super::periods::Period;
use super::{Error, Mlflow, text_field};
use serde_json::{Value, json};
use tokio::sync::Mutex;

/// Prefix of the tags; a number follows.
const PERIOD: &str = "promforest.period.";

/// Held from the read to the last write of a change: another one would give its period the same number.
static UPDATE: Mutex<()> = Mutex::const_new(());

impl Mlflow {
    /// See [`Registry::periods`](crate::models::registry::Registry::periods).
    ///
    /// # Errors
    /// [`Error`].
    pub async fn periods(&self) -> Result<Vec<Period>, Error> {
        let query = [("experiment_name", self.experiment.as_str())];
        let response = match self.get("experiments/get-by-name", &query).await {
            Err(error) if error.has_code("RESOURCE_DOES_NOT_EXIST") => return Ok(Vec::new()),
            response => response?,
        };
        let tags = response["experiment"]["tags"].as_array().into_iter().flatten();
        let mut numbered: Vec<(usize, Period)> = tags
            .filter_map(|tag| Some((text_field(tag, "key").strip_prefix(PERIOD)?.parse().ok()?, tag)))
            .map(|(number, tag)| Ok((number, self.parse_period(tag)?)))
            .collect::<Result<_, Error>>()?;
        numbered.sort_by_key(|(number, _)| *number);
        Ok(numbered.into_iter().map(|(_, period)| period).collect())
    }

    /// Changes the periods, and writes those that differ. Positions are the numbers of the tags.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn update_periods<T>(&self, update: impl FnOnce(&mut Vec<Period>) -> T) -> Result<T, Error> {
        let _update = UPDATE.lock().await;
        let before = self.periods().await?;
        let mut periods = before.clone();
        let result = update(&mut periods);
        let changed =
            periods.iter().enumerate().filter(|(number, period)| before.get(*number) != Some(*period));
        let changed: Vec<(usize, &Period)> = changed.collect();
        if !changed.is_empty() {
            let id = self.get_or_create_experiment().await?;
            for (number, period) in changed {
                let value = serde_json::to_string(period).expect("numbers and text");
                let body = json!({"experiment_id": id, "key": format!("{PERIOD}{number}"), "value": value});
                self.post("experiments/set-experiment-tag", body).await?;
            }
        }
        Ok(result)
    }

    fn parse_period(&self, tag: &Value) -> Result<Period, Error> {
        let period: Option<Period> = serde_json::from_str(&text_field(tag, "value")).ok();
        let valid = period.filter(|period| period.check().is_ok());
        valid.ok_or_else(|| self.missing_field("experiments/get-by-name", "a valid period"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;
    use crate::http::config::ClientConfig;
    use crate::models::registry::periods::{self, PeriodKind};
    use std::collections::BTreeMap;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    /// Reads a request whose body, if any, is JSON, and returns its first line and the body.
    async fn read_request(stream: &mut TcpStream) -> (String, Value) {
        let mut bytes = Vec::new();
        loop {
            assert!(stream.read_buf(&mut bytes).await.expect("a request") > 0, "a whole request");
            let text = String::from_utf8_lossy(&bytes);
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            let line = head.lines().next().unwrap_or_default().to_string();
            match serde_json::from_str(body) {
                _ if line.starts_with("GET") => return (line, Value::Null),
                Ok(body) => return (line, body),
                Err(_) => {}
            }
        }
    }

    /// Answers requests as an experiment with tags.
    async fn serve(listener: TcpListener) {
        let mut tags = BTreeMap::<String, Value>::new();
        loop {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let (_, body) = read_request(&mut stream).await;
            if let Some(key) = body["key"].as_str() {
                tags.insert(key.into(), body.clone());
            }
            let tags: Vec<&Value> = tags.values().collect();
            let answer = json!({"experiment": {"experiment_id": "1", "tags": tags}}).to_string();
            let head = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}", answer.len());
            stream.write_all(format!("{head}\r\n\r\n{answer}").as_bytes()).await.expect("sent");
        }
    }

    #[tokio::test]
    async fn simultaneous_changes_keep_both_periods() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let server = tokio::spawn(serve(listener));
        let config = Config {
            tracking_uri: url.parse().expect("a URL"),
            experiment: "promforest".into(),
            model: None,
            client: ClientConfig::default(),
        };
        let mlflow = Mlflow::new(&config).expect("a client");
        let add = |from_ms| {
            let groups = "{}".parse().expect("a selector");
            let (kind, to_ms) = (PeriodKind::Real, Some(from_ms));
            let period = Period { kind, detector: None, groups, from_ms, to_ms, comment: String::new() };
            mlflow.update_periods(move |all| periods::record(all, period))
        };
        let results = tokio::join!(add(1), add(2), add(3));
        assert!(results.0.is_ok() && results.1.is_ok() && results.2.is_ok());
        let starts = mlflow.periods().await.expect("valid").into_iter().map(|period| period.from_ms);
        assert_eq!(starts.collect::<Vec<_>>(), [1, 2, 3]);
        server.abort();
    }
}
