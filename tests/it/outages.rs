//! Servers and networks that go away under a daemon that runs: it waits for as long as it takes, says so, and goes on
//! by itself. Nothing is lost, nothing is written twice, and nothing comes over that the source took back.

use std::time::{Duration, Instant};

use bson::{Document, doc};
use mongodb::Client;
use mongodb::options::{Acknowledgment, InsertOneOptions, WriteConcern};
use serde_json::Value;

use crate::harness::{
    Churn, Daemon, DaemonOptions, Pair, ReplicaSet, ReplicaSetOptions, Workload, WorkloadOptions,
    assert_equal, quiesce, wait_for,
};

const BRIEF: &str = "[sync]\nwindow = \"200ms\"\n[live]\nmax_lag = \"2s\"";
/// Three servers and a load share the processors with other tests: what matters here is not how fast it is.
const LENIENT: &str = "[live]\nmax_lag = \"15s\"";
/// Slow enough that there is time for an outage in the middle of the copy.
const SLOW: &str = "[copy]\nmax_bytes_per_second = \"4MiB\"";
const LONG: Duration = Duration::from_secs(60);

/// Documents of 10 KB.
async fn fill(client: &Client, documents: i32) {
    let large = client.database("shop").collection::<Document>("large");
    let filler = "x".repeat(10_000);
    for first in (0..documents).step_by(250) {
        let batch = (first..documents.min(first + 250)).map(|id| doc! {"_id": id, "a": &filler});
        large.insert_many(batch).await.unwrap();
    }
}

fn lag(status: &Value) -> f64 {
    status["lag_seconds"].as_f64().unwrap_or(f64::NAN)
}

async fn wait_copied(daemon: &mut Daemon, documents: u64) {
    let copied = |status: &Value| status["copy"]["documents"].as_u64().unwrap() >= documents;
    let status = daemon.wait_status("some documents copied", LONG, copied).await;
    assert_eq!(status["state"], "copying", "too late for an outage: {status:#}");
}

