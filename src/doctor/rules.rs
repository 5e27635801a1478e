//! The alert rules that this program ships, and those that a server has loaded.

use super::known::Known;
use crate::prom::duration;
use crate::yaml::{self, Node, Section};
use serde::Deserialize;
use std::path::Path;
use std::time::Duration;

/// The rules as they are shipped.
const SHIPPED: &str = include_str!("../../deploy/prometheus/promforest.rules.yml");

/// An alert rule.
#[derive(Clone, Debug, PartialEq)]
pub struct AlertRule {
    /// Name of the alert.
    pub name: String,
    /// The expression without comments and without white space, which servers format.
    pub expression: String,
    /// `for`.
    pub duration: Duration,
}

impl AlertRule {
    fn new(name: String, expression: &str, duration: Duration) -> Self {
        let code = expression.lines().map(|line| line.split(" #").next().unwrap_or_default());
        let compact = code.flat_map(str::chars).filter(|c| !c.is_whitespace()).collect::<String>();
        Self { name, expression: compact.replace('\'', "\"").replace(",)", ")"), duration }
    }

    fn read(mut section: Section<'_, '_>) -> Option<Self> {
        let name = section.get("alert")?.text()?;
        let expression = section.get("expr")?.text()?;
        let wait = section.get("for").and_then(|node| node.parse(duration::parse));
        Some(Self::new(name, &expression, wait.unwrap_or_default()))
    }
}

/// The alert rules that this program ships.
pub fn shipped() -> Vec<AlertRule> {
    let read = |mut top: Section<'_, '_>| {
        let groups = list(&mut top, "groups").filter_map(Node::section);
        let rules = groups.flat_map(|mut group| list(&mut group, "rules").collect::<Vec<_>>());
        rules.filter_map(Node::section).filter_map(AlertRule::read).collect()
    };
    yaml::read(SHIPPED, Path::new(""), read).unwrap_or_default()
}

fn list<'n, 'y>(
    section: &mut Section<'n, 'y>,
    key: &'static str,
) -> impl Iterator<Item = Node<'n, 'y>> + use<'n, 'y> {
    section.get(key).and_then(|node| node.items()).unwrap_or_default().into_iter()
}

#[derive(Deserialize)]
struct RuleGroups {
    groups: Vec<RuleGroup>,
}

#[derive(Deserialize)]
struct RuleGroup {
    rules: Vec<LoadedRule>,
}

#[derive(Deserialize)]
struct LoadedRule {
    #[serde(default)]
    name: String,
    #[serde(default)]
    query: String,
    #[serde(default)]
    duration: f64,
}

/// The alert rules of an answer of `/api/v1/rules?type=alert`.
pub fn parse_loaded(data: serde_json::Value) -> Known<Vec<AlertRule>> {
    let groups: RuleGroups = serde_json::from_value(data).map_err(|error| error.to_string())?;
    let rules = groups.groups.into_iter().flat_map(|group| group.rules);
    let wait = |seconds: f64| Duration::try_from_secs_f64(seconds).unwrap_or_default();
    Ok(rules.map(|rule| AlertRule::new(rule.name, &rule.query, wait(rule.duration))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_rules_can_be_read() {
        let rules = shipped();
        assert!(rules.len() >= 5, "{rules:?}");
        assert!(rules.iter().any(|rule| rule.name == "AnomalyIncident" && !rule.expression.is_empty()));
        assert!(rules.iter().all(|rule| !rule.expression.contains([' ', '\n', '#'])), "{rules:?}");
    }

    #[test]
    fn a_loaded_rule_equals_the_one_of_its_file() {
        let loaded = serde_json::json!({"groups": [{"rules": [
            {"name": "A", "query": "up{job=\"a\"} == 1 or (x > 2)", "duration": 60},
        ]}]});
        let of_file =
            AlertRule::new("A".into(), "up{job='a'} == 1 # why\nor\n  (x > 2)\n", Duration::from_secs(60));
        assert_eq!(parse_loaded(loaded), Ok(vec![of_file]));
        assert!(parse_loaded(serde_json::json!({"groups": 1})).is_err());
    }
}
