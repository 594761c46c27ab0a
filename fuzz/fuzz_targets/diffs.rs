//! Any update over any document, in both formats. An input is two BSON documents, the update and what it is applied to.

#![no_main]

use bson::{RawDocument, RawDocumentBuf, rawdoc};
use libfuzzer_sys::fuzz_target;
use snapsync::oplog::document;
use snapsync::oplog::id_key::IdKey;
use snapsync::oplog::update::Update;

fuzz_target!(|input: &[u8]| {
    let Some(prefix) = input.first_chunk() else { return };
    let length = usize::try_from(i32::from_le_bytes(*prefix)).unwrap_or(usize::MAX);
    let Some((update, before)) = input.split_at_checked(length) else { return };
    let (Ok(update), Ok(before)) =
        (RawDocument::from_bytes(update), RawDocument::from_bytes(before))
    else {
        return;
    };
    let modifier: RawDocumentBuf = rawdoc! { "$v": 1, "$set": update.to_owned() };
    for update in [Update::Diff(update), Update::Modifier(update), Update::Modifier(&modifier)] {
        if let Ok(after) = update.apply(before) {
            drop(document::shape(&after));
            let _: bool = document::has_duplicate_names(&after);
            drop(document::id(&after).map(IdKey::new));
        }
    }
});
