//! Files that packages install beside the program: shell completions and the manual page.

use super::{Cli, print};
use crate::error::BoxError;
use clap::CommandFactory;
use clap_complete::Shell;

/// `promforest completions SHELL`.
pub fn print_completions(shell: Shell) -> Result<(), BoxError> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "promforest", &mut text);
    Ok(print(&String::from_utf8(text)?)?)
}

/// `promforest man`: one page with the commands and flags of the sidecar.
pub fn print_manual() -> Result<(), BoxError> {
    let mut text = Vec::new();
    clap_mangen::Man::new(Cli::command()).render(&mut text)?;
    Ok(print(&String::from_utf8(text)?)?)
}
