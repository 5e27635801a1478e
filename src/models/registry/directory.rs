//! The embedded registry: a directory with readable files.
//!
//! ```text
//! models/
//!   node_network.web1/
//!     registry.json      aliases and versions
//!     1/ 2/ 3/           a model's folder each; never changed
//!   periods.json         maintenance, and feedback on incidents
//! ```
//!
//! Renames publish versions and `registry.json`, so readers need no lock. A lock on a file beside it serialises
//! writers, also of several processes. A writer that dies may leave a version that `registry.json` does not list; the
//! next writer removes it.

use super::periods::Period;
use super::{
    AliasListing, Aliases, CHALLENGER, Error, ModelAliases, ModelVersion, NewVersion, validate_name,
};
use crate::fs::{sync_directory, write_atomically};
use crate::models::artifact::{self, Files};
use crate::time;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::{self, fs::MetadataExt};
use std::path::{Path, PathBuf};

const STATE: &str = "registry.json";
const PERIODS: &str = "periods.json";
const LOCK: &str = ".lock";
const REPORT: &str = "report.html";

/// A registry in a directory. The first registration creates it.
#[derive(Clone, Debug)]
pub struct Directory {
    root: PathBuf,
    keep: Retention,
}

/// The versions without an alias that are kept of each model: the newest ones within both bounds, and at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Number of versions.
    pub versions: usize,
    /// Size of the versions.
    pub bytes: usize,
}

impl Default for Retention {
    fn default() -> Self {
        Self { versions: 30, bytes: 500_000_000 }
    }
}

/// `registry.json` of one model.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RegistryFile {
    /// The number of the next version. Numbers are not reused.
    next: u64,
    aliases: BTreeMap<String, u64>,
    /// See [`ModelAliases::pinned_below`].
    #[serde(default)]
    pinned_below: BTreeMap<String, u64>,
    versions: BTreeMap<u64, VersionRecord>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct VersionRecord {
    created_ms: i64,
    promoted_ms: Option<i64>,
    rolled_back: bool,
    note: String,
}

impl Default for RegistryFile {
    fn default() -> Self {
        Self { next: 1, aliases: BTreeMap::new(), pinned_below: BTreeMap::new(), versions: BTreeMap::new() }
    }
}

impl RegistryFile {
    fn model_aliases(&self) -> ModelAliases {
        ModelAliases { versions: self.aliases.clone(), pinned_below: self.pinned_below.clone() }
    }

    fn version_mut(&mut self, model: &str, version: u64) -> Result<&mut VersionRecord, Error> {
        self.versions.get_mut(&version).ok_or_else(|| Error::NoVersion { model: model.into(), version })
    }

    /// Points an alias to a version. A challenger has no pin.
    fn move_alias(&mut self, alias: &str, version: u64) {
        if alias != CHALLENGER {
            let limit = self.model_aliases().pinned_below_after_move(alias, version);
            self.pinned_below.insert(alias.into(), limit);
        }
        self.aliases.insert(alias.into(), version);
    }

    fn promote(&mut self, model: &str, alias: &str, version: u64) -> Result<(), Error> {
        let record = self.version_mut(model, version)?;
        // A challenger has not served yet.
        if alias != CHALLENGER {
            record.promoted_ms = Some(time::now_ms());
            record.rolled_back = false;
        }
        self.move_alias(alias, version);
        Ok(())
    }
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.display().to_string();
    move |source| Error::Io { what, path, source }
}

