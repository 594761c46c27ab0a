//! The initial copy: every selected collection, several at once, as raw bytes.
//!
//! The copy is fuzzy: each document is read at some moment after the start optime, and the replay of everything after
//! that optime makes the whole consistent. So a document that is already there is no error, and one that is read
//! twice does no harm. Secondary indexes wait until the replay has caught up.

mod collection;
mod pace;
pub mod prepare;
mod progress;

use std::sync::Arc;

use bson::Uuid;
use tokio::task::JoinSet;

pub use pace::Pace;
pub use progress::{CollectionProgress, Counters, Progress, ProgressStore};

use crate::catalogue::Catalogue;
use crate::mongo::{Deployment, Error};
use crate::position::Ts;
use crate::retry::{Stopped, until_reached};
use crate::source::scan::{self, Size};
use crate::state::catalogue::CatalogueStore;
use crate::stop::Stop;
use crate::target::definitions::Definer;
use crate::target::writers::Writers;

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
    /// T0: nothing older is read.
    pub after: Ts,
    /// Collections copied at once.
    pub workers: usize,
    /// Limit on bytes a second.
    pub pace: Arc<Pace>,
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
        let catalogue = self.catalogue.read().clone();
        let mut queue = self.queue(&catalogue, stop).await?;
        // When one collection fails for good, the others stop at their next batch.
        let stop_all = stop.child();
        let mut tasks: JoinSet<Result<(), Stopped<Error>>> = JoinSet::new();
        let mut outcome = Ok(());
        loop {
            while tasks.len() < self.workers.max(1) && outcome.is_ok() {
                let Some((uuid, size)) = queue.pop() else { break };
                let Some(collection) = catalogue.collections.get(&uuid) else { continue };
                let (copier, collection) = (self.clone(), collection.clone());
                let stop = stop_all.clone();
                tasks.spawn(async move { copier.copy(uuid, collection, size, &stop).await });
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

    /// What is left to copy, smallest first, so that the largest is taken (from the end) first and does not run alone
    /// at the end.
    async fn queue(
        &self,
        catalogue: &Catalogue,
        stop: &Stop,
    ) -> Result<Vec<(Uuid, Size)>, Stopped<Error>> {
        let mut queue = Vec::with_capacity(catalogue.collections.len());
        for (uuid, collection) in &catalogue.collections {
            stop.check()?;
            let name = &collection.source;
            let ask = || scan::size(&self.source, &name.database, &name.collection);
            // Unknown where it was dropped or renamed meanwhile; it is found by UUID all the same.
            let size = match until_reached(self.source.side, stop, ask).await {
                Ok(size) => size,
                Err(Stopped::Failed(error)) if error.code().is_some() => Size::default(),
                Err(error) => return Err(error),
            };
            self.counters.expect(size);
            let progress = self.progress.of(uuid);
            self.counters.add(progress.documents, progress.bytes);
            if !progress.done {
                queue.push((*uuid, size));
            }
        }
        queue.sort_by_key(|(_, size)| size.bytes);
        Ok(queue)
    }
}
