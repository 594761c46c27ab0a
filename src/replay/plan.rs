//! The plan of a window: what its oplog entries come to in the end. Pure.
//!
//! Between two definitions (create, rename, ...) operations on different documents commute, so a *stage* holds one
//! net change a document and may be applied in any order and by many workers. A definition is a barrier: everything
//! before it is applied first. The exception is a capped collection, whose changes keep their order.

use std::collections::HashMap;

use bson::{Document, RawDocument, RawDocumentBuf, Uuid};

use super::scope::Scope;
use crate::namespace::Namespace;
use crate::oplog::command::Ddl;
use crate::oplog::diff::DiffError;
use crate::oplog::document;
use crate::oplog::element::Value;
use crate::oplog::entry::DecodeError;
use crate::oplog::entry::{Kind, Operation};
use crate::oplog::id_key::IdKey;
use crate::oplog::update::Update;
use crate::selection::Selection;
use crate::target::statements::single;

/// One window's work, in order.
#[derive(Debug, Default)]
pub struct Plan {
    /// Stages and definitions in the order of the oplog.
    pub steps: Vec<Step>,
    /// Bytes held, about.
    pub bytes: usize,
    /// Operations on documents and definitions that the window held for the selection.
    pub operations: u64,
}

/// A part of a plan.
#[derive(Debug)]
pub enum Step {
    /// Changes of documents, to be applied in any order.
    Write(Stage),
    /// A definition, to be carried out alone.
    Define(Definition),
}

/// Net changes by collection.
#[derive(Debug, Default)]
pub struct Stage {
    /// By the collection's UUID on the source.
    pub collections: HashMap<Uuid, Changes>,
}

/// Net changes of one collection, in the order in which the documents were first touched.
#[derive(Debug, Default)]
pub struct Changes {
    changes: Vec<Change>,
    places: HashMap<IdKey, usize>,
    /// Which of them were removed and then inserted again: after how many changes, and as which of these.
    again: HashMap<usize, (usize, usize)>,
    inserted_again: usize,
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
            Self::Patch { id, updates } => {
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

/// A definition with everything it needs, independent of the entry it came from.
#[derive(Debug, Clone, PartialEq)]
pub enum Definition {
    /// A change of the catalogue of collections.
    Collection {
        /// UUID of the collection on the source.
        uuid: Uuid,
        /// What was done.
        change: CollectionChange,
    },
    /// A view was made or changed.
    PutView {
        /// Name on the source.
        view: Namespace,
        /// `viewOn`, `pipeline`, `collation`.
        definition: Document,
    },
    /// A view was dropped.
    DropView {
        /// Name on the source.
        view: Namespace,
    },
    /// The place where a database stores its views was made. Mostly a view follows, but it may have been refused.
    MakeViewStore {
        /// Name on the source.
        database: String,
    },
    /// All views of a database were dropped with the place where they are stored.
    DropViews {
        /// Name on the source.
        database: String,
    },
    /// A database was dropped.
    DropDatabase {
        /// Name on the source.
        database: String,
    },
}

/// What was done to a collection.
#[derive(Debug, Clone, PartialEq)]
pub enum CollectionChange {
    /// Created.
    Create {
        /// Name on the source.
        name: Namespace,
        /// Options of the create command, and `idIndex`.
        options: Document,
    },
    /// Dropped.
    Drop,
    /// Renamed.
    Rename {
        /// Old name on the source.
        from: Namespace,
        /// New name on the source.
        to: Namespace,
        /// The collection that had the new name before and was dropped.
        drop_target: Option<Uuid>,
    },
    /// Options changed.
    Modify {
        /// Fields of the collMod command.
        changes: Document,
    },
    /// Indexes created.
    CreateIndexes {
        /// Their specifications.
        specs: Vec<Document>,
    },
    /// An index dropped.
    DropIndex {
        /// Its name.
        name: String,
    },
}

/// An oplog operation that cannot be carried.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The operation makes no sense or is of an unknown kind.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// An update that cannot be applied.
    #[error("an update of {namespace} cannot be applied: {source}")]
    Update {
        /// Which collection.
        namespace: String,
        /// Why.
        source: DiffError,
    },
    /// Known, but not carried by this version.
    #[error("{what} on {namespace} is not supported by this version of snapsync")]
    Unsupported {
        /// What was done.
        what: String,
        /// Where.
        namespace: String,
    },
}

impl Plan {
    /// Whether it holds a definition, so that the catalogue changes with it.
    #[must_use]
    pub fn defines(&self) -> bool {
        self.steps.iter().any(|step| matches!(step, Step::Define(_)))
    }

