//! The aliases of a model, and their pins.
//!
//! Trainings do not replace a version that is pinned: it serves until a person promotes another one. A rollback pins,
//! by any program that moves an alias. The registry therefore keeps the newest version that each alias pointed to:
//! trainings only add newer versions, so an alias that points to an older one was moved back by a person.

use super::CHALLENGER;
use std::collections::BTreeMap;

/// Aliases of every model.
pub type Aliases = BTreeMap<String, ModelAliases>;

/// The aliases of one model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelAliases {
    /// The version that each alias points to.
    pub versions: BTreeMap<String, u64>,
    /// For each alias, the number below which its version is pinned: the newest version that it pointed to, or for an
    /// explicit pin the number after its version.
    pub pinned_below: BTreeMap<String, u64>,
}

impl ModelAliases {
    /// The version that an alias points to.
    pub fn version(&self, alias: &str) -> Option<u64> {
        self.versions.get(alias).copied()
    }

    /// The version of an alias, if it is pinned.
    pub fn pinned_version(&self, alias: &str) -> Option<u64> {
        self.version(alias).filter(|version| self.pin_limit(alias) > *version)
    }

    /// The version of an alias, if it is newer than all that the registry recorded for the alias: another program moved
    /// the alias.
    pub fn unrecorded_version(&self, alias: &str) -> Option<u64> {
        self.version(alias).filter(|version| self.pin_limit(alias) < *version)
    }

    /// [`pinned_below`](Self::pinned_below) after a move of the alias to a version: an older version than the present one
    /// is pinned, any other is not.
    pub fn pinned_below_after_move(&self, alias: &str, version: u64) -> u64 {
        match self.version(alias) {
            Some(current) if version < current => self.pin_limit(alias).max(current),
            _ => version,
        }
    }

    /// True if the challenger serves under this alias.
    pub fn has_promoted_challenger(&self, alias: &str) -> bool {
        let challenger = self.version(CHALLENGER);
        alias != CHALLENGER && challenger.is_some() && challenger == self.version(alias)
    }

    fn pin_limit(&self, alias: &str) -> u64 {
        self.pinned_below.get(alias).copied().unwrap_or(0)
    }
}

/// The version of an alias for a group. A model under the detector's own name serves every group and takes precedence
/// over the group's model.
pub fn version_for_group(
    aliases: &Aliases,
    model: &str,
    group_model: &str,
    alias: &str,
) -> Option<(String, u64)> {
    [model, group_model]
        .into_iter()
        .find_map(|name| Some((name.to_string(), aliases.get(name)?.version(alias)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALIAS: &str = "champion";

    fn aliases(version: u64, pinned_below: Option<u64>) -> ModelAliases {
        ModelAliases {
            versions: BTreeMap::from([(ALIAS.to_string(), version)]),
            pinned_below: pinned_below.map(|limit| (ALIAS.to_string(), limit)).into_iter().collect(),
        }
    }

    #[test]
    fn a_version_below_the_newest_that_served_is_pinned() {
        for (version, newest, pinned) in [
            (3, None, None),
            (3, Some(3), None),
            (3, Some(5), Some(3)),
            // Another program moved the alias to a newer version than all before.
            (6, Some(5), None),
        ] {
            assert_eq!(aliases(version, newest).pinned_version(ALIAS), pinned, "{version} {newest:?}");
        }
        assert_eq!(aliases(6, Some(5)).unrecorded_version(ALIAS), Some(6));
        assert_eq!(aliases(3, Some(5)).unrecorded_version(ALIAS), None);
        assert_eq!(ModelAliases::default().pinned_version(ALIAS), None);
    }

    #[test]
    fn a_move_back_pins_and_a_move_forward_releases() {
        let after = |from: Option<u64>, limit: Option<u64>, to: u64| {
            let before = from.map(|from| aliases(from, limit)).unwrap_or_default();
            aliases(to, Some(before.pinned_below_after_move(ALIAS, to))).pinned_version(ALIAS)
        };
        assert_eq!(after(None, None, 1), None);
        assert_eq!(after(Some(5), None, 3), Some(3), "no limit is recorded yet");
        assert_eq!(after(Some(5), Some(5), 3), Some(3));
        assert_eq!(after(Some(3), Some(5), 2), Some(2), "a second rollback");
        assert_eq!(after(Some(3), Some(5), 4), None, "a promotion of a version that never served");
        assert_eq!(after(Some(3), Some(4), 3), None, "a promotion of the pinned version");
    }
}
