//! Write commands, built as bytes. Pure.
//!
//! A document is *put* whole: inserted where nobody has its `_id`, else written over what is there. `_id` values are
//! matched with `$eq`, because a bare value could be read as an operator.

use bson::spec::ElementType;
use bson::{RawArray, RawArrayBuf, RawDocument, RawDocumentBuf, Uuid, cstr};

use crate::namespace::Namespace;
use crate::oplog::document::{self, Shape};
use crate::oplog::element::Value;

/// Statements in one command at the most. The server takes 100,000; smaller commands keep several workers busy.
pub const STATEMENTS_MAX: usize = 2_000;
/// Bytes of statements in one command at the most, unless a single statement is larger. The server takes 16 MiB.
pub const STATEMENT_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Where a write goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The collection's name on the target.
    pub namespace: Namespace,
    /// Its UUID on the target, where the server checks it (6.0 and later): a write to a collection that another one has
    /// replaced under the same name is refused.
    pub uuid: Option<Uuid>,
}

impl Place {
    fn finish(&self, mut command: RawDocumentBuf) -> RawDocumentBuf {
        if let Some(uuid) = self.uuid {
            command.append(cstr!("collectionUUID"), bson::Binary::from(uuid));
        }
        command
    }

    /// An `insert` of these documents. With `bypassDocumentValidation`: the source accepted them.
    #[must_use]
    pub fn insert(&self, documents: &RawArray) -> RawDocumentBuf {
        let mut command = RawDocumentBuf::new();
        command.append(cstr!("insert"), self.namespace.collection.as_str());
        command.append(cstr!("documents"), documents);
        command.append(cstr!("ordered"), false);
        command.append(cstr!("bypassDocumentValidation"), true);
        self.finish(command)
    }

    /// An `update` of these statements, made by [`put`].
    #[must_use]
    pub fn update(&self, statements: RawArrayBuf, ordered: bool) -> RawDocumentBuf {
        let mut command = RawDocumentBuf::new();
        command.append(cstr!("update"), self.namespace.collection.as_str());
        command.append(cstr!("updates"), statements);
        command.append(cstr!("ordered"), ordered);
        command.append(cstr!("bypassDocumentValidation"), true);
        self.finish(command)
    }

    /// A `delete` of these statements, made by [`remove`].
    #[must_use]
    pub fn delete(&self, statements: RawArrayBuf) -> RawDocumentBuf {
        let mut command = RawDocumentBuf::new();
        command.append(cstr!("delete"), self.namespace.collection.as_str());
        command.append(cstr!("deletes"), statements);
        command.append(cstr!("ordered"), false);
        self.finish(command)
    }

    /// A `find` of the documents with these `_id`s.
    #[must_use]
    pub fn find<'a>(&self, ids: impl ExactSizeIterator<Item = Value<'a>>) -> RawDocumentBuf {
        let count = ids.len();
        let mut filter = RawDocumentBuf::new();
        filter.append(cstr!("_id"), one_of(ids));
        let mut command = RawDocumentBuf::new();
        command.append(cstr!("find"), self.namespace.collection.as_str());
        command.append(cstr!("filter"), filter);
        command.append(cstr!("batchSize"), i32::try_from(count).unwrap_or(i32::MAX).max(1));
        self.finish(command)
    }
}

/// A document of one field.
#[must_use]
pub fn single(name: &str, value: Value<'_>) -> RawDocumentBuf {
    framed(|bytes| value.write(name.as_bytes(), bytes))
}

/// `{$in: [ids]}`, by bytes: an `_id` may be a string that is not UTF-8.
fn one_of<'a>(ids: impl Iterator<Item = Value<'a>>) -> RawDocumentBuf {
    let array = framed(|bytes| {
        ids.enumerate().for_each(|(index, id)| id.write(index.to_string().as_bytes(), bytes));
    });
    framed(|bytes| {
        bytes.push(ElementType::Array as u8);
        bytes.extend_from_slice(b"$in\0");
        bytes.extend_from_slice(array.as_bytes());
    })
}

