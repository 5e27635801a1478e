//! Prometheus' relabeling, to see which series `write_relabel_configs` drop or rename.

use super::known::Known;
use crate::prom::Labels;
use crate::prom::shard::hashmod;
use crate::yaml::{Node, Section};
use regex::{Regex, RegexBuilder};
use std::collections::BTreeMap;
use std::num::NonZeroU64;

/// Most bytes of a compiled pattern.
const SIZE_LIMIT: usize = 1 << 20;

/// One item of `write_relabel_configs`. Its pattern keeps the groups, which a replacement names; those of selectors have
/// none.
#[derive(Clone, Debug)]
pub struct RelabelRule {
    source_labels: Vec<String>,
    separator: String,
    regex: Regex,
    target_label: String,
    replacement: String,
    modulus: NonZeroU64,
    action: Action,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Action {
    Replace,
    Keep,
    Drop,
    KeepEqual,
    DropEqual,
    HashMod,
    LabelMap,
    LabelDrop,
    LabelKeep,
    Lowercase,
    Uppercase,
}

impl RelabelRule {
    /// Reads one item.
    ///
    /// # Errors
    /// A text that names an action or a pattern that is not known here.
    pub fn read(mut section: Section<'_, '_>) -> Known<Self> {
        let mut text = |key| section.get(key).and_then(|node| node.text());
        let action = text("action");
        let pattern = text("regex").unwrap_or_else(|| "(.*)".into());
        let (separator, target_label) = (text("separator"), text("target_label"));
        let replacement = text("replacement");
        let modulus = text("modulus").and_then(|text| text.parse().ok());
        let source = section.get("source_labels").and_then(|list| list.items()).unwrap_or_default();
        let anchored = RegexBuilder::new(&format!("^(?s:{pattern})$")).size_limit(SIZE_LIMIT).build();
        let regex = anchored
            .map_err(|_| format!("the pattern {pattern:?} of write_relabel_configs is not evaluated"))?;
        Ok(Self {
            source_labels: source.iter().filter_map(Node::text).collect(),
            separator: separator.unwrap_or_else(|| ";".into()),
            regex,
            target_label: target_label.unwrap_or_default(),
            replacement: replacement.unwrap_or_else(|| "$1".into()),
            modulus: modulus.unwrap_or(NonZeroU64::MIN),
            action: Action::parse(action.as_deref().unwrap_or("replace"))?,
        })
    }

    /// True if the rule divides series among several receivers.
    pub fn is_hashmod(&self) -> bool {
        self.action == Action::HashMod
    }

    /// Applies the rule. False if the series is dropped.
    fn apply(&self, labels: &mut BTreeMap<String, String>) -> bool {
        let of = |name: &str| labels.get(name).map_or("", String::as_str);
        let values: Vec<&str> = self.source_labels.iter().map(|name| of(name)).collect();
        let value = values.join(&self.separator);
        match self.action {
            Action::Keep => return self.regex.is_match(&value),
            Action::Drop => return !self.regex.is_match(&value),
            Action::KeepEqual => return of(&self.target_label) == value,
            Action::DropEqual => return of(&self.target_label) != value,
            Action::HashMod => {
                let shard = hashmod(&value, self.modulus.get()).to_string();
                labels.insert(self.target_label.clone(), shard);
            }
            Action::Replace => self.replace(&value, labels),
            Action::LabelDrop => labels.retain(|name, _| !self.regex.is_match(name)),
            Action::LabelKeep => labels.retain(|name, _| self.regex.is_match(name)),
            Action::LabelMap => self.map_names(labels),
            Action::Lowercase => drop(labels.insert(self.target_label.clone(), value.to_lowercase())),
            Action::Uppercase => drop(labels.insert(self.target_label.clone(), value.to_uppercase())),
        }
        true
    }

    fn replace(&self, value: &str, labels: &mut BTreeMap<String, String>) {
        let Some(captures) = self.regex.captures(value) else { return };
        let expand = |template: &str| {
            let mut text = String::new();
            captures.expand(template, &mut text);
            text
        };
        labels.insert(expand(&self.target_label), expand(&self.replacement));
    }

