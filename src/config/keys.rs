//! Every configuration key, in one table: its kind and range, its default, what it means, and whether a SIGHUP changes
//! it in flight. Parsing, `snapsync config` and `docs/configuration.md` all follow this table.

use std::time::Duration;

use super::value::{show_bytes, show_duration};

/// A key of the configuration.
#[derive(Debug)]
pub struct Key {
    /// Section and key with a dot, such as `sync.window`.
    pub name: &'static str,
    /// Type and range.
    pub kind: Kind,
    /// The default, spelled as in an environment variable.
    pub default: &'static str,
    /// When a new value takes effect.
    pub reload: Reload,
    /// One sentence for the reference table.
    pub meaning: &'static str,
}

/// When a changed value takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reload {
    /// On SIGHUP.
    InFlight,
    /// After a restart.
    Restart,
}

/// The type of a value and its range; both ends of a range are allowed.
#[derive(Debug)]
pub enum Kind {
    /// A MongoDB connection string; empty = not given.
    Uri,
    /// Any text that may hold a secret; empty = not given.
    Secret,
    /// Any text; empty = not given.
    Text,
    /// An absolute path.
    Path,
    /// An absolute path; empty = none.
    OptionalPath,
    /// An IP address and a port; empty = none.
    OptionalAddress,
    /// `true` or `false`.
    Bool,
    /// A whole number.
    Integer {
        /// Least.
        min: u64,
        /// Most.
        max: u64,
    },
    /// A number.
    Fraction {
        /// Least.
        min: f64,
        /// Most.
        max: f64,
    },
    /// A length of time with its unit.
    Duration {
        /// Least.
        min: Duration,
        /// Most.
        max: Duration,
    },
    /// A number of bytes.
    Size {
        /// Least, unless it is 0.
        min: u64,
        /// Most.
        max: u64,
        /// What 0 means, if it is allowed.
        zero: Option<&'static str>,
    },
    /// One of some words.
    Choice(&'static [&'static str]),
    /// A list of texts.
    List,
    /// A list of `{ from, to }`.
    Renames,
    /// Keys of the user's own naming.
    Table,
}

impl Kind {
    /// The type in words, and the range in words (empty if there is none).
    #[must_use]
    pub fn describe(&self) -> (&'static str, String) {
        match self {
            Self::Uri => ("URI", String::new()),
            Self::Secret | Self::Text => ("text", String::new()),
            Self::Path => ("path", "absolute".to_owned()),
            Self::OptionalPath => ("path", "absolute, or empty".to_owned()),
            Self::OptionalAddress => ("address", "IP:port, or empty".to_owned()),
            Self::Bool => ("boolean", "true, false".to_owned()),
            Self::Integer { min, max } => ("integer", format!("{min} to {max}")),
            Self::Fraction { min, max } => ("number", format!("{min} to {max}")),
            Self::Duration { min, max } => {
                ("duration", format!("{} to {}", show_duration(*min), show_duration(*max)))
            }
            Self::Size { min, max, zero } => {
                let zero = zero.map_or(String::new(), |means| format!("0 ({means}), or "));
                ("size", format!("{zero}{} to {}", show_bytes(*min), show_bytes(*max)))
            }
            Self::Choice(words) => ("word", words.join(", ")),
            Self::List => ("list", String::new()),
            Self::Renames => ("list of { from, to }", String::new()),
            Self::Table => ("table", String::new()),
        }
    }
}

/// The key of this name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// Whether this is a section such as `sync` or `archive.rebase`.
#[must_use]
pub fn is_section(name: &str) -> bool {
    sections().any(|section| section == name)
}

/// The section of a key: all before its last dot.
#[must_use]
pub fn section_of(key: &Key) -> &'static str {
    key.name.rsplit_once('.').map_or("", |(section, _)| section)
}

fn sections() -> impl Iterator<Item = &'static str> {
    KEYS.iter().map(section_of)
}

