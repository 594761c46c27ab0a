//! The real `snapsync run` process.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output};
use std::time::{Duration, Instant};

use bson::Timestamp;
use rustix::process::Signal;
use serde_json::Value;

use super::http::{self, Reply};
use super::process::{Folder, Process, copy_folder, free_port, tail};
use super::replica_set::ReplicaSet;

/// How often the daemon is asked while a test waits for it.
const POLL: Duration = Duration::from_millis(30);
/// For a line of the log.
const LOG_TIMEOUT: Duration = Duration::from_secs(30);

/// What the daemon is started with: two connection strings, and whatever a test adds.
#[derive(Debug, Clone)]
pub struct DaemonOptions {
    source_uri: String,
    target_uri: String,
    config: toml::Table,
    env: Vec<(String, String)>,
    command: &'static str,
}

impl DaemonOptions {
    /// For these two replica sets.
    pub fn new(source: &ReplicaSet, target: &ReplicaSet) -> Self {
        Self::with_uris(&source.uri(), &target.uri())
    }

    /// For any two connection strings.
    pub fn with_uris(source: &str, target: &str) -> Self {
        Self {
            source_uri: source.to_owned(),
            target_uri: target.to_owned(),
            config: toml::Table::new(),
            env: Vec::new(),
            command: "run",
        }
    }

    /// Adds configuration, such as `[sync]\nwindow = "200ms"`; laid over what is there, key by key.
    ///
    /// # Panics
    /// If it is not TOML.
    pub fn toml(mut self, text: &str) -> Self {
        let table: toml::Table = text.parse().unwrap_or_else(|e| panic!("test TOML: {e}\n{text}"));
        merge(&mut self.config, table);
        self
    }

    /// Another command of the program than `run`, such as one that ends by itself.
    pub fn command(mut self, command: &'static str) -> Self {
        self.command = command;
        self
    }

    /// Sets an environment variable of the process.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// A daemon that was started; it may have ended since. Killed when dropped.
///
/// Its state folder outlives its processes: [`Daemon::kill9`] and then [`Daemon::restart`] is a crash.
#[derive(Debug)]
pub struct Daemon {
    process: Process,
    options: DaemonOptions,
    address: String,
    folder: Folder,
}

impl Daemon {
    /// Starts `snapsync run` and returns at once; [`Daemon::wait_state`] waits for more.
    pub fn start(options: DaemonOptions) -> Self {
        let folder = Folder::new("daemon");
        let address = format!("127.0.0.1:{}", free_port());
        write_config(&folder, &address, &options);
        let process = spawn(&folder, &options);
        Self { process, options, address, folder }
    }

    /// Starts another daemon with the same configuration and a copy of this one's state folder, as on another host.
    pub fn start_copy(&self) -> Self {
        let folder = Folder::new("daemon");
        copy_folder(&self.state_directory(), &folder.path().join("state"));
        let address = format!("127.0.0.1:{}", free_port());
        write_config(&folder, &address, &self.options);
        let process = spawn(&folder, &self.options);
        Self { process, options: self.options.clone(), address, folder }
    }

    /// Starts a new process with the same configuration and state. The old one must have ended.
    pub fn restart(&mut self) {
        assert!(self.process.ended().is_some(), "restart of a daemon that runs");
        self.process = spawn(&self.folder, &self.options);
    }

    /// Adds configuration for the next [`Daemon::restart`] (or a SIGHUP).
    pub fn configure(&mut self, toml: &str) {
        self.options = self.options.clone().toml(toml);
        write_config(&self.folder, &self.address, &self.options);
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill9(&mut self) {
        self.process.kill9();
    }

    /// Sends any signal.
    pub fn signal(&mut self, signal: Signal) {
        self.process.signal(signal);
    }

    /// SIGTERM; returns the exit status and how long the end took.
    ///
    /// # Panics
    /// If it does not end within 30 s.
    pub async fn terminate(&mut self) -> (ExitStatus, Duration) {
        let started = Instant::now();
        self.process.signal(Signal::TERM);
        let status = self.wait_exit(Duration::from_secs(30)).await;
        (status, started.elapsed())
    }

    /// Waits until the process ends by itself.
    ///
    /// # Panics
    /// After `timeout`, with the end of the log; or if a part of the process panicked, whatever its exit status.
    pub async fn wait_exit(&mut self, timeout: Duration) -> ExitStatus {
        let ended = self.process.wait_exit(timeout).await;
        assert_eq!(self.log_lines("panicked at").len(), 0, "{}", self.log());
        ended.unwrap_or_else(|| panic!("snapsync still runs after {timeout:?}{}", self.log_tail()))
    }

    /// The exit status, if the process has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.process.ended()
    }

