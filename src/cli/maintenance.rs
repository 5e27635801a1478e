//! `promforest maintenance`: times in which no incident opens and nothing is learned. A running sidecar follows within
//! `registry.poll_interval`.

use super::{OutputFormat, RegistryArgs, print};
use crate::detector;
use crate::error::BoxError;
use crate::models::registry::periods::{GroupSelector, Period, PeriodKind, nothing_to_end};
use crate::prom::duration;
use crate::time;
use clap::{Args, Subcommand};
use std::time::Duration;

#[derive(Debug, Subcommand)]
pub enum MaintenanceCommand {
    /// Start a maintenance of the groups that a selector matches, now or at a later time
    Start(StartArgs),
    /// End the maintenance of a selector that is active or yet to come
    End(EndArgs),
    /// List the maintenance that the registry has
    List(ListArgs),
}

#[derive(Debug, Args)]
pub struct StartArgs {
    #[command(flatten)]
    registry: RegistryArgs,
    /// Selector of the groups, such as {job="node"}; {} for all
    #[arg(value_name = "SELECTOR")]
    groups: GroupSelector,
    /// Only this detector; without it, all
    #[arg(long, value_name = "NAME")]
    detector: Option<String>,
    /// Begin, as in 2026-01-31T12:00:00Z or in seconds since 1970; without it, now
    #[arg(long, value_name = "TIME", value_parser = time::parse)]
    start: Option<i64>,
    /// End; without it, until `maintenance end`
    #[arg(long, value_name = "TIME", value_parser = time::parse, conflicts_with = "duration")]
    end: Option<i64>,
    /// Length, as in 2h, instead of an end
    #[arg(long = "for", value_name = "DURATION", value_parser = duration::parse)]
    duration: Option<Duration>,
    /// A note
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    comment: String,
}

#[derive(Debug, Args)]
pub struct EndArgs {
    #[command(flatten)]
    registry: RegistryArgs,
    /// Selector of the groups, as it was started
    #[arg(value_name = "SELECTOR")]
    groups: GroupSelector,
    /// The detector, as it was started
    #[arg(long, value_name = "NAME")]
    detector: Option<String>,
}

#[derive(Debug, Args)]
pub struct ListArgs {
    #[command(flatten)]
    registry: RegistryArgs,
    /// Output format
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    output: OutputFormat,
}

pub async fn run(command: MaintenanceCommand) -> Result<(), BoxError> {
    match command {
        MaintenanceCommand::Start(args) => start(args).await,
        MaintenanceCommand::End(args) => end(args).await,
        MaintenanceCommand::List(args) => list(args).await,
    }
}

async fn start(args: StartArgs) -> Result<(), BoxError> {
    let from_ms = args.start.unwrap_or_else(time::now_ms);
    let to_ms = args.end.or(args.duration.map(|length| from_ms.saturating_add(time::millis(length))));
    let period = Period {
        kind: PeriodKind::Maintenance,
        detector: args.detector,
        groups: args.groups,
        from_ms,
        to_ms,
        comment: args.comment,
    };
    period.check()?;
    let config = args.registry.config()?;
    let detectors = detector::select(&config.detectors, period.detector.as_deref())?;
    period.groups.check_labels(detectors.iter().flat_map(|detector| &detector.by))?;
    let text = describe(&period);
    args.registry.open(&config)?.record_period(period).await?;
    Ok(print(&text)?)
}

async fn end(args: EndArgs) -> Result<(), BoxError> {
    let registry = args.registry.open(&args.registry.config()?)?;
    match registry.end_maintenance(args.detector.as_deref(), &args.groups, time::now_ms()).await? {
        0 => Err(nothing_to_end(args.detector.as_deref(), &args.groups).into()),
        _ => Ok(print(&format!("{}: ended\n", args.groups))?),
    }
}

async fn list(args: ListArgs) -> Result<(), BoxError> {
    let mut periods = args.registry.open(&args.registry.config()?)?.periods().await?;
    periods.retain(|period| period.kind == PeriodKind::Maintenance);
    let text = match args.output {
        OutputFormat::Json => format!("{}\n", serde_json::to_string_pretty(&periods)?),
        OutputFormat::Text => periods.iter().map(describe).collect(),
    };
    Ok(print(&text)?)
}

/// One line.
fn describe(period: &Period) -> String {
    let detector = period.detector.iter().map(|name| format!(" of {name}")).collect::<String>();
    let until = period
        .to_ms
        .map_or("until it is ended".into(), |to_ms| format!("to {}", time::format_timestamp(to_ms)));
    let active = if period.is_active_at(time::now_ms()) { ", active" } else { "" };
    let comment = if period.comment.is_empty() { String::new() } else { format!(": {}", period.comment) };
    format!(
        "{}{detector}, from {} {until}{active}{comment}\n",
        period.groups,
        time::format_timestamp(period.from_ms)
    )
}
