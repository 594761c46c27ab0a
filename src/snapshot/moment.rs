//! Bringing what was copied to one moment: the oplog is applied up to one common optime, indexes are built, and it is
//! applied once more, up to the optime that the snapshot is of. There the documents are counted on both sides.

use std::collections::BTreeSet;

use bson::{RawDocument, RawDocumentBuf, Uuid};
use futures_util::{StreamExt, stream};

use super::Run;
use crate::catalogue::Collection;
use crate::mongo::{Error, Failure};
use crate::namespace::Namespace;
use crate::position::{Cut, Ts};
use crate::retry::{Stopped, until_reached};
use crate::source::start;
use crate::spool::SpoolReader;
use crate::stop::Stop;
use crate::sync::context::{Context, Interrupted};
use crate::sync::copying::spool_failure;
use crate::sync::divergence::exact::{Counters, count_now};
use crate::sync::following::feed_failure;
use crate::sync::spooling::Spooler;
use crate::sync::track::Track;

/// Bytes taken from the spool at once.
const BATCH_BYTES: usize = 4 * 1024 * 1024;
/// The part of the memory that a window may take.
const WINDOW_SHARE: u64 = 6;
/// How often an exhausted spool is looked at again.
const POLL: std::time::Duration = std::time::Duration::from_millis(50);
/// Collections whose indexes are built at once: each takes a processor and some hundred MiB of the target.
const BUILDS: usize = 2;
/// Collections counted at once.
const COUNTS: usize = 4;

/// The oplog from the beginning of the copy on.
#[derive(Debug)]
pub(super) struct Oplog {
    pub(super) spooler: Spooler,
    pub(super) reader: SpoolReader,
}

/// What is known of a collection that was counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counted {
    /// Documents on the target.
    pub(super) documents: u64,
    /// Whether the source was seen to have as many at that moment.
    pub(super) verified: bool,
}

impl Run<'_> {
    /// Goes on until everything that can be is on the target as of one optime, which is returned.
    ///
    /// # Errors
    /// [`Interrupted`].
    pub(super) async fn reach_one_moment(
        &mut self,
        oplog: &Oplog,
        stop: &Stop,
    ) -> Result<Ts, Interrupted> {
        loop {
            self.copy_while_spooling(oplog, stop).await?;
            // The copy first, which may have taken long; then, with the indexes, what has happened since.
            self.catch_up(oplog, stop).await?;
            self.build_indexes(stop).await?;
            let at = self.catch_up(oplog, stop).await?;
            if !self.is_waiting() {
                self.count(at, stop).await?;
            }
            if !self.is_waiting() {
                return Ok(at);
            }
            stop.sleep(self.context.config.snapshot.retry_delay).await?;
        }
    }

    async fn copy_while_spooling(&mut self, oplog: &Oplog, stop: &Stop) -> Result<(), Interrupted> {
        let copy_stop = stop.child();
        let mut copying = std::pin::pin!(self.copy_held(&copy_stop));
        tokio::select! {
            copied = &mut copying => copied,
            failure = spool_failure(&oplog.spooler) => {
                // The copy ends its batches in hand; only then is it over.
                copy_stop.request();
                let _interrupted = copying.await;
                Err(failure)
            }
        }
    }

    /// Whether something is held that may be tried again.
    fn is_waiting(&self) -> bool {
        let catalogue = self.context.catalogue.read();
        catalogue.repair.held.keys().any(|uuid| self.tries.left(uuid) > 0)
    }

    /// Notes that a collection has failed after it was copied; it is copied again, if it may be.
    pub(super) fn fail(&mut self, uuid: Uuid, why: &str) {
        let name = self.context.catalogue.change(|catalogue| {
            catalogue.repair.hold(uuid, why);
            catalogue.collections.get(&uuid).map(|found| found.source.to_string())
        });
        let name = name.unwrap_or_default();
        tracing::warn!(collection = %name, "the snapshot of {name} has failed: {why}");
        self.tries.fail(uuid, why);
    }

    /// Applies the oplog up to where it ends now, and returns that.
    async fn catch_up(&mut self, oplog: &Oplog, stop: &Stop) -> Result<Ts, Interrupted> {
        let source = &self.context.source;
        let at = until_reached(source.side, stop, || start::end(source)).await?;
        loop {
            match replay(&self.context, oplog, at, stop).await {
                Err(Interrupted::Diverged { collections, what }) if !collections.is_empty() => {
                    for uuid in collections {
                        self.fail(uuid, &what);
                    }
                }
                replayed => return replayed.map(|()| at),
            }
        }
    }

    async fn build_indexes(&mut self, stop: &Stop) -> Result<(), Interrupted> {
        let definer = &self.context.definer;
        let builds = self.complete().into_iter().map(|(uuid, collection)| async move {
            let place = definer.place(&collection.target, collection.target_uuid);
            let specs: Vec<_> = collection.indexes.values().map(|spec| spec.0.clone()).collect();
            (uuid, definer.create_indexes(&place, &specs, stop).await)
        });
        let built: Vec<_> = stream::iter(builds).buffer_unordered(BUILDS).collect().await;
        for (uuid, built) in built {
            match built {
                Ok(()) => {}
                Err(Stopped::Failed(error)) if is_of_one(&error) => {
                    self.fail(uuid, &error.to_string());
                }
                Err(stopped) => return Err(stopped.into()),
            }
        }
        self.context.catalogue.change(|catalogue| catalogue.indexes_built = true);
        Ok(self.context.catalogue.save()?)
    }

    /// Collections that are not held, by their UUID on the source.
    pub(super) fn complete(&self) -> Vec<(Uuid, Collection)> {
        let catalogue = self.context.catalogue.read();
        let complete =
            catalogue.collections.iter().filter(|(uuid, _)| !catalogue.repair.is_held(uuid));
        complete.map(|(uuid, collection)| (*uuid, collection.clone())).collect()
    }

    /// Counts what stands on the target, and the same on the source as of that optime.
    async fn count(&mut self, at: Ts, stop: &Stop) -> Result<(), Interrupted> {
        let target = &self.context.target;
        let now = until_reached(target.side, stop, || start::end(target)).await?;
        let cut = &Cut { source: at, target: now, held: BTreeSet::new() };
        let context = &self.context;
        let counts = self.complete().into_iter().map(|(uuid, collection)| async move {
            (uuid, count_one(context, uuid, &collection, cut, stop).await)
        });
        let counted: Vec<_> = stream::iter(counts).buffer_unordered(COUNTS).collect().await;
        self.counted.clear();
        for (uuid, counted) in counted {
            match counted {
                Ok(Ok(counted)) => drop(self.counted.insert(uuid, counted)),
                Ok(Err(why)) => self.fail(uuid, &why),
                Err(Stopped::Failed(error)) if is_of_one(&error) => {
                    self.fail(uuid, &error.to_string());
                }
                Err(stopped) => return Err(stopped.into()),
            }
        }
        Ok(())
    }
}

