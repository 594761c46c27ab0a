//! Several daemons at one target: who may write where, and what becomes of a daemon that slept while another took over.

use std::time::Duration;

use bson::{Bson, Document, doc};
use rustix::process::Signal;
use serde_json::Value;

use crate::harness::{
    Daemon, DaemonOptions, Pair, ReplicaSet, ReplicaSetOptions, Workload, WorkloadOptions,
    assert_equal, quiesce, wait_for,
};

const BRIEF: &str = "[sync]\nwindow = \"200ms\"";
const HELD: Option<i32> = Some(75);
const LONG: Duration = Duration::from_secs(120);

/// Lets every lease on the target expire, as time would.
async fn expire(target: &ReplicaSet) {
    let past = vec![doc! {"$set": {"expires": {"$subtract": ["$$NOW", 1000]}}}];
    target.leases().update_many(doc! {}, past).await.unwrap();
}

/// How many entries of the target's oplog were written in these sessions, other than by whoever fenced them off.
async fn written_in(target: &ReplicaSet, sessions: &[Bson]) -> u64 {
    let oplog = target.client().database("local").collection::<Document>("oplog.rs");
    let filter = doc! {"lsid.id": {"$in": sessions.to_vec()}, "ns": {"$ne": "snapsync.gate"}};
    oplog.count_documents(filter).await.unwrap()
}

async fn seed(source: &ReplicaSet, name: &str, count: i32) {
    let documents = (0..count).map(|id| doc! {"_id": id, "text": "x".repeat(200)});
    source.client().database(name).collection("orders").insert_many(documents).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_daemons_started_at_once_one_works_and_one_names_it() {
    let Pair { source, target } = Pair::start().await;
    seed(&source, "shop", 100).await;
    let options = |include: &str| {
        let text =
            format!("[target]\non_existing_data = \"drop\"\n[sync]\ninclude = [\"{include}\"]");
        DaemonOptions::new(&source, &target).toml(&text)
    };
    for _ in 0..3 {
        let mut both = [Daemon::start(options("*")), Daemon::start(options("sh*.ord*"))];
        let mut ended = None;
        wait_for("one of them to end", LONG, || {
            ended = both.iter_mut().position(|daemon| daemon.ended().is_some());
            std::future::ready(ended.map(drop).ok_or_else(|| "both run".to_owned()))
        })
        .await;
        let [first, second] = &mut both;
        let (ended, works) = if ended == Some(0) { (first, second) } else { (second, first) };
        assert_eq!(ended.wait_exit(LONG).await.code(), HELD, "{}", ended.log_tail());
        works.wait_state("live").await;
        let named = format!("process {} for", works.process_id());
        assert_eq!(ended.log_lines(&named).len(), 1, "{}", ended.log_tail());
        works.terminate().await;
    }
}

/// A daemon killed between the statements of its taking leaves a transaction that the server keeps for a minute.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_killed_while_it_took_the_lease_is_not_in_the_way() {
    let Pair { source, target } = Pair::start().await;
    seed(&source, "shop", 10).await;
    let mut daemon = Daemon::start(DaemonOptions::new(&source, &target));
    daemon.wait_state("live").await;
    daemon.kill9();
    let mut options = mongodb::options::ClientOptions::parse(target.uri()).await.unwrap();
    options.app_name = Some("snapsync control".to_owned());
    let killed = mongodb::Client::with_options(options).unwrap();
    let mut session = killed.start_session().await.unwrap();
    session.start_transaction().await.unwrap();
    let gate = killed.database("snapsync").collection::<Document>("gate");
    let taking = gate.update_one(doc! {"_id": "gate"}, doc! {"$inc": {"takings": 1_i64}});
    taking.session(&mut session).await.unwrap();
    daemon.restart();
    daemon.wait_state("live").await;
    assert!(session.commit_transaction().await.is_err(), "it was ended");
    assert_equal(&source, &target).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn migrations_of_disjoint_sets_share_a_target() {
    let Pair { source, target } = Pair::start().await;
    seed(&source, "shop", 100).await;
    seed(&source, "crm", 100).await;
    let options = |include: &str| {
        let text = format!("[sync]\nwindow = \"200ms\"\ninclude = [{include}]");
        DaemonOptions::new(&source, &target).toml(&text)
    };
    let mut shop = Daemon::start(options("\"shop\""));
    let mut crm = Daemon::start(options("\"c*\", \"events\""));
    shop.wait_state("live").await;
    crm.wait_state("live").await;
    let mut third = Daemon::start(options("\"*.orders\""));
    assert_eq!(third.wait_exit(LONG).await.code(), HELD, "{}", third.log_tail());
    let workload = Workload::start(source.client(), WorkloadOptions::default()).await;
    for daemon in [&mut shop, &mut crm] {
        daemon.kill9();
        daemon.restart();
        daemon.wait_state("live").await;
    }
    workload.stop().await;
    quiesce(&mut shop, &source).await;
    quiesce(&mut crm, &source).await;
    assert_equal(&source, &target).await;
}

/// Woken with a batch in flight and more to send, after a copy of its state directory has taken over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_a_frozen_daemon_lands_after_a_copy_of_it_took_over() {
    let testable = ReplicaSetOptions::default().parameter("enableTestCommands=1");
    // Fencing has a connection of its own, which authenticates as the others do.
    let testable = testable.auth("root", "secret");
    let Pair { source, target } = Pair::with(ReplicaSetOptions::default(), testable).await;
    seed(&source, "shop", 2000).await;
    let workload = Workload::start(
        source.client(),
        WorkloadOptions { rate: 500.0, keys: 3000, ..WorkloadOptions::default() },
    )
    .await;
    let mut daemon = Daemon::start(DaemonOptions::new(&source, &target).toml(BRIEF));
    daemon.wait_state("live").await;
    for hang in [true, false] {
        if hang {
            hang_inserts(&target, "alwaysOn").await;
            wait_inserting(&target).await;
        }
        let mut successor = take_over(&mut daemon, &target, |frozen| frozen.start_copy()).await;
        if hang {
            let waiting = "waiting for what was left in flight";
            successor.wait_log(waiting).await;
            hang_inserts(&target, "off").await;
        }
        successor.wait_state("live").await;
        wake(&mut daemon, &mut successor, &target).await;
        daemon = successor;
    }
    workload.stop().await;
    quiesce(&mut daemon, &source).await;
    assert_equal(&source, &target).await;
}

