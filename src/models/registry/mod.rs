//! Model registries: immutable versions, and aliases that point to them.
//!
//! The sidecar serves the version of the alias `champion` and scores the version of `challenger` beside it. Training
//! adds a version; promotion and rollback move an alias and change nothing else. The alias is the only record of the
//! serving version, for the sidecar, the command line and MLflow's pages alike.
//!
//! There are two stores: a [directory](directory::Directory), the default, and an [MLflow](mlflow::Mlflow) server.

mod aliases;
pub mod directory;
pub mod mlflow;
pub mod periods;

use super::Model;
use super::artifact::{self, Files, sha256_hex};
use super::import::{self, ColumnMapping};
use crate::features::rate::RateSemantics;
use crate::prom::{Labels, METRIC_NAME};
use crate::tenant::Tenant;
use crate::yaml::{Key, KeyTable, Node, Section};
pub use aliases::{Aliases, ModelAliases, version_for_group};
use directory::{Directory, Retention};
use mlflow::Mlflow;
use periods::{GroupSelector, Period};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use xxhash_rust::xxh3::xxh3_64;

/// Default alias of the serving version.
pub const CHAMPION: &str = "champion";
/// Alias of the version that is scored beside the champion.
pub const CHALLENGER: &str = "challenger";

/// The section of the configuration file.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The store.
    pub store: Store,
    /// The alias of the serving version.
    pub alias: String,
    /// Interval between two reads of the aliases.
    pub poll_interval: Duration,
    /// Versions without an alias that are kept per model; older ones are deleted. Only for a directory: MLflow has its
    /// own retention.
    pub keep: Retention,
}

/// The keys of the section, without those of the HTTP client.
pub const KEY_TABLES: [KeyTable; 2] = [
    KeyTable::new(
        &["registry"],
        &[
            Key::with_default(
                "path",
                "models",
                "Directory of the models; a relative path is inside of `--storage.path`",
            ),
            Key::optional("mlflow", "An MLflow server instead of `path`, see below"),
            Key::with_default("alias", "champion", "Alias of the version in service"),
            Key::with_default("poll_interval", "30s", "Interval between two reads of the aliases"),
            Key::with_default(
                "keep_versions",
                "30",
                "Number of versions without an alias that a directory keeps of each model",
            ),
            Key::with_default(
                "keep_bytes",
                "500000000",
                "Size of those versions together; the newest one is kept whatever its size",
            ),
        ],
    ),
    KeyTable::new(
        &["registry.mlflow"],
        &[
            Key::required("tracking_uri", "http://localhost:5000", "URL of the MLflow server"),
            Key::with_default("experiment", "promforest", "Experiment of the runs"),
            Key::computed(
                "model",
                "name of the detector",
                "Registered model, and prefix of the names of groups. With several detectors it is an error",
            ),
            Key::optional("alias", "The same as `registry.alias`, which takes precedence"),
        ],
    ),
];

/// The store of a registry.
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
            keep: Retention::default(),
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
            keep: Retention {
                versions: section.count("keep_versions", default.keep.versions, 1),
                bytes: section.count("keep_bytes", default.keep.bytes, 1),
            },
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

/// The registered name of a group's model: the detector's name and the group's label values. A hash keeps names
/// distinct if a label of `by` is not among the values, or if they contain characters that a name cannot have. The names of
/// groups of tenants always have a longer one: a tenant chooses its labels, and must not hit the name of another's model.
pub fn group_model_name(model: &str, by: &[String], tenant: Option<&Tenant>, group: &Labels) -> String {
    let mut name = model.to_string();
    let mut exact = by.iter().all(|name| name != METRIC_NAME && !group.get(name).is_empty());
    for (_, value) in group.iter().filter(|(name, _)| *name != METRIC_NAME) {
        name.push('.');
        for c in value.chars() {
            let is_allowed = c.is_ascii_alphanumeric() || c == '-' || c == '_';
            exact &= is_allowed;
            name.push(if is_allowed || c == '.' { c } else { '_' });
        }
    }
    exact &= name.len() <= MAX_NAME_LENGTH;
    if tenant.is_some() {
        name = name.chars().take(MAX_NAME_LENGTH).collect();
        let digest = sha256_hex(group.to_string().as_bytes());
        name.push_str(&format!("-{}", &digest[..TENANT_HASH_LENGTH]));
    } else if !exact {
        name = name.chars().take(MAX_NAME_LENGTH).collect();
        let hash = xxh3_64(group.to_string().as_bytes());
        name.push_str(&format!("-{:06x}", hash & 0xff_ffff));
    }
    name
}

