//! The writing end of the spool.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::format::{
    FRAME_HEADER_BYTES, Place, Previous, SEGMENT_HEADER_BYTES, SegmentHeader, push_frame,
};
use super::recover::recover;
use super::{
    ENTRY_BYTES_MAX, Range, Segment, SpoolError, SpoolPosition, SpoolReader, segment_path,
};
use crate::durable::{DiskError, create_dir_all_durable, open_options, sync_dir, write_atomic};
use crate::position::{OpTime, Ts};

/// How large the spool and its parts become.
#[derive(Debug, Clone, Copy)]
pub struct SpoolLimits {
    /// Bytes on disk beyond which [`SpoolWriter::has_room`] says no.
    pub max_bytes: u64,
    /// Bytes after which a new segment is begun; a single entry may be longer. Space is given back in segments.
    pub segment_bytes_max: u64,
    /// Bytes held in memory before they are written; one entry comes on top.
    pub buffer_bytes_max: usize,
}

impl SpoolLimits {
    /// The usual segments (64 MiB) and buffer (1 MiB), in a spool of at most so many bytes.
    #[must_use]
    pub const fn new(max_bytes: u64) -> Self {
        Self { max_bytes, segment_bytes_max: 64 * 1024 * 1024, buffer_bytes_max: 1024 * 1024 }
    }
}

/// Appends entries to the spool and discards those applied. There must be one a directory (the state lock sees to it).
///
/// After any error [`SpoolWriter::end`] is the last entry still held: give the entries after it again. What was not
/// synced when the writer is dropped is lost.
#[derive(Debug)]
pub struct SpoolWriter {
    dir: PathBuf,
    limits: SpoolLimits,
    position: Arc<SpoolPosition>,
    /// The segment being written; `None` until the next entry begins one.
    active: Option<Active>,
    /// Frames of the active segment that are not in its file yet.
    buffer: Vec<u8>,
    end: Option<OpTime>,
    is_broken: bool,
}

#[derive(Debug)]
struct Active {
    path: PathBuf,
    file: File,
    first: OpTime,
    /// Length of the file up to its last whole write.
    written: u64,
    /// Length of the file that is durable.
    durable: u64,
}

impl Active {
    fn has_durable_entries(&self) -> bool {
        self.durable > SEGMENT_HEADER_BYTES
    }
}

impl SpoolWriter {
    /// Opens the spool in this directory (made if it is missing) and tells which entries it holds, all durable. An
    /// unfinished end is cut off; damage to what had been durable is an error.
    pub fn open(dir: &Path, limits: SpoolLimits) -> Result<(Self, Option<Range>), SpoolError> {
        create_dir_all_durable(dir)?;
        let recovered = recover(dir)?;
        let last = recovered.segments.back().copied();
        let active = recovered.last.zip(last).map(|((path, file), segment)| Active {
            path,
            file,
            first: segment.first,
            written: segment.bytes,
            durable: segment.bytes,
        });
        let position = Arc::new(SpoolPosition::default());
        let end = last.map(|segment| segment.last);
        {
            let mut segments = position.lock();
            segments.list = recovered.segments;
            segments.end = end;
        }
        let range = position.range();
        let dir = dir.to_owned();
        let buffer = Vec::new();
        Ok((Self { dir, limits, position, active, buffer, end, is_broken: false }, range))
    }

    /// How far the spool is durable, for readers on other threads.
    #[must_use]
    pub fn position(&self) -> Arc<SpoolPosition> {
        Arc::clone(&self.position)
    }

    /// A reader of the entries after `after` (exclusive; [`Ts::ZERO`] for all). Whether the spool reaches back that far
    /// is for the caller to know, from the range told at open.
    #[must_use]
    pub fn reader(&self, after: Ts) -> SpoolReader {
        SpoolReader::new(self.dir.clone(), self.position(), after)
    }

    /// Takes these entries, the bytes of each as they came from the oplog; they are durable after the next
    /// [`SpoolWriter::sync`]. Timestamps must increase strictly. On an error the entries before the failing one are
    /// taken and those from it on are not, but for an error of a sync between two segments (see there).
    pub fn append<'a>(
        &mut self,
        entries: impl IntoIterator<Item = (OpTime, &'a [u8])>,
    ) -> Result<(), SpoolError> {
        self.refuse_if_broken()?;
        entries.into_iter().try_for_each(|(optime, entry)| self.append_one(optime, entry))
    }

