//! Files for transactions that are too large for memory. Nothing in them has to survive: after a restart the oplog is
//! read from the first entry of the oldest open transaction.

use std::fs::{File, OpenOptions};
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bson::{RawDocument, RawDocumentBuf};

use super::space::free_space_limit;
use crate::durable::{self, DiskError};
use crate::oplog::overflow::{Overflow, OverflowError, Parts};

/// Longer than any part: servers write entries of 16 MiB and a little.
const PART_BYTES_MAX: usize = 64 * 1024 * 1024;

/// A directory for such files.
#[derive(Debug)]
pub struct OverflowDirectory {
    directory: PathBuf,
    room: Arc<Room>,
}

/// Bytes that all files may take, and do.
#[derive(Debug)]
struct Room {
    used: AtomicU64,
    max: u64,
}

impl OverflowDirectory {
    /// Empties the directory, or makes it. All files together take at most what the spool would.
    ///
    /// # Errors
    /// The disk.
    pub fn open(directory: &Path) -> Result<Self, DiskError> {
        durable::create_dir_all_durable(directory)?;
        // A kill may leave a file that had its name still.
        for entry in std::fs::read_dir(directory).map_err(DiskError::at("list", directory))? {
            let path = entry.map_err(DiskError::at("list", directory))?.path();
            remove(&path)?;
        }
        let room = Room { used: AtomicU64::new(0), max: free_space_limit(directory, 0)? };
        Ok(Self { directory: directory.to_owned(), room: Arc::new(room) })
    }
}

impl Overflow for OverflowDirectory {
    fn open(&self) -> Result<Box<dyn Parts>, OverflowError> {
        // Two replays may share a directory.
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = self.directory.join(format!("{number}.parts"));
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create_new(true).mode(0o600);
        let file = options.open(&path).map_err(DiskError::at("create", &path)).map_err(overflow)?;
        // It goes with its last handle, whatever ends this process.
        remove(&path).map_err(overflow)?;
        let stage = Stage::Writing(BufWriter::new(file));
        Ok(Box::new(PartsFile { stage, bytes: 0, path, room: self.room.clone() }))
    }
}

/// Takes a name away. Another replay that empties the directory may have been quicker.
fn remove(path: &Path) -> Result<(), DiskError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(DiskError::at("remove", path)),
    }
}

fn overflow(error: impl std::error::Error) -> OverflowError {
    let cause = error.source().map_or(String::new(), |source| format!(": {source}"));
    OverflowError { text: format!("{error}{cause}") }
}

/// A file with its share of the room. It has no name any more; the path is for messages.
#[derive(Debug)]
struct PartsFile {
    stage: Stage,
    bytes: u64,
    path: PathBuf,
    room: Arc<Room>,
}

impl Drop for PartsFile {
    fn drop(&mut self) {
        self.room.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Parts are written one after another, and then read.
#[derive(Debug)]
enum Stage {
    Writing(BufWriter<File>),
    Reading(BufReader<File>),
    /// An error came in between.
    Lost,
}

impl Parts for PartsFile {
    fn append(&mut self, part: &RawDocument) -> Result<(), OverflowError> {
        let bytes = part.as_bytes().len() as u64;
        let used = self.room.used.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.bytes += bytes;
        if used > self.room.max {
            let text = format!(
                "open transactions would take more than the {} bytes that are free for them",
                self.room.max
            );
            return Err(OverflowError { text });
        }
        let path = self.path.clone();
        let Stage::Writing(file) = &mut self.stage else { return Err(lost()) };
        file.write_all(part.as_bytes()).map_err(DiskError::at("write", &path)).map_err(overflow)
    }

    fn rewind(&mut self) -> Result<(), OverflowError> {
        let path = self.path.clone();
        let failed = |error| overflow(DiskError::at("read", &path)(error));
        let mut file = match std::mem::replace(&mut self.stage, Stage::Lost) {
            Stage::Writing(file) => {
                file.into_inner().map_err(|error| failed(error.into_error()))?
            }
            Stage::Reading(file) => file.into_inner(),
            Stage::Lost => return Err(lost()),
        };
        file.seek(SeekFrom::Start(0)).map_err(failed)?;
        self.stage = Stage::Reading(BufReader::new(file));
        Ok(())
    }

    fn next_part(&mut self) -> Result<Option<RawDocumentBuf>, OverflowError> {
        let path = self.path.clone();
        let failed = |error| overflow(DiskError::at("read", &path)(error));
        let Stage::Reading(file) = &mut self.stage else { return Err(lost()) };
        let mut prefix = [0; 4];
        // Between two parts the file may end, within one it may not.
        if file.read(&mut prefix[..1]).map_err(failed)? == 0 {
            return Ok(None);
        }
        file.read_exact(&mut prefix[1..]).map_err(failed)?;
        let length = usize::try_from(i32::from_le_bytes(prefix)).unwrap_or_default();
        if !(5..=PART_BYTES_MAX).contains(&length) {
            return Err(lost());
        }
        let mut bytes = vec![0; length];
        bytes[..4].copy_from_slice(&prefix);
        file.read_exact(&mut bytes[4..]).map_err(failed)?;
        RawDocumentBuf::from_bytes(bytes).map(Some).map_err(|_| lost())
    }
}

fn lost() -> OverflowError {
    OverflowError { text: "what was written to its file did not come back".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::rawdoc;

    #[test]
    fn gives_back_what_it_was_given_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("7.parts"), b"left by a kill").unwrap();
        let directory = OverflowDirectory::open(folder.path()).unwrap();
        let parts: Vec<_> =
            (0..50).map(|n| rawdoc! { "n": n, "pad": "x".repeat(n as usize * 997) }).collect();
        let (mut one, mut other) = (directory.open().unwrap(), directory.open().unwrap());
        for part in &parts {
            one.append(part).unwrap();
            other.append(&parts[0]).unwrap();
        }
        assert!(std::fs::read_dir(folder.path()).unwrap().next().is_none());
        for _ in 0..2 {
            one.rewind().unwrap();
            for part in &parts {
                assert_eq!(one.next_part(), Ok(Some(part.clone())));
            }
            assert_eq!(one.next_part(), Ok(None));
        }
        let used = || directory.room.used.load(Ordering::Relaxed);
        assert_ne!(used(), 0);
        drop((one, other));
        assert_eq!(used(), 0);
    }

    #[test]
    fn takes_no_more_than_there_is() {
        let folder = tempfile::tempdir().unwrap();
        let mut directory = OverflowDirectory::open(folder.path()).unwrap();
        directory.room = Arc::new(Room { used: AtomicU64::new(0), max: 100 });
        let mut parts = directory.open().unwrap();
        let part = rawdoc! { "pad": "x".repeat(60) };
        parts.append(&part).unwrap();
        let error = parts.append(&part).unwrap_err();
        assert!(error.to_string().contains("100 bytes"), "{error}");
    }
}
