//! Copying some collections again while everything else is followed: the way in which a divergence is mended.
//!
//! A *run* takes collections that are held and wait, so many at a time. It is a small migration of its own, with its
//! own record and catalogue in the folder `resync` of the state directory: a moment to begin with, a copy into staging
//! collections, a replay of what happened since from the spool, indexes. The main replay leaves the contents of these
//! collections alone meanwhile. When the run has caught up, both replays stand at the same window end, and there the
//! staging collections take their places ([`place`]); what they replace is kept for a while ([`kept`]).
//!
//! Renames and drops are carried out by the main replay alone, on what is there; the run looks up where a collection
//! belongs only when it puts it there. After a kill the run goes on where its record says; if its files are not there
//! or the oplog does not reach back to its beginning any more, it is given up and begun again.

mod begin;
mod carry;
pub mod kept;
pub mod lost;
mod place;

pub use begin::lacking_room;
pub(crate) use begin::stays_in_place;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::{JoinError, JoinHandle};

use self::begin::Prepared;
use super::context::{Context, Interrupted};
use super::copying;
use super::record::RecordStore;
use super::track::Track;
use crate::exit::{Code, Exit};
use crate::position::{OpTime, Ts};
use crate::replay::window::ResumePoint;
use crate::spool::SpoolReader;
use crate::stop::Stop;

/// How long to wait before looking again for collections that the source did not list.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// The run under way, if there is one.
#[derive(Debug, Default)]
pub struct Resync {
    preparing: Option<Preparing>,
    running: Option<Running>,
    caught_up: Option<CaughtUp>,
    not_before: Option<Instant>,
}

/// Finding out what a run is to copy.
#[derive(Debug)]
struct Preparing {
    task: JoinHandle<Result<Option<Prepared>, Interrupted>>,
    /// The run will read nothing before this.
    keeps: Ts,
}

/// The part of a run that goes on beside the main replay.
#[derive(Debug)]
struct Running {
    task: JoinHandle<Result<CaughtUp, Interrupted>>,
    records: Arc<RecordStore>,
    stop: Stop,
}

/// A run that has caught up with the main replay, about.
#[derive(Debug)]
struct CaughtUp {
    track: Track,
    reader: SpoolReader,
}

/// What follows from a look at the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing changed.
    AsBefore,
    /// Collections took their places, or a run began: another scope holds from here on.
    Changed,
}

/// What a run works with: the main context with the run's own record and catalogue.
///
/// # Errors
/// The disk.
fn context_of_run(main: &Context) -> Result<Context, Interrupted> {
    let folder = folder(main);
    crate::durable::create_dir_all_durable(&folder)
        .map_err(|error| Exit::new(Code::Disk, error.to_string()))?;
    let fresh = || main.records.get();
    let mut context = main.clone();
    context.records = Arc::new(RecordStore::open(&folder, fresh)?);
    context.catalogue = Arc::new(copying::open_catalogue(&folder)?);
    Ok(context)
}

/// The folder for the files of a run, in the state directory.
pub const FOLDER: &str = "resync";

fn folder(main: &Context) -> PathBuf {
    main.config.state.directory.join(FOLDER)
}

/// Removes the files of a run.
fn remove_files(main: &Context) -> Result<(), Interrupted> {
    match std::fs::remove_dir_all(folder(main)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            let text = format!("cannot remove the files of a resync: {error}");
            Err(Interrupted::Exit(Exit::new(Code::Disk, text)))
        }
        _ => Ok(()),
    }
}

/// A run that found its own copies changed by somebody else cannot go on: it is given up, and begun again.
fn broken(main: &Context, interrupted: Interrupted) -> Interrupted {
    let Interrupted::Diverged { what, .. } = interrupted else { return interrupted };
    tracing::warn!("a resync is given up: {what}");
    main.catalogue.change(|catalogue| catalogue.repair.break_run());
    match main.catalogue.save() {
        Ok(()) => Interrupted::Again,
        Err(error) => error.into(),
    }
}

