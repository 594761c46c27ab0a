//! The daemon from its start to its end: one task that owns all others, and all decisions.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::context::{Context, Interrupted};
use super::copying;
use super::feed::Feed;
use super::following::Follower;
use super::phase::{Event, Phase};
use super::spooling::Spooler;
use super::{reload, startup};
use crate::config::{Config, Inputs};
use crate::exit::{Code, Exit};
use crate::http::control::{Command, Control, Refusal};
use crate::position::Ts;
use crate::status::{State, StatusBoard};
use crate::stop::Stop;
use crate::systemd::{self, Heartbeat, Signals};
use crate::telemetry::events;
use crate::telemetry::logging::LogHandle;

/// How often the supervisor shows the watchdog that it answers, and systemd what the state is.
const BEAT_EVERY: Duration = Duration::from_secs(1);
/// What systemd is asked for while the batch in hand is finished.
const STOP_WITHIN: Duration = Duration::from_secs(30);

/// Runs the daemon until it is asked to stop or cannot go on.
///
/// # Errors
/// [`Exit`], with the code that the process ends with.
pub async fn run(config: Config, inputs: Inputs, logs: &LogHandle) -> Result<(), Exit> {
    let stop = Stop::new();
    let board = StatusBoard::new(env!("CARGO_PKG_VERSION"));
    events::started(env!("CARGO_PKG_VERSION"));
    let signals = Signals::register()
        .map_err(|error| Exit::new(Code::Internal, format!("cannot take signals: {error}")))?;
    let (reload, mut reloads) = mpsc::channel(1);
    let (control, mut commands) = Control::channel();
    let heartbeat = Heartbeat::new();
    let beat = heartbeat.register("supervisor");
    let mut services = JoinSet::new();
    services.spawn(signals.run(stop.clone(), reload));
    services.spawn(systemd::run_watchdog(heartbeat));
    let started = {
        // Servers are looked for, and operations of earlier runs waited out.
        let _waiting = beat.wait_for("the start");
        startup::start(config, board.clone(), control, &stop).await
    };
    let (context, held) = match started {
        Ok(started) => started,
        Err(Interrupted::Stop) => return Ok(()),
        Err(Interrupted::Exit(exit)) => return Err(exit),
        Err(Interrupted::Halt { reason, remedy }) => {
            return Err(Exit::new(Code::Config, format!("{reason}; {remedy}")));
        }
    };
    systemd::ready();
    let outcome = {
        let mut work = std::pin::pin!(work(&context, &mut commands, &stop));
        let mut ticks = tokio::time::interval(BEAT_EVERY);
        let mut newest = context.config.clone();
        loop {
            tokio::select! {
                outcome = &mut work => break outcome,
                _ = ticks.tick() => {
                    beat.beat();
                    if let Err(exit) = fall_behind(&context) {
                        break Err(exit);
                    }
                    show_systemd(&board, &stop);
                }
                Some(_) = reloads.recv() => reload::reload(&inputs, logs, &context, &mut newest),
            }
        }
    };
    events::stopping();
    systemd::stopping(STOP_WITHIN);
    stop.request();
    let lost = held.release(outcome.is_ok()).await;
    services.abort_all();
    events::stopped();
    lost.and(outcome)
}

/// Leaves `live` when the lag is too large, also while the work itself waits for a server.
fn fall_behind(context: &Context) -> Result<(), Exit> {
    let max = context.tuning.get().max_lag.as_secs_f64();
    let behind = context.board.lag_seconds().is_some_and(|lag| lag > max);
    if !behind || context.board.state() != State::Live {
        return Ok(());
    }
    match context.happen(Event::FellBehind) {
        Err(Interrupted::Exit(exit)) => Err(exit),
        _ => Ok(()),
    }
}

fn show_systemd(board: &StatusBoard, stop: &Stop) {
    if stop.is_requested() {
        systemd::stopping(STOP_WITHIN);
        return;
    }
    let status = board.read();
    let lag = status.lag_seconds.map_or(String::new(), |lag| format!(", lag {lag:.1} s"));
    let text = match (&status.reason, status.state) {
        (Some(reason), State::Halted) => format!("halted: {reason}"),
        (_, State::Copying) => {
            let copy = status.copy;
            let (done, total) = (copy.documents, copy.documents_total);
            format!("copying: {done} of {total} documents")
        }
        (_, state) => format!("{state}{lag}, delta {}", status.total_delta),
    };
    systemd::status(&text);
}

