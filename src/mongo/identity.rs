//! Which replica set this is: the identity that it got when it was initiated, and that a restored copy or another set
//! of the same name does not share.

use bson::{Document, doc};

use super::client::Deployment;
use super::command::run;
use super::error::{Error, Failure};

/// The replica set's identity; `None` if the user may not read it.
///
/// # Errors
/// The call failed.
pub async fn replica_set_id(deployment: &Deployment) -> Result<Option<String>, Error> {
    let action = "read the replica set's identity";
    // The one needs `clusterMonitor`, the other is within `backup`.
    let asked = run(deployment, "admin", action, doc! { "replSetGetConfig": 1 }).await;
    let config = match asked {
        Ok(reply) => reply.get_document("config").ok().cloned(),
        Err(error) if error.failure == Failure::Privilege => {
            let find = doc! { "find": "system.replset", "limit": 1, "singleBatch": true };
            match run(deployment, "local", action, find).await {
                Ok(reply) => first(&reply),
                Err(error) if error.failure == Failure::Privilege => None,
                Err(error) => return Err(error),
            }
        }
        Err(error) => return Err(error),
    };
    let id = config.and_then(|config| {
        config.get_document("settings").ok()?.get_object_id("replicaSetId").ok()
    });
    Ok(id.map(|id| id.to_hex()))
}

fn first(reply: &Document) -> Option<Document> {
    let batch = reply.get_document("cursor").ok()?.get_array("firstBatch").ok()?;
    batch.first()?.as_document().cloned()
}
