//! What has to be known about a user document before it can be written without changing a byte of it.

use bson::RawDocument;
use bson::spec::ElementType;

use super::diff::DEPTH_MAX;
use super::element::{self, Element, Elements, Value};
use crate::position::Ts;

/// Why a plain write would change a document, or be refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Shape {
    /// A top-level field other than `_id` holds `Timestamp(0, 0)`: inserts and replacements put the current time there.
    pub zero_timestamp: bool,
    /// A top-level field name starts with `$`: replacements refuse it.
    pub dollar_name: bool,
}

/// Looks at the top level of `document`, once. Where the document is malformed the answer covers what comes before;
/// the server refuses such a document anyway.
#[must_use]
pub fn shape(document: &RawDocument) -> Shape {
    let mut shape = Shape::default();
    for element in Elements::new(document).map_while(Result::ok) {
        shape.dollar_name |= element.name.starts_with(b"$");
        shape.zero_timestamp |= element.value.as_ts() == Some(Ts::ZERO) && element.name != b"_id";
    }
    shape
}

/// The document's `_id`, wherever it stands in the top level.
#[must_use]
pub fn id(document: &RawDocument) -> Option<Value<'_>> {
    element::find(document, b"_id").ok().flatten()
}

/// Whether two fields of one document have equal names, at any depth. Such a document must never meet a pipeline
/// update: mongod 6.0.5 aborts on it. Names inside arrays do not count, since servers ignore them.
///
/// Answers true for a malformed document too, so that it is handled with the same care.
#[must_use]
pub fn has_duplicate_names(document: &RawDocument) -> bool {
    let mut names = Vec::new();
    // A list instead of recursion, so that no depth of nesting can use up the stack.
    let mut open = vec![(document, false)];
    while let Some((document, is_array)) = open.pop() {
        names.clear();
        for element in Elements::new(document) {
            let Ok(element) = element else { return true };
            if !is_array {
                names.push(element.name);
            }
            let nested = element.value.as_document().or_else(|| element.value.as_array());
            if let Some(nested) = nested {
                open.push((nested, element.value.kind() == ElementType::Array));
            }
        }
        if has_equal_pair(&mut names) {
            return true;
        }
    }
    false
}

/// Whether the document is nested no deeper than any server stores (200 levels; some more for what stands around it),
/// so that it can be read by recursion. False for a malformed document too.
#[must_use]
pub fn is_shallow(document: &RawDocument) -> bool {
    let mut open = vec![(document, 0)];
    while let Some((document, depth)) = open.pop() {
        for element in Elements::new(document) {
            let Ok(Element { value, .. }) = element else { return false };
            let scope = || value.as_code_with_scope().map(|(_, scope)| scope);
            let nested = value.as_document().or_else(|| value.as_array()).or_else(scope);
            if let Some(nested) = nested {
                if depth == DEPTH_MAX {
                    return false;
                }
                open.push((nested, depth + 1));
            }
        }
    }
    true
}

/// Sorts `names` if there are many.
fn has_equal_pair(names: &mut [&[u8]]) -> bool {
    const FEW: usize = 12;
    if names.len() > FEW {
        names.sort_unstable();
        return names.windows(2).any(|pair| matches!(pair, [a, b] if a == b));
    }
    names.iter().enumerate().any(|(place, name)| names.iter().skip(place + 1).any(|n| n == name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oplog::fixtures;
    use bson::{RawDocumentBuf, Timestamp, rawdoc};
    use proptest::prelude::*;

    #[test]
    fn sees_what_a_plain_write_would_change() {
        let zero = Timestamp { time: 0, increment: 0 };
        let later = Timestamp { time: 0, increment: 1 };
        let cases = [
            (rawdoc! { "_id": zero, "a": later, "b": { "c": zero, "$d": 1 } }, (false, false)),
            (rawdoc! { "_id": 1, "a": zero }, (true, false)),
            (rawdoc! { "_id": 1, "$a": 1 }, (false, true)),
            (rawdoc! { "$a": 1, "b": zero, "c": 1 }, (true, true)),
        ];
        for (document, (zero_timestamp, dollar_name)) in cases {
            assert_eq!(shape(&document), Shape { zero_timestamp, dollar_name }, "{document:?}");
        }
    }

    #[test]
    fn finds_the_id_anywhere_in_the_top_level() {
        assert_eq!(id(&rawdoc! { "a": { "_id": 2 }, "_id": 1 }).unwrap().as_i64(), Some(1));
        assert_eq!(id(&rawdoc! { "a": { "_id": 2 } }), None);
    }

    #[test]
    fn finds_duplicates_at_any_depth_but_not_across_levels_or_in_arrays() {
        let twice: &[u8] = b"\x0aa\0\x0aa\0";
        let doubled = fixtures::document(twice);
        let array = fixtures::document(&[b"\x04x\0", doubled.as_bytes()].concat());
        assert!(has_duplicate_names(&doubled));
        assert!(has_duplicate_names(&rawdoc! { "x": [1, { "y": doubled.clone() }] }));
        assert!(!has_duplicate_names(&array));
        assert!(!has_duplicate_names(&rawdoc! { "a": { "a": [{ "a": 1 }, { "a": 1 }] } }));
        assert!(has_duplicate_names(&fixtures::document(b"\x01")));
    }

    #[test]
    fn follows_any_depth() {
        let mut document = fixtures::document(b"\x0aa\0\x0aa\0");
        for _ in 0..2000 {
            document = rawdoc! { "a": document };
        }
        assert!(has_duplicate_names(&document));
        assert!(!is_shallow(&document));
        let scoped = |scope| bson::RawJavaScriptCodeWithScope { code: String::new(), scope };
        assert!(is_shallow(&rawdoc! { "a": [{ "b": scoped(rawdoc! { "c": 1 }) }, 2] }));
        assert!(!is_shallow(&rawdoc! { "a": scoped(document) }));
    }

    proptest! {
        #[test]
        fn agrees_with_counting(names in prop::collection::vec("[a-d]{1,2}", 0..20)) {
            let mut body = Vec::new();
            for name in &names {
                body.extend([&[0x0a], name.as_bytes(), &[0]].concat());
            }
            let document: RawDocumentBuf = fixtures::document(&body);
            let distinct: std::collections::HashSet<_> = names.iter().collect();
            prop_assert_eq!(has_duplicate_names(&document), distinct.len() < names.len());
        }

        #[test]
        fn never_panics(body: Vec<u8>) {
            let document = fixtures::document(&body);
            let broken = Elements::new(&document).any(|element| element.is_err());
            prop_assert!(!broken || has_duplicate_names(&document));
            prop_assert!(!shape(&document).dollar_name || body.contains(&b'$'));
        }
    }
}
