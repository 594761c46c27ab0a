//! What the daemon tells systemd, and what systemd and people tell the daemon by signals. Without `NOTIFY_SOCKET` every
//! message is a no-op, so the daemon runs the same in a terminal or a container.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use sd_notify::NotifyState;
use signal_hook::consts::signal::{SIGHUP, SIGINT, SIGTERM};
use tokio::sync::mpsc;

use crate::stop::Stop;
use crate::telemetry::one_line;

/// Exit code of a process that a second SIGTERM or SIGINT ended before it had stopped in order.
pub const EXIT_SECOND_SIGNAL: i32 = 70;

/// Says that the start is complete: `systemctl start` returns, and the watchdog begins to count.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// Sets the line that `systemctl status` shows.
pub fn status(text: &str) {
    // A line break would begin another message to systemd.
    tell(&[NotifyState::Status(&one_line(text))]);
}

/// Says that the daemon is stopping and may need `extend` more from now. Repeat it while work is left.
pub fn stopping(extend: Duration) {
    tell(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(micros(extend))]);
}

/// Asks for `extend` more from now for a start that takes long. Repeat it while work is left.
pub fn extend_start(extend: Duration) {
    tell(&[NotifyState::ExtendTimeoutUsec(micros(extend))]);
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "cannot notify systemd");
    }
}

/// Microseconds as systemd takes them: at most about 71 minutes.
fn micros(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}

/// Who has to answer for the watchdog. Every task that works in a loop registers, and beats once a turn; while it waits
/// for something that may take long it says what for, and needs no beat.
#[derive(Debug, Clone)]
pub struct Heartbeat {
    begun: Instant,
    pulses: Arc<Mutex<BTreeMap<u64, Arc<Pulse>>>>,
    next: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Pulse {
    name: String,
    /// Milliseconds after `Heartbeat::begun`.
    last_ms: AtomicU64,
    waiting_for: Mutex<Option<String>>,
}

impl Default for Heartbeat {
    fn default() -> Self {
        Self::new()
    }
}

impl Heartbeat {
    /// A heartbeat for which nobody has to answer yet.
    #[must_use]
    pub fn new() -> Self {
        Self { begun: Instant::now(), pulses: Arc::default(), next: Arc::default() }
    }

    /// Registers a task under a name for the log. It counts until the [`Beat`] is dropped.
    #[must_use]
    pub fn register(&self, name: impl Into<String>) -> Beat {
        let pulse = Arc::new(Pulse {
            name: name.into(),
            last_ms: AtomicU64::new(self.now_ms()),
            waiting_for: Mutex::new(None),
        });
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        lock(&self.pulses).insert(id, Arc::clone(&pulse));
        Beat { id, pulse, heartbeat: self.clone() }
    }

    /// Names of the tasks that have neither beaten nor been waiting for something within `limit`.
    #[must_use]
    pub fn silent(&self, limit: Duration) -> Vec<String> {
        let limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        let now_ms = self.now_ms();
        let is_silent = |pulse: &&Arc<Pulse>| {
            let silent_ms = now_ms.saturating_sub(pulse.last_ms.load(Ordering::Relaxed));
            silent_ms > limit_ms && lock(&pulse.waiting_for).is_none()
        };
        lock(&self.pulses).values().filter(is_silent).map(|pulse| pulse.name.clone()).collect()
    }

    /// What tasks are waiting for, as `task: what`, for the status and for questions about a daemon that stands still.
    #[must_use]
    pub fn waits(&self) -> Vec<String> {
        let describe = |pulse: &Arc<Pulse>| {
            lock(&pulse.waiting_for).as_ref().map(|what| format!("{}: {what}", pulse.name))
        };
        lock(&self.pulses).values().filter_map(describe).collect()
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// One task's part in the [`Heartbeat`].
#[derive(Debug)]
pub struct Beat {
    id: u64,
    pulse: Arc<Pulse>,
    heartbeat: Heartbeat,
}

impl Beat {
    /// Says that the task is alive; cheap enough for every turn of every loop.
    pub fn beat(&self) {
        self.pulse.last_ms.store(self.heartbeat.now_ms(), Ordering::Relaxed);
    }

    /// Says that the task waits for `what` (a server, an index build, an operator) and answers nothing until the
    /// returned value is dropped. A wait inside another one is shown instead of it, then ends both.
    #[must_use]
    pub fn wait_for(&self, what: impl Into<String>) -> Wait<'_> {
        *lock(&self.pulse.waiting_for) = Some(what.into());
        Wait { beat: self }
    }
}

impl Drop for Beat {
    fn drop(&mut self) {
        lock(&self.heartbeat.pulses).remove(&self.id);
    }
}

/// A named wait; it ends, and counts as a beat, when this is dropped.
#[derive(Debug)]
pub struct Wait<'a> {
    beat: &'a Beat,
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        // The beat first: between the two the task must not look silent.
        self.beat.beat();
        *lock(&self.beat.pulse.waiting_for) = None;
    }
}

