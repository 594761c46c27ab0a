//! The spool being written: the tail on one side, the disk on the other. Runs beside the copy, so that a source whose
//! oplog is shorter than the copy still syncs.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mongodb::raw_batch_cursor::RawBatch;
use tokio::task::JoinHandle;

use super::feed::FeedError;
use crate::mongo::Deployment;
use crate::position::{OpTime, Ts};
use crate::retry::Stopped;
use crate::source::reader::{Fetched, Reader};
use crate::source::tail::optime_of;
use crate::spool::{SpoolError, SpoolWriter};
use crate::stop::Stop;
use crate::telemetry::counters::COUNTERS;
use crate::telemetry::events;

/// How often a full spool is looked at again.
const FULL_POLL: Duration = Duration::from_secs(1);

/// A spool that is being written.
#[derive(Debug)]
pub struct Spooler {
    task: JoinHandle<SpoolWriter>,
    shared: Arc<Shared>,
    stop: Stop,
}

/// What the writing task and its owner tell each other.
#[derive(Debug, Default)]
struct Shared {
    failure: Mutex<Option<FeedError>>,
    /// Nothing before this is needed any more.
    consumed: Mutex<Ts>,
}

impl Shared {
    fn take_failure(&self) -> Option<FeedError> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn consumed(&self) -> MutexGuard<'_, Ts> {
        self.consumed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Spooler {
    /// Begins at `from`, or at the end of what the spool holds already.
    #[must_use]
    pub fn start(source: Deployment, writer: SpoolWriter, from: OpTime, stop: &Stop) -> Self {
        let stop = stop.child();
        let shared: Arc<Shared> = Arc::default();
        let task = tokio::spawn(write(source, writer, from, shared.clone(), stop.clone()));
        Self { task, shared, stop }
    }

    /// Says that nothing before `ts` is needed any more; a restart reads from there.
    pub fn consumed(&self, ts: Ts) {
        *self.shared.consumed() = ts;
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// Why it does not.
    pub fn check(&self) -> Result<(), FeedError> {
        match self.shared.take_failure() {
            Some(error) => Err(error),
            None if self.task.is_finished() && !self.stop.is_requested() => Err(FeedError::Ended),
            None => Ok(()),
        }
    }

    /// Ends it, after what is in hand has been made durable, and gives the spool back.
    ///
    /// # Errors
    /// Why it had ended before.
    pub async fn finish(mut self) -> Result<SpoolWriter, FeedError> {
        self.stop.request();
        let Ok(writer) = (&mut self.task).await else { return Err(FeedError::Ended) };
        self.shared.take_failure().map_or(Ok(writer), Err)
    }
}

async fn write(
    source: Deployment,
    mut writer: SpoolWriter,
    from: OpTime,
    shared: Arc<Shared>,
    stop: Stop,
) -> SpoolWriter {
    let from = writer.durable_end().unwrap_or(from);
    let mut reader = Reader::start(source, from, &stop);
    let result = loop {
        let fetched = tokio::select! {
            () = stop.requested() => break Ok(()),
            fetched = reader.next() => fetched,
        };
        match fetched {
            None => break Ok(()),
            Some(Fetched::Lost(error)) => break Err(error.into()),
            Some(Fetched::Entries(batch)) => {
                match take(&mut writer, &batch, &shared, &stop).await {
                    Ok(()) => {}
                    Err(Stopped::Stop) => break Ok(()),
                    Err(Stopped::Failed(error)) => break Err(error.into()),
                }
            }
        }
    };
    reader.finish().await;
    if let Err(error) = result {
        *shared.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }
    writer
}

async fn take(
    writer: &mut SpoolWriter,
    batch: &RawBatch,
    shared: &Shared,
    stop: &Stop,
) -> Result<(), Stopped<SpoolError>> {
    let bytes = u64::try_from(batch.as_raw_document().as_bytes().len()).unwrap_or(u64::MAX);
    let mut round = 0_u32;
    loop {
        let consumed = *shared.consumed();
        // The entry to read from stays, so that a restart need not ask the source for it; unless space is short.
        let before = consumed.just_before();
        for through in [before, consumed] {
            tokio::task::block_in_place(|| writer.discard_through(through))
                .map_err(Stopped::Failed)?;
            if writer.has_room(bytes) {
                return tokio::task::block_in_place(|| append(writer, batch))
                    .map_err(Stopped::Failed);
            }
        }
        // A full spool waits: meanwhile the source's oplog holds what is to come, as long as it reaches.
        if round.is_multiple_of(60) {
            events::spool_short(writer.bytes(), writer.max_bytes());
        }
        round += 1;
        stop.sleep(FULL_POLL).await?;
    }
}

impl Drop for Spooler {
    /// Nobody reads on: the task ends after what it has in hand.
    fn drop(&mut self) {
        self.stop.request();
    }
}

fn append(writer: &mut SpoolWriter, batch: &RawBatch) -> Result<(), SpoolError> {
    let Ok(array) = batch.doc_slices() else { return Ok(()) };
    let end = writer.durable_end();
    let entries = array.into_iter().filter_map(|entry| {
        let entry = entry.ok()?.as_document()?;
        let optime = optime_of(entry)?;
        // The tail begins at the last entry known.
        (Some(optime) > end).then(|| (optime, entry.as_bytes()))
    });
    writer.append(entries)?;
    writer.sync()?;
    COUNTERS.spool_is(writer.bytes(), writer.max_bytes());
    if let Some(end) = writer.durable_end() {
        COUNTERS.spooled(end.ts.t);
    }
    Ok(())
}
