//! Windows and plans against a model that applies one entry after another.

use std::collections::{BTreeMap, HashMap};

use bson::{RawDocumentBuf, Timestamp, Uuid, rawdoc};
use proptest::prelude::*;

use super::changes::{Change, patched};
use super::plan::{Definition, Plan, Step};
use super::window::{ResumePoint, WindowBuilder};
use crate::oplog::{diff, document};
use crate::position::{OpTime, Ts};
use crate::selection::Selection;

/// Documents by `_id`, by the UUID of their collection.
type World = BTreeMap<Uuid, BTreeMap<i32, RawDocumentBuf>>;

#[derive(Debug, Clone)]
enum Write {
    Insert(i32, i32),
    Replace(i32, i32),
    Diff(i32, i32),
    Delete(i32),
}

#[derive(Debug, Clone)]
enum Entry {
    One(u8, Write),
    Transaction(Vec<(u8, Write)>),
    /// Something that concerns another database.
    Foreign(Write),
    Noop,
    /// A definition: a barrier.
    Modify(u8),
}

fn writes() -> impl Strategy<Value = Write> {
    let id = 0..5;
    prop_oneof![
        1 => (id.clone(), any::<i32>()).prop_map(|(id, x)| Write::Insert(id, x)),
        1 => (id.clone(), any::<i32>()).prop_map(|(id, x)| Write::Replace(id, x)),
        3 => (id.clone(), any::<i32>()).prop_map(|(id, x)| Write::Diff(id, x)),
        1 => id.prop_map(Write::Delete),
    ]
}

fn histories() -> impl Strategy<Value = Vec<Entry>> {
    let entry = prop_oneof![
        6 => (0..2_u8, writes()).prop_map(|(collection, write)| Entry::One(collection, write)),
        2 => prop::collection::vec((0..2_u8, writes()), 1..5).prop_map(Entry::Transaction),
        1 => writes().prop_map(Entry::Foreign),
        1 => Just(Entry::Noop),
        1 => (0..2_u8).prop_map(Entry::Modify),
    ];
    prop::collection::vec(entry, 0..40)
}

fn uuid(collection: u8) -> Uuid {
    Uuid::from_bytes([collection; 16])
}

/// A document of this value whose field order depends on it, so that a lost order shows.
fn document_of(id: i32, x: i32) -> RawDocumentBuf {
    if x % 2 == 0 {
        rawdoc! { "_id": id, "x": x, "y": 0 }
    } else {
        rawdoc! { "_id": id, "y": 0, "x": x }
    }
}

fn diff_of(x: i32) -> RawDocumentBuf {
    match x.rem_euclid(3) {
        0 => rawdoc! { "u": { "x": x } },
        1 => rawdoc! { "d": { "y": false }, "i": { "z": x } },
        _ => rawdoc! { "i": { "y": x } },
    }
}

fn operation(namespace: &str, uuid: Uuid, write: &Write) -> RawDocumentBuf {
    let ui = bson::Binary::from(uuid);
    match write {
        Write::Insert(id, x) => {
            rawdoc! { "op": "i", "ns": namespace, "ui": ui, "o": document_of(*id, *x), "o2": { "_id": *id } }
        }
        Write::Replace(id, x) => {
            rawdoc! { "op": "u", "ns": namespace, "ui": ui, "o": document_of(*id, *x), "o2": { "_id": *id } }
        }
        Write::Diff(id, x) => {
            let o = rawdoc! { "$v": 2, "diff": diff_of(*x) };
            rawdoc! { "op": "u", "ns": namespace, "ui": ui, "o": o, "o2": { "_id": *id } }
        }
        Write::Delete(id) => rawdoc! { "op": "d", "ns": namespace, "ui": ui, "o": { "_id": *id } },
    }
}

/// The history as oplog entries at seconds 1, 2, 3, ...
fn oplog(history: &[Entry]) -> Vec<RawDocumentBuf> {
    let entries = (1_u32..).zip(history).map(|(time, entry)| {
        let mut raw = match entry {
            Entry::One(collection, write) => operation("shop.a", uuid(*collection), write),
            Entry::Foreign(write) => operation("other.a", uuid(9), write),
            Entry::Noop => rawdoc! { "op": "n", "ns": "", "o": {} },
            Entry::Modify(collection) => rawdoc! { "op": "c", "ns": "shop.$cmd",
            "ui": bson::Binary::from(uuid(*collection)), "o": { "collMod": "a" } },
            Entry::Transaction(writes) => {
                let mut parts = bson::RawArrayBuf::new();
                writes.iter().for_each(|(to, write)| {
                    parts.push(operation("shop.a", uuid(*to), write));
                });
                let lsid = rawdoc! { "id": 1 };
                let previous = rawdoc! { "ts": Timestamp { time: 0, increment: 0 }, "t": -1_i64 };
                rawdoc! { "op": "c", "ns": "admin.$cmd", "lsid": lsid, "txnNumber": i64::from(time),
                "prevOpTime": previous, "o": { "applyOps": parts } }
            }
        };
        raw.append(bson::cstr!("ts"), Timestamp { time, increment: 1 });
        raw.append(bson::cstr!("t"), 1_i64);
        raw.append(bson::cstr!("v"), 2_i64);
        raw.append(bson::cstr!("wall"), bson::DateTime::from_millis(i64::from(time) * 1000));
        raw
    });
    entries.collect()
}

