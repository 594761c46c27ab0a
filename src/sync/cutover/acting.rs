//! From the question to the decision: everything that can be given up. A task beside the replay, which goes on until it
//! is asked to stand still.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use super::plan::{CutoverRecord, Decided, GateFacts, gate, named};
use super::proof::{self, Proven};
use super::{again, hooks, is_decided, note, show, show_given_up, undo};
use crate::http::control::CutoverOptions;
use crate::mongo::Error;
use crate::position::Ts;
use crate::replay::window::ResumePoint;
use crate::retry::{Stopped, until_reached};
use crate::source::{start, writes};
use crate::state::Audit;
use crate::status::{CutoverOutcome, CutoverStep, State, VerifyDepth, WallTime};
use crate::stop::{Stop, StopRequested};
use crate::sync::context::{Context, Interrupted};
use crate::sync::phase::{Event, Phase};

/// The lag at which a cutover begins to act, at the most.
const LAG_MAX: Duration = Duration::from_secs(5);
/// How long what has to hold is waited for.
const GATE_WITHIN: Duration = Duration::from_secs(60);
/// How often something that is waited for is looked at: what the replay does, and what a server says.
const LOOK_EVERY: Duration = Duration::from_millis(10);
pub(super) const ASK_EVERY: Duration = Duration::from_millis(200);
/// How long undoing may take once the daemon is to stop, or to do something else; the next act, or the next start, sees
/// to the rest.
const UNDO_WITHIN: Duration = Duration::from_secs(8);

/// A request to block writes, which goes on by itself.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) task: JoinHandle<Result<(), Stopped<Error>>>,
    /// Requested when nobody wants the block any more.
    pub(super) abort: Stop,
}

/// The step under way and since when, and those that are over.
type Steps = (Option<(CutoverStep, Instant)>, Vec<(CutoverStep, Duration)>);

/// A cutover under way.
#[derive(Debug)]
pub(super) struct Cutover {
    pub(super) context: Context,
    pub(super) options: CutoverOptions,
    pub(super) began: WallTime,
    /// Requested when it is given up, or the daemon stops.
    pub(super) abort: Stop,
    /// Requested when the daemon stops.
    stop: Stop,
    /// Requested when undoing may not be waited for as long as it takes.
    hurry: Stop,
    steps: Mutex<Steps>,
}

/// Why a cutover ended before it was decided.
#[derive(Debug)]
pub(super) enum Failed {
    /// It was given up, for this reason.
    GivenUp(String),
    /// Source and target differ.
    Different(Vec<String>),
    /// The daemon stops.
    Stop,
}

impl From<Stopped<Error>> for Failed {
    fn from(stopped: Stopped<Error>) -> Self {
        match stopped {
            Stopped::Stop => Self::Stop,
            Stopped::Failed(error) => Self::GivenUp(error.to_string()),
        }
    }
}

impl From<StopRequested> for Failed {
    fn from(_: StopRequested) -> Self {
        Self::Stop
    }
}

impl From<Interrupted> for Failed {
    fn from(interrupted: Interrupted) -> Self {
        match interrupted {
            Interrupted::Stop | Interrupted::Again => Self::Stop,
            Interrupted::Exit(exit) => Self::GivenUp(exit.message),
            Interrupted::Halt { reason, .. } => Self::GivenUp(reason),
            Interrupted::Diverged { what, .. } | Interrupted::Lost(what) => Self::GivenUp(what),
        }
    }
}

impl From<crate::state::StateError> for Failed {
    fn from(error: crate::state::StateError) -> Self {
        Self::GivenUp(error.to_string())
    }
}

impl Cutover {
    pub(super) fn new(
        context: Context,
        options: CutoverOptions,
        began: WallTime,
        (abort, stop, hurry): (Stop, Stop, Stop),
    ) -> Self {
        Self { context, options, began, abort, stop, hurry, steps: Mutex::default() }
    }

