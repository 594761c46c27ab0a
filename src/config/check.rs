//! From settings to a [`Config`]: what no single value can show. Connection strings from files and credentials, paths
//! that depend on systemd, and values that do not fit together.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::error::{ConfigErrors, Origin, Problem};
use super::layers::{self, DEFAULT_FILE, Inputs, Layered, Settings, unreadable};
use super::secret::{Secret, Uri};
use super::snapshot::{self, Snapshot};
use super::uris::{SOURCE, TARGET, check_two_deployments, resolve_uri};
use super::value::Value;
use super::{
    Config, Control, Copy, Cutover, Delta, DeltaLog, Live, Log, LogFormat, LogLevel, Memory,
    OnDivergence, OnExistingData, Replay, Resync, Source, Spool, State, Sync, Target, Verify, keys,
};
use crate::selection::Selection;

/// Switches for features that are documented but not built: they may be written, but only as `false`.
const NOT_AVAILABLE: [&str; 2] = ["archive.enabled", "archive.only"];

/// The file name of the unix socket in its directory.
const SOCKET_NAME: &str = "control.sock";

/// Where the unit's daemon has its socket when nothing says otherwise.
const UNIT_SOCKET: &str = "/run/snapsync/control.sock";

/// Longest path of a unix socket in bytes: the kernel's 108 less the final zero.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Shortest token in bytes that cannot be guessed over the network.
const TOKEN_BYTES_MIN: usize = 16;

/// A configuration and what is unwise about it.
#[derive(Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Sentences to log, without secrets.
    pub warnings: Vec<String>,
}

/// What a configuration is read for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// What `[sync]` selects, from one deployment to another.
    Migration,
    /// What `[snapshot]` says; both databases may be in one deployment.
    Snapshot,
}

/// Reads and checks everything.
pub(super) fn load(inputs: &Inputs, purpose: Purpose) -> Result<Loaded, ConfigErrors> {
    let mut layered = layers::read(inputs);
    check_availability(&mut layered);
    let source = resolve_uri(inputs, &SOURCE, &mut layered);
    let target = resolve_uri(inputs, &TARGET, &mut layered);
    let selection = match (purpose, &source, &target) {
        (Purpose::Snapshot, ..) => snapshot::check(source.as_ref(), target.as_ref(), &mut layered),
        (Purpose::Migration, Some(source), Some(target)) => {
            check_two_deployments(source, target, &mut layered);
            check_selection(&mut layered)
        }
        (Purpose::Migration, ..) => check_selection(&mut layered),
    };
    resolve_directories(inputs, &mut layered);
    let token = check_control(&mut layered);
    check_rebase(&mut layered);

    let Layered { settings, errors, .. } = layered;
    match (source, target, selection) {
        (Some(source), Some(target), Some(selection)) if errors.is_empty() => {
            let warnings = warn_of_readable_secrets(inputs, &settings);
            let config = assemble(settings, source, target, selection, token);
            Ok(Loaded { config, warnings })
        }
        _ => Err(ConfigErrors(errors)),
    }
}

/// The sockets at which a running daemon may listen, best first. For commands, which need neither connection strings
/// nor the right to read them: what is wrong with the configuration is left to the daemon, unless `--config` named it.
///
/// # Errors
///
/// When the named file cannot be read, is not TOML or has a bad key: guessing then could reach another daemon.
pub fn control_sockets(inputs: &Inputs) -> Result<Vec<PathBuf>, ConfigErrors> {
    let layered = layers::read(inputs);
    if inputs.file_required && !layered.errors.is_empty() {
        return Err(ConfigErrors(layered.errors));
    }
    if let Some(socket) = layered.settings.path("control.socket") {
        return Ok(vec![socket.clone()]);
    }
    let state = state_directory(inputs, &layered.settings);
    let runtime = inputs.systemd_directory("RUNTIME_DIRECTORY").map(|path| path.join(SOCKET_NAME));
    let mut sockets: Vec<_> = runtime.into_iter().collect();
    sockets.push(unit_socket(&inputs.file));
    sockets.push(state.join(SOCKET_NAME));
    Ok(sockets)
}

/// Where the unit of this file has its socket: `snapsync@NAME.service` reads `NAME.toml` beside the default file.
fn unit_socket(file: &Path) -> PathBuf {
    let default = Path::new(DEFAULT_FILE);
    match file.file_stem().and_then(OsStr::to_str) {
        Some(name) if file.parent() == default.parent() && file != default => {
            PathBuf::from(format!("/run/snapsync-{name}/{SOCKET_NAME}"))
        }
        _ => PathBuf::from(UNIT_SOCKET),
    }
}

fn check_availability(layered: &mut Layered) {
    for key in NOT_AVAILABLE {
        if *layered.settings.bool(key) {
            let origin = layered.settings.get(key).origin.clone();
            layered.fail(key, origin, Problem::NotAvailable);
        }
    }
}