/// A document of the elements that `elements` writes.
fn framed(elements: impl FnOnce(&mut Vec<u8>)) -> RawDocumentBuf {
    let mut bytes = vec![0; 4];
    elements(&mut bytes);
    bytes.push(0);
    let length = i32::try_from(bytes.len()).unwrap_or(i32::MAX);
    bytes[..4].copy_from_slice(&length.to_le_bytes());
    #[expect(clippy::expect_used, reason = "length and terminator were written just above")]
    RawDocumentBuf::from_bytes(bytes).expect("a framed document")
}

fn id_equals(id: Value<'_>) -> RawDocumentBuf {
    let mut query = RawDocumentBuf::new();
    query.append(cstr!("_id"), single("$eq", id));
    query
}

/// An update statement that writes `document` over whatever has its `_id`, or inserts it.
///
/// A plain replacement would change a top-level `Timestamp(0,0)` to the current time and refuses top-level names that
/// begin with `$`; for those documents the replacement is wrapped in a pipeline with `$literal`, which keeps both.
#[must_use]
pub fn put(id: Value<'_>, document: &RawDocument) -> RawDocumentBuf {
    let mut statement = RawDocumentBuf::new();
    statement.append(cstr!("q"), id_equals(id));
    if !needs_pipeline(document) {
        statement.append(cstr!("u"), document.to_owned());
    } else {
        let mut literal = RawDocumentBuf::new();
        literal.append(cstr!("$literal"), document.to_owned());
        let mut stage = RawDocumentBuf::new();
        stage.append(cstr!("$replaceWith"), literal);
        let mut pipeline = RawArrayBuf::new();
        pipeline.push(stage);
        statement.append(cstr!("u"), pipeline);
    }
    statement.append(cstr!("upsert"), true);
    statement
}

/// Whether only a pipeline writes this document as it is.
#[must_use]
pub fn needs_pipeline(document: &RawDocument) -> bool {
    document::shape(document) != Shape::default()
}

/// A delete statement for the document with this `_id`.
#[must_use]
pub fn remove(id: Value<'_>) -> RawDocumentBuf {
    let mut statement = RawDocumentBuf::new();
    statement.append(cstr!("q"), id_equals(id));
    statement.append(cstr!("limit"), 1_i32);
    statement
}

/// Splits items into runs that fit one command: at most [`STATEMENTS_MAX`] items and [`STATEMENT_BYTES_MAX`] bytes, but
/// at least one item a run.
pub fn chunks<T>(items: Vec<T>, bytes: impl Fn(&T) -> usize) -> Vec<Vec<T>> {
    let mut runs: Vec<Vec<T>> = Vec::new();
    let mut run: Vec<T> = Vec::new();
    let mut run_bytes = 0;
    for item in items {
        let item_bytes = bytes(&item);
        let full = run.len() >= STATEMENTS_MAX || run_bytes + item_bytes > STATEMENT_BYTES_MAX;
        if full && !run.is_empty() {
            runs.push(std::mem::take(&mut run));
            run_bytes = 0;
        }
        run_bytes += item_bytes;
        run.push(item);
    }
    if !run.is_empty() {
        runs.push(run);
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::rawdoc;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn chunks_keep_order_and_bounds(sizes in proptest::collection::vec(0usize..3_000_000, 0..50)) {
            let runs = chunks(sizes.clone(), |size| *size);
            for run in &runs {
                prop_assert!(!run.is_empty());
                prop_assert!(run.len() == 1 || run.iter().sum::<usize>() <= STATEMENT_BYTES_MAX);
            }
            prop_assert_eq!(runs.concat(), sizes);
        }
    }

    #[test]
    fn a_zero_timestamp_is_kept_by_a_pipeline() {
        let plain = rawdoc! { "_id": 1, "a": 1 };
        let odd = rawdoc! { "_id": 1, "a": bson::Timestamp { time: 0, increment: 0 } };
        let replacement = |document: &RawDocument| {
            put(document::id(document).unwrap(), document).get("u").unwrap().unwrap().element_type()
        };
        assert_eq!(replacement(&plain), bson::spec::ElementType::EmbeddedDocument);
        assert_eq!(replacement(&odd), bson::spec::ElementType::Array);
    }
}
