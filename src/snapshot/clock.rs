//! The deadline of a snapshot: when it has passed, everything stops.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::stop::Stop;

/// A deadline that may be put off. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Clock {
    at: Arc<Mutex<Instant>>,
    has_passed: Arc<AtomicBool>,
}

impl Clock {
    pub(super) fn new(within: Duration) -> Self {
        let at = Instant::now() + within;
        Self { at: Arc::new(Mutex::new(at)), has_passed: Arc::default() }
    }

    fn at(&self) -> Instant {
        *self.at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// At least so much time is left from now on.
    pub(super) fn allow(&self, time: Duration) {
        let mut at = self.at.lock().unwrap_or_else(PoisonError::into_inner);
        *at = (*at).max(Instant::now() + time);
    }

    /// Whether it has passed, and the stop is its doing.
    pub(super) fn has_passed(&self) -> bool {
        self.has_passed.load(Ordering::Relaxed)
    }

    /// Requests the stop when it has passed.
    pub(super) async fn run(self, stop: Stop) {
        loop {
            let left = self.at().saturating_duration_since(Instant::now());
            if left.is_zero() {
                self.has_passed.store(true, Ordering::Relaxed);
                stop.request();
                return;
            }
            if stop.sleep(left).await.is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_passes_once_and_can_be_put_off() {
        let (stop, clock) = (Stop::new(), Clock::new(Duration::from_secs(60)));
        let began = Instant::now();
        let running = tokio::spawn(clock.clone().run(stop.clone()));
        clock.allow(Duration::from_secs(5));
        tokio::time::sleep(Duration::from_secs(50)).await;
        assert!(!clock.has_passed());
        clock.allow(Duration::from_secs(30));
        running.await.unwrap();
        assert!(clock.has_passed() && stop.is_requested());
        assert_eq!(began.elapsed(), Duration::from_secs(80));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_by_others_is_not_its_doing() {
        let (stop, clock) = (Stop::new(), Clock::new(Duration::from_secs(60)));
        let running = tokio::spawn(clock.clone().run(stop.clone()));
        stop.request();
        running.await.unwrap();
        assert!(!clock.has_passed());
    }
}
