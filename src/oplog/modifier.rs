//! Applies an update in the operator format (`$v: 1`, servers before 5.0), byte for byte as servers do when they apply
//! their own oplog.
//!
//! ```text
//! modifier := { $v: 1?, $set: {path: value, ..}?, $unset: {path: anything, ..}? }
//! ```
//!
//! A path is split at its dots; a part that is a number means an index where it meets an array, and a field name where
//! it meets a document. Fields that are new come to the end of their document, not in the order of the update but
//! sorted: by bytes, and by later servers numbers by their value. A server logs an update in the order in which it
//! applied it itself, so the entry tells which of the two it was. Over a document that is newer than the update a path
//! may lead through a value of another type; such a part of the update does nothing, and later entries put the document
//! right.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use bson::spec::ElementType;
use bson::{RawDocument, RawDocumentBuf};

use super::diff::{
    ARRAY_LEN_MAX, DEPTH_MAX, DIGITS_MAX, DiffError, begin, decimal, end, write_head,
};
use super::element::{self, Elements, Value};

/// The document that `modifier` makes of `pre`. `modifier` is the whole `o` of the entry.
///
/// # Errors
/// [`DiffError`], when it is no such update. Nothing of it has been applied then.
pub(super) fn apply(
    pre: &RawDocument,
    modifier: &RawDocument,
) -> Result<RawDocumentBuf, DiffError> {
    let parsed = parse(modifier)?;
    let mut out = Vec::with_capacity(pre.as_bytes().len() + modifier.as_bytes().len());
    parsed.document(pre, &parsed.changes, &mut out)?;
    RawDocumentBuf::from_bytes(out).map_err(|_| DiffError::TooLarge)
}

/// A part of a path, in the order in which a server goes through an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part<'a> {
    name: &'a [u8],
    /// Whether it is ordered as a number, which everything is that begins with a digit other than a padding zero.
    number: bool,
}

impl Ord for Part<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        let by_name = self.name.cmp(other.name);
        if self.number && other.number {
            return self.name.len().cmp(&other.name.len()).then(by_name);
        }
        by_name
    }
}

/// How a server orders the parts of paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Bytes,
    Numbers,
}

impl Order {
    /// The order that the fields of `$set` are in. Where there is no telling it makes no difference.
    fn of(paths: &RawDocument) -> Result<Self, DiffError> {
        let mut last: Option<&[u8]> = None;
        for field in Elements::new(paths) {
            let path = field?.name;
            if last.is_some_and(|last| by_parts(last).gt(by_parts(path))) {
                return Ok(Self::Numbers);
            }
            last = Some(path);
        }
        Ok(Self::Bytes)
    }

    fn part(self, name: &[u8]) -> Part<'_> {
        let number = self == Self::Numbers && matches!(name, [b'0'] | [b'1'..=b'9', ..]);
        Part { name, number }
    }
}

fn by_parts(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|byte| *byte == b'.')
}

impl PartialOrd for Part<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// What happens at one place of a document.
#[derive(Debug)]
enum Change<'a> {
    Set(Value<'a>),
    Unset,
    Below(Changes<'a>),
}

type Changes<'a> = BTreeMap<Part<'a>, Change<'a>>;

impl Change<'_> {
    /// Whether it makes something where nothing is.
    fn creates(&self) -> bool {
        match self {
            Self::Set(_) => true,
            Self::Unset => false,
            Self::Below(changes) => changes.values().any(Change::creates),
        }
    }

    /// Writes what it makes where nothing was.
    fn create(&self, name: &[u8], out: &mut Vec<u8>) -> Result<(), DiffError> {
        match self {
            Self::Set(value) => value.write(name, out),
            Self::Unset => {}
            Self::Below(changes) => {
                write_head(ElementType::EmbeddedDocument, name, out);
                let start = begin(out);
                create_all(changes, out)?;
                end(out, start)?;
            }
        }
        Ok(())
    }
}

fn create_all(changes: &Changes<'_>, out: &mut Vec<u8>) -> Result<(), DiffError> {
    let new = changes.iter().filter(|(_, change)| change.creates());
    for (part, change) in new {
        change.create(part.name, out)?;
    }
    Ok(())
}

