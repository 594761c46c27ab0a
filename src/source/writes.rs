//! Who writes to the source, and how it is made to stop, for a cutover. [`set_block`] is the only write to the source
//! that there is, and only when an operator asks for it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bson::{Bson, Document, RawBsonRef, RawDocument, doc};

use crate::mongo::{Deployment, Error, cursor_documents, run};
use crate::namespace::Namespace;
use crate::position::Ts;
use crate::selection::Selection;
use crate::status::Writer;

/// Writers that are named at the most.
const WRITERS_MAX: i32 = 50;
/// Oplog entries that one look takes in at the most.
const LOOK_ENTRIES_MAX: i32 = 50_000;
/// How long the server may take to let the operations under way come to an end.
/// Meanwhile everything else there waits too.
pub const BLOCK_WITHIN: Duration = Duration::from_secs(10);
/// How long to wait between two looks at what is under way.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// The application names of our own connections.
const SNAPSYNC: &str = "^snapsync( |$)";
const EXPIRES: &str = "expireAfterSeconds";
/// Options by which a collection removes documents by itself.
const LIMITS: [&str; 3] = [EXPIRES, "cappedSize", "cappedMax"];
/// What `userWriteBlockMode` is while writes are blocked.
const BLOCKED: i32 = 2;

/// What a person types to lift the block.
pub const LIFT_BY_HAND: &str = "db.adminCommand({setUserWriteBlockMode: 1, global: false})";
/// What a user needs on the cluster to block writes, and to see what is left of them.
pub const BLOCK_ACTIONS: &[&str] = &["setUserWriteBlockMode", "serverStatus", "inprog"];

/// Blocks writes of ordinary users, or lets them write again. Doing it again changes nothing.
///
/// # Errors
/// The call failed.
pub async fn set_block(source: &Deployment, blocked: bool) -> Result<(), Error> {
    let action = if blocked { "block writes" } else { "lift the write block" };
    let command = doc! {
        "setUserWriteBlockMode": 1,
        "global": blocked,
        "maxTimeMS": i64::try_from(BLOCK_WITHIN.as_millis()).unwrap_or(i64::MAX),
    };
    run(source, "admin", action, command).await.map(drop)
}

