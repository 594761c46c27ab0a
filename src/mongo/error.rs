//! What went wrong when talking to a server, in words that are safe to log, and what kind of wrong it is.
//!
//! The driver's own `Display` prints whole server replies, and with them values from documents (a duplicate key error
//! quotes the key). So no driver error is ever printed as it is: [`describe`] builds the text from kinds and codes.

use std::fmt;

use mongodb::error::{Error as DriverError, ErrorKind};

/// Which of the two deployments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// The deployment that is read.
    Source,
    /// The deployment that is written.
    Target,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Source => "source",
            Self::Target => "target",
        })
    }
}

/// What kind of failure it was, which decides what may be done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The server was not reached, stepped down or went away: the same call may succeed later. The outcome of a write
    /// is unknown.
    Unreachable,
    /// Wrong user or password, or none where one is needed.
    Authentication,
    /// The user lacks a privilege.
    Privilege,
    /// The server answered with this error code.
    Server(i32),
    /// The local disk.
    Disk,
    /// Anything else: a bad URI, a reply that makes no sense.
    Other,
}

/// A failed call to one of the deployments.
#[derive(Debug, thiserror::Error)]
#[error("{side}: {action}: {text}")]
pub struct Error {
    /// Which deployment.
    pub side: Side,
    /// What was being done, as a verb phrase.
    pub action: String,
    /// What kind of failure.
    pub failure: Failure,
    text: String,
}

impl Error {
    /// Wraps a driver error; `action` says what was being done ("list collections").
    #[must_use]
    pub fn new(side: Side, action: impl Into<String>, error: &DriverError) -> Self {
        Self { side, action: action.into(), failure: classify(error), text: describe(error) }
    }

    /// A failure found in a reply rather than by the driver.
    #[must_use]
    pub fn from_code(side: Side, action: impl Into<String>, code: i32, text: &str) -> Self {
        let failure = failure_of_code(code);
        Self { side, action: action.into(), failure, text: format!("error {code}{text}") }
    }

    /// The local disk failed while something was being done for this side.
    #[must_use]
    pub fn disk(side: Side, action: impl Into<String>, text: impl Into<String>) -> Self {
        Self { side, action: action.into(), failure: Failure::Disk, text: text.into() }
    }

    /// A reply that lacks what it must hold.
    #[must_use]
    pub fn other(side: Side, action: impl Into<String>, text: impl Into<String>) -> Self {
        Self { side, action: action.into(), failure: Failure::Other, text: text.into() }
    }

    /// The server's error code, if it answered with one.
    #[must_use]
    pub fn code(&self) -> Option<i32> {
        match self.failure {
            Failure::Server(code) => Some(code),
            _ => None,
        }
    }

    /// The same failure, known by the caller to pass: a cursor that is opened again, say.
    #[must_use]
    pub fn into_unreachable(mut self) -> Self {
        self.failure = Failure::Unreachable;
        self
    }

    /// Whether another daemon has fenced this one off: the session of the write has passed its number.
    #[must_use]
    pub fn is_fenced(&self) -> bool {
        self.failure == Failure::Server(TRANSACTION_TOO_OLD)
    }

    /// Whether the same call may succeed when the server is back.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        self.failure == Failure::Unreachable
    }
}

/// Error codes that say "not now, not this node": stepping down, shutting down, network trouble behind the node,
/// a write concern that could not be waited out. From the server's error_codes.yml, categories RetriableError and
/// NotPrimaryError, ShutdownError; and 11601, an operation that somebody killed: a daemon that takes over kills what
/// its predecessor has in flight, and the predecessor learns from the next attempt that it is one. And
/// 211: a member that was started just now does not have the keys yet by which the set signs its times.
const TRANSIENT: [i32; 22] = [
    6, 7, 24, 64, 89, 91, 112, 134, 189, 202, 211, 262, 317, 358, 365, 9001, 10107, 11600, 11601,
    11602, 13435, 13436,
];
/// The server has seen a higher number in this session.
const TRANSACTION_TOO_OLD: i32 = 225;
const UNAUTHORIZED: i32 = 13;
const AUTHENTICATION_FAILED: i32 = 18;

