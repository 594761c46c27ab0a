//! The end of a migration: the target takes over.
//!
//! Until the decision everything goes on beside the replay, as a task ([`acting`]), and can be given up: the source
//! takes writes again and the migration follows as before. The decision is one durable write of the record. From there
//! on there is only forward, over restarts too, as an act of the supervisor ([`finishing`]). Each act has its durable
//! write before it; [`plan`] says what a start makes of what it finds.
//!
//! If this room is wrong, acknowledged writes are left behind on the source, or an application is left without a place
//! to write to.

mod acting;
mod again;
mod counting;
mod finishing;
mod hooks;
mod lost;
pub mod plan;
mod proof;
mod report;
mod served;
mod stopping;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bson::Uuid;
use futures_util::FutureExt;
use tokio::sync::watch;
use tokio::task::{JoinHandle, unconstrained};

use self::acting::{Cutover, Request};
use self::plan::AfterRestart;
use super::context::{Context, Interrupted};
use super::phase::{Event, Phase};
use super::record::{Record, RecordStore};
use super::startup;
use crate::config::Config;
use crate::exit::{Code, Exit};
use crate::http::control::{CutoverOptions, Refusal};
use crate::mongo::{Deployment, Failure, Side};
use crate::replay::window::ResumePoint;
use crate::retry::{Stopped, until_reached};
use crate::source::writes;
use crate::status::{CutoverOutcome, CutoverStatus, CutoverStep, State, WallTime, WriteBlock};
use crate::stop::Stop;
use crate::telemetry::events;

pub use report::text as report_text;

pub use lost::{Unattended, lose_source_unattended};

pub(super) use finishing::finish;
pub(crate) use finishing::{Kept, held_back};
pub(super) use lost::{check_lost, come_to_rest, lose_source};
pub(super) use proof::FOLDER;
pub(super) use report::{FILES as REPORT_FILES, read as read_report};
pub(super) use served::{is_over, serve, show as show_over};

/// Connections for lifting a block before anything else is known.
const CONNECTIONS: u32 = 2;
/// How often the source may refuse to lift a block for a reason that may pass, and what is waited for in between.
const REFUSED_MAX: u32 = 30;
const LIFT_AGAIN: Duration = Duration::from_secs(1);
/// How often it is looked whether a cutover is still at work.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Where the replay and a cutover meet. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Handover {
    inner: Arc<Mutex<Inner>>,
    /// Whether the replay is to stand still at its next window end.
    wanted: Arc<watch::Sender<bool>>,
    /// The request that blocks writes. It is waited out before a block is lifted.
    blocking: Arc<tokio::sync::Mutex<Option<Request>>>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Where the replay stands still.
    parked: Option<ResumePoint>,
    /// Whether a replay goes on.
    is_followed: bool,
    running: Option<Running>,
    /// Why the one that is under way is to end.
    why: Option<String>,
    /// Documents that were counted exactly, by the collection's UUID on the source.
    counted: HashMap<Uuid, u64>,
}

#[derive(Debug)]
struct Running {
    abort: Stop,
    hurry: Stop,
    task: JoinHandle<()>,
}

impl Handover {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the replay is to stand still at this window end.
    pub(super) fn is_wanted(&self) -> bool {
        *self.wanted.borrow()
    }

    /// Waits until the replay is to stand still.
    pub(super) async fn wanted(&self) {
        let mut wanted = self.wanted.subscribe();
        if wanted.wait_for(|wanted| *wanted).await.is_err() {
            // Nobody can want it any more.
            std::future::pending::<()>().await;
        }
    }

    /// The replay stands still here, with everything acknowledged, until it is not wanted any more.
    pub(super) fn parked(&self, at: ResumePoint) {
        let mut inner = self.inner();
        inner.parked = Some(at).filter(|_| self.is_wanted());
    }

    /// A replay begins: nothing stands still.
    pub(super) fn begins(&self) {
        let mut inner = self.inner();
        (inner.parked, inner.is_followed) = (None, true);
    }

    /// The replay has ended.
    pub(super) fn rests(&self) {
        let mut inner = self.inner();
        (inner.parked, inner.is_followed) = (None, false);
    }