/// Longest name of a model without its hash: a file name has at most 255 bytes.
const MAX_NAME_LENGTH: usize = 200;
/// Hexadecimal digits of the SHA-256 in the name of a model of a tenant's group.
const TENANT_HASH_LENGTH: usize = 32;

/// Reasons why a call to a registry fails.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory cannot be read or written.
    #[error("cannot {what} {path}")]
    Io {
        /// The operation.
        what: &'static str,
        /// The file or folder.
        path: String,
        /// The cause.
        source: std::io::Error,
    },
    /// `registry.json` is damaged.
    #[error("{path} cannot be read")]
    Corrupt {
        /// The file.
        path: String,
        /// The cause.
        source: serde_json::Error,
    },
    /// The version is not a valid model.
    #[error("model {model} version {version}")]
    Import {
        /// The model.
        model: String,
        /// The version.
        version: u64,
        /// The cause.
        source: Box<import::Error>,
    },
    /// The version's folder cannot be read or written.
    #[error("model {model} version {version}")]
    Artifact {
        /// The model.
        model: String,
        /// The version.
        version: u64,
        /// The cause.
        source: Box<artifact::Error>,
    },
    /// The version does not exist.
    #[error("model {model} has no version {version}")]
    NoVersion {
        /// The model.
        model: String,
        /// The version.
        version: u64,
    },
    /// The alias does not exist.
    #[error("model {model} has no alias {alias}")]
    NoAlias {
        /// The model.
        model: String,
        /// The alias.
        alias: String,
    },
    /// No version served before.
    #[error("model {model} has no version to roll back to: none was promoted before version {version}")]
    NoPreviousVersion {
        /// The model.
        model: String,
        /// The version that serves.
        version: u64,
    },
    /// The name is invalid.
    #[error("{0:?} cannot name a model or an alias: use letters, digits, '.', '-' and '_'")]
    InvalidName(String),
    /// The call to MLflow failed.
    #[error(transparent)]
    Mlflow(Box<mlflow::Error>),
}

impl Error {
    /// True if the store answers and one model or version of it is at fault: the others can be read.
    pub fn concerns_one_version(&self) -> bool {
        match self {
            Self::Mlflow(error) => error.concerns_one_version(),
            _ => true,
        }
    }
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
    /// Time of registration, in milliseconds since the epoch.
    pub created_ms: i64,
    /// Time of the last promotion, if any.
    pub promoted_ms: Option<i64>,
    /// True if a rollback left this version.
    pub rolled_back: bool,
    /// A note of one line.
    pub note: String,
}

/// A version to register.
pub struct NewVersion<'a> {
    /// The model.
    pub model: &'a Model,
    /// The training report, as HTML.
    pub report: Option<&'a str>,
    /// A note of one line.
    pub note: String,
}

/// The models of a listing.
#[derive(Debug, Default)]
pub struct AliasListing {
    /// Their aliases.
    pub aliases: Aliases,
    /// The errors of the models that cannot be read, by name.
    pub unreadable: BTreeMap<String, Error>,
}

/// A store of models. Clones share it.
#[derive(Clone)]
pub enum Registry {
    /// A directory.
    Directory(Directory),
    /// An MLflow server.
    Mlflow(Arc<Mlflow>),
}

impl Registry {
    /// Opens the configured store without a request: an unavailable store is an error of each call.
    ///
    /// # Errors
    /// The client's configuration is invalid.
    pub fn open(config: &Config, storage: &Path) -> Result<Self, crate::http::client::Error> {
        Ok(match &config.store {
            Store::Directory(path) => Self::Directory(Directory::new(storage.join(path), config.keep)),
            Store::Mlflow(mlflow) => Self::Mlflow(Arc::new(Mlflow::new(mlflow)?)),
        })
    }

    /// The aliases of the models whose names have this prefix.
    ///
    /// # Errors
    /// [`Error`] if the store fails, or if a model of it cannot be read.
    pub async fn aliases(&self, prefix: &str) -> Result<Aliases, Error> {
        match self {
            Self::Directory(directory) => directory.aliases(prefix),
            Self::Mlflow(mlflow) => Ok(mlflow.aliases(prefix).await?),
        }
    }

    /// The aliases of these models, apart from the models that cannot be read. The models of other groups are not read:
    /// many sidecars may share a registry.
    ///
    /// # Errors
    /// [`Error`] if the store fails.
    pub async fn list_aliases(&self, models: &BTreeSet<String>) -> Result<AliasListing, Error> {
        match self {
            Self::Directory(directory) => directory.list_aliases(models),
            Self::Mlflow(mlflow) => {
                Ok(AliasListing { aliases: mlflow.list_aliases(models).await?, unreadable: BTreeMap::new() })
            }
        }
    }

