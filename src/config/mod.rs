//! The configuration: from a file, the environment and flags to one checked [`Config`].
//!
//! Nothing outside this room reads the environment or guesses a default. All that is wrong is found in one go, before
//! anything is connected or written, and nothing that is printed holds a password.
//!
//! [`keys::KEYS`] is the table of keys; `layers` says who gave which value; `check` says whether they fit together.

mod check;
mod error;
pub mod keys;
mod layers;
mod secret;
mod snapshot;
mod uris;
mod value;

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use serde::Serialize;

use crate::selection::Selection;
use layers::Settings;

pub use check::{Loaded, control_sockets};
pub use error::{ConfigError, ConfigErrors, Origin, Problem};
pub use layers::{DEFAULT_FILE, ENVIRONMENT_PREFIX, Inputs};
pub use secret::{Secret, Uri, UriError, redact};
pub use snapshot::{METADATA_COLLECTION, Snapshot};
pub use value::parse_duration;

/// A checked configuration. Read it with [`Config::load`].
#[derive(Debug, Clone)]
pub struct Config {
    /// Where to read.
    pub source: Source,
    /// Where to write.
    pub target: Target,
    /// What is carried, and how.
    pub sync: Sync,
    /// Copying again.
    pub resync: Resync,
    /// When the state is `live`.
    pub live: Live,
    /// The initial copy.
    pub copy: Copy,
    /// Applying the oplog.
    pub replay: Replay,
    /// Limits of memory.
    pub memory: Memory,
    /// Counting documents.
    pub delta: Delta,
    /// Comparing contents.
    pub verify: Verify,
    /// Oplog entries on disk.
    pub spool: Spool,
    /// What snapsync keeps.
    pub state: State,
    /// How it is asked and commanded.
    pub control: Control,
    /// The end of a migration.
    pub cutover: Cutover,
    /// Logging.
    pub log: Log,
    /// Snapshots.
    pub snapshot: Snapshot,
    settings: Settings,
}

/// `[source]`
#[derive(Debug, Clone)]
pub struct Source {
    /// Its connection string, wherever it came from.
    pub uri: Uri,
}

/// `[target]`
#[derive(Debug, Clone)]
pub struct Target {
    /// Its connection string, wherever it came from.
    pub uri: Uri,
    /// What to do about data that snapsync did not write.
    pub on_existing_data: OnExistingData,
}

/// `[sync]`
#[derive(Debug, Clone)]
pub struct Sync {
    /// `include`, `exclude` and `rename`.
    pub selection: Selection,
    /// The longest that a window waits for more while live.
    pub window: Duration,
    /// What to do when source and target differ.
    pub on_divergence: OnDivergence,
}

/// `[resync]`
#[derive(Debug, Clone)]
pub struct Resync {
    /// How long a replaced collection is kept.
    pub keep_replaced: Duration,
}

/// `[live]`
#[derive(Debug, Clone)]
pub struct Live {
    /// The lag above which the state is no longer `live`.
    pub max_lag: Duration,
}

/// `[copy]`; for the workers see [`Config::copy_workers`].
#[derive(Debug, Clone)]
pub struct Copy {
    /// Bytes of documents a second; `None` = no limit.
    pub max_bytes_per_second: Option<u64>,
    workers: usize,
}

/// `[replay]`; for the workers see [`Config::replay_workers`].
#[derive(Debug, Clone)]
pub struct Replay {
    workers: usize,
}

/// `[memory]`
#[derive(Debug, Clone)]
pub struct Memory {
    /// Bytes that documents and entries under way may take.
    pub max_bytes: u64,
}

/// `[delta]`
#[derive(Debug, Clone)]
pub struct Delta {
    /// Time between two rounds.
    pub interval: Duration,
    /// Which deltas are logged.
    pub log: DeltaLog,
}

/// `[verify]`
#[derive(Debug, Clone)]
pub struct Verify {
    /// Whether the daemon compares contents all the time.
    pub continuous: bool,
    /// Bytes of each side that it reads a second for that; `None` = no limit.
    pub max_bytes_per_second: Option<u64>,
}

/// `[spool]`
#[derive(Debug, Clone)]
pub struct Spool {
    /// Bytes on disk; `None` = what is free, less the larger of 10 % and 2 GiB.
    pub max_bytes: Option<u64>,
}

/// `[state]`
#[derive(Debug, Clone)]
pub struct State {
    /// Where state and spool are kept: systemd's `STATE_DIRECTORY`, else `state.directory`.
    pub directory: PathBuf,
}

/// `[control]`
#[derive(Debug, Clone)]
pub struct Control {
    /// Where HTTP is served; `None` = off.
    pub listen: Option<SocketAddr>,
    /// What clients over TCP must send; `None` = they can only read. Never `None` beyond loopback.
    pub token: Option<Secret>,
    /// The unix socket for commands.
    pub socket: PathBuf,
}

