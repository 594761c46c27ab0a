//! [`IdKey`]: which document an `_id` means.
//!
//! Servers compare `_id`s by value, not by bytes: an insert of `_id: 1.0` meets the document with `_id: 1`. Operations
//! on one document must stay in order and be folded together, so their keys must be equal exactly when a server
//! (with simple collation) considers the `_id`s equal. A key that is too coarse would lose a document; one that is
//! too fine would let operations overtake each other.

use bson::RawDocument;
use bson::spec::ElementType;

use super::element::{Elements, Value};
use super::number::{self, Number};

/// Servers store at most 200 levels.
const DEPTH_MAX: usize = 250;

/// Keys up to this many bytes are kept in place: object ids, numbers, UUIDs and short strings.
const INLINE_MAX: usize = 22;

// Tags of what BSON's own type bytes do not separate. They only have to differ from those and from each other.
const TAG_NAN: u8 = 0x80;
const TAG_INFINITE: u8 = 0x81;
const TAG_WHOLE: u8 = 0x82;
const TAG_DECIMAL: u8 = 0x83;
const TAG_DOUBLE: u8 = 0x84;
const TAG_OPAQUE: u8 = 0x85;
/// Before each element of a document or array, to tell it from the end.
const MORE: u8 = 1;
const END: u8 = 0;

/// Canonical form of an `_id`, for hashing and comparing within one collection of simple collation. In a collection of
/// another collation, ids with strings in them may be equal to the server though their keys differ.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct IdKey(Bytes);

/// The same content is always kept the same way, so comparing the variants compares the content.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Bytes {
    Inline { len: u8, bytes: [u8; INLINE_MAX] },
    Heap(Box<[u8]>),
}

impl IdKey {
    /// The key of `id`. A value that is malformed inside is taken as it is, byte for byte.
    #[must_use]
    pub fn new(id: Value<'_>) -> Self {
        match id.kind() {
            ElementType::ObjectId | ElementType::Binary => {
                Self::from_slices(id.kind() as u8, id.bytes())
            }
            ElementType::String => Self::from_slices(ElementType::String as u8, id.bytes()),
            _ => Self::canonical(id),
        }
    }

    /// The canonical bytes; equal for equal keys.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        match &self.0 {
            Bytes::Inline { len, bytes } => bytes.get(..usize::from(*len)).unwrap_or_default(),
            Bytes::Heap(bytes) => bytes,
        }
    }

    fn canonical(id: Value<'_>) -> Self {
        let mut out = Vec::with_capacity(INLINE_MAX);
        if push(id, 0, &mut out).is_none() {
            out.clear();
            out.extend_from_slice(&[TAG_OPAQUE, id.kind() as u8]);
            out.extend_from_slice(id.bytes());
        }
        match out.split_first() {
            Some((tag, rest)) => Self::from_slices(*tag, rest),
            None => Self(Bytes::Heap(Box::default())),
        }
    }

    fn from_slices(tag: u8, rest: &[u8]) -> Self {
        let mut bytes = [0; INLINE_MAX];
        let len = rest.len() + 1;
        if let (Some(place), Ok(len)) = (bytes.get_mut(1..len), u8::try_from(len)) {
            place.copy_from_slice(rest);
            if let Some(first) = bytes.first_mut() {
                *first = tag;
            }
            return Self(Bytes::Inline { len, bytes });
        }
        let mut bytes = Vec::with_capacity(len);
        bytes.push(tag);
        bytes.extend_from_slice(rest);
        Self(Bytes::Heap(bytes.into_boxed_slice()))
    }
}

/// Appends the canonical form of `value`, in which every part tells its own length. `None`: malformed or too deep.
fn push(value: Value<'_>, depth: usize, out: &mut Vec<u8>) -> Option<()> {
    if depth > DEPTH_MAX {
        return None;
    }
    match value.kind() {
        ElementType::Int32 | ElementType::Int64 => push_number(Number::Whole(value.as_i64()?), out),
        ElementType::Double => {
            push_number(number::from_f64(f64::from_le_bytes(value.fixed()?)), out);
        }
        ElementType::Decimal128 => push_number(number::from_decimal128(value.fixed()?), out),
        ElementType::EmbeddedDocument => {
            out.push(ElementType::EmbeddedDocument as u8);
            push_document(value.as_document()?, true, depth, out)?;
        }
        // Servers compare arrays by position, whatever the names.
        ElementType::Array => {
            out.push(ElementType::Array as u8);
            push_document(value.as_array()?, false, depth, out)?;
        }
        ElementType::JavaScriptCodeWithScope => push_code(value, depth, out)?,
        // A server's index does not tell a symbol from a string.
        ElementType::Symbol => push_bytes(ElementType::String, value.bytes(), out),
        kind => push_bytes(kind, value.bytes(), out),
    }
    Some(())
}

