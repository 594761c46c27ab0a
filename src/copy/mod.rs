//! The initial copy: every selected collection, several at once, as raw bytes.
//!
//! The copy is fuzzy: each document is read at some moment after the start optime, and the replay of everything after
//! that optime makes the whole consistent. So a document that is already there is no error, and one that is read
//! twice does no harm. Secondary indexes wait until the replay has caught up.
//!
//! A large collection is split into runs of its `_id`s, which several readers share; the unit of work and of progress
//! is such a part.

mod budget;
mod pace;
mod part;
pub mod prepare;
mod progress;
mod queue;

use std::sync::Arc;

use tokio::task::JoinSet;

pub use pace::Pace;
pub use progress::{CollectionProgress, Counters, Part, Progress, ProgressStore};

use crate::mongo::{Deployment, Error};
use crate::position::Ts;
use crate::retry::Stopped;
use crate::state::catalogue::CatalogueStore;
use crate::stop::Stop;
use crate::target::definitions::Definer;
use crate::target::writers::Writers;
use budget::Budget;

/// Bytes of documents that are worth a reader of their own.
pub const PART_BYTES_MIN: u64 = 64 * 1024 * 1024;

/// What a copy works with.
#[derive(Debug, Clone)]
pub struct Copier {
    /// Where documents are read.
    pub source: Deployment,
    /// Makes collections on the target.
    pub definer: Definer,
    /// Writes documents to the target.
    pub writers: Writers,
    /// What there is to copy, and where it goes.
    pub catalogue: Arc<CatalogueStore>,
    /// Nothing older is read.
    pub after: Ts,
    /// Parts copied at once.
    pub workers: usize,
    /// Bytes of documents in one part of a split collection, at least: [`PART_BYTES_MIN`].
    pub part_bytes_min: u64,
    /// What the whole process may take; the copy takes a part of it.
    pub memory_bytes_max: u64,
    /// Limit on bytes a second.
    pub pace: Arc<Pace>,
    /// How often in a row the source may refuse to read a part that has not moved on, before its copy has failed.
    pub refusals_max: u32,
    /// What has been copied, durably.
    pub progress: Arc<ProgressStore>,
    /// What has been copied, for people.
    pub counters: Arc<Counters>,
}

impl Copier {
    /// Copies every collection of the catalogue that is not marked as copied; each has been created on the target.
    ///
    /// # Errors
    /// [`Stopped`]: what has been copied so far is durable.
    pub async fn run(&self, stop: &Stop) -> Result<(), Stopped<Error>> {
        let budget = Budget::new(self.memory_bytes_max);
        let batch_bytes = budget.batch_bytes(self.workers);
        let mut queue = self.queue(stop).await?;
        // When one part fails for good, the others stop at their next batch.
        let stop_all = stop.child();
        let mut tasks: JoinSet<Result<(), Stopped<Error>>> = JoinSet::new();
        let mut outcome = Ok(());
        loop {
            while tasks.len() < self.workers.max(1) && outcome.is_ok() {
                let Some(work) = queue.pop() else { break };
                let (copier, budget, stop) = (self.clone(), budget.clone(), stop_all.clone());
                tasks.spawn(async move { copier.copy(work, batch_bytes, &budget, &stop).await });
            }
            let Some(done) = tasks.join_next().await else { break };
            let done = done.unwrap_or_else(|panic| Err(Stopped::Failed(self.panicked(&panic))));
            if let (Err(error), Ok(())) = (done, &outcome) {
                stop_all.request();
                outcome = Err(error);
            }
        }
        self.progress.save().map_err(Stopped::Failed)?;
        outcome
    }

    fn panicked(&self, panic: &tokio::task::JoinError) -> Error {
        Error::other(self.source.side, "copy a collection", format!("internal error: {panic}"))
    }
}
