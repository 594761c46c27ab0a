//! What a window does to the documents of one collection, folded to one net change a document. Pure.

use std::collections::HashMap;

use bson::{RawDocument, RawDocumentBuf};

use super::plan::PlanError;
use crate::oplog::diff::DiffError;
use crate::oplog::document;
use crate::oplog::element::Value;
use crate::oplog::entry::{Kind, Operation};
use crate::oplog::id_key::IdKey;
use crate::oplog::update::Update;
use crate::target::statements::single;

/// Net changes of one collection, in the order in which the documents were first touched.
#[derive(Debug, Default)]
pub struct Changes {
    changes: Vec<Change>,
    places: HashMap<IdKey, usize>,
    /// Which of them were removed and then inserted again: after how many changes, and as which of these.
    again: HashMap<usize, (usize, usize)>,
    inserted_again: usize,
    /// Inserts less removals.
    net: i64,
}

/// What a window did to one document.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// The document is this now.
    Put {
        /// The whole document.
        document: RawDocumentBuf,
        /// It was inserted within the window, so that most likely nobody has its `_id` on the target.
        fresh: bool,
    },
    /// These updates apply, in order, to whatever the document was before; nothing if it is not there.
    Patch {
        /// `{_id}` of the document.
        id: RawDocumentBuf,
        /// In either format.
        updates: Vec<Update>,
        /// The first of them that makes the document if it is not there, of nothing but its `_id`.
        upserts_from: Option<usize>,
    },
    /// The document is gone.
    Remove {
        /// `{_id}` of the document.
        id: RawDocumentBuf,
    },
}

impl Change {
    /// Bytes to send for it, about.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Self::Put { document, .. } => document.as_bytes().len(),
            Self::Patch { id, updates, .. } => {
                id.as_bytes().len() + updates.iter().map(Update::bytes).sum::<usize>()
            }
            Self::Remove { id } => id.as_bytes().len(),
        }
    }

    /// What tells changes apart that one command cannot make in their order.
    #[must_use]
    pub fn kind(&self) -> impl PartialEq + use<> {
        (std::mem::discriminant(self), self.is_insert())
    }

    /// Whether it is a document that is not there yet, and that an insert does not change.
    #[must_use]
    pub fn is_insert(&self) -> bool {
        match self {
            Self::Put { document, fresh } => *fresh && !document::shape(document).zero_timestamp,
            Self::Patch { .. } | Self::Remove { .. } => false,
        }
    }

    /// Whether the document is to be removed.
    #[must_use]
    pub fn is_removal(&self) -> bool {
        matches!(self, Self::Remove { .. })
    }
}

impl Changes {
    /// Net changes in order.
    pub fn into_changes(self) -> impl Iterator<Item = Change> {
        self.changes.into_iter()
    }

    /// The changes as a collection takes them whose documents have an order. A document that was removed and inserted
    /// again stands behind all that were there before that, so it is removed at first. In a tolerant window that goes
    /// for every document that was inserted: it may be there already, behind others that come before it.
    #[must_use]
    pub fn into_ordered(self, tolerant: bool) -> Vec<Change> {
        let mut first = Vec::new();
        let mut ordered = Vec::with_capacity(self.changes.len());
        for (place, change) in self.changes.into_iter().enumerate() {
            let later = self.again.get(&place).copied();
            if let Change::Put { document, fresh } = &change
                && (later.is_some() || (tolerant && *fresh))
                && let Some(id) = document::id(document)
            {
                first.push(Change::Remove { id: single("_id", id) });
            }
            ordered.push((later.unwrap_or((place, 0)), change));
        }
        ordered.sort_by_key(|(order, _)| *order);
        first.extend(ordered.into_iter().map(|(_, change)| change));
        first
    }