/// The acts of a migration, one after another, until it ends.
async fn work(
    context: &Context,
    commands: &mut mpsc::Receiver<Command>,
    stop: &Stop,
) -> Result<(), Exit> {
    let phase = context.records.get().phase.after_restart();
    let record = context.records.change(|record| record.phase = phase.clone())?;
    context.board.update(|status| {
        status.copy.complete = record.phase.consistent_from().is_some();
        status.totals.entries_read = record.totals.entries_read;
        status.totals.entries_applied = record.totals.entries_applied;
        status.totals.windows = record.totals.windows;
    });
    context.show(&phase);
    loop {
        let interrupted = match context.records.get().phase {
            Phase::Halted { .. } => wait_for_person(context, commands, stop).await,
            phase => {
                let mut act = std::pin::pin!(act(context, phase, stop));
                loop {
                    tokio::select! {
                        interrupted = &mut act => break interrupted,
                        Some(command) = commands.recv() => refuse(context, command),
                    }
                }
            }
        };
        match interrupted {
            None => {}
            Some(Interrupted::Stop) => return Ok(()),
            Some(Interrupted::Exit(exit)) => return Err(exit),
            Some(Interrupted::Halt { reason, remedy }) => {
                if let Err(Interrupted::Exit(exit)) = context.happen(Event::Halt { reason, remedy })
                {
                    return Err(exit);
                }
            }
        }
    }
}

/// One act; `None` when it came to its end and the next one follows.
async fn act(context: &Context, phase: Phase, stop: &Stop) -> Option<Interrupted> {
    match phase {
        Phase::Copying => copy(context, stop).await.err(),
        _ => match feed(context, stop) {
            Ok(feed) => match Follower::new(context.clone()) {
                Ok(follower) => Some(Box::pin(follower.run(feed, stop)).await),
                Err(interrupted) => Some(interrupted),
            },
            Err(interrupted) => Some(interrupted),
        },
    }
}

async fn copy(context: &Context, stop: &Stop) -> Result<(), Interrupted> {
    copying::begin(context, stop).await?;
    let spooler = copying::spool(context, stop)?;
    let copied = Box::pin(copying::copy(context, &spooler, stop)).await;
    let spooled = spooler.finish().await;
    copied?;
    spooled.map(drop).map_err(|error| super::following::feed_failure(&error))
}

/// Where the entries after the resume point come from: the spool, as long as it holds some that the source may not have
/// any more, and until the catch-up with the copy is over.
fn feed(context: &Context, stop: &Stop) -> Result<Feed, Interrupted> {
    let resume = context.records.get().resume.unwrap_or_default();
    let writer = copying::open_spool(context)?;
    if writer.durable_end().is_none() && context.catalogue.read().indexes_built {
        let source = context.source.clone();
        let reader = crate::source::reader::Reader::start(source, resume.read_from, stop);
        return Ok(Feed::Direct(reader));
    }
    // Readers begin after a timestamp; nothing lies between this one and the entry to read from.
    let from = resume.read_from.ts;
    let reader = writer.reader(Ts::new(from.t, from.i.saturating_sub(1)));
    let spooler = Spooler::start(context.source.clone(), writer, resume.read_from, stop);
    Ok(Feed::Spooled { spooler, reader })
}

async fn wait_for_person(
    context: &Context,
    commands: &mut mpsc::Receiver<Command>,
    stop: &Stop,
) -> Option<Interrupted> {
    loop {
        let command = tokio::select! {
            () = stop.requested() => return Some(Interrupted::Stop),
            command = commands.recv() => command?,
        };
        match command {
            Command::Resume { reply } => {
                let resumed = context.happen(Event::Resume);
                answer(reply, Ok(()));
                return resumed.err();
            }
            Command::Pause { reply } => {
                answer(reply, Err(Refusal::wrong_state("halted already")));
            }
        }
    }
}

fn refuse(context: &Context, command: Command) {
    let state = context.board.state();
    let (reply, text) = match command {
        Command::Pause { reply } => (reply, "pause is not available in this version".to_owned()),
        Command::Resume { reply } => (reply, format!("nothing to resume: the state is {state}")),
    };
    answer(reply, Err(Refusal::wrong_state(text)));
}

/// Whoever asked may have gone.
fn answer(reply: crate::http::control::Reply, result: Result<(), Refusal>) {
    let _gone = reply.send(result);
}
