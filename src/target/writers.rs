//! A pool of write sessions: so many write commands to the target at once, each with a known outcome, and none after
//! the lease has passed to another. The sessions stand in the lease before the first write, so that whoever takes it
//! over can have the server refuse everything that still comes under them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bson::{RawDocumentBuf, Uuid};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::deadline::Deadline;
use crate::mongo::{Deployment, Error, Transaction, WriteReply, WriteSession};
use crate::retry::{Backoff, Outage, Stopped, unless_stopped};
use crate::stop::Stop;
use crate::telemetry::counters::COUNTERS;

/// Below this a second round trip costs more than a transaction saves.
const TOGETHER_MIN: usize = 16;

/// Write sessions, handed out one a command. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Writers {
    deployment: Deployment,
    deadline: Deadline,
    permits: Arc<Semaphore>,
    idle: Arc<Mutex<Vec<WriteSession>>>,
    ids: Arc<[Uuid]>,
    unsettled: Arc<AtomicBool>,
}

/// A session taken from the pool; goes back when dropped, also when its user was.
struct Taken<'a> {
    writers: &'a Writers,
    session: Option<WriteSession>,
    /// What was sent in it was answered in the end.
    settled: bool,
    _permit: SemaphorePermit<'a>,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if !self.settled {
            self.writers.unsettled.store(true, Ordering::Relaxed);
        }
        self.writers.idle().extend(self.session.take());
    }
}

impl Taken<'_> {
    /// Notes that the outcome is known, unless nobody waited for it any more.
    fn settle<T, E>(&mut self, outcome: Result<T, Stopped<E>>) -> Result<T, Stopped<E>> {
        self.settled = !matches!(outcome, Err(Stopped::Stop));
        outcome
    }
}

impl Writers {
    /// A pool of `count` sessions (at least one).
    ///
    /// # Errors
    /// The driver could not make one.
    pub async fn start(
        deployment: Deployment,
        deadline: Deadline,
        count: usize,
    ) -> Result<Self, Error> {
        let mut idle = Vec::new();
        let mut ids = Vec::new();
        for _ in 0..count.max(1) {
            let session = WriteSession::start(&deployment).await?;
            ids.push(session.id()?);
            idle.push(session);
        }
        let permits = Arc::new(Semaphore::new(idle.len()));
        let idle = Arc::new(Mutex::new(idle));
        let unsettled = Arc::default();
        Ok(Self { deployment, deadline, permits, idle, ids: ids.into(), unsettled })
    }

    /// The deployment that is written to.
    #[must_use]
    pub fn deployment(&self) -> &Deployment {
        &self.deployment
    }

    /// The sessions' ids on the server.
    #[must_use]
    pub fn ids(&self) -> &[Uuid] {
        &self.ids
    }

    /// Whether any write was ever given up before its outcome was known, because the daemon was told to stop.
    #[must_use]
    pub fn is_unsettled(&self) -> bool {
        self.unsettled.load(Ordering::Relaxed)
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<WriteSession>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn take<E>(&self) -> Result<Taken<'_>, Stopped<E>> {
        // The semaphore is never closed; were it, nothing could be written any more.
        let permit = self.permits.acquire().await.map_err(|_| Stopped::Stop)?;
        let session = self.idle().pop();
        Ok(Taken { writers: self, session, settled: false, _permit: permit })
    }

    /// Sends a write command as soon as a session is free, until its outcome is known, however long the server is away.
    ///
    /// `command` must be an insert, update or delete with single-document statements.
    ///
    /// # Errors
    /// [`Stopped`] when asked to stop while the server is away, or what the server refused as a whole.
    pub async fn write(
        &self,
        database: &str,
        action: &str,
        command: RawDocumentBuf,
        stop: &Stop,
    ) -> Result<WriteReply, Stopped<Error>> {
        let mut taken = self.take().await?;
        // There are as many sessions as permits.
        let Some(session) = taken.session.as_mut() else { return Err(Stopped::Stop) };
        let outcome = self.send(session, database, action, command, stop).await;
        taken.settle(outcome)
    }

