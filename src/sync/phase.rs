//! The life of a migration as one explicit state machine. Pure: [`Phase::next`] is the only way from one phase to
//! another.

use serde::{Deserialize, Serialize};

use crate::position::Ts;
use crate::status::State;

/// Where a migration stands. Durable: what a restart finds is what it goes on from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "kebab-case")]
pub enum Phase {
    /// The initial copy runs. Set together with the start optime, before the first write to the target.
    Copying,
    /// The copy is complete; the target is not yet the source at one optime, or lags behind.
    CatchingUp {
        /// The end of the source's oplog after the last byte copied: only from here on is the target consistent.
        consistent_from: Ts,
    },
    /// Follows closely.
    Live {
        /// Kept from [`Phase::CatchingUp`].
        consistent_from: Ts,
    },
    /// An operator said so: the oplog is spooled, and nothing is applied. Kept over restarts.
    Paused {
        /// Kept from [`Phase::CatchingUp`].
        consistent_from: Ts,
    },
    /// The target is about to take over.
    CuttingOver {
        /// Kept from [`Phase::CatchingUp`].
        consistent_from: Ts,
        /// Whether there is no way back any more.
        decided: bool,
    },
    /// The target has taken over: the end.
    CutOver {
        /// Kept from [`Phase::CatchingUp`].
        consistent_from: Ts,
    },
    /// Needs a person. Kept over restarts.
    Halted {
        /// What happened.
        reason: String,
        /// What to do about it.
        remedy: String,
        /// Where it stood.
        from: Box<Phase>,
    },
}

/// What moves a migration on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Every selected collection was copied; the oplog's end after the last byte.
    Copied {
        /// Oplog end after the last byte copied.
        consistent_from: Ts,
    },
    /// Replay begins anew at this optime, with everything to be copied again.
    BegunAnew {
        /// The new beginning.
        consistent_from: Ts,
    },
    /// The resume point is within `live.max_lag` of the source, and the target is consistent and indexed.
    CaughtUp,
    /// The lag grew beyond `live.max_lag`.
    FellBehind,
    /// Something only a person can mend.
    Halt {
        /// What happened.
        reason: String,
        /// What to do about it.
        remedy: String,
    },
    /// An operator wants it to stand still.
    Pause,
    /// A person says that it may go on.
    Resume,
    /// A cutover begins to act.
    CutoverBegan,
    /// It is given up.
    CutoverGivenUp,
    /// It cannot be given up any more.
    CutoverDecided,
    /// Everything is restored on the target.
    CutoverFinished,
}

/// An event that makes no sense in a phase: a defect of the program.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{event:?} cannot happen while {state}")]
pub struct IllegalTransition {
    state: State,
    event: Event,
}

