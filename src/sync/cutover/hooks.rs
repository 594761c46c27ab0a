//! Programs of the operator's that are run before the point of no return, such as one that lets applications know. Each
//! can still stop the cutover: by failing.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use super::acting::{Cutover, Failed};
use crate::status::{WallTime, WriteBlock};
use crate::telemetry::{one_line, without_credentials};

/// How often a program is looked after.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Of what a program prints: lines that are shown, the last ones, and characters of each.
const LINES_SHOWN: usize = 3;
const LINE_CHARS_MAX: usize = 200;
/// Bytes of a line that are read as one.
const LINE_BYTES_MAX: u64 = 64 * 1024;
/// How long the end of its output is waited for once a program has ended.
const OUTPUT_WITHIN: Duration = Duration::from_secs(1);
/// Programs at the most.
const HOOKS_MAX: usize = 100;

/// Runs every program in the directory, in the order of their names.
///
/// # Errors
/// One of them failed.
pub(super) async fn run(cutover: &Cutover) -> Result<(), Failed> {
    let directory = cutover.context.config.cutover.hooks.clone();
    let hooks = tokio::task::block_in_place(|| list(&directory)).map_err(|error| {
        Failed::GivenUp(format!("the hooks in {} cannot be listed: {error}", directory.display()))
    })?;
    for hook in hooks {
        cutover.still_follows()?;
        let name = hook.file_name().unwrap_or_default().to_string_lossy().into_owned();
        cutover.note(&format!("running the hook {name}"));
        let mut running = Running::start(&hook, &environment(cutover))
            .map_err(|error| Failed::GivenUp(format!("the hook {name} cannot be run: {error}")))?;
        // Given up meanwhile, it is killed with everything that it has started.
        let status = loop {
            match running.child.try_wait() {
                Ok(Some(status)) => break status,
                Ok(None) => cutover.abort.sleep(LOOK_EVERY).await?,
                Err(error) => {
                    return Err(Failed::GivenUp(format!("the hook {name} was lost: {error}")));
                }
            }
        };
        let output = tokio::task::block_in_place(|| running.output());
        if !status.success() {
            let code = how_it_ended(status);
            return Err(Failed::GivenUp(format!("the hook {name} {code}{}", output.told())));
        }
        cutover.note(&format!("the hook {name} succeeded, {} lines of output", output.lines));
    }
    Ok(())
}

fn how_it_ended(status: ExitStatus) -> String {
    status.code().map_or("was killed".to_owned(), |code| format!("failed with {code}"))
}

/// The programs in a directory, as run-parts finds them: those with a plain name that may be executed. None if there is
/// no such directory.
fn list(directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut hooks = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let metadata = std::fs::metadata(&path)?;
        let is_plain = path.file_name().and_then(|name| name.to_str()).is_some_and(is_plain);
        if metadata.is_file() && metadata.permissions().mode() & 0o111 != 0 && is_plain {
            hooks.push(path);
        }
    }
    hooks.sort();
    if hooks.len() > HOOKS_MAX {
        return Err(std::io::Error::other(format!("there are more than {HOOKS_MAX}")));
    }
    Ok(hooks)
}

/// Not what editors and package managers leave behind.
fn is_plain(name: &str) -> bool {
    const LEFT_BEHIND: [&str; 3] = [".dpkg-old", ".dpkg-new", ".rpmsave"];
    let is_good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    !name.starts_with('.')
        && name.chars().all(is_good)
        && !LEFT_BEHIND.iter().any(|end| name.ends_with(end))
}

/// What a program is told. Its own environment is not passed on: connection strings may stand there.
fn environment(cutover: &Cutover) -> Vec<(&'static str, String)> {
    let context = &cutover.context;
    let (status, record) = (context.board.read(), context.records.get());
    let blocked = record.cutover.as_ref().is_some_and(|kept| kept.block != WriteBlock::None);
    let deadline = record.cutover.as_ref().map(|kept| WallTime::from_ms(kept.deadline_ms));
    let resume = record.resume.unwrap_or_default().applied.ts;
    vec![
        ("SNAPSYNC_STEP", "deciding".to_owned()),
        ("SNAPSYNC_MIGRATION", record.instance),
        ("SNAPSYNC_STATE_DIRECTORY", context.config.state.directory.display().to_string()),
        ("SNAPSYNC_SOURCE_HOSTS", status.source.hosts.join(",")),
        ("SNAPSYNC_TARGET_HOSTS", status.target.hosts.join(",")),
        ("SNAPSYNC_RESUME_POINT", resume.to_string()),
        ("SNAPSYNC_SOURCE_BLOCKED", if blocked { "1" } else { "0" }.to_owned()),
        ("SNAPSYNC_VERIFY", cutover.options.verify.name().to_owned()),
        ("SNAPSYNC_DEADLINE", deadline.map_or_else(String::new, |deadline| deadline.to_string())),
    ]
}

/// A program that runs. When it is dropped, it is killed with everything that it has started.
#[derive(Debug)]
struct Running {
    child: Child,
    reading: Vec<mpsc::Receiver<Output>>,
}