fn parse(modifier: &RawDocument) -> Result<Parsed<'_>, DiffError> {
    let mut parsed = Parsed { order: Order::Bytes, changes: Changes::new() };
    if let Some(set) = element::find(modifier, b"$set")?.and_then(Value::as_document) {
        parsed.order = Order::of(set)?;
    }
    for element in Elements::new(modifier) {
        let element = element?;
        let sets = match element.name {
            b"$v" => continue,
            b"$set" => true,
            b"$unset" => false,
            name => {
                let operator = String::from_utf8_lossy(name).into_owned();
                return Err(DiffError::Operator { operator });
            }
        };
        let paths = element.value.as_document().ok_or(DiffError::Content { section: '$' })?;
        for field in Elements::new(paths) {
            let field = field?;
            let leaf = if sets { Change::Set(field.value) } else { Change::Unset };
            parsed.add(field.name, leaf)?;
        }
    }
    Ok(parsed)
}

/// An update, ready to be applied.
struct Parsed<'a> {
    order: Order,
    changes: Changes<'a>,
}

impl<'a> Parsed<'a> {
    /// Adds what happens at the end of `path`.
    fn add(&mut self, path: &'a [u8], leaf: Change<'a>) -> Result<(), DiffError> {
        let mut parts = by_parts(path).peekable();
        let mut here = &mut self.changes;
        let mut depth = 0;
        while let Some(name) = parts.next() {
            if name.is_empty() {
                return Err(DiffError::Content { section: '$' });
            }
            if depth > DEPTH_MAX {
                return Err(DiffError::TooDeep);
            }
            depth += 1;
            let part = self.order.part(name);
            if parts.peek().is_none() {
                let before = here.insert(part, leaf);
                return if before.is_some() { Err(DiffError::Duplicate) } else { Ok(()) };
            }
            let below = here.entry(part).or_insert_with(|| Change::Below(Changes::new()));
            let Change::Below(below) = below else { return Err(DiffError::Duplicate) };
            here = below;
        }
        Ok(())
    }

    fn document(
        &self,
        pre: &RawDocument,
        changes: &Changes<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), DiffError> {
        // Of two fields of one name a path means the first.
        let mut met = BTreeSet::new();
        let start = begin(out);
        for element in Elements::new(pre) {
            let element = element?;
            match changes.get_key_value(&self.order.part(element.name)) {
                Some((part, change)) if met.insert(*part) => {
                    self.value(element.name, element.value, change, out)?;
                }
                _ => out.extend_from_slice(element.raw),
            }
        }
        for (part, change) in changes.iter().filter(|(_, change)| change.creates()) {
            if !met.contains(part) {
                change.create(part.name, out)?;
            }
        }
        end(out, start)
    }

    /// Writes what becomes of a field that is there; nothing if that is its end.
    fn value(
        &self,
        name: &[u8],
        old: Value<'_>,
        change: &Change<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), DiffError> {
        match change {
            Change::Set(value) => value.write(name, out),
            Change::Unset => {}
            Change::Below(below) => {
                if let Some(document) = old.as_document() {
                    write_head(ElementType::EmbeddedDocument, name, out);
                    self.document(document, below, out)?;
                } else if let Some(array) = old.as_array() {
                    write_head(ElementType::Array, name, out);
                    self.array(array, below, out)?;
                } else {
                    old.write(name, out);
                }
            }
        }
        Ok(())
    }

    fn array(
        &self,
        pre: &RawDocument,
        changes: &Changes<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), DiffError> {
        let mut items: Vec<Item<'_>> = Vec::new();
        for element in Elements::new(pre) {
            items.push(Item::Old(element?.value));
        }
        let mut changed = false;
        for (part, change) in changes {
            // A name that is no index leads nowhere in an array.
            let Some(index) = index(part.name) else { continue };
            match items.get_mut(index) {
                Some(item) => {
                    *item = self.item(item, change)?;
                    changed = true;
                }
                None if change.creates() => {
                    if index > ARRAY_LEN_MAX {
                        return Err(DiffError::ArrayTooLong);
                    }
                    items.resize_with(index, || Item::New(ElementType::Null, Vec::new()));
                    items.push(made(|out| change.create(b"", out))?);
                    changed = true;
                }
                None => {}
            }
        }
        if !changed {
            out.extend_from_slice(pre.as_bytes());
            return Ok(());
        }
        let start = begin(out);
        for (index, item) in items.iter().enumerate() {
            let mut digits = [0; DIGITS_MAX];
            let value = item.value();
            value.write(decimal(index, &mut digits), out);
        }
        end(out, start)
    }

    /// What becomes of an element that is there. One that is taken away leaves null: the others keep their places.
    fn item<'i>(&self, item: &Item<'i>, change: &Change<'_>) -> Result<Item<'i>, DiffError> {
        if matches!(change, Change::Unset) {
            return Ok(Item::New(ElementType::Null, Vec::new()));
        }
        made(|out| self.value(b"", item.value(), change, out))
    }
}

