//! Definitions while collections are copied again.

use bson::{Document, doc};
use serde_json::{Value, json};

use super::{LONG, OFTEN, fill, orders, resynced, resyncs, wait_copied, wait_mended};
use crate::harness::{Daemon, DaemonOptions, Pair, ReplicaSet};

const SLOWLY: &str = "[copy]\nmax_bytes_per_second = \"128KiB\"";

/// Makes `shop.orders` large enough that copying it takes a few seconds.
async fn enlarge(source: &ReplicaSet) {
    let filler = "x".repeat(10_000);
    let large = (1000..1060).map(|id| doc! {"_id": id, "n": id, "filler": &filler});
    orders(source).insert_many(large).await.unwrap();
}

async fn run(source: &ReplicaSet, database: &str, command: Document) {
    source.client().database(database).run_command(command).await.unwrap();
}

async fn wait_copying(daemon: &mut Daemon, name: &str) {
    let copying = |status: &Value| {
        let names = status["copying"].as_array().unwrap();
        names.iter().any(|copied| copied == name) && resyncs(status) > 0
    };
    daemon.wait_status("copying", LONG, copying).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn collections_are_defined_renamed_and_dropped_while_they_are_copied_again() {
    let Pair { source, target } = Pair::start().await;
    fill(&source, &["shop.orders", "shop.carts", "shop.notes", "shop.people"]).await;
    enlarge(&source).await;
    let options = DaemonOptions::new(&source, &target).toml(OFTEN).toml(SLOWLY);
    let mut daemon = Daemon::start(options);
    daemon.wait_state("live").await;
    target.client().database("shop").drop().await.unwrap();
    wait_copying(&mut daemon, "shop.orders").await;
    let index =
        doc! {"createIndexes": "orders", "indexes": [{"key": {"name": 1}, "name": "by name"}]};
    run(&source, "shop", index).await;
    run(&source, "shop", doc! {"dropIndexes": "orders", "index": "n"}).await;
    run(&source, "shop", doc! {"collMod": "orders", "validator": {"n": {"$exists": true}}}).await;
    source.admin(doc! {"renameCollection": "shop.orders", "to": "shop.ordered"}).await;
    // Its name goes to another one, which is new.
    source
        .client()
        .database("shop")
        .collection("orders")
        .insert_one(doc! {"_id": 1})
        .await
        .unwrap();
    // One that is copied is renamed over another one that is copied, and one is gone.
    let over = doc! {"renameCollection": "shop.carts", "to": "shop.notes", "dropTarget": true};
    source.admin(over).await;
    run(&source, "shop", doc! {"drop": "people"}).await;
    let ordered = source.client().database("shop").collection::<Document>("ordered");
    ordered.update_many(doc! {}, doc! {"$set": {"n": 5}}).await.unwrap();
    wait_mended(&mut daemon, &source, &target, 1).await;
    let left = target.client().database("shop").list_collection_names().await.unwrap();
    assert!(!left.iter().any(|name| name.starts_with("snapsync_tmp_")), "{left:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn special_collections_are_copied_again() {
    let Pair { source, target } = Pair::start().await;
    fill(&source, &["shop.orders"]).await;
    run(&source, "shop", doc! {"create": "capped", "capped": true, "size": 1_000_000}).await;
    run(
        &source,
        "shop",
        doc! {"create": "series", "timeseries": {"timeField": "t", "metaField": "m"}},
    )
    .await;
    run(&source, "shop", doc! {"create": "view", "viewOn": "orders", "pipeline": []}).await;
    let shop = source.client().database("shop");
    let capped = shop.collection::<Document>("capped");
    capped.insert_many((0..50).rev().map(|id| doc! {"_id": id})).await.unwrap();
    let at = |n: i64| bson::DateTime::from_millis(1_700_000_000_000 + n * 1000);
    let series = shop.collection::<Document>("series");
    series.insert_many((0..50).map(|n| doc! {"t": at(n), "m": n % 3, "v": n})).await.unwrap();
    let mut daemon = Daemon::start(DaemonOptions::new(&source, &target).toml(OFTEN));
    daemon.wait_state("live").await;
    let ours = target.client().database("shop");
    for name in ["capped", "series", "view"] {
        ours.collection::<Document>(name).drop().await.unwrap();
    }
    series.insert_many((50..80).map(|n| doc! {"t": at(n), "m": n % 3, "v": n})).await.unwrap();
    for name in ["shop.capped", "shop.system.buckets.series"] {
        daemon.wait_log(&format!("resync of {name} finished")).await;
    }
    wait_copied(&mut daemon, &source, &target, 1).await;
    let mut names = resynced(&daemon);
    names.sort();
    assert_eq!(names, ["shop.capped", "shop.system.buckets.series"]);
    let before = resyncs(&daemon.status().await.unwrap());
    assert!(daemon.command(&["resync", "shop.series", "shop.capped", "--yes"]).status.success());
    series.insert_many((80..90).map(|n| doc! {"t": at(n), "m": n % 3, "v": n})).await.unwrap();
    wait_mended(&mut daemon, &source, &target, before + 1).await;
    assert_eq!(daemon.status().await.unwrap()["copying"], json!([]));
}
