//! `make demo`: two throwaway replica sets, sample data, a writer that never rests, and snapsync between them.
//!
//! `DEMO_DOCUMENTS` (200000) says how much there is to copy, `DEMO_SECONDS` (30) how long it follows,
//! `DEMO_RATE` (300) how many operations a second are written to the source all the while.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    unreachable_pub,
    reason = "a demonstration panics with what went wrong, prints, and shares the tests' harness"
)]

#[allow(dead_code, unused_imports, reason = "shared with the tests: each uses a part")]
#[path = "../tests/it/harness/mod.rs"]
mod harness;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use bson::{DateTime, Document, doc};
use mongodb::{Client, IndexModel};
use serde_json::Value;

use harness::{
    Comparison, Daemon, DaemonOptions, Pair, Workload, WorkloadOptions, documents_in, quiesce,
};

/// The collections, and the share of the documents each gets, in percent.
const COLLECTIONS: [(&str, u64); 4] =
    [("shop.orders", 40), ("shop.customers", 20), ("shop.items", 10), ("telemetry.events", 30)];
/// How many documents are sent at once while loading.
const BATCH: u64 = 2_000;
/// Longest wait for the initial copy.
const COPY_TIMEOUT: Duration = Duration::from_secs(900);

#[tokio::main]
async fn main() -> ExitCode {
    // Interrupted, the servers and folders go the same way as at the end: by leaving the scope.
    tokio::select! {
        equal = demo() => if equal { ExitCode::SUCCESS } else { ExitCode::FAILURE },
        () = interrupted() => {
            println!("\ninterrupted; everything is cleaned up");
            ExitCode::from(130)
        }
    }
}

async fn interrupted() {
    use futures_util::StreamExt;
    let mut signals = signal_hook_tokio::Signals::new([2, 15]).expect("watch for signals");
    signals.next().await;
}

/// Runs the whole demonstration; true if source and target were equal at the end.
async fn demo() -> bool {
    let documents = setting("DEMO_DOCUMENTS", 200_000);
    let seconds = setting("DEMO_SECONDS", 30);
    let rate = setting("DEMO_RATE", 300);
    let started = Instant::now();

    heading("Two replica sets");
    let Pair { source, target } = Pair::start().await;
    println!("  source  {}", source.uri());
    println!("  target  {}", target.uri());

    heading(&format!("{documents} documents, with indexes, on the source"));
    load(source.client(), documents).await;

    heading(&format!("Writing to the source, {rate} operations a second, until told otherwise"));
    let workload = Workload::start(source.client(), workload(documents, rate)).await;

    heading("snapsync run");
    let options =
        DaemonOptions::new(&source, &target).toml("[delta]\ninterval = \"2s\"\nlog = \"all\"");
    let mut daemon = Daemon::start(options);
    let mut screen = Screen::default();
    let copy_started = Instant::now();
    let live = screen.follow(&mut daemon, COPY_TIMEOUT, |status| status["state"] == "live").await;
    assert!(live, "not live after {COPY_TIMEOUT:?}{}", daemon.log_tail());
    let copied = copy_started.elapsed();

    heading(&format!("Live after {:.1} s; following for {seconds} s", copied.as_secs_f64()));
    screen.follow(&mut daemon, Duration::from_secs(seconds), |_| false).await;

    heading("The writer stops; everything drains");
    let writes = workload.stop().await;
    let stopped = Instant::now();
    quiesce(&mut daemon, &source).await;
    let drained = stopped.elapsed();
    let settled = |status: &Value| status["total_delta"] == 0 && status["lag_seconds"] == 0.0;
    let last =
        daemon.wait_status("every delta zero and no lag", Duration::from_secs(60), settled).await;
    screen.show_log(&daemon);

    heading("Comparing every document, option and index on both sides (dbHash)");
    let equal = Comparison::new(source.client(), target.client()).run().await;
    for (namespace, _) in COLLECTIONS {
        let (ours, theirs) = tokio::join!(
            documents_in(source.client(), namespace),
            documents_in(target.client(), namespace)
        );
        println!("  {namespace:<18} source {ours:>8}   target {theirs:>8}");
    }
    let (ended, took) = daemon.terminate().await;

    heading("Summary");
    println!("  copied and caught up   {:.1} s", copied.as_secs_f64());
    println!(
        "  written meanwhile      {} operations, {} of them transactions",
        writes.total(),
        writes.commits
    );
    println!("  applied from the oplog {} entries", last["totals"]["entries_applied"]);
    println!("  drained                {:.2} s after the last write", drained.as_secs_f64());
    println!("  stopped on SIGTERM     in {:.2} s ({ended})", took.as_secs_f64());
    println!("  all in all             {:.1} s", started.elapsed().as_secs_f64());
    match &equal {
        Ok(()) => println!("\n  source and target are EQUAL\n"),
        Err(difference) => println!("\n  source and target DIFFER:\n{difference}"),
    }
    equal.is_ok()
}

