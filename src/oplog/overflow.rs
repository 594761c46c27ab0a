//! Where the parts of large transactions wait for their commit, out of memory. What it is made of is decided elsewhere:
//! this room only says what it needs.

use std::fmt::Debug;
use std::sync::Arc;

use bson::{RawDocument, RawDocumentBuf};

use super::apply_ops::Transaction;
use super::entry::DecodeError;

/// Parts could not be put away, or not be taken back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a large transaction cannot be kept on disk: {text}")]
pub struct OverflowError {
    /// What happened.
    pub text: String,
}

/// A place for transactions that are too large for memory.
pub trait Overflow: Debug + Send + Sync {
    /// Makes room for the parts of one transaction. They are gone when this is dropped.
    ///
    /// # Errors
    /// There is none.
    fn open(&self) -> Result<Box<dyn Parts>, OverflowError>;
}

/// The parts of one transaction, in order.
pub trait Parts: Debug + Send + Sync {
    /// Adds a part behind the others.
    ///
    /// # Errors
    /// There is no room.
    fn append(&mut self, part: &RawDocument) -> Result<(), OverflowError>;

    /// Goes back to the first part.
    ///
    /// # Errors
    /// It cannot be read.
    fn rewind(&mut self) -> Result<(), OverflowError>;

    /// The next part; `None` behind the last one.
    ///
    /// # Errors
    /// It cannot be read.
    fn next_part(&mut self) -> Result<Option<RawDocumentBuf>, OverflowError>;
}

/// Where an assembler puts what is too large, and what that is.
#[derive(Debug, Clone)]
pub struct Spill {
    /// The place.
    pub place: Arc<dyn Overflow>,
    /// Bytes of open transactions that may be kept in memory, all together.
    pub memory_bytes_max: u64,
}

/// A transaction that has committed and is too large for memory.
#[derive(Debug)]
pub struct LargeTransaction {
    parts: Box<dyn Parts>,
    len: usize,
}

impl LargeTransaction {
    pub(super) fn new(parts: Box<dyn Parts>, len: usize) -> Self {
        Self { parts, len }
    }

    /// How many operations there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Goes back to the first operation.
    ///
    /// # Errors
    /// The place.
    pub fn rewind(&mut self) -> Result<(), OverflowError> {
        self.parts.rewind()
    }

    /// The next operations, as many as one entry holds; `None` behind the last ones.
    ///
    /// # Errors
    /// The place, or (not to be expected: they were decoded before) what it gave back.
    pub fn next_part(&mut self) -> Result<Option<Transaction<'static>>, PartError> {
        let Some(part) = self.parts.next_part()? else { return Ok(None) };
        Ok(Some(Transaction::owning(part)?))
    }
}

/// A part that cannot be had again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PartError {
    /// It was not given back.
    #[error(transparent)]
    Overflow(#[from] OverflowError),
    /// It is not what it was.
    #[error(transparent)]
    Decode(#[from] DecodeError),
}
