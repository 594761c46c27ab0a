//! Copying what is held into its stage: several collections at once, each tried as often as it may be. One that fails
//! stops no other.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use bson::Uuid;
use futures_util::{StreamExt, stream};

use super::Run;
use crate::catalogue::Collection;
use crate::copy::{Copier, Counters, ProgressStore, prepare};
use crate::durable::remove_if_there;
use crate::mongo::{Error, Failure, Side};
use crate::retry::{Stopped, until_reached};
use crate::source::catalog;
use crate::state::catalogue::CatalogueStore;
use crate::status::bar;
use crate::stop::Stop;
use crate::sync::context::{Context, Interrupted};
use crate::sync::copying;
use crate::telemetry::events;

/// How often in a row the source may refuse to read a collection before an attempt has failed.
const REFUSALS_MAX: u32 = 5;

/// One collection and what its copy may take.
struct Work {
    uuid: Uuid,
    collection: Collection,
    attempts: u32,
    workers: usize,
    memory_bytes_max: u64,
}

/// How an attempt at all of them ended for one.
struct Copied {
    uuid: Uuid,
    failures: Vec<String>,
    made: Result<Collection, Stopped<Error>>,
}

impl Run<'_> {
    /// Copies everything that is held and may be tried (again), and releases what was copied.
    ///
    /// # Errors
    /// [`Interrupted`]: not by one collection that fails, but by what concerns all.
    pub(super) async fn copy_held(&mut self, stop: &Stop) -> Result<(), Interrupted> {
        let works = self.works(stop).await?;
        if works.is_empty() {
            return Ok(());
        }
        let counters = Arc::new(Counters::default());
        let template = self.template(counters.clone(), stop).await?;
        let (context, wanted) = (&self.context, &self.context.config.snapshot);
        events::copy_started(works.len());
        let began = Instant::now();
        let showing = stop.child();
        let logs = self.logs;
        let put = |_: &mut _, progress| {
            logs.show_progress(format!("copying {}", bar::bar(&progress)));
        };
        let shown =
            copying::show(context.board.clone(), counters.clone(), began, showing.clone(), put);
        let copying = async {
            let all = works.into_iter().map(|work| one(context, &template, work, stop));
            let copied: Vec<Copied> =
                stream::iter(all).buffer_unordered(wanted.parallel_collections).collect().await;
            showing.request();
            copied
        };
        let (copied, ()) = tokio::join!(copying, shown);
        logs.show_progress(String::new());
        let progress = copying::progress(&counters, began, true);
        events::copy_finished(&progress, began.elapsed());
        for copied in copied {
            self.settle(copied)?;
        }
        Ok(self.context.catalogue.save()?)
    }

    /// What the copies of all collections have in common.
    async fn template(&self, counters: Arc<Counters>, stop: &Stop) -> Result<Copier, Interrupted> {
        let after = self.context.records.get().resume.unwrap_or_default().applied.ts;
        let file = self.context.config.state.directory.join(copying::PROGRESS_FILE);
        let copier =
            copying::copier(&self.context, ProgressStore::open(file, after)?, stop).await?;
        Ok(Copier { refusals_max: REFUSALS_MAX, counters, ..copier })
    }

    fn settle(&mut self, copied: Copied) -> Result<(), Interrupted> {
        let Copied { uuid, failures, made } = copied;
        for why in failures {
            self.tries.fail(uuid, why);
        }
        match made {
            Ok(made) => self.context.catalogue.change(|catalogue| {
                catalogue.collections.insert(uuid, made);
                catalogue.repair.held.remove(&uuid);
            }),
            Err(Stopped::Stop) => return Err(Interrupted::Stop),
            Err(Stopped::Failed(error)) if concerns_all(&error) => return Err(error.into()),
            // Noted among the failures.
            Err(Stopped::Failed(_)) => {}
        }
        Ok(())
    }

    /// What is held and has an attempt left, as the source has it now.
    async fn works(&mut self, stop: &Stop) -> Result<Vec<Work>, Interrupted> {
        let waiting: BTreeMap<Uuid, Collection> = {
            let catalogue = self.context.catalogue.read();
            let held = catalogue.repair.held.keys().filter(|uuid| self.tries.left(uuid) > 0);
            held.filter_map(|uuid| Some((*uuid, catalogue.collections.get(uuid)?.clone())))
                .collect()
        };
        let databases =
            waiting.iter().map(|(uuid, found)| (*uuid, found.source.database.clone())).collect();
        let (source, selection) = (&self.context.source, &self.context.config.sync.selection);
        let list = || catalog::read_some(source, selection, &databases);
        let listed = until_reached(source.side, stop, list).await?.collections;
        let config = &self.context.config;
        let at_once = config.snapshot.parallel_collections.min(waiting.len()).max(1);
        let mut works = Vec::with_capacity(waiting.len());
        for (uuid, mut collection) in waiting {
            if let Some(old) = collection.target_uuid {
                self.context.definer.drop_collection(&collection.target, old, stop).await?;
            }
            let Some(found) = listed.get(&uuid) else {
                // Most likely its drop is about to be replayed.
                self.tries.fail(uuid, "it is not on the source any more");
                continue;
            };
            // Names stay those of the moment that the replay has come to.
            collection.target_uuid = None;
            collection.options.clone_from(&found.options);
            collection.id_index.clone_from(&found.id_index);
            collection.indexes.clone_from(&found.indexes);
            works.push(Work {
                uuid,
                collection,
                attempts: self.tries.left(&uuid),
                workers: config.copy_workers().div_ceil(at_once),
                memory_bytes_max: config.memory.max_bytes / u64::try_from(at_once).unwrap_or(1),
            });
        }
        Ok(works)
    }
}

