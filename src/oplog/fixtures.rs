//! Captured entries and diff vectors, for the tests of this room.

use base64::Engine as _;
use bson::RawDocumentBuf;
use proptest::prelude::*;

/// One entry as mongod 6.0.5 wrote it.
#[derive(Debug, Clone)]
pub(crate) struct EntryFixture {
    pub(crate) shape: String,
    pub(crate) op: String,
    pub(crate) document: RawDocumentBuf,
    pub(crate) json: serde_json::Value,
}

/// A diff and what mongod 6.0.5 made of `pre` with it.
#[derive(Debug, Clone)]
pub(crate) struct DiffVector {
    pub(crate) pre: RawDocumentBuf,
    pub(crate) o: RawDocumentBuf,
    pub(crate) post: RawDocumentBuf,
}

pub(crate) fn entries() -> Vec<EntryFixture> {
    lines("entries-6.0.5.jsonl")
        .into_iter()
        .map(|line| EntryFixture {
            shape: line["shape"].as_str().unwrap().to_owned(),
            op: line["op"].as_str().unwrap().to_owned(),
            document: decode(&line["bson"]),
            json: line["json"].clone(),
        })
        .collect()
}

/// The documents of all captured entries whose `op` is in `ops`.
pub(crate) fn documents(ops: &str) -> Vec<RawDocumentBuf> {
    entries().into_iter().filter(|e| ops.contains(&e.op)).map(|e| e.document).collect()
}

pub(crate) fn diff_vectors() -> Vec<DiffVector> {
    lines("diff-vectors.jsonl")
        .iter()
        .map(|line| DiffVector {
            pre: decode(&line["pre"]),
            o: decode(&line["o"]),
            post: decode(&line["post"]),
        })
        .collect()
}

/// A document with these element bytes, sound or not.
pub(crate) fn document(body: &[u8]) -> RawDocumentBuf {
    let len = i32::try_from(body.len() + 5).unwrap();
    RawDocumentBuf::from_bytes([&len.to_le_bytes(), body, &[0]].concat()).unwrap()
}

/// One of `documents` with a few of its inner bytes overwritten.
pub(crate) fn mutated(documents: Vec<RawDocumentBuf>) -> impl Strategy<Value = RawDocumentBuf> {
    let writes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6);
    (prop::sample::select(documents), writes).prop_map(|(document, writes)| {
        let mut bytes = document.into_bytes();
        let inner = 4..bytes.len() - 1;
        for (place, byte) in writes {
            bytes[inner.start + place.index(inner.len().max(1))] = byte;
        }
        let end = bytes.len() - 1;
        bytes[end] = 0;
        RawDocumentBuf::from_bytes(bytes).unwrap()
    })
}

fn lines(name: &str) -> Vec<serde_json::Value> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/oplog/");
    let text = std::fs::read_to_string(format!("{folder}{name}")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn decode(base64: &serde_json::Value) -> RawDocumentBuf {
    let engine = base64::engine::general_purpose::STANDARD;
    RawDocumentBuf::from_bytes(engine.decode(base64.as_str().unwrap()).unwrap()).unwrap()
}
