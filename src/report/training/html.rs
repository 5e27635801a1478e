//! How the page of a training is written: first what was decided, then the evidence, then all numbers.

use super::{
    Candidate, ExcludedRange, FeatureSummary, FoldHistograms, PromotionDecision, Timeline, Training,
};
use crate::report::page;
use crate::report::svg::{Anchor, Plot, Scale, runs};
use crate::report::text::{count, escape, format_datetime, nats, number, number_within, percent, shorten};

/// Features that are drawn over time: more than a person compares, and enough for a server.
const MAX_DRAWN: usize = 24;

/// Rows of the table of features that are shown without being asked for.
const MAX_ROWS_SHOWN: usize = 60;

/// Half of the decisions' axis, [-1, 1], holds this many bins of a histogram.
const BINS_PER_SIDE: f64 = 100.0;

impl Training {
    /// The page, one HTML document. The same training gives the same bytes.
    pub fn html(&self) -> String {
        let mut body = self.head();
        body += &self.sizes();
        body += &self.decisions();
        body += &self.over_time();
        body += &self.feature_table();
        body += &self.exclusions();
        body += &self.sweep_table();
        page::page(&format!("{} · training", self.model), &body)
    }

    fn chosen_candidate(&self) -> Option<&Candidate> {
        self.sweep.get(self.chosen)
    }

    fn head(&self) -> String {
        let mut out =
            format!("<header>\n<p class=\"kicker\">Training</p>\n<h1>{}</h1>\n", escape(&self.model));
        if let Some(group) = &self.group {
            out += &format!("<code class=\"group\">{}</code>\n", escape(group));
        }
        out += &match &self.promotion {
            PromotionDecision::Promoted(alias) => format!(
                "<div class=\"verdict promoted\"><span class=\"badge\">✓ Promoted to {}</span></div>\n",
                escape(alias)
            ),
            PromotionDecision::Gated(reasons) => {
                let reasons: String =
                    reasons.iter().map(|reason| format!("<li>{}</li>", escape(reason))).collect();
                let list = if reasons.is_empty() { reasons } else { format!("<ul>{reasons}</ul>") };
                format!("<div class=\"verdict held\"><span class=\"badge\">✕ Held back</span>{list}</div>\n")
            }
            PromotionDecision::Saved => {
                "<div class=\"verdict\"><span class=\"badge\">Saved, not in service</span></div>\n".into()
            }
        };
        out += &format!("<p class=\"summary\">{}</p>\n", self.summary());
        if !self.facts.is_empty() {
            out += "<dl class=\"facts\">\n";
            for (name, value) in &self.facts {
                out += &format!("<div><dt>{}</dt><dd>{}</dd></div>\n", escape(name), escape(value));
            }
            out += "</dl>\n";
        }
        out + "</header>\n"
    }

    /// What was chosen and what the numbers mean, in sentences.
    fn summary(&self) -> String {
        let mut out = String::new();
        if let Some(candidate) = self.chosen_candidate() {
            let mean = candidate.mean_kl();
            let rows = count(candidate.max_samples);
            if mean.is_finite() {
                out += &format!(
                    "Trees of {rows} rows: the decisions of rows the forest has not seen differ from those it was \
                     fitted on by {} nats, {}.",
                    number(mean),
                    self.describe_rank(mean)
                );
            } else {
                out += &format!(
                    "Trees of {rows} rows; how unseen rows differ from fitted ones has no finite measure."
                );
            }
        }
        let anomalous = |of: fn(&FoldHistograms) -> &[f64]| {
            let shares = self.folds.iter().filter_map(|fold| share_below_0(of(fold)));
            mean(shares.collect())
        };
        if let (Some(train), Some(test)) = (anomalous(|fold| &fold.train), anomalous(|fold| &fold.test)) {
            out += &format!(
                " It finds {} of the rows it was fitted on anomalous, and {} of those it had not seen.",
                percent(train),
                percent(test)
            );
        }
        out
    }

    /// How the chosen one stands among the sizes of the sweep.
    fn describe_rank(&self, mean: f64) -> String {
        let least = self.sweep.iter().filter(|candidate| candidate.mean_kl().is_finite());
        let least = least.min_by(|a, b| a.mean_kl().total_cmp(&b.mean_kl()));
        match least {
            _ if self.sweep.len() == 1 => "the only size that was tried".into(),
            Some(least) if least.mean_kl() < mean => format!(
                "where the least of {} sizes is {}, with trees of {}",
                self.sweep.len(),
                number(least.mean_kl()),
                count(least.max_samples)
            ),
            _ => format!("the least of {} sizes", self.sweep.len()),
        }
    }

