//! Completions for the shells that Debian has.

use std::path::Path;

use clap_complete::{Shell, generate_to};

pub(crate) fn write(folder: &Path) {
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut snapsync::cli::command(), "snapsync", folder)
            .expect("write a completion");
    }
}
