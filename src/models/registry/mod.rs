//! Where models are kept: versions that never change, and aliases that point to them.
//!
//! The sidecar serves what the alias `champion` points to, and scores beside it what `challenger`
//! points to. A training adds a version; promoting and rolling back move an alias and touch nothing
//! else. So what is live is one word in one place, whoever moved it: the sidecar, the command line or
//! a person in MLflow's pages.
//!
//! Two stores do the same: a [directory](directory::Directory) of our own, the default, and an
//! [MLflow](mlflow::Mlflow) server.

pub mod directory;
pub mod mlflow;

use super::Model;
use super::artifact::{self, Files};
use super::import::{self, ColumnMapping};
use crate::features::rate::RateSemantics;
use crate::prom::{Labels, METRIC_NAME};
use crate::yaml::{Node, Section};
use directory::Directory;
use mlflow::Mlflow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use xxhash_rust::xxh3::xxh3_64;

/// The alias of what serves, unless the configuration names another.
pub const CHAMPION: &str = "champion";
/// The alias of what is scored beside it.
pub const CHALLENGER: &str = "challenger";

/// The section of the configuration file.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where models are kept.
    pub store: Store,
    /// The alias of what serves.
    pub alias: String,
    /// How often the aliases are looked at.
    pub poll_interval: Duration,
    /// Versions of a model that are kept without an alias; older ones are deleted. Only in a directory:
    /// what MLflow keeps is its owners' business.
    pub keep_versions: usize,
}

/// Where models are kept.
#[derive(Clone, Debug, PartialEq)]
pub enum Store {
    /// A directory; a relative path is inside of `--storage.path`.
    Directory(PathBuf),
    /// An MLflow server.
    Mlflow(Box<mlflow::Config>),
}

impl Default for Config {
    fn default() -> Self {
        Self {
            store: Store::Directory("models".into()),
            alias: CHAMPION.into(),
            poll_interval: Duration::from_secs(30),
            keep_versions: 30,
        }
    }
}

impl Config {
    /// Reads the section.
    pub fn read(mut section: Section<'_, '_>) -> Self {
        let default = Self::default();
        let path = section.get("path").and_then(|node| node.text());
        let mut alias = None;
        let mlflow = section.get("mlflow").and_then(Node::section).map(|mut section| {
            alias = section.get("alias").and_then(|node| node.parse(validate_name));
            mlflow::Config::read(section)
        });
        if path.is_some() && mlflow.is_some() {
            section.error("path and mlflow: models are kept in one place, name one of the two");
        }
        let config = Self {
            store: match mlflow {
                Some(mlflow) => Store::Mlflow(Box::new(mlflow)),
                None => path.map_or(default.store, |path| Store::Directory(path.into())),
            },
            alias: section
                .get("alias")
                .and_then(|node| node.parse(validate_name))
                .or(alias)
                .unwrap_or(default.alias),
            poll_interval: section.duration("poll_interval", default.poll_interval),
            keep_versions: section.count("keep_versions", default.keep_versions, 1),
        };
        section.deny_unknown();
        config
    }

    /// The name under which a detector's models are registered; a group's name begins with it.
    pub fn model_name(&self, detector: &str) -> String {
        match &self.store {
            Store::Mlflow(mlflow) => mlflow.model.clone().unwrap_or_else(|| detector.into()),
            Store::Directory(_) => detector.into(),
        }
    }
}

/// The registered name of a group's model: that of its detector and the group's values, with a hash
/// where they hold what a name cannot, so that two groups never share one.
pub fn group_model_name(model: &str, group: &Labels) -> String {
    let mut name = model.to_string();
    let mut exact = true;
    for (_, value) in group.iter().filter(|(name, _)| *name != METRIC_NAME) {
        name.push('.');
        for c in value.chars() {
            let is_allowed = c.is_ascii_alphanumeric() || c == '-' || c == '_';
            exact &= is_allowed;
            name.push(if is_allowed || c == '.' { c } else { '_' });
        }
    }
    exact &= name.len() <= MAX_NAME_LENGTH;
    if !exact {
        name = name.chars().take(MAX_NAME_LENGTH).collect();
        let hash = xxh3_64(group.to_string().as_bytes());
        name.push_str(&format!("-{:06x}", hash & 0xff_ffff));
    }
    name
}

/// The version that an alias points to for a group. A model under the detector's own name was put there
/// by somebody for every group, and goes before the group's own.
pub fn version_for_group(
    aliases: &Aliases,
    model: &str,
    group_model: &str,
    alias: &str,
) -> Option<(String, u64)> {
    [model, group_model]
        .into_iter()
        .find_map(|name| Some((name.to_string(), *aliases.get(name)?.get(alias)?)))
}

/// Longest name of a model before its hash: a file's name has at most 255 bytes.
const MAX_NAME_LENGTH: usize = 200;

