//! The act of copying: choose the moment, list, make room, create, copy; with the oplog going to the spool meanwhile.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::context::{Context, Interrupted};
use super::phase::Event;
use super::reconcile;
use super::spooling::Spooler;
use crate::catalogue::Catalogue;
use crate::catalogue::repair::RECURS_TIMES;
use crate::config::{Config, OnExistingData};
use crate::copy::{self, Copier, Counters, ProgressStore, prepare};
use crate::exit::{Code, Exit};
use crate::mongo::{Deployment, Error};
use crate::namespace::Namespace;
use crate::position::{OpTime, Ts};
use crate::replay::window::ResumePoint;
use crate::retry::until_reached;
use crate::source::{catalog, start};
use crate::spool::{Range, SpoolError, SpoolLimits, SpoolWriter, free_space_limit};
use crate::state::catalogue::CatalogueStore;
use crate::status::{CopyProgress, Status, StatusBoard, WallTime};
use crate::stop::Stop;
use crate::telemetry::events;

/// How often the progress is shown, and how often it is logged, in rounds of that.
const SHOW_EVERY: Duration = Duration::from_millis(500);
const LOG_EVERY: u32 = 10;
/// How long what the listing saw may take to be committed by the majority, and how often that is looked at.
const LISTED_WITHIN: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Bytes of a segment of the spool.
const SEGMENT_BYTES_MIN: u64 = 1024 * 1024;
const SEGMENT_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Chooses the moment to copy from and what to copy, and makes both durable. Nothing has been written to the target
/// yet.
///
/// # Errors
/// [`Interrupted`]; in the end of existing data in the way, with nothing written.
pub async fn begin(context: &Context, stop: &Stop) -> Result<(), Interrupted> {
    if context.records.get().resume.is_some() {
        return Ok(());
    }
    let source = &context.source;
    let selection = &context.config.sync.selection;
    // The moment first, then the listing: whatever changes in between is told by the oplog.
    let start = until_reached(source.side, stop, || start::choose(source)).await?;
    let list = || catalog::read(source, selection);
    let catalogue = until_reached(source.side, stop, list).await?;
    let names: Vec<Namespace> =
        catalogue.collections.values().map(|collection| collection.source.clone()).collect();
    selection.check_collisions(&names).map_err(|errors| {
        let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
        Interrupted::Exit(Exit::new(Code::Config, errors.join("; ")))
    })?;
    let collections = catalogue.collections.values().map(|collection| collection.target.clone());
    let views = catalogue.views.values().map(|view| view.target.clone());
    make_room(context, &collections.chain(views).collect(), stop).await?;
    context.catalogue.change(|stored| *stored = catalogue);
    context.catalogue.save()?;
    let resume = ResumePoint {
        applied: start.apply_after,
        wall_ms: start.wall_ms,
        read_from: start.read_from,
    };
    context.records.change(|record| record.resume = Some(resume))?;
    Ok(())
}

/// Refuses, or removes, what snapsync did not write.
async fn make_room(
    context: &Context,
    mapped: &BTreeSet<Namespace>,
    stop: &Stop,
) -> Result<(), Interrupted> {
    let target = &context.target;
    let selection = &context.config.sync.selection;
    let look = || prepare::existing(target, selection, mapped);
    let existing = until_reached(target.side, stop, look).await?;
    if existing.is_empty() {
        return Ok(());
    }
    match context.config.target.on_existing_data {
        OnExistingData::Refuse => Err(Interrupted::Exit(existing_data(&existing))),
        OnExistingData::Drop => {
            Ok(prepare::drop_existing(&context.definer, &existing, stop).await?)
        }
    }
}

/// The refusal of a target that is not empty.
#[must_use]
pub fn existing_data(existing: &[crate::mongo::Listed]) -> Exit {
    const NAMED_MAX: usize = 5;
    let names: Vec<String> =
        existing.iter().take(NAMED_MAX).map(|entry| entry.namespace.to_string()).collect();
    let more = existing.len().saturating_sub(NAMED_MAX);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    Exit::new(
        Code::Config,
        format!(
            "the target is not empty: {}{more} hold data that snapsync did not write; empty them, \
             leave them out of sync.include, or set target.on_existing_data = \"drop\"",
            names.join(", ")
        ),
    )
}

