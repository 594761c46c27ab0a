//! A target that is changed behind snapsync's back is mended, by copying again just what is concerned.

mod counting;
mod cut_short;
mod definitions;
mod kills;
mod lost;
mod meddling;
mod operators;
mod selections;
mod servers;
pub(crate) mod steps;

use std::time::Duration;

use bson::{Document, doc};
use mongodb::Collection;
use serde_json::Value;

use crate::harness::{
    Daemon, DaemonOptions, Pair, ReplicaSet, Workload, WorkloadOptions, assert_equal, quiesce,
    wait_for,
};

/// Lists and counts are looked at every second.
const OFTEN: &str = "[delta]\ninterval = \"1s\"\n[sync]\nwindow = \"200ms\"";
const LONG: Duration = Duration::from_secs(120);

fn orders(set: &ReplicaSet) -> Collection<Document> {
    set.client().database("shop").collection("orders")
}

/// Collections of some documents each, with an index that tells whether it was carried over.
async fn fill(source: &ReplicaSet, names: &[&str]) {
    for name in names {
        let (database, collection) = name.split_once('.').unwrap();
        let collection = source.client().database(database).collection::<Document>(collection);
        let documents = (0..200).map(|id| doc! {"_id": id, "n": id, "name": *name});
        collection.insert_many(documents).await.unwrap();
        let index = doc! {"key": {"n": 1}, "name": "n", "unique": true};
        let index = doc! {"createIndexes": collection.name(), "indexes": [index]};
        source.client().database(database).run_command(index).await.unwrap();
    }
}

fn resyncs(status: &Value) -> u64 {
    status["totals"]["resyncs"].as_u64().unwrap()
}

/// Waits until so many resyncs have been begun and nothing is being copied any more, then for equality.
async fn wait_mended(daemon: &mut Daemon, source: &ReplicaSet, target: &ReplicaSet, times: u64) {
    wait_copied(daemon, source, target, times).await;
    let status = daemon.status().await.unwrap();
    assert_eq!(resyncs(&status), times, "{}", daemon.log_tail());
}

/// The same where several collections may be found in one look or in two: which were copied again, and how often
/// each, is for the caller to assert.
async fn wait_copied(daemon: &mut Daemon, source: &ReplicaSet, target: &ReplicaSet, least: u64) {
    let mended = |status: &Value| {
        assert_ne!(status["state"], "halted", "{}", status["reason"]);
        resyncs(status) >= least && status["copying"] == serde_json::json!([])
    };
    daemon.wait_status("mended", LONG, mended).await;
    quiesce(daemon, source).await;
    assert_equal(source, target).await;
}

fn resynced(daemon: &Daemon) -> Vec<String> {
    let lines = daemon.log_lines("resync of ");
    let begun = lines.iter().filter(|line| !line.contains(" finished "));
    begun
        .map(|line| line.split("resync of ").nth(1).unwrap().split(": ").next().unwrap().into())
        .collect()
}

