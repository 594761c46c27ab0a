//! `snapsync snapshot`: some collections of a database in another one, as of one moment, and never half.

use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bson::{Bson, Document, doc};
use futures_util::TryStreamExt;
use mongodb::Client;
use serde_json::{Value, json};

use crate::harness::{
    Comparison, Daemon, DaemonOptions, Pair, ReplicaSet, ReplicaSetOptions, documents_in, wait_for,
};

const LONG: Duration = Duration::from_secs(180);
/// Accounts in each of the two collections, and what all of them have together.
const ACCOUNTS: i32 = 400;
const TOTAL: i64 = 2 * 400 * 100;

fn options(pair: &Pair, toml: &str) -> DaemonOptions {
    let databases = "[snapshot]\nsource_database = \"shop\"\ntarget_database = \"preview\"\n";
    let fast = "retry_delay = \"50ms\"\n";
    let options = DaemonOptions::new(&pair.source, &pair.target).command("snapshot");
    options.toml(&format!("{databases}{fast}")).toml(toml)
}

async fn run(client: &Client, database: &str, command: Document) -> Document {
    let reply = client.database(database).run_command(command.clone()).await;
    reply.unwrap_or_else(|error| panic!("{command}: {error}"))
}

async fn insert(client: &Client, namespace: &str, documents: impl Iterator<Item = Document>) {
    let (database, name) = namespace.split_once('.').unwrap();
    let collection = client.database(database).collection::<Document>(name);
    collection.insert_many(documents).await.unwrap();
}

fn rows(count: i32) -> impl Iterator<Item = Document> {
    (0..count).map(|n| doc! {"_id": n, "n": n, "text": "x".repeat(50)})
}

/// One to its end; the exit code.
async fn made(options: DaemonOptions) -> (Option<i32>, Daemon) {
    let mut snapshot = Daemon::start(options);
    let status = snapshot.wait_exit(LONG).await;
    (status.code(), snapshot)
}

fn report(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text).unwrap_or_else(|error| {
        panic!("{error}: {text}\n{}", String::from_utf8_lossy(&output.stderr))
    })
}

async fn names(client: &Client, database: &str) -> Vec<String> {
    let mut names = client.database(database).list_collection_names().await.unwrap();
    names.retain(|name| !name.starts_with("system."));
    names.sort_unstable();
    names
}

async fn metadata(client: &Client) -> Document {
    let collection = client.database("preview").collection::<Document>("snapshot_metadata");
    collection.find_one(doc! {"_id": "latest"}).await.unwrap().expect("a description")
}

/// Collections of every kind, with a view.
async fn fill(client: &Client) {
    insert(client, "shop.orders", rows(1000)).await;
    insert(client, "shop.people", rows(20)).await;
    insert(client, "other.untouched", rows(5)).await;
    run(client, "shop", doc! {"create": "nothing"}).await;
    run(client, "shop", doc! {"create": "capped", "capped": true, "size": 65536, "max": 50}).await;
    insert(client, "shop.capped", rows(80)).await;
    let german = doc! {"locale": "de", "strength": 1};
    run(
        client,
        "shop",
        doc! {"create": "german", "collation": german,
        "validator": {"n": {"$gte": 0}}},
    )
    .await;
    insert(client, "shop.german", rows(10)).await;
    run(
        client,
        "shop",
        doc! {"createIndexes": "orders", "indexes": [
            {"key": {"n": 1}, "name": "n", "unique": true},
            {"key": {"at": 1}, "name": "expiry", "expireAfterSeconds": 3600},
        ]},
    )
    .await;
    run(
        client,
        "shop",
        doc! {"create": "clustered",
        "clusteredIndex": {"key": {"_id": 1}, "unique": true}, "expireAfterSeconds": 86_400_i64},
    )
    .await;
    let measured = doc! {"timeField": "at", "metaField": "of"};
    run(client, "shop", doc! {"create": "series", "timeseries": measured}).await;
    let points =
        (0..300).map(|n| doc! {"at": bson::DateTime::from_millis(n * 60_000), "of": n % 7});
    insert(client, "shop.series", points).await;
    let looked_up =
        doc! {"$lookup": {"from": "people", "localField": "n", "foreignField": "n", "as": "p"}};
    run(client, "shop", doc! {"create": "view", "viewOn": "orders", "pipeline": [looked_up]}).await;
}