impl Running {
    fn start(hook: &Path, environment: &[(&str, String)]) -> std::io::Result<Self> {
        let mut command = Command::new(hook);
        command.env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        for name in ["PATH", "HOME", "LANG", "TZ"] {
            command.envs(std::env::var_os(name).map(|value| (name, value)));
        }
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        command.current_dir("/").process_group(0);
        let mut child = command.spawn()?;
        let pipes: [Option<Box<dyn Read + Send>>; 2] = [
            child.stdout.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>),
            child.stderr.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>),
        ];
        let read = |pipe| {
            let (send, receive) = mpsc::channel();
            // Nobody may wait for it any more.
            std::thread::spawn(move || drop(send.send(Output::read(pipe))));
            receive
        };
        let reading = pipes.into_iter().flatten().map(read).collect();
        Ok(Self { child, reading })
    }

    fn kill_group(&mut self) {
        let group = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(group) = group {
            // There may be nobody left.
            let _gone = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
    }

    /// What it printed. Whatever it has left running in the background is ended with it; what has detached itself and
    /// still holds its output is not waited for, and then nothing is known of that.
    fn output(&mut self) -> Output {
        self.kill_group();
        let mut all = Output::default();
        for reading in self.reading.drain(..) {
            if let Ok(output) = reading.recv_timeout(OUTPUT_WITHIN) {
                all.lines += output.lines;
                all.last.extend(output.last);
            }
        }
        all
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill_group();
        // The process is gone, or about to go.
        let _gone = self.child.wait();
    }
}

/// What a program printed: how much, and the end of it.
#[derive(Debug, Default)]
struct Output {
    lines: u64,
    last: Vec<String>,
}

impl Output {
    fn read(pipe: impl Read) -> Self {
        let mut reader = BufReader::new(pipe);
        let mut output = Self::default();
        let mut line = Vec::new();
        loop {
            line.clear();
            match reader.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line) {
                Ok(1..) => {}
                _ => return output,
            }
            output.lines += 1;
            let text = String::from_utf8_lossy(&line);
            let text: String = text.trim_end().chars().take(LINE_CHARS_MAX).collect();
            if output.last.len() == LINES_SHOWN {
                output.last.remove(0);
            }
            output.last.push(without_credentials(&one_line(&text)));
        }
    }

    fn told(&self) -> String {
        let last = self.last.join(" | ");
        if last.is_empty() { String::new() } else { format!(": {last}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(directory: &Path, name: &str, mode: u32) {
        let path = directory.join(name);
        std::fs::write(&path, "#!/bin/sh\n").unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    /// Starts a hook with this text.
    fn start(directory: &Path, script: &str) -> Running {
        let path = directory.join("hook");
        std::fs::write(&path, format!("#!/bin/sh\n{script}")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let told = [("SNAPSYNC_STEP", "deciding".to_owned())];
        // Another test's child may hold the file open for writing for a moment.
        loop {
            match Running::start(&path, &told) {
                Ok(running) => return running,
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ExecutableFileBusy),
            }
        }
    }

    #[test]
    fn programs_with_plain_names_are_run_in_order() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["20-b", "10-a.sh", "README~", ".hidden", "30-c.dpkg-old", "a b"] {
            hook(directory.path(), name, 0o755);
        }
        hook(directory.path(), "05-not-executable", 0o644);
        let found = list(directory.path()).unwrap();
        let names: Vec<_> = found.iter().map(|path| path.file_name().unwrap()).collect();
        assert_eq!(names, ["10-a.sh", "20-b"]);
        assert!(list(&directory.path().join("absent")).unwrap().is_empty());
    }

    #[test]
    fn of_the_output_the_end_is_kept_without_credentials() {
        let lines: String = (0..5000).map(|n| format!("line {n}\n")).collect();
        let output = Output::read(lines.as_bytes());
        assert_eq!(
            (output.lines, output.told().as_str()),
            (5000, ": line 4997 | line 4998 | line 4999")
        );
        let output = Output::read("mongodb://u:secret@h failed\n".as_bytes());
        assert_eq!(output.told(), ": mongodb://***@h failed");
        let endless = Output::read(vec![b'x'; 1 << 20].as_slice());
        assert!(endless.told().len() < 1000);
    }

    #[test]
    fn a_program_sees_what_it_is_told_and_takes_its_children_along() {
        let directory = tempfile::tempdir().unwrap();
        let script = "echo $SNAPSYNC_STEP $CARGO_MANIFEST_DIR.\nsleep 1000 &\nexit 3\n";
        let mut running = start(directory.path(), script);
        let status = running.child.wait().unwrap();
        let output = running.output();
        assert_eq!((status.code(), output.told().as_str()), (Some(3), ": deciding ."));
        assert_eq!(how_it_ended(status), "failed with 3");
    }

    #[test]
    fn what_has_detached_itself_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let script = "echo told\nsetsid sh -c 'touch $0; sleep 20' $0.detached &\n\
            while [ ! -e $0.detached ]; do sleep 0.05; done\n";
        let mut running = start(directory.path(), script);
        running.child.wait().unwrap();
        assert_eq!(running.output().lines, 0, "it holds the output open for longer");
    }
}
