//! A small value that is rewritten often, at the cost of one write and one sync, and without new space on the disk.
//!
//! The file holds two areas. A value of sequence number n goes into area n mod 2, so that the value before it is
//! untouched until the new one is durable: a write torn by a power cut loses at most the value being written.
//!
//! An area: magic (8 bytes), format (u32), crc32c of the format and the used bytes after it (u32), sequence number
//! (u64), length of the body (u32), JSON body, zeros; numbers are little-endian. Magic, format and checksum stay where
//! they are in every format to come.

use std::fs::File;
use std::marker::PhantomData;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::{Buf, BufMut};
use serde::{Serialize, de::DeserializeOwned};

use super::{StateError, from_json, to_json};
use crate::durable::{DiskError, open_options, write_atomic};

const MAGIC: [u8; 8] = *b"SNAPSLOT";
const FORMAT: u32 = 1;
const HEADER_BYTES: usize = 28;
/// Where the checked bytes begin: after magic, format and checksum.
const CHECKED_FROM: usize = 16;
/// One page, so that writing one area never touches a disk block of the other.
const AREA_BYTES: usize = 4096;
const MEND: &str = "restore it from a backup, or remove the state directory and copy anew";

/// The longest JSON text that fits into a [`Slot`], in bytes.
pub const SLOT_BODY_BYTES_MAX: usize = AREA_BYTES - HEADER_BYTES;

/// A file that always holds the value last written, or the one before it if the last write did not finish.
#[derive(Debug)]
pub struct Slot<T> {
    path: PathBuf,
    file: File,
    sequence: u64,
    value: PhantomData<T>,
}

impl<T: Serialize + DeserializeOwned> Slot<T> {
    /// Opens the file, making it if it is missing, and reads its value; `None` if none was ever written. What is
    /// returned is durable, even if the last run was killed before it could sync.
    ///
    /// One damaged area is a write that did not finish: the value before it is returned, and a warning logged. Both
    /// damaged is an error.
    pub fn open(path: &Path) -> Result<(Self, Option<T>), StateError> {
        if !path.try_exists().map_err(DiskError::at("look for", path))? {
            write_atomic(path, &[encode(0, b""), vec![0; AREA_BYTES]].concat())?;
        }
        let file = open_options()
            .read(true)
            .write(true)
            .open(path)
            .map_err(DiskError::at("open", path))?;
        let mut bytes = vec![0; 2 * AREA_BYTES];
        read_up_to(&file, &mut bytes).map_err(DiskError::at("read", path))?;
        // A file cut short gets its full size back here rather than in the middle of a write.
        file.set_len(2 * AREA_BYTES as u64).map_err(DiskError::at("resize", path))?;
        file.sync_all().map_err(DiskError::at("sync", path))?;

        let newest = newest(path, &bytes)?;
        let value = match newest.body {
            [] => None,
            body => Some(from_json(path, body)?),
        };
        let slot =
            Self { path: path.to_owned(), file, sequence: newest.sequence, value: PhantomData };
        Ok((slot, value))
    }

    /// Replaces the value; on return it is durable. After an error the value on disk is this one or the one before it,
    /// and writing again is safe.
    pub fn write(&mut self, value: &T) -> Result<(), StateError> {
        let body = to_json(&self.path, value)?;
        if body.len() > SLOT_BODY_BYTES_MAX {
            return Err(StateError::TooLarge {
                path: self.path.clone(),
                bytes: body.len(),
                max: SLOT_BODY_BYTES_MAX,
            });
        }
        let sequence = self.sequence + 1;
        self.file
            .write_all_at(&encode(sequence, &body), area_offset(sequence))
            .map_err(DiskError::at("write", &self.path))?;
        self.file.sync_data().map_err(DiskError::at("sync", &self.path))?;
        // Only now: a write that failed is repeated into the same area, away from the value that is still good.
        self.sequence = sequence;
        Ok(())
    }
}

/// A sound area. The body is empty in a slot that was never written; no JSON text is.
struct Area<'a> {
    format: u32,
    sequence: u64,
    body: &'a [u8],
}

fn area_offset(sequence: u64) -> u64 {
    (sequence % 2) * AREA_BYTES as u64
}