/// The valid key or section nearest to a mistaken one: the same word in another section first, then by the number of
/// letters that differ.
#[must_use]
pub fn nearest(mistaken: &str) -> &'static str {
    let last = |name: &str| name.rsplit('.').next().unwrap_or_default().to_owned();
    let distance = |valid: &&str| {
        let misplaced = last(valid) == last(mistaken);
        (!misplaced, edit_distance(valid, mistaken))
    };
    KEYS.iter().map(|key| key.name).chain(sections()).min_by_key(distance).unwrap_or_default()
}

/// Levenshtein's: how many letters to insert, delete or replace.
fn edit_distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in other.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[other.len()]
}

const fn key(
    name: &'static str,
    kind: Kind,
    default: &'static str,
    reload: Reload,
    meaning: &'static str,
) -> Key {
    Key { name, kind, default, reload, meaning }
}

const fn millis(min: u64, max: u64) -> Kind {
    Kind::Duration { min: Duration::from_millis(min), max: Duration::from_millis(max) }
}

const fn size(min: u64, max: u64) -> Kind {
    Kind::Size { min, max, zero: None }
}

const fn size_or_zero(min: u64, max: u64, zero: &'static str) -> Kind {
    Kind::Size { min, max, zero: Some(zero) }
}

const SECOND: u64 = 1000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
const YEAR: u64 = 365 * DAY;
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;
const PIB: u64 = 1 << 50;

/// More workers than this only queue up in front of the servers.
const WORKERS: Kind = Kind::Integer { min: 0, max: 64 };

use Kind::{
    Bool, Choice, Fraction, Integer, List, OptionalAddress, OptionalPath, Path, Renames, Secret,
    Table, Text, Uri,
};
use Reload::{InFlight, Restart};

