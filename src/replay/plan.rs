//! The plan of a window: what its oplog entries come to in the end. Pure.
//!
//! Between two definitions (create, rename, ...) operations on different documents commute, so a *stage* holds one
//! net change a document and may be applied in any order and by many workers. A definition is a barrier: everything
//! before it is applied first. The exception is a capped collection, whose changes keep their order.

use std::collections::HashMap;

use bson::{Document, RawDocument, Uuid};

use super::changes::Changes;
use super::scope::Scope;
use crate::namespace::Namespace;
use crate::oplog::command::Ddl;
use crate::oplog::diff::DiffError;
use crate::oplog::document;
use crate::oplog::element::Value;
use crate::oplog::entry::DecodeError;
use crate::oplog::entry::{Kind, Operation};
use crate::oplog::overflow::{LargeTransaction, PartError};
use crate::selection::Selection;

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
    /// A transaction that is not held in memory: a run of plans, to be carried out one after another.
    Large(LargeStep),
}

/// A transaction that is planned part by part.
#[derive(Debug)]
pub struct LargeStep {
    transaction: LargeTransaction,
    scope: Scope,
    /// Names on the source of the collections that it creates.
    created: Vec<Namespace>,
    defines: bool,
}

impl LargeStep {
    /// The plan of the next part; `None` behind the last one. Parts may be carried out one after another: a
    /// transaction held its unique keys for itself from the moment it wrote them.
    ///
    /// # Errors
    /// The place where it is kept.
    pub fn next(&mut self, selection: &Selection) -> Result<Option<Plan>, PlanError> {
        let Some(part) = self.transaction.next_part()? else { return Ok(None) };
        let mut plan = Plan::default();
        for operation in part.operations() {
            plan.add(&operation?, selection, &self.scope)?;
        }
        Ok(Some(plan))
    }
}

/// Net changes by collection.
#[derive(Debug, Default)]
pub struct Stage {
    /// By the collection's UUID on the source.
    pub collections: HashMap<Uuid, Changes>,
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

impl Definition {
    /// The name on the source of the collection that it creates.
    fn created(&self) -> Option<&Namespace> {
        match self {
            Self::Collection { change: CollectionChange::Create { name, .. }, .. }
            | Self::PutView { view: name, .. } => Some(name),
            _ => None,
        }
    }
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
    /// All documents removed.
    Empty,
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
    /// A large transaction cannot be had back from where it was put.
    #[error(transparent)]
    Part(#[from] PartError),
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
        self.steps.iter().any(|step| match step {
            Step::Define(_) => true,
            Step::Large(large) => large.defines,
            Step::Write(_) => false,
        })
    }

    /// Names on the target of the collections that it creates.
    pub fn created<'a>(&'a self, selection: &'a Selection) -> impl Iterator<Item = Namespace> + 'a {
        let created = self.steps.iter().filter_map(|step| match step {
            Step::Define(definition) => definition.created().map(|name| vec![name]),
            Step::Large(large) => Some(large.created.iter().collect()),
            Step::Write(_) => None,
        });
        created.flatten().map(|name| selection.target_of(name))
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

    /// Adds a transaction that is not held in memory, once all of it is known to be understood.
    ///
    /// # Errors
    /// [`PlanError`].
    pub fn add_large(
        &mut self,
        transaction: LargeTransaction,
        selection: &Selection,
        scope: &Scope,
    ) -> Result<(), PlanError> {
        let mut step =
            LargeStep { transaction, scope: scope.clone(), created: Vec::new(), defines: false };
        step.transaction.rewind().map_err(PartError::from)?;
        while let Some(part) = step.next(selection)? {
            self.operations += part.operations;
            step.defines |= part.defines();
            let created = part.steps.iter().filter_map(|step| match step {
                Step::Define(definition) => definition.created().cloned(),
                _ => None,
            });
            step.created.extend(created);
        }
        step.transaction.rewind().map_err(PartError::from)?;
        self.steps.push(Step::Large(step));
        Ok(())
    }

    fn add_change(&mut self, operation: &Operation<'_>) -> Result<(), PlanError> {
        let Some(uuid) = operation.ui else {
            // The applyOps command logs removals from a collection that there was not.
            if matches!(operation.kind, Kind::Delete { .. }) {
                return Ok(());
            }
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
        Ddl::EmptyCapped { collection } if contents(&collection) => CollectionChange::Empty,
        // Supported servers log a temporary, its documents and a rename instead.
        Ddl::ConvertToCapped { collection, .. } if contents(&collection) => {
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
    if !document::is_shallow(raw) {
        return Err(unsupported(
            "a definition that is nested deeper than servers store",
            operation,
        ));
    }
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
