//! The offset at which a partition that is assigned is read from.

/// The facts that the start depends on, as offsets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StartFacts {
    /// The first record that the topic still has.
    pub low: i64,
    /// The offset after its last record.
    pub high: i64,
    /// The committed offset; `None` before the first commit of the group.
    pub committed: Option<i64>,
    /// The offset before which the windows in memory have every record; `None` without groups in memory.
    pub held: Option<i64>,
    /// The first record within the time to rewind; `None` if there is none.
    pub rewound: Option<i64>,
}

/// The start of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// The first record to read.
    pub from: i64,
    /// Records before this one are written: they only fill the windows.
    pub committed: i64,
    /// Records that are gone before anyone read them.
    pub n_lost: i64,
    /// True if there is no commit yet: one of this start makes sure that no later start passes over a record.
    pub is_first: bool,
}

impl StartFacts {
    /// The start. Groups in memory go on after their last record; others rewind.
    pub fn start(self) -> Start {
        let rewound = self.rewound.unwrap_or(self.high).max(self.low);
        let Some(committed) = self.committed else {
            return Start { from: rewound, committed: rewound, n_lost: 0, is_first: true };
        };
        // An offset beyond the end belongs to an earlier topic of this name.
        if committed < self.low || committed > self.high {
            let n_lost = (self.low - committed).max(0);
            return Start { from: self.low, committed: self.low, n_lost, is_first: false };
        }
        let from = match self.held {
            Some(held) => held.max(rewound),
            None => rewound,
        };
        Start { from: from.clamp(self.low, committed), committed, n_lost: 0, is_first: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn start(facts: StartFacts) -> (i64, i64, i64) {
        let Start { from, committed, n_lost, .. } = facts.start();
        (from, committed, n_lost)
    }

    #[test]
    fn groups_in_memory_go_on_and_others_rewind() {
        let facts = StartFacts { low: 10, high: 100, committed: Some(80), held: None, rewound: Some(30) };
        assert_eq!(start(facts), (30, 80, 0), "the windows are filled");
        assert_eq!(start(StartFacts { held: Some(75), ..facts }), (75, 80, 0), "a snapshot");
        assert_eq!(start(StartFacts { held: Some(20), ..facts }), (30, 80, 0), "an old snapshot");
        assert_eq!(
            start(StartFacts { held: Some(90), ..facts }),
            (80, 80, 0),
            "rows that are not written yet"
        );
        assert_eq!(start(StartFacts { rewound: None, ..facts }), (80, 80, 0), "nothing is recent");
        assert_eq!(start(StartFacts { rewound: Some(5), ..facts }), (10, 80, 0), "the topic is shorter");
        assert_eq!(start(StartFacts { committed: None, ..facts }), (30, 30, 0), "the first start");
    }

    #[test]
    fn an_offset_that_is_gone_resumes_at_the_earliest_record() {
        let facts = StartFacts { low: 50, high: 100, committed: Some(20), held: Some(15), rewound: Some(60) };
        assert_eq!(start(facts), (50, 50, 30));
        assert_eq!(start(StartFacts { committed: Some(101), ..facts }), (50, 50, 0), "another topic");
        assert_eq!(start(StartFacts { low: 100, ..facts }), (100, 100, 80), "an empty topic");
    }

    proptest! {
        /// No record after the commit is passed over, and none before the topic's first is read.
        #[test]
        fn a_start_is_within_the_topic_and_not_after_the_commit(
            (low, length) in (0..1000_i64, 0..1000_i64),
            (committed, held, rewound) in (
                proptest::option::of(0..2500_i64),
                proptest::option::of(0..2500_i64),
                proptest::option::of(0..2500_i64),
            ),
        ) {
            let facts = StartFacts { low, high: low + length, committed, held, rewound: rewound.map(|r| r.min(low + length)) };
            let Start { from, committed: judged, n_lost, is_first } = facts.start();
            prop_assert!((low..=low + length).contains(&from) && from <= judged && is_first == committed.is_none());
            match committed {
                Some(committed) if (low..=low + length).contains(&committed) => prop_assert_eq!((judged, n_lost), (committed, 0)),
                Some(committed) => prop_assert!(judged == low && n_lost == (low - committed).max(0)),
                None => prop_assert_eq!(judged, from),
            }
        }
    }
}
