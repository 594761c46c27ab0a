//! The wish to stop, as a value that every task holds. Stopping is asked for, never forced: a task looks at it between
//! two batches, finishes the one in hand and ends by itself.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// A cloneable handle on the one wish to stop. Once requested it stays so.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    token: CancellationToken,
}

/// How a sleep ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Slept {
    /// The whole time has passed.
    Elapsed,
    /// A stop was requested, perhaps before the sleep began.
    Stopped,
}

impl Stop {
    /// A handle on which nobody has asked to stop yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks everybody who holds a handle to stop. Asking again changes nothing.
    pub fn request(&self) {
        self.token.cancel();
    }

    /// Whether somebody has asked.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Waits until somebody asks. May be dropped at any time.
    pub async fn requested(&self) {
        self.token.cancelled().await;
    }

    /// Sleeps, but not longer than until somebody asks.
    pub async fn sleep_or_stop(&self, duration: Duration) -> Slept {
        tokio::select! {
            biased;
            () = self.token.cancelled() => Slept::Stopped,
            () = tokio::time::sleep(duration) => Slept::Elapsed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[tokio::test(start_paused = true)]
    async fn sleeps_the_whole_time_when_nobody_asks() {
        let begun = tokio::time::Instant::now();
        assert_eq!(Stop::new().sleep_or_stop(HOUR).await, Slept::Elapsed);
        assert_eq!(begun.elapsed(), HOUR);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_wakes_the_sleepers_of_all_clones() {
        let stop = Stop::new();
        let begun = tokio::time::Instant::now();
        let (slept, ()) = tokio::join!(stop.sleep_or_stop(HOUR), async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            stop.clone().request();
        });
        assert_eq!((slept, begun.elapsed()), (Slept::Stopped, Duration::from_secs(1)));
        assert!(stop.is_requested());
        stop.requested().await;
    }

    #[tokio::test]
    async fn a_stop_wins_over_a_sleep_of_no_length() {
        let stop = Stop::new();
        stop.request();
        assert_eq!(stop.sleep_or_stop(Duration::ZERO).await, Slept::Stopped);
    }
}
