//! The small part of the state that changes with every window: phase, position, intent. Durable before anybody is told.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::cutover::plan::CutoverRecord;
use super::phase::Phase;
use crate::position::Ts;
use crate::replay::window::ResumePoint;
use crate::state::Slot;
use crate::state::StateError;

/// The record's file in the state directory.
pub const FILE: &str = "position";

/// Counters that survive restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Totals {
    /// Oplog entries read.
    pub entries_read: u64,
    /// Operations of the selection applied.
    pub entries_applied: u64,
    /// Windows applied.
    pub windows: u64,
}

/// What is durable of a migration's progress.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Identity of the migration, made with the state directory.
    pub instance: String,
    /// Where it stands.
    pub phase: Phase,
    /// Since when, in milliseconds since 1970.
    pub since_ms: i64,
    /// Where replay stands; begins as the start optime T0. `None` until that has been chosen: nothing is on the target.
    pub resume: Option<ResumePoint>,
    /// The end of the window that is or was being applied: up to here the target may hold newer state than at `resume`.
    pub intent: Option<Ts>,
    /// Fingerprint of the selection and of the renaming that the target was made with.
    pub selection: String,
    /// Fingerprint of the renaming alone.
    pub renames: String,
    /// Counters.
    pub totals: Totals,
    /// The replica sets that are followed and written, by the identity that a set gets when it is initiated.
    #[serde(default)]
    pub replica_sets: ReplicaSets,
    /// How often this record was mirrored on the target, as far as that is known to be durable there.
    #[serde(default)]
    pub mirrored: u64,
    /// The cutover that has begun to act, or the one that succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cutover: Option<Box<CutoverRecord>>,
}

impl Record {
    /// The optime that the target is the source at, as long as nothing is applied; `None` if a window was cut short, or
    /// the target was never the source at one moment yet.
    #[must_use]
    pub fn consistent_at(&self) -> Option<Ts> {
        let at = self.resume?.applied.ts;
        let from = self.phase.consistent_from()?;
        (at >= from && self.intent.is_none_or(|intent| intent <= at)).then_some(at)
    }
}

/// Identities of the two replica sets; `None` where the user may not read it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ReplicaSets {
    /// The source's.
    pub source: Option<String>,
    /// The target's.
    pub target: Option<String>,
}

/// The record in memory and on disk.
#[derive(Debug)]
pub struct RecordStore {
    inner: Mutex<(Slot<Record>, Record)>,
}

impl RecordStore {
    /// The record in the state directory, if there is one.
    ///
    /// # Errors
    /// The disk, or a damaged file.
    pub fn find(directory: &Path) -> Result<Option<Record>, StateError> {
        Ok(Slot::open(&directory.join(FILE))?.1)
    }

    /// Whether there is a record in the state directory, of whatever state.
    #[must_use]
    pub fn exists(directory: &Path) -> bool {
        directory.join(FILE).exists()
    }

    /// Opens the record in the state directory; `fresh` makes the first one.
    ///
    /// # Errors
    /// The disk, or a damaged file.
    pub fn open(directory: &Path, fresh: impl FnOnce() -> Record) -> Result<Self, StateError> {
        let record = Self::find(directory)?.unwrap_or_else(fresh);
        Self::create(directory, record)
    }

    /// Makes this the record in the state directory, durably.
    ///
    /// # Errors
    /// The disk.
    pub fn create(directory: &Path, record: Record) -> Result<Self, StateError> {
        let (mut slot, found) = Slot::open(&directory.join(FILE))?;
        if found.as_ref() != Some(&record) {
            slot.write(&record)?;
        }
        Ok(Self { inner: Mutex::new((slot, record)) })
    }

    fn inner(&self) -> MutexGuard<'_, (Slot<Record>, Record)> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The record as it is on disk.
    #[must_use]
    pub fn get(&self) -> Record {
        self.inner().1.clone()
    }

    /// Changes the record: on disk first, then in memory.
    ///
    /// # Errors
    /// The disk; the record stays as it was.
    pub fn change(&self, change: impl FnOnce(&mut Record)) -> Result<Record, StateError> {
        self.try_change(|record| {
            change(record);
            Ok(())
        })
    }

    /// Changes the record, if that makes sense: on disk first, then in memory. Nobody else changes it meanwhile.
    ///
    /// # Errors
    /// It makes none, or the disk; the record stays as it was.
    pub fn try_change<E: From<StateError>>(
        &self,
        change: impl FnOnce(&mut Record) -> Result<(), E>,
    ) -> Result<Record, E> {
        let mut inner = self.inner();
        let mut record = inner.1.clone();
        change(&mut record)?;
        if record != inner.1 {
            // One small fsync: the runtime moves other tasks away from this thread meanwhile.
            tokio::task::block_in_place(|| inner.0.write(&record))?;
            inner.1 = record.clone();
        }
        Ok(record)
    }
}
