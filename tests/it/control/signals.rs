//! Signals: an orderly end in every state, and another configuration in flight.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use super::{SLOWLY, fill};
use crate::harness::{Daemon, DaemonOptions, Pair, assert_equal, quiesce};

/// For an end that waits for no server; the rest is for a busy machine.
const SOON: Duration = Duration::from_secs(8);
/// For an end while a server does not answer: less than what systemd is asked for.
const BOUNDED: Duration = Duration::from_secs(30);

async fn ends_on(daemon: &mut Daemon, signal: Signal, within: Duration) {
    daemon.signal(signal);
    let status = daemon.wait_exit(within).await;
    assert_eq!(status.code(), Some(0), "{}", daemon.log());
    let log = daemon.log();
    assert!(log.ends_with('\n') && log.trim_end().ends_with("INFO stopped"), "{log}");
}

async fn copies_slowly(daemon: &mut Daemon) {
    let begun = |status: &Value| status["state"] == "copying" && status["copy"]["documents"] != 0;
    daemon.wait_status("a copy under way", Duration::from_secs(60), begun).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ends_in_order_while_copying_and_while_live() {
    let Pair { source, target } = Pair::start().await;
    fill(source.client()).await;
    let mut daemon = Daemon::start(DaemonOptions::new(&source, &target).toml(SLOWLY));
    copies_slowly(&mut daemon).await;
    ends_on(&mut daemon, Signal::TERM, SOON).await;
    // It goes on where it was.
    daemon.restart();
    copies_slowly(&mut daemon).await;
    ends_on(&mut daemon, Signal::INT, SOON).await;
    daemon.configure("[copy]\nmax_bytes_per_second = \"0\"");
    daemon.restart();
    // The end comes at any moment of a window; so it is asked for more than once.
    for signal in [Signal::TERM, Signal::INT, Signal::TERM, Signal::INT, Signal::TERM] {
        quiesce(&mut daemon, &source).await;
        ends_on(&mut daemon, signal, SOON).await;
        daemon.restart();
    }
    quiesce(&mut daemon, &source).await;
    assert_equal(&source, &target).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ends_while_a_server_does_not_answer() {
    let Pair { mut source, mut target } = Pair::start().await;
    fill(source.client()).await;
    let mut daemon = Daemon::start(DaemonOptions::new(&source, &target));
    quiesce(&mut daemon, &source).await;
    source.freeze();
    falls_behind(&mut daemon).await;
    ends_on(&mut daemon, Signal::TERM, BOUNDED).await;
    // Before anything but the control socket is there.
    daemon.restart();
    daemon.wait_status("a start", SOON, |status| status["state"] == "starting").await;
    daemon.signal(Signal::TERM);
    let status = daemon.wait_exit(SOON).await;
    assert_eq!(status.code(), Some(0), "{}", daemon.log());
    source.thaw();
    daemon.restart();
    quiesce(&mut daemon, &source).await;
    target.freeze();
    fill_more(&source).await;
    falls_behind(&mut daemon).await;
    ends_on(&mut daemon, Signal::TERM, BOUNDED).await;
    target.thaw();
    daemon.restart();
    quiesce(&mut daemon, &source).await;
    assert_equal(&source, &target).await;
}

/// By now several calls wait for an answer that does not come.
async fn falls_behind(daemon: &mut Daemon) {
    let late = |status: &Value| status["lag_seconds"].as_f64().is_some_and(|lag| lag > 1.5);
    daemon.wait_status("the silence to be noticed", Duration::from_secs(20), late).await;
}

async fn fill_more(source: &crate::harness::ReplicaSet) {
    let collection = source.client().database("shop").collection::<bson::Document>("more");
    collection.insert_many((0..10).map(|n| bson::doc! {"_id": n})).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn takes_over_another_configuration_in_flight() {
    let Pair { source, target } = Pair::start().await;
    fill(source.client()).await;
    let mut daemon = Daemon::start(DaemonOptions::new(&source, &target).toml(SLOWLY));
    copies_slowly(&mut daemon).await;

    // A file with a mistake changes nothing, and says what the mistake is.
    let good = std::fs::read_to_string(daemon.config_file()).unwrap();
    let faster = good.replace("64KiB", "0");
    assert_ne!(good, faster);
    let broken = format!("{faster}\n[snyc]\nwindow = \"1s\"\n");
    std::fs::write(daemon.config_file(), broken).unwrap();
    daemon.signal(Signal::HUP);
    let line = daemon.wait_log("the configuration was not reloaded").await;
    assert!(line.contains("ERROR") && line.contains("snyc"), "{line}");
    assert_eq!(daemon.status().await.unwrap()["state"], "copying");

    // A good one does: the copy, which would take half a minute more, is over soon.
    assert!(daemon.log_lines(" DEBUG ").is_empty());
    daemon.configure(
        "[copy]\nmax_bytes_per_second = \"0\"\n[log]\nlevel = \"debug\"\n[sync]\nexclude = [\"crm\"]",
    );
    daemon.signal(Signal::HUP);
    let line = daemon.wait_log("configuration reloaded; taken over: ").await;
    assert!(line.contains("copy.max_bytes_per_second") && line.contains("log.level"), "{line}");
    let line = daemon.wait_log("these changes need a restart: ").await;
    assert!(line.contains("WARN") && line.contains("sync.exclude"), "{line}");
    let began = Instant::now();
    daemon.wait_state("live").await;
    assert!(began.elapsed() < Duration::from_secs(12), "still slow: {:?}", began.elapsed());
    quiesce(&mut daemon, &source).await;
    assert_equal(&source, &target).await;

    daemon.configure("[log]\nlevel = \"warn\"");
    daemon.signal(Signal::HUP);
    let quiet = |status: &Value| status["state"] == "live";
    daemon.wait_status("live", SOON, quiet).await;
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait_exit(SOON).await.code(), Some(0));
    assert!(daemon.log_lines("INFO stopped").is_empty(), "{}", daemon.log());
}
