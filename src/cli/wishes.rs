//! `snapsync pause`, `resume`, `resync` and `discard`: wishes to the running daemon, over its socket.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

use serde_json::{Value, json};

use super::{block_on, control_socket, fail, output};
use crate::config::Inputs;
use crate::exit::{Code, Exit};
use crate::http::client::{self, ClientError};
use crate::http::control::Wish;

/// Asks the operator if need be, then the daemon.
pub(super) fn run(inputs: &Inputs, wish: &Wish, yes: bool, json: bool) -> ExitCode {
    let asked = control_socket(inputs).and_then(|socket| {
        if !yes && !confirmed(question(wish))? {
            return Err(Exit::new(Code::Failed, "nothing was done"));
        }
        block_on(ask(&socket, wish))
    });
    let answer = match asked {
        Ok(answer) => answer,
        Err(exit) => return fail(&exit),
    };
    let text = if json { answer + "\n" } else { format!("{}\n", done(wish)) };
    match output::print(&text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn question(wish: &Wish) -> &'static str {
    match wish {
        Wish::Resync { namespaces } if namespaces.is_empty() => {
            "Copy everything again? What is on the target stays readable meanwhile."
        }
        Wish::Resync { .. } => "Copy these again? What is on the target stays readable meanwhile.",
        Wish::Discard => "Drop what resyncs have replaced? It cannot be brought back.",
        Wish::Pause | Wish::Resume | Wish::Cutover(_) | Wish::AbortCutover => "Go on?",
    }
}

fn done(wish: &Wish) -> &'static str {
    match wish {
        Wish::Pause => "paused: the source's oplog is spooled, and nothing is applied",
        Wish::Resume => "resumed",
        Wish::Resync { .. } => "begun; `snapsync status` lists what is being copied",
        Wish::Discard => "dropped what resyncs had replaced",
        // These have a command of their own.
        Wish::Cutover(_) | Wish::AbortCutover => "done",
    }
}

/// Asks on the terminal. Where there is none, nobody can answer, and `--yes` has to be given.
#[expect(clippy::print_stderr, reason = "a question to the operator")]
pub(super) fn confirmed(question: &str) -> Result<bool, Exit> {
    if !std::io::stdin().is_terminal() {
        return Err(Exit::new(Code::Usage, "there is no terminal to ask on: give --yes"));
    }
    eprint!("{question} [y/N] ");
    let flushed = std::io::stderr().flush();
    let mut answer = String::new();
    flushed
        .and_then(|()| std::io::stdin().read_line(&mut answer))
        .map_err(|error| Exit::new(Code::Failed, format!("cannot ask: {error}")))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

async fn ask(socket: &Path, wish: &Wish) -> Result<String, Exit> {
    let (path, body) = request(wish);
    match client::post(socket, path, body.as_ref()).await {
        Ok(answer) => Ok(String::from_utf8_lossy(&answer).into_owned()),
        Err(error @ ClientError::Refused { status: 400, .. }) => {
            Err(Exit::new(Code::Usage, error.to_string()))
        }
        Err(error) => Err(Exit::new(Code::Failed, error.to_string())),
    }
}

fn request(wish: &Wish) -> (&'static str, Option<Value>) {
    match wish {
        Wish::Pause => ("/pause", None),
        Wish::Resume => ("/resume", None),
        Wish::Resync { namespaces } => ("/resync", Some(json!({ "namespaces": namespaces }))),
        Wish::Discard => ("/discard", None),
        Wish::Cutover(_) | Wish::AbortCutover => ("/cutover", None),
    }
}