    /// KL divergence over the size of the sample; nothing to compare with a single one.
    fn sizes(&self) -> String {
        if self.sweep.len() < 2 {
            return String::new();
        }
        let sizes = self.sweep.iter().map(|candidate| candidate.max_samples as f64);
        let x = Scale::log(sizes).padded(0.03);
        let values = || self.sweep.iter().flat_map(|candidate| candidate.kl.iter().copied());
        let finite = || values().filter(|kl| kl.is_finite());
        let (least, greatest) = finite().fold((f64::INFINITY, 0.0f64), |(a, b), kl| (kl.min(a), kl.max(b)));
        // On a linear axis the small ones would lie on the ground, and they are what the choice is about.
        let y = if least > 0.0 && greatest > 20.0 * least {
            Scale::log(finite()).padded(0.05)
        } else {
            Scale::linear(finite().chain([0.0])).rounded(5)
        };
        let mut plot = Plot::new(x, y, 280);
        plot.rows(&y.ticks(5));
        plot.labels(&x.ticks(12));
        if let Some(candidate) = self.chosen_candidate() {
            let size = candidate.max_samples as f64;
            plot.rule_x(size, "mark");
            let text = format!("{} rows · {}", count(candidate.max_samples), number(candidate.mean_kl()));
            let share = x.position(size).unwrap_or(0.0);
            plot.text_at(share, -10.0, Anchor::within(share), "strong", &text);
        }
        let means: Vec<[f64; 2]> =
            self.sweep.iter().map(|candidate| [candidate.max_samples as f64, candidate.mean_kl()]).collect();
        plot.line(&[means], "curve");
        for (i, candidate) in self.sweep.iter().enumerate() {
            let (size, rows) = (candidate.max_samples as f64, count(candidate.max_samples));
            for (fold, kl) in candidate.kl.iter().enumerate() {
                plot.dot(size, *kl, 3.0, "fold", &format!("{rows} rows, fold {}: {}", fold + 1, nats(*kl)));
            }
            let radius = if i == self.chosen { 6.0 } else { 4.0 };
            let title = format!("{rows} rows, mean: {}", nats(candidate.mean_kl()));
            plot.dot(size, candidate.mean_kl(), radius, "mean", &title);
        }
        let figure = plot.finish("", "KL divergence over rows per tree");
        let scales = if y.is_log() { " Both scales are logarithmic." } else { "" };
        let undrawn = values().filter(|kl| !kl.is_finite()).count();
        let undrawn = match undrawn {
            0 => String::new(),
            n => format!(" Not drawn: {} that are not finite.", count(n)),
        };
        page::section(
            "How many rows a tree is grown from",
            &format!(
                "KL divergence, in nats, between the decisions of unseen and of fitted rows, for each size; 0 is no \
                 difference. Small dots are folds, the line is their mean.{scales}{undrawn}"
            ),
            &format!(
                "<figure class=\"sized\">\n{figure}</figure>\n<span class=\"under\">rows per tree (max_samples)</span>\n"
            ),
        )
    }

    /// Histograms of the decisions, fold by fold.
    fn decisions(&self) -> String {
        let heights = || self.folds.iter().flat_map(|fold| fold.train.iter().chain(&fold.test).copied());
        let Some((first, last)) = self.occupied() else { return String::new() };
        let edge = |bin: usize| bin as f64 / BINS_PER_SIDE - 1.0;
        // A bin of air at either end, and 0 always in sight.
        let x = Scale::linear([edge(first.min(99)) - 0.01, edge((last + 1).max(101)) + 0.01]);
        let y = Scale::linear(heights().chain([0.0]));
        let mut figures = String::new();
        for (i, fold) in self.folds.iter().enumerate() {
            let mut plot = Plot::new(x, y, 130);
            plot.shade(x.low(), 0.0, "side", "decision below 0: anomalous");
            plot.rule_y(y.low(), "base");
            plot.rule_x(0.0, "base");
            plot.labels(&x.ticks(4));
            for (bins, class) in [(&fold.train, "train"), (&fold.test, "test")] {
                let bins = bins.get(first..=last.min(bins.len().saturating_sub(1))).unwrap_or_default();
                plot.steps(edge(first), 1.0 / BINS_PER_SIDE, bins, class);
            }
            // There has to be room for the word.
            if let Some(share) = x.position(0.0).filter(|share| *share > 0.4) {
                plot.text_at(share, 10.0, Anchor::End, "end", "anomalous");
            }
            let svg = plot.finish("", &format!("Decisions of fold {}", i + 1));
            figures += &format!(
                "<figure>\n<figcaption>Fold {}<span>KL {}</span></figcaption>\n{svg}</figure>\n",
                i + 1,
                nats(fold.kl)
            );
        }
        page::section(
            "Decisions of seen and unseen rows",
            "Each fold is left out once. Where the two shapes agree, the forest treats what it has not seen like what \
             it was fitted on; a row left of 0 is anomalous.",
            &format!(
                "<div class=\"legend\"><span class=\"train\">fitted on (train)</span>\
                 <span class=\"test\">not seen (test)</span></div>\n<div class=\"folds\">\n{figures}</div>\n"
            ),
        )
    }

