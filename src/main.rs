//! The `snapsync` program: a thin shell around the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    snapsync::cli::main()
}
