//! `make bench`: the main job at full size. One gibibyte in a million documents is copied while a writer never rests,
//! then followed; what it took is printed as JSON: seconds, processor seconds, peak memory, and the delay of probe
//! writes.
//!
//! `BENCH_DOCUMENTS` (1000000) of about 1 KiB, `BENCH_RATE` (1200) operations a second, `BENCH_SECONDS` (60) of
//! following.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    unreachable_pub,
    reason = "a measurement panics with what went wrong, prints, and shares the tests' harness"
)]

#[allow(dead_code, unused_imports, reason = "shared with the tests: each uses a part")]
#[path = "../tests/it/harness/mod.rs"]
mod harness;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bson::{Binary, Bson, DateTime, Document, doc, oid::ObjectId, spec::BinarySubtype};
use mongodb::{Client, IndexModel};
use serde_json::json;

use harness::{Comparison, Daemon, DaemonOptions, Pair, Workload, WorkloadOptions, quiesce};

const COLLECTIONS: [&str; 5] =
    ["shop.orders", "shop.items", "shop.carts", "crm.people", "crm.notes"];
const BATCH: u64 = 2_000;
/// Time between two probe writes.
const PROBE_EVERY: Duration = Duration::from_millis(50);
const COPY_TIMEOUT: Duration = Duration::from_secs(1800);

#[tokio::main]
async fn main() {
    let documents = setting("BENCH_DOCUMENTS", 1_000_000);
    let rate = setting("BENCH_RATE", 1_200);
    let seconds = setting("BENCH_SECONDS", 60);
    let Pair { source, target } = Pair::start().await;
    let loads = COLLECTIONS
        .iter()
        .enumerate()
        .map(|(kind, name)| load(source.client(), name, kind, documents / 5));
    futures_util::future::join_all(loads).await;
    eprintln!("loaded {documents} documents");
    let written_from = Instant::now();
    let stop = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn(write(source.client().clone(), rate, documents, stop.clone()));
    let mixed = WorkloadOptions {
        namespaces: COLLECTIONS.map(str::to_owned).to_vec(),
        rate: rate as f64 / 10.0,
        keys: 50_000,
        ..WorkloadOptions::default()
    };
    let workload = Workload::start(source.client(), mixed).await;
    let started = Instant::now();
    let mut daemon = Daemon::start(DaemonOptions::new(&source, &target));
    daemon.wait_status("the copy to end", COPY_TIMEOUT, |s| s["copy"]["complete"] == true).await;
    let copied = started.elapsed();
    daemon.wait_status("live", COPY_TIMEOUT, |status| status["state"] == "live").await;
    let live = started.elapsed();
    eprintln!("copied in {copied:.1?}, live after {live:.1?}");
    let cpu_live = processor_seconds(daemon.process_id());
    let following = Instant::now();
    let delays = probe(source.client(), target.client(), Duration::from_secs(seconds)).await;
    let followed = following.elapsed();
    let cpu_followed = processor_seconds(daemon.process_id()) - cpu_live;
    stop.store(true, Ordering::Relaxed);
    let written_in_all = writer.await.expect("the writer") + workload.stop().await.total();
    let written = written_from.elapsed();
    quiesce(&mut daemon, &source).await;
    let equal = Comparison::new(source.client(), target.client()).run().await;
    let status = daemon.status().await.expect("a status");
    let peak_kib = peak_memory_kib(daemon.process_id());
    let result = json!({
        "documents": documents,
        "bytes": status["totals"]["bytes_copied"],
        "copy_seconds": copied.as_secs_f64(),
        "live_after_seconds": live.as_secs_f64(),
        "processor_seconds_until_live": cpu_live,
        "processor_share_while_following": cpu_followed / followed.as_secs_f64(),
        "peak_memory_mib": peak_kib / 1024,
        "writes_per_second": written_in_all as f64 / written.as_secs_f64(),
        "probe_delay_ms": { "count": delays.len(), "p50": quantile(&delays, 0.5),
            "p99": quantile(&delays, 0.99), "max": quantile(&delays, 1.0) },
        "equal": equal.is_ok(),
    });
    println!("{result:#}");
    equal.expect("source and target are equal");
}

