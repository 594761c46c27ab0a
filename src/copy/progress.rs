//! How far the copy has come: durable per collection, so that a restart goes on, and counted for people.

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

/// How far one collection has been copied.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct CollectionProgress {
    /// Documents copied.
    pub documents: u64,
    /// Bytes copied.
    pub bytes: u64,
    /// `{_id}` of the last document of the run from the beginning that is on the target.
    #[serde(with = "crate::hex")]
    pub last_id: Option<RawDocumentBuf>,
    /// Whether it is complete.
    pub done: bool,
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

    /// Notes how far one collection has come: everything up to there is majority-acknowledged on the target.
    ///
    /// # Errors
    /// The disk.
    pub fn advance(&self, uuid: Uuid, progress: CollectionProgress) -> Result<(), Error> {
        let due = {
            let mut inner = self.inner();
            inner.progress.collections.insert(uuid, progress);
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
        let progress = CollectionProgress {
            documents: 3,
            bytes: 4,
            last_id: Some(rawdoc! { "_id": f64::NAN }),
            done: false,
        };
        let store = ProgressStore::open(path.clone(), Ts::new(5, 1)).unwrap();
        store.advance(uuid, progress.clone()).unwrap();
        store.save().unwrap();
        let again = ProgressStore::open(path.clone(), Ts::new(5, 1)).unwrap();
        assert_eq!(again.of(&uuid), progress);
        let another = ProgressStore::open(path, Ts::new(6, 1)).unwrap();
        assert_eq!(another.of(&uuid), CollectionProgress::default(), "of another copy");
    }
}
