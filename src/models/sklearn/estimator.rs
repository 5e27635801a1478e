//! Converts the attributes of scikit-learn's `IsolationForest` to a forest.

use super::Error;
use super::value::{Class, Id, ValueRef, Values};
use crate::forest::{Forest, Tree, TreeArrays};
use crate::models::ImportedForest;

/// Parameters of the fit that the card shows.
const PARAMS: [&str; 6] =
    ["n_estimators", "max_samples", "contamination", "max_features", "bootstrap", "random_state"];

/// Reads the forest of a file. `format` is the last word of [`ImportedForest::origin`].
pub(super) fn read(values: &Values, root: Id, format: &str) -> Result<ImportedForest, Error> {
    let forest = ValueRef::root(values, root);
    forest.expect_class(Class::IsolationForest, "an IsolationForest of scikit-learn")?;

    // The first tree rejects too many features.
    let n_features = usize::try_from(forest.get("n_features_in_")?.count()?).unwrap_or(usize::MAX);
    let columns = forest
        .find_attribute("feature_names_in_")
        .map(|names| column_names(&names, n_features))
        .transpose()?;

    let estimators = forest.get("estimators_")?.items()?;
    let features = forest.get("estimators_features_")?.items()?;
    if features.len() != estimators.len() {
        return Err(Error::Attribute {
            name: "estimators_features_".into(),
            value: format!("a list of {}", features.len()),
            limit: "as long as estimators_",
        });
    }
    let mut budget = ByteBudget(values.n_bytes);
    let trees = estimators.iter().zip(&features).enumerate().map(|(number, (estimator, features))| {
        let tree = read_tree(&estimator.as_root(), features, n_features, &mut budget);
        tree.map_err(|source| Error::Tree { number, source: Box::new(source) })
    });
    let trees: Vec<Tree> = trees.collect::<Result<_, _>>()?;

    // scikit-learn scores with the attribute that ends with an underscore.
    let max_samples = match forest.find_attribute("_max_samples") {
        Some(max_samples) => max_samples,
        None => forest.get("max_samples_")?,
    };
    let version = forest.find_attribute("_sklearn_version").and_then(|version| version.to_display());
    let version = version.unwrap_or_else(|| "of unknown version".into());
    let param = |name: &str| Some((name.to_string(), forest.find_attribute(name)?.to_display()?));
    Ok(ImportedForest {
        forest: Forest::new(&trees, max_samples.count()?, forest.get("offset_")?.float()?)?,
        columns,
        origin: format!("scikit-learn {version}, {format}"),
        params: PARAMS.iter().filter_map(|name| param(name)).collect(),
    })
}

fn column_names(names: &ValueRef, n_features: usize) -> Result<Vec<String>, Error> {
    let items = names.items()?;
    if items.len() != n_features {
        return Err(Error::Width { names: "feature_names_in_", n_names: items.len(), n_features });
    }
    items.iter().map(|name| name.text().map(String::from)).collect()
}

/// Remaining bytes of arrays. Without this limit, a file that lists one large tree a million times
/// would become a million trees.
struct ByteBudget(usize);

impl ByteBudget {
    fn spend(&mut self, n_bytes: usize) -> Result<(), Error> {
        self.0 = self.0.checked_sub(n_bytes).ok_or(Error::RepeatedArrays)?;
        Ok(())
    }
}

/// A tree of the forest. `features` are its columns of the table, in the order of the tree's features.
fn read_tree(
    estimator: &ValueRef,
    features: &ValueRef,
    n_features: usize,
    budget: &mut ByteBudget,
) -> Result<Tree, Error> {
    estimator.expect_class(Class::ExtraTreeRegressor, "an ExtraTreeRegressor")?;
    let tree = estimator.get("tree_")?;
    tree.expect_class(Class::Tree, "a Tree")?;

    let (nodes, array) = (tree.get("nodes")?, tree.get("nodes")?.array()?);
    let columns = features.array()?;
    budget.spend(array.n_bytes())?;
    budget.spend(columns.n_bytes())?;
    let columns = columns.ints("").map_err(|reason| features.array_error(reason))?;

    let arrays = || -> Result<TreeArrays, String> {
        Ok(TreeArrays {
            left_child: array.ints("left_child")?,
            right_child: array.ints("right_child")?,
            feature: array.ints("feature")?,
            threshold: array.floats("threshold")?,
            n_node_samples: array.ints("n_node_samples")?,
            // scikit-learn before 1.3 has no such field: NaN fails each comparison and goes right.
            missing_go_to_left: if array.has_field("missing_go_to_left") {
                array.flags("missing_go_to_left")?
            } else {
                vec![false; array.n_rows()?]
            },
        })
    };
    let mut arrays = arrays().map_err(|reason| nodes.array_error(reason))?;
    for (node, feature) in arrays.feature.iter_mut().enumerate() {
        if arrays.left_child[node] == -1 && arrays.right_child[node] == -1 {
            continue;
        }
        let column = usize::try_from(*feature).ok().and_then(|feature| columns.get(feature));
        let limit = columns.len();
        *feature = *column.ok_or_else(|| {
            nodes.array_error(format!("feature of node {node} is {feature}, must be below {limit}"))
        })?;
    }
    Ok(Tree::from_arrays(&arrays, n_features)?)
}
