//! The layers of the configuration: defaults, file, environment, flags; each wins over those before it.
//!
//! Owns what was given and by whom. Knows the keys and their types, but not what values mean together.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::{fs, io};

use toml::de::{DeTable, DeValue};

use super::error::{ConfigError, Origin, Problem};
use super::keys::{self, KEYS, Key};
use super::secret::Uri;
use super::value::{Raw, Value, show_text};

/// The file that is read if no other is named.
pub const DEFAULT_FILE: &str = "/etc/snapsync/snapsync.toml";

/// Environment variables with this prefix are keys; all others with `SNAPSYNC_` are not the configuration's business.
pub const ENVIRONMENT_PREFIX: &str = "SNAPSYNC__";

/// Everything outside the program that the configuration depends on, so that tests can make it up.
///
/// Not printable: the environment may hold passwords.
#[derive(Clone)]
pub struct Inputs {
    /// The configuration file.
    pub file: PathBuf,
    /// Whether the file must exist: when `--config` names it.
    pub file_required: bool,
    /// All environment variables. Keys, `STATE_DIRECTORY` and `RUNTIME_DIRECTORY` are taken, the rest is ignored.
    pub env: Vec<(String, String)>,
    /// Key and value of every `--set key=value`, in order; the last one of a key wins.
    pub overrides: Vec<(String, String)>,
    /// Where systemd puts credentials, if it passes any.
    pub credentials_directory: Option<PathBuf>,
}

impl Inputs {
    /// The inputs of this process. `file` is what `--config` says, `overrides` what `--set` says.
    #[must_use]
    pub fn from_process(file: Option<PathBuf>, overrides: Vec<(String, String)>) -> Self {
        let text = |os: std::ffi::OsString| os.to_string_lossy().into_owned();
        Self {
            file_required: file.is_some(),
            file: file.unwrap_or_else(|| PathBuf::from(DEFAULT_FILE)),
            env: std::env::vars_os().map(|(name, value)| (text(name), text(value))).collect(),
            overrides,
            credentials_directory: std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from),
        }
    }

    /// The first path of a variable in which systemd passes one or more, with colons between them.
    pub(super) fn systemd_directory(&self, variable: &str) -> Option<PathBuf> {
        let (_, value) = self.env.iter().rev().find(|(name, _)| name == variable)?;
        value.split(':').next().filter(|path| !path.is_empty()).map(PathBuf::from)
    }
}

/// A value and where it came from.
#[derive(Debug, Clone)]
pub(super) struct Setting {
    pub(super) value: Value,
    pub(super) origin: Origin,
}

