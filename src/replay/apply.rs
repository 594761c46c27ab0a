//! Carrying out a plan on the target. When [`Applier::apply`] returns, everything in the plan is majority-acknowledged.
//!
//! Everything here may be done again: a put writes the same document, a removal misses, a diff over a newer document is
//! put right by the entries after it. A window that a kill cut short is therefore simply applied once more, in the
//! *tolerant* way: until its end the target may hold newer state than the plan knows, so what would be a contradiction
//! otherwise (a collection that is there already, a unique key that is taken) is worked around.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;

use bson::Uuid;
use tokio::task::JoinSet;

use super::changes::{Change, Changes};
use super::chunk::{Conflict, put_all, remove_all};
use super::conflicts::Conflicts;
use super::noted::Noted;
use super::plan::{CollectionChange, Definition, Plan, PlanError, Stage, Step};
use crate::catalogue::Collection;
use crate::mongo::Error;
use crate::oplog::diff::DiffError;
use crate::retry::Stopped;
use crate::selection::Selection;
use crate::state::catalogue::CatalogueStore;
use crate::stop::Stop;
use crate::target::definitions::Definer;
use crate::target::statements::{Place, chunks};
use crate::target::writers::Writers;

/// Why a window could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The target refused something.
    #[error(transparent)]
    Call(#[from] Error),
    /// A diff does not fit.
    #[error("an update of {collection} cannot be applied: {source}")]
    Diff {
        /// Which collection, by its name on the target.
        collection: String,
        /// Why.
        source: DiffError,
    },
    /// The target is not what the replayed catalogue says.
    #[error("source and target have diverged: {what}")]
    Diverged {
        /// Collections that a new copy would mend, by their UUID on the source.
        collections: Vec<Uuid>,
        /// What was found.
        what: String,
    },
    /// A part of a large transaction cannot be planned, although it could before.
    #[error(transparent)]
    Plan(PlanError),
    /// A task of ours failed.
    #[error("internal error: {0}")]
    Internal(String),
}

/// What a target answers that is not as it was left: a name is taken or gone, or a UUID, an index or a unique key is
/// another one's.
const DIVERGED: [i32; 8] = [26, 27, 48, 85, 86, 361, 11_000, 11_001];

impl ApplyError {
    /// Whether the target refused because it is not as it was left.
    #[must_use]
    pub fn is_divergence(error: &Error) -> bool {
        error.code().is_some_and(|code| DIVERGED.contains(&code))
    }

    /// The failure of something done to one collection: a divergence of that collection, if it looks like one.
    #[must_use]
    pub fn of(self, uuid: Uuid) -> Self {
        match self {
            Self::Call(error) if Self::is_divergence(&error) => {
                Self::Diverged { collections: vec![uuid], what: error.to_string() }
            }
            error => error,
        }
    }
}

/// [`ApplyError::of`] for a result.
pub(super) fn concerning<T>(
    uuid: Uuid,
    result: Result<T, Stopped<ApplyError>>,
) -> Result<T, Stopped<ApplyError>> {
    result.map_err(|stopped| stopped.map(|error| error.of(uuid)))
}

impl From<Stopped<Error>> for Stopped<ApplyError> {
    fn from(stopped: Stopped<Error>) -> Self {
        stopped.map(ApplyError::Call)
    }
}

/// What one step of a plan leaves to the next ones.
#[derive(Debug, Default)]
struct Carried {
    conflicts: Conflicts,
    /// Collections whose indexes wait for the end of a tolerant window.
    indexed: BTreeSet<Uuid>,
}

/// Applies plans to one target. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Applier {
    /// Carries out definitions.
    pub definer: Definer,
    /// Writes documents.
    pub writers: Writers,
    /// What is followed, and where it is on the target.
    pub store: Arc<CatalogueStore>,
    /// What is followed of what is new.
    pub selection: Selection,
    /// Write commands in flight at the most.
    pub workers: usize,
    /// What is changed, where somebody wants to know.
    pub noted: Noted,
}

