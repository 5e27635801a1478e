//! Deploys the model versions that the aliases of the registry point to.
//!
//! A poll reads the aliases of the models of own groups, however many sidecars share the registry; only versions that a group does not have are loaded. A version that a
//! group took or rejected for good is not offered again until its alias moves or the group has yet another model.
//! Otherwise a version that the group rejected would be loaded at every poll, and a model that the sidecar trained
//! while the registry was down would be replaced by its predecessor. A version that lacks a feature now, because its
//! target is down, is offered again when the group has the feature. A version that cannot be read is tried again at
//! the next poll, and does not keep the others from their groups.

use super::gap_filler::split_series;
use crate::detector::{Detector, FeatureIdentity};
use crate::history::{Pace, SeriesSamples};
use crate::models::registry::{self, AliasListing, CHALLENGER};
use crate::models::{DeployedModel, Model};
use crate::pipeline::engine::WeakEngineHandle;
use crate::pipeline::group::deployment::{DeployOutcome, DeployedVersion, Deployment};
use crate::pipeline::groups::metric_labels;
use crate::prom::Labels;
use crate::telemetry::register;
use crate::train::catch_up::CatchUp;
use crate::train::{Backends, CircuitBreaker, GroupReader, WarmStart};
use crate::window::ModelRole;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use tokio::sync::watch;
use tracing::{info, warn};

/// Registered name and version of a model.
type RegisteredVersion = (String, u64);

/// Labels of a group's metrics.
type GroupLabels = Vec<(String, String)>;

/// Detector, group labels and role.
type SlotKey = (String, Labels, ModelRole);

/// Metrics of the watcher.
#[derive(Clone)]
pub struct Metrics {
    up: Gauge,
    failures: Counter,
    pinned: Family<GroupLabels, Gauge>,
}

impl Metrics {
    /// Registers the metrics.
    pub fn new(registry: &mut prometheus_client::registry::Registry) -> Self {
        Self {
            pinned: register(
                registry,
                "model_pinned",
                "Whether the champion is pinned: trainings then register as challenger",
            ),
            up: register(
                registry,
                "model_registry_up",
                "Whether the last poll of the model registry succeeded",
            ),
            failures: register(
                registry,
                "model_registry_failures",
                "Failed polls of the model registry, and models and versions that a poll could not read",
            ),
        }
    }
}

/// An offer that the slot took or rejected.
struct Offer {
    version: RegisteredVersion,
    /// The model that the slot had then.
    previous: Option<DeployedVersion>,
    /// The feature of the version that the group lacked, if any: the version is offered again once the group has it.
    missing: Option<Labels>,
}

/// The aliases and versions that one poll reads.
struct Poll {
    listing: AliasListing,
    loaded: HashMap<RegisteredVersion, LoadedVersion>,
    /// Errors of models and versions that cannot be read, in the order of the groups.
    failures: Vec<registry::Error>,
}

/// The result of loading a version.
#[derive(Clone)]
enum LoadedVersion {
    Model(DeployedModel),
    /// The files are no model that can serve: loading them again has the same result.
    Invalid,
    Unreadable,
}

/// See the [module](self).
pub struct RegistryWatcher {
    engine: WeakEngineHandle,
    backends: watch::Receiver<Arc<Backends>>,
    metrics: Metrics,
    /// The last offer to each slot.
    offered: HashMap<SlotKey, Offer>,
    circuit_breaker: CircuitBreaker,
    /// Groups with the metric of a pin.
    pinned_series: HashSet<GroupLabels>,
    /// The newest version of each model that the watcher tried to record.
    recorded: HashMap<String, u64>,
    was_up: bool,
    /// Texts of the errors of the last poll: an error is logged when it appears.
    failures: BTreeSet<String>,
}

