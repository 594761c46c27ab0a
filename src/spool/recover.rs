//! What a spool directory holds after a crash: what is sound, what is to be cut off, and what must not be.

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::format::{
    BadHeader, FRAME_MAGIC, Parsed, Place, Previous, SEGMENT_HEADER_BYTES, SegmentHeader,
    parse_frame,
};
use super::segment::{NoFrame, SegmentFile};
use super::{SEGMENT_SUFFIX, Segment, SpoolError, parse_segment_name, segment_path};
use crate::durable::{DiskError, TEMPORARY_SUFFIX, open_options, sync_dir};
use crate::position::{OpTime, Ts};

/// Bytes read at a time while looking through a segment.
const SCAN_BYTES: usize = 1024 * 1024;

/// A sound spool, all of it durable.
#[derive(Debug, Default)]
pub(super) struct Recovered {
    pub(super) segments: VecDeque<Segment>,
    /// The last of the segments, open to be appended to.
    pub(super) last: Option<(PathBuf, File)>,
}

/// A segment file as it lies there.
#[derive(Debug)]
struct Found {
    path: PathBuf,
    header: SegmentHeader,
    bytes: u64,
    /// Its last entry, once a later segment has told.
    last: Option<OpTime>,
}

/// Reads the directory, cuts off what a crash left unfinished, and makes the rest durable.
pub(super) fn recover(dir: &Path) -> Result<Recovered, SpoolError> {
    let mut found = find(dir)?;
    remove_discarded(&mut found)?;
    let mut empty = Vec::new();
    let mut kept = link(found, &mut empty)?;
    let mut recovered = Recovered::default();
    if let Some(last) = kept.pop() {
        recovered.segments = kept.iter().filter_map(Found::segment).collect();
        let file = open_options()
            .read(true)
            .write(true)
            .open(&last.path)
            .map_err(DiskError::at("open", &last.path))?;
        if let Some(segment) = mend(&last, &file)? {
            recovered.segments.push_back(segment);
            recovered.last = Some((last.path, file));
        } else {
            empty.push(last);
        }
    }
    for segment in empty {
        remove(&segment.path)?;
    }
    sync_dir(dir)?;
    Ok(recovered)
}

impl Found {
    fn segment(&self) -> Option<Segment> {
        Some(Segment { first: self.header.first, last: self.last?, bytes: self.bytes })
    }

    fn damaged(&self, offset: u64, why: &'static str) -> SpoolError {
        SpoolError::Damaged { path: self.path.clone(), offset, why }
    }
}

/// The segment files in order. Temporary ones never got their name, so nothing was ever written behind their headers.
fn find(dir: &Path) -> Result<Vec<Found>, SpoolError> {
    let mut firsts = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(DiskError::at("list", dir))? {
        let entry = entry.map_err(DiskError::at("list", dir))?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if let Some(first) = parse_segment_name(name) {
            firsts.push(first);
        } else if name.strip_suffix(TEMPORARY_SUFFIX).is_some_and(|n| n.ends_with(SEGMENT_SUFFIX)) {
            remove(&entry.path())?;
        }
    }
    firsts.sort_unstable();
    firsts.into_iter().map(|first| read_header(segment_path(dir, first), first)).collect()
}

fn read_header(path: PathBuf, first: Ts) -> Result<Found, SpoolError> {
    let file = File::open(&path).map_err(DiskError::at("open", &path))?;
    let bytes = file.metadata().map_err(DiskError::at("read", &path))?.len();
    let mut header = vec![0; usize::try_from(bytes.min(SEGMENT_HEADER_BYTES)).unwrap_or(0)];
    file.read_exact_at(&mut header, 0).map_err(DiskError::at("read", &path))?;
    match SegmentHeader::decode(&header) {
        Ok(header) if header.first.ts == first => Ok(Found { path, header, bytes, last: None }),
        Ok(_) => Err(SpoolError::Damaged { path, offset: 0, why: "its header has another name" }),
        Err(BadHeader::Damaged(why)) => Err(SpoolError::Damaged { path, offset: 0, why }),
        Err(BadHeader::Format(found)) => Err(SpoolError::Format { path, found }),
    }
}