/// Why a registry did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory cannot be read or written.
    #[error("cannot {what} {path}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The file or folder.
        path: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The directory's own file is damaged.
    #[error("{path} cannot be read")]
    Corrupt {
        /// The file.
        path: String,
        /// Why.
        source: serde_json::Error,
    },
    /// The version is no model.
    #[error("model {model} version {version}")]
    Import {
        /// The model.
        model: String,
        /// The version.
        version: u64,
        /// What is wrong.
        source: Box<import::Error>,
    },
    /// The version's folder cannot be read or written.
    #[error("model {model} version {version}")]
    Artifact {
        /// The model.
        model: String,
        /// The version.
        version: u64,
        /// What is wrong.
        source: Box<artifact::Error>,
    },
    /// There is no such version.
    #[error("model {model} has no version {version}")]
    NoVersion {
        /// The model.
        model: String,
        /// The version.
        version: u64,
    },
    /// There is no such alias.
    #[error("model {model} has no alias {alias}")]
    NoAlias {
        /// The model.
        model: String,
        /// The alias.
        alias: String,
    },
    /// Nothing served before.
    #[error("model {model} has no version to roll back to: none was promoted before version {version}")]
    NoPreviousVersion {
        /// The model.
        model: String,
        /// The version that serves.
        version: u64,
    },
    /// A name that cannot be one.
    #[error("{0:?} cannot name a model or an alias: use letters, digits, '.', '-' and '_'")]
    InvalidName(String),
    /// MLflow did not do it.
    #[error(transparent)]
    Mlflow(Box<mlflow::Error>),
}

impl From<mlflow::Error> for Error {
    fn from(error: mlflow::Error) -> Self {
        Self::Mlflow(Box::new(error))
    }
}

/// One version of a model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelVersion {
    /// Its number, from 1.
    pub number: u64,
    /// When it was registered: milliseconds since the epoch.
    pub created_ms: i64,
    /// When it last went into service, if it ever did.
    pub promoted_ms: Option<i64>,
    /// Was it taken out of service because it was bad?
    pub rolled_back: bool,
    /// What is known of it in a line.
    pub note: String,
}

/// A version to be: the model with what belongs to it.
pub struct NewVersion<'a> {
    /// The model.
    pub model: &'a Model,
    /// The page of its training.
    pub report: Option<&'a str>,
    /// What is known of it in a line.
    pub note: String,
}

/// Aliases of every model, and the versions that they point to.
pub type Aliases = BTreeMap<String, BTreeMap<String, u64>>;

/// A store of models. Clones share it.
#[derive(Clone)]
pub enum Registry {
    /// A directory.
    Directory(Directory),
    /// An MLflow server.
    Mlflow(Arc<Mlflow>),
}

impl Registry {
    /// Opens the configured store. Nothing is read yet: a store that is down is an error of each call.
    ///
    /// # Errors
    /// What is wrong with the client's configuration.
    pub fn open(config: &Config, storage: &Path) -> Result<Self, crate::http::client::Error> {
        Ok(match &config.store {
            Store::Directory(path) => {
                Self::Directory(Directory::new(storage.join(path), config.keep_versions))
            }
            Store::Mlflow(mlflow) => Self::Mlflow(Arc::new(Mlflow::new(mlflow)?)),
        })
    }

    /// The aliases of the models whose names begin like this.
    ///
    /// # Errors
    /// [`Error`] when the store does not answer.
    pub async fn aliases(&self, prefix: &str) -> Result<Aliases, Error> {
        match self {
            Self::Directory(directory) => directory.aliases(prefix),
            Self::Mlflow(mlflow) => Ok(mlflow.aliases(prefix).await?),
        }
    }

    /// The aliases of these models alone. Groups come and go, and their models stay: among thousands, this does not
    /// look at the others.
    ///
    /// # Errors
    /// [`Error`] when the store does not answer.
    pub async fn aliases_of(&self, models: [&str; 2]) -> Result<Aliases, Error> {
        match self {
            Self::Directory(directory) => directory.aliases_of(models),
            Self::Mlflow(mlflow) => Ok(mlflow.aliases_of(models).await?),
        }
    }

    /// The versions of a model, ascending; none for a model that is not known.
    ///
    /// # Errors
    /// [`Error`] when the store does not answer.
    pub async fn versions(&self, model: &str) -> Result<Vec<ModelVersion>, Error> {
        match self {
            Self::Directory(directory) => directory.versions(model),
            Self::Mlflow(mlflow) => Ok(mlflow.versions(model).await?),
        }
    }

    /// The files of a version.
    ///
    /// # Errors
    /// [`Error`] when there is no such version, or the store does not answer.
    pub async fn files(&self, model: &str, version: u64) -> Result<Files, Error> {
        match self {
            Self::Directory(directory) => directory.files(model, version),
            Self::Mlflow(mlflow) => Ok(mlflow.files(model, version).await?),
        }
    }

