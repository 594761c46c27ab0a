//! Waiting for conditions. Tests never sleep for a fixed time and hope.

use std::future::Future;
use std::time::{Duration, Instant};

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(30);

/// Asks `condition` until it answers `Ok`, and returns what it answered. An `Err` says what is still missing.
///
/// # Panics
/// After `timeout`, with the description and the last thing that was missing.
pub async fn wait_for<T, F, R>(description: &str, timeout: Duration, mut condition: F) -> T
where
    F: FnMut() -> R,
    R: Future<Output = Result<T, String>>,
{
    let started = Instant::now();
    loop {
        match condition().await {
            Ok(value) => return value,
            Err(missing) if started.elapsed() > timeout => {
                panic!("waited {timeout:?} for {description}; still missing: {missing}")
            }
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}
