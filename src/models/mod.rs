//! Fitted models: their types, files, registries and import formats.
//!
//! A [`Model`] has a schema (the columns and their transform), a [`FittedModel`] and a [`ModelCard`] that
//! describes its origin. Serving uses the first two; reports, registries and the promotion gate use the card.
//!
//! The kinds of forest differ in state and order of rows. Every `match` on the kind stands in this room, so that a
//! new kind changes no other room.

pub mod artifact;
pub mod columns;
mod config;
mod deployed;
mod fit;
pub mod import;
mod imported;
mod kind;
mod mlmodel;
mod model;
pub mod onnx;
pub mod registry;
mod running;
pub mod sklearn;
mod validation;

pub use config::KEY_TABLES;
pub use deployed::{DeployedModel, ModelInfo};
pub use fit::PreparedRows;
pub use imported::ImportedForest;
pub use kind::{EXTENDED_OFFSET, FittedModel, ModelKind, ModelParams, score};
pub use model::{Model, ModelCard, TrainingRange};
pub use running::RunningModel;
pub use validation::{CrossValidation, DecisionHistogram, HeldOut, Trial, quantile_divergence};
