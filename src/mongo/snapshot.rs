//! Reading at one optime. Servers before 5.0 allow that in transactions only, which end after a minute.

use std::ops::Range;

use bson::{Document, RawDocument, RawDocumentBuf, Timestamp, cstr, doc, rawdoc};
use mongodb::ClientSession;

use super::client::Deployment;
use super::command::{run, visit};
use super::error::{Error, unwanted_reply};

/// What servers say to a snapshot read outside of a transaction that they do not allow.
const INVALID_OPTIONS: i32 = 72;
/// Far from the numbers that the driver gives to transactions: it may have used the session before. The session is
/// never given back, so that nothing meets these numbers afterwards.
const FIRST_NUMBER: i64 = 1 << 40;
const FIND: &str = "read documents again";

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

    /// Shows what queries find as of `at`, or as of now by the majority. `query` makes the one for some of `count`
    /// things to look for.
    ///
    /// # Errors
    /// The call failed, or the server does not keep its history that long, or keeps none of this collection.
    pub async fn find(
        &mut self,
        database: &str,
        count: usize,
        query: &(dyn Fn(Range<usize>) -> RawDocumentBuf + Sync),
        at: Option<Timestamp>,
        visitor: &mut (dyn FnMut(&RawDocument) + Send),
    ) -> Result<(), Error> {
        let mut concern = rawdoc! { "level": "majority" };
        if let Some(at) = at {
            concern = rawdoc! { "level": "snapshot", "atClusterTime": at };
        }
        let command = |range| {
            let mut command = query(range);
            command.append(cstr!("readConcern"), concern.clone());
            command
        };
        if self.transactions.is_none() || at.is_none() {
            let read_from = self.deployment.client.database(database);
            match read_from.run_raw_cursor_command(command(0..count)).batch().await {
                Ok(batches) => return visit(&self.deployment, FIND, batches, visitor).await,
                Err(error) => {
                    let error = self.deployment.error(FIND, &error);
                    if error.code() != Some(INVALID_OPTIONS) || at.is_none() {
                        return Err(error);
                    }
                }
            }
            self.transactions = Some(Transactions::start(&self.deployment, FIND).await?);
        }
        let Some(transactions) = &mut self.transactions else { return Ok(()) };
        for one in 0..count {
            // One at a time: what came in a second batch would take another command of the transaction.
            let command = command(one..one + 1);
            transactions.find(&self.deployment, database, command, visitor).await?;
        }
        Ok(())
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
        let read_from = deployment.client.database(database);
        let reply = read_from.run_command(command).session(&mut self.session).await;
        self.end(deployment).await;
        reply.map_err(|error| deployment.error(action, &error))
    }

    /// The same for a query whose answer fits into one batch.
    async fn find(
        &mut self,
        deployment: &Deployment,
        database: &str,
        mut command: RawDocumentBuf,
        visitor: &mut (dyn FnMut(&RawDocument) + Send),
    ) -> Result<(), Error> {
        self.number += 1;
        command.append(cstr!("singleBatch"), true);
        command.append(cstr!("txnNumber"), self.number);
        command.append(cstr!("startTransaction"), true);
        command.append(cstr!("autocommit"), false);
        let read_from = deployment.client.database(database);
        let query = read_from.run_raw_cursor_command(command).session(&mut self.session);
        let found = match query.batch().await {
            Ok(mut cursor) => {
                let batches = cursor.stream(&mut self.session);
                visit(deployment, FIND, batches, visitor).await
            }
            Err(error) => Err(deployment.error(FIND, &error)),
        };
        self.end(deployment).await;
        found
    }

    async fn end(&mut self, deployment: &Deployment) {
        let admin = deployment.client.database("admin");
        let end = doc! { "abortTransaction": 1, "txnNumber": self.number, "autocommit": false };
        if let Err(error) = admin.run_command(end).session(&mut self.session).await {
            // A failed one has ended already.
            tracing::debug!("{}", deployment.error("end a transaction", &error));
        }
    }
}