    fn map_names(&self, labels: &mut BTreeMap<String, String>) {
        let mapped: Vec<(String, String)> = labels
            .iter()
            .filter_map(|(name, value)| {
                let mut target = String::new();
                self.regex.captures(name)?.expand(&self.replacement, &mut target);
                Some((target, value.clone()))
            })
            .collect();
        labels.extend(mapped);
    }
}

impl Action {
    fn parse(text: &str) -> Known<Self> {
        Ok(match text {
            "replace" => Self::Replace,
            "keep" => Self::Keep,
            "drop" => Self::Drop,
            "keepequal" => Self::KeepEqual,
            "dropequal" => Self::DropEqual,
            "hashmod" => Self::HashMod,
            "labelmap" => Self::LabelMap,
            "labeldrop" => Self::LabelDrop,
            "labelkeep" => Self::LabelKeep,
            "lowercase" => Self::Lowercase,
            "uppercase" => Self::Uppercase,
            other => return Err(format!("the action {other} of write_relabel_configs is not evaluated")),
        })
    }
}

/// The labels of a series as remote write sends them; `None` if it is dropped.
pub fn relabel(
    rules: &[RelabelRule],
    series: &Labels,
    external_labels: &BTreeMap<String, String>,
) -> Option<Labels> {
    let mut labels = external_labels.clone();
    labels.extend(series.iter().map(|(name, value)| (name.to_string(), value.to_string())));
    rules.iter().all(|rule| rule.apply(&mut labels)).then(|| Labels::new(labels).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yaml;
    use std::path::Path;

    fn sent(rules: &str) -> Option<String> {
        let rules = yaml::read(&format!("rules: {rules}"), Path::new(""), |mut top| {
            let items = top.get("rules").and_then(|list| list.items()).unwrap_or_default();
            items.into_iter().filter_map(Node::section).map(RelabelRule::read).collect::<Known<Vec<_>>>()
        });
        let rules = rules.expect("YAML").expect("known actions");
        let series = Labels::new([("__name__", "rx"), ("device", "eth0"), ("job", "node")]).expect("valid");
        let external = BTreeMap::from([("cluster".to_string(), "a".to_string())]);
        relabel(&rules, &series, &external).map(|labels| labels.to_string())
    }

    #[test]
    fn series_are_relabeled_as_by_prometheus() {
        let whole = r#"rx{cluster="a", device="eth0", job="node"}"#;
        for (rules, expected) in [
            ("[]", Some(whole)),
            ("[{source_labels: [__name__], regex: rx, action: keep}]", Some(whole)),
            ("[{source_labels: [__name__], regex: r, action: keep}]", None),
            ("[{source_labels: [job, device], regex: 'node;eth.*', action: drop}]", None),
            ("[{source_labels: [cluster], regex: a, action: drop}]", None),
            ("[{regex: cluster|device, action: labeldrop}]", Some(r#"rx{job="node"}"#)),
            ("[{regex: __name__|job, action: labelkeep}]", Some(r#"rx{job="node"}"#)),
            (
                "[{source_labels: [device], regex: 'eth(.*)', target_label: device, replacement: 'e${1}x'}]",
                Some(r#"rx{cluster="a", device="e0x", job="node"}"#),
            ),
            (
                "[{source_labels: [job, instance], modulus: 3, target_label: shard, action: hashmod}]",
                Some(r#"rx{cluster="a", device="eth0", job="node", shard="1"}"#),
            ),
            (
                "[{source_labels: [job], target_label: job, action: uppercase}]",
                Some(r#"rx{cluster="a", device="eth0", job="NODE"}"#),
            ),
        ] {
            assert_eq!(sent(rules).as_deref(), expected, "{rules}");
        }
    }

    #[test]
    fn an_unknown_action_is_named() {
        let error = Action::parse("shuffle").expect_err("unknown");
        assert_eq!(error, "the action shuffle of write_relabel_configs is not evaluated");
    }
}
