//! The durable catalogue. It is large and changes rarely, so it is a file of its own, rewritten whole.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard};

use super::{StateError, load, load_json, save};
use crate::catalogue::Catalogue;

const FORMAT: u32 = 1;

/// The catalogue in memory and on disk.
#[derive(Debug)]
pub struct CatalogueStore {
    path: PathBuf,
    catalogue: RwLock<Catalogue>,
    /// Held while the file is written, so that of two who save the later one writes the newer state.
    saving: Mutex<()>,
    saved: AtomicU64,
}

impl CatalogueStore {
    /// Reads what an earlier run left at `path`; an empty catalogue if there is nothing.
    ///
    /// # Errors
    /// The file is there and cannot be read.
    pub fn open(path: PathBuf) -> Result<Self, StateError> {
        let catalogue = load(&path, FORMAT)?.unwrap_or_default();
        Ok(Self { catalogue: RwLock::new(catalogue), ..Self::empty(path) })
    }

    /// An empty catalogue; what is at `path` stays until this one is saved.
    #[must_use]
    pub fn empty(path: PathBuf) -> Self {
        Self {
            path,
            catalogue: RwLock::default(),
            saving: Mutex::default(),
            saved: AtomicU64::new(0),
        }
    }

    /// The catalogue as it is. Not to be held across an await.
    pub fn read(&self) -> RwLockReadGuard<'_, Catalogue> {
        self.catalogue.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the catalogue in memory only; [`save`](Self::save) follows before the resume point moves.
    pub fn change<T>(&self, change: impl FnOnce(&mut Catalogue) -> T) -> T {
        change(&mut self.catalogue.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// Makes the catalogue durable.
    ///
    /// # Errors
    /// The disk.
    pub fn save(&self) -> Result<(), StateError> {
        let _saving = self.saving.lock().unwrap_or_else(PoisonError::into_inner);
        save(&self.path, FORMAT, &*self.read())?;
        self.saved.fetch_add(1, Ordering::Release);
        Ok(())
    }

    /// How often it was made durable since the start.
    #[must_use]
    pub fn saves(&self) -> u64 {
        self.saved.load(Ordering::Acquire)
    }

    /// The catalogue as it is on disk, as JSON; `None` if there is none yet.
    ///
    /// # Errors
    /// The file is there and cannot be read.
    pub fn stored(&self) -> Result<Option<Vec<u8>>, StateError> {
        load_json(&self.path, FORMAT)
    }
}