/// Looks at the daemon while a server is away, since just now: after two seconds it never claims to be level, the lag
/// grows, and the state is not `live` for longer than `live.max_lag` allows.
async fn watch_outage(daemon: &mut Daemon, lasting: Duration) {
    let began = Instant::now();
    let mut largest = 0.0;
    while began.elapsed() < lasting {
        let status = daemon.status().await.unwrap();
        let (away, lag) = (began.elapsed(), lag(&status));
        if away > Duration::from_millis(2500) {
            assert!(lag > 0.0, "level with a server that is away: {status:#}");
            assert!(lag >= largest, "the lag shrinks from {largest}: {status:#}");
            largest = lag;
        }
        if away > Duration::from_secs(4) {
            assert_ne!(status["state"], "live", "after {away:?}: {status:#}");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(largest > 2.0, "the lag stayed at {largest}");
}

/// Everything was mended by the one process.
fn assert_never_restarted(daemon: &mut Daemon) {
    assert!(daemon.ended().is_none());
    assert_eq!(daemon.log_lines(" starts version=").len(), 1);
    assert_eq!(daemon.log_lines("halted").len(), 0, "{}", daemon.log_tail());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_source_is_killed_while_copying_and_while_live() {
    let Pair { mut source, target } = Pair::start().await;
    fill(source.client(), 1500).await;
    let workload = Workload::start(source.client(), WorkloadOptions::default()).await;
    let mut daemon = Daemon::start(DaemonOptions::new(&source, &target).toml(BRIEF).toml(SLOW));
    wait_copied(&mut daemon, 400).await;
    source.kill9();
    daemon.wait_log("waiting for the source").await;
    assert_eq!(daemon.status().await.unwrap()["state"], "copying");
    source.restart().await;
    daemon.wait_state("live").await;
    source.kill9();
    watch_outage(&mut daemon, Duration::from_secs(6)).await;
    source.restart().await;
    daemon.wait_state("live").await;
    workload.stop().await;
    quiesce(&mut daemon, &source).await;
    assert_equal(&source, &target).await;
    assert_never_restarted(&mut daemon);
}

/// The spool still gives entries while the source is away, and then none: that is no reason to call the target level.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_source_is_away_when_the_spool_comes_to_its_end() {
    let target = ReplicaSetOptions::default().parameter("enableTestCommands=1");
    let Pair { mut source, target } = Pair::with(ReplicaSetOptions::default(), target).await;
    fill(source.client(), 300).await;
    let orders = source.client().database("shop").collection::<Document>("orders");
    orders.insert_many((0..100).map(|n| doc! {"_id": n})).await.unwrap();
    let hang = |mode: &str| {
        let data = doc! {"nss": "shop.orders"};
        doc! {"configureFailPoint": "hangDuringBatchUpdate", "mode": mode, "data": data}
    };
    target.admin(hang("alwaysOn")).await;
    let options = DaemonOptions::new(&source, &target).toml(BRIEF);
    let mut daemon = Daemon::start(options.toml("[copy]\nmax_bytes_per_second = \"1MiB\""));
    wait_copied(&mut daemon, 1).await;
    orders.update_many(doc! {}, doc! {"$set": {"a": 1}}).await.unwrap();
    // Everything that is asked of the source before the replay begins has been answered.
    let begun =
        |status: &Value| status["state"] == "catching-up" && status["resume_point"].is_object();
    daemon.wait_status("the replay to begin", LONG, begun).await;
    source.kill9();
    daemon.wait_status("lag", LONG, |status| lag(status) > 5.5).await;
    target.admin(hang("off")).await;
    let replayed = |status: &Value| status["totals"]["windows"].as_u64().unwrap() > 0;
    daemon.wait_status("the spool to be replayed", LONG, replayed).await;
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(3) {
        let status = daemon.status().await.unwrap();
        assert!(lag(&status) > 2.0, "level with a source that is away: {status:#}");
        assert_ne!(status["state"], "live", "{status:#}");
    }
    source.restart().await;
    quiesce(&mut daemon, &source).await;
    assert_equal(&source, &target).await;
    assert_never_restarted(&mut daemon);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_target_is_killed_under_load_while_copying_and_while_live() {
    let Pair { source, mut target } = Pair::start().await;
    fill(source.client(), 1500).await;
    let churn = Churn::start(source.client(), 21).await;
    let workload = Workload::start(source.client(), WorkloadOptions::default()).await;
    let mut daemon = Daemon::start(DaemonOptions::new(&source, &target).toml(BRIEF).toml(SLOW));
    wait_copied(&mut daemon, 400).await;
    target.kill9();
    target.restart().await;
    wait_copied(&mut daemon, 800).await;
    target.kill9();
    daemon.wait_log("waiting for the target").await;
    target.restart().await;
    for _ in 0..3 {
        daemon.wait_state("live").await;
        target.kill9();
        target.restart().await;
    }
    daemon.wait_state("live").await;
    target.kill9();
    watch_outage(&mut daemon, Duration::from_secs(6)).await;
    target.restart().await;
    daemon.wait_state("live").await;
    tokio::join!(churn.stop(), workload.stop());
    quiesce(&mut daemon, &source).await;
    assert_equal(&source, &target).await;
    assert_never_restarted(&mut daemon);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_silent_for_a_while() {
    let Pair { mut source, mut target } = Pair::start().await;
    let workload = Workload::start(source.client(), WorkloadOptions::default()).await;
    let mut daemon = Daemon::start(DaemonOptions::new(&source, &target).toml(BRIEF));
    daemon.wait_state("live").await;
    source.freeze();
    watch_outage(&mut daemon, Duration::from_secs(5)).await;
    source.thaw();
    daemon.wait_state("live").await;
    target.freeze();
    watch_outage(&mut daemon, Duration::from_secs(5)).await;
    target.thaw();
    daemon.wait_state("live").await;
    workload.stop().await;
    quiesce(&mut daemon, &source).await;
    assert_equal(&source, &target).await;
    assert_never_restarted(&mut daemon);
}

/// The driver alone would look for a server for longer.
async fn stops(daemon: &mut Daemon) {
    let (status, took) = daemon.terminate().await;
    assert!(status.success(), "{status}");
    assert!(took < Duration::from_secs(10), "{took:?}");
}

/// Asked to stop, it does, whoever is away: a service manager would kill it otherwise.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stops_when_asked_while_a_server_is_away() {
    let Pair { mut source, mut target } = Pair::start().await;
    let workload = Workload::start(source.client(), WorkloadOptions::default()).await;
    let mut daemon = Daemon::start(DaemonOptions::new(&source, &target).toml(BRIEF));
    daemon.wait_state("live").await;
    target.freeze();
    let behind = |status: &Value| lag(status) > 1.0;
    daemon.wait_status("lag", LONG, behind).await;
    stops(&mut daemon).await;
    target.thaw();
    daemon.restart();
    daemon.wait_state("live").await;
    source.freeze();
    daemon.wait_status("lag", LONG, |status| lag(status) > 2.0).await;
    stops(&mut daemon).await;
    source.thaw();
    daemon.restart();
    daemon.wait_state("live").await;
    source.kill9();
    daemon.wait_status("lag", LONG, |status| lag(status) > 2.0).await;
    stops(&mut daemon).await;
    source.restart().await;
    daemon.restart();
    workload.stop().await;
    quiesce(&mut daemon, &source).await;
    assert_equal(&source, &target).await;
}

/// A step-down and a lost primary, while copying and while live.
async fn fail_over(set: &mut ReplicaSet) {
    set.step_down(5).await;
    let primary = set.primary().await;
    set.members[primary].kill9();
    set.primary().await;
    set.members[primary].restart().await;
}

/// One side fails over while everything is copied, and while it is followed.
async fn fails_over(mut pair: Pair, seed: u64, side: fn(&mut Pair) -> &mut ReplicaSet) {
    fill(pair.source.client(), 1500).await;
    let churn = Churn::start(pair.source.client(), seed).await;
    let workload = Workload::start(pair.source.client(), WorkloadOptions::default()).await;
    let options = DaemonOptions::new(&pair.source, &pair.target);
    let mut daemon = Daemon::start(options.toml(BRIEF).toml(SLOW).toml(LENIENT));
    wait_copied(&mut daemon, 400).await;
    fail_over(side(&mut pair)).await;
    daemon.wait_state("live").await;
    fail_over(side(&mut pair)).await;
    tokio::join!(churn.stop(), workload.stop());
    quiesce(&mut daemon, &pair.source).await;
    assert_equal(&pair.source, &pair.target).await;
    assert_never_restarted(&mut daemon);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_source_fails_over() {
    let three = ReplicaSetOptions::default().members(3);
    let pair = Pair::with(three, ReplicaSetOptions::default()).await;
    fails_over(pair, 31, |pair| &mut pair.source).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_target_fails_over() {
    let three = ReplicaSetOptions::default().members(3);
    let pair = Pair::with(ReplicaSetOptions::default(), three).await;
    fails_over(pair, 41, |pair| &mut pair.target).await;
}

/// What the source acknowledged alone and then took back must never be on the target.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_the_source_rolls_back_never_arrives() {
    let source = ReplicaSetOptions::default().members(3).parameter("enableTestCommands=1");
    let Pair { mut source, target } = Pair::with(source, ReplicaSetOptions::default()).await;
    let orders = source.client().database("shop").collection::<Document>("orders");
    orders.insert_one(doc! {"_id": "before"}).await.unwrap();
    let mut daemon = Daemon::start(DaemonOptions::new(&source, &target).toml(BRIEF));
    daemon.wait_state("live").await;
    let primary = source.primary().await;
    let cut_off = |mode: &str| doc! {"configureFailPoint": "stopReplProducer", "mode": mode};
    for member in (0..3).filter(|member| *member != primary) {
        let client = source.member_client(member).await;
        client.database("admin").run_command(cut_off("alwaysOn")).await.unwrap();
    }
    let alone = WriteConcern::builder().w(Acknowledgment::Nodes(1)).build();
    let alone = InsertOneOptions::builder().write_concern(alone).build();
    orders.insert_one(doc! {"_id": "taken back"}).with_options(alone).await.unwrap();
    // It is in the primary's oplog, and the daemon goes on asking for more.
    let member = source.member_client(primary).await;
    let mine = member.database("shop").collection::<Document>("orders");
    assert!(mine.find_one(doc! {"_id": "taken back"}).await.unwrap().is_some());
    tokio::time::sleep(Duration::from_millis(700)).await;
    source.members[primary].kill9();
    for member in (0..3).filter(|member| *member != primary) {
        let client = source.member_client(member).await;
        client.database("admin").run_command(cut_off("off")).await.unwrap();
    }
    source.primary().await;
    orders.insert_one(doc! {"_id": "after"}).await.unwrap();
    source.members[primary].restart().await;
    quiesce(&mut daemon, &source).await;
    let ours = target.client().database("shop").collection::<Document>("orders");
    assert!(ours.find_one(doc! {"_id": "taken back"}).await.unwrap().is_none());
    assert!(ours.find_one(doc! {"_id": "after"}).await.unwrap().is_some());
    wait_for("the rollback to be over", LONG, || async {
        let left = orders.find_one(doc! {"_id": "taken back"}).await.unwrap();
        if left.is_none() { Ok(()) } else { Err("the source still has it".to_owned()) }
    })
    .await;
    assert_equal(&source, &target).await;
    assert_never_restarted(&mut daemon);
}
