//! The act of following: window after window, first from the spool, then live. At every window end the replay stands
//! still for a moment, and there everything is looked after that must not meet a window half applied: indexes, what has
//! diverged, collections that are copied again.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::context::{Context, Interrupted};
use super::feed::{Feed, FeedError};
use super::indexing;
use super::mending::Mending;
use super::phase::{Event, Phase};
use super::resync::kept;
use super::track::{Carried, ReadAhead, Track};
use crate::exit::{Code, Exit};
use crate::oplog::overflow::PartError;
use crate::replay::apply::ApplyError;
use crate::replay::plan::PlanError;
use crate::retry::Stopped;
use crate::source::tail::TailError;
use crate::status::{State, WallTime, WindowReport};
use crate::stop::Stop;

/// The part of the memory that a window may take: its documents are copied into commands, and the driver copies those.
pub(super) const WINDOW_SHARE: u64 = 8;
/// The part that may be read ahead of it.
const AHEAD_SHARE: u64 = 16;
/// The longest that a window is gathered when there is always more: a backlog is folded, a live stream stays current.
const GATHER_BEHIND: Duration = Duration::from_secs(5);

/// How often a replay that stands still looks whether it may go on.
const STANDS_FOR: Duration = Duration::from_millis(5);
/// How long a window in hand may take to its end once a stop was asked for.
const END_WINDOW_WITHIN: Duration = Duration::from_millis(1500);

