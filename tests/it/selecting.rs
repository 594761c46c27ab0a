//! What is selected arrives under the name it is given, and nothing else does, whatever is done on the source.

use std::time::Duration;

use bson::{Document, doc};
use mongodb::Client;

use crate::harness::{Comparison, Daemon, DaemonOptions, Pair, ReplicaSet, quiesce, wait_for};
use crate::scenario::{settle, transaction};

const SELECTION: &str = r#"
[sync]
include = ["shop.*", "crm.orders", "crm.recent", "tools*"]
exclude = ["shop.secret*", "shop.hidden_view", "tools_private"]
rename = [{ from = "shop", to = "shop_v2" }, { from = "crm.orders", to = "sales.bookings" }]
"#;

/// The same, as a function.
fn mapping(namespace: &str) -> Option<String> {
    let (database, name) = namespace.split_once('.').unwrap();
    match database {
        "shop" if name.starts_with("secret") || name == "hidden_view" => None,
        "shop" => Some(format!("shop_v2.{name}")),
        "crm" if name == "orders" => Some("sales.bookings".to_owned()),
        "crm" if name == "recent" || name == "system.views" => Some(namespace.to_owned()),
        "tools" | "tools_more" => Some(namespace.to_owned()),
        _ => None,
    }
}

async fn run(client: &Client, database: &str, command: Document) {
    let reply = client.database(database).run_command(command.clone()).await;
    reply.unwrap_or_else(|error| panic!("{command}: {error}"));
}

async fn fill(client: &Client, namespaces: &[&str]) {
    for namespace in namespaces {
        let (database, name) = namespace.split_once('.').unwrap();
        let rows: Vec<Document> =
            (0..10).map(|n| doc! {"_id": n, "n": n, "of": namespace}).collect();
        run(client, database, doc! {"insert": name, "documents": rows}).await;
    }
}

async fn rename(client: &Client, from: &str, to: &str, over: bool) {
    run(client, "admin", doc! {"renameCollection": from, "to": to, "dropTarget": over}).await;
}

/// Definitions and writes, some of them selected, in the databases there are at first.
async fn change(client: &Client) {
    let update = |name: &str| doc! {"update": name, "updates": [{"q": {}, "u": {"$inc": {"n": 1}}, "multi": true}]};
    for (database, name) in [
        ("shop", "a"),
        ("shop", "secret"),
        ("crm", "orders"),
        ("crm", "other"),
        ("tools", "t"),
        ("private", "p"),
    ] {
        run(client, database, update(name)).await;
        let index = doc! {"key": {"n": 1, "x": 1}, "name": "n_x", "unique": true};
        run(client, database, doc! {"createIndexes": name, "indexes": [index]}).await;
        run(client, database, doc! {"collMod": name, "validator": {"z": {"$exists": false}}}).await;
    }
    // Of a transaction only what is selected.
    let row = |name: &str| doc! {"insert": name, "documents": [{"_id": "together"}]};
    let mut elsewhere = row("any");
    elsewhere.insert("$db", "unselected");
    let together = [row("secret"), row("a"), elsewhere, row("made_together"), row("secret_3")];
    transaction(client, "shop", &together).await.unwrap().commit_transaction().await.unwrap();
    // Views, by their own names.
    for name in ["view", "hidden_view", "view_on_view"] {
        let on = if name == "view_on_view" { "view" } else { "a" };
        run(
            client,
            "shop",
            doc! {"create": name, "viewOn": on, "pipeline": [{"$match": {"n": 1}}]},
        )
        .await;
    }
    run(
        client,
        "crm",
        doc! {"collMod": "recent", "viewOn": "another", "pipeline": [{"$limit": 2}]},
    )
    .await;
    // What the server does by way of temporaries.
    let out = |to: &str| doc! {"aggregate": "orders", "cursor": {}, "pipeline": [{"$set": {"o": 1}}, {"$out": to}]};
    run(client, "crm", out("orders")).await;
    run(client, "crm", out("other")).await;
    let out = doc! {"aggregate": "a", "cursor": {}, "pipeline": [{"$out": {"db": "crm", "coll": "orders"}}]};
    run(client, "shop", out).await;
    let out = doc! {"aggregate": "a", "cursor": {}, "pipeline": [{"$out": {"db": "tools", "coll": "from_a"}}]};
    run(client, "shop", out).await;
    run(client, "crm", doc! {"convertToCapped": "orders", "size": 100_000}).await;
    // Names within the selection, and out of it.
    rename(client, "shop.b", "shop.c", false).await;
    rename(client, "shop.c", "shop.d", true).await;
    rename(client, "shop.e", "shop.secret_e", false).await;
    rename(client, "shop.f", "private.f", false).await;
    rename(client, "tools.to_shop", "shop.from_tools", false).await;
    rename(client, "shop.to_sales", "crm.orders", true).await;
    run(client, "crm", update("orders")).await;
    run(client, "tools_more", doc! {"dropDatabase": 1}).await;
    run(client, "tools_private", doc! {"dropDatabase": 1}).await;
    fill(client, &["tools_more.again", "shop.secret_2", "private.p2", "shop.b"]).await;
}

