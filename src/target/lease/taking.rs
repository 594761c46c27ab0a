//! Taking the lease. All leases on the target are looked at and ours is written in one transaction, which also changes
//! the one document `gate`: so of two daemons that ask at the same moment the server lets one through, and the other
//! asks again and sees it. A renewal that comes in between is in conflict with the transaction as well: a lease is not
//! taken from a holder that is just renewing it. A transaction whose program was killed is ended by whoever meets it.
//!
//! What is granted, and what is refused, is decided by [`decide`] alone.

use std::time::{Duration, Instant};

use bson::{Document, Uuid, doc};
use mongodb::ClientSession;
use mongodb::error::{TRANSIENT_TRANSACTION_ERROR, UNKNOWN_TRANSACTION_COMMIT_RESULT};
use mongodb::options::{ReadConcern, WriteConcern};

use super::{COLLECTION, DATABASE, Lease, Owner, expiry, is_live};
use crate::mongo::{Deployment, Error, ForeignSessions, bson_count, run};
use crate::retry::Backoff;
use crate::selection::{Claim, TargetSet};
use crate::target::inflight;

/// The name of connections that [`take`] is called with: what they leave behind is found by it.
pub const APP_NAME: &str = "snapsync control";

const GATE: &str = "gate";
const ACTION: &str = "take the lease";
/// How long others may be in the way of taking.
const TAKE_WITHIN: Duration = Duration::from_secs(20);
/// A taking that has waited for its own next statement for so long is not going on: statements follow each other within
/// milliseconds.
const ABANDONED_AFTER: Duration = Duration::from_secs(1);
/// Leases on one target at the most.
const LEASES_MAX: i32 = 1000;
/// Sessions of earlier holders that are kept fenced off, at the most; the latest ones.
const FENCED_MAX: usize = 1024;
const NAMESPACE_EXISTS: i32 = 48;
/// The highest transaction number there is.
const LAST_NUMBER: i64 = i64::MAX;

/// What became of asking.
#[derive(Debug, Clone)]
pub enum Taken {
    /// It is ours.
    Ours(Box<Grant>),
    /// Somebody else holds it.
    Held(Holder),
}

/// Who holds the lease, and where that is in the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Host and process, for people.
    pub owner: String,
    /// Names on the target that both want.
    pub overlap: String,
    /// Whether it is the same migration, held from a copy of the state directory.
    pub is_copy: bool,
}

/// A lease, and what has to be done before anything is written under it.
#[derive(Debug, Clone)]
pub struct Grant {
    /// The lease.
    pub lease: Lease,
    /// Sessions of earlier holders that may still be written in.
    pub to_fence: Vec<Uuid>,
    /// Sessions that are fenced off, and have to stay so.
    pub fenced: Vec<Uuid>,
    /// Migrations whose lease had expired, and that may still have operations in flight.
    pub dispossessed: Vec<String>,
    /// Who had taken this migration's lease away since it last held it.
    pub taken_by: Option<String>,
}

/// A lease as it stands on the target.
#[derive(Debug, Clone, PartialEq)]
struct Found {
    instance: String,
    home: String,
    owner: String,
    generation: u64,
    live: bool,
    set: TargetSet,
    sessions: Vec<Uuid>,
    to_fence: Vec<Uuid>,
    fenced: Vec<Uuid>,
    dispossessed: Vec<String>,
    taken_by: Option<String>,
}

impl Found {
    fn read(document: &Document) -> Self {
        let text = |field: &str| document.get_str(field).unwrap_or_default().to_owned();
        let array = |field: &str| document.get_array(field).map(Vec::as_slice).unwrap_or_default();
        let sessions = |field: &str| -> Vec<Uuid> {
            array(field)
                .iter()
                .filter_map(|id| match id {
                    bson::Bson::Binary(id) => id.to_uuid().ok(),
                    _ => None,
                })
                .collect()
        };
        let set = document.get("set").and_then(|set| bson::deserialize_from_bson(set.clone()).ok());
        let (database, collection) = ("*".to_owned(), "*".to_owned());
        let everything =
            || TargetSet { claims: vec![Claim { database, collection, except: Vec::new() }] };
        Self {
            instance: text("_id"),
            home: text("home"),
            owner: text("owner"),
            generation: bson_count(document, "generation"),
            live: document.get_bool("live").unwrap_or(false),
            // One that cannot be read is taken for the largest.
            set: set.unwrap_or_else(everything),
            sessions: sessions("sessions"),
            to_fence: sessions("to_fence"),
            fenced: sessions("fenced"),
            dispossessed: array("dispossessed")
                .iter()
                .filter_map(|instance| instance.as_str().map(str::to_owned))
                .collect(),
            taken_by: document.get_str("taken_by").ok().map(str::to_owned),
        }
    }

