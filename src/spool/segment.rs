//! Reading frames out of a segment file, many at a time.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::SpoolError;
use super::format::{FRAME_HEADER_BYTES, Parsed, Place, parse_frame};
use crate::durable::DiskError;
use crate::position::{OpTime, Ts};

/// Whole frames as they lie in the file, and where the entries are among them.
#[derive(Debug, Default)]
pub(super) struct Chunk {
    /// Frames, headers and all: cutting the entries out would copy every byte once more.
    pub(super) bytes: Vec<u8>,
    pub(super) frames: Vec<(OpTime, Range<usize>)>,
}

/// Why no frame could be read.
#[derive(Debug)]
pub(super) enum NoFrame {
    Disk(DiskError),
    /// What stands there is no sound frame.
    Bad(&'static str),
}

impl NoFrame {
    /// For a segment whose frames are known to be durable.
    pub(super) fn into_error(self, path: &Path, offset: u64) -> SpoolError {
        match self {
            Self::Disk(error) => error.into(),
            Self::Bad(why) => SpoolError::Damaged { path: path.to_owned(), offset, why },
        }
    }
}

/// A segment file open for reading.
#[derive(Debug)]
pub(super) struct SegmentFile<'a> {
    pub(super) path: &'a Path,
    pub(super) file: &'a File,
    pub(super) first: Ts,
}

impl SegmentFile<'_> {
    /// Reads the frames from `offset` up to `end`, at least one (even if it is longer) and about `bytes_max` bytes of
    /// them. A bad frame is an error only when it is the first one; otherwise the frames before it are returned.
    pub(super) fn read_chunk(
        &self,
        offset: u64,
        end: u64,
        bytes_max: usize,
    ) -> Result<Chunk, NoFrame> {
        let mut wanted = bytes_max.max(FRAME_HEADER_BYTES);
        loop {
            let mut bytes = self.read(offset, end, wanted)?;
            let mut frames = Vec::new();
            let mut at = 0;
            let stopped = loop {
                let place = Place { segment: self.first, offset: offset + at as u64 };
                match parse_frame(&bytes[at..], place) {
                    Parsed::Frame { optime, bytes: length, .. } => {
                        frames.push((optime, at + FRAME_HEADER_BYTES..at + length));
                        at += length;
                    }
                    other => break other,
                }
            };
            match stopped {
                _ if !frames.is_empty() => {
                    bytes.truncate(at);
                    return Ok(Chunk { bytes, frames });
                }
                Parsed::Short(needed) if (needed as u64) <= end.saturating_sub(offset) => {
                    wanted = needed;
                }
                Parsed::Bad(why) => return Err(NoFrame::Bad(why)),
                Parsed::Short(_) | Parsed::Frame { .. } => {
                    return Err(NoFrame::Bad("an entry is cut short"));
                }
            }
        }
    }

    /// Reads `wanted` bytes, or fewer if `end` comes before.
    pub(super) fn read(&self, offset: u64, end: u64, wanted: usize) -> Result<Vec<u8>, NoFrame> {
        let left = usize::try_from(end.saturating_sub(offset)).unwrap_or(usize::MAX);
        let mut bytes = vec![0; wanted.min(left)];
        match self.file.read_exact_at(&mut bytes, offset) {
            Ok(()) => Ok(bytes),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                Err(NoFrame::Bad("the file ends before its entries do"))
            }
            Err(error) => Err(NoFrame::Disk(DiskError::at("read", self.path)(error))),
        }
    }
}
