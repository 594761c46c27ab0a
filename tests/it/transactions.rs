//! Transactions arrive whole or not at all: small, large, prepared, interleaved.

use std::time::Duration;

use bson::{Document, doc};
use futures_util::TryStreamExt;
use mongodb::ClientSession;
use snapsync::mongo::Side;
use snapsync::position::{OpTime, Ts};
use snapsync::source::start;

use crate::copying::deployment;
use crate::harness::{
    Daemon, DaemonOptions, Pair, ReplicaSet, ReplicaSetOptions, assert_equal, documents_in,
    quiesce, wait_for,
};
use crate::scenario::{settle, transaction, version_of, while_stopped};

/// One that writes to three collections in two databases, some of it twice to one document.
fn everywhere(id: i32) -> Vec<Document> {
    let update = |u: Document| doc! {"update": "a", "updates": [{"q": {"_id": id}, "u": u}]};
    vec![
        doc! {"insert": "a", "documents": [{"_id": id, "n": 1}]},
        update(doc! {"$inc": {"n": 1}}),
        doc! {"insert": "b", "documents": [{"_id": id}, {"_id": id + 1}]},
        doc! {"$db": "other", "insert": "c", "documents": [{"_id": id}]},
        update(doc! {"$set": {"m": 1, "l": 1}}),
        doc! {"delete": "b", "deletes": [{"q": {"_id": id + 1}, "limit": 1}]},
        doc! {"delete": "b", "deletes": [{"q": {"_id": id}, "limit": 1}]},
        doc! {"insert": "b", "documents": [{"_id": id, "again": true}]},
    ]
}

fn rows(from: i32, count: i32) -> Document {
    doc! {"insert": "many", "documents": (from..from + count).map(|n| doc! {"_id": n}).collect::<Vec<_>>()}
}

/// More than one oplog entry holds, by bytes and by number of operations.
async fn commit_large_ones(source: &ReplicaSet, database: &str) {
    let client = source.client();
    let row =
        |n: i32| doc! {"insert": "large", "documents": [{"_id": n, "pad": "x".repeat(6 << 20)}]};
    let large: Vec<Document> = (0..4).map(row).collect();
    transaction(client, database, &large).await.unwrap().commit_transaction().await.unwrap();
    let many = [rows(0, 8000), rows(8000, 8000)];
    transaction(client, database, &many).await.unwrap().commit_transaction().await.unwrap();
    let aborted = [large[0].clone(), rows(0, 10)];
    transaction(client, &format!("{database}_aborted"), &aborted)
        .await
        .unwrap()
        .abort_transaction()
        .await
        .unwrap();
}

/// Two sessions that write by turns, and one that makes its collection and an index on it.
async fn commit_interleaved(source: &ReplicaSet, database: &str) {
    let client = source.client();
    let mut first = transaction(client, database, &everywhere(10)).await.unwrap();
    let mut second = transaction(client, database, &everywhere(20)).await.unwrap();
    let shop = client.database(database);
    for id in 30..34 {
        for session in [&mut first, &mut second] {
            let row = doc! {"insert": "a", "documents": [{"_id": {"id": id, "session": session.id().clone()}}]};
            shop.run_command(row).session(session).await.unwrap();
        }
        shop.collection::<Document>("a").insert_one(doc! {"between": id}).await.unwrap();
    }
    second.commit_transaction().await.unwrap();
    first.commit_transaction().await.unwrap();
    let read_only = [doc! {"find": "a"}];
    transaction(client, database, &read_only).await.unwrap().commit_transaction().await.unwrap();
    if version_of(client).await < (4, 4) {
        eprintln!("create in a transaction: skipped, it came with MongoDB 4.4");
        return;
    }
    let makes = [
        doc! {"create": "made"},
        doc! {"createIndexes": "made", "indexes": [{"key": {"n": 1}, "name": "n", "unique": true}]},
        doc! {"insert": "made", "documents": [{"_id": 1, "n": 1}]},
        doc! {"insert": "made_too", "documents": [{"_id": 1}]},
    ];
    transaction(client, database, &makes).await.unwrap().commit_transaction().await.unwrap();
}

