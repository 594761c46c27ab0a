//! Numbers that rooms far apart add to and `GET /metrics` shows. They belong to the process, as the log does, and
//! begin at 0 with it.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::mongo::Side;

/// The numbers of this process.
pub static COUNTERS: Counters = Counters::new();

/// See the metrics of the same names in `docs/metrics.md`.
#[derive(Debug)]
pub struct Counters {
    source_retries: AtomicU64,
    target_retries: AtomicU64,
    spool_bytes: AtomicU64,
    spool_bytes_max: AtomicU64,
    spooled_to: AtomicU32,
    log_dropped: AtomicU64,
    writes: Writes,
}

/// What the write commands to the target came to.
#[derive(Debug)]
pub struct Writes {
    commands: AtomicU64,
    bytes: AtomicU64,
    documents: AtomicU64,
    refused: AtomicU64,
}

impl Counters {
    const fn new() -> Self {
        Self {
            source_retries: AtomicU64::new(0),
            target_retries: AtomicU64::new(0),
            spool_bytes: AtomicU64::new(0),
            spool_bytes_max: AtomicU64::new(0),
            spooled_to: AtomicU32::new(0),
            log_dropped: AtomicU64::new(0),
            writes: Writes {
                commands: AtomicU64::new(0),
                bytes: AtomicU64::new(0),
                documents: AtomicU64::new(0),
                refused: AtomicU64::new(0),
            },
        }
    }

    /// A call to a server failed and is tried again.
    pub fn retried(&self, side: Side) {
        self.retries_of(side).fetch_add(1, Ordering::Relaxed);
    }

    /// Calls tried again since the start.
    #[must_use]
    pub fn retries(&self, side: Side) -> u64 {
        self.retries_of(side).load(Ordering::Relaxed)
    }

    fn retries_of(&self, side: Side) -> &AtomicU64 {
        match side {
            Side::Source => &self.source_retries,
            Side::Target => &self.target_retries,
        }
    }

    /// Write commands to the target.
    #[must_use]
    pub fn writes(&self) -> &Writes {
        &self.writes
    }

    /// A line of the log was dropped because nobody took it in time.
    pub fn log_line_dropped(&self) {
        self.log_dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// Lines of the log dropped since the start.
    #[must_use]
    pub fn log_lines_dropped(&self) -> u64 {
        self.log_dropped.load(Ordering::Relaxed)
    }

    /// What the spool takes on disk now, and may take.
    pub fn spool_is(&self, bytes: u64, bytes_max: u64) {
        self.spool_bytes.store(bytes, Ordering::Relaxed);
        self.spool_bytes_max.store(bytes_max, Ordering::Relaxed);
    }

    /// Bytes of the spool, and how many it may have; both 0 while there is none.
    #[must_use]
    pub fn spool(&self) -> (u64, u64) {
        (self.spool_bytes.load(Ordering::Relaxed), self.spool_bytes_max.load(Ordering::Relaxed))
    }

    /// The source's oplog is durable in the spool up to the entry of this second.
    pub fn spooled(&self, second: u32) {
        self.spooled_to.store(second, Ordering::Relaxed);
    }

    /// The second of the last entry in the spool; `None` before the first one.
    #[must_use]
    pub fn spooled_to(&self) -> Option<u32> {
        Some(self.spooled_to.load(Ordering::Relaxed)).filter(|second| *second > 0)
    }
}

impl Writes {
    /// The target carried out a command of so many bytes: it wrote some documents, and refused some statements.
    pub fn answered(&self, bytes: usize, documents: u64, refused: usize) {
        self.commands.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.documents.fetch_add(documents, Ordering::Relaxed);
        self.refused.fetch_add(refused as u64, Ordering::Relaxed);
    }

    /// The target refused a command as a whole.
    pub fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Commands carried out, their bytes, and the documents they wrote; what was refused.
    #[must_use]
    pub fn totals(&self) -> [u64; 4] {
        [&self.commands, &self.bytes, &self.documents, &self.refused]
            .map(|counter| counter.load(Ordering::Relaxed))
    }
}
