//! A source that becomes quiet by itself, and one that is gone for good.

use bson::{Document, doc};
use serde_json::{Value, json};

use super::{LONG, cutover, fill, live};
use crate::harness::{
    Daemon, Pair, ReplicaSetOptions, Workload, WorkloadOptions, quiesce, wait_for,
};
use crate::repair::steps::{hold_for, let_go, wait_held, with_test_commands};

/// A source of which not even the name is there any more.
const GONE: &str = "[source]\nuri = \"mongodb+srv://gone.invalid\"";
/// Bytes of an entry at the least.
const ENTRY_BYTES_MIN: u64 = 100;

async fn spool_bytes(daemon: &Daemon) -> Result<u64, String> {
    let metrics = daemon.get("/metrics").await?.body;
    let bytes = metrics.lines().find_map(|line| line.strip_prefix("snapsync_spool_bytes "));
    bytes.and_then(|text| text.trim().parse().ok()).ok_or(metrics)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_block_the_source_has_to_become_quiet_or_be_lost() {
    let plain = ReplicaSetOptions::default();
    let mut pair = Pair::with(plain, with_test_commands()).await;
    fill(pair.source.client()).await;
    let mut daemon = live(&pair, "").await;
    let (code, said) = cutover(&daemon, &["--block-source-writes", "--verify", "none"]).await;
    assert_eq!(code, Some(1), "{said:#}");
    assert!(said["reason"].as_str().unwrap().contains("no authentication"), "{said:#}");

    let busy = WorkloadOptions { rate: 300.0, ..WorkloadOptions::default() };
    let workload = Workload::start(pair.source.client(), busy).await;
    let reply = daemon.post("/cutover", &json!({"verify": "full"})).await.unwrap();
    assert_eq!(reply.status, 202, "{}", reply.body);
    let named = |status: &Value| {
        let writers = status["cutover"]["writers"].as_array();
        writers.is_some_and(|all| all.iter().any(|one| one["application"] == "snapsync-tests"))
    };
    daemon.wait_status("who writes", LONG, named).await;
    workload.stop().await;
    // Nothing is written any more, but what a transaction has written shows only when it commits.
    let mut session = pair.source.client().start_session().await.unwrap();
    session.start_transaction().await.unwrap();
    let people = pair.source.client().database("crm").collection::<Document>("people");
    people.insert_one(doc! {"_id": "open"}).session(&mut session).await.unwrap();
    let waits =
        |status: &Value| status["cutover"]["reason"] == "1 transactions are open on the source";
    daemon.wait_status("an open transaction", LONG, waits).await;
    assert!(daemon.command(&["cutover", "--abort"]).status.success());
    session.commit_transaction().await.unwrap();
    daemon.wait_state("live").await;
    let (code, said) = cutover(&daemon, &["--source-lost"]).await;
    assert_eq!(code, Some(1), "the source answers: {said:#}");
    quiesce(&mut daemon, &pair.source).await;

    // A daemon that is killed while it applies a window, and cannot start without the source: what is left of the
    // window is lost with it, and named.
    let before = hold_for(&pair.target, "insert", 0, 4000).await;
    people.insert_one(doc! {"_id": "cut short"}).await.unwrap();
    wait_held(&pair.target, before).await;
    daemon.kill9();
    pair.source.kill9();
    let position = daemon.state_directory().join("position");
    let before = std::fs::read(&position).unwrap();
    daemon.configure(GONE);
    let lost = daemon.command(&["cutover", "--source-lost", "--yes"]);
    let said = String::from_utf8_lossy(&lost.stderr);
    assert!(lost.status.success() && said.contains("while it applied a window"), "{said}");
    let decided = std::fs::read(&position).unwrap();
    assert!(String::from_utf8_lossy(&decided).contains("\"decided\":true"));
    // As if nobody had asked, with a daemon that is there when it happens.
    std::fs::write(&position, before).unwrap();
    pair.source.restart().await;
    let_go(&pair.target).await;
    daemon.configure(&format!("[source]\nuri = {:?}", pair.source.uri()));
    daemon.restart();
    daemon.wait_state("live").await;
    quiesce(&mut daemon, &pair.source).await;

    // What was read and is durable is not on the target yet when the source dies.
    assert!(daemon.command(&["pause"]).status.success());
    let before = spool_bytes(&daemon).await.unwrap();
    let rows: Vec<_> = (0..50).map(|n| doc! {"_id": format!("spooled {n}")}).collect();
    people.insert_many(rows).await.unwrap();
    let spooled = || async {
        match spool_bytes(&daemon).await? {
            bytes if bytes > before + 50 * ENTRY_BYTES_MIN => Ok(()),
            bytes => Err(format!("{bytes} bytes after {before}")),
        }
    };
    wait_for("spooled", LONG, spooled).await;
    pair.source.kill9();
    // Killed between the decision and the end: neither the source nor its name is needed for the rest.
    let before = hold_for(&pair.target, "collMod", 0, 4000).await;
    let reply = daemon.post("/cutover", &json!({"source_lost": true})).await.unwrap();
    assert_eq!(reply.status, 202, "{}", reply.body);
    wait_held(&pair.target, before).await;
    daemon.kill9();
    daemon.configure(GONE);
    daemon.restart();
    let_go(&pair.target).await;
    let status = daemon.wait_state("cut-over").await;
    let report = &status["cutover"]["report"];
    assert!(report["source_unseen_seconds"].is_u64(), "{status:#}");
    assert_eq!(report["restored"].as_array().unwrap().len(), 4, "{status:#}");
    let people = pair.target.client().database("crm").collection::<Document>("people");
    let indexes: Vec<Document> = {
        use futures_util::TryStreamExt;
        let command = doc! {"listIndexes": "people"};
        let listed = pair.target.client().database("crm").run_cursor_command(command).await;
        listed.unwrap().try_collect().await.unwrap()
    };
    let at =
        indexes.iter().find(|index| index.get_str("name").is_ok_and(|name| name == "at")).unwrap();
    assert!(!at.to_string().contains("2147483647"), "{at}");
    assert_eq!(people.count_documents(doc! {}).await.unwrap(), 300 + 2 + 50);
    assert_eq!(report["cut_short"], Value::Null, "{report:#}");
    daemon.kill9();
    daemon.restart();
    daemon.wait_state("cut-over").await;
}
