//! The part of a run that goes on beside the main replay: the copy, the replay of what happened since, the indexes.

use std::time::{Duration, Instant};

use bson::{RawDocument, RawDocumentBuf};

use super::stays_in_place;
use super::{CaughtUp, place};
use crate::copy::{Copier, ProgressStore, prepare};
use crate::mongo::Side;
use crate::namespace::Namespace;
use crate::position::Ts;
use crate::replay::apply::ApplyError;
use crate::replay::scope::Scope;
use crate::retry::{Stopped, until_reached};
use crate::source::start;
use crate::spool::SpoolReader;
use crate::status::Status;
use crate::stop::Stop;
use crate::sync::context::{Context, Interrupted};
use crate::sync::feed::Entries;
use crate::sync::phase::{Event, Phase};
use crate::sync::track::Track;
use crate::sync::{copying, indexing, reconcile};

/// Bytes taken from the spool at once.
const BATCH_BYTES: usize = 4 * 1024 * 1024;
/// The part of the memory that a window may take: half of what the main replay takes.
const WINDOW_SHARE: u64 = 12;
/// The part of the memory that the copy may take, while the main replay goes on.
const COPY_SHARE: u64 = 3;
/// How often an exhausted spool is looked at again.
const POLL: Duration = Duration::from_millis(50);

/// Copies, and replays until the main replay has been caught up with. Goes on where the run's record says.
pub(super) async fn carry(
    main: Context,
    run: Context,
    reader: SpoolReader,
    stop: Stop,
) -> Result<CaughtUp, Interrupted> {
    if run.records.get().phase == Phase::Copying {
        copy(&main, &run, &stop).await?;
    } else {
        let gone = reconcile::names(&run, &stop).await?;
        if !gone.is_empty() {
            let what = "the copies of a resync are gone from the target".to_owned();
            return Err(Interrupted::Diverged { collections: gone, what });
        }
    }
    catch_up(&main, &run, reader, &stop).await
}

async fn copy(main: &Context, run: &Context, stop: &Stop) -> Result<(), Interrupted> {
    let after = run.records.get().resume.unwrap_or_default().applied.ts;
    let progress = ProgressStore::open(super::folder(main).join("copy.json"), after)?;
    reconcile::names_of_copy(run, &progress, stop).await?;
    clear_places(main, run, stop).await?;
    prepare::create_all(&run.definer, &run.catalogue, stop).await?;
    note_places(main, run)?;
    let copier = Copier {
        memory_bytes_max: run.tuning.get().memory_bytes_max / COPY_SHARE,
        ..copying::copier(run, progress, stop).await?
    };
    let shown = stop.child();
    let board = main.board.clone();
    let show = |status: &mut Status, progress| status.resync = Some(progress);
    let showing =
        copying::show(board, copier.counters.clone(), Instant::now(), shown.clone(), show);
    let copying = async {
        let outcome = copier.run(stop).await;
        shown.request();
        outcome
    };
    let (outcome, ()) = tokio::join!(copying, showing);
    main.board.update(|status| status.resync = None);
    outcome.map_err(|stopped| match stopped {
        // Somebody meddled with what is being made: not the fault of a particular one of them.
        Stopped::Failed(error)
            if error.side == Side::Target && ApplyError::is_divergence(&error) =>
        {
            let collections = run.catalogue.read().collections.keys().copied().collect();
            Interrupted::Diverged { collections, what: error.to_string() }
        }
        stopped => stopped.into(),
    })?;
    let copied = copier.counters.copied();
    main.board.update(|status| {
        status.totals.documents_copied += copied.documents;
        status.totals.bytes_copied += copied.bytes;
    });
    // Nothing that was read lies after this.
    let consistent_from = until_reached(run.source.side, stop, || start::end(&run.source)).await?;
    let phase = run.records.get().phase.next(Event::Copied { consistent_from });
    let phase = phase.map_err(Interrupted::from)?;
    run.records.change(|record| record.phase = phase)?;
    Ok(())
}

