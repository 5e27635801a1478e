//! Deploys the model versions that the aliases of the registry point to.
//!
//! One request reads the aliases of a model; only versions that a group does not have are loaded. A version that was
//! offered to a group is not offered again until its alias moves or the group has yet another model. Otherwise a
//! version that the group rejected would be loaded at every poll, and a model that the sidecar trained while the
//! registry was down would be replaced by its predecessor.

use crate::detector::Detector;
use crate::models::registry::{self, Aliases, CHALLENGER};
use crate::models::{DeployedModel, Model};
use crate::pipeline::engine::WeakEngineHandle;
use crate::pipeline::group::deployment::{DeployedVersion, Deployment};
use crate::prom::Labels;
use crate::train::{Backends, CircuitBreaker, GroupReader, catch_up};
use crate::window::ModelRole;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use tokio::sync::watch;
use tracing::{info, warn};

/// Registered name and version of a model.
type RegisteredVersion = (String, u64);

/// A version that was offered, and the model that the slot had then.
type Offer = (RegisteredVersion, Option<DeployedVersion>);

/// Detector, group labels and role.
type SlotKey = (String, Labels, ModelRole);

/// Metrics of the watcher.
#[derive(Clone)]
pub struct Metrics {
    up: Gauge,
    failures: Counter,
}

impl Metrics {
    /// Registers the metrics.
    pub fn new(registry: &mut prometheus_client::registry::Registry) -> Self {
        let metrics = Self { up: Gauge::default(), failures: Counter::default() };
        registry.register(
            "model_registry_up",
            "Whether the last poll of the model registry succeeded",
            metrics.up.clone(),
        );
        registry.register(
            "model_registry_failures",
            "Failed polls of the model registry",
            metrics.failures.clone(),
        );
        metrics
    }
}