    /// Makes every entry taken durable. On an error of the sync itself everything after
    /// [`SpoolWriter::durable_end`] is taken back: the kernel may have dropped it, and says so only once.
    pub fn sync(&mut self) -> Result<(), SpoolError> {
        self.refuse_if_broken()?;
        self.flush()?;
        let (Some(active), Some(end)) = (&mut self.active, self.end) else { return Ok(()) };
        if active.written == active.durable {
            return Ok(());
        }
        if let Err(error) = active.file.sync_data() {
            let error = DiskError::at("sync", &active.path)(error);
            self.take_back();
            return Err(error.into());
        }
        active.durable = active.written;
        let segment = Segment { first: active.first, last: end, bytes: active.durable };
        let mut segments = self.position.lock();
        segments.list.pop_back_if(|last| last.first == segment.first);
        segments.list.push_back(segment);
        segments.end = Some(end);
        Ok(())
    }

    /// The last entry taken, durable or not, discarded or not.
    #[must_use]
    pub fn end(&self) -> Option<OpTime> {
        self.end
    }

    /// The last entry that became durable, discarded or not.
    #[must_use]
    pub fn durable_end(&self) -> Option<OpTime> {
        self.position.durable_end()
    }

    /// Size of the spool in bytes, what is in memory included.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let unsynced = self.active.as_ref().map_or(0, |active| {
            let counted = if active.has_durable_entries() { active.durable } else { 0 };
            active.written - counted
        });
        self.position.bytes() + unsynced + self.buffer.len() as u64
    }

    /// The limit on what the spool takes on disk, in bytes.
    #[must_use]
    pub fn max_bytes(&self) -> u64 {
        self.limits.max_bytes
    }

    /// Whether entries of so many bytes still fit under the limit. Always true of an empty spool: an entry larger than
    /// the limit must not wait for ever.
    #[must_use]
    pub fn has_room(&self, bytes: u64) -> bool {
        let spool = self.bytes();
        spool == 0 || spool.saturating_add(bytes) <= self.limits.max_bytes
    }

    /// Deletes the segments whose entries all have timestamps up to `ts`, the one being written too if it has nothing
    /// that is not durable. Readers skip what they had not read of them.
    pub fn discard_through(&mut self, ts: Ts) -> Result<(), SpoolError> {
        self.refuse_if_broken()?;
        let mut is_changed = false;
        // Held while files go, so that no reader opens one in between.
        let mut segments = self.position.lock();
        while let Some(segment) = segments.list.front().filter(|segment| segment.last.ts <= ts) {
            if let Some(active) = self.active.take_if(|active| active.first == segment.first)
                && (active.written > active.durable || !self.buffer.is_empty())
            {
                self.active = Some(active);
                break;
            }
            remove_segment(&segment_path(&self.dir, segment.first.ts))?;
            segments.list.pop_front();
            is_changed = true;
        }
        drop(segments);
        // One sync for all of them: journalling file systems keep the order of removals.
        if is_changed {
            sync_dir(&self.dir)?;
        }
        Ok(())
    }

    /// Deletes everything, what is not durable too; entries of any timestamp may follow. Readers made before must not
    /// be used any more: they would skip entries older than those they have seen.
    pub fn remove_all(&mut self) -> Result<(), SpoolError> {
        self.buffer.clear();
        let mut segments = self.position.lock();
        // Broken until all of it is gone: the removal may fail half way.
        self.is_broken = true;
        if let Some(active) = self.active.take() {
            remove_segment(&active.path)?;
            segments.list.pop_back_if(|segment| segment.first == active.first);
        }
        while let Some(segment) = segments.list.back() {
            // From the end: what a power cut leaves is then a spool that only ends earlier.
            remove_segment(&segment_path(&self.dir, segment.first.ts))?;
            segments.list.pop_back();
        }
        segments.end = None;
        drop(segments);
        sync_dir(&self.dir)?;
        self.end = None;
        self.is_broken = false;
        Ok(())
    }

    fn append_one(&mut self, optime: OpTime, entry: &[u8]) -> Result<(), SpoolError> {
        if entry.len() > ENTRY_BYTES_MAX {
            return Err(SpoolError::TooLarge { ts: optime.ts, bytes: entry.len() });
        }
        if let Some(end) = self.end.filter(|end| optime.ts <= end.ts) {
            return Err(SpoolError::OutOfOrder { given: optime.ts, end: end.ts });
        }
        // Before the entry is taken, so that one refused for want of space is not half taken.
        if self.buffer.len() >= self.limits.buffer_bytes_max {
            self.flush()?;
        }
        let frame_bytes = (FRAME_HEADER_BYTES + entry.len()) as u64;
        let length = |active: &Active, buffer: &[u8]| active.written + buffer.len() as u64;
        let is_full = self.active.as_ref().is_some_and(|active| {
            length(active, &self.buffer) + frame_bytes > self.limits.segment_bytes_max
        });
        if is_full {
            // The next header tells how this segment ended, so all of it has to be durable before.
            self.sync()?;
            self.active = None;
        }
        if self.active.is_none() {
            self.active = Some(self.begin_segment(optime)?);
        }
        if let Some(active) = &self.active {
            let offset = length(active, &self.buffer);
            let place = Place { segment: active.first.ts, offset };
            push_frame(&mut self.buffer, place, optime, active.durable, entry);
            self.end = Some(optime);
        }
        Ok(())
    }

    /// Makes the file of a segment that begins with this entry, header and name durable.
    fn begin_segment(&self, first: OpTime) -> Result<Active, SpoolError> {
        let previous = self.position.lock().list.back().map(|segment| Previous {
            first: segment.first.ts,
            bytes: segment.bytes,
            last: segment.last,
        });
        let path = segment_path(&self.dir, first.ts);
        write_atomic(&path, &SegmentHeader { first, previous }.encode())?;
        let file = open_options()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(DiskError::at("open", &path))?;
        let (written, durable) = (SEGMENT_HEADER_BYTES, SEGMENT_HEADER_BYTES);
        Ok(Active { path, file, first, written, durable })
    }

    /// Moves the buffer into the file. On an error it is still in the buffer, and the next attempt writes it to the
    /// same place.
    fn flush(&mut self) -> Result<(), SpoolError> {
        let Some(active) = &mut self.active else { return Ok(()) };
        if self.buffer.is_empty() {
            return Ok(());
        }
        if let Err(error) = active.file.write_all_at(&self.buffer, active.written) {
            // Gives back the space of the part that was written. Should this fail: that part is overwritten by the
            // next attempt, or cut off by recovery.
            if let Err(error) = active.file.set_len(active.written) {
                tracing::warn!(path = %active.path.display(), %error, "cannot take back half a write");
            }
            return Err(DiskError::at("write", &active.path)(error).into());
        }
        active.written += self.buffer.len() as u64;
        self.buffer.clear();
        // A single large entry must not keep its memory for ever.
        self.buffer.shrink_to(self.limits.buffer_bytes_max.saturating_mul(2));
        Ok(())
    }

    /// Forgets everything that is not durable, after a sync that failed: a second sync would succeed without having
    /// written what the first one lost.
    fn take_back(&mut self) {
        self.buffer.clear();
        self.end = self.position.durable_end();
        let Some(mut active) = self.active.take() else { return };
        let taken_back = if active.has_durable_entries() {
            active.written = active.durable;
            active.file.set_len(active.durable).inspect(|()| self.active = Some(active))
        } else {
            // Its name is that of an entry it no longer has.
            std::fs::remove_file(&active.path)
        };
        if let Err(error) = taken_back {
            tracing::error!(dir = %self.dir.display(), %error, "cannot take back a write that failed to sync");
            self.is_broken = true;
        }
    }

    fn refuse_if_broken(&self) -> Result<(), SpoolError> {
        if self.is_broken { Err(SpoolError::Broken) } else { Ok(()) }
    }
}