/// What somebody does to the target, one after another, and which collections have to be copied again for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_changed_behind_its_back_is_copied_again_and_nothing_else() {
    let Pair { source, target } = Pair::start().await;
    fill(&source, &["shop.orders", "shop.carts", "crm.people", "crm.notes"]).await;
    let workload = Workload::start(source.client(), WorkloadOptions::default()).await;
    let mut daemon = Daemon::start(DaemonOptions::new(&source, &target).toml(OFTEN));
    daemon.wait_state("live").await;
    let ours = target.client();
    let carts = ours.database("shop").collection::<Document>("carts");

    orders(&target)
        .insert_many((0..5).map(|n| doc! {"_id": format!("theirs {n}"), "n": -1 - n}))
        .await
        .unwrap();
    daemon.wait_log("resync of shop.orders finished").await;
    carts.delete_many(doc! {"_id": {"$lt": 50}}).await.unwrap();
    daemon.wait_log("resync of shop.carts finished").await;
    ours.database("crm").collection::<Document>("people").drop().await.unwrap();
    daemon.wait_log("resync of crm.people finished").await;
    let rename = doc! {"renameCollection": "crm.notes", "to": "crm.elsewhere"};
    target.admin(rename).await;
    daemon.wait_log("resync of crm.notes finished").await;
    assert_eq!(resynced(&daemon), ["shop.orders", "shop.carts", "crm.people", "crm.notes"]);
    assert_eq!(daemon.status().await.unwrap()["state"], "live");

    ours.database("crm").drop().await.unwrap();
    for (name, times) in [("crm.events", 1), ("crm.notes", 2), ("crm.people", 2)] {
        daemon.wait_log_times(&format!("resync of {name} finished"), times).await;
    }
    workload.stop().await;
    wait_copied(&mut daemon, &source, &target, 5).await;
    let mut last = resynced(&daemon).split_off(4);
    last.sort();
    assert_eq!(last, ["crm.events", "crm.notes", "crm.people"]);
    assert_eq!(daemon.log_lines("halted").len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collection_that_is_made_on_the_target_halts() {
    let Pair { source, target } = Pair::start().await;
    fill(&source, &["shop.orders"]).await;
    let mut daemon = Daemon::start(DaemonOptions::new(&source, &target).toml(OFTEN));
    daemon.wait_state("live").await;
    let theirs = target.client().database("shop").collection::<Document>("theirs");
    theirs.insert_one(doc! {"_id": 1}).await.unwrap();
    let status = daemon.wait_state("halted").await;
    let reason = status["reason"].as_str().unwrap();
    assert!(reason.contains("shop.theirs") && reason.contains("snapsync resume"), "{reason}");
    theirs.drop().await.unwrap();
    orders(&source).delete_many(doc! {"_id": {"$lt": 100}}).await.unwrap();
    assert!(daemon.command(&["resume"]).status.success());
    wait_mended(&mut daemon, &source, &target, 0).await;

    // A database of their own is no better.
    let theirs = target.client().database("theirs").collection::<Document>("new");
    theirs.insert_one(doc! {"_id": 1}).await.unwrap();
    let status = daemon.wait_state("halted").await;
    assert!(status["reason"].as_str().unwrap().contains("theirs.new"), "{status}");
}

/// Deletes on the source, a burst of writes, and counts that drifted in a crash are no divergence.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_source_does_is_no_divergence() {
    let Pair { mut source, target } = Pair::start().await;
    fill(&source, &["shop.orders", "shop.carts"]).await;
    let mut daemon = Daemon::start(DaemonOptions::new(&source, &target).toml(OFTEN));
    daemon.wait_state("live").await;
    for round in 0..5 {
        let from = 1000 * (round + 1);
        orders(&source)
            .insert_many((from..from + 1000).map(|id| doc! {"_id": id, "n": id}))
            .await
            .unwrap();
        orders(&source).delete_many(doc! {"_id": {"$gte": from + 200}}).await.unwrap();
    }
    quiesce(&mut daemon, &source).await;
    // Fast counts are written down once a minute: a server that is killed before forgets what it counted.
    source.kill9();
    source.restart().await;
    orders(&source).insert_one(doc! {"_id": "after", "n": -1}).await.unwrap();
    let before = rounds(&daemon);
    let more = || async {
        let now = rounds(&daemon);
        (now > before + 4).then_some(()).ok_or(format!("{} rounds", now - before))
    };
    wait_for("some rounds", LONG, more).await;
    quiesce(&mut daemon, &source).await;
    let status = daemon.status().await.unwrap();
    assert_eq!((resyncs(&status), &status["total_delta"]), (0, &serde_json::json!(0)), "{status}");
    assert_equal(&source, &target).await;
}

fn rounds(daemon: &Daemon) -> usize {
    daemon.log_lines("collection: shop.orders").len()
}