    /// First and last bin that any fold has rows in.
    fn occupied(&self) -> Option<(usize, usize)> {
        let bins = self.folds.iter().flat_map(|fold| [&fold.train, &fold.test]);
        let filled = bins.flat_map(|bins| bins.iter().enumerate().filter(|(_, height)| **height > 0.0));
        filled.map(|(bin, _)| bin).fold(None, |ends, bin| match ends {
            None => Some((bin, bin)),
            Some((first, last)) => Some((bin.min(first), bin.max(last))),
        })
    }

    /// Scores and features on one axis of time.
    fn over_time(&self) -> String {
        let Timeline { times_ms, step_ms, score, features, excluded } = &self.timeline;
        let (Some(first), Some(last)) = (times_ms.first(), times_ms.last()) else { return String::new() };
        let x = Scale::linear([*first as f64, last.saturating_add(*step_ms) as f64]);
        let ticks = x.time_ticks(9);
        let base_plot = |y: Scale, height: u32| {
            let mut plot = Plot::new(x, y, height);
            for stretch in excluded.iter().filter(|stretch| stretch.to_ms >= *first) {
                if (stretch.from_ms as f64) < x.high() {
                    let (from, to) = (stretch.from_ms as f64, stretch.to_ms as f64);
                    plot.shade(from, to, "left-out", &format!("left out: {}", stretch.reason));
                }
            }
            plot.columns(&ticks);
            plot
        };

        let mut axis = Plot::new(x, Scale::linear([0.0, 1.0]), 1);
        axis.rule_y(0.0, "base");
        axis.labels(&ticks);
        let axis = axis.finish("", "Time, UTC");
        let axis = format!("<div class=\"axis\">{axis}<output></output></div>\n");

        let greatest = score.iter().copied().filter(|score| score.is_finite()).fold(1.0, f64::max);
        let y = if greatest > 20.0 {
            Scale::log(score.iter().copied().chain([1.0])).padded(0.1)
        } else {
            Scale::linear(score.iter().copied().chain([1.0])).padded(0.1)
        };
        let mut plot = base_plot(y, 220);
        plot.rows(&y.ticks(5));
        plot.rule_y(1.0, "limit");
        plot.split("score", 1.0);
        plot.line(&runs(times_ms, *step_ms, score, |time, score| [time, *score]), "score");
        if let Some((time_ms, peak)) = self.peak() {
            let class = if peak > 1.0 { "peak" } else { "calm" };
            plot.dot(
                time_ms,
                peak,
                3.5,
                class,
                &format!("{} on {}", number(peak), format_datetime(time_ms as i64)),
            );
            plot.note(time_ms, peak, 8.0, "strong halo", &number(peak));
        }
        plot.note(x.high(), 1.0, 6.0, "halo", "threshold");
        self.label_exclusions(&mut plot, x);
        let svg = plot.finish("", "Scores over time");
        let mut out = format!(
            "<figure class=\"score-plot\">\n<figcaption><span>score</span><output></output></figcaption>\n{svg}</figure>\n{axis}"
        );

        let drawn = self.features_to_draw(features.len());
        if !drawn.is_empty() {
            out += &format!("<p class=\"between\">{}</p>\n", self.describe_drawn(drawn.len()));
        }
        for i in &drawn {
            let feature = &self.features[*i];
            let values = &features[*i];
            let y = Scale::linear(values.iter().flatten().map(|value| f64::from(*value)));
            let mut plot = base_plot(y, 46);
            plot.rule_y(y.low(), "grid");
            let range = y.high() - y.low();
            for (end, down) in [(y.low(), 46.0), (y.high(), 8.0)] {
                plot.text_at(0.0, down, Anchor::End, "end", &number_within(end, range / 5.0));
            }
            let point = |time, value: &[f32; 2]| [time, f64::from(value[0]), f64::from(value[1])];
            plot.band(&runs(times_ms, *step_ms, values, point), "band");
            let name = escape(&feature.name);
            let svg = plot.finish("", &feature.name);
            out += &format!(
                "<figure>\n<figcaption><span class=\"name\" title=\"{name}\">{name}</span><output></output>\
                 </figcaption>\n{svg}</figure>\n"
            );
        }
        if drawn.len() > 4 {
            out += &axis.replace(" class=\"axis\"", " class=\"axis last\"").replace("<output></output>", "");
        }

        let above = score.iter().filter(|score| **score > 1.0).count();
        let stretch = std::time::Duration::from_millis(step_ms.unsigned_abs());
        let lead = format!(
            "{} to {} UTC. Each point is the highest score within {}; {} of {} pass the threshold of 1.{}",
            format_datetime(*first),
            format_datetime(last.saturating_add(*step_ms)),
            crate::prom::duration::Display(stretch),
            count(above),
            count(score.len()),
            if excluded.is_empty() { "" } else { " Shaded stretches were left out of training." },
        );
        let (from, to) = (x.low(), x.high());
        let body = format!("<div class=\"timeline\" data-from=\"{from}\" data-to=\"{to}\">\n{out}</div>\n");
        page::section("Scores and features over time", &lead, &body)
    }

