//! The `promforest` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    promforest::cli::main()
}