fn encode(sequence: u64, body: &[u8]) -> Vec<u8> {
    let mut checked = Vec::with_capacity(AREA_BYTES);
    checked.put_u64_le(sequence);
    // The length was checked against an area's size, far below 4 GiB.
    checked.put_u32_le(u32::try_from(body.len()).unwrap_or(u32::MAX));
    checked.put_slice(body);

    let mut area = Vec::with_capacity(AREA_BYTES);
    area.put_slice(&MAGIC);
    area.put_u32_le(FORMAT);
    area.put_u32_le(checksum(FORMAT, &checked));
    area.put_slice(&checked);
    area.resize(AREA_BYTES, 0);
    area
}

fn decode(index: u64, area: &[u8]) -> Option<Area<'_>> {
    let (mut header, rest) = area.split_at_checked(HEADER_BYTES)?;
    if !header.starts_with(&MAGIC) {
        return None;
    }
    header.advance(MAGIC.len());
    let format = header.get_u32_le();
    let crc = header.get_u32_le();
    let sequence = header.get_u64_le();
    let body = rest.get(..usize::try_from(header.get_u32_le()).ok()?)?;
    let checked = area.get(CHECKED_FROM..HEADER_BYTES + body.len())?;
    (crc == checksum(format, checked) && sequence % 2 == index).then_some(Area {
        format,
        sequence,
        body,
    })
}

fn checksum(format: u32, checked: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&format.to_le_bytes()), checked)
}

/// The sound area with the highest sequence number.
fn newest<'a>(path: &Path, bytes: &'a [u8]) -> Result<Area<'a>, StateError> {
    let mut newest: Option<Area<'a>> = None;
    for (index, area) in (0..).zip(bytes.chunks_exact(AREA_BYTES)) {
        match decode(index, area) {
            Some(area) if newest.as_ref().is_none_or(|other| other.sequence < area.sequence) => {
                newest = Some(area);
            }
            Some(_) => {}
            // All zeros: not written yet.
            None if area.iter().all(|byte| *byte == 0) => {}
            None => tracing::warn!(
                path = %path.display(),
                "one of the two copies in a state file is damaged, as after a power cut; using the other"
            ),
        }
    }
    let path = path.to_owned();
    match newest {
        None => {
            Err(StateError::Damaged { path, why: "neither of its two copies is sound", mend: MEND })
        }
        // Checked after the sequence number: the older copy must not win because it is the one that can be read.
        Some(area) if area.format != FORMAT => {
            Err(StateError::Format { path, found: area.format, known: FORMAT })
        }
        Some(area) => Ok(area),
    }
}