    /// Time and height of the highest score.
    fn peak(&self) -> Option<(f64, f64)> {
        let points = self.timeline.times_ms.iter().zip(&self.timeline.score);
        let finite = points.filter(|(_, score)| score.is_finite());
        let highest = finite.max_by(|a, b| a.1.total_cmp(b.1));
        highest.map(|(time_ms, score)| (*time_ms as f64, *score))
    }

    /// Numbers over the shaded stretches, those of the table, and their reasons where there is room.
    fn label_exclusions(&self, plot: &mut Plot, x: Scale) {
        let visible_label = |(i, stretch): (usize, &ExcludedRange)| {
            let (from, to) = (x.position(stretch.from_ms as f64)?, x.position(stretch.to_ms as f64)?);
            (to > 0.0 && from < 1.0).then(|| (from, (i + 1).to_string(), shorten(&stretch.reason, 28)))
        };
        let mut labels: Vec<_> =
            self.timeline.excluded.iter().enumerate().filter_map(visible_label).collect();
        labels.sort_by(|a, b| a.0.total_cmp(&b.0));
        // A number takes 5 % of the width: of a crowd only the first is told.
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

    /// The features that are drawn, in the order of the model: of those that moved the ones that
    /// moved most.
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
        let each = "least and greatest value of each stretch, every one on its own scale.";
        if n_drawn < moved {
            format!(
                "The {n_drawn} of {} features that moved most for their size: {each}{constants_note}",
                count(self.features.len())
            )
        } else {
            format!("The features: {each}{constants_note}")
        }
    }

    fn feature_table(&self) -> String {
        if self.features.is_empty() {
            return String::new();
        }
        let mut rows = String::new();
        for feature in &self.features {
            rows += &feature.row();
        }
        let constant = self.features.iter().filter(|feature| feature.is_constant()).count();
        let constant = match constant {
            0 => String::new(),
            1 => " One was constant: it tells rows apart only when it moves.".into(),
            n => format!(" {} were constant: they tell rows apart only when they move.", count(n)),
        };
        let mut table = format!(
            "<table class=\"features\">\n<thead><tr><th>feature</th><th class=\"n\">least</th><th class=\"n\">median</th>\
             <th class=\"n\">greatest</th><th class=\"extent\">range</th></tr></thead>\n\
             <tbody>\n{rows}</tbody>\n</table>\n"
        );
        if self.features.len() > MAX_ROWS_SHOWN {
            let n = count(self.features.len());
            table = format!("<details>\n<summary>Show all {n} features</summary>\n{table}</details>\n");
        }
        let lead = format!(
            "Values over the rows of training. Each bar reaches from the least to the greatest value, on a scale of its \
             own that includes 0; its mark is the median.{constant}"
        );
        page::section("Ranges of the features", &lead, &table)
    }