/// Whether this came of one collection, and others may do better.
pub(super) fn is_of_one(error: &Error) -> bool {
    error.code().is_some() && !error.is_fenced() && error.failure != Failure::Disk
}

/// Counts one collection. The inner error says how the two sides differ.
async fn count_one(
    context: &Context,
    uuid: Uuid,
    collection: &Collection,
    cut: &Cut,
    stop: &Stop,
) -> Result<Result<Counted, String>, Stopped<Error>> {
    stop.check()?;
    let mut counters = Counters::new(&context.source, &context.target);
    match counters.count(uuid, collection, cut).await {
        Ok(Some(exact)) if exact.delta() == 0 => {
            let documents = documents_in(context, collection, exact.target, stop).await?;
            return Ok(Ok(Counted { documents, verified: true }));
        }
        Ok(Some(exact)) => {
            let (source, target) = (exact.source, exact.target);
            return Ok(Err(format!("the source had {source} documents, the copy has {target}")));
        }
        // Renamed or dropped since.
        Ok(None) => {}
        Err(error) => tracing::info!("not compared with the source: {error}"),
    }
    let target = &context.target;
    let count = || count_now(target, &collection.target);
    let stored = until_reached(target.side, stop, count).await?;
    let documents = documents_in(context, collection, stored, stop).await?;
    Ok(Ok(Counted { documents, verified: false }))
}

/// How many documents clients see, where so many are stored: a bucket of a time-series holds many.
async fn documents_in(
    context: &Context,
    collection: &Collection,
    stored: u64,
    stop: &Stop,
) -> Result<u64, Stopped<Error>> {
    let Namespace { database, collection } = &collection.target;
    let Some(series) = collection.strip_prefix("system.buckets.") else { return Ok(stored) };
    let (target, series) = (&context.target, Namespace::new(database, series));
    until_reached(target.side, stop, || count_now(target, &series)).await
}

/// Applies everything up to `at`, an entry of the oplog, and nothing after it.
async fn replay(context: &Context, oplog: &Oplog, at: Ts, stop: &Stop) -> Result<(), Interrupted> {
    let mut track = Track::new(context, &context.config.state.directory)?;
    // What was copied is of any time up to then.
    track.tolerate_until(at);
    track.set_scope(context.catalogue.read().scope())?;
    let mut reader = oplog.reader.another(track.resume().read_from.ts.just_before());
    let share = context.tuning.get().memory_bytes_max / WINDOW_SHARE;
    let bytes_max = usize::try_from(share).unwrap_or(usize::MAX);
    let nothing = RawDocumentBuf::new();
    while track.reads_from().ts < at {
        stop.check()?;
        oplog.spooler.check().map_err(|error| feed_failure(&error))?;
        let batch = tokio::task::block_in_place(|| reader.read_batch(BATCH_BYTES))?;
        for (_, bytes) in batch.iter().take_while(|(place, _)| place.ts <= at) {
            track.push(RawDocument::from_bytes(bytes).unwrap_or(&nothing))?;
        }
        if batch.is_empty() {
            stop.sleep(POLL).await?;
        }
        if track.bytes() >= bytes_max && track.has_reached() {
            carry_out(&mut track, oplog, stop).await?;
        }
    }
    carry_out(&mut track, oplog, stop).await
}

async fn carry_out(track: &mut Track, oplog: &Oplog, stop: &Stop) -> Result<(), Interrupted> {
    track.carry_out(stop).await?;
    // A collection may have come into the selection.
    let scope = track.context.catalogue.read().scope();
    track.set_scope(scope)?;
    // A later replay begins with that entry, so it stays, however short space is.
    oplog.spooler.consumed(track.resume().read_from.ts.just_before());
    Ok(())
}
