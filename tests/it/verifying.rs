//! `snapsync verify` and `verify.continuous`: what was changed behind snapsync's back is found, and nothing else.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bson::{Bson, Document, doc};
use mongodb::Client;
use serde_json::{Value, json};
use snapsync::mongo::Side;
use snapsync::position::Ts;
use snapsync::verify::defined_since;

use crate::copying::deployment;
use crate::harness::{
    Comparison, Daemon, DaemonOptions, Pair, ReplicaSet, Workload, WorkloadOptions, quiesce,
    wait_for,
};
use crate::scenario::transaction;

const LONG: Duration = Duration::from_secs(120);
const RENAMED: &str = "[sync]\nwindow = \"200ms\"\nexclude = [\"private\"]\n\
    rename = [{ from = \"crm\", to = \"crm_v2\" }]";

async fn run(client: &Client, database: &str, command: Document) {
    let reply = client.database(database).run_command(command.clone()).await;
    reply.unwrap_or_else(|error| panic!("{command}: {error}"));
}

async fn insert(client: &Client, database: &str, name: &str, documents: Vec<Document>) {
    run(client, database, doc! {"insert": name, "documents": documents}).await;
}

/// Every kind of collection, with every kind of `_id`.
async fn fill(client: &Client) {
    let rows = |count: i32| (0..count).map(|n| doc! {"_id": n, "n": n}).collect::<Vec<_>>();
    for (database, name) in [("crm", "people"), ("crm", "notes"), ("private", "p")] {
        insert(client, database, name, rows(200)).await;
    }
    let ids = [
        Bson::MinKey,
        Bson::Null,
        Bson::Double(f64::NAN),
        1.into(),
        2_i64.into(),
        3.5.into(),
        "x".into(),
        doc! {"a": 1, "b": 2}.into(),
        doc! {"b": 2, "a": 1}.into(),
        bson::oid::ObjectId::new().into(),
        true.into(),
        bson::DateTime::now().into(),
        Bson::Timestamp(bson::Timestamp { time: 1, increment: 1 }),
        Bson::MaxKey,
    ];
    insert(client, "kinds", "ids", ids.map(|id| doc! {"_id": id, "n": 1}).to_vec()).await;
    run(client, "kinds", doc! {"create": "capped", "capped": true, "size": 100_000}).await;
    insert(client, "kinds", "capped", rows(50)).await;
    let german = doc! {"locale": "de", "strength": 1};
    run(client, "kinds", doc! {"create": "german", "collation": german}).await;
    let words = ["a", "B", "c", "Z", "ä"].map(|word| doc! {"_id": word});
    insert(client, "kinds", "german", words.to_vec()).await;
    let index = doc! {"key": {"at": 1}, "name": "at", "expireAfterSeconds": 100_000};
    run(client, "crm", doc! {"createIndexes": "people", "indexes": [index]}).await;
    let index = doc! {"key": {"n": 1}, "name": "n"};
    run(client, "crm", doc! {"createIndexes": "notes", "indexes": [index]}).await;
    let pipeline = [doc! {"$match": {"n": 1}}];
    run(client, "crm", doc! {"create": "ones", "viewOn": "people", "pipeline": pipeline.to_vec()})
        .await;
    let info = client.database("admin").run_command(doc! {"buildInfo": 1}).await.unwrap();
    let version = info.get_array("versionArray").unwrap()[0].as_i32().unwrap();
    if version >= 5 {
        run(client, "kinds", doc! {"create": "temps", "timeseries": {"timeField": "t"}}).await;
        let temps = (0..20).map(|n| doc! {"t": bson::DateTime::from_millis(n * 3_600_000), "n": n});
        insert(client, "kinds", "temps", temps.collect()).await;
    }
    if version >= 6 {
        let clustered = doc! {"key": {"_id": 1}, "unique": true};
        let create = doc! {"create": "clustered", "clusteredIndex": clustered, "expireAfterSeconds": 100_000};
        run(client, "kinds", create).await;
        insert(client, "kinds", "clustered", rows(50)).await;
    }
}

