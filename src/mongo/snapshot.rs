//! Reading at one optime. Servers before 5.0 allow that in transactions only, which end after a minute.

use bson::{Document, Timestamp, doc};
use mongodb::ClientSession;

use super::client::Deployment;
use super::command::run;
use super::error::{Error, unwanted_reply};

/// What servers say to a snapshot read outside of a transaction that they do not allow.
const INVALID_OPTIONS: i32 = 72;
/// Far from the numbers that the driver gives to transactions: it may have used the session before. The session is
/// never given back, so that nothing meets these numbers afterwards.
const FIRST_NUMBER: i64 = 1 << 40;

/// Reads at optimes of the caller's choice.
#[derive(Debug)]
pub struct SnapshotReader {
    deployment: Deployment,
    transactions: Option<Transactions>,
}

/// Used where nothing else is allowed.
#[derive(Debug)]
struct Transactions {
    session: ClientSession,
    number: i64,
}

impl SnapshotReader {
    /// Reads from one deployment.
    #[must_use]
    pub fn new(deployment: Deployment) -> Self {
        Self { deployment, transactions: None }
    }

    /// What is read from.
    #[must_use]
    pub fn deployment(&self) -> &Deployment {
        &self.deployment
    }

    /// The first document that an aggregation gives at `at`; `None` if it gives none.
    ///
    /// # Errors
    /// The call failed, or the server does not keep its history that long.
    pub async fn first(
        &mut self,
        database: &str,
        action: &str,
        mut command: Document,
        at: Timestamp,
    ) -> Result<Option<Document>, Error> {
        let at_optime = doc! { "level": "snapshot", "atClusterTime": at };
        command.insert("readConcern", at_optime);
        let reply = match &mut self.transactions {
            Some(transactions) => {
                transactions.run(&self.deployment, database, action, command).await
            }
            None => match run(&self.deployment, database, action, command.clone()).await {
                Err(error) if error.code() == Some(INVALID_OPTIONS) => {
                    let mut transactions = Transactions::start(&self.deployment, action).await?;
                    let reply = transactions.run(&self.deployment, database, action, command).await;
                    self.transactions = Some(transactions);
                    reply
                }
                reply => reply,
            },
        }?;
        let cursor = reply.get_document("cursor");
        let batch = cursor.and_then(|cursor| cursor.get_array("firstBatch"));
        let batch = batch.map_err(|_| unwanted_reply(self.deployment.side, action, "cursor"))?;
        Ok(batch.first().and_then(|first| first.as_document()).cloned())
    }
}

impl Transactions {
    async fn start(deployment: &Deployment, action: &str) -> Result<Self, Error> {
        let session = deployment.client.start_session().causal_consistency(false).await;
        let session = session.map_err(|error| deployment.error(action, &error))?;
        Ok(Self { session, number: FIRST_NUMBER })
    }

    /// Runs the command as a transaction of its own. The driver would choose the optime itself, so the transaction is
    /// spelt out.
    async fn run(
        &mut self,
        deployment: &Deployment,
        database: &str,
        action: &str,
        mut command: Document,
    ) -> Result<Document, Error> {
        self.number += 1;
        command.extend(doc! {
            "txnNumber": self.number, "startTransaction": true, "autocommit": false,
        });
        let (read_from, admin) =
            (deployment.client.database(database), deployment.client.database("admin"));
        let reply = read_from.run_command(command).session(&mut self.session).await;
        let end = doc! { "abortTransaction": 1, "txnNumber": self.number, "autocommit": false };
        if let Err(error) = admin.run_command(end).session(&mut self.session).await {
            // A failed one has ended already.
            tracing::debug!("{}", deployment.error("end a transaction", &error));
        }
        reply.map_err(|error| deployment.error(action, &error))
    }
}
