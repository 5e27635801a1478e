//! Whether the groups of detectors lie in one shard each.

use super::Detector;
use crate::prom::shard::SHARD_LABELS;
use std::sync::Arc;

/// The label of a job's incident that names the shard.
pub const SHARD_LABEL: &str = "promforest_shard";

/// The labels of a detector's groups do not suit shards.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum DividedGroups {
    /// A group may have targets in several shards.
    #[error(
        "detector {detector}: `by` is [{}] and lacks {missing}: with --shard, which divides targets by job and instance, a \
         group would lie in several shards", by.join(", ")
    )]
    Missing {
        /// Name of the detector.
        detector: String,
        /// Its labels of groups.
        by: Vec<String>,
        /// The label that is missing.
        missing: &'static str,
    },
    /// The output series would have the label twice.
    #[error("detector {0}: `by` has the label {SHARD_LABEL}, which --shard writes")]
    Reserved(String),
}

/// Checks that every group of these detectors lies in one shard.
///
/// # Errors
/// [`DividedGroups`] for the first detector of which that is not so.
pub fn check_sharding(detectors: &[Arc<Detector>]) -> Result<(), DividedGroups> {
    for Detector { name, by, .. } in detectors.iter().map(AsRef::as_ref) {
        let has = |label: &str| by.iter().any(|name| name == label);
        if let Some(missing) = SHARD_LABELS.into_iter().find(|label| !has(label)) {
            return Err(DividedGroups::Missing { detector: name.clone(), by: by.clone(), missing });
        }
        if has(SHARD_LABEL) {
            return Err(DividedGroups::Reserved(name.clone()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_group_lies_in_one_shard_if_its_labels_have_the_target() {
        let check = |by: &[&str]| {
            let detector = Detector::node_network(Duration::from_secs(15));
            let by = by.iter().map(ToString::to_string).collect();
            check_sharding(&[Arc::new(Detector { by, ..detector })]).map_err(|error| error.to_string())
        };
        assert_eq!(check(&["job", "instance"]), Ok(()));
        assert_eq!(check(&["instance", "device", "job"]), Ok(()));
        assert_eq!(
            check(&["job", "rack"]).expect_err("divided"),
            "detector node_network: `by` is [job, rack] and lacks instance: with --shard, which divides targets by job and \
             instance, a group would lie in several shards"
        );
        assert_eq!(
            check(&["job", "instance", "promforest_shard"]).expect_err("reserved"),
            "detector node_network: `by` has the label promforest_shard, which --shard writes"
        );
    }
}
