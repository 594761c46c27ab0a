//! State on local disk: what a restart needs to know. Each kind of file has its own promise:
//! [`Slot`] (small, rewritten at every window), [`save`] and [`load`] (large, rewritten rarely), [`Audit`] (only ever
//! grows) and [`StateLock`] (one process a directory). All calls block, for as long as a disk takes to sync.

mod audit;
pub mod catalogue;
mod lock;
mod slot;
mod versioned;

use std::path::PathBuf;

pub use audit::Audit;
pub use lock::{LockError, StateLock};
pub use slot::{SLOT_BODY_BYTES_MAX, Slot};
pub use versioned::{load, load_json, save};

use crate::durable::DiskError;

/// Why state could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The disk refused.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// What is stored is not what was written, and there is no older copy to fall back to.
    #[error("{} is damaged ({why}); {mend}", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
        /// What the operator can do.
        mend: &'static str,
    },
    /// The file is sound, but another version of snapsync wrote it in a format that this one does not read.
    #[error(
        "{} has format {found}, and this snapsync reads {known}; run the version that wrote it", .path.display()
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// The format found.
        found: u32,
        /// The format this program reads.
        known: u32,
    },
    /// The file is sound, but its value does not have the shape expected. Only the place is told: the value may be
    /// nobody's business.
    #[error(
        "{} holds a value of another shape, at line {line} column {column}; run the version that wrote it",
        .path.display()
    )]
    Shape {
        /// The file.
        path: PathBuf,
        /// Line in the stored JSON.
        line: usize,
        /// Column in the stored JSON.
        column: usize,
    },
    /// The value cannot be written as JSON (a map whose keys are not text): a bug.
    #[error("the value for {} cannot be written as JSON; this is a bug, please report it", .path.display())]
    Encode {
        /// The file.
        path: PathBuf,
        /// What the encoder said.
        #[source]
        source: serde_json::Error,
    },
    /// The value is larger than a slot holds: a bug, a slot is for values of bounded size.
    #[error("{bytes} bytes do not fit into {}, which holds {max}; this is a bug, please report it", .path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Size of the value.
        bytes: usize,
        /// Size that fits.
        max: usize,
    },
}

/// Reads a stored JSON body.
fn from_json<T: serde::de::DeserializeOwned>(
    path: &std::path::Path,
    body: &[u8],
) -> Result<T, StateError> {
    serde_json::from_slice(body).map_err(|error| StateError::Shape {
        path: path.to_owned(),
        line: error.line(),
        column: error.column(),
    })
}

/// Writes a JSON body.
pub(crate) fn to_json<T: serde::Serialize>(
    path: &std::path::Path,
    value: &T,
) -> Result<Vec<u8>, StateError> {
    serde_json::to_vec(value).map_err(|source| StateError::Encode { path: path.to_owned(), source })
}
