//! Writes whose outcome is always known in the end.
//!
//! A write that a lost connection left without an answer may still be running in the server, and would overwrite newer
//! state if it were simply sent again under a new number. So every write goes as a *retryable write*: a session and a
//! number of its own. Sent again under the same session and number, the server carries out each statement at most once,
//! and first waits for the earlier attempt if that still holds the session.

use std::sync::atomic::{AtomicI64, Ordering};

use bson::{Document, RawDocumentBuf, cstr};
use mongodb::ClientSession;

use super::client::Deployment;
use super::error::Error;
use crate::retry::{Backoff, Outage, Stopped, unless_stopped};
use crate::stop::Stop;

/// One statement of a write command that the server refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatementError {
    /// Index of the statement within the command.
    pub index: usize,
    /// The server's error code.
    pub code: i32,
}

/// What a write command did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WriteReply {
    /// Documents inserted, deleted, or matched and upserted.
    pub n: u64,
    /// Statements that failed; the others were carried out (commands are sent unordered).
    pub errors: Vec<StatementError>,
}

/// Numbers that one session may use. The driver hands out sessions that were used before, by its own transactions too,
/// and a server refuses a write under a number that its session has passed: so every [`WriteSession`] counts from where
/// no other has ever been.
const NUMBERS: i64 = 1 << 32;
static NEXT_FIRST_NUMBER: AtomicI64 = AtomicI64::new(NUMBERS);

/// A server session with its counter of writes. One write at a time.
#[derive(Debug)]
pub struct WriteSession {
    deployment: Deployment,
    session: ClientSession,
    number: i64,
}

impl WriteSession {
    /// Starts a session of its own.
    ///
    /// # Errors
    /// The server was not reached.
    pub async fn start(deployment: &Deployment) -> Result<Self, Error> {
        // Causal consistency would add a read concern to commands, and writes take none.
        let session = deployment
            .client
            .start_session()
            .causal_consistency(false)
            .await
            .map_err(|error| deployment.error("start a session", &error))?;
        let number = NEXT_FIRST_NUMBER.fetch_add(NUMBERS, Ordering::Relaxed);
        Ok(Self { deployment: deployment.clone(), session, number })
    }

    /// Sends a write command until its outcome is known, however long the server is away.
    ///
    /// `command` must be an insert, update or delete with single-document statements; the write number and the majority
    /// write concern are added here.
    ///
    /// # Errors
    /// [`Stopped`] when asked to stop while the server is away, or what the server refused as a whole.
    pub async fn write(
        &mut self,
        database: &str,
        action: &str,
        mut command: RawDocumentBuf,
        stop: &Stop,
    ) -> Result<WriteReply, Stopped<Error>> {
        self.number += 1;
        command.append(cstr!("txnNumber"), self.number);
        command.append(cstr!("writeConcern"), bson::rawdoc! { "w": "majority" });
        let mut backoff = Backoff::reconnect();
        let outage = Outage::new(self.deployment.side);
        loop {
            let attempt = self.attempt(database, action, command.clone());
            match unless_stopped(stop, attempt).await? {
                Ok(reply) => return Ok(reply),
                Err(error) if error.is_unreachable() => {
                    outage.report(&error);
                    stop.sleep(backoff.next_delay()).await.map_err(|_| Stopped::Stop)?;
                }
                Err(error) => return Err(Stopped::Failed(error)),
            }
        }
    }

    async fn attempt(
        &mut self,
        database: &str,
        action: &str,
        command: RawDocumentBuf,
    ) -> Result<WriteReply, Error> {
        let reply = self
            .deployment
            .client
            .database(database)
            .run_raw_command(command)
            .session(&mut self.session)
            .await
            .map_err(|error| self.deployment.error(action, &error))?;
        if let Ok(error) = reply.get_document("writeConcernError") {
            let code = error.get_i32("code").unwrap_or(64);
            return Err(Error::from_code(self.deployment.side, action, code, " (write concern)"));
        }
        let reply = parse_reply(&reply);
        // A step-down in the middle of a command may be reported on the statements it cut short.
        let cut = reply.errors.iter().find(|error| super::error::is_transient(error.code));
        match cut {
            Some(cut) => Err(Error::from_code(self.deployment.side, action, cut.code, "")),
            None => Ok(reply),
        }
    }
}

fn parse_reply(reply: &Document) -> WriteReply {
    let n = bson_count(reply, "n");
    let errors = reply.get_array("writeErrors").map(Vec::as_slice).unwrap_or_default();
    let errors = errors
        .iter()
        .filter_map(|error| error.as_document())
        .map(|error| StatementError {
            index: usize::try_from(bson_count(error, "index")).unwrap_or(usize::MAX),
            code: error.get_i32("code").unwrap_or(0),
        })
        .collect();
    WriteReply { n, errors }
}

/// A count in a reply, which servers send as int32, int64 or double.
pub(crate) fn bson_count(reply: &Document, field: &str) -> u64 {
    match reply.get(field) {
        Some(bson::Bson::Int32(n)) => u64::try_from(*n).unwrap_or(0),
        Some(bson::Bson::Int64(n)) => u64::try_from(*n).unwrap_or(0),
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "`as` saturates, and counts in replies are whole numbers below 2^53"
        )]
        Some(bson::Bson::Double(n)) => *n as u64,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::doc;

    #[test]
    fn reads_what_failed_from_the_reply() {
        let reply = doc! { "n": 2_i32, "writeErrors": [{ "index": 1_i32, "code": 11000_i32 }] };
        let expected = StatementError { index: 1, code: 11000 };
        assert_eq!(parse_reply(&reply), WriteReply { n: 2, errors: vec![expected] });
    }
}
