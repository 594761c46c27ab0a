//! One real `mongod` process.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bson::{Document, doc};
use mongodb::Client;
use mongodb::options::{ClientOptions, Credential};
use rustix::process::Signal;

use super::process::{Folder, Process, copy_folder, find_in_path, free_port, tail};

const LOG: &str = "mongod.log";
/// Small unless a caller says otherwise: many servers run side by side.
const CACHE: &str = "--wiredTigerCacheSizeGB";

/// Long enough for a server on a machine that is busy with other tests.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A running (or killed) server with its data in a temporary folder. Killed and removed when dropped.
#[derive(Debug)]
pub struct Mongod {
    process: Process,
    binary: PathBuf,
    port: u16,
    args: Vec<String>,
    folder: Folder,
    /// Where in the log the present process begins.
    log_from: usize,
}

impl Mongod {
    /// Starts a server with further arguments and waits until it listens; of a version such as `4.4.2`, or of the one
    /// that is tested with.
    ///
    /// # Panics
    /// If there is no such binary, or the server does not come up; the message holds the end of its log.
    pub async fn start(version: Option<&str>, args: &[String]) -> Self {
        let binary = version.map_or_else(find_mongod, fetched);
        let folder = Folder::new("mongod");
        std::fs::create_dir(folder.path().join("data")).expect("create the data folder");
        let port = free_port();
        let process = spawn(&binary, &folder, port, args);
        let mut mongod = Self { process, binary, port, args: args.to_vec(), folder, log_from: 0 };
        // Another process may take the port between our look and the server's bind.
        for _ in 0..5 {
            if mongod.listens().await {
                return mongod;
            }
            mongod.port = free_port();
            mongod.spawn_again();
        }
        panic!("no port could be bound:\n{}", mongod.log_tail());
    }

    /// A server that belongs to no replica set, and so has no oplog.
    pub async fn standalone() -> Self {
        Self::start(None, &[]).await
    }

    /// `127.0.0.1:port`.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// A connection string to this one server.
    pub fn uri(&self) -> String {
        format!("mongodb://{}/?directConnection=true", self.host())
    }

    /// A client of this one server, whatever its role.
    pub async fn client(&self, credential: Option<Credential>) -> Client {
        let mut options = ClientOptions::parse(self.uri()).await.expect("a valid URI");
        options.credential = credential;
        options.app_name = Some("snapsync-tests".to_owned());
        options.server_selection_timeout = Some(Duration::from_secs(5));
        Client::with_options(options).expect("a client")
    }

    /// Its answer to `isMaster` (4.2 does not know `hello`); an error if it does not answer now.
    pub async fn hello(&self) -> Result<Document, String> {
        let mut options = ClientOptions::parse(self.uri()).await.map_err(|e| e.to_string())?;
        options.server_selection_timeout = Some(Duration::from_millis(500));
        let client = Client::with_options(options).map_err(|e| e.to_string())?;
        client.database("admin").run_command(doc! {"isMaster": 1}).await.map_err(|e| e.to_string())
    }

    /// Where its data is.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// The operating system's number of the process.
    pub fn process_id(&self) -> u32 {
        self.process.id()
    }

    /// SIGKILL, as a power cut would; the data stays for [`Mongod::restart`].
    pub fn kill9(&mut self) {
        self.process.kill9();
    }

    /// SIGSTOP: the connections stay open, nothing answers.
    pub fn freeze(&mut self) {
        self.process.signal(Signal::STOP);
    }

    /// SIGCONT: goes on after [`Mongod::freeze`].
    pub fn thaw(&mut self) {
        self.process.signal(Signal::CONT);
    }

    /// SIGTERM, and waits for the orderly end.
    pub async fn shut_down(&mut self) {
        self.process.signal(Signal::TERM);
        let ended = self.process.wait_exit(START_TIMEOUT).await;
        assert!(ended.is_some(), "mongod does not end on SIGTERM:\n{}", self.log_tail());
    }

    /// Starts the server again on the same data and port, and waits until it listens.
    pub async fn restart(&mut self) {
        self.restart_with(&[]).await;
    }

