//! How far the copy has come: durable per part of a collection, so that a restart goes on, and counted for people.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bson::{RawDocumentBuf, Uuid};
use serde::{Deserialize, Serialize};

use crate::mongo::{Error, Side};
use crate::position::Ts;
use crate::source::scan::Size;
use crate::state::{self, StateError};

/// Progress is made durable at most this often; what was copied since is copied again after a crash.
const SAVE_EVERY: Duration = Duration::from_secs(1);
const FORMAT: u32 = 1;

/// A run of a collection's `_id`s, in the server's order, that one reader copies.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Part {
    /// `{_id}` it begins at; from the beginning without.
    #[serde(default, with = "crate::hex")]
    pub from_id: Option<RawDocumentBuf>,
    /// `{_id}` it ends before; to the end without.
    #[serde(default, with = "crate::hex")]
    pub until_id: Option<RawDocumentBuf>,
    /// `{_id}` of the last document of the run from its beginning that is on the target.
    #[serde(with = "crate::hex")]
    pub last_id: Option<RawDocumentBuf>,
    /// Documents copied.
    pub documents: u64,
    /// Bytes copied.
    pub bytes: u64,
    /// Whether it is complete.
    pub done: bool,
}

impl Part {
    /// Where to go on reading.
    #[must_use]
    pub fn resume_id(&self) -> Option<RawDocumentBuf> {
        self.last_id.clone().or_else(|| self.from_id.clone())
    }
}

/// How far one collection has been copied: its parts, in order of `_id`; none while it has not been begun.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct CollectionProgress {
    /// Together they hold every `_id` there may be.
    #[serde(default)]
    pub parts: Vec<Part>,
}

impl CollectionProgress {
    /// A collection that has not been begun, split before each of `points` (`{_id}` documents in ascending order).
    #[must_use]
    pub fn split(points: Vec<RawDocumentBuf>) -> Self {
        let mut parts = vec![Part::default()];
        for point in points {
            if let Some(last) = parts.last_mut() {
                last.until_id = Some(point.clone());
            }
            parts.push(Part { from_id: Some(point), ..Part::default() });
        }
        Self { parts }
    }

    /// Documents and bytes copied.
    #[must_use]
    pub fn copied(&self) -> Size {
        self.parts.iter().fold(Size::default(), |sum, part| Size {
            documents: sum.documents + part.documents,
            bytes: sum.bytes + part.bytes,
        })
    }
}

/// How far the copy has come.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Progress {
    /// T0 of the copy it belongs to: of another copy it says nothing.
    after: Ts,
    collections: BTreeMap<Uuid, CollectionProgress>,
}

#[derive(Debug)]
struct Inner {
    progress: Progress,
    saved: Instant,
}

/// The durable progress of a copy.
#[derive(Debug)]
pub struct ProgressStore {
    path: PathBuf,
    inner: Mutex<Inner>,
}