impl Applier {
    /// Applies a plan. The catalogue changes in memory with the definitions; the caller makes it durable.
    ///
    /// # Errors
    /// [`Stopped`]: part of the plan may be on the target.
    pub async fn apply(
        &self,
        plan: Plan,
        tolerant: bool,
        stop: &Stop,
    ) -> Result<(), Stopped<ApplyError>> {
        let mut carried = Carried::default();
        for step in plan.steps {
            let Step::Large(mut large) = step else {
                self.carry_out(step, &mut carried, tolerant, stop).await?;
                continue;
            };
            loop {
                let next = tokio::task::block_in_place(|| large.next(&self.selection));
                let part = next.map_err(|error| Stopped::Failed(ApplyError::Plan(error)))?;
                let Some(part) = part else { break };
                for step in part.steps {
                    self.carry_out(step, &mut carried, tolerant, stop).await?;
                }
            }
        }
        carried.conflicts.resolve(self, stop).await?;
        for uuid in carried.indexed {
            self.complete_indexes(uuid, stop).await?;
        }
        Ok(())
    }

    async fn carry_out(
        &self,
        step: Step,
        carried: &mut Carried,
        tolerant: bool,
        stop: &Stop,
    ) -> Result<(), Stopped<ApplyError>> {
        stop.check()?;
        let conflicts = &mut carried.conflicts;
        match step {
            Step::Write(mut stage) => {
                self.noted.stage(&stage, tolerant);
                conflicts
                    .merge_into(&mut stage)
                    .map_err(|(uuid, source)| Stopped::Failed(self.diff_error(uuid, source)))?;
                *conflicts = self.write(stage, tolerant, stop).await?;
                // Strictly in order every stage ends in a state the source had, so nothing stays in the way.
                if !tolerant {
                    std::mem::take(conflicts).resolve(self, stop).await?;
                }
            }
            Step::Define(definition) => {
                self.noted.definition(&definition);
                if let Definition::Collection { uuid, change } = &definition {
                    conflicts.forget_if_dropped(*uuid, change);
                    if tolerant && matches!(change, CollectionChange::CreateIndexes { .. }) {
                        carried.indexed.insert(*uuid);
                    }
                }
                self.define(definition, tolerant, stop).await?;
            }
            Step::Large(_) => {
                let text = "a large transaction within another one".to_owned();
                return Err(Stopped::Failed(ApplyError::Internal(text)));
            }
        }
        Ok(())
    }

    fn diff_error(&self, uuid: Uuid, source: DiffError) -> ApplyError {
        let catalogue = self.store.read();
        let name = catalogue.collections.get(&uuid).map(|found| found.target.to_string());
        ApplyError::Diff { collection: name.unwrap_or_default(), source }
    }

    /// The collection and where it is on the target; `None` if it is not followed, or not there any more.
    pub(super) fn locate(&self, uuid: Uuid) -> Option<(Collection, Place)> {
        let collection = self.store.read().collections.get(&uuid)?.clone();
        let target_uuid = collection.target_uuid?;
        let place = self.definer.place(&collection.target, Some(target_uuid));
        Some((collection, place))
    }

    async fn write(
        &self,
        stage: Stage,
        tolerant: bool,
        stop: &Stop,
    ) -> Result<Conflicts, Stopped<ApplyError>> {
        let mut removals = Vec::new();
        let mut puts = Vec::new();
        let mut ordered = Vec::new();
        for (uuid, changes) in stage.collections {
            let Some((collection, place)) = self.locate(uuid) else { continue };
            if collection.is_capped() {
                ordered.push((uuid, place, changes));
                continue;
            }
            let (removed, put) = split(changes);
            removals.extend(self.pieces(removed).map(|piece| (uuid, place.clone(), piece)));
            puts.extend(self.pieces(put).map(|piece| (uuid, place.clone(), piece)));
        }
        // Removals first: a key that one document gives up may be taken by another.
        let writers = &self.writers;
        let removals = removals.into_iter().map(|(uuid, place, piece)| {
            let (writers, stop) = (writers.clone(), stop.clone());
            async move {
                let removed = remove_all(&writers, &place, piece, &stop).await;
                concerning(uuid, removed.map(|()| Vec::<()>::new()))
            }
        });
        all(self.workers, removals, stop).await?;
        let puts = puts.into_iter().map(|(uuid, place, piece)| {
            let (writers, stop) = (writers.clone(), stop.clone());
            async move { concerning(uuid, put_all(&writers, uuid, &place, piece, &stop).await) }
        });
        let mut conflicts: Vec<Conflict> = all(self.workers, puts, stop).await?;
        for (uuid, place, changes) in ordered {
            let changes = changes.into_ordered(tolerant);
            let written = self.write_in_order(uuid, &place, changes, stop).await;
            conflicts.extend(concerning(uuid, written)?);
        }
        Conflicts::from(conflicts).retry(self, stop).await
    }

