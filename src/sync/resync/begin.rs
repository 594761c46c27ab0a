//! Beginning a run: what it copies, from which moment, and whether there is room for it.

use std::collections::BTreeMap;

use bson::{Uuid, doc};

use super::{context_of_run, remove_files};
use crate::catalogue::repair::{RECURS_TIMES, Run};
use crate::catalogue::{Catalogue, Collection};
use crate::mongo::{Deployment, Error, bson_count, run};
use crate::namespace::Namespace;
use crate::replay::window::ResumePoint;
use crate::retry::until_reached;
use crate::selection::STAGING_PREFIX;
use crate::source::{catalog, start};
use crate::state::Audit;
use crate::status::WallTime;
use crate::stop::Stop;
use crate::sync::context::{Context, Interrupted};
use crate::sync::phase::Phase;
use crate::telemetry::events;

/// Bytes that stay free on the target's disk.
const SPARE_BYTES: u64 = 512 * 1024 * 1024;

/// Collections in one run at the most, while others are followed: those wait while everything is put in its place, and
/// each one takes two renames that the majority has to acknowledge. The rest waits for the next run.
const RUN_COLLECTIONS_MAX: usize = 32;

/// What a run is to copy, and from which moment on.
#[derive(Debug)]
pub(super) struct Prepared {
    catalogue: Catalogue,
    resume: ResumePoint,
}

impl Prepared {
    /// Whether anything of it is still to be copied.
    pub(super) fn is_wanted(&self, main: &Context) -> bool {
        let catalogue = main.catalogue.read();
        self.catalogue.collections.keys().any(|uuid| catalogue.repair.is_held(uuid))
    }
}

/// Prepares a run of what waits; `None` if the source lists none of it. The main replay goes on meanwhile:
/// a definition that it carries out is replayed by the run as well, as one that comes during the copy.
///
/// # Errors
/// [`Interrupted`]: too little room.
pub(super) async fn prepare(main: Context, stop: Stop) -> Result<Option<Prepared>, Interrupted> {
    let (main, stop) = (&main, &stop);
    let waiting = waiting(main);
    let source = &main.source;
    let selection = &main.config.sync.selection;
    // The moment first, then the listing: whatever changes in between is told by the oplog.
    let start = until_reached(source.side, stop, || start::choose(source)).await?;
    let list = || catalog::read_some(source, selection, &waiting);
    let mut catalogue = until_reached(source.side, stop, list).await?;
    if catalogue.collections.is_empty() {
        return Ok(None);
    }
    catalogue.collections.values_mut().for_each(stage);
    check_room(main, &catalogue, stop).await?;
    let resume = ResumePoint {
        applied: start.apply_after,
        wall_ms: start.wall_ms,
        read_from: start.read_from,
    };
    Ok(Some(Prepared { catalogue, resume }))
}

/// UUIDs of what waits and is to be copied next, with the databases on the source.
fn waiting(main: &Context) -> BTreeMap<Uuid, String> {
    let catalogue = main.catalogue.read();
    // Where nothing is followed, nothing waits.
    let most = if catalogue.is_all_held() { usize::MAX } else { RUN_COLLECTIONS_MAX };
    let held = catalogue.repair.held.keys().filter_map(|uuid| {
        let collection = catalogue.collections.get(uuid)?;
        Some((*uuid, collection.source.database.clone()))
    });
    held.take(most).collect()
}

/// Whether a collection cannot be renamed, so that it is copied in its place.
pub(crate) fn stays_in_place(target: &Namespace) -> bool {
    target.collection.starts_with("system.")
}

/// Gives a collection the name that it is copied under.
fn stage(collection: &mut Collection) {
    if !stays_in_place(&collection.target) {
        collection.target.collection = format!("{STAGING_PREFIX}{}", Uuid::new());
    }
}

fn check_recurrence(main: &Context, catalogue: &Catalogue) -> Result<(), Interrupted> {
    let names: Vec<Namespace> = {
        let main = main.catalogue.read();
        let again = catalogue.collections.iter().filter(|(uuid, _)| !main.repair.is_new(uuid));
        again.map(|(_, collection)| collection.source.clone()).collect()
    };
    let now = WallTime::now().as_ms();
    let recurring = main.catalogue.change(|catalogue| catalogue.repair.note(&names, now));
    let Some(first) = recurring.first() else { return Ok(()) };
    Err(Interrupted::Halt {
        reason: format!(
            "{first} has diverged again after {RECURS_TIMES} resyncs within an hour: something else \
             writes to the target"
        ),
        remedy: "find out what it is (applications that have moved already?) and stop it, then \
                 `snapsync resume`"
            .into(),
    })
}

