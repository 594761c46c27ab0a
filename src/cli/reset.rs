//! `snapsync reset`: forgets a migration, here and on the target. What it copied stays.

use std::io::{self, BufRead, IsTerminal, Write};
use std::process::ExitCode;

use super::{block_on, fail, load, output};
use crate::config::{Config, Inputs};
use crate::exit::{Code, Exit};
use crate::sync::reset::{self, Forgotten};

pub(super) fn run(inputs: &Inputs, yes: bool, json: bool) -> ExitCode {
    let config = match load(inputs) {
        Ok(loaded) => loaded.config,
        Err(exit) => return fail(&exit),
    };
    let done = agreed(&config, yes).and_then(|()| block_on(reset::forget(&config)));
    match done.map(|forgotten| output::print(&report(&config, &forgotten, json))) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(_)) => ExitCode::FAILURE,
        Err(exit) => fail(&exit),
    }
}

/// Asks, unless the answer was given beforehand.
fn agreed(config: &Config, yes: bool) -> Result<(), Exit> {
    if yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        let text = "reset asks before it forgets a migration; without a terminal, give --yes";
        return Err(Exit::new(Code::Usage, text));
    }
    let question = format!(
        "Forget the migration of {}? Its position and spool are removed, here and on the target; what \
         it copied stays there. [y/N] ",
        config.state.directory.display()
    );
    let asked = |error: io::Error| Exit::new(Code::Failed, format!("cannot ask: {error}"));
    let mut terminal = io::stderr();
    terminal.write_all(question.as_bytes()).and_then(|()| terminal.flush()).map_err(asked)?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).map_err(asked)?;
    match answer.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(Exit::new(Code::Failed, "nothing was changed")),
    }
}

fn report(config: &Config, forgotten: &Forgotten, json: bool) -> String {
    let directory = config.state.directory.display();
    if json {
        let shape = serde_json::json!({
            "forgotten": forgotten.migrations,
            "position": forgotten.position,
            "directory": directory.to_string(),
            "data_on_target": "kept",
        });
        return format!("{shape:#}\n");
    }
    let what = match &forgotten.position {
        Some(position) => {
            format!("Forgot the migration of {directory}, which had come to {position}.")
        }
        None => format!("Forgot what there was in {directory}."),
    };
    format!(
        "{what}\nWhat it copied is still on the target. A new migration to the same names refuses to \
         start until that\nis removed, by hand or with target.on_existing_data = \"drop\".\n"
    )
}
