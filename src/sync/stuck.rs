//! A stream that stands still is an alarm, not a silence; and never a reason to end anything.

use std::time::{Duration, Instant};

use super::context::Context;
use crate::position::Ts;
use crate::status::{State, Status};
use crate::telemetry::events;

/// So long nothing may move while there is something to do.
const STUCK_AFTER: Duration = Duration::from_secs(300);
/// The alarm is repeated so often.
const ALARM_EVERY: Duration = Duration::from_secs(600);

/// What moves when anything does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark {
    state: State,
    resume_point: Option<Ts>,
    bytes_copied: u64,
}

/// Watches whether anything moves.
#[derive(Debug, Default)]
pub(super) struct StuckWatch {
    mark: Option<(Mark, Instant)>,
    alarmed: Option<Instant>,
}

impl StuckWatch {
    /// Looks at the status, and gives the alarm if it is due.
    pub(super) fn look(&mut self, status: &Status, context: &Context, now: Instant) {
        // Indexes are built with the replay held, for as long as it takes.
        let builds = status.state == State::CatchingUp && !context.catalogue.read().indexes_built;
        if let Some((what, stuck)) = self.find(status, builds, now) {
            events::no_progress(&what, stuck);
        }
    }

    fn find(&mut self, status: &Status, builds: bool, now: Instant) -> Option<(String, Duration)> {
        let what = (!builds).then(|| to_do(status)).flatten();
        let mark = Mark {
            state: status.state,
            resume_point: status.resume_point.map(|place| place.ts),
            bytes_copied: status.copy.bytes,
        };
        let since = match self.mark {
            Some((before, since)) if before == mark && what.is_some() => since,
            _ => {
                *self = Self { mark: Some((mark, now)), alarmed: None };
                return None;
            }
        };
        let stuck = now.saturating_duration_since(since);
        let quiet = |at| now.saturating_duration_since(at) < ALARM_EVERY;
        if stuck < STUCK_AFTER || self.alarmed.is_some_and(quiet) {
            return None;
        }
        self.alarmed = Some(now);
        what.map(|what| (what, stuck))
    }
}

/// What ought to move now, if anything.
fn to_do(status: &Status) -> Option<String> {
    match status.state {
        State::Copying => Some(format!("the copy, at {} documents", status.copy.documents)),
        State::CatchingUp | State::Live => {
            let (resume, newest) = (status.resume_point?.ts, status.source_optime?.ts);
            (resume < newest)
                .then(|| format!("the replay, at {resume} while the source is at {newest}"))
        }
        State::Starting | State::Paused | State::Halted | State::CuttingOver | State::CutOver => {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::samples;

    #[test]
    fn standing_still_with_something_to_do_is_an_alarm_now_and_again() {
        let mut watch = StuckWatch::default();
        let begun = Instant::now();
        let mut look = |status: &Status, builds, seconds| {
            watch.find(status, builds, begun + Duration::from_secs(seconds))
        };
        let mut status = samples::live();
        assert_eq!(look(&status, false, 0), None);
        assert_eq!(look(&status, false, 299), None);
        let (what, stuck) = look(&status, false, 300).unwrap();
        assert!(what.contains("1731681000:3 while the source is at 1731681000:9"), "{what}");
        assert_eq!(stuck, STUCK_AFTER);
        assert_eq!(look(&status, false, 899), None, "told a moment ago");
        assert_eq!(look(&status, false, 900).unwrap().1, Duration::from_secs(900));
        // It moves, has nothing to do, or builds indexes.
        status.resume_point.as_mut().unwrap().ts.i = 4;
        assert_eq!(look(&status, false, 901), None);
        assert_eq!(look(&status, false, 1200), None);
        assert_eq!(look(&status, true, 1201), None);
        assert_eq!(look(&status, false, 1500), None);
        assert!(look(&status, false, 1501).is_some());
        status.resume_point = status.source_optime;
        assert_eq!(look(&status, false, 1502), None);
        assert_eq!(look(&status, false, 9999), None);
        status.state = State::Copying;
        assert_eq!(look(&status, false, 10_000), None);
        assert!(look(&status, false, 10_300).unwrap().0.starts_with("the copy, at 10 documents"));
    }
}