impl Directory {
    /// A registry in `root` that keeps these versions.
    pub fn new(root: PathBuf, keep: Retention) -> Self {
        Self { root, keep }
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn folder(&self, model: &str) -> Result<PathBuf, Error> {
        Ok(self.root.join(validate_name(model)?))
    }

    /// See [`Registry::aliases`](super::Registry::aliases).
    pub fn aliases(&self, prefix: &str) -> Result<Aliases, Error> {
        let mut aliases = Aliases::new();
        for entry in self.entries()?.into_iter().flatten() {
            let model = entry.map_err(io_error("read", &self.root))?.file_name();
            let Some(model) = model.to_str().filter(|model| model.starts_with(prefix)) else { continue };
            if let Some(state) = self.read_state(&self.root.join(model))? {
                aliases.insert(model.into(), state.model_aliases());
            }
        }
        Ok(aliases)
    }

    /// See [`Registry::list_aliases`](super::Registry::list_aliases).
    pub fn list_aliases(&self, models: &BTreeSet<String>) -> Result<AliasListing, Error> {
        let mut listing = AliasListing::default();
        if self.entries()?.is_none() {
            return Ok(listing);
        }
        for model in models {
            match self.folder(model).and_then(|folder| self.read_state(&folder)) {
                Ok(Some(state)) => drop(listing.aliases.insert(model.clone(), state.model_aliases())),
                Ok(None) => {}
                Err(error) => drop(listing.unreadable.insert(model.clone(), error)),
            }
        }
        Ok(listing)
    }

    /// The entries of the directory; `None` if there is none yet.
    fn entries(&self) -> Result<Option<fs::ReadDir>, Error> {
        match fs::read_dir(&self.root) {
            Ok(entries) => Ok(Some(entries)),
            Err(missing) if missing.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(io_error("read", &self.root)(source)),
        }
    }

    /// See [`Registry::aliases_of`](super::Registry::aliases_of).
    pub fn aliases_of<const N: usize>(&self, models: [&str; N]) -> Result<Aliases, Error> {
        let mut aliases = Aliases::new();
        for model in models {
            if let Some(state) = self.read_state(&self.folder(model)?)? {
                aliases.insert(model.into(), state.model_aliases());
            }
        }
        Ok(aliases)
    }

    /// See [`Registry::versions`](super::Registry::versions).
    pub fn versions(&self, model: &str) -> Result<Vec<ModelVersion>, Error> {
        let state = self.read_state(&self.folder(model)?)?.unwrap_or_default();
        let version = |(number, version): (u64, VersionRecord)| ModelVersion {
            number,
            created_ms: version.created_ms,
            promoted_ms: version.promoted_ms,
            rolled_back: version.rolled_back,
            note: version.note,
        };
        Ok(state.versions.into_iter().map(version).collect())
    }

    /// See [`Registry::files`](super::Registry::files).
    pub fn files(&self, model: &str, version: u64) -> Result<Files, Error> {
        let folder = self.folder(model)?.join(version.to_string());
        if !folder.is_dir() {
            return Err(Error::NoVersion { model: model.into(), version });
        }
        let error = |source| Error::Artifact { model: model.into(), version, source: Box::new(source) };
        artifact::read_files(&folder).map_err(error)
    }

    /// See [`Registry::register`](super::Registry::register).
    pub fn register(&self, model: &str, new_version: &NewVersion<'_>) -> Result<u64, Error> {
        let mut files = artifact::to_files(new_version.model);
        if let Some(report) = new_version.report {
            files.insert(REPORT.into(), report.as_bytes().to_vec());
        }
        self.update_locked(model, |folder, state| {
            let number = state.next;
            let error =
                |source| Error::Artifact { model: model.into(), version: number, source: Box::new(source) };
            artifact::save(&files, &folder.join(number.to_string())).map_err(error)?;
            let (created_ms, note) = (time::now_ms(), new_version.note.clone());
            let version = VersionRecord { created_ms, promoted_ms: None, rolled_back: false, note };
            state.versions.insert(number, version);
            state.next += 1;
            Ok(number)
        })
    }

    /// See [`Registry::promote`](super::Registry::promote).
    pub fn promote(&self, model: &str, alias: &str, version: u64) -> Result<(), Error> {
        let alias = validate_name(alias)?;
        self.check_registered(model, version)?;
        self.update_locked(model, |_, state| state.promote(model, &alias, version))
    }

    /// See [`Registry::promote_trained`](super::Registry::promote_trained).
    pub fn promote_trained(&self, model: &str, alias: &str, version: u64) -> Result<Option<u64>, Error> {
        let alias = validate_name(alias)?;
        self.check_registered(model, version)?;
        self.update_locked(model, |_, state| {
            let aliases = state.model_aliases();
            let pinned = aliases.pinned_version(&alias);
            state.promote(model, if pinned.is_some() { CHALLENGER } else { &alias }, version)?;
            if aliases.has_promoted_challenger(&alias) && pinned.is_none() {
                state.aliases.remove(CHALLENGER);
            }
            Ok(pinned)
        })
    }

    /// Replaces the limit of the pins of an alias; see [`ModelAliases::pinned_below`].
    pub fn set_pinned_below(&self, model: &str, alias: &str, limit: u64) -> Result<(), Error> {
        self.update_locked(model, |_, state| {
            state.pinned_below.insert(alias.into(), limit);
            Ok(())
        })
    }

    /// See [`Registry::roll_back`](super::Registry::roll_back).
    pub fn roll_back(&self, model: &str, alias: &str, from: u64, to: u64) -> Result<(), Error> {
        self.check_registered(model, to)?;
        self.update_locked(model, |_, state| {
            state.version_mut(model, to)?;
            if let Some(bad) = state.versions.get_mut(&from) {
                bad.rolled_back = true;
            }
            state.move_alias(alias, to);
            Ok(())
        })
    }

    /// See [`Registry::remove_alias`](super::Registry::remove_alias).
    pub fn remove_alias(&self, model: &str, alias: &str) -> Result<(), Error> {
        self.update_locked(model, |_, state| {
            let missing = || Error::NoAlias { model: model.into(), alias: alias.into() };
            state.aliases.remove(alias).map(drop).ok_or_else(missing)
        })
    }

    /// Rejects unregistered models, so that a call for one creates no folder.
    fn check_registered(&self, model: &str, version: u64) -> Result<(), Error> {
        match self.read_state(&self.folder(model)?)? {
            Some(_) => Ok(()),
            None => Err(Error::NoVersion { model: model.into(), version }),
        }
    }

    fn read_state(&self, folder: &Path) -> Result<Option<RegistryFile>, Error> {
        read_json(&folder.join(STATE))
    }

    /// See [`Registry::periods`](super::Registry::periods).
    pub fn periods(&self) -> Result<Vec<Period>, Error> {
        let path = self.root.join(PERIODS);
        let periods: Vec<Period> = read_json(&path)?.unwrap_or_default();
        match periods.iter().find_map(|period| period.check().err()) {
            Some(invalid) => {
                let source = serde::de::Error::custom(invalid);
                Err(Error::Corrupt { path: path.display().to_string(), source })
            }
            None => Ok(periods),
        }
    }

    /// Changes the periods under their lock.
    pub fn update_periods<T>(&self, update: impl FnOnce(&mut Vec<Period>) -> T) -> Result<T, Error> {
        let owner = Owner::of(&self.root);
        let _lock = lock_folder(&self.root)?;
        let mut periods = self.periods()?;
        let result = update(&mut periods);
        write_json(&self.root, PERIODS, &periods)?;
        for name in [LOCK, PERIODS] {
            owner.give(&self.root.join(name))?;
        }
        Ok(result)
    }

    /// Changes a model's state under its lock.
    fn update_locked<T>(
        &self,
        model: &str,
        update: impl FnOnce(&Path, &mut RegistryFile) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let folder = self.folder(model)?;
        let owner = Owner::of(&folder);
        let _lock = lock_folder(&folder)?;
        let mut state = self.read_state(&folder)?.unwrap_or_default();
        remove_orphans(&folder, &state)?;
        let result = update(&folder, &mut state)?;
        let pruned = self.prune(&folder, &mut state)?;
        write_json(&folder, STATE, &state)?;
        for number in pruned {
            let old = folder.join(number.to_string());
            fs::remove_dir_all(&old).map_err(io_error("remove", &old))?;
        }
        owner.give(&folder)?;
        Ok(result)
    }

    /// Removes the oldest versions without an alias from the state.
    fn prune(&self, folder: &Path, state: &mut RegistryFile) -> Result<Vec<u64>, Error> {
        let is_unreferenced = |number: &&u64| !state.aliases.values().any(|version| version == *number);
        let newest_first = state.versions.keys().rev().filter(is_unreferenced).copied();
        let (mut pruned, mut bytes) = (Vec::new(), 0);
        for (i, number) in newest_first.enumerate() {
            bytes += folder_bytes(&folder.join(number.to_string()))?;
            let is_within = i < self.keep.versions && bytes <= self.keep.bytes as u64;
            if i > 0 && !is_within {
                pruned.push(number);
            }
        }
        for number in &pruned {
            state.versions.remove(number);
        }
        Ok(pruned)
    }
}

/// Size of the files directly in a folder; 0 if there is no such folder.
fn folder_bytes(folder: &Path) -> Result<u64, Error> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(source) => return Err(io_error("read", folder)(source)),
    };
    let sizes = entries.map(|entry| Ok(entry?.metadata()?.len()));
    sizes.sum::<io::Result<u64>>().map_err(io_error("read", folder))
}