/// Whether the code says "not now, not this node".
pub(super) fn is_transient(code: i32) -> bool {
    TRANSIENT.contains(&code)
}

fn failure_of_code(code: i32) -> Failure {
    match code {
        UNAUTHORIZED => Failure::Privilege,
        AUTHENTICATION_FAILED => Failure::Authentication,
        code if is_transient(code) => Failure::Unreachable,
        code => Failure::Server(code),
    }
}

fn classify(error: &DriverError) -> Failure {
    match error.kind.as_ref() {
        ErrorKind::Io(_)
        | ErrorKind::ConnectionPoolCleared { .. }
        | ErrorKind::DnsResolve { .. } => Failure::Unreachable,
        ErrorKind::ServerSelection { message, .. } if is_too_old(message) => Failure::Other,
        // The driver hides a failed authentication of its monitors' peers inside a selection error.
        ErrorKind::ServerSelection { .. } => Failure::Unreachable,
        ErrorKind::Authentication { .. } => Failure::Authentication,
        ErrorKind::Command(error) => failure_of_code(error.code),
        _ => Failure::Other,
    }
}

/// Whether the driver found a server that speaks only an older protocol than itself.
fn is_too_old(selection: &str) -> bool {
    selection.contains("reports wire version")
}

/// A text for `error` that never holds document contents or credentials.
#[must_use]
pub fn describe(error: &DriverError) -> String {
    match error.kind.as_ref() {
        ErrorKind::Command(error) => {
            let name = &error.code_name;
            match error.code {
                // These messages speak of users, roles, names and options, never of documents.
                UNAUTHORIZED | AUTHENTICATION_FAILED | 26 | 48 | 59 | 72 | 73 | 85 | 86 | 115 => {
                    format!("error {} ({name}): {}", error.code, error.message)
                }
                code => format!("error {code} ({name})"),
            }
        }
        ErrorKind::Authentication { .. } => "authentication failed (wrong user, password, \
            authSource or mechanism)"
            .to_owned(),
        ErrorKind::Io(error) => format!("connection lost: {error}"),
        ErrorKind::ConnectionPoolCleared { .. } => "connection lost: the server went away".into(),
        ErrorKind::ServerSelection { message, .. } if is_too_old(message) => {
            "a server of the deployment is older than MongoDB 4.2, with which snapsync cannot \
             speak; upgrade it to 4.2 or later"
                .to_owned()
        }
        ErrorKind::ServerSelection { message, .. } => format!("no suitable server: {message}"),
        ErrorKind::DnsResolve { message, .. } => format!("host name not resolved: {message}"),
        ErrorKind::InvalidTlsConfig { message, .. } => format!("TLS: {message}"),
        ErrorKind::InvalidArgument { message, .. } => format!("invalid option: {message}"),
        ErrorKind::IncompatibleServer { message, .. } => format!("unsupported server: {message}"),
        ErrorKind::InvalidResponse { .. } => "the server's reply makes no sense".into(),
        ErrorKind::Shutdown => "the client is closed".into(),
        _ => "the driver failed".into(),
    }
}

/// An error for a reply that lacks `field`.
#[must_use]
pub fn unwanted_reply(side: Side, action: &str, field: &str) -> Error {
    Error::other(side, action, format!("the reply has no usable field {field:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_steps_down_may_be_asked_again() {
        assert_eq!(failure_of_code(10107), Failure::Unreachable);
        assert_eq!(failure_of_code(211), Failure::Unreachable);
        assert_eq!(failure_of_code(13), Failure::Privilege);
        assert_eq!(failure_of_code(11000), Failure::Server(11000));
    }
}