async fn assert_selected(daemon: &mut Daemon, source: &ReplicaSet, target: &ReplicaSet) {
    settle(source).await;
    quiesce(daemon, source).await;
    let comparison = Comparison::new(source.client(), target.client()).mapping(mapping);
    comparison.run().await.unwrap_or_else(|difference| panic!("{difference}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn definitions_follow_the_selection_and_its_names() {
    let Pair { source, target } = Pair::start().await;
    let client = source.client();
    let there = [
        "shop.a",
        "shop.b",
        "shop.d",
        "shop.e",
        "shop.f",
        "shop.secret",
        "shop.to_sales",
        "crm.orders",
        "crm.other",
        "tools.t",
        "tools.to_shop",
        "tools_more.m",
        "tools_private.p",
        "private.p",
    ];
    fill(client, &there).await;
    run(client, "crm", doc! {"create": "recent", "viewOn": "other", "pipeline": []}).await;
    run(client, "shop", doc! {"create": "old_view", "viewOn": "a", "pipeline": []}).await;
    let mut daemon = Daemon::start(DaemonOptions::new(&source, &target).toml(SELECTION));
    assert_selected(&mut daemon, &source, &target).await;
    change(client).await;
    assert_selected(&mut daemon, &source, &target).await;
    run(client, "shop", doc! {"dropDatabase": 1}).await;
    fill(client, &["shop.new"]).await;
    assert_selected(&mut daemon, &source, &target).await;
}

/// A view shows a collection under the name that it has on the target.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn views_follow_a_renamed_collection() {
    let Pair { source, target } = Pair::start().await;
    let client = source.client();
    fill(client, &["shop.old"]).await;
    let view = |name: &str| {
        doc! {"create": name, "viewOn": "old", "pipeline": [
            {"$match": {"n": {"$gt": 4}}},
            {"$lookup": {"from": "old", "localField": "n", "foreignField": "n", "as": "same"}},
            {"$unwind": "$same"},
        ]}
    };
    run(client, "shop", view("before")).await;
    let renamed = "[sync]\nrename = [{ from = \"shop.old\", to = \"shop.new\" }]";
    let mut daemon = Daemon::start(DaemonOptions::new(&source, &target).toml(renamed));
    daemon.wait_state("live").await;
    run(client, "shop", view("live")).await;
    settle(&source).await;
    quiesce(&mut daemon, &source).await;
    let shop = target.client().database("shop");
    for name in ["before", "live"] {
        let rows = shop.collection::<Document>(name).count_documents(doc! {}).await.unwrap();
        assert_eq!(rows, 5, "{name}");
    }
}

/// What the source pushes forward must not expire on the target in the meantime.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_expires_on_the_target_by_itself() {
    let eager = || crate::harness::ReplicaSetOptions::default().parameter("ttlMonitorSleepSecs=1");
    let Pair { source, target } = Pair::with(eager(), eager()).await;
    let shop = source.client().database("shop");
    let make = async |name: &str| {
        let soon = doc! {"key": {"at": 1}, "name": "at", "expireAfterSeconds": 3};
        shop.run_command(doc! {"createIndexes": name, "indexes": [soon]}).await.unwrap();
        let rows: Vec<Document> =
            (0..10).map(|n| doc! {"_id": n, "at": bson::DateTime::now()}).collect();
        shop.collection::<Document>(name).insert_many(rows).await.unwrap();
    };
    let push_forward = async |name: &str| {
        let later =
            bson::DateTime::from_millis(bson::DateTime::now().timestamp_millis() + 3_600_000);
        let collection = shop.collection::<Document>(name);
        collection
            .update_many(doc! {"_id": {"$lt": 5}}, doc! {"$set": {"at": later}})
            .await
            .unwrap();
    };
    let clustered = doc! {
        "create": "clustered", "expireAfterSeconds": 1,
        "clusteredIndex": {"key": {"_id": 1}, "unique": true},
    };
    shop.run_command(clustered).await.unwrap();
    make("before").await;
    let mut daemon = Daemon::start(DaemonOptions::new(&source, &target));
    daemon.wait_state("live").await;
    make("live").await;
    let row = doc! {"_id": bson::DateTime::now()};
    shop.collection::<Document>("clustered").insert_one(row).await.unwrap();
    settle(&source).await;
    quiesce(&mut daemon, &source).await;
    let ours = target.client().database("shop");
    crate::scenario::while_stopped(&mut daemon, async {
        push_forward("before").await;
        push_forward("live").await;
        wait_for("the source to expire the others", Duration::from_secs(20), || async {
            for (name, left) in [("before", 5), ("live", 5), ("clustered", 0)] {
                let count =
                    shop.collection::<Document>(name).count_documents(doc! {}).await.unwrap();
                if count != left {
                    return Err(format!("{name} holds {count}"));
                }
            }
            Ok(())
        })
        .await;
        // The target's own monitor has had its turn as well.
        let passes = async || {
            let status = target.admin(doc! {"serverStatus": 1}).await;
            let ttl = status.get_document("metrics").unwrap().get_document("ttl").unwrap();
            ttl.get_i64("passes").unwrap()
        };
        let before = passes().await;
        wait_for("the target's monitor", Duration::from_secs(20), || async {
            let now = passes().await;
            if now >= before + 2 { Ok(()) } else { Err(format!("{now} passes")) }
        })
        .await;
        for (name, held) in [("before", 10), ("live", 10), ("clustered", 1)] {
            let count = ours.collection::<Document>(name).count_documents(doc! {}).await.unwrap();
            assert_eq!(count, held, "{name} on the target");
        }
    })
    .await;
    settle(&source).await;
    quiesce(&mut daemon, &source).await;
    crate::harness::assert_equal(&source, &target).await;
    for name in ["before", "live"] {
        let indexes = ours.run_command(doc! {"listIndexes": name}).await.unwrap();
        assert!(indexes.to_string().contains("2147483647"), "{indexes}");
    }
}