impl RegistryWatcher {
    /// A watcher that has offered nothing yet.
    pub fn new(engine: WeakEngineHandle, backends: watch::Receiver<Arc<Backends>>, metrics: Metrics) -> Self {
        Self {
            engine,
            backends,
            metrics,
            offered: HashMap::new(),
            circuit_breaker: CircuitBreaker::default(),
            pinned_series: HashSet::new(),
            recorded: HashMap::new(),
            was_up: true,
            failures: BTreeSet::new(),
        }
    }

    /// Polls the registry until the engine is gone.
    pub async fn run(mut self) {
        loop {
            if self.backends.has_changed().unwrap_or(false) {
                self.forget_rejections();
            }
            let backends = self.backends.borrow_and_update().clone();
            match self.poll(&backends).await {
                Ok(Some(failures)) => {
                    self.report(&failures);
                    if !std::mem::replace(&mut self.was_up, true) {
                        info!(component = "models", "the model registry answers again");
                    }
                    self.metrics.up.set(1);
                }
                Ok(None) => return,
                Err(error) => {
                    self.metrics.up.set(0);
                    self.metrics.failures.inc();
                    if std::mem::replace(&mut self.was_up, false) {
                        warn!(
                            component = "models",
                            err = crate::error::chain(&error),
                            "the model registry does not answer: the deployed models stay in service"
                        );
                    }
                }
            }
            tokio::time::sleep(backends.registry_config.poll_interval).await;
        }
    }

    /// Another configuration may accept what the previous one rejected. A model that the registry does not have stays.
    fn forget_rejections(&mut self) {
        self.offered.retain(|_, offer| offer.previous.as_ref().is_some_and(|(_, version)| version.is_none()));
    }

    /// Counts the models and versions that cannot be read, and logs those that the last poll could read.
    fn report(&mut self, failures: &[registry::Error]) {
        self.metrics.failures.inc_by(failures.len() as u64);
        let texts: BTreeSet<String> = failures.iter().map(|error| crate::error::chain(error)).collect();
        for text in texts.difference(&self.failures) {
            warn!(
                component = "models",
                err = text,
                "a model cannot be read: the deployed one stays in service"
            );
        }
        self.failures = texts;
    }

    /// Polls the aliases once and reconciles every group. Returns the errors of single models and versions; `None` when
    /// the engine is gone.
    ///
    /// # Errors
    /// [`registry::Error`] if the registry does not answer.
    async fn poll(&mut self, backends: &Backends) -> Result<Option<Vec<registry::Error>>, registry::Error> {
        let Some(deployments) = self.engine.list_deployments().await else { return Ok(None) };
        // The offers of groups that are gone are forgotten.
        let present: HashSet<(&str, &Labels)> =
            deployments.iter().map(|deployment| (deployment.detector.as_str(), &deployment.labels)).collect();
        self.offered.retain(|(detector, labels, _), _| present.contains(&(detector.as_str(), labels)));
        let champions = champion_slots(backends, &deployments);
        let mut poll = Poll::new(backends, &champions).await?;
        self.show_pins(backends, &poll.listing, &champions);
        self.record_versions(backends, &poll.listing, &champions).await;
        for deployment in &deployments {
            let detector = backends.detectors.iter().find(|detector| detector.name == deployment.detector);
            // A group without a model asks the registry itself, before it is trained.
            let Some(detector) = detector.filter(|_| deployment.champion.is_some()) else { continue };
            for role in [ModelRole::Champion, ModelRole::Challenger] {
                let slot = Slot { detector, deployment, role };
                if self.reconcile(backends, &mut poll, slot).await?.is_none() {
                    return Ok(None);
                }
            }
        }
        poll.failures.extend(poll.listing.unreadable.into_values());
        Ok(Some(poll.failures))
    }