/// The source's oplog ended before what was to be read next: what was copied is dropped, and copied again from a new
/// moment on.
///
/// # Errors
/// [`Interrupted`]; halted if that happens too often.
pub async fn start_over(context: &Context, reason: &str, stop: &Stop) -> Result<(), Interrupted> {
    const EVERYTHING: &str = "*";
    let everything = [Namespace::new(EVERYTHING, EVERYTHING)];
    let now = WallTime::now().as_ms();
    let recurs = context.catalogue.change(|catalogue| catalogue.repair.note(&everything, now));
    if !recurs.is_empty() {
        return Err(Interrupted::Halt {
            reason: format!("the copy was begun {RECURS_TIMES} times within an hour: {reason}"),
            remedy:
                "give the source a larger oplog, or the spool more disk, then `snapsync resume`"
                    .into(),
        });
    }
    tracing::error!(reason, "the copy is begun anew: {reason}");
    let made: Vec<_> = context.catalogue.read().collections.values().cloned().collect();
    for collection in made {
        if let Some(uuid) = collection.target_uuid {
            context.definer.drop_collection(&collection.target, uuid, stop).await?;
        }
    }
    let views: Vec<_> = context.catalogue.read().views.values().cloned().collect();
    for view in views {
        context.definer.drop_view(&view.target, stop).await?;
    }
    context.catalogue.change(|catalogue| {
        let repair = std::mem::take(&mut catalogue.repair);
        *catalogue = Catalogue { repair, ..Catalogue::default() };
    });
    context.catalogue.save()?;
    context.records.change(|record| record.resume = None)?;
    Ok(())
}

/// Opens the spool. What an earlier run left that does not hold `read_from` is of no use and is removed.
///
/// # Errors
/// The disk.
pub fn open_spool(context: &Context, read_from: OpTime) -> Result<SpoolWriter, Interrupted> {
    tokio::task::block_in_place(|| {
        let (mut writer, held) = open_as_it_is(&context.config)?;
        if held.is_some_and(|held| held.first > read_from || held.last < read_from) {
            writer.remove_all()?;
        }
        Ok(writer)
    })
}

/// Whether the spool holds this entry.
///
/// # Errors
/// The disk.
pub fn is_spooled(context: &Context, entry: OpTime) -> Result<bool, Interrupted> {
    Ok(spooled_from(&context.config, entry)?.is_some())
}

/// The last entry that the spool holds, if it reaches back to this one.
///
/// # Errors
/// The disk.
pub fn spooled_from(config: &Config, entry: OpTime) -> Result<Option<OpTime>, SpoolError> {
    let (_, held) = tokio::task::block_in_place(|| open_as_it_is(config))?;
    Ok(held.filter(|held| held.first <= entry && entry <= held.last).map(|held| held.last))
}

fn open_as_it_is(config: &Config) -> Result<(SpoolWriter, Option<Range>), SpoolError> {
    let directory = config.state.directory.join(SPOOL_FOLDER);
    let configured = config.spool.max_bytes.unwrap_or(0);
    crate::durable::create_dir_all_durable(&directory).map_err(SpoolError::from)?;
    let max_bytes = free_space_limit(&directory, configured).map_err(SpoolError::from)?;
    // Space is given back in segments, so that a small spool has small ones.
    let segment_bytes_max = (max_bytes / 4).clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX);
    let limits = SpoolLimits { segment_bytes_max, ..SpoolLimits::new(max_bytes) };
    SpoolWriter::open(&directory, limits)
}

/// Begins to spool the oplog, from where the spool of an earlier run ends or from the resume point.
///
/// # Errors
/// The disk.
pub fn spool(context: &Context, stop: &Stop) -> Result<Spooler, Interrupted> {
    let from = context.records.get().resume.unwrap_or_default().read_from;
    let writer = open_spool(context, from)?;
    Ok(Spooler::start(context.source.clone(), writer, from, stop))
}

impl From<SpoolError> for Interrupted {
    fn from(error: SpoolError) -> Self {
        Self::Exit(Exit::new(Code::Disk, error.to_string()))
    }
}

/// Copies everything and moves on to catching up.
///
/// # Errors
/// [`Interrupted`]: what has been copied stays copied.
pub async fn copy(context: &Context, spooler: &Spooler, stop: &Stop) -> Result<(), Interrupted> {
    let began = Instant::now();
    let copied = open_progress(context)?;
    reconcile::names_of_copy(context, &copied, stop).await?;
    prepare::create_all(&context.definer, &context.catalogue, stop).await?;
    let copier = copier(context, copied, stop).await?;
    let counters = copier.counters.clone();
    let collections = context.catalogue.read().collections.len();
    events::copy_started(collections);
    let copy_stop = stop.child();
    let board = context.board.clone();
    let showing = show(board, counters.clone(), began, copy_stop.child(), |status, progress| {
        status.copy = progress;
        status.totals.documents_copied = progress.documents;
        status.totals.bytes_copied = progress.bytes;
    });
    let showing = tokio::spawn(showing);
    let mut run = std::pin::pin!(copier.run(&copy_stop));
    let outcome = tokio::select! {
        outcome = &mut run => outcome.map_err(Interrupted::from),
        failure = spool_failure(spooler) => {
            // The copy ends its batches in hand; only then is it over.
            copy_stop.request();
            let _interrupted = run.await;
            Err(failure)
        }
    };
    copy_stop.request();
    if let Err(panic) = showing.await {
        tracing::error!("internal error: {panic}");
    }
    outcome?;
    // Nothing that was read lies after this, not even if a member was elected just now.
    let source = &context.source;
    let consistent_from = until_reached(source.side, stop, || start::end(source)).await?;
    let progress = progress(&counters, began, true);
    context.board.update(|status| status.copy = progress);
    events::copy_finished(&progress, began.elapsed());
    context.happen(Event::Copied { consistent_from })?;
    Ok(())
}

