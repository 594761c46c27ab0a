//! The command line: arguments, and one room a subcommand. Only here is anything printed.

mod check;
pub mod config;
mod cutover;
pub mod output;
mod reset;
mod reverse;
mod run;
mod snapshot;
pub mod status;
mod verify;
mod wishes;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::config::{Config, Inputs, Loaded};
use crate::exit::{Code, Exit};
use crate::http::control::Wish;
use crate::telemetry::{logging, without_credentials};

/// Keeps one MongoDB deployment equal to another while the first one is live.
#[derive(Debug, Parser)]
#[command(name = "snapsync", version, max_term_width = 100, after_help = AFTER_HELP)]
struct Arguments {
    /// The configuration file [default: /etc/snapsync/snapsync.toml]
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,

    /// Sets one key of the configuration, before file and environment; may be repeated
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE", global = true, value_parser = assignment)]
    set: Vec<(String, String)>,

    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "Exit codes: 0 done, 1 failed, 64 usage, 65 the sides differ, 69 a server is unreachable at \
start, 70 internal, 74 local disk, 75 lease held by another, 78 configuration or what only a person \
can mend at start.

Example: snapsync check --config ./snapsync.toml && snapsync run --config ./snapsync.toml";

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the daemon in the foreground; what the systemd unit starts
    ///
    /// Example: snapsync run --config /etc/snapsync/snapsync.toml
    Run,
    /// Connects to both sides and checks, without writing, whether a migration can work
    ///
    /// Versions, topology, privileges by name, the oplog, the target, the disk. Exit code 78 if anything fails.
    ///
    /// Example: snapsync check --json
    Check {
        /// Prints JSON
        #[arg(long)]
        json: bool,
    },
    /// Shows the effective configuration, without secrets, and where each value comes from
    ///
    /// Example: snapsync config --check
    Config {
        /// Only validates, without connecting and without printing values
        #[arg(long)]
        check: bool,
        /// Prints JSON
        #[arg(long)]
        json: bool,
    },
    /// Stops applying; the running daemon goes on spooling the source's oplog
    ///
    /// Example: snapsync pause
    Pause {
        /// Prints JSON
        #[arg(long)]
        json: bool,
    },
    /// Goes on after `pause`, or after `halted` once the cause is mended
    ///
    /// Example: snapsync resume
    Resume {
        /// Prints JSON
        #[arg(long)]
        json: bool,
    },
    /// Copies collections again while everything else is followed
    ///
    /// What is on the target stays readable until each new copy is complete, and is kept for a while after that.
    ///
    /// Example: snapsync resync shop.orders --yes
    Resync {
        /// Collections or databases by their names on the source; all if none is given
        #[arg(value_name = "NS")]
        namespaces: Vec<String>,
        /// Does not ask
        #[arg(long)]
        yes: bool,
        /// Prints JSON
        #[arg(long)]
        json: bool,
    },
    /// Drops the collections that resyncs replaced and that are still kept
    ///
    /// Example: snapsync discard --yes
    Discard {
        /// Does not ask
        #[arg(long)]
        yes: bool,
        /// Prints JSON
        #[arg(long)]
        json: bool,
    },
    /// Compares the contents of both sides while writes go on: documents, options, indexes, views
    ///
    /// Reads only. What differs is judged at a moment when both sides have to be the same, so that nothing that is
    /// merely on its way is reported; what cannot be judged is said to be not proved. Documents that differ are listed
    /// by their _id. Exit code 65 if anything differs, 1 if something could not be proved.
    ///
    /// Example: snapsync verify shop.orders crm --json
    Verify(verify::Options),
    /// Lets the target take over from the source; can be rehearsed, and given up until it is decided
    ///
    /// The running daemon waits until everything holds that has to, lets writes to the source end, replays what is
    /// left, compares both sides, runs the hooks, and decides. Whatever fails before that leaves everything as it was.
    /// After it the target gets what was held back, and snapsync never writes there again. Exit code 65 if the sides
    /// differ, 1 if it was given up. Ending this command ends nothing: --abort does.
    ///
    /// Example: snapsync cutover --block-source-writes --timeout 5m
    Cutover(cutover::Options),
    /// Prepares the way back after a cutover: from the target to the old source, without a copy
    ///
    /// Makes a configuration and a state directory that `snapsync run` goes on from. Refuses where anything would be
    /// missing: the target's oplog has to reach back to the cutover, and nothing may have been written to the old
    /// source.
    ///
    /// Example: snapsync reverse --output /etc/snapsync/reverse.toml
    Reverse(reverse::Options),
    /// Copies collections of one database into another one, all as of one moment, once
    ///
    /// What the section snapshot says. Each collection takes the place of its old copy in one step, when all of them
    /// are complete; until then the old ones stay. Exit code 1 if anything is missing in the end, 75 if another one is
    /// under way.
    ///
    /// Example: snapsync snapshot --config /etc/snapsync/nightly.toml
    Snapshot {
        /// Only checks both sides, and says what there is to copy
        #[arg(long)]
        dry_run: bool,
        /// Prints JSON
        #[arg(long)]
        json: bool,
    },
    /// Shows what the running daemon does: state, lag, copy progress, deltas
    ///
    /// Example: snapsync status --watch
    Status {
        /// Prints JSON; with --watch one document a line
        #[arg(long)]
        json: bool,
        /// Shows it anew every second
        #[arg(long)]
        watch: bool,
        /// Only says whether it is ready, and why not; exit code 1 if it is not, as for a probe
        #[arg(long, conflicts_with = "watch")]
        ready: bool,
    },
    /// Forgets a migration, here and on the target; what it copied stays on the target
    ///
    /// Removes position, catalogue and spool from the state directory, and lease and mirror from the target. Asks
    /// first. The daemon must not run.
    ///
    /// Example: systemctl stop snapsync && snapsync reset
    Reset {
        /// Does not ask
        #[arg(long)]
        yes: bool,
        /// Prints JSON
        #[arg(long)]
        json: bool,
    },
}

