//! The daemon killed and started again in every phase of its life: nothing is lost, nothing is done over, and nobody
//! has to help.

use std::time::Duration;

use bson::{Document, doc};
use mongodb::Client;
use serde_json::{Value, json};
use snapsync::state::Slot;
use snapsync::sync::record::Record;

use crate::harness::{
    Churn, Daemon, DaemonOptions, Pair, ReplicaSet, ReplicaSetOptions, Workload, WorkloadOptions,
    assert_equal, documents_in, quiesce, resume_point, wait_for,
};

const BRIEF: &str = "[sync]\nwindow = \"200ms\"";

/// Documents of 10 KB, so that a few thousand of them take several batches.
async fn fill(client: &Client, namespace: &str, documents: i32) {
    let (database, name) = namespace.split_once('.').unwrap();
    let collection = client.database(database).collection::<Document>(name);
    let filler = "x".repeat(10_000);
    for first in (0..documents).step_by(250) {
        let batch = (first..documents.min(first + 250)).map(|id| doc! {"_id": id, "a": &filler});
        collection.insert_many(batch).await.unwrap();
    }
}

/// Documents that a server has returned since it was started.
async fn documents_returned(set: &ReplicaSet) -> i64 {
    let status = set.admin(doc! {"serverStatus": 1}).await;
    let metrics = status.get_document("metrics").unwrap();
    metrics.get_document("document").unwrap().get_i64("returned").unwrap()
}

/// A failpoint on every member.
async fn failpoint(set: &ReplicaSet, name: &str, mode: &str, data: Document) {
    for member in 0..set.members.len() {
        let client = set.member_client(member).await;
        let command = doc! {"configureFailPoint": name, "mode": mode, "data": data.clone()};
        client.database("admin").run_command(command).await.unwrap();
    }
}

fn testable() -> ReplicaSetOptions {
    ReplicaSetOptions::default().parameter("enableTestCommands=1")
}

