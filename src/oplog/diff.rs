//! Applies a `$v: 2` diff to a document, byte for byte as servers do on their secondaries.
//!
//! ```text
//! document diff := { d: {name: false, ..}?, u: {name: value, ..}?, i: {name: value, ..}?, s<name>: diff .. }
//! array diff    := { a: true, l: length?, ( u<index>: value | s<index>: diff ) .. }
//! ```
//!
//! The sections come in this order. What is not mentioned is copied as bytes and never decoded: 1 and 1.0, or two
//! NaNs, are different documents to `dbHash`. Over a document that is newer than the diff the result may be one that
//! never existed; later entries then put it right, as they do on a secondary.

use bson::spec::ElementType;
use bson::{RawDocument, RawDocumentBuf};

use super::element::{Element, Elements, Malformed, Value};

/// Servers store at most 200 levels; anything deeper is noise that must not use up the stack.
pub(super) const DEPTH_MAX: usize = 250;

/// A document of 16 MiB holds fewer than two million array elements; a longer array would only use up memory.
pub(super) const ARRAY_LEN_MAX: usize = 4_000_000;

/// A diff that cannot be applied. Its document must not be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DiffError {
    /// The diff or the document is no BSON.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// A section that is not known, not in its place, or there twice.
    #[error("diff section {section:?} is not known or not in its place; use a newer snapsync")]
    Section {
        /// The section's name, as far as it is readable.
        section: String,
    },
    /// A section holds a value of a kind that it never holds.
    #[error("diff section {section:?} holds what it cannot hold; use a newer snapsync")]
    Content {
        /// The section, by its letter.
        section: char,
    },
    /// One field is changed in two ways.
    #[error("the diff changes one field twice; no server writes such a diff")]
    Duplicate,
    /// An array would become longer than any document can hold.
    #[error(
        "the diff makes an array longer than {ARRAY_LEN_MAX} elements, more than fit a document"
    )]
    ArrayTooLong,
    /// Nested deeper than any server stores.
    #[error("the diff is nested more than {DEPTH_MAX} deep, deeper than any server allows")]
    TooDeep,
    /// The result cannot be expressed in BSON at all. (16 MiB is the target's limit, not this one.)
    #[error("the diff makes the document larger than bson can express")]
    TooLarge,
    /// An operator that no server writes into its oplog by itself: applied twice it would change a document twice.
    #[error("the operator {operator:?} in an update is not known; only $set and $unset are logged")]
    Operator {
        /// The operator.
        operator: String,
    },
}

/// The document that `diff` makes of `pre`. `diff` is the value of the field `diff`, without `$v`.
///
/// # Errors
/// [`DiffError`], when the diff does not follow the grammar. Its unused parts are not checked.
pub fn apply(pre: &RawDocument, diff: &RawDocument) -> Result<RawDocumentBuf, DiffError> {
    let mut out = Vec::with_capacity(pre.as_bytes().len() + diff.as_bytes().len());
    apply_document(pre, diff, 0, &mut out)?;
    RawDocumentBuf::from_bytes(out).map_err(|_| DiffError::TooLarge)
}

/// What happens to one field.
enum Action<'a> {
    Delete,
    Update(Element<'a>),
    Insert(Element<'a>),
    Nested(Nested<'a>),
}

/// A diff of a value inside the document.
#[derive(Clone, Copy)]
enum Nested<'a> {
    Document(&'a RawDocument),
    Array(&'a RawDocument),
}

impl<'a> Nested<'a> {
    fn parse(value: Value<'a>) -> Result<Self, DiffError> {
        let wrong = DiffError::Content { section: 's' };
        let Some(diff) = value.as_document() else { return Err(wrong) };
        match Elements::new(diff).next().transpose()? {
            // Servers refuse an empty diff below the top.
            None => Err(wrong),
            Some(first) if first.name == b"a" => Ok(Self::Array(diff)),
            Some(_) => Ok(Self::Document(diff)),
        }
    }
}

struct Change<'a> {
    name: &'a [u8],
    action: Action<'a>,
    /// Whether the document had this field.
    met: bool,
}

/// A document diff, ready to be looked up by field name.
struct Changes<'a> {
    in_order: Vec<Change<'a>>,
    /// Indexes into `in_order`, sorted by name.
    by_name: Vec<usize>,
}

impl<'a> Changes<'a> {
    fn parse(diff: &'a RawDocument) -> Result<Self, DiffError> {
        let mut in_order = Vec::new();
        let mut last = 0;
        for element in Elements::new(diff) {
            let element = element?;
            let (rank, letter) = match element.name {
                b"d" => (1, 'd'),
                b"u" => (2, 'u'),
                b"i" => (3, 'i'),
                [b's', ..] => (4, 's'),
                _ => return Err(section_error(element.name)),
            };
            if rank < last || (rank == last && letter != 's') {
                return Err(section_error(element.name));
            }
            last = rank;
            if letter == 's' {
                let name = element.name.get(1..).unwrap_or_default();
                let action = Action::Nested(Nested::parse(element.value)?);
                in_order.push(Change { name, action, met: false });
            } else {
                push_section(letter, element.value, &mut in_order)?;
            }
        }
        Self::index(in_order)
    }

    fn index(in_order: Vec<Change<'a>>) -> Result<Self, DiffError> {
        let name = |index: &usize| in_order.get(*index).map(|change| change.name);
        let mut by_name: Vec<usize> = (0..in_order.len()).collect();
        by_name.sort_unstable_by_key(name);
        if by_name.windows(2).any(|pair| matches!(pair, [a, b] if name(a) == name(b))) {
            return Err(DiffError::Duplicate);
        }
        Ok(Self { in_order, by_name })
    }

    fn find(&mut self, name: &[u8]) -> Option<&mut Change<'a>> {
        let in_order = &mut self.in_order;
        let found = self
            .by_name
            .binary_search_by(|index| in_order.get(*index).map(|c| c.name).cmp(&Some(name)))
            .ok()?;
        in_order.get_mut(*self.by_name.get(found)?)
    }
}

