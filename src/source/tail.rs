//! Reading the oplog in order, with majority read concern, from a known entry on.
//!
//! A query from a timestamp that the oplog no longer holds silently begins at the oldest entry left, and after a
//! rollback another entry may stand at the same timestamp. So reading always begins *at* the last entry known, and
//! that entry must come back first, in the same term.

use std::time::Duration;

use bson::{RawDocument, RawDocumentBuf, doc};
use futures_util::StreamExt;
use mongodb::Collection;
use mongodb::options::{CursorType, ReadConcern};
use mongodb::raw_batch_cursor::{RawBatch, RawBatchCursor};

use crate::mongo::{Deployment, Error, cursor_documents};
use crate::position::{OpTime, Ts};

/// How long the server holds a fetch open when there is nothing new.
const AWAIT: Duration = Duration::from_millis(500);
/// Entries in one fetch at the most; the server's own limit is 16 MiB.
const FETCH_ENTRIES_MAX: u32 = 5_000;
/// A fetch that is not answered for this long is given up and made again on a new connection.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

const CAPPED_POSITION_LOST: i32 = 136;

/// Why the oplog cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum TailError {
    /// The entry to read from is not in the source's oplog.
    #[error(
        "the source's oplog does not hold the entry at {wanted}; its first entry from there on is at {found}"
    )]
    Lost {
        /// What was asked for.
        wanted: OpTime,
        /// What came first instead, or "none".
        found: String,
    },
    /// The entry to read from is not in the source's oplog although that reaches back further: this is not the history
    /// that was read.
    #[error(
        "the source's oplog reaches back before {wanted}, but does not hold the entry there, which was read and applied"
    )]
    NeverHeld {
        /// What was asked for.
        wanted: OpTime,
    },
    /// The source has nothing at or after the entry to read from. A primary that was elected just now may need a moment
    /// until it says so with majority.
    #[error("the source's oplog ends before the entry at {wanted}")]
    Ahead {
        /// What was asked for.
        wanted: OpTime,
    },
    /// The call failed.
    #[error(transparent)]
    Call(#[from] Error),
}

/// The oplog being read.
pub struct Tail {
    source: Deployment,
    cursor: RawBatchCursor,
    expected: Option<OpTime>,
}

impl std::fmt::Debug for Tail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tail").field("expected", &self.expected).finish_non_exhaustive()
    }
}

fn oplog(source: &Deployment) -> Collection<RawDocumentBuf> {
    source.client.database("local").collection("oplog.rs")
}

impl Tail {
    /// Begins reading at `from`, inclusive. Whether it is there shows with the first entries.
    ///
    /// # Errors
    /// The call failed.
    pub async fn open(source: &Deployment, from: OpTime) -> Result<Self, Error> {
        let cursor = oplog(source)
            .find(doc! { "ts": { "$gte": bson::Timestamp::from(from.ts) } })
            .cursor_type(CursorType::TailableAwait)
            .max_await_time(AWAIT)
            .no_cursor_timeout(true)
            .read_concern(ReadConcern::majority())
            .batch_size(FETCH_ENTRIES_MAX)
            .batch()
            .await
            .map_err(|error| source.error("open the oplog", &error))?;
        Ok(Self { source: source.clone(), cursor, expected: Some(from) })
    }

    /// The next fetch: entries in order, or none if there was nothing new for half a second. The entry that reading
    /// began at is among the first ones; whoever has it already skips it.
    ///
    /// # Errors
    /// [`TailError::Lost`] if reading did not begin at the entry asked for, or fell off the end of the oplog since.
    pub async fn next(&mut self) -> Result<RawBatch, TailError> {
        let action = "read the oplog";
        // Dropping the wait leaves the fetch in the cursor; the cursor itself is dropped by the caller with the error.
        let next = match tokio::time::timeout(ANSWER_WITHIN, self.cursor.next()).await {
            Ok(next) => next,
            Err(_) => return Err(self.silent(action).into()),
        };
        let batch = match next {
            Some(Ok(batch)) => batch,
            Some(Err(error)) => return Err(self.failed(action, &error)),
            None => return Err(self.silent(action).into()),
        };
        if let Some(expected) = self.expected {
            let documents =
                batch.doc_slices().map_err(|error| self.source.error(action, &error))?;
            if let Some(first) = documents.into_iter().next() {
                let first = first.ok().and_then(|first| first.as_document().map(optime_of));
                check_first(expected, first.flatten())?;
                self.expected = None;
            }
        }
        Ok(batch)
    }

