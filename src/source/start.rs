//! Where to begin, so that nothing is lost.
//!
//! The start optime T0 is the newest *majority-committed* optime, taken before anything is listed: every other "now"
//! a server offers may lie beyond a hole in the oplog, an entry that gets its place before and its contents after. An
//! entry of a transaction that was prepared before T0 and commits after it lies before T0 as well, so reading begins
//! at the oldest of those, and applying after T0. The same goes for a transaction of several entries whose last ones
//! the majority does not have yet.

use bson::{RawDocument, doc};

use crate::mongo::{Deployment, Error, Hello, cursor_documents};
use crate::position::{OpTime, Ts};
use crate::source::tail;

/// A moment to copy from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start {
    /// T0: entries after this are applied.
    pub apply_after: OpTime,
    /// Wall time of T0 in milliseconds since 1970.
    pub wall_ms: i64,
    /// Where reading begins: T0, or the first entry of the oldest transaction that is open there.
    pub read_from: OpTime,
}

/// Entries of one transaction at the most. Each but the last one has about 16 MiB.
const CHAIN_MAX: usize = 100_000;

/// Chooses a moment on the source's primary.
///
/// # Errors
/// A call failed, or the oplog no longer holds the beginning of a prepared transaction.
pub async fn choose(source: &Deployment) -> Result<Start, Error> {
    let hello = Hello::ask(source).await?;
    let (apply_after, wall_ms) = hello.majority_optime(source)?;
    let read_from = reads_from(source, apply_after).await?;
    Ok(Start { apply_after, wall_ms, read_from })
}

/// Where reading begins if everything after this entry is wanted whole: there, or at the first entry of the oldest
/// transaction that is open there.
///
/// # Errors
/// As [`choose`].
pub async fn reads_from(source: &Deployment, apply_after: OpTime) -> Result<OpTime, Error> {
    let mut read_from = beginning(source, apply_after).await?;
    if let Some(oldest) = oldest_prepared(source).await?
        && oldest < read_from.ts
    {
        read_from = tail::first_at_or_after(source, oldest).await?.ok_or_else(|| {
            let action = "find the beginning of a prepared transaction";
            Error::other(source.side, action, "the oplog no longer holds it")
        })?;
    }
    Ok(read_from)
}

/// Where reading begins if everything after this entry is wanted whole: the entry itself, unless a transaction that is
/// written as several entries in a row goes on after it.
///
/// # Errors
/// A call failed, or the oplog no longer holds the beginning.
pub async fn beginning(source: &Deployment, at: OpTime) -> Result<OpTime, Error> {
    let action = "find the beginning of a transaction";
    let mut first = at;
    for _ in 0..CHAIN_MAX {
        let command = doc! {
            "find": "oplog.rs",
            "filter": { "ts": bson::Timestamp::from(first.ts) },
            "projection": { "o.partialTxn": 1, "prevOpTime": 1 },
            "limit": 1,
            "readConcern": { "level": "majority" },
        };
        let found = cursor_documents(source, "local", action, command).await?.pop();
        match found.as_deref().map(|entry| (is_partial(entry), previous(entry))) {
            Some((true, Some(previous))) => first = previous,
            Some(_) => return Ok(first),
            // An entry that is gone is told by whoever reads on from there.
            None if first == at => return Ok(at),
            None => return Err(Error::other(source.side, action, "the oplog no longer holds it")),
        }
    }
    Err(Error::other(source.side, action, "it has too many entries"))
}

fn is_partial(entry: &RawDocument) -> bool {
    entry.get_document("o").and_then(|o| o.get_bool("partialTxn")).unwrap_or(false)
}

/// The entry before this one in its transaction, if it is not the first.
fn previous(entry: &RawDocument) -> Option<OpTime> {
    let previous = entry.get_document("prevOpTime").ok()?;
    tail::optime_of(previous).filter(|previous| previous.ts > Ts::ZERO)
}

/// The newest majority-committed optime and its wall time in milliseconds since 1970.
///
/// # Errors
/// The call failed.
pub async fn majority_optime(source: &Deployment) -> Result<(OpTime, i64), Error> {
    Hello::ask(source).await?.majority_optime(source)
}

/// An optime that nothing read until now with majority concern lies after.
///
/// # Errors
/// The call failed. A primary that has committed nothing in its own term yet may not know of everything that was
/// committed before: it counts as one that is not there yet.
pub async fn end(source: &Deployment) -> Result<Ts, Error> {
    let hello = Hello::ask(source).await?;
    let (newest, _wall) = hello.majority_optime(source)?;
    if hello.term() == Some(newest.term) {
        return Ok(newest.ts);
    }
    let text = "the primary was elected just now";
    Err(Error::other(source.side, "read the majority optime", text).into_unreachable())
}

/// The newest optime that the primary has written, committed or not: nothing seen there until now lies after.
///
/// # Errors
/// The call failed.
pub async fn newest(source: &Deployment) -> Result<Ts, Error> {
    Hello::ask(source).await?.newest_optime(source)
}

async fn oldest_prepared(source: &Deployment) -> Result<Option<Ts>, Error> {
    let action = "look for prepared transactions";
    let command = doc! {
        "find": "transactions",
        "filter": { "state": "prepared" },
        "projection": { "startOpTime": 1 },
    };
    let documents = cursor_documents(source, "config", action, command).await?;
    let times = documents.iter().filter_map(|transaction| {
        transaction.get_document("startOpTime").ok()?.get_timestamp("ts").ok()
    });
    Ok(times.map(Ts::from).min())
}
