//! Comparing the two sides by their contents, while they are being written: documents byte for byte, options, indexes,
//! views. Reads only; memory does not grow with the data.
//!
//! Each collection is read on both sides in runs of `_id`, side by side ([`align`]). Nothing stands still for that, so
//! what does not match is only suspicious. It is looked at again ([`recheck`]) at a moment when both sides have to be
//! the same ([`moment`]), and only what differs then, and once more, is a difference. What cannot be judged is said to
//! be unproven, never to be equal.
//!
//! If this room is wrong, an operator moves applications to a target that lacks something, or a good collection is
//! copied again.

mod align;
pub mod changed;
mod collection;
mod listed;
pub mod moment;
mod reading;
mod recheck;
mod shape;
mod whole;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;
use tokio::sync::Semaphore;

use crate::copy::Pace;
use crate::mongo::Deployment;
use crate::stop::Stop;

pub use recheck::{Kind, defined_since};
pub use whole::{Report, VerifyError, verify};

/// Differing `_id`s that are named for one collection.
pub const IDS_LISTED_MAX: usize = 100;
/// Differing documents after which a collection is read no further.
pub const DIFFERENCES_MAX: u64 = 10_000;

/// What a verification works with.
#[derive(Debug, Clone)]
pub struct Verifier<M> {
    /// Read.
    pub source: Deployment,
    /// Read as well.
    pub target: Deployment,
    /// When both can be compared.
    pub moments: Arc<M>,
    /// Bytes a second, of each side.
    pub pace: Arc<Pace>,
    /// Runs that are read at once.
    pub workers: Arc<Semaphore>,
    /// The share of the documents to read; 1 for all.
    pub sample: f64,
    /// Counts what was read.
    pub progress: Arc<Progress>,
    /// Ends it.
    pub stop: Stop,
}

/// How far a verification has come.
#[derive(Debug, Default)]
pub struct Progress {
    documents: AtomicU64,
    bytes: AtomicU64,
}

impl Progress {
    /// So much more of the source was read.
    fn add(&self, documents: u64, bytes: u64) {
        self.documents.fetch_add(documents, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Documents and bytes of the source that were read.
    #[must_use]
    pub fn read(&self) -> (u64, u64) {
        (self.documents.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }
}

/// What verifying something came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Nothing differs.
    Equal,
    /// Something could not be judged; the reason says what and why.
    Unproven,
    /// Something differs.
    Different,
}

/// A document that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DifferingDocument {
    /// Its `_id`, as extended JSON.
    pub id: String,
    /// How it differs.
    pub kind: Kind,
}

/// What verifying one collection came to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CollectionReport {
    /// Its name on the source.
    pub collection: String,
    /// Its name on the target.
    pub target_collection: String,
    /// The outcome.
    pub outcome: Outcome,
    /// Documents read on the source.
    pub documents: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Documents that the target lacks.
    pub missing: u64,
    /// Documents that only the target has.
    pub extra: u64,
    /// Documents that are not the same.
    pub different: u64,
    /// Differences of options and indexes, as phrases.
    pub definitions: Vec<String>,
    /// The first documents that differ.
    pub differing: Vec<DifferingDocument>,
    /// Whether it was read to its end; not if too much differs.
    pub complete: bool,
    /// What could not be judged, and why.
    pub unproven: Vec<String>,
}

impl CollectionReport {
    /// What differs, in one phrase without contents; `None` if nothing does.
    #[must_use]
    pub fn what_differs(&self) -> Option<String> {
        if self.outcome != Outcome::Different {
            return None;
        }
        let more = if self.complete { "" } else { " or more" };
        let counts = [
            (self.missing, "missing on the target"),
            (self.extra, "only on the target"),
            (self.different, "different"),
        ];
        let counts = counts.into_iter().filter(|(count, _)| *count > 0);
        let mut parts: Vec<String> =
            counts.map(|(count, what)| format!("{count}{more} documents {what}")).collect();
        parts.extend(self.definitions.iter().cloned());
        Some(parts.join(", "))
    }

    /// Whether documents differ, not definitions alone.
    #[must_use]
    pub fn documents_differ(&self) -> bool {
        self.missing + self.extra + self.different > 0
    }

    fn judge(&mut self) {
        self.outcome = if self.documents_differ() || !self.definitions.is_empty() {
            Outcome::Different
        } else if self.unproven.is_empty() {
            Outcome::Equal
        } else {
            Outcome::Unproven
        };
    }
}
