//! Writing one piece of a stage: removals, or puts and patches, of one collection.

use std::collections::{HashMap, HashSet};

use bson::{RawArrayBuf, RawDocument, RawDocumentBuf, Uuid};
use futures_util::StreamExt;

use super::apply::ApplyError;
use super::changes::{Change, patched};
use crate::mongo::{Error, Side};
use crate::oplog::document;
use crate::oplog::element::Value;
use crate::oplog::id_key::IdKey;
use crate::oplog::update::Update;
use crate::retry::{Backoff, Outage, Stopped, until_reached};
use crate::stop::Stop;
use crate::target::statements::{self, Place, chunks};
use crate::target::writers::Writers;

const DUPLICATE_KEY: i32 = 11_000;
/// The `_id` on the target is equal to the new one but not the same (1 and 1.0 with a collation, "a" and "A").
const IMMUTABLE_FIELD: i32 = 66;
/// What an index of the target does not take: two arrays, a hashed array, no place, no language, no point. In a window
/// that is applied again an older document may meet an index that was built when it had changed: it waits for that.
const NOT_INDEXABLE: [i32; 9] =
    [171, 13_026, 13_027, 13_068, 16_755, 16_766, 16_804, 17_261, 17_262];
/// A cursor that was killed, timed out, or whose plan was: the lookup is made again.
const CURSOR_LOST: [i32; 3] = [43, 175, 237];
/// Removals in one command at the most: the server holds the documents in memory until their transaction ends, and how
/// large they are is not known here.
const REMOVALS_MAX: usize = 250;
/// Documents looked up in one query at the most.
const LOOKUP_MAX: usize = 500;

/// A document that could not be put because another one holds a unique key of its, or an index does not take it.
#[derive(Debug)]
pub(super) struct Conflict {
    /// UUID of the collection on the source.
    pub(super) uuid: Uuid,
    /// The document.
    pub(super) document: RawDocumentBuf,
}

pub(super) async fn remove_all(
    writers: &Writers,
    place: &Place,
    changes: Vec<Change>,
    stop: &Stop,
) -> Result<(), Stopped<ApplyError>> {
    let removals: Vec<&RawDocumentBuf> = changes
        .iter()
        .filter_map(|change| if let Change::Remove { id } = change { Some(id) } else { None })
        .collect();
    for some in removals.chunks(REMOVALS_MAX) {
        let mut array = RawArrayBuf::new();
        for id in some.iter().filter_map(|id| document::id(id)) {
            array.push(statements::remove(id));
        }
        let action = format!("delete from {}", place.namespace);
        let database = &place.namespace.database;
        let command = place.delete(array);
        let reply = writers.write_together(database, &action, command, some.len(), stop).await?;
        if let Some(error) = reply.errors.first() {
            return Err(refused(action, error.code));
        }
    }
    Ok(())
}

fn refused(action: String, code: i32) -> Stopped<ApplyError> {
    Stopped::Failed(Error::from_code(Side::Target, action, code, "").into())
}

/// Whether what was refused may be taken later in the same window.
fn may_pass(code: i32) -> bool {
    matches!(code, DUPLICATE_KEY | IMMUTABLE_FIELD) || NOT_INDEXABLE.contains(&code)
}

/// Puts documents and applies patches; returns what was in conflict with other documents.
pub(super) async fn put_all(
    writers: &Writers,
    uuid: Uuid,
    place: &Place,
    changes: Vec<Change>,
    stop: &Stop,
) -> Result<Vec<Conflict>, Stopped<ApplyError>> {
    let mut fresh = Vec::new();
    let mut puts = Vec::new();
    let mut patches = Vec::new();
    for change in changes {
        let is_insert = change.is_insert();
        match change {
            Change::Put { document, .. } if is_insert => fresh.push(document),
            Change::Put { document, .. } => puts.push(document),
            Change::Patch { id, updates, upserts_from } => {
                patches.push((id, Patch { updates, upserts_from }));
            }
            Change::Remove { .. } => {}
        }
    }
    puts.extend(insert(writers, place, fresh, stop).await?);
    let mut refused = put(writers, place, puts, stop).await?;
    for run in chunks(patches, |_| statements::STATEMENT_BYTES_MAX.div_ceil(LOOKUP_MAX)) {
        refused.extend(patch(writers, place, run, stop).await?);
    }
    Ok(refused.into_iter().map(|document| Conflict { uuid, document }).collect())
}

