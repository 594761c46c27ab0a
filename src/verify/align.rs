//! Two runs of documents, each in the order of its `_id` index, side by side. Pure.
//!
//! As long as both go in step they are compared byte by byte, and nothing is kept. Where they part, what each side has
//! read and the other has not is kept as a key and a hash until they meet again. Nothing here knows how a server orders
//! `_id`s, which is a matter of types and collations: it is enough that both servers order them alike. And nothing
//! found here is a difference yet: it is a suspicion, because both runs are read while they are being written.

use std::collections::{HashMap, VecDeque};

use bson::{RawBsonRef, RawDocument, RawDocumentBuf};
use twox_hash::XxHash3_128;

use crate::mongo::Side;
use crate::oplog::document;
use crate::oplog::id_key::IdKey;
use crate::target::statements::single;

/// Documents of one side that wait for their like on the other; beyond that the oldest is a suspicion.
const WAITING_MAX: usize = 4096;

/// What a document is known by where its bytes are not kept. Not cryptographic: nobody chooses documents so that a
/// faulty copy looks like the original; 128 bits make chance negligible, and it is as fast as memory.
pub(super) type Hash = u128;

/// The hash of a document's bytes.
pub(super) fn hash(document: &RawDocument) -> Hash {
    XxHash3_128::oneshot(document.as_bytes())
}

/// An `_id` that has to be looked at again.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Suspect {
    /// What it means to the server.
    pub(super) key: IdKey,
    /// `{_id: …}`
    pub(super) id: RawDocumentBuf,
}

impl Suspect {
    fn of(document: &RawDocument) -> Option<Self> {
        let id = document::id(document)?;
        Some(Self { key: IdKey::new(id), id: single("_id", id) })
    }
}

/// What one side has read and the other has not met yet.
#[derive(Debug, Default)]
struct Waiting {
    /// In the order of reading; the first one has this number.
    first: u64,
    suspects: VecDeque<Suspect>,
    places: HashMap<IdKey, (u64, Hash)>,
}

impl Waiting {
    fn push(&mut self, suspect: Suspect, hash: Hash) {
        let number = self.first + self.suspects.len() as u64;
        self.places.insert(suspect.key.clone(), (number, hash));
        self.suspects.push_back(suspect);
    }

    fn pop(&mut self) -> Option<Suspect> {
        let suspect = self.suspects.pop_front()?;
        // A key that came twice is known by its last place.
        if self.places.get(&suspect.key).is_some_and(|(number, _)| *number == self.first) {
            self.places.remove(&suspect.key);
        }
        self.first += 1;
        Some(suspect)
    }
}

/// Brings both runs together.
#[derive(Debug, Default)]
pub(super) struct Aligner {
    source: Waiting,
    target: Waiting,
    suspects: Vec<Suspect>,
}

impl Aligner {
    /// Whether both sides have met: then equal documents need not be shown.
    pub(super) fn is_in_step(&self) -> bool {
        self.source.suspects.is_empty() && self.target.suspects.is_empty()
    }

    /// The side to read from next: the one that is behind.
    pub(super) fn behind(&self) -> Side {
        if self.source.suspects.len() <= self.target.suspects.len() {
            Side::Source
        } else {
            Side::Target
        }
    }

    /// Takes the next document of one side.
    pub(super) fn take(&mut self, side: Side, document: &RawDocument) {
        let Some(suspect) = Suspect::of(document) else { return };
        let (own, other) = match side {
            Side::Source => (&mut self.source, &mut self.target),
            Side::Target => (&mut self.target, &mut self.source),
        };
        let hash = hash(document);
        let Some((number, theirs)) = other.places.get(&suspect.key).copied() else {
            own.push(suspect, hash);
            if own.suspects.len() > WAITING_MAX {
                self.suspects.extend(own.pop());
            }
            return;
        };
        // They meet here: what lies before it on either side has no like on the other.
        while let Some(before) = own.pop() {
            self.suspects.push(before);
        }
        while other.first < number {
            self.suspects.extend(other.pop());
        }
        let met = other.pop();
        if theirs != hash {
            self.suspects.extend(met);
        }
    }

    /// Both runs have come to their ends.
    pub(super) fn finish(&mut self) {
        for side in [&mut self.source, &mut self.target] {
            while let Some(left) = side.pop() {
                self.suspects.push(left);
            }
        }
    }

    /// What is suspicious so far.
    pub(super) fn suspects(&self) -> usize {
        self.suspects.len()
    }

    /// Takes what is suspicious so far away.
    pub(super) fn take_suspects(&mut self) -> Vec<Suspect> {
        std::mem::take(&mut self.suspects)
    }
}

