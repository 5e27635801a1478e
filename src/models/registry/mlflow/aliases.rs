//! The aliases of registered models, and their pins as tags.

use super::{Error, Mlflow, PINNED_BELOW, text_field};
use crate::http::percent_encode;
use crate::models::registry::{Aliases, ModelAliases};
use serde_json::Value;
use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

/// Most bytes of the names in one filter: a request line has at most 4094 bytes with gunicorn.
const MAX_FILTER_BYTES: usize = 3000;

impl Mlflow {
    /// See [`Registry::aliases`](crate::models::registry::Registry::aliases).
    ///
    /// # Errors
    /// [`Error`].
    pub async fn aliases(&self, prefix: &str) -> Result<Aliases, Error> {
        // The underscore matches any character there; the filter drops the other names.
        let mut aliases = self.find_aliases(&format!("name LIKE '{}%'", prefix.replace('\'', ""))).await?;
        aliases.retain(|name, _| name.starts_with(prefix));
        Ok(aliases)
    }

    /// See [`Registry::list_aliases`](crate::models::registry::Registry::list_aliases). A server of version 2 is asked for all models
    /// whose names begin as these do.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn list_aliases(&self, models: &BTreeSet<String>) -> Result<Aliases, Error> {
        let mut all = Aliases::new();
        if !self.lacks_name_lists.load(Ordering::Relaxed) {
            for filter in name_filters(models) {
                match self.find_aliases(&filter).await {
                    Ok(aliases) => all.extend(aliases),
                    Err(error) if error.has_code("INVALID_PARAMETER_VALUE") => {
                        self.lacks_name_lists.store(true, Ordering::Relaxed);
                        break;
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        if self.lacks_name_lists.load(Ordering::Relaxed) {
            for prefix in common_prefixes(models) {
                all.extend(self.aliases(prefix).await?);
            }
        }
        all.retain(|name, _| models.contains(name));
        Ok(all)
    }

    /// See [`Registry::aliases_of`](crate::models::registry::Registry::aliases_of).
    ///
    /// # Errors
    /// [`Error`].
    pub async fn aliases_of<const N: usize>(&self, models: [&str; N]) -> Result<Aliases, Error> {
        let mut all = Aliases::new();
        for model in models {
            all.extend(self.find_aliases(&format!("name = '{}'", model.replace('\'', ""))).await?);
        }
        Ok(all)
    }

    pub(super) async fn model_aliases(&self, model: &str) -> Result<ModelAliases, Error> {
        Ok(self.aliases_of([model]).await?.remove(model).unwrap_or_default())
    }

    async fn find_aliases(&self, filter: &str) -> Result<Aliases, Error> {
        let models = self.list_all("registered-models/search", "registered_models", filter).await?;
        let mut all = Aliases::new();
        for model in models {
            let items = |field: &str| model[field].as_array().into_iter().flatten();
            let alias = |alias: &Value| {
                Some((text_field(alias, "alias"), text_field(alias, "version").parse().ok()?))
            };
            let limit = |tag: &Value| {
                let alias = text_field(tag, "key").strip_prefix(PINNED_BELOW)?.to_string();
                Some((alias, text_field(tag, "value").parse().ok()?))
            };
            let aliases = ModelAliases {
                versions: items("aliases").filter_map(alias).collect(),
                pinned_below: items("tags").filter_map(limit).collect(),
            };
            all.insert(text_field(&model, "name"), aliases);
        }
        Ok(all)
    }
}

/// Filters that select these models, each of bounded length.
fn name_filters(models: &BTreeSet<String>) -> Vec<String> {
    let mut filters: Vec<String> = Vec::new();
    let mut n_bytes = 0;
    for model in models {
        let quoted = format!("'{}'", model.replace('\'', ""));
        let n_encoded = percent_encode(&quoted).len() + percent_encode(",").len();
        match filters.last_mut() {
            Some(filter) if n_bytes + n_encoded <= MAX_FILTER_BYTES => {
                n_bytes += n_encoded;
                filter.push(',');
                filter.push_str(&quoted);
            }
            _ => {
                n_bytes = n_encoded;
                filters.push(format!("name IN ({quoted}"));
            }
        }
    }
    filters.iter_mut().for_each(|filter| filter.push(')'));
    filters
}

/// The names that no other one is a prefix of.
fn common_prefixes(models: &BTreeSet<String>) -> Vec<&str> {
    let mut prefixes: Vec<&str> = Vec::new();
    for model in models {
        if prefixes.last().is_none_or(|prefix| !model.starts_with(prefix)) {
            prefixes.push(model);
        }
    }
    prefixes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_name_every_model_in_a_bounded_length() {
        let models: BTreeSet<String> = (0..500)
            .map(|host| format!("node.web{host}:9100"))
            .chain(["n".repeat(4000), "it's".into()])
            .collect();
        let filters = name_filters(&models);
        assert!((5..20).contains(&filters.len()), "{}", filters.len());
        let names = |filter: &String| {
            let list =
                filter.strip_prefix("name IN ('").and_then(|rest| rest.strip_suffix("')")).expect("a list");
            list.split("','").map(String::from).collect::<Vec<_>>()
        };
        let named: BTreeSet<String> = filters.iter().flat_map(names).collect();
        assert_eq!(named, models.iter().map(|model| model.replace('\'', "")).collect());
        let n_bytes_of_list = percent_encode("name IN ()").len();
        let limit = MAX_FILTER_BYTES + n_bytes_of_list;
        let too_long = filters.iter().filter(|filter| percent_encode(filter).len() > limit);
        assert_eq!(too_long.count(), 1, "the one that is longer alone");
        assert!(name_filters(&BTreeSet::new()).is_empty());
    }

    #[test]
    fn names_that_begin_alike_share_a_prefix() {
        let models = ["net", "net.a", "net.b", "network", "disk.a", "disk"].map(String::from).into();
        assert_eq!(common_prefixes(&models), ["disk", "net"]);
    }
}