impl Phase {
    /// The phase after `event`.
    ///
    /// # Errors
    /// The event makes no sense here; the phase stays as it was.
    pub fn next(&self, event: Event) -> Result<Self, IllegalTransition> {
        match (self, event) {
            (Self::Copying, Event::Copied { consistent_from }) => {
                Ok(Self::CatchingUp { consistent_from })
            }
            (
                Self::CatchingUp { .. } | Self::Live { .. } | Self::Paused { .. },
                Event::BegunAnew { consistent_from },
            ) => Ok(Self::CatchingUp { consistent_from }),
            (Self::CatchingUp { consistent_from }, Event::CaughtUp) => {
                Ok(Self::Live { consistent_from: *consistent_from })
            }
            (Self::Live { consistent_from }, Event::FellBehind) => {
                Ok(Self::CatchingUp { consistent_from: *consistent_from })
            }
            (
                Self::CatchingUp { consistent_from } | Self::Live { consistent_from },
                Event::Pause,
            ) => Ok(Self::Paused { consistent_from: *consistent_from }),
            (Self::Paused { consistent_from }, Event::Resume) => {
                Ok(Self::CatchingUp { consistent_from: *consistent_from })
            }
            (Self::Halted { from, .. }, Event::Resume) => Ok(from.after_restart()),
            (Self::Live { consistent_from }, Event::CutoverBegan) => {
                Ok(Self::CuttingOver { consistent_from: *consistent_from, decided: false })
            }
            (Self::CuttingOver { consistent_from, decided: false }, Event::CutoverGivenUp) => {
                Ok(Self::CatchingUp { consistent_from: *consistent_from })
            }
            // How far it is behind is the cutover's own business by now.
            (Self::CuttingOver { .. }, Event::FellBehind) => Ok(self.clone()),
            // A lost source is given up from wherever its migration stood.
            (
                Self::CuttingOver { consistent_from, decided: false }
                | Self::CatchingUp { consistent_from }
                | Self::Live { consistent_from }
                | Self::Paused { consistent_from },
                Event::CutoverDecided,
            ) => Ok(Self::CuttingOver { consistent_from: *consistent_from, decided: true }),
            (Self::CuttingOver { consistent_from, decided: true }, Event::CutoverFinished) => {
                Ok(Self::CutOver { consistent_from: *consistent_from })
            }
            // Nothing is left to be halted.
            (Self::CutOver { .. }, Event::Halt { .. }) => Ok(self.clone()),
            // The first reason stands: what follows from it would only hide it.
            (Self::Halted { .. }, Event::Halt { .. }) => Ok(self.clone()),
            (_, Event::Halt { reason, remedy }) => {
                let (reason, remedy) = (shortened(reason), shortened(remedy));
                Ok(Self::Halted { reason, remedy, from: Box::new(self.clone()) })
            }
            (phase, event) => Err(IllegalTransition { state: phase.state(), event }),
        }
    }

    /// The name users see.
    #[must_use]
    pub fn state(&self) -> State {
        match self {
            Self::Copying => State::Copying,
            Self::CatchingUp { .. } => State::CatchingUp,
            Self::Live { .. } => State::Live,
            Self::Paused { .. } => State::Paused,
            Self::CuttingOver { .. } => State::CuttingOver,
            Self::CutOver { .. } => State::CutOver,
            Self::Halted { .. } => State::Halted,
        }
    }

    /// From which optime on the target is the source at one moment; `None` while the copy runs.
    #[must_use]
    pub fn consistent_from(&self) -> Option<Ts> {
        match self {
            Self::Copying => None,
            Self::CatchingUp { consistent_from }
            | Self::Live { consistent_from }
            | Self::Paused { consistent_from }
            | Self::CuttingOver { consistent_from, .. }
            | Self::CutOver { consistent_from } => Some(*consistent_from),
            Self::Halted { from, .. } => from.consistent_from(),
        }
    }

    /// What a restart goes on from. Liveness has to be shown again after every start, and a cutover that was not
    /// decided is given up; everything else stands.
    #[must_use]
    pub fn after_restart(&self) -> Self {
        match self {
            Self::Live { consistent_from }
            | Self::CuttingOver { consistent_from, decided: false } => {
                Self::CatchingUp { consistent_from: *consistent_from }
            }
            Self::Halted { reason, remedy, from } => Self::Halted {
                reason: reason.clone(),
                remedy: remedy.clone(),
                from: Box::new(from.after_restart()),
            },
            phase => phase.clone(),
        }
    }
}

/// Bytes of a reason or a remedy at the most: they are kept in a small slot on disk.
const TEXT_BYTES_MAX: usize = 1000;

