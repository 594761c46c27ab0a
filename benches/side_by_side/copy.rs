//! Scenarios `copy`, `large`, `small` and `big`: everything from an empty target to equality with all indexes.

use std::time::Duration;

use serde_json::Value;

use crate::harness::{Comparison, Daemon, DaemonOptions, ReplicaSet};
use crate::measure::{Stretch, Usage};
use crate::report::{Rounds, SUBJECT};
use crate::settings::Settings;
use crate::tools::{Parallelism, dump_restore};
use crate::{data, floor, server_options};

const TIMEOUT: Duration = Duration::from_secs(3600);

/// Loads the source and lets every contender copy it, in turns, each to a new target.
pub async fn run(settings: &Settings, scenario: &str) -> Value {
    let source = ReplicaSet::start(server_options(settings)).await;
    let client = source.client();
    match scenario {
        "large" => {
            data::fill(client, "shop.orders", settings.documents, |n| data::sample(2, n)).await;
            data::index(client, "shop.orders").await;
        }
        "small" => {
            for n in 0..settings.collections {
                let name = format!("many{}.c{n}", n % 10);
                data::fill(client, &name, 100, |n| data::sample(1, n)).await;
            }
        }
        "big" => {
            data::fill(client, "shop.files", settings.documents / 1000, data::large_sample).await;
        }
        _ => data::load(client, settings.documents).await,
    }
    eprintln!("{scenario}: loaded");
    let mut rounds = Rounds::default();
    for _ in 0..settings.rounds {
        rounds.add("floor", by_floor(settings, &source).await);
        rounds.add(SUBJECT, by_snapsync(settings, &source).await);
        let dumps = [
            ("mongodump | mongorestore", Parallelism::Default),
            ("mongodump | mongorestore, 4 x 8", Parallelism::Of(4, 8)),
            ("mongodump | mongorestore, 8 x 8", Parallelism::Of(8, 8)),
        ];
        for (name, parallelism) in dumps {
            if let Some(run) = by_dump(settings, &source, parallelism).await {
                rounds.add(name, run);
            }
        }
    }
    rounds.summary()
}

async fn by_floor(settings: &Settings, source: &ReplicaSet) -> Value {
    let target = ReplicaSet::start(server_options(settings)).await;
    let before = Usage::of(std::process::id());
    let stretch = Stretch::begin(source, &target).await;
    floor::copy(source.client(), target.client()).await;
    let mut used = Usage::of(std::process::id());
    used.cpu -= before.cpu;
    let seconds = stretch.seconds();
    stretch.end(seconds, used, source, &target).await
}

async fn by_snapsync(settings: &Settings, source: &ReplicaSet) -> Value {
    let target = ReplicaSet::start(server_options(settings)).await;
    let stretch = Stretch::begin(source, &target).await;
    let mut daemon = Daemon::start(DaemonOptions::new(source, &target));
    daemon.wait_status("the copy to end", TIMEOUT, |s| s["copy"]["complete"] == true).await;
    let copied = stretch.seconds();
    daemon.wait_status("live", TIMEOUT, |status| status["state"] == "live").await;
    let (seconds, used) = (stretch.seconds(), Usage::of(daemon.process_id()));
    let mut row = stretch.end(seconds, used, source, &target).await;
    row["seconds_without_indexes"] = copied.into();
    let equal = Comparison::new(source.client(), target.client()).run().await;
    equal.unwrap_or_else(|difference| panic!("source and target differ:\n{difference}"));
    row
}

async fn by_dump(
    settings: &Settings,
    source: &ReplicaSet,
    parallelism: Parallelism,
) -> Option<Value> {
    crate::tools::find("mongorestore").and(crate::tools::find("mongodump"))?;
    let target = ReplicaSet::start(server_options(settings)).await;
    let stretch = Stretch::begin(source, &target).await;
    let used = tokio::task::block_in_place(|| dump_restore(source, &target, parallelism))?;
    let seconds = stretch.seconds();
    Some(stretch.end(seconds, used, source, &target).await)
}
