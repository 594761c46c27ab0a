//! What all acts of a migration share.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::cutover::Handover;
use super::divergence::desk::Desk;
use super::mirroring::Verified;
use super::phase::{Event, IllegalTransition, Phase};
use super::record::{Record, RecordStore};
use super::standing::Standing;
use super::tuning::InForce;
use bson::Uuid;
use tokio::sync::Notify;

use crate::config::Config;
use crate::copy::Pace;
use crate::exit::{Code, Exit};
use crate::mongo::Deployment;
use crate::replay::noted::Noted;
use crate::retry::Stopped;
use crate::state::StateError;
use crate::state::catalogue::CatalogueStore;
use crate::status::{State, StatusBoard, WallTime};
use crate::stop::Stop;
use crate::target::definitions::Definer;
use crate::target::writers::Writers;
use crate::telemetry::events;

/// Why an act ended before its time.
#[derive(Debug)]
pub enum Interrupted {
    /// Asked to stop.
    Stop,
    /// A person is needed; the state stays halted.
    Halt {
        /// What happened.
        reason: String,
        /// What to do about it.
        remedy: String,
    },
    /// Collections on the target are not what the source makes them, by their UUID on the source.
    Diverged {
        /// Which.
        collections: Vec<Uuid>,
        /// What was found.
        what: String,
    },
    /// The source's oplog no longer holds what comes next; the text says so.
    Lost(String),
    /// What is durable has changed: the act goes on from there.
    Again,
    /// The program ends; a restart may mend it.
    Exit(Exit),
}

impl From<IllegalTransition> for Interrupted {
    fn from(error: IllegalTransition) -> Self {
        Self::Exit(Exit::new(Code::Internal, error.to_string()))
    }
}

impl From<StateError> for Interrupted {
    fn from(error: StateError) -> Self {
        Self::Exit(error.into())
    }
}

impl From<Exit> for Interrupted {
    fn from(exit: Exit) -> Self {
        Self::Exit(exit)
    }
}

impl From<crate::stop::StopRequested> for Interrupted {
    fn from(_: crate::stop::StopRequested) -> Self {
        Self::Stop
    }
}

impl From<Stopped<crate::mongo::Error>> for Interrupted {
    fn from(stopped: Stopped<crate::mongo::Error>) -> Self {
        match stopped {
            Stopped::Stop => Self::Stop,
            Stopped::Failed(error) => Self::from(error),
        }
    }
}

impl From<crate::mongo::Error> for Interrupted {
    fn from(error: crate::mongo::Error) -> Self {
        use crate::mongo::Failure;
        match error.failure {
            Failure::Disk => Self::Exit(Exit::new(Code::Disk, error.to_string())),
            _ if error.is_fenced() => {
                let text = format!("{error}: another daemon has taken over");
                Self::Exit(Exit::new(Code::Held, text))
            }
            Failure::Privilege | Failure::Authentication => Self::Halt {
                reason: error.to_string(),
                remedy: "run `snapsync check`, grant what is missing, then `snapsync resume`"
                    .into(),
            },
            _ => Self::Halt {
                reason: error.to_string(),
                remedy: "see the journal; mend the cause, then `snapsync resume`".into(),
            },
        }
    }
}

/// What all acts share.
#[derive(Debug, Clone)]
pub struct Context {
    /// The configuration of this start.
    pub config: Arc<Config>,
    /// What of it may change in flight.
    pub tuning: InForce,
    /// Read from.
    pub source: Deployment,
    /// Written to, by connections that carry this run's name.
    pub target: Deployment,
    /// Definitions on the target.
    pub definer: Definer,
    /// Document writes on the target.
    pub writers: Writers,
    /// The small, ever-changing part of the durable state.
    pub records: Arc<RecordStore>,
    /// The large, rarely changing part.
    pub catalogue: Arc<CatalogueStore>,
    /// What is told.
    pub board: StatusBoard,
    /// Where source and target stand.
    pub standing: Standing,
    /// Whether the target is, at every window end, the source at one moment. Before that no counts are compared.
    pub settled: Arc<AtomicBool>,
    /// Whether source and target are those that the records speak of.
    pub verified: Verified,
    /// Limit of the copy.
    pub pace: Arc<Pace>,
    /// Limit of the verification that goes on all the time.
    pub verify_pace: Arc<Pace>,
    /// Where the replay and those who watch the target meet.
    pub desk: Desk,
    /// Where the replay and a cutover meet.
    pub cutover: Handover,
    /// What the replay changes, while a cutover wants to compare just that.
    pub noted: Noted,
    /// Asks for a mirroring before the next one is due.
    pub mirror_wanted: Arc<Notify>,
}

impl Context {
    /// Kills and waits out what an act may have left in flight that was told to stop while the target did not answer.
    /// To be called between two acts, before anything that must not meet it.
    ///
    /// # Errors
    /// [`Interrupted`].
    pub async fn clear_cut_short(&self, stop: &Stop) -> Result<(), Interrupted> {
        Ok(self.definer.clear_cut_short(self.writers.ids(), stop).await?)
    }

    /// Moves the migration on: durably, then on the board and in the log.
    ///
    /// # Errors
    /// The disk, or an event that makes no sense now (a defect).
    pub fn happen(&self, event: Event) -> Result<Phase, Interrupted> {
        self.happen_with(event, |_| {})
    }

    /// As [`happen`](Self::happen), with another change of the record in the same write.
    ///
    /// # Errors
    /// As [`happen`](Self::happen).
    pub fn happen_with(
        &self,
        event: Event,
        change: impl FnOnce(&mut Record),
    ) -> Result<Phase, Interrupted> {
        let record = self.records.try_change(|record| {
            record.phase = record.phase.next(event)?;
            record.since_ms = WallTime::now().as_ms();
            change(record);
            Ok::<(), Interrupted>(())
        })?;
        self.show(&record.phase);
        Ok(record.phase)
    }

    /// Puts a phase on the board and into the log.
    pub fn show(&self, phase: &Phase) {
        let before = self.board.state();
        let state = phase.state();
        let reason = match phase {
            Phase::Halted { reason, remedy, .. } => {
                events::halted(reason, remedy);
                Some(format!("{reason}; {remedy}"))
            }
            _ => None,
        };
        self.board.enter(state, reason.clone());
        if before != state {
            events::state_changed(before, state, reason.as_deref());
        }
        if state == State::Live {
            events::live(self.board.lag_seconds().unwrap_or(0.0));
        }
    }
}
