//! The act of following: window after window, first from the spool, then live. The order of writes is the promise:
//! intent durable → the window's writes majority-acknowledged → catalogue and resume point durable → memory → report.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::context::{Context, Interrupted};
use super::feed::{Feed, FeedError};
use super::indexing;
use super::phase::{Event, Phase};
use crate::exit::{Code, Exit};
use crate::namespace::Namespace;
use crate::oplog::overflow::{PartError, Spill};
use crate::position::{OpTime, Ts};
use crate::replay::apply::{Applier, ApplyError};
use crate::replay::plan::PlanError;
use crate::replay::window::{Window, WindowBuilder};
use crate::retry::Stopped;
use crate::source::tail::TailError;
use crate::spool::OverflowDirectory;
use crate::status::{State, WallTime, WindowReport};
use crate::stop::Stop;

/// The part of the memory that a window may take: its documents are copied into commands, and the driver copies those.
const WINDOW_SHARE: u64 = 6;
/// The part of the memory that transactions may take that have not committed yet; what is more goes to the disk.
const TRANSACTIONS_SHARE: u64 = 16;
/// The longest that a window is gathered when there is always more: a backlog is folded, a live stream stays current.
const GATHER_BEHIND: Duration = Duration::from_secs(5);

/// What an oplog that cannot be read means.
#[must_use]
pub fn feed_failure(error: &FeedError) -> Interrupted {
    match error {
        FeedError::Tail(TailError::Lost { .. }) => Interrupted::Halt {
            reason: format!("the resume point is no longer in the source's oplog: {error}"),
            remedy:
                "the target cannot be brought level by replay any more: stop the service, remove \
                     the state directory, and start again with target.on_existing_data = \"drop\" \
                     to copy anew; then give the source a larger oplog"
                    .into(),
        },
        FeedError::Spool(error) => Interrupted::Exit(Exit::new(Code::Disk, error.to_string())),
        error => Interrupted::Exit(Exit::new(Code::Internal, error.to_string())),
    }
}

impl From<Stopped<ApplyError>> for Interrupted {
    fn from(stopped: Stopped<ApplyError>) -> Self {
        match stopped {
            Stopped::Stop => Self::Stop,
            Stopped::Failed(ApplyError::Call(error)) => error.into(),
            Stopped::Failed(ApplyError::Plan(PlanError::Part(PartError::Overflow(error)))) => {
                Self::Exit(Exit::new(Code::Disk, error.to_string()))
            }
            Stopped::Failed(error) => Self::Halt {
                reason: error.to_string(),
                remedy: "find out what else writes to the target; see docs/limits.md".into(),
            },
        }
    }
}

/// What follows after a window.
enum Next {
    /// Another one.
    Window,
    /// The spool is read to its end: from here on straight from the source.
    Direct,
}

/// Follows the source for as long as it may.
#[derive(Debug)]
pub struct Follower {
    context: Context,
    applier: Applier,
    builder: WindowBuilder,
    /// Until here the target may hold newer state than the window knows.
    tolerant_until: Ts,
    /// The first window after a start goes at least to here: it was begun before.
    reach: Ts,
    /// Whether the target is the source at one moment at every window end, with its indexes.
    settled: bool,
}

