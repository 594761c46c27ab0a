//! A partial update of a document, in one of the two formats that servers write.

use bson::{RawDocument, RawDocumentBuf};

use super::diff::{self, DiffError};
use super::modifier;

/// What an entry changes of a document that it does not hold whole: borrowed from the entry, or kept.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Update<Bytes = RawDocumentBuf> {
    /// A `$v: 2` diff, without `$v`.
    Diff(Bytes),
    /// `$set` and `$unset`, with `$v: 1` if there was one.
    Modifier(Bytes),
}

impl<Bytes: AsRef<RawDocument>> Update<Bytes> {
    /// The document that it makes of `pre`.
    ///
    /// # Errors
    /// [`DiffError`], when it cannot be applied.
    pub fn apply(&self, pre: &RawDocument) -> Result<RawDocumentBuf, DiffError> {
        match self {
            Self::Diff(diff) => diff::apply(pre, diff.as_ref()),
            Self::Modifier(modifier) => modifier::apply(pre, modifier.as_ref()),
        }
    }

    /// Bytes it takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let (Self::Diff(update) | Self::Modifier(update)) = self;
        update.as_ref().as_bytes().len()
    }
}

impl Update<&RawDocument> {
    /// A copy to keep.
    #[must_use]
    pub fn to_kept(self) -> Update {
        match self {
            Self::Diff(diff) => Update::Diff(diff.to_owned()),
            Self::Modifier(modifier) => Update::Modifier(modifier.to_owned()),
        }
    }
}
