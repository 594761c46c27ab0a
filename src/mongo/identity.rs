//! Which replica set this is: something that every member shares, that stays as long as the set does, and that another
//! set of the same name does not have.

use bson::doc;

use super::client::Deployment;
use super::command::run;
use super::error::{Error, Failure};
use super::listing;

/// The replica set's identity, with its kind before it; `None` if the user may read none.
///
/// It is the UUID of `config.transactions`, which the first primary of a set makes and the documented roles may list;
/// where that may not be seen, `replicaSetId`, for which a user needs `clusterMonitor`.
///
/// # Errors
/// The call failed.
pub async fn replica_set_identity(deployment: &Deployment) -> Result<Option<String>, Error> {
    match listing::matching(deployment, "config", doc! { "name": "transactions" }).await {
        Ok(found) => {
            let uuid = found.first().and_then(|listed| listed.uuid);
            if let Some(uuid) = uuid {
                return Ok(Some(format!("config.transactions {uuid}")));
            }
        }
        Err(error) if error.failure == Failure::Privilege => {}
        Err(error) => return Err(error),
    }
    let action = "read the replica set's identity";
    let asked = run(deployment, "admin", action, doc! { "replSetGetConfig": 1 }).await;
    let reply = match asked {
        Ok(reply) => reply,
        Err(error) if error.failure == Failure::Privilege => return Ok(None),
        Err(error) => return Err(error),
    };
    let settings = reply.get_document("config").and_then(|config| config.get_document("settings"));
    let id = settings.and_then(|settings| settings.get_object_id("replicaSetId"));
    Ok(id.ok().map(|id| format!("replicaSetId {}", id.to_hex())))
}