    /// The aliases of these models. Models of former groups stay in the registry; this call does not read them.
    ///
    /// # Errors
    /// [`Error`] if the store fails.
    pub async fn aliases_of<const N: usize>(&self, models: [&str; N]) -> Result<Aliases, Error> {
        match self {
            Self::Directory(directory) => directory.aliases_of(models),
            Self::Mlflow(mlflow) => Ok(mlflow.aliases_of(models).await?),
        }
    }

    /// The recorded periods.
    ///
    /// # Errors
    /// [`Error`] if the store fails.
    pub async fn periods(&self) -> Result<Vec<Period>, Error> {
        match self {
            Self::Directory(directory) => directory.periods(),
            Self::Mlflow(mlflow) => Ok(mlflow.periods().await?),
        }
    }

    /// Records a period, in place of one that it replaces.
    ///
    /// # Errors
    /// [`Error`] if the store fails.
    pub async fn record_period(&self, period: Period) -> Result<(), Error> {
        self.update_periods(|periods| periods::record(periods, period)).await
    }

    /// Ends the maintenance of these groups that is active or yet to come. Returns the number of periods.
    ///
    /// # Errors
    /// [`Error`] if the store fails.
    pub async fn end_maintenance(
        &self,
        detector: Option<&str>,
        groups: &GroupSelector,
        at_ms: i64,
    ) -> Result<usize, Error> {
        self.update_periods(|periods| periods::end_maintenance(periods, detector, groups, at_ms)).await
    }

    async fn update_periods<T>(&self, update: impl FnOnce(&mut Vec<Period>) -> T) -> Result<T, Error> {
        match self {
            Self::Directory(directory) => directory.update_periods(update),
            Self::Mlflow(mlflow) => Ok(mlflow.update_periods(update).await?),
        }
    }

    /// The versions of a model, ascending; none for an unknown model.
    ///
    /// # Errors
    /// [`Error`] if the store fails.
    pub async fn versions(&self, model: &str) -> Result<Vec<ModelVersion>, Error> {
        match self {
            Self::Directory(directory) => directory.versions(model),
            Self::Mlflow(mlflow) => Ok(mlflow.versions(model).await?),
        }
    }

    /// The files of a version.
    ///
    /// # Errors
    /// [`Error`] if the version does not exist or the store fails.
    pub async fn files(&self, model: &str, version: u64) -> Result<Files, Error> {
        match self {
            Self::Directory(directory) => directory.files(model, version),
            Self::Mlflow(mlflow) => Ok(mlflow.files(model, version).await?),
        }
    }

    /// Reads a version in any supported format, also a forest that MLflow's scikit-learn client registered.
    ///
    /// # Errors
    /// As [`files`](Self::files), and [`Error::Import`].
    pub async fn load(&self, model: &str, version: u64, semantics: RateSemantics) -> Result<Model, Error> {
        let files = self.files(model, version).await?;
        let error = |source| Error::Import { model: model.into(), version, source: Box::new(source) };
        import::read_model(&files, &ColumnMapping::Identity, semantics).map_err(error)
    }

    /// Adds a version and returns its number.
    ///
    /// # Errors
    /// [`Error`] if the store fails; the version is not added then.
    pub async fn register(&self, model: &str, new_version: &NewVersion<'_>) -> Result<u64, Error> {
        match self {
            Self::Directory(directory) => directory.register(model, new_version),
            Self::Mlflow(mlflow) => Ok(mlflow.register(model, new_version).await?),
        }
    }

    /// Points an alias to a version.
    ///
    /// # Errors
    /// [`Error`] if the version does not exist or the store fails.
    pub async fn promote(&self, model: &str, alias: &str, version: u64) -> Result<(), Error> {
        match self {
            Self::Directory(directory) => directory.promote(model, alias, version),
            Self::Mlflow(mlflow) => Ok(mlflow.promote(model, alias, version).await?),
        }
    }

    /// Points an alias to the version of a training. If the version that it points to is pinned, the new one becomes the
    /// challenger instead, and the pinned version is returned. A challenger that has become the champion is no longer
    /// one after that.
    ///
    /// # Errors
    /// As [`promote`](Self::promote).
    pub async fn promote_trained(
        &self,
        model: &str,
        alias: &str,
        version: u64,
    ) -> Result<Option<u64>, Error> {
        match self {
            Self::Directory(directory) => directory.promote_trained(model, alias, version),
            Self::Mlflow(mlflow) => Ok(mlflow.promote_trained(model, alias, version).await?),
        }
    }