    /// Names on the target of the collections that it creates.
    pub fn created<'a>(&'a self, selection: &'a Selection) -> impl Iterator<Item = Namespace> + 'a {
        self.steps.iter().filter_map(|step| match step {
            Step::Define(Definition::Collection {
                change: CollectionChange::Create { name, .. },
                ..
            }) => Some(selection.target_of(name)),
            _ => None,
        })
    }

    /// Adds one operation, in the order of the oplog.
    ///
    /// # Errors
    /// [`PlanError`].
    pub fn add(
        &mut self,
        operation: &Operation<'_>,
        selection: &Selection,
        scope: &Scope,
    ) -> Result<(), PlanError> {
        match operation.kind {
            Kind::Noop => Ok(()),
            Kind::Command { .. } => {
                let definitions = definitions(operation, selection, scope)?;
                for definition in definitions.into_iter().filter(|found| scope.has(found)) {
                    self.operations += 1;
                    self.steps.push(Step::Define(definition));
                }
                Ok(())
            }
            _ => self.add_write(operation, selection, scope),
        }
    }

    fn add_write(
        &mut self,
        operation: &Operation<'_>,
        selection: &Selection,
        scope: &Scope,
    ) -> Result<(), PlanError> {
        let Some(namespace) = Namespace::parse(operation.ns) else { return Ok(()) };
        // A view is selected by its own name, not by the name of the place where it is stored.
        if namespace.collection == "system.views" {
            if selection.may_include_database(&namespace.database) {
                let definition = view_change(operation, selection)?;
                let definition = definition.filter(|found| scope.has(found));
                self.operations += u64::from(definition.is_some());
                self.steps.extend(definition.map(Step::Define));
            }
            return Ok(());
        }
        if scope.has_contents(operation.ui, || selection.includes(&namespace)) {
            self.operations += 1;
            self.add_change(operation)?;
        }
        Ok(())
    }