fn push_bytes(kind: ElementType, bytes: &[u8], out: &mut Vec<u8>) {
    out.push(kind as u8);
    out.extend_from_slice(bytes);
}

fn push_document(
    document: &RawDocument,
    with_names: bool,
    depth: usize,
    out: &mut Vec<u8>,
) -> Option<()> {
    for element in Elements::new(document) {
        let element = element.ok()?;
        out.push(MORE);
        if with_names {
            out.extend_from_slice(element.name);
            out.push(0);
        }
        push(element.value, depth + 1, out)?;
    }
    out.push(END);
    Some(())
}

/// The code as a string, and the scope, which is compared as a document.
fn push_code(value: Value<'_>, depth: usize, out: &mut Vec<u8>) -> Option<()> {
    let (code, scope) = value.as_code_with_scope()?;
    push_bytes(ElementType::JavaScriptCodeWithScope, code, out);
    push_document(scope, true, depth, out)
}

fn push_number(number: Number, out: &mut Vec<u8>) {
    match number {
        Number::Nan => out.push(TAG_NAN),
        Number::Infinite { negative } => out.extend_from_slice(&[TAG_INFINITE, negative.into()]),
        Number::Whole(number) => {
            out.push(TAG_WHOLE);
            out.extend_from_slice(&number.to_le_bytes());
        }
        Number::Decimal { negative, coefficient, exponent } => {
            out.extend_from_slice(&[TAG_DECIMAL, negative.into()]);
            out.extend_from_slice(&exponent.to_le_bytes());
            out.extend_from_slice(&coefficient.to_le_bytes());
        }
        Number::Double(bits) => {
            out.push(TAG_DOUBLE);
            out.extend_from_slice(&bits.to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oplog::{document, fixtures};
    use bson::raw::cstr;
    use bson::{Decimal128, RawBson, RawDocumentBuf, Timestamp, oid::ObjectId, rawdoc};
    use proptest::prelude::*;

    fn key(id: impl Into<RawBson>) -> IdKey {
        let mut document = RawDocumentBuf::new();
        document.append(cstr!("_id"), id.into());
        IdKey::new(document::id(&document).unwrap())
    }

    fn decimal(text: &str) -> Decimal128 {
        text.parse().unwrap()
    }

    #[test]
    fn numbers_are_keyed_by_value_also_when_nested() {
        let ones: [RawBson; 4] = [1.into(), 1_i64.into(), 1.0.into(), decimal("1.00").into()];
        for a in &ones {
            for b in &ones {
                assert_eq!(key(a.clone()), key(b.clone()));
                assert_eq!(
                    key(rawdoc! { "a": [a.clone(), { "b": a.clone() }] }),
                    key(rawdoc! { "a": [b.clone(), { "b": b.clone() }] })
                );
            }
        }
        assert_eq!(key(-0.0), key(0));
        assert_eq!(key(f64::NAN), key(decimal("NaN")));
        assert_ne!(key(f64::NAN), key(f64::INFINITY));
        assert_ne!(key(i64::MAX), key(9_223_372_036_854_775_808.0));
    }

    #[test]
    fn everything_else_is_told_apart() {
        let ids: Vec<RawBson> = vec![
            RawBson::Null,
            RawBson::Undefined,
            RawBson::MinKey,
            RawBson::MaxKey,
            true.into(),
            false.into(),
            0.into(),
            1.into(),
            0.1.into(),
            decimal("0.1").into(),
            "".into(),
            "1".into(),
            RawBson::JavaScriptCode("1".into()),
            RawBson::DateTime(bson::DateTime::from_millis(1)),
            Timestamp { time: 0, increment: 1 }.into(),
            ObjectId::from_bytes([1; 12]).into(),
            bson::Binary::from(bson::Uuid::from_bytes([1; 16])).into(),
            rawdoc! {}.into(),
            RawBson::Array(bson::RawArrayBuf::new()),
            rawdoc! { "a": 1, "b": 2 }.into(),
            rawdoc! { "b": 2, "a": 1 }.into(),
            rawdoc! { "a": { "b": 1 } }.into(),
            rawdoc! { "a": {}, "b": 1 }.into(),
            rawdoc! { "a": "x", "b": "y" }.into(),
            rawdoc! { "a": ["x", "y"] }.into(),
            rawdoc! { "a": [["x"], "y"] }.into(),
        ];
        for (i, a) in ids.iter().enumerate() {
            for (j, b) in ids.iter().enumerate() {
                assert_eq!(key(a.clone()) == key(b.clone()), i == j, "{a:?} {b:?}");
            }
        }
    }

    #[test]
    fn symbols_are_strings_to_an_index() {
        assert_eq!(key(RawBson::Symbol("a".into())), key("a"));
        assert_eq!(key(rawdoc! { "a": RawBson::Symbol("a".into()) }), key(rawdoc! { "a": "a" }));
    }

    #[test]
    fn common_ids_need_no_memory_of_their_own() {
        let uuid = bson::Binary::from(bson::Uuid::from_bytes([1; 16]));
        for key in [key(ObjectId::new()), key(1), key(1.5), key(uuid), key("sixteen letters!")] {
            assert!(matches!(key.0, Bytes::Inline { .. }), "{key:?}");
        }
        let long = key("a text of more than twenty-two bytes");
        assert!(
            matches!(long.0, Bytes::Heap(_)) && long == key("a text of more than twenty-two bytes")
        );
        assert_eq!(size_of::<IdKey>(), 24);
    }

    #[test]
    fn malformed_and_endless_ids_are_keyed_by_their_bytes() {
        let broken = fixtures::document(b"\x03_id\0\x06\0\0\0\x01\0");
        let id = document::id(&broken).unwrap();
        assert_eq!(IdKey::new(id), IdKey::new(id));
        let mut deep = rawdoc! {};
        for _ in 0..2000 {
            deep = rawdoc! { "a": deep };
        }
        assert_ne!(key(deep.clone()), key(rawdoc! { "a": deep }));
    }

    /// Values of which many are equal in another type.
    fn value() -> impl Strategy<Value = RawBson> {
        let leaf = prop_oneof![
            (-3..3).prop_map(RawBson::Int32),
            (-3_i64..3).prop_map(RawBson::Int64),
            (-6_i32..6).prop_map(|n| RawBson::Double(f64::from(n) / 2.0)),
            (-30..30).prop_map(|n| RawBson::Decimal128(decimal(&format!("{n}E-1")))),
            "[ab]{0,2}".prop_map(RawBson::String),
            any::<bool>().prop_map(RawBson::Boolean),
            Just(RawBson::Null),
        ];
        leaf.prop_recursive(3, 8, 3, |inner| {
            let fields = prop::collection::vec(("[ab]?", inner.clone()), 0..3);
            prop_oneof![
                prop::collection::vec(inner, 0..3)
                    .prop_map(|items| RawBson::Array(items.into_iter().collect())),
                fields.prop_map(|fields| {
                    let mut document = RawDocumentBuf::new();
                    for (name, value) in fields {
                        document.append(bson::raw::CString::try_from(name).unwrap(), value);
                    }
                    document.into()
                }),
            ]
        })
    }

    /// What a server compares, written the slow way: numbers here are all multiples of a tenth.
    fn model(value: &RawBson) -> String {
        match value {
            RawBson::Int32(n) => format!("number {}", n * 10),
            RawBson::Int64(n) => format!("number {}", n * 10),
            RawBson::Double(n) => format!("number {}", (n * 10.0) as i64),
            RawBson::Decimal128(n) => {
                let tenths = n.to_string().parse::<f64>().unwrap() * 10.0;
                format!("number {}", tenths.round() as i64)
            }
            RawBson::Array(items) => {
                let items = items.into_iter().map(|item| model(&item.unwrap().into()));
                format!("array {:?}", items.collect::<Vec<_>>())
            }
            RawBson::Document(fields) => {
                let fields = fields.iter().map(|field| {
                    let (name, value) = field.unwrap();
                    (name.as_str().to_owned(), model(&value.into()))
                });
                format!("document {:?}", fields.collect::<Vec<_>>())
            }
            other => format!("{other:?}"),
        }
    }

    proptest! {
        #[test]
        fn keys_are_equal_exactly_when_the_values_are(a in value(), b in value()) {
            prop_assert_eq!(key(a.clone()) == key(b.clone()), model(&a) == model(&b));
        }

        #[test]
        fn never_panics(kind: u8, bytes: Vec<u8>) {
            let body = [&[kind], &b"_id\0"[..], &bytes].concat();
            let document = fixtures::document(&body);
            if let Some(id) = document::id(&document) {
                prop_assert_eq!(IdKey::new(id), IdKey::new(id));
            }
        }
    }
}
