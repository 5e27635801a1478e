//! The columns of a window: the scores of both models first, then the features.

/// Columns before the features: those of the scores of both models.
pub(super) const FIRST_FEATURE: usize = 6;

/// Most features of a group; samples of further features are rejected and counted.
pub const MAX_FEATURES: usize = 1024;

/// The column of a feature in a [`Window`](super::Window).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Column(pub(super) u32);

impl Column {
    /// Its position among the columns of a chunk.
    pub(super) fn index(self) -> usize {
        self.0 as usize + FIRST_FEATURE
    }
}