/// Every kind of collection arrives as it is; the old ones go; what is not named stays; and it is all described.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_arrives_under_its_new_name_and_the_old_goes() {
    let pair = Pair::start().await;
    let (source, target) = (pair.source.client(), pair.target.client());
    fill(source).await;
    // Last week's, and somebody's own.
    insert(target, "preview.orders", (5000..5010).map(|n| doc! {"_id": n, "old": true})).await;
    insert(target, "preview.nothing", rows(3)).await;
    insert(target, "preview.view", rows(3)).await;
    let measured = doc! {"timeField": "at", "metaField": "of"};
    run(target, "preview", doc! {"create": "series", "timeseries": measured}).await;
    insert(target, "preview.theirs", rows(7)).await;
    insert(target, "preview.snapsync_tmp_snap_left", rows(7)).await;

    let named = "[snapshot]\nsource_cluster = \"Cluster0\"\ntarget_cluster = \"Preview\"\n";
    let mut snapshot = Daemon::start(options(&pair, named));
    assert!(snapshot.wait_exit(LONG).await.success(), "{}", snapshot.log());
    let log = snapshot.log();
    assert!(log.contains("nothing is empty on the source"), "{log}");
    assert!(log.contains("not on the source and stay as they are: theirs"), "{log}");

    let found = metadata(target).await;
    let fields: Vec<&str> = found.keys().map(String::as_str).collect();
    let expected = "_id createdAt startedAt finishedAt durationSeconds sourceCluster sourceDatabase sourceHost \
                    targetCluster targetDatabase targetHost collections collectionsCount documentCounts \
                    totalDocuments method crossCluster status";
    assert_eq!(fields.join(" "), expected);
    let collections = ["capped", "clustered", "german", "nothing", "orders", "people", "series"];
    assert_eq!(found.get("collections"), Some(&Bson::from(collections.to_vec())), "{found}");
    let counts = found.get_document("documentCounts").unwrap();
    assert_eq!(counts.get_i64("orders").unwrap(), 1000);
    assert_eq!(counts.get_i64("series").unwrap(), 300, "of measurements, not of buckets");
    assert_eq!(counts.get_i64("nothing").unwrap(), 0);
    assert_eq!(found.get_str("sourceCluster").unwrap(), "Cluster0");
    assert_eq!(found.get_str("sourceHost").unwrap(), pair.source.members[0].host());
    assert!(found.get_bool("crossCluster").unwrap());
    assert_eq!(found.get_str("status").unwrap(), "complete");

    assert_eq!(documents_in(target, "preview.theirs").await, 7);
    let left = documents_in(target, "snapsync.lease").await;
    assert_eq!(left, 0, "nothing of a snapshot that is over stays in the lease");
    for extra in ["theirs", "snapshot_metadata"] {
        run(target, "preview", doc! {"drop": extra}).await;
    }
    let mapping = |name: &str| Some(format!("preview.{}", name.strip_prefix("shop.")?));
    let comparison = Comparison::new(source, target).mapping(mapping).strict().restated();
    if let Err(difference) = comparison.run().await {
        panic!("the snapshot differs:\n{difference}{}", snapshot.log());
    }
    assert!(!names(target, "preview").await.iter().any(|name| name.contains("snapsync_tmp")));

    one_deployment_and_a_list(&pair).await;
}