/// One entry after another, as a server applies them.
fn serially(world: &mut World, history: &[Entry]) {
    let mut apply = |collection: u8, write: &Write| {
        let documents = world.entry(uuid(collection)).or_default();
        match write {
            Write::Insert(id, x) | Write::Replace(id, x) => {
                documents.insert(*id, document_of(*id, *x));
            }
            Write::Diff(id, x) => {
                if let Some(document) = documents.get_mut(id) {
                    *document = diff::apply(document, &diff_of(*x)).unwrap();
                }
            }
            Write::Delete(id) => {
                documents.remove(id);
            }
        }
    };
    for entry in history {
        match entry {
            Entry::One(collection, write) => apply(*collection, write),
            Entry::Transaction(writes) => writes.iter().for_each(|(to, write)| apply(*to, write)),
            Entry::Foreign(_) | Entry::Noop | Entry::Modify(_) => {}
        }
    }
}

fn id_of(document: &RawDocumentBuf) -> i32 {
    document.get_i32("_id").unwrap()
}

/// A plan as the applier carries it out: removals of a stage first, then the rest in any order (here: backwards).
fn carry_out(world: &mut World, plan: Plan) -> usize {
    let mut definitions = 0;
    for step in plan.steps {
        let stage = match step {
            Step::Write(stage) => stage,
            Step::Define(Definition::Collection { .. }) => {
                definitions += 1;
                continue;
            }
            other => panic!("{other:?}"),
        };
        for (uuid, changes) in stage.collections {
            let documents = world.entry(uuid).or_default();
            let mut changes: Vec<Change> = changes.into_changes().collect();
            changes.reverse();
            changes.sort_by_key(|change| !change.is_removal());
            let mut touched = HashMap::new();
            for change in changes {
                let id = match &change {
                    Change::Put { document, .. } => id_of(document),
                    Change::Patch { id, .. } | Change::Remove { id } => id_of(id),
                };
                assert!(touched.insert(id, ()).is_none(), "two changes of one document");
                match change {
                    Change::Put { document, .. } => {
                        assert!(document::id(&document).is_some());
                        documents.insert(id, document);
                    }
                    Change::Patch { updates, .. } => {
                        if let Some(document) = documents.get_mut(&id) {
                            *document = patched(document.clone(), &updates).unwrap();
                        }
                    }
                    Change::Remove { .. } => {
                        documents.remove(&id);
                    }
                }
            }
        }
    }
    definitions
}

fn resume_at(time: u32) -> ResumePoint {
    let applied = OpTime::new(Ts::new(time, 1), 1);
    ResumePoint { applied, wall_ms: 0, read_from: applied }
}

fn selection() -> Selection {
    Selection::new(&["shop".to_owned()], &[], &[]).unwrap()
}

/// Windows that end after the entries whose number is in `ends`; the resume point after each.
fn replay(
    world: &mut World,
    entries: &[RawDocumentBuf],
    from: u32,
    ends: &[usize],
) -> Vec<ResumePoint> {
    let mut builder = WindowBuilder::new(selection(), resume_at(from));
    let mut resumed = Vec::new();
    for (number, entry) in entries.iter().enumerate() {
        builder.push(entry).unwrap();
        if (ends.contains(&number) || number + 1 == entries.len())
            && let Some(window) = builder.finish()
        {
            carry_out(world, window.plan);
            resumed.push(window.end);
        }
    }
    resumed
}

/// Without empty collections: whether one was ever written to makes no difference.
fn documents(world: &World) -> World {
    let used = world.iter().filter(|(_, documents)| !documents.is_empty());
    used.map(|(uuid, documents)| (*uuid, documents.clone())).collect()
}

proptest! {
    #[test]
    fn any_windows_end_where_one_entry_after_another_ends(
        history in histories(),
        ends in prop::collection::vec(0..40_usize, 0..10),
    ) {
        let entries = oplog(&history);
        let (mut expected, mut world) = (World::new(), World::new());
        serially(&mut expected, &history);
        let resumed = replay(&mut world, &entries, 0, &ends);
        prop_assert_eq!(documents(&world), documents(&expected));
        prop_assert!(resumed.is_sorted_by(|a, b| a.applied < b.applied));
        if let Some(last) = resumed.last() {
            prop_assert_eq!(last.applied.ts, Ts::new(u32::try_from(entries.len()).unwrap(), 1));
        }
    }

    #[test]
    fn a_window_may_be_applied_again_over_newer_state(
        history in histories(),
        cut in 0..40_usize,
        ends in prop::collection::vec(0..40_usize, 0..10),
    ) {
        let entries = oplog(&history);
        let cut = cut.min(entries.len());
        let (mut expected, mut world) = (World::new(), World::new());
        serially(&mut expected, &history);
        serially(&mut world, &history);
        // The target is at the end already; an older resume point makes it go through the rest once more.
        let from = u32::try_from(cut).unwrap();
        replay(&mut world, &entries, from, &ends);
        prop_assert_eq!(documents(&world), documents(&expected));
    }

    #[test]
    fn definitions_are_barriers_in_their_place(history in histories()) {
        let entries = oplog(&history);
        let mut builder = WindowBuilder::new(selection(), resume_at(0));
        for entry in &entries {
            builder.push(entry).unwrap();
        }
        let expected = history.iter().filter(|entry| matches!(entry, Entry::Modify(_))).count();
        let definitions =
            builder.finish().map_or(0, |window| carry_out(&mut World::new(), window.plan));
        prop_assert_eq!(definitions, expected);
    }

    #[test]
    fn never_panics_on_damaged_entries(
        entries in prop::collection::vec(
            crate::oplog::fixtures::mutated(crate::oplog::fixtures::documents("iudcn")), 1..20
        ),
    ) {
        let everything = Selection::new(&["*".to_owned()], &[], &[]).unwrap();
        let mut builder = WindowBuilder::new(everything, resume_at(0));
        let taken = entries.iter().take_while(|entry| builder.push(entry).is_ok()).count();
        let planned = builder.finish().map_or(0, |window| window.plan.operations);
        prop_assert!(taken > 0 || planned <= 1 || !entries.is_empty());
    }
}
