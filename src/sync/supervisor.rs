//! The daemon from its start to its end: one task that owns all others, and all decisions.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::context::{Context, Interrupted};
use super::feed::Feed;
use super::following::Follower;
use super::phase::{Event, Phase};
use super::resync::{self, kept, lost};
use super::startup::Held;
use super::stuck::StuckWatch;
use super::{
    commands, copying, cutover, identity, mending, pausing, reconcile, reload, reselecting, startup,
};
use crate::config::{Config, Inputs};
use crate::exit::{Code, Exit};
use crate::http::control::{Command, Control, Wish};
use crate::position::OpTime;
use crate::source::tail::{self, TailError};
use crate::status::{State, Status, StatusBoard, bar};
use crate::stop::Stop;
use crate::systemd::{self, Beat, Heartbeat, Signals};
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
    let _lock = startup::lock(&config)?;
    let server = startup::bind(&config).await?;
    let serving = tokio::spawn(server.serve(board.clone(), control, stop.clone()));
    let heartbeat = Heartbeat::new();
    let beat = heartbeat.register("supervisor");
    let mut services = JoinSet::new();
    services.spawn(signals.run(stop.clone(), reload));
    services.spawn(systemd::run_watchdog(heartbeat));
    let outcome = if cutover::is_over(&config.state.directory)? {
        cutover::show_over(&config, &board);
        systemd::ready();
        Ok(())
    } else {
        let started = {
            // Servers are looked for, and operations of earlier runs waited out.
            let _waiting = beat.wait_for("the start");
            startup::start(config, board.clone(), &stop).await
        };
        match started {
            Ok((context, held)) => {
                systemd::ready();
                let daemon = Daemon { context, inputs: &inputs, logs, board: &board, beat: &beat };
                Box::pin(daemon.run(held, &mut commands, &mut reloads)).await
            }
            Err(interrupted) => refused(interrupted),
        }
    };
    if outcome.is_ok() && board.state() == State::CutOver {
        answer_questions(&board, &mut commands, &beat, &stop).await;
        events::stopping();
    }
    stop.request();
    if let Err(panic) = serving.await {
        tracing::error!("internal error: {panic}");
    }
    services.abort_all();
    events::stopped();
    outcome
}

/// What a start that was refused comes to.
fn refused(interrupted: Interrupted) -> Result<(), Exit> {
    match interrupted {
        Interrupted::Stop | Interrupted::Again => Ok(()),
        Interrupted::Exit(exit) => Err(exit),
        Interrupted::Halt { reason, remedy } => {
            Err(Exit::new(Code::Config, format!("{reason}; {remedy}")))
        }
        Interrupted::Lost(what) | Interrupted::Diverged { what, .. } => {
            Err(Exit::new(Code::Config, what))
        }
    }
}

/// The end of a migration that was cut over: nothing is written any more, questions are answered.
async fn answer_questions(
    board: &StatusBoard,
    commands: &mut mpsc::Receiver<Command>,
    beat: &Beat,
    stop: &Stop,
) {
    let mut serving = std::pin::pin!(cutover::serve(commands, stop));
    let mut ticks = tokio::time::interval(BEAT_EVERY);
    loop {
        tokio::select! {
            () = &mut serving => return,
            _ = ticks.tick() => {
                beat.beat();
                show_systemd(&board.read(), stop);
            }
        }
    }
}

/// A daemon that has started.
struct Daemon<'a> {
    context: Context,
    inputs: &'a Inputs,
    logs: &'a LogHandle,
    board: &'a StatusBoard,
    beat: &'a Beat,
}

