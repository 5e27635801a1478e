//! `promforest docs`: pages of the reference that follow from the program itself.

mod configuration;
mod metrics;

use super::print;
use crate::error::BoxError;
use clap::ValueEnum;
use std::fmt::{self, Write};

/// A page of the reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Page {
    /// The keys of the configuration file, the flags and the commands
    Configuration,
    /// The output series and the metrics of the sidecar
    Metrics,
}

/// Prints a page as Markdown.
pub fn run(page: Page) -> Result<(), BoxError> {
    let mut text = String::new();
    match page {
        Page::Configuration => configuration::write(&mut text)?,
        Page::Metrics => metrics::write(&mut text)?,
    }
    Ok(print(&text)?)
}

/// Writes a table.
fn write_table<const N: usize>(
    out: &mut String,
    header: [&str; N],
    rows: impl Iterator<Item = [String; N]>,
) -> fmt::Result {
    writeln!(out, "| {} |\n|{}", header.join(" | "), "---|".repeat(N))?;
    for row in rows {
        writeln!(out, "| {} |", row.map(|cell| cell.replace('|', "\\|")).join(" | "))?;
    }
    out.write_char('\n')
}
