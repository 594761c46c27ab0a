//! Transactions put together: by hand, and against a model.

use super::*;
use crate::oplog::fixtures;
use crate::oplog::overflow::Overflow;
use bson::raw::cstr;
use bson::{DateTime, RawArrayBuf, Timestamp, rawdoc};
use proptest::prelude::*;
use std::collections::VecDeque;

/// An entry at second `t` with this `o`; `session` and `previous` where they belong to a transaction.
fn command(t: u32, o: &RawDocument, session: Option<i32>, previous: u32) -> RawDocumentBuf {
    let mut entry = rawdoc! {
        "op": "c", "ns": "admin.$cmd", "o": o.to_owned(), "v": 2_i64, "t": 1_i64,
        "ts": Timestamp { time: t, increment: 1 }, "wall": DateTime::from_millis(0),
    };
    if let Some(session) = session {
        let increment = u32::from(previous > 0);
        entry.append(cstr!("lsid"), rawdoc! { "id": session % 10, "uid": 1 });
        entry.append(cstr!("txnNumber"), i64::from(session / 10));
        let ts = Timestamp { time: previous, increment };
        entry.append(cstr!("prevOpTime"), rawdoc! { "ts": ts, "t": 1_i64 });
    }
    entry
}

fn insert(id: i32) -> RawDocumentBuf {
    rawdoc! { "op": "i", "ns": "a.b", "o": { "_id": id } }
}

fn apply_ops(ids: &[i32]) -> RawDocumentBuf {
    let inserts: RawArrayBuf = ids.iter().map(|id| insert(*id)).collect();
    rawdoc! { "applyOps": inserts }
}

fn with(
    mut document: RawDocumentBuf,
    field: &str,
    value: impl Into<bson::RawBson>,
) -> RawDocumentBuf {
    document.append(bson::raw::CString::try_from(field).unwrap(), value.into());
    document
}

fn ids(assembled: Assembled<'_>) -> Vec<i32> {
    let id = |operation: &Operation<'_>| match operation.kind {
        Kind::Insert { id, .. } => i32::try_from(id.as_i64().unwrap()).unwrap(),
        other => panic!("{other:?}"),
    };
    match assembled {
        Assembled::Nothing => Vec::new(),
        Assembled::One(operation) => vec![id(&operation)],
        Assembled::Large(mut transaction) => {
            let mut ids = Vec::new();
            for _ in 0..2 {
                ids.clear();
                transaction.rewind().unwrap();
                while let Some(part) = transaction.next_part().unwrap() {
                    ids.extend(part.operations().map(|operation| id(&operation.unwrap())));
                }
            }
            assert_eq!(ids.len(), transaction.len());
            ids
        }
        Assembled::Many(transaction) => {
            let ids: Vec<_> = transaction.operations().map(|o| id(&o.unwrap())).collect();
            assert_eq!(ids.len(), transaction.len());
            ids
        }
    }
}

fn feed(assembler: &mut Assembler, entry: &RawDocument) -> Result<Vec<i32>, TxnError> {
    assembler.push(&Entry::decode(entry).unwrap()).map(ids)
}

fn run(assembler: &mut Assembler, entries: &[RawDocumentBuf]) -> Vec<(Ts, Vec<i32>)> {
    let mut output = Vec::new();
    for entry in entries {
        let ids = feed(assembler, entry).unwrap();
        if !ids.is_empty() {
            output.push((Entry::decode(entry).unwrap().op_time.ts, ids));
        }
    }
    output
}

#[test]
fn every_captured_entry_is_classified() {
    for fixture in fixtures::entries() {
        let entry = Entry::decode(&fixture.document).unwrap();
        let o = &fixture.json["o"];
        let mut assembler = Assembler::default();
        let assembled = assembler.push(&entry);
        let waits = o["prepare"] == true || o["partialTxn"] == true;
        assert_eq!(assembler.oldest_open(), waits.then_some(entry.op_time));
        assert_eq!(assembler.buffered_bytes() > 0, waits);
        match assembled {
            Err(TxnError::MissingParts { .. }) => assert!(o.get("commitTransaction").is_some()),
            Ok(Assembled::Nothing) => assert!(
                waits || fixture.op == "n" || o.get("abortTransaction").is_some(),
                "{}",
                fixture.shape
            ),
            Ok(Assembled::Large(_)) => panic!("{}", fixture.shape),
            Ok(Assembled::One(_)) => assert!(o.get("applyOps").is_none()),
            Ok(Assembled::Many(transaction)) => {
                assert_eq!(transaction.len(), o["applyOps"].as_array().unwrap().len());
                assert!(transaction.operations().all(|operation| operation.is_ok()));
            }
            Err(error) => panic!("{}: {error}", fixture.shape),
        }
    }
}