    /// As [`Mongod::restart`], with arguments added for good.
    pub async fn restart_with(&mut self, args: &[String]) {
        self.process.kill9();
        self.args.extend_from_slice(args);
        self.spawn_again();
        let up = self.listens().await;
        assert!(up, "port {} was taken while its mongod was down", self.port);
    }

    /// Copies the data of a server that has ended, for [`Mongod::set_back`].
    pub fn back_up(&self) -> Folder {
        let backup = Folder::new("backup");
        copy_folder(&self.folder.path().join("data"), &backup.path().join("data"));
        backup
    }

    /// Puts the data of a server that has ended back to what it was.
    pub fn set_back(&self, backup: &Folder) {
        let data = self.folder.path().join("data");
        std::fs::remove_dir_all(&data).expect("remove the data");
        copy_folder(&backup.path().join("data"), &data);
    }

    fn spawn_again(&mut self) {
        self.log_from = log_since(&self.folder, 0).len();
        self.process = spawn(&self.binary, &self.folder, self.port, &self.args);
    }

    /// All that the server has logged.
    pub fn log(&self) -> String {
        log_since(&self.folder, 0)
    }

    /// The end of the server's log.
    pub fn log_tail(&self) -> String {
        tail(&self.folder.path().join(LOG), 25)
    }

    /// Waits until the server listens; false if it ended because its port was taken. Read from the server's own log:
    /// an answer on the port might come from another server that was quicker.
    async fn listens(&mut self) -> bool {
        let started = Instant::now();
        loop {
            let log = log_since(&self.folder, self.log_from);
            if log.contains("aiting for connections") {
                return true;
            }
            if let Some(status) = self.process.ended() {
                let taken = log.contains("Address already in use");
                assert!(taken, "mongod ended ({status}):\n{}", self.log_tail());
                return false;
            }
            let late = started.elapsed() > START_TIMEOUT;
            assert!(!late, "mongod does not listen:\n{}", self.log_tail());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// What the server logged after the first `from` bytes.
fn log_since(folder: &Folder, from: usize) -> String {
    let log = std::fs::read(folder.path().join(LOG)).unwrap_or_default();
    String::from_utf8_lossy(log.get(from..).unwrap_or_default()).into_owned()
}

fn spawn(binary: &Path, folder: &Folder, port: u16, args: &[String]) -> Process {
    let data = folder.path().join("data");
    let log = folder.path().join(LOG);
    let command = |command: &mut std::process::Command| {
        command
            .arg("--port")
            .arg(port.to_string())
            .arg("--dbpath")
            .arg(&data)
            .args(["--bind_ip", "127.0.0.1", "--nounixsocket"])
            .args(["--setParameter", "diagnosticDataCollectionEnabled=false"])
            .args(args);
        if !args.iter().any(|arg| arg == CACHE) {
            command.args([CACHE, "0.25"]);
        }
    };
    Process::start(binary, command, &log)
}

/// The server binary: `SNAPSYNC_MONGOD`, else on `PATH`, else the one `make mongod` fetched.
fn find_mongod() -> PathBuf {
    if let Some(file) = std::env::var_os("SNAPSYNC_MONGOD") {
        let file = PathBuf::from(file);
        assert!(file.is_file(), "SNAPSYNC_MONGOD={} is not there", file.display());
        return file;
    }
    let cached = cached("6.0.5");
    find_in_path("mongod").or_else(|| cached.is_file().then_some(cached)).unwrap_or_else(|| {
        panic!("no mongod: run `make mongod`, or set SNAPSYNC_MONGOD to the path of one")
    })
}

/// The server of this version that `scripts/fetch-mongod.sh` fetched.
fn fetched(version: &str) -> PathBuf {
    let file = cached(version);
    assert!(file.is_file(), "no mongod {version}: run `scripts/fetch-mongod.sh {version}`");
    file
}

fn cached(version: &str) -> PathBuf {
    let cache = std::env::var_os("SNAPSYNC_CACHE").map(PathBuf::from);
    let cache = cache.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(".cache"));
    cache.join("mongod").join(version).join("mongod")
}
