//! Reading a run of documents of one side in the order of its `_id` index, and taking it up again where a cursor was
//! lost.

use bson::{RawDocument, RawDocumentBuf};
use mongodb::raw_batch_cursor::RawBatch;

use crate::mongo::{Deployment, Error};
use crate::oplog::document;
use crate::retry::{Backoff, Outage, Stopped};
use crate::source::scan::{Scan, ScanRequest};
use crate::stop::Stop;
use crate::target::statements::single;

const NAMESPACE_NOT_FOUND: i32 = 26;
/// Cursors are lost for many reasons: not found, killed, its plan killed by a definition.
const CURSOR_LOST: [i32; 3] = [43, 175, 237];

/// One batch, and how far it has been read.
struct Batch {
    bytes: RawBatch,
    /// Where its documents begin and end.
    spans: Vec<(usize, usize)>,
    next: usize,
}

impl Batch {
    fn of(bytes: RawBatch, deployment: &Deployment) -> Result<Self, Error> {
        let failed = |error: mongodb::error::Error| deployment.error("read a collection", &error);
        let mut spans = Vec::new();
        let start = bytes.as_raw_document().as_bytes().as_ptr() as usize;
        for document in bytes.doc_slices().map_err(failed)? {
            let document = document.map_err(|error| failed(error.into()))?;
            if let Some(document) = document.as_document() {
                let begin = document.as_bytes().as_ptr() as usize - start;
                spans.push((begin, begin + document.as_bytes().len()));
            }
        }
        Ok(Self { bytes, spans, next: 0 })
    }

    fn at(&self, number: usize) -> Option<&RawDocument> {
        let (begin, end) = *self.spans.get(number)?;
        let bytes = self.bytes.as_raw_document().as_bytes().get(begin..end)?;
        RawDocument::from_bytes(bytes).ok()
    }

    fn current(&self) -> Option<&RawDocument> {
        self.at(self.next)
    }
}

/// A run of documents being read.
pub(super) struct Run {
    deployment: Deployment,
    request: ScanRequest,
    scan: Option<Scan>,
    batch: Option<Batch>,
    /// The `_id` of the last document read, once a cursor has to be opened again.
    resumed_after: Option<RawDocumentBuf>,
    ended: bool,
    /// Documents read.
    pub(super) documents: u64,
    /// Bytes of the batch that was read last, until somebody takes note of them.
    unpaid: u64,
}

impl Run {
    pub(super) fn new(deployment: &Deployment, request: ScanRequest) -> Self {
        Self {
            deployment: deployment.clone(),
            request,
            scan: None,
            batch: None,
            resumed_after: None,
            ended: false,
            documents: 0,
            unpaid: 0,
        }
    }

    /// The document at hand, without reading any.
    pub(super) fn current(&self) -> Option<&RawDocument> {
        self.batch.as_ref()?.current()
    }

    /// Whether there is nothing more to read.
    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Goes past the document at hand.
    pub(super) fn advance(&mut self) {
        if let Some(batch) = &mut self.batch {
            batch.next += 1;
            self.documents += 1;
        }
    }

    /// Bytes that were read since this was asked last.
    pub(super) fn take_unpaid(&mut self) -> u64 {
        std::mem::take(&mut self.unpaid)
    }

    /// Makes sure that there is a document at hand, unless the run has ended.
    ///
    /// # Errors
    /// [`Stopped`].
    pub(super) async fn fill(&mut self, stop: &Stop) -> Result<(), Stopped<Error>> {
        let mut backoff = Backoff::reconnect();
        let outage = Outage::new(self.deployment.side);
        while !self.ended && self.current().is_none() {
            stop.check()?;
            match self.read().await {
                Ok(()) => {}
                Err(error) if error.code() == Some(NAMESPACE_NOT_FOUND) => self.ended = true,
                Err(error)
                    if error.is_unreachable()
                        || error.code().is_some_and(|code| CURSOR_LOST.contains(&code)) =>
                {
                    self.take_up();
                    outage.report(&error);
                    stop.sleep(backoff.next_delay()).await?;
                }
                Err(error) => return Err(Stopped::Failed(error)),
            }
        }
        Ok(())
    }

    async fn read(&mut self) -> Result<(), Error> {
        let scan = match &mut self.scan {
            Some(scan) => scan,
            None => self.scan.insert(Scan::open(&self.deployment, self.request.clone()).await?),
        };
        let next = scan.next().await?;
        self.note_last();
        let Some(next) = next else {
            self.ended = true;
            self.batch = None;
            return Ok(());
        };
        let mut batch = Batch::of(next, &self.deployment)?;
        self.unpaid += batch.spans.iter().map(|(begin, end)| (end - begin) as u64).sum::<u64>();
        if let Some(last) = self.resumed_after.take()
            && batch.at(0).and_then(id_of).is_some_and(|first| first == last)
        {
            // The place where it was taken up again was read before.
            batch.next = 1;
        }
        self.batch = Some(batch);
        Ok(())
    }

    /// Notes where to begin again if the cursor is lost from here on.
    fn note_last(&mut self) {
        let last =
            self.batch.as_ref().and_then(|batch| batch.at(batch.spans.len().checked_sub(1)?));
        if let Some(id) = last.and_then(id_of) {
            self.request.from_id = Some(id);
        }
    }

    fn take_up(&mut self) {
        self.note_last();
        if self.batch.take().is_some() || self.documents > 0 {
            self.resumed_after.clone_from(&self.request.from_id);
        }
        self.scan = None;
    }
}

fn id_of(document: &RawDocument) -> Option<RawDocumentBuf> {
    document::id(document).map(|id| single("_id", id))
}