    /// Whether a replay goes on.
    fn is_followed(&self) -> bool {
        self.inner().is_followed
    }

    fn want(&self, wanted: bool) {
        let mut inner = self.inner();
        inner.parked = None;
        self.wanted.send_replace(wanted);
    }

    fn stands_at(&self) -> Option<ResumePoint> {
        self.inner().parked
    }

    fn is_running(&self) -> bool {
        self.inner().running.as_ref().is_some_and(|running| !running.task.is_finished())
    }

    fn blocking(&self) -> Arc<tokio::sync::Mutex<Option<Request>>> {
        self.blocking.clone()
    }

    /// Waits until the cutover that is under way has ended; says so if that was by a defect.
    async fn ended(&self) -> Result<(), String> {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let ended = self.inner().running.take_if(|running| running.task.is_finished());
            // It is there: nothing is waited for, so that whoever gives this up misses nothing.
            let answer = ended.and_then(|ended| unconstrained(ended.task).now_or_never());
            if let Some(answer) = answer {
                return answer.map_err(|panic| panic.to_string());
            }
        }
    }

    fn has_counted(&self, counted: HashMap<Uuid, u64>) {
        self.inner().counted = counted;
    }

    fn counted(&self, uuid: &Uuid) -> Option<u64> {
        self.inner().counted.get(uuid).copied()
    }

    fn why(&self) -> Option<String> {
        self.inner().why.take()
    }

    /// Ends the cutover that is under way, if it is not decided, and waits until everything is undone, as long as that
    /// does not take too long.
    pub(super) async fn end(&self, why: &str) {
        let running = {
            let mut inner = self.inner();
            inner.why = Some(why.to_owned());
            inner.running.take()
        };
        if let Some(Running { abort, hurry, task }) = running {
            abort.request();
            hurry.request();
            if let Err(panic) = task.await {
                tracing::error!("internal error: {panic}");
            }
        }
    }
}

/// Whether a migration may be cut over now.
///
/// # Errors
/// Why not.
pub(super) fn check(context: &Context, options: &CutoverOptions) -> Result<(), Refusal> {
    let state = context.board.state();
    if context.cutover.is_running() && !options.source_lost {
        return Err(Refusal::wrong_state("a cutover is under way already"));
    }
    match (state, options.source_lost) {
        (State::Live, false) => Ok(()),
        // One that waits for a source that will never come back to be unblocked is ended by it. What is paused or
        // halted is let go on.
        (
            State::Live | State::CatchingUp | State::CuttingOver | State::Paused | State::Halted,
            true,
        ) => Ok(()),
        _ => Err(Refusal::wrong_state(format!("cannot cut over: the state is {state}"))),
    }
}

/// Begins a cutover, which goes on beside the replay.
///
/// # Errors
/// It makes no sense now.
pub(super) fn begin(
    context: &Context,
    options: CutoverOptions,
    stop: &Stop,
) -> Result<(), Refusal> {
    check(context, &options)?;
    let began = WallTime::now();
    let status = CutoverStatus::begun(began, options.verify, options.dry_run);
    context.board.update(|board| board.cutover = Some(status));
    let (abort, hurry) = (stop.child(), stop.child());
    let stops = (abort.clone(), stop.clone(), hurry.clone());
    let cutover = Cutover::new(context.clone(), options, began, stops);
    // On a thread of its own: what compares both sides borrows in ways that no task may be moved with.
    let runtime = tokio::runtime::Handle::current();
    // Held, so that nobody sees it at work before it is known here.
    let mut inner = context.cutover.inner();
    let task = tokio::task::spawn_blocking(move || runtime.block_on(cutover.run()));
    (inner.running, inner.why) = (Some(Running { abort, hurry, task }), None);
    Ok(())
}

/// Gives up the cutover that is under way.
///
/// # Errors
/// There is none, or it is too late.
pub(super) fn abort(context: &Context) -> Result<(), Refusal> {
    if is_decided(&context.records.get()) {
        return Err(Refusal::wrong_state("the cutover is decided: there is no way back"));
    }
    let mut inner = context.cutover.inner();
    match &inner.running {
        Some(running) if !running.task.is_finished() => {
            running.abort.request();
            inner.why = Some("an operator gave it up".to_owned());
            Ok(())
        }
        _ => Err(Refusal::wrong_state("no cutover is under way")),
    }
}

