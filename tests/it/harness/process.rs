//! Starting, signalling and ending child processes; free ports; temporary folders.

use std::fs::File;
use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{OnceLock, mpsc};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// A child process that is killed when dropped. Its output goes to a file.
#[derive(Debug)]
pub struct Process {
    child: Child,
    status: Option<ExitStatus>,
}

impl Process {
    /// Starts `program`; both output streams are appended to `log`.
    pub fn start(program: &Path, command: impl FnOnce(&mut Command), log: &Path) -> Self {
        let output = File::options().create(true).append(true).open(log).expect("open the log");
        let mut full = guarded(program);
        command(&mut full);
        full.stdin(Stdio::null())
            .stdout(output.try_clone().expect("duplicate the log's handle"))
            .stderr(output);
        let child = spawn(full)
            .unwrap_or_else(|error| panic!("cannot start {}: {error}", program.display()));
        Self { child, status: None }
    }

    /// The operating system's number of the process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The exit status, if the process has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().expect("ask for the exit status");
        }
        self.status
    }

    /// Sends a signal; nothing happens if the process has ended.
    pub fn signal(&mut self, signal: Signal) {
        if self.ended().is_none() {
            let pid = Pid::from_child(&self.child);
            kill_process(pid, signal).expect("send a signal to a child");
        }
    }

    /// SIGKILL, and waits until the process is gone.
    pub fn kill9(&mut self) {
        self.signal(Signal::KILL);
        self.status = Some(self.child.wait().expect("wait for a killed child"));
    }

    /// Waits for the process to end by itself; `None` if it still runs after `timeout`.
    pub async fn wait_exit(&mut self, timeout: Duration) -> Option<ExitStatus> {
        let started = Instant::now();
        while self.ended().is_none() && started.elapsed() < timeout {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.status
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ended().is_none() {
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}

/// A command that the kernel kills with the test binary, where `setpriv` is there to arrange it.
fn guarded(program: &Path) -> Command {
    static SETPRIV: OnceLock<Option<PathBuf>> = OnceLock::new();
    match SETPRIV.get_or_init(|| find_in_path("setpriv")) {
        Some(setpriv) => {
            let mut command = Command::new(setpriv);
            command.args(["--pdeathsig", "KILL", "--"]).arg(program);
            command
        }
        None => Command::new(program),
    }
}

/// Spawns on one thread that lives as long as the test binary: the kernel's "parent died" means the *thread* that
/// spawned, and tokio's threads and the threads of single tests end long before the processes they started.
fn spawn(command: Command) -> io::Result<Child> {
    type Request = (Command, mpsc::Sender<io::Result<Child>>);
    static SPAWNER: OnceLock<mpsc::Sender<Request>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, requests) = mpsc::channel::<Request>();
        std::thread::spawn(move || {
            for (mut command, reply) in requests {
                drop(reply.send(command.spawn()));
            }
        });
        sender
    });
    let (reply, child) = mpsc::channel();
    spawner.send((command, reply)).expect("the spawning thread runs");
    child.recv().expect("the spawning thread answers")
}

/// The full path of a program on `PATH`.
pub fn find_in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// A port of 127.0.0.1 that nobody listens on now. Taken from below the range that the kernel uses for outgoing
/// connections, so that a server that was killed finds its port free when it is started again.
pub fn free_port() -> u16 {
    const FIRST: u16 = 15_000;
    const COUNT: u16 = 17_000;
    static NEXT: OnceLock<AtomicU16> = OnceLock::new();
    let next = NEXT.get_or_init(|| {
        // Test binaries that run at the same time begin at different places.
        let spread = std::process::id().wrapping_mul(37) % u32::from(COUNT);
        AtomicU16::new(u16::try_from(spread).expect("less than COUNT"))
    });
    for _ in 0..COUNT {
        let port = FIRST + next.fetch_add(1, Ordering::Relaxed) % COUNT;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port between {FIRST} and {}", FIRST + COUNT)
}

/// A temporary folder that is removed when dropped, unless `SNAPSYNC_KEEP` is set and a test is failing.
#[derive(Debug)]
pub struct Folder(Option<TempDir>);

impl Folder {
    /// A new folder with a name that begins with `prefix`.
    pub fn new(prefix: &str) -> Self {
        let folder = tempfile::Builder::new().prefix(&format!("snapsync-{prefix}-")).tempdir();
        Self(Some(folder.expect("create a temporary folder")))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.as_ref().expect("the folder is there until it is dropped").path()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let keep = std::env::var_os("SNAPSYNC_KEEP").is_some() && std::thread::panicking();
        if let Some(folder) = self.0.take()
            && keep
        {
            eprintln!("kept: {}", folder.keep().display());
        }
    }
}

/// The last `lines` lines of a file, for messages; empty if it cannot be read.
pub fn tail(file: &Path, lines: usize) -> String {
    let text = std::fs::read(file).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Copies a folder with everything in it that is a file.
pub fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("make a folder");
    for entry in std::fs::read_dir(from).expect("read a folder") {
        let entry = entry.expect("read a folder");
        let to = to.join(entry.file_name());
        let kind = entry.file_type().expect("read a folder");
        if kind.is_dir() {
            copy_folder(&entry.path(), &to);
        } else if kind.is_file() {
            std::fs::copy(entry.path(), to).expect("copy a file");
        }
    }
}
