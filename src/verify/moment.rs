//! When both sides can be compared. Documents that are being written differ for a moment on any pair that is followed;
//! only at a [`Moment`] is a difference one.

use std::collections::BTreeSet;
use std::fmt;
use std::future::Future;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bson::Uuid;

use crate::mongo::Deployment;
use crate::position::{Cut, Still, Ts};
use crate::retry::{Stopped, until_reached};
use crate::stop::Stop;
use crate::target::lease::RENEW_EVERY;
use crate::target::lease::mirror::{self, Mirror};

/// A moment at which the target has to be what the source is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Moment {
    /// Both sides at optimes of theirs.
    Cut(Cut),
    /// The target now: nothing is applied.
    Still(Still),
}

impl Moment {
    /// What is being copied again, by its UUID on the source: nothing is said about it.
    #[must_use]
    pub fn held(&self) -> &BTreeSet<Uuid> {
        match self {
            Self::Cut(cut) => &cut.held,
            Self::Still(still) => &still.held,
        }
    }
}

/// From when on a cut is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Floor {
    /// At or after this optime of the source.
    pub source: Ts,
    /// After this optime of the target.
    pub target: Ts,
}

impl Floor {
    /// Whether a cut is as late as is wanted.
    #[must_use]
    pub fn is_reached_by(&self, cut: &Cut) -> bool {
        cut.source >= self.source && cut.target > self.target
    }
}

/// Why there is no moment.
#[derive(Debug)]
pub enum NoMoment {
    /// Nobody can tell where the two sides meet; the text says why.
    Unknown(String),
    /// Asked to stop.
    Stop,
}

impl<E: fmt::Display> From<Stopped<E>> for NoMoment {
    fn from(stopped: Stopped<E>) -> Self {
        match stopped {
            Stopped::Stop => Self::Stop,
            Stopped::Failed(error) => Self::Unknown(error.to_string()),
        }
    }
}

impl From<crate::stop::StopRequested> for NoMoment {
    fn from(_: crate::stop::StopRequested) -> Self {
        Self::Stop
    }
}

/// Who knows moments.
pub trait Moments: fmt::Debug + Send + Sync + 'static {
    /// A cut that is as late as `floor`, or the moment at which everything stands still.
    fn next(&self, floor: Floor) -> impl Future<Output = Result<Moment, NoMoment>> + Send;

    /// Whether everything stands still at this moment yet, and did so since it was told.
    fn still_stands(&self, still: &Still) -> impl Future<Output = Result<bool, NoMoment>> + Send;
}

/// How often the mirror is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long the daemon is given to come past a place: the replay may be in the middle of a large window.
const PASS_WITHIN: Duration = Duration::from_secs(60);
/// How long one that has just begun is given to leave its first mark.
const APPEAR_WITHIN: Duration = Duration::from_secs(15);

/// Moments that the daemon tells on the target, so that they are known wherever that can be read. A daemon that follows
/// tells a cut every few seconds; one that has been paused or stopped in order tells that it stands still.
pub struct Mirrored {
    target: Deployment,
    is_ours: Box<dyn Fn(&Mirror) -> bool + Send + Sync>,
    /// The newest cut there was when one was waited for in vain: until there is another, the next ones look once.
    in_vain: Mutex<Option<Option<Cut>>>,
    stop: Stop,
}

impl fmt::Debug for Mirrored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mirrored").finish_non_exhaustive()
    }
}

impl Mirrored {
    /// Of the migration that is meant.
    #[must_use]
    pub fn new(
        target: &Deployment,
        is_ours: impl Fn(&Mirror) -> bool + Send + Sync + 'static,
        stop: &Stop,
    ) -> Self {
        Self {
            target: target.clone(),
            is_ours: Box::new(is_ours),
            in_vain: Mutex::new(None),
            stop: stop.clone(),
        }
    }

    async fn look(&self) -> Result<Option<Mirror>, NoMoment> {
        let list = || mirror::list(&self.target);
        let mirrors = until_reached(self.target.side, &self.stop, list).await?;
        let ours = mirrors.into_iter().filter(|mirror| (self.is_ours)(mirror));
        Ok(ours.max_by_key(|mirror| (mirror.is_held, mirror.expires)))
    }

    /// A moment, or how long one is to be waited for and why there is none yet.
    fn moment(found: Option<Mirror>, floor: Floor) -> Result<Moment, (Duration, String)> {
        let Some(mirror) = found else {
            let text = "the target knows of no migration of this source with this selection";
            return Err((APPEAR_WITHIN, text.to_owned()));
        };
        if let Some(still) = mirror.still {
            return Ok(Moment::Still(still));
        }
        if let Some(cut) = mirror.cut.filter(|cut| floor.is_reached_by(cut)) {
            return Ok(Moment::Cut(cut));
        }
        if !mirror.is_held {
            let text = "no daemon follows, and the last one did not end in order, or before the \
                        target was consistent";
            return Err((Duration::ZERO, text.to_owned()));
        }
        let seconds = PASS_WITHIN.as_secs();
        let text = format!(
            "the daemon did not come past {} of the source within {seconds} s: is it live?",
            floor.source
        );
        Err((PASS_WITHIN, text))
    }
}

impl Moments for Mirrored {
    async fn next(&self, floor: Floor) -> Result<Moment, NoMoment> {
        let began = Instant::now();
        loop {
            let found = self.look().await?;
            let newest = found.as_ref().and_then(|mirror| mirror.cut.clone());
            match Self::moment(found, floor) {
                Ok(moment) => return Ok(moment),
                Err((within, why)) => {
                    let mut in_vain = self.in_vain.lock().unwrap_or_else(PoisonError::into_inner);
                    if began.elapsed() >= within || in_vain.as_ref() == Some(&newest) {
                        *in_vain = Some(newest);
                        return Err(NoMoment::Unknown(why));
                    }
                }
            }
            self.stop.sleep(LOOK_EVERY).await?;
        }
    }

    async fn still_stands(&self, still: &Still) -> Result<bool, NoMoment> {
        let Some(before) = self.look().await? else { return Ok(false) };
        if before.is_held {
            // A daemon that goes on says so with its next renewal at the latest.
            self.stop.sleep(RENEW_EVERY * 2).await?;
        }
        let Some(now) = self.look().await? else { return Ok(false) };
        let same = (&now.instance, now.generation) == (&before.instance, before.generation);
        Ok(same && now.still.as_ref() == Some(still))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_counts_from_its_optime_on_the_source_and_after_that_of_the_target() {
        let cut = |source, target| Cut {
            source: Ts::new(source, 1),
            target: Ts::new(target, 1),
            held: BTreeSet::new(),
        };
        let floor = Floor { source: Ts::new(5, 1), target: Ts::new(7, 1) };
        assert!(floor.is_reached_by(&cut(5, 8)));
        assert!(!floor.is_reached_by(&cut(5, 7)));
        assert!(!floor.is_reached_by(&cut(4, 9)));
        assert!(Floor::default().is_reached_by(&cut(0, 1)));
    }
}
