//! Connections that are cut, that stall, and that lose the answer to what was carried out.

use std::time::Duration;

use bson::{Document, doc};
use serde_json::Value;

use crate::harness::{
    Churn, Daemon, DaemonOptions, Pair, Proxy, ReplicaSetOptions, Workload, WorkloadOptions,
    assert_equal, quiesce,
};

const BRIEF: &str = "[sync]\nwindow = \"200ms\"";
const SLOW: &str = "[copy]\nmax_bytes_per_second = \"4MiB\"";
const LONG: Duration = Duration::from_secs(60);

/// Every command that writes documents and every one that defines something is carried out, and its answer is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_of_the_target_are_lost() {
    let Pair { source, target } = Pair::start().await;
    let large = source.client().database("shop").collection::<Document>("large");
    let filler = "x".repeat(10_000);
    large.insert_many((0..1200).map(|id| doc! {"_id": id, "a": &filler})).await.unwrap();
    let proxy = Proxy::start(&target.members[0].host()).await;
    for (command, times) in [("create", 3), ("insert", 4), ("createIndexes", 2)] {
        proxy.lose_answers(command, times);
    }
    let churn = Churn::start(source.client(), 51).await;
    let workload = Workload::start(source.client(), WorkloadOptions::default()).await;
    let options = DaemonOptions::with_uris(&source.uri(), &proxy.uri()).toml(BRIEF).toml(SLOW);
    let mut daemon = Daemon::start(options);
    daemon.wait_state("live").await;
    for (command, times) in [("create", 3), ("insert", 4), ("createIndexes", 1)] {
        proxy.wait_lost(command, times).await;
    }
    const FOLLOWING: [&str; 10] = [
        "insert",
        "update",
        "delete",
        "find",
        "create",
        "drop",
        "renameCollection",
        "createIndexes",
        "collMod",
        "commitTransaction",
    ];
    for _ in 0..2 {
        let before = FOLLOWING.map(|command| (command, proxy.lost(command)));
        for command in FOLLOWING {
            proxy.lose_answers(command, 1);
        }
        for (command, lost) in before {
            // Keys are exchanged in a transaction only when two documents want each other's within one window.
            if command != "commitTransaction" {
                proxy.wait_lost(command, lost + 1).await;
            }
        }
    }
    // Many updates and removals go in one transaction: whether it was committed is not known.
    for round in 0..2 {
        let lost = proxy.lost("commitTransaction");
        proxy.lose_answers("commitTransaction", 1);
        if round == 0 {
            large.update_many(doc! {}, doc! {"$inc": {"n": 1}}).await.unwrap();
        } else {
            large.delete_many(doc! {"_id": {"$lt": 600}}).await.unwrap();
        }
        proxy.wait_lost("commitTransaction", lost + 1).await;
    }
    daemon.wait_state("live").await;
    tokio::join!(churn.stop(), workload.stop());
    quiesce(&mut daemon, &source).await;
    assert_equal(&source, &target).await;
    assert_eq!(daemon.log_lines("halted").len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_with_the_target_are_cut_and_stall() {
    let Pair { source, target } = Pair::start().await;
    let large = source.client().database("shop").collection::<Document>("large");
    let filler = "x".repeat(10_000);
    large.insert_many((0..1000).map(|id| doc! {"_id": id, "a": &filler})).await.unwrap();
    let proxy = Proxy::start(&target.members[0].host()).await;
    let churn = Churn::start(source.client(), 61).await;
    let workload = Workload::start(source.client(), WorkloadOptions::default()).await;
    let options = DaemonOptions::with_uris(&source.uri(), &proxy.uri()).toml(BRIEF).toml(SLOW);
    let mut daemon = Daemon::start(options);
    batter(&proxy, &mut daemon).await;
    tokio::join!(churn.stop(), workload.stop());
    quiesce(&mut daemon, &source).await;
    assert_equal(&source, &target).await;
    assert_eq!(daemon.log_lines("halted").len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_with_the_source_are_cut_and_stall() {
    let Pair { source, target } = Pair::start().await;
    let large = source.client().database("shop").collection::<Document>("large");
    let filler = "x".repeat(10_000);
    large.insert_many((0..1000).map(|id| doc! {"_id": id, "a": &filler})).await.unwrap();
    let proxy = Proxy::start(&source.members[0].host()).await;
    let churn = Churn::start(source.client(), 71).await;
    let workload = Workload::start(source.client(), WorkloadOptions::default()).await;
    let options = DaemonOptions::with_uris(&proxy.uri(), &target.uri()).toml(BRIEF).toml(SLOW);
    let mut daemon = Daemon::start(options);
    batter(&proxy, &mut daemon).await;
    proxy.lose_answers("getMore", 5);
    proxy.lose_answers("find", 5);
    proxy.wait_lost("getMore", 5).await;
    tokio::join!(churn.stop(), workload.stop());
    quiesce(&mut daemon, &source).await;
    assert_equal(&source, &target).await;
    assert_eq!(daemon.log_lines("halted").len(), 0);
}

/// Documents to update are looked up in more than one fetch if they are large; a restart or a failover of the target
/// between two of them loses the cursor.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cursor_lost_on_the_target_is_opened_again() {
    let testable = ReplicaSetOptions::default().parameter("enableTestCommands=1");
    let Pair { source, target } = Pair::with(ReplicaSetOptions::default(), testable).await;
    let large = source.client().database("shop").collection::<Document>("large");
    let filler = "x".repeat(1 << 20);
    large.insert_many((0..24).map(|id| doc! {"_id": id, "a": &filler})).await.unwrap();
    let mut daemon = Daemon::start(DaemonOptions::new(&source, &target).toml(BRIEF));
    daemon.wait_state("live").await;
    let data = doc! {"failCommands": ["getMore"], "errorCode": 43, "namespace": "shop.large"};
    let fail = doc! {"configureFailPoint": "failCommand", "mode": {"times": 1}, "data": data};
    target.admin(fail).await;
    large.update_many(doc! {}, doc! {"$set": {"b": 1}}).await.unwrap();
    quiesce(&mut daemon, &source).await;
    assert_equal(&source, &target).await;
    let off = doc! {"configureFailPoint": "failCommand", "mode": "off"};
    assert_eq!(target.admin(off).await.get("count").and_then(bson::Bson::as_i32), Some(1));
}

/// Bad weather, while copying and while live; good again at the end.
async fn batter(proxy: &Proxy, daemon: &mut Daemon) {
    for documents in [200, 400, 600] {
        let copied = |status: &Value| status["copy"]["documents"].as_u64().unwrap() >= documents;
        daemon.wait_status("some documents copied", LONG, copied).await;
        proxy.cut();
    }
    daemon.wait_state("live").await;
    for _ in 0..10 {
        proxy.cut();
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    let behind = |status: &Value| status["lag_seconds"].as_f64().unwrap_or(0.0) > 2.0;
    proxy.stall();
    daemon.wait_status("lag while stalled", LONG, behind).await;
    proxy.cut();
    proxy.restore();
    daemon.wait_state("live").await;
    proxy.unplug();
    daemon.wait_status("lag while unplugged", LONG, behind).await;
    proxy.restore();
    let level = |status: &Value| status["state"] == "live" && !behind(status);
    daemon.wait_status("live again", Duration::from_secs(90), level).await;
}