    async fn send(
        &self,
        session: &mut WriteSession,
        database: &str,
        action: &str,
        command: RawDocumentBuf,
        stop: &Stop,
    ) -> Result<WriteReply, Stopped<Error>> {
        let bytes = command.as_bytes().len();
        let command = session.number(command);
        let mut backoff = Backoff::reconnect();
        let outage = Outage::new(self.deployment.side);
        loop {
            self.deadline.hold(stop).await?;
            match unless_stopped(stop, session.send(database, action, &command)).await? {
                Ok(reply) => {
                    COUNTERS.writes().answered(bytes, reply.n, reply.errors.len());
                    return Ok(reply);
                }
                Err(error) if error.is_unreachable() => {
                    outage.report(&error);
                    stop.sleep(backoff.next_delay()).await?;
                }
                Err(error) => {
                    COUNTERS.writes().refused();
                    return Err(Stopped::Failed(error));
                }
            }
        }
    }

    /// As [`write`](Self::write), for updates and deletes: its `statements` go in one transaction if they are many. The
    /// server keeps a record of every retryable statement, of a transaction only one (docs/benchmarks.md has what that
    /// costs), and both are fenced alike. A transaction that is refused or cut short leaves nothing or all of it, and
    /// then the command goes as a retryable one, which tells which statements fail: done twice, it ends the same.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub async fn write_together(
        &self,
        database: &str,
        action: &str,
        command: RawDocumentBuf,
        statements: usize,
        stop: &Stop,
    ) -> Result<WriteReply, Stopped<Error>> {
        let mut taken = self.take().await?;
        let Some(session) = taken.session.as_mut() else { return Err(Stopped::Stop) };
        if statements >= TOGETHER_MIN {
            self.deadline.hold(stop).await?;
            let bytes = command.as_bytes().len();
            let commands = [(database.to_owned(), command.clone())];
            match unless_stopped(stop, session.transaction(action, commands)).await? {
                Ok(()) => {
                    let n = u64::try_from(statements).unwrap_or(u64::MAX);
                    COUNTERS.writes().answered(bytes, n, 0);
                    return taken.settle(Ok(WriteReply { n, errors: Vec::new() }));
                }
                // The next number in the same session ends what may be left of it.
                Err(Transaction::Again(error) | Transaction::Failed(error)) => {
                    tracing::debug!("not in one transaction: {error}");
                }
            }
        }
        let outcome = self.send(session, database, action, command, stop).await;
        taken.settle(outcome)
    }

    /// Carries out write commands, each with its database, in one transaction; `commands` makes them, for every attempt
    /// anew. What is done twice must end in the same documents.
    ///
    /// # Errors
    /// [`Stopped`] when asked to stop meanwhile, or a statement that the server refused.
    pub async fn transaction<I>(
        &self,
        action: &str,
        commands: impl Fn() -> I,
        stop: &Stop,
    ) -> Result<(), Stopped<Error>>
    where
        I: IntoIterator<Item = (String, RawDocumentBuf)>,
    {
        let mut taken = self.take().await?;
        let Some(session) = taken.session.as_mut() else { return Err(Stopped::Stop) };
        let mut backoff = Backoff::reconnect();
        let outage = Outage::new(self.deployment.side);
        loop {
            self.deadline.hold(stop).await?;
            match unless_stopped(stop, session.transaction(action, commands())).await? {
                Ok(()) => return taken.settle(Ok(())),
                Err(Transaction::Again(error)) => {
                    outage.report(&error);
                    stop.sleep(backoff.next_delay()).await?;
                }
                Err(Transaction::Failed(error)) => {
                    COUNTERS.writes().refused();
                    return taken.settle(Err(Stopped::Failed(error)));
                }
            }
        }
    }
}
