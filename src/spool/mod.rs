//! The spool: a queue of raw oplog entries on local disk, written at one end by the tail and read at the other by the
//! replay, so that a source whose oplog is shorter than the copy still syncs.
//!
//! It owns a directory of segment files (`<20 digits>.seg`, the digits being the first entry's timestamp as one
//! number). It never parses an entry. What it promises:
//!
//! - an entry counts once [`SpoolWriter::sync`] has returned; a reader sees no other;
//! - a write torn by a crash is cut off at the next [`SpoolWriter::open`]; what had been durable and is damaged is an
//!   error naming file and offset, at open or when it is read, never a silent loss;
//! - a full disk loses nothing: the entries that did not fit are refused, and may be given again.
//!
//! Opening costs one segment's reading, whatever the size of the spool: every segment's header tells how the one
//! before it ended, so that missing and shortened segments show; checksums of older segments are checked as they are
//! read. What cannot be told from an unfinished write is damage to the very last sync's entries: they are cut off,
//! and the range told at open says so.

mod format;
#[cfg(test)]
mod model;
mod overflow;
mod reader;
mod recover;
mod segment;
mod space;
mod writer;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

pub use overflow::OverflowDirectory;
pub use reader::{Batch, SpoolReader};
pub use space::free_space_limit;
pub use writer::{SpoolLimits, SpoolWriter};

use crate::durable::DiskError;
use crate::position::{OpTime, Ts};

/// The largest entry taken, in bytes. Entries may be somewhat larger than the 16 MiB that a document may have.
pub const ENTRY_BYTES_MAX: usize = 64 * 1024 * 1024;

/// The first and the last entry of a run, both in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// The first entry.
    pub first: OpTime,
    /// The last entry.
    pub last: OpTime,
}

/// Why the spool could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The disk or a quota is full. Go on after [`SpoolWriter::end`] once there is space.
    #[error(
        "the disk of the spool is full; free space, or lower spool.max_bytes so that the source buffers earlier"
    )]
    Full(#[source] DiskError),
    /// The disk refused. Go on after [`SpoolWriter::end`], if at all.
    #[error(transparent)]
    Disk(DiskError),
    /// Entries that had been durable are damaged or missing.
    #[error(
        "spool segment {} is damaged at byte {offset} ({why}); check the disk, then move the spool directory away and \
         start again: its entries are read again from the source if its oplog still has them",
        .path.display()
    )]
    Damaged {
        /// The segment file.
        path: PathBuf,
        /// Where in it, in bytes from its beginning.
        offset: u64,
        /// What is wrong.
        why: &'static str,
    },
    /// A segment was written in a format that this program does not read.
    #[error("spool segment {} has format {found}; run the snapsync version that wrote it", .path.display())]
    Format {
        /// The segment file.
        path: PathBuf,
        /// The format found.
        found: u32,
    },
    /// An entry given is not after the last one: a bug in the caller, or an oplog that was rolled back.
    #[error("oplog entry {given} does not come after {end}, the last one in the spool")]
    OutOfOrder {
        /// The entry given.
        given: Ts,
        /// The last one in the spool.
        end: Ts,
    },
    /// An entry is larger than [`ENTRY_BYTES_MAX`].
    #[error("oplog entry {ts} has {bytes} bytes, and the spool takes at most {ENTRY_BYTES_MAX}")]
    TooLarge {
        /// The entry.
        ts: Ts,
        /// Its size.
        bytes: usize,
    },
    /// A failed sync could not be taken back, so that what is on disk is not known: open the spool again.
    #[error(
        "the spool failed to sync and cannot be written any further; it has to be opened again"
    )]
    Broken,
}

impl From<DiskError> for SpoolError {
    fn from(error: DiskError) -> Self {
        if error.is_full() { Self::Full(error) } else { Self::Disk(error) }
    }
}

/// How far the spool is durable: written by the writer, looked at by readers and by status.
#[derive(Debug, Default)]
pub struct SpoolPosition {
    segments: Mutex<Segments>,
}

impl SpoolPosition {
    /// The durable entries that were not discarded; `None` if there are none.
    #[must_use]
    pub fn range(&self) -> Option<Range> {
        let segments = self.lock();
        Some(Range { first: segments.list.front()?.first, last: segments.list.back()?.last })
    }

    /// The last entry that became durable, discarded since or not.
    #[must_use]
    pub fn durable_end(&self) -> Option<OpTime> {
        self.lock().end
    }

    /// Size of the durable entries on disk, in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.lock().list.iter().map(|segment| segment.bytes).sum()
    }

    /// A panic elsewhere cannot leave the list half changed: each change is one call.
    fn lock(&self) -> MutexGuard<'_, Segments> {
        self.segments.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The segments with durable entries, in order, and the last entry that became durable.
#[derive(Debug, Default)]
struct Segments {
    list: VecDeque<Segment>,
    end: Option<OpTime>,
}

/// The durable part of a segment file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment {
    first: OpTime,
    last: OpTime,
    /// Length up to the end of its last durable entry.
    bytes: u64,
}

const SEGMENT_SUFFIX: &str = ".seg";

/// Zero-padded to the digits of the largest number, so that names sort as timestamps do.
fn segment_path(dir: &Path, first: Ts) -> PathBuf {
    dir.join(format!("{:020}{SEGMENT_SUFFIX}", ordinal(first)))
}

/// The timestamp of a segment's first entry, from its file name; `None` if the file is no segment.
fn parse_segment_name(name: &str) -> Option<Ts> {
    let digits = name.strip_suffix(SEGMENT_SUFFIX).filter(|digits| digits.len() == 20)?;
    Some(from_ordinal(digits.parse().ok()?))
}

/// The timestamp as one number, which orders as it does.
fn ordinal(ts: Ts) -> u64 {
    (u64::from(ts.t) << 32) | u64::from(ts.i)
}

/// The reverse of [`ordinal`].
#[expect(clippy::cast_possible_truncation, reason = "takes the two halves apart")]
fn from_ordinal(ordinal: u64) -> Ts {
    Ts::new((ordinal >> 32) as u32, ordinal as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn names_order_as_timestamps_and_read_back(a: (u32, u32), b: (u32, u32)) {
            let (a, b) = (Ts::new(a.0, a.1), Ts::new(b.0, b.1));
            let name = |ts| {
                segment_path(Path::new(""), ts).into_os_string().into_string().unwrap()
            };
            prop_assert_eq!(parse_segment_name(&name(a)), Some(a));
            prop_assert_eq!(name(a).cmp(&name(b)), a.cmp(&b));
        }
    }

    #[test]
    fn other_files_are_no_segments() {
        for name in ["", "1.seg", "00000000000000000001.seg.tmp", "+0000000000000000001.seg.x"] {
            assert_eq!(parse_segment_name(name), None, "{name}");
        }
    }
}
