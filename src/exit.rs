//! Why the program ends: the one table from what happened to an exit code. The codes follow sysexits and are part of
//! the contract: systemd restarts the service after all of them but 64 and 78.

use std::process::ExitCode;

use crate::config::ConfigErrors;
use crate::mongo::{Error, Failure};

/// What the exit code says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// Failed for a reason that has no code of its own.
    Failed = 1,
    /// Wrong arguments.
    Usage = 64,
    /// Source and target differ.
    Differ = 65,
    /// A server is unreachable at start.
    Unavailable = 69,
    /// A defect of the program.
    Internal = 70,
    /// The local disk.
    Disk = 74,
    /// Another daemon holds the lease or the state directory.
    Held = 75,
    /// Configuration, and what only a person can mend at start.
    Config = 78,
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        Self::from(code as u8)
    }
}

/// The end of the program, with the reason and the code.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Exit {
    /// What happened, and the mend where there is one.
    pub message: String,
    /// The exit code.
    pub code: Code,
}

impl Exit {
    /// An end for this reason.
    #[must_use]
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { message: message.into(), code }
    }

    /// A failed call while starting: nothing has been written yet.
    #[must_use]
    pub fn at_start(error: &Error) -> Self {
        let (code, mend) = match error.failure {
            Failure::Unreachable => (Code::Unavailable, "is it running, and reachable from here?"),
            Failure::Authentication => {
                (Code::Config, "check user, password and authSource in the URI")
            }
            Failure::Privilege => (
                Code::Config,
                "grant the missing role, then start again (`snapsync check` lists what is needed)",
            ),
            Failure::Disk => (Code::Disk, "is the disk full or read-only?"),
            Failure::Server(_) | Failure::Other => (Code::Config, "run `snapsync check`"),
        };
        Self::new(code, format!("{error}; {mend}"))
    }
}

impl From<ConfigErrors> for Exit {
    fn from(errors: ConfigErrors) -> Self {
        let code = if errors.has_password_argument() { Code::Usage } else { Code::Config };
        Self::new(code, errors.to_string())
    }
}

impl From<crate::state::StateError> for Exit {
    fn from(error: crate::state::StateError) -> Self {
        Self::new(Code::Disk, error.to_string())
    }
}
