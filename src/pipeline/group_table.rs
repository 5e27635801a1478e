//! Groups by number.
//!
//! The samples of a target come one after another, and targets in the order in which they came first. So most samples are of
//! the group that was looked up last, and most others of the one after it.

use super::group::Group;

/// Groups in the order of their numbers.
#[derive(Default)]
pub struct GroupTable {
    groups: Vec<(u32, Box<Group>)>,
    /// Position of the group that was looked up last.
    last_position: usize,
}

impl GroupTable {
    /// Number of groups.
    pub fn len(&self) -> usize {
        self.groups.len()
    }

    /// The position of a group; `Err` with that of the first group with a higher number if there is none.
    fn find(&self, id: u32) -> Result<usize, usize> {
        self.groups.binary_search_by_key(&id, |(id, _)| *id)
    }

    /// A group.
    pub fn get(&self, id: u32) -> Option<&Group> {
        self.find(id).ok().map(|position| self.groups[position].1.as_ref())
    }

    /// A group.
    pub fn get_mut(&mut self, id: u32) -> Option<&mut Group> {
        let is_at = |position: &usize| self.groups.get(*position).is_some_and(|(other, _)| *other == id);
        let usual = [self.last_position, self.last_position + 1].into_iter().find(is_at);
        self.last_position = usual.or_else(|| self.find(id).ok())?;
        Some(self.groups[self.last_position].1.as_mut())
    }

    /// Adds a group, whose number is above all others.
    pub fn push(&mut self, id: u32, group: Group) {
        debug_assert!(self.groups.last().is_none_or(|(last, _)| *last < id), "numbers are not reused");
        self.groups.push((id, Box::new(group)));
    }

    /// Every group with its number.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (u32, &mut Group)> {
        self.groups.iter_mut().map(|(id, group)| (*id, group.as_mut()))
    }

    /// The groups with this number and higher ones, ascending.
    pub fn iter_from(&self, id: u32) -> impl Iterator<Item = (u32, &Group)> {
        let (Ok(first) | Err(first)) = self.find(id);
        self.groups[first..].iter().map(|(id, group)| (*id, group.as_ref()))
    }

    /// The first group with this number or a higher one.
    pub fn first_from(&mut self, id: u32) -> Option<(u32, &mut Group)> {
        let (Ok(first) | Err(first)) = self.find(id);
        self.groups.get_mut(first).map(|(id, group)| (*id, group.as_mut()))
    }

    /// Removes the groups for which `is_removed` is true.
    pub fn remove(&mut self, is_removed: impl Fn(&Group) -> bool) -> Vec<Group> {
        self.groups.extract_if(.., |(_, group)| is_removed(group)).map(|(_, group)| *group).collect()
    }

    /// All groups.
    pub fn into_groups(self) -> impl Iterator<Item = Group> {
        self.groups.into_iter().map(|(_, group)| *group)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::prom::Labels;
    use std::time::Instant;

    fn group(instance: &str) -> Group {
        let config = Config::parse("detectors: [{name: net, match: [rx]}]").expect("valid");
        let labels = Labels::new([("instance", instance)]).expect("valid");
        Group::new(config.detectors[0].clone(), labels, 0, Instant::now())
    }

    #[test]
    fn groups_are_found_after_others_are_removed() {
        let mut table = GroupTable::default();
        for (id, instance) in [(1, "a"), (4, "b"), (7, "c")] {
            table.push(id, group(instance));
        }
        let instance = |group: &mut Group| group.labels.get("instance").to_string();
        let find = |table: &mut GroupTable, id| table.get_mut(id).map(instance);
        assert_eq!(find(&mut table, 4).as_deref(), Some("b"));
        assert_eq!(find(&mut table, 5), None);
        assert_eq!(find(&mut table, 4).as_deref(), Some("b"));
        let removed = table.remove(|group| group.labels.get("instance") == "a");
        assert_eq!((removed.len(), table.len()), (1, 2));
        assert_eq!(find(&mut table, 4).as_deref(), Some("b"));
        assert_eq!(find(&mut table, 1), None);
        assert!(table.get(1).is_none() && table.get(7).is_some());
        let from = |id| table.iter_from(id).map(|(id, _)| id).collect::<Vec<_>>();
        assert_eq!((from(0), from(5), from(8)), (vec![4, 7], vec![7], vec![]));
        assert_eq!(table.first_from(5).map(|(id, _)| id), Some(7));
        assert!(table.first_from(8).is_none());
    }
}
