//! Tenants: senders and back ends that share a sidecar and see nothing of each other.
//!
//! The header of a request names its tenant. Inside, the tenant is a label of every series, which is part of `by` of every
//! detector: so groups, models and incidents are a tenant's own without further rules. Senders and back ends do not see the
//! label: requests are divided by tenant, and each has the header. The label is added and removed here only, and so is the header
//! read and set.

use crate::prom::Labels;
use crate::prom::matcher::Matcher;
use crate::yaml::{Key, KeyTable, Node, Section};
use hyper::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Most bytes of an ID; Mimir's limit.
const MAX_ID_BYTES: usize = 150;
/// Characters of an ID beside letters and digits; Mimir's.
const ID_PUNCTUATION: &str = "!-_.*'()";
/// IDs that Mimir reserves.
const RESERVED_IDS: [&str; 3] = [".", "..", "__mimir_cluster"];
/// Headers of the protocol or the connection, which name no tenant.
const RESERVED_HEADERS: [&str; 20] = [
    "accept",
    "accept-encoding",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "cookie",
    "expect",
    "host",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "retry-attempt",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "x-prometheus-remote-read-version",
    "x-prometheus-remote-write-version",
];
/// The default of `tenant_limit`.
const TENANT_LIMIT: usize = 100;
/// The share of the limits of all tenants that one may take by default.
const DEFAULT_SHARE: usize = 10;

/// The keys of the section.
pub const KEY_TABLES: [KeyTable; 1] = [KeyTable::new(
    &["tenants"],
    &[
        Key::with_default(
            "header",
            "X-Scope-OrgID",
            "Header that names the tenant of a request, in both directions. A request without it gets 400. Blocks of \
             `remote_write`, `remote_read` and `history` must not set it",
        ),
        Key::with_default(
            "label",
            "tenant",
            "Label that has the tenant's ID in the sidecar. Every detector's `by` and `job_by` begin with it; it is in no \
             request and no answer. What a series itself has under this name is overwritten",
        ),
        Key::with_default(
            "tenant_limit",
            "100",
            "Tenants with groups; samples of further ones are dropped and counted as `tenant_limit`",
        ),
        Key::computed(
            "series_limit",
            "a tenth of `global.series_limit`",
            "Watched series of one tenant; samples of further ones are dropped and counted as `tenant_series_limit`",
        ),
        Key::computed(
            "group_limit",
            "a tenth of `global.group_limit`",
            "Groups of one tenant; samples of further ones are dropped and counted as `tenant_series_limit`",
        ),
    ],
)];

/// The ID of a tenant, valid by construction. Clones share the memory.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tenant(Arc<str>);

/// A text that is no ID of a tenant. Mimir has the same rules.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTenant {
    /// The text is empty.
    #[error("the ID of a tenant is empty")]
    Empty,
    /// The text is longer than [`MAX_ID_BYTES`].
    #[error("the ID of a tenant has {0} bytes, above the limit of {MAX_ID_BYTES}")]
    TooLong(usize),
    /// The IDs of several tenants.
    #[error("{0:?} names several tenants, which only queries can; a request here has one")]
    Several(String),
    /// A character that no ID has.
    #[error(
        "the ID {id:?} of a tenant has the character {character:?}: letters, digits and {ID_PUNCTUATION} are allowed"
    )]
    Character {
        /// The text.
        id: String,
        /// The character.
        character: char,
    },
    /// One of [`RESERVED_IDS`].
    #[error("{0:?} is reserved: it is no ID of a tenant")]
    Reserved(String),
}

/// A request does not name its tenant.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The header is missing.
    #[error("the header {0} is missing: it names the tenant")]
    Missing(HeaderName),
    /// The header is there more than once: a proxy may have added it to that of the sender.
    #[error("the header {0} is there more than once: a request has one tenant")]
    Repeated(HeaderName),
    /// The value is no ID.
    #[error("the header {header}: {source}")]
    Invalid {
        /// The header.
        header: HeaderName,
        /// The error.
        source: InvalidTenant,
    },
}

