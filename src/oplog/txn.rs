//! Puts transactions together: from the entries they are spread over, to one list of operations at the commit.
//!
//! A large transaction is written as several entries, a prepared one waits for an entry of its own that commits or
//! aborts it, and the entries of other sessions stand between them. Replay must see a transaction whole, where it
//! committed, or not at all.

use std::borrow::Cow;
use std::collections::HashMap;

use bson::{RawDocument, RawDocumentBuf};

use super::apply_ops::{Command, Part, Transaction};
use super::entry::{DecodeError, Entry, Kind, Operation, Session};
use super::overflow::{LargeTransaction, OverflowError, Parts, Spill};
use crate::position::{OpTime, Ts};

/// A transaction that cannot be put together. Nothing of it has been given out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TxnError {
    /// An operation of it is not understood.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// Its earlier entries were not read, so reading started too late or entries are missing.
    #[error(
        "the transaction that ends at {op_time} lacks its entry at {missing}; \
         read the oplog from the start of the oldest open transaction, or resync"
    )]
    MissingParts {
        /// The entry that should complete the transaction.
        op_time: OpTime,
        /// The entry it continues.
        missing: Ts,
    },
    /// It ends with another number of operations than the server says it has.
    #[error("the transaction at {op_time} has {found} operations where its end says {expected}")]
    Count {
        /// The entry that says how many there are.
        op_time: OpTime,
        /// Operations by the entry.
        expected: i64,
        /// Operations that were read.
        found: usize,
    },
    /// It is part of a transaction and does not say of which.
    #[error("the transaction entry at {op_time} has no session; use a newer snapsync")]
    NoSession {
        /// The entry.
        op_time: OpTime,
    },
    /// It is too large for memory, and there is no other place.
    #[error(transparent)]
    Overflow(#[from] OverflowError),
    /// Its session already has an open transaction of the same number.
    #[error("the transaction that starts at {op_time} is already open; the oplog was read twice")]
    StartedTwice {
        /// The entry that starts it again.
        op_time: OpTime,
    },
}

/// What an entry means for replay.
#[derive(Debug)]
pub enum Assembled<'a> {
    /// Nothing to apply: a no-op, a part of something that is not complete, or an abort.
    Nothing,
    /// One operation, to apply here.
    One(Operation<'a>),
    /// The operations of a transaction or of a plain `applyOps`, to apply here, in order and together.
    Many(Transaction<'a>),
    /// The same, too many for memory.
    Large(LargeTransaction),
}

/// A transaction of which some entries have been read.
#[derive(Debug)]
struct Open {
    first: OpTime,
    last: Ts,
    parts: Kept,
    len: usize,
    /// Bytes in memory.
    bytes: u64,
}

/// Its parts, in order.
#[derive(Debug)]
enum Kept {
    InMemory(Vec<RawDocumentBuf>),
    Away(Box<dyn Parts>),
}

impl Open {
    /// The whole transaction, with the share of its last entry where that has one.
    fn finish<'a>(self, last: Option<&Part<'a>>) -> Result<Assembled<'a>, TxnError> {
        match self.parts {
            Kept::InMemory(parts) => {
                let mut whole = last.map(Transaction::of).transpose()?.unwrap_or_default();
                whole.len = self.len;
                whole.parts.splice(..0, parts.into_iter().map(Cow::Owned));
                Ok(Assembled::Many(whole))
            }
            Kept::Away(mut parts) => {
                if let Some(last) = last {
                    parts.append(last.operations)?;
                }
                Ok(Assembled::Large(LargeTransaction::new(parts, self.len)))
            }
        }
    }
}

/// Puts transactions together from the entries of one oplog, which must be fed in order.
///
/// It keeps copies of what waits for a commit: [`Assembler::buffered_bytes`] in memory, and the rest wherever it has
/// been told to. After an error it must not be fed again.
#[derive(Debug, Default)]
pub struct Assembler {
    applied: Ts,
    spill: Option<Spill>,
    /// By session and transaction number.
    open: HashMap<Vec<u8>, Open>,
    buffered_bytes: u64,
}

impl Assembler {
    /// An assembler for entries after `applied`, the resume point ([`Ts::ZERO`]: for all).
    ///
    /// Entries up to it have to be fed too, from [`Assembler::oldest_open`] on: they rebuild what was open at the
    /// resume point. What was complete by then is not given out again, and may lack its beginning.
    #[must_use]
    pub fn new(applied: Ts) -> Self {
        Self { applied, ..Self::default() }
    }

    /// With a place for what is too large for memory.
    #[must_use]
    pub fn with_spill(mut self, spill: Spill) -> Self {
        self.spill = Some(spill);
        self
    }

