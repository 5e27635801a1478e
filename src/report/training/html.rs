//! Writes the report of a training: the decision, then the evidence, then all numbers.

use super::{ExcludedRange, FeatureSummary, FoldHistograms, PromotionDecision, Timeline, Training};
use crate::models::Trial;
use crate::report::page;
use crate::report::plot::{Anchor, Plot};
use crate::report::scale::Scale;
use crate::report::text::{count, nats, number, number_within, percent, plural, shorten};
use crate::report::time_axis::{ShadedRange, TimeAxis, named_figure, needs_log_scale};
use crate::report::zone::Zone;
use maud::{Markup, html};

/// Maximum number of features drawn over time: enough for a server.
const MAX_DRAWN: usize = 24;

/// Rows of the feature table up to which it is expanded.
const MAX_ROWS_SHOWN: usize = 60;

/// Histogram bins on each side of decision 0.
const BINS_PER_SIDE: f64 = 100.0;

/// A divergence of the sweep, and how the page explains it.
struct Divergence {
    title: &'static str,
    lead: &'static str,
    folds: fn(&Trial) -> &[f64],
    mean: fn(&Trial) -> f64,
}

const QUANTILE_BINS: Divergence = Divergence {
    title: "Rows per tree",
    lead: "KL divergence, in nats, between the decisions of fitted and of held-out rows, over bins at quantiles of the \
           fitted rows. Of the sizes that pass the promotion gate and are within one standard error of the least of \
           them, the one nearest to 256 is chosen.",
    folds: |trial| &trial.quantile_kl,
    mean: Trial::mean_quantile_kl,
};

const EQUAL_BINS: Divergence = Divergence {
    title: "Rows per tree, 200 equal bins",
    lead: "The same over 200 bins of equal width. It has its least where decisions are all alike, and does not choose.",
    folds: |trial| &trial.kl,
    mean: Trial::mean_kl,
};

impl Training {
    /// The report as one HTML document. Equal content gives equal bytes.
    pub fn html(&self) -> String {
        let body = html! {
            (self.head())
            (self.sizes(&QUANTILE_BINS))
            (self.sizes(&EQUAL_BINS))
            (self.decisions())
            (self.over_time())
            (self.feature_table())
            (self.exclusions())
            (self.sweep_table())
        };
        page::page(&format!("{} · training", self.model), &body)
    }

    fn chosen_trial(&self) -> Option<&Trial> {
        self.sweep.get(self.chosen)
    }

    fn head(&self) -> Markup {
        html! {
            header {
                p.kicker { "Training" }
                h1 { (self.model) }
                @if let Some(group) = &self.group { code.group { (group) } }
                (self.promotion.html())
                p.summary { (self.summary()) }
                @if !self.facts.is_empty() { (page::facts(&self.facts)) }
            }
        }
    }

    /// The chosen size and the results of cross-validation, in sentences.
    fn summary(&self) -> String {
        let mut out = String::new();
        if let Some(trial) = self.chosen_trial() {
            let mean = trial.mean_quantile_kl();
            let rows = count(trial.max_samples);
            if mean.is_finite() {
                out += &format!(
                    "Trees of {rows} rows: the decisions of held-out rows differ from those of fitted rows by {} nats, {}.",
                    number(mean),
                    self.describe_rank(mean)
                );
            } else {
                out += &format!(
                    "Trees of {rows} rows; the divergence of held-out and fitted rows is not finite."
                );
            }
        }
        let anomalous = |of: fn(&FoldHistograms) -> &[f64]| {
            let shares = self.folds.iter().filter_map(|fold| share_below_0(of(fold)));
            mean(shares.collect())
        };
        if let (Some(train), Some(test)) = (anomalous(|fold| &fold.train), anomalous(|fold| &fold.test)) {
            out += &format!(
                " It finds {} of the fitted rows anomalous, and {} of the held-out rows.",
                percent(train),
                percent(test)
            );
        }
        out
    }

    /// The rank of the chosen size in the sweep.
    fn describe_rank(&self, mean: f64) -> String {
        let least = self.sweep.iter().filter(|trial| trial.mean_quantile_kl().is_finite());
        let least = least.min_by(|a, b| a.mean_quantile_kl().total_cmp(&b.mean_quantile_kl()));
        match least {
            _ if self.sweep.len() == 1 => "the only size that was tried".into(),
            Some(least) if least.mean_quantile_kl() < mean => format!(
                "where the least of {} sizes is {} ± {}, with trees of {}",
                self.sweep.len(),
                number(least.mean_quantile_kl()),
                number(least.quantile_kl_error()),
                count(least.max_samples)
            ),
            _ => format!("the least of {} sizes", self.sweep.len()),
        }
    }