/// An element of an array that is being changed.
enum Item<'a> {
    Old(Value<'a>),
    /// Type and bytes.
    New(ElementType, Vec<u8>),
}

impl Item<'_> {
    fn value(&self) -> Value<'_> {
        match self {
            Self::Old(value) => *value,
            Self::New(kind, bytes) => Value::new(*kind, bytes),
        }
    }
}

/// An item of what `write` writes: one element without a name.
fn made<'a>(
    write: impl FnOnce(&mut Vec<u8>) -> Result<(), DiffError>,
) -> Result<Item<'a>, DiffError> {
    let mut bytes = Vec::new();
    write(&mut bytes)?;
    let kind = bytes.first().copied().and_then(ElementType::from).unwrap_or(ElementType::Null);
    // Behind the type and the end of the empty name.
    Ok(Item::New(kind, bytes.split_off(bytes.len().min(2))))
}

/// The place in an array that a part of a path means. Padding zeros do not count.
fn index(part: &[u8]) -> Option<usize> {
    if part.is_empty() || !part.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let index = part.iter().try_fold(0_u32, |index, digit| {
        index.checked_mul(10)?.checked_add(u32::from(digit - b'0'))
    });
    usize::try_from(index?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oplog::fixtures;
    use bson::{RawBson, rawdoc};
    use proptest::prelude::*;

    #[test]
    fn sets_in_place_and_appends_in_order_what_is_new() {
        let pre = rawdoc! { "_id": 1, "b": 1, "sub": { "x": 1 } };
        let modifier = rawdoc! {
            "$v": 1,
            "$set": { "a": 1, "b": 2, "new.p.q": 1, "new.z": 2, "sub.a": 5 },
            "$unset": { "sub.x": true, "gone.y": true },
        };
        let post = rawdoc! {
            "_id": 1, "b": 2, "sub": { "a": 5 }, "a": 1, "new": { "p": { "q": 1 }, "z": 2 },
        };
        assert_eq!(apply(&pre, &modifier), Ok(post));
    }

    #[test]
    fn new_fields_stand_in_the_order_of_the_server_that_logged_them() {
        let set = |set: RawDocumentBuf| apply(&rawdoc! {}, &rawdoc! { "$v": 1, "$set": set });
        let bytes = rawdoc! { "10": 1, "9": 2, "a": 3 };
        let numbers = rawdoc! { "9": 2, "10": 1, "a": 3 };
        assert_eq!(set(bytes.clone()), Ok(bytes));
        assert_eq!(set(numbers.clone()), Ok(numbers));
        // No server logs this; a client may, by the applyOps command.
        let unordered = rawdoc! { "a": 3, "10": 1, "9": 2 };
        assert_eq!(set(unordered), Ok(rawdoc! { "9": 2, "10": 1, "a": 3 }));
        let nested = rawdoc! { "a.10": 1, "a.9": 2, "a-": 3 };
        assert_eq!(set(nested), Ok(rawdoc! { "a": { "10": 1, "9": 2 }, "a-": 3 }));
    }

    #[test]
    fn numbers_are_places_in_arrays_and_names_in_documents() {
        let pre = rawdoc! { "y": [1, 2], "o": { "0": 1 } };
        let set = rawdoc! { "o.1": 9, "y.1": 9, "y.4.k": 1 };
        let modifier = rawdoc! { "$v": 1, "$set": set, "$unset": { "y.0": true, "o.0": true } };
        let nothing = RawBson::Null;
        let y = [nothing.clone(), 9.into(), nothing.clone(), nothing, rawdoc! { "k": 1 }.into()];
        let y: bson::RawArrayBuf = y.into_iter().collect();
        assert_eq!(apply(&pre, &modifier), Ok(rawdoc! { "y": y, "o": { "1": 9 } }));
    }

    #[test]
    fn a_path_through_another_type_leads_nowhere() {
        let pre = rawdoc! { "a": 1, "y": [1], "n": RawBson::Null };
        let set = rawdoc! { "a.b": 1, "b": 2, "n.x": 1, "y.0.x": 1, "y.k": 1 };
        let modifier = rawdoc! { "$v": 1, "$set": set, "$unset": { "a.c": true, "y.z": true } };
        let post = rawdoc! { "a": 1, "y": [1], "n": RawBson::Null, "b": 2 };
        assert_eq!(apply(&pre, &modifier), Ok(post));
    }

    #[test]
    fn of_two_fields_of_one_name_the_first_is_meant() {
        let pre = fixtures::document(b"\x0aa\0\x10b\0\x01\0\0\0\x0aa\0");
        let post = fixtures::document(b"\x08a\0\x01\x10b\0\x01\0\0\0\x0aa\0");
        assert_eq!(apply(&pre, &rawdoc! { "$set": { "a": true } }), Ok(post));
    }

    #[test]
    fn refuses_what_no_server_logs() {
        let operator = |name: &str| DiffError::Operator { operator: name.to_owned() };
        let content = DiffError::Content { section: '$' };
        let deep = vec!["a"; 1000].join(".");
        let mut nested = RawDocumentBuf::new();
        nested.append(bson::raw::CString::try_from(deep).unwrap(), 1);
        let cases = [
            (rawdoc! { "$v": 1, "$inc": { "a": 1 } }, operator("$inc")),
            (rawdoc! { "$v": 1, "a": 1 }, operator("a")),
            (rawdoc! { "$set": 1 }, content.clone()),
            (rawdoc! { "$set": { "": 1 } }, content.clone()),
            (rawdoc! { "$set": { "a..b": 1 } }, content),
            (rawdoc! { "$set": { "a": 1 }, "$unset": { "a": true } }, DiffError::Duplicate),
            (rawdoc! { "$set": { "a": 1, "a.b": 1 } }, DiffError::Duplicate),
            (rawdoc! { "$set": { "a.b": 1, "a": 1 } }, DiffError::Duplicate),
            (rawdoc! { "$set": { "y.4294967295": 1 } }, DiffError::ArrayTooLong),
            (rawdoc! { "$set": nested }, DiffError::TooDeep),
        ];
        for (modifier, error) in cases {
            assert_eq!(apply(&rawdoc! { "y": [] }, &modifier), Err(error), "{modifier:?}");
        }
    }

    /// `$set` over documents of few names, some of them with arrays.
    fn modifiers() -> impl Strategy<Value = RawDocumentBuf> {
        let path = prop::sample::select(vec!["a", "a.b", "a.0", "a.1.c", "b", "b.b.b", "10", "9"]);
        prop::collection::btree_map(path, any::<i32>(), 0..5).prop_map(|fields| {
            let mut set = RawDocumentBuf::new();
            for (path, value) in fields {
                set.append(bson::raw::CString::try_from(path).unwrap(), value);
            }
            rawdoc! { "$v": 1, "$set": set, "$unset": { "c": true } }
        })
    }

    proptest! {
        #[test]
        fn applying_once_more_changes_nothing_more(
            first in modifiers(), modifier in modifiers(), array: bool
        ) {
            let pre = if array { rawdoc! { "a": [1, {}] } } else { rawdoc! { "c": 1 } };
            if let Ok(pre) = apply(&pre, &first)
                && let Ok(once) = apply(&pre, &modifier)
            {
                prop_assert_eq!(apply(&once, &modifier), Ok(once));
            }
        }

        #[test]
        fn what_is_not_mentioned_keeps_its_bytes(body: Vec<u8>) {
            let pre = fixtures::document(&body);
            let modifier = rawdoc! { "$v": 1, "$unset": { "never there": true } };
            if let Ok(post) = apply(&pre, &modifier) {
                prop_assert_eq!(post, pre);
            }
        }

        #[test]
        fn never_panics_on_noise(pre: Vec<u8>, modifier: Vec<u8>) {
            let set = fixtures::document(&modifier);
            let modifier = rawdoc! { "$v": 1, "$set": set };
            if let Ok(post) = apply(&fixtures::document(&pre), &modifier) {
                prop_assert!(post.as_bytes().len() >= 5);
            }
        }

        #[test]
        fn never_panics_on_damaged_documents(
            pre in fixtures::mutated(
                fixtures::diff_vectors().into_iter().map(|vector| vector.pre).collect()
            ),
            modifier in fixtures::mutated(vec![rawdoc! {
                "$v": 1, "$set": { "a.1.b": 1, "b": { "x": 1 }, "y.7": 1 }, "$unset": { "a.2": 1 },
            }]),
        ) {
            if let Ok(post) = apply(&pre, &modifier) {
                let walked = Elements::new(&post).map(|e| e.map(|e| e.raw.len())).sum::<Result<usize, _>>();
                prop_assert_eq!(walked, Ok(post.as_bytes().len() - 5));
            }
        }
    }
}