/// Lets ordinary users write again, once nothing is under way any more that would block them later.
///
/// # Errors
/// The call failed.
pub async fn lift_block(source: &Deployment) -> Result<(), Error> {
    loop {
        // A request of a run that was killed may still be waiting in the server, and come into force after this one.
        // Only what is lifted after a look that found none stays lifted; a look that fails keeps nothing from being
        // lifted.
        let is_pending = is_blocking(source).await;
        set_block(source, false).await?;
        if !is_pending? {
            return Ok(());
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

async fn is_blocking(source: &Deployment) -> Result<bool, Error> {
    let is_set =
        doc! { "command.setUserWriteBlockMode": { "$exists": true }, "command.global": true };
    let stages = vec![all_operations(false), doc! { "$match": is_set }, doc! { "$limit": 1 }];
    match operations(source, "look for a write block under way", stages).await {
        Ok(found) => Ok(!found.is_empty()),
        // Who may not look may have been let block all the same.
        Err(error) if error.failure == crate::mongo::Failure::Privilege => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether ordinary users cannot write, whoever decided that.
///
/// # Errors
/// The call failed.
pub async fn is_blocked(source: &Deployment) -> Result<bool, Error> {
    let action = "ask whether writes are blocked";
    let reply = run(source, "admin", action, doc! { "serverStatus": 1 }).await?;
    let mode = reply.get_document("repl").ok().and_then(|repl| repl.get("userWriteBlockMode"));
    Ok(match mode {
        Some(Bson::Int32(mode)) => *mode == BLOCKED,
        Some(Bson::Int64(mode)) => *mode == i64::from(BLOCKED),
        _ => false,
    })
}

fn all_operations(idle_sessions: bool) -> Document {
    doc! { "$currentOp": { "allUsers": true, "idleSessions": idle_sessions, "localOps": true } }
}

async fn operations(
    source: &Deployment,
    action: &str,
    pipeline: Vec<Document>,
) -> Result<Vec<Document>, Error> {
    let command = doc! { "aggregate": 1, "pipeline": pipeline, "cursor": {} };
    let found = cursor_documents(source, "admin", action, command).await?;
    Ok(found.iter().filter_map(|found| Document::try_from(found.as_ref()).ok()).collect())
}

/// Who is writing, or has written in a transaction that is open: names and addresses, never what.
///
/// # Errors
/// The call failed.
pub async fn writers(source: &Deployment) -> Result<BTreeSet<Writer>, Error> {
    let writes = doc! { "$or": [
        { "op": { "$in": ["insert", "update", "remove"] } },
        { "command.findAndModify": { "$exists": true } },
        { "command.findandmodify": { "$exists": true } },
        { "command.bulkWrite": { "$exists": true } },
        { "transaction.parameters.autocommit": false },
    ] };
    let of_users = doc! {
        "client": { "$exists": true },
        "appName": { "$not": { "$regex": SNAPSYNC } },
        "ns": { "$not": { "$regex": "^(config|local)[.]" } },
    };
    let stages = vec![
        all_operations(true),
        doc! { "$match": { "$and": [writes, of_users] } },
        doc! { "$group": { "_id": { "application": "$appName", "client": "$client" } } },
        doc! { "$limit": WRITERS_MAX },
    ];
    let found = operations(source, "look who writes", stages).await?;
    let named = found.iter().filter_map(|found| {
        let id = found.get_document("_id").ok()?;
        let client = id.get_str("client").ok()?;
        // The port tells connections of one application apart, and changes all the time.
        let client = client.rsplit_once(':').map_or(client, |(host, _)| host);
        Some(Writer {
            application: id.get_str("application").unwrap_or_default().to_owned(),
            client: client.to_owned(),
        })
    });
    Ok(named.collect())
}

/// A transaction that a client has open: its session and number.
pub type OpenTransaction = (Vec<u8>, i64);

/// Transactions that are open. Those that were when writes were blocked can still commit what they wrote before.
///
/// # Errors
/// The call failed.
pub async fn open_transactions(source: &Deployment) -> Result<BTreeSet<OpenTransaction>, Error> {
    let stages = vec![
        all_operations(true),
        doc! { "$match": {
            "transaction.parameters.autocommit": false,
            "appName": { "$not": { "$regex": SNAPSYNC } },
        } },
        doc! { "$project": { "lsid.id": 1, "transaction.parameters.txnNumber": 1 } },
    ];
    let found = operations(source, "look for open transactions", stages).await?;
    let keys = found.iter().filter_map(|found| {
        let session = match found.get_document("lsid").ok()?.get("id") {
            Some(Bson::Binary(id)) => id.bytes.clone(),
            _ => Vec::new(),
        };
        let parameters = found.get_document("transaction").ok()?.get_document("parameters").ok()?;
        Some((session, parameters.get_i64("txnNumber").ok()?))
    });
    Ok(keys.collect())
}

/// What a look at the end of the oplog came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// Everything up to here was looked at.
    pub to: Ts,
    /// The newest entry among it that concerns the selection.
    pub wrote: Option<Ts>,
}

/// Looks at what was written after `after` and committed by the majority.
///
/// # Errors
/// The call failed.
pub async fn look(source: &Deployment, after: Ts, selection: &Selection) -> Result<Look, Error> {
    let mut wrote = None;
    let to = entries_after(source, after, |entry| {
        if concerns(entry, selection) {
            wrote = entry.get_timestamp("ts").ok().map(Ts::from);
        }
    });
    let to = to.await?;
    Ok(Look { to, wrote })
}

/// What was done to a collection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Written {
    /// Documents were removed, and nothing else.
    Deletes,
    /// Anything else.
    More,
}

/// What was written after `after` and committed by the majority, of what is selected, by name.
///
/// # Errors
/// The call failed.
pub async fn written(
    source: &Deployment,
    after: Ts,
    selection: &Selection,
) -> Result<BTreeMap<Namespace, Written>, Error> {
    let mut found = BTreeMap::new();
    entries_after(source, after, |entry| note_written(entry, selection, &mut found)).await?;
    Ok(found)
}

fn note_written(
    entry: &RawDocument,
    selection: &Selection,
    found: &mut BTreeMap<Namespace, Written>,
) {
    if !concerns(entry, selection) || changes_limits_alone(entry) {
        return;
    }
    let mut note = |operation: &RawDocument| {
        let ns = operation.get_str("ns").unwrap_or_default();
        if !concerns_namespace(ns, selection) {
            return;
        }
        let name = Namespace::parse(ns).unwrap_or_else(|| Namespace::new(ns, ""));
        let is_delete = operation.get_str("op").is_ok_and(|op| op == "d");
        let what = if is_delete { Written::Deletes } else { Written::More };
        let noted = found.entry(name).or_insert(what);
        *noted = what.max(*noted);
    };
    let operations = entry.get_document("o").and_then(|o| o.get_array("applyOps"));
    match operations {
        Ok(operations) => operations.into_iter().flatten().for_each(|operation| {
            if let RawBsonRef::Document(operation) = operation {
                note(operation);
            }
        }),
        Err(_) if entry.get_str("ns").is_ok_and(|ns| ns == "admin.$cmd") => {
            found.insert(Namespace::new("admin", "$cmd"), Written::More);
        }
        Err(_) => note(entry),
    }
}

/// Whether an entry changes what a collection removes by itself, and nothing else.
fn changes_limits_alone(entry: &RawDocument) -> bool {
    let Ok(o) = entry.get_document("o") else { return false };
    let names = |document: &RawDocument| -> Vec<String> {
        let fields = document.into_iter().flatten();
        fields.map(|(name, _)| name.to_string()).filter(|name| name != "collMod").collect()
    };
    if o.get("collMod").ok().flatten().is_none() {
        return false;
    }
    match names(o).as_slice() {
        // Something that is not among what was asked for.
        [] => false,
        names if names.iter().all(|name| LIMITS.contains(&name.as_str())) => true,
        [only] if only == "index" => o.get_document("index").is_ok_and(|index| {
            names(index).iter().all(|name| matches!(name.as_str(), "name" | "keyPattern" | EXPIRES))
        }),
        _ => false,
    }
}

/// Shows every entry after `after` that is committed by the majority: what it is and what it concerns, no contents.
/// Returns where the last one is.
async fn entries_after(
    source: &Deployment,
    after: Ts,
    mut show: impl FnMut(&RawDocument),
) -> Result<Ts, Error> {
    let mut to = after;
    loop {
        let command = doc! {
            "find": "oplog.rs",
            "filter": { "ts": { "$gt": bson::Timestamp::from(to) } },
            "sort": { "$natural": 1 },
            "limit": LOOK_ENTRIES_MAX,
            "projection": {
                "ts": 1, "op": 1, "ns": 1, "o.applyOps.op": 1, "o.applyOps.ns": 1,
                "o.commitTransaction": 1, "o.collMod": 1, "o.index": 1, "o.expireAfterSeconds": 1,
                "o.validator": 1, "o.validationLevel": 1, "o.validationAction": 1,
                "o.changeStreamPreAndPostImages": 1, "o.cappedSize": 1, "o.cappedMax": 1,
            },
            "readConcern": { "level": "majority" },
        };
        let entries = cursor_documents(source, "local", "look into the oplog", command).await?;
        for entry in &entries {
            to = entry.get_timestamp("ts").map_or(to, Ts::from);
            show(entry);
        }
        if entries.len() < usize::try_from(LOOK_ENTRIES_MAX).unwrap_or(usize::MAX) {
            return Ok(to);
        }
    }
}

/// Whether an oplog entry may change anything that is selected. In doubt it does.
fn concerns(entry: &RawDocument, selection: &Selection) -> bool {
    if entry.get_str("op").is_ok_and(|op| op == "n") {
        return false;
    }
    let Ok(ns) = entry.get_str("ns") else { return true };
    if ns != "admin.$cmd" {
        return concerns_namespace(ns, selection);
    }
    let Ok(o) = entry.get_document("o") else { return true };
    if o.get("commitTransaction").ok().flatten().is_some() {
        return true;
    }
    let Ok(operations) = o.get_array("applyOps") else { return false };
    operations.into_iter().any(|operation| match operation {
        Ok(RawBsonRef::Document(operation)) => {
            operation.get_str("ns").map_or(true, |ns| concerns_namespace(ns, selection))
        }
        _ => true,
    })
}

fn concerns_namespace(ns: &str, selection: &Selection) -> bool {
    let Some(namespace) = Namespace::parse(ns) else { return false };
    match namespace.collection.as_str() {
        "$cmd" | "system.views" => selection.may_include_database(&namespace.database),
        _ => selection.includes(&namespace),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::rawdoc;

    #[test]
    fn what_concerns_the_selection_is_told_from_what_does_not() {
        let texts =
            |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let selection =
            Selection::new(&texts(&["shop", "crm.people"]), &texts(&["shop.log"]), &[]).unwrap();
        let told = |entry: bson::RawDocumentBuf| concerns(&entry, &selection);
        for (ns, expected) in [
            ("shop.orders", true),
            ("shop.log", false),
            ("shop.$cmd", true),
            ("shop.system.views", true),
            ("shop.system.buckets.temps", true),
            ("crm.people", true),
            ("crm.notes", false),
            ("crm.$cmd", true),
            ("other.$cmd", false),
            ("config.transactions", false),
            ("admin.system.users", false),
        ] {
            assert_eq!(told(rawdoc! { "op": "i", "ns": ns }), expected, "{ns}");
            let within = rawdoc! { "applyOps": [{ "ns": "crm.notes" }, { "ns": ns }] };
            let transaction = rawdoc! { "op": "c", "ns": "admin.$cmd", "o": within };
            assert_eq!(told(transaction), expected, "{ns} in a transaction");
        }
        assert!(!told(rawdoc! { "op": "n", "ns": "" }));
        let commit = rawdoc! { "commitTransaction": 1 };
        assert!(told(rawdoc! { "op": "c", "ns": "admin.$cmd", "o": commit }));
        let mut found = BTreeMap::new();
        let ttl =
            rawdoc! { "collMod": "orders", "index": { "name": "at", "expireAfterSeconds": 7_i64 } };
        let wide = rawdoc! { "collMod": "orders", "cappedSize": 7_i64, "cappedMax": 7 };
        let off = rawdoc! { "collMod": "orders", "expireAfterSeconds": "off" };
        for entry in [
            rawdoc! { "op": "c", "ns": "shop.$cmd", "o": ttl },
            rawdoc! { "op": "c", "ns": "shop.$cmd", "o": off },
            rawdoc! { "op": "c", "ns": "shop.$cmd", "o": wide },
            rawdoc! { "op": "d", "ns": "shop.orders" },
            rawdoc! { "op": "d", "ns": "shop.carts" },
            rawdoc! { "op": "d", "ns": "shop.log" },
            rawdoc! { "op": "c", "ns": "admin.$cmd", "o": { "applyOps": [
                { "op": "d", "ns": "shop.orders" }, { "op": "u", "ns": "shop.carts" },
            ] } },
        ] {
            note_written(&entry, &selection, &mut found);
        }
        let found: Vec<_> =
            found.into_iter().map(|(name, what)| (name.to_string(), what)).collect();
        let expected = [("shop.carts", Written::More), ("shop.orders", Written::Deletes)];
        assert_eq!(found, expected.map(|(name, what)| (name.to_owned(), what)));
        let hidden = rawdoc! { "collMod": "orders", "index": { "name": "at", "hidden": true } };
        let both = rawdoc! { "collMod": "orders", "validator": {}, "expireAfterSeconds": "off" };
        for o in [hidden, both] {
            let entry = rawdoc! { "op": "c", "ns": "shop.$cmd", "o": o };
            let mut found = BTreeMap::new();
            note_written(&entry, &selection, &mut found);
            assert_eq!(found.len(), 1, "{entry:?}");
        }
        let setting = rawdoc! { "op": "c", "ns": "admin.$cmd", "o": {} };
        assert!(!told(setting));
    }
}
