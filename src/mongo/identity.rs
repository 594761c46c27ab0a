//! Which replica set this is: something that every member shares, that stays as long as the set does, and that another
//! set of the same name does not have.

use std::collections::BTreeMap;

use bson::doc;

use super::client::Deployment;
use super::command::run;
use super::error::{Error, Failure};
use super::listing;

/// What a replica set can be known by: the UUID of `config.transactions`, which the first primary of a set makes and
/// the documented roles may list, and which a copy of a set's files keeps; and `replicaSetId`, which every initiation
/// makes anew, and for which a user needs `clusterMonitor`.
const TRANSACTIONS: &str = "config.transactions";
const SET_ID: &str = "replicaSetId";

/// The replica set's identity, as far as the user may read it: each kind and its value, with commas between; `None` if
/// the user may read none.
///
/// # Errors
/// The call failed.
pub async fn replica_set_identity(deployment: &Deployment) -> Result<Option<String>, Error> {
    let found =
        [(TRANSACTIONS, of_transactions(deployment).await?), (SET_ID, set_id(deployment).await?)];
    let known = found.into_iter().filter_map(|(kind, value)| Some(format!("{kind} {}", value?)));
    let known: Vec<String> = known.collect();
    Ok((!known.is_empty()).then(|| known.join(", ")))
}

async fn of_transactions(deployment: &Deployment) -> Result<Option<String>, Error> {
    match listing::matching(deployment, "config", doc! { "name": "transactions" }).await {
        Ok(found) => Ok(found.first().and_then(|listed| listed.uuid).map(|uuid| uuid.to_string())),
        Err(error) if error.failure == Failure::Privilege => Ok(None),
        Err(error) => Err(error),
    }
}

async fn set_id(deployment: &Deployment) -> Result<Option<String>, Error> {
    let action = "read the replica set's identity";
    let asked = run(deployment, "admin", action, doc! { "replSetGetConfig": 1 }).await;
    let reply = match asked {
        Ok(reply) => reply,
        Err(error) if error.failure == Failure::Privilege => return Ok(None),
        Err(error) => return Err(error),
    };
    let settings = reply.get_document("config").and_then(|config| config.get_document("settings"));
    let id = settings.and_then(|settings| settings.get_object_id("replicaSetId"));
    Ok(id.ok().map(|id| id.to_hex()))
}

/// Whether two identities are those of one set; `None` where they have no kind in common, because the user's rights
/// have changed. Pure.
#[must_use]
pub fn same_set(known: &str, found: &str) -> Option<bool> {
    let (known, found) = (kinds(known), kinds(found));
    let mut common = known.iter().filter_map(|(kind, value)| Some((value, found.get(kind)?)));
    let first = common.next().map(|(known, found)| known == found)?;
    Some(first && common.all(|(known, found)| known == found))
}

/// What is known of a set after another look at it: the kinds that were found, and those that were known before.
#[must_use]
pub fn merged(known: Option<&str>, found: Option<&str>) -> Option<String> {
    let mut all = kinds(known.unwrap_or_default());
    all.extend(kinds(found.unwrap_or_default()));
    let all: Vec<String> = all.into_iter().map(|(kind, value)| format!("{kind} {value}")).collect();
    (!all.is_empty()).then(|| all.join(", "))
}

/// Each kind with its value; a value alone is that of the kind that records held before there were several.
fn kinds(identity: &str) -> BTreeMap<&str, &str> {
    let parts = identity.split(", ").filter(|part| !part.is_empty());
    parts.map(|part| part.split_once(' ').unwrap_or((SET_ID, part))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_another_one_if_any_kind_that_is_known_twice_differs() {
        for (known, found, same) in [
            ("config.transactions a, replicaSetId b", "config.transactions a", Some(true)),
            ("config.transactions a", "config.transactions b", Some(false)),
            // Files of one set under another initiation.
            (
                "config.transactions a, replicaSetId b",
                "config.transactions a, replicaSetId c",
                Some(false),
            ),
            ("config.transactions a", "replicaSetId b", None),
            ("b", "config.transactions a, replicaSetId b", Some(true)),
            ("b", "replicaSetId c", Some(false)),
        ] {
            assert_eq!(same_set(known, found), same, "{known} {found}");
        }
    }

    #[test]
    fn what_is_known_grows() {
        let both = Some("config.transactions a, replicaSetId b".to_owned());
        assert_eq!(merged(Some("b"), Some("config.transactions a")), both);
        assert_eq!(merged(None, both.as_deref()), both);
        assert_eq!(merged(both.as_deref(), None), both);
        assert_eq!(merged(None, None), None);
    }
}