/// See the [module](self).
pub struct RegistryWatcher {
    engine: WeakEngineHandle,
    backends: watch::Receiver<Arc<Backends>>,
    metrics: Metrics,
    /// The last offer to each slot.
    offered: HashMap<SlotKey, Offer>,
    circuit_breaker: CircuitBreaker,
    was_up: bool,
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
            was_up: true,
        }
    }

    /// Polls the registry until the engine is gone.
    pub async fn run(mut self) {
        loop {
            let backends = self.backends.borrow().clone();
            match self.poll(&backends).await {
                Ok(Some(())) => {
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

    /// Polls the aliases once and reconciles every group. `None` when the engine is gone.
    async fn poll(&mut self, backends: &Backends) -> Result<Option<()>, registry::Error> {
        let models: HashSet<String> = backends
            .detectors
            .iter()
            .map(|detector| backends.registry_config.model_name(&detector.name))
            .collect();
        let mut aliases = Aliases::new();
        for model in models {
            aliases.extend(backends.registry.aliases(&model).await?);
        }
        let Some(deployments) = self.engine.list_deployments().await else { return Ok(None) };
        // The offers of groups that are gone are forgotten.
        self.offered.retain(|(detector, labels, _), _| {
            deployments
                .iter()
                .any(|deployment| deployment.detector == *detector && deployment.labels == *labels)
        });
        let mut loaded = HashMap::new();
        for deployment in &deployments {
            let detector = backends.detectors.iter().find(|detector| detector.name == deployment.detector);
            // A group without a model asks the registry itself, before it is trained.
            let Some(detector) = detector.filter(|_| deployment.champion.is_some()) else { continue };
            for role in [ModelRole::Champion, ModelRole::Challenger] {
                let slot = Slot { detector, deployment, role };
                self.reconcile(backends, &aliases, &mut loaded, slot).await?;
            }
        }
        Ok(Some(()))
    }

    /// Offers a slot the version that its alias points to, unless the slot has it or was offered it before.
    async fn reconcile(
        &mut self,
        backends: &Backends,
        aliases: &Aliases,
        loaded: &mut HashMap<RegisteredVersion, Arc<Model>>,
        slot: Slot<'_>,
    ) -> Result<(), registry::Error> {
        let Some(desired) = slot.desired(backends, aliases) else {
            self.offered.remove(&slot.key());
            if slot.role == ModelRole::Challenger && slot.current().is_some() {
                self.engine.deploy(slot.deployment.group, slot.role, None, None).await;
            }
            return Ok(());
        };
        let previous = self.offered.insert(slot.key(), (desired.clone(), slot.current().cloned()));
        if slot.has(&desired) || slot.was_offered(&desired, previous) {
            return Ok(());
        }
        let Some(model) = self.load(backends, loaded, slot, &desired).await? else { return Ok(()) };
        let Slot { detector, deployment, .. } = slot;
        let (name, version) = desired;
        if !model.is_compatible(detector.window, &deployment.labels) {
            warn!(component = "models", detector = detector.name, group = %deployment.labels, model = name, version, "model rejected: it is another group's, or the window is too short for it");
            return Ok(());
        }
        // The group itself scores the rows after its newest scored one.
        let detection = match deployment.newest_scored_ms {
            Some(to_ms) => {
                let circuit_breaker = &mut self.circuit_breaker;
                let mut reader =
                    GroupReader { backends, circuit_breaker, detector, labels: &deployment.labels };
                catch_up::read_and_advance(&mut reader, &model, to_ms).await
            }
            None => None,
        };
        let deployed = Some(DeployedModel { model, name, version: Some(version) });
        self.engine.deploy(deployment.group, slot.role, deployed, detection).await;
        Ok(())
    }

    /// Loads a version, once for all groups that share it. `None` for one that cannot be imported.
    async fn load(
        &mut self,
        backends: &Backends,
        loaded: &mut HashMap<RegisteredVersion, Arc<Model>>,
        slot: Slot<'_>,
        desired: &RegisteredVersion,
    ) -> Result<Option<Arc<Model>>, registry::Error> {
        if let Some(model) = loaded.get(desired) {
            return Ok(Some(model.clone()));
        }
        let semantics = slot.detector.transform.rate_semantics().unwrap_or_default();
        match backends.registry.load(&desired.0, desired.1, semantics).await {
            Ok(model) => Ok(Some(loaded.entry(desired.clone()).or_insert(Arc::new(model)).clone())),
            Err(error @ registry::Error::Import { .. }) => {
                warn!(component = "models", err = crate::error::chain(&error), "model rejected");
                Ok(None)
            }
            Err(error) => {
                // The version was not offered after all.
                self.offered.remove(&slot.key());
                Err(error)
            }
        }
    }
}

/// The place of a model in a group.
#[derive(Clone, Copy)]
struct Slot<'a> {
    detector: &'a Detector,
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

    /// The version that the alias of the slot points to.
    fn desired(self, backends: &Backends, aliases: &Aliases) -> Option<RegisteredVersion> {
        let alias = match self.role {
            ModelRole::Champion => backends.registry_config.alias.as_str(),
            ModelRole::Challenger => CHALLENGER,
        };
        let model = backends.registry_config.model_name(&self.detector.name);
        let group_model = registry::group_model_name(&model, &self.deployment.labels);
        registry::version_for_group(aliases, &model, &group_model, alias)
    }

    fn has(self, (name, version): &RegisteredVersion) -> bool {
        self.current().is_some_and(|current| current.0 == *name && current.1 == Some(*version))
    }

    /// True if the previous offer was this version, and the slot has the same model as then: a training that was
    /// under way when the alias moved may have filled the slot since.
    fn was_offered(self, desired: &RegisteredVersion, previous: Option<Offer>) -> bool {
        let is_unregistered = self.current().is_some_and(|(_, version)| version.is_none());
        previous.is_some_and(|(offered, offered_against)| {
            offered == *desired && (is_unregistered || offered_against.as_ref() == self.current())
        })
    }
}
