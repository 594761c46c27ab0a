//! `applyOps`: several operations in one entry, and the commands that end a transaction made of such entries.

use std::borrow::Cow;

use bson::{RawDocument, RawDocumentBuf};

use super::element::{Elements, Value};
use super::entry::{DecodeError, Kind, Operation};

/// Levels of `applyOps` inside `applyOps`; servers allow 10.
const NESTING_MAX: usize = 32;

/// The operations of a transaction that has committed, or of a plain `applyOps`.
#[derive(Debug, Default)]
pub struct Transaction<'a> {
    /// The `applyOps` arrays of its entries.
    pub(super) parts: Vec<Cow<'a, RawDocument>>,
    pub(super) len: usize,
    /// Its updates make what is not there.
    pub(super) upserts: bool,
}

impl<'a> Transaction<'a> {
    /// One entry's share, once all its operations are known to be understood.
    pub(super) fn of(part: &Part<'a>) -> Result<Self, DecodeError> {
        let parts = vec![Cow::Borrowed(part.operations)];
        let mut share = Self { parts, ..Self::default() };
        share.len = share.count()?;
        Ok(share)
    }

    /// The operations of this array, which was one entry's share.
    pub(super) fn owning(operations: RawDocumentBuf) -> Result<Self, DecodeError> {
        let mut share = Self { parts: vec![Cow::Owned(operations)], ..Self::default() };
        share.len = share.count()?;
        Ok(share)
    }

    fn count(&self) -> Result<usize, DecodeError> {
        self.operations().try_fold(0, |len, operation| operation.map(|_| len + 1))
    }
}

impl Transaction<'_> {
    /// The operations in order; those of an `applyOps` inside stand in its place. Each was decoded once before this was
    /// given out, so an error here is not to be expected.
    #[must_use]
    pub fn operations(&self) -> Operations<'_> {
        Operations { parts: self.parts.iter(), stack: Vec::new(), upserts: self.upserts }
    }

    /// How many operations there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none, as in an `applyOps` of an empty list.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// Iterator over the operations of a [`Transaction`]. Ends after the first error.
#[derive(Debug)]
pub struct Operations<'t> {
    parts: std::slice::Iter<'t, Cow<'t, RawDocument>>,
    /// The array being read, and those around it.
    stack: Vec<Elements<'t>>,
    upserts: bool,
}

impl<'t> Operations<'t> {
    fn read(&mut self) -> Result<Option<Operation<'t>>, DecodeError> {
        loop {
            let Some(array) = self.stack.last_mut() else {
                let Some(part) = self.parts.next() else { return Ok(None) };
                self.stack.push(Elements::new(part));
                continue;
            };
            let Some(element) = array.next().transpose()? else {
                self.stack.pop();
                continue;
            };
            let operation = element.value.as_document();
            let operation = operation.ok_or(DecodeError::WrongType { field: "o.applyOps[]" })?;
            let operation = Operation { upsert: self.upserts, ..Operation::decode(operation)? };
            let Some(inner) = nested(&operation)? else { return Ok(Some(operation)) };
            if self.stack.len() >= NESTING_MAX {
                return Err(DecodeError::TooDeep { limit: NESTING_MAX });
            }
            self.stack.push(Elements::new(inner));
        }
    }
}

impl<'t> Iterator for Operations<'t> {
    type Item = Result<Operation<'t>, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.read();
        if next.is_err() {
            self.stack.clear();
            self.parts = [].iter();
        }
        next.transpose()
    }
}

/// The operations of an `applyOps` that is itself an operation.
fn nested<'a>(operation: &Operation<'a>) -> Result<Option<&'a RawDocument>, DecodeError> {
    match operation.kind {
        Kind::Command { o, .. } => match Command::decode(o)? {
            Command::ApplyOps(part) => Ok(Some(part.operations)),
            Command::Commit | Command::Abort | Command::Other => Ok(None),
        },
        _ => Ok(None),
    }
}

/// A command as far as transactions are concerned.
pub(super) enum Command<'a> {
    ApplyOps(Part<'a>),
    Commit,
    Abort,
    Other,
}

/// One entry's share of a transaction.
pub(super) struct Part<'a> {
    /// The array of operations.
    pub(super) operations: &'a RawDocument,
    /// The transaction waits for its commit or abort.
    pub(super) prepare: bool,
    /// More entries follow.
    pub(super) partial: bool,
    /// Operations of the whole transaction.
    pub(super) count: Option<i64>,
    /// Whether updates make what is not there, if this is no transaction.
    pub(super) upserts: bool,
}

