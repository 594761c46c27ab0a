//! The reading end of the spool.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use super::format::SEGMENT_HEADER_BYTES;
use super::segment::{Chunk, SegmentFile};
use super::{SpoolError, SpoolPosition, segment_path};
use crate::durable::DiskError;
use crate::position::{OpTime, Ts};

/// Reads durable entries in order, from the writer's process but any thread. Any number of readers may read at once;
/// each has its own place.
#[derive(Debug)]
pub struct SpoolReader {
    dir: PathBuf,
    position: Arc<SpoolPosition>,
    /// The entries up to here were returned or are not wanted.
    after: Ts,
    current: Option<Current>,
}

/// The segment being read.
#[derive(Debug)]
struct Current {
    path: PathBuf,
    file: File,
    first: OpTime,
    /// Where the next frame begins.
    offset: u64,
    /// The last entry read, wanted or not.
    last: Ts,
}

/// A run of entries in one piece of memory.
#[derive(Debug, Default)]
pub struct Batch {
    chunk: Chunk,
}

impl Batch {
    /// The entries in order: each one's place and its BSON bytes.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (OpTime, &[u8])> {
        self.chunk.frames.iter().map(|(optime, range)| (*optime, &self.chunk.bytes[range.clone()]))
    }

    /// Number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.chunk.frames.len()
    }

    /// Whether the reader had reached the end of what is durable.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.chunk.frames.is_empty()
    }

    /// The place of the last entry.
    #[must_use]
    pub fn last(&self) -> Option<OpTime> {
        self.chunk.frames.last().map(|(optime, _)| *optime)
    }

    /// Memory held, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.chunk.bytes.len()
    }
}

impl SpoolReader {
    pub(super) fn new(dir: PathBuf, position: Arc<SpoolPosition>, after: Ts) -> Self {
        Self { dir, position, after, current: None }
    }

    /// Another reader of the same spool, which begins after `after`.
    #[must_use]
    pub fn another(&self, after: Ts) -> Self {
        Self::new(self.dir.clone(), Arc::clone(&self.position), after)
    }

    /// The next entries: at least one, and about `bytes_max` bytes of them, or none if there are no more durable ones
    /// now. A batch may be smaller than asked for before the end: it never spans two segments.
    pub fn read_batch(&mut self, bytes_max: usize) -> Result<Batch, SpoolError> {
        let mut after = self.after;
        while let Some((current, end)) = self.seek()? {
            let segment =
                SegmentFile { path: &current.path, file: &current.file, first: current.first.ts };
            let mut chunk = segment
                .read_chunk(current.offset, end, bytes_max)
                .map_err(|error| error.into_error(&current.path, current.offset))?;
            for (optime, _) in &chunk.frames {
                if optime.ts <= current.last {
                    let why = "its timestamps do not increase";
                    return Err(current.damaged(why));
                }
                current.last = optime.ts;
            }
            current.offset += chunk.bytes.len() as u64;
            chunk.frames.retain(|(optime, _)| optime.ts > after);
            after = after.max(current.last);
            self.after = after;
            if !chunk.frames.is_empty() {
                return Ok(Batch { chunk });
            }
        }
        Ok(Batch::default())
    }

    /// The segment to read from and how much of it is durable; `None` at the end.
    fn seek(&mut self) -> Result<Option<(&mut Current, u64)>, SpoolError> {
        // Held until the file is open, so that it cannot be discarded in between.
        let segments = self.position.lock();
        let next = segments.list.partition_point(|segment| segment.last.ts <= self.after);
        let Some(segment) = segments.list.get(next) else { return Ok(None) };
        let is_current =
            self.current.as_ref().is_some_and(|current| current.first == segment.first);
        if !is_current {
            let path = segment_path(&self.dir, segment.first.ts);
            let file = File::open(&path).map_err(DiskError::at("open", &path))?;
            let (first, offset, last) = (segment.first, SEGMENT_HEADER_BYTES, Ts::ZERO);
            self.current = Some(Current { path, file, first, offset, last });
        }
        let Some(current) = &mut self.current else { return Ok(None) };
        if current.offset >= segment.bytes {
            return Err(current.damaged("it ends before the last entry it had"));
        }
        Ok(Some((current, segment.bytes)))
    }
}