    /// Sets the metric of the pins.
    fn show_pins(&mut self, backends: &Backends, listing: &AliasListing, champions: &[Slot<'_>]) {
        let mut series = HashSet::new();
        for slot in champions {
            let Some((name, _)) = slot.desired(backends, listing) else { continue };
            let pinned = listing
                .aliases
                .get(&name)
                .and_then(|model| model.pinned_version(&backends.registry_config.alias));
            let labels = metric_labels(&slot.detector.name, &slot.deployment.labels);
            self.metrics.pinned.get_or_create(&labels).set(i64::from(pinned.is_some()));
            series.insert(labels);
        }
        for gone in self.pinned_series.difference(&series) {
            self.metrics.pinned.remove(gone);
        }
        self.pinned_series = series;
    }

    /// Records versions that another program promoted, so that a later move of their alias back is a rollback.
    async fn record_versions(&mut self, backends: &Backends, listing: &AliasListing, champions: &[Slot<'_>]) {
        let alias = &backends.registry_config.alias;
        for slot in champions {
            let Some((name, _)) = slot.desired(backends, listing) else { continue };
            let version = listing.aliases.get(&name).and_then(|model| model.unrecorded_version(alias));
            let Some(version) = version.filter(|version| self.recorded.get(&name) != Some(version)) else {
                continue;
            };
            if let Err(error) = backends.registry.record_version(&name, alias, version).await {
                let err = crate::error::chain(&error);
                warn!(
                    component = "models",
                    model = name,
                    version,
                    err,
                    "the version in service cannot be recorded: a rollback by another program would not be recognised"
                );
            }
            self.recorded.insert(name, version);
        }
    }

    /// Offers a slot the version that its alias points to, unless the slot has it or has settled the same offer.
    /// `None` when the engine is gone.
    async fn reconcile(
        &mut self,
        backends: &Backends,
        poll: &mut Poll,
        slot: Slot<'_>,
    ) -> Result<Option<()>, registry::Error> {
        let Slot { deployment, role, .. } = slot;
        if slot.is_unreadable(backends, &poll.listing) {
            return Ok(Some(()));
        }
        let Some(desired) = slot.desired(backends, &poll.listing) else {
            self.offered.remove(&slot.key());
            if role == ModelRole::Challenger && slot.current().is_some() {
                return Ok(self
                    .engine
                    .deploy(deployment.group, role, None, WarmStart::default())
                    .await
                    .map(drop));
            }
            return Ok(Some(()));
        };
        if slot.lacks_history(&desired)
            && let LoadedVersion::Model(deployed) = poll.load(backends, slot, &desired).await?
            && self.join_history(backends, slot, deployed).await.is_none()
        {
            return Ok(None);
        }
        let Some(is_settled) = self.is_settled(slot, &desired).await else { return Ok(None) };
        let missing = if is_settled {
            let offer = self.offered.remove(&slot.key()).filter(|offer| offer.version == desired);
            offer.and_then(|offer| offer.missing).filter(|_| !slot.has(&desired))
        } else {
            match poll.load(backends, slot, &desired).await? {
                LoadedVersion::Unreadable => return Ok(Some(())),
                LoadedVersion::Invalid => None,
                LoadedVersion::Model(deployed) if !slot.accepts(&deployed.model, &desired) => None,
                LoadedVersion::Model(deployed) => match self.offer(backends, slot, deployed).await {
                    None => return Ok(None),
                    // The next poll offers it to the group's successor.
                    Some(DeployOutcome::Gone) => return Ok(Some(())),
                    Some(DeployOutcome::Taken) => None,
                    Some(DeployOutcome::Refused { missing }) => Some(missing),
                },
            }
        };
        let offer = Offer { version: desired, previous: slot.current().cloned(), missing };
        self.offered.insert(slot.key(), offer);
        Ok(Some(()))
    }

    /// True if the slot has this version, or has settled an offer of it with the same model as now: a training that was
    /// under way when the alias moved may have filled the slot since. `None` when the engine is gone.
    async fn is_settled(&self, slot: Slot<'_>, desired: &RegisteredVersion) -> Option<bool> {
        if slot.has(desired) {
            return Some(true);
        }
        let Some(offer) = self.offered.get(&slot.key()).filter(|offer| offer.version == *desired) else {
            return Some(false);
        };
        if let Some(feature) = &offer.missing {
            return Some(!self.engine.has_feature(slot.deployment.group, feature.clone()).await?);
        }
        let is_unregistered = slot.current().is_some_and(|(_, version)| version.is_none());
        Some(is_unregistered || offer.previous.as_ref() == slot.current())
    }

    /// Offers a version to a slot. `None` when the engine is gone.
    async fn offer(
        &mut self,
        backends: &Backends,
        slot: Slot<'_>,
        deployed: DeployedModel,
    ) -> Option<DeployOutcome> {
        let Slot { deployment, role, .. } = slot;
        // The group itself scores the rows after its newest scored one.
        let warm_start = match deployment.newest_scored_ms {
            Some(to_ms) => {
                let CatchUp { detection, is_complete, .. } =
                    self.read_history(backends, slot, &deployed.model, to_ms).await;
                WarmStart { detection, is_incomplete: !is_complete, ..WarmStart::default() }
            }
            None => WarmStart::default(),
        };
        self.engine.deploy(deployment.group, role, Some(deployed), warm_start).await
    }

    /// Joins the history that no source returned when the champion began to serve: its samples, and the state of
    /// the model after them. `None` when the engine is gone.
    async fn join_history(
        &mut self,
        backends: &Backends,
        slot: Slot<'_>,
        deployed: DeployedModel,
    ) -> Option<()> {
        let Slot { detector, deployment, role } = slot;
        let Some(to_ms) = deployment.newest_scored_ms else { return Some(()) };
        let CatchUp { detection, series, is_complete } =
            self.read_history(backends, slot, &deployed.model, to_ms).await;
        if !is_complete {
            return Some(());
        }
        let with_group = |(feature, samples): SeriesSamples| (feature.union(&deployment.labels), samples);
        for chunk in split_series(series.into_iter().map(with_group).collect()) {
            self.engine.backfill(detector.clone(), chunk).await?;
        }
        let warm_start = WarmStart { detection, ..WarmStart::default() };
        self.engine.deploy(deployment.group, role, Some(deployed), warm_start).await.map(drop)
    }

    async fn read_history(
        &mut self,
        backends: &Backends,
        slot: Slot<'_>,
        model: &Model,
        to_ms: i64,
    ) -> CatchUp {
        let Slot { detector, deployment, .. } = slot;
        let circuit_breaker = &self.circuit_breaker;
        let identity = FeatureIdentity::of_features(detector, model.schema.features.iter());
        let labels = &deployment.labels;
        let pace = Pace::Quarter;
        let mut reader = GroupReader { backends, circuit_breaker, detector, labels, identity, pace };
        CatchUp::read(&mut reader, model, to_ms).await
    }
}

impl Poll {
    /// Reads the aliases of the models of the detectors and of these groups.
    async fn new(backends: &Backends, champions: &[Slot<'_>]) -> Result<Self, registry::Error> {
        let name = |detector: &Arc<Detector>| backends.registry_config.model_name(&detector.name);
        let of_detectors = backends.detectors.iter().map(name);
        let of_groups = champions.iter().flat_map(|slot| slot.model_names(backends));
        let listing = backends.registry.list_aliases(&of_detectors.chain(of_groups).collect()).await?;
        Ok(Self { listing, loaded: HashMap::new(), failures: Vec::new() })
    }

    /// Loads a version, once for all groups that share it.
    ///
    /// # Errors
    /// [`registry::Error`] if the registry does not answer.
    async fn load(
        &mut self,
        backends: &Backends,
        slot: Slot<'_>,
        desired: &RegisteredVersion,
    ) -> Result<LoadedVersion, registry::Error> {
        if let Some(loaded) = self.loaded.get(desired) {
            return Ok(loaded.clone());
        }
        let semantics = slot.detector.transform.rate_semantics().unwrap_or_default();
        let loaded = match backends.registry.load(&desired.0, desired.1, semantics).await {
            Ok(model) => {
                let (name, version) = desired.clone();
                LoadedVersion::Model(DeployedModel::new(Arc::new(model), name, Some(version)))
            }
            Err(error @ registry::Error::Import { .. }) => {
                warn!(component = "models", err = crate::error::chain(&error), "model rejected");
                LoadedVersion::Invalid
            }
            Err(error) if error.concerns_one_version() => {
                self.failures.push(error);
                LoadedVersion::Unreadable
            }
            Err(error) => return Err(error),
        };
        self.loaded.insert(desired.clone(), loaded.clone());
        Ok(loaded)
    }
}

/// The champions of the groups that have one.
fn champion_slots<'a>(backends: &'a Backends, deployments: &'a [Deployment]) -> Vec<Slot<'a>> {
    let slot = |deployment: &'a Deployment| {
        let detector = backends.detectors.iter().find(|detector| detector.name == deployment.detector)?;
        deployment.champion.as_ref()?;
        Some(Slot { detector, deployment, role: ModelRole::Champion })
    };
    deployments.iter().filter_map(slot).collect()
}

/// The place of a model in a group.
#[derive(Clone, Copy)]
struct Slot<'a> {
    detector: &'a Arc<Detector>,
    deployment: &'a Deployment,
    role: ModelRole,
}

impl Slot<'_> {
    fn key(self) -> SlotKey {
        (self.deployment.detector.clone(), self.deployment.labels.clone(), self.role)
    }

