//! One process a state directory.

use std::fs::{File, TryLockError};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::durable::{DiskError, open_options};

const FILE_NAME: &str = "lock";

/// The hold on a state directory; the kernel lets go of it when the value is dropped or the process dies, however it
/// dies, so that a lock is never left behind.
#[derive(Debug)]
pub struct StateLock {
    _file: File,
}

/// Why the state directory could not be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process has it (exit code 75).
    #[error(
        "state directory {} is in use by {}; stop that one or set another state.directory",
        .directory.display(),
        .pid.as_ref().map_or("another process".to_owned(), |pid| format!("process {pid}"))
    )]
    InUse {
        /// The state directory.
        directory: PathBuf,
        /// The process, if it could be told.
        pid: Option<u32>,
    },
    /// The lock file could not be opened or locked.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

impl StateLock {
    /// Takes the directory, which must exist, or fails at once if another process (or this one) has it.
    pub fn acquire(directory: &Path) -> Result<Self, LockError> {
        let path = directory.join(FILE_NAME);
        // Not truncated: before the lock is ours, the process number in it is somebody else's.
        let mut file = open_options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(DiskError::at("open", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let pid = read_pid(&mut file);
                return Err(LockError::InUse { directory: directory.to_owned(), pid });
            }
            Err(TryLockError::Error(error)) => {
                return Err(DiskError::at("lock", &path)(error).into());
            }
        }
        let pid = format!("{}\n", std::process::id());
        // The number only serves a message: a full disk must not keep the daemon from starting.
        if let Err(error) = file.set_len(0).and_then(|()| file.write_all_at(pid.as_bytes(), 0)) {
            tracing::warn!(path = %path.display(), %error, "cannot note the process number in the lock");
        }
        Ok(Self { _file: file })
    }
}

fn read_pid(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let lock = StateLock::acquire(dir.path()).unwrap();
        let error = StateLock::acquire(dir.path()).unwrap_err();
        let expected = format!(
            "state directory {} is in use by process {};",
            dir.path().display(),
            std::process::id()
        );
        assert!(error.to_string().starts_with(&expected), "{error}");
        drop(lock);
        StateLock::acquire(dir.path()).unwrap();
    }

    #[test]
    fn a_longer_number_left_behind_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE_NAME), "999999999999999\n").unwrap();
        let _lock = StateLock::acquire(dir.path()).unwrap();
        let text = std::fs::read_to_string(dir.path().join(FILE_NAME)).unwrap();
        assert_eq!(text, format!("{}\n", std::process::id()));
    }

    #[test]
    fn a_missing_directory_is_told() {
        let error = StateLock::acquire(Path::new("/nowhere/at/all")).unwrap_err();
        assert!(matches!(error, LockError::Disk(_)), "{error}");
    }
}
