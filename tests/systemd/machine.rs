//! A booted systemd: running commands in it, and writing down what they said.

use std::fmt::Write as _;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use crate::harness::wait_for;

/// For a boot, the making of the base system included.
const BOOT_TIME_MAX: Duration = Duration::from_secs(600);
/// Lines of an answer that go into the transcript.
const TRANSCRIPT_LINES_MAX: usize = 12;

/// The machine; it is gone when this is dropped.
pub struct Machine {
    boot: Child,
    init: u32,
    transcript: String,
    begun: std::time::Instant,
}

/// Where the base system is kept.
pub fn cache() -> PathBuf {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    std::env::var_os("SNAPSYNC_CACHE").map_or(top.join(".cache"), PathBuf::from)
}

impl Machine {
    /// Boots one that sees `packages` as `/packages`.
    ///
    /// # Panics
    /// With a sentence where no systemd can be booted: such a machine does not pass silently.
    pub async fn boot(packages: &Path, log: &Path) -> Self {
        let top = Path::new(env!("CARGO_MANIFEST_DIR"));
        let output = File::create(log).unwrap();
        let mut boot = Command::new(top.join("tests/systemd/boot.sh"))
            .arg(cache())
            .arg(packages)
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap();
        let said = || std::fs::read_to_string(log).unwrap_or_default();
        let (id, mut init) = (boot.id(), 0);
        let begun = std::time::Instant::now();
        let deadline = begun + BOOT_TIME_MAX;
        loop {
            assert!(
                boot.try_wait().unwrap().is_none(),
                "no systemd can be booted here:\n{}",
                said()
            );
            if let Some(found) = init_below(id) {
                init = found;
                let state = output_of(init, &["systemctl", "is-system-running"]);
                let state = String::from_utf8_lossy(&state.stdout).trim().to_owned();
                if ["running", "degraded"].contains(&state.as_str()) {
                    break;
                }
            }
            assert!(std::time::Instant::now() < deadline, "no boot in time ({init}):\n{}", said());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        eprintln!("{:6.1} s  booted", begun.elapsed().as_secs_f64());
        Self { boot, init, transcript: String::new(), begun }
    }

    /// Runs a command and gives what it said on both streams, and its exit code.
    pub fn try_run(&self, command: &str) -> (String, i32) {
        let output = output_of(self.init, &["bash", "-c", command]);
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        (text.trim_end().to_owned(), output.status.code().unwrap_or(-1))
    }

    /// Runs a command that has to succeed.
    pub fn run(&self, command: &str) -> String {
        let (text, code) = self.try_run(command);
        assert_eq!(code, 0, "{command}: {text}\n{}", self.journal());
        text
    }

    /// Runs a command that has to succeed, and writes it down.
    pub fn show(&mut self, command: &str) -> String {
        let text = self.run(command);
        self.note(command, &text, 0);
        text
    }

    /// Runs a command that has to fail, and writes it down.
    pub fn show_failing(&mut self, command: &str) -> String {
        let (text, code) = self.try_run(command);
        assert_ne!(code, 0, "{command} should have failed: {text}");
        self.note(command, &text, code);
        text
    }

    fn note(&mut self, command: &str, text: &str, code: i32) {
        let lines: Vec<&str> = text.lines().collect();
        let skipped = lines.len().saturating_sub(TRANSCRIPT_LINES_MAX);
        writeln!(self.transcript, "# {command}").unwrap();
        if skipped > 0 {
            writeln!(self.transcript, "[{skipped} lines]").unwrap();
        }
        for line in &lines[skipped..] {
            writeln!(self.transcript, "{}", line.trim_end()).unwrap();
        }
        if code != 0 {
            writeln!(self.transcript, "[exit code {code}]").unwrap();
        }
        self.transcript.push('\n');
    }

    /// A sentence between the commands of the transcript.
    pub fn say(&mut self, sentence: &str) {
        eprintln!("{:6.1} s  {sentence}", self.begun.elapsed().as_secs_f64());
        writeln!(self.transcript, "## {sentence}\n").unwrap();
    }

    /// What was written down.
    pub fn transcript(&self) -> &str {
        &self.transcript
    }

    /// Waits until a command succeeds and its answer contains a text.
    pub async fn wait(&self, command: &str, text: &str) -> String {
        wait_for(&format!("{text:?} from {command}"), Duration::from_secs(120), || async {
            match self.try_run(command) {
                (said, 0) if said.contains(text) => Ok(said),
                (said, code) => Err(format!("{code}: {said}\n{}", self.journal())),
            }
        })
        .await
    }

    /// A property of the service, such as `NRestarts`.
    pub fn property(&self, name: &str) -> String {
        self.run(&format!("systemctl show snapsync --value --property {name}"))
    }

    fn journal(&self) -> String {
        self.try_run("journalctl -u snapsync --no-pager -n 30").0
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // With it ends the namespace that everything lives in.
        drop(self.boot.kill());
        drop(self.boot.wait());
    }
}

fn output_of(init: u32, command: &[&str]) -> Output {
    Command::new("nsenter")
        .args(["--target", &init.to_string()])
        .args(["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root", "--"])
        .args([
            "env",
            "-i",
            "-C",
            "/",
            "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
            "LANG=C.UTF-8",
            "HOME=/root",
        ])
        .args(["TERM=dumb", "SYSTEMD_PAGER=", "SYSTEMD_COLORS=0", "DEBIAN_FRONTEND=noninteractive"])
        .args(command)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// The first process of the machine, as this machine numbers it: below `process`, in a namespace within a namespace.
fn init_below(process: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    let numbers: Vec<&str> = numbers.unwrap_or_default().split_whitespace().collect();
    if numbers.len() == 3 && numbers[2] == "1" {
        return Some(process);
    }
    let children = std::fs::read_to_string(format!("/proc/{process}/task/{process}/children"));
    children
        .unwrap_or_default()
        .split_whitespace()
        .find_map(|child| init_below(child.parse().ok()?))
}