impl Current {
    fn damaged(&self, why: &'static str) -> SpoolError {
        SpoolError::Damaged { path: self.path.clone(), offset: self.offset, why }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::{SpoolLimits, SpoolWriter};
    use std::os::unix::fs::FileExt;

    fn at(i: u32) -> OpTime {
        OpTime::new(Ts::new(1, i), 3)
    }

    fn entry(i: u32) -> Vec<u8> {
        vec![u8::try_from(i).unwrap(); 10 * i as usize]
    }

    /// A spool of entries 1 to 9 in segments of a few entries each.
    fn spool(dir: &tempfile::TempDir) -> SpoolWriter {
        let limits = SpoolLimits { segment_bytes_max: 300, ..SpoolLimits::new(1 << 20) };
        let (mut writer, _) = SpoolWriter::open(dir.path(), limits).unwrap();
        let entries: Vec<_> = (1..=9).map(|i| (at(i), entry(i))).collect();
        writer.append(entries.iter().map(|(optime, entry)| (*optime, &entry[..]))).unwrap();
        writer.sync().unwrap();
        assert!(std::fs::read_dir(dir.path()).unwrap().count() > 3);
        writer
    }

    fn read_all(reader: &mut SpoolReader, bytes_max: usize) -> Vec<(OpTime, Vec<u8>)> {
        let mut entries = Vec::new();
        loop {
            let batch = reader.read_batch(bytes_max).unwrap();
            assert_eq!(batch.len(), batch.iter().len());
            if batch.is_empty() {
                return entries;
            }
            entries.extend(batch.iter().map(|(optime, entry)| (optime, entry.to_vec())));
            assert_eq!(batch.last(), entries.last().map(|(optime, _)| *optime));
        }
    }

    #[test]
    fn begins_after_any_entry_with_any_batch_size() {
        let dir = tempfile::tempdir().unwrap();
        let writer = spool(&dir);
        for after in 0..=10 {
            let expected: Vec<_> = (after + 1..=9).map(|i| (at(i), entry(i))).collect();
            for bytes_max in [0, 100, 1 << 20] {
                let mut reader = writer.reader(at(after).ts);
                assert_eq!(read_all(&mut reader, bytes_max), expected, "{after} {bytes_max}");
            }
        }
    }

    #[test]
    fn sees_only_what_is_durable() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = spool(&dir);
        let mut reader = writer.reader(at(9).ts);
        writer.append([(at(10), &entry(10)[..])]).unwrap();
        assert!(reader.read_batch(1 << 20).unwrap().is_empty());
        writer.sync().unwrap();
        assert_eq!(read_all(&mut reader, 1 << 20), [(at(10), entry(10))]);
    }

    #[test]
    fn goes_on_after_its_segment_was_discarded() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = spool(&dir);
        let mut reader = writer.reader(Ts::ZERO);
        assert_eq!(reader.read_batch(1).unwrap().last(), Some(at(1)));
        writer.discard_through(at(8).ts).unwrap();
        assert_eq!(read_all(&mut reader, 1).last(), Some(&(at(9), entry(9))));
        writer.discard_through(at(9).ts).unwrap();
        assert_eq!(writer.position().range(), None);
        writer.append([(at(10), &entry(10)[..])]).unwrap();
        writer.sync().unwrap();
        assert_eq!(read_all(&mut reader, 1), [(at(10), entry(10))]);
    }

    #[test]
    fn damage_anywhere_is_an_error_that_names_the_segment() {
        let dir = tempfile::tempdir().unwrap();
        let writer = spool(&dir);
        let path = segment_path(dir.path(), at(1).ts);
        let length = std::fs::metadata(&path).unwrap().len();
        let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
        for offset in SEGMENT_HEADER_BYTES..length {
            let mut byte = [0];
            file.read_exact_at(&mut byte, offset).unwrap();
            file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
            let mut reader = writer.reader(Ts::ZERO);
            let error = std::iter::repeat_with(|| reader.read_batch(1 << 20))
                .find_map(Result::err)
                .unwrap();
            assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
            file.write_all_at(&byte, offset).unwrap();
        }
        file.set_len(length - 1).unwrap();
        let mut reader = writer.reader(Ts::ZERO);
        let error = reader.read_batch(1 << 20).unwrap_err();
        assert!(matches!(error, SpoolError::Damaged { .. }), "{error}");
    }
}
