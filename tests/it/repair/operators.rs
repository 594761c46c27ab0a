//! What operators ask for: pause, resume, resync, discard.

use bson::doc;
use serde_json::{Value, json};

use super::{LONG, OFTEN, fill, orders, resynced, resyncs, wait_mended};
use crate::harness::{Daemon, DaemonOptions, Pair, assert_equal, quiesce, wait_for};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_lasts_until_it_is_ended_and_loses_nothing() {
    let Pair { source, mut target } = Pair::start().await;
    fill(&source, &["shop.orders"]).await;
    let mut daemon = Daemon::start(DaemonOptions::new(&source, &target).toml(OFTEN));
    daemon.wait_state("live").await;
    assert_eq!(daemon.post("/resume", &json!({})).await.unwrap().status, 409);
    assert!(daemon.command(&["pause"]).status.success());
    assert_eq!(daemon.status().await.unwrap()["state"], "paused");
    assert_eq!(daemon.get("/health/ready").await.unwrap().status, 503);
    assert_eq!(daemon.post("/pause", &json!({})).await.unwrap().status, 409);
    orders(&source).delete_many(doc! {}).await.unwrap();
    for _ in 0..2 {
        daemon.kill9();
        daemon.restart();
        let behind = |status: &Value| {
            status["state"] == "paused"
                && status["lag_seconds"].as_f64().is_some_and(|lag| lag > 0.0)
        };
        daemon.wait_status("paused, and behind", LONG, behind).await;
    }
    assert_eq!(orders(&target).count_documents(doc! {}).await.unwrap(), 200);
    // It is what a pause is for.
    wait_spooled(&daemon).await;
    assert!(daemon.command(&["resume", "--json"]).status.success());
    quiesce(&mut daemon, &source).await;
    assert_equal(&source, &target).await;
    // A target that is away does not keep the oplog from being spooled.
    wait_for("the spool to be left", LONG, || async {
        if spooled(&daemon)? == 0 { Ok(()) } else { Err("still in use".to_owned()) }
    })
    .await;
    target.freeze();
    assert!(daemon.command(&["pause"]).status.success());
    orders(&source).insert_many((0..100).map(|id| doc! {"_id": id, "n": id})).await.unwrap();
    wait_spooled(&daemon).await;
    target.thaw();
    assert!(daemon.command(&["resume"]).status.success());
    quiesce(&mut daemon, &source).await;
    assert_equal(&source, &target).await;
}

async fn wait_spooled(daemon: &Daemon) {
    wait_for("the spool", LONG, || async {
        if spooled(daemon)? > 0 { Ok(()) } else { Err("nothing is spooled".to_owned()) }
    })
    .await;
}

/// Files in the spool.
fn spooled(daemon: &Daemon) -> Result<usize, String> {
    let files = std::fs::read_dir(daemon.state_directory().join("spool"));
    Ok(files.map_err(|error| error.to_string())?.count())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_may_have_anything_copied_again() {
    let Pair { source, target } = Pair::start().await;
    fill(&source, &["shop.orders", "shop.carts", "crm.people"]).await;
    let mut daemon = Daemon::start(DaemonOptions::new(&source, &target).toml(OFTEN));
    daemon.wait_state("live").await;
    let unknown = daemon.command(&["resync", "shop.nothing", "--yes"]);
    assert_eq!(unknown.status.code(), Some(64));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("shop.nothing"));
    assert_eq!(daemon.command(&["resync"]).status.code(), Some(64), "nobody to ask");
    // An update that no count shows.
    orders(&target).update_one(doc! {"_id": 1}, doc! {"$set": {"n": -1}}).await.unwrap();
    assert!(daemon.command(&["resync", "shop.orders", "--yes"]).status.success());
    wait_mended(&mut daemon, &source, &target, 1).await;
    assert_eq!(resynced(&daemon), ["shop.orders"]);
    assert!(daemon.command(&["resync", "shop", "--yes", "--json"]).status.success());
    wait_mended(&mut daemon, &source, &target, 2).await;
    assert_eq!(daemon.post("/resync", &json!({"namespaces": []})).await.unwrap().status, 202);
    wait_mended(&mut daemon, &source, &target, 3).await;
    assert_eq!(resynced(&daemon).len(), 6);
    assert_eq!(daemon.post("/resync", &json!({"names": []})).await.unwrap().status, 400);
    let status = daemon.status().await.unwrap();
    assert_eq!(status["replaced"].as_array().unwrap().len(), 6, "{status}");
    assert_eq!(daemon.post("/discard", &json!({})).await.unwrap().status, 200);
    assert_eq!(daemon.status().await.unwrap()["replaced"], json!([]));
    // So many at a time that the others need not wait for long.
    for n in 0..40 {
        source.client().database("many").create_collection(format!("c{n}")).await.unwrap();
    }
    quiesce(&mut daemon, &source).await;
    assert!(daemon.command(&["resync", "many", "--yes"]).status.success());
    wait_mended(&mut daemon, &source, &target, 5).await;
    assert_eq!(resynced(&daemon).len(), 46);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn something_that_keeps_writing_there_ends_in_a_halt() {
    let Pair { source, target } = Pair::start().await;
    fill(&source, &["shop.orders"]).await;
    let mut daemon = Daemon::start(DaemonOptions::new(&source, &target).toml(OFTEN));
    daemon.wait_state("live").await;
    for times in 1..=3 {
        orders(&target).delete_one(doc! {"_id": 1}).await.unwrap();
        wait_mended(&mut daemon, &source, &target, times).await;
    }
    orders(&target).delete_one(doc! {"_id": 1}).await.unwrap();
    let status = daemon.wait_state("halted").await;
    assert!(status["reason"].as_str().unwrap().contains("shop.orders"), "{status}");
    assert_eq!(resyncs(&status), 3);
    assert!(daemon.command(&["resume"]).status.success());
    wait_mended(&mut daemon, &source, &target, 4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_divergence_halts_where_that_is_configured() {
    let Pair { source, target } = Pair::start().await;
    fill(&source, &["shop.orders", "shop.carts"]).await;
    let halt = "[sync]\non_divergence = \"halt\"";
    let options = DaemonOptions::new(&source, &target).toml(OFTEN).toml(halt);
    let mut daemon = Daemon::start(options);
    daemon.wait_state("live").await;
    orders(&target).delete_one(doc! {"_id": 1}).await.unwrap();
    let status = daemon.wait_state("halted").await;
    let reason = status["reason"].as_str().unwrap();
    assert!(reason.contains("200 documents on the source and 199 on the target"), "{reason}");
    assert!(daemon.command(&["resync", "shop.orders", "--yes"]).status.success());
    wait_mended(&mut daemon, &source, &target, 1).await;
}