impl ProgressStore {
    /// Reads what an earlier run of the copy from `after` left at `path`.
    ///
    /// # Errors
    /// The file is there and cannot be read.
    pub fn open(path: PathBuf, after: Ts) -> Result<Self, Error> {
        let found: Option<Progress> = state::load(&path, FORMAT).map_err(|error| failed(&error))?;
        let progress = found.filter(|progress| progress.after == after);
        let progress = progress.unwrap_or(Progress { after, collections: BTreeMap::new() });
        let inner = Inner { progress, saved: Instant::now() };
        Ok(Self { path, inner: Mutex::new(inner) })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How far one collection has come.
    #[must_use]
    pub fn of(&self, uuid: &Uuid) -> CollectionProgress {
        self.inner().progress.collections.get(uuid).cloned().unwrap_or_default()
    }

    /// Replaces what is known of one collection: split it, or forget it.
    ///
    /// # Errors
    /// The disk.
    pub fn set(&self, uuid: Uuid, progress: CollectionProgress) -> Result<(), Error> {
        self.change(|collections| drop(collections.insert(uuid, progress)))
    }

    /// Notes how far one part has come: everything up to there is majority-acknowledged on the target.
    ///
    /// # Errors
    /// The disk.
    pub fn advance(
        &self,
        uuid: &Uuid,
        part: usize,
        note: impl FnOnce(&mut Part),
    ) -> Result<(), Error> {
        self.change(|collections| {
            if let Some(part) =
                collections.get_mut(uuid).and_then(|found| found.parts.get_mut(part))
            {
                note(part);
            }
        })
    }

    /// How far one part has come.
    #[must_use]
    pub fn part(&self, uuid: &Uuid, part: usize) -> Part {
        let inner = self.inner();
        let found = inner.progress.collections.get(uuid);
        found.and_then(|found| found.parts.get(part)).cloned().unwrap_or_default()
    }

    fn change(
        &self,
        change: impl FnOnce(&mut BTreeMap<Uuid, CollectionProgress>),
    ) -> Result<(), Error> {
        let due = {
            let mut inner = self.inner();
            change(&mut inner.progress.collections);
            inner.saved.elapsed() >= SAVE_EVERY
        };
        if due { self.save() } else { Ok(()) }
    }

    /// Makes everything noted so far durable.
    ///
    /// # Errors
    /// The disk.
    pub fn save(&self) -> Result<(), Error> {
        let mut inner = self.inner();
        state::save(&self.path, FORMAT, &inner.progress).map_err(|error| failed(&error))?;
        inner.saved = Instant::now();
        Ok(())
    }
}

fn failed(error: &StateError) -> Error {
    Error::disk(Side::Target, "save the copy's progress", error.to_string())
}

/// Counts for people: what is expected and what is done.
#[derive(Debug, Default)]
pub struct Counters {
    documents: AtomicU64,
    bytes: AtomicU64,
    bytes_before: AtomicU64,
    documents_total: AtomicU64,
    bytes_total: AtomicU64,
}

impl Counters {
    /// One more collection of this size is to be copied.
    pub fn expect(&self, size: Size) {
        self.documents_total.fetch_add(size.documents, Ordering::Relaxed);
        self.bytes_total.fetch_add(size.bytes, Ordering::Relaxed);
    }

    /// So much more has been copied.
    pub fn add(&self, documents: u64, bytes: u64) {
        self.documents.fetch_add(documents, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// So much was copied before a restart.
    pub fn take_over(&self, copied: Size) {
        self.bytes_before.fetch_add(copied.bytes, Ordering::Relaxed);
        self.add(copied.documents, copied.bytes);
    }

    /// Bytes copied since the restart, which say how fast it goes.
    #[must_use]
    pub fn bytes_of_this_run(&self) -> u64 {
        let copied = self.bytes.load(Ordering::Relaxed);
        copied.saturating_sub(self.bytes_before.load(Ordering::Relaxed))
    }

    /// Copied so far.
    #[must_use]
    pub fn copied(&self) -> Size {
        Size {
            documents: self.documents.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
        }
    }

    /// Expected in all, by the source's metadata.
    #[must_use]
    pub fn total(&self) -> Size {
        Size {
            documents: self.documents_total.load(Ordering::Relaxed),
            bytes: self.bytes_total.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::rawdoc;

    #[test]
    fn a_restart_finds_what_was_saved() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("copy.json");
        let uuid = Uuid::new();
        let progress = CollectionProgress::split(vec![rawdoc! { "_id": f64::NAN }]);
        let store = ProgressStore::open(path.clone(), Ts::new(5, 1)).unwrap();
        store.set(uuid, progress).unwrap();
        let note = |part: &mut Part| {
            part.last_id = Some(rawdoc! { "_id": "x" });
            part.documents += 3;
        };
        store.advance(&uuid, 1, note).unwrap();
        store.save().unwrap();
        let again = ProgressStore::open(path.clone(), Ts::new(5, 1)).unwrap();
        assert_eq!(again.of(&uuid), store.of(&uuid));
        assert_eq!(again.of(&uuid).copied().documents, 3);
        assert_eq!(again.part(&uuid, 1).resume_id(), Some(rawdoc! { "_id": "x" }));
        let another = ProgressStore::open(path, Ts::new(6, 1)).unwrap();
        assert_eq!(another.of(&uuid), CollectionProgress::default(), "of another copy");
    }
    #[test]
    fn parts_leave_no_gap() {
        let points: Vec<_> = [1, 2].map(|n| rawdoc! { "_id": n }).into();
        let parts = CollectionProgress::split(points).parts;
        assert_eq!(parts.len(), 3);
        assert!(parts[0].from_id.is_none() && parts[2].until_id.is_none());
        assert!(parts.windows(2).all(|pair| pair[0].until_id == pair[1].from_id));
        assert_eq!(parts[1].resume_id(), parts[1].from_id);
    }
}
