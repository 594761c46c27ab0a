//! One writer: a lease that is lost ends the daemon, and what a dead daemon left in flight does not land.

use std::time::Duration;

use bson::{Document, doc};
use serde_json::Value;

use crate::harness::{
    Daemon, DaemonOptions, Pair, ReplicaSet, ReplicaSetOptions, assert_equal, quiesce, wait_for,
};
use crate::recovery::wait_mirrored;

const BRIEF: &str = "[sync]\nwindow = \"200ms\"";
/// A lease is renewed every five seconds.
const RENEWED_WITHIN: Duration = Duration::from_secs(8);
const HELD: Option<i32> = Some(75);
const WAITING: &str = "waiting for what was left in flight";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_loses_its_lease_ends() {
    let Pair { source, target } = Pair::start().await;
    let orders = source.client().database("shop").collection::<Document>("orders");
    orders.insert_one(doc! {"_id": 1}).await.unwrap();
    let mut daemon = Daemon::start(DaemonOptions::new(&source, &target).toml(BRIEF));
    daemon.wait_state("live").await;
    let found = target.leases().find_one(doc! {}).await.unwrap().unwrap();
    let id = doc! {"_id": found.get("_id")};
    let theirs = doc! {"$set": {"home": "elsewhere", "owner": "somebody else"}, "$inc": {"generation": 1_i64}};
    target.leases().update_one(id.clone(), theirs).await.unwrap();
    let status = daemon.wait_exit(RENEWED_WITHIN).await;
    assert_eq!(status.code(), HELD, "{}", daemon.log_tail());
    assert_eq!(daemon.log_lines("taken by somebody else").len(), 1, "{}", daemon.log_tail());
    orders.insert_one(doc! {"_id": 2}).await.unwrap();

    // As long as the other one holds it there is no way in; once it has expired there is.
    daemon.restart();
    assert_eq!(daemon.wait_exit(Duration::from_secs(30)).await.code(), HELD);
    let expired = vec![doc! {"$set": {"expires": {"$subtract": ["$$NOW", 1000]}}}];
    target.leases().update_one(id, expired).await.unwrap();
    daemon.restart();
    quiesce(&mut daemon, &source).await;
    assert_equal(&source, &target).await;

    // Without the lease nobody knows any more what the target holds: a person has to say.
    wait_mirrored(&target, 2).await;
    target.leases().delete_many(doc! {}).await.unwrap();
    assert_eq!(daemon.wait_exit(RENEWED_WITHIN).await.code(), HELD);
    daemon.restart();
    let status = daemon.wait_state("halted").await;
    assert!(status["reason"].as_str().unwrap().contains("no record of this migration"), "{status}");
    assert_eq!(daemon.post("/resume", &serde_json::json!({})).await.unwrap().status, 200);
    quiesce(&mut daemon, &source).await;
    assert_equal(&source, &target).await;
}

/// The insert of a killed daemon, or of an act that an operator ended, is still running in the server when its document
/// has been deleted again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_a_killed_daemon_left_in_flight_does_not_land() {
    let testable = ReplicaSetOptions::default().parameter("enableTestCommands=1");
    let Pair { source, target } = Pair::with(ReplicaSetOptions::default(), testable).await;
    let orders = source.client().database("shop").collection::<Document>("orders");
    orders.insert_one(doc! {"_id": 1}).await.unwrap();
    let hang = |mode: &str| {
        let data = doc! {"nss": "shop.orders"};
        doc! {"configureFailPoint": "hangDuringBatchInsert", "mode": mode, "data": data}
    };
    // Once in the copy, once in a window.
    target.admin(hang("alwaysOn")).await;
    let mut daemon = Daemon::start(DaemonOptions::new(&source, &target).toml(BRIEF));
    for id in [1_i32, 2] {
        if id == 2 {
            target.admin(hang("alwaysOn")).await;
            orders.insert_one(doc! {"_id": 2}).await.unwrap();
        }
        wait_inserting(&target).await;
        daemon.kill9();
        orders.delete_one(doc! {"_id": id}).await.unwrap();
        daemon.restart();
        daemon.wait_log_times(WAITING, usize::try_from(id).unwrap()).await;
        assert_eq!(daemon.status().await.unwrap()["state"], "starting");
        if id == 1 {
            // A lease that is lost at this point is lost all the same.
            let lost = doc! {"$inc": {"generation": 1_i64}, "$set": {"owner": "somebody else"}};
            target.leases().update_one(doc! {}, lost).await.unwrap();
            assert_eq!(daemon.wait_exit(RENEWED_WITHIN).await.code(), HELD);
            daemon.restart();
        }
        target.admin(hang("off")).await;
        quiesce(&mut daemon, &source).await;
        assert_equal(&source, &target).await;
    }
    target.admin(hang("alwaysOn")).await;
    orders.insert_one(doc! {"_id": 3}).await.unwrap();
    wait_inserting(&target).await;
    assert!(daemon.command(&["pause"]).status.success());
    daemon.wait_state("paused").await;
    orders.delete_one(doc! {"_id": 3}).await.unwrap();
    let waited = daemon.log_lines(WAITING).len();
    assert!(daemon.command(&["resume"]).status.success());
    daemon.wait_log_times(WAITING, waited + 1).await;
    target.admin(hang("off")).await;
    quiesce(&mut daemon, &source).await;
    let settled = |status: &Value| status["lag_seconds"] == 0.0;
    daemon.wait_status("no lag", Duration::from_secs(30), settled).await;
    assert_equal(&source, &target).await;

    // It never heard what became of that write: whoever takes the lease next has to fence its sessions off.
    let sessions = async || {
        let found = target.leases().find_one(doc! {}).await.unwrap().unwrap();
        found.get_array("sessions").unwrap().len()
    };
    daemon.terminate().await;
    assert_ne!(sessions().await, 0);
    daemon.restart();
    quiesce(&mut daemon, &source).await;
    daemon.terminate().await;
    assert_eq!(sessions().await, 0);
}

async fn wait_inserting(target: &ReplicaSet) {
    let command = doc! {"aggregate": 1, "cursor": {}, "pipeline": [
        {"$currentOp": {"allUsers": true}},
        {"$match": {"ns": "shop.orders", "op": "insert", "appName": {"$regex": "^snapsync "}}},
    ]};
    wait_for("an insert of the daemon's", Duration::from_secs(60), || async {
        let reply = target.admin(command.clone()).await;
        let batch = reply.get_document("cursor").unwrap().get_array("firstBatch").unwrap();
        if batch.is_empty() { Err("none".to_owned()) } else { Ok(()) }
    })
    .await;
}
