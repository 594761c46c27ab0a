//! A limit on bytes a second, shared by everybody who copies.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::stop::{Stop, StopRequested};

/// Spares a busy source. Changeable while it is in use.
#[derive(Debug)]
pub struct Pace {
    bytes_per_second: watch::Sender<u64>,
    /// When those who ask next may begin. Held whenever the limit is read or changed.
    next: Mutex<Option<Instant>>,
}

impl Pace {
    /// At most so many bytes a second; 0 for no limit.
    #[must_use]
    pub fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second: watch::Sender::new(bytes_per_second), next: Mutex::new(None) }
    }

    /// Changes the limit; 0 for none. Whoever waits is reckoned anew.
    pub fn set(&self, bytes_per_second: u64) {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let changes =
            |limit: &mut u64| std::mem::replace(limit, bytes_per_second) != bytes_per_second;
        if self.bytes_per_second.send_if_modified(changes) {
            *next = None;
        }
    }

    /// Waits until `bytes` more may be copied.
    ///
    /// # Errors
    /// [`StopRequested`].
    pub async fn take(&self, bytes: u64, stop: &Stop) -> Result<(), StopRequested> {
        let mut limit = self.bytes_per_second.subscribe();
        loop {
            let wait = self.reserve(bytes, &mut limit);
            if wait.is_zero() {
                return Ok(());
            }
            tokio::select! {
                waited = stop.sleep(wait) => return waited,
                // The sender lives as long as `self`.
                _changed = limit.changed() => {}
            }
        }
    }

    /// Takes a place in the row, and tells how long it is to it.
    fn reserve(&self, bytes: u64, limit: &mut watch::Receiver<u64>) -> Duration {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let limit = *limit.borrow_and_update();
        if limit == 0 {
            return Duration::ZERO;
        }
        let now = Instant::now();
        let begin = next.unwrap_or(now).max(now);
        let nanoseconds = u128::from(bytes) * 1_000_000_000 / u128::from(limit);
        *next = Some(begin + Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX)));
        begin - now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn holds_the_limit() {
        let pace = Pace::new(1000);
        let began = Instant::now();
        for _ in 0..11 {
            pace.take(500, &Stop::new()).await.unwrap();
        }
        assert_eq!(began.elapsed().as_millis(), 5000);
        pace.set(0);
        pace.take(u64::MAX, &Stop::new()).await.unwrap();
        assert_eq!(began.elapsed().as_millis(), 5000);
    }

    #[tokio::test(start_paused = true)]
    async fn another_limit_holds_for_those_who_wait_too() {
        let pace = std::sync::Arc::new(Pace::new(1000));
        let began = Instant::now();
        let waiting: Vec<_> = (0..3)
            .map(|_| {
                let pace = pace.clone();
                tokio::spawn(async move { pace.take(3_600_000, &Stop::new()).await })
            })
            .collect();
        tokio::time::sleep(Duration::from_secs(1)).await;
        pace.set(3_600_000);
        for task in waiting {
            task.await.unwrap().unwrap();
        }
        assert_eq!(
            began.elapsed().as_secs(),
            2,
            "one went at once, one at the change, one after it"
        );
    }
}
