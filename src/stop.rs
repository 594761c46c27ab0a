//! The request to stop, which everything that waits listens to.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// A cloneable request to stop. Work in hand is finished; nothing new is begun.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    token: CancellationToken,
}

/// The daemon was asked to stop. Not an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("asked to stop")]
pub struct StopRequested;

impl Stop {
    /// Not requested yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks everybody who holds a clone to stop.
    pub fn request(&self) {
        self.token.cancel();
    }

    /// Whether it was requested.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Waits until it is requested.
    pub async fn requested(&self) {
        self.token.cancelled().await;
    }

    /// A request that is made with this one, and can be made alone.
    #[must_use]
    pub fn child(&self) -> Self {
        Self { token: self.token.child_token() }
    }

    /// Sleeps, unless asked to stop meanwhile.
    ///
    /// # Errors
    /// [`StopRequested`].
    pub async fn sleep(&self, duration: Duration) -> Result<(), StopRequested> {
        tokio::select! {
            () = self.token.cancelled() => Err(StopRequested),
            () = tokio::time::sleep(duration) => Ok(()),
        }
    }

    /// Goes on, unless asked to stop.
    ///
    /// # Errors
    /// [`StopRequested`].
    pub fn check(&self) -> Result<(), StopRequested> {
        if self.is_requested() { Err(StopRequested) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_request_ends_a_sleep() {
        let stop = Stop::new();
        let child = stop.child();
        let sleeper = tokio::spawn(async move { child.sleep(Duration::from_secs(3600)).await });
        stop.request();
        assert_eq!(sleeper.await.unwrap(), Err(StopRequested));
    }

    #[tokio::test]
    async fn a_child_stops_alone() {
        let stop = Stop::new();
        let child = stop.child();
        child.request();
        assert!(child.is_requested());
        assert!(!stop.is_requested());
    }
}
