//! The end of a migration: the target takes over, or nothing has changed.

mod fails;
mod kills;
mod lost;
mod reverse;
mod whole;

use std::process::Output;
use std::time::Duration;

use bson::{Document, doc};
use mongodb::Client;
use serde_json::Value;

use crate::harness::{Daemon, DaemonOptions, Pair, ReplicaSet};
use crate::repair::steps::with_test_commands;

pub(super) const LONG: Duration = Duration::from_secs(120);
/// What the daemons of these tests are told.
pub(super) const CONFIG: &str = "[sync]\nwindow = \"200ms\"\n[cutover]\nquiet_for = \"1s\"";

/// A source on which ordinary users can be blocked: without authentication everybody is more than that.
pub(super) async fn blockable() -> Pair {
    Pair::with(with_test_commands().auth("root", "r00t"), with_test_commands()).await
}

/// An ordinary user of the source, as applications are.
pub(super) async fn application(source: &ReplicaSet) -> Client {
    let command = doc! {"createUser": "web", "pwd": "web", "roles": ["readWriteAnyDatabase"]};
    source.admin(command).await;
    let uri = source.uri().replace("root:r00t@", "web:web@") + "&appName=shop-web";
    Client::with_uri_str(uri).await.unwrap()
}

/// Collections of all kinds that have something held back, and some documents.
pub(super) async fn fill(client: &Client) {
    let rows = |count: i32| (0..count).map(|n| doc! {"_id": n, "n": n}).collect::<Vec<_>>();
    let run = async |command: Document| {
        let reply = client.database("crm").run_command(command.clone()).await;
        reply.unwrap_or_else(|error| panic!("{command}: {error}"));
    };
    run(doc! {"insert": "people", "documents": rows(300)}).await;
    let ttl = doc! {"key": {"at": 1}, "name": "at", "expireAfterSeconds": 100_000};
    let plain = doc! {"key": {"n": 1}, "name": "n"};
    run(doc! {"createIndexes": "people", "indexes": [ttl, plain]}).await;
    let clustered = doc! {"key": {"_id": 1}, "unique": true};
    run(doc! {"create": "clustered", "clusteredIndex": clustered, "expireAfterSeconds": 100_000})
        .await;
    run(doc! {"insert": "clustered", "documents": rows(20)}).await;
    let series = doc! {"timeField": "t"};
    run(doc! {"create": "temps", "timeseries": series, "expireAfterSeconds": 1_000_000_000_i64})
        .await;
    let now = bson::DateTime::now();
    run(doc! {"insert": "temps", "documents": [doc! {"t": now, "n": 1}]}).await;
    run(doc! {"create": "capped", "capped": true, "size": 100_000}).await;
    run(doc! {"insert": "capped", "documents": rows(20)}).await;
    run(doc! {"create": "ones", "viewOn": "people", "pipeline": [doc! {"$match": {"n": 1}}]}).await;
}

/// A connection string of the source for a user with no more than the documented roles.
pub(super) async fn least(source: &ReplicaSet) -> String {
    let roles = ["backup", "readAnyDatabase", "clusterMonitor", "hostManager"];
    let command = doc! {"createUser": "sync", "pwd": "sync", "roles": roles.to_vec()};
    source.admin(command).await;
    source.uri().replace("root:r00t@", "sync:sync@")
}

pub(super) async fn live(pair: &Pair, config: &str) -> Daemon {
    live_as(&pair.source.uri(), pair, config).await
}

/// With this connection string for the source.
pub(super) async fn live_as(source: &str, pair: &Pair, config: &str) -> Daemon {
    let options = DaemonOptions::with_uris(source, &pair.target.uri()).toml(CONFIG).toml(config);
    let mut daemon = Daemon::start(options);
    daemon.wait_state("live").await;
    daemon
}

/// Runs `snapsync cutover ARGS… --json` to its end; the exit code and what it says.
pub(crate) async fn cutover(daemon: &Daemon, args: &[&str]) -> (Option<i32>, Value) {
    let output = tokio::task::block_in_place(|| {
        daemon.command(&[&["cutover", "--json", "--yes"], args].concat())
    });
    let said = serde_json::from_slice(&output.stdout).unwrap_or_default();
    assert!(!crashed(&output), "{}", String::from_utf8_lossy(&output.stderr));
    eprintln!("{args:?}: {:?} {}", output.status.code(), String::from_utf8_lossy(&output.stderr));
    (output.status.code(), said)
}

fn crashed(output: &Output) -> bool {
    String::from_utf8_lossy(&output.stderr).contains("panicked at")
}

/// Whether ordinary users may write to the source.
pub(super) async fn is_writable(application: &Client) -> bool {
    let probe = application.database("probe").collection::<Document>("writes");
    match probe.insert_one(doc! {}).await {
        Ok(_) => true,
        Err(error) => {
            assert!(is_refusal(&error), "{error}");
            false
        }
    }
}

/// Whether a write was refused because ordinary users are blocked.
pub(super) fn is_refusal(error: &mongodb::error::Error) -> bool {
    error.to_string().contains("User writes blocked")
}
