//! What is wrong with a configuration, where it stands, and how to mend it.

use std::fmt;
use std::path::PathBuf;

use super::secret::UriError;
use crate::selection::SelectionError;

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nobody gave it.
    Default,
    /// The configuration file; the line counts from 1 and is missing where the whole file is meant.
    File {
        /// The file.
        path: PathBuf,
        /// The line of the key.
        line: Option<usize>,
    },
    /// An environment variable, by name.
    Environment(String),
    /// The flag `--set` for this key.
    Flag(String),
    /// A file that another key names, such as `source.uri_file`.
    NamedFile {
        /// The file.
        path: PathBuf,
        /// The key that names it.
        key: &'static str,
    },
    /// A systemd credential, by its file.
    Credential(PathBuf),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => write!(f, "default"),
            Self::File { path, line: None } => write!(f, "{}", path.display()),
            Self::File { path, line: Some(line) } => write!(f, "{}, line {line}", path.display()),
            Self::Environment(name) => write!(f, "environment variable {name}"),
            Self::Flag(key) => write!(f, "flag --set {key}"),
            Self::NamedFile { path, key } => write!(f, "{} ({key})", path.display()),
            Self::Credential(path) => write!(f, "credential {}", path.display()),
        }
    }
}

/// One thing that is wrong. Prints as `place: key: problem`, without secrets.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    /// The key, such as `sync.window`; empty where a whole file is meant.
    pub key: String,
    /// Where the offending value stands.
    pub origin: Origin,
    /// What is wrong, and the mend.
    pub problem: Problem,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, origin, problem } = self;
        match (key.as_str(), origin) {
            ("", _) => write!(f, "{origin}: {problem}"),
            // Nobody gave it, so there is no place to point at.
            (_, Origin::Default) => write!(f, "{key}: {problem}"),
            _ => write!(f, "{origin}: {key}: {problem}"),
        }
    }
}

/// The kinds of things that can be wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// A file that cannot be read.
    #[error("cannot be read: {0}")]
    Unreadable(String),
    /// A file that is not TOML.
    #[error("column {column}: not valid TOML: {message}")]
    Syntax {
        /// Counts characters from 1.
        column: usize,
        /// The parser's words, without the offending line, which may hold a password.
        message: String,
    },
    /// A key that does not exist.
    #[error("no such key; the nearest is {nearest}")]
    UnknownKey {
        /// The nearest valid key or section, spelled as that layer spells it.
        nearest: String,
    },
    /// A plain value where a table of keys belongs.
    #[error("is a section, not a value; write [{0}] and its keys below it")]
    NotAValue(String),
    /// A credential of systemd's in a place that this process may not look into.
    #[error("cannot be looked at by this process, and was not checked")]
    CredentialHidden,
    /// A value of another type or form.
    #[error("{found} is not {wanted}")]
    WrongType {
        /// The value or its type, without secrets.
        found: String,
        /// What it should be, with an example.
        wanted: String,
    },
    /// A value that is too small or too large.
    #[error("{found} is out of range; it can be {range}")]
    OutOfRange {
        /// The value.
        found: String,
        /// The range in words.
        range: String,
    },
    /// A bad connection string.
    #[error(transparent)]
    Uri(#[from] UriError),
    /// A bad include, exclude or rename.
    #[error(transparent)]
    Selection(#[from] SelectionError),
    /// A secret where other users of the machine can read it.
    #[error(
        "a URI with a password cannot be an argument, because ps shows it; use source.uri_file or target.uri_file, \
         the environment or a systemd credential"
    )]
    PasswordArgument,
    /// A feature that is documented but not there yet.
    #[error("is not available in this version; set it to false")]
    NotAvailable,
    /// Something that is wrong together with another value. The text says what and how to mend it.
    #[error("{0}")]
    Conflict(String),
}

/// Everything that is wrong, one line each.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl ConfigErrors {
    /// Whether nothing is wrong but that credentials could not be looked at. systemd up to 253 shows them to the daemon
    /// alone, and not to the check that `systemctl reload` begins with.
    #[must_use]
    pub fn only_hidden_credentials(&self) -> bool {
        self.0.iter().all(|error| error.problem == Problem::CredentialHidden)
    }

    /// Whether a password stood in an argument, which is wrong usage (exit 64) rather than a bad configuration (78).
    #[must_use]
    pub fn has_password_argument(&self) -> bool {
        self.0.iter().any(|error| error.problem == Problem::PasswordArgument)
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<_> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}