/// The user and group of a folder: what root writes there is given to them, so that the user's sidecar can go on with it.
struct Owner(Option<(u32, u32)>);

impl Owner {
    /// The owner of a folder, or of the nearest one above it that exists; none if the process is not root's.
    fn of(folder: &Path) -> Self {
        let metadata = folder.ancestors().find_map(|folder| folder.metadata().ok());
        let owner = metadata.map(|metadata| (metadata.uid(), metadata.gid()));
        Self(owner.filter(|_| rustix::process::geteuid().is_root()))
    }

    /// Gives a file, or a folder and all that is in it, and the folders above it that are new.
    fn give(&self, path: &Path) -> Result<(), Error> {
        let Some((user, group)) = self.0 else { return Ok(()) };
        let is_other = |path: &&Path| path.metadata().is_ok_and(|metadata| metadata.uid() != user);
        let change = |path: &Path| {
            unix::fs::lchown(path, Some(user), Some(group)).map_err(io_error("change the owner of", path))
        };
        path.ancestors().take_while(is_other).try_for_each(change)?;
        if !path.is_dir() {
            return Ok(());
        }
        for entry in fs::read_dir(path).map_err(io_error("read", path))? {
            self.give(&entry.map_err(io_error("read", path))?.path())?;
        }
        Ok(())
    }
}

