//! Scenarios `lag`, `repair` and `idle`: what following costs, and how far it is behind.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bson::{Document, doc};
use mongodb::Client;
use serde_json::{Map, Value, json};

use crate::harness::{Comparison, Daemon, DaemonOptions, ReplicaSet, quiesce};
use crate::measure::{Stretch, Usage, quantile};
use crate::settings::Settings;
use crate::{data, server_options};

/// Time between two probe writes.
const PROBE_EVERY: Duration = Duration::from_millis(50);
pub(crate) const TIMEOUT: Duration = Duration::from_secs(3600);

/// A copy under load, and then one rate after another: how long a write takes until it can be read on the target.
pub async fn lag(settings: &Settings) -> Value {
    let (source, target) = servers(settings).await;
    let documents = settings.documents / 5;
    data::load(source.client(), settings.documents).await;
    let first = settings.rates.first().copied().unwrap_or(1000);
    let writer = Writer::start(source.client(), first, documents, 1);
    let began = Instant::now();
    let mut daemon = Daemon::start(DaemonOptions::new(&source, &target));
    daemon.wait_status("the copy to end", TIMEOUT, |s| s["copy"]["complete"] == true).await;
    let copied = began.elapsed().as_secs_f64();
    daemon.wait_status("live", TIMEOUT, |status| status["state"] == "live").await;
    let live = began.elapsed().as_secs_f64();
    writer.finish().await;
    let mut result = Map::new();
    result.insert(
        "copy_under_load".to_owned(),
        json!({ "rate": first, "copied_after_seconds": copied, "live_after_seconds": live }),
    );
    for (seed, rate) in (2..).zip(&settings.rates) {
        let writer = Writer::start(source.client(), *rate, documents, seed);
        let operations = operations(source.client()).await;
        let before = Usage::of(daemon.process_id());
        let stretch = Stretch::begin(&source, &target).await;
        let delays = probe(source.client(), target.client(), settings.seconds).await;
        let mut used = Usage::of(daemon.process_id());
        used.cpu -= before.cpu;
        let seconds = stretch.seconds();
        let written = self::operations(source.client()).await - operations;
        let mut row = stretch.end(seconds, used, &source, &target).await;
        writer.finish().await;
        row["achieved_per_second"] = json!(written / seconds);
        row["delay_ms"] = delays_of(&delays);
        eprintln!("  {rate}/s: {}", row["delay_ms"]);
        result.insert(format!("{rate} per second"), row);
        quiesce(&mut daemon, &source).await;
    }
    let equal = Comparison::new(source.client(), target.client()).run().await;
    equal.unwrap_or_else(|difference| panic!("source and target differ:\n{difference}"));
    result.into()
}

/// A collection is copied again while the others are written to: how far these are behind before and meanwhile.
pub async fn repair(settings: &Settings) -> Value {
    let (source, target) = servers(settings).await;
    data::load(source.client(), settings.documents).await;
    let mut daemon = Daemon::start(DaemonOptions::new(&source, &target));
    daemon.wait_status("live", TIMEOUT, |status| status["state"] == "live").await;
    let rate = settings.rates.first().copied().unwrap_or(1000);
    let writer = Writer::start(source.client(), rate, settings.documents / 5, 1);
    let before = probe(source.client(), target.client(), settings.seconds).await;
    let asked = daemon.command(&["resync", "shop.orders", "--yes"]);
    assert!(asked.status.success(), "{asked:?}");
    let began = Instant::now();
    let mut states = Vec::new();
    let during = probe_while(source.client(), target.client(), async || {
        let status = daemon.status().await.expect("a status");
        states.push(status["state"].clone());
        status["totals"]["resyncs"] == 0 || status["copying"] != json!([])
    })
    .await;
    let seconds = began.elapsed().as_secs_f64();
    writer.finish().await;
    quiesce(&mut daemon, &source).await;
    let equal = Comparison::new(source.client(), target.client()).run().await;
    equal.unwrap_or_else(|difference| panic!("source and target differ:\n{difference}"));
    states.dedup();
    json!({
        "before the resync": { "delay_ms": delays_of(&before) },
        "during the resync": { "delay_ms": delays_of(&during), "seconds": seconds, "states": states },
    })
}