    /// The plot of a divergence over rows per tree; empty for a single size.
    fn sizes(&self, divergence: &Divergence) -> Markup {
        let Divergence { title, lead, folds, mean } = divergence;
        if self.sweep.len() < 2 {
            return html! {};
        }
        let sizes = self.sweep.iter().map(|trial| trial.max_samples as f64);
        let x = Scale::log(sizes).padded(0.03);
        let values = || self.sweep.iter().flat_map(|trial| folds(trial).iter().copied());
        let finite = || values().filter(|kl| kl.is_finite());
        let (least, greatest) = finite().fold((f64::INFINITY, 0.0f64), |(a, b), kl| (kl.min(a), kl.max(b)));
        // On a linear axis the smallest divergences, which decide, could not be distinguished.
        let y = if least > 0.0 && greatest > 20.0 * least {
            Scale::log(finite()).padded(0.05)
        } else {
            Scale::linear(finite().chain([0.0])).rounded(5)
        };
        let mut plot = Plot::new(x, y, 280);
        plot.rows(&y.ticks(5));
        plot.labels(&x.ticks(12));
        if let Some(trial) = self.chosen_trial() {
            let size = trial.max_samples as f64;
            plot.rule_x(size, "mark");
            let text = format!("{} rows · {}", count(trial.max_samples), number(mean(trial)));
            let share = x.position(size).unwrap_or(0.0);
            plot.text_at(share, -10.0, Anchor::within(share), "strong", &text);
        }
        let means: Vec<[f64; 2]> =
            self.sweep.iter().map(|trial| [trial.max_samples as f64, mean(trial)]).collect();
        plot.line(&[means], "curve");
        for (i, trial) in self.sweep.iter().enumerate() {
            let (size, rows) = (trial.max_samples as f64, count(trial.max_samples));
            for (fold, kl) in folds(trial).iter().enumerate() {
                plot.dot(size, *kl, 3.0, "fold", &format!("{rows} rows, fold {}: {}", fold + 1, nats(*kl)));
            }
            let radius = if i == self.chosen { 6.0 } else { 4.0 };
            plot.dot(size, mean(trial), radius, "mean", &format!("{rows} rows, mean: {}", nats(mean(trial))));
        }
        let scales = if y.is_log() { " Both scales are logarithmic." } else { "" };
        let undrawn = match values().filter(|kl| !kl.is_finite()).count() {
            0 => String::new(),
            n => format!(" Not drawn: {} that are not finite.", count(n)),
        };
        let body = html! {
            figure.sized { (plot.finish("", "KL divergence over rows per tree")) }
            span.under { "rows per tree (max_samples)" }
        };
        let lead = format!("{lead} Small dots are folds, the line is their mean.{scales}{undrawn}");
        page::section(title, lead, &body)
    }

    /// Histograms of the decisions, fold by fold.
    fn decisions(&self) -> Markup {
        let heights = || self.folds.iter().flat_map(|fold| fold.train.iter().chain(&fold.test).copied());
        let Some((first, last)) = self.occupied() else { return html! {} };
        // One empty bin at either end; 0 is always visible.
        let x = Scale::linear([bin_edge(first.min(99)) - 0.01, bin_edge((last + 1).max(101)) + 0.01]);
        let y = Scale::linear(heights().chain([0.0]));
        let body = html! {
            div.legend {
                span.train { "fitted (train)" }
                span.test { "held out (test)" }
            }
            div.folds {
                @for (i, fold) in self.folds.iter().enumerate() {
                    figure {
                        figcaption { "Fold " (i + 1) span { "KL " (nats(fold.kl)) } }
                        (fold.plot((x, y), (first, last)).finish("", &format!("Decisions of fold {}", i + 1)))
                    }
                }
            }
        };
        page::section(
            "Decisions of fitted and held-out rows",
            "Each fold is held out once. If the two histograms agree, the forest scores new rows like those of training; a \
             row left of 0 is anomalous.",
            &body,
        )
    }

    /// First and last bin with rows in any fold.
    fn occupied(&self) -> Option<(usize, usize)> {
        let bins = self.folds.iter().flat_map(|fold| [&fold.train, &fold.test]);
        let filled = bins.flat_map(|bins| bins.iter().enumerate().filter(|(_, height)| **height > 0.0));
        filled.map(|(bin, _)| bin).fold(None, |ends, bin| match ends {
            None => Some((bin, bin)),
            Some((first, last)) => Some((bin.min(first), bin.max(last))),
        })
    }