impl Follower {
    /// Goes on from the durable resume point.
    ///
    /// # Errors
    /// The disk.
    pub fn new(context: Context) -> Result<Self, Interrupted> {
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
        };
        context.settled.store(false, Ordering::Relaxed);
        let directory = context.config.state.directory.join("transactions");
        let place = tokio::task::block_in_place(|| OverflowDirectory::open(&directory))
            .map_err(|error| Interrupted::Exit(Exit::new(Code::Disk, error.to_string())))?;
        let memory_bytes_max = context.tuning.get().memory_bytes_max / TRANSACTIONS_SHARE;
        let spill = Spill { place: Arc::new(place), memory_bytes_max };
        let builder =
            WindowBuilder::new(context.config.sync.selection.clone(), resume).with_spill(spill);
        context.standing.resumes_at(resume);
        Ok(Self {
            context,
            applier,
            builder,
            tolerant_until: consistent_from.max(intent),
            reach: intent,
            settled: false,
        })
    }

    /// Follows until interrupted.
    ///
    /// # Errors
    /// [`Interrupted`], always: following has no end of its own.
    pub async fn run(mut self, mut feed: Feed, stop: &Stop) -> Interrupted {
        loop {
            let interrupted = match self.step(&mut feed, stop).await {
                Ok(Next::Window) => continue,
                Ok(Next::Direct) => {
                    let (source, from) = (self.context.source.clone(), self.reads_from());
                    match feed.go_direct(&source, from, stop).await {
                        Ok(direct) => {
                            feed = direct;
                            continue;
                        }
                        Err(error) => return feed_failure(&error),
                    }
                }
                Err(interrupted) => interrupted,
            };
            // The cause that is reported is the first one.
            let _also = feed.finish().await;
            return interrupted;
        }
    }

    /// The last entry read; reading on begins with it.
    fn reads_from(&self) -> OpTime {
        let last = self.builder.last_read();
        if last.ts > Ts::ZERO {
            return last;
        }
        self.context.records.get().resume.unwrap_or_default().read_from
    }

    /// One window, and what follows from it.
    async fn step(&mut self, feed: &mut Feed, stop: &Stop) -> Result<Next, Interrupted> {
        let began = Instant::now();
        let exhausted = self.gather(feed, stop).await?;
        self.carry_out(began, stop).await?;
        if let Some(resume) = self.context.records.get().resume {
            feed.consumed(resume.read_from.ts);
        }
        self.settle(stop).await?;
        self.judge()?;
        let spooled = matches!(feed, Feed::Spooled { .. });
        let direct = exhausted && spooled && self.context.catalogue.read().indexes_built;
        Ok(if direct { Next::Direct } else { Next::Window })
    }

    /// Gathers entries into a window until there are no more, it is large enough, or it has lasted long enough. True if
    /// there were no more.
    async fn gather(&mut self, feed: &mut Feed, stop: &Stop) -> Result<bool, Interrupted> {
        let failed = |error: FeedError| feed_failure(&error);
        let first = feed.next(stop).await.map_err(failed)?;
        stop.check()?;
        if first.is_empty() && self.reach <= self.builder.last_read().ts {
            if matches!(feed, Feed::Direct(_)) {
                self.context.standing.source_exhausted();
            }
            return Ok(true);
        }
        let began = Instant::now();
        let longest = self.gather_limit();
        let bytes_max = usize::try_from(self.context.tuning.get().memory_bytes_max / WINDOW_SHARE)
            .unwrap_or(usize::MAX);
        self.take(&first)?;
        loop {
            let reached = self.builder.last_read().ts >= self.reach;
            if reached && (self.builder.bytes() >= bytes_max || began.elapsed() >= longest) {
                return Ok(false);
            }
            match feed.try_next().map_err(failed)? {
                Some(entries) if !entries.is_empty() => self.take(&entries)?,
                _ if reached => return Ok(true),
                // The window was begun before a restart: it ends where it was to end.
                Some(_) | None => {
                    let entries = feed.next(stop).await.map_err(failed)?;
                    stop.check()?;
                    self.take(&entries)?;
                }
            }
        }
    }

    fn gather_limit(&self) -> Duration {
        match self.context.board.state() {
            State::Live => self.context.tuning.get().window,
            _ => GATHER_BEHIND.max(self.context.tuning.get().window),
        }
    }

    fn take(&mut self, entries: &super::feed::Entries) -> Result<(), Interrupted> {
        // A large transaction goes to the disk.
        let taken =
            tokio::task::block_in_place(|| entries.try_each(|entry| self.builder.push(entry)));
        taken.map_err(|error| match error.overflow() {
            Some(overflow) => Interrupted::Exit(Exit::new(Code::Disk, overflow.to_string())),
            None => Interrupted::Halt {
                reason: error.to_string(),
                remedy: "this version of snapsync cannot carry it; see docs/limits.md".into(),
            },
        })?;
        if let Some(first_wall_ms) = self.builder.first_wall_ms() {
            self.context.standing.window_from(first_wall_ms);
        }
        Ok(())
    }

    async fn carry_out(&mut self, began: Instant, stop: &Stop) -> Result<(), Interrupted> {
        let Some(window) = self.builder.finish() else {
            return Ok(());
        };
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
            let created: Vec<Namespace> =
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
        self.context.standing.resumes_at(end);
        let from = before.resume.map_or(first_wall_ms, |resume| resume.wall_ms);
        self.context.board.update(|status| {
            status.window = Some(WindowReport {
                from: WallTime::from_ms(from),
                to: WallTime::from_ms(end.wall_ms),
                entries,
                seconds: began.elapsed().as_secs_f64(),
            });
            status.totals.windows = record.totals.windows;
            status.totals.entries_read = record.totals.entries_read;
            status.totals.entries_applied = record.totals.entries_applied;
        });
        if defines {
            self.show_held_back();
        }
        Ok(())
    }

    /// The first window end at which the target is the source at one moment: what must hold from here on is looked at,
    /// and the indexes are built if they have not been.
    async fn settle(&mut self, stop: &Stop) -> Result<(), Interrupted> {
        let resume = self.context.records.get().resume.unwrap_or_default();
        if self.settled || resume.applied.ts < self.tolerant_until {
            return Ok(());
        }
        let missing = {
            let catalogue = self.context.catalogue.read();
            let missing = catalogue.collections.values().find(|found| found.target_uuid.is_none());
            missing.map(|collection| collection.target.clone())
        };
        if let Some(name) = missing {
            return Err(Interrupted::Halt {
                reason: format!("the collection {name} is missing on the target"),
                remedy: "somebody dropped it there; to copy anew, see docs/limits.md".into(),
            });
        }
        indexing::build_all(&self.context, stop).await?;
        self.show_held_back();
        self.settled = true;
        self.context.settled.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn show_held_back(&self) {
        let held_back = self.context.catalogue.read().held_back();
        self.context.board.update(|status| status.held_back = held_back);
    }

    /// Whether the target follows closely by now. That it does not any more is seen by the supervisor, even while a
    /// window waits for a server.
    fn judge(&self) -> Result<(), Interrupted> {
        let Some(lag) = self.context.board.lag_seconds() else { return Ok(()) };
        let max = self.context.tuning.get().max_lag.as_secs_f64();
        match self.context.records.get().phase {
            // Half of the limit, so that the state does not flutter.
            Phase::CatchingUp { .. } if self.settled && lag <= max / 2.0 => {
                self.context.happen(Event::CaughtUp).map(drop)
            }
            _ => Ok(()),
        }
    }
}