/// Where the run that was under way before a restart reads from; `None` if there is none that can go on.
///
/// # Errors
/// The disk.
pub fn reads_from(main: &Context) -> Result<Option<OpTime>, Interrupted> {
    let run = main.catalogue.read().repair.run.clone();
    let Some(run) = run else { return Ok(None) };
    if !folder(main).join("catalogue.json").exists() {
        return Ok(None);
    }
    let record = context_of_run(main)?.records.get();
    let resume = record.resume.filter(|_| record.instance == run.id);
    Ok(resume.map(|resume| resume.read_from))
}

/// Finishes what a kill left half done: both replays stood at the same window end, and still do.
///
/// # Errors
/// [`Interrupted`].
pub async fn finish_swap(main: &Context, stop: &Stop) -> Result<(), Interrupted> {
    let swapping_at = main.catalogue.read().repair.run.as_ref().and_then(|run| run.swapping_at);
    if let Some(at) = swapping_at {
        main.clear_cut_short(stop).await?;
        let placed = place::all(main, &context_of_run(main)?, at, stop).await;
        match placed.map_err(|interrupted| broken(main, interrupted)) {
            // Given up rather than tried again and again.
            Err(Interrupted::Again) => give_up(main, stop).await?,
            placed => placed?,
        }
    }
    // Files of a run that is over, if any.
    if main.catalogue.read().repair.run.is_none() { remove_files(main) } else { Ok(()) }
}

/// Gives the run up: its staging collections go, and what it copied waits for the next one.
///
/// # Errors
/// [`Interrupted`].
pub async fn give_up(main: &Context, stop: &Stop) -> Result<(), Interrupted> {
    if folder(main).join("catalogue.json").exists() {
        let run = context_of_run(main)?;
        super::reconcile::names(&run, stop).await?;
        let staged: Vec<_> = run.catalogue.read().collections.values().cloned().collect();
        for collection in staged {
            let uuid = match collection.target_uuid {
                // Made, perhaps, and not noted any more. The name is of this run alone, unless it is the place itself.
                None if !begin::stays_in_place(&collection.target) => {
                    main.definer.find(&collection.target, stop).await?.and_then(|found| found.uuid)
                }
                noted => noted,
            };
            if let Some(uuid) = uuid {
                main.definer.drop_collection(&collection.target, uuid, stop).await?;
            }
        }
    }
    main.catalogue.change(|catalogue| catalogue.repair.end_run());
    main.catalogue.save()?;
    remove_files(main)
}

impl Resync {
    /// Takes up the run that was under way before a restart, reading from the spool.
    ///
    /// # Errors
    /// The disk.
    pub fn take_up(
        &mut self,
        main: &Context,
        spool: &SpoolReader,
        stop: &Stop,
    ) -> Result<(), Interrupted> {
        if main.catalogue.read().repair.run.is_none() {
            return Ok(());
        }
        self.start(main, spool, stop)
    }

    fn start(
        &mut self,
        main: &Context,
        spool: &SpoolReader,
        stop: &Stop,
    ) -> Result<(), Interrupted> {
        let run = context_of_run(main)?;
        let records = run.records.clone();
        let from = records.get().resume.unwrap_or_default().read_from.ts;
        let reader = spool.another(from.just_before());
        let stop = stop.child();
        let task = tokio::spawn(carry::carry(main.clone(), run, reader, stop.clone()));
        self.running = Some(Running { task, records, stop });
        Ok(())
    }

    /// Whether a run is being prepared, which will read from the spool.
    #[must_use]
    pub fn is_preparing(&self) -> bool {
        self.preparing.is_some()
    }