fn check_selection(layered: &mut Layered) -> Option<Selection> {
    let keys = ["sync.include", "sync.exclude", "sync.rename"];
    if keys.iter().any(|key| layered.failed.contains(key)) {
        return None;
    }
    let settings = &layered.settings;
    let [include, exclude] = [settings.list("sync.include"), settings.list("sync.exclude")];
    match Selection::new(include, exclude, settings.renames("sync.rename")) {
        Ok(selection) => Some(selection),
        Err(errors) => {
            for error in errors {
                let key = error.key();
                let origin = layered.settings.get(key).origin.clone();
                layered.fail(key, origin, error.into());
            }
            None
        }
    }
}

fn state_directory(inputs: &Inputs, settings: &Settings) -> PathBuf {
    let systemd = inputs.systemd_directory("STATE_DIRECTORY");
    // The key's kind does not allow an empty path.
    systemd.or_else(|| settings.path("state.directory").clone()).unwrap_or_default()
}

/// Puts the directories that systemd passes into the settings they decide.
fn resolve_directories(inputs: &Inputs, layered: &mut Layered) {
    let settings = &mut layered.settings;
    let state = state_directory(inputs, settings);
    let environment = |name: &str| Origin::Environment(name.to_owned());
    if inputs.systemd_directory("STATE_DIRECTORY").is_some() {
        let value = Value::Path(Some(state.clone()));
        settings.set("state.directory", value, environment("STATE_DIRECTORY"));
    }
    if settings.path("control.socket").is_none() {
        let (directory, origin) = match inputs.systemd_directory("RUNTIME_DIRECTORY") {
            Some(runtime) => (runtime, environment("RUNTIME_DIRECTORY")),
            None => (state, settings.get("state.directory").origin.clone()),
        };
        settings.set("control.socket", Value::Path(Some(directory.join(SOCKET_NAME))), origin);
    }
}

/// Checks `[control]`; gives the token.
fn check_control(layered: &mut Layered) -> Option<Secret> {
    let settings = &layered.settings;
    let listen = settings.address("control.listen").filter(|address| !address.ip().is_loopback());
    let token_file = settings.path("control.token_file").clone();
    let socket = settings.path("control.socket").clone().unwrap_or_default();
    if let (Some(address), None) = (listen, &token_file)
        && !layered.failed.contains("control.token_file")
    {
        let origin = settings.get("control.listen").origin.clone();
        let text =
            format!("{address} can be reached from other machines; set control.token_file too");
        layered.fail("control.listen", origin, Problem::Conflict(text));
    }
    let length = socket.as_os_str().len();
    if length > SOCKET_PATH_BYTES_MAX {
        let origin = layered.settings.get("control.socket").origin.clone();
        let text = format!(
            "the socket's path {} has {length} bytes and can have {SOCKET_PATH_BYTES_MAX}; set control.socket",
            socket.display()
        );
        layered.fail("control.socket", origin, Problem::Conflict(text));
    }
    token_file.and_then(|path| read_token(path, layered))
}

fn read_token(path: PathBuf, layered: &mut Layered) -> Option<Secret> {
    let key = "control.token_file";
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) => {
            layered.errors.push(unreadable(Origin::NamedFile { path, key }, &error));
            return None;
        }
    };
    let token = text.trim();
    let plain = token.bytes().all(|byte| byte.is_ascii_graphic());
    if token.len() < TOKEN_BYTES_MIN || !plain {
        let text = format!(
            "the token must have {TOKEN_BYTES_MIN} or more characters of ASCII without spaces; write for example what \
             openssl rand -hex 32 prints"
        );
        layered.fail(key, Origin::NamedFile { path, key }, Problem::Conflict(text));
        return None;
    }
    Some(Secret::new(token))
}

fn check_rebase(layered: &mut Layered) {
    let (min, max) = ("archive.rebase.min_interval", "archive.rebase.max_interval");
    if layered.settings.duration(min) > layered.settings.duration(max) {
        let origin = layered.settings.get(min).origin.clone();
        let text =
            format!("is longer than {max}, so that no base is ever due in time; make it shorter");
        layered.fail(min, origin, Problem::Conflict(text));
    }
}

