//! `promforest train`: history in, a sweep with cross-validation, a model and its page out.

use super::lessons::{self, Lesson, LessonArgs, Lessons, Span};
use super::{Failure, Output, RegistryArgs, say};
use crate::config::Config;
use crate::input::Input;
use crate::models::registry::Registry;
use crate::models::{Kind, Params, Trial, Validation, artifact};
use crate::prom::duration;
use crate::report::training::Verdict;
use crate::train::enter;
use crate::train::validate::SIZES;
use crate::train::{Purpose, Trained, page, train};
use clap::Args;
use clap::builder::RangedU64ValueParser;
use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;
use serde::Serialize;
use std::num::NonZeroUsize;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct TrainArgs {
    #[command(flatten)]
    registry: RegistryArgs,
    #[command(flatten)]
    lesson: LessonArgs,
    /// Beginning of the history, RFC 3339; without it, training.history before the end
    #[arg(long, value_name = "TIME")]
    start: Option<Timestamp>,
    /// End of the history, RFC 3339; without it, now
    #[arg(long, value_name = "TIME")]
    end: Option<Timestamp>,
    /// Train on a table instead: Parquet or CSV, a column timestamp in ms and one column a feature
    #[arg(long, value_name = "FILE", conflicts_with_all = ["start", "end", "group"])]
    input: Option<PathBuf>,
    /// Rows a tree to choose from
    #[arg(long, value_name = "SIZES", value_delimiter = ',', default_values_t = SIZES, value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    sweep: Vec<usize>,
    /// Kind of forest; without it, the detector's
    #[arg(long, value_name = "KIND")]
    kind: Option<Kind>,
    /// Write the model to this folder instead of the registry
    #[arg(long, value_name = "FOLDER")]
    model: Option<PathBuf>,
    /// Alias of the model if the gate lets it into service; without it, the registry's
    #[arg(long, value_name = "ALIAS", conflicts_with = "model")]
    alias: Option<String>,
    /// Write a page with plots
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    /// Format of what is printed
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    output: Output,
}

/// What is printed of a model.
#[derive(Serialize)]
struct Outcome {
    model: String,
    version: Option<u64>,
    group: Option<String>,
    promoted: Option<String>,
    held: Vec<String>,
    max_samples: String,
    n_features: usize,
    n_rows: usize,
    n_excluded: usize,
    alert_rate: Option<f64>,
    sweep: Vec<SizeResult>,
}

/// A size of the sweep, for people and scripts.
#[derive(Serialize)]
pub struct SizeResult {
    max_samples: usize,
    kl_mean: f64,
    kl: Vec<f64>,
    chosen: bool,
}

impl SizeResult {
    /// Every size that was tried.
    pub fn of(validation: &Validation) -> Vec<Self> {
        let size = |(i, trial): (usize, &Trial)| Self {
            max_samples: trial.max_samples,
            kl_mean: trial.mean_kl(),
            kl: trial.kl.clone(),
            chosen: validation.chosen == i,
        };
        validation.trials.iter().enumerate().map(size).collect()
    }
}

pub async fn run(args: TrainArgs) -> Result<(), Failure> {
    let config = args.registry.config()?;
    let mut lessons = match &args.input {
        Some(path) => {
            let lesson = lessons::of_table(&args.lesson, &config, path, Input::read(path)?, i64::MAX)?;
            Lessons::one(&args.lesson, &config, lesson)
        }
        None => {
            let to_ms = args.end.map_or_else(duration::now_ms, Timestamp::as_millisecond);
            let from_ms = args.start.map(Timestamp::as_millisecond);
            let span = Span { from_ms, learn_to_ms: to_ms, to_ms };
            Lessons::of_history(&args.lesson, &config, span, None).await?
        }
    };
    if args.model.is_some() || args.report.is_some() {
        lessons.only_one("--model and --report", "model").await?;
    }
    let store = match &args.model {
        None => Some(args.registry.open(&config)?),
        Some(_) => None,
    };
    let mut results = Vec::new();
    while let Some(lesson) = lessons.next().await? {
        let result = learn(&args, &config, store.as_ref(), &lesson).await?;
        if args.output == Output::Text {
            say(&text(&args, &result))?;
        }
        results.push(result);
    }
    if args.output == Output::Json {
        say(&format!("{}\n", serde_json::to_string_pretty(&results)?))?;
    }
    Ok(())
}