/// Adds what the section `d`, `u` or `i` says.
fn push_section<'a>(
    letter: char,
    section: Value<'a>,
    changes: &mut Vec<Change<'a>>,
) -> Result<(), DiffError> {
    let wrong = DiffError::Content { section: letter };
    for element in Elements::new(section.as_document().ok_or(wrong.clone())?) {
        let element = element?;
        let action = match letter {
            'u' => Action::Update(element),
            'i' => Action::Insert(element),
            _ if element.value.as_bool() == Some(false) => Action::Delete,
            _ => return Err(wrong),
        };
        changes.push(Change { name: element.name, action, met: false });
    }
    Ok(())
}

fn apply_document(
    pre: &RawDocument,
    diff: &RawDocument,
    depth: usize,
    out: &mut Vec<u8>,
) -> Result<(), DiffError> {
    if depth > DEPTH_MAX {
        return Err(DiffError::TooDeep);
    }
    let mut changes = Changes::parse(diff)?;
    let start = begin(out);
    for element in Elements::new(pre) {
        let element = element?;
        let Some(change) = changes.find(element.name) else {
            out.extend_from_slice(element.raw);
            continue;
        };
        change.met = true;
        match &change.action {
            // What is inserted goes to the end, even where the document already had it.
            Action::Delete | Action::Insert(_) => {}
            Action::Update(new) => out.extend_from_slice(new.raw),
            Action::Nested(nested) => {
                apply_nested(element.name, Some(element.value), *nested, depth, out)?;
            }
        }
    }
    for change in &changes.in_order {
        match &change.action {
            Action::Update(new) if !change.met => out.extend_from_slice(new.raw),
            Action::Insert(new) => out.extend_from_slice(new.raw),
            _ => {}
        }
    }
    end(out, start)
}

/// Writes the element `name`: the old value with the diff applied, or null where the diff was made for another type.
/// A later entry of the source writes that field again.
fn apply_nested(
    name: &[u8],
    old: Option<Value<'_>>,
    nested: Nested<'_>,
    depth: usize,
    out: &mut Vec<u8>,
) -> Result<(), DiffError> {
    match nested {
        Nested::Document(diff) => {
            if let Some(pre) = old.and_then(Value::as_document) {
                write_head(ElementType::EmbeddedDocument, name, out);
                return apply_document(pre, diff, depth + 1, out);
            }
        }
        Nested::Array(diff) => {
            if let Some(pre) = old.and_then(Value::as_array) {
                write_head(ElementType::Array, name, out);
                return apply_array(pre, diff, depth + 1, out);
            }
        }
    }
    write_head(ElementType::Null, name, out);
    Ok(())
}

