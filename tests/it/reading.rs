//! The source's oplog where reading it is difficult: holes, transactions that stay open, an end that is cut off; and
//! the spool that makes up for some of it.

use std::time::Duration;

use bson::{Document, Timestamp, doc};
use mongodb::options::{FindOneOptions, WriteConcern};
use mongodb::{ClientSession, Collection};
use rustix::process::Signal;
use serde_json::Value;
use snapsync::mongo::Side;
use snapsync::position::{OpTime, Ts};
use snapsync::source::tail::{self, TailError};

use crate::copying::deployment;
use crate::harness::{
    Daemon, DaemonOptions, Pair, ReplicaSet, ReplicaSetOptions, Workload, WorkloadOptions,
    assert_equal, quiesce, resume_point, wait_for,
};
use crate::scenario::settle;

const BRIEF: &str = "[sync]\nwindow = \"200ms\"";
const LONG: Duration = Duration::from_secs(60);

fn testable() -> ReplicaSetOptions {
    ReplicaSetOptions::default().parameter("enableTestCommands=1")
}

/// Without waiting for a majority, which would wait for a hole to close.
fn unconfirmed(set: &ReplicaSet, namespace: &str) -> Collection<Document> {
    let (database, name) = namespace.split_once('.').unwrap();
    let options = mongodb::options::CollectionOptions::builder()
        .write_concern(WriteConcern::nodes(1))
        .build();
    set.client().database(database).collection_with_options(name, options)
}

/// An insert that has its place in the oplog and not its contents, until the failpoint is off.
async fn open_hole(source: &ReplicaSet, id: i32) -> tokio::task::JoinHandle<()> {
    let data = doc! {"collectionNS": "shop.orders"};
    let hang =
        doc! {"configureFailPoint": "hangAfterCollectionInserts", "mode": "alwaysOn", "data": data};
    let entered = source.admin(hang).await.get("count").and_then(bson::Bson::as_i32).unwrap();
    let orders = unconfirmed(source, "shop.orders");
    let insert = tokio::spawn(async move {
        orders.insert_one(doc! {"_id": id}).await.unwrap();
    });
    let name = "hangAfterCollectionInserts";
    let wait = doc! {"waitForFailPoint": name, "timesEntered": i64::from(entered) + 1, "maxTimeMS": 30_000};
    source.admin(wait).await;
    insert
}