/// `[cutover]`
#[derive(Debug, Clone)]
pub struct Cutover {
    /// A source that was quiet for so long counts as stopped.
    pub quiet_for: Duration,
    /// The directory of programs to run before the point of no return.
    pub hooks: PathBuf,
    /// While this file exists the last step waits; `None` = it does not.
    pub postpone_file: Option<PathBuf>,
}

/// `[log]`
#[derive(Debug, Clone)]
pub struct Log {
    /// How to log.
    pub format: LogFormat,
    /// The least severe messages to log.
    pub level: LogLevel,
}

/// Makes an enum of the words that a key takes. A test holds them equal to those in the table of keys.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$word_doc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $($(#[$word_doc])* $variant,)* }

        impl $name {
            /// All values.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The word in the configuration.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }

            fn from_word(word: &str) -> Self {
                let found = Self::ALL.iter().find(|value| value.as_str() == word);
                found.copied().unwrap_or_else(|| unreachable!("{word} is not in the table of keys"))
            }
        }
    };
}

words! {
    /// What to do about data in selected target namespaces that snapsync did not write.
    OnExistingData {
        /// Stop before the first write.
        Refuse = "refuse",
        /// Drop it.
        Drop = "drop",
    }
}

words! {
    /// What to do when source and target differ.
    OnDivergence {
        /// Copy the namespaces concerned again.
        Resync = "resync",
        /// Stop for a person.
        Halt = "halt",
    }
}

words! {
    /// Which deltas are logged.
    DeltaLog {
        /// All of few collections; of many, those that changed or are not zero.
        Auto = "auto",
        /// All.
        All = "all",
        /// Those that changed or are not zero.
        Changed = "changed",
    }
}

words! {
    /// How to log.
    LogFormat {
        /// The journal under systemd, else text.
        Auto = "auto",
        /// Lines for people on standard error.
        Text = "text",
        /// Lines of JSON on standard error.
        Json = "json",
    }
}

words! {
    /// The least severe messages to log.
    LogLevel {
        /// What a person must look at.
        Error = "error",
        /// What may need a person.
        Warn = "warn",
        /// What happens.
        Info = "info",
        /// What helps to find a mistake.
        Debug = "debug",
        /// Everything.
        Trace = "trace",
    }
}

/// What differs between a running configuration and a new one, by key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Keys whose new value can be taken over in flight.
    pub reloadable: Vec<&'static str>,
    /// Keys whose new value needs a restart.
    pub needs_restart: Vec<&'static str>,
}

/// One line of the effective configuration, without secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EffectiveSetting {
    /// The key.
    pub key: &'static str,
    /// Its value, spelled as the configuration would.
    pub value: String,
    /// Where it came from, in words.
    pub origin: String,
}

impl Config {
    /// Reads and checks the configuration.
    ///
    /// # Errors
    ///
    /// Everything that is wrong, at once. The program should exit with 78, or with 64 if
    /// [`ConfigErrors::has_password_argument`].
    pub fn load(inputs: &Inputs) -> Result<Loaded, ConfigErrors> {
        check::load(inputs, check::Purpose::Migration)
    }

    /// Reads and checks the configuration of a snapshot: what `[snapshot]` says takes the place of the selection.
    ///
    /// # Errors
    ///
    /// As [`Config::load`].
    pub fn load_snapshot(inputs: &Inputs) -> Result<Loaded, ConfigErrors> {
        check::load(inputs, check::Purpose::Snapshot)
    }

    /// Parallel workers of the copy: as configured, else chosen from the machine's processors.
    ///
    /// Two for each processor, because a worker mostly waits for a server; at least 4, at most 16.
    #[must_use]
    pub fn copy_workers(&self) -> usize {
        workers(self.copy.workers)
    }

    /// Parallel writers of the replay, chosen like [`Config::copy_workers`].
    #[must_use]
    pub fn replay_workers(&self) -> usize {
        workers(self.replay.workers)
    }

    /// What a new configuration would change, for SIGHUP. Only what a value is counts, not where it comes from.
    #[must_use]
    pub fn changes(&self, new: &Config) -> Changes {
        let mut changes = Changes::default();
        for key in keys::KEYS {
            let rewritten =
                key.name == "control.token_file" && self.control.token != new.control.token;
            let same = self.settings.get(key.name).value == new.settings.get(key.name).value;
            if same && !rewritten {
                continue;
            }
            match key.reload {
                keys::Reload::InFlight => changes.reloadable.push(key.name),
                keys::Reload::Restart => changes.needs_restart.push(key.name),
            }
        }
        changes
    }

    /// Every key with its value and where it came from, in the order of the documentation.
    #[must_use]
    pub fn effective(&self) -> Vec<EffectiveSetting> {
        let line = |key: &keys::Key| {
            let setting = self.settings.get(key.name);
            let (value, origin) = (setting.value.shown(), setting.origin.to_string());
            EffectiveSetting { key: key.name, value, origin }
        };
        keys::KEYS.iter().map(line).collect()
    }
}

