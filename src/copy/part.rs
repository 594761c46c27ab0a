//! Copying one part of a collection: one reader, two inserts in flight, progress in order.

use std::collections::VecDeque;

use bson::{RawArray, RawArrayBuf, RawDocument, RawDocumentBuf};
use mongodb::raw_batch_cursor::RawBatch;
use tokio::task::JoinHandle;

use super::budget::{BATCHES, Budget};
use super::progress::CollectionProgress;
use super::queue::Work;
use super::{Copier, prepare};
use crate::mongo::{Error, Side, StatementError};
use crate::oplog::document;
use crate::retry::{Backoff, Outage, Stopped, unless_stopped};
use crate::source::scan::{Scan, ScanRequest, Which};
use crate::stop::Stop;
use crate::target::statements::{self, Place};

/// Inserts in flight for one part: one is written while the next is on its way.
const INSERTS_IN_FLIGHT: usize = BATCHES - 1;
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
    /// Copies one part from where an earlier attempt stopped.
    pub(super) async fn copy(
        &self,
        mut work: Work,
        batch_bytes: u64,
        budget: &Budget,
        stop: &Stop,
    ) -> Result<(), Stopped<Error>> {
        let mut backoff = Backoff::reconnect();
        let outage = Outage::new(self.source.side);
        let (mut refusals, mut reached) = (0, None);
        loop {
            if work.collection.is_capped() && self.progress.of(&work.uuid).copied().documents > 0 {
                // Natural order cannot be taken up in the middle, so it is read from the beginning again.
                let anew = CollectionProgress::split(Vec::new());
                self.progress.set(work.uuid, anew).map_err(Stopped::Failed)?;
                let (definer, catalogue) = (&self.definer, &self.catalogue);
                prepare::recreate(definer, catalogue, work.uuid, &mut work.collection, stop)
                    .await?;
            }
            match self.read(&work, batch_bytes, budget, stop).await? {
                Read::Complete => {
                    let advanced =
                        self.progress.advance(&work.uuid, work.part, |part| part.done = true);
                    return advanced.map_err(Stopped::Failed);
                }
                Read::Interrupted(error) => {
                    outage.report(&error);
                    let last_id = self.progress.part(&work.uuid, work.part).last_id;
                    if last_id != reached {
                        (refusals, reached) = (0, last_id);
                    }
                    refusals += u32::from(!error.is_unreachable());
                    if refusals >= self.refusals_max {
                        return Err(Stopped::Failed(error));
                    }
                    stop.sleep(backoff.next_delay()).await?;
                }
            }
        }
    }

    async fn read(
        &self,
        work: &Work,
        batch_bytes: u64,
        budget: &Budget,
        stop: &Stop,
    ) -> Result<Read, Stopped<Error>> {
        let collection = &work.collection;
        let part = self.progress.part(&work.uuid, work.part);
        let request = ScanRequest {
            database: collection.source.database.clone(),
            collection: Which::Uuid(work.uuid),
            natural: collection.is_capped(),
            from_id: part.resume_id(),
            until_id: part.until_id,
            after: self.after,
            batch_documents: work.size.batch_documents(batch_bytes),
        };
        let mut pump = Pump {
            copier: self,
            work,
            place: self.definer.place(&collection.target, collection.target_uuid),
            in_flight: if collection.is_capped() { 1 } else { INSERTS_IN_FLIGHT },
            inserts: VecDeque::new(),
            budget,
        };
        let read = pump.run(request, batch_bytes, stop).await;
        // Whatever ended the reading, what was sent is waited for: nothing of this run may land later.
        pump.drain().await?;
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

/// One reader with its inserts.
struct Pump<'a> {
    copier: &'a Copier,
    work: &'a Work,
    place: Place,
    in_flight: usize,
    inserts: VecDeque<Insert>,
    budget: &'a Budget,
}

impl Pump<'_> {
    async fn run(
        &mut self,
        request: ScanRequest,
        batch_bytes: u64,
        stop: &Stop,
    ) -> Result<(), Stopped<Error>> {
        let mut expected = batch_bytes;
        let mut room = self.budget.reserve(expected, stop).await?;
        // A document that a prepared transaction holds keeps its reader waiting.
        let opened = unless_stopped(stop, Scan::open(&self.copier.source, request)).await?;
        let mut scan = opened.map_err(Stopped::Failed)?;
        while let Some(batch) = unless_stopped(stop, scan.next()).await?.map_err(Stopped::Failed)? {
            stop.check()?;
            let bytes = u64::try_from(batch.as_raw_document().as_bytes().len()).unwrap_or(0);
            if bytes > expected {
                // Larger than the average promised: given back first, because it must not be held while more is waited
                // for.
                expected = bytes;
                drop(room);
                room = self.budget.reserve(expected, stop).await?;
            }
            if self.inserts.len() >= self.in_flight
                && let Some(oldest) = self.inserts.pop_front()
            {
                self.settle(oldest).await?;
            }
            self.copier.pace.take(bytes, stop).await?;
            let (copier, place, stop_insert) =
                (self.copier.clone(), self.place.clone(), stop.clone());
            self.inserts.push_back(tokio::spawn(async move {
                let inserted = copier.insert(&place, batch, &stop_insert).await;
                drop(room);
                inserted
            }));
            room = self.budget.reserve(expected, stop).await?;
        }
        Ok(())
    }

    /// Waits for everything that was sent.
    async fn drain(&mut self) -> Result<(), Stopped<Error>> {
        let mut drained = Ok(());
        while let Some(insert) = self.inserts.pop_front() {
            let settled = self.settle(insert).await;
            drained = drained.and(settled);
        }
        drained
    }

    /// Waits for the oldest insert and notes the progress, which therefore never has a gap.
    async fn settle(&self, insert: Insert) -> Result<(), Stopped<Error>> {
        let Copier { progress, counters, .. } = self.copier;
        let inserted = insert
            .await
            .unwrap_or_else(|panic| Err(Stopped::Failed(self.copier.panicked(&panic))))?;
        counters.add(inserted.documents, inserted.bytes);
        let noted = progress.advance(&self.work.uuid, self.work.part, |part| {
            part.documents += inserted.documents;
            part.bytes += inserted.bytes;
            part.last_id = inserted.last_id.or(part.last_id.take());
        });
        noted.map_err(Stopped::Failed)
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