/// Writes until told to stop, `rate` operations a second: updates, inserts and deletes in commands of a dozen, so that
/// the writer itself costs little. Returns how many there were.
async fn write(client: Client, rate: u64, documents: u64, stop: Arc<AtomicBool>) -> u64 {
    const OPERATIONS: u64 = 12;
    let database = client.database("shop");
    let started = Instant::now();
    let mut written = 0;
    for round in 0_i64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let updates = (0..9).map(|n: i64| {
            let id = (round * 7919 + n * 104_729).rem_euclid(documents as i64 / 5);
            doc! { "q": { "_id": id }, "u": { "$inc": { "touched": 1 }, "$set": { "round": round } } }
        });
        let updates: Vec<Document> = updates.collect();
        database.run_command(doc! { "update": "items", "updates": updates }).await.expect("update");
        let new = |n: i64| doc! { "_id": 1_000_000_000 + round * 2 + n, "round": round };
        let inserts = vec![new(0), new(1)];
        database
            .run_command(doc! { "insert": "items", "documents": inserts })
            .await
            .expect("insert");
        let gone = doc! { "q": { "_id": 1_000_000_000 + round - 500 }, "limit": 1 };
        database.run_command(doc! { "delete": "items", "deletes": [gone] }).await.expect("delete");
        written += OPERATIONS;
        let due = Duration::from_secs_f64(written as f64 / rate as f64);
        tokio::time::sleep(due.saturating_sub(started.elapsed())).await;
    }
    written
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a whole number"))
}

async fn load(client: &Client, namespace: &str, kind: usize, documents: u64) {
    let (database, name) = namespace.split_once('.').expect("database.collection");
    let collection = client.database(database).collection::<Document>(name);
    for begin in (0..documents).step_by(BATCH as usize) {
        let end = documents.min(begin + BATCH);
        let batch: Vec<Document> = (begin..end).map(|n| sample(kind, n)).collect();
        collection.insert_many(batch).await.expect("load");
    }
    for keys in [doc! {"customer": 1, "at": -1}, doc! {"tag": 1}, doc! {"at": 1}] {
        collection.create_index(IndexModel::builder().keys(keys).build()).await.expect("an index");
    }
}

/// A document of about 1 KiB; `_id`s of five kinds, half of them in no order.
fn sample(kind: usize, n: u64) -> Document {
    let number = i64::try_from(n).expect("fewer than 2^63");
    let mixed = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let id = match kind {
        0 => Bson::ObjectId(ObjectId::new()),
        1 => Bson::Int64(number),
        2 => Bson::String(format!("{mixed:016x}")),
        3 => Bson::Document(doc! { "region": number % 7, "number": number }),
        _ => {
            let bytes = u128::from(mixed) << 64 | u128::from(n);
            let bytes = bytes.to_be_bytes().to_vec();
            Bson::Binary(Binary { subtype: BinarySubtype::Uuid, bytes })
        }
    };
    doc! {
        "_id": id,
        "customer": number % 977,
        "at": DateTime::from_millis(1_700_000_000_000 + number * 1000),
        "tag": format!("t{}", n % 71),
        "lines": [{ "item": number % 101, "price": 9.99 }, { "item": number % 103, "price": 1.5 }],
        "note": format!("{mixed:016x}").repeat(48),
    }
}

/// Writes to the source now and then, and measures how long each write takes to be readable on the target.
async fn probe(source: &Client, target: &Client, time: Duration) -> Vec<f64> {
    let written = source.database("probe").collection::<Document>("writes");
    let read = target.database("probe").collection::<Document>("writes");
    let mut delays = Vec::new();
    let started = Instant::now();
    for number in 0_i64.. {
        if started.elapsed() > time {
            break;
        }
        written.insert_one(doc! { "_id": number }).await.expect("a probe");
        let sent = Instant::now();
        while read.find_one(doc! { "_id": number }).await.expect("look").is_none() {
            assert!(sent.elapsed() < Duration::from_secs(60), "probe {number} does not arrive");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        delays.push(sent.elapsed().as_secs_f64() * 1000.0);
        tokio::time::sleep(PROBE_EVERY).await;
    }
    delays.sort_by(f64::total_cmp);
    delays
}

fn quantile(sorted: &[f64], share: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * share) as usize).copied().unwrap_or(f64::NAN)
}

/// User and system time of a process so far.
fn processor_seconds(process: u32) -> f64 {
    const TICKS_PER_SECOND: f64 = 100.0;
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).expect("stat");
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks: f64 = fields[11..13].iter().map(|field| field.parse::<f64>().expect("ticks")).sum();
    ticks / TICKS_PER_SECOND
}

fn peak_memory_kib(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("status");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("VmHWM");
    line.split_whitespace().nth(1).expect("a number").parse().expect("a number")
}