    fn holder(&self, overlap: String, is_copy: bool) -> Holder {
        let owner = if self.owner.is_empty() { "an unnamed owner" } else { &self.owner };
        Holder { owner: owner.to_owned(), overlap, is_copy }
    }
}

/// What is to be written if the lease is granted.
#[derive(Debug, PartialEq)]
struct Decision {
    generation: u64,
    to_fence: Vec<Uuid>,
    fenced: Vec<Uuid>,
    /// Whose lease is taken away by this.
    dispossessed: Vec<String>,
    /// Those, and whose lease was taken away before by somebody who came no further.
    uncleared: Vec<String>,
    taken_by: Option<String>,
}

/// Grants the lease unless somebody else holds one for names that may be the same. A lease of the same migration is
/// taken back at once if it was held from the same state directory: that is locked by the caller, so whoever held it is
/// dead. Held from elsewhere it is somebody else's: a copy of the state directory.
fn decide(leases: &[Found], owner: &Owner, set: &TargetSet) -> Result<Decision, Holder> {
    let mut decision = Decision {
        generation: 1,
        to_fence: Vec::new(),
        fenced: Vec::new(),
        dispossessed: Vec::new(),
        uncleared: Vec::new(),
        taken_by: None,
    };
    for lease in leases {
        let own = lease.instance == owner.instance;
        let overlap =
            if own { Some("the same migration".to_owned()) } else { lease.set.overlap(set) };
        let Some(overlap) = overlap else { continue };
        if lease.live && !(own && lease.home == owner.home) {
            return Err(lease.holder(overlap, own));
        }
        if own {
            decision.generation = lease.generation + 1;
            decision.taken_by.clone_from(&lease.taken_by);
        } else {
            decision.dispossessed.push(lease.instance.clone());
        }
        decision.to_fence.extend(lease.sessions.iter().chain(&lease.to_fence));
        decision.uncleared.extend(lease.dispossessed.iter().cloned());
        decision.fenced.extend(&lease.fenced);
    }
    decision.uncleared.extend(decision.dispossessed.iter().cloned());
    decision.uncleared.retain(|instance| *instance != owner.instance);
    decision.uncleared.sort_unstable();
    decision.uncleared.dedup();
    let surplus = decision.fenced.len().saturating_sub(FENCED_MAX);
    decision.fenced.drain(..surplus);
    Ok(decision)
}

fn list() -> Document {
    doc! {
        "aggregate": COLLECTION,
        "pipeline": [
            is_live(),
            { "$project": { "mirror": 0 } },
            { "$limit": LEASES_MAX },
        ],
        "cursor": { "batchSize": LEASES_MAX },
    }
}

fn leases(reply: &Document) -> Vec<Found> {
    let batch = reply.get_document("cursor").and_then(|cursor| cursor.get_array("firstBatch"));
    let documents = batch.into_iter().flatten().filter_map(|lease| lease.as_document());
    documents.map(Found::read).collect()
}

/// Who is in the way now, if anybody is. Writes nothing.
///
/// # Errors
/// The call failed.
pub async fn held_by_another(
    target: &Deployment,
    owner: &Owner,
    set: &TargetSet,
) -> Result<Option<Holder>, Error> {
    let reply = run(target, DATABASE, "read the leases", list()).await?;
    Ok(decide(&leases(&reply), owner, set).err())
}