    /// Scores and features on one time axis.
    fn over_time(&self) -> Markup {
        let Timeline { times_ms, step_ms, score, features, excluded } = &self.timeline;
        let Some(axis) = TimeAxis::new(times_ms, *step_ms, &self.zone, self.shaded_ranges()) else {
            return html! {};
        };
        let y = if needs_log_scale(score) {
            Scale::log(score.iter().copied().chain([1.0])).padded(0.1)
        } else {
            Scale::linear(score.iter().copied().chain([1.0])).padded(0.1)
        };
        let mut plot = axis.score_plot(score, y);
        if let Some((time_ms, peak)) = self.peak() {
            let class = if peak > 1.0 { "peak" } else { "below-threshold" };
            let title = format!("{} on {}", number(peak), self.zone.format_datetime(time_ms as i64));
            plot.dot(time_ms, peak, 3.5, class, &title);
            plot.note(time_ms, peak, 8.0, "strong halo", &number(peak));
        }
        plot.note(axis.scale().high(), 1.0, 6.0, "halo", "threshold");
        self.label_exclusions(&mut plot, axis.scale());
        let above = score.iter().filter(|score| **score > 1.0).count();
        let lead = format!(
            "{}; {} of {} exceed the threshold of 1.{}",
            axis.describe(),
            count(above),
            count(score.len()),
            if excluded.is_empty() { "" } else { " Shaded ranges were left out of training." },
        );
        let drawn = self.features_to_draw(features.len());
        let plots = html! {
            (axis.score_figure(plot))
            @if !drawn.is_empty() { p.between { (self.describe_drawn(drawn.len())) } }
            @for i in &drawn { (feature_figure(&axis, &self.features[*i].name, &features[*i])) }
            @if drawn.len() > 4 { (axis.repeated()) }
        };
        axis.section("Scores and features over time", &lead, &html! {}, &plots)
    }

    /// The excluded ranges that overlap with the timeline.
    fn shaded_ranges(&self) -> Vec<ShadedRange> {
        let Timeline { times_ms, step_ms, excluded, .. } = &self.timeline;
        let (Some(first), Some(last)) = (times_ms.first(), times_ms.last()) else { return Vec::new() };
        let end_ms = last.saturating_add(*step_ms);
        let visible = excluded.iter().filter(|range| range.to_ms >= *first && range.from_ms < end_ms);
        let shaded = visible.map(|range| ShadedRange {
            from_ms: range.from_ms as f64,
            to_ms: range.to_ms as f64,
            class: "excluded",
            title: format!("left out: {}", range.reason),
        });
        shaded.collect()
    }

    /// Time and value of the highest score.
    fn peak(&self) -> Option<(f64, f64)> {
        let points = self.timeline.times_ms.iter().zip(&self.timeline.score);
        let finite = points.filter(|(_, score)| score.is_finite());
        let highest = finite.max_by(|a, b| a.1.total_cmp(b.1));
        highest.map(|(time_ms, score)| (*time_ms as f64, *score))
    }

    /// Writes the numbers of the excluded ranges above them, and their reasons where they fit.
    fn label_exclusions(&self, plot: &mut Plot, x: Scale) {
        let visible_label = |(i, stretch): (usize, &ExcludedRange)| {
            let (from, to) = (x.position(stretch.from_ms as f64)?, x.position(stretch.to_ms as f64)?);
            (to > 0.0 && from < 1.0).then(|| (from, (i + 1).to_string(), shorten(&stretch.reason, 28)))
        };
        let mut labels: Vec<_> =
            self.timeline.excluded.iter().enumerate().filter_map(visible_label).collect();
        labels.sort_by(|a, b| a.0.total_cmp(&b.0));
        // A number takes 5 % of the width; of numbers that overlap only the first is written.
        let mut free_from = 0.0;
        for (k, (from, number, reason)) in labels.iter().enumerate() {
            if *from < free_from {
                continue;
            }
            let room = labels.get(k + 1).map_or(1.0, |(next, ..)| *next) - from;
            let width = 0.008 * (reason.chars().count() as f64 + 4.0);
            let class = if width < room { "terse" } else { "" };
            plot.text_at(*from, -8.0, Anchor::Start, class, number);
            if width < room {
                plot.text_at(*from, -8.0, Anchor::Start, "wordy", &format!("{number} {reason}"));
            }
            free_from = from + 0.05;
        }
    }