impl Daemon<'_> {
    /// Works until it is asked to stop, cannot go on, or everything is done.
    async fn run(
        self,
        held: Held,
        commands: &mut mpsc::Receiver<Command>,
        reloads: &mut mpsc::Receiver<()>,
    ) -> Result<(), Exit> {
        let stop = &held.stop().clone();
        let Self { context, inputs, logs, board, beat } = self;
        let mut work = std::pin::pin!(work(&context, commands, stop));
        let mut ticks = tokio::time::interval(BEAT_EVERY);
        let mut newest = context.config.clone();
        let mut stuck = StuckWatch::default();
        let outcome = loop {
            tokio::select! {
                outcome = &mut work => break outcome,
                _ = ticks.tick() => {
                    beat.beat();
                    if let Err(exit) = fall_behind(&context) {
                        break Err(exit);
                    }
                    let status = board.read();
                    stuck.look(&status, Instant::now());
                    show_systemd(&status, stop);
                    logs.show_progress(bar::line(&status));
                }
                Some(()) = reloads.recv() => reload::reload(inputs, logs, &context, &mut newest),
            }
        };
        if !(outcome.is_ok() && board.state() == State::CutOver) {
            events::stopping();
            systemd::stopping(STOP_WITHIN);
        }
        context.cutover.end("the daemon ends").await;
        let lost = held.release(outcome.is_ok()).await;
        lost.and(outcome)
    }
}

/// Leaves `live` when the lag is too large, also while the work itself waits for a server.
fn fall_behind(context: &Context) -> Result<(), Exit> {
    let max = context.tuning.get().max_lag.as_secs_f64();
    let behind = context.board.lag_seconds().filter(|lag| *lag > max);
    let (Some(lag), State::Live) = (behind, context.board.state()) else { return Ok(()) };
    events::lagging(lag, max);
    match context.happen(Event::FellBehind) {
        Err(Interrupted::Exit(exit)) => Err(exit),
        _ => Ok(()),
    }
}

fn show_systemd(status: &Status, stop: &Stop) {
    if stop.is_requested() {
        systemd::stopping(STOP_WITHIN);
        return;
    }
    let lag = status.lag_seconds.map_or(String::new(), |lag| format!(", lag {lag:.1} s"));
    let text = match (&status.reason, status.state) {
        (Some(reason), State::Halted) => format!("halted: {reason}"),
        (_, State::CuttingOver) => {
            let cutover = status.cutover.as_ref();
            let step = cutover.map_or("", |cutover| cutover.step.name());
            let reason = cutover.and_then(|cutover| cutover.reason.as_deref());
            format!(
                "cutting-over: {step}{}",
                reason.map_or(String::new(), |why| format!(", {why}"))
            )
        }
        (_, State::CutOver) => "cut-over: the target has taken over".to_owned(),
        (_, State::Copying) => {
            let copy = status.copy;
            let (done, total) = (copy.documents, copy.documents_total);
            format!("copying: {done} of {total} documents")
        }
        (Some(reason), state) => format!("{state}{lag}; {reason}"),
        (None, state) if !status.index_builds.is_empty() => {
            format!("{state}{lag}, building indexes on {}", status.index_builds[0])
        }
        (None, state) if !status.copying.is_empty() => {
            let run = status.resync.unwrap_or_default();
            let (count, done, total) = (status.copying.len(), run.documents, run.documents_total);
            format!("{state}{lag}, copying {count} again: {done} of {total} documents")
        }
        (None, state) => format!("{state}{lag}, delta {}", status.total_delta),
    };
    systemd::status(&text);
}

/// The acts of a migration, one after another, until it ends.
async fn work(
    context: &Context,
    commands: &mut mpsc::Receiver<Command>,
    stop: &Stop,
) -> Result<(), Exit> {
    if let Err(interrupted) = cutover::after_restart(context, stop).await {
        match interrupted {
            Interrupted::Stop => return Ok(()),
            Interrupted::Exit(exit) => return Err(exit),
            // The block stays until a person has seen to it; that was said.
            _ => {}
        }
    }
    let phase = context.records.get().phase.after_restart();
    let record = context.records.change(|record| record.phase = phase.clone())?;
    context.board.update(|status| {
        status.copy.complete = record.phase.consistent_from().is_some();
        status.totals.entries_read = record.totals.entries_read;
        status.totals.entries_applied = record.totals.entries_applied;
        status.totals.windows = record.totals.windows;
    });
    context.show(&phase);
    if let Some(resume) = record.resume.filter(|_| record.phase.consistent_from().is_some()) {
        context.standing.resumes_at(resume);
    }
    kept::show(context);
    let mut asked = None;
    loop {
        if matches!(context.records.get().phase, Phase::CutOver { .. }) {
            return Ok(());
        }
        let act_stop = stop.child();
        let (interrupted, command) = {
            let mut act = std::pin::pin!(act(context, &act_stop));
            tokio::select! {
                interrupted = &mut act => (interrupted, None),
                command = next_command(context, commands, &mut asked, stop) => {
                    act_stop.request();
                    (act.await, command)
                }
                () = cutover::left_undone(context) => {
                    act_stop.request();
                    (act.await, None)
                }
            }
        };
        if let Some(interrupted) = interrupted
            && let Some(outcome) = after(context, interrupted, stop).await
        {
            return outcome;
        }
        if let Some(command) = command
            && let Err(interrupted) = commands::carry_out(context, command, stop).await
            && let Some(outcome) = after(context, interrupted, stop).await
        {
            return outcome;
        }
    }
}