/// Locks a folder, which is created if it does not exist, until the file is dropped.
fn lock_folder(folder: &Path) -> Result<File, Error> {
    fs::create_dir_all(folder).map_err(io_error("create", folder))?;
    let path = folder.join(LOCK);
    let options = File::options().create(true).truncate(false).write(true).clone();
    let file = options.open(&path).map_err(io_error("open", &path))?;
    file.lock().map_err(io_error("lock", &path))?;
    Ok(file)
}

/// Reads a file; `None` if it does not exist.
fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Error> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        // A file among the folders, or a folder without a version.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(source) => return Err(io_error("read", path)(source)),
    };
    let corrupt = |source| Error::Corrupt { path: path.display().to_string(), source };
    serde_json::from_slice(&bytes).map(Some).map_err(corrupt)
}

fn write_json(folder: &Path, name: &str, content: &impl Serialize) -> Result<(), Error> {
    let path = folder.join(name);
    write_atomically(&path, &serde_json::to_vec_pretty(content).expect("numbers and text"))
        .and_then(|()| sync_directory(folder))
        .map_err(io_error("write", &path))
}

/// Removes the versions and temporary folders of writers that died.
fn remove_orphans(folder: &Path, state: &RegistryFile) -> Result<(), Error> {
    for entry in fs::read_dir(folder).map_err(io_error("read", folder))? {
        let path = entry.map_err(io_error("read", folder))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let is_registered = name.parse().is_ok_and(|number: u64| state.versions.contains_key(&number));
        let is_version_or_temporary = name.parse::<u64>().is_ok() || name.ends_with(".tmp");
        if path.is_dir() && is_version_or_temporary && !is_registered {
            fs::remove_dir_all(&path).map_err(io_error("remove", &path))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
