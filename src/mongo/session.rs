//! Writes whose outcome is always known in the end.
//!
//! A write that a lost connection left without an answer may still be running in the server, and would overwrite newer
//! state if it were simply sent again under a new number. So every write goes as a *retryable write*: a session and a
//! number of its own. Sent again under the same session and number, the server carries out each statement at most once,
//! and first waits for the earlier attempt if that still holds the session.

use std::sync::atomic::{AtomicI64, Ordering};

use bson::{Document, RawDocumentBuf, Utf8Lossy, Uuid, cstr};
use mongodb::ClientSession;
use mongodb::error::{
    Error as DriverError, ErrorKind, TRANSIENT_TRANSACTION_ERROR, UNKNOWN_TRANSACTION_COMMIT_RESULT,
};

use super::client::Deployment;
use super::error::Error;
use super::relay::session_id;

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

/// A write command with its number.
#[derive(Debug, Clone)]
pub struct Numbered(RawDocumentBuf);

/// Why a transaction was not carried out.
#[derive(Debug)]
pub enum Transaction {
    /// It met another one, or the server went away, perhaps after it was committed.
    Again(Error),
    /// A statement was refused.
    Failed(Error),
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

    /// The session's identity on the server.
    ///
    /// # Errors
    /// The driver made a session without one.
    pub fn id(&self) -> Result<Uuid, Error> {
        session_id(self.session.id()).ok_or_else(|| {
            Error::other(self.deployment.side, "start a session", "the session has no id")
        })
    }

    /// Gives a write command the next number of this session, under which it can be sent as often as it takes.
    ///
    /// `command` must be an insert, update or delete with single-document statements; the number and the majority
    /// write concern are added here.
    #[must_use]
    pub fn number(&mut self, mut command: RawDocumentBuf) -> Numbered {
        self.number += 1;
        command.append(cstr!("txnNumber"), self.number);
        command.append(cstr!("writeConcern"), bson::rawdoc! { "w": "majority" });
        Numbered(command)
    }

    /// Sends a write command, for the first time or again.
    ///
    /// # Errors
    /// While the server is away the outcome is unknown, and the command has to be sent again; other errors refuse it as
    /// a whole.
    pub async fn send(
        &mut self,
        database: &str,
        action: &str,
        command: &Numbered,
    ) -> Result<WriteReply, Error> {
        let sent = self.call(database, command.0.clone()).await;
        let reply = sent.map_err(|error| self.deployment.error(action, &error))?;
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

    /// Carries out write commands, each with its database, in one transaction. May be done again: what an attempt of
    /// unknown outcome left open is ended by the server when the next one begins in the same session.
    ///
    /// # Errors
    /// [`Transaction::Again`] if doing it again may help.
    pub async fn transaction(
        &mut self,
        action: &str,
        commands: impl IntoIterator<Item = (String, RawDocumentBuf)>,
    ) -> Result<(), Transaction> {
        self.number += 1;
        let number = self.number;
        let mut begun = false;
        for (database, mut command) in commands {
            if !begun {
                command.append(cstr!("startTransaction"), true);
                begun = true;
            }
            command.append(cstr!("txnNumber"), number);
            command.append(cstr!("autocommit"), false);
            let reply = self.call(&database, command).await;
            let reply = reply.map_err(|error| self.in_transaction(action, &error))?;
            if let Some(error) = parse_reply(&reply).errors.first() {
                let side = self.deployment.side;
                return Err(Transaction::Failed(Error::from_code(side, action, error.code, "")));
            }
        }
        if !begun {
            return Ok(());
        }
        let commit = bson::rawdoc! {
            "commitTransaction": 1,
            "txnNumber": number,
            "autocommit": false,
            "writeConcern": { "w": "majority" },
        };
        let reply = self.call("admin", commit).await;
        let reply = reply.map_err(|error| self.in_transaction(action, &error))?;
        match reply.get_document("writeConcernError") {
            Err(_) => Ok(()),
            Ok(error) => {
                let code = error.get_i32("code").unwrap_or(64);
                let side = self.deployment.side;
                let text = " (write concern)";
                Err(Transaction::Again(Error::from_code(side, action, code, text)))
            }
        }
    }

    fn in_transaction(&self, action: &str, error: &mongodb::error::Error) -> Transaction {
        let wrapped = self.deployment.error(action, error);
        let again = error.contains_label(TRANSIENT_TRANSACTION_ERROR)
            || error.contains_label(UNKNOWN_TRANSACTION_COMMIT_RESULT)
            || wrapped.is_unreachable();
        if again { Transaction::Again(wrapped) } else { Transaction::Failed(wrapped) }
    }

    async fn call(
        &mut self,
        database: &str,
        command: RawDocumentBuf,
    ) -> mongodb::error::Result<Document> {
        let database = self.deployment.client.database(database);
        let reply = database.run_raw_command(command).session(&mut self.session).await;
        reply.or_else(|error| unreadable(&error).ok_or(error))
    }
}

/// A reply that the driver did not take: one that quotes the keys of an index with a collation is not UTF-8.
fn unreadable(error: &DriverError) -> Option<Document> {
    if !matches!(error.kind.as_ref(), ErrorKind::Bson(_)) {
        return None;
    }
    let reply = error.server_response()?.as_bytes();
    bson::deserialize_from_slice::<Utf8Lossy<Document>>(reply).ok().map(|reply| reply.0)
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