    /// Splits changes so that all workers have something to do, and none too much at once.
    fn pieces(&self, changes: Vec<Change>) -> impl Iterator<Item = Vec<Change>> {
        /// Below this a command of its own costs more than it gains.
        const PIECE_MIN: usize = 100;
        let even = changes.len().div_ceil(self.workers.max(1)).max(PIECE_MIN);
        let mut pieces = Vec::new();
        for run in chunks(changes, Change::bytes) {
            let mut run = run.into_iter().peekable();
            while run.peek().is_some() {
                pieces.push(run.by_ref().take(even).collect());
            }
        }
        pieces.into_iter()
    }

    /// A capped collection: its order is part of what it is, so runs of changes of one kind are written one by one.
    async fn write_in_order(
        &self,
        uuid: Uuid,
        place: &Place,
        changes: Vec<Change>,
        stop: &Stop,
    ) -> Result<Vec<Conflict>, Stopped<ApplyError>> {
        let mut conflicts = Vec::new();
        let mut changes = changes.into_iter().peekable();
        while let Some(first) = changes.next() {
            let kind = first.kind();
            let mut run = vec![first];
            while let Some(next) = changes.next_if(|next| next.kind() == kind) {
                run.push(next);
            }
            let removal = run.first().is_some_and(Change::is_removal);
            for piece in chunks(run, Change::bytes) {
                if removal {
                    let removed = remove_all(&self.writers, place, piece, stop).await;
                    removed.map_err(|stopped| stopped.map(|error| not_removed(uuid, error)))?;
                } else {
                    conflicts.extend(put_all(&self.writers, uuid, place, piece, stop).await?);
                }
            }
        }
        Ok(conflicts)
    }
}

/// Servers before 5.0 remove nothing from a capped collection, so that documents cannot be put in their order again
/// after a kill: a new copy does that.
fn not_removed(uuid: Uuid, error: ApplyError) -> ApplyError {
    const ILLEGAL_OPERATION: i32 = 20;
    match error {
        ApplyError::Call(error) if error.code() == Some(ILLEGAL_OPERATION) => {
            ApplyError::Diverged { collections: vec![uuid], what: error.to_string() }
        }
        error => error,
    }
}

fn split(changes: Changes) -> (Vec<Change>, Vec<Change>) {
    changes.into_changes().partition(Change::is_removal)
}

/// Runs tasks, so many at once, and collects what they return. After the first failure no more are begun, but those
/// that run are waited for: nothing lands after this returns.
async fn all<T, F>(
    limit: usize,
    tasks: impl Iterator<Item = F>,
    stop: &Stop,
) -> Result<Vec<T>, Stopped<ApplyError>>
where
    T: Send + 'static,
    F: Future<Output = Result<Vec<T>, Stopped<ApplyError>>> + Send + 'static,
{
    let mut tasks = tasks.peekable();
    let mut running = JoinSet::new();
    let mut results = Vec::new();
    let mut failure = None;
    loop {
        while failure.is_none() && running.len() < limit.max(1) {
            if stop.is_requested() {
                failure = Some(Stopped::Stop);
                break;
            }
            let Some(task) = tasks.next() else { break };
            running.spawn(task);
        }
        match running.join_next().await {
            None => break,
            Some(Ok(Ok(result))) => results.extend(result),
            Some(Ok(Err(error))) => failure = failure.or(Some(error)),
            Some(Err(panic)) => {
                let error = Stopped::Failed(ApplyError::Internal(panic.to_string()));
                failure = failure.or(Some(error));
            }
        }
    }
    match failure {
        Some(error) => Err(error),
        None => Ok(results),
    }
}