/// The next wish that makes sense; others are refused while the work goes on. `None` never comes while anybody may ask.
/// What is being looked into stays in `asked`, for the next call, if this one is given up.
async fn next_command(
    context: &Context,
    commands: &mut mpsc::Receiver<Command>,
    asked: &mut Option<Command>,
    stop: &Stop,
) -> Option<Command> {
    loop {
        if asked.is_none() {
            *asked = commands.recv().await;
        }
        let Some(wish) = asked.as_ref().map(|command| command.wish.clone()) else {
            std::future::pending().await
        };
        let answer = match (commands::check(context, &wish), &wish) {
            (Err(refusal), _) => Err(refusal),
            // It goes on beside the act that is under way.
            (Ok(()), Wish::Cutover(options)) if !options.source_lost => {
                cutover::begin(context, options.clone(), stop)
            }
            (Ok(()), Wish::AbortCutover) => cutover::abort(context),
            (Ok(()), Wish::Cutover(_)) => match cutover::check_lost(context).await {
                Ok(()) => {
                    cutover::come_to_rest(context).await;
                    return asked.take();
                }
                refused => refused,
            },
            (Ok(()), _) => return asked.take(),
        };
        if let Some(command) = asked.take() {
            commands::answer(command.reply, answer);
        }
    }
}

/// What an interruption comes to: the end of the work, or nothing if it goes on from what is durable.
async fn after(
    context: &Context,
    mut interrupted: Interrupted,
    stop: &Stop,
) -> Option<Result<(), Exit>> {
    let ends_cutover = match &interrupted {
        Interrupted::Stop => stop.is_requested().then_some("the daemon stops"),
        Interrupted::Again => None,
        Interrupted::Halt { reason, .. } => Some(reason.as_str()),
        Interrupted::Exit(exit) => Some(exit.message.as_str()),
        Interrupted::Lost(what) | Interrupted::Diverged { what, .. } => Some(what.as_str()),
    };
    if let Some(why) = ends_cutover {
        // Undone, if it is not decided, before anything else is done about it.
        context.cutover.end(why).await;
    }
    loop {
        let next = match interrupted {
            Interrupted::Stop => return stop.is_requested().then_some(Ok(())),
            Interrupted::Exit(exit) => return Some(Err(exit)),
            Interrupted::Again => return None,
            Interrupted::Diverged { what, .. } => Err(Interrupted::Halt {
                reason: format!("source and target have diverged: {what}"),
                remedy: "find out what else writes to the target, then `snapsync resume`".into(),
            }),
            Interrupted::Halt { reason, remedy } => {
                context.happen(Event::Halt { reason, remedy }).map(drop)
            }
            Interrupted::Lost(reason) => everything_anew(context, &reason, stop).await,
        };
        match next {
            Ok(()) => return None,
            Err(another) => interrupted = another,
        }
    }
}

/// What follows from an oplog that does not reach back far enough.
async fn everything_anew(context: &Context, reason: &str, stop: &Stop) -> Result<(), Interrupted> {
    context.clear_cut_short(stop).await?;
    match context.records.get().phase {
        Phase::Copying => copying::start_over(context, reason, stop).await,
        _ => lost::everything_again(context, reason, stop).await,
    }
}