fn heading(text: &str) {
    if std::io::stdout().is_terminal() {
        println!("\n\x1b[1m== {text}\x1b[0m");
    } else {
        println!("\n== {text}");
    }
}

fn setting(name: &str, default: u64) -> u64 {
    let Some(text) = std::env::var_os(name) else { return default };
    let text = text.to_string_lossy();
    text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a whole number"))
}

fn workload(documents: u64, rate: u64) -> WorkloadOptions {
    WorkloadOptions {
        namespaces: COLLECTIONS.map(|(namespace, _)| namespace.to_owned()).to_vec(),
        rate: rate as f64,
        keys: u32::try_from(documents / 4).unwrap_or(u32::MAX).max(100),
        ..WorkloadOptions::default()
    }
}

/// Fills the collections, all at the same time, and builds an index on each.
async fn load(client: &Client, documents: u64) {
    let started = Instant::now();
    let loads =
        COLLECTIONS.map(|(namespace, share)| load_one(client, namespace, documents * share / 100));
    futures_util::future::join_all(loads).await;
    println!("  loaded in {:.1} s", started.elapsed().as_secs_f64());
}

async fn load_one(client: &Client, namespace: &str, documents: u64) {
    let (database, name) = namespace.split_once('.').expect("database.collection");
    let collection = client.database(database).collection::<Document>(name);
    let mut next = 0;
    while next < documents {
        let end = documents.min(next + BATCH);
        let batch: Vec<Document> = (next..end).map(sample).collect();
        collection.insert_many(batch).await.expect("load");
        next = end;
    }
    for keys in [doc! {"customer": 1, "at": -1}, doc! {"tags": 1}] {
        collection.create_index(IndexModel::builder().keys(keys).build()).await.expect("an index");
    }
    println!("  {namespace:<18} {documents:>8} documents, 2 indexes");
}

fn sample(n: u64) -> Document {
    let id = i32::try_from(n).expect("fewer documents than 2^31");
    doc! {
        "_id": id,
        "customer": id % 977,
        "at": DateTime::from_millis(1_700_000_000_000 + i64::from(id) * 1000),
        "tags": [format!("t{}", id % 7), format!("t{}", id % 11)],
        "lines": [{"item": id % 101, "price": f64::from(id % 9_973) / 100.0}, {"item": id % 103, "price": 1.5}],
        "note": "a few words, so that a document has about the size of a small order",
    }
}

/// What the daemon logs and says of itself, as it comes.
#[derive(Debug, Default)]
struct Screen {
    lines_shown: usize,
}

impl Screen {
    /// Shows the log and a line of status a second, until `done` (then true) or for `time` (then false).
    ///
    /// # Panics
    /// If the daemon ends.
    async fn follow(
        &mut self,
        daemon: &mut Daemon,
        time: Duration,
        done: impl Fn(&Value) -> bool,
    ) -> bool {
        let started = Instant::now();
        let mut next_line = Duration::ZERO;
        while started.elapsed() < time {
            self.show_log(daemon);
            let status = daemon.status().await;
            if let Ok(status) = &status {
                if started.elapsed() >= next_line {
                    next_line = started.elapsed() + Duration::from_secs(1);
                    println!("  {}", describe(status));
                }
                if done(status) {
                    return true;
                }
            }
            assert!(daemon.ended().is_none(), "snapsync ended{}", daemon.log_tail());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        false
    }

    /// Prints what the daemon logged since the last time.
    fn show_log(&mut self, daemon: &Daemon) {
        let log = daemon.log();
        // A line that is not whole yet is for the next time.
        let whole = log.rfind('\n').map_or("", |end| &log[..end]);
        for line in whole.lines().skip(self.lines_shown) {
            println!("  │ {line}");
            self.lines_shown += 1;
        }
        std::io::stdout().flush().expect("write to the terminal");
    }
}

/// One line from a status.
fn describe(status: &Value) -> String {
    let state = status["state"].as_str().unwrap_or("?");
    let copy = &status["copy"];
    if copy["complete"] != true {
        let (done, total) = (&copy["documents"], &copy["documents_total"]);
        return format!("▸ {state}: {done} of {total} documents, ETA {} s", copy["eta_seconds"]);
    }
    let totals = &status["totals"];
    format!(
        "▸ {state}: lag {} s, delta {}, {} entries applied in {} windows",
        status["lag_seconds"], status["total_delta"], totals["entries_applied"], totals["windows"]
    )
}
