//! Wishes of operators, on their way to the sync room.

use std::time::Duration;

use axum::http::StatusCode;
use tokio::sync::{mpsc, oneshot};

use crate::status::VerifyDepth;

/// Wishes that may wait for the sync room at once; further ones wait for their turn within the request's time.
const QUEUE_MAX: usize = 16;

/// Where the answer to a wish goes. Dropping it unanswered tells the operator that the daemon is stopping.
pub type Reply = oneshot::Sender<Result<(), Refusal>>;

/// What an operator wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    /// Stop applying, go on spooling.
    Pause,
    /// Go on applying, also after `halted`.
    Resume,
    /// Copy these collections (or databases), by their names on the source, again; all if none is named.
    Resync {
        /// Names.
        namespaces: Vec<String>,
    },
    /// Drop what resyncs replaced.
    Discard,
    /// Let the target take over.
    Cutover(CutoverOptions),
    /// Give up the cutover that is under way.
    AbortCutover,
}

/// The time-out of a cutover that is asked for without one.
pub const CUTOVER_TIMEOUT: Duration = Duration::from_secs(10 * 60);

/// How the target is to take over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CutoverOptions {
    /// Whether the source is made to refuse writes.
    pub block_source_writes: bool,
    /// What is compared.
    pub verify: VerifyDepth,
    /// How long it may take from the stop of writes to the decision.
    pub timeout: Duration,
    /// Whether to end before anything is done.
    pub dry_run: bool,
    /// The source is gone for good.
    pub source_lost: bool,
    /// Who asks.
    pub by: Option<String>,
}

/// The longest that a name of whoever asks may be.
const NAME_BYTES_MAX: usize = 100;

impl CutoverOptions {
    /// Who asks, short enough to be kept.
    #[must_use]
    pub fn requested_by(&self) -> Option<&str> {
        let name = self.by.as_deref().map(str::trim).filter(|name| !name.is_empty())?;
        Some(&name[..name.floor_char_boundary(NAME_BYTES_MAX)])
    }
}

impl Default for CutoverOptions {
    fn default() -> Self {
        Self {
            block_source_writes: false,
            verify: VerifyDepth::Full,
            timeout: CUTOVER_TIMEOUT,
            dry_run: false,
            source_lost: false,
            by: None,
        }
    }
}

/// A wish on its way.
#[derive(Debug)]
pub struct Command {
    /// What is wanted.
    pub wish: Wish,
    /// Where the answer goes.
    pub reply: Reply,
}

/// Why a wish is not granted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// The HTTP status to answer with: 400 for a wish that is wrong by itself, 409 in the wrong state.
    pub status: StatusCode,
    /// One sentence that says why, and what to do.
    pub message: String,
}

impl Refusal {
    /// A refusal because of the state the daemon is in (409).
    #[must_use]
    pub fn wrong_state(message: impl Into<String>) -> Self {
        Self { status: StatusCode::CONFLICT, message: message.into() }
    }

    /// A refusal of what makes no sense in itself (400).
    #[must_use]
    pub fn wrong_wish(message: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, message: message.into() }
    }

    fn stopping() -> Self {
        Self {
            status: StatusCode::SERVICE_UNAVAILABLE,
            message: "the daemon is stopping".to_owned(),
        }
    }
}

/// The sending end, for those who ask on behalf of operators.
#[derive(Debug, Clone)]
pub struct Control {
    commands: mpsc::Sender<Command>,
}

impl Control {
    /// A sending end, and the receiving end for the sync room.
    #[must_use]
    pub fn channel() -> (Self, mpsc::Receiver<Command>) {
        let (commands, receiver) = mpsc::channel(QUEUE_MAX);
        (Self { commands }, receiver)
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// The sync room's refusal, or 503 when it has gone.
    pub async fn ask(&self, wish: Wish) -> Result<(), Refusal> {
        let (reply, answer) = oneshot::channel();
        let command = Command { wish, reply };
        self.commands.send(command).await.map_err(|_| Refusal::stopping())?;
        answer.await.unwrap_or_else(|_| Err(Refusal::stopping()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_answer_comes_back() {
        let (control, mut commands) = Control::channel();
        let answering = async {
            for answer in [Ok(()), Err(Refusal::wrong_state("it is not paused"))] {
                commands.recv().await.unwrap().reply.send(answer).unwrap();
            }
        };
        let asking = async { (control.ask(Wish::Pause).await, control.ask(Wish::Resume).await) };
        let (answers, ()) = tokio::join!(asking, answering);
        assert_eq!(answers, (Ok(()), Err(Refusal::wrong_state("it is not paused"))));
    }

    #[test]
    fn a_long_name_is_cut() {
        let named = |by: String| CutoverOptions { by: Some(by), ..CutoverOptions::default() };
        assert_eq!(named("ä".repeat(90)).requested_by().unwrap().len(), 100);
        assert_eq!(named(" ada ".into()).requested_by(), Some("ada"));
        assert_eq!(named(" ".into()).requested_by(), None);
    }

    #[tokio::test]
    async fn nobody_there_is_a_daemon_that_stops() {
        let (control, commands) = Control::channel();
        drop(commands);
        assert_eq!(control.ask(Wish::Pause).await, Err(Refusal::stopping()));
    }
}