    /// Carries it out up to the decision, or undoes it.
    pub(super) async fn run(self) {
        let ended = Box::pin(self.until_decided()).await;
        self.context.noted.stop();
        let Err(failed) = ended else { return };
        let failed = match failed {
            // Asked to end, but the daemon goes on.
            Failed::Stop if !self.stop.is_requested() => {
                let why = self.context.cutover.why();
                Failed::GivenUp(why.unwrap_or_else(|| "it was asked to end".to_owned()))
            }
            failed => failed,
        };
        self.give_up(&failed).await;
    }

    async fn until_decided(&self) -> Result<(), Failed> {
        self.audit("cutover asked for");
        self.enter(CutoverStep::Gating);
        self.unless_aborted(None, self.gate()).await?;
        let mut before = self.unless_aborted(None, proof::before(self)).await?;
        if self.options.verify != VerifyDepth::None {
            // That may have taken hours.
            self.unless_aborted(None, self.gate()).await?;
            self.unless_aborted(None, again::catch_up(self, &mut before)).await?;
            self.unless_aborted(None, self.gate()).await?;
        }
        if self.options.dry_run {
            show(&self.context, |cutover| {
                (cutover.step, cutover.outcome) = (CutoverStep::Done, Some(CutoverOutcome::Ready));
                cutover.note("ready: a cutover could begin now; nothing was done");
            });
            self.audit("cutover rehearsed");
            return Ok(());
        }
        let deadline = tokio::time::Instant::now() + self.options.timeout;
        let record = CutoverRecord::new(self.began, WallTime::now(), &self.options);
        let gives_up_at = WallTime::from_ms(record.deadline_ms);
        show(&self.context, |cutover| cutover.deadline = Some(gives_up_at));
        // On disk before the first act.
        let kept = |kept: &mut crate::sync::record::Record| kept.cutover = Some(Box::new(record));
        self.context.happen_with(Event::CutoverBegan, kept)?;
        self.unless_aborted(Some(deadline), Box::pin(self.act(before))).await
    }