/// Every key, in the order in which the documentation shows them.
#[rustfmt::skip]
pub static KEYS: &[Key] = &[
    key("source.uri", Uri, "", Restart, "Where to read: the connection string of the source."),
    key("source.uri_file", OptionalPath, "", Restart, "A file that holds the connection string of the source, instead of `source.uri`."),
    key("target.uri", Uri, "", Restart, "Where to write: the connection string of the target."),
    key("target.uri_file", OptionalPath, "", Restart, "A file that holds the connection string of the target, instead of `target.uri`."),
    key("target.on_existing_data", Choice(&["refuse", "drop"]), "refuse", Restart, "What to do about data in selected target namespaces that snapsync did not write."),
    key("sync.include", List, "*", Restart, "Globs for the databases and collections to carry."),
    key("sync.exclude", List, "", Restart, "Globs for what not to carry; exclude wins."),
    key("sync.rename", Renames, "", Restart, "Names on the target of databases (`shop` to `shop_v2`) or collections (`shop.a` to `crm.b`)."),
    key("sync.window", millis(10, 10 * MINUTE), "1s", InFlight, "The longest that a window waits for more entries while live."),
    key("sync.on_divergence", Choice(&["resync", "halt"]), "resync", Restart, "What to do when source and target differ: copy the namespaces concerned again, or stop for a person."),
    key("resync.keep_replaced", millis(0, YEAR), "24h", Restart, "How long a collection that a resync replaced is kept."),
    key("live.max_lag", millis(100, DAY), "10s", InFlight, "The lag above which the state is no longer `live`."),
    key("copy.workers", WORKERS, "0", Restart, "Parallel readers and writers of the copy; 0 = chosen from the machine."),
    key("copy.max_bytes_per_second", size_or_zero(64 * KIB, TIB, "no limit"), "0", InFlight, "The pace of the copy, in bytes of documents a second."),
    key("replay.workers", WORKERS, "0", InFlight, "Parallel writers of the replay; 0 = chosen from the machine."),
    key("memory.max_bytes", size(64 * MIB, TIB), "256MiB", InFlight, "The memory that documents and entries under way may take."),
    key("delta.interval", millis(100, DAY), "10s", InFlight, "The time between two rounds of counting documents."),
    key("delta.log", Choice(&["auto", "all", "changed"]), "auto", InFlight, "Which deltas are logged: all, those that changed or are not zero, or by their number."),
    key("verify.continuous", Bool, "false", Restart, "Compare contents all the time, and treat what differs as `sync.on_divergence` says."),
    key("verify.max_bytes_per_second", size_or_zero(64 * KIB, TIB, "no limit"), "8MiB", InFlight, "The pace of that, in bytes of documents a second, read of each side."),
    key("spool.max_bytes", size_or_zero(64 * MIB, PIB, "what is free, less the larger of 10 % and 2 GiB"), "0", Restart, "The disk that the spool of oplog entries may take."),
    key("state.directory", Path, "/var/lib/snapsync", Restart, "Where state and spool are kept; systemd's `STATE_DIRECTORY` wins."),
    key("control.listen", OptionalAddress, "127.0.0.1:2727", Restart, "Where HTTP is served; empty = off; beyond loopback only with `control.token_file`."),
    key("control.token_file", OptionalPath, "", Restart, "A file with the token that HTTP clients must send, 16 characters or more."),
    key("control.socket", OptionalPath, "", Restart, "The unix socket for commands; empty = `control.sock` in `RUNTIME_DIRECTORY`, else in `state.directory`."),
    key("cutover.quiet_for", millis(500, HOUR), "5s", Restart, "A source that was quiet for so long counts as stopped."),
    key("cutover.hooks", Path, "/etc/snapsync/cutover.d", Restart, "A directory of programs to run before the point of no return."),
    key("cutover.postpone_file", OptionalPath, "", Restart, "While this file exists, the last step of a cutover waits; empty = none."),
    key("log.format", Choice(&["auto", "text", "json"]), "auto", Restart, "How to log; auto = the journal under systemd, else text on standard error."),
    key("log.level", Choice(&["error", "warn", "info", "debug", "trace"]), "info", InFlight, "The least severe messages to log."),
    key("snapshot.source_database", Text, "", Restart, "The database to take collections from."),
    key("snapshot.target_database", Text, "", Restart, "The database to put them into."),
    key("snapshot.collections", List, "", Restart, "The collections to copy and replace; empty = all."),
    key("snapshot.source_cluster", Text, "", Restart, "A name for the source in logs and metadata."),
    key("snapshot.target_cluster", Text, "", Restart, "A name for the target in logs and metadata."),
    key("snapshot.attempts", Integer { min: 1, max: 100 }, "3", Restart, "Attempts for each collection."),
    key("snapshot.retry_delay", millis(0, HOUR), "30s", Restart, "The pause between two attempts."),
    key("snapshot.deadline", millis(SECOND, 30 * DAY), "1h", Restart, "The time after which the snapshot fails."),
    key("snapshot.parallel_collections", Integer { min: 1, max: 64 }, "4", Restart, "Collections copied at the same time."),
    key("archive.enabled", Bool, "false", Restart, "Keep an archive. Not available in this version."),
    key("archive.only", Bool, "false", Restart, "Keep an archive without a target. Not available in this version."),
    key("archive.destinations", List, "", Restart, "URLs of the places for the archive; the first is the authority."),
    key("archive.credentials", Table, "{}", Restart, "How to log in, for each destination."),
    key("archive.segment_max_age", millis(SECOND, DAY), "30s", Restart, "The age at which a segment is closed."),
    key("archive.segment_max_bytes", size(MIB, GIB), "64MiB", Restart, "The size at which a segment is closed."),
    key("archive.buffer_max_bytes", size_or_zero(64 * MIB, PIB, "what is free, less the larger of 10 % and 2 GiB"), "0", Restart, "The disk for artifacts that a destination has not taken yet."),
    key("archive.notify_url", Secret, "", Restart, "A webhook to call for each artifact; empty = none."),
    key("archive.rebase.min_interval", millis(0, YEAR), "1h", Restart, "The least time between two bases."),
    key("archive.rebase.max_interval", millis(MINUTE, 10 * YEAR), "7d", Restart, "The time after which a new base is due."),
    key("archive.rebase.max_bytes", size_or_zero(MIB, PIB, "no limit"), "0", Restart, "The bytes of segments after which a new base is due."),
    key("archive.rebase.max_fraction", Fraction { min: 0.01, max: 1000.0 }, "1.0", Restart, "The size of the segments, as a fraction of the base, after which a new base is due."),
    key("archive.rebase.max_records", Integer { min: 0, max: 1_000_000_000_000 }, "0", Restart, "The entries after which a new base is due; 0 = no limit."),
    key("archive.retention.keep", millis(MINUTE, 100 * YEAR), "14d", Restart, "How far back every moment stays restorable."),
];

