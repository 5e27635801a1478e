//! What the readers of other programs' files have in common.

use crate::forest::Forest;

/// A forest that another program has grown, read from its file.
#[derive(Clone, Debug, PartialEq)]
pub struct Imported {
    /// The forest.
    pub forest: Forest,
    /// Names of the columns in the order of the forest's features, where the file has them.
    pub columns: Option<Vec<String>>,
    /// Who wrote the file: program, version and format.
    pub origin: String,
    /// Parameters of the fit as far as the file tells, by scikit-learn's names, for people.
    pub params: Vec<(String, String)>,
}
