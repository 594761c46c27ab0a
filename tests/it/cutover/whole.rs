//! Cutovers with everything that belongs to them, on one pair: rehearsed, given up for every reason, and carried out.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bson::{Document, doc};
use mongodb::Client;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::reverse::prepare;
use super::{LONG, application, blockable, cutover, fill, is_refusal, is_writable, least, live_as};
use crate::harness::{Comparison, Daemon, Folder, Pair, wait_for};
use crate::repair::steps::{hold_for, let_go, wait_held};

/// Writes until told to stop, whether refused or not; returns the `_id`s of what was acknowledged.
struct Writers {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<Vec<i64>>>,
}

impl Writers {
    fn start(client: &Client, round: i64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let tasks = (0..4).map(|lane| {
            let orders = client.database("shop").collection::<Document>("orders");
            let stop = stop.clone();
            tokio::spawn(async move {
                let mut acknowledged = Vec::new();
                for number in 0..1_000_000 {
                    let id = round * 100_000_000 + lane * 10_000_000 + number;
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    match orders.insert_one(doc! {"_id": id, "n": number}).await {
                        Ok(_) => acknowledged.push(id),
                        Err(error) => assert!(is_refusal(&error), "{error}"),
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                acknowledged
            })
        });
        Self { stop: stop.clone(), tasks: tasks.collect() }
    }

    async fn stop(self) -> Vec<i64> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        for task in self.tasks {
            all.extend(task.await.unwrap());
        }
        all
    }
}

/// Opens a transaction that has written, and commits it once nobody else can write any more; whether that was
/// acknowledged.
async fn open_transaction(client: &Client) -> JoinHandle<bool> {
    let mut session = client.start_session().await.unwrap();
    session.start_transaction().await.unwrap();
    let orders = client.database("shop").collection::<Document>("orders");
    orders.insert_one(doc! {"_id": -1_i64}).session(&mut session).await.unwrap();
    let client = client.clone();
    tokio::spawn(async move {
        // Where the server waits for open transactions before it blocks, other writes wait as well.
        let answer = || tokio::time::timeout(Duration::from_millis(500), is_writable(&client));
        while answer().await == Ok(true) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        session.commit_transaction().await.is_ok()
    })
}

fn hook(folder: &Path, name: &str, script: &str) {
    let path = folder.join(name);
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// Everything is as before: the sync goes on, and applications write.
async fn assert_as_before(daemon: &mut Daemon, application: &Client) {
    assert!(is_writable(application).await, "the source is blocked");
    daemon.wait_state("live").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rehearsed_given_up_and_carried_out_under_load() {
    let pair = blockable().await;
    fill(pair.source.client()).await;
    let web = application(&pair.source).await;
    let folder = Folder::new("hooks");
    let (hooks, postpone) = (folder.path().join("d"), folder.path().join("postpone"));
    std::fs::create_dir(&hooks).unwrap();
    let config = format!(
        "[cutover]\nhooks = {:?}\npostpone_file = {:?}",
        hooks.display().to_string(),
        postpone.display().to_string()
    );
    let mut daemon = live_as(&least(&pair.source).await, &pair, &config).await;
    let writers = Writers::start(&web, 1);

    let (code, said) = cutover(&daemon, &["--dry-run", "--block-source-writes"]).await;
    assert_eq!((code, &said["outcome"]), (Some(0), &json!("ready")), "{said:#}");
    assert_as_before(&mut daemon, &web).await;

    given_up(&mut daemon, &pair, &web, (&hooks, &postpone)).await;
    differs_late(&mut daemon, &pair, &web).await;
    let acknowledged = writers.stop().await;
    assert!(acknowledged.len() > 50, "{}", acknowledged.len());

    let writers = Writers::start(&web, 2);
    hook(&hooks, "10-tell", "echo \"$SNAPSYNC_STEP $SNAPSYNC_SOURCE_BLOCKED\" > \"$0.out\"");
    let open = open_transaction(&web).await;
    let (code, said) = cutover(&daemon, &["--block-source-writes"]).await;
    assert_eq!((code, &said["outcome"]), (Some(0), &json!("cut-over")), "{said:#}");
    assert!(open.await.unwrap(), "a transaction that was open is not refused");
    let told = std::fs::read_to_string(hooks.join("10-tell.out")).unwrap();
    assert_eq!(told, "deciding 1\n");
    let acknowledged = [acknowledged, writers.stop().await, vec![-1]].concat();
    assert!(!is_writable(&web).await, "the source stays blocked");
    let orders = pair.target.client().database("shop").collection::<Document>("orders");
    let there = orders.count_documents(doc! {"_id": {"$in": &acknowledged}}).await.unwrap();
    assert_eq!(there, acknowledged.len() as u64, "acknowledged writes were lost");
    let report = &said["report"];
    let downtime = report["downtime_ms"].as_u64().unwrap();
    eprintln!("downtime {downtime} ms, {}", report["timings"]);
    assert!(downtime > 0);
    assert_eq!(report["write_block"], "ours");
    assert_eq!(report["not_restored"], json!([]));
    assert_eq!(report["restored"].as_array().unwrap().len(), 4, "{report:#}");
    assert!(report["proof"]["documents"].as_u64().unwrap() > 300, "{report:#}");
    assert!(report["proof"]["documents_again"].as_u64().unwrap() > 0, "{report:#}");
    over(&mut daemon, &pair).await;
}

/// Given up for one reason after another; each time everything is as before.
async fn given_up(daemon: &mut Daemon, pair: &Pair, web: &Client, files: (&Path, &Path)) {
    let (hooks, postpone) = files;
    let counts = ["--block-source-writes", "--verify", "counts"];
    hook(hooks, "10-fails", "echo no mongodb://u:secret@h; exit 3");
    let (code, said) = cutover(daemon, &counts).await;
    assert_eq!((code, &said["outcome"]), (Some(1), &json!("aborted")), "{said:#}");
    let reason = said["reason"].as_str().unwrap();
    assert!(reason.contains("10-fails failed with 3: no mongodb://***@h"), "{reason}");
    assert_as_before(daemon, web).await;

    // Somebody else's block stays.
    pair.source.admin(doc! {"setUserWriteBlockMode": 1, "global": true}).await;
    let (code, said) = cutover(daemon, &counts).await;
    assert_eq!((code, &said["outcome"]), (Some(1), &json!("aborted")), "{said:#}");
    assert!(!is_writable(web).await, "a block of somebody else was lifted");
    pair.source.admin(doc! {"setUserWriteBlockMode": 1, "global": false}).await;
    std::fs::remove_file(hooks.join("10-fails")).unwrap();
    assert_as_before(daemon, web).await;

    // Lifted while the cutover waits, it has let writes through that were not looked for.
    pair.source.admin(doc! {"setUserWriteBlockMode": 1, "global": true}).await;
    std::fs::write(postpone, "").unwrap();
    let asked = json!({"block_source_writes": true, "verify": "counts"});
    assert_eq!(daemon.post("/cutover", &asked).await.unwrap().status, 202);
    let waits = |status: &Value| status["cutover"]["step"] == "deciding";
    daemon.wait_status("postponed", LONG, waits).await;
    pair.source.admin(doc! {"setUserWriteBlockMode": 1, "global": false}).await;
    std::fs::remove_file(postpone).unwrap();
    let given_up = |status: &Value| status["cutover"]["outcome"] == "aborted";
    let status = daemon.wait_status("given up", LONG, given_up).await;
    let reason = status["cutover"]["reason"].as_str().unwrap();
    assert!(reason.contains("lifted the write block"), "{reason}");
    assert_as_before(daemon, web).await;
    // What makes no sense together is not carried out in part.
    let both = json!({"source_lost": true, "dry_run": true});
    assert_eq!(daemon.post("/cutover", &both).await.unwrap().status, 400);

    std::fs::write(postpone, "").unwrap();
    let (code, said) = cutover(daemon, &[&counts[..], &["--timeout", "3s"]].concat()).await;
    assert_eq!((code, &said["outcome"]), (Some(1), &json!("aborted")), "{said:#}");
    assert!(said["reason"].as_str().unwrap().contains("3 s, but still deciding"), "{said:#}");
    assert_as_before(daemon, web).await;
    std::fs::remove_file(postpone).unwrap();

    let people = pair.target.client().database("crm").collection::<Document>("people");
    people.update_one(doc! {"_id": 7}, doc! {"$set": {"n": 7.0}}).await.unwrap();
    let (code, said) = cutover(daemon, &["--block-source-writes"]).await;
    assert_eq!((code, &said["outcome"]), (Some(65), &json!("different")), "{said:#}");
    assert!(said["different"][0].as_str().unwrap().starts_with("crm.people"), "{said:#}");
    assert_as_before(daemon, web).await;
    people.update_one(doc! {"_id": 7}, doc! {"$set": {"n": 7}}).await.unwrap();
    people.delete_one(doc! {"_id": 8}).await.unwrap();
    let (code, said) = cutover(daemon, &counts).await;
    assert_eq!((code, &said["outcome"]), (Some(65), &json!("different")), "{said:#}");
    assert_as_before(daemon, web).await;
    people.insert_one(doc! {"_id": 8, "n": 8}).await.unwrap();
}

/// A document that differs since everything was compared is found among what was replayed since.
async fn differs_late(daemon: &mut Daemon, pair: &Pair, web: &Client) {
    let before = hold_for(&pair.source, "setUserWriteBlockMode", 0, 5000).await;
    let reply = daemon.post("/cutover", &json!({"block_source_writes": true})).await.unwrap();
    assert_eq!(reply.status, 202, "{}", reply.body);
    wait_held(&pair.source, before).await;
    let [source, target] = [web, pair.target.client()]
        .map(|side| side.database("crm").collection::<Document>("people"));
    source.insert_one(doc! {"_id": "late", "n": 1}).await.unwrap();
    let changed = || async {
        let change = doc! {"$set": {"n": 2}};
        let done = target.update_one(doc! {"_id": "late"}, change).await.unwrap();
        if done.matched_count == 1 { Ok(()) } else { Err("not replayed yet".to_owned()) }
    };
    wait_for("replayed", LONG, changed).await;
    let_go(&pair.source).await;
    let ended = |status: &serde_json::Value| status["cutover"]["outcome"].is_string();
    let status = daemon.wait_status("the end", LONG, ended).await;
    assert_eq!(status["cutover"]["outcome"], "different", "{status:#}");
    let what = status["cutover"]["different"][0].as_str().unwrap();
    assert_eq!(what, "1 documents of crm.people: _id \"late\" different");
    assert_as_before(daemon, web).await;
    target.update_one(doc! {"_id": "late"}, doc! {"$set": {"n": 1}}).await.unwrap();
}

/// Nothing is written any more, whatever is asked for, over restarts, and without the servers.
async fn over(daemon: &mut Daemon, pair: &Pair) {
    Comparison::new(pair.source.client(), pair.target.client())
        .strict()
        .restated()
        .wait(LONG)
        .await;
    let before = pair.target.majority_ts().await;
    for restart in [false, true] {
        if restart {
            daemon.kill9();
            daemon.restart();
            daemon.wait_state("cut-over").await;
        }
        assert_eq!(daemon.get("/health/ready").await.unwrap().status, 200);
        for path in ["/pause", "/resume", "/resync", "/discard", "/cutover"] {
            let reply = daemon.post(path, &json!({})).await.unwrap();
            assert_eq!(reply.status, 409, "{path}: {}", reply.body);
        }
        let status = daemon.status().await.unwrap();
        assert_eq!(status["cutover"]["outcome"], "cut-over", "{status:#}");
        assert_eq!(status["held_back"], json!([]), "{status:#}");
        assert!(status["cutover"]["report"]["final_optime"]["ts"]["t"].is_u64(), "{status:#}");
    }
    let text =
        std::fs::read_to_string(daemon.state_directory().join("cutover-report.txt")).unwrap();
    assert!(text.contains("restored: crm.people, expiry by the TTL index at"), "{text}");
    let others = doc! {"$not": {"$regex": "^(config|snapsync)[.]"}};
    let written = doc! {"ts": {"$gt": before}, "op": {"$ne": "n"}, "ns": others};
    let oplog = pair.target.client().database("local").collection::<Document>("oplog.rs");
    let entry = oplog.find_one(written).await.unwrap();
    assert_eq!(entry, None, "written to the target after the cutover");
    // Somebody writes to the old source, past the block: the way back would lose that.
    let people = pair.source.client().database("crm").collection::<Document>("people");
    people.update_one(doc! {"_id": 1}, doc! {"$set": {"n": 99}}).await.unwrap();
    let roles = ["readWriteAnyDatabase", "dbAdminAnyDatabase", "restore"].to_vec();
    pair.source.admin(doc! {"grantRolesToUser": "sync", "roles": roles}).await;
    let (code, _, why) = prepare(daemon);
    assert_eq!(code, Some(78), "{why}");
    assert!(why.contains("crm.people"), "{why}");
    assert_eq!(daemon.terminate().await.0.code(), Some(0));
}
