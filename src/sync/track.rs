//! One replay: entries in, windows out, each carried out in the order that is the promise: intent durable → the
//! window's writes majority-acknowledged → catalogue and resume point durable.
//!
//! There is the main replay, and while collections are copied again a second one that brings their copies up to date.
//! Each has a record and a catalogue of its own, which its context holds.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;

use bson::RawDocument;
use tokio::task::JoinSet;

use super::context::{Context, Interrupted};
use super::feed::{Entries, Feed};
use super::following::feed_failure;
use super::record::Totals;
use crate::exit::{Code, Exit};
use crate::namespace::Namespace;
use crate::oplog::overflow::Spill;
use crate::position::{OpTime, Ts};
use crate::replay::apply::Applier;
use crate::replay::plan::Plan;
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
    ///
    /// # Errors
    /// [`Interrupted::Again`] if entries were read ahead for what was in force before: they have to be read again.
    pub fn set_scope(&mut self, scope: Scope) -> Result<(), Interrupted> {
        self.builder.set_scope(scope);
        if self.is_gathering() { Err(Interrupted::Again) } else { Ok(()) }
    }

    /// Takes the next entry into the window in the making.
    ///
    /// # Errors
    /// It cannot be carried.
    pub fn push(&mut self, entry: &RawDocument) -> Result<(), Interrupted> {
        push(&mut self.builder, entry)
    }

    /// Takes entries into the window in the making.
    ///
    /// # Errors
    /// One of them cannot be carried.
    pub fn take(&mut self, entries: &Entries) -> Result<(), Interrupted> {
        take(&mut self.builder, entries)
    }

    /// Whether the window in the making may end, or was begun before a restart and has to go further.
    #[must_use]
    pub fn has_reached(&self) -> bool {
        self.builder.last_read().ts >= self.reach
    }

    /// Whether there is something in the window in the making.
    #[must_use]
    pub fn is_gathering(&self) -> bool {
        self.builder.end().is_some()
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
        self.carry_out_reading(None, stop).await
    }

    /// The same, while the next window is begun with what `ahead` gives. Not while a window defines something: what the
    /// next entries concern is known afterwards.
    ///
    /// # Errors
    /// As [`Track::carry_out`].
    pub async fn carry_out_reading(
        &mut self,
        ahead: Option<ReadAhead<'_>>,
        stop: &Stop,
    ) -> Result<Option<Carried>, Interrupted> {
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
            match ahead.filter(|_| !defines) {
                Some(ahead) => {
                    let applying = applying(&self.applier, plan, tolerant, stop);
                    tokio::select! {
                        applied = applying => applied?,
                        never = ahead.read(&mut self.builder, stop) => match never {},
                    }
                }
                None => self.applier.apply(plan, tolerant, stop).await?,
            }
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

/// Applies a plan on another thread than the one that reads ahead. Dropped, it ends.
async fn applying(
    applier: &Applier,
    plan: Plan,
    tolerant: bool,
    stop: &Stop,
) -> Result<(), Interrupted> {
    let (applier, stop) = (applier.clone(), stop.clone());
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { applier.apply(plan, tolerant, &stop).await });
    match tasks.join_next().await {
        Some(Ok(applied)) => Ok(applied?),
        Some(Err(panic)) => {
            let text = format!("internal error: {panic}");
            Err(Interrupted::Exit(Exit::new(Code::Internal, text)))
        }
        None => Ok(()),
    }
}

/// Reads the beginning of the next window while one is applied.
#[derive(Debug)]
pub struct ReadAhead<'a> {
    /// Where from.
    pub feed: &'a mut Feed,
    /// Bytes taken at the most, but for one fetch.
    pub bytes_max: usize,
    /// Why reading came to an end, for whoever reads on.
    pub failed: &'a mut Option<Interrupted>,
}

impl ReadAhead<'_> {
    /// Reads until dropped.
    async fn read(self, builder: &mut WindowBuilder, stop: &Stop) -> Infallible {
        while builder.bytes() < self.bytes_max && !stop.is_requested() {
            let taken = match self.feed.next(stop).await {
                Ok(entries) => take(builder, &entries),
                Err(error) => Err(feed_failure(&error)),
            };
            if let Err(interrupted) = taken {
                *self.failed = Some(interrupted);
                break;
            }
        }
        std::future::pending().await
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

fn push(builder: &mut WindowBuilder, entry: &RawDocument) -> Result<(), Interrupted> {
    builder.push(entry).map_err(cannot_carry)
}

fn take(builder: &mut WindowBuilder, entries: &Entries) -> Result<(), Interrupted> {
    // A large transaction goes to the disk.
    tokio::task::block_in_place(|| entries.try_each(|entry| push(builder, entry)))
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