/// A segment that began an empty spool tells that those before it were discarded; a power cut brought them back.
fn remove_discarded(found: &mut Vec<Found>) -> Result<(), SpoolError> {
    let start = found.iter().rposition(|segment| segment.header.previous.is_none()).unwrap_or(0);
    for segment in found.drain(..start) {
        remove(&segment.path)?;
    }
    Ok(())
}

/// Checks that each segment goes on where the one before it ended, and moves those without entries to `empty`: they
/// were made just before a crash, or before a write that failed.
fn link(found: Vec<Found>, empty: &mut Vec<Found>) -> Result<Vec<Found>, SpoolError> {
    let mut kept: Vec<Found> = Vec::new();
    for segment in found {
        if let Some(before) = kept.last_mut() {
            before.last = Some(check_link(before, &segment)?);
        }
        if segment.bytes > SEGMENT_HEADER_BYTES {
            kept.push(segment);
        } else {
            empty.push(segment);
        }
    }
    Ok(kept)
}

/// The last entry of `before`, as the segment after it tells.
fn check_link(before: &Found, after: &Found) -> Result<OpTime, SpoolError> {
    // Segments after one that began an empty spool always name the one before them.
    let Some(Previous { first, bytes, last }) = after.header.previous else {
        return Err(after.damaged(0, "it does not name the segment before it"));
    };
    if first != before.header.first.ts {
        return Err(after.damaged(0, "the segment before it is missing"));
    }
    if bytes != before.bytes {
        let why = "its length is not the one that the next segment recorded";
        return Err(before.damaged(bytes.min(before.bytes), why));
    }
    if last < before.header.first || last.ts >= after.header.first.ts {
        return Err(
            after.damaged(0, "its timestamps do not come after those of the segment before")
        );
    }
    Ok(last)
}

/// Finds the end of the last segment, cuts off what lies behind it, and makes it durable: what a killed process wrote
/// may be in memory only. `None` if no entry is left.
fn mend(found: &Found, file: &File) -> Result<Option<Segment>, SpoolError> {
    let segment = SegmentFile { path: &found.path, file, first: found.header.first.ts };
    let mut last: Option<OpTime> = None;
    let mut end = SEGMENT_HEADER_BYTES;
    while end < found.bytes {
        let chunk = match segment.read_chunk(end, found.bytes, SCAN_BYTES) {
            Ok(chunk) => chunk,
            Err(NoFrame::Bad(why)) => {
                // A segment that has one after it was durable to its end.
                if found.last.is_some() || was_durable(&segment, end, found.bytes)? {
                    return Err(found.damaged(end, why));
                }
                break;
            }
            Err(error) => return Err(error.into_error(&found.path, end)),
        };
        for (optime, _) in &chunk.frames {
            let in_order = match last {
                Some(last) => last.ts < optime.ts,
                None => *optime == found.header.first,
            };
            if !in_order {
                return Err(found.damaged(end, "its timestamps do not increase"));
            }
            last = Some(*optime);
        }
        end += chunk.bytes.len() as u64;
    }
    let Some(last) = last else { return Ok(None) };
    if end < found.bytes {
        tracing::warn!(
            path = %found.path.display(), bytes = found.bytes - end,
            "cut off the unfinished end of the spool, as after a kill or a power cut"
        );
        file.set_len(end).map_err(DiskError::at("cut", &found.path))?;
    }
    file.sync_all().map_err(DiskError::at("sync", &found.path))?;
    Ok(Some(Segment { first: found.header.first, last, bytes: end }))
}

