//! Shards: the targets in parts, by a hash of `job` and `instance`.
//!
//! The hash is that of Prometheus' relabeling (`action: hashmod` over `source_labels: [job, instance]`), so that a sender can
//! divide its samples exactly as their receivers expect it. A hash that moves fewer targets when the number of shards
//! changes was the alternative; no sender with relabeling has one.

use super::Labels;
use md5::{Digest, Md5};
use std::fmt;
use std::str::FromStr;

/// Labels whose values choose the shard.
pub const SHARD_LABELS: [&str; 2] = ["job", "instance"];

/// Most shards, against typing errors.
const MAX_SHARDS: u64 = 10_000;

/// The part `index` of `count`, written `INDEX/COUNT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    index: u64,
    count: u64,
}

/// A text that is no [`Shard`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidShard {
    /// It has another form.
    #[error("{0:?} is not INDEX/COUNT, as in 0/3")]
    Form(String),
    /// There are too few shards, or too many.
    #[error("{0} shards: the count must be in 1 to {MAX_SHARDS}")]
    Count(u64),
    /// The index is beyond the last shard.
    #[error("index {index} of {count} shards: it must be in 0 to {}", count - 1)]
    Index {
        /// The index.
        index: u64,
        /// The number of shards.
        count: u64,
    },
}

impl Shard {
    /// Number of the shard, from 0.
    pub fn index(self) -> u64 {
        self.index
    }

    /// True if the target of a series, or of a group with the labels of a target, lies in this shard.
    pub fn contains(self, labels: &Labels) -> bool {
        hashmod(&SHARD_LABELS.map(|name| labels.get(name)).join(";"), self.count) == self.index
    }
}

/// The number that Prometheus' `hashmod` has for a text: the last eight bytes of its MD5 digest, big endian, modulo `modulus`,
/// which is above 0.
///
/// Source: Prometheus, `model/relabel`, `HashMod`.
pub fn hashmod(text: &str, modulus: u64) -> u64 {
    let digest: [u8; 16] = Md5::digest(text).into();
    u64::from_be_bytes(*digest.last_chunk().expect("16 bytes")) % modulus
}

impl FromStr for Shard {
    type Err = InvalidShard;

    fn from_str(text: &str) -> Result<Self, InvalidShard> {
        let numbers =
            text.split_once('/').and_then(|(index, count)| Some((index.parse().ok()?, count.parse().ok()?)));
        let (index, count) = numbers.ok_or_else(|| InvalidShard::Form(text.into()))?;
        match (1..=MAX_SHARDS).contains(&count) {
            false => Err(InvalidShard::Count(count)),
            true if index >= count => Err(InvalidShard::Index { index, count }),
            true => Ok(Self { index, count }),
        }
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_lies_in_the_shard_that_prometheus_computes() {
        // tests/shards.rs compares others with the labels that Prometheus writes.
        for (job, instance, of_three) in [
            ("node", "web0", 2),
            ("node", "web1", 0),
            ("node", "10.0.0.1:9100", 1),
            ("", "", 0),
            ("node", "", 1),
            ("täglich", "host;1", 0),
        ] {
            let labels =
                Labels::new([("__name__", "up"), ("job", job), ("instance", instance)]).expect("valid");
            let shard = |index| Shard { index, count: 3 };
            let holding: Vec<u64> = (0..3).filter(|index| shard(*index).contains(&labels)).collect();
            assert_eq!(holding, [of_three], "{job} {instance}");
            assert!(Shard { index: 0, count: 1 }.contains(&labels));
        }
    }

    #[test]
    fn a_shard_is_an_index_below_a_count() {
        for text in ["0/1", "2/3", "9999/10000"] {
            assert_eq!(text.parse::<Shard>().expect("valid").to_string(), text);
        }
        for (text, message) in [
            ("", r#""" is not INDEX/COUNT, as in 0/3"#),
            ("1", r#""1" is not INDEX/COUNT, as in 0/3"#),
            ("-1/3", r#""-1/3" is not INDEX/COUNT, as in 0/3"#),
            ("1/3/4", r#""1/3/4" is not INDEX/COUNT, as in 0/3"#),
            ("0/0", "0 shards: the count must be in 1 to 10000"),
            ("0/10001", "10001 shards: the count must be in 1 to 10000"),
            ("3/3", "index 3 of 3 shards: it must be in 0 to 2"),
        ] {
            assert_eq!(text.parse::<Shard>().expect_err("invalid").to_string(), message);
        }
    }
}