/// One act; `None` when it came to its end and the next one follows.
async fn act(context: &Context, stop: &Stop) -> Option<Interrupted> {
    if let Err(interrupted) = cutover::make_good(context, stop).await {
        return Some(interrupted);
    }
    let phase = context.records.get().phase;
    let certain = match phase {
        // The last act sees to the target by itself: the source may be gone.
        Phase::Halted { .. } | Phase::CuttingOver { decided: true, .. } => Ok(()),
        Phase::Paused { .. } => identity::verify_source(context, stop).await,
        _ => make_sure(context, stop).await,
    };
    if let Err(interrupted) = certain {
        return Some(interrupted);
    }
    match phase {
        Phase::Copying => copy(context, stop).await.err(),
        Phase::Halted { .. } => {
            stop.requested().await;
            Some(Interrupted::Stop)
        }
        Phase::Paused { .. } => Some(match feed(context, stop).await {
            Ok(feed) => {
                // Nothing is written, so a target that is away need not keep the oplog from being spooled.
                let certain = identity::verify(context, stop);
                pausing::pause(context, feed, certain, stop).await
            }
            Err(interrupted) => interrupted,
        }),
        Phase::CuttingOver { decided: true, .. } => Some(match take_over(context, stop).await {
            Ok(()) => Interrupted::Again,
            Err(interrupted) => interrupted,
        }),
        // There is nothing left to be done.
        Phase::CutOver { .. } => Some(Interrupted::Again),
        Phase::CatchingUp { .. } | Phase::Live { .. } | Phase::CuttingOver { .. } => {
            Some(match prepare(context, stop).await {
                Ok(feed) => match Follower::new(context.clone()) {
                    Ok(follower) => Box::pin(follower.run(feed, stop)).await,
                    Err(interrupted) => interrupted,
                },
                Err(interrupted) => interrupted,
            })
        }
    }
}

/// What has to be certain before anything is written: that both sides are those that they were, and that nothing of an
/// earlier act, which may have been told to stop while a server did not answer, lands any more.
async fn make_sure(context: &Context, stop: &Stop) -> Result<(), Interrupted> {
    identity::verify(context, stop).await?;
    context.clear_cut_short(stop).await
}

/// The last act. The source is not asked any more: it may be gone.
async fn take_over(context: &Context, stop: &Stop) -> Result<(), Interrupted> {
    context.clear_cut_short(stop).await?;
    identity::verify_target(context, stop).await?;
    cutover::finish(context, stop).await
}

/// What has to be in order before the replay goes on.
async fn prepare(context: &Context, stop: &Stop) -> Result<Feed, Interrupted> {
    reselecting::check_renaming(context)?;
    mending::clear_broken_run(context, stop).await?;
    // What is gone shows when the lists are compared.
    let _gone = reconcile::names(context, stop).await?;
    // Before what takes part in it may leave the selection.
    resync::finish_swap(context, stop).await?;
    reselecting::take_over(context, stop).await?;
    feed(context, stop).await
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
/// any more, and as long as anybody reads it again.
async fn feed(context: &Context, stop: &Stop) -> Result<Feed, Interrupted> {
    let main = context.records.get().resume.unwrap_or_default().read_from;
    let from = reads_from(context, main, stop).await?;
    let has_spooled = copying::open_spool(context, from)?.durable_end().is_some();
    let (paused, direct) = {
        let catalogue = context.catalogue.read();
        let paused = context.board.state() == State::Paused;
        (paused, catalogue.indexes_built && !catalogue.repair.is_busy())
    };
    if direct && !has_spooled && !paused {
        let source = context.source.clone();
        return Ok(Feed::Direct(crate::source::reader::Reader::start(source, main, stop)));
    }
    Feed::spooled(context, from, stop)
}

/// Where reading begins: a run of a resync may need older entries than the main replay. If nobody has them any more, it
/// is given up.
async fn reads_from(context: &Context, main: OpTime, stop: &Stop) -> Result<OpTime, Interrupted> {
    if context.catalogue.read().repair.run.is_none() {
        return Ok(main);
    }
    if let Some(run) = resync::reads_from(context)? {
        if run >= main || copying::is_spooled(context, run)? {
            return Ok(main.min(run));
        }
        match tail::check_held(&context.source, run).await {
            Err(TailError::Lost { .. }) => {}
            // Another failure shows again when it is read.
            _ => return Ok(run),
        }
    }
    resync::give_up(context, stop).await?;
    Ok(main)
}
