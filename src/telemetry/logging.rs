//! Carries log lines to the journal, or to stderr as text or JSON.
//!
//! The journal and a pipe on stderr both make the writer wait when their reader stands still, and a daemon that waits
//! there is killed by its watchdog. So whoever logs only puts a record into a bounded queue; a thread of its own
//! writes. When the queue is full the record is dropped and counted, and the number is logged once there is room
//! again.

use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError};
use std::thread;
use std::time::{Duration, Instant};

use tracing::{Dispatch, Event, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::{Layer, Registry, reload};

use crate::config::{LogFormat, LogLevel};

use super::counters::COUNTERS;
use super::events;
use super::journal::Journal;
use super::record::{Record, caught};
use super::render::{json_line, text_line};

/// Records that wait to be written at most: a round of deltas comes all at once.
const QUEUE_RECORDS_MAX: usize = 32_768;

/// Bytes of the records that wait to be written at most, give or take one record.
const QUEUE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// How long the end of the process waits for the last lines.
const FLUSH_TIME_MAX: Duration = Duration::from_secs(2);

/// Why the log cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The system gives no thread.
    #[error("cannot start the thread that writes the log")]
    Thread(#[source] io::Error),
    /// Somebody else logs in this process already.
    #[error("the log has been set up before in this process")]
    SetUpBefore,
}

/// Sets up the log of the process. The handle changes the level later, and writes the last lines when it is dropped.
///
/// # Errors
/// When the journal is asked for and cannot be reached, or it has been set up before.
pub fn init(format: LogFormat, level: LogLevel) -> Result<LogHandle, LoggingError> {
    let (layer, handle) = layer(sink(format)?, level)?;
    let dispatch = Dispatch::new(Registry::default().with(layer));
    tracing::dispatcher::set_global_default(dispatch).map_err(|_| LoggingError::SetUpBefore)?;
    Ok(handle)
}

/// What `init` gives back; to be kept until the end of the process.
#[derive(Debug)]
pub struct LogHandle {
    filter: reload::Handle<Targets, Registry>,
    backlog: Arc<Backlog>,
    /// Told to finish by a message, as the layer that feeds the queue lives as long as the process.
    queue: SyncSender<Message>,
    /// Disconnected when the thread has written its last line.
    written: Receiver<()>,
}

impl LogHandle {
    /// Changes the level from here on.
    pub fn set_level(&self, level: LogLevel) {
        if let Err(error) = self.filter.reload(filter(level)) {
            tracing::warn!(%error, "cannot change the log level");
        }
    }

    /// Shows a line about what is being done, where the log goes to a terminal; it stands below the log, and each one
    /// replaces the one before.
    pub fn show_progress(&self, line: String) {
        // Nobody misses one that finds no room.
        let _lost = self.queue.try_send(Message::Progress(line));
    }

    /// How many lines have been dropped since the start because nobody took them.
    #[must_use]
    pub fn dropped_total(&self) -> u64 {
        self.backlog.dropped_total.load(Ordering::Relaxed)
    }
}

impl Drop for LogHandle {
    fn drop(&mut self) {
        let deadline = Instant::now() + FLUSH_TIME_MAX;
        // A full queue is given time to drain, but a reader that stands still does not keep the process.
        while let Err(TrySendError::Full(_)) = self.queue.try_send(Message::Finish) {
            if Instant::now() > deadline {
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        // Nothing is ever sent: this ends when the thread does, or in time. Both are the end.
        match self.written.recv_timeout(left) {
            Ok(()) | Err(RecvTimeoutError::Disconnected | RecvTimeoutError::Timeout) => {}
        }
    }
}

enum Message {
    Record(Record),
    Progress(String),
    Finish,
}

/// Where records end up.
pub(super) trait Sink: Send + 'static {
    fn write(&mut self, record: &Record);

    /// Shows what is being done; an empty line shows nothing. Only for terminals.
    fn progress(&mut self, _line: String) {}
}

fn sink(format: LogFormat) -> Result<Box<dyn Sink>, LoggingError> {
    match format {
        LogFormat::Auto if stderr_is_the_journal() => match Journal::open() {
            Ok(journal) => Ok(Box::new(journal)),
            // Lines on stderr reach the journal too, only without fields.
            Err(_) => Ok(Box::new(Lines { to: io::stderr(), render: text_line })),
        },
        LogFormat::Auto | LogFormat::Text if io::stderr().is_terminal() => {
            Ok(Box::new(Terminal { to: io::stderr(), shown: String::new() }))
        }
        LogFormat::Auto | LogFormat::Text => {
            Ok(Box::new(Lines { to: io::stderr(), render: text_line }))
        }
        LogFormat::Json => Ok(Box::new(Lines { to: io::stderr(), render: json_line })),
    }
}

/// Whether systemd connected this very stderr to the journal. The variable alone is not enough: it is inherited by
/// children whose stderr goes elsewhere.
pub(crate) fn stderr_is_the_journal() -> bool {
    std::env::var("JOURNAL_STREAM").is_ok_and(|stream| is_stream(&stream, 2))
}

/// Whether an open file is the one that `stream` (`device:inode`) names.
fn is_stream(stream: &str, fd: u32) -> bool {
    std::fs::metadata(format!("/proc/self/fd/{fd}"))
        .is_ok_and(|file| stream == format!("{}:{}", file.dev(), file.ino()))
}

/// Ours at the level asked for; libraries only when something is wrong.
fn filter(level: LogLevel) -> Targets {
    let level = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    Targets::new().with_target("snapsync", level).with_default(level.min(LevelFilter::WARN))
}

/// What the queue holds and what it refused.
#[derive(Debug, Default)]
struct Backlog {
    bytes: AtomicUsize,
    dropped_total: AtomicU64,
}

/// The layer that feeds the queue, and the handle on it, with the thread that empties it.
fn layer(
    mut sink: Box<dyn Sink>,
    level: LogLevel,
) -> Result<(impl Layer<Registry>, LogHandle), LoggingError> {
    let (queue, messages) = mpsc::sync_channel(QUEUE_RECORDS_MAX);
    let (writing, written) = mpsc::channel::<()>();
    let backlog = Arc::new(Backlog::default());
    let emptied = Arc::clone(&backlog);
    thread::Builder::new()
        .name("log".to_owned())
        .spawn(move || {
            write_all(&messages, sink.as_mut(), &emptied);
            drop(writing);
        })
        .map_err(LoggingError::Thread)?;
    let (filter, reload) = reload::Layer::new(filter(level));
    let feed = Feed { queue: queue.clone(), backlog: Arc::clone(&backlog) };
    let handle = LogHandle { filter: reload, backlog, queue, written };
    Ok((feed.with_filter(filter), handle))
}

/// Writes records until told to finish, and between them how many were dropped.
fn write_all(messages: &Receiver<Message>, sink: &mut dyn Sink, backlog: &Backlog) {
    let mut told = 0;
    while let Ok(message) = messages.recv() {
        let record = match message {
            Message::Record(record) => record,
            Message::Progress(line) => {
                sink.progress(line);
                continue;
            }
            Message::Finish => break,
        };
        backlog.bytes.fetch_sub(record.bytes(), Ordering::Relaxed);
        sink.write(&record);
        let total = backlog.dropped_total.load(Ordering::Relaxed);
        if total > told {
            let dropped = total - told;
            caught(|| events::log_dropped(dropped)).iter().for_each(|record| sink.write(record));
            told = total;
        }
    }
    sink.progress(String::new());
}

/// Puts every event into the queue, or counts it.
struct Feed {
    queue: SyncSender<Message>,
    backlog: Arc<Backlog>,
}

impl Feed {
    fn feed(&self, record: Record) -> bool {
        let bytes = record.bytes();
        // Added before it is sent: the writer must never take away what has not been added.
        let before = self.backlog.bytes.fetch_add(bytes, Ordering::Relaxed);
        let fits = before < QUEUE_BYTES_MAX;
        let sent = fits && self.queue.try_send(Message::Record(record)).is_ok();
        if !sent {
            self.backlog.bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
        sent
    }
}

impl<S: Subscriber> Layer<S> for Feed {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if !self.feed(Record::of(event)) {
            self.backlog.dropped_total.fetch_add(1, Ordering::Relaxed);
            COUNTERS.log_line_dropped();
        }
    }
}

/// Lines on a stream.
struct Lines<W> {
    to: W,
    render: fn(&Record) -> String,
}

impl<W: Write + Send + 'static> Sink for Lines<W> {
    fn write(&mut self, record: &Record) {
        // When this fails there is nowhere left to complain.
        drop(self.to.write_all((self.render)(record).as_bytes()));
    }
}

/// Lines on a terminal, with what is being done below them.
struct Terminal<W> {
    to: W,
    shown: String,
}

/// Goes to the beginning of the line and clears it.
const CLEAR_LINE: &str = "\r\x1b[K";

impl<W: Write> Terminal<W> {
    /// Without wrapping: what does not fit is cut off, or the line could not be cleared again.
    fn draw(&mut self, above: &str) {
        let below = match self.shown.as_str() {
            "" => String::new(),
            shown => format!("\x1b[?7l{shown}\x1b[?7h"),
        };
        // When this fails there is nowhere left to complain.
        drop(write!(self.to, "{CLEAR_LINE}{above}{below}").and_then(|()| self.to.flush()));
    }
}

impl<W: Write + Send + 'static> Sink for Terminal<W> {
    fn write(&mut self, record: &Record) {
        self.draw(&text_line(record));
    }

    fn progress(&mut self, line: String) {
        if line != self.shown {
            self.shown = line;
            self.draw("");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::events::DELTA_TARGET;
    use std::sync::Mutex;

    /// Keeps the lines; each one waits until the gate is open.
    #[derive(Clone, Default)]
    struct Kept {
        lines: Arc<Mutex<Vec<String>>>,
        gate: Arc<Mutex<()>>,
    }

    impl Sink for Kept {
        fn write(&mut self, record: &Record) {
            drop(self.gate.lock().unwrap());
            self.lines.lock().unwrap().push(record.message().to_owned());
        }
    }

    impl Kept {
        /// Runs `log` with a log that ends up here.
        fn log(&self, level: LogLevel, log: impl FnOnce(&LogHandle)) -> LogHandle {
            let (layer, handle) = layer(Box::new(self.clone()), level).unwrap();
            let dispatch = Dispatch::new(Registry::default().with(layer));
            tracing::dispatcher::with_default(&dispatch, || log(&handle));
            handle
        }

        fn lines(&self) -> Vec<String> {
            self.lines.lock().unwrap().clone()
        }
    }

    #[test]
    fn the_last_lines_are_written_before_the_end() {
        let kept = Kept::default();
        let handle =
            kept.log(LogLevel::Info, |_| (0..500).for_each(|n| tracing::info!("line {n}")));
        assert_eq!(handle.dropped_total(), 0);
        drop(handle);
        assert_eq!(kept.lines().len(), 500);
        assert_eq!(kept.lines().last().map(String::as_str), Some("line 499"));
    }

    #[test]
    fn a_reader_that_stands_still_does_not_stall_the_one_who_logs() {
        let kept = Kept::default();
        let closed = kept.gate.lock().unwrap();
        let count = QUEUE_RECORDS_MAX + 1000;
        let begun = Instant::now();
        let handle =
            kept.log(LogLevel::Info, |_| (0..count).for_each(|n| tracing::info!("line {n}")));
        assert!(begun.elapsed() < Duration::from_secs(20), "it waited");
        // One record may already be with the writer.
        let dropped = usize::try_from(handle.dropped_total()).unwrap();
        assert!((999..=1000).contains(&dropped), "{dropped}");

        drop(closed);
        drop(handle);
        let lines = kept.lines();
        assert_eq!(lines.len(), count - dropped + 1);
        let told = lines.iter().filter(|line| line.contains("log lines were dropped")).count();
        assert_eq!(told, 1);
    }

    #[test]
    fn memory_for_waiting_lines_is_bounded() {
        let kept = Kept::default();
        let closed = kept.gate.lock().unwrap();
        let long = "x".repeat(4000);
        let handle = kept.log(LogLevel::Info, |handle| {
            (0..QUEUE_RECORDS_MAX).for_each(|_| tracing::info!("{long}"));
            assert!(handle.backlog.bytes.load(Ordering::Relaxed) < QUEUE_BYTES_MAX + 8000);
            assert!(handle.dropped_total() > 0);
        });
        drop(closed);
        drop(handle);
    }

    #[test]
    fn the_level_can_be_changed_and_holds_for_snapsync_only() {
        let kept = Kept::default();
        let handle = kept.log(LogLevel::Info, |handle| {
            tracing::debug!("too fine");
            tracing::info!(target: "hyper", "a library's info");
            tracing::warn!(target: "hyper", "a library's warning");
            tracing::info!(target: DELTA_TARGET, "a delta");
            handle.set_level(LogLevel::Debug);
            tracing::debug!("fine now");
            handle.set_level(LogLevel::Error);
            tracing::warn!("not any more");
        });
        drop(handle);
        assert_eq!(kept.lines(), ["a library's warning", "a delta", "fine now"]);
    }

    #[test]
    fn lines_are_rendered_as_asked() {
        let records = caught(|| tracing::info!(ns = "a.b", "copied"));
        for (render, start) in [(text_line as fn(&Record) -> String, "20"), (json_line, "{")] {
            let mut lines = Lines { to: Vec::new(), render };
            records.iter().for_each(|record| lines.write(record));
            assert!(lines.to.starts_with(start.as_bytes()));
        }
    }

    #[test]
    fn on_a_terminal_the_log_stays_above_what_is_being_done() {
        let mut terminal = Terminal { to: Vec::new(), shown: String::new() };
        let record = caught(|| tracing::info!(target: DELTA_TARGET, "a delta")).remove(0);
        terminal.progress("copying".to_owned());
        terminal.progress("copying".to_owned());
        terminal.write(&record);
        terminal.progress(String::new());
        let bar = "\x1b[?7lcopying\x1b[?7h";
        let expected = format!("\r\x1b[K{bar}\r\x1b[Ka delta\n{bar}\r\x1b[K");
        assert_eq!(String::from_utf8(terminal.to).unwrap(), expected);
    }

    /// stderr of a test is no journal, whatever the environment says about another stream.
    #[test]
    fn the_journal_is_taken_only_when_stderr_is_connected_to_it() {
        let meta = std::fs::metadata("/proc/self/fd/2").unwrap();
        let ours = format!("{}:{}", meta.dev(), meta.ino());
        assert!(is_stream(&ours, 2));
        assert!(!is_stream("1:2", 2) && !is_stream("", 2) && !is_stream(&ours, 999));
    }
}
