//! Parameters of the standard forest, with scikit-learn's names, defaults and meaning. A value of these types is in
//! range; fitting checks it against the table.

use std::fmt;
use std::num::NonZeroUsize;

use super::Error;

/// Parameters of an isolation forest, scikit-learn's `IsolationForest(...)`. `n_jobs` is an argument
/// of [`fit`](ForestParams::fit), because it does not change the result.
#[derive(Clone, Debug, PartialEq)]
pub struct ForestParams {
    /// Number of trees. 100: path lengths converge with fewer (Liu, Ting, Zhou 2008, section 5.2).
    pub n_estimators: NonZeroUsize,
    /// Rows that each tree is grown from.
    pub max_samples: MaxSamples,
    /// Determines the offset between usual and anomalous.
    pub contamination: Contamination,
    /// Features that each tree is grown from.
    pub max_features: MaxFeatures,
    /// True to draw the rows of a tree with replacement. As in scikit-learn, a row drawn twice is in the tree once, so
    /// trees are smaller than `max_samples`.
    pub bootstrap: bool,
    /// Seed. Equal seeds, parameters and tables give equal forests, bit for bit, on any number of
    /// threads. (scikit-learn's default is a random seed.)
    pub random_state: u64,
}

impl Default for ForestParams {
    fn default() -> Self {
        Self {
            n_estimators: NonZeroUsize::new(100).expect("100 is not zero"),
            max_samples: MaxSamples::Auto,
            contamination: Contamination::Auto,
            max_features: MaxFeatures::default(),
            bootstrap: false,
            random_state: 0,
        }
    }
}

/// Number of rows that each tree is grown from, scikit-learn's `max_samples`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum MaxSamples {
    /// `min(256, n_rows)`: small samples keep anomalies from masking each other, and 256 was enough
    /// for every data set of the paper (Liu, Ting, Zhou 2008, section 5.2).
    #[default]
    Auto,
    /// This number of rows, or all rows if the table has fewer.
    Count(NonZeroUsize),
    /// This share of the rows, rounded down.
    Share(Share),
}

impl MaxSamples {
    /// The rows of the automatic choice.
    pub const AUTO: usize = 256;

    /// A number of rows.
    ///
    /// # Errors
    /// [`Error::Parameter`] if it is 0.
    pub fn count(n_rows: usize) -> Result<Self, Error> {
        at_least_one("max_samples", n_rows).map(Self::Count)
    }

    /// A share of the rows.
    ///
    /// # Errors
    /// [`Error::Parameter`] unless it is in `(0, 1]`.
    pub fn share(share: f64) -> Result<Self, Error> {
        check_share("max_samples", share, Share::MAX, Share::LIMIT).map(|share| Self::Share(Share(share)))
    }

    /// Rows of each tree on a table of `n_rows`; 0 if the share rounds to 0.
    pub fn resolve(self, n_rows: usize) -> usize {
        match self {
            Self::Auto => n_rows.min(Self::AUTO),
            Self::Count(count) => n_rows.min(count.get()),
            Self::Share(share) => (share.get() * n_rows as f64) as usize,
        }
    }
}

/// Determines the offset between usual and anomalous: scikit-learn's `contamination`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Contamination {
    /// Offset −0.5: the paper's "no distinct anomaly" score (Liu, Ting, Zhou 2008, section 2).
    #[default]
    Auto,
    /// The offset is the quantile of the training scores at this share.
    Share(ContaminationShare),
}

impl Contamination {
    /// A share of the training rows.
    ///
    /// # Errors
    /// [`Error::Parameter`] unless it is in `(0, 0.5]`.
    pub fn share(share: f64) -> Result<Self, Error> {
        check_share("contamination", share, ContaminationShare::MAX, ContaminationShare::LIMIT)
            .map(|share| Self::Share(ContaminationShare(share)))
    }
}

/// Number of features that each tree is grown from, drawn without replacement: scikit-learn's `max_features`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MaxFeatures {
    /// This number of features.
    Count(NonZeroUsize),
    /// This share of the features, rounded down, at least one.
    Share(Share),
}

impl MaxFeatures {
    /// A number of features.
    ///
    /// # Errors
    /// [`Error::Parameter`] if it is 0.
    pub fn count(n_features: usize) -> Result<Self, Error> {
        at_least_one("max_features", n_features).map(Self::Count)
    }

    /// A share of the features.
    ///
    /// # Errors
    /// [`Error::Parameter`] unless it is in `(0, 1]`.
    pub fn share(share: f64) -> Result<Self, Error> {
        check_share("max_features", share, Share::MAX, Share::LIMIT).map(|share| Self::Share(Share(share)))
    }