// Nothing panics under these locks; a poisoned one is as good as any.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps systemd's watchdog content for as long as every task answers; to be run as a task until the process ends,
/// the drain at the end included. Returns at once when the unit has no watchdog.
///
/// A task may be silent for one interval of the watchdog. Then the beats to systemd stop, and it restarts the daemon
/// when a further interval has passed.
pub async fn run_watchdog(heartbeat: Heartbeat) {
    let Some(interval) = sd_notify::watchdog_enabled() else { return };
    let mut silent_before = Vec::new();
    loop {
        let silent = heartbeat.silent(interval);
        if silent.is_empty() {
            tell(&[NotifyState::Watchdog]);
        } else if silent != silent_before {
            tracing::error!(tasks = silent.join(", "), "tasks do not answer; systemd will restart");
        }
        silent_before = silent;
        tokio::time::sleep(interval / 2).await;
    }
}

/// The signals the daemon listens to.
pub struct Signals {
    stream: signal_hook_tokio::Signals,
}

impl std::fmt::Debug for Signals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signals").finish_non_exhaustive()
    }
}

impl Signals {
    /// Takes over SIGTERM, SIGINT and SIGHUP; inside a tokio runtime. From here on a second SIGTERM or SIGINT ends the
    /// process at once with [`EXIT_SECOND_SIGNAL`], also when the runtime is stuck.
    ///
    /// # Errors
    /// When the system refuses a handler or a socket pair.
    pub fn register() -> io::Result<Self> {
        let stopping = Arc::new(AtomicBool::new(false));
        for signal in [SIGTERM, SIGINT] {
            // In this order the first signal finds the flag down, and raises it for the second.
            signal_hook::flag::register_conditional_shutdown(
                signal,
                EXIT_SECOND_SIGNAL,
                Arc::clone(&stopping),
            )?;
            signal_hook::flag::register(signal, Arc::clone(&stopping))?;
        }
        Ok(Self { stream: signal_hook_tokio::Signals::new([SIGTERM, SIGINT, SIGHUP])? })
    }

