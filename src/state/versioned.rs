//! A large value in one file, replaced as a whole and checked when it is read.
//!
//! The file: magic (8 bytes), format (u32), crc32c of everything else (u32), length of the body (u64), JSON body;
//! numbers are little-endian. Magic, format and checksum stay where they are in every format to come.

use std::io::ErrorKind;
use std::path::Path;

use bytes::{Buf, BufMut};
use serde::{Serialize, de::DeserializeOwned};

use super::{StateError, from_json, to_json};
use crate::durable::{DiskError, write_atomic};

const MAGIC: [u8; 8] = *b"SNAPSTAT";
const HEADER_BYTES: usize = 24;
const MEND: &str =
    "restore it from a backup, or forget the migration with `snapsync reset` and start again";

/// Replaces the file by this value, durably. `format` is the version of the value's shape; raise it when an older
/// program must not read what a newer one wrote.
pub fn save<T: Serialize>(path: &Path, format: u32, value: &T) -> Result<(), StateError> {
    let body = to_json(path, value)?;
    let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len());
    bytes.put_slice(&MAGIC);
    bytes.put_u32_le(format);
    bytes.put_u32_le(checksum(format, &body));
    bytes.put_u64_le(body.len() as u64);
    bytes.put_slice(&body);
    Ok(write_atomic(path, &bytes)?)
}

/// Reads what [`save`] wrote; `None` if there is no such file. A file that is damaged, empty or of another format is an
/// error, never `None`: to take it for a first start would copy everything again over a good target.
pub fn load<T: DeserializeOwned>(path: &Path, format: u32) -> Result<Option<T>, StateError> {
    load_json(path, format)?.map(|body| from_json(path, &body)).transpose()
}

/// As [`load`], the JSON text as it is.
pub fn load_json(path: &Path, format: u32) -> Result<Option<Vec<u8>>, StateError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(DiskError::at("read", path)(error).into()),
    };
    let (found, body) = decode(&bytes).map_err(|why| StateError::Damaged {
        path: path.to_owned(),
        why,
        mend: MEND,
    })?;
    if found != format {
        return Err(StateError::Format { path: path.to_owned(), found, known: format });
    }
    Ok(Some(body.to_vec()))
}

fn decode(bytes: &[u8]) -> Result<(u32, &[u8]), &'static str> {
    let Some((mut header, body)) = bytes.split_at_checked(HEADER_BYTES) else {
        return Err("it is shorter than its header");
    };
    if !header.starts_with(&MAGIC) {
        return Err("it does not begin as a state file");
    }
    header.advance(MAGIC.len());
    let format = header.get_u32_le();
    let crc = header.get_u32_le();
    if header.get_u64_le() != body.len() as u64 {
        return Err("its length is not the one recorded");
    }
    if crc != checksum(format, body) {
        return Err("its checksum does not match");
    }
    Ok((format, body))
}

fn checksum(format: u32, body: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&format.to_le_bytes()), body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs;

    #[test]
    fn reads_back_and_tells_absent_from_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("catalogue");
        assert_eq!(load::<Vec<u32>>(&path, 1).unwrap(), None);
        save(&path, 1, &vec![1, 2, 3]).unwrap();
        assert_eq!(load::<Vec<u32>>(&path, 1).unwrap(), Some(vec![1, 2, 3]));
        fs::write(&path, b"").unwrap();
        assert!(matches!(load::<Vec<u32>>(&path, 1), Err(StateError::Damaged { .. })));
    }

    #[test]
    fn names_the_formats_and_never_the_value() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("catalogue");
        save(&path, 2, &"hunter2").unwrap();
        let error = load::<String>(&path, 1).unwrap_err();
        assert!(matches!(error, StateError::Format { found: 2, known: 1, .. }), "{error}");
        let error = load::<u32>(&path, 2).unwrap_err();
        assert!(matches!(error, StateError::Shape { .. }), "{error}");
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn no_damage_goes_unseen(at: prop::sample::Index, bits in 1u8.., cut: bool) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("catalogue");
            save(&path, 1, &"a value of some length").unwrap();
            let mut bytes = fs::read(&path).unwrap();
            let at = at.index(bytes.len());
            if cut { bytes.truncate(at) } else { bytes[at] ^= bits }
            fs::write(&path, bytes).unwrap();
            let error = load::<String>(&path, 1).unwrap_err();
            prop_assert!(matches!(error, StateError::Damaged { .. }), "{}", error);
            prop_assert!(error.to_string().contains("catalogue"));
        }
    }
}