/// What cannot be renamed is copied in its place, so what stands there goes first.
async fn clear_places(main: &Context, run: &Context, stop: &Stop) -> Result<(), Interrupted> {
    let in_place: Vec<bson::Uuid> = {
        let own = run.catalogue.read();
        let missing = own.collections.iter().filter(|(_, found)| found.target_uuid.is_none());
        missing.filter(|(_, found)| stays_in_place(&found.target)).map(|(uuid, _)| *uuid).collect()
    };
    let names = {
        let own = run.catalogue.read();
        let series = in_place.iter().filter_map(|uuid| {
            let place = &own.collections.get(uuid)?.target;
            let name = place.collection.strip_prefix("system.buckets.")?;
            Some(Namespace::new(&place.database, name))
        });
        series.collect()
    };
    place::make_way(main, &names, stop).await?;
    for uuid in in_place {
        let old = main.catalogue.read().collections.get(&uuid).cloned();
        if let Some(old) = old
            && let Some(old_uuid) = old.target_uuid
        {
            main.definer.drop_collection(&old.target, old_uuid, stop).await?;
        }
    }
    Ok(())
}

/// What is copied in its place is what the main catalogue means from now on.
fn note_places(main: &Context, run: &Context) -> Result<(), Interrupted> {
    let own = run.catalogue.read().collections.clone();
    main.catalogue.change(|catalogue| {
        for (uuid, made) in own.iter().filter(|(_, made)| stays_in_place(&made.target)) {
            if let Some(collection) = catalogue.collections.get_mut(uuid) {
                collection.target_uuid = made.target_uuid;
                collection.widened = made.widened;
            }
        }
    });
    Ok(main.catalogue.save()?)
}

async fn catch_up(
    main: &Context,
    run: &Context,
    mut reader: SpoolReader,
    stop: &Stop,
) -> Result<CaughtUp, Interrupted> {
    let mut track = Track::new(run, &super::folder(main))?;
    track.set_scope(Scope::Only(run.catalogue.read().collections.keys().copied().collect()))?;
    loop {
        stop.check()?;
        let exhausted = gather(&mut track, &mut reader)?;
        track.carry_out(stop).await?;
        if track.is_consistent() {
            indexing::build_all(run, stop).await?;
            let main_at = main.records.get().resume.unwrap_or_default().applied;
            if track.resume().applied >= main_at {
                return Ok(CaughtUp { track, reader });
            }
        }
        if exhausted {
            stop.sleep(POLL).await?;
        }
    }
}

/// Gathers a window from the spool. True if the spool had no more.
fn gather(track: &mut Track, reader: &mut SpoolReader) -> Result<bool, Interrupted> {
    let share = track.context.tuning.get().memory_bytes_max / WINDOW_SHARE;
    let bytes_max = usize::try_from(share).unwrap_or(usize::MAX);
    loop {
        let batch = tokio::task::block_in_place(|| reader.read_batch(BATCH_BYTES))?;
        if batch.is_empty() {
            return Ok(true);
        }
        track.take(&Entries::Spooled(batch))?;
        if track.bytes() >= bytes_max && track.has_reached() {
            return Ok(false);
        }
    }
}

/// Replays up to `at`, which is in the spool, and not further. Gives the run's context back.
pub(super) async fn to_the_end(
    mut track: Track,
    mut reader: SpoolReader,
    at: Ts,
    stop: &Stop,
) -> Result<Context, Interrupted> {
    let nothing = RawDocumentBuf::new();
    while track.reads_from().ts < at {
        let batch = tokio::task::block_in_place(|| reader.read_batch(BATCH_BYTES))?;
        for (_, bytes) in batch.iter().take_while(|(place, _)| place.ts <= at) {
            track.push(RawDocument::from_bytes(bytes).unwrap_or(&nothing))?;
        }
        if batch.is_empty() {
            // The main replay has read it from there, so it is durable.
            stop.sleep(POLL).await?;
        }
    }
    track.carry_out(stop).await?;
    Ok(track.context)
}
