//! The durable catalogue. It is large and changes rarely, so it is a file of its own, rewritten whole.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard};

use super::{StateError, load, save};
use crate::catalogue::Catalogue;

const FORMAT: u32 = 1;

/// The catalogue in memory and on disk.
#[derive(Debug)]
pub struct CatalogueStore {
    path: PathBuf,
    catalogue: RwLock<Catalogue>,
    /// Held while the file is written, so that of two who save the later one writes the newer state.
    saving: Mutex<()>,
}

impl CatalogueStore {
    /// Reads what an earlier run left at `path`; an empty catalogue if there is nothing.
    ///
    /// # Errors
    /// The file is there and cannot be read.
    pub fn open(path: PathBuf) -> Result<Self, StateError> {
        let catalogue = load(&path, FORMAT)?.unwrap_or_default();
        Ok(Self { path, catalogue: RwLock::new(catalogue), saving: Mutex::default() })
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
        save(&self.path, FORMAT, &*self.read())
    }
}
