//! The way back: what applications wrote to the target since it took over goes to the old source, without a copy.

use std::time::Duration;

use bson::{Document, doc};
use serde_json::{Value, json};

use super::{CONFIG, LONG, blockable, cutover, fill, live};
use crate::harness::{Comparison, Daemon, DaemonOptions, Workload, WorkloadOptions, quiesce};

const RENAMED: &str = "[sync]\nrename = [{ from = \"crm\", to = \"crm_v2\" }]";

pub(super) fn prepare(daemon: &Daemon) -> (Option<i32>, Value, String) {
    let output = daemon.state_directory().join("reverse.toml");
    let file = output.display().to_string();
    let done = daemon.command(&["reverse", "--json", "--yes", "--output", &file]);
    let said = serde_json::from_slice(&done.stdout).unwrap_or_default();
    (done.status.code(), said, String::from_utf8_lossy(&done.stderr).into_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_written_since_goes_back_without_a_copy() {
    let pair = blockable().await;
    fill(pair.source.client()).await;
    let mut daemon = live(&pair, RENAMED).await;
    let (code, _, why) = prepare(&daemon);
    assert_eq!(code, Some(78), "nothing was cut over yet: {why}");
    let (code, said) = cutover(&daemon, &["--block-source-writes"]).await;
    assert_eq!((code, &said["outcome"]), (Some(0), &json!("cut-over")), "{said:#}");
    let namespaces = ["shop.orders", "crm_v2.people"].map(str::to_owned).to_vec();
    let busy = WorkloadOptions { namespaces, ..WorkloadOptions::default() };
    let workload = Workload::start(pair.target.client(), busy.clone()).await;
    let crm = pair.target.client().database("crm_v2");
    crm.create_collection("made_since").await.unwrap();
    let made = crm.collection::<Document>("made_since");
    made.insert_one(doc! {"_id": 1}).await.unwrap();
    crm.collection::<Document>("clustered").drop().await.unwrap();
    // What the old source expired by itself is no gap.
    let temps = doc! {"delete": "people", "deletes": [{"q": {"_id": 9}, "limit": 1}]};
    pair.source.client().database("crm").run_command(temps).await.unwrap();

    let (code, said, why) = prepare(&daemon);
    assert_eq!(code, Some(0), "{why}");
    assert_eq!(said["copied_again"], json!(["crm.people"]), "{said:#}");
    assert_eq!(said["old_source_blocked"], true, "{said:#}");
    let (code, _, why) = prepare(&daemon);
    assert_eq!(code, Some(78), "prepared twice: {why}");

    let text = std::fs::read_to_string(said["config"].as_str().unwrap()).unwrap();
    let mut made: toml::Table = text.parse().unwrap();
    // The test asks over TCP.
    made.remove("control");
    let text = toml::to_string(&made).unwrap();
    let options = DaemonOptions::new(&pair.target, &pair.source).toml(CONFIG).toml(&text);
    let mut back = Daemon::start(options.toml("[delta]\ninterval = \"200ms\""));
    back.wait_state("live").await;
    let mended =
        |status: &Value| status["copying"] == json!([]) && status["totals"]["resyncs"] == 1;
    back.wait_status("copied again", LONG, mended).await;
    assert_eq!(back.log_lines("the copy is complete").len(), 0);
    tokio::time::sleep(Duration::from_millis(300)).await;
    workload.stop().await;
    quiesce(&mut back, &pair.target).await;
    let mapping = |name: &str| match name.split_once('.').unwrap() {
        ("crm_v2", rest) => Some(format!("crm.{rest}")),
        _ => Some(name.to_owned()),
    };
    let equal = Comparison::new(pair.target.client(), pair.source.client()).mapping(mapping);
    equal.clone().restated().wait(LONG).await;
    daemon.terminate().await;
    // And back for good: the old source takes over again.
    let (code, said) = cutover(&back, &[]).await;
    assert_eq!((code, &said["outcome"]), (Some(0), &json!("cut-over")), "{said:#}");
    equal.strict().restated().wait(LONG).await;
    back.terminate().await;
}