    fn failed(&self, action: &str, error: &mongodb::error::Error) -> TailError {
        let error = self.source.error(action, error);
        match (error.code(), self.expected) {
            (Some(CAPPED_POSITION_LOST), Some(wanted)) => {
                TailError::Lost { wanted, found: "unknown".to_owned() }
            }
            // Read on from the last entry known; whether that is still there shows then.
            (Some(_), _) => TailError::Call(error.into_unreachable()),
            _ => TailError::Call(error),
        }
    }

    fn silent(&self, action: &str) -> Error {
        Error::other(self.source.side, action, "the cursor ended").into_unreachable()
    }
}

fn check_first(expected: OpTime, first: Option<OpTime>) -> Result<(), TailError> {
    if first == Some(expected) {
        return Ok(());
    }
    let found = first.map_or_else(|| "none".to_owned(), |first| first.to_string());
    Err(TailError::Lost { wanted: expected, found })
}

/// Where the last entry of a fetch stands; `None` if it is empty.
#[must_use]
pub fn last_optime(batch: &RawBatch) -> Option<OpTime> {
    let documents = batch.doc_slices().ok()?;
    documents.into_iter().last()?.ok()?.as_document().and_then(optime_of)
}

/// Timestamp and term of an entry.
#[must_use]
pub fn optime_of(entry: &RawDocument) -> Option<OpTime> {
    let ts = entry.get_timestamp("ts").ok()?;
    Some(OpTime::new(Ts::from(ts), entry.get_i64("t").unwrap_or(-1)))
}

/// Whether the oplog still holds the entry at `optime`.
///
/// # Errors
/// [`TailError::Lost`] if it does not, [`TailError::Ahead`] if it ends before.
pub async fn check_held(source: &Deployment, optime: OpTime) -> Result<(), TailError> {
    match first_at_or_after(source, optime.ts).await? {
        None => Err(TailError::Ahead { wanted: optime }),
        first => check_first(optime, first),
    }
}

/// Tells an entry that the source has lost from one that it never had: its oplog reaches back further, or to the very
/// beginning of the set (of files that were restored, and initiated anew).
pub async fn told_apart(source: &Deployment, lost: OpTime, error: TailError) -> TailError {
    let Ok(Some(oldest)) = one_entry(source, doc! {}, 1).await else { return error };
    let before = optime_of(&oldest).is_some_and(|oldest| oldest.ts < lost.ts);
    let message = oldest.get_document("o").and_then(|o| o.get_str("msg"));
    if before || message.is_ok_and(|message| message == INITIATES) {
        TailError::NeverHeld { wanted: lost }
    } else {
        error
    }
}

/// The first majority-committed entry at or after `ts`, if there is one.
///
/// # Errors
/// The call failed.
pub async fn first_at_or_after(source: &Deployment, ts: Ts) -> Result<Option<OpTime>, Error> {
    let filter = doc! { "ts": { "$gte": bson::Timestamp::from(ts) } };
    let entry = one_entry(source, filter, 1).await?;
    Ok(entry.as_deref().and_then(optime_of))
}

/// Wall times of the oldest and the newest majority-committed entry, in milliseconds since 1970: the oplog's window.
///
/// # Errors
/// The call failed.
pub async fn window_wall_ms(source: &Deployment) -> Result<Option<(i64, i64)>, Error> {
    let wall = |entry: Option<RawDocumentBuf>| {
        entry.and_then(|entry| Some(entry.get_datetime("wall").ok()?.timestamp_millis()))
    };
    let oldest = wall(one_entry(source, doc! {}, 1).await?);
    let newest = wall(one_entry(source, doc! {}, -1).await?);
    Ok(oldest.zip(newest))
}

/// What the first entry of a new set says.
const INITIATES: &str = "initiating set";

async fn one_entry(
    source: &Deployment,
    filter: bson::Document,
    natural: i32,
) -> Result<Option<RawDocumentBuf>, Error> {
    let command = doc! {
        "find": "oplog.rs",
        "filter": filter,
        "sort": { "$natural": natural },
        "limit": 1,
        "projection": { "ts": 1, "t": 1, "wall": 1, "o.msg": 1 },
        "readConcern": { "level": "majority" },
    };
    let mut entries = cursor_documents(source, "local", "look into the oplog", command).await?;
    Ok(entries.pop())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_of_another_term_is_another_entry() {
        let wanted = OpTime::new(Ts::new(5, 1), 2);
        assert!(check_first(wanted, Some(wanted)).is_ok());
        for found in
            [None, Some(OpTime::new(Ts::new(5, 1), 3)), Some(OpTime::new(Ts::new(6, 1), 2))]
        {
            assert!(matches!(check_first(wanted, found), Err(TailError::Lost { .. })));
        }
    }
}
