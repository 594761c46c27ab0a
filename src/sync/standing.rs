//! Where source and target stand, as far as is known: what the lag is computed from.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use crate::position::OpTime;
use crate::replay::window::ResumePoint;
use crate::status::{LagFacts, OplogPlace, StatusBoard, WallTime};

/// What has been seen. Pure.
#[derive(Debug, Default)]
struct Seen {
    /// The newest majority optime of the source, and its wall time.
    newest: Option<(OpTime, i64)>,
    resume: Option<ResumePoint>,
    /// Whether the resume point has reached the newest optime since the start. Before that, the first entry not applied
    /// is right after the resume point; after that, it is about as old as the moment the source was seen to be ahead.
    level_once: bool,
    /// Wall time of the first entry of the window in hand.
    window_wall_ms: Option<i64>,
    /// Wall time of the first entry that is known of, and not in a window yet.
    ahead_wall_ms: Option<i64>,
}

impl Seen {
    fn source_at(&mut self, newest: OpTime, wall_ms: i64) {
        self.newest = self.newest.max(Some((newest, wall_ms)));
        self.reckon();
    }

    fn resumes_at(&mut self, resume: ResumePoint) {
        self.resume = Some(resume);
        self.window_wall_ms = None;
        self.ahead_wall_ms = None;
        self.reckon();
    }

    fn reckon(&mut self) {
        let Some(resume) = self.resume else { return };
        match self.newest {
            Some((newest, _)) if resume.applied.ts >= newest.ts => {
                self.ahead_wall_ms = None;
                self.level_once = true;
            }
            Some((_, wall_ms)) if self.level_once => {
                self.ahead_wall_ms.get_or_insert(wall_ms);
            }
            // Nobody knows how far ahead the source is: not less than this.
            _ => self.ahead_wall_ms = Some(resume.wall_ms),
        }
    }

    fn first_unapplied_wall_ms(&self) -> Option<i64> {
        self.window_wall_ms.or(self.ahead_wall_ms)
    }
}

/// The standing, noted on the status board. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Standing {
    board: StatusBoard,
    seen: Arc<Mutex<Seen>>,
}

impl Standing {
    /// Nothing is known yet.
    #[must_use]
    pub fn new(board: StatusBoard) -> Self {
        Self { board, seen: Arc::default() }
    }

    /// The source said that this is its newest majority optime.
    pub fn source_at(&self, newest: OpTime, wall_ms: i64) {
        self.note(true, |seen| seen.source_at(newest, wall_ms));
        self.board.update(|status| {
            status.source_optime =
                Some(OplogPlace { ts: newest.ts, wall: WallTime::from_ms(wall_ms) });
        });
    }

    /// The source had nothing more to give: everything that it has is at or before the resume point.
    pub fn source_exhausted(&self) {
        self.note(true, |seen| {
            if let Some(resume) = seen.resume {
                seen.source_at(resume.applied, resume.wall_ms);
            }
        });
    }

    /// A window is being gathered or applied; this is the wall time of its first entry.
    pub fn window_from(&self, first_wall_ms: i64) {
        self.note(false, |seen| seen.window_wall_ms = Some(first_wall_ms));
    }

    /// The resume point is durable here.
    pub fn resumes_at(&self, resume: ResumePoint) {
        self.note(false, |seen| seen.resumes_at(resume));
        self.board.update(|status| {
            status.resume_point =
                Some(OplogPlace { ts: resume.applied.ts, wall: WallTime::from_ms(resume.wall_ms) });
        });
    }

    fn note(&self, source_answered: bool, change: impl FnOnce(&mut Seen)) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut seen);
        let first_unapplied_wall_ms = seen.first_unapplied_wall_ms();
        let level = first_unapplied_wall_ms.is_none() && seen.level_once;
        let now = Instant::now();
        self.board.update_lag(|lag: &mut LagFacts| {
            if source_answered {
                lag.source_seen_at = Some(now);
            }
            lag.first_unapplied_wall_ms = first_unapplied_wall_ms;
            if level {
                lag.caught_up_at = Some(now);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::position::Ts;

    fn at(t: u32) -> OpTime {
        OpTime::new(Ts::new(t, 1), 1)
    }

    fn resume(t: u32) -> ResumePoint {
        ResumePoint { applied: at(t), wall_ms: i64::from(t) * 1000, read_from: at(t) }
    }

    #[test]
    fn a_backlog_after_a_restart_is_as_old_as_its_first_entry() {
        let mut seen = Seen::default();
        seen.resumes_at(resume(100));
        assert_eq!(seen.first_unapplied_wall_ms(), Some(100_000), "nothing is known of the source");
        seen.source_at(at(9000), 9_000_000);
        assert_eq!(seen.first_unapplied_wall_ms(), Some(100_000));
        seen.window_wall_ms = Some(101_000);
        assert_eq!(seen.first_unapplied_wall_ms(), Some(101_000));
        seen.resumes_at(resume(200));
        assert_eq!(seen.first_unapplied_wall_ms(), Some(200_000), "still far behind");
        seen.resumes_at(resume(9000));
        assert_eq!(seen.first_unapplied_wall_ms(), None);
    }

    #[test]
    fn once_level_the_lag_runs_from_the_first_sight_of_something_new() {
        let mut seen = Seen::default();
        seen.source_at(at(10), 10_000);
        seen.resumes_at(resume(10));
        assert_eq!(seen.first_unapplied_wall_ms(), None);
        // The resume point's own wall time is no measure after an hour of silence.
        seen.source_at(at(3600), 3_600_000);
        seen.source_at(at(3700), 3_700_000);
        assert_eq!(seen.first_unapplied_wall_ms(), Some(3_600_000));
        seen.resumes_at(resume(3650));
        assert_eq!(seen.first_unapplied_wall_ms(), Some(3_700_000));
        seen.resumes_at(resume(3700));
        assert_eq!(seen.first_unapplied_wall_ms(), None);
    }
}