/// One value for each key of [`KEYS`].
#[derive(Debug, Clone)]
pub(super) struct Settings(BTreeMap<&'static str, Setting>);

/// What the layers gave: the winning settings, and all that is wrong in any layer.
pub(super) struct Layered {
    pub(super) settings: Settings,
    pub(super) errors: Vec<ConfigError>,
    /// Keys with an error: their settings are those of a lower layer and not to be judged.
    pub(super) failed: BTreeSet<&'static str>,
    /// Whether the file was there.
    pub(super) file_found: bool,
}

/// Something that a layer gave, by the name that it used.
struct Given {
    name: String,
    raw: Option<Raw>,
    origin: Origin,
}

/// Reads all layers.
pub(super) fn read(inputs: &Inputs) -> Layered {
    let mut layered = Layered {
        settings: Settings::default(),
        errors: Vec::new(),
        failed: BTreeSet::new(),
        file_found: false,
    };
    match fs::read_to_string(&inputs.file) {
        Ok(text) => {
            layered.file_found = true;
            match file_layer(&inputs.file, &text) {
                Ok(given) => given.into_iter().for_each(|given| layered.take(given)),
                Err(error) => layered.fail_file(*error),
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound && !inputs.file_required => {}
        Err(error) => {
            let origin = Origin::File { path: inputs.file.clone(), line: None };
            layered.fail_file(unreadable(origin, &error));
        }
    }
    for (variable, text) in &inputs.env {
        if let Some(name) = variable.strip_prefix(ENVIRONMENT_PREFIX) {
            let name = name.to_lowercase().replace("__", ".");
            layered.take_text(name, text, Origin::Environment(variable.clone()));
        }
    }
    for (name, text) in &inputs.overrides {
        layered.take_override(name, text);
    }
    layered
}

/// An IO error as the problem of a whole file.
pub(super) fn unreadable(origin: Origin, error: &io::Error) -> ConfigError {
    ConfigError { key: String::new(), origin, problem: Problem::Unreadable(error.to_string()) }
}

impl Layered {
    /// Reports an error of a key; its setting then counts as failed.
    pub(super) fn fail(&mut self, key: &'static str, origin: Origin, problem: Problem) {
        self.failed.insert(key);
        self.errors.push(ConfigError { key: key.to_owned(), origin, problem });
    }

    /// Reports that the file gave nothing. It may well have held the connection strings, so that to complain of their
    /// absence too would mislead.
    fn fail_file(&mut self, error: ConfigError) {
        self.failed.extend(["source.uri", "target.uri"]);
        self.errors.push(error);
    }

    fn take_override(&mut self, name: &str, text: &str) {
        let origin = Origin::Flag(show_text(name));
        let uri = keys::find(name).filter(|key| matches!(key.kind, keys::Kind::Uri));
        if let Some(key) = uri
            && Uri::parse(text).is_ok_and(|uri| uri.has_password())
        {
            self.fail(key.name, origin, Problem::PasswordArgument);
            return;
        }
        self.take_text(name.to_owned(), text, origin);
    }

    fn take_text(&mut self, name: String, text: &str, origin: Origin) {
        let raw = keys::find(&name).map(|key| Raw::from_text(&key.kind, text));
        self.take(Given { name, raw, origin });
    }

    fn take(&mut self, given: Given) {
        let Given { name, raw, origin } = given;
        let (Some(key), Some(raw)) = (keys::find(&name), raw) else {
            self.errors.push(unknown(&name, origin));
            return;
        };
        match Value::parse(&key.kind, &raw) {
            Ok(value) => self.settings.set(key.name, value, origin),
            Err(problem) => self.fail(key.name, origin, problem),
        }
    }
}

fn unknown(name: &str, origin: Origin) -> ConfigError {
    let nearest = keys::nearest(name);
    let problem = if keys::is_section(name) {
        Problem::NotAValue(name.to_owned())
    } else if matches!(origin, Origin::Environment(_)) {
        let variable = nearest.to_uppercase().replace('.', "__");
        Problem::UnknownKey { nearest: format!("{ENVIRONMENT_PREFIX}{variable}") }
    } else {
        Problem::UnknownKey { nearest: nearest.to_owned() }
    };
    ConfigError { key: show_text(name), origin, problem }
}

fn file_layer(path: &Path, text: &str) -> Result<Vec<Given>, Box<ConfigError>> {
    let line_of = |offset: usize| 1 + text[..offset].matches('\n').count();
    let table = DeTable::parse(text).map_err(|error| {
        let offset = error.span().map_or(0, |span| span.start).min(text.len());
        let line_start = text[..offset].rfind('\n').map_or(0, |newline| newline + 1);
        let column = 1 + text[line_start..offset].chars().count();
        Box::new(ConfigError {
            key: String::new(),
            origin: Origin::File { path: path.to_owned(), line: Some(line_of(offset)) },
            problem: Problem::Syntax { column, message: error.message().to_owned() },
        })
    })?;
    let mut given = Vec::new();
    flatten(table.get_ref(), "", &mut |name, offset, raw| {
        let origin = Origin::File { path: path.to_owned(), line: Some(line_of(offset)) };
        given.push(Given { name, raw, origin });
    });
    given.sort_by_key(|given| match given.origin {
        Origin::File { line, .. } => line,
        _ => None,
    });
    Ok(given)
}

/// Calls `give` for each key in the sections of a table with its full name, its place and its value; a table that is
/// no section is given whole, without a value, so that it makes one error and not one for each key in it.
fn flatten(table: &DeTable<'_>, section: &str, give: &mut impl FnMut(String, usize, Option<Raw>)) {
    for (key, value) in table {
        let name = match section {
            "" => key.get_ref().to_string(),
            _ => format!("{section}.{}", key.get_ref()),
        };
        match value.get_ref() {
            DeValue::Table(inner) if keys::is_section(&name) => flatten(inner, &name, give),
            other => {
                let raw = keys::find(&name).map(|_| Raw::from(other));
                give(name, key.span().start, raw);
            }
        }
    }
}

impl Default for Settings {
    /// All defaults.
    fn default() -> Self {
        let setting = |key: &'static Key| {
            let raw = Raw::from_text(&key.kind, key.default);
            let value = Value::parse(&key.kind, &raw);
            let value = value.unwrap_or_else(|problem| unreachable!("{}: {problem}", key.name));
            (key.name, Setting { value, origin: Origin::Default })
        };
        Self(KEYS.iter().map(setting).collect())
    }
}

/// Makes a getter for one kind of value. Asking for a key under another kind than the table's is a programmer's error
/// that the first test to load a configuration hits.
macro_rules! getter {
    ($name:ident, $variant:ident, $type:ty) => {
        pub(super) fn $name(&self, key: &'static str) -> &$type {
            match &self.get(key).value {
                Value::$variant(value) => value,
                other => unreachable!("{key} is not a {}: {other:?}", stringify!($variant)),
            }
        }
    };
}

impl Settings {
    /// The setting of a key of [`KEYS`].
    pub(super) fn get(&self, key: &'static str) -> &Setting {
        match self.0.get(key) {
            Some(setting) => setting,
            None => unreachable!("{key} is not in the table of keys"),
        }
    }

    /// Replaces a setting.
    pub(super) fn set(&mut self, key: &'static str, value: Value, origin: Origin) {
        self.0.insert(key, Setting { value, origin });
    }

    getter!(text, Text, String);
    getter!(uri, Uri, Option<Uri>);
    getter!(path, Path, Option<PathBuf>);
    getter!(address, Address, Option<std::net::SocketAddr>);
    getter!(bool, Bool, bool);
    getter!(integer, Integer, u64);
    getter!(duration, Duration, std::time::Duration);
    getter!(size, Size, u64);
    getter!(choice, Choice, &'static str);
    getter!(list, List, Vec<String>);
    getter!(renames, Renames, Vec<crate::selection::RenameRule>);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_file(text: &str) -> Layered {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("c.toml");
        fs::write(&file, text).unwrap();
        read(&inputs(file))
    }

    fn inputs(file: PathBuf) -> Inputs {
        Inputs {
            file,
            file_required: true,
            env: Vec::new(),
            overrides: Vec::new(),
            credentials_directory: None,
        }
    }

    /// `line: key: problem` of each error.
    fn lines(layered: &Layered) -> Vec<String> {
        let line = |error: &ConfigError| match &error.origin {
            Origin::File { line: Some(line), .. } => {
                format!("{line}: {}: {}", error.key, error.problem)
            }
            other => format!("{other}: {}: {}", error.key, error.problem),
        };
        layered.errors.iter().map(line).collect()
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
    }

    #[test]
    fn reports_everything_at_once_with_its_line() {
        let layered = read_file(
            "state = 1\n[sync]\nwidnow = \"1s\"\nwindow = 1\n\n[copy]\nworkers = 65\n\
             [replay]\nworkers = \"many\"\n[archive.rebase]\nmin = 1\n[snapshots]\na = 1\nb = 2\n",
        );
        assert_eq!(
            lines(&layered),
            [
                "1: state: is a section, not a value; write [state] and its keys below it",
                "3: sync.widnow: no such key; the nearest is sync.window",
                "4: sync.window: 1 is not a duration with its unit, such as \"10s\", \"500ms\" or \"7d\"",
                "7: copy.workers: 65 is out of range; it can be 0 to 64",
                "9: replay.workers: \"many\" is not a whole number, 0 to 64",
                "11: archive.rebase.min: no such key; the nearest is archive.rebase",
                "12: snapshots: no such key; the nearest is snapshot",
            ]
        );
    }

    #[test]
    fn a_syntax_error_has_its_place_and_no_text() {
        let layered = read_file("[source]\nuri = \"mongodb://u:hunter2@h\" hunter2\n");
        let [error] = &lines(&layered)[..] else { panic!("{:?}", lines(&layered)) };
        assert!(error.starts_with("2: : column 31: not valid TOML: "), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }

    #[test]
    fn later_layers_win() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("c.toml");
        fs::write(&file, "[copy]\nworkers = 1\n[replay]\nworkers = 1\n[sync]\nwindow = \"2s\"\n")
            .unwrap();
        let mut inputs = inputs(file.clone());
        inputs.env = pairs(&[
            ("SNAPSYNC__COPY__WORKERS", "2"),
            ("SNAPSYNC__REPLAY__WORKERS", "2"),
            ("SNAPSYNC_LOG", "not ours"),
            ("SNAPSYNC", "not ours"),
        ]);
        inputs.overrides = pairs(&[("copy.workers", "4"), ("copy.workers", "3")]);
        let layered = read(&inputs);
        assert_eq!(lines(&layered), [""; 0]);
        let origin =
            |key| (*layered.settings.integer(key), layered.settings.get(key).origin.clone());
        assert_eq!(origin("copy.workers"), (3, Origin::Flag("copy.workers".to_owned())));
        let variable = Origin::Environment("SNAPSYNC__REPLAY__WORKERS".to_owned());
        assert_eq!(origin("replay.workers"), (2, variable));
        let place = Origin::File { path: file, line: Some(6) };
        assert_eq!(layered.settings.get("sync.window").origin, place);
        assert_eq!(layered.settings.get("live.max_lag").origin, Origin::Default);
    }

    #[test]
    fn unknown_variables_and_flags_are_errors() {
        let mut inputs = inputs(PathBuf::from("/nowhere/c.toml"));
        inputs.file_required = false;
        inputs.env = pairs(&[
            ("SNAPSYNC__SYNC__WINDOWS", "mongodb://u:hunter2@h"),
            ("SNAPSYNC__SYNC", "x"),
            ("SNAPSYNC__ARCHIVE__REBASE__MIN_INTERVAL", "2h"),
        ]);
        inputs.overrides = pairs(&[
            ("sync.windows", "hunter2"),
            ("mongodb://u:hunter2@h/?w", "1"),
            ("source.uri", "mongodb://u:hunter2@h"),
            ("target.uri", "mongodb://u:hunter/2@h"),
        ]);
        let layered = read(&inputs);
        let text = lines(&layered).join("\n");
        assert!(!text.contains("hunter"), "{text}");
        assert_eq!(layered.errors.len(), 6, "{text}");
        assert!(text.starts_with(
            "environment variable SNAPSYNC__SYNC__WINDOWS: sync.windows: no such key; \
             the nearest is SNAPSYNC__SYNC__WINDOW\n"
        ));
        assert!(layered.errors.iter().any(|error| error.problem == Problem::PasswordArgument));
        assert!(layered.failed.contains("source.uri") && layered.failed.contains("target.uri"));
    }

    #[test]
    fn a_missing_file_is_an_error_only_if_it_was_named() {
        let mut inputs = inputs(PathBuf::from("/nowhere/c.toml"));
        assert!(matches!(read(&inputs).errors[0].problem, Problem::Unreadable(_)));
        inputs.file_required = false;
        assert!(read(&inputs).errors.is_empty());
    }

    #[test]
    fn tables_with_keys_of_their_own_are_taken_whole() {
        let layered = read_file(
            "[archive.credentials.\"s3://bucket/x\"]\nprofile = \"a\"\n[[sync.rename]]\nfrom = \"a\"\nto = \"b\"\n",
        );
        assert_eq!(lines(&layered), [""; 0]);
        assert_eq!(layered.settings.renames("sync.rename").len(), 1);
    }

    #[test]
    fn takes_the_first_directory_of_systemd() {
        let mut inputs = inputs(PathBuf::new());
        inputs.env = pairs(&[("STATE_DIRECTORY", "/a:/b"), ("RUNTIME_DIRECTORY", "")]);
        assert_eq!(inputs.systemd_directory("STATE_DIRECTORY"), Some(PathBuf::from("/a")));
        assert_eq!(inputs.systemd_directory("RUNTIME_DIRECTORY"), None);
        assert_eq!(inputs.systemd_directory("OTHER"), None);
    }
}
