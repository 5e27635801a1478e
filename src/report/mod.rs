//! Pages for people: one self-contained HTML file each, plots as inline SVG, no script from outside.
//!
//! Plots are written here as text instead of by a plotting crate: those draw pictures of a fixed size
//! with colours of their own, and ours have to fit any width, follow the reader's light or dark, and
//! keep their letters readable on a telephone.

pub mod backtest;
mod page;
mod svg;
mod text;
pub mod training;