/// The reference tables of `docs/configuration.md`, one for each section.
#[must_use]
pub fn markdown() -> String {
    let mut text = String::new();
    let mut section = "";
    for key in KEYS {
        if section_of(key) != section {
            section = section_of(key);
            text += &format!("\n### [{section}]\n\n");
            text += "| key | type | default | range | SIGHUP | meaning |\n";
            text += "| --- | --- | --- | --- | --- | --- |\n";
        }
        let (kind, range) = key.kind.describe();
        let default = match (&key.kind, key.default) {
            (Kind::List, "") | (Kind::Renames, "") => "`[]`".to_owned(),
            (Kind::List, item) => format!("`[\"{item}\"]`"),
            (_, "") => "(empty)".to_owned(),
            (_, text) => format!("`{text}`"),
        };
        let reload = if key.reload == InFlight { "yes" } else { "restart" };
        let (name, meaning) = (key.name, key.meaning);
        text += &format!("| `{name}` | {kind} | {default} | {range} | {reload} | {meaning} |\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_none_is_also_a_section() {
        for (i, key) in KEYS.iter().enumerate() {
            assert!(KEYS[i + 1..].iter().all(|other| other.name != key.name), "{}", key.name);
            assert!(!is_section(key.name), "{}", key.name);
            assert!(!section_of(key).is_empty(), "{}", key.name);
        }
    }

    #[test]
    fn finds_the_nearest_key() {
        for (mistaken, valid) in [
            ("sync.widnow", "sync.window"),
            ("window", "sync.window"),
            ("live.window", "sync.window"),
            ("copy.worker", "copy.workers"),
            ("replay.workers2", "replay.workers"),
            ("targt.uri", "target.uri"),
            ("sinc", "sync"),
            ("archive.rebase.min_intervall", "archive.rebase.min_interval"),
        ] {
            assert_eq!(nearest(mistaken), valid, "{mistaken}");
        }
    }

    #[test]
    fn counts_differing_letters() {
        for (one, other, distance) in
            [("", "", 0), ("abc", "", 3), ("", "ab", 2), ("kitten", "sitting", 3), ("ab", "ba", 2)]
        {
            assert_eq!(edit_distance(one, other), distance, "{one} {other}");
        }
    }

    /// The tables in the documentation are those of [`KEYS`]. Run with `SNAPSYNC_BLESS=1` to write them anew.
    #[test]
    fn the_documentation_has_this_table() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/configuration.md");
        let (begin, end) = ("<!-- keys: begin -->\n", "\n<!-- keys: end -->");
        let text = std::fs::read_to_string(path).unwrap();
        let (before, rest) = text.split_once(begin).unwrap();
        let (tables, after) = rest.split_once(end).unwrap();
        if std::env::var_os("SNAPSYNC_BLESS").is_some() {
            std::fs::write(path, format!("{before}{begin}{}{end}{after}", markdown())).unwrap();
        } else {
            assert_eq!(tables, markdown(), "run this test once with SNAPSYNC_BLESS=1");
        }
    }
}
