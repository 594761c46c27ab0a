//! What a package holds beside the program and what is checked in: man pages, shell completions, the changelog of the
//! package and the notices of the libraries that are linked in. Made from the program's own arguments and keys, so that
//! they cannot say something else than it does.
//!
//!     cargo run --example package_files -- FOLDER

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "a tool of the build panics with what is wrong, and makes its files anew every time"
)]

mod changelog;
mod completions;
mod manual;
mod notices;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(folder) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: cargo run --example package_files -- FOLDER");
        return ExitCode::from(64);
    };
    let fresh = |name: &str| {
        let folder = folder.join(name);
        if folder.exists() {
            fs::remove_dir_all(&folder).expect("remove what an earlier build made");
        }
        fs::create_dir_all(&folder).expect("create a folder");
        folder
    };
    manual::write(&fresh("man"));
    completions::write(&fresh("completions"));
    let doc = fresh("doc");
    fs::write(doc.join("changelog.Debian"), changelog::debian()).expect("write the changelog");
    fs::write(doc.join("NOTICES"), notices::collect()).expect("write the notices");
    ExitCode::SUCCESS
}
