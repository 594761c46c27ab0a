//! Wishes of operators, on their way to the sync room.

use axum::http::StatusCode;
use tokio::sync::{mpsc, oneshot};

/// Wishes that may wait for the sync room at once; further ones wait for their turn within the request's time.
const QUEUE_MAX: usize = 16;

/// Where the answer to a wish goes. Dropping it unanswered tells the operator that the daemon is stopping.
pub type Reply = oneshot::Sender<Result<(), Refusal>>;

/// What an operator wants.
#[derive(Debug)]
pub enum Command {
    /// Stop applying, go on spooling.
    Pause {
        /// Where the answer goes.
        reply: Reply,
    },
    /// Go on applying, also after `halted`.
    Resume {
        /// Where the answer goes.
        reply: Reply,
    },
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

    /// Asks to pause, and waits for the answer.
    ///
    /// # Errors
    /// The sync room's refusal, or 503 when it has gone.
    pub async fn pause(&self) -> Result<(), Refusal> {
        self.ask(|reply| Command::Pause { reply }).await
    }

    /// Asks to resume, and waits for the answer.
    ///
    /// # Errors
    /// The sync room's refusal, or 503 when it has gone.
    pub async fn resume(&self) -> Result<(), Refusal> {
        self.ask(|reply| Command::Resume { reply }).await
    }

    async fn ask(&self, command: impl FnOnce(Reply) -> Command) -> Result<(), Refusal> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| Refusal::stopping())?;
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
                match commands.recv().await.unwrap() {
                    Command::Pause { reply } | Command::Resume { reply } => {
                        reply.send(answer).unwrap();
                    }
                }
            }
        };
        let asking = async { (control.pause().await, control.resume().await) };
        let (answers, ()) = tokio::join!(asking, answering);
        assert_eq!(answers, (Ok(()), Err(Refusal::wrong_state("it is not paused"))));
    }

    #[tokio::test]
    async fn nobody_there_is_a_daemon_that_stops() {
        let (control, commands) = Control::channel();
        drop(commands);
        assert_eq!(control.pause().await, Err(Refusal::stopping()));
    }
}