fn workers(configured: usize) -> usize {
    if configured > 0 {
        return configured;
    }
    let processors = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    (2 * processors).clamp(4, 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs(file: &str, overrides: &[(&str, &str)]) -> Inputs {
        let pair = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        Inputs {
            file: PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(file),
            file_required: true,
            env: Vec::new(),
            overrides: overrides.iter().map(pair).collect(),
            credentials_directory: None,
        }
    }

    fn example(overrides: &[(&str, &str)]) -> Config {
        Config::load(&inputs("docs/snapsync.example.toml", overrides)).unwrap().config
    }

    #[test]
    fn the_example_names_every_key_and_shows_the_defaults() {
        let path = inputs("docs/snapsync.example.toml", &[]).file;
        let text = std::fs::read_to_string(path).unwrap();
        let defaults = Settings::default();
        let config = example(&[]);
        for key in keys::KEYS {
            let word = key.name.rsplit('.').next().unwrap();
            let section = format!("[{}]\n", keys::section_of(key));
            let (_, rest) = text.split_once(&section).unwrap_or_else(|| panic!("{section}"));
            let rest = rest.split("\n[").next().unwrap();
            let given = |mark: &str| rest.contains(&format!("\n{mark}{word} = "));
            let given = given("") || given("# ") || rest.starts_with(&format!("{word} = "));
            assert!(given, "{} is missing", key.name);
            let (value, default) = (config.settings.get(key.name), defaults.get(key.name));
            let differs = ["source.uri", "target.uri", "control.socket"].contains(&key.name);
            assert!(differs || value.value == default.value, "{}: {value:?}", key.name);
        }
    }

    #[test]
    fn the_packaged_file_is_valid_but_for_the_uris() {
        let errors = Config::load(&inputs("packaging/snapsync.toml", &[])).unwrap_err();
        let keys: Vec<_> = errors.0.iter().map(|error| error.key.as_str()).collect();
        assert_eq!(keys, ["source.uri", "target.uri"], "{errors}");
    }

    #[test]
    fn words_are_those_of_the_table() {
        fn table(key: &str) -> &'static [&'static str] {
            match keys::find(key).map(|key| &key.kind) {
                Some(keys::Kind::Choice(words)) => words,
                other => panic!("{key}: {other:?}"),
            }
        }
        let check = |key, words: Vec<&str>| assert_eq!(table(key), words, "{key}");
        check("target.on_existing_data", OnExistingData::ALL.iter().map(|w| w.as_str()).collect());
        check("sync.on_divergence", OnDivergence::ALL.iter().map(|w| w.as_str()).collect());
        check("delta.log", DeltaLog::ALL.iter().map(|w| w.as_str()).collect());
        check("log.format", LogFormat::ALL.iter().map(|w| w.as_str()).collect());
        check("log.level", LogLevel::ALL.iter().map(|w| w.as_str()).collect());
    }

    #[test]
    fn a_reload_names_what_changed_and_what_needs_a_restart() {
        let old = example(&[]);
        assert_eq!(old.changes(&example(&[("sync.window", "1000ms")])), Changes::default());
        let new = example(&[
            ("log.level", "debug"),
            ("memory.max_bytes", "1GiB"),
            ("sync.include", "shop"),
            ("source.uri", "mongodb://elsewhere"),
        ]);
        let changes = old.changes(&new);
        assert_eq!(changes.reloadable, ["memory.max_bytes", "log.level"]);
        assert_eq!(changes.needs_restart, ["source.uri", "sync.include"]);
    }

    #[test]
    fn workers_are_chosen_unless_configured() {
        let config = example(&[("copy.workers", "3")]);
        assert_eq!(config.copy_workers(), 3);
        assert!((4..=16).contains(&config.replay_workers()));
    }

    #[test]
    fn no_password_in_any_form_of_the_configuration() {
        let mut inputs = inputs("docs/snapsync.example.toml", &[]);
        let uri = "mongodb://u:hunter2@h/?tlsCertificateKeyFilePassword=hunter2";
        inputs.env = vec![
            ("SNAPSYNC__TARGET__URI".to_owned(), uri.to_owned()),
            ("SNAPSYNC__ARCHIVE__NOTIFY_URL".to_owned(), "https://u:hunter2@h".to_owned()),
            ("SNAPSYNC__ARCHIVE__CREDENTIALS".to_owned(), "{ x = { key = 'hunter2' } }".to_owned()),
            ("SNAPSYNC__ARCHIVE__DESTINATIONS".to_owned(), "s3://u:hunter2@bucket".to_owned()),
        ];
        let config = Config::load(&inputs).unwrap().config;
        let effective = serde_json::to_string(&config.effective()).unwrap();
        assert!(!effective.contains("hunter2"), "{effective}");
        let debug = format!("{config:?}");
        assert!(!debug.contains("hunter2"), "{debug}");
    }
}
