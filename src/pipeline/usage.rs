//! The series, groups and labels that senders make the sidecar keep, and their limits: of all tenants, and of one.

use crate::config::{Config, Limits};
use crate::prom::Labels;
use crate::series::IgnoreReason;
use crate::tenant::{self, Tenant};
use std::collections::BTreeMap;

/// Most bytes of all labels that watched series keep in memory, for each series of the limit.
const LABEL_BYTES_PER_SERIES: usize = 1_342;
/// Bytes that all labels may take however low the limit of series is.
const MIN_LABEL_BYTES_LIMIT: usize = 256 << 20;
/// Bytes that the labels of one tenant may take however low its limit of series is: those of any series and its group.
const MIN_TENANT_LABEL_BYTES_LIMIT: usize = 1 << 20;
/// Copies of a group's labels, most of them as keys of its metrics.
const GROUP_LABEL_COPIES: usize = 16;

/// The number of groups and series, and the size of their labels: senders of samples choose them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Groups.
    pub groups: usize,
    /// Watched series.
    pub series: usize,
    /// Bytes of labels.
    pub label_bytes: usize,
}

impl Usage {
    /// The part of one group.
    pub fn of_group(labels: &Labels, features: impl Iterator<Item = usize>) -> Self {
        let of_group = Self { groups: 1, series: 0, label_bytes: GROUP_LABEL_COPIES * labels.n_bytes() };
        features.fold(of_group, |sum, bytes| sum.plus(Self { groups: 0, series: 1, label_bytes: bytes }))
    }

    /// The sum.
    pub fn plus(self, other: Self) -> Self {
        Self {
            groups: self.groups + other.groups,
            series: self.series + other.series,
            label_bytes: self.label_bytes + other.label_bytes,
        }
    }

    fn minus(self, other: Self) -> Self {
        Self {
            groups: self.groups - other.groups,
            series: self.series - other.series,
            label_bytes: self.label_bytes - other.label_bytes,
        }
    }

    fn is_within(self, limits: Limits, label_bytes_limit: usize) -> bool {
        self.groups <= limits.groups && self.series <= limits.series && self.label_bytes <= label_bytes_limit
    }
}

/// Most bytes of all labels.
pub fn label_bytes_limit(limits: Limits) -> usize {
    limits.series.saturating_mul(LABEL_BYTES_PER_SERIES).max(MIN_LABEL_BYTES_LIMIT)
}

/// Most bytes of the labels of one tenant: the share of memory that its series have of all.
pub fn label_bytes_limit_of_tenant(tenants: &tenant::Config, limits: Limits) -> usize {
    let share = tenants.series_limit as f64 / limits.series as f64;
    ((label_bytes_limit(limits) as f64 * share) as usize).max(MIN_TENANT_LABEL_BYTES_LIMIT)
}

/// The usage of all groups, and of those of each tenant.
#[derive(Debug, Default)]
pub struct UsageByTenant {
    total: Usage,
    /// Of tenants with groups.
    by_tenant: BTreeMap<Tenant, Usage>,
}

impl UsageByTenant {
    /// The usage of all groups.
    pub fn total(&self) -> Usage {
        self.total
    }

    /// The usage of the groups of a tenant.
    pub fn of_tenant(&self, tenant: &Tenant) -> Usage {
        self.by_tenant.get(tenant).copied().unwrap_or_default()
    }

    /// The tenants with groups.
    pub fn tenants(&self) -> impl Iterator<Item = &Tenant> {
        self.by_tenant.keys()
    }

    /// Checks that there is room for a group with these labels, or for a part of it.
    ///
    /// # Errors
    /// The limit that is reached.
    pub fn check(&self, config: &Config, group: &Labels, more: Usage) -> Result<(), IgnoreReason> {
        let limits = config.limits;
        if let Some(tenants) = &config.tenants {
            let tenant = tenants.label.tenant_of(group).ok_or(IgnoreReason::NoTenant)?;
            if !self.by_tenant.contains_key(&tenant) && self.by_tenant.len() >= tenants.tenant_limit {
                return Err(IgnoreReason::TooManyTenants);
            }
            let of_tenant = Limits { series: tenants.series_limit, groups: tenants.group_limit };
            let label_bytes_limit = label_bytes_limit_of_tenant(tenants, limits);
            if !self.of_tenant(&tenant).plus(more).is_within(of_tenant, label_bytes_limit) {
                return Err(IgnoreReason::OverTenantLimit);
            }
        }
        match self.total.plus(more).is_within(limits, label_bytes_limit(limits)) {
            true => Ok(()),
            false => Err(IgnoreReason::OverLimit),
        }
    }

    /// Adds a group of a tenant, or a part of it.
    pub fn add(&mut self, tenant: Option<&Tenant>, more: Usage) {
        self.total = self.total.plus(more);
        if let Some(tenant) = tenant {
            let usage = self.by_tenant.entry(tenant.clone()).or_default();
            *usage = usage.plus(more);
        }
    }

    /// Removes a group of a tenant, or a part of it.
    pub fn remove(&mut self, tenant: Option<&Tenant>, less: Usage) {
        self.total = self.total.minus(less);
        let Some(tenant) = tenant else { return };
        let usage = self.of_tenant(tenant).minus(less);
        match usage.groups {
            0 => drop(self.by_tenant.remove(tenant)),
            _ => drop(self.by_tenant.insert(tenant.clone(), usage)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_at_its_limits_leaves_room_for_the_others() {
        let text = "global: {series_limit: 6, group_limit: 5}\n\
                    tenants: {series_limit: 3, group_limit: 2, tenant_limit: 2}";
        let config = Config::parse(text).expect("valid");
        let mut usage = UsageByTenant::default();
        let mut add = |tenant: &str, groups, series| {
            let group = Labels::new([("tenant", tenant)]).expect("valid");
            let more = Usage { groups, series, label_bytes: 1 };
            usage.check(&config, &group, more).inspect(|()| usage.add(tenant.parse().ok().as_ref(), more))
        };
        assert_eq!(add("a", 1, 2), Ok(()));
        assert_eq!(add("a", 1, 2), Err(IgnoreReason::OverTenantLimit), "series");
        assert_eq!(add("a", 1, 1), Ok(()));
        assert_eq!(add("a", 1, 0), Err(IgnoreReason::OverTenantLimit), "groups");
        assert_eq!(add("b", 2, 3), Ok(()));
        assert_eq!(add("c", 1, 1), Err(IgnoreReason::TooManyTenants));
        assert_eq!(add("a|b", 1, 1), Err(IgnoreReason::NoTenant));
        let of_b = usage.of_tenant(&"b".parse().expect("valid"));
        usage.remove("b".parse().ok().as_ref(), of_b);
        assert_eq!(usage.tenants().map(Tenant::as_str).collect::<Vec<_>>(), ["a"]);
        assert_eq!(usage.total(), Usage { groups: 2, series: 3, label_bytes: 2 });
    }
}
