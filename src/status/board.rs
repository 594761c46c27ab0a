//! The one place where the status is kept.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use super::{LagFacts, Now, OplogReserve, State, Status, WallTime, lag};

/// A cheap handle on the status: the sync room writes to it, everybody else reads. The lag is kept as facts and
/// computed on reading, because it grows while nothing is written.
#[derive(Debug, Clone)]
pub struct StatusBoard {
    kept: Arc<RwLock<Kept>>,
}

#[derive(Debug)]
struct Kept {
    status: Status,
    lag: LagFacts,
    reserve: Option<OplogReserve>,
}

impl StatusBoard {
    /// A board that says `starting`.
    #[must_use]
    pub fn new(version: impl Into<String>) -> Self {
        let status = Status::starting(version, WallTime::now());
        let kept = Kept { status, lag: LagFacts::default(), reserve: None };
        Self { kept: Arc::new(RwLock::new(kept)) }
    }

    /// Changes the status. `change` runs under the lock: it assigns, and does not compute or wait. What it writes to
    /// `lag_seconds` is overwritten when the status is read; use [`StatusBoard::update_lag`].
    pub fn update(&self, change: impl FnOnce(&mut Status)) {
        change(&mut self.write().status);
    }

    /// Changes the facts that the lag is computed from.
    pub fn update_lag(&self, change: impl FnOnce(&mut LagFacts)) {
        change(&mut self.write().lag);
    }

    /// Enters a state now, with the reason to show.
    pub fn enter(&self, state: State, reason: Option<String>) {
        self.update(|status| status.enter(state, reason, WallTime::now()));
    }

    /// The state alone, without copying the rest.
    #[must_use]
    pub fn state(&self) -> State {
        self.kept.read().unwrap_or_else(PoisonError::into_inner).status.state
    }

    /// `Ok` when the daemon is ready, else why it is not.
    ///
    /// # Errors
    /// One sentence for `/health/ready`.
    pub fn ready(&self) -> Result<(), String> {
        let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner);
        match (kept.status.ready(), kept.reserve.and_then(|reserve| reserve.warning())) {
            (Err(state), Some(warning)) if kept.status.reason.is_none() => {
                Err(format!("{state}: {warning}"))
            }
            (ready, _) => ready,
        }
    }

    /// The lag in seconds as of now.
    #[must_use]
    pub fn lag_seconds(&self) -> Option<f64> {
        lag_now(&self.kept.read().unwrap_or_else(PoisonError::into_inner).lag)
    }

    /// A copy of the status, with the lag as of now.
    #[must_use]
    pub fn read(&self) -> Status {
        let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner);
        let mut status = Status { lag_seconds: lag_now(&kept.lag), ..kept.status.clone() };
        // What is wrong already goes before what may go wrong.
        if status.reason.is_none() {
            status.reason = kept.reserve.and_then(|reserve| reserve.warning());
        }
        status
    }

    /// Notes how far the source's oplog still reaches. While that is too short, the status says so as its reason.
    pub fn note_reserve(&self, reserve: OplogReserve) {
        self.write().reserve = Some(reserve);
    }

    /// How far the source's oplog still reaches, once it is known.
    #[must_use]
    pub fn reserve(&self) -> Option<OplogReserve> {
        self.kept.read().unwrap_or_else(PoisonError::into_inner).reserve
    }

    // A panic inside `change` leaves a status that is old in part, never one that is unsound: go on with it.
    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Kept> {
        self.kept.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The lag as of now, rounded to milliseconds: wall times have no more.
fn lag_now(facts: &LagFacts) -> Option<f64> {
    let now = Now { instant: Instant::now(), wall_ms: WallTime::now().as_ms() };
    lag(facts, now).map(|seconds| (seconds * 1000.0).round() / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn computes_the_lag_when_it_is_read() {
        let board = StatusBoard::new("0.1.0");
        assert_eq!(board.read().lag_seconds, None);

        let wall_ms = WallTime::now().as_ms() - 5000;
        board.update_lag(|lag| lag.first_unapplied_wall_ms = Some(wall_ms));
        let first = board.read().lag_seconds.unwrap();
        assert!((5.0..60.0).contains(&first), "{first}");
        std::thread::sleep(std::time::Duration::from_millis(20));
        let second = board.lag_seconds().unwrap();
        assert!(second > first, "{second} after {first}");
    }

    #[test]
    fn a_short_oplog_is_the_reason_unless_there_is_a_worse_one() {
        let board = StatusBoard::new("0.1.0");
        let seconds = std::time::Duration::from_secs;
        board.note_reserve(OplogReserve { left: seconds(9), needed: seconds(8) });
        assert_eq!(board.read().reason, None);
        board.note_reserve(OplogReserve { left: seconds(8), needed: seconds(9) });
        assert!(board.ready().unwrap_err().starts_with("starting: the source's oplog will drop"));
        board.enter(State::Halted, Some("the lease is gone".into()));
        assert_eq!(board.read().reason.as_deref(), Some("the lease is gone"));
    }

    #[test]
    fn all_handles_show_the_same_status() {
        let board = StatusBoard::new("0.1.0");
        let reader = board.clone();
        board.enter(State::Halted, Some("the lease is gone".into()));
        assert_eq!(reader.state(), State::Halted);
        assert_eq!(reader.read().reason.as_deref(), Some("the lease is gone"));
        assert_eq!(reader.ready(), Err("halted: the lease is gone".into()));
    }
}