    /// Points an alias to a version in place of one that cannot serve. A pin goes over to the new version.
    ///
    /// # Errors
    /// As [`promote`](Self::promote).
    pub async fn replace_unusable(&self, model: &str, alias: &str, version: u64) -> Result<(), Error> {
        let pinned = self.pinned_version(model, alias).await?;
        self.promote(model, alias, version).await?;
        if pinned.is_some() {
            self.pin(model, alias).await?;
        }
        Ok(())
    }

    /// The version of an alias, if it is pinned.
    ///
    /// # Errors
    /// [`Error`] if the store fails.
    pub async fn pinned_version(&self, model: &str, alias: &str) -> Result<Option<u64>, Error> {
        let aliases = self.aliases_of([model]).await?;
        Ok(aliases.get(model).and_then(|aliases| aliases.pinned_version(alias)))
    }

    /// Pins the version of an alias, and returns it.
    ///
    /// # Errors
    /// [`Error::NoAlias`], or the error of the store.
    pub async fn pin(&self, model: &str, alias: &str) -> Result<u64, Error> {
        let version = self.aliased_version(model, alias).await?;
        self.set_pinned_below(model, alias, version + 1).await?;
        Ok(version)
    }

    /// Releases the version of an alias, and returns it. Trainings made the newer versions up to the challenger, which
    /// loses that alias.
    ///
    /// # Errors
    /// [`Error::NoAlias`], or the error of the store.
    pub async fn unpin(&self, model: &str, alias: &str) -> Result<u64, Error> {
        let aliases = self.aliases_of([model]).await?.remove(model).unwrap_or_default();
        let no_alias = || Error::NoAlias { model: model.into(), alias: alias.into() };
        let version = aliases.version(alias).ok_or_else(no_alias)?;
        let has_newer = aliases.version(CHALLENGER).is_some_and(|challenger| challenger > version);
        if has_newer && aliases.pinned_version(alias).is_some() {
            self.remove_alias(model, CHALLENGER).await?;
        }
        self.set_pinned_below(model, alias, version).await?;
        Ok(version)
    }

    /// Records the newest version that an alias has pointed to; see [`ModelAliases::unrecorded_version`].
    ///
    /// # Errors
    /// [`Error`] if the store fails.
    pub async fn record_version(&self, model: &str, alias: &str, version: u64) -> Result<(), Error> {
        self.set_pinned_below(model, alias, version).await
    }

    async fn set_pinned_below(&self, model: &str, alias: &str, limit: u64) -> Result<(), Error> {
        match self {
            Self::Directory(directory) => directory.set_pinned_below(model, alias, limit),
            Self::Mlflow(mlflow) => Ok(mlflow.set_pinned_below(model, alias, limit).await?),
        }
    }

    /// Points an alias back to its previous version and marks the current one as rolled back. The previous version is
    /// pinned. Returns the former and the new version.
    ///
    /// # Errors
    /// [`Error::NoPreviousVersion`], [`Error::NoAlias`], or the error of the store.
    pub async fn roll_back(&self, model: &str, alias: &str) -> Result<(u64, u64), Error> {
        let current = self.aliased_version(model, alias).await?;
        let previous = previous_version(&self.versions(model).await?, current)
            .ok_or_else(|| Error::NoPreviousVersion { model: model.into(), version: current })?;
        match self {
            Self::Directory(directory) => directory.roll_back(model, alias, current, previous)?,
            Self::Mlflow(mlflow) => mlflow.roll_back(model, alias, current, previous).await?,
        }
        Ok((current, previous))
    }

    /// Removes an alias and returns the version that it pointed to.
    ///
    /// # Errors
    /// [`Error::NoAlias`], or the error of the store.
    pub async fn remove_alias(&self, model: &str, alias: &str) -> Result<u64, Error> {
        let version = self.aliased_version(model, alias).await?;
        match self {
            Self::Directory(directory) => directory.remove_alias(model, alias)?,
            Self::Mlflow(mlflow) => mlflow.remove_alias(model, alias).await?,
        }
        Ok(version)
    }

    async fn aliased_version(&self, model: &str, alias: &str) -> Result<u64, Error> {
        let aliases = self.aliases_of([model]).await?;
        let version = aliases.get(model).and_then(|aliases| aliases.version(alias));
        version.ok_or_else(|| Error::NoAlias { model: model.into(), alias: alias.into() })
    }
}

/// Checks the name of a model or alias: a valid name of a visible folder.
fn validate_name(text: &str) -> Result<String, Error> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let ok = !text.is_empty() && text.len() < 256 && !text.starts_with('.') && text.chars().all(allowed);
    ok.then(|| text.to_string()).ok_or_else(|| Error::InvalidName(text.into()))
}

/// The version that served before `current`: the last version promoted before it and not rolled back.
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
mod tests;
