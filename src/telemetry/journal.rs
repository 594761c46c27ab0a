//! Records as entries of systemd's journal, in its own protocol: one datagram an entry, so that nothing has to be
//! parsed out of text again. A field `ns` becomes `SNAPSYNC_NS`; `message_id` becomes `MESSAGE_ID`.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use tracing::Level;

use super::logging::Sink;
use super::record::{FieldValue, Record};
use super::render::plain;

/// Where the journal listens. It may be restarted meanwhile, so every entry is addressed anew.
const SOCKET: &str = "/run/systemd/journal/socket";

/// The field with the kind of an event; see [`super::kinds`].
pub(super) const MESSAGE_ID: &str = "message_id";

/// The journal of this machine.
pub(super) struct Journal {
    socket: UnixDatagram,
}

impl Journal {
    /// The journal, if there is one.
    pub(super) fn open() -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.send_to(&[], SOCKET)?;
        Ok(Self { socket })
    }
}

impl Sink for Journal {
    fn write(&mut self, record: &Record) {
        let send = |entry: &[u8]| self.socket.send_to(entry, Path::new(SOCKET));
        if send(&entry(record, record.details())).is_err() {
            // Too large, with all its fields? The message alone always fits. When that fails too, nobody can be told.
            drop(send(&entry(record, std::iter::empty())));
        }
    }
}

/// One entry, with these of its fields.
fn entry<'a>(
    record: &Record,
    details: impl Iterator<Item = (&'static str, &'a FieldValue)>,
) -> Vec<u8> {
    let mut entry = Vec::with_capacity(512);
    put(&mut entry, "PRIORITY", priority(*record.metadata.level()));
    put(&mut entry, "SYSLOG_IDENTIFIER", "snapsync");
    put(&mut entry, "MESSAGE", record.message());
    for (name, value) in details {
        match name {
            MESSAGE_ID => put(&mut entry, "MESSAGE_ID", &plain(value)),
            _ => put(&mut entry, &format!("SNAPSYNC_{}", name.to_uppercase()), &plain(value)),
        }
    }
    entry
}

/// In the journal 6 is information, 4 a warning, and 3 something that a person must look at.
fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "3",
        Level::WARN => "4",
        Level::INFO => "6",
        Level::DEBUG | Level::TRACE => "7",
    }
}

/// `NAME=value`, or where the value has lines of its own the form that says its length. Names of collections may hold
/// line breaks, and must not be able to pose as fields.
fn put(entry: &mut Vec<u8>, name: &str, value: &str) {
    entry.extend_from_slice(name.as_bytes());
    if value.contains('\n') {
        entry.push(b'\n');
        entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        entry.push(b'=');
    }
    entry.extend_from_slice(value.as_bytes());
    entry.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::events;
    use crate::telemetry::record::caught;

    fn sent(log: impl FnOnce()) -> Vec<u8> {
        let record = caught(log).remove(0);
        entry(&record, record.details())
    }

    #[test]
    fn an_event_has_its_priority_its_kind_and_its_fields() {
        let entry = String::from_utf8(sent(|| events::lagging(12.5, 10.0))).unwrap();
        let expected = "PRIORITY=4\nSYSLOG_IDENTIFIER=snapsync\n\
             MESSAGE=the target is 12.5 s behind the source, more than live.max_lag allows (10 s)\n\
             MESSAGE_ID=7f3efc4cdfe2464b85e7c83c2b13976b\n\
             SNAPSYNC_LAG_SECONDS=12.5\nSNAPSYNC_MAX_SECONDS=10\n";
        assert_eq!(entry, expected);
    }

    #[test]
    fn a_value_with_lines_cannot_pose_as_fields() {
        let entry = sent(|| tracing::info!(ns = "a.b\nPRIORITY=0", "x"));
        let mut expected = b"SNAPSYNC_NS\n".to_vec();
        expected.extend_from_slice(&14_u64.to_le_bytes());
        expected.extend_from_slice(b"a.b\nPRIORITY=0\n");
        assert!(entry.ends_with(&expected), "{}", String::from_utf8_lossy(&entry));
    }
}
