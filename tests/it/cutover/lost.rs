//! A source that becomes quiet by itself, and one that is gone for good.

use bson::{Document, doc};
use serde_json::{Value, json};

use super::{LONG, cutover, fill, live};
use crate::harness::{Pair, ReplicaSetOptions, Workload, WorkloadOptions, quiesce};
use crate::repair::steps::{hold_for, let_go, wait_held, with_test_commands};

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
    assert!(daemon.command(&["cutover", "--abort"]).status.success());
    daemon.wait_state("live").await;
    let (code, said) = cutover(&daemon, &["--source-lost"]).await;
    assert_eq!(code, Some(1), "the source answers: {said:#}");
    workload.stop().await;
    quiesce(&mut daemon, &pair.source).await;

    pair.source.kill9();
    // A daemon that is not there any more, and cannot start without the source.
    daemon.terminate().await;
    let position = daemon.state_directory().join("position");
    let before = std::fs::read(&position).unwrap();
    let (code, _) = cutover(&daemon, &["--source-lost"]).await;
    assert_eq!(code, Some(0));
    let decided = std::fs::read(&position).unwrap();
    assert!(String::from_utf8_lossy(&decided).contains("\"decided\":true"));
    // As if nobody had asked, with a daemon that is there when it happens.
    std::fs::write(&position, before).unwrap();
    pair.source.restart().await;
    daemon.restart();
    daemon.wait_state("live").await;
    pair.source.kill9();
    // Killed between the decision and the end: the source is not needed for the rest.
    let before = hold_for(&pair.target, "collMod", 0, 4000).await;
    let reply = daemon.post("/cutover", &json!({"source_lost": true})).await.unwrap();
    assert_eq!(reply.status, 202, "{}", reply.body);
    wait_held(&pair.target, before).await;
    daemon.kill9();
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
    assert_eq!(people.count_documents(doc! {}).await.unwrap(), 300);
    daemon.kill9();
    daemon.restart();
    daemon.wait_state("cut-over").await;
}
