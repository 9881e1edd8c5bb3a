//! The nightshift program: parse, dispatch, exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    nightshift::cli::main()
}