/// The collections have to be there: a daemon looks for nothing that a transaction does.
async fn make(source: &ReplicaSet, database: &str) {
    let client = source.client();
    let (other, aborted) = (format!("{database}_other"), format!("{database}_aborted"));
    let mut names = vec![(database, "a"), (database, "b"), (&other, "c")];
    // These come into being in a transaction, where the server can do that.
    if version_of(client).await < (4, 4) {
        let places = [database, &aborted];
        names.extend(places.iter().flat_map(|place| [(*place, "large"), (*place, "many")]));
    }
    for (database, name) in names {
        client.database(database).create_collection(name).await.unwrap();
    }
}

async fn assert_arrives(daemon: &mut Daemon, source: &ReplicaSet, target: &ReplicaSet) {
    settle(source).await;
    quiesce(daemon, source).await;
    assert_equal(source, target).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_of_every_size_arrive_whole() {
    let Pair { source, target } = Pair::start().await;
    run_everywhere(&source, &target).await;
}

/// The same transactions before the copy, while the target follows, and while the daemon is stopped.
pub async fn run_everywhere(source: &ReplicaSet, target: &ReplicaSet) {
    for database in ["before", "live", "folded"] {
        make(source, database).await;
    }
    let work = async |database: &str| {
        let committed = transaction(source.client(), database, &everywhere(1)).await;
        committed.unwrap().commit_transaction().await.unwrap();
        let aborted = transaction(source.client(), database, &everywhere(5)).await;
        aborted.unwrap().abort_transaction().await.unwrap();
        commit_interleaved(source, database).await;
        commit_large_ones(source, database).await;
    };
    work("before").await;
    let mut daemon = Daemon::start(DaemonOptions::new(source, target));
    assert_arrives(&mut daemon, source, target).await;
    work("live").await;
    assert_arrives(&mut daemon, source, target).await;
    while_stopped(&mut daemon, work("folded")).await;
    assert_arrives(&mut daemon, source, target).await;
}

/// Prepares what a transaction has done; returns when.
async fn prepare(source: &ReplicaSet, session: &mut ClientSession) -> bson::Timestamp {
    let command = doc! {"prepareTransaction": 1, "writeConcern": {"w": "majority"}};
    let reply =
        source.client().database("admin").run_command(command).session(session).await.unwrap();
    reply.get_timestamp("prepareTimestamp").unwrap()
}

async fn commit_prepared(source: &ReplicaSet, session: &mut ClientSession, at: bson::Timestamp) {
    let command = doc! {"commitTransaction": 1, "commitTimestamp": at};
    source.client().database("admin").run_command(command).session(session).await.unwrap();
}

/// Prepared transactions are those of several shards. A set can make them, too, if it takes test commands.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prepared_transactions_arrive_when_they_commit() {
    let testing = ReplicaSetOptions::default().parameter("enableTestCommands=1");
    let Pair { source, target } = Pair::with(testing, ReplicaSetOptions::default()).await;
    let client = source.client();
    make(&source, "shop").await;
    make(&source, "early").await;
    client.database("shop").create_collection("many").await.unwrap();
    client.database("shop").create_collection("large").await.unwrap();

    // Two of them are prepared before the copy starts, and end after it has.
    let mut early = transaction(client, "early", &everywhere(1)).await.unwrap();
    let early_at = prepare(&source, &mut early).await;
    let mut never = transaction(client, "early", &everywhere(5)).await.unwrap();
    prepare(&source, &mut never).await;
    settle(&source).await;
    let mut daemon = Daemon::start(DaemonOptions::new(&source, &target));
    // The copy has listed the source by now, and waits at the prepared documents.
    wait_for("the collections on the target", Duration::from_secs(60), || async {
        let names = target.client().database("early").list_collection_names().await;
        if names.unwrap().len() == 2 { Ok(()) } else { Err("not there".to_owned()) }
    })
    .await;
    settle(&source).await;
    commit_prepared(&source, &mut early, early_at).await;
    never.abort_transaction().await.unwrap();
    assert_arrives(&mut daemon, &source, &target).await;
    assert_eq!(documents_in(target.client(), "early.a").await, 1);

    // While following, with writes between prepare and the end; one larger than an oplog entry.
    let row =
        |n: i32| doc! {"insert": "large", "documents": [{"_id": n, "pad": "x".repeat(6 << 20)}]};
    let large: Vec<Document> = [rows(0, 50)].into_iter().chain((0..3).map(row)).collect();
    let mut committed = transaction(client, "shop", &everywhere(1)).await.unwrap();
    let mut aborted = transaction(client, "shop", &everywhere(5)).await.unwrap();
    let mut large = transaction(client, "shop", &large).await.unwrap();
    let at = prepare(&source, &mut committed).await;
    prepare(&source, &mut aborted).await;
    let large_at = prepare(&source, &mut large).await;
    let a = client.database("shop").collection::<Document>("a");
    a.insert_one(doc! {"_id": "between"}).await.unwrap();
    settle(&source).await;
    quiesce(&mut daemon, &source).await;
    assert_eq!(documents_in(target.client(), "shop.a").await, 1, "only what is not prepared");
    commit_prepared(&source, &mut large, large_at).await;
    aborted.abort_transaction().await.unwrap();
    a.insert_one(doc! {"_id": "more"}).await.unwrap();
    commit_prepared(&source, &mut committed, at).await;
    assert_arrives(&mut daemon, &source, &target).await;
}