    /// Carries something out, unless it is given up, or takes too long.
    async fn unless_aborted<T>(
        &self,
        deadline: Option<tokio::time::Instant>,
        doing: impl Future<Output = Result<T, Failed>>,
    ) -> Result<T, Failed> {
        let late = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            done = doing => done,
            () = self.abort.requested() => Err(Failed::Stop),
            () = late => {
                let seconds = self.options.timeout.as_secs_f64();
                let step = self.step().map_or("beginning", CutoverStep::name);
                Err(Failed::GivenUp(format!("it was not decided within {seconds} s, but still {step}")))
            }
        }
    }

    fn audit(&self, event: &str) {
        let detail = serde_json::json!({
            "verify": self.options.verify,
            "block_source_writes": self.options.block_source_writes,
            "dry_run": self.options.dry_run,
        });
        let user = self.options.requested_by().or(Some("operator"));
        let audit = Audit::open(&self.context.config.state.directory);
        if let Err(error) = audit.and_then(|audit| audit.append(event, user, detail)) {
            tracing::warn!("{error}");
        }
    }

    fn step(&self) -> Option<CutoverStep> {
        let steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        steps.0.map(|(step, _)| step)
    }

    /// Begins the next step.
    pub(super) fn enter(&self, step: CutoverStep) {
        {
            let mut steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((before, since)) = steps.0.replace((step, Instant::now())) {
                steps.1.push((before, since.elapsed()));
            }
        }
        show(&self.context, |cutover| (cutover.step, cutover.reason) = (step, None));
    }

    pub(super) fn note(&self, text: &str) {
        note(&self.context, text);
    }

    pub(super) fn wait_for(&self, what: impl Into<String>) {
        let what = what.into();
        show(&self.context, |cutover| cutover.reason = Some(what));
    }

    /// Waits until everything holds that has to.
    pub(super) async fn gate(&self) -> Result<(), Failed> {
        if self.options.block_source_writes {
            self.can_block().await?;
        }
        let began = Instant::now();
        loop {
            let missing = gate(&self.facts());
            if missing.is_empty() {
                return Ok(());
            }
            let missing = missing.join("; ");
            if began.elapsed() >= GATE_WITHIN {
                return Err(Failed::GivenUp(format!("not ready: {missing}")));
            }
            self.wait_for(missing);
            self.abort.sleep(ASK_EVERY).await?;
        }
    }

    fn facts(&self) -> GateFacts {
        let context = &self.context;
        let status = context.board.read();
        let (copying, indexes_built) = {
            let catalogue = context.catalogue.read();
            let mut copying = catalogue.copying();
            if copying.is_empty() && catalogue.repair.is_busy() {
                copying.push("some collections".to_owned());
            }
            (copying, catalogue.indexes_built)
        };
        let differing = status.deltas.iter().filter(|delta| delta.exact && delta.delta != 0);
        let lag_seconds_max = (context.tuning.get().max_lag / 2).min(LAG_MAX).as_secs_f64();
        GateFacts {
            state: status.state,
            lag_seconds: status.lag_seconds,
            lag_seconds_max,
            copying,
            indexes_built,
            settled: context.settled.load(std::sync::atomic::Ordering::Relaxed),
            differing: differing.map(|delta| delta.collection.clone()).collect(),
        }
    }

    async fn act(&self, before: Proven) -> Result<(), Failed> {
        let mut proven = before;
        let mut asked_others = false;
        loop {
            self.enter(CutoverStep::Stopping);
            self.stop_writes(&mut proven).await?;
            self.enter(CutoverStep::Draining);
            self.drain().await?;
            self.enter(CutoverStep::Verifying);
            let applied = proof::after(self, &mut proven).await?;
            self.enter(CutoverStep::Deciding);
            if !asked_others {
                hooks::run(self).await?;
                self.postponed().await?;
                asked_others = true;
            }
            if self.decide(&proven, applied).await? {
                return Ok(());
            }
            self.context.cutover.want(false);
            self.note(
                "something was written to the source meanwhile: once more from the stop of writes",
            );
        }
    }

    /// Whatever ends the migration's following ends the cutover.
    pub(super) fn still_follows(&self) -> Result<(), Failed> {
        let record = self.context.records.get();
        match record.phase {
            Phase::CuttingOver { .. } | Phase::Live { .. } => {}
            Phase::Halted { reason, .. } => {
                return Err(Failed::GivenUp(format!("the migration is halted: {reason}")));
            }
            phase => {
                return Err(Failed::GivenUp(format!("the state became {}", phase.state())));
            }
        }
        let copying = self.context.catalogue.read().copying();
        if copying.is_empty() {
            return Ok(());
        }
        Err(Failed::Different(vec![format!("{} have diverged", named(&copying))]))
    }

    pub(super) fn keep(&self, change: impl FnOnce(&mut CutoverRecord)) -> Result<(), Failed> {
        self.context.records.change(|record| {
            if let Some(cutover) = &mut record.cutover {
                change(cutover);
            }
        })?;
        Ok(())
    }

    /// Waits until the replay has passed everything that the primary has written by now, the block among it. What it
    /// passes is committed by the majority.
    async fn drain(&self) -> Result<(), Failed> {
        let source = &self.context.source;
        let stop_at = until_reached(source.side, &self.abort, || start::newest(source)).await?;
        self.note(&format!("replaying through {stop_at}"));
        self.passed(stop_at).await
    }

    async fn passed(&self, ts: Ts) -> Result<(), Failed> {
        while self.context.records.get().resume.is_none_or(|resume| resume.applied.ts < ts) {
            self.still_follows()?;
            self.abort.sleep(LOOK_EVERY).await?;
        }
        Ok(())
    }

    /// Waits while the postpone file is there.
    async fn postponed(&self) -> Result<(), Failed> {
        let Some(file) = &self.context.config.cutover.postpone_file else { return Ok(()) };
        let mut told = false;
        while tokio::fs::try_exists(file).await.unwrap_or(true) {
            if !told {
                self.note(&format!("postponed as long as {} is there", file.display()));
                self.wait_for(format!("{} is there", file.display()));
                told = true;
            }
            self.still_follows()?;
            self.abort.sleep(ASK_EVERY).await?;
        }
        Ok(())
    }

    /// Lets the replay stand still at its next window end, and says where that is.
    pub(super) async fn stand_still(&self) -> Result<ResumePoint, Failed> {
        self.context.cutover.want(true);
        loop {
            self.still_follows()?;
            if let Some(at) = self.context.cutover.stands_at() {
                return Ok(at);
            }
            self.abort.sleep(LOOK_EVERY).await?;
        }
    }

    /// Lets the replay stand still, looks at the source for the last time, and decides. False if something was written
    /// since it was compared.
    async fn decide(&self, proven: &Proven, applied: u64) -> Result<bool, Failed> {
        let context = &self.context;
        let at = self.stand_still().await?;
        let source = &context.source;
        let look = || writes::look(source, at.applied.ts, &context.config.sync.selection);
        self.still_blocked().await?;
        let found = until_reached(source.side, &self.abort, look).await?;
        self.still_blocked().await?;
        let record = context.records.get();
        let changed =
            record.totals.entries_applied != applied && self.options.verify != VerifyDepth::None;
        if found.wrote.is_some() || changed {
            return Ok(false);
        }
        self.still_follows()?;
        if record.consistent_at() != Some(at.applied.ts) || is_decided(&record) {
            return Err(Failed::GivenUp("the target does not stand at one moment".to_owned()));
        }
        let now = WallTime::now();
        let decided = Decided {
            at_ms: now.as_ms(),
            last: at.applied,
            last_wall_ms: at.wall_ms,
            proof: proven.proof,
        };
        let took = {
            let steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
            let last = steps.0.map(|(step, since)| (step, since.elapsed()));
            steps.1.iter().copied().chain(last).collect::<Vec<_>>()
        };
        context.cutover.has_counted(proven.counted.clone());
        // Nothing is waited for from here to the end of the task: it is either decided or undone.
        context.happen_with(Event::CutoverDecided, |record| {
            if let Some(cutover) = &mut record.cutover {
                took.into_iter().for_each(|(step, elapsed)| cutover.took(step, elapsed));
                cutover.decided = Some(decided);
            }
        })?;
        self.note(&format!("decided: the target takes over at {}", at.applied.ts));
        Ok(true)
    }

    /// Undoes what was done, and says why.
    async fn give_up(&self, failed: &Failed) {
        let within = Stop::new();
        let late = async {
            self.hurry.requested().await;
            tokio::time::sleep(UNDO_WITHIN).await;
            within.request();
        };
        let (outcome, reason) = match failed {
            Failed::GivenUp(reason) => (CutoverOutcome::Aborted, reason.clone()),
            Failed::Different(what) => {
                let different = what.clone();
                show(&self.context, |cutover| cutover.different = different);
                (CutoverOutcome::Different, format!("source and target differ: {}", named(what)))
            }
            Failed::Stop => (CutoverOutcome::Aborted, "the daemon stops".to_owned()),
        };
        if self.context.board.state() == State::CuttingOver {
            // That may have to wait for the source.
            self.note(&format!("undoing it: {reason}"));
        }
        let undone = tokio::select! {
            undone = undo(&self.context, &within) => undone,
            () = late => Err(Interrupted::Stop),
        };
        match undone {
            Ok(()) => show_given_up(&self.context, outcome, &reason),
            Err(error) => {
                let reason = format!("{reason}; undoing it failed ({error:?}) and is tried again");
                show_given_up(&self.context, outcome, &reason);
            }
        }
        self.audit("cutover given up");
        if self.context.board.state() == State::CuttingOver {
            tracing::error!("the cutover was given up, but that could not be made durable");
        }
    }
}
