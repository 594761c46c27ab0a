//! Files that survive a kill, a power cut and a full disk: the one place that renames files or writes them whole.
//!
//! A file is durable once its bytes *and* its name are: the file is synced, then the directory that names it.

use std::ffi::OsString;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Ending of a file being written; one left by a crash is overwritten by the next write of the same file.
pub const TEMPORARY_SUFFIX: &str = ".tmp";

/// Mode of files: they may hold documents, so nobody else reads them.
const FILE_MODE: u32 = 0o600;

/// Mode of directories: the group may pass, because the control socket may lie in the state directory.
const DIRECTORY_MODE: u32 = 0o750;

/// A file operation that failed, with its place.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}", .path.display())]
pub struct DiskError {
    action: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl DiskError {
    /// For `map_err`: the error of `action` (a verb, such as "open") on `path`.
    pub fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self { action, path, source }
    }

    /// Whether space is what is missing (disk or quota), so that the same call may succeed later.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self.source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }
}

/// Replaces the file by `bytes`: after any crash it holds either all the old bytes or all the new ones. An error leaves
/// the old ones, but for one from the last step (syncing the directory), after which it may be either.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), DiskError> {
    let temporary = temporary_path(path);
    let written = write_synced(&temporary, bytes).and_then(|()| rename(&temporary, path));
    if let Err(error) = written {
        // Gives back the space of half a file; should that fail too, the next write takes the same name.
        if let Err(source) = std::fs::remove_file(&temporary)
            && source.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %temporary.display(), error = %source, "cannot remove a temporary file");
        }
        return Err(error);
    }
    sync_dir(parent(path))
}

/// Makes the directory and those above it that are missing, so that all of them survive a power cut.
pub fn create_dir_all_durable(path: &Path) -> Result<(), DiskError> {
    let existed = path.is_dir();
    if !existed {
        let above = parent(path);
        if above != path {
            create_dir_all_durable(above)?;
        }
        match DirBuilder::new().mode(DIRECTORY_MODE).create(path) {
            Err(source) if source.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
            made => made.map_err(DiskError::at("create directory", path))?,
        }
    }
    match sync_dir(parent(path)) {
        // Directories above ours that we may not open were not made by us. One that was made by us just before a kill
        // is not durable yet, so that one found in place is synced all the same.
        Err(error) if existed && error.source.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        synced => synced,
    }
}

/// Makes the names in a directory durable: needed after a file in it was created, renamed or removed.
pub fn sync_dir(path: &Path) -> Result<(), DiskError> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(DiskError::at("sync directory", path))
}

/// Removes a file; nothing if there is none. Durable only once its directory is synced.
pub fn remove_if_there(path: &Path) -> Result<(), DiskError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(DiskError::at("remove", path)(error))
        }
        _ => Ok(()),
    }
}

/// The directory of a path; the current one for a bare name.
pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) => Path::new("."),
        None => path,
    }
}

/// How this program opens files it creates: readable by nobody else.
pub(crate) fn open_options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(FILE_MODE);
    options
}

fn temporary_path(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(TEMPORARY_SUFFIX);
    PathBuf::from(name)
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), DiskError> {
    let mut file = open_options()
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
        .map_err(DiskError::at("create", path))?;
    file.write_all(bytes).map_err(DiskError::at("write", path))?;
    file.sync_all().map_err(DiskError::at("sync", path))
}

#[expect(
    clippy::disallowed_methods,
    reason = "the one place that renames: both syncs are around it"
)]
fn rename(from: &Path, to: &Path) -> Result<(), DiskError> {
    std::fs::rename(from, to).map_err(DiskError::at("rename a temporary file to", to))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn replaces_the_file_and_leaves_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        write_atomic(&path, b"a long first text").unwrap();
        write_atomic(&path, b"second").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, FILE_MODE);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn overwrites_what_a_crash_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(temporary_path(&path), b"half of something much longer").unwrap();
        write_atomic(&path, b"whole").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"whole");
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_temporary() {
        let dir = tempfile::tempdir().unwrap();
        // A directory that is not empty cannot be replaced by a file, so the rename fails.
        let path = dir.path().join("taken");
        fs::create_dir_all(path.join("inside")).unwrap();
        let error = write_atomic(&path, b"new").unwrap_err();
        assert!(error.to_string().contains("taken"), "{error}");
        assert!(path.join("inside").is_dir());
        assert!(!temporary_path(&path).exists());
    }

    #[test]
    fn a_full_disk_is_told_apart() {
        let path = Path::new("/dev/full");
        let full = open_options().write(true).open(path).and_then(|mut file| file.write_all(b"x"));
        assert!(full.map_err(DiskError::at("write", path)).unwrap_err().is_full());
        let absent = sync_dir(Path::new("/nowhere/at/all")).unwrap_err();
        assert!(!absent.is_full());
    }

    #[test]
    fn makes_missing_directories_and_accepts_present_ones() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/c");
        create_dir_all_durable(&path).unwrap();
        create_dir_all_durable(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, DIRECTORY_MODE);
        fs::write(path.join("file"), b"").unwrap();
        assert!(create_dir_all_durable(&path.join("file")).is_err());
    }
}