/// What copies with the record and the catalogue of this context.
///
/// # Errors
/// [`Interrupted`].
pub async fn copier(
    context: &Context,
    progress: ProgressStore,
    stop: &Stop,
) -> Result<Copier, Interrupted> {
    let after = after_the_listing(&context.source, stop).await?;
    Ok(Copier {
        source: context.source.clone(),
        definer: context.definer.clone(),
        writers: context.writers.clone(),
        catalogue: context.catalogue.clone(),
        after,
        workers: context.config.copy_workers(),
        part_bytes_min: copy::PART_BYTES_MIN,
        memory_bytes_max: context.tuning.get().memory_bytes_max,
        pace: context.pace.clone(),
        refusals_max: u32::MAX,
        progress: Arc::new(progress),
        counters: Arc::new(Counters::default()),
    })
}

/// The optime that is read at or after. Not the start optime, but what the listing saw: of a collection that got its
/// name since, a member that lags has older documents under a name that may not be selected, and changes under that
/// name are not replayed. What the primary has written may wait behind a hole in the oplog for as long as somebody's
/// write takes, so it is not waited for without end.
async fn after_the_listing(source: &Deployment, stop: &Stop) -> Result<Ts, Interrupted> {
    let listed = until_reached(source.side, stop, || start::newest(source)).await?;
    let began = Instant::now();
    loop {
        let committed = until_reached(source.side, stop, || start::majority_optime(source));
        let (committed, _wall) = committed.await?;
        if committed.ts >= listed || began.elapsed() >= LISTED_WITHIN {
            return Ok(committed.ts);
        }
        stop.sleep(LOOK_AGAIN).await?;
    }
}

fn open_progress(context: &Context) -> Result<ProgressStore, Interrupted> {
    let after = context.records.get().resume.unwrap_or_default().applied.ts;
    let path = context.config.state.directory.join(PROGRESS_FILE);
    ProgressStore::open(path, after).map_err(|error: Error| Interrupted::from(error))
}

/// Waits until the spool fails, if it ever does; what that means.
pub async fn spool_failure(spooler: &Spooler) -> Interrupted {
    loop {
        tokio::time::sleep(SHOW_EVERY).await;
        if let Err(error) = spooler.check() {
            return super::following::feed_failure(&error);
        }
    }
}

/// Shows how far a copy is until it is stopped, and logs it every few seconds.
pub async fn show(
    board: StatusBoard,
    counters: Arc<Counters>,
    began: Instant,
    stop: Stop,
    put: impl Fn(&mut Status, CopyProgress),
) {
    let mut round = 0_u32;
    while stop.sleep(SHOW_EVERY).await.is_ok() {
        let progress = progress(&counters, began, false);
        board.update(|status| put(status, progress));
        round += 1;
        if round.is_multiple_of(LOG_EVERY) {
            events::copy_progress(&progress);
        }
    }
}

/// How far a copy has come.
#[must_use]
pub fn progress(counters: &Counters, began: Instant, complete: bool) -> CopyProgress {
    let (copied, total) = (counters.copied(), counters.total());
    let elapsed = began.elapsed().as_secs_f64();
    let left = total.bytes.saturating_sub(copied.bytes);
    let since = counters.bytes_of_this_run();
    // The first few documents say nothing about the speed.
    let is_telling = since >= ETA_BYTES_MIN.min(total.bytes / 100).max(1);
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an estimate for people; `as` saturates"
    )]
    let eta = is_telling.then(|| (left as f64 * elapsed / since as f64) as u64);
    CopyProgress {
        documents: copied.documents,
        documents_total: total.documents.max(copied.documents),
        bytes: copied.bytes,
        bytes_total: total.bytes.max(copied.bytes),
        eta_seconds: if complete { Some(0) } else { eta },
        complete,
    }
}

/// So many bytes, or a hundredth of all, are copied before the time to go is reckoned.
const ETA_BYTES_MIN: u64 = 4 * 1024 * 1024;

/// The catalogue's file in the state directory.
pub const CATALOGUE_FILE: &str = "catalogue.json";
/// The file for the progress of the copy.
pub const PROGRESS_FILE: &str = "copy.json";
/// The folder of the spool.
pub const SPOOL_FOLDER: &str = "spool";

/// Where a catalogue is kept in the state directory.
///
/// # Errors
/// A damaged file.
pub fn open_catalogue(directory: &std::path::Path) -> Result<CatalogueStore, Exit> {
    Ok(CatalogueStore::open(directory.join(CATALOGUE_FILE))?)
}

/// An empty catalogue, to be filled and kept in the place of the one that is there.
#[must_use]
pub fn open_catalogue_anew(directory: &std::path::Path) -> CatalogueStore {
    CatalogueStore::empty(directory.join(CATALOGUE_FILE))
}
