//! Until when the lease is certain to be ours, by a clock of this machine that goes on while the process is stopped.
//! Looked at before everything that is sent to the target: it costs nothing, and a daemon that slept over its lease
//! sees that before it sends anything.

use std::sync::Arc;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tokio::sync::{Notify, watch};

use super::lease::LEASE_TIME;
use crate::stop::{Stop, StopRequested};

/// Between this clock and the server's, and for what is on its way.
const MARGIN: Duration = Duration::from_secs(5);
/// What must be left of the lease for a definition, which the server does not fence.
const LEFT_TO_DEFINE: Duration = Duration::from_secs(10);

/// A moment of a clock that counts the time of a stopped process and of a sleeping machine too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(Duration);

impl Moment {
    /// Now.
    #[must_use]
    pub fn now() -> Self {
        let time = clock_gettime(ClockId::Boottime);
        let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
        Self(Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0)))
    }

    fn until(self, end: Self) -> Duration {
        end.0.saturating_sub(self.0)
    }
}

/// The end of the lease as far as it is known here. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Deadline {
    ends: watch::Sender<Moment>,
    wanted: Arc<Notify>,
}

impl Deadline {
    /// A lease that the server granted or renewed in answer to a call that began at `asked`.
    #[must_use]
    pub fn granted(asked: Moment) -> Self {
        Self { ends: watch::Sender::new(end(asked)), wanted: Arc::default() }
    }

    /// The server renewed it in answer to a call that began at `asked`.
    pub fn renewed(&self, asked: Moment) {
        self.ends.send_modify(|ends| *ends = end(asked).max(*ends));
    }

    /// Returns at once while the lease is certain to be ours; else asks for it to be renewed, and waits until it is.
    /// Whoever finds that it is lost requests `stop`.
    ///
    /// # Errors
    /// Asked to stop.
    pub async fn hold(&self, stop: &Stop) -> Result<(), StopRequested> {
        self.left(Duration::ZERO, stop).await
    }

    /// As [`hold`](Self::hold), with enough left for a command that the server does not fence.
    ///
    /// # Errors
    /// Asked to stop.
    pub async fn hold_to_define(&self, stop: &Stop) -> Result<(), StopRequested> {
        self.left(LEFT_TO_DEFINE, stop).await
    }

    async fn left(&self, least: Duration, stop: &Stop) -> Result<(), StopRequested> {
        let long_enough = |ends: &Moment| Moment::now().until(*ends) > least;
        if long_enough(&self.ends.borrow()) {
            return Ok(());
        }
        let mut ends = self.ends.subscribe();
        self.wanted.notify_one();
        tokio::select! {
            () = stop.requested() => Err(StopRequested),
            // The sender is here, so it is never closed.
            _ = ends.wait_for(long_enough) => Ok(()),
        }
    }

    /// Waits until somebody waits for a renewal.
    pub async fn wanted(&self) {
        self.wanted.notified().await;
    }
}

fn end(asked: Moment) -> Moment {
    Moment(asked.0 + LEASE_TIME.saturating_sub(MARGIN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_sent_waits_for_a_renewal() {
        let stop = Stop::new();
        let now = Moment::now();
        let long_ago = Moment(now.0.saturating_sub(LEASE_TIME));
        let deadline = Deadline::granted(now);
        assert!(deadline.hold(&stop).await.is_ok() && deadline.hold_to_define(&stop).await.is_ok());

        let deadline = Deadline::granted(long_ago);
        let waiting = tokio::spawn({
            let (deadline, stop) = (deadline.clone(), stop.clone());
            async move { deadline.hold_to_define(&stop).await }
        });
        deadline.wanted().await;
        assert!(!waiting.is_finished());
        // Enough for a write, too little for a definition.
        let left = LEASE_TIME.saturating_sub(MARGIN + LEFT_TO_DEFINE / 2);
        deadline.renewed(Moment(now.0.saturating_sub(left)));
        assert!(deadline.hold(&stop).await.is_ok() && !waiting.is_finished());
        deadline.renewed(Moment::now());
        // An answer that was overtaken shortens nothing.
        deadline.renewed(long_ago);
        assert_eq!(waiting.await.unwrap(), Ok(()));

        let deadline = Deadline::granted(long_ago);
        stop.request();
        assert_eq!(deadline.hold(&stop).await, Err(StopRequested));
    }
}