    fn exclusions(&self) -> String {
        let excluded = &self.timeline.excluded;
        if excluded.is_empty() {
            return page::section("Left out of training", "No stretch of time.", "");
        }
        let mut rows = String::new();
        for (i, ExcludedRange { from_ms, to_ms, reason, n_rows }) in excluded.iter().enumerate() {
            rows += &format!(
                "<tr><td class=\"dim\">{}</td><td>{}</td><td>{}</td><td class=\"until\">{}</td><td class=\"n\">{}</td></tr>\n",
                i + 1,
                escape(reason),
                format_datetime(*from_ms),
                format_datetime(to_ms.saturating_add(1)),
                count(*n_rows)
            );
        }
        let total = excluded.iter().fold(0usize, |sum, stretch| sum.saturating_add(stretch.n_rows));
        page::section(
            "Left out of training",
            &format!("{} rows in all.", count(total)),
            &format!(
                "<div class=\"wide\">\n<table class=\"left-out-table\">\n<thead><tr><th></th><th>reason</th><th>from, UTC</th>\
                 <th class=\"until\">to</th><th class=\"n\">rows</th></tr></thead>\n<tbody>\n{rows}</tbody>\n</table>\n</div>\n"
            ),
        )
    }

    fn sweep_table(&self) -> String {
        let n_folds = self.sweep.iter().map(|candidate| candidate.kl.len()).max().unwrap_or(0);
        let folds: String = (1..=n_folds).map(|fold| format!("<th class=\"n\">fold {fold}</th>")).collect();
        let mut rows = String::new();
        for (i, candidate) in self.sweep.iter().enumerate() {
            let class = if i == self.chosen { " class=\"picked\"" } else { "" };
            let kl: String =
                candidate.kl.iter().map(|kl| format!("<td class=\"n\">{}</td>", nats(*kl))).collect();
            rows += &format!(
                "<tr{class}><td class=\"n\">{}</td><td class=\"n\">{}</td>{kl}</tr>\n",
                count(candidate.max_samples),
                nats(candidate.mean_kl())
            );
        }
        page::section(
            "The sweep in numbers",
            "KL divergence in nats; the chosen size stands out.",
            &format!(
                "<div class=\"wide\">\n<table class=\"sweep\">\n<thead><tr><th class=\"n\">rows per tree</th>\
                 <th class=\"n\">mean</th>{folds}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table>\n</div>\n"
            ),
        )
    }
}

impl FeatureSummary {
    fn is_constant(&self) -> bool {
        self.least == self.greatest
    }

    /// How wide it ranges for its size, from 0 for a constant to 1; 0 where that cannot be told.
    fn relative_range(&self) -> f64 {
        let [least, median, greatest] = [self.least, self.median, self.greatest].map(f64::from);
        let movement = (greatest - least) / (least.abs() + median.abs() + greatest.abs());
        if movement.is_finite() { movement } else { 0.0 }
    }

    /// Its row of the table.
    fn row(&self) -> String {
        let [least, median, greatest] = [self.least, self.median, self.greatest].map(f64::from);
        let range = greatest - least;
        let cell = |what: &str, value: f64| {
            format!("<td class=\"n\" data-what=\"{what}\">{}</td>", number_within(value, range))
        };
        let extent = if self.is_constant() {
            "<span class=\"dim\">constant</span>".into()
        } else {
            let scale = Scale::linear([0.0, least, greatest]);
            let place = |value| 100.0 * scale.position(value).unwrap_or(0.0);
            let (left, width) = (place(least), place(greatest) - place(least));
            format!(
                "<span class=\"track\"><i style=\"left:{left:.1}%;width:{width:.1}%\"></i><b style=\"left:{:.1}%\"></b></span>",
                place(median)
            )
        };
        format!(
            "<tr><td class=\"name\">{}</td>{}{}{}<td class=\"extent\">{extent}</td></tr>\n",
            escape(&self.name),
            cell("least", least),
            cell("median", median),
            cell("greatest", greatest)
        )
    }
}

/// Share of a histogram's mass that lies left of 0; `None` without mass.
fn share_below_0(bins: &[f64]) -> Option<f64> {
    let total: f64 = bins.iter().sum();
    let below: f64 = bins.iter().take(BINS_PER_SIDE as usize).sum();
    (total > 0.0 && total.is_finite()).then(|| below / total)
}

/// `None` without values.
fn mean(values: Vec<f64>) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}