async fn close_hole(source: &ReplicaSet, insert: tokio::task::JoinHandle<()>) {
    source.admin(doc! {"configureFailPoint": "hangAfterCollectionInserts", "mode": "off"}).await;
    insert.await.unwrap();
    // Acknowledged by a majority, and with it everything before.
    let orders = source.client().database("shop").collection::<Document>("orders");
    orders.update_one(doc! {"_id": 0}, doc! {"$inc": {"closed": 1}}).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_that_fills_a_hole_arrives() {
    let Pair { source, target } = Pair::with(testable(), ReplicaSetOptions::default()).await;
    let orders = unconfirmed(&source, "shop.orders");
    let items = unconfirmed(&source, "shop.items");
    orders.insert_one(doc! {"_id": 0}).await.unwrap();
    // A collection made after the hole cannot be read before it is closed.
    items.insert_one(doc! {"_id": 0}).await.unwrap();
    let hole = open_hole(&source, 1).await;
    items.insert_many((1..4).map(|id| doc! {"_id": id})).await.unwrap();
    // The moment to copy from is chosen while the hole is open.
    let mut daemon = Daemon::start(DaemonOptions::new(&source, &target).toml(BRIEF));
    daemon.wait_state("live").await;
    close_hole(&source, hole).await;
    quiesce(&mut daemon, &source).await;
    assert_equal(&source, &target).await;

    let hole = open_hole(&source, 2).await;
    items.insert_many((4..7).map(|id| doc! {"_id": id})).await.unwrap();
    // Some fetches go by.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    close_hole(&source, hole).await;
    quiesce(&mut daemon, &source).await;
    assert_equal(&source, &target).await;
    let ours = target.client().database("shop").collection::<Document>("orders");
    assert_eq!(ours.count_documents(doc! {}).await.unwrap(), 3);
}

/// Begins a transaction that writes two documents, and prepares it. Returns its prepare timestamp.
async fn prepare(source: &ReplicaSet, session: &mut ClientSession, id: i32) -> Timestamp {
    let shop = source.client().database("shop");
    session.start_transaction().await.unwrap();
    let orders = shop.collection::<Document>("orders");
    orders.insert_one(doc! {"_id": id, "prepared": true}).session(&mut *session).await.unwrap();
    let items = shop.collection::<Document>("items");
    let touch = doc! {"$set": {"prepared": id}};
    items.update_one(doc! {"_id": id}, touch).session(&mut *session).await.unwrap();
    let command = doc! {"prepareTransaction": 1, "writeConcern": {"w": "majority"}};
    let admin = source.client().database("admin");
    let reply = admin.run_command(command).session(&mut *session).await.unwrap();
    reply.get_timestamp("prepareTimestamp").unwrap()
}

async fn finish(source: &ReplicaSet, session: &mut ClientSession, prepared: Option<Timestamp>) {
    let command = match prepared {
        Some(at) => {
            doc! {"commitTransaction": 1, "commitTimestamp": at, "writeConcern": {"w": "majority"}}
        }
        None => doc! {"abortTransaction": 1, "writeConcern": {"w": "majority"}},
    };
    let admin = source.client().database("admin");
    admin.run_command(command).session(&mut *session).await.unwrap();
}

async fn session(source: &ReplicaSet) -> ClientSession {
    source.client().start_session().causal_consistency(false).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prepared_transaction_stays_open_over_the_start_and_over_kills() {
    let Pair { source, target } = Pair::with(testable(), ReplicaSetOptions::default()).await;
    let shop = source.client().database("shop");
    let orders = shop.collection::<Document>("orders");
    let items = shop.collection::<Document>("items");
    orders.insert_one(doc! {"_id": -1}).await.unwrap();
    items.insert_many((0..10).map(|id| doc! {"_id": id})).await.unwrap();
    let (mut early, mut late, mut vain) =
        (session(&source).await, session(&source).await, session(&source).await);
    let early_at = prepare(&source, &mut early, 1).await;
    orders.insert_one(doc! {"_id": -2}).await.unwrap();
    // A copy cannot read past a prepared write, so it ends when the transaction does.
    let mut daemon = Daemon::start(DaemonOptions::new(&source, &target).toml(BRIEF));
    daemon.wait_log("copying 2 collections").await;
    finish(&source, &mut early, Some(early_at)).await;
    quiesce(&mut daemon, &source).await;
    assert_equal(&source, &target).await;

    let late_at = prepare(&source, &mut late, 2).await;
    prepare(&source, &mut vain, 3).await;
    orders.insert_one(doc! {"_id": -3}).await.unwrap();
    quiesce(&mut daemon, &source).await;
    daemon.kill9();
    orders.insert_one(doc! {"_id": -4}).await.unwrap();
    daemon.restart();
    quiesce(&mut daemon, &source).await;
    daemon.terminate().await;
    daemon.restart();
    daemon.wait_state("live").await;
    finish(&source, &mut late, Some(late_at)).await;
    finish(&source, &mut vain, None).await;
    quiesce(&mut daemon, &source).await;
    assert_equal(&source, &target).await;
    let ours = target.client().database("shop").collection::<Document>("orders");
    assert!(ours.find_one(doc! {"_id": 2}).await.unwrap().is_some());
    assert!(ours.find_one(doc! {"_id": 3}).await.unwrap().is_none());
}

async fn oldest_entry(source: &ReplicaSet) -> Timestamp {
    let oplog = source.client().database("local").collection::<Document>("oplog.rs");
    let options = FindOneOptions::builder().sort(doc! {"$natural": 1}).build();
    let oldest = oplog.find_one(doc! {}).with_options(options).await.unwrap().unwrap();
    oldest.get_timestamp("ts").unwrap()
}

/// 5 MB, and cut soon after: the server cuts only what lies before its last periodic checkpoint.
pub(crate) fn short_oplog() -> ReplicaSetOptions {
    let mut options = ReplicaSetOptions::default().oplog_mb(5);
    options.args.extend(["--syncdelay", "1"].map(str::to_owned));
    options.parameter("minSnapshotHistoryWindowInSeconds=0")
}

/// Writes to `noise.large` until the oplog no longer holds the entry at `past`.
pub(crate) async fn cut_oplog(source: &ReplicaSet, past: Timestamp) {
    let noise = source.client().database("noise").collection::<Document>("large");
    let megabyte = "x".repeat(1 << 20);
    wait_for("the oplog to be cut", Duration::from_secs(90), || async {
        if oldest_entry(source).await > past {
            return Ok(());
        }
        for id in 0..20 {
            let document = doc! {"_id": id, "a": &megabyte, "n": rand_number()};
            noise.replace_one(doc! {"_id": id}, document).upsert(true).await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        Err("it reaches back too far".to_owned())
    })
    .await;
}

/// Another number every time, so that no write is without effect.
fn rand_number() -> i64 {
    static NEXT: std::sync::atomic::AtomicI64 = std::sync::atomic::AtomicI64::new(0);
    NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_may_take_longer_than_the_oplog_reaches_back() {
    let source = short_oplog();
    let Pair { source, target } = Pair::with(source, ReplicaSetOptions::default()).await;
    let large = source.client().database("shop").collection::<Document>("large");
    let filler = "x".repeat(10_000);
    large.insert_many((0..900).map(|id| doc! {"_id": id, "a": &filler})).await.unwrap();
    let options = DaemonOptions::new(&source, &target)
        .toml(BRIEF)
        .toml("[sync]\nexclude = [\"noise\"]\n[copy]\nmax_bytes_per_second = \"256KiB\"");
    let mut daemon = Daemon::start(options);
    daemon.wait_log("copying 1 collections").await;
    let began = source.majority_ts().await;
    let workload = Workload::start(source.client(), WorkloadOptions::default()).await;
    large.update_many(doc! {"_id": {"$lt": 400}}, doc! {"$set": {"b": 1}}).await.unwrap();
    cut_oplog(&source, began).await;
    let status = daemon.status().await.unwrap();
    assert_eq!(status["state"], "copying", "the copy was over too soon: {status:#}");
    daemon.kill9();
    // Full speed ahead, with what was spooled before the kill.
    daemon.configure("[copy]\nmax_bytes_per_second = \"0\"");
    daemon.restart();
    daemon.wait_state("live").await;
    workload.stop().await;
    quiesce(&mut daemon, &source).await;
    let selected = |name: &str| (!name.starts_with("noise.")).then(|| name.to_owned());
    let comparison = crate::harness::Comparison::new(source.client(), target.client());
    comparison.mapping(selected).run().await.unwrap();
}

/// The spool takes no more, so the tail waits, and the source's oplog holds what is to come.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_spool_makes_the_tail_wait() {
    let Pair { source, target } = Pair::start().await;
    let large = source.client().database("shop").collection::<Document>("large");
    let filler = "x".repeat(10_000);
    large.insert_many((0..700).map(|id| doc! {"_id": id, "a": &filler})).await.unwrap();
    let options = DaemonOptions::new(&source, &target).toml(BRIEF).toml(
        "[sync]\nexclude = [\"noise\"]\n[copy]\nmax_bytes_per_second = \"256KiB\"\n\
         [spool]\nmax_bytes = \"64MiB\"",
    );
    let mut daemon = Daemon::start(options);
    daemon.wait_log("copying 1 collections").await;
    let noise = source.client().database("noise").collection::<Document>("large");
    let megabyte = "x".repeat(1 << 20);
    for id in 0..90 {
        let document = doc! {"_id": id % 10, "a": &megabyte, "n": id};
        noise.replace_one(doc! {"_id": id % 10}, document).upsert(true).await.unwrap();
        large.update_one(doc! {"_id": id}, doc! {"$set": {"b": id}}).await.unwrap();
    }
    daemon.wait_log("spool").await;
    assert_eq!(daemon.status().await.unwrap()["state"], "copying");
    daemon.configure("[copy]\nmax_bytes_per_second = \"0\"");
    daemon.signal(Signal::HUP);
    daemon.wait_state("live").await;
    quiesce(&mut daemon, &source).await;
    let selected = |name: &str| (!name.starts_with("noise.")).then(|| name.to_owned());
    let comparison = crate::harness::Comparison::new(source.client(), target.client());
    comparison.mapping(selected).run().await.unwrap();
}

/// A server writes an entry every ten seconds when nobody else does: the resume point follows those.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_resume_point_advances_while_the_source_is_idle() {
    let Pair { source, target } = Pair::start().await;
    let mut daemon = Daemon::start(DaemonOptions::new(&source, &target).toml(BRIEF));
    let first = resume_point(&daemon.wait_state("live").await);
    let moved = |status: &Value| resume_point(status) > first && status["lag_seconds"] == 0.0;
    let status = daemon.wait_status("the resume point to move", LONG, moved).await;
    assert_eq!(status["state"], "live");
    assert_eq!(status["totals"]["entries_applied"], 0);

    // Timestamps that lie ahead of every clock say nothing of the time.
    push_clock(&source, 500).await;
    let orders = source.client().database("shop").collection::<Document>("orders");
    orders.insert_many((0..10).map(|id| doc! {"_id": id})).await.unwrap();
    quiesce(&mut daemon, &source).await;
    daemon.kill9();
    orders.delete_one(doc! {"_id": 1}).await.unwrap();
    daemon.restart();
    quiesce(&mut daemon, &source).await;
    let now = bson::DateTime::now();
    let level = |status: &Value| status["lag_seconds"] == 0.0 && !status["window"].is_null();
    let status = daemon.wait_status("no lag", LONG, level).await;
    let ahead = i64::from(resume_point(&status).time) - now.timestamp_millis() / 1000;
    assert!(ahead > 300, "{ahead} s");
    for place in [&status["window"]["to"], &status["resume_point"]["wall"]] {
        let wall = bson::DateTime::parse_rfc3339_str(place.as_str().unwrap()).unwrap();
        let off = (wall.timestamp_millis() - now.timestamp_millis()).abs();
        assert!(off < 200_000, "{place} and not {now}");
    }
    assert_equal(&source, &target).await;

    // Files that were restored and initiated as a new set: the oplog begins with that, and what was read is not in it.
    let source = deployment(Side::Source, &source).await;
    let lost = OpTime::new(Ts::new(1, 1), 1);
    let error = TailError::Lost { wanted: lost, found: "none".to_owned() };
    let told = tail::told_apart(&source, lost, error).await;
    assert!(matches!(told, TailError::NeverHeld { .. }), "{told}");
}

/// Has the cluster's clock run ahead, as a client does whose own is wrong.
async fn push_clock(source: &ReplicaSet, seconds: u32) {
    let time = source.majority_ts().await.time + seconds;
    let signature = doc! {
        "hash": bson::Binary { subtype: bson::spec::BinarySubtype::Generic, bytes: vec![0; 20] },
        "keyId": 0_i64,
    };
    let clock = doc! {"clusterTime": Timestamp { time, increment: 1 }, "signature": signature};
    let clock: mongodb::ClusterTime = bson::deserialize_from_document(clock).unwrap();
    let mut session = session(source).await;
    session.advance_cluster_time(&clock);
    let admin = source.client().database("admin");
    admin.run_command(doc! {"ping": 1}).session(&mut session).await.unwrap();
}

/// Told to keep the images of findAndModify in its oplog, a server writes them as no-ops with the collection's name and
/// a whole document.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retry_images_in_the_oplog_are_not_documents() {
    let images =
        ReplicaSetOptions::default().parameter("storeFindAndModifyImagesInSideCollection=false");
    let Pair { source, target } = Pair::with(images, ReplicaSetOptions::default()).await;
    let a = source.client().database("shop").collection::<Document>("a");
    a.insert_many((0..20).map(|n| doc! {"_id": n, "n": n})).await.unwrap();
    let mut daemon = Daemon::start(DaemonOptions::new(&source, &target));
    daemon.wait_state("live").await;
    for n in 0..10 {
        a.find_one_and_update(doc! {"_id": n}, doc! {"$inc": {"n": 1}}).await.unwrap();
        a.find_one_and_delete(doc! {"_id": n + 10}).await.unwrap();
    }
    let oplog = source.client().database("local").collection::<Document>("oplog.rs");
    let written = oplog.count_documents(doc! {"op": "n", "ns": "shop.a"}).await.unwrap();
    assert!(written >= 20, "{written} images");
    settle(&source).await;
    quiesce(&mut daemon, &source).await;
    assert_equal(&source, &target).await;
}
