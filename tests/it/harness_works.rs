//! The harness itself: an oracle that cannot fail, or a server that outlives its test, would make every test worthless.

use std::path::Path;
use std::time::Duration;

use bson::{Bson, Document, doc};
use mongodb::{Client, IndexModel};

use crate::harness::{
    Comparison, Daemon, DaemonOptions, Mongod, Pair, ReplicaSet, ReplicaSetOptions, Workload,
    WorkloadOptions, assert_equal,
};

async fn fill(client: &Client) {
    let shop = client.database("shop");
    shop.create_collection("log").capped(true).size(4096).await.unwrap();
    shop.create_collection("dear")
        .view_on("orders")
        .pipeline([doc! {"$match": {"n": 1}}])
        .await
        .unwrap();
    let orders = shop.collection::<Document>("orders");
    orders.insert_many((0..20).map(|n| doc! {"_id": n, "a": 1, "b": 2.5})).await.unwrap();
    orders.create_index(IndexModel::builder().keys(doc! {"a": 1, "b": -1}).build()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_oracle_sees_equality_and_every_kind_of_difference() {
    let Pair { source, target } = Pair::start().await;
    tokio::join!(fill(source.client()), fill(target.client()));
    assert_equal(&source, &target).await;

    let comparison = Comparison::new(source.client(), target.client());
    let shop = target.client().database("shop");
    let orders = shop.collection::<Document>("orders");

    // The same fields in another order.
    orders.replace_one(doc! {"_id": 7}, doc! {"b": 2.5, "a": 1}).await.unwrap();
    let difference = comparison.run().await.unwrap_err();
    assert!(difference.contains("shop.orders: contents differ"), "{difference}");
    assert!(difference.contains("\"_id\": 7"), "{difference}");
    assert!(!difference.contains("\"_id\": 6"), "{difference}");

    // The same number with another type.
    orders.replace_one(doc! {"_id": 7}, doc! {"a": Bson::Int64(1), "b": 2.5}).await.unwrap();
    comparison.run().await.unwrap_err();
    orders.replace_one(doc! {"_id": 7}, doc! {"a": 1, "b": 2.5}).await.unwrap();
    assert_equal(&source, &target).await;

    // The same index with its keys the other way round.
    orders.drop_index("a_1_b_-1").await.unwrap();
    let index = doc! {"key": {"b": -1, "a": 1}, "name": "a_1_b_-1"};
    shop.run_command(doc! {"createIndexes": "orders", "indexes": [index]}).await.unwrap();
    let difference = comparison.run().await.unwrap_err();
    assert!(difference.contains("index"), "{difference}");
    orders.drop_index("a_1_b_-1").await.unwrap();
    let difference = comparison.run().await.unwrap_err();
    assert!(difference.contains("a_1_b_-1 is missing"), "{difference}");
    orders.create_index(IndexModel::builder().keys(doc! {"a": 1, "b": -1}).build()).await.unwrap();
    assert_equal(&source, &target).await;

    // A collection that is on one side only; snapsync's own do not count.
    shop.create_collection("snapsync_tmp_1").await.unwrap();
    target.client().database("snapsync").create_collection("state").await.unwrap();
    assert_equal(&source, &target).await;
    shop.create_collection("extra").await.unwrap();
    let difference = comparison.run().await.unwrap_err();
    assert_eq!(difference, "shop.extra: only on the target\n");
}

/// Documents that the server's hash leaves out, order that only a capped collection has, and renaming.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_oracle_sees_what_the_hash_does_not_and_follows_names() {
    let Pair { source, target } = Pair::start().await;
    let server = source.admin(doc! {"buildInfo": 1}).await.get_str("version").unwrap().to_owned();
    let log = |set: &ReplicaSet| set.client().database("shop").collection::<Document>("log");
    for (set, order) in [(&source, [1, 2]), (&target, [2, 1])] {
        set.client()
            .database("shop")
            .create_collection("log")
            .capped(true)
            .size(4096)
            .await
            .unwrap();
        for id in order {
            log(set).insert_one(doc! {"_id": id}).await.unwrap();
        }
    }
    let comparison = Comparison::new(source.client(), target.client());
    let difference = comparison.run().await.unwrap_err();
    assert_eq!(difference, "shop.log: the same documents in another order\n");
    log(&source).drop().await.unwrap();
    log(&target).drop().await.unwrap();

    if !server.starts_with("4.") {
        for (set, value) in [(&source, 1), (&target, 2)] {
            let shop = set.client().database("shop");
            let command = doc! {"create": "weather", "timeseries": {"timeField": "at"}};
            shop.run_command(command).await.unwrap();
            let at = bson::DateTime::from_millis(0);
            let weather = shop.collection::<Document>("weather");
            weather.insert_one(doc! {"_id": 1, "at": at, "value": value}).await.unwrap();
        }
        let difference = comparison.run().await.unwrap_err();
        assert!(
            difference.contains("shop.system.buckets.weather: contents differ"),
            "{difference}"
        );
        source.client().database("shop").drop().await.unwrap();
        target.client().database("shop").drop().await.unwrap();
    }

    let insert = async |set: &ReplicaSet, database: &str| {
        let orders = set.client().database(database).collection::<Document>("orders");
        orders.insert_one(doc! {"_id": 1}).await.unwrap();
    };
    insert(&source, "shop").await;
    insert(&source, "private").await;
    insert(&target, "shop_v2").await;
    comparison.run().await.unwrap_err();
    let renamed = |name: &str| name.strip_prefix("shop.").map(|rest| format!("shop_v2.{rest}"));
    comparison.mapping(renamed).run().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_held_back_is_allowed_until_cutover() {
    let Pair { source, target } = Pair::start().await;
    for (set, expire) in [(&source, 60), (&target, 1_700_000_000)] {
        let keys = doc! {"key": {"at": 1}, "name": "ttl", "expireAfterSeconds": expire};
        let command = doc! {"createIndexes": "sessions", "indexes": [keys]};
        set.client().database("shop").run_command(command).await.unwrap();
    }
    let comparison = Comparison::new(source.client(), target.client());
    comparison.run().await.unwrap();
    comparison.clone().strict().run().await.unwrap_err();
    // The other way round nothing is held back: the target would delete on its own.
    Comparison::new(target.client(), source.client()).run().await.unwrap_err();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_seed_writes_the_same_data() {
    let Pair { source, target } = Pair::start().await;
    let options = || WorkloadOptions { keys: 100, transactions_percent: 10, ..Default::default() };
    let (counts, same) = tokio::join!(
        Workload::run(source.client(), options(), 600),
        Workload::run(target.client(), options(), 600)
    );
    assert_eq!(counts, same);
    assert_eq!(counts.errors, 0, "{counts:?}");
    for count in [
        counts.inserts,
        counts.updates,
        counts.replaces,
        counts.deletes,
        counts.commits,
        counts.aborts,
    ] {
        assert!(count > 0, "{counts:?}");
    }
    assert_equal(&source, &target).await;

    let other = WorkloadOptions { seed: 2, ..options() };
    Workload::start(target.client(), other).await.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_set_survives_kill_restart_freeze_and_step_down() {
    let mut set = ReplicaSet::start(ReplicaSetOptions::default().members(3)).await;
    let shop = set.client().database("shop");
    let orders = shop.collection::<Document>("orders");
    orders.insert_one(doc! {"_id": 1}).await.unwrap();

    let first = set.primary().await;
    set.members[first].kill9();
    let second = set.primary().await;
    assert_ne!(first, second);
    orders.insert_one(doc! {"_id": 2}).await.unwrap();
    set.members[first].restart().await;

    set.members[first].freeze();
    set.members[first].hello().await.unwrap_err();
    set.members[first].thaw();
    set.members[first].hello().await.unwrap();

    set.step_down(10).await;
    set.primary().await;
    orders.insert_one(doc! {"_id": 3}).await.unwrap();
    assert_eq!(orders.count_documents(doc! {}).await.unwrap(), 3);
    assert!(set.majority_ts().await.time > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn authentication_is_wanted_when_it_is_asked_for() {
    let set = ReplicaSet::start(ReplicaSetOptions::default().auth("root", "secret")).await;
    let orders = set.client().database("shop").collection::<Document>("orders");
    orders.insert_one(doc! {"_id": 1}).await.unwrap();
    let stranger = set.members[0].client(None).await;
    stranger.database("shop").collection::<Document>("orders").find_one(doc! {}).await.unwrap_err();
    let user = Client::with_uri_str(set.uri()).await.unwrap();
    user.database("shop").collection::<Document>("orders").find_one(doc! {}).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_outlives_its_value() {
    let standalone = Mongod::standalone().await;
    assert!(standalone.hello().await.unwrap().get("setName").is_none());
    let process = format!("/proc/{}", standalone.process_id());
    assert!(Path::new(&process).exists());
    drop(standalone);
    assert!(!Path::new(&process).exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_cannot_work_ends_with_its_log_kept() {
    let nowhere = "mongodb://127.0.0.1:9/?replicaSet=rs0&serverSelectionTimeoutMS=500";
    let options = DaemonOptions::with_uris(nowhere, nowhere).toml("[no_such_section]\nkey = 1");
    let mut daemon = Daemon::start(options);
    let config = std::fs::read_to_string(daemon.config_file()).unwrap();
    assert!(config.contains("[no_such_section]") && config.contains("[control]"), "{config}");
    daemon.wait_exit(Duration::from_secs(30)).await;
    daemon.get("/status").await.unwrap_err();
}
