//! A walker over raw BSON that judges only what it must to find the next element.
//!
//! The iterators of the `bson` crate stop at field names and patterns that are not UTF-8. Servers store those, so
//! they have to pass through here untouched.

use bson::spec::ElementType;
use bson::{RawDocument, Uuid};

use crate::position::Ts;

/// BSON that ends before it says it does, or has an unknown type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed bson at byte {offset}: what was read is not what a server wrote")]
pub struct Malformed {
    /// Offset of the broken element in the document that holds it.
    pub offset: usize,
}

/// A value as it stands in a document: its type and its bytes, not looked into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Value<'a> {
    kind: ElementType,
    bytes: &'a [u8],
}

impl<'a> Value<'a> {
    /// A value of these bytes, which are taken to be sound.
    pub(super) fn new(kind: ElementType, bytes: &'a [u8]) -> Self {
        Self { kind, bytes }
    }

    /// The BSON type.
    #[must_use]
    pub fn kind(self) -> ElementType {
        self.kind
    }

    /// The bytes that follow the name in the document, length prefixes included.
    #[must_use]
    pub fn bytes(self) -> &'a [u8] {
        self.bytes
    }

    /// Appends this value as an element called `name`, byte for byte. `name` must hold no zero byte.
    pub fn write(self, name: &[u8], out: &mut Vec<u8>) {
        out.push(self.kind as u8);
        out.extend_from_slice(name);
        out.push(0);
        out.extend_from_slice(self.bytes);
    }

    /// The embedded document, if this is one. Arrays are not.
    #[must_use]
    pub fn as_document(self) -> Option<&'a RawDocument> {
        self.framed(ElementType::EmbeddedDocument)
    }

    /// The array, if this is one, seen as a document whose names are to be ignored.
    #[must_use]
    pub fn as_array(self) -> Option<&'a RawDocument> {
        self.framed(ElementType::Array)
    }

    /// The code (a string with its length) and the scope, if this is code with a scope. A total length comes first.
    #[must_use]
    pub fn as_code_with_scope(self) -> Option<(&'a [u8], &'a RawDocument)> {
        if self.kind != ElementType::JavaScriptCodeWithScope {
            return None;
        }
        let body = self.bytes.get(4..)?;
        let (code, scope) = body.split_at_checked(length(body)? + 4)?;
        Some((code, RawDocument::from_bytes(scope).ok()?))
    }

    fn framed(self, kind: ElementType) -> Option<&'a RawDocument> {
        if self.kind == kind { RawDocument::from_bytes(self.bytes).ok() } else { None }
    }

    /// The text, if this is a string of valid UTF-8.
    #[must_use]
    pub fn as_str(self) -> Option<&'a str> {
        let (ElementType::String, Some((_, text))) = (self.kind, self.bytes.split_at_checked(4))
        else {
            return None;
        };
        std::str::from_utf8(text.strip_suffix(&[0])?).ok()
    }

    /// The number, if this is a 32 or 64 bit integer, or a double that is whole and small enough to be exact.
    #[must_use]
    pub fn as_i64(self) -> Option<i64> {
        const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
        match self.kind {
            ElementType::Int32 => Some(i32::from_le_bytes(self.fixed()?).into()),
            ElementType::Int64 => Some(i64::from_le_bytes(self.fixed()?)),
            ElementType::Double => {
                let number = f64::from_le_bytes(self.fixed()?);
                (number.trunc() == number && number.abs() <= EXACT_MAX).then_some(number as i64)
            }
            _ => None,
        }
    }

    /// The truth value, if this is a boolean.
    #[must_use]
    pub fn as_bool(self) -> Option<bool> {
        if self.kind != ElementType::Boolean {
            return None;
        }
        self.bytes.first().map(|byte| *byte != 0)
    }

    /// The oplog timestamp, if this is a BSON timestamp.
    #[must_use]
    pub fn as_ts(self) -> Option<Ts> {
        if self.kind != ElementType::Timestamp {
            return None;
        }
        // The ordinal is the low half, the seconds are the high half.
        let bits = u64::from_le_bytes(self.fixed()?);
        Some(Ts::new((bits >> 32) as u32, bits as u32))
    }

    /// Milliseconds since 1970, if this is a date.
    #[must_use]
    pub fn as_date_ms(self) -> Option<i64> {
        if self.kind != ElementType::DateTime {
            return None;
        }
        Some(i64::from_le_bytes(self.fixed()?))
    }

    /// The UUID, if this is binary data of subtype 4 and 16 bytes.
    #[must_use]
    pub fn as_uuid(self) -> Option<Uuid> {
        const HEAD: [u8; 5] = [16, 0, 0, 0, 4];
        if self.kind != ElementType::Binary {
            return None;
        }
        let id = self.bytes.strip_prefix(&HEAD)?;
        Some(Uuid::from_bytes(id.try_into().ok()?))
    }

    /// The bytes, if there are exactly `N`.
    pub(crate) fn fixed<const N: usize>(self) -> Option<[u8; N]> {
        self.bytes.try_into().ok()
    }
}

/// One element of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Element<'a> {
    /// Field name, without its terminating zero; not always UTF-8.
    pub name: &'a [u8],
    /// What it holds.
    pub value: Value<'a>,
    /// Type, name and value as they stand in the document.
    pub raw: &'a [u8],
}

/// The elements of one document, in order. Ends after the first [`Malformed`].
#[derive(Debug, Clone)]
pub struct Elements<'a> {
    /// The whole document but its terminating zero.
    data: &'a [u8],
    offset: usize,
}