/// Runs `snapsync verify --json`; the exit code and what it says.
fn verify(daemon: &Daemon, args: &[&str]) -> (Option<i32>, Value) {
    let output = daemon.command(&[&["verify", "--json"], args].concat());
    let report = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let code = output.status.code();
    assert!(
        matches!(code, Some(0 | 1 | 64 | 65)),
        "{code:?}\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    (code, report)
}

fn different(report: &Value) -> Vec<&str> {
    let collections = report["collections"].as_array().unwrap().iter();
    let different = collections.filter(|found| found["outcome"] == "different");
    different.map(|found| found["collection"].as_str().unwrap()).collect()
}

async fn behind_its_back(target: &Client) {
    let update = doc! {"q": {"_id": 7}, "u": {"$set": {"n": 7.0}}};
    run(target, "crm_v2", doc! {"update": "people", "updates": [update]}).await;
    run(target, "crm_v2", doc! {"delete": "people", "deletes": [{"q": {"_id": 8}, "limit": 1}]})
        .await;
    insert(target, "crm_v2", "people", vec![doc! {"_id": "theirs"}]).await;
    run(target, "crm_v2", doc! {"dropIndexes": "notes", "index": "n"}).await;
    let update = doc! {"q": {"_id": 9}, "u": {"$set": {"n": -9}}};
    run(target, "kinds", doc! {"update": "capped", "updates": [update]}).await;
}

fn assert_found(report: &Value) {
    let mut expected = vec!["crm.notes", "crm.people", "kinds.capped"];
    expected.retain(|name| {
        let collections = report["collections"].as_array().unwrap();
        collections.iter().any(|found| found["collection"] == *name)
    });
    assert_eq!(different(report), expected, "{report:#}");
    for found in report["collections"].as_array().unwrap() {
        let expected = match found["collection"].as_str().unwrap() {
            "crm.people" => {
                assert_eq!(found["target_collection"], "crm_v2.people");
                let mut ids = found["differing"].as_array().unwrap().clone();
                ids.sort_by_key(ToString::to_string);
                let named = json!([
                    {"id": "7", "kind": "different"},
                    {"id": "8", "kind": "missing"},
                    {"id": "\"theirs\"", "kind": "extra"},
                ]);
                assert_eq!(json!(ids), named, "{report:#}");
                [1, 1, 1]
            }
            "crm.notes" => {
                assert_eq!(found["definitions"], json!(["index n is missing on the target"]));
                [0, 0, 0]
            }
            "kinds.capped" => [0, 0, 1],
            _ => [0, 0, 0],
        };
        let counts = ["missing", "extra", "different"].map(|kind| found[kind].as_u64().unwrap());
        assert_eq!(counts, expected, "{report:#}");
        assert_eq!(found["unproven"], json!([]), "{report:#}");
    }
}

/// Collections take each other's names while `work` is done, about as fast as that can be replayed.
async fn while_names_change(client: &Client, work: impl FnOnce()) {
    let stop = Arc::new(AtomicBool::new(false));
    let (stopped, client) = (stop.clone(), client.clone());
    let renaming = tokio::spawn(async move {
        while !stopped.load(Ordering::Relaxed) {
            for (from, to) in [("a", "c"), ("b", "a"), ("c", "b")] {
                let names = [from, to].map(|name| format!("roaming.{name}"));
                let command = doc! {"renameCollection": &names[0], "to": &names[1]};
                run(&client, "admin", command).await;
                tokio::time::sleep(Duration::from_millis(60)).await;
            }
        }
    });
    tokio::task::block_in_place(work);
    stop.store(true, Ordering::Relaxed);
    renaming.await.unwrap();
}

/// Definitions of every kind are told from writes, wherever they stand in the oplog.
async fn every_definition_is_seen(source: &ReplicaSet) {
    let (client, oplog) = (source.client(), deployment(Side::Source, source).await);
    let since = async |at| defined_since(&oplog, at).await.unwrap();
    let view = doc! {"collMod": "ones", "viewOn": "notes", "pipeline": []};
    let rename = doc! {"renameCollection": "roaming.a", "to": "roaming.d"};
    let made = [doc! {"op": "c", "ns": "roaming.$cmd", "o": {"create": "made"}}];
    let row = [doc! {"op": "i", "ns": "roaming.rows", "o": {"_id": 1}}];
    let create = [doc! {"create": "made_with_others"}];
    // The row needs its collection before that is made in another way.
    run(client, "roaming", doc! {"create": "rows"}).await;
    for number in 0..5 {
        insert(client, "roaming", "b", vec![doc! {"_id": format!("written {number}")}]).await;
        let at = Ts::from(source.majority_ts().await);
        run(client, "admin", doc! {"applyOps": row.to_vec()}).await;
        assert!(!since(at).await, "before {number}");
        match number {
            0 => run(client, "crm", view.clone()).await,
            1 => run(client, "admin", rename.clone()).await,
            2 => run(client, "admin", doc! {"applyOps": made.to_vec()}).await,
            3 => {
                let mut together = transaction(client, "roaming", &create).await.unwrap();
                together.commit_transaction().await.unwrap();
            }
            _ => run(client, "roaming", doc! {"drop": "made"}).await,
        }
        assert!(since(at).await, "after {number}");
    }
    assert!(since(Ts::new(1, 1)).await, "nobody knows what was before the oplog");
}

/// One pair, a busy writer all along: the daemon live, paused, stopped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_differs_is_named_and_what_is_on_its_way_is_not() {
    let Pair { source, target } = Pair::start().await;
    fill(source.client()).await;
    for name in ["a", "b"] {
        let rows = (0..300).map(|n| doc! {"_id": n, "of": name}).collect();
        insert(source.client(), "roaming", name, rows).await;
    }
    // Without an interval that would count what differs and mend it.
    let options = DaemonOptions::new(&source, &target).toml(RENAMED);
    let mut daemon = Daemon::start(options.toml("[delta]\ninterval = \"1h\""));
    let namespaces = ["shop.orders", "shop.items"].map(str::to_owned).to_vec();
    let busy = WorkloadOptions { rate: 400.0, namespaces, ..WorkloadOptions::default() };
    let workload = Workload::start(source.client(), busy).await;
    daemon.wait_state("live").await;

    for _ in 0..2 {
        let (code, report) = verify(&daemon, &[]);
        assert_eq!((code, &report["outcome"]), (Some(0), &json!("equal")), "{report:#}");
        assert!(report["documents"].as_u64().unwrap() > 450, "{report:#}");
    }
    let (code, report) = verify(&daemon, &["--sample", "0.1", "crm"]);
    assert_eq!((code, &report["outcome"]), (Some(0), &json!("equal")), "{report:#}");
    assert_eq!(report["documents"].as_u64().unwrap(), 40, "{report:#}");
    assert_eq!(verify(&daemon, &["crm.peple"]).0, Some(64));

    while_names_change(source.client(), || {
        let (code, report) = verify(&daemon, &["roaming"]);
        assert_ne!(code, Some(65), "{report:#}");
    })
    .await;
    // Names may have changed faster than they were replayed.
    quiesce(&mut daemon, &source).await;

    behind_its_back(target.client()).await;
    let (code, report) = verify(&daemon, &[]);
    assert_eq!(code, Some(65), "{report:#}");
    assert_found(&report);
    let text = daemon.command(&["verify", "crm.people"]).stdout;
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains("crm.people: _id 7 differs\n"), "{text}");
    assert!(text.contains("crm.people -> crm_v2.people  DIFFERENT"), "{text}");
    assert_eq!(verify(&daemon, &["shop", "kinds.ids"]).0, Some(0));

    assert!(daemon.command(&["pause"]).status.success());
    daemon.wait_state("paused").await;
    let (code, report) = verify(&daemon, &["crm", "shop"]);
    assert_eq!(code, Some(65), "{report:#}");
    assert_found(&report);
    daemon.terminate().await;
    let (code, report) = verify(&daemon, &["crm", "shop"]);
    assert_eq!(code, Some(65), "{report:#}");
    assert_found(&report);
    // What the source has defined since cannot be on a target that stands still.
    let index = doc! {"key": {"n": 1}, "name": "n"};
    run(source.client(), "kinds", doc! {"createIndexes": "ids", "indexes": [index]}).await;
    let (code, report) = verify(&daemon, &["kinds.ids"]);
    assert_eq!((code, &report["outcome"]), (Some(1), &json!("unproven")), "{report:#}");
    workload.stop().await;
    every_definition_is_seen(&source).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_differs_is_mended_while_the_daemon_verifies_all_the_time() {
    let Pair { source, target } = Pair::start().await;
    fill(source.client()).await;
    let options = DaemonOptions::new(&source, &target).toml(RENAMED);
    let mut daemon = Daemon::start(options.toml("[verify]\ncontinuous = true"));
    let namespaces = ["shop.orders", "shop.items"].map(str::to_owned).to_vec();
    let busy = WorkloadOptions { rate: 400.0, namespaces, ..WorkloadOptions::default() };
    let workload = Workload::start(source.client(), busy).await;
    daemon.wait_state("live").await;
    let round = |status: &Value| status["verify"]["last_round"]["equal"].as_u64() > Some(4);
    let status = daemon.wait_status("a round", LONG, round).await;
    assert_eq!(status["verify"]["differences"], 0, "{status:#}");
    let update = doc! {"q": {"_id": 7}, "u": {"$set": {"n": 7.0}}};
    run(target.client(), "crm_v2", doc! {"update": "people", "updates": [update]}).await;
    let mended =
        |status: &Value| status["totals"]["resyncs"] == 1 && status["copying"] == json!([]);
    let status = daemon.wait_status("mended", LONG, mended).await;
    let found = &status["verify"]["different"];
    assert_eq!(found[0]["collection"], "crm.people", "{status:#}");
    assert_eq!(found[0]["what"], "1 documents different", "{status:#}");
    workload.stop().await;
    quiesce(&mut daemon, &source).await;
    let mapping = |name: &str| match name.split_once('.').unwrap() {
        ("private", _) => None,
        ("crm", rest) => Some(format!("crm_v2.{rest}")),
        _ => Some(name.to_owned()),
    };
    Comparison::new(source.client(), target.client()).mapping(mapping).wait(LONG).await;
    let metrics = || async {
        let page = daemon.get("/metrics").await?.body;
        let found = page.contains("\nsnapsync_verify_differences_total 1\n");
        if found { Ok(()) } else { Err(page) }
    };
    wait_for("the metric", LONG, metrics).await;
}