/// Removes a segment; one that is gone already (an earlier attempt that failed later) will do.
fn remove_segment(path: &Path) -> Result<(), SpoolError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(DiskError::at("remove", path)(error).into())
        }
        _ => Ok(()),
    }
}

/// What the model needs to play a power cut.
#[cfg(test)]
impl SpoolWriter {
    /// The segment being written and how much of it is durable.
    pub(super) fn active_durable(&self) -> Option<(PathBuf, u64)> {
        self.active.as_ref().map(|active| (active.path.clone(), active.durable))
    }

    /// Bytes that are in memory only.
    pub(super) fn buffered_bytes(&self) -> u64 {
        self.buffer.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1024;

    fn at(i: u32) -> OpTime {
        OpTime::new(Ts::new(5, i), 2)
    }

    fn entry(i: u32, length: usize) -> Vec<u8> {
        i.to_le_bytes().into_iter().cycle().take(length).collect()
    }

    fn small_limits() -> SpoolLimits {
        SpoolLimits { max_bytes: 64 * KIB, segment_bytes_max: 2 * KIB, buffer_bytes_max: 300 }
    }

    fn open(dir: &tempfile::TempDir) -> SpoolWriter {
        SpoolWriter::open(dir.path(), small_limits()).unwrap().0
    }

    fn append(writer: &mut SpoolWriter, i: u32, length: usize) -> Result<(), SpoolError> {
        writer.append([(at(i), &entry(i, length)[..])])
    }

    /// Everything readable after `after`, as ordinals.
    fn read(writer: &SpoolWriter, after: u32) -> Vec<u32> {
        let mut reader = writer.reader(at(after).ts);
        let mut read = Vec::new();
        loop {
            let batch = reader.read_batch(1000).unwrap();
            if batch.is_empty() {
                return read;
            }
            for (optime, bytes) in batch.iter() {
                assert_eq!(bytes, entry(optime.ts.i, bytes.len()));
                read.push(optime.ts.i);
            }
        }
    }

    /// Sum of the segment files, from the directory itself.
    fn bytes_on_disk(dir: &tempfile::TempDir) -> u64 {
        std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum()
    }

    #[test]
    fn refuses_what_is_not_after_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = open(&dir);
        append(&mut writer, 5, 10).unwrap();
        for i in [5, 4] {
            let error = append(&mut writer, i, 10).unwrap_err();
            assert!(matches!(error, SpoolError::OutOfOrder { .. }), "{error}");
        }
        writer.sync().unwrap();
        let mut writer = open(&dir);
        assert!(append(&mut writer, 5, 10).is_err());
        // Also once all of it was discarded.
        writer.discard_through(at(9).ts).unwrap();
        assert!(append(&mut writer, 5, 10).is_err());
        append(&mut writer, 6, 10).unwrap();
    }

