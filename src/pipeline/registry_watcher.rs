//! Follows the registry's aliases, and puts what they point to into service.
//!
//! It asks for all aliases in one call, compares them with what each group has, and loads only what
//! changed. A version that it has offered to a group once is not offered again until its alias moves, or
//! the group has yet another: one that the group refused would be loaded at every turn, and one that the
//! sidecar has trained while the registry was away would be replaced by its predecessor.

use super::engine::WeakEngineHandle;
use super::group::deployment::{DeployedVersion, Deployment};
use crate::detector::Detector;
use crate::models::registry::{self, Aliases, CHALLENGER, Registry};
use crate::models::{DeployedModel, Model};
use crate::prom::Labels;
use crate::train::{Backends, CircuitBreaker, GroupReader, catch_up};
use crate::window::ModelRole;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use tokio::sync::watch;
use tracing::{info, warn};

/// A model's registered name and its version.
type RegisteredVersion = (String, u64);

/// What the keeper counts.
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
    /// What each group was offered last and had then, by detector, labels and voice.
    offered: HashMap<(String, Labels, ModelRole), (RegisteredVersion, Option<DeployedVersion>)>,
    circuit_breaker: CircuitBreaker,
    was_up: bool,
}

impl RegistryWatcher {
    /// A keeper that has offered nothing yet.
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

    /// Looks at the registry again and again, until the engine is gone.
    pub async fn run(mut self) {
        loop {
            let backends = self.backends.borrow().clone();
            match self.poll(&backends).await {
                Ok(Some(())) => {
                    if !std::mem::replace(&mut self.was_up, true) {
                        info!(component = "models", "the registry answers again");
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
                            "the registry does not answer, what serves goes on"
                        );
                    }
                }
            }
            tokio::time::sleep(backends.registry_config.poll_interval).await;
        }
    }

    /// One look. `None` when the engine is gone.
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
        // Groups that are gone are forgotten.
        self.offered.retain(|(detector, labels, _), _| {
            deployments
                .iter()
                .any(|deployment| deployment.detector == *detector && deployment.labels == *labels)
        });
        let mut loaded = HashMap::new();
        for deployment in deployments {
            let champion =
                (ModelRole::Champion, backends.registry_config.alias.as_str(), &deployment.champion);
            let challenger = (ModelRole::Challenger, CHALLENGER, &deployment.challenger);
            for (role, alias, current) in [champion, challenger] {
                self.reconcile(backends, &aliases, &mut loaded, &deployment, role, alias, current.as_ref())
                    .await?;
            }
        }
        Ok(Some(()))
    }

    /// Puts what an alias points to into a group's place.
    #[expect(clippy::too_many_arguments, reason = "one place, seen from all sides")]
    async fn reconcile(
        &mut self,
        backends: &Backends,
        aliases: &Aliases,
        loaded: &mut HashMap<RegisteredVersion, Arc<Model>>,
        deployment: &Deployment,
        role: ModelRole,
        alias: &str,
        current: Option<&DeployedVersion>,
    ) -> Result<(), registry::Error> {
        // A group without a model asks the registry itself, before it is trained.
        if deployment.champion.is_none() {
            return Ok(());
        }
        let Some(detector) = backends.detectors.iter().find(|detector| detector.name == deployment.detector)
        else {
            return Ok(());
        };
        let model = backends.registry_config.model_name(&detector.name);
        let own_model_name = registry::group_model_name(&model, &deployment.labels);
        let key = (deployment.detector.clone(), deployment.labels.clone(), role);
        let Some(desired) = registry::version_for_group(aliases, &model, &own_model_name, alias) else {
            self.offered.remove(&key);
            if role == ModelRole::Challenger && current.is_some() {
                self.engine.deploy(deployment.group, role, None, None).await;
            }
            return Ok(());
        };
        let is_deployed =
            current.is_some_and(|(name, version)| *name == desired.0 && *version == Some(desired.1));
        let last_offer = self.offered.insert(key, (desired.clone(), current.cloned()));
        let is_unregistered = current.is_some_and(|(_, version)| version.is_none());
        // A training that was under way when the alias moved may have taken the place meanwhile.
        let is_already_offered = last_offer.is_some_and(|(offered, offered_against)| {
            offered == desired && (is_unregistered || offered_against.as_ref() == current)
        });
        if is_deployed || is_already_offered {
            return Ok(());
        }
        let (name, version) = desired.clone();
        let model = match loaded.get(&desired) {
            Some(model) => Arc::clone(model),
            None => match load(&backends.registry, detector, &name, version).await {
                Ok(model) => Arc::clone(loaded.entry(desired).or_insert(model)),
                Err(error @ registry::Error::Import { .. }) => {
                    warn!(component = "models", err = crate::error::chain(&error), "model refused");
                    return Ok(());
                }
                Err(error) => {
                    // It was not offered after all.
                    self.offered.remove(&(deployment.detector.clone(), deployment.labels.clone(), role));
                    return Err(error);
                }
            },
        };
        if !model.is_compatible(detector.window, &deployment.labels) {
            warn!(component = "models", detector = detector.name, group = %deployment.labels, model = name, version, "model refused: it is another group's, or the window is too short for it");
            return Ok(());
        }
        // Rows after the newest scored one are for the group to score.
        let detection = match deployment.newest_scored_ms {
            Some(to_ms) => {
                let mut reader = GroupReader {
                    backends,
                    circuit_breaker: &mut self.circuit_breaker,
                    detector,
                    labels: &deployment.labels,
                };
                catch_up::read_and_advance(&mut reader, &model, to_ms).await
            }
            None => None,
        };
        let deployed = Some(DeployedModel { model, name, version: Some(version) });
        self.engine.deploy(deployment.group, role, deployed, detection).await;
        Ok(())
    }
}

async fn load(
    registry: &Registry,
    detector: &Detector,
    name: &str,
    version: u64,
) -> Result<Arc<Model>, registry::Error> {
    let semantics = detector.transform.rate_semantics().unwrap_or_default();
    Ok(Arc::new(registry.load(name, version, semantics).await?))
}