impl<'a> Command<'a> {
    pub(super) fn decode(o: &'a RawDocument) -> Result<Self, DecodeError> {
        let mut fields = Elements::new(o);
        let Some(first) = fields.next().transpose()? else { return Ok(Self::Other) };
        let operations = match first.name {
            b"applyOps" => first.value.as_array(),
            b"commitTransaction" => return Ok(Self::Commit),
            b"abortTransaction" => return Ok(Self::Abort),
            _ => return Ok(Self::Other),
        };
        let operations = operations.ok_or(DecodeError::WrongType { field: "o.applyOps" })?;
        let mut part =
            Part { operations, prepare: false, partial: false, count: None, upserts: true };
        for element in fields {
            let element = element?;
            let flag = || {
                let wrong = DecodeError::WrongType { field: "o.prepare or o.partialTxn" };
                element.value.as_bool().ok_or(wrong)
            };
            match element.name {
                b"prepare" => part.prepare = flag()?,
                b"partialTxn" => part.partial = flag()?,
                // Any type will do for the server.
                b"alwaysUpsert" => part.upserts = !is_false(element.value),
                b"count" => part.count = Some(count(element.value)?),
                _ => {}
            }
        }
        Ok(Self::ApplyOps(part))
    }
}

/// As the server takes a value for a condition.
fn is_false(value: Value<'_>) -> bool {
    value.as_bool().is_some_and(|yes| !yes) || value.as_i64() == Some(0)
}

fn count(value: Value<'_>) -> Result<i64, DecodeError> {
    value.as_i64().ok_or(DecodeError::WrongType { field: "o.count" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::rawdoc;

    fn insert(id: i64) -> RawDocumentBuf {
        rawdoc! { "op": "i", "ns": "a.b", "o": { "_id": id } }
    }

    fn wrap(o: RawDocumentBuf) -> RawDocumentBuf {
        rawdoc! { "op": "c", "ns": "admin.$cmd", "o": o }
    }

    fn ids(o: &RawDocument) -> Result<Vec<i64>, DecodeError> {
        let Command::ApplyOps(part) = Command::decode(o)? else { panic!() };
        let share = Transaction::of(&part)?;
        let id = |operation: Result<Operation<'_>, _>| match operation?.kind {
            Kind::Insert { id, .. } => Ok(id.as_i64().unwrap()),
            other => panic!("{other:?}"),
        };
        assert_eq!(share.operations().count(), share.len());
        share.operations().map(id).collect()
    }

    #[test]
    fn flattens_what_is_nested_in_order() {
        let innermost = rawdoc! { "applyOps": [insert(3), insert(4)] };
        let inner = rawdoc! { "applyOps": [insert(2), wrap(innermost), insert(5)] };
        let o = rawdoc! { "applyOps": [insert(1), wrap(inner), insert(6)], "lsid": { "id": 1 } };
        assert_eq!(ids(&o), Ok(vec![1, 2, 3, 4, 5, 6]));
        assert_eq!(ids(&rawdoc! { "applyOps": [] }), Ok(vec![]));
    }

    #[test]
    fn refuses_what_it_does_not_understand() {
        let deep = (0..100).fold(rawdoc! { "applyOps": [insert(1)] }, |o, _| {
            rawdoc! { "applyOps": [wrap(o)] }
        });
        assert_eq!(ids(&deep), Err(DecodeError::TooDeep { limit: NESTING_MAX }));
        let unknown = rawdoc! { "applyOps": [insert(1), { "op": "x", "ns": "a.b", "o": {} }] };
        let op = "x".to_owned();
        assert_eq!(ids(&unknown), Err(DecodeError::UnknownOperation { op }));
        let wrong = |field| Err(DecodeError::WrongType { field });
        assert_eq!(ids(&rawdoc! { "applyOps": 1 }), wrong("o.applyOps"));
        assert_eq!(ids(&rawdoc! { "applyOps": [1] }), wrong("o.applyOps[]"));
        let flag = rawdoc! { "applyOps": [], "prepare": "yes" };
        assert_eq!(ids(&flag), wrong("o.prepare or o.partialTxn"));
    }

    #[test]
    fn ends_after_the_first_error() {
        let o = rawdoc! { "applyOps": [insert(1), 2, insert(3)] };
        let Ok(Command::ApplyOps(part)) = Command::decode(&o) else { panic!() };
        let parts = vec![Cow::Borrowed(part.operations)];
        let operations: Vec<_> =
            Transaction { parts, len: 3, upserts: false }.operations().map(|o| o.is_ok()).collect();
        assert_eq!(operations, [true, false]);
    }
}