/// What an oplog that cannot be read means.
#[must_use]
pub fn feed_failure(error: &FeedError) -> Interrupted {
    match error {
        FeedError::Tail(TailError::Lost { .. }) => {
            Interrupted::Lost(format!("the source's oplog does not reach back far enough: {error}"))
        }
        FeedError::Tail(TailError::NeverHeld { .. }) => Interrupted::Halt {
            reason: format!("the source is not where it was followed from: {error}"),
            remedy:
                "it was set back to an earlier state, or another one has its name: if that can be \
                     undone, do so and `snapsync resume`; else `snapsync reset` and copy anew"
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
            Stopped::Failed(ApplyError::Diverged { collections, what })
                if !collections.is_empty() =>
            {
                Self::Diverged { collections, what }
            }
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

/// Follows the source for as long as it may.
#[derive(Debug)]
pub struct Follower {
    context: Context,
    track: Track,
    mending: Mending,
    /// Whether the target is the source at one moment at every window end, with its indexes.
    settled: bool,
    /// Why nothing more could be read ahead.
    failed_ahead: Option<Interrupted>,
}

impl Follower {
    /// Goes on from the durable resume point.
    ///
    /// # Errors
    /// The disk.
    pub fn new(context: Context) -> Result<Self, Interrupted> {
        context.settled.store(false, Ordering::Relaxed);
        context.cutover.begins();
        let mut track = Track::new(&context, &context.config.state.directory)?;
        track.set_scope(context.catalogue.read().scope())?;
        context.standing.resumes_at(track.resume());
        let mending = Mending::default();
        Ok(Self { track, mending, settled: false, failed_ahead: None, context })
    }

    /// Follows until interrupted. What goes on beside it has ended when this returns.
    ///
    /// # Errors
    /// [`Interrupted`], always: following has no end of its own.
    pub async fn run(mut self, feed: Feed, stop: &Stop) -> Interrupted {
        let mut feed = Some(feed);
        let interrupted = loop {
            if let Err(interrupted) = self.step(&mut feed, stop).await {
                break interrupted;
            }
        };
        self.mending.stop().await;
        self.context.desk.close();
        self.context.cutover.rests();
        if let Some(feed) = feed {
            // The cause that is reported is the first one.
            let _also = feed.finish().await;
        }
        self.mending.judge(&self.context, interrupted)
    }

    /// One window, and what follows from it.
    async fn step(&mut self, place: &mut Option<Feed>, stop: &Stop) -> Result<(), Interrupted> {
        let Some(feed) = place else { return Err(Interrupted::Again) };
        let is_to_stand = self.settled && self.context.cutover.is_wanted();
        // What was read ahead comes first: without a source nobody could read it again.
        if is_to_stand && !self.track.is_gathering() {
            return self.stand_still(feed, stop).await;
        }
        let began = Instant::now();
        let exhausted = !is_to_stand && self.gather(feed, stop).await?;
        if let Some(carried) = self.carry_out(feed, stop).await? {
            self.report(&carried, began);
            if carried.defines {
                self.track.set_scope(self.context.catalogue.read().scope())?;
            }
        }
        // What the lease will say of a target that stands still is durable: nothing more is begun.
        stop.check()?;
        self.settle(stop).await?;
        if self.settled {
            self.mending.at_window_end(&self.context, &mut self.track, feed, stop).await?;
        }
        feed.consumed(self.mending.keeps(self.track.resume().read_from.ts));
        self.judge()?;
        let wants_spool = self.mending.needs_spool(&self.context);
        let may_go_direct =
            exhausted && !self.track.is_gathering() && self.context.catalogue.read().indexes_built;
        match (feed.is_spooled(), wants_spool) {
            (false, true) => self.switch_to_spool(place, stop).await,
            (true, false) if may_go_direct => self.switch_to_source(place, stop).await,
            _ => Ok(()),
        }
    }

    /// Stands at this window end as long as a cutover wants it.
    async fn stand_still(&mut self, feed: &Feed, stop: &Stop) -> Result<(), Interrupted> {
        self.mending.at_window_end(&self.context, &mut self.track, feed, stop).await?;
        self.context.cutover.parked(self.track.resume());
        if matches!(self.context.records.get().phase, Phase::CuttingOver { decided: true, .. }) {
            return Err(Interrupted::Again);
        }
        Ok(stop.sleep(STANDS_FOR).await?)
    }

    /// Carries the window out, to its end even if a stop is asked for meanwhile, as long as that does not take long: a
    /// target that stands still at a window end can be compared, and nothing has to be applied twice.
    async fn carry_out(
        &mut self,
        feed: &mut Feed,
        stop: &Stop,
    ) -> Result<Option<Carried>, Interrupted> {
        let late = Stop::new();
        // What is held, or about to stand still, is decided at the end of this window.
        let may_read =
            !self.mending.needs_spool(&self.context) && !self.context.cutover.is_wanted();
        let bytes_max = self.share_of_memory(AHEAD_SHARE);
        let ahead = ReadAhead { feed, bytes_max, failed: &mut self.failed_ahead };
        let patience = async {
            stop.requested().await;
            tokio::time::sleep(END_WINDOW_WITHIN).await;
            late.request();
            std::future::pending().await
        };
        tokio::select! {
            carried = self.track.carry_out_reading(may_read.then_some(ahead), &late) => carried,
            () = patience => Err(Interrupted::Stop),
        }
    }

    /// From here on the oplog goes through the spool, where it can be read again.
    async fn switch_to_spool(
        &mut self,
        place: &mut Option<Feed>,
        stop: &Stop,
    ) -> Result<(), Interrupted> {
        if let Some(feed) = place.take() {
            feed.finish().await.map_err(|error| feed_failure(&error))?;
        }
        let from = self.track.resume().read_from;
        *place = Some(Feed::spooled(&self.context, from, stop)?);
        Ok(())
    }

    /// The spool is read to its end: from here on straight from the source.
    async fn switch_to_source(
        &mut self,
        place: &mut Option<Feed>,
        stop: &Stop,
    ) -> Result<(), Interrupted> {
        let Some(feed) = place.take() else { return Ok(()) };
        let direct = feed.go_direct(&self.context.source, self.track.reads_from(), stop).await;
        *place = Some(direct.map_err(|error| feed_failure(&error))?);
        Ok(())
    }

    /// Gathers entries into a window until there are no more, it is large enough, or it has lasted long enough. True if
    /// there were no more.
    async fn gather(&mut self, feed: &mut Feed, stop: &Stop) -> Result<bool, Interrupted> {
        let failed = |error: FeedError| feed_failure(&error);
        if let Some(interrupted) = self.failed_ahead.take() {
            return Err(interrupted);
        }
        if !self.track.is_gathering() {
            let first = tokio::select! {
                first = feed.next(stop) => first.map_err(failed)?,
                // A source that is silent need not be waited for. Nothing is lost: what was taken would be returned.
                () = self.context.cutover.wanted(), if self.settled => return Ok(false),
            };
            stop.check()?;
            if first.is_empty() && self.track.has_reached() {
                if matches!(feed, Feed::Direct(_)) {
                    self.context.standing.source_exhausted();
                }
                return Ok(true);
            }
            self.take(&first)?;
        }
        let began = Instant::now();
        let longest = self.gather_limit();
        let bytes_max = self.share_of_memory(WINDOW_SHARE);
        loop {
            let reached = self.track.has_reached();
            if reached && (self.track.bytes() >= bytes_max || began.elapsed() >= longest) {
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

    fn share_of_memory(&self, share: u64) -> usize {
        usize::try_from(self.context.tuning.get().memory_bytes_max / share).unwrap_or(usize::MAX)
    }

    fn gather_limit(&self) -> Duration {
        match self.context.board.state() {
            State::Live | State::CuttingOver => self.context.tuning.get().window,
            _ => GATHER_BEHIND.max(self.context.tuning.get().window),
        }
    }

    fn take(&mut self, entries: &super::feed::Entries) -> Result<(), Interrupted> {
        self.track.take(entries)?;
        self.show_in_hand();
        Ok(())
    }

    /// The window in the making counts as behind from its first entry on.
    fn show_in_hand(&self) {
        if let Some(first_wall_ms) = self.track.first_wall_ms() {
            self.context.standing.window_from(first_wall_ms);
        }
    }

    fn report(&self, carried: &Carried, began: Instant) {
        let Carried { before, end, first_wall_ms, entries, defines, totals } = *carried;
        if defines {
            // First: what came into the selection is not on the target at this end yet, and nobody may believe so.
            kept::show(&self.context);
        }
        self.context.standing.resumes_at(end);
        self.show_in_hand();
        let from = before.map_or(first_wall_ms, |resume| resume.wall_ms);
        self.context.board.update(|status| {
            status.window = Some(WindowReport {
                from: WallTime::from_ms(from),
                to: WallTime::from_ms(end.wall_ms),
                entries,
                seconds: began.elapsed().as_secs_f64(),
            });
            status.totals.windows = totals.windows;
            status.totals.entries_read = totals.entries_read;
            status.totals.entries_applied = totals.entries_applied;
        });
        if defines {
            self.show_held_back();
        }
    }

    /// The first window end at which the target is the source at one moment: there the indexes are built, if they have
    /// not been.
    async fn settle(&mut self, stop: &Stop) -> Result<(), Interrupted> {
        if self.settled || !self.track.is_consistent() {
            return Ok(());
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
            // As long as everything is copied again, nothing is followed.
            Phase::CatchingUp { .. } if self.context.catalogue.read().is_all_held() => Ok(()),
            // Half of the limit, so that the state does not flutter.
            Phase::CatchingUp { .. } if self.settled && lag <= max / 2.0 => {
                self.context.happen(Event::CaughtUp).map(drop)
            }
            _ => Ok(()),
        }
    }
}