/// The list is what is replaced; one deployment may hold both databases; and it is said beforehand.
async fn one_deployment_and_a_list(pair: &Pair) {
    let source = pair.source.client();
    insert(source, "copy.german", rows(3)).await;
    insert(source, "copy.gone", rows(3)).await;
    insert(source, "copy.people", (900..903).map(|n| doc! {"_id": n})).await;
    let uri = pair.source.uri();
    let databases = "[snapshot]\nsource_database = \"shop\"\nretry_delay = \"50ms\"";
    let one = DaemonOptions::with_uris(&uri, &uri).toml(databases);
    let list =
        "[snapshot]\ntarget_database = \"copy\"\ncollections = [\"people\", \"series\", \"gone\"]";
    let daemon = Daemon::start(one.command("check").toml(list));
    let planned = report(&daemon.command(&["snapshot", "--dry-run", "--json"]));
    let rows = planned["collections"].as_array().unwrap();
    let names: Vec<_> = rows.iter().map(|row| row["collection"].as_str().unwrap()).collect();
    assert_eq!(names, ["gone", "people", "series"]);
    assert_eq!(
        rows[1],
        json!({"collection": "people", "target_collection": "copy.people",
        "documents": 20, "bytes": rows[1]["bytes"], "replaces": true})
    );
    assert_eq!(documents_in(source, "copy.people").await, 3, "nothing has been done");

    let output = daemon.command(&["snapshot", "--json"]);
    let made = report(&output);
    assert_eq!(output.status.code(), Some(0), "{made:#}");
    let outcome = |name: &str| {
        let all = made["collections"].as_array().unwrap();
        all.iter().find(|one| one["collection"] == name).unwrap()["outcome"].clone()
    };
    assert_eq!([outcome("people"), outcome("gone")], [json!("replaced"), json!("absent")]);
    assert_eq!(made["cross_cluster"], false);
    assert_eq!(documents_in(source, "copy.people").await, 20);
    assert_eq!(documents_in(source, "copy.german").await, 3, "not in the list");
    let names = self::names(source, "copy").await;
    assert_eq!(names, ["german", "people", "series", "snapshot_metadata"]);

    let itself = daemon.command(&["snapshot", "--set", "snapshot.target_database=shop"]);
    assert_eq!(itself.status.code(), Some(78));
    let mistaken = daemon.command(&["snapshot", "--set", "snapshot.source_database=shopp"]);
    assert_eq!(mistaken.status.code(), Some(78));
    assert_eq!(documents_in(source, "copy.people").await, 20, "a mistaken name empties nothing");
}

/// Moves money between two collections, one transaction after another, and makes and drops collections meanwhile, until
/// it is told to stop.
struct Bank {
    stop: Arc<AtomicBool>,
    working: tokio::task::JoinHandle<u64>,
}

impl Bank {
    async fn open(client: &Client) {
        let accounts =
            || (0..ACCOUNTS).map(|n| doc! {"_id": n, "balance": 100_i64, "text": "x".repeat(600)});
        insert(client, "shop.left", accounts()).await;
        insert(client, "shop.right", accounts()).await;
        insert(client, "shop.renamed", rows(10)).await;
        run(
            client,
            "shop",
            doc! {"createIndexes": "left", "indexes": [
                {"key": {"balance": 1}, "name": "balance"},
            ]},
        )
        .await;
    }

    fn start(client: &Client) -> Self {
        let (client, stop) = (client.clone(), Arc::new(AtomicBool::new(false)));
        let told = stop.clone();
        let working = tokio::spawn(async move {
            let mut done = 0;
            while !told.load(Ordering::Relaxed) {
                let n = i32::try_from(done % 400).unwrap();
                transfer(&client, n, (n * 7 + 3) % ACCOUNTS).await;
                if done % 10 == 0 {
                    let name = format!("new{}", done % 30);
                    run(&client, "shop", doc! {"insert": &name, "documents": [{"n": 1}]}).await;
                    let names = [format!("shop.{name}"), "shop.moved".to_owned()];
                    run(
                        &client,
                        "admin",
                        doc! {"renameCollection": &names[0], "to": &names[1],
                        "dropTarget": true},
                    )
                    .await;
                }
                done += 1;
            }
            done
        });
        Self { stop, working }
    }

    async fn close(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.working.await.unwrap()
    }
}

