//! Counts that are not what they seem, and counts that cannot be had.

use std::time::Duration;

use bson::{Document, doc};

use super::{LONG, OFTEN, fill, orders, resynced, resyncs, wait_mended};
use crate::harness::{Comparison, Daemon, DaemonOptions, Pair, ReplicaSetOptions};

/// Servers before 5.0 read at an optime in transactions only.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_reads_snapshots_in_transactions_only_is_counted_exactly() {
    let old = ReplicaSetOptions::default().version("4.4.2");
    let Pair { source, target } = Pair::with(old.clone(), old).await;
    fill(&source, &["shop.orders", "shop.carts"]).await;
    let mut daemon = Daemon::start(DaemonOptions::new(&source, &target).toml(OFTEN));
    daemon.wait_state("live").await;
    orders(&target).delete_many(doc! {"_id": {"$lt": 5}}).await.unwrap();
    wait_mended(&mut daemon, &source, &target, 1).await;
    orders(&target).insert_one(doc! {"_id": "theirs", "n": -1}).await.unwrap();
    wait_mended(&mut daemon, &source, &target, 2).await;
    assert_eq!(resynced(&daemon), ["shop.orders", "shop.orders"]);
}

/// A server that keeps no history cannot be counted at an optime: nothing is copied again on a suspicion, and that it
/// cannot be told is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_counted_exactly_is_said_and_not_copied_again() {
    let no_history = || {
        let options = ReplicaSetOptions::default().parameter("enableTestCommands=1");
        options.parameter("minSnapshotHistoryWindowInSeconds=0")
    };
    let Pair { source, target } = Pair::with(no_history(), no_history()).await;
    fill(&source, &["shop.orders"]).await;
    let mut daemon = Daemon::start(DaemonOptions::new(&source, &target).toml(OFTEN));
    daemon.wait_state("live").await;
    let fail = doc! {"failCommands": ["aggregate"], "errorCode": 239, "namespace": "shop.orders"};
    let fail = doc! {"configureFailPoint": "failCommand", "mode": "alwaysOn", "data": fail};
    source.admin(fail).await;
    orders(&target).delete_many(doc! {"_id": {"$lt": 5}}).await.unwrap();
    daemon.wait_log("whether shop.orders has diverged cannot be told").await;
    let status = daemon.status().await.unwrap();
    assert_eq!((resyncs(&status), &status["state"]), (0, &"live".into()), "{status}");
    source.admin(doc! {"configureFailPoint": "failCommand", "mode": "off"}).await;
    assert!(daemon.command(&["resync", "shop.orders", "--yes"]).status.success());
    wait_mended(&mut daemon, &source, &target, 1).await;
}

/// The source's TTL monitor takes thousands away every second, while others come.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sweep_of_what_has_expired_is_no_divergence() {
    let sweeping = ReplicaSetOptions::default().parameter("ttlMonitorSleepSecs=1");
    let Pair { source, target } = Pair::with(sweeping.clone(), sweeping).await;
    fill(&source, &["shop.orders"]).await;
    let index = doc! {"key": {"at": 1}, "name": "at", "expireAfterSeconds": 1};
    let index = doc! {"createIndexes": "sessions", "indexes": [index]};
    source.client().database("shop").run_command(index).await.unwrap();
    let mut daemon = Daemon::start(DaemonOptions::new(&source, &target).toml(OFTEN));
    daemon.wait_state("live").await;
    let sessions = source.client().database("shop").collection::<Document>("sessions");
    for _ in 0..20 {
        let many = (0..500).map(|n| doc! {"at": bson::DateTime::now(), "n": n});
        sessions.insert_many(many).await.unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let swept = || async {
        let left = sessions.count_documents(doc! {}).await.unwrap();
        if left == 0 { Ok(()) } else { Err(format!("{left} left")) }
    };
    crate::harness::wait_for("all swept", LONG, swept).await;
    // What was swept may be committed by the majority a little later.
    Comparison::new(source.client(), target.client()).wait(LONG).await;
    let status = daemon.status().await.unwrap();
    assert_eq!(resyncs(&status), 0, "{}", daemon.log_tail());
}
