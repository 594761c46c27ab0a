//! Gathering a window: oplog entries in, a plan and the next resume point out. Pure.

use bson::RawDocument;

use super::plan::{Plan, PlanError};
use super::scope::Scope;
use crate::oplog::entry::{DecodeError, Entry};
use crate::oplog::overflow::{OverflowError, PartError, Spill};
use crate::oplog::txn::{Assembled, Assembler, TxnError};
use crate::position::{OpTime, Ts};
use crate::selection::Selection;

/// Where replay stands: everything that committed at or before `applied` is on the target.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Default,
    serde::Serialize,
    serde::Deserialize,
)]
pub struct ResumePoint {
    /// The last entry whose effect is on the target.
    pub applied: OpTime,
    /// Its wall time in milliseconds since 1970.
    pub wall_ms: i64,
    /// Where reading has to begin: `applied`, or the first entry of the oldest transaction that is still open there.
    pub read_from: OpTime,
}

/// A finished window.
#[derive(Debug)]
pub struct Window {
    /// What to do.
    pub plan: Plan,
    /// Where replay stands when it has been done.
    pub end: ResumePoint,
    /// Wall time of the first entry, in milliseconds since 1970.
    pub first_wall_ms: i64,
    /// Entries read.
    pub entries: u64,
}

/// Why an entry cannot be taken.
#[derive(Debug, thiserror::Error)]
#[error("the oplog entry at {at} cannot be replayed: {source}")]
pub struct EntryError {
    /// Which entry.
    pub at: String,
    /// Why.
    pub source: EntryProblem,
}

impl EntryError {
    /// Whether nothing is wrong with the entry, but with where large transactions are kept.
    #[must_use]
    pub fn overflow(&self) -> Option<&OverflowError> {
        match &self.source {
            EntryProblem::Transaction(TxnError::Overflow(error))
            | EntryProblem::Plan(PlanError::Part(PartError::Overflow(error))) => Some(error),
            _ => None,
        }
    }
}

/// What is wrong with an entry.
#[derive(Debug, thiserror::Error)]
pub enum EntryProblem {
    /// It cannot be read.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// It does not fit the transactions before it.
    #[error(transparent)]
    Transaction(#[from] TxnError),
    /// It cannot be carried out.
    #[error(transparent)]
    Plan(#[from] PlanError),
}

/// Builds one window after another. Keeps transactions that are still open.
#[derive(Debug)]
pub struct WindowBuilder {
    selection: Selection,
    scope: Scope,
    assembler: Assembler,
    applied: ResumePoint,
    last_read: OpTime,
    window: Option<Window>,
}

impl WindowBuilder {
    /// Goes on from `resume`: entries from `resume.read_from` on follow; what commits after `resume.applied` is
    /// planned.
    #[must_use]
    pub fn new(selection: Selection, resume: ResumePoint) -> Self {
        Self {
            selection,
            scope: Scope::all(),
            assembler: Assembler::new(resume.applied.ts),
            applied: resume,
            last_read: OpTime::new(Ts::ZERO, -1),
            window: None,
        }
    }

    /// Plans for these collections only, from the next entry taken on.
    pub fn set_scope(&mut self, scope: Scope) {
        self.scope = scope;
    }

    /// With a place for transactions that are too large for memory.
    #[must_use]
    pub fn with_spill(mut self, spill: Spill) -> Self {
        self.assembler = self.assembler.with_spill(spill);
        self
    }

    /// Takes the next entry.
    ///
    /// # Errors
    /// [`EntryError`]: the entry cannot be carried. Nothing after it may be.
    pub fn push(&mut self, entry: &RawDocument) -> Result<(), EntryError> {
        let decoded = Entry::decode(entry).map_err(|error| EntryError {
            at: entry
                .get_timestamp("ts")
                .map_or("an unknown time".into(), |ts| Ts::from(ts).to_string()),
            source: error.into(),
        })?;
        let at = decoded.op_time;
        if at.ts <= self.last_read.ts {
            // Reading begins at the last entry known, and after a reconnection once more.
            return Ok(());
        }
        self.last_read = at;
        self.take(&decoded).map_err(|source| EntryError { at: at.to_string(), source })
    }

    fn take(&mut self, entry: &Entry<'_>) -> Result<(), EntryProblem> {
        let assembled = self.assembler.push(entry)?;
        if entry.op_time.ts <= self.applied.applied.ts {
            return Ok(());
        }
        let window = self.window.get_or_insert_with(|| Window {
            plan: Plan::default(),
            end: self.applied,
            first_wall_ms: entry.wall_ms,
            entries: 0,
        });
        window.entries += 1;
        window.end.applied = entry.op_time;
        window.end.wall_ms = entry.wall_ms;
        match assembled {
            Assembled::Nothing => {}
            Assembled::One(operation) => {
                window.plan.add(&operation, &self.selection, &self.scope)?;
            }
            Assembled::Large(transaction) => {
                window.plan.add_large(transaction, &self.selection, &self.scope)?;
            }
            Assembled::Large(transaction) => {
                window.plan.add_large(transaction, &self.selection, &self.scope)?;
            }
            Assembled::Many(transaction) => {
                for operation in transaction.operations() {
                    window.plan.add(&operation?, &self.selection, &self.scope)?;
                }
            }
        }
        Ok(())
    }

    /// The last entry taken, or zero.
    #[must_use]
    pub fn last_read(&self) -> OpTime {
        self.last_read
    }

    /// Bytes held by the window in the making and by open transactions.
    #[must_use]
    pub fn bytes(&self) -> usize {
        usize::try_from(self.assembler.buffered_bytes()).unwrap_or(usize::MAX)
            + self.window.as_ref().map_or(0, |window| window.plan.bytes)
    }

    /// Wall time of the first entry of the window in the making, in milliseconds since 1970.
    #[must_use]
    pub fn first_wall_ms(&self) -> Option<i64> {
        self.window.as_ref().map(|window| window.first_wall_ms)
    }

    /// Where the window in the making would end; `None` while it is empty.
    #[must_use]
    pub fn end(&self) -> Option<OpTime> {
        self.window.as_ref().map(|window| window.end.applied)
    }

    /// Ends the window; `None` if it is empty. The next one begins after it.
    pub fn finish(&mut self) -> Option<Window> {
        let mut window = self.window.take()?;
        window.end.read_from = self.assembler.oldest_open().unwrap_or(window.end.applied);
        self.applied = window.end;
        Some(window)
    }
}
