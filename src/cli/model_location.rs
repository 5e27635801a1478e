//! Models by their place: a folder, `NAME@ALIAS`, `NAME/VERSION`, or `NAME` for the model that serves.
//!
//! Every command loads the whole model, so that none reports on a model that could not serve.

use super::RegistryArgs;
use crate::config::Config;
use crate::detector::Detector;
use crate::error::BoxError;
use crate::features::rate::RateSemantics;
use crate::models::import::{self, ColumnMapping};
use crate::models::registry::{self, Registry};
use crate::models::{Model, columns};
use crate::table::{self, DataTable};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The place that a model was loaded from.
pub enum ModelLocation {
    Folder(PathBuf),
    Registered { name: String, version: u64, alias: Option<String> },
}

impl fmt::Display for ModelLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(path) => write!(f, "{}", path.display()),
            Self::Registered { name, version, .. } => write!(f, "{name} version {version}"),
        }
    }
}

/// Finds and loads a model.
///
/// # Errors
/// Those of the configuration, the registry and the files.
pub async fn load_model(args: &RegistryArgs, model: &str) -> Result<(ModelLocation, Model), BoxError> {
    let config = args.config()?;
    let path = Path::new(model);
    if path.exists() {
        let loaded = import::read_model(
            &import::read_files(path)?,
            &ColumnMapping::default(),
            rate_semantics(&config, model),
        )?;
        return Ok((ModelLocation::Folder(path.into()), loaded));
    }
    let registry = args.open(&config)?;
    let (name, version, alias) = resolve_version(&registry, model, &config.registry.alias).await?;
    let loaded = registry.load(&name, version, rate_semantics(&config, &name)).await?;
    Ok((ModelLocation::Registered { name, version, alias }, loaded))
}

/// The rate semantics of columns whose file has none: those of the detector that the model is registered for, or of
/// the first detector.
pub fn rate_semantics(config: &Config, name: &str) -> RateSemantics {
    let is_registered_for =
        |detector: &&Arc<Detector>| name.starts_with(&config.registry.model_name(&detector.name));
    let detector = config.detectors.iter().find(is_registered_for).or(config.detectors.first());
    detector.and_then(|detector| detector.transform.rate_semantics()).unwrap_or_default()
}

/// The name and version of `NAME@ALIAS`, `NAME/VERSION` or `NAME`, with the alias that points to it.
pub async fn resolve_version(
    registry: &Registry,
    model: &str,
    default_alias: &str,
) -> Result<(String, u64, Option<String>), BoxError> {
    if let Some((name, version)) = model.rsplit_once('/') {
        let invalid_number =
            |_| format!("{model} is neither a folder nor NAME/VERSION with a number for VERSION");
        return Ok((name.into(), version.parse().map_err(invalid_number)?, None));
    }
    let (name, alias) = model.split_once('@').unwrap_or((model, default_alias));
    let aliases = registry.aliases(name).await?;
    let Some(aliases) = aliases.get(name) else {
        return Err(format!("{name} is neither a folder nor a model of the registry").into());
    };
    let version = aliases.version(alias);
    let version =
        version.ok_or_else(|| registry::Error::NoAlias { model: name.into(), alias: alias.into() })?;
    Ok((name.into(), version, Some(alias.into())))
}

/// The names of the model's columns in a table: the model's own names, or others of the same features.
///
/// # Errors
/// [`table::Error::MissingColumn`].
pub fn select_columns(model: &Model, input: &DataTable) -> Result<Vec<String>, table::Error> {
    let transform = model.schema.transform;
    let semantics = transform.rate_semantics().unwrap_or_default();
    let resolve_column = |name: &String| {
        let read =
            columns::resolve_features(std::slice::from_ref(name), &columns::NameMapping::new(), semantics);
        let (features, transform) = read.ok()?;
        Some((features.into_iter().next()?, transform))
    };
    let names: Vec<&String> = input.columns.iter().map(|(name, _)| name).collect();
    let resolved: Vec<_> = names.iter().map(|name| resolve_column(name)).collect();
    let model_columns = columns::names(model).into_iter().zip(&model.schema.features);
    model_columns
        .map(|(name, feature)| {
            if names.contains(&&name) {
                return Ok(name);
            }
            let is_same = |candidate: &Option<_>| {
                candidate.as_ref().is_some_and(|(f, t)| f == feature && *t == transform)
            };
            match resolved.iter().position(is_same) {
                Some(position) => Ok(names[position].clone()),
                None => Err(table::Error::MissingColumn(name)),
            }
        })
        .collect()
}