impl Tenant {
    /// The ID.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Tenant {
    type Err = InvalidTenant;

    fn from_str(id: &str) -> Result<Self, InvalidTenant> {
        let is_allowed = |c: char| c.is_ascii_alphanumeric() || ID_PUNCTUATION.contains(c);
        if id.is_empty() {
            return Err(InvalidTenant::Empty);
        }
        if id.len() > MAX_ID_BYTES {
            return Err(InvalidTenant::TooLong(id.len()));
        }
        match id.chars().find(|c| !is_allowed(*c)) {
            Some('|') => Err(InvalidTenant::Several(id.into())),
            Some(character) => Err(InvalidTenant::Character { id: id.into(), character }),
            None if RESERVED_IDS.contains(&id) => Err(InvalidTenant::Reserved(id.into())),
            None => Ok(Self(id.into())),
        }
    }
}

impl fmt::Display for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of the label that has the tenant's ID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantLabel(Arc<str>);

impl TenantLabel {
    /// The name.
    pub fn name(&self) -> &str {
        &self.0
    }

    /// The tenant of these labels; `None` if the label is absent or has no valid ID.
    pub fn tenant_of(&self, labels: &Labels) -> Option<Tenant> {
        labels.get(&self.0).parse().ok()
    }

    /// The labels with the tenant, in place of what they have under the name.
    pub fn add(&self, labels: &Labels, tenant: &Tenant) -> Labels {
        labels.with(&self.0, tenant.as_str())
    }

    /// The labels without the tenant.
    pub fn remove(&self, labels: &Labels) -> Labels {
        labels.with(&self.0, "")
    }

    /// The matchers of a tenant's series as its back end knows them: those on the label are left out. `None` if one of them
    /// does not match the tenant, so that no series does.
    pub fn outward_matchers<'m>(
        &self,
        matchers: impl Iterator<Item = &'m Matcher>,
        tenant: &Tenant,
    ) -> Option<Vec<Matcher>> {
        let (inner, outward): (Vec<&Matcher>, Vec<&Matcher>) =
            matchers.partition(|matcher| matcher.name() == &*self.0);
        let is_selected = inner.iter().all(|matcher| matcher.matches(tenant.as_str()));
        is_selected.then(|| outward.into_iter().cloned().collect())
    }
}

/// The section `tenants` of the configuration file.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The header that names the tenant.
    pub header: HeaderName,
    /// The label that has its ID.
    pub label: TenantLabel,
    /// Tenants with groups.
    pub tenant_limit: usize,
    /// Watched series of one tenant.
    pub series_limit: usize,
    /// Groups of one tenant.
    pub group_limit: usize,
}

impl Config {
    /// Reads the section; the limits of all tenants set the defaults of those of one.
    pub fn read(mut section: Section<'_, '_>, series_limit: usize, group_limit: usize) -> Self {
        let header = section.get("header").and_then(|node| read_header(&node));
        let label = section.get("label").and_then(|node| read_label(&node));
        let share = |limit: usize| (limit / DEFAULT_SHARE).max(1);
        let config = Self {
            header: header.unwrap_or(HeaderName::from_static("x-scope-orgid")),
            label: TenantLabel(label.unwrap_or("tenant".into()).into()),
            tenant_limit: section.count("tenant_limit", TENANT_LIMIT, 1),
            series_limit: section.count("series_limit", share(series_limit), 1),
            group_limit: section.count("group_limit", share(group_limit), 1),
        };
        section.deny_unknown();
        config
    }

    /// True if both have the same header and label.
    pub fn is_same_identity(&self, other: &Self) -> bool {
        (&self.header, &self.label) == (&other.header, &other.label)
    }

