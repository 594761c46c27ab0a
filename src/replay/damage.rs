//! Windows made of damaged entries and of noise: refused or planned, without a panic, a loop or much memory.

use bson::{RawDocument, RawDocumentBuf, rawdoc};
use proptest::prelude::*;

use super::changes::{Change, patched};
use super::plan::Step;
use super::window::{ResumePoint, WindowBuilder};
use crate::oplog::fixtures;
use crate::position::{OpTime, Ts};
use crate::selection::Selection;

/// Bytes that a plan may hold for every byte of the oplog, and beside them.
const BYTES_PER_BYTE: usize = 20;
const BYTES_AT_MOST: usize = 1 << 16;

/// Plans the entries as far as they are understood, and applies every update to some documents.
fn plan(entries: &[RawDocumentBuf], documents: &[RawDocumentBuf]) {
    let start = OpTime::new(Ts::ZERO, -1);
    let resume = ResumePoint { applied: start, wall_ms: 0, read_from: start };
    let selection = Selection::new(&["*".to_owned()], &[], &[]).unwrap();
    let mut builder = WindowBuilder::new(selection, resume);
    let read = entries.iter().take_while(|entry| builder.push(entry).is_ok());
    let bytes: usize = read.map(|entry| entry.as_bytes().len()).sum();
    assert!(builder.bytes() <= bytes * BYTES_PER_BYTE + BYTES_AT_MOST, "{}", builder.bytes());
    let Some(window) = builder.finish() else { return };
    let stages = window.plan.steps.into_iter().filter_map(|step| match step {
        Step::Write(stage) => Some(stage),
        Step::Define(_) | Step::Large(_) => None,
    });
    for changes in stages.flat_map(|stage| stage.collections.into_values()) {
        for change in changes.into_changes() {
            if let Change::Patch { updates, .. } = change {
                for document in documents {
                    // Whether it can be applied or not: there is an answer.
                    drop(patched(document.clone(), &updates));
                }
            }
        }
    }
}

fn before() -> Vec<RawDocumentBuf> {
    let mut before: Vec<_> =
        fixtures::diff_vectors().into_iter().step_by(100).map(|vector| vector.pre).collect();
    before.push(rawdoc! {});
    before
}

/// A document in a document, and so on.
fn nested(levels: usize) -> RawDocumentBuf {
    (0..levels).fold(rawdoc! { "x": 1 }, |inner, _| rawdoc! { "a": inner })
}

fn entry(op: &str, ns: &str, o: &RawDocument) -> RawDocumentBuf {
    rawdoc! {
        "op": op, "ns": ns, "ui": bson::Binary::from(bson::Uuid::from_bytes([1; 16])), "o": o.to_owned(),
        "o2": { "_id": 1 }, "ts": bson::Timestamp { time: 5, increment: 1 }, "t": 1_i64, "v": 2_i64,
        "wall": bson::DateTime::from_millis(1),
    }
}

/// Deeper than servers store: bytes alone can say so.
#[test]
fn no_depth_of_nesting_uses_up_the_stack() {
    let deep = nested(8_000);
    let entries = [
        entry("i", "db.c", &rawdoc! { "_id": deep.clone() }),
        entry("u", "db.c", &rawdoc! { "$v": 2, "diff": deep.clone() }),
        entry("u", "db.c", &rawdoc! { "$v": 1, "$set": { "a.b": deep.clone() } }),
        entry("c", "db.$cmd", &rawdoc! { "create": "c", "validator": deep.clone() }),
        entry("c", "db.$cmd", &rawdoc! { "createIndexes": "c", "key": deep.clone() }),
        entry("c", "db.$cmd", &rawdoc! { "collMod": "c", "validator": deep.clone() }),
        entry("c", "admin.$cmd", &rawdoc! { "applyOps": deep.clone() }),
        entry("c", "admin.$cmd", &rawdoc! { "applyOps": [deep.clone()] }),
        entry(
            "i",
            "db.system.views",
            &rawdoc! { "_id": "db.v", "viewOn": "c", "pipeline": [deep.clone()] },
        ),
    ];
    for entry in entries {
        plan(&[entry], &[deep.clone(), rawdoc! { "a": deep.clone() }]);
    }
}

proptest! {
    #[test]
    fn damaged_windows(
        entries in prop::collection::vec(fixtures::mutated(fixtures::documents("iudcn")), 1..8)
    ) {
        plan(&entries, &before());
    }

    #[test]
    fn noise_in_every_kind_of_entry(
        op in prop::sample::select(vec!["i", "u", "d", "c"]),
        ns in prop::sample::select(vec!["db.c", "db.$cmd", "admin.$cmd", "db.system.views"]),
        first in prop::sample::select(vec![
            "_id", "$v", "diff", "$set", "create", "drop", "renameCollection", "collMod", "createIndexes",
            "commitIndexBuild", "dropIndexes", "applyOps", "commitTransaction",
        ]),
        body: Vec<u8>,
    ) {
        let mut o = RawDocumentBuf::new();
        let noise = fixtures::document(&body);
        o.append(bson::raw::CString::try_from(first).unwrap(), noise.clone());
        plan(&[entry(op, ns, &o), entry(op, ns, &noise)], &before());
    }
}