/// Inserts documents; returns those that are there already or in conflict with others, to be put.
async fn insert(
    writers: &Writers,
    place: &Place,
    mut documents: Vec<RawDocumentBuf>,
    stop: &Stop,
) -> Result<Vec<RawDocumentBuf>, Stopped<ApplyError>> {
    if documents.is_empty() {
        return Ok(documents);
    }
    let mut array = RawArrayBuf::new();
    documents.iter().for_each(|document| array.push(document.clone()));
    let action = format!("insert into {}", place.namespace);
    let database = &place.namespace.database;
    let reply = writers.write(database, &action, place.insert(&array), stop).await?;
    if let Some(error) = reply.errors.iter().find(|error| !may_pass(error.code)) {
        return Err(self::refused(action, error.code));
    }
    let there: Vec<usize> = reply.errors.iter().map(|error| error.index).collect();
    let mut index = 0;
    documents.retain(|_| {
        index += 1;
        there.contains(&(index - 1))
    });
    Ok(documents)
}

/// Puts documents; returns those in conflict with others, or with the server.
pub(super) async fn put(
    writers: &Writers,
    place: &Place,
    documents: Vec<RawDocumentBuf>,
    stop: &Stop,
) -> Result<Vec<RawDocumentBuf>, Stopped<ApplyError>> {
    let (documents, mut refused) = spare_pipelines(writers, place, documents, stop).await?;
    for run in chunks(documents, |document| document.as_bytes().len()) {
        let mut array = RawArrayBuf::new();
        for document in &run {
            if let Some(id) = document::id(document) {
                array.push(statements::put(id, document));
            }
        }
        let action = format!("write to {}", place.namespace);
        let database = &place.namespace.database;
        let command = place.update(array, false);
        let reply = writers.write_together(database, &action, command, run.len(), stop).await?;
        for error in reply.errors {
            if !may_pass(error.code) {
                return Err(self::refused(action, error.code));
            }
            refused.extend(run.get(error.index).cloned());
        }
    }
    Ok(refused)
}

/// Takes out the documents that must not be put by a pipeline over what is there: mongod 6.0.5 aborts when either has
/// two fields of one name. They are put where nothing is, after the old ones have been removed.
async fn spare_pipelines(
    writers: &Writers,
    place: &Place,
    documents: Vec<RawDocumentBuf>,
    stop: &Stop,
) -> Result<(Vec<RawDocumentBuf>, Vec<RawDocumentBuf>), Stopped<ApplyError>> {
    if documents.iter().all(|document| !statements::needs_pipeline(document)) {
        return Ok((documents, Vec::new()));
    }
    let (special, mut documents): (Vec<_>, Vec<_>) =
        documents.into_iter().partition(|document| statements::needs_pipeline(document));
    let mut doubled: HashSet<IdKey> = HashSet::new();
    let target = writers.deployment();
    for run in special.chunks(LOOKUP_MAX) {
        let ids: Vec<Value<'_>> =
            run.iter().filter_map(|document| document::id(document)).collect();
        let look = || look_for_doubled(writers, place, &ids);
        doubled.extend(until_reached(target.side, stop, look).await?);
    }
    let mut spared = Vec::new();
    for document in special {
        let key = document::id(&document).map(IdKey::new);
        let risky = document::has_duplicate_names(&document)
            || key.is_some_and(|key| doubled.contains(&key));
        if risky { spared.push(document) } else { documents.push(document) }
    }
    Ok((documents, spared))
}