#[test]
fn a_retryable_batch_stands_for_itself() {
    let batch = with(command(5, &apply_ops(&[1]), Some(7), 4), "multiOpType", 1);
    assert_eq!(feed(&mut Assembler::default(), &batch), Ok(vec![1]));
}

#[test]
fn sessions_differ_in_any_field_of_their_lsid() {
    let part = with(apply_ops(&[1]), "partialTxn", true);
    let mut other = command(2, &apply_ops(&[2]), None, 0);
    other.append(cstr!("lsid"), rawdoc! { "id": 7, "uid": 1, "txnUUID": 1 });
    other.append(cstr!("txnNumber"), 0_i64);
    let ts = Timestamp { time: 1, increment: 1 };
    other.append(cstr!("prevOpTime"), rawdoc! { "ts": ts, "t": 1_i64 });
    let mut assembler = Assembler::default();
    assert_eq!(feed(&mut assembler, &command(1, &part, Some(7), 0)), Ok(vec![]));
    let (op_time, missing) = (OpTime::new(Ts::new(2, 1), 1), Ts::new(1, 1));
    let error = Err(TxnError::MissingParts { op_time, missing });
    assert_eq!(feed(&mut assembler, &other), error);
}

#[test]
fn never_gives_out_a_part_of_a_transaction() {
    let op_time = |t| OpTime::new(Ts::new(t, 1), 1);
    let missing = |t, missing| {
        Err(TxnError::MissingParts { op_time: op_time(t), missing: Ts::new(missing, 1) })
    };
    let part = with(apply_ops(&[1]), "partialTxn", true);
    let last = with(apply_ops(&[2]), "count", 2_i64);
    let commit = rawdoc! { "commitTransaction": 1 };
    // The beginning was not read.
    for o in [&last, &commit, &part] {
        let entry = command(9, o, Some(1), 8);
        assert_eq!(feed(&mut Assembler::default(), &entry), missing(9, 8));
    }
    // An entry in the middle was not read.
    for o in [&last, &commit, &part] {
        let mut assembler = Assembler::default();
        feed(&mut assembler, &command(1, &part, Some(1), 0)).unwrap();
        assert_eq!(feed(&mut assembler, &command(9, o, Some(1), 8)), missing(9, 8));
    }
    // Operations are missing from an entry.
    let wrong = with(apply_ops(&[2]), "count", 3_i64);
    let mut assembler = Assembler::default();
    feed(&mut assembler, &command(1, &part, Some(1), 0)).unwrap();
    let error = TxnError::Count { op_time: op_time(9), expected: 3, found: 2 };
    assert_eq!(feed(&mut assembler, &command(9, &wrong, Some(1), 1)), Err(error));
    // One transaction twice, and one of no session.
    let mut assembler = Assembler::default();
    feed(&mut assembler, &command(1, &part, Some(1), 0)).unwrap();
    let error = TxnError::StartedTwice { op_time: op_time(2) };
    assert_eq!(feed(&mut assembler, &command(2, &part, Some(1), 0)), Err(error));
    let error = TxnError::NoSession { op_time: op_time(2) };
    let entry = command(2, &part, None, 0);
    assert_eq!(feed(&mut Assembler::default(), &entry), Err(error));
    // An operation in the middle is not understood.
    let unknown = rawdoc! { "applyOps": [insert(1), { "op": "x", "ns": "a.b", "o": {} }] };
    let entry = command(2, &unknown, Some(1), 0);
    assert!(matches!(feed(&mut Assembler::default(), &entry), Err(TxnError::Decode(_))));
}

