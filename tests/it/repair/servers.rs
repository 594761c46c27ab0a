//! Servers that fail over, and a spool that is full, in the midst of a resync.

use bson::{Document, doc};
use serde_json::Value;

use super::{LONG, OFTEN, fill, orders, resyncs, wait_mended};
use crate::harness::{
    Comparison, Daemon, DaemonOptions, Pair, ReplicaSet, ReplicaSetOptions, Workload,
    WorkloadOptions, quiesce,
};
use crate::overlap::{hold_reads, let_reads_go, wait_held};

fn testable() -> ReplicaSetOptions {
    ReplicaSetOptions::default().parameter("enableTestCommands=1")
}

/// Has `shop.orders` copied again, and holds the copy.
async fn hold_resync(daemon: &Daemon, source: &ReplicaSet) {
    let before = hold_reads(source, "shop.orders").await;
    assert!(daemon.command(&["resync", "shop.orders", "--yes"]).status.success());
    wait_held(source, before).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_fail_over_while_collections_are_copied_again() {
    let Pair { mut source, target } =
        Pair::with(testable(), ReplicaSetOptions::default().members(3)).await;
    fill(&source, &["shop.orders", "shop.carts"]).await;
    let options = DaemonOptions::new(&source, &target).toml(OFTEN);
    let mut daemon = Daemon::start(options.toml("[live]\nmax_lag = \"60s\""));
    daemon.wait_state("live").await;
    let namespaces = ["shop.carts", "shop.items"].map(str::to_owned).to_vec();
    let options = WorkloadOptions { namespaces, ..WorkloadOptions::default() };
    let workload = Workload::start(source.client(), options).await;
    hold_resync(&daemon, &source).await;
    target.step_down(5).await;
    target.primary().await;
    orders(&source).update_many(doc! {}, doc! {"$inc": {"round": 1}}).await.unwrap();
    // With the server goes what holds the copy.
    source.kill9();
    source.restart().await;
    workload.stop().await;
    wait_mended(&mut daemon, &source, &target, 1).await;
    assert_eq!(daemon.log_lines(" starts version=").len(), 1);
}

/// The spool keeps what the run has yet to replay, so it fills: then everything waits for the run, and goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_waits_for_a_resync_when_the_spool_is_full() {
    let Pair { source, target } = Pair::with(testable(), ReplicaSetOptions::default()).await;
    fill(&source, &["shop.orders", "shop.carts"]).await;
    let options = DaemonOptions::new(&source, &target).toml(OFTEN);
    let options = options.toml("[sync]\nexclude = [\"noise\"]\n[spool]\nmax_bytes = \"64MiB\"");
    let mut daemon = Daemon::start(options);
    daemon.wait_state("live").await;
    hold_resync(&daemon, &source).await;
    let noise = source.client().database("noise").collection::<Document>("large");
    let megabyte = "x".repeat(1 << 20);
    let carts = source.client().database("shop").collection::<Document>("carts");
    for id in 0..90 {
        let document = doc! {"_id": id % 10, "a": &megabyte, "n": id};
        noise.replace_one(doc! {"_id": id % 10}, document).upsert(true).await.unwrap();
        carts.update_one(doc! {"_id": id}, doc! {"$set": {"b": id}}).await.unwrap();
        orders(&source).update_one(doc! {"_id": id}, doc! {"$set": {"b": id}}).await.unwrap();
    }
    daemon.wait_log("the spool holds").await;
    let_reads_go(&source).await;
    let mended = |status: &Value| {
        assert_ne!(status["state"], "halted", "{}", status["reason"]);
        resyncs(status) == 1 && status["copying"] == serde_json::json!([])
    };
    daemon.wait_status("mended", LONG, mended).await;
    quiesce(&mut daemon, &source).await;
    let selected = |name: &str| (!name.starts_with("noise.")).then(|| name.to_owned());
    Comparison::new(source.client(), target.client()).mapping(selected).run().await.unwrap();
}