    fn add_change(&mut self, operation: &Operation<'_>) -> Result<(), PlanError> {
        let Some(uuid) = operation.ui else {
            return Err(unsupported("an operation without a collection UUID", operation));
        };
        let stage = match self.steps.last_mut() {
            Some(Step::Write(stage)) => stage,
            _ => {
                self.steps.push(Step::Write(Stage::default()));
                let Some(Step::Write(stage)) = self.steps.last_mut() else { return Ok(()) };
                stage
            }
        };
        self.bytes += stage.collections.entry(uuid).or_default().add(operation)?;
        Ok(())
    }
}

fn unsupported(what: &str, operation: &Operation<'_>) -> PlanError {
    PlanError::Unsupported { what: what.to_owned(), namespace: operation.ns.to_owned() }
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

    fn add(&mut self, operation: &Operation<'_>) -> Result<usize, PlanError> {
        match operation.kind {
            Kind::Insert { id, doc } => {
                let document = doc.to_owned();
                let bytes = document.as_bytes().len();
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
        self.patch(IdKey::new(id), || single("_id", id), update)
            .map_err(|source| PlanError::Update { namespace: operation.ns.to_owned(), source })
    }

    fn patch(
        &mut self,
        key: IdKey,
        id: impl FnOnce() -> RawDocumentBuf,
        update: Update<&RawDocument>,
    ) -> Result<usize, DiffError> {
        let bytes = update.bytes();
        match self.places.get(&key).map(|place| &mut self.changes[*place]) {
            Some(Change::Put { document, .. }) => *document = update.apply(document)?,
            Some(Change::Patch { updates, .. }) => updates.push(update.to_kept()),
            // An update of what is not there changes nothing: the copy, or a later entry, has its result.
            Some(Change::Remove { .. }) => {}
            None => {
                self.places.insert(key, self.changes.len());
                let updates = vec![update.to_kept()];
                self.changes.push(Change::Patch { id: id(), updates });
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

/// What a command entry defines, if it concerns the selection.
fn definitions(
    operation: &Operation<'_>,
    selection: &Selection,
    scope: &Scope,
) -> Result<Vec<Definition>, PlanError> {
    let Kind::Command { o, o2 } = operation.kind else { return Ok(Vec::new()) };
    let ddl = Ddl::decode(operation.ns, o, o2)?;
    let contents = |name: &Namespace| scope.has_contents(operation.ui, || selection.includes(name));
    let change = match ddl {
        Ddl::Create { collection, .. } if collection.collection == "system.views" => {
            let make = Definition::MakeViewStore { database: collection.database.clone() };
            return Ok(if selection.includes(&collection) { vec![make] } else { Vec::new() });
        }
        Ddl::Drop { collection } if collection.collection == "system.views" => {
            // Those that are followed, whatever else was in it.
            let followed = selection.may_include_database(&collection.database);
            let drop = Definition::DropViews { database: collection.database };
            return Ok(if followed { vec![drop] } else { Vec::new() });
        }
        Ddl::Create { collection, options } if selection.includes(&collection) => {
            let mut options = control(options, operation)?;
            options.remove("create");
            CollectionChange::Create { name: collection, options }
        }
        Ddl::Drop { collection } if selection.includes(&collection) => CollectionChange::Drop,
        // Whether it concerns the selection depends on both names and on what is followed.
        Ddl::Rename { from, to, drop_target, .. } => {
            if !selection.includes(&from) && !selection.includes(&to) {
                return Ok(Vec::new());
            }
            CollectionChange::Rename { from, to, drop_target }
        }
        Ddl::CollMod { collection, options } if contents(&collection) => {
            let mut changes = control(options, operation)?;
            changes.remove("collMod");
            CollectionChange::Modify { changes }
        }
        Ddl::CreateIndexes { collection, specs } if contents(&collection) => {
            let specs: Result<Vec<Document>, PlanError> =
                specs.iter().map(|spec| control(spec, operation)).collect();
            CollectionChange::CreateIndexes { specs: specs? }
        }
        Ddl::DropIndexes { collection, index } if contents(&collection) => {
            CollectionChange::DropIndex { name: index.to_owned() }
        }
        Ddl::DropDatabase { database } if selection.may_include_database(database) => {
            return Ok(vec![Definition::DropDatabase { database: database.to_owned() }]);
        }
        Ddl::ConvertToCapped { collection, .. } | Ddl::EmptyCapped { collection }
            if contents(&collection) =>
        {
            return Err(unsupported("a conversion to capped as one command", operation));
        }
        _ => return Ok(Vec::new()),
    };
    let Some(uuid) = operation.ui else {
        return Err(unsupported("a definition without a collection UUID", operation));
    };
    Ok(vec![Definition::Collection { uuid, change }])
}

/// A definition as a document: definitions are small and hold no user data.
fn control(raw: &RawDocument, operation: &Operation<'_>) -> Result<Document, PlanError> {
    Document::try_from(raw)
        .map_err(|_| unsupported("a definition that is not valid BSON", operation))
}

/// A change of the place where views are stored, as the definition of a view. The views of time-series collections come
/// and go with their buckets.
fn view_change(
    operation: &Operation<'_>,
    selection: &Selection,
) -> Result<Option<Definition>, PlanError> {
    let view_of = |id: Value<'_>| {
        id.as_str().and_then(Namespace::parse).filter(|view| selection.includes(view))
    };
    match operation.kind {
        Kind::Insert { id, doc } | Kind::Replace { id, doc } => {
            let mut definition = control(doc, operation)?;
            definition.remove("_id");
            let on_buckets =
                definition.get_str("viewOn").is_ok_and(|on| on.starts_with("system.buckets."));
            let view = view_of(id).filter(|_| !on_buckets);
            Ok(view.map(|view| Definition::PutView { view, definition }))
        }
        Kind::Delete { id } => Ok(view_of(id).map(|view| Definition::DropView { view })),
        Kind::Diff { .. } | Kind::LegacyModify { .. } => {
            Err(unsupported("a partial update of a view's definition", operation))
        }
        Kind::Noop | Kind::Command { .. } => Ok(None),
    }
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

    #[test]
    fn a_document_inserted_again_stands_behind_those_before() {
        assert_eq!(ordered(false), ["-2", "+1", "+3", "+2", "+4", "-5"]);
        assert_eq!(ordered(true), ["-1", "-2", "-4", "+1", "+3", "+2", "+4", "-5"]);
    }
}