async fn transfer(client: &Client, from: i32, to: i32) {
    let mut session = client.start_session().await.unwrap();
    let shop = client.database("shop");
    loop {
        session.start_transaction().await.unwrap();
        let mut moved = Ok(());
        for (name, id, amount) in [("left", from, -3_i64), ("right", to, 3_i64)] {
            let accounts = shop.collection::<Document>(name);
            let change = doc! {"$inc": {"balance": amount}};
            let update = accounts.update_one(doc! {"_id": id}, change).session(&mut session).await;
            moved = moved.and(update.map(drop));
        }
        match moved {
            Ok(()) => break session.commit_transaction().await.unwrap(),
            Err(_) => session.abort_transaction().await.unwrap(),
        }
    }
}

/// What all accounts have together, and how many there are.
async fn total(client: &Client, database: &str) -> (i64, u64) {
    let (mut sum, mut count) = (0, 0);
    for name in ["left", "right"] {
        let accounts = client.database(database).collection::<Document>(name);
        let found: Vec<Document> =
            accounts.find(doc! {}).await.unwrap().try_collect().await.unwrap();
        count += u64::try_from(found.len()).unwrap();
        sum += found.iter().map(|account| account.get_i64("balance").unwrap()).sum::<i64>();
    }
    (sum, count)
}

/// Looks at a collection of the target again and again: it is the old one or the new one, and nothing between.
async fn never_half(client: Client, stop: Arc<AtomicBool>) -> u64 {
    let accounts = client.database("preview").collection::<Document>("left");
    let mut looks = 0;
    while !stop.load(Ordering::Relaxed) {
        // A cursor of a collection that was replaced meanwhile ends with an error; a count does not.
        let found = accounts.count_documents(doc! {}).await.unwrap();
        assert!(found == 5 || found == u64::try_from(ACCOUNTS).unwrap(), "{found} documents");
        looks += 1;
    }
    looks
}

/// However long the copy takes and whatever happens meanwhile, all collections are of one moment; and a kill at any
/// step leaves each of them old or new.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_is_of_one_moment_and_a_kill_leaves_old_or_new() {
    let pair = Pair::start().await;
    let (source, target) = (pair.source.client(), pair.target.client());
    Bank::open(source).await;
    insert(target, "preview.left", rows(5)).await;
    let reading = Arc::new(AtomicBool::new(false));
    let reader = tokio::spawn(never_half(target.clone(), reading.clone()));
    let bank = Bank::start(source);

    // Slowly, so that much happens while it copies.
    let slowly = "[copy]\nmax_bytes_per_second = \"256KiB\"\n[snapshot]\nparallel_collections = 2";
    let mut snapshot = Daemon::start(options(&pair, slowly));
    for step in ["copying ", "applied", "staged"] {
        let reached = async {
            match step {
                // Something of the copy is on the target.
                "copying " => {
                    wait_for("the copy has begun", LONG, || async {
                        match names(target, "preview").await.len() {
                            0 | 1 => Err("nothing is staged".to_owned()),
                            _ => Ok(()),
                        }
                    })
                    .await;
                }
                "applied" => drop(snapshot.wait_log("copied").await),
                _ => {
                    wait_for("a place is taken", LONG, || async {
                        let left = documents_in(target, "preview.left").await;
                        if left == 5 { Err("the old one".to_owned()) } else { Ok(()) }
                    })
                    .await;
                }
            }
        };
        reached.await;
        snapshot.kill9();
        let left = documents_in(target, "preview.left").await;
        assert!(left == 5 || left == u64::try_from(ACCOUNTS).unwrap(), "{left} after {step}");
        snapshot.restart();
    }
    let status = snapshot.wait_exit(LONG).await;
    assert!(status.success(), "{}", snapshot.log());
    assert_eq!(total(target, "preview").await, (TOTAL, 800), "{}", snapshot.log());
    assert!(documents_in(target, "preview.moved").await <= 1);
    let done = bank.close().await;
    assert!(done > 20, "only {done} transfers");
    assert_eq!(total(source, "shop").await, (TOTAL, 800));
    reading.store(true, Ordering::Relaxed);
    assert!(reader.await.unwrap() > 10);
    let found = names(target, "preview").await;
    assert!(!found.iter().any(|name| name.contains("snapsync_tmp")), "{found:?}");
    assert!(!snapshot.log_lines("a snapshot had left behind").is_empty(), "nothing was swept");
}