/// Which of the documents with these `_id`s have two fields of one name on the target.
async fn look_for_doubled(
    writers: &Writers,
    place: &Place,
    ids: &[Value<'_>],
) -> Result<Vec<IdKey>, Error> {
    let target = writers.deployment();
    let failed = |error: mongodb::error::Error| {
        let error = target.error("look up documents to write", &error);
        let lost = error.code().is_some_and(|code| CURSOR_LOST.contains(&code));
        if lost { error.into_unreachable() } else { error }
    };
    let database = target.client.database(&place.namespace.database);
    let command = place.find(ids.iter().copied());
    let mut cursor = database.run_raw_cursor_command(command).batch().await.map_err(failed)?;
    let mut doubled = Vec::new();
    while let Some(batch) = cursor.next().await {
        let batch = batch.map_err(failed)?;
        let found = batch.doc_slices().map_err(failed)?;
        let found = found.into_iter().filter_map(|value| value.ok()?.as_document());
        let found = found.filter(|document| document::has_duplicate_names(document));
        doubled.extend(found.filter_map(document::id).map(IdKey::new));
    }
    Ok(doubled)
}

/// What is done to one document.
struct Patch {
    updates: Vec<Update>,
    upserts_from: Option<usize>,
}

/// Applies updates to the documents as they are on the target; those that are not there are left out, or made where an
/// update does so.
async fn patch(
    writers: &Writers,
    place: &Place,
    patches: Vec<(RawDocumentBuf, Patch)>,
    stop: &Stop,
) -> Result<Vec<RawDocumentBuf>, Stopped<ApplyError>> {
    let mut by_id: HashMap<IdKey, Patch> = HashMap::with_capacity(patches.len());
    let mut ids = Vec::with_capacity(patches.len());
    for (id, patch) in patches {
        if let Some(value) = document::id(&id) {
            by_id.insert(IdKey::new(value), patch);
            ids.push(id);
        }
    }
    let mut refused = Vec::new();
    let mut backoff = Backoff::reconnect();
    let outage = Outage::new(Side::Target);
    loop {
        // Updates are taken out of the map as they are applied, so that a lookup begun again never applies one twice.
        match patch_found(writers, place, &ids, &mut by_id, &mut refused, stop).await {
            Ok(()) => break,
            Err(Stopped::Failed(ApplyError::Call(error)))
                if error.is_unreachable()
                    || error.code().is_some_and(|code| CURSOR_LOST.contains(&code)) =>
            {
                outage.report(&error);
                stop.sleep(backoff.next_delay()).await?;
            }
            Err(error) => return Err(error),
        }
    }
    let mut made = Vec::new();
    for id in ids {
        let patch = document::id(&id).and_then(|value| by_id.remove(&IdKey::new(value)));
        if let Some(Patch { updates, upserts_from: Some(from) }) = patch {
            made.push(apply(place, id, updates.get(from..).unwrap_or_default())?);
        }
    }
    refused.extend(put(writers, place, made, stop).await?);
    Ok(refused)
}

async fn patch_found(
    writers: &Writers,
    place: &Place,
    ids: &[RawDocumentBuf],
    by_id: &mut HashMap<IdKey, Patch>,
    refused: &mut Vec<RawDocumentBuf>,
    stop: &Stop,
) -> Result<(), Stopped<ApplyError>> {
    let target = writers.deployment();
    let failed = |error: mongodb::error::Error| {
        Stopped::Failed(ApplyError::Call(target.error("look up documents to update", &error)))
    };
    let ids: Vec<Value<'_>> = ids.iter().filter_map(|id| document::id(id)).collect();
    let command = place.find(ids.into_iter());
    let database = target.client.database(&place.namespace.database);
    let mut cursor = database.run_raw_cursor_command(command).batch().await.map_err(failed)?;
    while let Some(batch) = cursor.next().await {
        let batch = batch.map_err(failed)?;
        let mut puts = Vec::new();
        for found in batch.doc_slices().map_err(failed)? {
            let Some(found) = found.ok().and_then(|value| value.as_document()) else { continue };
            puts.extend(patch_one(place, found, by_id)?);
        }
        refused.extend(put(writers, place, puts, stop).await?);
    }
    Ok(())
}

fn patch_one(
    place: &Place,
    found: &RawDocument,
    by_id: &mut HashMap<IdKey, Patch>,
) -> Result<Option<RawDocumentBuf>, Stopped<ApplyError>> {
    let patch = document::id(found).and_then(|id| by_id.remove(&IdKey::new(id)));
    let Some(Patch { updates, .. }) = patch else { return Ok(None) };
    apply(place, found.to_owned(), &updates).map(Some)
}

fn apply(
    place: &Place,
    document: RawDocumentBuf,
    updates: &[Update],
) -> Result<RawDocumentBuf, Stopped<ApplyError>> {
    let collection = place.namespace.to_string();
    patched(document, updates)
        .map_err(|source| Stopped::Failed(ApplyError::Diff { collection, source }))
}
