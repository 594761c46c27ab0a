//! `snapsync reverse`: prepares the way back after a cutover.

use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::json;

use super::{block_on, fail, load, output, wishes};
use crate::config::{Config, Inputs};
use crate::exit::{Code, Exit};
use crate::sync::reverse::{self, Prepared, Wanted};

/// What the arguments say.
#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// The configuration to write [default: reverse.toml beside the one that is read]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The state directory of the way back [default: the folder `reverse` in the one of the cutover]
    #[arg(long, value_name = "DIR")]
    state_directory: Option<PathBuf>,
    /// Does not ask
    #[arg(long)]
    yes: bool,
    /// Prints JSON
    #[arg(long)]
    json: bool,
}

const QUESTION: &str = "Prepare the way back? The old source stops to expire documents by itself, and the new \
                        daemon will write to it.";

/// Prepares it, and says what to do next.
pub(super) fn run(inputs: &Inputs, options: &Options) -> ExitCode {
    let config = match load(inputs) {
        Ok(loaded) => loaded.config,
        Err(exit) => return fail(&exit),
    };
    let wanted = wanted(inputs, options, &config);
    let prepared = absolute(&wanted).and_then(|()| {
        if !options.yes && !wishes::confirmed(QUESTION)? {
            return Err(Exit::new(Code::Failed, "nothing was done"));
        }
        block_on(Box::pin(reverse::prepare(&config, &wanted)))
    });
    match prepared.map(|prepared| output::print(&told(&wanted, &prepared, options.json))) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(_)) => ExitCode::FAILURE,
        Err(exit) => fail(&exit),
    }
}

fn wanted(inputs: &Inputs, options: &Options, config: &Config) -> Wanted {
    let output = options.output.clone();
    let directory = options.state_directory.clone();
    Wanted {
        output: output.unwrap_or_else(|| inputs.file.with_file_name("reverse.toml")),
        directory: directory.unwrap_or_else(|| config.state.directory.join("reverse")),
    }
}

fn absolute(wanted: &Wanted) -> Result<(), Exit> {
    if wanted.directory.is_absolute() {
        return Ok(());
    }
    Err(Exit::new(Code::Usage, "the state directory has to be an absolute path"))
}

fn told(wanted: &Wanted, prepared: &Prepared, as_json: bool) -> String {
    let Wanted { output, directory } = wanted;
    let Prepared { from, collections, again, blocked } = prepared;
    if as_json {
        let shape = json!({
            "config": output.display().to_string(),
            "state_directory": directory.display().to_string(),
            "from": from,
            "collections": collections,
            "copied_again": again,
            "old_source_blocked": blocked,
        });
        return format!("{shape:#}\n");
    }
    let mut text = format!(
        "prepared: {collections} collections go back from {} on\nnext: snapsync run --config {}\n",
        from.ts,
        output.display()
    );
    if !again.is_empty() {
        let names = again.join(", ");
        text.push_str(&format!("copied again, because documents expired there since: {names}\n"));
    }
    if *blocked != Some(true) {
        text.push_str("the old source is not blocked: see to it that nothing else writes there\n");
    }
    text
}