    /// Features of each tree on a table of `n_features`; exceeds `n_features` if the count does.
    pub fn resolve(self, n_features: usize) -> usize {
        match self {
            Self::Count(count) => count.get(),
            Self::Share(share) => ((share.get() * n_features as f64) as usize).max(1),
        }
    }
}

/// Formats as scikit-learn: `auto`, a whole number, or a share with a decimal point.
impl fmt::Display for MaxSamples {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Count(count) => count.fmt(f),
            Self::Share(share) => write!(f, "{:?}", share.get()),
        }
    }
}

/// Formats as scikit-learn.
impl fmt::Display for Contamination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Share(share) => share.get().fmt(f),
        }
    }
}

/// Formats as scikit-learn.
impl fmt::Display for MaxFeatures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => count.fmt(f),
            Self::Share(share) => write!(f, "{:?}", share.get()),
        }
    }
}

impl Default for MaxFeatures {
    /// All features.
    fn default() -> Self {
        Self::Share(Share(1.0))
    }
}

/// A share of a whole, in `(0, 1]`.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Share(f64);

/// A share of at most one half, in `(0, 0.5]`.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct ContaminationShare(f64);

impl Share {
    const MAX: f64 = 1.0;
    const LIMIT: &str = "in (0, 1]";

    /// The share, in `(0, 1]`.
    pub fn get(self) -> f64 {
        self.0
    }
}

impl ContaminationShare {
    const MAX: f64 = 0.5;
    const LIMIT: &str = "in (0, 0.5]";

    /// The share, in `(0, 0.5]`.
    pub fn get(self) -> f64 {
        self.0
    }
}

impl TryFrom<f64> for Share {
    type Error = Error;

    fn try_from(share: f64) -> Result<Self, Error> {
        check_share("share", share, Self::MAX, Self::LIMIT).map(Self)
    }
}

impl TryFrom<f64> for ContaminationShare {
    type Error = Error;

    fn try_from(share: f64) -> Result<Self, Error> {
        check_share("share", share, Self::MAX, Self::LIMIT).map(Self)
    }
}

fn check_share(name: &'static str, value: f64, max: f64, limit: &'static str) -> Result<f64, Error> {
    let ok = value > 0.0 && value <= max; // rejects NaN too
    ok.then_some(value).ok_or(Error::Parameter { name, value, limit })
}

fn at_least_one(name: &'static str, count: usize) -> Result<NonZeroUsize, Error> {
    NonZeroUsize::new(count).ok_or(Error::Parameter { name, value: 0.0, limit: "at least 1" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejects_values_out_of_range() {
        for share in [0.0, -0.1, 1.000_001, f64::NAN, f64::INFINITY] {
            assert!(MaxSamples::share(share).is_err(), "{share}");
            assert!(MaxFeatures::share(share).is_err(), "{share}");
            assert!(Contamination::share(share).is_err(), "{share}");
            assert!(Share::try_from(share).is_err(), "{share}");
        }
        assert!(ContaminationShare::try_from(0.500_001).is_err());
        assert!(MaxSamples::count(0).is_err());
        assert!(MaxFeatures::count(0).is_err());
    }

    #[test]
    fn messages_name_value_and_limit() {
        let message = Contamination::share(0.6).expect_err("too much").to_string();
        assert_eq!(message, "contamination is 0.6, must be in (0, 0.5]");
        let message = MaxSamples::share(f64::NAN).expect_err("not a number").to_string();
        assert_eq!(message, "max_samples is NaN, must be in (0, 1]");
        let message = MaxFeatures::count(0).expect_err("none").to_string();
        assert_eq!(message, "max_features is 0, must be at least 1");
    }

    #[test]
    fn limits_themselves_are_accepted() {
        assert!(MaxSamples::share(1.0).is_ok());
        assert!(Contamination::share(0.5).is_ok());
        assert!(MaxFeatures::share(f64::MIN_POSITIVE).is_ok());
    }

    #[test]
    fn resolves_as_scikit_learn() {
        let samples = |max: Result<MaxSamples, Error>, n| max.expect("in range").resolve(n);
        assert_eq!(MaxSamples::Auto.resolve(100), 100);
        assert_eq!(MaxSamples::Auto.resolve(1_000), 256);
        assert_eq!(samples(MaxSamples::count(500), 100), 100);
        assert_eq!(samples(MaxSamples::share(0.57), 100), 56, "0.57 * 100 is 56.99...");
        assert_eq!(samples(MaxSamples::share(0.001), 100), 0);

        let features = |max: Result<MaxFeatures, Error>, n| max.expect("in range").resolve(n);
        assert_eq!(MaxFeatures::default().resolve(20), 20);
        assert_eq!(features(MaxFeatures::share(0.01), 20), 1);
        assert_eq!(features(MaxFeatures::count(30), 20), 30);
    }
}