    /// The tenant of a request.
    ///
    /// # Errors
    /// [`RequestError`] if the header does not name one tenant.
    pub fn of_request(&self, headers: &HeaderMap) -> Result<Tenant, RequestError> {
        let mut values = headers.get_all(&self.header).iter();
        let value = values.next().ok_or_else(|| RequestError::Missing(self.header.clone()))?;
        if values.next().is_some() {
            return Err(RequestError::Repeated(self.header.clone()));
        }
        let id = String::from_utf8_lossy(value.as_bytes());
        id.parse().map_err(|source| RequestError::Invalid { header: self.header.clone(), source })
    }

    /// Sets the header of a request.
    pub fn set_header(&self, tenant: &Tenant, headers: &mut HeaderMap) {
        let value = HeaderValue::from_str(tenant.as_str()).expect("an ID has visible ASCII characters only");
        headers.insert(self.header.clone(), value);
    }
}

fn read_header(node: &Node<'_, '_>) -> Option<HeaderName> {
    let text = node.text()?;
    let Ok(header) = HeaderName::from_str(&text) else {
        node.error(format!("{text:?} is not the name of a header"));
        return None;
    };
    if header == AUTHORIZATION || RESERVED_HEADERS.contains(&header.as_str()) {
        node.error(format!("{text:?} belongs to the protocol: it names no tenant"));
    }
    Some(header)
}