    /// `{_id}` of every document concerned; of one that moved within the window, more than once.
    pub(super) fn ids(&self) -> impl Iterator<Item = RawDocumentBuf> + '_ {
        self.changes.iter().filter_map(|change| match change {
            Change::Put { document, .. } => document::id(document).map(|id| single("_id", id)),
            Change::Patch { id, .. } | Change::Remove { id } => Some(id.clone()),
        })
    }

    /// Inserts less removals: by how much the number of documents on the source has changed.
    pub(super) fn net(&self) -> i64 {
        self.net
    }

    /// Number of documents concerned.
    #[must_use]
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether nothing is left to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Puts a document that an earlier stage could not place before everything this stage does to it.
    ///
    /// # Errors
    /// A diff that cannot be applied.
    pub fn put_before(&mut self, key: IdKey, document: RawDocumentBuf) -> Result<(), DiffError> {
        let Some(place) = self.places.get(&key).copied() else {
            self.put(key, document, false);
            return Ok(());
        };
        // A later put or removal overrides it.
        if let Change::Patch { updates, .. } = &self.changes[place] {
            let document = patched(document, updates)?;
            self.changes[place] = Change::Put { document, fresh: false };
        }
        Ok(())
    }

    pub(super) fn add(&mut self, operation: &Operation<'_>) -> Result<usize, PlanError> {
        match operation.kind {
            Kind::Insert { id, doc } => {
                let document = doc.to_owned();
                let bytes = document.as_bytes().len();
                self.net += 1;
                self.put(IdKey::new(id), document, true);
                Ok(bytes)
            }
            Kind::Replace { id, doc } => {
                let document = doc.to_owned();
                let bytes = document.as_bytes().len();
                self.put(IdKey::new(id), document, false);
                Ok(bytes)
            }
            Kind::Diff { id, diff } => self.update(operation, id, Update::Diff(diff)),
            Kind::LegacyModify { id, modifier } => {
                self.update(operation, id, Update::Modifier(modifier))
            }
            Kind::Delete { id } => {
                let id_document = single("_id", id);
                let bytes = id_document.as_bytes().len();
                self.net -= 1;
                self.remove(IdKey::new(id), id_document);
                Ok(bytes)
            }
            Kind::Noop | Kind::Command { .. } => Ok(0),
        }
    }

    fn put(&mut self, key: IdKey, document: RawDocumentBuf, inserted: bool) {
        match self.places.get(&key) {
            Some(place) => {
                let place = *place;
                let fresh = matches!(self.changes[place], Change::Put { fresh: true, .. });
                if inserted && self.changes[place].is_removal() {
                    self.inserted_again += 1;
                    self.again.insert(place, (self.changes.len() - 1, self.inserted_again));
                }
                self.changes[place] = Change::Put { document, fresh };
            }
            None => {
                self.places.insert(key, self.changes.len());
                self.changes.push(Change::Put { document, fresh: inserted });
            }
        }
    }

    fn update(
        &mut self,
        operation: &Operation<'_>,
        id: Value<'_>,
        update: Update<&RawDocument>,
    ) -> Result<usize, PlanError> {
        self.patch(IdKey::new(id), || single("_id", id), update, operation.upsert)
            .map_err(|source| PlanError::Update { namespace: operation.ns.to_owned(), source })
    }

    fn patch(
        &mut self,
        key: IdKey,
        id: impl FnOnce() -> RawDocumentBuf,
        update: Update<&RawDocument>,
        upsert: bool,
    ) -> Result<usize, DiffError> {
        let bytes = update.bytes();
        match self.places.get(&key).map(|place| &mut self.changes[*place]) {
            Some(Change::Put { document, .. }) => *document = update.apply(document)?,
            Some(Change::Patch { updates, upserts_from, .. }) => {
                if upsert {
                    upserts_from.get_or_insert(updates.len());
                }
                updates.push(update.to_kept());
            }
            Some(Change::Remove { .. }) if upsert => {
                let document = update.apply(&id())?;
                self.put(key, document, true);
            }
            // An update of what is not there changes nothing: the copy, or a later entry, has its result.
            Some(Change::Remove { .. }) => {}
            None => {
                self.places.insert(key, self.changes.len());
                let (id, updates) = (id(), vec![update.to_kept()]);
                let upserts_from = upsert.then_some(0);
                self.changes.push(Change::Patch { id, updates, upserts_from });
            }
        }
        Ok(bytes)
    }

    fn remove(&mut self, key: IdKey, id: RawDocumentBuf) {
        match self.places.get(&key) {
            Some(place) => self.changes[*place] = Change::Remove { id },
            None => {
                self.places.insert(key, self.changes.len());
                self.changes.push(Change::Remove { id });
            }
        }
    }
}

/// The document after these updates.
///
/// # Errors
/// One that cannot be applied.
pub fn patched(
    mut document: RawDocumentBuf,
    updates: &[Update],
) -> Result<RawDocumentBuf, DiffError> {
    for update in updates {
        document = update.apply(&document)?;
    }
    Ok(document)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::rawdoc;

    /// What becomes of the documents: `+` for a put, `-` for a removal, in order.
    fn ordered(tolerant: bool) -> Vec<String> {
        let mut changes = Changes::default();
        let id = |n: i32| rawdoc! { "_id": n };
        let key = |n: i32| document::id(&id(n)).map(IdKey::new).unwrap();
        changes.put(key(1), id(1), true);
        changes.remove(key(2), id(2));
        changes.put(key(3), id(3), false);
        changes.put(key(2), id(2), true);
        changes.put(key(4), id(4), true);
        changes.remove(key(5), id(5));
        let text = |change: Change| {
            let sign = if change.is_removal() { '-' } else { '+' };
            let (Change::Put { document: id, .. }
            | Change::Patch { id, .. }
            | Change::Remove { id }) = change;
            format!("{sign}{}", id.get_i32("_id").unwrap())
        };
        changes.into_ordered(tolerant).into_iter().map(text).collect()
    }

    fn upserted(changes: Changes) -> Vec<Change> {
        changes.into_changes().collect()
    }

    #[test]
    fn an_update_that_makes_the_document_begins_with_its_id() {
        let id = rawdoc! { "_id": 1 };
        let key = || document::id(&id).map(IdKey::new).unwrap();
        let diff = |n: i32| rawdoc! { "i": { "a": n } };
        let patch = |changes: &mut Changes, n: i32, upsert: bool| {
            let diff = diff(n);
            changes.patch(key(), || id.clone(), Update::Diff(&diff), upsert).unwrap();
        };
        let mut unknown = Changes::default();
        patch(&mut unknown, 1, false);
        patch(&mut unknown, 2, true);
        patch(&mut unknown, 3, true);
        let updates = (1..4).map(|n| Update::Diff(diff(n))).collect();
        let expected = Change::Patch { id: id.clone(), updates, upserts_from: Some(1) };
        assert_eq!(upserted(unknown), [expected]);
        let mut removed = Changes::default();
        removed.remove(key(), id.clone());
        patch(&mut removed, 1, false);
        patch(&mut removed, 2, true);
        let document = rawdoc! { "_id": 1, "a": 2 };
        assert_eq!(upserted(removed), [Change::Put { document, fresh: false }]);
    }

    #[test]
    fn a_document_inserted_again_stands_behind_those_before() {
        assert_eq!(ordered(false), ["-2", "+1", "+3", "+2", "+4", "-5"]);
        assert_eq!(ordered(true), ["-1", "-2", "-4", "+1", "+3", "+2", "+4", "-5"]);
    }
}