fn warn_of_readable_secrets(inputs: &Inputs, settings: &Settings) -> Vec<String> {
    let inline = |key: &&keys::Key| {
        let setting = settings.get(key.name);
        let secret = match &setting.value {
            Value::Uri(uri) => uri.as_ref().is_some_and(Uri::has_password),
            Value::Secret(secret) => !secret.expose().is_empty(),
            _ => false,
        };
        secret && matches!(setting.origin, Origin::File { .. })
    };
    let mut files: Vec<&Path> = Vec::new();
    if keys::KEYS.iter().any(|key| inline(&key)) {
        files.push(&inputs.file);
    }
    for key in [SOURCE.uri_file, TARGET.uri_file, "control.token_file"] {
        files.extend(settings.path(key).as_deref());
    }
    files.sort();
    files.dedup();
    let readable = files.into_iter().filter(|path| is_world_readable(path));
    let warn = |path: &Path| {
        let path = path.display();
        format!(
            "{path} holds a secret and every user of this machine can read it; chmod o-r {path}"
        )
    };
    readable.map(warn).collect()
}

fn is_world_readable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.mode() & 0o004 != 0)
}

/// Puts checked values into their typed places.
fn assemble(
    settings: Settings,
    source: Uri,
    target: Uri,
    selection: Selection,
    token: Option<Secret>,
) -> Config {
    let path = |key| settings.path(key).clone().unwrap_or_default();
    let limit = |key| Some(*settings.size(key)).filter(|bytes| *bytes > 0);
    let workers = |key| usize::try_from(*settings.integer(key)).unwrap_or(usize::MAX);
    Config {
        source: Source { uri: source },
        target: Target {
            uri: target,
            on_existing_data: OnExistingData::from_word(settings.choice("target.on_existing_data")),
        },
        sync: Sync {
            selection,
            window: *settings.duration("sync.window"),
            on_divergence: OnDivergence::from_word(settings.choice("sync.on_divergence")),
        },
        resync: Resync { keep_replaced: *settings.duration("resync.keep_replaced") },
        live: Live { max_lag: *settings.duration("live.max_lag") },
        copy: Copy {
            max_bytes_per_second: limit("copy.max_bytes_per_second"),
            workers: workers("copy.workers"),
        },
        replay: Replay { workers: workers("replay.workers") },
        memory: Memory { max_bytes: *settings.size("memory.max_bytes") },
        delta: Delta {
            interval: *settings.duration("delta.interval"),
            log: DeltaLog::from_word(settings.choice("delta.log")),
        },
        verify: Verify {
            continuous: *settings.bool("verify.continuous"),
            max_bytes_per_second: limit("verify.max_bytes_per_second"),
        },
        spool: Spool { max_bytes: limit("spool.max_bytes") },
        state: State { directory: path("state.directory") },
        control: Control {
            listen: *settings.address("control.listen"),
            token,
            socket: path("control.socket"),
        },
        cutover: Cutover {
            quiet_for: *settings.duration("cutover.quiet_for"),
            hooks: path("cutover.hooks"),
            postpone_file: settings.path("cutover.postpone_file").clone(),
        },
        log: Log {
            format: LogFormat::from_word(settings.choice("log.format")),
            level: LogLevel::from_word(settings.choice("log.level")),
        },
        snapshot: Snapshot::of(&settings),
        settings,
    }
}

#[cfg(test)]
mod tests {
    use super::super::uris::tests::{Fixture, URIS};
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn two_uris_are_enough() {
        let config = Fixture::new(URIS).load();
        assert_eq!(config.source.uri.expose(), "mongodb://a");
        assert_eq!(config.sync.window.as_secs(), 1);
        assert_eq!(config.copy.max_bytes_per_second, None);
        assert_eq!(config.control.socket, Path::new("/var/lib/snapsync/control.sock"));
    }

    #[test]
    fn a_broken_or_missing_file_is_one_error() {
        let mut fixture = Fixture::new("[source]\nuri = nonsense\n");
        let file = fixture.inputs.file.display().to_string();
        let errors = fixture.errors();
        assert_eq!(errors.lines().count(), 1, "{errors}");
        assert!(
            errors.starts_with(&format!("{file}, line 2: column 7: not valid TOML")),
            "{errors}"
        );
        fixture.inputs.file = "/nowhere/c.toml".into();
        let errors = fixture.errors();
        assert_eq!(errors.lines().count(), 1, "{errors}");
        assert!(errors.starts_with("/nowhere/c.toml: cannot be read: "), "{errors}");
    }

    #[test]
    fn a_selection_error_points_at_its_line() {
        let fixture = Fixture::new(&format!("{URIS}[sync]\ninclude = []\nexclude = [\".\"]\n"));
        let file = fixture.inputs.file.display();
        let errors = fixture.errors();
        assert!(errors.starts_with(&format!("{file}, line 6: sync.include: nothing is included")));
        assert!(errors.contains(&format!("\n{file}, line 7: sync.exclude: ")), "{errors}");
    }

