//! One run of the program to its end.

use super::PROGRAM;
use std::path::Path;
use std::process::Command;

/// The exit code and the output of a command.
#[derive(Debug)]
pub struct CommandOutput {
    /// Exit code.
    pub status: i32,
    /// Text on standard output.
    pub stdout: String,
    /// Text on standard error.
    pub stderr: String,
}

/// Runs `promforest` with these arguments.
pub fn run(args: &[&str]) -> CommandOutput {
    run_in(Path::new("."), args)
}

/// Runs it in a folder.
pub fn run_in(folder: &Path, args: &[&str]) -> CommandOutput {
    let output = Command::new(PROGRAM).args(args).current_dir(folder).output().expect("the program runs");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    CommandOutput {
        status: output.status.code().expect("no signal ends it"),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    }
}
