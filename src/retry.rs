//! Waiting for servers that are away: one back-off, one loop, one way to say so. Nothing else in the program sleeps
//! before it tries again.

use std::future::Future;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use backon::BackoffBuilder;

use crate::mongo::{Error, Side};
use crate::stop::Stop;
use crate::telemetry::counters::COUNTERS;
use crate::telemetry::events;

/// Why something that waits came back without its result.
#[derive(Debug)]
pub enum Stopped<E> {
    /// The daemon was asked to stop. Nothing is wrong.
    Stop,
    /// It failed for good.
    Failed(E),
}

impl<E> Stopped<E> {
    /// The same with another error.
    pub fn map<F>(self, convert: impl FnOnce(E) -> F) -> Stopped<F> {
        match self {
            Self::Stop => Stopped::Stop,
            Self::Failed(error) => Stopped::Failed(convert(error)),
        }
    }
}

impl<E> From<crate::stop::StopRequested> for Stopped<E> {
    fn from(_: crate::stop::StopRequested) -> Self {
        Self::Stop
    }
}

const RECONNECT_DELAY_MIN: Duration = Duration::from_millis(50);
const RECONNECT_DELAY_MAX: Duration = Duration::from_secs(5);

/// Growing delays with jitter, for ever.
#[derive(Debug)]
pub struct Backoff {
    delays: backon::ExponentialBackoff,
}

impl Backoff {
    /// For a server that is away: from 50 ms, doubling, to 5 s.
    #[must_use]
    pub fn reconnect() -> Self {
        let delays = backon::ExponentialBuilder::default()
            .with_min_delay(RECONNECT_DELAY_MIN)
            .with_max_delay(RECONNECT_DELAY_MAX)
            .with_jitter()
            .without_max_times()
            .build();
        Self { delays }
    }

    /// The next delay.
    pub fn next_delay(&mut self) -> Duration {
        self.delays.next().unwrap_or(RECONNECT_DELAY_MAX)
    }
}

/// The first failures are ordinary (an election, a restart); after these many it is an alarm.
const QUIET_FAILURES: u32 = 2;
/// Later failures are logged once in so many.
const LOG_EVERY: u32 = 6;

/// Reports one outage of one side: quietly at first, then as a warning, and once more when it is over.
#[derive(Debug)]
pub struct Outage {
    side: Side,
    failures: AtomicU32,
}

impl Outage {
    /// No failure yet.
    #[must_use]
    pub fn new(side: Side) -> Self {
        Self { side, failures: AtomicU32::new(0) }
    }

    /// One more failure.
    pub fn report(&self, error: &Error) {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed);
        COUNTERS.retried(self.side);
        let is_ordinary = failures < QUIET_FAILURES;
        if is_ordinary || failures % LOG_EVERY == QUIET_FAILURES {
            events::unreachable(self.side, failures + 1, is_ordinary, &error.to_string());
        }
    }
}

impl Drop for Outage {
    fn drop(&mut self) {
        let failures = self.failures.load(Ordering::Relaxed);
        if failures > 0 && !std::thread::panicking() {
            events::reachable_again(self.side, failures);
        }
    }
}

/// How long a call under way is waited for after a stop was asked for: a driver looks for a server that is away for
/// longer than a stop may take, and one that cannot reach its majority answers nothing.
const FINISH_WITHIN: Duration = Duration::from_secs(1);

/// Waits for a call, but not for long once a stop was asked for. What is left in flight is killed and waited out by the
/// next start.
///
/// # Errors
/// [`Stopped::Stop`] if there was no answer in time.
pub async fn unless_stopped<T, E>(
    stop: &Stop,
    call: impl Future<Output = T>,
) -> Result<T, Stopped<E>> {
    unless_late(stop, FINISH_WITHIN, call).await
}

/// As [`unless_stopped`], with another patience.
///
/// # Errors
/// [`Stopped::Stop`] if there was no answer in time.
pub async fn unless_late<T, E>(
    stop: &Stop,
    within: Duration,
    call: impl Future<Output = T>,
) -> Result<T, Stopped<E>> {
    let late = async {
        stop.requested().await;
        tokio::time::sleep(within).await;
    };
    tokio::select! {
        answer = call => Ok(answer),
        () = late => Err(Stopped::Stop),
    }
}

/// Repeats `call` while the server is away, until it answers, fails for good or `stop` is requested. Only for calls
/// that may be carried out twice: reads, and writes that tolerate having been made already.
///
/// # Errors
/// [`Stopped`].
pub async fn until_reached<T, F, Fut>(
    side: Side,
    stop: &Stop,
    mut call: F,
) -> Result<T, Stopped<Error>>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, Error>>,
{
    let mut backoff = Backoff::reconnect();
    let outage = Outage::new(side);
    loop {
        match unless_stopped(stop, Box::pin(call())).await? {
            Ok(value) => return Ok(value),
            Err(error) if error.is_unreachable() => {
                outage.report(&error);
                stop.sleep(backoff.next_delay()).await?;
            }
            Err(error) => return Err(Stopped::Failed(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_server_that_does_not_answer_is_not_in_the_way_of_a_stop() {
        let stop = Stop::new();
        let asked = tokio::time::Instant::now();
        let silent = until_reached(Side::Source, &stop, std::future::pending::<Result<(), Error>>);
        let stopping = async {
            tokio::time::sleep(Duration::from_secs(60)).await;
            stop.request();
        };
        let (outcome, ()) = tokio::join!(silent, stopping);
        assert!(matches!(outcome, Err(Stopped::Stop)), "{outcome:?}");
        assert_eq!(asked.elapsed(), Duration::from_secs(60) + FINISH_WITHIN);
    }

    #[test]
    fn delays_grow_and_stay_bounded() {
        let mut backoff = Backoff::reconnect();
        let delays: Vec<Duration> = (0..100).map(|_| backoff.next_delay()).collect();
        assert!(delays[0] < Duration::from_millis(200));
        assert!(delays.iter().all(|delay| *delay <= RECONNECT_DELAY_MAX * 2));
        assert!(delays[99] >= RECONNECT_DELAY_MAX);
    }
}
