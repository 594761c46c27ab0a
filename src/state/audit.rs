//! The record of what operators did and what was decided: one JSON object a line, only ever appended to.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

use super::{StateError, to_json};
use crate::durable::{DiskError, open_options, parent, sync_dir};

/// The record, in the file `audit.jsonl` of the state directory. Shared by reference; lines never mix.
#[derive(Debug)]
pub struct Audit {
    path: PathBuf,
    file: Mutex<File>,
}

#[derive(Serialize)]
struct Line<'a> {
    time: Timestamp,
    event: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<&'a str>,
    detail: Value,
}

impl Audit {
    /// Opens the record in this directory, making it if it is missing. Half a line left by a crash is ended, so that
    /// it spoils no line after it.
    pub fn open(directory: &Path) -> Result<Self, StateError> {
        let path = directory.join("audit.jsonl");
        let file = open_options()
            .read(true)
            .append(true)
            .create(true)
            .open(&path)
            .map_err(DiskError::at("open", &path))?;
        end_torn_line(&file).map_err(DiskError::at("mend", &path))?;
        sync_dir(parent(&path))?;
        Ok(Self { path, file: Mutex::new(file) })
    }

    /// Appends a line with the time of now; on return it is durable, on an error it is not there. `user` is who asked,
    /// if anybody did. Nothing secret may be in `detail`.
    pub fn append(&self, event: &str, user: Option<&str>, detail: Value) -> Result<(), StateError> {
        let mut line = to_json(&self.path, &Line { time: Timestamp::now(), event, user, detail })?;
        line.push(b'\n');
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let length = file.metadata().map_err(DiskError::at("read", &self.path))?.len();
        append_synced(&file, &line, length).map_err(DiskError::at("append to", &self.path))?;
        Ok(())
    }
}

/// Appends or, on any error, takes back what was appended: half a line would spoil the next one.
fn append_synced(mut file: &File, line: &[u8], length: u64) -> io::Result<()> {
    let appended = file.write_all(line).and_then(|()| file.sync_data());
    if appended.is_err() {
        file.set_len(length)?;
    }
    appended
}

fn end_torn_line(mut file: &File) -> io::Result<()> {
    let length = file.metadata()?.len();
    if length == 0 {
        return Ok(());
    }
    let mut last = [0];
    file.read_exact_at(&mut last, length - 1)?;
    if last != *b"\n" {
        file.write_all(b"\n")?;
        file.sync_data()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn lines(dir: &Path) -> Vec<Result<Value, serde_json::Error>> {
        let text = std::fs::read_to_string(dir.join("audit.jsonl")).unwrap();
        assert!(text.is_empty() || text.ends_with('\n'), "{text}");
        text.lines().map(serde_json::from_str).collect()
    }

    #[test]
    fn one_object_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let audit = Audit::open(dir.path()).unwrap();
        audit.append("pause", Some("ada"), json!({"reason": "two\nlines"})).unwrap();
        audit.append("copy", None, json!(null)).unwrap();
        let lines: Vec<Value> = lines(dir.path()).into_iter().map(Result::unwrap).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0]["event"], "pause");
        assert_eq!(lines[0]["user"], "ada");
        assert_eq!(lines[0]["detail"]["reason"], "two\nlines");
        assert!(lines[0]["time"].as_str().unwrap().parse::<Timestamp>().is_ok());
        assert!(lines[1].get("user").is_none());
    }

    #[test]
    fn a_torn_line_spoils_only_itself() {
        let dir = tempfile::tempdir().unwrap();
        Audit::open(dir.path()).unwrap().append("first", None, json!({})).unwrap();
        let path = dir.path().join("audit.jsonl");
        let whole = std::fs::read(&path).unwrap();
        for cut in 1..whole.len() {
            std::fs::write(&path, [&whole[..], &whole[..cut]].concat()).unwrap();
            for event in ["second", "third"] {
                Audit::open(dir.path()).unwrap().append(event, None, json!({})).unwrap();
            }
            let lines = lines(dir.path());
            let events: Vec<&Value> =
                lines.iter().filter_map(|line| Some(&line.as_ref().ok()?["event"])).collect();
            assert_eq!(events.first(), Some(&&json!("first")));
            assert!(events.ends_with(&[&json!("second"), &json!("third")]), "{cut}: {lines:?}");
        }
    }
}