async fn learn(
    args: &TrainArgs,
    config: &Config,
    registry: Option<&Registry>,
    lesson: &Lesson,
) -> Result<Outcome, Failure> {
    let Lesson { detector, group, name, rows, columns, .. } = lesson;
    let params = match args.kind {
        Some(kind) if kind != detector.model.kind() => Params::of(kind),
        _ => detector.model.clone(),
    };
    let bar = ProgressBar::new(0).with_message(name.clone());
    let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} folds, {eta} left")?;
    bar.set_style(style);
    let progress = |done: usize, all: usize| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
    };
    let purpose = Purpose { detector: Some(detector.name.clone()), group: group.clone() };
    let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let mut trained = train(&params, rows, &args.sweep, purpose, duration::now_ms(), threads, &progress)?;
    trained.model.card.columns = columns.clone();
    bar.finish_and_clear();

    let gate = &detector.training.gate;
    let (version, verdict, report) = match registry {
        Some(registry) => {
            let alias = args.alias.as_deref().unwrap_or(&config.registry.alias);
            let draft = enter::draft(name, alias, Some(gate), &trained, rows);
            let version = enter::enter(registry, name, &trained, &draft).await?;
            (Some(version), draft.verdict, draft.report)
        }
        None => {
            let folder = args.model.as_deref().expect("without a registry there is a folder");
            artifact::save(&artifact::files(&trained.model), folder)?;
            let reasons = enter::judge(gate, &trained);
            let verdict = if reasons.is_empty() { Verdict::Saved } else { Verdict::Held(reasons) };
            let report = page::training(name, &trained, rows, verdict.clone()).html();
            (None, verdict, report)
        }
    };
    if let Some(path) = &args.report {
        std::fs::write(path, report).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    }
    Ok(result(lesson, &trained, version, verdict))
}

fn result(lesson: &Lesson, trained: &Trained, version: Option<u64>, verdict: Verdict) -> Outcome {
    let validation = trained.sweep.as_ref().map(|sweep| &sweep.validation);
    let card = &trained.model.card;
    let (promoted, held) = match verdict {
        Verdict::Promoted(alias) => (Some(alias), Vec::new()),
        Verdict::Held(reasons) => (None, reasons),
        Verdict::Saved => (None, Vec::new()),
    };
    let max_samples = card.params.iter().find(|(name, _)| name == "max_samples");
    Outcome {
        model: lesson.name.clone(),
        version,
        group: lesson.group.as_ref().map(ToString::to_string),
        promoted,
        held,
        max_samples: max_samples.map(|(_, value)| value.clone()).unwrap_or_default(),
        n_features: trained.model.schema.features.len(),
        n_rows: lesson.rows.len(),
        n_excluded: card.history.as_ref().map_or(0, |history| history.n_excluded),
        alert_rate: validation.map(|validation| validation.alert_rate),
        sweep: validation.map(SizeResult::of).unwrap_or_default(),
    }
}

/// What is printed of a model.
fn text(args: &TrainArgs, result: &Outcome) -> String {
    let group = result.group.as_ref().map(|group| format!(" {group}")).unwrap_or_default();
    let mut lines = vec![format!(
        "{}{group}: {} features, {} rows, {} excluded",
        result.model, result.n_features, result.n_rows, result.n_excluded
    )];
    if !result.sweep.is_empty() {
        lines.push(table_of_sizes(&result.sweep).trim_end().into());
    }
    if let Some(rate) = result.alert_rate {
        lines.push(format!(
            "  * chosen; it calls {:.2} % of the rows that it has not seen anomalous",
            rate * 100.0
        ));
    }
    match (&args.model, result.version) {
        (Some(folder), _) => lines.push(format!("written to {}", folder.display())),
        (None, Some(version)) => lines.push(format!("registered as version {version}")),
        (None, None) => {}
    }
    lines.extend(result.promoted.iter().map(|alias| format!("promoted to {alias}")));
    lines.extend(result.held.iter().map(|reason| format!("not promoted: {reason}")));
    lines.extend(args.report.iter().map(|report| format!("report: {}", report.display())));
    lines.join("\n") + "\n"
}

/// The table of a sweep, a line a size.
pub fn table_of_sizes(sizes: &[SizeResult]) -> String {
    let mut table = String::from("  max_samples   mean KL   KL of each fold\n");
    for size in sizes {
        let folds: Vec<String> = size.kl.iter().map(|kl| format!("{kl:.4}")).collect();
        let mark = if size.chosen { '*' } else { ' ' };
        let (max_samples, mean, folds) = (size.max_samples, size.kl_mean, folds.join("  "));
        table.push_str(&format!("{mark} {max_samples:>11}  {mean:>8.4}   {folds}\n"));
    }
    table
}
