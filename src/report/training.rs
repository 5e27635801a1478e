//! The page of a training: which size of sample was chosen and why, whether the forest fits what it
//! has not seen, how its scores went over time, and what it was trained on.

/// What the page of a training shows: numbers alone, ready to be drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct Training {
    /// The model's name in the registry.
    pub model: String,
    /// The group, as `{job="node", instance="a:9100"}`; none for ready-made rows of a file.
    pub group: Option<String>,
    /// Facts for the head of the page, name and value: kind, parameters, rows, range of time, seed.
    pub facts: Vec<(String, String)>,
    /// Was the model let into service, and if not, why.
    pub promotion: PromotionDecision,
    /// Every size of the sweep, ascending; at least one.
    pub sweep: Vec<Candidate>,
    /// Position of the chosen one in `sweep`.
    pub chosen: usize,
    /// Folds of the chosen one, in the order of time.
    pub folds: Vec<FoldHistograms>,
    /// Scores and features over time, thinned out for the plot.
    pub timeline: Timeline,
    /// The columns, in the order of the model.
    pub features: Vec<FeatureSummary>,
}

/// Whether the model was let into service.
#[derive(Clone, Debug, PartialEq)]
pub enum PromotionDecision {
    /// It holds this alias now.
    Promoted(String),
    /// It was registered, but kept out of service, for these reasons.
    Gated(Vec<String>),
    /// Nobody asked for it to be put into service.
    Saved,
}

/// One size of the sweep.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// Rows that each tree is grown from.
    pub max_samples: usize,
    /// KL divergence between the decisions of the train and the test rows of each fold, in nats.
    pub kl: Vec<f64>,
}

impl Candidate {
    /// Mean KL divergence over the folds.
    pub fn mean_kl(&self) -> f64 {
        self.kl.iter().sum::<f64>() / self.kl.len() as f64
    }
}

/// The decisions of one fold's rows, in 200 bins of equal width over [-1, 1], as densities.
#[derive(Clone, Debug, PartialEq)]
pub struct FoldHistograms {
    /// KL divergence of the two.
    pub kl: f64,
    /// Rows that the forest was fitted on.
    pub train: Vec<f64>,
    /// Rows that it had not seen.
    pub test: Vec<f64>,
}

/// Rows over time, thinned out: each point stands for the rows of a short stretch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Timeline {
    /// Beginning of each stretch, milliseconds since the epoch, ascending; gaps stay gaps.
    pub times_ms: Vec<i64>,
    /// Length of a stretch, in milliseconds.
    pub step_ms: i64,
    /// Highest score of each stretch, 1 = the alert threshold.
    pub score: Vec<f64>,
    /// Least and greatest value of each feature in each stretch, `[n_features][n_points]`.
    pub features: Vec<Vec<[f32; 2]>>,
    /// Stretches that were left out of training, and why.
    pub excluded: Vec<ExcludedRange>,
}

/// A stretch of time that was left out of training.
#[derive(Clone, Debug, PartialEq)]
pub struct ExcludedRange {
    /// First millisecond.
    pub from_ms: i64,
    /// Last millisecond.
    pub to_ms: i64,
    /// Why: as given by the user, or the name of the alert that fired.
    pub reason: String,
    /// Rows that it cost.
    pub n_rows: usize,
}

/// One column of the model over its training rows.
#[derive(Clone, Debug, PartialEq)]
pub struct FeatureSummary {
    /// As people write it: `rate(node_network_receive_bytes_total{device="eth0"}[1m])`.
    pub name: String,
    /// Least value.
    pub least: f32,
    /// Median.
    pub median: f32,
    /// Greatest value; equal to the least for a feature that was constant.
    pub greatest: f32,
}

mod html;

#[cfg(test)]
mod tests;
