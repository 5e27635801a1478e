//! A forest from another program's file: the type that the readers of all formats return.

use crate::forest::Forest;

/// A forest that another program fitted.
#[derive(Clone, Debug, PartialEq)]
pub struct ImportedForest {
    /// The forest.
    pub forest: Forest,
    /// Names of the columns in the order of the forest's features; `None` if the file has no names.
    pub columns: Option<Vec<String>>,
    /// Program, version and format of the file.
    pub origin: String,
    /// Parameters of the fit that the file contains, by scikit-learn's names.
    pub params: Vec<(String, String)>,
}
