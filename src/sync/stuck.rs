//! A stream that stands still is an alarm, not a silence; and never a reason to end anything.

use std::time::{Duration, Instant};

use crate::position::Ts;
use crate::status::{IndexBuild, State, Status};
use crate::telemetry::events;

/// So long nothing may move while there is something to do.
const STUCK_AFTER: Duration = Duration::from_secs(300);
/// So long, where it cannot be seen whether anything moves: the target builds indexes, and does not say how far it is,
/// or has done its part and waits for its secondaries.
const STUCK_UNSEEN_AFTER: Duration = Duration::from_secs(3600);
/// The alarm is repeated so often.
const ALARM_EVERY: Duration = Duration::from_secs(600);

/// What moves when anything does.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mark {
    state: State,
    resume_point: Option<Ts>,
    bytes_copied: u64,
    builds: Vec<IndexBuild>,
}

impl Mark {
    fn of(status: &Status) -> Self {
        // How long it lasts is no progress.
        let builds = status.index_builds.iter().cloned();
        Self {
            state: status.state,
            resume_point: status.resume_point.map(|place| place.ts),
            bytes_copied: status.copy.bytes,
            builds: builds.map(|build| IndexBuild { seconds: 0, ..build }).collect(),
        }
    }

    fn patience(&self) -> Duration {
        let is_seen = |build: &IndexBuild| build.done.is_some() && build.done < build.total;
        if self.builds.iter().all(is_seen) { STUCK_AFTER } else { STUCK_UNSEEN_AFTER }
    }
}

/// Watches whether anything moves.
#[derive(Debug, Default)]
pub(super) struct StuckWatch {
    mark: Option<(Mark, Instant)>,
    alarmed: Option<Instant>,
}

impl StuckWatch {
    /// Looks at the status, and gives the alarm if it is due.
    pub(super) fn look(&mut self, status: &Status, now: Instant) {
        if let Some((what, stuck)) = self.find(status, now) {
            events::no_progress(&what, stuck);
        }
    }

    fn find(&mut self, status: &Status, now: Instant) -> Option<(String, Duration)> {
        let (what, mark) = (to_do(status), Mark::of(status));
        let (since, patience) = match &self.mark {
            Some((before, since)) if *before == mark && what.is_some() => (*since, mark.patience()),
            _ => {
                *self = Self { mark: Some((mark, now)), alarmed: None };
                return None;
            }
        };
        let stuck = now.saturating_duration_since(since);
        let quiet = |at| now.saturating_duration_since(at) < ALARM_EVERY;
        if stuck < patience || self.alarmed.is_some_and(quiet) {
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
            let behind = resume < newest;
            let mut what = format!("the replay, at {resume} while the source is at {newest}");
            if let Some(build) = status.index_builds.first() {
                what.push_str(&format!("; it waits for indexes on {build}"));
            }
            (behind || !status.index_builds.is_empty()).then_some(what)
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

    fn look(watch: &mut StuckWatch, begun: Instant, status: &Status, seconds: u64) -> Option<u64> {
        let found = watch.find(status, begun + Duration::from_secs(seconds));
        found.map(|(_, stuck)| stuck.as_secs())
    }

    fn following() -> Status {
        let mut status = samples::live();
        status.index_builds.clear();
        status
    }

    #[test]
    fn standing_still_with_something_to_do_is_an_alarm_now_and_again() {
        let (mut watch, begun) = (StuckWatch::default(), Instant::now());
        let mut look = |status: &Status, seconds| look(&mut watch, begun, status, seconds);
        let mut status = following();
        assert_eq!(look(&status, 0), None);
        assert_eq!(look(&status, 299), None);
        let what = to_do(&status).unwrap();
        assert_eq!(what, "the replay, at 1731681000:3 while the source is at 1731681000:9");
        assert_eq!(look(&status, 300), Some(300));
        assert_eq!(look(&status, 899), None, "told a moment ago");
        assert_eq!(look(&status, 900), Some(900));
        // It moves, or has nothing to do.
        status.resume_point.as_mut().unwrap().ts.i = 4;
        assert_eq!(look(&status, 901), None);
        assert_eq!(look(&status, 1200), None);
        assert_eq!(look(&status, 1201), Some(300));
        status.resume_point = status.source_optime;
        assert_eq!(look(&status, 1502), None);
        assert_eq!(look(&status, 9999), None);
        // The first catch-up is no exception.
        status = following();
        status.state = State::CatchingUp;
        assert_eq!(look(&status, 10_000), None);
        assert_eq!(look(&status, 10_300), Some(300));
        status.state = State::Copying;
        assert_eq!(look(&status, 10_301), None);
        assert_eq!(look(&status, 10_601), Some(300));
        assert!(to_do(&status).unwrap().starts_with("the copy, at 10 documents"));
    }

    #[test]
    fn an_index_build_that_moves_is_no_alarm_and_one_that_stands_is() {
        let (mut watch, begun) = (StuckWatch::default(), Instant::now());
        let mut look = |status: &Status, seconds| look(&mut watch, begun, status, seconds);
        let mut status = samples::live();
        for round in 0..20 {
            status.index_builds[0].done = Some(round / 2);
            status.index_builds[0].total = Some(100);
            status.index_builds[0].seconds = round * 200;
            assert_eq!(look(&status, round * 200), None, "{round}");
        }
        status.index_builds[0].seconds += 300;
        assert_eq!(look(&status, 3899), None);
        assert_eq!(look(&status, 3900), Some(300));
        assert!(to_do(&status).unwrap().contains("it waits for indexes on shop.carts: 2 indexes"));
        // A source that writes nothing more does not hide it.
        status.resume_point = status.source_optime;
        assert_eq!(look(&status, 4000), None);
        assert_eq!(look(&status, 4300), Some(300));
        // The last part is done, and the secondaries have theirs to do.
        status.index_builds[0].done = Some(100);
        assert_eq!(look(&status, 5000), None);
        assert_eq!(look(&status, 8599), None);
        assert_eq!(look(&status, 8600), Some(3600));
        // Where the server does not say how far it is, it has an hour as well.
        status.index_builds[0].done = None;
        assert_eq!(look(&status, 10_000), None);
        assert_eq!(look(&status, 13_599), None);
        assert_eq!(look(&status, 13_600), Some(3600));
    }
}
