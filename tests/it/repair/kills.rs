//! kill -9 at every step of a resync.

use std::time::Duration;

use bson::{Document, doc};

use super::{LONG, OFTEN, fill, orders};
use crate::harness::{
    Churn, Comparison, Daemon, DaemonOptions, Pair, Workload, WorkloadOptions, assert_equal,
    quiesce,
};

/// Somebody goes on meddling, writes and definitions go on, and the daemon is killed all the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_kills_while_collections_are_copied_again() {
    let Pair { source, target } = Pair::start().await;
    fill(&source, &["shop.orders", "shop.carts"]).await;
    let filler = "x".repeat(10_000);
    let large = (1000..1100).map(|id| doc! {"_id": id, "n": id, "filler": &filler});
    orders(&source).insert_many(large).await.unwrap();
    let slowly = "[copy]\nmax_bytes_per_second = \"1MiB\"";
    let options = DaemonOptions::new(&source, &target).toml(OFTEN).toml(slowly);
    let mut daemon = Daemon::start(options);
    daemon.wait_state("live").await;
    let churn = Churn::start(source.client(), 51).await;
    let workload = Workload::start(source.client(), WorkloadOptions::default()).await;
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    for round in 0..4 {
        // Asked for by an operator, so that it is never too often.
        quiesce_state(&mut daemon).await;
        assert!(daemon.command(&["resync", "shop.orders", "shop.carts", "--yes"]).status.success());
        for _ in 0..4 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            tokio::time::sleep(Duration::from_millis((random >> 33) % 900)).await;
            daemon.kill9();
            if round == 2 {
                let carts = target.client().database("shop").collection::<Document>("carts");
                carts.drop().await.unwrap();
            }
            daemon.restart();
        }
    }
    churn.stop().await;
    workload.stop().await;
    let mended = |status: &serde_json::Value| {
        assert_ne!(status["state"], "halted", "{}", status["reason"]);
        status["state"] == "live" && status["copying"] == serde_json::json!([])
    };
    daemon.wait_status("mended", LONG, mended).await;
    Comparison::new(source.client(), target.client()).wait(LONG).await;
    quiesce(&mut daemon, &source).await;
    assert_equal(&source, &target).await;
}

async fn quiesce_state(daemon: &mut Daemon) {
    let follows = |status: &serde_json::Value| {
        assert_ne!(status["state"], "halted", "{}", status["reason"]);
        status["state"] == "live" || status["state"] == "catching-up"
    };
    daemon.wait_status("following", LONG, follows).await;
}