/// Whether the point of no return lies behind.
pub(super) fn is_decided(record: &Record) -> bool {
    record.cutover.as_ref().is_some_and(|cutover| cutover.decided.is_some())
}

/// Whether the state directory holds a cutover that only has to be finished: then the source is not needed any more.
///
/// # Errors
/// The disk, or a damaged file.
pub(super) fn needs_no_source(config: &Config) -> Result<bool, Exit> {
    let record = RecordStore::find(&config.state.directory)?;
    Ok(record.is_some_and(|record| is_decided(&record)))
}

/// Shows what happened, in the status and in the log.
fn note(context: &Context, text: &str) {
    let mut step = CutoverStep::Gating;
    context.board.update(|status| {
        if let Some(cutover) = &mut status.cutover {
            cutover.note(text);
            step = cutover.step;
        }
    });
    events::cutover(step, text);
}

fn show(context: &Context, change: impl FnOnce(&mut CutoverStatus)) {
    context.board.update(|status| {
        if let Some(cutover) = &mut status.cutover {
            change(cutover);
        }
    });
}

/// Shows a cutover that ended without the target taking over.
fn show_given_up(context: &Context, outcome: CutoverOutcome, reason: &str) {
    let record = context.records.get().cutover;
    let may_be_blocked = record.is_some_and(|cutover| cutover.block == WriteBlock::Ours);
    show(context, |cutover| {
        cutover.note(format!("given up: {reason}"));
        (cutover.step, cutover.outcome) = (CutoverStep::Done, Some(outcome));
        cutover.reason = Some(reason.to_owned());
        cutover.blocked = may_be_blocked;
    });
    events::cutover_given_up(reason);
}

/// Lifts a block of ours on the source. How to do it by hand is said if that cannot be done.
async fn lift(source: &Deployment, stop: &Stop) -> Result<(), Interrupted> {
    let mut refused = 0;
    let lifted = loop {
        match until_reached(source.side, stop, || writes::lift_block(source)).await {
            // Whatever it is, applications wait for this: it may pass.
            Err(Stopped::Failed(error))
                if refused < REFUSED_MAX && error.failure != Failure::Privilege =>
            {
                tracing::warn!("{error}");
                refused += 1;
                stop.sleep(LIFT_AGAIN).await?;
            }
            lifted => break lifted,
        }
    };
    if lifted.is_err() {
        tracing::error!(
            "the write block on the source could not be lifted; the next start tries again; by hand: {}",
            writes::LIFT_BY_HAND
        );
    }
    Ok(lifted?)
}

/// Lets applications write to the source again, before anything else of a start: what follows may take long, or fail.
///
/// # Errors
/// The source is not reached, or the disk.
pub(super) async fn lift_left_over(config: &Config) -> Result<(), Exit> {
    let directory = &config.state.directory;
    let Some(mut record) = RecordStore::find(directory)? else { return Ok(()) };
    let Some(cutover) = &mut record.cutover else { return Ok(()) };
    if cutover.after_restart() != AfterRestart::Lifts {
        return Ok(());
    }
    let source = startup::connect(config, Side::Source, "snapsync cutover", CONNECTIONS).await?;
    writes::lift_block(&source).await.map_err(|error| {
        let exit = Exit::at_start(&error);
        let by_hand = writes::LIFT_BY_HAND;
        Exit {
            message: format!("{}; writes to it may be blocked: {by_hand}", exit.message),
            ..exit
        }
    })?;
    tracing::warn!("a cutover was cut short: the write block on the source is lifted");
    cutover.block = WriteBlock::None;
    RecordStore::create(directory, record)?;
    Ok(())
}

