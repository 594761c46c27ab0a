//! Transactions that are prepared, as those of several shards are, and stay so while other things are done.

use bson::{Timestamp, doc};
use mongodb::error::Error;
use mongodb::{Client, ClientSession};

use super::writer::Writer;

/// In the first database, whose other collections may be dropped meanwhile.
const HELD: &str = "held";

/// One that is prepared.
#[derive(Debug)]
pub(super) struct Prepared {
    session: ClientSession,
    at: Timestamp,
}

impl Prepared {
    /// Commits or aborts it.
    pub(super) async fn end(mut self, client: &Client, commit: bool) {
        if commit {
            let command = doc! {"commitTransaction": 1, "commitTimestamp": self.at};
            let admin = client.database("admin");
            admin.run_command(command).session(&mut self.session).await.expect("commit");
        } else {
            self.session.abort_transaction().await.expect("abort");
        }
    }
}

impl Writer {
    /// Prepares a transaction, or ends the one that is.
    pub(super) async fn prepare_or_end(&mut self) -> Result<(), Error> {
        if let Some(prepared) = self.open.take() {
            let commit = self.draw.chance(60);
            prepared.end(&self.client, commit).await;
            return Ok(());
        }
        // A transaction that makes a collection cannot be prepared.
        let database = self.client.database(self.database(0));
        drop(database.create_collection(HELD).await);
        let rows: Vec<_> = (0..1 + self.draw.random.below(3))
            .map(|_| {
                let id = self.id();
                self.draw.document(id)
            })
            .collect();
        let id = self.id();
        let change = self.draw.update(id.clone());
        let mut session = self.client.start_session().await?;
        session.start_transaction().await?;
        for command in [
            doc! {"update": HELD, "updates": [{"q": {"_id": {"$eq": id}}, "u": change}]},
            doc! {"insert": HELD, "documents": rows},
        ] {
            // One that is refused has ended the transaction.
            database.run_command(command).session(&mut session).await?;
        }
        let prepare = doc! {"prepareTransaction": 1, "writeConcern": {"w": "majority"}};
        let admin = self.client.database("admin");
        let reply = admin.run_command(prepare).session(&mut session).await?;
        let at = reply.get_timestamp("prepareTimestamp").expect("a prepared transaction");
        self.open = Some(Prepared { session, at });
        Ok(())
    }
}