    /// The spool has to keep everything after this, as far as a run needs it.
    #[must_use]
    pub fn keeps(&self, main: Ts) -> Ts {
        let read_from = |resume: ResumePoint| resume.read_from.ts;
        let running = self.running.as_ref().map(|running| running.records.get());
        let caught_up = self.caught_up.as_ref().map(|run| run.track.context.records.get());
        let record = running.or(caught_up).and_then(|record| record.resume);
        let preparing = self.preparing.as_ref().map(|preparing| preparing.keeps);
        record.map(read_from).or(preparing).map_or(main, |needed| main.min(needed))
    }

    /// Looks after the run. The main replay stands at a window end meanwhile.
    ///
    /// # Errors
    /// [`Interrupted`].
    pub async fn at_window_end(
        &mut self,
        main: &Context,
        resume: ResumePoint,
        spool: &SpoolReader,
        stop: &Stop,
    ) -> Result<Outcome, Interrupted> {
        let (at, keeps) = (resume.applied, resume.read_from.ts);
        if self.running.as_ref().is_some_and(|running| running.task.is_finished()) {
            let joined = self.joined().await;
            self.caught_up = joined.map_err(|interrupted| broken(main, interrupted))?;
        }
        if self.caught_up.as_ref().is_some_and(|run| run.track.resume().applied.ts <= at.ts) {
            if let Some(CaughtUp { track, reader }) = self.caught_up.take() {
                let run = carry::to_the_end(track, reader, at.ts, stop).await;
                let run = run.map_err(|interrupted| broken(main, interrupted))?;
                let placed = place::all(main, &run, at.ts, stop).await;
                placed.map_err(|interrupted| broken(main, interrupted))?;
                remove_files(main)?;
            }
            return Ok(Outcome::Changed);
        }
        if self.running.is_some() || self.caught_up.is_some() {
            return Ok(Outcome::AsBefore);
        }
        self.prepare(main, keeps, spool, stop).await
    }

    /// Begins the next run, if anything waits for one.
    async fn prepare(
        &mut self,
        main: &Context,
        keeps: Ts,
        spool: &SpoolReader,
        stop: &Stop,
    ) -> Result<Outcome, Interrupted> {
        if let Some(preparing) = self.preparing.take_if(|preparing| preparing.task.is_finished()) {
            let Some(prepared) = ended(preparing.task.await)? else {
                // Not listed on the source: what became of them is about to be replayed.
                self.not_before = Some(Instant::now() + LOOK_AGAIN);
                return Ok(Outcome::AsBefore);
            };
            if !prepared.is_wanted(main) {
                return Ok(Outcome::AsBefore);
            }
            begin::note(main, prepared)?;
            self.start(main, spool, stop)?;
            return Ok(Outcome::Changed);
        }
        let due = self.not_before.is_none_or(|at| Instant::now() >= at);
        if self.preparing.is_none() && due && !main.catalogue.read().repair.held.is_empty() {
            let task = tokio::spawn(begin::prepare(main.clone(), stop.clone()));
            self.preparing = Some(Preparing { task, keeps });
        }
        Ok(Outcome::AsBefore)
    }

    async fn joined(&mut self) -> Result<Option<CaughtUp>, Interrupted> {
        let Some(running) = self.running.take() else { return Ok(None) };
        ended(running.task.await).map(Some)
    }

    /// Ends what goes on beside the main replay, and waits for it: nothing of it lands afterwards.
    pub async fn stop(&mut self) {
        if let Some(preparing) = self.preparing.take() {
            // It only reads.
            preparing.task.abort();
        }
        if let Some(running) = self.running.take() {
            running.stop.request();
            // Why it ended does not matter any more: its record says where it goes on.
            let _ended = running.task.await;
        }
        self.caught_up = None;
    }
}

/// What a task ended with.
///
/// # Errors
/// Its own, or that it panicked.
pub(super) fn ended<T>(
    joined: Result<Result<T, Interrupted>, JoinError>,
) -> Result<T, Interrupted> {
    joined.unwrap_or_else(|panic| {
        let text = format!("internal error: {panic}");
        Err(Interrupted::Exit(Exit::new(Code::Internal, text)))
    })
}