/// One session's doing: the parts of a transaction, and how it ends.
#[derive(Debug, Clone)]
enum Script {
    Plain,
    ApplyOps(usize),
    Committed(Vec<usize>),
    Prepared { parts: Vec<usize>, commit: bool },
}

fn script() -> impl Strategy<Value = Script> {
    let parts = || prop::collection::vec(0_usize..4, 1..4);
    prop_oneof![
        Just(Script::Plain),
        (0_usize..4).prop_map(Script::ApplyOps),
        parts().prop_map(Script::Committed),
        (parts(), any::<bool>()).prop_map(|(parts, commit)| Script::Prepared { parts, commit }),
    ]
}

/// The entries of a script, in order, without their time; the last one carries what it makes visible.
fn steps(script: &Script, next_id: &mut i32) -> VecDeque<(RawDocumentBuf, Vec<i32>)> {
    let mut take = |len: usize| -> Vec<i32> {
        (0..len)
            .map(|_| {
                *next_id += 1;
                *next_id
            })
            .collect()
    };
    let (parts, end) = match script {
        Script::Plain => {
            let ids = take(1);
            return [(insert(ids[0]), ids)].into();
        }
        Script::ApplyOps(len) => {
            let ids = take(*len);
            return [(apply_ops(&ids), ids)].into();
        }
        Script::Committed(parts) => (parts, None),
        Script::Prepared { parts, commit } => (parts, Some(*commit)),
    };
    let (mut steps, mut all) = (VecDeque::new(), Vec::new());
    for (place, len) in parts.iter().enumerate() {
        let ids = take(*len);
        all.extend_from_slice(&ids);
        let last = place + 1 == parts.len();
        let mut o = apply_ops(&ids);
        if last && end.is_some() {
            o = with(o, "prepare", true);
        } else if !last {
            o = with(o, "partialTxn", true);
        }
        if last && parts.len() > 1 {
            o = with(o, "count", i64::try_from(all.len()).unwrap());
        }
        let visible = if last && end.is_none() { all.clone() } else { Vec::new() };
        steps.push_back((o, visible));
    }
    match end {
        Some(true) => steps.push_back((rawdoc! { "commitTransaction": 1 }, all)),
        Some(false) => steps.push_back((rawdoc! { "abortTransaction": 1 }, Vec::new())),
        None => {}
    }
    steps
}

/// Interleaves sessions as `turns` says: the oplog, and what each entry makes visible. Transactions that no turn
/// ends stay open.
fn oplog(sessions: &[Vec<Script>], turns: &[usize]) -> (Vec<RawDocumentBuf>, Vec<(Ts, Vec<i32>)>) {
    let (mut entries, mut visible, mut next_id) = (Vec::new(), Vec::new(), 0);
    let mut waiting: Vec<VecDeque<(i32, Script)>> =
        sessions.iter().map(|scripts| (0..).zip(scripts.iter().cloned()).collect()).collect();
    let mut running: Vec<VecDeque<(RawDocumentBuf, Vec<i32>)>> =
        vec![VecDeque::new(); sessions.len()];
    let mut state = vec![(0, 0, false); sessions.len()];
    for (turn, t) in turns.iter().zip(1..) {
        let who = turn % sessions.len();
        if running[who].is_empty() {
            let Some((number, script)) = waiting[who].pop_front() else { continue };
            let in_session = matches!(script, Script::Committed(_) | Script::Prepared { .. });
            state[who] = (number * 10 + i32::try_from(who).unwrap(), 0, in_session);
            running[who] = steps(&script, &mut next_id);
        }
        let (o, ids) = running[who].pop_front().unwrap();
        let (session, previous, in_session) = state[who];
        entries.push(if o.get("op").unwrap().is_some() {
            let plain = command(t, &o, None, 0);
            let inner = o.get_document("o").unwrap().to_owned();
            with(with(with(plain, "op", "i"), "ns", "a.b"), "o", inner)
        } else {
            command(t, &o, in_session.then_some(session), previous)
        });
        state[who].1 = t;
        if !ids.is_empty() {
            visible.push((Ts::new(t, 1), ids));
        }
    }
    (entries, visible)
}