fn read_label(node: &Node<'_, '_>) -> Option<String> {
    let label = node.text()?;
    let is_allowed =
        |(i, b): (usize, u8)| b == b'_' || b.is_ascii_alphabetic() || i > 0 && b.is_ascii_digit();
    if label.is_empty() || !label.bytes().enumerate().all(is_allowed) {
        node.error(format!("{label:?} is not a label name: use letters, digits and _"));
    } else if label.starts_with("__") {
        node.error(format!("{label:?} is reserved: Prometheus removes labels that begin with __"));
    }
    Some(label)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prom::Selector;

    fn config(text: &str) -> Result<Config, Vec<String>> {
        let read = |section: Section<'_, '_>| Config::read(section, 1000, 5);
        let read = crate::yaml::read(text, std::path::Path::new(""), read);
        read.map_err(|errors| errors.into_iter().map(|error| error.message).collect())
    }

    fn tenant(id: &str) -> Tenant {
        id.parse().expect("valid")
    }

    #[test]
    fn ids_are_those_of_mimir() {
        let longest = "a".repeat(150);
        for id in ["a", "team-a_1", "A.b!*'()", "...", &longest] {
            assert_eq!(id.parse().map(|tenant: Tenant| tenant.to_string()).as_deref(), Ok(id));
        }
        for (id, message) in [
            ("", "the ID of a tenant is empty"),
            (&*format!("{longest}a"), "the ID of a tenant has 151 bytes, above the limit of 150"),
            ("a|b", "\"a|b\" names several tenants, which only queries can; a request here has one"),
            (
                "a/b",
                "the ID \"a/b\" of a tenant has the character '/': letters, digits and !-_.*'() are allowed",
            ),
            (
                "a b",
                "the ID \"a b\" of a tenant has the character ' ': letters, digits and !-_.*'() are allowed",
            ),
            ("é", "the ID \"é\" of a tenant has the character 'é': letters, digits and !-_.*'() are allowed"),
            (".", "\".\" is reserved: it is no ID of a tenant"),
            ("..", "\"..\" is reserved: it is no ID of a tenant"),
            ("__mimir_cluster", "\"__mimir_cluster\" is reserved: it is no ID of a tenant"),
        ] {
            assert_eq!(id.parse::<Tenant>().expect_err(id).to_string(), message);
        }
    }

    #[test]
    fn a_request_names_one_tenant() {
        let config = config("{}").expect("valid");
        let of_request = |values: &[&[u8]]| {
            let value = |value: &&[u8]| HeaderValue::from_bytes(value).expect("a value");
            let header = HeaderName::from_static("x-scope-orgid");
            let headers = values.iter().map(|bytes| (header.clone(), value(bytes)));
            let mut map = HeaderMap::new();
            for (name, value) in headers {
                map.append(name, value);
            }
            config.of_request(&map).map_err(|error| error.to_string())
        };
        assert_eq!(of_request(&[b"a"]), Ok(tenant("a")));
        let cases: [(&[&[u8]], &str); 3] = [
            (&[], "the header x-scope-orgid is missing: it names the tenant"),
            (&[b"a", b"a"], "the header x-scope-orgid is there more than once: a request has one tenant"),
            (&[b""], "the header x-scope-orgid: the ID of a tenant is empty"),
        ];
        for (values, message) in cases {
            assert_eq!(of_request(values).expect_err("refused"), message);
        }
        assert!(of_request(&[b"\xff"]).is_err());
        let mut headers = HeaderMap::new();
        config.set_header(&tenant("A.b!*'()"), &mut headers);
        assert_eq!(config.of_request(&headers), Ok(tenant("A.b!*'()")), "what is set is read");
    }

    #[test]
    fn the_label_is_overwritten_and_removed() {
        let label = config("{}").expect("valid").label;
        let series = Labels::new([("__name__", "up"), ("tenant", "b")]).expect("valid");
        let added = label.add(&series, &tenant("a"));
        assert_eq!(
            (added.to_string().as_str(), label.tenant_of(&added)),
            (r#"up{tenant="a"}"#, Some(tenant("a")))
        );
        assert_eq!(label.remove(&added).to_string(), "up");
        assert_eq!(label.tenant_of(&label.remove(&added)), None);
        assert_eq!(label.tenant_of(&series.with("tenant", "a|b")), None);
    }

    #[test]
    fn matchers_on_the_label_stay_inside() {
        let label = config("{}").expect("valid").label;
        let outward = |text: &str| {
            let selector = Selector::parse(text).expect("a selector");
            let outward = label.outward_matchers(selector.matchers().iter(), &tenant("a"))?;
            Some(outward.iter().map(ToString::to_string).collect::<Vec<_>>().join(","))
        };
        let up = Some(r#"__name__="up""#.to_string());
        assert_eq!(outward("up"), up);
        assert_eq!(outward(r#"up{tenant="a"}"#), up);
        assert_eq!(outward(r#"up{tenant=~"a|b", tenant!="b"}"#), up);
        assert_eq!(outward(r#"up{tenant="b"}"#), None);
        assert_eq!(outward(r#"up{tenant!~".+"}"#), None);
    }

    #[test]
    fn messages_name_what_is_wrong() {
        let defaults = config("{}").expect("valid");
        assert_eq!((defaults.series_limit, defaults.group_limit, defaults.tenant_limit), (100, 1, 100));
        for (text, message) in [
            ("{header: 'a b'}", "header: \"a b\" is not the name of a header"),
            (
                "{header: Authorization}",
                "header: \"Authorization\" belongs to the protocol: it names no tenant",
            ),
            (
                "{header: Content-Type}",
                "header: \"Content-Type\" belongs to the protocol: it names no tenant",
            ),
            ("{header: Cookie}", "header: \"Cookie\" belongs to the protocol: it names no tenant"),
            (
                "{header: X-Prometheus-Remote-Read-Version}",
                "header: \"X-Prometheus-Remote-Read-Version\" belongs to the protocol: it names no tenant",
            ),
            ("{label: ''}", "label: \"\" is not a label name: use letters, digits and _"),
            ("{label: org-id}", "label: \"org-id\" is not a label name: use letters, digits and _"),
            ("{label: __org}", "label: \"__org\" is reserved: Prometheus removes labels that begin with __"),
            ("{tenant_limit: 0}", "tenant_limit: "),
            ("{tenat: a}", "unknown key \"tenat\""),
        ] {
            let errors = config(text).expect_err(text);
            assert!(errors[0].starts_with(message) && errors.len() == 1, "{errors:?}");
        }
    }
}
