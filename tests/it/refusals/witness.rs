//! Whether anything was written to a deployment: what it holds, and what its oplog says.

use std::collections::BTreeMap;

use bson::{Document, Timestamp, doc};
use futures_util::TryStreamExt;
use mongodb::Client;

/// What servers write for themselves at any time.
const SERVERS_OWN: [&str; 3] = ["admin", "config", "local"];

/// A deployment as it was at one moment.
#[derive(Debug)]
pub struct Witness {
    client: Client,
    hashes: BTreeMap<String, String>,
    newest: Option<Timestamp>,
}

impl Witness {
    /// Looks at a deployment; a standalone server has no oplog to look at.
    pub async fn of(client: &Client) -> Self {
        // The place in the oplog first: whatever is written from here on is seen.
        let newest = newest(client).await;
        Self { client: client.clone(), hashes: hashes(client).await, newest }
    }

    /// Panics unless the deployment holds what it held, and nothing was written and taken away again meanwhile. Not
    /// even the database `snapsync` may have come into being.
    pub async fn nothing_was_written(&self) {
        assert_eq!(hashes(&self.client).await, self.hashes);
        if let Some(newest) = self.newest {
            let filter = doc! {
                "ts": { "$gt": newest }, "op": { "$ne": "n" }, "ns": { "$not": { "$regex": r"^(admin|config)\." } },
            };
            let oplog = self.client.database("local").collection::<Document>("oplog.rs");
            let written: Vec<Document> =
                oplog.find(filter).await.unwrap().try_collect().await.unwrap();
            assert!(written.is_empty(), "written meanwhile: {written:?}");
        }
    }
}

/// The hash of every database but the servers' own.
async fn hashes(client: &Client) -> BTreeMap<String, String> {
    let mut hashes = BTreeMap::new();
    for name in client.list_database_names().await.expect("list the databases") {
        if !SERVERS_OWN.contains(&name.as_str()) {
            let hash = client.database(&name).run_command(doc! {"dbHash": 1}).await.unwrap();
            hashes.insert(name, hash.get_str("md5").unwrap().to_owned());
        }
    }
    hashes
}

async fn newest(client: &Client) -> Option<Timestamp> {
    let oplog = client.database("local").collection::<Document>("oplog.rs");
    let last = oplog.find_one(doc! {}).sort(doc! {"$natural": -1}).await.expect("read the oplog");
    last.map(|entry| entry.get_timestamp("ts").expect("ts"))
}