fn sessions() -> impl Strategy<Value = (Vec<Vec<Script>>, Vec<usize>)> {
    let scripts = prop::collection::vec(prop::collection::vec(script(), 0..6), 1..5);
    (scripts, prop::collection::vec(0_usize..60, 0..60))
}

/// A place that is no disk.
#[derive(Debug)]
struct Elsewhere;

#[derive(Debug, Default)]
struct Away {
    parts: Vec<RawDocumentBuf>,
    next: usize,
}

impl Overflow for Elsewhere {
    fn open(&self) -> Result<Box<dyn Parts>, OverflowError> {
        Ok(Box::new(Away::default()))
    }
}

impl Parts for Away {
    fn append(&mut self, part: &RawDocument) -> Result<(), OverflowError> {
        self.parts.push(part.to_owned());
        Ok(())
    }

    fn rewind(&mut self) -> Result<(), OverflowError> {
        self.next = 0;
        Ok(())
    }

    fn next_part(&mut self) -> Result<Option<RawDocumentBuf>, OverflowError> {
        self.next += 1;
        Ok(self.parts.get(self.next - 1).cloned())
    }
}

proptest! {
    #[test]
    fn equals_the_model((sessions, turns) in sessions()) {
        let (entries, visible) = oplog(&sessions, &turns);
        prop_assert_eq!(run(&mut Assembler::default(), &entries), visible);
    }

    #[test]
    fn equals_the_model_with_little_memory(
        (sessions, turns) in sessions(), memory_bytes_max in 0_u64..400
    ) {
        let (entries, visible) = oplog(&sessions, &turns);
        let spill = Spill { place: std::sync::Arc::new(Elsewhere), memory_bytes_max };
        let mut assembler = Assembler::default().with_spill(spill);
        let mut output = Vec::new();
        for entry in &entries {
            let ids = feed(&mut assembler, entry).unwrap();
            if !ids.is_empty() {
                output.push((Entry::decode(entry).unwrap().op_time.ts, ids));
            }
            prop_assert!(assembler.buffered_bytes() <= memory_bytes_max);
        }
        prop_assert_eq!(output, visible);
    }

    #[test]
    fn a_restart_anywhere_gives_the_same_rest(
        (sessions, turns) in sessions(), place: prop::sample::Index
    ) {
        let (entries, visible) = oplog(&sessions, &turns);
        prop_assume!(!entries.is_empty());
        let done = place.index(entries.len()) + 1;
        let mut before = Assembler::default();
        run(&mut before, &entries[..done]);
        let op_time = |entry: &RawDocumentBuf| Entry::decode(entry).unwrap().op_time;
        let resume = op_time(&entries[done - 1]);
        let from = before.oldest_open().unwrap_or(resume);
        let again: Vec<_> =
            entries.iter().filter(|entry| op_time(entry) >= from).cloned().collect();
        let mut after = Assembler::new(resume.ts);
        let rest: Vec<_> = visible.into_iter().filter(|(ts, _)| *ts > resume.ts).collect();
        prop_assert_eq!(run(&mut after, &again), rest);
        run(&mut before, &entries[done..]);
        prop_assert_eq!(after.oldest_open(), before.oldest_open());
        prop_assert_eq!(after.buffered_bytes(), before.buffered_bytes());
    }

    #[test]
    fn holds_no_bytes_once_all_have_ended((sessions, _) in sessions()) {
        let turns: Vec<_> = (0..sessions.len() * 40).collect();
        let mut assembler = Assembler::default();
        run(&mut assembler, &oplog(&sessions, &turns).0);
        prop_assert_eq!((assembler.oldest_open(), assembler.buffered_bytes()), (None, 0));
    }

    #[test]
    fn never_panics_on_damaged_entries(
        entries in prop::collection::vec(
            fixtures::mutated(fixtures::documents("c")), 1..8
        )
    ) {
        let mut assembler = Assembler::default();
        for entry in &entries {
            if let Ok(entry) = Entry::decode(entry) && assembler.push(&entry).is_err() {
                break;
            }
        }
        prop_assert_eq!(assembler.oldest_open().is_some(), assembler.buffered_bytes() > 0);
    }
}