/// Another migration takes the target over, and what the first one made is dropped while that sleeps.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_a_frozen_daemon_lands_after_another_migration_took_over() {
    let Pair { source, target } = Pair::start().await;
    seed(&source, "shop", 2000).await;
    let workload = Workload::start(source.client(), WorkloadOptions::default()).await;
    let options = DaemonOptions::new(&source, &target).toml(BRIEF);
    let mut first = Daemon::start(options.clone());
    first.wait_state("live").await;
    // With another selection: else it would go on from where the first one was.
    let drop = options
        .toml("[target]\non_existing_data = \"drop\"\n[sync]\ninclude = [\"shop\", \"crm\"]");
    let mut second = take_over(&mut first, &target, |_| Daemon::start(drop)).await;
    second.wait_state("live").await;
    wake(&mut first, &mut second, &target).await;
    workload.stop().await;
    quiesce(&mut second, &source).await;
    assert_equal(&source, &target).await;
}

/// Freezes a daemon, lets its lease expire and starts its successor. Until that the lease keeps it out.
async fn take_over(
    daemon: &mut Daemon,
    target: &ReplicaSet,
    start: impl FnOnce(&Daemon) -> Daemon,
) -> Daemon {
    daemon.signal(Signal::STOP);
    let mut successor = start(daemon);
    assert_eq!(successor.wait_exit(LONG).await.code(), HELD, "{}", successor.log_tail());
    let holder = format!("process {}", daemon.process_id());
    assert_eq!(successor.log_lines(&holder).len(), 1, "{}", successor.log_tail());
    expire(target).await;
    successor.restart();
    successor
}

/// Wakes a daemon whose lease another one has taken: it must end, and write nothing.
async fn wake(daemon: &mut Daemon, successor: &mut Daemon, target: &ReplicaSet) {
    let lease =
        target.leases().find_one(doc! {"fenced.0": {"$exists": true}}).await.unwrap().unwrap();
    let fenced = lease.get_array("fenced").unwrap();
    let before = written_in(target, fenced).await;
    assert!(before > 0, "these were not the sessions it wrote in");
    daemon.signal(Signal::CONT);
    assert_eq!(daemon.wait_exit(LONG).await.code(), HELD, "{}", daemon.log_tail());
    let after = written_in(target, fenced).await;
    assert_eq!(after, before, "written after another took over{}", daemon.log_tail());
    let follows = |status: &Value| status["state"] == "live";
    successor.wait_status("the successor to go on", LONG, follows).await;
}

async fn hang_inserts(target: &ReplicaSet, mode: &str) {
    let failpoint = doc! {"configureFailPoint": "hangDuringBatchInsert", "mode": mode};
    target.admin(failpoint).await;
}

async fn wait_inserting(target: &ReplicaSet) {
    let command = doc! {"aggregate": 1, "cursor": {}, "pipeline": [
        {"$currentOp": {"allUsers": true}},
        {"$match": {"op": "insert", "appName": {"$regex": "^snapsync "}}},
    ]};
    wait_for("an insert of the daemon's", Duration::from_secs(60), || async {
        let reply = target.admin(command.clone()).await;
        let batch = reply.get_document("cursor").unwrap().get_array("firstBatch").unwrap();
        if batch.is_empty() { Err("none".to_owned()) } else { Ok(()) }
    })
    .await;
}