    /// The model in the slot.
    fn current(&self) -> Option<&DeployedVersion> {
        match self.role {
            ModelRole::Champion => self.deployment.champion.as_ref(),
            ModelRole::Challenger => self.deployment.challenger.as_ref(),
        }
    }

    /// The names of the detector's models and of the group's.
    fn model_names(self, backends: &Backends) -> [String; 2] {
        let model = backends.registry_config.model_name(&self.detector.name);
        let (detector, labels) = (&self.detector, &self.deployment.labels);
        let tenant = detector.tenant_of(labels);
        let group_model = registry::group_model_name(&model, &detector.by, tenant.as_ref(), labels);
        [model, group_model]
    }

    /// True if the aliases of a model of the slot cannot be read.
    fn is_unreadable(self, backends: &Backends, listing: &AliasListing) -> bool {
        self.model_names(backends).iter().any(|name| listing.unreadable.contains_key(name))
    }

    /// The version that the alias of the slot points to. A champion is not its own challenger.
    fn desired(self, backends: &Backends, listing: &AliasListing) -> Option<RegisteredVersion> {
        let [model, group_model] = self.model_names(backends);
        let version =
            |alias: &str| registry::version_for_group(&listing.aliases, &model, &group_model, alias);
        let champion = version(&backends.registry_config.alias);
        match self.role {
            ModelRole::Champion => champion,
            ModelRole::Challenger => version(CHALLENGER).filter(|version| champion.as_ref() != Some(version)),
        }
    }

    /// True if a model can serve the group. A rejection is logged.
    fn accepts(self, model: &Model, (name, version): &RegisteredVersion) -> bool {
        let Slot { detector, deployment, .. } = self;
        let is_compatible = model.is_compatible(detector.window, detector.transform, &deployment.labels);
        if !is_compatible {
            warn!(component = "models", detector = detector.name, group = %deployment.labels, model = name, version, "model rejected: it is another group's or of another transform, or the window is too short for it");
        }
        is_compatible
    }

    /// True if this version serves without history that a source may have.
    fn lacks_history(self, desired: &RegisteredVersion) -> bool {
        self.role == ModelRole::Champion && self.deployment.lacks_history && self.has(desired)
    }

    fn has(self, (name, version): &RegisteredVersion) -> bool {
        self.current().is_some_and(|current| current.0 == *name && current.1 == Some(*version))
    }
}

#[cfg(test)]
mod tests;