    /// The features to draw, in the order of the model: those with the largest relative range, without constants.
    fn features_to_draw(&self, n_series: usize) -> Vec<usize> {
        let moved = |i: &usize| self.features[*i].relative_range() > 0.0;
        let mut drawn: Vec<usize> = (0..self.features.len().min(n_series)).filter(moved).collect();
        drawn.sort_by(|a, b| {
            self.features[*b].relative_range().total_cmp(&self.features[*a].relative_range())
        });
        drawn.truncate(MAX_DRAWN);
        drawn.sort_unstable();
        drawn
    }

    fn describe_drawn(&self, n_drawn: usize) -> String {
        let moved = self.features.iter().filter(|feature| feature.relative_range() > 0.0).count();
        let constant = self.features.len() - moved;
        let constants_note = match constant {
            0 => String::new(),
            1 => " One was constant.".into(),
            n => format!(" {} were constant.", count(n)),
        };
        let each = "minimum and maximum of each stretch, each feature on its own scale.";
        if n_drawn < moved {
            format!(
                "The {n_drawn} of {} features with the largest relative range: {each}{constants_note}",
                count(self.features.len())
            )
        } else {
            format!("The features: {each}{constants_note}")
        }
    }

    fn feature_table(&self) -> Markup {
        if self.features.is_empty() {
            return html! {};
        }
        let constant = match self.features.iter().filter(|feature| feature.is_constant()).count() {
            0 => String::new(),
            1 => " One was constant: it affects scores only when it changes.".into(),
            n => format!(" {} were constant: they affect scores only when they change.", count(n)),
        };
        let table = html! {
            table.features {
                thead {
                    tr {
                        th { "feature" }
                        th.n { "least" }
                        th.n { "median" }
                        th.n { "greatest" }
                        th.extent { "range" }
                    }
                }
                tbody { @for feature in &self.features { (feature.row()) } }
            }
        };
        let body = html! {
            @if self.features.len() > MAX_ROWS_SHOWN {
                details {
                    summary { "Show all " (count(self.features.len())) " features" }
                    (table)
                }
            } @else {
                (table)
            }
        };
        let lead = format!(
            "Values over the training rows. Each bar reaches from the minimum to the maximum, on its own scale that \
             includes 0; its mark is the median.{constant}"
        );
        page::section("Ranges of the features", lead, &body)
    }

    fn exclusions(&self) -> Markup {
        let excluded = &self.timeline.excluded;
        if excluded.is_empty() {
            return page::section("Left out of training", "Nothing.", &html! {});
        }
        let body = html! {
            div.wide {
                table.excluded-table {
                    thead {
                        tr {
                            th {}
                            th { "reason" }
                            th { "from, " (self.zone.name()) }
                            th.until { "to" }
                            th.n { "rows" }
                        }
                    }
                    tbody { @for (i, range) in excluded.iter().enumerate() { (range.row(i + 1, &self.zone)) } }
                }
            }
        };
        let total = excluded.iter().fold(0usize, |sum, stretch| sum.saturating_add(stretch.n_rows));
        page::section("Left out of training", format!("{} in all.", plural(total, "row")), &body)
    }

    fn sweep_table(&self) -> Markup {
        let n_folds = self.sweep.iter().map(|trial| trial.kl.len()).max().unwrap_or(0);
        let body = html! {
            div.wide {
                table.sweep {
                    thead {
                        tr {
                            th.n { "rows per tree" }
                            th.n { "quantile bins" }
                            th.n { "equal bins" }
                            @for fold in 1..=n_folds { th.n { "fold " (fold) } }
                        }
                    }
                    tbody {
                        @for (i, trial) in self.sweep.iter().enumerate() { (trial_row(trial, i == self.chosen)) }
                    }
                }
            }
        };
        page::section(
            "The sweep in numbers",
            "KL divergence in nats, over bins at quantiles with its standard error, and over equal bins with its folds; \
             the chosen size is highlighted.",
            &body,
        )
    }
}

/// The row of the table of the sweep.
fn trial_row(trial: &Trial, is_chosen: bool) -> Markup {
    html! {
        tr.chosen[is_chosen] {
            td.n { (count(trial.max_samples)) }
            td.n { (nats(trial.mean_quantile_kl())) " ± " (nats(trial.quantile_kl_error())) }
            td.n { (nats(trial.mean_kl())) }
            @for kl in &trial.kl { td.n { (nats(*kl)) } }
        }
    }
}

/// The plot of a feature: minimum and maximum of each stretch.
fn feature_figure(axis: &TimeAxis<'_>, name: &str, values: &[[f32; 2]]) -> Markup {
    let y = Scale::linear(values.iter().flatten().map(|value| f64::from(*value)));
    let range = y.high() - y.low();
    let mut plot = axis.plot_with_ends(y, 46, |end| number_within(end, range / 5.0));
    axis.band(&mut plot, values, "band");
    named_figure(name, plot)
}

