//! The lease: one document on the target that says which daemon may write there. It carries a generation that grows
//! with every taking, and a mirror of the position. Times are the server's own, so that two hosts with different
//! clocks agree.

use std::time::Duration;

use bson::{DateTime, Document, doc};

use crate::mongo::{Deployment, Error, run, unwanted_reply};

/// How long a lease lasts without being renewed.
pub const LEASE_TIME: Duration = Duration::from_secs(30);
/// How often it is renewed.
pub const RENEW_EVERY: Duration = Duration::from_secs(5);
/// The database that holds what snapsync itself writes.
pub const DATABASE: &str = "snapsync";
const COLLECTION: &str = "lease";
const LEASE_ID: &str = "target";

/// Who asks for the lease.
#[derive(Debug, Clone)]
pub struct Owner {
    /// Identity of the migration: the same as long as its state directory lives.
    pub instance: String,
    /// Host and process, for people.
    pub description: String,
}

/// What became of asking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Taken {
    /// It is ours, under this generation.
    Ours {
        /// Grows with every taking.
        generation: u64,
    },
    /// Somebody else holds it.
    Held {
        /// Who, for people.
        by: String,
    },
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn expiry() -> Document {
    doc! { "$add": ["$$NOW", millis(LEASE_TIME)] }
}

/// Takes the lease if it is free, expired, or was held by an earlier run of the same migration. The caller holds the
/// lock of the state directory, so an earlier run of the same migration is dead.
///
/// # Errors
/// The call failed.
pub async fn take(target: &Deployment, owner: &Owner) -> Result<Taken, Error> {
    let action = "take the lease";
    // Decided by the server in one step: a query cannot both look at the server's clock and insert.
    let free = doc! { "$or": [
        { "$eq": ["$instance", { "$literal": &owner.instance }] },
        { "$lt": [{ "$ifNull": ["$expires", DateTime::MIN] }, "$$NOW"] },
    ] };
    let taken = doc! {
        "_id": LEASE_ID,
        "instance": { "$literal": &owner.instance },
        "owner": { "$literal": &owner.description },
        "generation": { "$add": [{ "$ifNull": ["$generation", 0_i64] }, 1_i64] },
        "taken": "$$NOW",
        "expires": expiry(),
        "position": "$position",
    };
    let command = doc! {
        "findAndModify": COLLECTION,
        "query": { "_id": LEASE_ID },
        "update": [{ "$replaceWith": { "$cond": [free, taken, "$$ROOT"] } }],
        "upsert": true,
        "new": true,
        "writeConcern": { "w": "majority" },
    };
    let reply = run(target, DATABASE, action, command).await?;
    let lease =
        reply.get_document("value").map_err(|_| unwanted_reply(target.side, action, "value"))?;
    if lease.get_str("instance").is_ok_and(|instance| instance == owner.instance) {
        let generation = crate::mongo::bson_count(lease, "generation");
        return Ok(Taken::Ours { generation });
    }
    let by = lease.get_str("owner").unwrap_or("an unnamed owner").to_owned();
    Ok(Taken::Held { by })
}

/// Renews the lease and mirrors the position; `Held` if somebody else has taken it meanwhile.
///
/// # Errors
/// The call failed; the lease may or may not have been renewed.
pub async fn renew(
    target: &Deployment,
    owner: &Owner,
    generation: u64,
    mirror: Document,
) -> Result<Taken, Error> {
    let action = "renew the lease";
    let generation_number = i64::try_from(generation).unwrap_or(i64::MAX);
    let command = doc! {
        "update": COLLECTION,
        "updates": [{
            "q": { "_id": LEASE_ID, "instance": &owner.instance, "generation": generation_number },
            "u": [{ "$set": { "expires": expiry(), "position": { "$literal": mirror } } }],
        }],
        "writeConcern": { "w": "majority" },
    };
    let reply = run(target, DATABASE, action, command).await?;
    if crate::mongo::bson_count(&reply, "n") == 1 {
        return Ok(Taken::Ours { generation });
    }
    let lease = read(target).await?.unwrap_or_default();
    Ok(Taken::Held { by: lease.get_str("owner").unwrap_or("nobody").to_owned() })
}

/// Gives the lease back, so that another daemon need not wait for it to expire.
///
/// # Errors
/// The call failed; the lease expires by itself.
pub async fn release(target: &Deployment, owner: &Owner, generation: u64) -> Result<(), Error> {
    let generation = i64::try_from(generation).unwrap_or(i64::MAX);
    let command = doc! {
        "update": COLLECTION,
        "updates": [{
            "q": { "_id": LEASE_ID, "instance": &owner.instance, "generation": generation },
            "u": [{ "$set": { "expires": "$$NOW" } }],
        }],
    };
    run(target, DATABASE, "give the lease back", command).await.map(drop)
}

/// Who else holds the lease now, if anybody does. Writes nothing.
///
/// # Errors
/// The call failed.
pub async fn held_by_another(target: &Deployment, owner: &Owner) -> Result<Option<String>, Error> {
    let held = doc! { "$and": [
        { "$ne": ["$instance", { "$literal": &owner.instance }] },
        { "$gte": ["$expires", "$$NOW"] },
    ] };
    let lease = find(target, doc! { "_id": LEASE_ID, "$expr": held }).await?;
    Ok(lease.map(|lease| lease.get_str("owner").unwrap_or("an unnamed owner").to_owned()))
}

async fn read(target: &Deployment) -> Result<Option<Document>, Error> {
    find(target, doc! { "_id": LEASE_ID }).await
}

async fn find(target: &Deployment, filter: Document) -> Result<Option<Document>, Error> {
    let command = doc! { "find": COLLECTION, "filter": filter, "limit": 1, "singleBatch": true };
    let reply = run(target, DATABASE, "read the lease", command).await?;
    let batch = reply.get_document("cursor").and_then(|cursor| cursor.get_array("firstBatch"));
    Ok(batch.ok().and_then(|batch| batch.first()).and_then(|value| value.as_document()).cloned())
}
