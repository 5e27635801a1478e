//! Follows the registry's aliases, and puts what they point to into service.
//!
//! It asks for all aliases in one call, compares them with what each group has, and loads only what
//! changed. A version that it has offered to a group once is not offered again until its alias moves, or
//! the group has yet another: one that the group refused would be loaded at every turn, and one that the
//! sidecar has trained while the registry was away would be replaced by its predecessor.

use super::engine::Command;
use crate::config::Detector;
use crate::models::registry::{self, Aliases, CHALLENGER, Registry};
use crate::models::{Deployed, Model};
use crate::prom::Labels;
use crate::train::trainer::{self, Outside, Resting};
use crate::window::Voice;
use crate::yaml;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{info, warn};

/// A model's registered name and its version.
type Target = (String, u64);

/// The name of a model in its place, and its version if the registry has it.
type Occupant = (String, Option<u64>);

/// Which models a group has.
#[derive(Clone, Debug, PartialEq)]
pub struct Place {
    /// The group.
    pub group: u32,
    /// Its detector.
    pub detector: String,
    /// Its labels.
    pub labels: Labels,
    /// Name and version of the model in service; none without one.
    pub champion: Option<Occupant>,
    /// Name and version of the one beside it.
    pub challenger: Option<Occupant>,
    /// Timestamp of the newest scored row, if there is one.
    pub scored_ms: Option<i64>,
}

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
        registry.register("registry_up", "Did the model registry answer the last time?", metrics.up.clone());
        registry.register(
            "registry_failures",
            "Looks at the model registry that failed",
            metrics.failures.clone(),
        );
        metrics
    }
}

/// See the [module](self).
pub struct Keeper {
    engine: mpsc::WeakSender<Command>,
    outside: watch::Receiver<Arc<Outside>>,
    metrics: Metrics,
    /// What each group was offered last and had then, by detector, labels and voice.
    offered: HashMap<(String, Labels, Voice), (Target, Option<Occupant>)>,
    resting: Resting,
    was_up: bool,
}

impl Keeper {
    /// A keeper that has offered nothing yet.
    pub fn new(
        engine: mpsc::WeakSender<Command>,
        outside: watch::Receiver<Arc<Outside>>,
        metrics: Metrics,
    ) -> Self {
        Self { engine, outside, metrics, offered: HashMap::new(), resting: Resting::default(), was_up: true }
    }

    /// Looks at the registry again and again, until the engine is gone.
    pub async fn run(mut self) {
        loop {
            let outside = self.outside.borrow().clone();
            match self.look(&outside).await {
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
                            err = yaml::chain(&error),
                            "the registry does not answer, what serves goes on"
                        );
                    }
                }
            }
            tokio::time::sleep(outside.registry_config.poll_interval).await;
        }
    }

    /// One look. `None` when the engine is gone.
    async fn look(&mut self, outside: &Outside) -> Result<Option<()>, registry::Error> {
        let models: HashSet<String> =
            outside.detectors.iter().map(|detector| outside.registry_config.model(&detector.name)).collect();
        let mut aliases = Aliases::new();
        for model in models {
            aliases.extend(outside.registry.aliases(&model).await?);
        }
        let (reply, places) = oneshot::channel();
        if !self.send(Command::Places(reply)).await {
            return Ok(None);
        }
        let Ok(places) = places.await else { return Ok(None) };
        // Groups that are gone are forgotten.
        self.offered.retain(|(detector, labels, _), _| {
            places.iter().any(|place| place.detector == *detector && place.labels == *labels)
        });
        let mut loaded = HashMap::new();
        for place in places {
            let champion = (Voice::Champion, outside.registry_config.alias.as_str(), &place.champion);
            let challenger = (Voice::Challenger, CHALLENGER, &place.challenger);
            for (voice, alias, current) in [champion, challenger] {
                self.fill(outside, &aliases, &mut loaded, &place, voice, alias, current.as_ref()).await?;
            }
        }
        Ok(Some(()))
    }

    /// Puts what an alias points to into a group's place.
    #[expect(clippy::too_many_arguments, reason = "one place, seen from all sides")]
    async fn fill(
        &mut self,
        outside: &Outside,
        aliases: &Aliases,
        loaded: &mut HashMap<Target, Arc<Model>>,
        place: &Place,
        voice: Voice,
        alias: &str,
        current: Option<&Occupant>,
    ) -> Result<(), registry::Error> {
        // A group without a model asks the registry itself, before it is trained.
        if place.champion.is_none() {
            return Ok(());
        }
        let Some(detector) = outside.detectors.iter().find(|detector| detector.name == place.detector) else {
            return Ok(());
        };
        let model = outside.registry_config.model(&detector.name);
        let own = registry::group_model(&model, &place.labels);
        let key = (place.detector.clone(), place.labels.clone(), voice);
        let Some(target) = registry::of_group(aliases, &model, &own, alias) else {
            self.offered.remove(&key);
            if voice == Voice::Challenger && current.is_some() {
                let nothing = Command::Deploy { group: place.group, voice, deployed: None, advanced: None };
                self.send(nothing).await;
            }
            return Ok(());
        };
        let serves = current.is_some_and(|(name, version)| *name == target.0 && *version == Some(target.1));
        let before = self.offered.insert(key, (target.clone(), current.cloned()));
        let is_unregistered = current.is_some_and(|(_, version)| version.is_none());
        // A training that was under way when the alias moved may have taken the place meanwhile.
        let in_vain = before.is_some_and(|(offered, occupant)| {
            offered == target && (is_unregistered || occupant.as_ref() == current)
        });
        if serves || in_vain {
            return Ok(());
        }
        let (name, version) = target.clone();
        let model = match loaded.get(&target) {
            Some(model) => Arc::clone(model),
            None => match load(&outside.registry, detector, &name, version).await {
                Ok(model) => Arc::clone(loaded.entry(target).or_insert(model)),
                Err(error @ registry::Error::Import { .. }) => {
                    warn!(component = "models", err = yaml::chain(&error), "model refused");
                    return Ok(());
                }
                Err(error) => {
                    // It was not offered after all.
                    self.offered.remove(&(place.detector.clone(), place.labels.clone(), voice));
                    return Err(error);
                }
            },
        };
        if !model.suits(detector.window, &place.labels) {
            warn!(component = "models", detector = detector.name, group = %place.labels, model = name, version, "model refused: it is another group's, or the window is too short for it");
            return Ok(());
        }
        // Rows after the newest scored one are for the group to score.
        let advanced = match place.scored_ms {
            Some(to_ms) => {
                let Self { resting, .. } = self;
                trainer::advanced(outside, resting, detector, &place.labels, &model, to_ms).await
            }
            None => None,
        };
        let deployed = Some(Deployed { model, name, version: Some(version) });
        self.send(Command::Deploy { group: place.group, voice, deployed, advanced }).await;
        Ok(())
    }

    async fn send(&self, command: Command) -> bool {
        match self.engine.upgrade() {
            Some(engine) => engine.send(command).await.is_ok(),
            None => false,
        }
    }
}

async fn load(
    registry: &Registry,
    detector: &Detector,
    name: &str,
    version: u64,
) -> Result<Arc<Model>, registry::Error> {
    let semantics = detector.transform.semantics().unwrap_or_default();
    Ok(Arc::new(registry.load(name, version, semantics).await?))
}