/// The majority may have some entries of a transaction and not the others when the moment to copy from is chosen.
async fn assert_is_read_from_its_beginning(source: &ReplicaSet) {
    let oplog = source.client().database("local").collection::<Document>("oplog.rs");
    let found = oplog
        .find(doc! {"ns": "admin.$cmd", "txnNumber": {"$exists": true}})
        .projection(doc! {"ts": 1, "t": 1, "o.partialTxn": 1})
        .sort(doc! {"ts": 1});
    let entries: Vec<Document> = found.await.unwrap().try_collect().await.unwrap();
    let deployment = deployment(Side::Source, source).await;
    let of = |entry: &Document| {
        OpTime::new(Ts::from(entry.get_timestamp("ts").unwrap()), entry.get_i64("t").unwrap())
    };
    let is_partial = |entry: &&Document| {
        entry.get_document("o").unwrap().get_bool("partialTxn").unwrap_or(false)
    };
    let (partial, last): (Vec<&Document>, Vec<&Document>) = entries.iter().partition(is_partial);
    assert!(partial.len() > 2 && last.len() == 1, "{} and {}", partial.len(), last.len());
    for entry in &partial {
        assert_eq!(start::beginning(&deployment, of(entry)).await.unwrap(), of(partial[0]));
    }
    assert_eq!(start::beginning(&deployment, of(last[0])).await.unwrap(), of(last[0]));
}

/// Most of it waits on disk until the commit, and is carried out part by part.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_transaction_takes_little_memory() {
    const OPERATIONS: i32 = 200_000;
    const AT_ONCE: i32 = 4_000;
    const MEMORY_KIB_MAX: u64 = 220 * 1024;
    let roomy = || {
        let mut options =
            ReplicaSetOptions::default().parameter("transactionLifetimeLimitSeconds=900");
        options.args.extend(["--wiredTigerCacheSizeGB", "4"].map(str::to_owned));
        options.oplog_mb(1024)
    };
    let Pair { source, target } = Pair::with(roomy(), roomy()).await;
    let client = source.client();
    client.database("shop").create_collection("many").await.unwrap();
    let mut daemon = Daemon::start(DaemonOptions::new(&source, &target));
    daemon.wait_state("live").await;
    let pad = "x".repeat(460);
    let rows = (0..OPERATIONS / AT_ONCE).map(|run| {
        let rows = (run * AT_ONCE..(run + 1) * AT_ONCE).map(|n| doc! {"_id": n, "pad": &pad});
        doc! {"insert": "many", "documents": rows.collect::<Vec<_>>()}
    });
    let rows: Vec<Document> = rows.collect();
    let mut session = transaction(client, "shop", &rows).await.unwrap();
    session.commit_transaction().await.unwrap();
    assert_arrives(&mut daemon, &source, &target).await;
    assert_is_read_from_its_beginning(&source).await;
    let arrived = documents_in(target.client(), "shop.many").await;
    assert_eq!(arrived, u64::from(OPERATIONS.unsigned_abs()));
    let status = format!("/proc/{}/status", daemon.process_id());
    let status = std::fs::read_to_string(status).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    eprintln!("the daemon took {} MiB at the most", peak / 1024);
    assert!(peak < MEMORY_KIB_MAX, "{peak} KiB");
}
