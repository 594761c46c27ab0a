//! By how much the replay changes the numbers of documents, added up while somebody wants to know. Every insert and
//! removal is an entry of the source's oplog, so that a number counted there at one moment can be carried on to a later
//! one.

use std::collections::{BTreeMap, BTreeSet};

use bson::Uuid;

use super::plan::{CollectionChange, Definition, Stage};

/// What was added up, by the collection's UUID on the source.
#[derive(Debug, Default)]
pub(super) struct Tally {
    net: BTreeMap<Uuid, i64>,
    /// Defined anew, or emptied: what is in them is not known.
    defined: BTreeSet<Uuid>,
    /// A window was applied a second time.
    is_lost: bool,
}

impl Tally {
    /// These changes are about to be made. In a `tolerant` window some may have been counted before.
    pub(super) fn stage(&mut self, stage: &Stage, tolerant: bool) {
        self.is_lost |= tolerant;
        for (uuid, changes) in &stage.collections {
            *self.net.entry(*uuid).or_default() += changes.net();
        }
    }

    /// This is about to be defined.
    pub(super) fn definition(&mut self, definition: &Definition) {
        use CollectionChange::{Create, Empty, Modify};
        // Names and indexes change no number; new limits of a capped collection may.
        if let Definition::Collection { uuid, change: Create { .. } | Empty | Modify { .. } } =
            definition
        {
            self.defined.insert(*uuid);
        }
    }

    /// Inserts less removals so far; `None` if that is not known.
    pub(super) fn net(&self, uuid: &Uuid) -> Option<i64> {
        let is_known = !self.is_lost && !self.defined.contains(uuid);
        is_known.then(|| self.net.get(uuid).copied().unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oplog::entry::Entry;
    use crate::replay::changes::Changes;
    use bson::{DateTime, Timestamp, doc, rawdoc};

    fn stage(uuid: Uuid, operations: &[(&str, i32)]) -> Stage {
        let mut changes = Changes::default();
        for (op, id) in operations {
            let entry = rawdoc! {
                "ts": Timestamp { time: 1, increment: 1 }, "t": 1_i64, "v": 2_i64,
                "wall": DateTime::from_millis(0), "op": *op, "ns": "a.b",
                "o": { "_id": *id }, "o2": { "_id": *id },
            };
            changes.add(&Entry::decode(&entry).unwrap().operation).unwrap();
        }
        Stage { collections: [(uuid, changes)].into() }
    }

    #[test]
    fn every_insert_and_removal_counts_however_they_fold() {
        let [a, b] = [Uuid::new(), Uuid::new()];
        let mut tally = Tally::default();
        tally.stage(&stage(a, &[("i", 1), ("u", 1), ("i", 2), ("d", 1), ("d", 9)]), false);
        tally.stage(&stage(a, &[("d", 2)]), false);
        assert_eq!((tally.net(&a), tally.net(&b)), (Some(-1), Some(0)));
        tally.stage(&stage(b, &[("i", 1)]), false);
        let modify = CollectionChange::Modify { changes: doc! { "cappedMax": 1 } };
        let drop_index = CollectionChange::DropIndex { name: "n".into() };
        for change in [drop_index, modify] {
            assert!(tally.net(&b).is_some());
            tally.definition(&Definition::Collection { uuid: b, change });
        }
        assert_eq!((tally.net(&a), tally.net(&b)), (Some(-1), None));
        tally.stage(&stage(b, &[]), true);
        assert_eq!(tally.net(&a), None, "it may have been counted before");
    }
}
