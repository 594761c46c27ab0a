//! What is left to copy: parts, in the order in which they are taken.

use bson::Uuid;
use futures_util::{StreamExt, TryStreamExt, stream};

use super::Copier;
use super::progress::CollectionProgress;
use crate::catalogue::Collection;
use crate::mongo::Error;
use crate::retry::{Stopped, until_reached};
use crate::source::scan::{self, Size};
use crate::source::split;
use crate::stop::Stop;

/// One part of a collection.
#[derive(Debug, Clone)]
pub(super) struct Work {
    /// UUID of the collection on the source.
    pub(super) uuid: Uuid,
    /// The collection.
    pub(super) collection: Collection,
    /// Which of its parts.
    pub(super) part: usize,
    /// How large the whole collection is.
    pub(super) size: Size,
    /// Bytes of the part, about.
    bytes: u64,
}

impl Copier {
    /// What is left to copy, smallest first, so that the largest is taken (from the end) first and does not run alone
    /// at the end. Large collections that have not been begun are split.
    pub(super) async fn queue(&self, stop: &Stop) -> Result<Vec<Work>, Stopped<Error>> {
        let catalogue = self.catalogue.read().clone();
        let looks = catalogue
            .collections
            .into_iter()
            .map(|(uuid, collection)| self.look(uuid, collection, stop));
        // One call a collection: thousands of small ones should not wait for each other.
        let parts: Vec<Vec<Work>> =
            stream::iter(looks).buffer_unordered(self.workers.max(1)).try_collect().await?;
        let mut queue: Vec<Work> = parts.into_iter().flatten().collect();
        self.progress.save().map_err(Stopped::Failed)?;
        queue.sort_by_key(|work| work.bytes);
        Ok(queue)
    }

    /// The parts of one collection that are left.
    async fn look(
        &self,
        uuid: Uuid,
        collection: Collection,
        stop: &Stop,
    ) -> Result<Vec<Work>, Stopped<Error>> {
        stop.check()?;
        let name = &collection.source;
        let ask = || scan::size(&self.source, &name.database, &name.collection);
        // Unknown where it was dropped or renamed meanwhile; it is found by UUID all the same.
        let size = unless_refused(until_reached(self.source.side, stop, ask).await)?;
        self.counters.expect(size);
        if self.progress.of(&uuid).parts.is_empty() {
            let points = self.split(&collection, size, stop).await?;
            let split = CollectionProgress::split(points);
            self.progress.set(uuid, split).map_err(Stopped::Failed)?;
        }
        let progress = self.progress.of(&uuid);
        let copied = progress.copied();
        self.counters.take_over(copied);
        let even = size.bytes / u64::try_from(progress.parts.len().max(1)).unwrap_or(u64::MAX);
        let left = progress.parts.iter().enumerate().filter(|(_, part)| !part.done);
        let left = left.map(|(number, part)| Work {
            uuid,
            collection: collection.clone(),
            part: number,
            size,
            bytes: even.saturating_sub(part.bytes),
        });
        Ok(left.collect())
    }

    async fn split(
        &self,
        collection: &Collection,
        size: Size,
        stop: &Stop,
    ) -> Result<Vec<bson::RawDocumentBuf>, Stopped<Error>> {
        // Natural order is one run; and what belongs to the server is not sampled.
        if collection.is_capped() || collection.source.collection.starts_with("system.") {
            return Ok(Vec::new());
        }
        let collation = collection.options.0.get_document("collation").ok();
        let ask = || {
            let least = self.part_bytes_min;
            split::points(&self.source, &collection.source, collation, size, least)
        };
        unless_refused(until_reached(self.source.side, stop, ask).await)
    }
}

/// Nothing, where the server refused to answer.
fn unless_refused<T: Default>(result: Result<T, Stopped<Error>>) -> Result<T, Stopped<Error>> {
    match result {
        Err(Stopped::Failed(error)) if error.code().is_some() => Ok(T::default()),
        result => result,
    }
}