/// Lower edge of a bin of decisions.
fn bin_edge(bin: usize) -> f64 {
    bin as f64 / BINS_PER_SIDE - 1.0
}

impl PromotionDecision {
    fn html(&self) -> Markup {
        let (class, badge) = match self {
            Self::Promoted(alias) => ("promotion promoted", format!("✓ Promoted to {alias}")),
            Self::Gated(_) => ("promotion gated", "✕ Not promoted".into()),
            Self::Challenger { .. } => ("promotion", "Challenger".into()),
            Self::Saved => ("promotion", "Saved, not in service".into()),
        };
        let reasons = match self {
            Self::Gated(reasons) => reasons.clone(),
            Self::Challenger { alias, pinned } => vec![format!("{alias} is pinned to version {pinned}")],
            Self::Promoted(_) | Self::Saved => Vec::new(),
        };
        html! {
            div class=(class) {
                span.badge { (badge) }
                @if !reasons.is_empty() {
                    ul { @for reason in &reasons { li { (reason) } } }
                }
            }
        }
    }
}

impl FoldHistograms {
    /// The histograms of the bins from the first to the last.
    fn plot(&self, (x, y): (Scale, Scale), (first, last): (usize, usize)) -> Plot {
        let mut plot = Plot::new(x, y, 130);
        plot.shade(x.low(), 0.0, "side", "decision below 0: anomalous");
        plot.rule_y(y.low(), "base");
        plot.rule_x(0.0, "base");
        plot.labels(&x.ticks(4));
        for (bins, class) in [(&self.train, "train"), (&self.test, "test")] {
            let bins = bins.get(first..=last.min(bins.len().saturating_sub(1))).unwrap_or_default();
            plot.steps(bin_edge(first), 1.0 / BINS_PER_SIDE, bins, class);
        }
        // Only if the text fits.
        if let Some(share) = x.position(0.0).filter(|share| *share > 0.4) {
            plot.text_at(share, 10.0, Anchor::End, "end", "anomalous");
        }
        plot
    }
}

impl ExcludedRange {
    /// The row of the table of excluded ranges.
    fn row(&self, number: usize, zone: &Zone) -> Markup {
        html! {
            tr {
                td.dim { (number) }
                td { (self.reason) }
                td { (zone.format_datetime(self.from_ms)) }
                td.until { (zone.format_datetime(self.to_ms.saturating_add(1))) }
                td.n { (count(self.n_rows)) }
            }
        }
    }
}

impl FeatureSummary {
    fn is_constant(&self) -> bool {
        self.least == self.greatest
    }

    /// Range divided by the sum of magnitudes, from 0 for a constant to 1; 0 if it is not finite.
    fn relative_range(&self) -> f64 {
        let [least, median, greatest] = [self.least, self.median, self.greatest].map(f64::from);
        let movement = (greatest - least) / (least.abs() + median.abs() + greatest.abs());
        if movement.is_finite() { movement } else { 0.0 }
    }

    /// The row of the feature table.
    fn row(&self) -> Markup {
        let [least, median, greatest] = [self.least, self.median, self.greatest].map(f64::from);
        let range = greatest - least;
        html! {
            tr {
                td.name { (self.name) }
                @for (name, value) in [("least", least), ("median", median), ("greatest", greatest)] {
                    td.n data-what=(name) { (number_within(value, range)) }
                }
                td.extent {
                    @if self.is_constant() {
                        span.dim { "constant" }
                    } @else {
                        (extent_bar(least, median, greatest))
                    }
                }
            }
        }
    }
}

/// A bar from the minimum to the maximum on a scale that includes 0, with a mark at the median.
fn extent_bar(least: f64, median: f64, greatest: f64) -> Markup {
    let scale = Scale::linear([0.0, least, greatest]);
    let place = |value| 100.0 * scale.position(value).unwrap_or(0.0);
    let (left, width) = (place(least), place(greatest) - place(least));
    html! {
        span.track {
            i style=(format!("left:{left:.1}%;width:{width:.1}%")) {}
            b style=(format!("left:{:.1}%", place(median))) {}
        }
    }
}

/// Share of a histogram's mass below 0; `None` without mass.
fn share_below_0(bins: &[f64]) -> Option<f64> {
    let total: f64 = bins.iter().sum();
    let below: f64 = bins.iter().take(BINS_PER_SIDE as usize).sum();
    (total > 0.0 && total.is_finite()).then(|| below / total)
}

/// `None` without values.
fn mean(values: Vec<f64>) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}