    /// The operating system's number of the process, for `/proc` and tools.
    pub fn process_id(&self) -> u32 {
        self.process.id()
    }

    /// Where it answers HTTP.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Its state folder.
    pub fn state_directory(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// Removes its state folder, as a lost disk would. It must have ended.
    pub fn lose_state(&mut self) {
        assert!(self.process.ended().is_some(), "the state of a daemon that runs");
        std::fs::remove_dir_all(self.state_directory()).expect("remove the state");
    }

    /// Its configuration file, for running other commands with `--config`.
    pub fn config_file(&self) -> PathBuf {
        self.folder.path().join("snapsync.toml")
    }

    /// Its unix socket.
    pub fn control_socket(&self) -> PathBuf {
        self.folder.path().join("control.sock")
    }

    /// Runs another command of the program, `snapsync ARGS… --config FILE`, to its end.
    pub fn command(&self, args: &[&str]) -> Output {
        let mut command = program();
        command.args(args).arg("--config").arg(self.config_file());
        command.output().expect("run snapsync")
    }

    /// `GET path` over TCP.
    pub async fn get(&self, path: &str) -> Result<Reply, String> {
        http::get(&self.address, path).await
    }

    /// `POST path` with a JSON body over the unix socket, as `snapsync pause` and the like do.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Reply, String> {
        http::over_socket(&self.control_socket(), "POST", path, body.to_string()).await
    }

    /// `GET /status` as JSON; an error if the daemon does not answer now.
    pub async fn status(&self) -> Result<Value, String> {
        let reply = self.get("/status").await?;
        if reply.status != 200 {
            return Err(format!("/status answers {}: {}", reply.status, reply.body));
        }
        serde_json::from_str(&reply.body).map_err(|e| format!("/status is not JSON: {e}"))
    }

