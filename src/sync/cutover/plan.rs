//! What is durable of a cutover, and what follows from it. Pure.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::http::control::CutoverOptions;
use crate::position::OpTime;
use crate::status::{CutoverStep, Proof, State, Timing, VerifyDepth, WallTime, WriteBlock};

/// The point of no return.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decided {
    /// When.
    pub at_ms: i64,
    /// Everything up to here is on the target.
    pub last: OpTime,
    /// Wall time of that entry.
    pub last_wall_ms: i64,
    /// What was compared.
    pub proof: Proof,
}

/// A cutover that has begun to act, as it stands in the record. It is there before the first act.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CutoverRecord {
    /// When it was asked for.
    pub began_ms: i64,
    /// Who asked.
    pub by: Option<String>,
    /// When it is given up if it has not been decided.
    pub deadline_ms: i64,
    /// What is compared.
    pub verify: VerifyDepth,
    /// Who blocks writes to the source. `Ours` stands here before the block is set.
    pub block: WriteBlock,
    /// For how long the source had not been seen, if it is given up for lost.
    pub source_unseen_seconds: Option<u64>,
    /// When the source stopped to take writes.
    pub stopped_ms: Option<i64>,
    /// How long the steps took that are over.
    pub timings: Vec<Timing>,
    /// From here on there is no way back.
    pub decided: Option<Decided>,
    /// The target's optime before anything was restored.
    pub reverse_from: Option<OpTime>,
    /// When everything was restored.
    pub finished_ms: Option<i64>,
}

impl CutoverRecord {
    /// One that is about to act.
    #[must_use]
    pub fn new(began: WallTime, now: WallTime, options: &CutoverOptions) -> Self {
        let timeout = i64::try_from(options.timeout.as_millis()).unwrap_or(i64::MAX);
        Self {
            began_ms: began.as_ms(),
            by: options.requested_by().map(str::to_owned),
            deadline_ms: now.as_ms().saturating_add(timeout),
            verify: options.verify,
            block: WriteBlock::None,
            source_unseen_seconds: None,
            stopped_ms: None,
            timings: Vec::new(),
            decided: None,
            reverse_from: None,
            finished_ms: None,
        }
    }

    /// Notes that a step has taken so long; the same step may come again.
    pub fn took(&mut self, step: CutoverStep, elapsed: Duration) {
        let ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
        match self.timings.iter_mut().find(|timing| timing.step == step) {
            Some(timing) => timing.ms = timing.ms.saturating_add(ms),
            None => self.timings.push(Timing { step, ms }),
        }
    }

    /// How long nobody could write to either side, once it is over.
    #[must_use]
    pub fn downtime_ms(&self) -> Option<u64> {
        let span = self.finished_ms?.saturating_sub(self.stopped_ms?);
        Some(span.max(0).unsigned_abs())
    }

    /// What a start makes of it.
    #[must_use]
    pub fn after_restart(&self) -> AfterRestart {
        match (&self.decided, self.block) {
            (Some(_), _) => AfterRestart::GoesOn,
            (None, WriteBlock::Ours) => AfterRestart::Lifts,
            (None, WriteBlock::None | WriteBlock::Foreign) => AfterRestart::GivesUp,
        }
    }
}

/// What a start makes of a cutover that was cut short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterRestart {
    /// It was decided: it is carried out to its end.
    GoesOn,
    /// It may have blocked writes: that is lifted, and the migration follows again.
    Lifts,
    /// The migration follows again.
    GivesUp,
}

/// What has to hold before anything is done.
#[derive(Debug, Clone, PartialEq)]
pub struct GateFacts {
    /// Where the migration stands.
    pub state: State,
    /// How far the target is behind.
    pub lag_seconds: Option<f64>,
    /// How far it may be.
    pub lag_seconds_max: f64,
    /// Collections that are being copied again, or wait for it.
    pub copying: Vec<String>,
    /// Whether every index is there.
    pub indexes_built: bool,
    /// Whether the target is the source at one moment at every window end.
    pub settled: bool,
    /// Collections whose documents were counted at one optime, and differ.
    pub differing: Vec<String>,
}

/// Names stated in one sentence at the most.
const NAMED_MAX: usize = 5;