/// Whether there is no sense in trying anything else: the lease is lost, or the local disk is full.
fn concerns_all(error: &Error) -> bool {
    error.is_fenced() || error.failure == Failure::Disk
}

/// Copies one collection, as often as it takes and as it may be tried.
async fn one(context: &Context, template: &Copier, work: Work, stop: &Stop) -> Copied {
    let wanted = &context.config.snapshot;
    let (uuid, mut failures) = (work.uuid, Vec::new());
    loop {
        let made = attempt(context, template, &work, stop).await;
        let Err(Stopped::Failed(error)) = &made else { return Copied { uuid, failures, made } };
        let name = &work.collection.source;
        tracing::warn!(collection = %name, "copying {name} has failed: {error}");
        failures.push(error.to_string());
        let tried = u32::try_from(failures.len()).unwrap_or(u32::MAX);
        if tried >= work.attempts || concerns_all(error) {
            return Copied { uuid, failures, made };
        }
        if stop.sleep(wanted.retry_delay).await.is_err() {
            return Copied { uuid, failures, made: Err(Stopped::Stop) };
        }
    }
}

async fn attempt(
    context: &Context,
    template: &Copier,
    work: &Work,
    stop: &Stop,
) -> Result<Collection, Stopped<Error>> {
    let Work { uuid, collection, workers, memory_bytes_max, .. } = work;
    let definer = &context.definer;
    if let Some(left) = definer.find(&collection.target, stop).await?.and_then(|left| left.uuid) {
        definer.drop_collection(&collection.target, left, stop).await?;
    }
    let directory = &context.config.state.directory;
    let [own, progress] =
        ["catalogue", "copy"].map(|what| directory.join(format!("{what}-{uuid}.json")));
    let disk = |error: crate::durable::DiskError| {
        Stopped::Failed(Error::disk(Side::Target, "begin a copy anew", error.to_string()))
    };
    remove_if_there(&progress).map_err(disk)?;
    let store = Arc::new(CatalogueStore::empty(own.clone()));
    store.change(|catalogue| catalogue.collections.insert(*uuid, collection.clone()));
    prepare::create_all(definer, &store, stop).await?;
    let after = context.records.get().resume.unwrap_or_default().applied.ts;
    let copied = ProgressStore::open(progress.clone(), after).map_err(Stopped::Failed)?;
    let copier = Copier {
        catalogue: store.clone(),
        workers: *workers,
        memory_bytes_max: *memory_bytes_max,
        progress: Arc::new(copied),
        ..template.clone()
    };
    copier.run(stop).await?;
    for file in [own, progress] {
        remove_if_there(&file).map_err(disk)?;
    }
    let made = store.read().collections.get(uuid).cloned();
    Ok(made.unwrap_or_else(|| collection.clone()))
}