    #[test]
    fn entries_before_a_failing_one_are_taken() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = open(&dir);
        let error = writer.append([(at(1), &b"a"[..]), (at(1), b"b"), (at(2), b"c")]).unwrap_err();
        assert!(matches!(error, SpoolError::OutOfOrder { .. }), "{error}");
        assert_eq!(writer.end(), Some(at(1)));
        let error = append(&mut writer, 2, ENTRY_BYTES_MAX + 1).unwrap_err();
        assert!(matches!(error, SpoolError::TooLarge { .. }), "{error}");
        assert_eq!(writer.end(), Some(at(1)));
    }

    #[test]
    fn an_entry_longer_than_a_segment_passes() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = open(&dir);
        append(&mut writer, 1, 10).unwrap();
        append(&mut writer, 2, 1 << 20).unwrap();
        append(&mut writer, 3, 10).unwrap();
        writer.sync().unwrap();
        assert!(writer.buffer.capacity() < 1000);
        assert_eq!(read(&open(&dir), 0), [1, 2, 3]);
    }

    #[test]
    fn a_full_disk_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = open(&dir);
        append(&mut writer, 1, 100).unwrap();
        writer.sync().unwrap();
        let full = std::fs::OpenOptions::new().read(true).write(true).open("/dev/full").unwrap();
        let file = std::mem::replace(&mut writer.active.as_mut().unwrap().file, full);

        let mut i = 2;
        let error = loop {
            match append(&mut writer, i, 100) {
                Ok(()) => i += 1,
                Err(error) => break error,
            }
        };
        assert!(matches!(error, SpoolError::Full(_)), "{error}");
        assert_eq!(writer.end(), Some(at(i - 1)));
        assert!(matches!(writer.sync(), Err(SpoolError::Full(_))));
        assert_eq!(writer.durable_end(), Some(at(1)));

        writer.active.as_mut().unwrap().file = file;
        append(&mut writer, i, 100).unwrap();
        writer.sync().unwrap();
        assert_eq!(read(&open(&dir), 0), (1..=i).collect::<Vec<_>>());
    }

    #[test]
    fn a_failed_sync_takes_back_what_was_not_durable() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = open(&dir);
        append(&mut writer, 1, 100).unwrap();
        append(&mut writer, 2, 400).unwrap();
        append(&mut writer, 3, 100).unwrap();
        assert!(bytes_on_disk(&dir) > SEGMENT_HEADER_BYTES);
        writer.take_back();
        assert_eq!((writer.end(), writer.durable_end()), (None, None));
        assert_eq!(bytes_on_disk(&dir), 0);

        append(&mut writer, 1, 100).unwrap();
        writer.sync().unwrap();
        append(&mut writer, 2, 400).unwrap();
        append(&mut writer, 3, 400).unwrap();
        writer.take_back();
        assert_eq!(writer.end(), Some(at(1)));
        assert_eq!(writer.bytes(), bytes_on_disk(&dir));
        append(&mut writer, 2, 10).unwrap();
        writer.sync().unwrap();
        assert_eq!(read(&open(&dir), 0), [1, 2]);
    }

    #[test]
    fn a_sync_that_cannot_be_taken_back_breaks_the_writer() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = open(&dir);
        append(&mut writer, 1, 100).unwrap();
        writer.sync().unwrap();
        append(&mut writer, 2, 100).unwrap();
        // Takes every write, but neither a sync nor a cut.
        let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null").unwrap();
        writer.active.as_mut().unwrap().file = null;
        assert!(matches!(writer.sync(), Err(SpoolError::Disk(_))));
        assert_eq!(writer.end(), Some(at(1)));
        assert!(matches!(append(&mut writer, 2, 100), Err(SpoolError::Broken)));
        assert!(matches!(writer.sync(), Err(SpoolError::Broken)));
        assert_eq!(read(&open(&dir), 0), [1]);
    }

    #[test]
    fn has_room_up_to_the_limit_and_always_when_empty() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = open(&dir);
        assert!(writer.has_room(u64::MAX));
        append(&mut writer, 1, 100).unwrap();
        let bytes = SEGMENT_HEADER_BYTES + FRAME_HEADER_BYTES as u64 + 100;
        assert_eq!(writer.bytes(), bytes);
        assert!(writer.has_room(64 * KIB - bytes));
        assert!(!writer.has_room(64 * KIB - bytes + 1));
        writer.sync().unwrap();
        assert_eq!(writer.bytes(), bytes);
        writer.discard_through(at(1).ts).unwrap();
        assert!(writer.has_room(u64::MAX));
    }

    #[test]
    fn discards_whole_segments_and_nothing_that_is_not_durable() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = open(&dir);
        for i in 1..=30 {
            append(&mut writer, i, 400).unwrap();
        }
        writer.sync().unwrap();
        writer.discard_through(at(6).ts).unwrap();
        // Four entries a segment: the second one still has 7 and 8.
        assert_eq!(writer.position().range().map(|range| range.first), Some(at(5)));
        append(&mut writer, 31, 400).unwrap();
        writer.discard_through(at(99).ts).unwrap();
        writer.sync().unwrap();
        assert_eq!(writer.position().range(), Some(Range { first: at(29), last: at(31) }));
        writer.discard_through(at(99).ts).unwrap();
        assert_eq!((writer.bytes(), bytes_on_disk(&dir)), (0, 0));
        assert_eq!(writer.durable_end(), Some(at(31)));
    }

    #[test]
    fn remove_all_begins_anew() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = open(&dir);
        for i in 10..30 {
            append(&mut writer, i, 400).unwrap();
        }
        writer.remove_all().unwrap();
        assert_eq!((writer.bytes(), bytes_on_disk(&dir)), (0, 0));
        assert_eq!((writer.end(), writer.durable_end()), (None, None));
        append(&mut writer, 1, 400).unwrap();
        writer.sync().unwrap();
        assert_eq!(read(&open(&dir), 0), [1]);
    }
}