impl<'a> Elements<'a> {
    /// Walks `document`, one level deep.
    #[must_use]
    pub fn new(document: &'a RawDocument) -> Self {
        let bytes = document.as_bytes();
        Self { data: bytes.get(..bytes.len().saturating_sub(1)).unwrap_or_default(), offset: 4 }
    }

    fn read(&self) -> Option<Element<'a>> {
        let rest = self.data.get(self.offset..)?;
        let (tag, after_tag) = rest.split_first()?;
        let kind = ElementType::from(*tag)?;
        let name = cstring(after_tag)?;
        let after_name = after_tag.get(name.len() + 1..)?;
        let bytes = after_name.get(..value_len(kind, after_name)?)?;
        let raw = rest.get(..name.len() + 2 + bytes.len())?;
        Some(Element { name, value: Value { kind, bytes }, raw })
    }
}

impl<'a> Iterator for Elements<'a> {
    type Item = Result<Element<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.offset >= self.data.len() {
            return None;
        }
        let offset = self.offset;
        let Some(element) = self.read() else {
            self.offset = self.data.len();
            return Some(Err(Malformed { offset }));
        };
        self.offset += element.raw.len();
        Some(Ok(element))
    }
}

/// The first element called `name`.
///
/// # Errors
/// [`Malformed`], when the document breaks off before that element.
pub fn find<'a>(document: &'a RawDocument, name: &[u8]) -> Result<Option<Value<'a>>, Malformed> {
    for element in Elements::new(document) {
        let element = element?;
        if element.name == name {
            return Ok(Some(element.value));
        }
    }
    Ok(None)
}

fn cstring(bytes: &[u8]) -> Option<&[u8]> {
    let end = bytes.iter().position(|byte| *byte == 0)?;
    bytes.get(..end)
}

/// Bytes that a value of this type takes at the start of `bytes`; `None` if its own length makes no sense. The
/// answer may be longer than `bytes`.
fn value_len(kind: ElementType, bytes: &[u8]) -> Option<usize> {
    let fixed = match kind {
        ElementType::Null | ElementType::Undefined | ElementType::MinKey | ElementType::MaxKey => 0,
        ElementType::Boolean => 1,
        ElementType::Int32 => 4,
        ElementType::Int64
        | ElementType::Double
        | ElementType::DateTime
        | ElementType::Timestamp => 8,
        ElementType::ObjectId => 12,
        ElementType::Decimal128 => 16,
        ElementType::String | ElementType::JavaScriptCode | ElementType::Symbol => {
            string_len(bytes)?
        }
        ElementType::DbPointer => string_len(bytes)? + 12,
        ElementType::EmbeddedDocument | ElementType::Array => {
            let len = length(bytes)?;
            if len < 5 || bytes.get(len - 1) != Some(&0) {
                return None;
            }
            len
        }
        ElementType::Binary => length(bytes)? + 5,
        ElementType::JavaScriptCodeWithScope => Some(length(bytes)?).filter(|len| *len >= 14)?,
        ElementType::RegularExpression => {
            let pattern = cstring(bytes)?.len() + 1;
            pattern + cstring(bytes.get(pattern..)?)?.len() + 1
        }
    };
    Some(fixed)
}

/// Length of a string with its prefix and terminating zero.
fn string_len(bytes: &[u8]) -> Option<usize> {
    let end = length(bytes)? + 4;
    (end >= 5 && bytes.get(end - 1) == Some(&0)).then_some(end)
}

/// The length prefix at the start of `bytes`.
fn length(bytes: &[u8]) -> Option<usize> {
    let prefix = bytes.get(..4)?.try_into().ok()?;
    usize::try_from(i32::from_le_bytes(prefix)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oplog::fixtures;
    use proptest::prelude::*;

    #[test]
    fn sees_the_same_elements_as_the_bson_crate() {
        for fixture in fixtures::entries() {
            let ours: Vec<_> = Elements::new(&fixture.document)
                .map(|element| element.map(|e| (e.name.to_vec(), e.value.kind(), e.raw.len())))
                .collect::<Result<_, _>>()
                .unwrap();
            let theirs: Vec<_> = fixture
                .document
                .iter_elements()
                .map(|element| {
                    let e = element.unwrap();
                    let name = e.key().as_str().as_bytes().to_vec();
                    (name.clone(), e.element_type(), e.size() + name.len() + 2)
                })
                .collect();
            assert_eq!(ours, theirs, "{}", fixture.shape);
        }
    }

    #[test]
    fn passes_names_and_strings_that_are_not_utf8() {
        let document = fixtures::document(b"\x02\xff\0\x02\0\0\0\xfe\0");
        let element = Elements::new(&document).next().unwrap().unwrap();
        assert_eq!((element.name, element.value.as_str()), (&b"\xff"[..], None));
        let mut copy = Vec::new();
        element.value.write(element.name, &mut copy);
        assert_eq!(copy, element.raw);
    }

    #[test]
    fn names_the_place_that_is_broken_and_stops() {
        let document = fixtures::document(b"\x0aa\0\x10b\0\x01");
        let seen: Vec<_> = Elements::new(&document).collect();
        assert_eq!(seen.len(), 2);
        assert_eq!(seen[1], Err(Malformed { offset: 7 }));
    }

    proptest! {
        #[test]
        fn never_panics(body: Vec<u8>) {
            let document = fixtures::document(&body);
            let walked: usize =
                Elements::new(&document).map_while(Result::ok).map(|e| e.raw.len()).sum();
            prop_assert!(walked <= body.len());
        }
    }
}
