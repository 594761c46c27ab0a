//! How much of the disk the spool may take.

use std::path::Path;

use super::parse_segment_name;
use crate::durable::DiskError;

/// Left free in any case: 2 GiB, for everything else that lives on the disk.
const RESERVE_BYTES_MIN: u64 = 2 * 1024 * 1024 * 1024;

/// The part of the free space that is left free: one tenth.
const RESERVE_DIVISOR: u64 = 10;

/// The most bytes the spool in this directory may take: `configured`, or, if that is 0, what is free (the spool's own
/// files counting as free, so that a restart gets the same limit) less the larger of 10 % of it and 2 GiB.
pub fn free_space_limit(dir: &Path, configured: u64) -> Result<u64, DiskError> {
    if configured > 0 {
        return Ok(configured);
    }
    let disk = rustix::fs::statvfs(dir)
        .map_err(|error| DiskError::at("read the free space of", dir)(error.into()))?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    Ok(limit(free.saturating_add(segments_bytes(dir).map_err(DiskError::at("list", dir))?)))
}

fn limit(free: u64) -> u64 {
    free.saturating_sub(RESERVE_BYTES_MIN.max(free / RESERVE_DIVISOR))
}

fn segments_bytes(dir: &Path) -> std::io::Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_str().and_then(parse_segment_name).is_some() {
            bytes += entry.metadata()?.len();
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_the_larger_of_two_reserves() {
        const GIB: u64 = 1 << 30;
        assert_eq!(limit(0), 0);
        assert_eq!(limit(GIB), 0);
        assert_eq!(limit(10 * GIB), 8 * GIB);
        assert_eq!(limit(100 * GIB), 90 * GIB);
        assert_eq!(limit(u64::MAX), u64::MAX - u64::MAX / 10);
    }

    #[test]
    fn what_is_configured_is_taken_as_it_is() {
        assert_eq!(free_space_limit(Path::new("/nowhere/at/all"), 7).unwrap(), 7);
        assert!(free_space_limit(Path::new("/nowhere/at/all"), 0).is_err());
    }

    #[test]
    fn counts_segments_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("00000000000000000001.seg"), [0; 10]).unwrap();
        std::fs::write(dir.path().join("00000000000000000002.seg"), [0; 5]).unwrap();
        std::fs::write(dir.path().join("other"), [0; 100]).unwrap();
        assert_eq!(segments_bytes(dir.path()).unwrap(), 15);
        assert!(free_space_limit(dir.path(), 0).is_ok());
    }
}