/// What does not hold, as sentences.
#[must_use]
pub fn gate(facts: &GateFacts) -> Vec<String> {
    let mut missing = Vec::new();
    if facts.state != State::Live {
        missing.push(format!("the state is {}, not live", facts.state));
    }
    match facts.lag_seconds {
        Some(lag) if lag <= facts.lag_seconds_max => {}
        Some(lag) => missing.push(format!(
            "the target is {lag:.1} s behind, more than {:.1} s",
            facts.lag_seconds_max
        )),
        None => missing.push("how far the target is behind is not known".to_owned()),
    }
    if !facts.copying.is_empty() {
        missing.push(format!("{} are being copied again", named(&facts.copying)));
    }
    if !facts.indexes_built || !facts.settled {
        missing.push("not all indexes are built".to_owned());
    }
    if !facts.differing.is_empty() {
        missing.push(format!("numbers of documents differ in {}", named(&facts.differing)));
    }
    missing
}

/// The first of these names, and how many more there are.
#[must_use]
pub fn named(names: &[String]) -> String {
    let more = names.len().saturating_sub(NAMED_MAX);
    let first = names.iter().take(NAMED_MAX).cloned().collect::<Vec<_>>().join(", ");
    if more > 0 { format!("{first} and {more} more") } else { first }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::position::Ts;

    fn options() -> CutoverOptions {
        let timeout = Duration::from_secs(60);
        CutoverOptions { timeout, by: Some(" ada ".into()), ..CutoverOptions::default() }
    }

    fn record() -> CutoverRecord {
        CutoverRecord::new(WallTime::from_ms(1000), WallTime::from_ms(5000), &options())
    }

    #[test]
    fn a_restart_undoes_what_is_not_decided_and_lifts_only_what_is_ours() {
        let mut record = record();
        assert_eq!((record.deadline_ms, record.by.as_deref()), (65_000, Some("ada")));
        for (block, expected) in [
            (WriteBlock::None, AfterRestart::GivesUp),
            (WriteBlock::Foreign, AfterRestart::GivesUp),
            (WriteBlock::Ours, AfterRestart::Lifts),
        ] {
            record.block = block;
            assert_eq!(record.after_restart(), expected, "{block:?}");
        }
        record.decided = Some(Decided {
            at_ms: 0,
            last: OpTime::new(Ts::new(1, 1), 1),
            last_wall_ms: 0,
            proof: Proof::default(),
        });
        assert_eq!(record.after_restart(), AfterRestart::GoesOn);
    }

    #[test]
    fn steps_that_come_again_add_up_and_the_downtime_ends_with_the_last() {
        let mut record = record();
        record.took(CutoverStep::Draining, Duration::from_millis(30));
        record.took(CutoverStep::Verifying, Duration::from_millis(5));
        record.took(CutoverStep::Draining, Duration::from_millis(12));
        let took: Vec<u64> = record.timings.iter().map(|timing| timing.ms).collect();
        assert_eq!(took, [42, 5]);
        assert_eq!(record.downtime_ms(), None);
        (record.stopped_ms, record.finished_ms) = (Some(7000), Some(7250));
        assert_eq!(record.downtime_ms(), Some(250));
        let json = serde_json::to_string(&record).unwrap();
        assert_eq!(serde_json::from_str::<CutoverRecord>(&json).unwrap(), record);
        assert!(json.len() < 1500, "it shares a small slot: {}", json.len());
    }

    #[test]
    fn the_gate_names_everything_that_is_in_the_way() {
        let open = GateFacts {
            state: State::Live,
            lag_seconds: Some(0.3),
            lag_seconds_max: 1.0,
            copying: Vec::new(),
            indexes_built: true,
            settled: true,
            differing: Vec::new(),
        };
        assert_eq!(gate(&open), [""; 0]);
        let many: Vec<String> = (0..7).map(|n| format!("a.c{n}")).collect();
        let shut = GateFacts {
            state: State::CatchingUp,
            lag_seconds: Some(9.0),
            copying: many,
            indexes_built: false,
            differing: vec!["b.x".into()],
            ..open.clone()
        };
        let found = gate(&shut);
        assert_eq!(found.len(), 5, "{found:?}");
        assert!(found[2].contains("a.c4 and 2 more"), "{found:?}");
        assert_eq!(gate(&GateFacts { lag_seconds: None, ..open }).len(), 1);
    }
}