/// Whether a sound frame behind the bad one at `bad` tells that the bad one had been durable. After a power cut sound
/// frames may well follow bad ones, as disks write in any order; but those were written after the last sync, and say
/// so.
fn was_durable(segment: &SegmentFile<'_>, bad: u64, end: u64) -> Result<bool, SpoolError> {
    let mut from = bad + 1;
    while from < end {
        let window =
            segment.read(from, end, SCAN_BYTES).map_err(|e| e.into_error(segment.path, from))?;
        for (at, magic) in (from..).zip(window.windows(FRAME_MAGIC.len())) {
            if magic == FRAME_MAGIC && durable_before(segment, at, end)?.is_some_and(|to| to > bad)
            {
                return Ok(true);
            }
        }
        // Overlaps, so that no magic is missed between two windows.
        from += (window.len().saturating_sub(FRAME_MAGIC.len() - 1)).max(1) as u64;
    }
    Ok(false)
}

/// What the frame at `offset` knew to be durable; `None` if it is none.
fn durable_before(
    segment: &SegmentFile<'_>,
    offset: u64,
    end: u64,
) -> Result<Option<u64>, SpoolError> {
    let chunk = match segment.read_chunk(offset, end, 0) {
        Ok(chunk) => chunk,
        Err(NoFrame::Bad(_)) => return Ok(None),
        Err(error) => return Err(error.into_error(segment.path, offset)),
    };
    match parse_frame(&chunk.bytes, Place { segment: segment.first, offset }) {
        Parsed::Frame { durable, .. } => Ok(Some(durable)),
        Parsed::Short(_) | Parsed::Bad(_) => Ok(None),
    }
}