fn assignment(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write it as section.key=value")?;
    Ok((key.trim().to_owned(), value.to_owned()))
}

/// The arguments as a value, for man pages and shell completions.
#[must_use]
pub fn command() -> clap::Command {
    Arguments::command()
}

/// The program, from its arguments to its exit code.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version are no errors and go to standard output.
            let code = if error.use_stderr() { Code::Usage.into() } else { ExitCode::SUCCESS };
            return match print_usage(&error) {
                Ok(()) => code,
                Err(_) => ExitCode::FAILURE,
            };
        }
    };
    let inputs = Inputs::from_process(arguments.config, arguments.set);
    match arguments.command {
        Command::Run => run::run(inputs),
        Command::Check { json } => check::run(&inputs, json),
        Command::Config { check, json } => {
            let options = config::Options { check, json };
            let (mut out, mut err) = (std::io::stdout(), std::io::stderr());
            match config::run(&inputs, options, &mut out, &mut err) {
                Ok(code) => ExitCode::from(code),
                Err(_) => ExitCode::FAILURE,
            }
        }
        Command::Snapshot { dry_run, json } => snapshot::run(&inputs, dry_run, json),
        Command::Reset { yes, json } => reset::run(&inputs, yes, json),
        Command::Verify(options) => verify::run(&inputs, options),
        Command::Reverse(options) => reverse::run(&inputs, &options),
        Command::Cutover(options) => cutover::run(&inputs, &options),
        Command::Status { json, ready: true, .. } => ask_status(&inputs, Shown::Ready, json),
        Command::Status { json, watch: true, .. } => ask_status(&inputs, Shown::Always, json),
        Command::Status { json, .. } => ask_status(&inputs, Shown::Once, json),
        Command::Pause { json } => wishes::run(&inputs, &Wish::Pause, true, json),
        Command::Resume { json } => wishes::run(&inputs, &Wish::Resume, true, json),
        Command::Resync { namespaces, yes, json } => {
            wishes::run(&inputs, &Wish::Resync { namespaces }, yes, json)
        }
        Command::Discard { yes, json } => wishes::run(&inputs, &Wish::Discard, yes, json),
    }
}

/// Prints what is wrong with the arguments. The text quotes them, and somebody may have put a URI where none belongs.
#[expect(clippy::print_stderr, reason = "the last words of a command")]
fn print_usage(error: &clap::Error) -> std::io::Result<()> {
    let text = error.render().to_string();
    let hidden = without_credentials(&text);
    if hidden == text {
        return error.print();
    }
    eprint!("{hidden}");
    Ok(())
}

/// What `snapsync status` shows.
#[derive(Debug, Clone, Copy)]
enum Shown {
    Once,
    Always,
    Ready,
}

fn ask_status(inputs: &Inputs, shown: Shown, json: bool) -> ExitCode {
    let asked = control_socket(inputs).and_then(|socket| {
        block_on(async {
            let answer = match shown {
                Shown::Always => status::watch(&socket, json).await.map(|()| true),
                Shown::Once => status::show(&socket, json).await.map(|()| true),
                Shown::Ready => status::ready(&socket, json).await,
            };
            answer.map_err(|error| Exit::new(Code::Failed, format!("{error:#}")))
        })
    });
    match asked {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => Code::Failed.into(),
        Err(exit) => fail(&exit),
    }
}

/// The socket of the running daemon: the first one that is there, else the first candidate, which the error names.
fn control_socket(inputs: &Inputs) -> Result<PathBuf, Exit> {
    let sockets = crate::config::control_sockets(inputs)
        .map_err(|errors| Exit::new(Code::Config, errors.to_string()))?;
    let socket = sockets.iter().find(|socket| socket.exists()).or(sockets.first());
    socket.cloned().ok_or_else(|| Exit::new(Code::Config, "no control socket is configured"))
}

/// The configuration, or what the command ends with.
fn load(inputs: &Inputs) -> Result<Loaded, Exit> {
    Ok(Config::load(inputs)?)
}

/// Begins to log as configured, with what is unwise about the configuration.
fn begin_log(loaded: &Loaded) -> Result<logging::LogHandle, Exit> {
    let log = &loaded.config.log;
    let logs = logging::init(log.format, log.level)
        .map_err(|error| Exit::new(Code::Internal, error.to_string()))?;
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    Ok(logs)
}

/// Runs a command to its end on a runtime of its own.
fn block_on<T>(command: impl Future<Output = Result<T, Exit>>) -> Result<T, Exit> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Exit::new(Code::Internal, format!("cannot start: {error}")))?;
    let outcome = runtime.block_on(command);
    // The process ends now, and takes the runtime with it. Taking it down in order instead would end the driver's tasks
    // one by one, and those that ask an ended one for a connection panic.
    std::mem::forget(runtime);
    outcome
}

#[expect(clippy::print_stderr, reason = "the last words of a command")]
fn fail(exit: &Exit) -> ExitCode {
    // The journal takes a number before a line for its priority; without one it would be mere information.
    let priority = if logging::stderr_is_the_journal() { "<3>" } else { "" };
    for line in format!("snapsync: {exit}").lines() {
        eprintln!("{priority}{line}");
    }
    exit.code.into()
}