fn testing() -> ReplicaSetOptions {
    ReplicaSetOptions::default().parameter("enableTestCommands=1")
}

/// The target refuses to write into the copy of `bad`, so many times.
async fn refuse(target: &ReplicaSet, mode: Bson) {
    let data = doc! {"failCommands": ["insert"], "namespace": "preview.snapsync_tmp_snap_bad",
    "errorCode": 2};
    target.admin(doc! {"configureFailPoint": "failCommand", "mode": mode, "data": data}).await;
}

/// One collection that fails is tried again and stops no other; a deadline stops all, and leaves the old ones; two at
/// once are one too many.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_fails_is_tried_again_and_leaves_the_old() {
    let pair = Pair::with(testing(), testing()).await;
    let (source, target) = (pair.source.client(), pair.target.client());
    for name in ["shop.bad", "shop.good"] {
        insert(source, name, rows(100)).await;
    }
    insert(target, "preview.bad", rows(3)).await;
    insert(target, "preview.good", rows(3)).await;

    refuse(&pair.target, Bson::from("alwaysOn")).await;
    let (code, snapshot) = made(options(&pair, "[snapshot]\nattempts = 2")).await;
    assert_eq!(code, Some(1), "{}", snapshot.log());
    assert_eq!(snapshot.log_lines("copying shop.bad has failed").len(), 2, "{}", snapshot.log());
    let counts =
        [documents_in(target, "preview.bad").await, documents_in(target, "preview.good").await];
    assert_eq!(counts, [3, 100], "the one that fails stays what it was");
    let found = metadata(target).await;
    assert_eq!(found.get_str("status").unwrap(), "partial");
    assert_eq!(found.get("collections"), Some(&Bson::from(vec!["good"])));

    refuse(&pair.target, doc! {"times": 2}.into()).await;
    let (code, snapshot) = made(options(&pair, "")).await;
    assert_eq!(code, Some(0), "{}", snapshot.log());
    assert_eq!(documents_in(target, "preview.bad").await, 100);
    assert_eq!(metadata(target).await.get_str("status").unwrap(), "complete");

    let large = (100..400).map(|n| doc! {"_id": n, "text": "x".repeat(20_000)});
    insert(source, "shop.good", large).await;
    let slowly = "[copy]\nmax_bytes_per_second = \"64KiB\"\n[snapshot]\n";
    let mut slow = Daemon::start(options(&pair, slowly));
    wait_for("it copies", LONG, || async {
        let found = names(target, "preview").await;
        found.iter().any(|name| name.contains("snapsync_tmp")).then_some(()).ok_or(found.join(", "))
    })
    .await;
    let second = slow.command(&["snapshot"]);
    assert_eq!(second.status.code(), Some(75), "of the same state directory");
    let (code, other) = made(options(&pair, "")).await;
    assert_eq!(code, Some(75), "of another: {}", other.log());
    assert!(other.log().contains("the lease on the target is held by"), "{}", other.log());
    let (status, _) = slow.terminate().await;
    assert_eq!(status.code(), Some(1), "{}", slow.log());

    let (code, late) = made(options(&pair, &format!("{slowly}deadline = \"1s\""))).await;
    assert_eq!(code, Some(1), "{}", late.log());
    assert!(late.log().contains("snapshot.deadline has passed"), "{}", late.log());
    assert_eq!(documents_in(target, "preview.good").await, 100, "the old one");
    assert_eq!(metadata(target).await.get_str("status").unwrap(), "failed");
    assert_eq!(names(target, "preview").await, ["bad", "good", "snapshot_metadata"]);
}
