//! kill -9 at every step of a cutover: before the decision everything is as before, after it the target takes over.

use std::path::PathBuf;

use bson::{Document, doc};
use serde_json::Value;

use super::{LONG, application, blockable, fill, is_writable, live};
use crate::harness::{Comparison, Daemon, Folder, ReplicaSet};
use crate::repair::steps::{hold_for, let_go, wait_held};

/// Begins a cutover and returns at once.
async fn begin(daemon: &Daemon) {
    let body = serde_json::json!({"block_source_writes": true, "verify": "counts"});
    let reply = daemon.post("/cutover", &body).await.unwrap();
    assert_eq!(reply.status, 202, "{}", reply.body);
}

/// A file that holds a cutover up while it is there, and what the daemon has to be told of it.
fn postponable() -> (Folder, PathBuf, String) {
    let folder = Folder::new("postpone");
    let postpone = folder.path().join("postpone");
    let file = format!("[cutover]\npostpone_file = {:?}", postpone.display().to_string());
    (folder, postpone, file)
}

/// Longer than it takes to kill and restart the daemon.
const HELD_MS: i32 = 4000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_block_that_comes_into_force_while_it_is_lifted_does_not_stay() {
    let pair = blockable().await;
    fill(pair.source.client()).await;
    let web = application(&pair.source).await;
    let (_folder, postpone, file) = postponable();
    std::fs::write(&postpone, "").unwrap();
    let mut daemon = live(&pair, &file).await;
    begin(&daemon).await;
    let deciding = |status: &Value| status["cutover"]["step"] == "deciding";
    daemon.wait_status("deciding", LONG, deciding).await;
    daemon.kill9();
    // Of the next start's commands, only the look for a request to block that is still under way.
    let slow = doc! {
        "failCommands": ["aggregate"], "appName": "snapsync cutover",
        "blockConnection": true, "blockTimeMS": HELD_MS,
    };
    let point = doc! {"configureFailPoint": "failCommand", "mode": {"times": 1}, "data": slow};
    let before = pair.source.admin(point).await.get_i32("count").unwrap().into();
    daemon.restart();
    wait_held(&pair.source, before).await;
    // One of the run that was killed arrives, and has come to its end when the look is taken.
    pair.source.admin(doc! {"setUserWriteBlockMode": 1, "global": true}).await;
    daemon.wait_state("live").await;
    assert!(is_writable(&web).await, "the source stays blocked");
}

/// Kills the daemon while one of its commands is held, and starts it again before that is carried out.
async fn held_at(side: &ReplicaSet, command: &str, daemon: &mut Daemon) {
    let before = hold_for(side, command, 0, HELD_MS).await;
    begin(daemon).await;
    wait_held(side, before).await;
    daemon.kill9();
    daemon.restart();
    let_go(side).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_at_any_step_ends_as_before_or_cut_over() {
    let pair = blockable().await;
    fill(pair.source.client()).await;
    let web = application(&pair.source).await;
    let (_folder, postpone, file) = postponable();
    let mut daemon = live(&pair, &file).await;
    let as_before = async |daemon: &mut Daemon| {
        let status = daemon.wait_state("live").await;
        assert_eq!(status["cutover"]["outcome"], "aborted", "{status:#}");
        assert!(is_writable(&web).await, "the source stays blocked");
    };

    // The request to block is in the server, and may be carried out after the daemon's death.
    held_at(&pair.source, "setUserWriteBlockMode", &mut daemon).await;
    as_before(&mut daemon).await;
    // With the block in force, counting what could not be counted before: a capped collection has no history.
    let before = hold_for(&pair.source, "setUserWriteBlockMode", 0, HELD_MS).await;
    begin(&daemon).await;
    wait_held(&pair.source, before).await;
    let before = hold_for(&pair.target, "aggregate", 0, HELD_MS).await;
    let_go(&pair.source).await;
    wait_held(&pair.target, before).await;
    assert!(!is_writable(&web).await, "the block is not in force");
    daemon.kill9();
    daemon.restart();
    let_go(&pair.target).await;
    as_before(&mut daemon).await;
    // The very last moment before the decision.
    std::fs::write(&postpone, "").unwrap();
    begin(&daemon).await;
    let deciding = |status: &Value| status["cutover"]["step"] == "deciding";
    daemon.wait_status("deciding", LONG, deciding).await;
    assert!(!is_writable(&web).await);
    daemon.kill9();
    daemon.restart();
    as_before(&mut daemon).await;
    // A stop in order undoes it as well.
    begin(&daemon).await;
    daemon.wait_status("deciding", LONG, deciding).await;
    daemon.terminate().await;
    assert!(is_writable(&web).await, "a daemon that stops leaves the source blocked");
    daemon.restart();
    daemon.wait_state("live").await;
    // An operator gives it up.
    begin(&daemon).await;
    daemon.wait_status("deciding", LONG, deciding).await;
    assert!(daemon.command(&["cutover", "--abort"]).status.success());
    as_before(&mut daemon).await;
    std::fs::remove_file(&postpone).unwrap();
    // Decided: half of what was held back is restored.
    held_at(&pair.target, "collMod", &mut daemon).await;
    let status = daemon.wait_state("cut-over").await;
    assert_eq!(status["cutover"]["report"]["restored"].as_array().unwrap().len(), 4, "{status:#}");
    assert!(!is_writable(&web).await);
    Comparison::new(pair.source.client(), pair.target.client())
        .strict()
        .restated()
        .wait(LONG)
        .await;
    let mirrored = pair.target.client().database("snapsync").collection::<Document>("lease");
    let lease = mirrored.find_one(doc! {}).await.unwrap().unwrap();
    let record = lease.get_document("mirror").unwrap().get_str("record").unwrap();
    assert!(record.contains("cut-over"), "{record}");
}
