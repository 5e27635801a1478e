//! Periods as tags of the experiment, one each. Unlike a registered model, the experiment exists before the first model.

use super::super::periods::Period;
use super::{Error, Mlflow, text_field};
use serde_json::{Value, json};

/// Prefix of the tags; a number follows.
const PERIOD: &str = "promforest.period.";

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
