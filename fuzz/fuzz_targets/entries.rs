//! Any bytes as a run of oplog entries: decoded, assembled to transactions, planned. An input is BSON documents end to
//! end.

#![no_main]

use bson::RawDocument;
use libfuzzer_sys::fuzz_target;
use snapsync::position::{OpTime, Ts};
use snapsync::replay::window::{ResumePoint, WindowBuilder};
use snapsync::selection::Selection;

fuzz_target!(|input: &[u8]| {
    let start = OpTime::new(Ts::ZERO, -1);
    let resume = ResumePoint { applied: start, wall_ms: 0, read_from: start };
    let Ok(selection) = Selection::new(&["*".to_owned()], &[], &[]) else { return };
    let mut builder = WindowBuilder::new(selection, resume);
    let mut rest = input;
    while let Some(prefix) = rest.first_chunk() {
        let length = usize::try_from(i32::from_le_bytes(*prefix)).unwrap_or(usize::MAX);
        let Some((entry, after)) = rest.split_at_checked(length) else { break };
        let Ok(entry) = RawDocument::from_bytes(entry) else { break };
        if builder.push(entry).is_err() {
            break;
        }
        rest = after;
    }
    assert!(builder.bytes() <= input.len() * 20 + (1 << 16));
    drop(builder.finish());
});
