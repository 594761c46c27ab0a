//! Documents that could not be put, because another document on the target holds a unique key of theirs (or their own
//! `_id` in another form). Nothing has left the target for them: each is still there in its older state, or not at all.

use std::collections::HashMap;

use bson::{RawDocumentBuf, Uuid, doc};
use mongodb::error::{TRANSIENT_TRANSACTION_ERROR, UNKNOWN_TRANSACTION_COMMIT_RESULT};

use super::apply::{Applier, ApplyError};
use super::chunk::{Conflict, put};
use super::plan::{CollectionChange, Stage};
use crate::mongo::{Error, Side};
use crate::oplog::diff::DiffError;
use crate::oplog::document;
use crate::oplog::id_key::IdKey;
use crate::retry::{Backoff, Outage, Stopped};
use crate::stop::Stop;
use crate::target::statements::Place;

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

    /// A collection that is dropped takes along what waits for it.
    pub(super) fn forget_if_dropped(&mut self, uuid: Uuid, change: &CollectionChange) {
        if matches!(change, CollectionChange::Drop) {
            self.by_collection.remove(&uuid);
        }
    }

    /// Tries again what other puts of the same stage may have made room for, as long as that helps.
    pub(super) async fn retry(
        mut self,
        applier: &Applier,
        stop: &Stop,
    ) -> Result<Self, Stopped<ApplyError>> {
        loop {
            let mut left = HashMap::new();
            let mut progress = false;
            for (uuid, documents) in self.by_collection.drain() {
                let Some((_, place)) = applier.locate(uuid) else { continue };
                let before = documents.len();
                let documents = put(&applier.writers, &place, documents, stop).await?;
                progress |= documents.len() < before;
                if !documents.is_empty() {
                    left.insert(uuid, documents);
                }
            }
            self.by_collection = left;
            if !progress {
                return Ok(self);
            }
        }
    }

    /// Places what is left: documents that hold each other's keys are removed and put back in one transaction.
    pub(super) async fn resolve(
        self,
        applier: &Applier,
        stop: &Stop,
    ) -> Result<(), Stopped<ApplyError>> {
        for (uuid, documents) in self.by_collection {
            let Some((_, place)) = applier.locate(uuid) else { continue };
            swap(applier, &place, &documents, stop).await?;
        }
        Ok(())
    }
}

/// Removes and puts back in one transaction. May be done again: it ends in the same documents.
async fn swap(
    applier: &Applier,
    place: &Place,
    documents: &[RawDocumentBuf],
    stop: &Stop,
) -> Result<(), Stopped<ApplyError>> {
    let target = applier.writers.deployment();
    let action = format!("exchange unique keys in {}", place.namespace);
    let mut backoff = Backoff::reconnect();
    let outage = Outage::new(Side::Target);
    loop {
        let error = match swap_once(applier, place, documents).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        let wrapped = Error::new(target.side, &action, &error);
        let again = error.contains_label(TRANSIENT_TRANSACTION_ERROR)
            || error.contains_label(UNKNOWN_TRANSACTION_COMMIT_RESULT)
            || wrapped.is_unreachable();
        if !again {
            let what = format!(
                "documents in {} hold unique keys that the source gives to others ({wrapped})",
                place.namespace
            );
            return Err(Stopped::Failed(ApplyError::Diverged { what }));
        }
        outage.report(&wrapped);
        stop.sleep(backoff.next_delay()).await?;
    }
}

async fn swap_once(
    applier: &Applier,
    place: &Place,
    documents: &[RawDocumentBuf],
) -> mongodb::error::Result<()> {
    let client = &applier.writers.deployment().client;
    let collection = client
        .database(&place.namespace.database)
        .collection::<RawDocumentBuf>(&place.namespace.collection);
    let mut session = client.start_session().await?;
    session.start_transaction().write_concern(mongodb::options::WriteConcern::majority()).await?;
    for document in documents {
        if let Ok(Some(id)) = document.get("_id") {
            let id: bson::Bson = id.try_into()?;
            collection.delete_one(doc! { "_id": { "$eq": id } }).session(&mut session).await?;
        }
    }
    collection
        .insert_many(documents)
        .bypass_document_validation(true)
        .session(&mut session)
        .await?;
    session.commit_transaction().await
}
