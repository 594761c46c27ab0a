//! An oplog that does not reach back far enough: everything is copied again.

use bson::{Document, doc};
use serde_json::{Value, json};

use super::{LONG, OFTEN, fill, orders, resyncs};
use crate::harness::{
    Comparison, Daemon, DaemonOptions, Pair, ReplicaSet, ReplicaSetOptions, resume_point, wait_for,
};
use crate::reading::{cut_oplog, short_oplog};

const NO_NOISE: &str = "[sync]\nexclude = [\"noise\"]";
/// Slow enough to be killed in the middle of the copy.
const SLOWLY: &str = "[copy]\nmax_bytes_per_second = \"64KiB\"";

async fn assert_same(source: &ReplicaSet, target: &ReplicaSet) {
    let selected = |name: &str| (!name.starts_with("noise")).then(|| name.to_owned());
    let comparison = Comparison::new(source.client(), target.client()).mapping(selected);
    comparison.wait(LONG).await;
}

/// What happens on the source that the daemon will never read of.
async fn change_everything(source: &ReplicaSet) {
    let shop = source.client().database("shop");
    orders(source).update_many(doc! {"_id": {"$lt": 10}}, doc! {"$set": {"a": 1}}).await.unwrap();
    orders(source).delete_many(doc! {"_id": {"$gte": 190}}).await.unwrap();
    shop.collection::<Document>("carts").drop().await.unwrap();
    source.admin(doc! {"renameCollection": "shop.notes", "to": "shop.carts"}).await;
    shop.collection("new").insert_one(doc! {"_id": 1}).await.unwrap();
    shop.collection::<Document>("view").drop().await.unwrap();
    let view = doc! {"create": "another", "viewOn": "orders", "pipeline": []};
    shop.run_command(view).await.unwrap();
    source.client().database("gone").drop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_position_copies_everything_again_and_keeps_what_was_there() {
    let Pair { source, target } = Pair::with(short_oplog(), ReplicaSetOptions::default()).await;
    fill(&source, &["shop.orders", "shop.carts", "shop.notes", "gone.things"]).await;
    let view = doc! {"create": "view", "viewOn": "orders", "pipeline": []};
    source.client().database("shop").run_command(view).await.unwrap();
    let options = DaemonOptions::new(&source, &target).toml(OFTEN).toml(NO_NOISE);
    let mut daemon = Daemon::start(options);
    let status = daemon.wait_state("live").await;
    daemon.terminate().await;
    change_everything(&source).await;
    cut_oplog(&source, resume_point(&status)).await;
    daemon.restart();
    daemon.wait_log("everything is copied again").await;
    let done = |status: &Value| status["state"] == "live" && status["copying"] == json!([]);
    let status = daemon.wait_status("live again", LONG, done).await;
    assert_eq!(resyncs(&status), 1);
    assert_same(&source, &target).await;
    let mut replaced: Vec<&str> = status["replaced"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["collection"].as_str().unwrap())
        .collect();
    replaced.sort_unstable();
    assert_eq!(replaced, ["gone.things", "shop.carts", "shop.notes", "shop.orders"], "{status}");
    // It follows.
    orders(&source).insert_one(doc! {"_id": "later", "n": -1}).await.unwrap();
    assert_same(&source, &target).await;
    assert!(daemon.command(&["discard", "--yes"]).status.success());
    let left = target.client().database("shop").list_collection_names().await.unwrap();
    assert!(!left.iter().any(|name| name.starts_with("snapsync_tmp_")), "{left:?}");
    assert_eq!(daemon.status().await.unwrap()["replaced"], json!([]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_there_stays_readable_until_it_is_replaced_over_kills() {
    let Pair { source, target } = Pair::with(short_oplog(), ReplicaSetOptions::default()).await;
    fill(&source, &["shop.orders", "shop.carts"]).await;
    let options = DaemonOptions::new(&source, &target).toml(OFTEN).toml(NO_NOISE).toml(SLOWLY);
    let mut daemon = Daemon::start(options);
    let status = daemon.wait_state("live").await;
    daemon.terminate().await;
    let filler = "x".repeat(10_000);
    let large = (1000..1060).map(|id| doc! {"_id": id, "n": id, "filler": &filler});
    orders(&source).insert_many(large).await.unwrap();
    cut_oplog(&source, resume_point(&status)).await;
    daemon.restart();
    daemon.wait_log("resync of shop.orders").await;
    for _ in 0..3 {
        let copying = |status: &Value| status["copying"] == json!(["shop.carts", "shop.orders"]);
        let status = daemon.wait_status("copying", LONG, copying).await;
        assert_ne!(status["state"], "live", "nothing is followed");
        assert_eq!(orders(&target).count_documents(doc! {}).await.unwrap(), 200, "the old one");
        daemon.kill9();
        daemon.restart();
    }
    assert_same(&source, &target).await;
    let status = daemon.wait_state("live").await;
    assert_eq!(resyncs(&status), 1, "a kill is no reason to begin again: {}", daemon.log_tail());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_whose_beginning_is_lost_is_begun_anew() {
    let Pair { source, target } = Pair::with(short_oplog(), ReplicaSetOptions::default()).await;
    fill(&source, &["shop.orders", "shop.carts"]).await;
    let filler = "x".repeat(10_000);
    // More than one batch: the first one is not held up.
    let large = (1000..1600).map(|id| doc! {"_id": id, "n": id, "filler": &filler});
    orders(&source).insert_many(large).await.unwrap();
    let options = DaemonOptions::new(&source, &target).toml(OFTEN).toml(NO_NOISE);
    let options = options.toml("[copy]\nmax_bytes_per_second = \"1MiB\"");
    let mut daemon = Daemon::start(options);
    // Made once it is durable where the copy begins.
    let spool = daemon.state_directory().join("spool");
    wait_for("the spool", LONG, || {
        let there = if spool.exists() { Ok(()) } else { Err("none".to_owned()) };
        std::future::ready(there)
    })
    .await;
    let newest = source.majority_ts().await;
    daemon.kill9();
    std::fs::remove_dir_all(spool).unwrap();
    orders(&source).delete_many(doc! {"_id": {"$lt": 100}}).await.unwrap();
    cut_oplog(&source, newest).await;
    daemon.restart();
    daemon.wait_log("the copy is begun anew").await;
    daemon.wait_state("live").await;
    assert_same(&source, &target).await;
}

/// Names that were given up while nobody read the oplog are given to others, before and while everything is copied
/// again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_that_others_had_are_free_for_what_has_them_now() {
    let Pair { source, target } = Pair::with(short_oplog(), ReplicaSetOptions::default()).await;
    let names = ["shop.orders", "shop.dropped", "shop.renamed", "shop.becomes_view"];
    fill(&source, &names).await;
    fill(&source, &["shop.becomes_series"]).await;
    let shop = source.client().database("shop");
    let series = |name: &str| doc! {"create": name, "timeseries": {"timeField": "t"}};
    for name in ["series", "series_again", "series_other"] {
        shop.run_command(series(name)).await.unwrap();
        let now = doc! {"t": bson::DateTime::now()};
        shop.collection::<Document>(name).insert_one(now).await.unwrap();
    }
    let options = DaemonOptions::new(&source, &target).toml(OFTEN).toml(NO_NOISE).toml(SLOWLY);
    let mut daemon = Daemon::start(options);
    let status = daemon.wait_state("live").await;
    daemon.terminate().await;
    let filler = "x".repeat(10_000);
    let large = (1000..1060).map(|id| doc! {"_id": id, "n": id, "filler": &filler});
    orders(&source).insert_many(large).await.unwrap();
    let drops = ["dropped", "becomes_view", "becomes_series", "series", "series_again"];
    for name in drops.into_iter().chain(["series_other"]) {
        shop.collection::<Document>(name).drop().await.unwrap();
    }
    source.admin(doc! {"renameCollection": "shop.renamed", "to": "shop.away"}).await;
    let view = doc! {"create": "becomes_view", "viewOn": "orders", "pipeline": []};
    shop.run_command(view).await.unwrap();
    shop.run_command(series("becomes_series")).await.unwrap();
    shop.collection("series_other").insert_one(doc! {"_id": 1}).await.unwrap();
    cut_oplog(&source, resume_point(&status)).await;
    daemon.restart();
    daemon.wait_log("resync of shop.orders").await;
    for name in ["dropped", "renamed"] {
        shop.collection(name).insert_one(doc! {"_id": "another"}).await.unwrap();
    }
    shop.run_command(series("series_again")).await.unwrap();
    let again = doc! {"t": bson::DateTime::now()};
    shop.collection::<Document>("series_again").insert_one(again).await.unwrap();
    let done = |status: &Value| {
        assert_ne!(status["state"], "halted", "{}", status["reason"]);
        status["state"] == "live" && status["copying"] == json!([])
    };
    let status = daemon.wait_status("live again", LONG, done).await;
    assert_eq!(resyncs(&status), 1);
    assert_same(&source, &target).await;
    assert!(daemon.command(&["discard", "--yes"]).status.success());
    let left = target.client().database("shop").list_collection_names().await.unwrap();
    assert!(!left.iter().any(|name| name.starts_with("snapsync_tmp_")), "{left:?}");
}
