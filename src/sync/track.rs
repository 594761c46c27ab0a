//! One replay: entries in, windows out, each carried out in the order that is the promise: intent durable → the
//! window's writes majority-acknowledged → catalogue and resume point durable.
//!
//! There is the main replay, and while collections are copied again a second one that brings their copies up to date.
//! Each has a record and a catalogue of its own, which its context holds.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use bson::RawDocument;

use super::context::{Context, Interrupted};
use super::feed::Entries;
use super::record::Totals;
use crate::exit::{Code, Exit};
use crate::namespace::Namespace;
use crate::oplog::overflow::Spill;
use crate::position::{OpTime, Ts};
use crate::replay::apply::Applier;
use crate::replay::scope::Scope;
use crate::replay::window::{EntryError, ResumePoint, Window, WindowBuilder};
use crate::spool::OverflowDirectory;
use crate::stop::Stop;

/// The part of the memory that transactions may take that have not committed yet; what is more goes to the disk.
const TRANSACTIONS_SHARE: u64 = 16;

/// A replay and where it stands.
#[derive(Debug)]
pub struct Track {
    /// Its record and its catalogue are those of this replay.
    pub context: Context,
    applier: Applier,
    builder: WindowBuilder,
    /// Until here the target may hold newer state than a window knows.
    tolerant_until: Ts,
    /// The first window after a start goes at least to here: it was begun before.
    reach: Ts,
}

/// A window that was carried out.
#[derive(Debug, Clone, Copy)]
pub struct Carried {
    /// Where the replay stood before, if anywhere.
    pub before: Option<ResumePoint>,
    /// Where it stands now.
    pub end: ResumePoint,
    /// Wall time of the first entry, in milliseconds since 1970.
    pub first_wall_ms: i64,
    /// Entries read.
    pub entries: u64,
    /// Whether the catalogue changed with it.
    pub defines: bool,
    /// Counters after it.
    pub totals: Totals,
}

impl Track {
    /// Goes on from the durable resume point of this context. Transactions that are too large for memory are kept in
    /// `folder`.
    ///
    /// # Errors
    /// The disk.
    pub fn new(context: &Context, folder: &Path) -> Result<Self, Interrupted> {
        let record = context.records.get();
        let resume = record.resume.unwrap_or_default();
        let consistent_from = record.phase.consistent_from().unwrap_or_default();
        let intent = record.intent.unwrap_or_default();
        let applier = Applier {
            definer: context.definer.clone(),
            writers: context.writers.clone(),
            store: context.catalogue.clone(),
            selection: context.config.sync.selection.clone(),
            workers: context.tuning.get().replay_workers,
            noted: context.noted.clone(),
        };
        let builder = WindowBuilder::new(context.config.sync.selection.clone(), resume);
        Ok(Self {
            context: context.clone(),
            applier,
            builder: builder.with_spill(spill(context, folder)?),
            tolerant_until: consistent_from.max(intent),
            reach: intent,
        })
    }

    /// Replays these only, from the next entry on.
    pub fn set_scope(&mut self, scope: Scope) {
        self.builder.set_scope(scope);
    }

    /// Takes the next entry into the window in the making.
    ///
    /// # Errors
    /// It cannot be carried.
    pub fn push(&mut self, entry: &RawDocument) -> Result<(), Interrupted> {
        self.builder.push(entry).map_err(cannot_carry)
    }

    /// Takes entries into the window in the making.
    ///
    /// # Errors
    /// One of them cannot be carried.
    pub fn take(&mut self, entries: &Entries) -> Result<(), Interrupted> {
        // A large transaction goes to the disk.
        tokio::task::block_in_place(|| entries.try_each(|entry| self.push(entry)))
    }

    /// Whether the window in the making may end, or was begun before a restart and has to go further.
    #[must_use]
    pub fn has_reached(&self) -> bool {
        self.builder.last_read().ts >= self.reach
    }

    /// Bytes held by the window in the making and by open transactions.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.builder.bytes()
    }

    /// Wall time of the first entry of the window in the making, in milliseconds since 1970.
    #[must_use]
    pub fn first_wall_ms(&self) -> Option<i64> {
        self.builder.first_wall_ms()
    }

    /// The last entry read, or the one to begin with; reading on begins with it.
    #[must_use]
    pub fn reads_from(&self) -> OpTime {
        let last = self.builder.last_read();
        if last.ts > Ts::ZERO { last } else { self.resume().read_from }
    }

    /// The durable resume point.
    #[must_use]
    pub fn resume(&self) -> ResumePoint {
        self.context.records.get().resume.unwrap_or_default()
    }

    /// Whether what is on the target is, at this window end, the source at one moment.
    #[must_use]
    pub fn is_consistent(&self) -> bool {
        self.resume().applied.ts >= self.tolerant_until
    }

    /// Until at least this optime the target may hold newer state than a window knows.
    pub fn tolerate_until(&mut self, until: Ts) {
        self.tolerant_until = self.tolerant_until.max(until);
    }

    /// Ends the window in the making and carries it out; `None` if it is empty.
    ///
    /// # Errors
    /// [`Interrupted`]: part of it may be on the target, and its intent is durable.
    pub async fn carry_out(&mut self, stop: &Stop) -> Result<Option<Carried>, Interrupted> {
        let Some(window) = self.builder.finish() else { return Ok(None) };
        let records = &self.context.records;
        let before = records.get();
        let tolerant = before.resume.unwrap_or_default().applied.ts < self.tolerant_until;
        let Window { plan, end, first_wall_ms, entries } = window;
        let operations = plan.operations;
        let defines = plan.defines();
        if !plan.steps.is_empty() {
            let intent = before.intent.unwrap_or_default().max(end.applied.ts);
            records.change(|record| record.intent = Some(intent))?;
            self.applier.workers = self.context.tuning.get().replay_workers;
            let created: BTreeSet<Namespace> =
                plan.created(&self.context.config.sync.selection).collect();
            let catalogue = &self.context.catalogue;
            if !created.is_empty() {
                catalogue.change(|catalogue| catalogue.making.extend(created));
                catalogue.save()?;
            }
            self.applier.apply(plan, tolerant, stop).await?;
            if defines {
                catalogue.change(|catalogue| catalogue.making.clear());
                catalogue.save()?;
            }
        }
        let record = records.change(|record| {
            record.resume = Some(end);
            record.totals.windows += 1;
            record.totals.entries_read += entries;
            record.totals.entries_applied += operations;
        })?;
        let (before, totals) = (before.resume, record.totals);
        Ok(Some(Carried { before, end, first_wall_ms, entries, defines, totals }))
    }
}

/// The folder for long transactions, in the state directory.
pub const TRANSACTIONS_FOLDER: &str = "transactions";

fn spill(context: &Context, folder: &Path) -> Result<Spill, Interrupted> {
    let directory = folder.join(TRANSACTIONS_FOLDER);
    let place = tokio::task::block_in_place(|| OverflowDirectory::open(&directory))
        .map_err(|error| Interrupted::Exit(Exit::new(Code::Disk, error.to_string())))?;
    let memory_bytes_max = context.tuning.get().memory_bytes_max / TRANSACTIONS_SHARE;
    Ok(Spill { place: Arc::new(place), memory_bytes_max })
}

fn cannot_carry(error: EntryError) -> Interrupted {
    match error.overflow() {
        Some(overflow) => Interrupted::Exit(Exit::new(Code::Disk, overflow.to_string())),
        None => Interrupted::Halt {
            reason: error.to_string(),
            remedy: "this version of snapsync cannot carry it; see docs/limits.md".into(),
        },
    }
}