/// Fills as much of `bytes` as the file has.
fn read_up_to(file: &File, bytes: &mut [u8]) -> std::io::Result<()> {
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read_at(&mut bytes[filled..], filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs;

    /// A slot file in which `writes` values (texts of differing lengths) were written.
    fn written(dir: &tempfile::TempDir, writes: usize) -> PathBuf {
        let path = dir.path().join("position");
        let (mut slot, none) = Slot::<String>::open(&path).unwrap();
        assert_eq!(none, None);
        for n in 1..=writes {
            slot.write(&value(n)).unwrap();
        }
        path
    }

    fn value(n: usize) -> String {
        n.to_string().repeat(1 + (n * 711) % 2000)
    }

    /// What is read after `n` writes: nothing before the first.
    fn expected(n: usize) -> Option<String> {
        (n > 0).then(|| value(n))
    }

    fn read(path: &Path) -> Option<String> {
        Slot::open(path).unwrap().1
    }

    /// Where the area of the nth write lies.
    fn area(n: usize) -> std::ops::Range<usize> {
        let start = usize::try_from(area_offset(n as u64)).unwrap();
        start..start + AREA_BYTES
    }

    #[test]
    fn reads_the_last_value_and_goes_on_from_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = written(&dir, 0);
        assert_eq!(read(&path), None);
        for n in 1..6 {
            Slot::open(&path).unwrap().0.write(&value(n)).unwrap();
            assert_eq!(read(&path), Some(value(n)));
            assert_eq!(fs::metadata(&path).unwrap().len(), 2 * AREA_BYTES as u64);
        }
    }

    #[test]
    fn refuses_a_value_that_is_too_large_and_keeps_the_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("position");
        let (mut slot, _) = Slot::open(&path).unwrap();
        // Two bytes are the quotation marks.
        let largest = "x".repeat(SLOT_BODY_BYTES_MAX - 2);
        slot.write(&largest).unwrap();
        let error = slot.write(&format!("{largest}x")).unwrap_err();
        assert!(matches!(error, StateError::TooLarge { .. }), "{error}");
        assert_eq!(read(&path), Some(largest));
    }

    #[test]
    fn both_damaged_is_an_error_that_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("position");
        for bytes in [vec![], vec![0; 2 * AREA_BYTES], vec![7; 2 * AREA_BYTES]] {
            fs::write(&path, bytes).unwrap();
            let error = Slot::<String>::open(&path).unwrap_err();
            assert!(matches!(error, StateError::Damaged { .. }), "{error}");
            assert!(error.to_string().contains("position"), "{error}");
        }
    }

    #[test]
    fn a_newer_format_is_not_passed_over_for_an_older_value() {
        let dir = tempfile::tempdir().unwrap();
        let path = written(&dir, 3);
        let mut bytes = fs::read(&path).unwrap();
        let area = &mut bytes[area(3)];
        let body_end = HEADER_BYTES + value(3).len() + 2;
        area[8..12].copy_from_slice(&2u32.to_le_bytes());
        let crc = checksum(2, &area[CHECKED_FROM..body_end]);
        area[12..16].copy_from_slice(&crc.to_le_bytes());
        fs::write(&path, bytes).unwrap();
        let error = Slot::<String>::open(&path).unwrap_err();
        assert!(matches!(error, StateError::Format { found: 2, .. }), "{error}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        /// Any damage to the area last written gives the value before it, and the slot can be written again.
        #[test]
        fn damage_to_the_last_area_gives_the_value_before(
            writes in 1usize..6, from: prop::sample::Index, length in 1usize..AREA_BYTES, bits in 1u8..
        ) {
            let dir = tempfile::tempdir().unwrap();
            let path = written(&dir, writes);
            let mut bytes = fs::read(&path).unwrap();
            let used = HEADER_BYTES + serde_json::to_vec(&value(writes)).unwrap().len();
            let area = &mut bytes[area(writes)][..used];
            let from = from.index(used);
            let to = (from + length).min(used);
            area[from..to].iter_mut().for_each(|byte| *byte ^= bits);
            fs::write(&path, bytes).unwrap();
            prop_assert_eq!(read(&path), expected(writes - 1));
            Slot::open(&path).unwrap().0.write(&"mended".to_owned()).unwrap();
            prop_assert_eq!(read(&path), Some("mended".to_owned()));
        }

        /// A power cut while writing: of the area's disk sectors any may be the new ones, the others the old ones.
        #[test]
        fn a_torn_write_gives_the_old_value_or_the_new(writes in 1usize..6, sectors: [bool; 8]) {
            const SECTOR: usize = AREA_BYTES / 8;
            let dir = tempfile::tempdir().unwrap();
            let path = written(&dir, writes - 1);
            let before = fs::read(&path).unwrap();
            Slot::open(&path).unwrap().0.write(&value(writes)).unwrap();
            let mut bytes = fs::read(&path).unwrap();
            for (n, is_new) in sectors.into_iter().enumerate() {
                let start = area(writes).start + n * SECTOR;
                if !is_new {
                    bytes[start..start + SECTOR].copy_from_slice(&before[start..start + SECTOR]);
                }
            }
            // Sectors beyond the value may well be stale.
            let used = HEADER_BYTES + serde_json::to_vec(&value(writes)).unwrap().len();
            let used = area(writes).start..area(writes).start + used;
            let is_whole = bytes[used.clone()] == fs::read(&path).unwrap()[used];
            fs::write(&path, bytes).unwrap();
            prop_assert_eq!(read(&path), expected(if is_whole { writes } else { writes - 1 }));
        }

        /// A file cut short in its second area, where odd values lie, gives the value before.
        #[test]
        fn a_cut_file_gives_the_value_before(writes in 0usize..3, cut in 0usize..HEADER_BYTES + 2) {
            let writes = writes * 2 + 1;
            let dir = tempfile::tempdir().unwrap();
            let path = written(&dir, writes);
            let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
            file.set_len((AREA_BYTES + cut) as u64).unwrap();
            prop_assert_eq!(read(&path), expected(writes - 1));
            prop_assert_eq!(fs::metadata(&path).unwrap().len(), 2 * AREA_BYTES as u64);
        }
    }
}
