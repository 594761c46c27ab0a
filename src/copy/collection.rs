//! Copying one collection: one reader, two inserts in flight, progress in order.

use std::collections::VecDeque;

use bson::{RawArray, RawArrayBuf, RawDocument, RawDocumentBuf, Uuid};
use mongodb::raw_batch_cursor::RawBatch;
use tokio::task::JoinHandle;

use super::progress::CollectionProgress;
use super::{Copier, prepare};
use crate::catalogue::Collection;
use crate::mongo::{Error, Side, StatementError};
use crate::oplog::document;
use crate::retry::{Backoff, Outage, Stopped};
use crate::source::scan::{Scan, ScanRequest, Size};
use crate::stop::Stop;
use crate::target::statements::{self, Place};

/// Inserts in flight for one collection: one is written while the next is on its way.
const INSERTS_IN_FLIGHT: usize = 2;
const DUPLICATE_KEY: i32 = 11_000;
const NAMESPACE_NOT_FOUND: i32 = 26;

/// One batch on the target.
struct Inserted {
    documents: u64,
    bytes: u64,
    last_id: Option<RawDocumentBuf>,
}

type Insert = JoinHandle<Result<Inserted, Stopped<Error>>>;

/// How reading ended.
enum Read {
    Complete,
    /// The source went away; reading may go on from what has been written.
    Interrupted(Error),
}

impl Copier {
    /// Copies one collection from where an earlier attempt stopped.
    pub(super) async fn copy(
        &self,
        uuid: Uuid,
        mut collection: Collection,
        size: Size,
        stop: &Stop,
    ) -> Result<(), Stopped<Error>> {
        let mut backoff = Backoff::reconnect();
        let outage = Outage::new(self.source.side);
        loop {
            if collection.is_capped() && self.progress.of(&uuid).documents > 0 {
                // Natural order cannot be taken up in the middle, so it is read from the beginning again.
                self.progress
                    .advance(uuid, CollectionProgress::default())
                    .map_err(Stopped::Failed)?;
                prepare::recreate(&self.definer, &self.catalogue, uuid, &mut collection, stop)
                    .await?;
            }
            match self.read(uuid, &collection, size, stop).await? {
                Read::Complete => {
                    let done = CollectionProgress { done: true, ..self.progress.of(&uuid) };
                    self.progress.advance(uuid, done).map_err(Stopped::Failed)?;
                    return Ok(());
                }
                Read::Interrupted(error) => {
                    outage.report(&error);
                    stop.sleep(backoff.next_delay()).await?;
                }
            }
        }
    }

    async fn read(
        &self,
        uuid: Uuid,
        collection: &Collection,
        size: Size,
        stop: &Stop,
    ) -> Result<Read, Stopped<Error>> {
        let request = ScanRequest {
            database: collection.source.database.clone(),
            uuid,
            natural: collection.is_capped(),
            from_id: self.progress.of(&uuid).last_id,
            after: self.after,
            batch_documents: size.batch_documents(),
        };
        let place = self.definer.place(&collection.target, collection.target_uuid);
        let in_flight = if collection.is_capped() { 1 } else { INSERTS_IN_FLIGHT };
        let mut inserts: VecDeque<Insert> = VecDeque::new();
        let read = self.pump(&request, &place, in_flight, &mut inserts, stop).await;
        // Whatever ended the reading, what was sent is waited for: nothing of this run may land later.
        let mut drained = Ok(());
        while let Some(insert) = inserts.pop_front() {
            let settled = self.settle(uuid, insert).await;
            drained = drained.and(settled);
        }
        drained?;
        match read {
            Ok(()) => Ok(Read::Complete),
            Err(Stopped::Failed(error)) if error.side == Side::Source => match error.code() {
                // Dropped: its drop is in the oplog, and what was copied goes with it.
                Some(NAMESPACE_NOT_FOUND) => Ok(Read::Complete),
                // Cursors are lost for many reasons (killed, timed out, a step-down); they are opened again.
                Some(_) => Ok(Read::Interrupted(error)),
                None if error.is_unreachable() => Ok(Read::Interrupted(error)),
                None => Err(Stopped::Failed(error)),
            },
            Err(error) => Err(error),
        }
    }

