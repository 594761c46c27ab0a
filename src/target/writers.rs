//! A pool of write sessions: so many write commands to the target at once, each with a known outcome.

use std::sync::{Arc, Mutex, PoisonError};

use bson::RawDocumentBuf;
use tokio::sync::Semaphore;

use crate::mongo::{Deployment, Error, WriteReply, WriteSession};
use crate::retry::{Stopped, until_reached};
use crate::stop::Stop;

/// Write sessions, handed out one a command. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Writers {
    deployment: Deployment,
    permits: Arc<Semaphore>,
    idle: Arc<Mutex<Vec<WriteSession>>>,
}

impl Writers {
    /// A pool of `count` sessions (at least one), started when first needed.
    #[must_use]
    pub fn new(deployment: Deployment, count: usize) -> Self {
        let permits = Arc::new(Semaphore::new(count.max(1)));
        Self { deployment, permits, idle: Arc::default() }
    }

    /// The deployment that is written to.
    #[must_use]
    pub fn deployment(&self) -> &Deployment {
        &self.deployment
    }

    /// Sends a write command as soon as a session is free, and waits until its outcome is known.
    ///
    /// # Errors
    /// As [`WriteSession::write`].
    pub async fn write(
        &self,
        database: &str,
        action: &str,
        command: RawDocumentBuf,
        stop: &Stop,
    ) -> Result<WriteReply, Stopped<Error>> {
        // The semaphore is never closed; were it, nothing could be written any more.
        let _permit = self.permits.acquire().await.map_err(|_| Stopped::Stop)?;
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut session = match idle {
            Some(session) => session,
            None => {
                let side = self.deployment.side;
                until_reached(side, stop, || WriteSession::start(&self.deployment)).await?
            }
        };
        let result = session.write(database, action, command, stop).await;
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(session);
        result
    }
}
