//! The interface to the owner of the windows.

use super::error::Error;
use super::permit::WorkPermit;
use super::request::Query;
use crate::prom::{Labels, Sample};

/// A readable state of a series; it does not change while it is read.
pub trait ReadableSeries: Send + Sync + 'static {
    /// Labels of the series.
    fn labels(&self) -> &Labels;
    /// Appends the samples in the range of the query, ascending. Each call appends the same samples.
    fn append_samples(&self, out: &mut Vec<Sample>);
}

/// An owner of series that selects them by query.
pub trait Queryable: Sync {
    /// The series of this owner.
    type Series: ReadableSeries;
    /// The series that match a query, in any order. Several of them may have the same labels. Work that outlasts the
    /// future holds a clone of the permit, which also counts the memory of the series.
    ///
    /// # Errors
    /// [`Error::ShuttingDown`] if the owner has ended; those of [`WorkPermit::reserve`].
    fn select(
        &self,
        query: Query,
        permit: &WorkPermit,
    ) -> impl Future<Output = Result<Vec<Self::Series>, Error>> + Send;
}