    /// Turns signals into wishes, until a stop has been requested: SIGTERM and SIGINT into `stop`, SIGHUP into a
    /// message on `reload`. A reload that is already waiting there covers further ones.
    pub async fn run(mut self, stop: Stop, reload: mpsc::Sender<()>) {
        loop {
            let signal = tokio::select! {
                () = stop.requested() => return,
                signal = self.stream.next() => signal,
            };
            match signal {
                Some(SIGHUP) => match reload.try_send(()) {
                    Ok(()) | Err(mpsc::error::TrySendError::Full(())) => {}
                    Err(mpsc::error::TrySendError::Closed(())) => {
                        tracing::warn!("nobody listens to SIGHUP any more");
                    }
                },
                Some(_) => stop.request(),
                None => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixDatagram;
    use std::process::Command;

    /// Set in the processes that [`in_own_process`] starts: elsewhere the tests meant for them do nothing.
    const CHILD: &str = "SNAPSYNC_TEST_CHILD";

    fn is_child() -> bool {
        std::env::var_os(CHILD).is_some()
    }

    /// Runs one of the tests below in a process of its own: the environment and the signal handlers belong to the whole
    /// process.
    fn in_own_process(test: &str, env: &[(&str, &str)]) -> std::process::Output {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.env(CHILD, "1").args(["--exact", &format!("systemd::tests::{test}")]);
        command.envs(env.iter().copied()).env_remove("WATCHDOG_PID").output().unwrap()
    }

    #[test]
    fn messages_reach_the_notify_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_nonblocking(true).unwrap();
        let env = [("NOTIFY_SOCKET", path.to_str().unwrap()), ("WATCHDOG_USEC", "200000")];
        let output = in_own_process("child_notifies", &env);
        assert!(output.status.success(), "{output:?}");

        let mut received = Vec::new();
        let mut buffer = [0; 512];
        while let Ok(length) = socket.recv(&mut buffer) {
            received.push(String::from_utf8(buffer[..length].to_vec()).unwrap());
        }
        let beats = received.iter().filter(|message| *message == "WATCHDOG=1\n").count();
        received.retain(|message| message != "WATCHDOG=1\n");
        let expected = [
            "READY=1\n",
            "STATUS=live, lag 0 s\\nMAINPID=1\n",
            "STOPPING=1\nEXTEND_TIMEOUT_USEC=1500000\n",
        ];
        assert_eq!(received, expected);
        // It beats every 0.1 s until the one task has been silent for 0.2 s; for the whole second it would be ten.
        assert!((1..=5).contains(&beats), "{beats}");
    }

    #[tokio::test]
    async fn child_notifies() {
        if !is_child() {
            return; // run by messages_reach_the_notify_socket
        }
        ready();
        status("live, lag 0 s\nMAINPID=1");
        stopping(Duration::from_millis(1500));
        let heartbeat = Heartbeat::new();
        let beat = heartbeat.register("supervisor");
        beat.beat();
        tokio::select! {
            () = run_watchdog(heartbeat) => unreachable!("the watchdog is on"),
            () = tokio::time::sleep(Duration::from_millis(1000)) => {}
        }
    }

    #[test]
    fn without_systemd_nothing_happens() {
        let output = in_own_process("child_has_no_systemd", &[]);
        assert!(output.status.success(), "{output:?}");
    }

    #[tokio::test]
    async fn child_has_no_systemd() {
        if !is_child() {
            return; // run by without_systemd_nothing_happens
        }
        ready();
        run_watchdog(Heartbeat::new()).await;
    }

    #[test]
    fn a_second_signal_ends_the_process_at_once() {
        let output = in_own_process("child_is_signalled_twice", &[]);
        assert_eq!(output.status.code(), Some(EXIT_SECOND_SIGNAL), "{output:?}");
    }

    #[tokio::test]
    async fn child_is_signalled_twice() {
        if !is_child() {
            return; // run by a_second_signal_ends_the_process_at_once
        }
        let _signals = Signals::register().unwrap();
        signal_hook::low_level::raise(SIGTERM).unwrap();
        signal_hook::low_level::raise(SIGINT).unwrap();
    }

    #[test]
    fn signals_become_wishes() {
        let output = in_own_process("child_is_reloaded_and_stopped", &[]);
        assert!(output.status.success(), "{output:?}");
    }

    #[tokio::test]
    async fn child_is_reloaded_and_stopped() {
        if !is_child() {
            return; // run by signals_become_wishes
        }
        let (sender, mut reloads) = mpsc::channel(1);
        let stop = Stop::new();
        let signals = Signals::register().unwrap();
        let listening = signals.run(stop.clone(), sender);
        let raising = async {
            signal_hook::low_level::raise(SIGHUP).unwrap();
            assert_eq!(reloads.recv().await, Some(()));
            assert!(!stop.is_requested());
            signal_hook::low_level::raise(SIGTERM).unwrap();
            stop.requested().await;
        };
        tokio::join!(listening, raising);
    }

    #[test]
    fn a_task_is_silent_unless_it_beats_or_waits_or_has_ended() {
        let heartbeat = Heartbeat::new();
        let limit = Duration::from_millis(30);
        let pause = || std::thread::sleep(Duration::from_millis(60));
        let copy = heartbeat.register("copy");
        let tail = heartbeat.register("tail");
        assert!(heartbeat.silent(limit).is_empty());

        let wait = copy.wait_for("target t1:27017");
        pause();
        assert_eq!(heartbeat.silent(limit), ["tail"]);
        assert_eq!(heartbeat.waits(), ["copy: target t1:27017"]);

        drop(wait);
        tail.beat();
        assert!(heartbeat.silent(Duration::from_secs(60)).is_empty());
        assert!(heartbeat.waits().is_empty());

        pause();
        assert_eq!(heartbeat.silent(limit), ["copy", "tail"]);
        drop((copy, tail));
        assert!(heartbeat.silent(limit).is_empty());
    }

    #[test]
    fn an_extension_too_long_for_systemd_is_the_longest_it_takes() {
        assert_eq!(micros(Duration::from_secs(2)), 2_000_000);
        assert_eq!(micros(Duration::from_secs(86_400)), u32::MAX);
    }
}
