//! `snapsync cutover`: asks the running daemon to let the target take over, and shows how that goes.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{block_on, control_socket, fail, load, output, wishes};
use crate::config::{Inputs, parse_duration};
use crate::exit::{Code, Exit};
use crate::http::client::{self, ClientError};
use crate::http::control::CutoverOptions;
use crate::status::{CutoverOutcome, CutoverStatus, Status, VerifyDepth, WallTime};
use crate::sync::cutover::{lose_source_unattended, report_text};
use crate::telemetry::one_line;

/// How often the daemon is asked how far it is.
const ASK_EVERY: Duration = Duration::from_millis(200);
/// How long a daemon may stay silent: it may be restarted meanwhile.
const SILENT_FOR: Duration = Duration::from_secs(120);

/// What the arguments say.
#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// Makes the source refuse writes (MongoDB 6.0 and later); without it the source has to become quiet by itself
    #[arg(long, conflicts_with_all = ["abort", "source_lost"])]
    block_source_writes: bool,
    /// What is compared: contents (full), numbers of documents (counts), nothing (none)
    #[arg(long, value_name = "WHAT", default_value = "full", value_parser = depth)]
    verify: VerifyDepth,
    /// How long it may take from the stop of writes to the decision; then it is given up
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = timeout)]
    timeout: String,
    /// Only looks whether everything holds that has to, --verify included; nothing is stopped
    #[arg(long, conflicts_with_all = ["abort", "source_lost"])]
    dry_run: bool,
    /// Gives up the cutover that is under way, if it is not decided
    #[arg(long, conflicts_with = "source_lost")]
    abort: bool,
    /// The source is gone for good: the target takes over with all that was read of it, and the rest is lost
    #[arg(long, requires = "yes")]
    source_lost: bool,
    /// Does not ask
    #[arg(long)]
    yes: bool,
    /// Prints JSON
    #[arg(long)]
    json: bool,
}

fn depth(text: &str) -> Result<VerifyDepth, String> {
    let known = [VerifyDepth::Full, VerifyDepth::Counts, VerifyDepth::None];
    let found = known.into_iter().find(|depth| depth.name() == text);
    found.ok_or_else(|| "it is one of full, counts, none".to_owned())
}

fn timeout(text: &str) -> Result<String, String> {
    match parse_duration(text) {
        Some(timeout) if !timeout.is_zero() => Ok(text.to_owned()),
        _ => Err("it is a duration with its unit, such as 10m or 90s".to_owned()),
    }
}

const QUESTION: &str = "Let the target take over? Applications must stop writing to the source.";

/// Asks the operator if need be, then the daemon, and follows it to the end.
pub(super) fn run(inputs: &Inputs, options: &Options) -> ExitCode {
    let asked = control_socket(inputs).and_then(|socket| {
        let may_ask = !options.yes && !options.dry_run && !options.abort;
        if may_ask && !wishes::confirmed(QUESTION)? {
            return Err(Exit::new(Code::Failed, "nothing was done"));
        }
        block_on(Box::pin(carry_out(inputs, &socket, options)))
    });
    let (cutover, code) = match asked {
        Ok(ended) => ended,
        Err(exit) => return fail(&exit),
    };
    let printed = match (options.json, cutover) {
        (true, cutover) => json!(cutover).to_string() + "\n",
        (false, Some(cutover)) => cutover.report.as_ref().map(report_text).unwrap_or_default(),
        (false, None) => String::new(),
    };
    match output::print(&printed) {
        Ok(()) => code.map_or(ExitCode::SUCCESS, ExitCode::from),
        Err(_) => ExitCode::FAILURE,
    }
}

async fn carry_out(
    inputs: &Inputs,
    socket: &Path,
    options: &Options,
) -> Result<(Option<CutoverStatus>, Option<Code>), Exit> {
    if options.source_lost {
        match status(socket).await {
            // It cannot start without the source.
            Err(ClientError::NoDaemon { .. }) => {
                return without_daemon(inputs).await.map(|()| (None, None));
            }
            found => name_the_loss(&found.map_err(|error| unanswered(&error))?),
        }
    }
    let answer = client::post(socket, "/cutover", Some(&body(options))).await;
    let answer = answer.map_err(|error| unanswered(&error))?;
    let answer: Value = serde_json::from_slice(&answer).unwrap_or_default();
    let began = answer.get("cutover").and_then(|cutover| cutover.get("began"));
    let began: Option<WallTime> =
        began.and_then(|began| serde_json::from_value(began.clone()).ok());
    let began = began.ok_or_else(|| {
        Exit::new(Code::Failed, "the daemon's answer makes no sense; is it another version?")
    })?;
    if !options.abort {
        say(
            "the daemon carries it out; ending this command ends nothing, `snapsync cutover --abort` does",
        );
    }
    let ended = follow(socket, began, options).await?;
    let code = match ended.outcome {
        Some(CutoverOutcome::Different) => Some(Code::Differ),
        Some(CutoverOutcome::Aborted) if options.abort => None,
        Some(CutoverOutcome::Ready | CutoverOutcome::CutOver) if !options.abort => None,
        _ => Some(Code::Failed),
    };
    Ok((Some(ended), code))
}

