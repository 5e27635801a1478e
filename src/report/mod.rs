//! Reports as one HTML file: inline SVG, no external script.
//!
//! Plots are written here as text. A plotting crate draws images of a fixed size in its own colours; these plots fit any
//! width, follow the reader's light or dark scheme, and keep their text readable on a phone.

pub mod backtest;
pub mod page;
pub(crate) mod plot;
pub mod scale;
pub mod text;
pub(crate) mod time_axis;
pub mod training;
pub mod zone;