    /// Takes the next entry and answers what is to be applied at its place.
    ///
    /// # Errors
    /// [`TxnError`], when a transaction is not whole or not understood. Nothing of it has been given out.
    pub fn push<'a>(&mut self, entry: &Entry<'a>) -> Result<Assembled<'a>, TxnError> {
        let command = match entry.operation.kind {
            Kind::Noop => return Ok(Assembled::Nothing),
            Kind::Command { o, .. } => Command::decode(o)?,
            _ => Command::Other,
        };
        let assembled = match command {
            Command::ApplyOps(part) => self.apply_ops(entry, &part)?,
            Command::Commit => self.commit(entry)?,
            Command::Abort => {
                self.take(&key(entry)?);
                Assembled::Nothing
            }
            Command::Other => Assembled::One(entry.operation),
        };
        Ok(if entry.op_time.ts > self.applied { assembled } else { Assembled::Nothing })
    }

    /// The first entry of the oldest transaction that is still open. A restart has to read the oplog from there, since
    /// the transaction may commit after the resume point.
    #[must_use]
    pub fn oldest_open(&self) -> Option<OpTime> {
        self.open.values().map(|open| open.first).min()
    }

    /// Bytes of operations that wait for a commit in memory.
    #[must_use]
    pub fn buffered_bytes(&self) -> u64 {
        self.buffered_bytes
    }

    fn apply_ops<'a>(
        &mut self,
        entry: &Entry<'a>,
        part: &Part<'a>,
    ) -> Result<Assembled<'a>, TxnError> {
        let own = Transaction::of(part)?;
        if part.prepare || part.partial {
            self.append(entry, part, own.len())?;
            return Ok(Assembled::Nothing);
        }
        // Neither a batch of retryable writes nor what the applyOps command logs has anything before it.
        if entry.session.is_none() || entry.retryable_batch {
            let upserts = part.upserts && !entry.retryable_batch;
            return Ok(Assembled::Many(Transaction { upserts, ..own }));
        }
        if entry.previous.is_none() {
            check_count(entry, part, own.len())?;
            return Ok(Assembled::Many(own));
        }
        let Some(mut open) = self.take_continued(entry)? else { return Ok(Assembled::Nothing) };
        open.len += own.len();
        check_count(entry, part, open.len)?;
        open.finish(Some(part))
    }

    fn commit<'a>(&mut self, entry: &Entry<'_>) -> Result<Assembled<'a>, TxnError> {
        match self.take_continued(entry)? {
            Some(open) => open.finish(None),
            None => Ok(Assembled::Nothing),
        }
    }

    /// Keeps a copy of `part` until its transaction ends.
    fn append(&mut self, entry: &Entry<'_>, part: &Part<'_>, len: usize) -> Result<(), TxnError> {
        let key = key(entry)?;
        let op_time = entry.op_time;
        let mut open = match (entry.previous, self.take(&key)) {
            (None, None) => {
                let parts = Kept::InMemory(Vec::new());
                Open { first: op_time, last: op_time.ts, parts, len: 0, bytes: 0 }
            }
            (None, Some(_)) => return Err(TxnError::StartedTwice { op_time }),
            (Some(previous), Some(open)) if open.last == previous => open,
            // It started before what a restart reads again, so it was complete by the resume point.
            (Some(_), None) if op_time.ts <= self.applied => return Ok(()),
            (Some(missing), _) => return Err(TxnError::MissingParts { op_time, missing }),
        };
        open.last = op_time.ts;
        open.len += len;
        self.keep(&mut open, part.operations)?;
        if part.prepare {
            check_count(entry, part, open.len)?;
        }
        self.buffered_bytes += open.bytes;
        self.open.insert(key, open);
        Ok(())
    }

    /// Keeps a copy of these operations: in memory as long as there is room, then everything of their transaction
    /// elsewhere.
    fn keep(&self, open: &mut Open, operations: &RawDocument) -> Result<(), TxnError> {
        let bytes = operations.as_bytes().len() as u64;
        let others = self.buffered_bytes;
        match &mut open.parts {
            Kept::Away(parts) => parts.append(operations)?,
            Kept::InMemory(parts) => {
                let spill = self.spill.as_ref();
                match spill.filter(|spill| others + open.bytes + bytes > spill.memory_bytes_max) {
                    None => {
                        parts.push(operations.to_owned());
                        open.bytes += bytes;
                    }
                    Some(spill) => {
                        let mut away = spill.place.open()?;
                        for part in parts.drain(..) {
                            away.append(&part)?;
                        }
                        away.append(operations)?;
                        open.parts = Kept::Away(away);
                        open.bytes = 0;
                    }
                }
            }
        }
        Ok(())
    }

    /// The open transaction that `entry` ends. `None`: it ends by the resume point and its beginning was not read.
    fn take_continued(&mut self, entry: &Entry<'_>) -> Result<Option<Open>, TxnError> {
        let op_time = entry.op_time;
        match self.take(&key(entry)?) {
            Some(open) if entry.previous == Some(open.last) => Ok(Some(open)),
            None if op_time.ts <= self.applied => Ok(None),
            _ => {
                let missing = entry.previous.unwrap_or_default();
                Err(TxnError::MissingParts { op_time, missing })
            }
        }
    }

    fn take(&mut self, key: &[u8]) -> Option<Open> {
        let open = self.open.remove(key)?;
        self.buffered_bytes -= open.bytes;
        Some(open)
    }
}

fn check_count(entry: &Entry<'_>, part: &Part<'_>, found: usize) -> Result<(), TxnError> {
    match part.count {
        Some(expected) if usize::try_from(expected) != Ok(found) => {
            Err(TxnError::Count { op_time: entry.op_time, expected, found })
        }
        _ => Ok(()),
    }
}

/// What the open transactions are told apart by: the bytes of the whole `lsid`, and the transaction number.
fn key(entry: &Entry<'_>) -> Result<Vec<u8>, TxnError> {
    let Some(Session { lsid, txn_number }) = entry.session else {
        return Err(TxnError::NoSession { op_time: entry.op_time });
    };
    Ok([lsid.as_bytes(), &txn_number.to_le_bytes()].concat())
}

#[cfg(test)]
mod tests;