/// An idle daemon beside an oplog that grows: neither its cost nor its delay may grow with it.
pub async fn idle(settings: &Settings) -> Value {
    let (source, target) = servers(settings).await;
    data::fill(source.client(), "shop.items", 1000, |n| data::sample(1, n)).await;
    let mut daemon = Daemon::start(DaemonOptions::new(&source, &target));
    daemon.wait_status("live", TIMEOUT, |status| status["state"] == "live").await;
    let mut result = Map::new();
    let mut written = 0;
    for entries in &settings.oplog {
        let missing = entries.saturating_sub(written);
        let make = |n: u64| doc! { "_id": (written + n) as i64, "n": n as i64 };
        data::fill(source.client(), "shop.grown", missing, make).await;
        written += missing;
        daemon.wait_status("live", TIMEOUT, |status| status["state"] == "live").await;
        quiesce(&mut daemon, &source).await;
        let before = Usage::of(daemon.process_id());
        let stretch = Stretch::begin(&source, &target).await;
        tokio::time::sleep(Duration::from_secs(settings.seconds)).await;
        let mut used = Usage::of(daemon.process_id());
        used.cpu -= before.cpu;
        let seconds = stretch.seconds();
        let mut row = stretch.end(seconds, used, &source, &target).await;
        row["share_of_a_core"] = json!(used.cpu / seconds);
        row["delay_ms"] = delays_of(&probe(source.client(), target.client(), 5).await);
        eprintln!("  {written} entries: {:.4} of a core", used.cpu / seconds);
        result.insert(format!("{written} entries in the oplog"), row);
    }
    result.into()
}

async fn servers(settings: &Settings) -> (ReplicaSet, ReplicaSet) {
    let source = ReplicaSet::start(server_options(settings));
    tokio::join!(source, ReplicaSet::start(server_options(settings)))
}

/// Writes until told that it is enough.
pub(crate) struct Writer {
    enough: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<()>,
}

impl Writer {
    pub(crate) fn start(client: &Client, rate: u64, documents: u64, seed: u64) -> Self {
        let (client, enough) = (client.clone(), Arc::new(AtomicBool::new(false)));
        let told = enough.clone();
        let task = tokio::spawn(async move {
            data::write(&client, u64::MAX, documents, Some(rate), seed, &told).await;
        });
        Self { enough, task }
    }

    pub(crate) async fn finish(self) {
        self.enough.store(true, Ordering::Relaxed);
        self.task.await.expect("the writer");
    }
}

/// Documents that a server has written since it was started.
async fn operations(client: &Client) -> f64 {
    let status = client.database("admin").run_command(doc! { "serverStatus": 1 }).await;
    let status = status.expect("serverStatus");
    let counters = status.get_document("opcounters").expect("opcounters");
    let count = |name: &str| match counters.get(name) {
        Some(bson::Bson::Int64(n)) => *n as f64,
        Some(bson::Bson::Int32(n)) => f64::from(*n),
        _ => 0.0,
    };
    ["insert", "update", "delete"].into_iter().map(count).sum()
}

/// Probes for so many seconds.
async fn probe(source: &Client, target: &Client, seconds: u64) -> Vec<f64> {
    let started = Instant::now();
    probe_while(source, target, async || started.elapsed() < Duration::from_secs(seconds)).await
}

/// Writes to the source now and then, and measures how long each write takes to be readable on the target, in ms.
async fn probe_while(
    source: &Client,
    target: &Client,
    mut more: impl AsyncFnMut() -> bool,
) -> Vec<f64> {
    let written = source.database("probe").collection::<Document>("writes");
    let read = target.database("probe").collection::<Document>("writes");
    let mut delays = Vec::new();
    while more().await {
        let id = bson::oid::ObjectId::new();
        written.insert_one(doc! { "_id": id }).await.expect("a probe");
        let sent = Instant::now();
        while read.find_one(doc! { "_id": id }).await.expect("look").is_none() {
            assert!(sent.elapsed() < Duration::from_secs(300), "a probe does not arrive");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        delays.push(sent.elapsed().as_secs_f64() * 1000.0);
        tokio::time::sleep(PROBE_EVERY).await;
    }
    delays.sort_by(f64::total_cmp);
    delays
}

fn delays_of(delays: &[f64]) -> Value {
    json!({ "count": delays.len(), "p50": quantile(delays, 0.5), "p99": quantile(delays, 0.99),
        "max": quantile(delays, 1.0) })
}