/// Every line of the record of what was done is whole.
fn assert_audit_is_whole(daemon: &Daemon, starts: usize) {
    let text = std::fs::read_to_string(daemon.state_directory().join("audit.jsonl")).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let started = lines.iter().filter(|line| line["event"] == "started").count();
    assert_eq!(started, starts, "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_goes_on_after_kills_and_does_not_start_over() {
    const DOCUMENTS: i32 = 3_000;
    const KILLS: u64 = 3;
    let Pair { source, target } = Pair::start().await;
    fill(source.client(), "shop.large", DOCUMENTS).await;
    fill(source.client(), "shop.small", 20).await;
    let workload =
        Workload::start(source.client(), WorkloadOptions { rate: 20.0, ..Default::default() })
            .await;
    let returned_before = documents_returned(&source).await;
    let options = DaemonOptions::new(&source, &target)
        .toml(BRIEF)
        .toml("[copy]\nworkers = 2\nmax_bytes_per_second = \"4MiB\"");
    let mut daemon = Daemon::start(options);
    for kill in 1..=KILLS {
        let wanted = kill * 800;
        let copied = |status: &Value| status["copy"]["documents"].as_u64().unwrap();
        let far = |status: &Value| copied(status) >= wanted;
        let before =
            daemon.wait_status("more documents copied", Duration::from_secs(60), far).await;
        assert_eq!(before["state"], "copying");
        daemon.kill9();
        daemon.restart();
        let begun = |status: &Value| status["copy"]["documents_total"].as_u64().unwrap() >= 3_000;
        let after = daemon.wait_status("the copy to go on", Duration::from_secs(30), begun).await;
        // Progress is durable once a second; what was copied since is copied again.
        assert!(copied(&after) + 700 > copied(&before), "{before:#}\nand then\n{after:#}");
        assert!(copied(&after) > 0);
    }
    daemon.wait_state("live").await;
    let returned = documents_returned(&source).await - returned_before;
    assert!(returned < i64::from(DOCUMENTS) * 2, "{returned} documents were read for {DOCUMENTS}");
    workload.stop().await;
    quiesce(&mut daemon, &source).await;
    assert_equal(&source, &target).await;
    assert_audit_is_whole(&daemon, 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_in_the_middle_of_a_window_while_catching_up() {
    let Pair { source, target } = Pair::with(ReplicaSetOptions::default(), testable()).await;
    fill(source.client(), "shop.large", 600).await;
    let churn = Churn::start(source.client(), 11).await;
    let workload = Workload::start(source.client(), WorkloadOptions::default()).await;
    let options = DaemonOptions::new(&source, &target)
        .toml(BRIEF)
        .toml("[copy]\nmax_bytes_per_second = \"2MiB\"");
    let mut daemon = Daemon::start(options);
    for round in 0..3 {
        let held = doc! {"nss": "hall.seats"};
        failpoint(&target, "hangDuringBatchUpdate", "alwaysOn", held).await;
        if round == 0 {
            daemon.wait_state("catching-up").await;
        }
        wait_for_writer_of(&target, "hall.seats").await;
        daemon.kill9();
        failpoint(&target, "hangDuringBatchUpdate", "off", doc! {}).await;
        daemon.restart();
    }
    daemon.wait_state("live").await;
    tokio::join!(churn.stop(), workload.stop());
    quiesce(&mut daemon, &source).await;
    assert_equal(&source, &target).await;
}

/// Waits until a write of the daemon's to this collection is under way on the target.
async fn wait_for_writer_of(target: &ReplicaSet, namespace: &str) {
    let pipeline = vec![
        doc! {"$currentOp": {"allUsers": true}},
        doc! {"$match": {"ns": namespace, "appName": {"$regex": "^snapsync .* run "}, "op": {"$ne": "query"}}},
    ];
    wait_for("a write of the daemon's", Duration::from_secs(60), || async {
        let command = doc! {"aggregate": 1, "pipeline": pipeline.clone(), "cursor": {}};
        let reply = target.admin(command).await;
        let batch = reply.get_document("cursor").unwrap().get_array("firstBatch").unwrap();
        if batch.is_empty() { Err("none".to_owned()) } else { Ok(()) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_and_stopped_while_indexes_are_built() {
    let Pair { source, target } = Pair::with(ReplicaSetOptions::default(), testable()).await;
    let orders = source.client().database("shop").collection::<Document>("orders");
    orders.insert_many((0..500).map(|n| doc! {"_id": n, "a": n, "b": n % 7})).await.unwrap();
    let indexes = [
        doc! {"key": {"a": 1}, "name": "a_1", "unique": true},
        doc! {"key": {"b": 1}, "name": "b_1"},
    ];
    let shop = source.client().database("shop");
    shop.run_command(doc! {"createIndexes": "orders", "indexes": indexes.to_vec()}).await.unwrap();
    failpoint(&target, "hangAfterStartingIndexBuild", "alwaysOn", doc! {}).await;
    let workload = Workload::start(source.client(), WorkloadOptions::default()).await;
    let mut daemon = Daemon::start(DaemonOptions::new(&source, &target).toml(BRIEF));
    let building = "building 2 indexes";
    daemon.wait_log(building).await;
    daemon.kill9();
    daemon.restart();
    wait_lines(&mut daemon, building, 2).await;
    let (status, took) = daemon.terminate().await;
    assert!(status.success(), "{status}");
    assert!(took < Duration::from_secs(10), "{took:?}");
    // What was spooled can be read again, as long as the source has it.
    std::fs::remove_dir_all(daemon.state_directory().join("spool")).unwrap();
    daemon.restart();
    wait_lines(&mut daemon, building, 3).await;
    // Keys move while the build waits: what comes after it must not trip over the index.
    orders.update_one(doc! {"_id": 1}, doc! {"$set": {"a": -1}}).await.unwrap();
    orders.update_one(doc! {"_id": 2}, doc! {"$set": {"a": 1}}).await.unwrap();
    let shown = |status: &Value| {
        let builds = status["index_builds"].as_array().unwrap().iter();
        let ours = builds.filter(|build| build["collection"] == "shop.orders");
        ours.map(|build| build["indexes"].as_u64().unwrap()).sum::<u64>() == 2
    };
    let status = daemon.wait_status("the build is shown", Duration::from_secs(60), shown).await;
    assert_eq!(status["state"], "catching-up");
    let told = daemon.command(&["status"]).stdout;
    let told = String::from_utf8_lossy(&told);
    assert!(told.contains("indexes being built on the target\n shop.orders: "), "{told}");
    failpoint(&target, "hangAfterStartingIndexBuild", "off", doc! {}).await;
    daemon.wait_state("live").await;
    let over = |status: &Value| status["index_builds"] == json!([]);
    daemon.wait_status("no build is shown", Duration::from_secs(60), over).await;
    workload.stop().await;
    quiesce(&mut daemon, &source).await;
    assert_equal(&source, &target).await;
}

/// Nothing has been applied yet, and nothing is spooled: there is no last entry to go on from but the resume point.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_while_indexes_are_built_with_an_idle_source_and_no_spool() {
    let Pair { source, target } = Pair::with(ReplicaSetOptions::default(), testable()).await;
    let shop = source.client().database("shop");
    let orders = shop.collection::<Document>("orders");
    orders.insert_many((0..50).map(|n| doc! {"_id": n, "a": n})).await.unwrap();
    let index = doc! {"key": {"a": 1}, "name": "a_1"};
    shop.run_command(doc! {"createIndexes": "orders", "indexes": [index]}).await.unwrap();
    failpoint(&target, "hangAfterStartingIndexBuild", "alwaysOn", doc! {}).await;
    let mut daemon = Daemon::start(DaemonOptions::new(&source, &target).toml(BRIEF));
    daemon.wait_log("building 1 indexes").await;
    daemon.kill9();
    std::fs::remove_dir_all(daemon.state_directory().join("spool")).unwrap();
    daemon.restart();
    wait_lines(&mut daemon, "building 1 indexes", 2).await;
    failpoint(&target, "hangAfterStartingIndexBuild", "off", doc! {}).await;
    orders.insert_one(doc! {"_id": 50}).await.unwrap();
    quiesce(&mut daemon, &source).await;
    assert_equal(&source, &target).await;
}

async fn wait_lines(daemon: &mut Daemon, text: &str, count: usize) {
    wait_for(text, Duration::from_secs(60), || {
        let found = daemon.log_lines(text).len();
        std::future::ready(if found >= count { Ok(()) } else { Err(format!("{found} lines")) })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_kills_at_any_moment_under_moving_keys_and_definitions() {
    const KILLS: u64 = 12;
    let Pair { source, target } = Pair::start().await;
    fill(source.client(), "shop.large", 100).await;
    let churn = Churn::start(source.client(), 5).await;
    let workload =
        Workload::start(source.client(), WorkloadOptions { rate: 100.0, ..Default::default() })
            .await;
    let mut daemon = Daemon::start(DaemonOptions::new(&source, &target).toml(BRIEF));
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    for _ in 0..KILLS {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        // Any moment from the first steps of a start to well within following.
        tokio::time::sleep(Duration::from_millis(150 + (random >> 33) % 1500)).await;
        assert!(daemon.ended().is_none(), "it ended by itself{}", daemon.log_tail());
        daemon.kill9();
        daemon.restart();
    }
    let status = daemon.wait_state("live").await;
    assert!(status["reason"].is_null(), "{status:#}");
    let done = churn.done();
    tokio::join!(churn.stop(), workload.stop());
    assert!(done > 100, "the churn hardly moved: {done}");
    quiesce(&mut daemon, &source).await;
    assert_equal(&source, &target).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopped_and_started_in_an_orderly_way() {
    let Pair { source, target } = Pair::start().await;
    let workload = Workload::start(source.client(), WorkloadOptions::default()).await;
    let mut daemon = Daemon::start(DaemonOptions::new(&source, &target).toml(BRIEF));
    let mut reached = bson::Timestamp { time: 0, increment: 0 };
    for _ in 0..2 {
        let status = daemon.wait_state("live").await;
        assert!(resume_point(&status) >= reached, "the resume point went back: {status:#}");
        reached = resume_point(&status);
        let (status, took) = daemon.terminate().await;
        assert!(status.success(), "{status}");
        assert!(took < Duration::from_secs(10), "{took:?}");
        daemon.restart();
    }
    workload.stop().await;
    quiesce(&mut daemon, &source).await;
    assert_equal(&source, &target).await;
    assert_audit_is_whole(&daemon, 3);
    assert!(documents_in(target.client(), "shop.orders").await > 0);
}

/// Documents that no index takes, which change before the indexes come: done twice, they meet them.
async fn meet_later_indexes(source: &ReplicaSet) {
    let shop = source.client().database("shop");
    let shapes = shop.collection::<Document>("shapes");
    shapes.drop().await.unwrap();
    let rows = [
        doc! {"_id": 1, "h": [1]},
        doc! {"_id": 2, "p": [1], "q": [1]},
        doc! {"_id": 3, "place": "nowhere"},
        doc! {"_id": 4, "text": "words", "language": "klingon"},
        doc! {"_id": 5, "spot": "nowhere"},
        doc! {"_id": 6, "h": [1], "gone": true},
    ];
    shapes.insert_many(rows).await.unwrap();
    let index = async |name: &str, key: Document| {
        let index = doc! {"name": name, "key": key};
        shop.run_command(doc! {"createIndexes": "shapes", "indexes": [index]}).await.unwrap();
    };
    // What is before a definition is written before it.
    index("between", doc! {"x": 1}).await;
    shapes.delete_one(doc! {"_id": 6}).await.unwrap();
    let nothing = ["h", "p", "q", "place", "text", "language", "spot"].map(|name| (name, ""));
    let nothing: Document =
        nothing.map(|(name, text)| (name.to_owned(), text.into())).into_iter().collect();
    shapes.update_many(doc! {}, doc! {"$unset": nothing}).await.unwrap();
    index("hashed", doc! {"h": "hashed"}).await;
    index("arrays", doc! {"p": 1, "q": 1}).await;
    index("place", doc! {"place": "2dsphere"}).await;
    index("text", doc! {"text": "text"}).await;
    index("spot", doc! {"spot": "2d"}).await;
}

/// P2: from an older resume point, the intent as it was, everything since is done once more over newer state.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn windows_applied_twice_end_in_the_same_state() {
    let Pair { source, target } = Pair::start().await;
    let churn = Churn::start(source.client(), 3).await;
    let workload = Workload::start(source.client(), WorkloadOptions::default()).await;
    let mut daemon = Daemon::start(DaemonOptions::new(&source, &target).toml(BRIEF));
    daemon.wait_state("live").await;
    for _ in 0..3 {
        daemon.terminate().await;
        let position = daemon.state_directory().join("position");
        let (_, older) = Slot::<Record>::open(&position).unwrap();
        daemon.restart();
        let status = daemon.wait_state("live").await;
        meet_later_indexes(&source).await;
        let windows = status["totals"]["windows"].as_u64().unwrap();
        let more = |status: &Value| status["totals"]["windows"].as_u64().unwrap() > windows + 5;
        daemon.wait_status("more windows", Duration::from_secs(60), more).await;
        daemon.terminate().await;
        let (mut slot, newer) = Slot::<Record>::open(&position).unwrap();
        let (older, newer) = (older.unwrap(), newer.unwrap());
        assert!(older.resume < newer.resume);
        slot.write(&Record { resume: older.resume, ..newer }).unwrap();
        daemon.restart();
        daemon.wait_state("live").await;
    }
    tokio::join!(churn.stop(), workload.stop());
    quiesce(&mut daemon, &source).await;
    assert_equal(&source, &target).await;
}