/// Takes the lease for this set, if nobody is in the way. The caller holds the lock of the state directory, and has
/// connected under [`APP_NAME`].
///
/// # Errors
/// The call failed.
pub async fn take(target: &Deployment, owner: &Owner, set: &TargetSet) -> Result<Taken, Error> {
    for collection in [COLLECTION, GATE] {
        // Two transactions that make the same collection would only get in each other's way.
        match run(target, DATABASE, ACTION, doc! { "create": collection }).await {
            Err(error) if error.code() != Some(NAMESPACE_EXISTS) => return Err(error),
            _ => {}
        }
    }
    let failed = |error: &mongodb::error::Error| target.error(ACTION, error);
    let session = target.client.start_session().await;
    let mut session = session.map_err(|error| failed(&error))?;
    let mut backoff = Backoff::reconnect();
    let began = Instant::now();
    loop {
        match attempt(target, &mut session, owner, set).await {
            Ok(taken) => return Ok(taken),
            Err(error) => {
                // Not known to be committed: asked again, it is found held from the same place.
                let again = error.contains_label(TRANSIENT_TRANSACTION_ERROR)
                    || error.contains_label(UNKNOWN_TRANSACTION_COMMIT_RESULT);
                if !again || began.elapsed() > TAKE_WITHIN {
                    return Err(failed(&error));
                }
                tracing::debug!("{}", failed(&error));
                // The server has ended it, or will: this is for the driver, which begins no other before.
                drop(session.abort_transaction().await);
                // Perhaps in the way for a minute, until the server gives it up.
                let ended = inflight::end_abandoned(target, APP_NAME, ABANDONED_AFTER).await;
                ended.unwrap_or_else(|error| tracing::debug!("{error}"));
                tokio::time::sleep(backoff.next_delay()).await;
            }
        }
    }
}

async fn attempt(
    target: &Deployment,
    session: &mut ClientSession,
    owner: &Owner,
    set: &TargetSet,
) -> mongodb::error::Result<Taken> {
    let database = target.client.database(DATABASE);
    session
        .start_transaction()
        .read_concern(ReadConcern::snapshot())
        .write_concern(WriteConcern::majority())
        .await?;
    let gate = doc! {
        "update": GATE,
        "updates": [{ "q": { "_id": GATE }, "u": { "$inc": { "takings": 1_i64 } }, "upsert": true }],
    };
    database.run_command(gate).session(&mut *session).await?;
    let reply = database.run_command(list()).session(&mut *session).await?;
    let decision = match decide(&leases(&reply), owner, set) {
        Ok(decision) => decision,
        Err(holder) => {
            session.abort_transaction().await?;
            return Ok(Taken::Held(holder));
        }
    };
    let set = bson::serialize_to_bson(set).map_err(mongodb::error::Error::custom)?;
    let generation = i64::try_from(decision.generation).unwrap_or(i64::MAX);
    let mut updates = vec![doc! {
        "q": { "_id": &owner.instance },
        "u": [
            { "$set": {
                "owner": { "$literal": &owner.description },
                "home": { "$literal": &owner.home },
                "generation": generation,
                "taken": "$$NOW",
                "expires": expiry(),
                "set": { "$literal": set },
                "sessions": [],
                "to_fence": { "$literal": &decision.to_fence },
                "fenced": { "$literal": &decision.fenced },
                "dispossessed": { "$literal": &decision.uncleared },
            } },
        ],
        "upsert": true,
    }];
    updates.extend(decision.dispossessed.iter().map(|instance| {
        // A new generation: whoever held it finds that it is not the holder any more.
        doc! {
            "q": { "_id": instance },
            "u": [{ "$set": {
                "generation": { "$add": ["$generation", 1_i64] },
                "taken_by": { "$literal": &owner.description },
                "sessions": [], "to_fence": [], "fenced": [], "dispossessed": [],
            } }],
        }
    }));
    database
        .run_command(doc! { "update": COLLECTION, "updates": updates })
        .session(&mut *session)
        .await?;
    session.commit_transaction().await?;
    Ok(Taken::Ours(Box::new(Grant {
        lease: Lease {
            target: target.clone(),
            instance: owner.instance.clone(),
            generation: decision.generation,
        },
        to_fence: decision.to_fence,
        fenced: decision.fenced,
        dispossessed: decision.uncleared,
        taken_by: decision.taken_by,
    })))
}

