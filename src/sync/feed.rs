//! Where replay gets its entries: from the spool as long as that holds some, then straight from the source.

use std::time::Duration;

use bson::{RawDocument, RawDocumentBuf};
use mongodb::raw_batch_cursor::RawBatch;

use super::context::{Context, Interrupted};
use super::copying::open_spool;
use super::spooling::Spooler;
use crate::mongo::Deployment;
use crate::position::{OpTime, Ts};
use crate::source::reader::{Fetched, Reader};
use crate::source::tail::TailError;
use crate::spool::{Batch, SpoolError, SpoolReader};
use crate::stop::Stop;

/// Bytes taken from the spool at once.
pub(super) const SPOOL_BATCH_BYTES: usize = 4 * 1024 * 1024;
/// How often an exhausted spool is looked at again.
const SPOOL_POLL: Duration = Duration::from_millis(50);

/// Why there are no more entries.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// The source no longer holds what comes next.
    #[error(transparent)]
    Tail(#[from] TailError),
    /// The spool cannot be read.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// The tail ended without a reason.
    #[error("internal error: the tail ended")]
    Ended,
}

/// Some entries, in order.
#[derive(Debug)]
pub enum Entries {
    /// From the source.
    Fetched(RawBatch),
    /// From the spool.
    Spooled(Batch),
}

impl Entries {
    /// Calls `each` for every entry in order, until it fails. What is no document at all is passed as an empty one,
    /// which no decoder takes.
    ///
    /// # Errors
    /// The first error of `each`.
    pub fn try_each<E>(
        &self,
        mut each: impl FnMut(&RawDocument) -> Result<(), E>,
    ) -> Result<(), E> {
        let nothing = RawDocumentBuf::new();
        match self {
            Self::Fetched(batch) => {
                let Ok(array) = batch.doc_slices() else { return each(&nothing) };
                array.into_iter().try_for_each(|entry| {
                    each(entry.ok().and_then(|value| value.as_document()).unwrap_or(&nothing))
                })
            }
            Self::Spooled(batch) => batch.iter().try_for_each(|(_, bytes)| {
                each(RawDocument::from_bytes(bytes).unwrap_or(&nothing))
            }),
        }
    }

    /// Whether there is none: whoever gave it had nothing more to give.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Fetched(batch) => batch.doc_slices().is_ok_and(|array| array.is_empty()),
            Self::Spooled(batch) => batch.is_empty(),
        }
    }
}

/// A source of entries.
#[derive(Debug)]
pub enum Feed {
    /// The spool, which goes on growing.
    Spooled {
        /// Writes it.
        spooler: Spooler,
        /// Reads it.
        reader: SpoolReader,
    },
    /// The source's oplog.
    Direct(Reader),
}

impl Feed {
    /// Through the spool, from `from` on. What an earlier run spooled is read first, if it reaches back to there.
    ///
    /// # Errors
    /// The disk.
    pub fn spooled(context: &Context, from: OpTime, stop: &Stop) -> Result<Self, Interrupted> {
        let writer = open_spool(context, from)?;
        let reader = writer.reader(from.ts.just_before());
        let spooler = Spooler::start(context.source.clone(), writer, from, stop);
        Ok(Self::Spooled { spooler, reader })
    }

    /// Whether the entries go through the spool.
    #[must_use]
    pub fn is_spooled(&self) -> bool {
        matches!(self, Self::Spooled { .. })
    }

    /// The next entries: some, or none if there are none just now.
    ///
    /// # Errors
    /// [`FeedError`].
    pub async fn next(&mut self, stop: &Stop) -> Result<Entries, FeedError> {
        match self {
            Self::Direct(reader) => tokio::select! {
                () = stop.requested() => Ok(Entries::Spooled(Batch::default())),
                fetched = reader.next() => match fetched {
                    Some(fetched) => taken(fetched),
                    // The tail hears of a stop as well, and may be seen to end before the stop is.
                    None if stop.is_requested() => Ok(Entries::Spooled(Batch::default())),
                    None => Err(FeedError::Ended),
                },
            },
            Self::Spooled { spooler, reader } => {
                spooler.check()?;
                let batch = tokio::task::block_in_place(|| reader.read_batch(SPOOL_BATCH_BYTES))?;
                if batch.is_empty() {
                    // Stopping is seen by whoever asks next.
                    let _stopped = stop.sleep(SPOOL_POLL).await;
                }
                Ok(Entries::Spooled(batch))
            }
        }
    }

    /// The next entries, if they are at hand.
    ///
    /// # Errors
    /// [`FeedError`].
    pub fn try_next(&mut self) -> Result<Option<Entries>, FeedError> {
        match self {
            Self::Direct(reader) => reader.try_next().map(taken).transpose(),
            Self::Spooled { reader, .. } => {
                let batch = tokio::task::block_in_place(|| reader.read_batch(SPOOL_BATCH_BYTES))?;
                Ok((!batch.is_empty()).then_some(Entries::Spooled(batch)))
            }
        }
    }

    /// Says that nothing before `ts` is needed any more; a restart reads from there.
    pub fn consumed(&self, ts: Ts) {
        if let Self::Spooled { spooler, .. } = self {
            spooler.consumed(ts);
        }
    }

    /// Leaves the spool for the source's oplog, once everything spooled has been taken: `last` is the last entry taken.
    ///
    /// # Errors
    /// The spool.
    pub async fn go_direct(
        self,
        source: &Deployment,
        last: OpTime,
        stop: &Stop,
    ) -> Result<Self, FeedError> {
        match self {
            Self::Direct(reader) => Ok(Self::Direct(reader)),
            Self::Spooled { spooler, reader } => {
                drop(reader);
                let mut writer = spooler.finish().await?;
                tokio::task::block_in_place(|| writer.remove_all())?;
                Ok(Self::Direct(Reader::start(source.clone(), last, stop)))
            }
        }
    }

    /// Ends reading.
    pub async fn finish(self) -> Result<(), FeedError> {
        match self {
            Self::Direct(reader) => reader.finish().await,
            Self::Spooled { spooler, .. } => drop(spooler.finish().await?),
        }
        Ok(())
    }
}

fn taken(fetched: Fetched) -> Result<Entries, FeedError> {
    match fetched {
        Fetched::Entries(batch) => Ok(Entries::Fetched(batch)),
        Fetched::Lost(error) => Err(error.into()),
    }
}
