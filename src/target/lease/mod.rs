//! The lease: which daemon may write where on the target. One document per migration, in the target's database
//! `snapsync`, with the set of namespaces it is for, the sessions that its holder writes in, a generation that grows
//! with every taking, and a mirror of the position. Times are the server's own, so that two hosts with different clocks
//! agree.
//!
//! [`taking`] is how it comes to a holder, [`mirror`] what it keeps for the day when the state directory is lost.

pub mod mirror;
pub mod taking;

use std::time::Duration;

use bson::{Document, Uuid, doc};

use crate::mongo::{Deployment, Error, bson_count, cursor_documents, run};
use crate::position::Still;

/// How long a lease lasts without being renewed.
pub const LEASE_TIME: Duration = Duration::from_secs(30);
/// How often it is renewed.
pub const RENEW_EVERY: Duration = Duration::from_secs(5);
/// The database that holds what snapsync itself writes.
pub const DATABASE: &str = "snapsync";
const COLLECTION: &str = "lease";

/// Who asks for the lease.
#[derive(Debug, Clone)]
pub struct Owner {
    /// Identity of the migration: the same as long as its state directory lives, or a copy of it.
    pub instance: String,
    /// Where the state directory is. Two with the same instance are a migration and a copy of it.
    pub home: String,
    /// Host and process, for people.
    pub description: String,
}

/// What became of renewing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Renewed {
    /// It is still ours.
    Ours,
    /// Somebody else has it.
    Lost {
        /// Who, for people.
        to: String,
    },
    /// It is ours, but older than it was: the target was set back.
    SetBack,
}

/// A lease that was taken.
#[derive(Debug, Clone)]
pub struct Lease {
    target: Deployment,
    instance: String,
    generation: u64,
}

impl Lease {
    /// The generation that it was taken under.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The deployment it is for.
    #[must_use]
    pub fn target(&self) -> &Deployment {
        &self.target
    }

    /// Identity of the migration.
    #[must_use]
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// Renews the lease and sets some of its fields.
    ///
    /// # Errors
    /// The call failed; the lease may or may not have been renewed.
    pub async fn renew(&self, fields: Document) -> Result<Renewed, Error> {
        self.renew_where(Document::new(), fields).await
    }

    /// As [`renew`](Self::renew), if the document is as this filter says.
    async fn renew_where(&self, filter: Document, fields: Document) -> Result<Renewed, Error> {
        let mut set = doc! { "expires": expiry() };
        // Nothing in them is an expression, however it is named.
        set.extend(
            fields.into_iter().map(|(name, value)| (name, doc! { "$literal": value }.into())),
        );
        if self.update("renew the lease", filter, vec![doc! { "$set": set }]).await? {
            return Ok(Renewed::Ours);
        }
        let found = find(&self.target, doc! { "_id": &self.instance }).await?.unwrap_or_default();
        if bson_count(&found, "generation") == self.generation {
            return Ok(Renewed::SetBack);
        }
        let to = found.get_str("taken_by").or(found.get_str("owner")).unwrap_or("nobody");
        Ok(Renewed::Lost { to: to.to_owned() })
    }

    /// Notes the sessions that will be written in, and that those of earlier holders are fenced off. Before the first
    /// write.
    ///
    /// # Errors
    /// The call failed.
    pub async fn record_sessions(
        &self,
        sessions: &[Uuid],
        fenced: &[Uuid],
    ) -> Result<Renewed, Error> {
        self.renew(doc! {
            "sessions": sessions.to_vec(),
            "to_fence": [],
            "dispossessed": [],
            "fenced": fenced.to_vec(),
            "taken_by": bson::Bson::Null,
            "still": bson::Bson::Null,
        })
        .await
    }

    /// Gives the lease back, so that another daemon need not wait for it to expire. `still` says what the target now
    /// is, if that is known. With a write that may still be in flight, `unsettled`, the sessions stay in the lease, so
    /// that whoever takes it fences them off.
    ///
    /// # Errors
    /// The call failed; the lease expires by itself.
    pub async fn release(&self, still: Option<&Still>, unsettled: bool) -> Result<(), Error> {
        let still = still.and_then(|still| bson::serialize_to_bson(still).ok());
        let mut release = doc! { "expires": "$$NOW", "still": still };
        if !unsettled {
            release.insert("sessions", bson::Bson::Array(Vec::new()));
        }
        let release = vec![doc! { "$set": release }];
        self.update("give the lease back", Document::new(), release).await.map(drop)
    }

    /// Changes the document, if it is ours; whether it is.
    async fn update(
        &self,
        action: &str,
        mut filter: Document,
        update: Vec<Document>,
    ) -> Result<bool, Error> {
        filter.insert("_id", &self.instance);
        filter.insert("generation", i64::try_from(self.generation).unwrap_or(i64::MAX));
        let command = doc! {
            "update": COLLECTION,
            "updates": [{ "q": filter, "u": update }],
            "writeConcern": { "w": "majority" },
        };
        let reply = run(&self.target, DATABASE, action, command).await?;
        Ok(bson_count(&reply, "n") == 1)
    }
}

/// A stage of a pipeline that tells, by the server's clock, whether a lease has not expired.
fn is_live() -> Document {
    doc! { "$addFields": { "live": { "$gt": ["$expires", "$$NOW"] } } }
}

fn expiry() -> Document {
    let millis = i64::try_from(LEASE_TIME.as_millis()).unwrap_or(i64::MAX);
    doc! { "$add": ["$$NOW", millis] }
}

async fn find(target: &Deployment, filter: Document) -> Result<Option<Document>, Error> {
    let command = doc! { "find": COLLECTION, "filter": filter, "limit": 1, "singleBatch": true };
    let reply = run(target, DATABASE, "read the lease", command).await?;
    let batch = reply.get_document("cursor").and_then(|cursor| cursor.get_array("firstBatch"));
    Ok(batch.ok().and_then(|batch| batch.first()).and_then(|value| value.as_document()).cloned())
}

/// The migrations whose lease was held from this place last.
///
/// # Errors
/// The call failed.
pub async fn held_from(target: &Deployment, home: &str) -> Result<Vec<String>, Error> {
    let command =
        doc! { "find": COLLECTION, "filter": { "home": home }, "projection": { "_id": 1 } };
    let documents = cursor_documents(target, DATABASE, "read the leases", command).await?;
    let ids = documents.iter().filter_map(|lease| lease.get_str("_id").ok().map(str::to_owned));
    Ok(ids.collect())
}

/// Keeps sessions from being forgotten by the server: our own, so that a write can be sent again however long that
/// takes, and those that were fenced off, so that they stay so.
///
/// # Errors
/// The call failed.
pub async fn refresh_sessions(target: &Deployment, sessions: &[Uuid]) -> Result<(), Error> {
    let sessions: Vec<Document> = sessions.iter().map(|id| doc! { "id": id }).collect();
    run(target, "admin", "keep sessions alive", doc! { "refreshSessions": sessions })
        .await
        .map(drop)
}