    #[test]
    fn systemd_directories_win_where_they_should() {
        let fixture =
            Fixture::new(URIS).set("state.directory", "/x").env("STATE_DIRECTORY", "/s:/t");
        let config = fixture.load();
        assert_eq!(config.state.directory, Path::new("/s"));
        assert_eq!(config.control.socket, Path::new("/s/control.sock"));
        let fixture = fixture.env("RUNTIME_DIRECTORY", "/r");
        assert_eq!(fixture.load().control.socket, Path::new("/r/control.sock"));
        let fixture = fixture.set("control.socket", "/own.sock");
        assert_eq!(fixture.load().control.socket, Path::new("/own.sock"));
    }

    #[test]
    fn commands_find_the_socket_without_a_valid_configuration() {
        let mut fixture = Fixture::new("nonsense");
        assert!(control_sockets(&fixture.inputs).is_err());
        fixture.inputs.file_required = false;
        let sockets = |fixture: &Fixture| control_sockets(&fixture.inputs).unwrap();
        let unit = PathBuf::from(UNIT_SOCKET);
        let state = PathBuf::from("/var/lib/snapsync/control.sock");
        assert_eq!(sockets(&fixture), [unit.clone(), state.clone()]);
        let fixture = fixture.env("RUNTIME_DIRECTORY", "/r");
        assert_eq!(sockets(&fixture), ["/r/control.sock".into(), unit, state]);
        let fixture = fixture.set("control.socket", "/own.sock");
        assert_eq!(sockets(&fixture), [PathBuf::from("/own.sock")]);
    }

    /// A command meant for one migration must never reach the daemon of another.
    #[test]
    fn an_instance_of_the_unit_has_a_socket_of_its_own() {
        let socket = |file: &str| unit_socket(Path::new(file)).display().to_string();
        assert_eq!(socket("/etc/snapsync/snapsync.toml"), UNIT_SOCKET);
        assert_eq!(socket("/etc/snapsync/shop.toml"), "/run/snapsync-shop/control.sock");
        assert_eq!(socket("/home/me/shop.toml"), UNIT_SOCKET);
    }

    #[test]
    fn http_beyond_loopback_wants_a_token() {
        let fixture = Fixture::new(URIS).set("control.listen", "0.0.0.0:2727");
        assert!(fixture.errors().contains("set control.token_file too"));
        let short = fixture.write("short", "0123456789\n");
        let good = fixture.write("good", "0123456789abcdef\n");
        let fixture = fixture.set("control.token_file", &short);
        let errors = fixture.errors();
        assert!(errors.contains("16 or more") && !errors.contains("0123456789"), "{errors}");
        let config = fixture.set("control.token_file", &good).load();
        assert_eq!(config.control.token, Some(Secret::new("0123456789abcdef")));
        for listen in ["", "127.0.0.1:0", "[::1]:2727"] {
            assert_eq!(Fixture::new(URIS).set("control.listen", listen).load().control.token, None);
        }
        let fixture = Fixture::new(URIS).set("control.token_file", "/nowhere");
        assert!(fixture.errors().starts_with("/nowhere (control.token_file): cannot be read"));
    }

    #[test]
    fn refuses_a_socket_path_that_the_kernel_would_not_take() {
        let path = |bytes: usize| format!("/{}", "x".repeat(bytes - 1));
        Fixture::new(URIS).set("control.socket", &path(107)).load();
        let errors = Fixture::new(URIS).set("control.socket", &path(108)).errors();
        assert!(errors.contains("has 108 bytes and can have 107"), "{errors}");
    }

    #[test]
    fn what_is_not_built_can_only_be_off() {
        for key in NOT_AVAILABLE {
            Fixture::new(URIS).set(key, "false").load();
            let errors = Fixture::new(URIS).set(key, "true").errors();
            assert!(
                errors.contains(&format!("{key}: is not available in this version")),
                "{errors}"
            );
        }
        let fixture = Fixture::new(URIS).set("archive.rebase.max_interval", "59m");
        assert!(fixture.errors().contains("longer than archive.rebase.max_interval"));
    }

    #[test]
    fn warns_of_secrets_that_everybody_can_read() {
        let open =
            |path: &str| fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
        let warnings = |fixture: &Fixture| Config::load(&fixture.inputs).unwrap().warnings;
        let file = |fixture: &Fixture| fixture.inputs.file.display().to_string();

        let fixture = Fixture::new(&URIS.replace("//a", "//u:p@a"));
        assert_eq!(warnings(&fixture), [""; 0]);
        open(&file(&fixture));
        let found = warnings(&fixture);
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with(&format!("{} holds a secret", file(&fixture))), "{found:?}");

        let harmless = Fixture::new(URIS);
        open(&file(&harmless));
        assert_eq!(warnings(&harmless), [""; 0]);
        let uri = harmless.write("uri", "mongodb://u:p@c");
        open(&uri);
        let found = warnings(&harmless.set("source.uri", "").set("source.uri_file", &uri));
        assert!(found.len() == 1 && found[0].starts_with(&uri), "{found:?}");
    }
}