/// The `_id` for people, as extended JSON; cut off where it is very long.
pub(super) fn id_text(id: &RawDocumentBuf) -> String {
    const LENGTH_MAX: usize = 1024;
    let Ok(Some(value)) = id.get("_id") else { return String::new() };
    let mut text = match value {
        RawBsonRef::Int32(n) => n.to_string(),
        value => match bson::Bson::try_from(value) {
            Ok(value) => value.into_canonical_extjson().to_string(),
            Err(_) => String::from("an _id that cannot be read"),
        },
    };
    if text.len() > LENGTH_MAX {
        let end = text.floor_char_boundary(LENGTH_MAX);
        text.truncate(end);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::rawdoc;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    /// Runs both through, as a reader does, and returns the suspicious numbers.
    fn suspicious(source: &[RawDocumentBuf], target: &[RawDocumentBuf]) -> BTreeSet<i32> {
        let mut aligner = Aligner::default();
        let (mut s, mut t) = (source.iter().peekable(), target.iter().peekable());
        loop {
            match (s.peek(), t.peek()) {
                (None, None) => break,
                (Some(a), Some(b)) if aligner.is_in_step() && a == b => {
                    s.next();
                    t.next();
                }
                (Some(_), None) => aligner.take(Side::Source, s.next().unwrap()),
                (None, Some(_)) => aligner.take(Side::Target, t.next().unwrap()),
                _ => match aligner.behind() {
                    Side::Source => aligner.take(Side::Source, s.next().unwrap()),
                    Side::Target => aligner.take(Side::Target, t.next().unwrap()),
                },
            }
        }
        aligner.finish();
        assert!(aligner.is_in_step());
        let ids = aligner.take_suspects();
        ids.iter().map(|suspect| suspect.id.get_i32("_id").unwrap()).collect()
    }

    fn documents(of: &BTreeMap<i32, i32>) -> Vec<RawDocumentBuf> {
        of.iter().map(|(id, v)| rawdoc! { "_id": *id, "v": *v }).collect()
    }

    proptest! {
        /// Whatever the two hold, exactly what differs is suspicious.
        #[test]
        fn what_differs_and_nothing_else_is_suspicious(
            source in proptest::collection::btree_map(0..200, 0..3, 0..100),
            changes in proptest::collection::vec((0..200, proptest::option::of(0..3)), 0..40),
        ) {
            let mut target = source.clone();
            for (id, value) in changes {
                match value {
                    Some(value) => { target.insert(id, value); }
                    None => { target.remove(&id); }
                }
            }
            let ids: BTreeSet<i32> = source.keys().chain(target.keys()).copied().collect();
            let differ: BTreeSet<i32> =
                ids.into_iter().filter(|id| source.get(id) != target.get(id)).collect();
            prop_assert_eq!(suspicious(&documents(&source), &documents(&target)), differ);
        }
    }

    #[test]
    fn a_long_gap_costs_bounded_memory_and_is_all_suspicious() {
        let source: BTreeMap<i32, i32> = (0..20_000).map(|id| (id, 0)).collect();
        let target: BTreeMap<i32, i32> =
            source.iter().filter(|(id, _)| **id >= 15_000).map(|(id, v)| (*id, *v)).collect();
        let found = suspicious(&documents(&source), &documents(&target));
        assert!((0..15_000).all(|id| found.contains(&id)));
        // Those that were given up before their like was read are looked at again, too.
        assert!(found.len() <= 20_000);
    }

    #[test]
    fn the_order_of_fields_and_the_types_of_numbers_count() {
        let same = |a: RawDocumentBuf, b: RawDocumentBuf| suspicious(&[a], &[b]).is_empty();
        assert!(same(rawdoc! { "_id": 1, "a": 1, "b": 2 }, rawdoc! { "_id": 1, "a": 1, "b": 2 }));
        assert!(!same(rawdoc! { "_id": 1, "a": 1, "b": 2 }, rawdoc! { "_id": 1, "b": 2, "a": 1 }));
        assert!(!same(rawdoc! { "_id": 1, "a": 1 }, rawdoc! { "_id": 1, "a": 1_i64 }));
    }

    #[test]
    fn ids_are_written_as_extended_json() {
        assert_eq!(id_text(&rawdoc! { "_id": 7 }), "7");
        assert_eq!(id_text(&rawdoc! { "_id": "x" }), "\"x\"");
        assert_eq!(id_text(&rawdoc! { "_id": 7_i64 }), "{\"$numberLong\":\"7\"}");
        let long = id_text(&rawdoc! { "_id": "ä".repeat(2000) });
        assert!(long.len() < 1100 && long.ends_with('…'), "{}", long.len());
    }
}