/// Puts a start in order: what was not decided is undone.
///
/// # Errors
/// [`Interrupted`].
pub(super) async fn after_restart(context: &Context, stop: &Stop) -> Result<(), Interrupted> {
    let record = context.records.get();
    let Some(cutover) = &record.cutover else { return Ok(()) };
    let began = WallTime::from_ms(cutover.began_ms);
    let mut status = CutoverStatus::begun(began, cutover.verify, false);
    let after = cutover.after_restart();
    if after == AfterRestart::GoesOn {
        (status.step, status.blocked) = (CutoverStep::Restoring, cutover.block == WriteBlock::Ours);
        context.board.update(|board| board.cutover = Some(status));
        return Ok(());
    }
    context.board.update(|board| board.cutover = Some(status));
    // Taken from the mirror, it has not been seen to yet.
    if after == AfterRestart::Lifts {
        lift(&context.source, stop).await?;
    }
    context.records.change(|record| record.cutover = None)?;
    show_given_up(context, CutoverOutcome::Aborted, "the daemon was restarted");
    Ok(())
}

/// Undoes what a cutover could not undo when it ended: the source was away.
///
/// # Errors
/// [`Interrupted`].
pub(super) async fn make_good(context: &Context, stop: &Stop) -> Result<(), Interrupted> {
    let record = context.records.get();
    if context.cutover.is_running() || is_decided(&record) {
        return Ok(());
    }
    undo(context, stop).await
}

/// Waits until a cutover has ended and left something to be undone: by a defect, or because the disk failed. Whatever
/// act goes on beside it has to end then, so that the next one undoes it.
pub(super) async fn left_undone(context: &Context) {
    loop {
        let ended = context.cutover.ended().await;
        let record = context.records.get();
        let is_decided = is_decided(&record);
        if let Err(panic) = &ended {
            tracing::error!("internal error: the cutover failed: {panic}");
            if !is_decided {
                let reason = "an internal error; see the journal";
                show_given_up(context, CutoverOutcome::Aborted, reason);
            }
        }
        if ended.is_err() || (record.cutover.is_some() && !is_decided) {
            return;
        }
    }
}

/// Undoes everything, if it is not decided: the source takes writes, the replay goes on.
async fn undo(context: &Context, within: &Stop) -> Result<(), Interrupted> {
    context.cutover.want(false);
    context.noted.stop();
    let blocking = context.cutover.blocking();
    let mut blocking = blocking.lock().await;
    if let Some(request) = &mut *blocking {
        request.abort.request();
        // Carried out after the block was lifted, it would stay for ever.
        let _answer = (&mut request.task).await;
    }
    *blocking = None;
    drop(blocking);
    let record = context.records.get();
    let Some(cutover) = &record.cutover else { return Ok(()) };
    if cutover.block == WriteBlock::Ours
        && let Err(interrupted) = lift(&context.source, within).await
    {
        match interrupted {
            // The next start lifts it.
            Interrupted::Stop => return Err(interrupted),
            // It was said how to do so by hand; there is no use in trying again.
            _ => note(context, &format!("the block may stand still: {}", writes::LIFT_BY_HAND)),
        }
    }
    // Halted meanwhile, it stays so.
    if matches!(record.phase, Phase::CuttingOver { .. }) {
        context.happen_with(Event::CutoverGivenUp, |record| record.cutover = None)?;
    } else {
        context.records.change(|record| record.cutover = None)?;
    }
    show(context, |cutover| cutover.blocked = false);
    Ok(())
}

/// The end of a daemon whose state cannot be kept.
fn failed(text: impl std::fmt::Display) -> Interrupted {
    Interrupted::Exit(Exit::new(Code::Internal, text.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_end_of_a_cutover_is_noticed_and_a_defect_is_told_from_an_end_in_order() {
        let handover = Handover::default();
        for (fails, expected) in [(false, false), (true, true)] {
            let task = tokio::spawn(async move { assert!(!fails, "a defect") });
            let (abort, hurry) = (Stop::new(), Stop::new());
            handover.inner().running = Some(Running { abort, hurry, task });
            assert_eq!(handover.ended().await.is_err(), expected);
            assert!(!handover.is_running());
        }
        let nothing = tokio::time::timeout(Duration::from_secs(60), handover.ended());
        assert!(nothing.await.is_err(), "nothing is under way");
    }
}
