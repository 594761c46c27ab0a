//! A limit on bytes a second, shared by everybody who copies.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::stop::{Stop, StopRequested};

/// Spares a busy source. Changeable while it is in use.
#[derive(Debug)]
pub struct Pace {
    bytes_per_second: AtomicU64,
    next: Mutex<Option<Instant>>,
}

impl Pace {
    /// At most so many bytes a second; 0 for no limit.
    #[must_use]
    pub fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second: AtomicU64::new(bytes_per_second), next: Mutex::new(None) }
    }

    /// Changes the limit; 0 for none.
    pub fn set(&self, bytes_per_second: u64) {
        self.bytes_per_second.store(bytes_per_second, Ordering::Relaxed);
    }

    /// Waits until `bytes` more may be copied.
    ///
    /// # Errors
    /// [`StopRequested`].
    pub async fn take(&self, bytes: u64, stop: &Stop) -> Result<(), StopRequested> {
        let limit = self.bytes_per_second.load(Ordering::Relaxed);
        if limit == 0 {
            return Ok(());
        }
        let now = Instant::now();
        let begin = {
            let mut next = self.next.lock().await;
            let begin = next.unwrap_or(now).max(now);
            let nanoseconds = u128::from(bytes) * 1_000_000_000 / u128::from(limit);
            let cost = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
            *next = Some(begin + cost);
            begin
        };
        stop.sleep(begin - now).await
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
}