/// Decides in the state directory; the daemon, started again, brings it to its end.
async fn without_daemon(inputs: &Inputs) -> Result<(), Exit> {
    let config = load(inputs)?.config;
    let options = CutoverOptions { source_lost: true, by: user(), ..CutoverOptions::default() };
    let decided = lose_source_unattended(&config, &options).await?;
    let wall = WallTime::from_ms(decided.resume.wall_ms);
    let stands = format!(
        "decided: the target takes over; it stands at {} ({wall})",
        decided.resume.applied.ts
    );
    match decided.spooled {
        Some(until) => say(&format!(
            "{stands}, and what was read up to {} is applied yet; what came later is lost",
            until.ts
        )),
        None => say(&format!("{stands}; what came later is lost")),
    }
    if let Some(until) = decided.cut_short {
        say(&format!(
            "the daemon was killed while it applied a window: of what the source did up to {until} some is \
             on the target, and some is lost"
        ));
    }
    say("now start the daemon (systemctl start snapsync): it brings this to its end");
    Ok(())
}

fn user() -> Option<String> {
    std::env::var("SUDO_USER").or_else(|_| std::env::var("USER")).ok()
}

fn body(options: &Options) -> Value {
    if options.abort {
        return json!({ "abort": true });
    }
    json!({
        "block_source_writes": options.block_source_writes,
        "verify": options.verify,
        "timeout": options.timeout,
        "dry_run": options.dry_run,
        "source_lost": options.source_lost,
        "by": user(),
    })
}

fn unanswered(error: &ClientError) -> Exit {
    let code = match error {
        ClientError::Refused { status: 400, .. } => Code::Usage,
        _ => Code::Failed,
    };
    Exit::new(code, error.to_string())
}

async fn status(socket: &Path) -> Result<Status, ClientError> {
    let answer = client::get(socket, "/status").await?;
    serde_json::from_slice(&answer).map_err(|_| ClientError::NoAnswer {
        socket: socket.to_owned(),
        detail: "its status cannot be read; is it another version?".to_owned(),
    })
}

/// Says how much may be missing.
fn name_the_loss(status: &Status) {
    let Some(seen) = status.source_optime else {
        return say("the source was never seen since the daemon started");
    };
    let since = WallTime::now().as_ms().saturating_sub(seen.wall.as_ms()).max(0) / 1000;
    say(&format!("the source was last seen {since} s ago, at {} ({})", seen.ts, seen.wall));
    if let Some(resume) = status.resume_point {
        say(&format!("the target has everything up to {} ({})", resume.ts, resume.wall));
    }
}

/// Shows what happens until it is over.
async fn follow(socket: &Path, began: WallTime, options: &Options) -> Result<CutoverStatus, Exit> {
    let mut shown = None;
    let mut waits = None;
    let mut answered = Instant::now();
    loop {
        match status(socket).await {
            Ok(found) => {
                answered = Instant::now();
                let ours = found.cutover.filter(|cutover| cutover.began == began);
                let Some(cutover) = ours else {
                    let text = "the daemon knows of another cutover by now; see `snapsync status`";
                    return Err(Exit::new(Code::Failed, text));
                };
                if !options.json {
                    for line in cutover.log.iter().filter(|line| Some(line.at) > shown) {
                        say(&format!("{} {:<9} {}", line.at, line.step.name(), line.text));
                    }
                    if cutover.outcome.is_none() && cutover.reason != waits {
                        waits.clone_from(&cutover.reason);
                        waits.iter().for_each(|reason| say(&format!("  waiting: {reason}")));
                    }
                }
                shown = cutover.log.last().map(|line| line.at).max(shown);
                if cutover.outcome.is_some() {
                    return Ok(cutover);
                }
            }
            Err(error) if answered.elapsed() >= SILENT_FOR => return Err(unanswered(&error)),
            // It is being restarted, perhaps.
            Err(_) => {}
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

#[expect(clippy::print_stderr, reason = "what happens goes beside the report")]
fn say(text: &str) {
    eprintln!("{}", one_line(text));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_durations_are_checked_before_anything_is_asked() {
        assert_eq!(depth("counts"), Ok(VerifyDepth::Counts));
        assert!(depth("all").is_err());
        assert_eq!(timeout("90s").as_deref(), Ok("90s"));
        for text in ["0s", "10", "soon", "-5s"] {
            assert!(timeout(text).is_err(), "{text}");
        }
    }
}
