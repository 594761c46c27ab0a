//! `make bench`: snapsync beside what users would take instead and beside the floor, with real servers, in one run, in
//! turns, several times. Prints a summary and stores everything as JSON; `docs/benchmarks.md` tells how to read it.
//!
//! What is measured and how much of it is set by the environment: see [`settings`].

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    unreachable_pub,
    reason = "a measurement panics with what went wrong, prints, and shares the tests' harness"
)]

mod copy;
mod data;
mod floor;
#[allow(dead_code, unused_imports, reason = "shared with the tests: each uses a part")]
#[path = "../../tests/it/harness/mod.rs"]
mod harness;
mod live;
mod measure;
mod proof;
mod replay;
mod report;
mod settings;
mod tools;

use bson::doc;
use serde_json::{Map, Value, json};

use harness::{ReplicaSet, ReplicaSetOptions};
use settings::Settings;

/// Room for two million small entries, and for a backlog of documents of 1 KiB.
const OPLOG_MB: u32 = 4096;

fn server_options(settings: &Settings) -> ReplicaSetOptions {
    let mut options = ReplicaSetOptions::default().oplog_mb(OPLOG_MB);
    options.args = vec!["--wiredTigerCacheSizeGB".to_owned(), settings.cache_gb.to_string()];
    options
}

#[tokio::main]
async fn main() {
    let settings = Settings::from_environment();
    let mut results = Map::new();
    results.insert("machine".to_owned(), report::machine(&server_version(&settings).await));
    results.insert("settings".to_owned(), format!("{settings:?}").into());
    let missing = tools::NAMES.into_iter().filter(|name| tools::find(name).is_none());
    let missing: Vec<Value> = missing.map(Value::from).collect();
    eprintln!("missing tools: {missing:?}");
    results.insert("missing_tools".to_owned(), missing.into());
    for scenario in settings::SCENARIOS {
        if !settings.wants(scenario) {
            continue;
        }
        eprintln!("{scenario}");
        let result = match scenario {
            "replay" => replay::run(&settings).await,
            "lag" => live::lag(&settings).await,
            "repair" => live::repair(&settings).await,
            "idle" => live::idle(&settings).await,
            "verify" => proof::verify(&settings).await,
            "intent" => proof::intent(),
            copy => copy::run(&settings, copy).await,
        };
        results.insert(scenario.to_owned(), result);
        // After every scenario: a later one that fails loses nothing.
        let text = format!("{:#}\n", json!(results));
        std::fs::write(&settings.output, text).expect("write the results");
    }
    for (name, result) in &results {
        println!("\n{name}\n{}", report::table(result));
    }
    eprintln!("all of it: {}", settings.output);
}

async fn server_version(settings: &Settings) -> String {
    let server = ReplicaSet::start(server_options(settings)).await;
    let info = server.admin(doc! { "buildInfo": 1 }).await;
    info.get_str("version").unwrap_or("unknown").to_owned()
}