impl Grant {
    /// Fences off the sessions of earlier holders: uses up the highest number there is in each of them, so that the
    /// server refuses whatever still comes under a lower one. Waits for a write that is under way in one of them.
    ///
    /// It has to be a write: only that outlives an election.
    ///
    /// # Errors
    /// The call failed; it may be done again.
    pub async fn fence(&self, sessions: &ForeignSessions) -> Result<(), Error> {
        for id in &self.to_fence {
            let command = doc! {
                "update": GATE,
                "updates": [{ "q": { "_id": GATE }, "u": { "$inc": { "fenced": 1_i64 } }, "upsert": true }],
                "txnNumber": LAST_NUMBER,
                "writeConcern": { "w": "majority" },
            };
            sessions.run(*id, DATABASE, "fence off an earlier holder", command).await?;
        }
        Ok(())
    }

    /// All sessions that are fenced off when [`fence`](Self::fence) is done, the latest ones last.
    #[must_use]
    pub fn all_fenced(&self) -> Vec<Uuid> {
        self.fenced.iter().chain(&self.to_fence).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::selection::Selection;

    fn set(include: &str) -> TargetSet {
        Selection::new(&[include.to_owned()], &[], &[]).unwrap().target_set()
    }

    fn owner(instance: &str, home: &str) -> Owner {
        let description = format!("{instance} at {home}");
        Owner { instance: instance.to_owned(), home: home.to_owned(), description }
    }

    fn lease(instance: &str, home: &str, include: &str, live: bool) -> Found {
        Found {
            instance: instance.to_owned(),
            home: home.to_owned(),
            owner: instance.to_owned(),
            generation: 4,
            live,
            set: set(include),
            sessions: vec![Uuid::new()],
            to_fence: Vec::new(),
            fenced: Vec::new(),
            dispossessed: Vec::new(),
            taken_by: None,
        }
    }

    #[test]
    fn a_live_lease_is_taken_back_only_from_where_it_was_held() {
        let leases = [lease("a", "here", "shop", true)];
        let granted = decide(&leases, &owner("a", "here"), &set("shop")).unwrap();
        assert_eq!((granted.generation, &granted.to_fence), (5, &leases[0].sessions));
        assert!(granted.dispossessed.is_empty());
        let copy = owner("a", "elsewhere");
        assert_eq!(decide(&leases, &copy, &set("crm")).unwrap_err().owner, "a");
        let expired = [Found { live: false, ..leases[0].clone() }];
        assert_eq!(decide(&expired, &copy, &set("shop")).unwrap().generation, 5);
    }

    #[test]
    fn others_are_in_the_way_where_sets_overlap_and_until_they_expire() {
        let asking = owner("b", "here");
        let live = [lease("a", "there", "shop", true)];
        assert_eq!(decide(&live, &asking, &set("*")).unwrap_err().overlap, "shop.*");
        let beside = decide(&live, &asking, &set("crm")).unwrap();
        assert!(beside.to_fence.is_empty() && beside.dispossessed.is_empty());
        let expired = [Found { live: false, ..live[0].clone() }];
        let granted = decide(&expired, &asking, &set("*")).unwrap();
        assert_eq!((granted.generation, &granted.to_fence), (1, &expired[0].sessions));
        assert_eq!((granted.dispossessed, granted.uncleared), (vec!["a".into()], vec!["a".into()]));
        // A lease of another version of the program may be for anything.
        let unknown = Found::read(&doc! { "_id": "c", "owner": "c", "live": true, "set": 1 });
        assert_eq!(decide(&[unknown], &asking, &set("crm")).unwrap_err().owner, "c");
    }

    #[test]
    fn what_an_earlier_taker_left_undone_is_taken_over() {
        let left = Found {
            to_fence: vec![Uuid::new()],
            fenced: vec![Uuid::new(); FENCED_MAX + 1],
            dispossessed: vec!["b".into(), "x".into()],
            ..lease("a", "here", "shop", false)
        };
        let granted =
            decide(std::slice::from_ref(&left), &owner("b", "there"), &set("shop")).unwrap();
        assert_eq!(granted.to_fence, [left.sessions[0], left.to_fence[0]]);
        assert_eq!(granted.fenced.len(), FENCED_MAX);
        assert_eq!(granted.dispossessed, ["a"]);
        assert_eq!(granted.uncleared, ["a", "x"], "and not oneself");
    }
}
