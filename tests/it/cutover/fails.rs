//! The source fails in the middle of a cutover, and somebody forgets the migration in the middle of one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bson::{Document, doc};
use mongodb::Client;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::{LONG, application, fill, is_writable, live};
use crate::harness::{Comparison, Daemon, Folder, Pair};
use crate::repair::steps::{hold_for, let_go, wait_held, with_test_commands};

/// Somebody who may write past a block, in a database that is not followed.
fn noise(client: &Client) -> (Arc<AtomicBool>, JoinHandle<u64>) {
    let stop = Arc::new(AtomicBool::new(false));
    let (noise, asked) = (client.database("noise").collection::<Document>("all"), stop.clone());
    let writing = tokio::spawn(async move {
        let mut written = 0;
        while !asked.load(Ordering::Relaxed) {
            // The source is away now and then.
            written += u64::from(noise.insert_one(doc! {}).await.is_ok());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        written
    });
    (stop, writing)
}

async fn begin(daemon: &Daemon, verify: &str, timeout: &str) {
    let body = json!({"block_source_writes": true, "verify": verify, "timeout": timeout});
    let reply = daemon.post("/cutover", &body).await.unwrap();
    assert_eq!(reply.status, 202, "{}", reply.body);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_fails_while_it_is_blocked_takes_writes_again_or_hands_over() {
    let source = with_test_commands().auth("root", "r00t").members(3);
    let mut pair = Pair::with(source, with_test_commands()).await;
    fill(pair.source.client()).await;
    let web = application(&pair.source).await;
    let folder = Folder::new("postpone");
    let postpone = folder.path().join("postpone");
    let file = format!("[cutover]\npostpone_file = {:?}", postpone.display().to_string());
    let followed = "[sync]\ninclude = [\"crm\"]";
    let mut daemon = live(&pair, &format!("{file}\n{followed}")).await;
    let (stop, writing) = noise(pair.source.client());
    let deciding = |status: &Value| status["cutover"]["step"] == "deciding";

    // Dead while it is blocked, it is told to take writes again as soon as it is back.
    std::fs::write(&postpone, "").unwrap();
    begin(&daemon, "counts", "10s").await;
    daemon.wait_status("deciding", LONG, deciding).await;
    assert!(!is_writable(&web).await);
    pair.source.kill9();
    let undoing = |status: &Value| {
        let log = status["cutover"]["log"].as_array();
        let last = log.and_then(|log| log.last()).map(|line| line["text"].to_string());
        last.is_some_and(|text| text.contains("10 s, but still deciding"))
    };
    let status = daemon.wait_status("being undone", LONG, undoing).await;
    assert_eq!(status["cutover"]["blocked"], true, "{status:#}");
    pair.source.restart().await;
    let given_up = |status: &Value| status["cutover"]["outcome"] == "aborted";
    let status = daemon.wait_status("given up", LONG, given_up).await;
    assert_eq!(status["cutover"]["blocked"], false, "{status:#}");
    assert!(is_writable(&web).await, "the source stays blocked");
    daemon.wait_state("live").await;

    // A migration that is forgotten while it blocks writes.
    begin(&daemon, "counts", "10m").await;
    daemon.wait_status("deciding", LONG, deciding).await;
    assert!(!is_writable(&web).await);
    daemon.kill9();
    let done = daemon.command(&["reset", "--yes"]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert!(is_writable(&web).await, "a reset leaves the source blocked");
    std::fs::remove_file(&postpone).unwrap();
    daemon.configure("[target]\non_existing_data = \"drop\"");
    daemon.restart();
    daemon.wait_state("live").await;

    // Another member becomes primary in the middle of blocking; what was written meanwhile, in a capped collection too,
    // is judged although the source never stands still.
    let before = hold_for(&pair.source, "setUserWriteBlockMode", 0, 3000).await;
    begin(&daemon, "full", "10m").await;
    wait_held(&pair.source, before).await;
    for name in ["capped", "people"] {
        let late = web.database("crm").collection::<Document>(name);
        late.insert_one(doc! {"_id": "late"}).await.unwrap();
    }
    pair.source.step_down(30).await;
    let status = daemon.wait_state("cut-over").await;
    assert!(!is_writable(&web).await, "the source stays blocked");
    let proof = &status["cutover"]["report"]["proof"];
    assert!(proof["documents_after"].as_u64().unwrap() >= 2, "{status:#}");
    stop.store(true, Ordering::Relaxed);
    assert!(writing.await.unwrap() > 0);
    let_go(&pair.source).await;
    let of_crm = |name: &str| name.starts_with("crm.").then(|| name.to_owned());
    Comparison::new(pair.source.client(), pair.target.client())
        .mapping(of_crm)
        .strict()
        .restated()
        .wait(LONG)
        .await;
}
