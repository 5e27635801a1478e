//! Isolation forests: slices in, numbers out; without clock, I/O or log.
//!
//! **The idea** (Liu, Ting, Zhou 2008). Random splits isolate an unusual row earlier than a usual one, so the mean depth
//! at which a row is isolated, over many random trees, measures how unusual the row is. Names, defaults and arithmetic
//! are those of scikit-learn's `IsolationForest`. A forest grown there and read here gives the same scores to the last
//! bit or two, and a forest grown here has the same distribution.
//!
//! ```text
//! ForestParams ─ fit(Table) ─┐
//!                            ├─ Forest ─ score_samples(row), score_table(Table)
//! TreeArrays ─ Tree ─────────┘      └─── trees() ─ TreeArrays
//! ```
//!
//! A [`Forest`] exists only fitted and checked, so scoring cannot fail. [`ForestParams::fit`] checks the data, and
//! [`Tree::from_arrays`] checks every number of a tree from a file.
//!
//! **Two kinds.** The standard forest has axis-parallel splits (`standard`, `fit`, `tree`). [`ExtendedForest`] has
//! oblique splits (`extended`), with its own parameters, nodes and walk. Both share [`Table`], the random streams
//! (`rng`), the rows of a tree (`sampling`), the check of its structure (`tree_check`), limits, threads, and
//! [`average_path_length`].
//!
//! **Rows are `f32`, sums are `f64`.** scikit-learn rounds a row to `f32` before it compares the row with `f64`
//! thresholds. Rounding each threshold *down* to `f32` once changes no comparison and halves the node.
//!
//! **Not taken:**
//! - *scikit-learn's random numbers* (Mersenne Twister and a 32-bit xorshift, in its order of calls), to grow equal
//!   trees from an equal seed. They are internals that have changed between its releases; users rely on equal
//!   *distributions*.

mod depth;
mod extended;
mod fit;
mod limits;
mod params;
mod prefetch;
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
pub use limits::{MAX_DEPTH, MAX_FEATURES, MAX_NODES, MAX_SAMPLES};
pub use params::{Contamination, ContaminationShare, ForestParams, MaxFeatures, MaxSamples, Share};
pub use standard::Forest;
pub use table::{Column, Table};
pub use tree::{Tree, TreeArrays};

/// Errors of building a forest. Scoring has none.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// A parameter is outside its range: the configuration is wrong.
    #[error("{name} is {value}, must be {limit}")]
    Parameter {
        /// Name of the parameter, scikit-learn's.
        name: &'static str,
        /// The value as given.
        value: f64,
        /// The valid range.
        limit: &'static str,
    },
    /// A parameter is in its range but does not fit the table: more data or other parameters may help.
    #[error("{name} gives {value} on a table of {n_rows} rows and {n_features} features, must be {limit}")]
    Unsuitable {
        /// Name of the parameter, scikit-learn's.
        name: &'static str,
        /// The parameter, resolved for the table.
        value: usize,
        /// Rows of the table.
        n_rows: usize,
        /// Columns of the table.
        n_features: usize,
        /// The valid range.
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
    /// A tree from a file is not a tree, or exceeds the limits: the file is damaged or hostile.
    #[error("tree node {node}: {field} is {value}, must be {limit}")]
    Node {
        /// Index of the node, from 0.
        node: usize,
        /// The array that holds the value, by scikit-learn's name.
        field: &'static str,
        /// The value as given.
        value: String,
        /// The valid values.
        limit: String,
    },
    /// A property of a whole forest is invalid, with the causes of [`Error::Node`].
    #[error("forest: {field} is {value}, must be {limit}")]
    Forest {
        /// The property.
        field: &'static str,
        /// The value as given.
        value: String,
        /// The valid values.
        limit: String,
    },
}

impl Error {
    fn node(node: usize, field: &'static str, value: impl ToString, limit: impl ToString) -> Self {
        Self::Node { node, field, value: value.to_string(), limit: limit.to_string() }
    }

    fn forest(field: &'static str, value: impl ToString, limit: impl ToString) -> Self {
        Self::Forest { field, value: value.to_string(), limit: limit.to_string() }
    }
}