    /// Reads a version, whoever wrote it: a forest that scikit-learn's own client has registered serves
    /// like one of ours.
    ///
    /// # Errors
    /// As [`files`](Self::files), and when they are no model.
    pub async fn load(&self, model: &str, version: u64, semantics: RateSemantics) -> Result<Model, Error> {
        let files = self.files(model, version).await?;
        let error = |source| Error::Import { model: model.into(), version, source: Box::new(source) };
        import::read_model(&files, &ColumnMapping::Identity, semantics).map_err(error)
    }

    /// Adds a version and returns its number.
    ///
    /// # Errors
    /// [`Error`] when the store does not take it: then there is no new version.
    pub async fn register(&self, model: &str, new_version: &NewVersion<'_>) -> Result<u64, Error> {
        match self {
            Self::Directory(directory) => directory.register(model, new_version),
            Self::Mlflow(mlflow) => Ok(mlflow.register(model, new_version).await?),
        }
    }

    /// Points an alias to a version.
    ///
    /// # Errors
    /// [`Error`] when there is no such version, or the store does not answer.
    pub async fn promote(&self, model: &str, alias: &str, version: u64) -> Result<(), Error> {
        match self {
            Self::Directory(directory) => directory.promote(model, alias, version),
            Self::Mlflow(mlflow) => Ok(mlflow.promote(model, alias, version).await?),
        }
    }

    /// Points an alias back to the version that it pointed to before, and marks the one that it leaves.
    /// Returns both, the left one first.
    ///
    /// # Errors
    /// [`Error::NothingBefore`], [`Error::NoAlias`], or the store does not answer.
    pub async fn roll_back(&self, model: &str, alias: &str) -> Result<(u64, u64), Error> {
        let aliases = self.aliases(model).await?;
        let current = aliases.get(model).and_then(|aliases| aliases.get(alias)).copied();
        let current = current.ok_or_else(|| Error::NoAlias { model: model.into(), alias: alias.into() })?;
        let previous = previous_version(&self.versions(model).await?, current)
            .ok_or_else(|| Error::NoPreviousVersion { model: model.into(), version: current })?;
        match self {
            Self::Directory(directory) => directory.roll_back(model, alias, current, previous)?,
            Self::Mlflow(mlflow) => mlflow.roll_back(model, alias, current, previous).await?,
        }
        Ok((current, previous))
    }
}

/// A name of a model or an alias: one folder's, and not a hidden one's.
fn validate_name(text: &str) -> Result<String, Error> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let ok = !text.is_empty() && text.len() < 256 && !text.starts_with('.') && text.chars().all(allowed);
    ok.then(|| text.to_string()).ok_or_else(|| Error::InvalidName(text.into()))
}

/// The version that served before this one: the last that was promoted before it and not rolled back.
fn previous_version(versions: &[ModelVersion], current: u64) -> Option<u64> {
    let promotion = |version: &&ModelVersion| Some((version.promoted_ms?, version.number));
    let current_promotion =
        versions.iter().find(|version| version.number == current).as_ref().and_then(promotion);
    versions
        .iter()
        .filter(|version| version.number != current && !version.rolled_back)
        .filter_map(|version| promotion(&version))
        .filter(|before| current_promotion.is_none_or(|current_promotion| *before < current_promotion))
        .max()
        .map(|(_, number)| number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_have_names_of_their_own() {
        let labels = |instance: &str| Labels::new([("job", "node"), ("instance", instance)]).expect("valid");
        assert_eq!(group_model_name("net", &labels("web1")), "net.web1.node");
        let port = group_model_name("net", &labels("web1:9100"));
        assert!(port.starts_with("net.web1_9100.node-"), "{port}");
        assert_ne!(port, group_model_name("net", &labels("web1_9100")));
        assert_ne!(port, group_model_name("net", &labels("web1;9100")));
        assert!(group_model_name("net", &labels(&"ü".repeat(500))).len() < 255);
    }

    #[test]
    fn rolls_back_to_what_served_before() {
        let version = |number, promoted_ms, rolled_back| ModelVersion {
            number,
            promoted_ms,
            rolled_back,
            ..ModelVersion::default()
        };
        let versions = [
            version(1, Some(100), false),
            version(2, None, false),
            version(3, Some(200), true),
            version(4, Some(300), false),
            version(5, Some(400), false),
        ];
        assert_eq!(previous_version(&versions, 5), Some(4));
        assert_eq!(previous_version(&versions, 4), Some(1), "3 was rolled back");
        assert_eq!(previous_version(&versions, 1), None);
        // Moved by hand to one that we never promoted.
        assert_eq!(previous_version(&versions, 2), Some(5));
    }
}