/// What happens to one element of an array.
enum ArrayAction<'a> {
    Update(Value<'a>),
    Nested(Nested<'a>),
}

/// An array diff.
struct ArrayDiff<'a> {
    /// New length, where the array is cut.
    len: Option<usize>,
    /// By ascending index.
    changes: Vec<(usize, ArrayAction<'a>)>,
}

impl<'a> ArrayDiff<'a> {
    fn parse(diff: &'a RawDocument) -> Result<Self, DiffError> {
        let mut parsed = Self { len: None, changes: Vec::new() };
        for (place, element) in Elements::new(diff).enumerate() {
            let element = element?;
            match (place, element.name) {
                (0, b"a") if element.value.as_bool() == Some(true) => {}
                (0, b"a") => return Err(DiffError::Content { section: 'a' }),
                (1, b"l") => parsed.len = Some(array_len(element.value)?),
                (1.., [letter @ (b'u' | b's'), digits @ ..]) => {
                    let index = array_index(digits, element.name)?;
                    let after = parsed.changes.last().is_none_or(|(last, _)| *last < index);
                    if !after || parsed.len.is_some_and(|len| index >= len) {
                        return Err(section_error(element.name));
                    }
                    let action = match letter {
                        b'u' => ArrayAction::Update(element.value),
                        _ => ArrayAction::Nested(Nested::parse(element.value)?),
                    };
                    parsed.changes.push((index, action));
                }
                _ => return Err(section_error(element.name)),
            }
        }
        Ok(parsed)
    }
}

fn array_len(value: Value<'_>) -> Result<usize, DiffError> {
    let len = value.as_i64().and_then(|len| usize::try_from(len).ok());
    let len = len.ok_or(DiffError::Content { section: 'l' })?;
    if len > ARRAY_LEN_MAX { Err(DiffError::ArrayTooLong) } else { Ok(len) }
}

fn array_index(digits: &[u8], section: &[u8]) -> Result<usize, DiffError> {
    let canonical = matches!(digits, [b'0'] | [b'1'..=b'9', ..]);
    if !canonical || !digits.iter().all(u8::is_ascii_digit) {
        return Err(section_error(section));
    }
    let index = digits.iter().try_fold(0_usize, |index, digit| {
        index.checked_mul(10)?.checked_add(usize::from(digit - b'0'))
    });
    index.filter(|index| *index < ARRAY_LEN_MAX).ok_or(DiffError::ArrayTooLong)
}

fn apply_array(
    pre: &RawDocument,
    diff: &RawDocument,
    depth: usize,
    out: &mut Vec<u8>,
) -> Result<(), DiffError> {
    if depth > DEPTH_MAX {
        return Err(DiffError::TooDeep);
    }
    let ArrayDiff { len, changes } = ArrayDiff::parse(diff)?;
    let mut changes = changes.into_iter().peekable();
    let mut pre = Elements::new(pre);
    let start = begin(out);
    for index in 0.. {
        if len.is_some_and(|len| index >= len) {
            break;
        }
        let old = pre.next().transpose()?.map(|element| element.value);
        let mut digits = [0; DIGITS_MAX];
        let name = decimal(index, &mut digits);
        match (changes.next_if(|(changed, _)| *changed == index), old) {
            (Some((_, ArrayAction::Update(new))), _) => new.write(name, out),
            (Some((_, ArrayAction::Nested(nested))), old) => {
                apply_nested(name, old, nested, depth, out)?;
            }
            (None, Some(old)) => old.write(name, out),
            (None, None) if len.is_some() || changes.peek().is_some() => {
                write_head(ElementType::Null, name, out);
            }
            (None, None) => break,
        }
    }
    end(out, start)
}

/// Opens a document and answers where, for [`end`].
pub(super) fn begin(out: &mut Vec<u8>) -> usize {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    start
}

/// Closes the document that was opened at `start`.
pub(super) fn end(out: &mut Vec<u8>, start: usize) -> Result<(), DiffError> {
    out.push(0);
    let len = i32::try_from(out.len() - start).map_err(|_| DiffError::TooLarge)?;
    if let Some(prefix) = out.get_mut(start..start + 4) {
        prefix.copy_from_slice(&len.to_le_bytes());
    }
    Ok(())
}

pub(super) fn write_head(kind: ElementType, name: &[u8], out: &mut Vec<u8>) {
    out.push(kind as u8);
    out.extend_from_slice(name);
    out.push(0);
}

/// Digits of the longest array index.
pub(super) const DIGITS_MAX: usize = 20;

/// `number` in decimal digits, at the end of `digits`.
pub(super) fn decimal(mut number: usize, digits: &mut [u8; DIGITS_MAX]) -> &[u8] {
    let mut start = DIGITS_MAX;
    for (place, digit) in digits.iter_mut().enumerate().rev() {
        *digit = b'0' + u8::try_from(number % 10).unwrap_or_default();
        number /= 10;
        start = place;
        if number == 0 {
            break;
        }
    }
    digits.get(start..).unwrap_or_default()
}

/// Sections are named by the format, not by users, except after `s`; those never get here.
fn section_error(name: &[u8]) -> DiffError {
    const SHOWN_MAX: usize = 16;
    let shown = name.get(..SHOWN_MAX).unwrap_or(name);
    DiffError::Section { section: String::from_utf8_lossy(shown).into_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oplog::fixtures;
    use bson::{RawBson, rawdoc};
    use proptest::prelude::*;

    fn inner(o: &RawDocument) -> &RawDocument {
        o.get_document("diff").unwrap()
    }

    #[test]
    fn equals_the_server_on_every_vector() {
        let vectors = fixtures::diff_vectors();
        assert_eq!(vectors.len(), 1120);
        for (line, vector) in vectors.iter().enumerate() {
            let post = apply(&vector.pre, inner(&vector.o)).unwrap();
            assert_eq!(post.as_bytes(), vector.post.as_bytes(), "line {}", line + 1);
        }
    }

    #[test]
    fn updates_in_place_and_appends_what_is_new() {
        let pre = rawdoc! { "a": 1, "b": 2, "c": 3, "d": 4 };
        let diff =
            rawdoc! { "d": { "a": false }, "u": { "z": 0, "c": 9 }, "i": { "y": 1, "b": 5 } };
        let post = rawdoc! { "c": 9, "d": 4, "z": 0, "y": 1, "b": 5 };
        assert_eq!(apply(&pre, &diff), Ok(post));
    }

    #[test]
    fn writes_null_over_another_type_and_nothing_over_nothing() {
        let pre = rawdoc! { "a": 1, "b": [1], "c": { "x": 1 } };
        let diff = rawdoc! {
            "sa": { "u": { "x": 1 } }, "sb": { "u": { "x": 1 } }, "sc": { "a": true, "u0": 1 },
            "sd": { "u": { "x": 1 } },
        };
        let post = rawdoc! { "a": RawBson::Null, "b": RawBson::Null, "c": RawBson::Null };
        assert_eq!(apply(&pre, &diff), Ok(post));
    }

    #[test]
    fn cuts_and_pads_arrays() {
        let pre = rawdoc! { "a": [1, 2, 3] };
        let cases = [
            (rawdoc! { "a": true, "l": 1 }, rawdoc! { "a": [1] }),
            (rawdoc! { "a": true, "l": 0 }, rawdoc! { "a": [] }),
            (rawdoc! { "a": true, "l": 2, "u0": 9 }, rawdoc! { "a": [9, 2] }),
            (rawdoc! { "a": true, "l": 4 }, rawdoc! { "a": [1, 2, 3, RawBson::Null] }),
            (rawdoc! { "a": true, "u4": 5 }, rawdoc! { "a": [1, 2, 3, RawBson::Null, 5] }),
            (
                rawdoc! { "a": true, "s3": { "u": { "x": 1 } } },
                rawdoc! { "a": [1, 2, 3, RawBson::Null] },
            ),
        ];
        for (diff, post) in cases {
            assert_eq!(apply(&pre, &rawdoc! { "sa": diff.clone() }), Ok(post), "{diff:?}");
        }
    }

    #[test]
    fn renumbers_the_arrays_it_touches_and_no_others() {
        let odd = fixtures::document(b"\x107\0\x01\0\0\0\x107\0\x02\0\0\0");
        let array = |name: &[u8]| [&[4], name, &[0], odd.as_bytes()].concat();
        let pre = fixtures::document(&[array(b"a"), array(b"b")].concat());
        let post = apply(&pre, &rawdoc! { "sa": { "a": true, "u0": 5 } }).unwrap();
        let touched = rawdoc! { "a": [5, 2] };
        let body = &touched.as_bytes()[4..touched.as_bytes().len() - 1];
        assert_eq!(post, fixtures::document(&[body, &array(b"b")].concat()));
    }

    #[test]
    fn passes_bytes_that_are_not_utf8_and_changes_every_duplicate() {
        let pre =
            fixtures::document(b"\x02\xff\0\x02\0\0\0\xfe\0\x10a\0\x01\0\0\0\x10a\0\x02\0\0\0");
        let post = apply(&pre, &rawdoc! { "u": { "a": 9 } }).unwrap();
        let expected: &[u8] = b"\x02\xff\0\x02\0\0\0\xfe\0\x10a\0\x09\0\0\0\x10a\0\x09\0\0\0";
        assert_eq!(post, fixtures::document(expected));
    }

    #[test]
    fn refuses_what_the_grammar_does_not_say() {
        let section = |name: &str| DiffError::Section { section: name.to_owned() };
        let content = |section| DiffError::Content { section };
        let array = |diff: RawDocumentBuf| rawdoc! { "sa": diff };
        let cases = [
            (rawdoc! { "b": {} }, section("b")),
            (rawdoc! { "x": {} }, section("x")),
            (rawdoc! { "a": true }, section("a")),
            (rawdoc! { "u": {}, "d": {} }, section("d")),
            (rawdoc! { "sa": { "u": { "x": 1 } }, "i": {} }, section("i")),
            (rawdoc! { "d": { "a": 1 } }, content('d')),
            (rawdoc! { "u": 1 }, content('u')),
            (rawdoc! { "sa": 1 }, content('s')),
            (rawdoc! { "sa": {} }, content('s')),
            (rawdoc! { "u": { "a": 1 }, "i": { "a": 1 } }, DiffError::Duplicate),
            (array(rawdoc! { "a": false }), content('a')),
            (array(rawdoc! { "a": true, "l": -1 }), content('l')),
            (array(rawdoc! { "a": true, "u0": 1, "l": 1 }), section("l")),
            (array(rawdoc! { "a": true, "u10": 1, "u9": 1 }), section("u9")),
            (array(rawdoc! { "a": true, "u01": 1 }), section("u01")),
            (array(rawdoc! { "a": true, "u": 1 }), section("u")),
            (array(rawdoc! { "a": true, "l": 1, "u1": 1 }), section("u1")),
            (array(rawdoc! { "a": true, "u99999999999999999999999": 1 }), DiffError::ArrayTooLong),
            (array(rawdoc! { "a": true, "l": 5_000_000 }), DiffError::ArrayTooLong),
        ];
        for (diff, error) in cases {
            assert_eq!(apply(&rawdoc! { "a": [1] }, &diff), Err(error), "{diff:?}");
        }
        let doubled = fixtures::document(b"\x03u\0\x05\0\0\0\0\x03u\0\x05\0\0\0\0");
        assert_eq!(apply(&rawdoc! {}, &doubled), Err(section("u")));
    }

    #[test]
    fn follows_what_servers_store_and_no_deeper() {
        let nest = |levels: usize| {
            let (mut pre, mut diff) = (rawdoc! { "x": 1 }, rawdoc! { "u": { "x": 2 } });
            for _ in 0..levels {
                (pre, diff) = (rawdoc! { "a": pre }, rawdoc! { "sa": diff });
            }
            apply(&pre, &diff)
        };
        assert!(nest(200).is_ok());
        assert_eq!(nest(2000), Err(DiffError::TooDeep));
    }

    /// Documents with few names, so that diffs meet them.
    fn small() -> impl Strategy<Value = RawDocumentBuf> {
        prop::collection::vec((0_usize..6, any::<i32>()), 0..8).prop_map(|fields| {
            let mut document = RawDocumentBuf::new();
            for (name, value) in fields {
                let name = ["a", "b", "c", "d", "e", "f"][name];
                if document.get(name).unwrap().is_none() {
                    document.append(bson::raw::CString::try_from(name).unwrap(), value);
                }
            }
            document
        })
    }

    proptest! {
        #[test]
        fn an_empty_diff_changes_no_byte(body: Vec<u8>) {
            let pre = fixtures::document(&body);
            if let Ok(post) = apply(&pre, &rawdoc! {}) {
                prop_assert_eq!(post, pre);
            }
        }

        #[test]
        fn replaying_a_diff_changes_nothing_more(pre in small(), u in small(), i in small()) {
            let diff = rawdoc! { "u": u, "i": i };
            if let Ok(once) = apply(&pre, &diff) {
                prop_assert_eq!(apply(&once, &diff), Ok(once));
            }
        }

        #[test]
        fn never_panics_on_noise(pre: Vec<u8>, diff: Vec<u8>) {
            let result = apply(&fixtures::document(&pre), &fixtures::document(&diff));
            if let Ok(post) = result {
                prop_assert!(post.as_bytes().len() >= 5);
            }
        }

        #[test]
        fn never_panics_on_damaged_vectors(
            (pre, o) in {
                let vectors = fixtures::diff_vectors();
                let pre = vectors.iter().map(|v| v.pre.clone()).collect();
                let o = vectors.iter().map(|v| inner(&v.o).to_owned()).collect();
                (fixtures::mutated(pre), fixtures::mutated(o))
            }
        ) {
            if let Ok(post) = apply(&pre, &o) {
                let walked = Elements::new(&post).map(|e| e.map(|e| e.raw.len())).sum::<Result<usize, _>>();
                prop_assert_eq!(walked, Ok(post.as_bytes().len() - 5));
            }
        }
    }
}