    /// Waits until `status` satisfies `condition`, and returns that status.
    ///
    /// # Panics
    /// After `timeout`, or at once when the process ends; with the last status and the end of the log.
    pub async fn wait_status(
        &mut self,
        description: &str,
        timeout: Duration,
        condition: impl Fn(&Value) -> bool,
    ) -> Value {
        let started = Instant::now();
        loop {
            let last = match self.status().await {
                Ok(status) if condition(&status) => return status,
                Ok(status) => format!("{status:#}"),
                Err(error) => error,
            };
            if let Some(status) = self.process.ended() {
                panic!("snapsync ended ({status}), waiting for {description}{}", self.log_tail());
            }
            if started.elapsed() > timeout {
                let log = self.log_tail();
                panic!("waited {timeout:?} for {description}; the last status:\n{last}{log}");
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits up to 90 s for a state such as `"live"`.
    pub async fn wait_state(&mut self, state: &str) -> Value {
        let is = |status: &Value| status["state"] == state;
        self.wait_status(&format!("state {state}"), Duration::from_secs(90), is).await
    }

    /// Everything that it printed so far, over all its processes.
    pub fn log(&self) -> String {
        let log = std::fs::read(self.log_file()).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// The lines of the log that hold `text`.
    pub fn log_lines(&self, text: &str) -> Vec<String> {
        self.log().lines().filter(|line| line.contains(text)).map(str::to_owned).collect()
    }

    /// Waits for a line that holds `text`, and returns the first.
    pub async fn wait_log(&mut self, text: &str) -> String {
        self.wait_log_times(text, 1).await.swap_remove(0)
    }

    /// Waits for so many lines that hold `text`, and returns all there are.
    pub async fn wait_log_times(&mut self, text: &str, times: usize) -> Vec<String> {
        let started = Instant::now();
        loop {
            let lines = self.log_lines(text);
            if lines.len() >= times {
                return lines;
            }
            if started.elapsed() > LOG_TIMEOUT || self.process.ended().is_some() {
                panic!("no {times} lines with {text:?}{}", self.log_tail());
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Where its output goes.
    pub fn log_file(&self) -> PathBuf {
        self.folder.path().join("daemon.log")
    }

    /// The end of its log, under a heading, for messages.
    pub fn log_tail(&self) -> String {
        format!("\n--- the end of snapsync's log ---\n{}", tail(&self.log_file(), 40))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log_tail());
        }
    }
}

/// `resume_point.ts` of a status; zero while there is none.
pub fn resume_point(status: &Value) -> Timestamp {
    let ts = &status["resume_point"]["ts"];
    let part = |name: &str| ts[name].as_u64().and_then(|n| u32::try_from(n).ok()).unwrap_or(0);
    Timestamp { time: part("t"), increment: part("i") }
}

fn spawn(folder: &Folder, options: &DaemonOptions) -> Process {
    let config = folder.path().join("snapsync.toml");
    let command = |command: &mut Command| {
        command.arg(options.command).arg("--config").arg(&config);
        clean_environment(command);
        command.env("RUST_BACKTRACE", "1").envs(options.env.iter().cloned());
    };
    Process::start(&find_snapsync(), command, &folder.path().join("daemon.log"))
}

/// The program under test without arguments, in an environment without a service manager; for commands that have no
/// daemon.
pub fn program() -> Command {
    let mut command = Command::new(find_snapsync());
    clean_environment(&mut command);
    command
}

/// What a service manager sets would change what the daemon does.
fn clean_environment(command: &mut Command) {
    for name in ["NOTIFY_SOCKET", "JOURNAL_STREAM", "STATE_DIRECTORY", "RUNTIME_DIRECTORY"] {
        command.env_remove(name);
    }
    command.env_remove("CREDENTIALS_DIRECTORY").env_remove("WATCHDOG_USEC");
}

fn write_config(folder: &Folder, address: &str, options: &DaemonOptions) {
    let path = |name: &str| toml::Value::String(folder.path().join(name).display().to_string());
    let mut config = toml::Table::new();
    let mut set = |section: &str, key: &str, value: toml::Value| {
        let table = config.entry(section).or_insert_with(|| toml::Table::new().into());
        if let toml::Value::Table(table) = table {
            table.insert(key.to_owned(), value);
        }
    };
    set("source", "uri", options.source_uri.clone().into());
    set("target", "uri", options.target_uri.clone().into());
    set("state", "directory", path("state"));
    set("control", "listen", address.into());
    set("control", "socket", path("control.sock"));
    set("log", "format", "text".into());
    merge(&mut config, options.config.clone());
    std::fs::create_dir_all(folder.path().join("state")).expect("create the state folder");
    let text = toml::to_string(&config).expect("a configuration");
    std::fs::write(folder.path().join("snapsync.toml"), text).expect("write the configuration");
}

/// Lays `upper` over `lower`, table by table.
fn merge(lower: &mut toml::Table, upper: toml::Table) {
    for (key, value) in upper {
        match (lower.get_mut(&key), value) {
            (Some(toml::Value::Table(below)), toml::Value::Table(above)) => merge(below, above),
            (_, value) => drop(lower.insert(key, value)),
        }
    }
}

/// The program under test: `SNAPSYNC_BIN`, else the one cargo built with this test, else the one beside the example.
fn find_snapsync() -> PathBuf {
    if let Some(file) = std::env::var_os("SNAPSYNC_BIN") {
        return PathBuf::from(file);
    }
    if let Some(file) = option_env!("CARGO_BIN_EXE_snapsync") {
        return PathBuf::from(file);
    }
    let example = std::env::current_exe().expect("the path of this program");
    let folder = example.parent().and_then(Path::parent).expect("target/PROFILE/examples");
    let file = folder.join("snapsync");
    assert!(file.is_file(), "{} is not there: cargo build first", file.display());
    file
}