fn shortened(mut text: String) -> String {
    if text.len() > TEXT_BYTES_MAX {
        let end = (0..=TEXT_BYTES_MAX).rev().find(|end| text.is_char_boundary(*end));
        text.truncate(end.unwrap_or(0));
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn events() -> impl Strategy<Value = Event> {
        prop_oneof![
            any::<u32>().prop_map(|t| Event::Copied { consistent_from: Ts::new(t, 1) }),
            any::<u32>().prop_map(|t| Event::BegunAnew { consistent_from: Ts::new(t, 2) }),
            Just(Event::CaughtUp),
            Just(Event::FellBehind),
            Just(Event::Halt { reason: "r".into(), remedy: "m".into() }),
            Just(Event::Pause),
            Just(Event::Resume),
            Just(Event::CutoverBegan),
            Just(Event::CutoverGivenUp),
            Just(Event::CutoverDecided),
            Just(Event::CutoverFinished),
        ]
    }

    proptest! {
        #[test]
        fn never_live_without_a_finished_copy(
            steps in proptest::collection::vec((events(), any::<bool>()), 0..40)
        ) {
            let mut phase = Phase::Copying;
            let mut copied = None;
            for (event, restart) in steps {
                if restart {
                    phase = phase.after_restart();
                    prop_assert_ne!(phase.state(), State::Live);
                }
                let Ok(next) = phase.next(event.clone()) else { continue };
                // Once decided, nothing but the end and a halt on the way there.
                if is_decided(&phase) {
                    prop_assert!(is_decided(&next), "{phase:?} -> {next:?}");
                }
                match event {
                    Event::Copied { consistent_from } => {
                        prop_assert_eq!(copied, None, "copied twice");
                        copied = Some(consistent_from);
                    }
                    Event::BegunAnew { consistent_from } => {
                        prop_assert!(copied.is_some(), "never copied");
                        copied = Some(consistent_from);
                    }
                    _ => {}
                }
                phase = next;
                prop_assert_eq!(phase.consistent_from(), copied);
                prop_assert!(copied.is_some() || phase.state() != State::Live);
                let json = serde_json::to_string(&phase).unwrap();
                prop_assert_eq!(&serde_json::from_str::<Phase>(&json).unwrap(), &phase);
            }
        }
    }

    fn is_decided(phase: &Phase) -> bool {
        match phase {
            Phase::CuttingOver { decided, .. } => *decided,
            Phase::CutOver { .. } => true,
            Phase::Halted { from, .. } => is_decided(from),
            _ => false,
        }
    }

    #[test]
    fn a_cutover_is_given_up_by_a_restart_until_it_is_decided() {
        let consistent_from = Ts::new(1, 1);
        let live = Phase::Live { consistent_from };
        let began = live.next(Event::CutoverBegan).unwrap();
        assert_eq!(began.after_restart(), Phase::CatchingUp { consistent_from });
        assert_eq!(began.next(Event::CutoverGivenUp), Ok(Phase::CatchingUp { consistent_from }));
        assert!(began.next(Event::CutoverFinished).is_err());
        let decided = began.next(Event::CutoverDecided).unwrap();
        assert_eq!(decided.after_restart(), decided);
        assert!(decided.next(Event::CutoverGivenUp).is_err());
        let end = decided.next(Event::CutoverFinished).unwrap();
        for event in [Event::Pause, Event::Resume, Event::CaughtUp, Event::CutoverBegan] {
            assert!(end.next(event).is_err());
        }
        assert!(Phase::Copying.next(Event::CutoverDecided).is_err(), "the target is a fragment");
    }

    #[test]
    fn paused_stays_paused_until_it_is_resumed() {
        let consistent_from = Ts::new(1, 1);
        let paused = Phase::Live { consistent_from }.next(Event::Pause).unwrap();
        assert_eq!(paused.after_restart(), paused);
        assert!(paused.next(Event::CaughtUp).is_err());
        assert_eq!(paused.next(Event::Resume), Ok(Phase::CatchingUp { consistent_from }));
        assert!(Phase::Copying.next(Event::Pause).is_err());
    }

    #[test]
    fn halted_keeps_its_first_reason_and_where_it_stood() {
        let halt = |reason: &str| Event::Halt { reason: reason.into(), remedy: String::new() };
        let halted = Phase::Copying.next(halt("first")).unwrap().next(halt("second")).unwrap();
        assert!(matches!(&halted, Phase::Halted { reason, .. } if reason == "first"));
        assert_eq!(halted.next(Event::Resume), Ok(Phase::Copying));
    }
}