async fn check_room(main: &Context, catalogue: &Catalogue, stop: &Stop) -> Result<(), Interrupted> {
    match lacking_room(main, catalogue, stop).await? {
        None => Ok(()),
        Some(lacking) => Err(Interrupted::Halt {
            reason: format!("a resync needs {lacking}"),
            remedy:
                "make room there (`snapsync discard` drops what earlier resyncs replaced), then \
                     `snapsync resume`"
                    .into(),
        }),
    }
}

/// What a second copy of these collections wants of the target's disk and does not find there.
///
/// # Errors
/// [`Interrupted`].
pub async fn lacking_room(
    main: &Context,
    catalogue: &Catalogue,
    stop: &Stop,
) -> Result<Option<String>, Interrupted> {
    let mut needed = 0_u64;
    for collection in catalogue.collections.values() {
        let ask = || bytes_on_disk(&main.source, &collection.source);
        needed += until_reached(main.source.side, stop, ask).await?;
    }
    let database = catalogue.collections.values().next().map(|found| found.target.database.clone());
    let Some(database) = database else { return Ok(None) };
    let free =
        until_reached(main.target.side, stop, || bytes_free(&main.target, &database)).await?;
    let lacking = free.filter(|free| !has_room(*free, needed)).map(|free| {
        let [needed, free] = [needed, free].map(bytesize::ByteSize);
        format!("about {needed} on the target's disk, which has {free} left")
    });
    Ok(lacking)
}

fn has_room(free: u64, needed: u64) -> bool {
    free >= needed.saturating_add(SPARE_BYTES)
}

/// Bytes of a collection with its indexes on the source's disk; 0 if it is gone.
async fn bytes_on_disk(source: &Deployment, name: &Namespace) -> Result<u64, Error> {
    let command = doc! { "collStats": &name.collection };
    match run(source, &name.database, "read the size of a collection", command).await {
        Ok(reply) => Ok(bson_count(&reply, "storageSize") + bson_count(&reply, "totalIndexSize")),
        Err(error) if error.code().is_some() => Ok(0),
        Err(error) => Err(error),
    }
}

/// Bytes left on the target's disk, if it says so.
async fn bytes_free(target: &Deployment, database: &str) -> Result<Option<u64>, Error> {
    let reply = run(target, database, "ask for space on the disk", doc! { "dbStats": 1 }).await?;
    let (total, used) = (bson_count(&reply, "fsTotalSize"), bson_count(&reply, "fsUsedSize"));
    Ok((total > 0).then(|| total.saturating_sub(used)))
}

/// Makes the run durable: its own files first, then what the main catalogue says of it.
///
/// # Errors
/// [`Interrupted`]: the disk, or too often.
pub(super) fn note(main: &Context, prepared: Prepared) -> Result<(), Interrupted> {
    let Prepared { catalogue, resume } = prepared;
    check_recurrence(main, &catalogue)?;
    remove_files(main)?;
    let id = Uuid::new().to_string();
    let run = context_of_run(main)?;
    run.records.change(|record| {
        record.instance.clone_from(&id);
        record.phase = Phase::Copying;
        record.resume = Some(resume);
        record.intent = None;
    })?;
    let members: Vec<(Uuid, Namespace)> =
        catalogue.collections.iter().map(|(uuid, found)| (*uuid, found.source.clone())).collect();
    run.catalogue.change(|own| *own = catalogue);
    run.catalogue.save()?;
    let mut reasons = Vec::with_capacity(members.len());
    main.catalogue.change(|catalogue| {
        let repair = &mut catalogue.repair;
        for (uuid, name) in members {
            if let Some(held) = repair.join_run(&uuid) {
                reasons.push((name, held.reason.clone()));
            }
        }
        let begun_ms = WallTime::now().as_ms();
        repair.run = Some(Run { id, begun_ms, swapping_at: None, is_broken: false });
        repair.resyncs += 1;
    });
    main.catalogue.save()?;
    for (name, reason) in &reasons {
        events::resync_started(&name.to_string(), reason);
    }
    let names: Vec<String> = reasons.iter().map(|(name, _)| name.to_string()).collect();
    let detail = serde_json::json!({ "collections": names, "from": resume.applied.ts.to_string() });
    Audit::open(&main.config.state.directory)?.append("resync begun", None, detail)?;
    super::kept::show(main);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_room_stays() {
        assert!(has_room(SPARE_BYTES + 10, 10));
        assert!(!has_room(SPARE_BYTES + 9, 10));
        assert!(!has_room(0, u64::MAX));
    }

    #[test]
    fn only_what_can_be_renamed_is_copied_beside_its_place() {
        assert!(stays_in_place(&Namespace::new("a", "system.buckets.t")));
        assert!(!stays_in_place(&Namespace::new("a", "systemic")));
    }
}