fn remove(path: &Path) -> Result<(), SpoolError> {
    Ok(std::fs::remove_file(path).map_err(DiskError::at("remove", path))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::{Range, SpoolLimits, SpoolWriter};
    use std::fs;
    use std::os::unix::fs::FileExt;

    fn at(i: u32) -> OpTime {
        OpTime::new(Ts::new(1, i), 1)
    }

    const ENTRY: [u8; 100] = [7; 100];
    const FRAME: u64 = 136;

    fn open(dir: &Path) -> Result<(SpoolWriter, Option<Range>), SpoolError> {
        // Three frames a segment.
        SpoolWriter::open(dir, SpoolLimits { segment_bytes_max: 500, ..SpoolLimits::new(1 << 20) })
    }

    /// A spool of entries 1 to `n`, each synced.
    fn spool(n: u32) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let (mut writer, none) = open(dir.path()).unwrap();
        assert_eq!(none, None);
        for i in 1..=n {
            writer.append([(at(i), &ENTRY[..])]).unwrap();
            writer.sync().unwrap();
        }
        dir
    }

    fn segment(dir: &tempfile::TempDir, first: u32) -> PathBuf {
        segment_path(dir.path(), Ts::new(1, first))
    }

    fn cut(path: &Path, bytes: u64) {
        fs::OpenOptions::new().write(true).open(path).unwrap().set_len(bytes).unwrap();
    }

    fn damage(path: &Path, offset: u64) {
        let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).unwrap();
        file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
    }

    fn expect_damage(dir: &tempfile::TempDir, path: &Path, at: u64) {
        match open(dir.path()).unwrap_err() {
            SpoolError::Damaged { path: found, offset, .. } => {
                assert_eq!((found.as_path(), offset), (path, at));
            }
            error => panic!("{error}"),
        }
    }

    #[test]
    fn cuts_the_torn_end_of_the_last_segment() {
        for cut_at in 1..FRAME {
            let dir = spool(5);
            let path = segment(&dir, 4);
            cut(&path, SEGMENT_HEADER_BYTES + FRAME + cut_at);
            let (_, range) = open(dir.path()).unwrap();
            assert_eq!(range, Some(Range { first: at(1), last: at(4) }));
            assert_eq!(fs::metadata(&path).unwrap().len(), SEGMENT_HEADER_BYTES + FRAME);
        }
    }

    #[test]
    fn removes_a_last_segment_without_a_whole_entry() {
        for bytes in [SEGMENT_HEADER_BYTES, SEGMENT_HEADER_BYTES + 50] {
            let dir = spool(4);
            cut(&segment(&dir, 4), bytes);
            let (mut writer, range) = open(dir.path()).unwrap();
            assert_eq!(range, Some(Range { first: at(1), last: at(3) }));
            assert!(!segment(&dir, 4).exists());
            writer.append([(at(4), &ENTRY[..])]).unwrap();
            writer.sync().unwrap();
            assert_eq!(open(dir.path()).unwrap().1, Some(Range { first: at(1), last: at(4) }));
        }
    }

    #[test]
    fn damage_before_what_was_durable_is_an_error() {
        // Every byte of the first frame of the last segment; the frame after it tells that it was durable.
        for byte in 0..FRAME {
            let dir = spool(5);
            damage(&segment(&dir, 4), SEGMENT_HEADER_BYTES + byte);
            expect_damage(&dir, &segment(&dir, 4), SEGMENT_HEADER_BYTES);
        }
    }

    #[test]
    fn damage_in_what_was_never_synced_is_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let (mut writer, _) = open(dir.path()).unwrap();
        // One sync for all three: as if it had never come, but the disk had taken the third and not the second.
        writer.append((1..=3).map(|i| (at(i), &ENTRY[..]))).unwrap();
        writer.sync().unwrap();
        drop(writer);
        damage(&segment(&dir, 1), SEGMENT_HEADER_BYTES + FRAME + 60);
        assert_eq!(open(dir.path()).unwrap().1, Some(Range { first: at(1), last: at(1) }));
    }

    #[test]
    fn damage_of_a_header_is_an_error() {
        for first in [1, 4] {
            for byte in 0..SEGMENT_HEADER_BYTES {
                let dir = spool(5);
                damage(&segment(&dir, first), byte);
                let error = open(dir.path()).unwrap_err();
                let is_told = matches!(error, SpoolError::Damaged { offset: 0, .. });
                assert!(is_told || matches!(error, SpoolError::Format { .. }), "{error}");
            }
        }
    }

    #[test]
    fn an_earlier_segment_that_is_shorter_or_missing_is_an_error() {
        let dir = spool(9);
        cut(&segment(&dir, 4), SEGMENT_HEADER_BYTES + 2 * FRAME);
        expect_damage(&dir, &segment(&dir, 4), SEGMENT_HEADER_BYTES + 2 * FRAME);
        cut(&segment(&dir, 4), SEGMENT_HEADER_BYTES);
        expect_damage(&dir, &segment(&dir, 7), 0);
        fs::remove_file(segment(&dir, 4)).unwrap();
        expect_damage(&dir, &segment(&dir, 7), 0);
    }

    #[test]
    fn damage_in_a_segment_known_to_be_whole_is_an_error_even_when_it_is_the_last_with_entries() {
        let dir = spool(4);
        cut(&segment(&dir, 4), SEGMENT_HEADER_BYTES);
        damage(&segment(&dir, 1), SEGMENT_HEADER_BYTES + 2 * FRAME);
        expect_damage(&dir, &segment(&dir, 1), SEGMENT_HEADER_BYTES + 2 * FRAME);
    }

    #[test]
    fn segments_that_come_back_after_their_discard_are_removed() {
        let dir = spool(3);
        let old = fs::read(segment(&dir, 1)).unwrap();
        let (mut writer, _) = open(dir.path()).unwrap();
        writer.discard_through(Ts::new(1, 3)).unwrap();
        writer.append([(at(8), &ENTRY[..])]).unwrap();
        writer.sync().unwrap();
        drop(writer);
        fs::write(segment(&dir, 1), old).unwrap();
        assert_eq!(open(dir.path()).unwrap().1, Some(Range { first: at(8), last: at(8) }));
        assert!(!segment(&dir, 1).exists());
    }

    #[test]
    fn temporary_files_are_removed_and_others_left() {
        let dir = spool(1);
        let temporary = dir.path().join("00000000000000000001.seg.tmp");
        let other = dir.path().join("notes");
        fs::write(&temporary, b"").unwrap();
        fs::write(&other, b"").unwrap();
        open(dir.path()).unwrap();
        assert!(!temporary.exists() && other.exists());
    }
}
