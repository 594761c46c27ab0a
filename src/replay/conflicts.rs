//! Documents that could not be put, because another document on the target holds a unique key of theirs (or their own
//! `_id` in another form), or because an index that came later does not take them as they were. Nothing has left the
//! target for them: each is still there in its older state, or not at all.

use std::collections::HashMap;

use bson::{RawArrayBuf, RawDocumentBuf, Uuid};

use super::apply::{Applier, ApplyError, concerning};
use super::chunk::{Conflict, put};
use super::plan::{CollectionChange, Stage};
use crate::oplog::diff::DiffError;
use crate::oplog::document;
use crate::oplog::id_key::IdKey;
use crate::retry::Stopped;
use crate::stop::Stop;
use crate::target::statements::{self, Place};

/// How often everything that waits is tried again before it is exchanged in one transaction instead.
const ROUNDS: u32 = 6;
/// Bytes of documents that are exchanged in one transaction, unless nothing else helps.
const SWAP_BYTES: usize = 8 * 1024 * 1024;

fn bytes(documents: &[RawDocumentBuf]) -> usize {
    documents.iter().map(|document| document.as_bytes().len()).sum()
}

/// Documents waiting for a key, by the UUID of their collection on the source.
#[derive(Debug, Default)]
pub(super) struct Conflicts {
    by_collection: HashMap<Uuid, Vec<RawDocumentBuf>>,
}

impl From<Vec<Conflict>> for Conflicts {
    fn from(conflicts: Vec<Conflict>) -> Self {
        let mut by_collection: HashMap<Uuid, Vec<RawDocumentBuf>> = HashMap::new();
        for conflict in conflicts {
            by_collection.entry(conflict.uuid).or_default().push(conflict.document);
        }
        Self { by_collection }
    }
}

impl Conflicts {
    /// Hands what is waiting to the next stage, underneath whatever that does to the same documents.
    pub(super) fn merge_into(&mut self, stage: &mut Stage) -> Result<(), (Uuid, DiffError)> {
        for (uuid, documents) in self.by_collection.drain() {
            let changes = stage.collections.entry(uuid).or_default();
            for document in documents {
                let Some(key) = document::id(&document).map(IdKey::new) else { continue };
                changes.put_before(key, document).map_err(|error| (uuid, error))?;
            }
        }
        Ok(())
    }

    /// A collection that is dropped or emptied takes along what waits for it.
    pub(super) fn forget_if_dropped(&mut self, uuid: Uuid, change: &CollectionChange) {
        if matches!(change, CollectionChange::Drop | CollectionChange::Empty) {
            self.by_collection.remove(&uuid);
        }
    }

    /// Tries again what other puts of the same stage may have made room for, as long as that helps; where there is
    /// little left of it, only for some rounds: in a bad order every round would place one document.
    pub(super) async fn retry(
        mut self,
        applier: &Applier,
        stop: &Stop,
    ) -> Result<Self, Stopped<ApplyError>> {
        for round in 1_u32.. {
            let mut left = HashMap::new();
            let mut progress = false;
            for (uuid, mut documents) in self.by_collection.drain() {
                let Some((collection, place)) = applier.locate(uuid) else { continue };
                // A capped collection takes no transactions.
                if round > ROUNDS && !collection.is_capped() && bytes(&documents) <= SWAP_BYTES {
                    left.insert(uuid, documents);
                    continue;
                }
                let before = documents.len();
                // Keys that all move on by one free each other only in one order, which may be the other one.
                documents.reverse();
                let documents = put(&applier.writers, &place, documents, stop).await;
                let documents = concerning(uuid, documents)?;
                progress |= documents.len() < before;
                if !documents.is_empty() {
                    left.insert(uuid, documents);
                }
            }
            self.by_collection = left;
            if !progress {
                break;
            }
        }
        Ok(self)
    }

    /// Places what is left: documents that hold each other's keys are removed and put back in one transaction.
    pub(super) async fn resolve(
        self,
        applier: &Applier,
        stop: &Stop,
    ) -> Result<(), Stopped<ApplyError>> {
        for (uuid, documents) in self.by_collection {
            let Some((_, place)) = applier.locate(uuid) else { continue };
            swap(applier, uuid, &place, &documents, stop).await?;
        }
        Ok(())
    }
}

/// Removes and puts back in one transaction. May be done again: it ends in the same documents.
async fn swap(
    applier: &Applier,
    uuid: Uuid,
    place: &Place,
    documents: &[RawDocumentBuf],
    stop: &Stop,
) -> Result<(), Stopped<ApplyError>> {
    let action = format!("exchange unique keys in {}", place.namespace);
    let ids = || documents.iter().filter_map(|document| document::id(document));
    let commands = || {
        let removals = runs(ids().map(statements::remove)).map(|run| place.delete(run));
        // Put and not inserted: an insert would change some of them.
        let puts = ids().zip(documents).map(|(id, document)| statements::put(id, document));
        let commands = removals.chain(runs(puts).map(|run| place.update(run, true)));
        commands.map(|command| (place.namespace.database.clone(), command)).collect::<Vec<_>>()
    };
    match applier.writers.transaction(&action, commands, stop).await {
        Err(Stopped::Failed(error)) if !error.is_fenced() => {
            let what = format!(
                "documents of the source cannot be written to {}: others hold their unique keys, or an \
                 index does not take them ({error})",
                place.namespace
            );
            Err(Stopped::Failed(ApplyError::Diverged { collections: vec![uuid], what }))
        }
        result => Ok(result?),
    }
}

/// Statements in runs that fit one command.
fn runs(statements: impl Iterator<Item = RawDocumentBuf>) -> impl Iterator<Item = RawArrayBuf> {
    let runs = statements::chunks(statements.collect(), |statement: &RawDocumentBuf| {
        statement.as_bytes().len()
    });
    runs.into_iter().map(|run| {
        let mut array = RawArrayBuf::new();
        run.into_iter().for_each(|statement| array.push(statement));
        array
    })
}