    async fn pump(
        &self,
        request: &ScanRequest,
        place: &Place,
        in_flight: usize,
        inserts: &mut VecDeque<Insert>,
        stop: &Stop,
    ) -> Result<(), Stopped<Error>> {
        let mut scan = Scan::open(&self.source, request).await.map_err(Stopped::Failed)?;
        while let Some(batch) = scan.next().await.map_err(Stopped::Failed)? {
            stop.check()?;
            if inserts.len() >= in_flight
                && let Some(oldest) = inserts.pop_front()
            {
                self.settle(request.uuid, oldest).await?;
            }
            let bytes = u64::try_from(batch.as_raw_document().as_bytes().len()).unwrap_or(0);
            self.pace.take(bytes, stop).await?;
            let (copier, place, stop) = (self.clone(), place.clone(), stop.clone());
            inserts
                .push_back(tokio::spawn(async move { copier.insert(&place, batch, &stop).await }));
        }
        Ok(())
    }

    /// Waits for the oldest insert and notes the progress, which therefore never has a gap.
    async fn settle(&self, uuid: Uuid, insert: Insert) -> Result<(), Stopped<Error>> {
        let inserted =
            insert.await.unwrap_or_else(|panic| Err(Stopped::Failed(self.panicked(&panic))))?;
        self.counters.add(inserted.documents, inserted.bytes);
        let mut progress = self.progress.of(&uuid);
        progress.documents += inserted.documents;
        progress.bytes += inserted.bytes;
        progress.last_id = inserted.last_id.or(progress.last_id);
        self.progress.advance(uuid, progress).map_err(Stopped::Failed)
    }

    async fn insert(
        &self,
        place: &Place,
        batch: RawBatch,
        stop: &Stop,
    ) -> Result<Inserted, Stopped<Error>> {
        let malformed = |_| {
            let text = "a batch of documents makes no sense";
            Stopped::Failed(Error::other(self.source.side, "read a collection", text))
        };
        let array = batch.doc_slices().map_err(malformed)?;
        let mut inserted = Inserted { documents: 0, bytes: 0, last_id: None };
        let mut last = None;
        let mut odd = false;
        for document in array {
            let Some(document) = document.ok().and_then(|value| value.as_document()) else {
                return Err(malformed(mongodb::error::Error::custom(())));
            };
            inserted.documents += 1;
            inserted.bytes += u64::try_from(document.as_bytes().len()).unwrap_or(0);
            odd |= document::shape(document).zero_timestamp;
            last = Some(document);
        }
        let Some(last) = last else { return Ok(inserted) };
        inserted.last_id = document::id(last).map(|id| statements::single("_id", id));
        if odd {
            self.insert_with_odd_ones(place, array, stop).await?;
        } else {
            self.send(place, place.insert(array), stop).await?;
        }
        Ok(inserted)
    }

    /// A batch with documents that a plain insert would change: those are put one by one.
    async fn insert_with_odd_ones(
        &self,
        place: &Place,
        array: &RawArray,
        stop: &Stop,
    ) -> Result<(), Stopped<Error>> {
        for command in in_order(place, array) {
            self.send(place, command, stop).await?;
        }
        Ok(())
    }

    async fn send(
        &self,
        place: &Place,
        command: RawDocumentBuf,
        stop: &Stop,
    ) -> Result<(), Stopped<Error>> {
        let action = format!("copy into {}", place.namespace);
        let reply = self.writers.write(&place.namespace.database, &action, command, stop).await?;
        // There already: copied before a restart, or read twice.
        let unexpected = reply.errors.iter().find(|error| error.code != DUPLICATE_KEY);
        match unexpected {
            Some(StatementError { code, .. }) => {
                Err(Stopped::Failed(Error::from_code(Side::Target, action, *code, "")))
            }
            None => Ok(()),
        }
    }
}

/// Commands that write these documents in their order, which matters in a capped collection: those that a plain insert
/// would change are put.
fn in_order(place: &Place, array: &RawArray) -> Vec<RawDocumentBuf> {
    let odd = |document: &RawDocument| document::shape(document).zero_timestamp;
    let documents = array.into_iter().filter_map(|value| value.ok()?.as_document());
    let mut documents = documents.peekable();
    let mut commands = Vec::new();
    while documents.peek().is_some() {
        let mut plain = RawArrayBuf::new();
        while let Some(document) = documents.next_if(|document| !odd(document)) {
            plain.push(document.to_owned());
        }
        if !plain.is_empty() {
            commands.push(place.insert(&plain));
        }
        let mut puts = Vec::new();
        while let Some(document) = documents.next_if(|document| odd(document)) {
            puts.extend(document::id(document).map(|id| statements::put(id, document)));
        }
        for run in statements::chunks(puts, |put| put.as_bytes().len()) {
            let mut array = RawArrayBuf::new();
            run.into_iter().for_each(|put| array.push(put));
            commands.push(place.update(array, false));
        }
    }
    commands
}
