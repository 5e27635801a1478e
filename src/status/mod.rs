//! The state of the sidecar as web pages and as JSON.
//!
//! The engine hands out plain values of this room; pages and JSON are written from them on other threads, so that a
//! reader does not delay a score. A page is complete without a script, and needs nothing from another origin. A single
//! page application was not taken: at three o'clock at night the first response must hold the answer.

pub mod data_path;
pub mod fleet;
mod grafana;
mod frame;
pub mod group;
pub mod group_page;
mod incidents;
pub mod json;
pub mod overview;
mod ribbon;
pub mod server;
mod words;

pub use frame::{ICON, SCRIPT, style_sheet};

#[cfg(test)]
mod tests;
