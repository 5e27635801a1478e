//! The isolation forest alone: slices in, numbers out; no clock, no I/O, no log.
//!
//! **The idea** (Liu, Ting, Zhou 2008): random cuts isolate an unusual row sooner than a usual one,
//! so the mean depth at which a row ends up alone, over many random trees, says how unusual it is.
//! Names, defaults and arithmetic are scikit-learn's `IsolationForest`: a forest grown there and
//! read in here gives the same scores to the last bit or two, and one grown here means the same.
//!
//! ```text
//! ForestParams ─ fit(Table) ─┐
//!                            ├─ Forest ─ score_samples(row), score_table(Table)
//! TreeArrays ─ Tree ─────────┘      └─── trees() ─ TreeArrays
//! ```
//!
//! A [`Forest`] exists only fitted and checked, therefore scoring cannot fail. All refusals are in
//! front of it: [`ForestParams::fit`] judges the data, [`Tree::from_arrays`] judges trees that come
//! from a file and trusts none of their numbers.
//!
//! **Rows are `f32`, sums are `f64`.** scikit-learn rounds a row to `f32` before it compares it with
//! `f64` cuts; rounding each cut *down* to `f32` once changes no comparison and halves the node.
//!
//! **Not taken:**
//! - *Drawing scikit-learn's own random numbers* (Mersenne Twister and a 32-bit xorshift, in its
//!   order of calls), to grow equal trees from an equal seed. It would tie us to internals that
//!   have changed between its releases; equal *distributions* are what users rely on.
//! - *Vector instructions.* Sending sets of rows down a tree with AVX-512 is about twice as fast on
//!   large tables, but needs `unsafe` and a second path for other machines. Trees side by side are
//!   plain code and fast enough for a row every few seconds (see `score`).
//!
//! **Two kinds.** The above is the plain kind, with axis-parallel cuts. [`ExtendedForest`] has slanted
//! ones (see `extended`): its own parameters, nodes and walk. Both share [`Table`], the random streams of
//! `rng`, the rows of a tree (`sample`), the check of its shape, threads, and [`average_path_length`].

mod depth;
mod extended;
mod fit;
mod params;
pub mod reference;
mod rng;
mod sampling;
mod standard;
mod tree_check;
mod table;
mod threads;
mod tree;

pub use depth::average_path_length;
pub use extended::{ExtendedForest, ExtendedParams, ExtendedTree, ExtendedTreeArrays};
pub use params::{Contamination, ContaminationShare, ForestParams, MaxFeatures, MaxSamples, Share};
pub use standard::Forest;
pub use table::Table;
pub use tree::{MAX_DEPTH, MAX_FEATURES, MAX_NODES, MAX_SAMPLES, Tree, TreeArrays};

/// Why a forest was not built. Scoring has no errors.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// A parameter is outside its range: the configuration is wrong.
    #[error("{name} is {value}, must be {limit}")]
    Parameter {
        /// Name of the parameter, scikit-learn's.
        name: &'static str,
        /// The value as given.
        value: f64,
        /// The range that it must be in.
        limit: &'static str,
    },
    /// The parameters are right in themselves but not for this table: more data, or other
    /// parameters, may help.
    #[error("{name} gives {value} on a table of {n_rows} rows and {n_features} features, must be {limit}")]
    Unsuitable {
        /// Name of the parameter, scikit-learn's.
        name: &'static str,
        /// What the parameter comes to on the table.
        value: usize,
        /// Rows of the table.
        n_rows: usize,
        /// Columns of the table.
        n_features: usize,
        /// The range that it must be in.
        limit: String,
    },
    /// The table has no rows or no columns.
    #[error("table has {n_rows} rows and {n_features} features, must have at least one of each")]
    Empty {
        /// Rows of the table.
        n_rows: usize,
        /// Columns of the table.
        n_features: usize,
    },
    /// The number of values is not rows times columns.
    #[error("table has {n_values} values, must be {n_rows} rows x {n_features} features")]
    Shape {
        /// Values given.
        n_values: usize,
        /// Rows announced.
        n_rows: usize,
        /// Columns announced.
        n_features: usize,
    },
    /// A training value is NaN or infinite.
    #[error("value in row {row} of feature {feature} is {value}, must be finite")]
    NotFinite {
        /// The value.
        value: f32,
        /// Its row, from 0.
        row: usize,
        /// Its column, from 0.
        feature: usize,
    },
    /// A tree from a file is not a tree, or is larger than we hold: the file is damaged or hostile.
    #[error("tree node {node}: {field} is {value}, must be {limit}")]
    Node {
        /// Index of the node, from 0.
        node: usize,
        /// The array that holds the value, by scikit-learn's name.
        field: &'static str,
        /// The value as given.
        value: String,
        /// What it must be.
        limit: String,
    },
    /// A forest from a file is wrong as a whole: like [`Error::Node`].
    #[error("forest: {field} is {value}, must be {limit}")]
    Forest {
        /// The property.
        field: &'static str,
        /// The value as given.
        value: String,
        /// What it must be.
        limit: String,
    },
}
