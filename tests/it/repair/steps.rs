//! kill -9 at every step of a resync, one by one: the target stands still at a command of the step until the daemon is
//! dead.

use std::time::Duration;

use bson::{Document, doc};

use super::{LONG, OFTEN, fill, orders};
use crate::harness::{
    Comparison, Daemon, DaemonOptions, Pair, ReplicaSet, ReplicaSetOptions, assert_equal, quiesce,
};

/// Longer than a kill takes; the next start ends what is held.
const HELD_MS: i32 = 20_000;

/// Lets that many commands of this name pass, and holds the ones after.
pub(crate) async fn hold(target: &ReplicaSet, command: &str, pass: i32) -> i64 {
    hold_for(target, command, pass, HELD_MS).await
}

/// As [`hold`], for so long at the most.
pub(crate) async fn hold_for(target: &ReplicaSet, command: &str, pass: i32, ms: i32) -> i64 {
    let mode = if pass == 0 {
        doc! {"times": 1}
    } else {
        doc! {"skip": pass}
    };
    let hold = doc! {"failCommands": [command], "blockConnection": true, "blockTimeMS": ms};
    let point = doc! {"configureFailPoint": "failCommand", "mode": mode, "data": hold};
    target.admin(point).await.get_i32("count").unwrap().into()
}

pub(crate) async fn wait_held(target: &ReplicaSet, before: i64) {
    let wait = doc! {
        "waitForFailPoint": "failCommand", "timesEntered": before + 1, "maxTimeMS": 120_000,
    };
    target.admin(wait).await;
}

pub(crate) async fn let_go(target: &ReplicaSet) {
    target.admin(doc! {"configureFailPoint": "failCommand", "mode": "off"}).await;
}

pub(crate) fn with_test_commands() -> ReplicaSetOptions {
    ReplicaSetOptions::default().parameter("enableTestCommands=1")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_at_any_step_is_made_good() {
    let Pair { source, target } =
        Pair::with(ReplicaSetOptions::default(), with_test_commands()).await;
    fill(&source, &["shop.orders", "shop.carts", "crm.people"]).await;
    let options = DaemonOptions::new(&source, &target).toml(OFTEN);
    let mut daemon = Daemon::start(options.toml("[resync]\nkeep_replaced = \"0s\""));
    daemon.wait_state("live").await;
    let steps = [
        ("create", 0),
        ("create", 1),
        ("insert", 0),
        ("insert", 1),
        ("createIndexes", 0),
        ("renameCollection", 0),
        ("renameCollection", 1),
        ("renameCollection", 2),
        ("renameCollection", 3),
        ("drop", 0),
    ];
    for (round, (command, pass)) in (0..).zip(steps) {
        eprintln!("held at {command} after {pass}");
        let follows = |status: &serde_json::Value| {
            assert_ne!(status["state"], "halted", "{}", status["reason"]);
            status["state"] == "live" && status["copying"] == serde_json::json!([])
        };
        daemon.wait_status("live", LONG, follows).await;
        let before = hold(&target, command, pass).await;
        assert!(daemon.command(&["resync", "shop", "--yes"]).status.success());
        wait_held(&target, before).await;
        if command != "renameCollection" {
            let found = orders(&target).count_documents(doc! {}).await.unwrap();
            assert!(found >= 190, "the old one stays: {found}");
        }
        daemon.kill9();
        let_go(&target).await;
        let change = doc! {"$inc": {"round": 1}};
        orders(&source).update_many(doc! {"_id": {"$gt": round}}, change).await.unwrap();
        orders(&source).delete_one(doc! {"_id": round}).await.unwrap();
        if round == 6 {
            // Half of them are in their places, and their names change.
            source.admin(doc! {"renameCollection": "shop.carts", "to": "shop.other"}).await;
            source.admin(doc! {"renameCollection": "shop.orders", "to": "shop.carts"}).await;
            source.admin(doc! {"renameCollection": "shop.other", "to": "shop.orders"}).await;
        }
        daemon.restart();
    }
    quiesce(&mut daemon, &source).await;
    Comparison::new(source.client(), target.client()).wait(LONG).await;
    assert_equal(&source, &target).await;
    let left = || async {
        let names = target.client().database("shop").list_collection_names().await.unwrap();
        let ours = names.iter().any(|name| name.starts_with("snapsync_tmp_"));
        if ours { Err(format!("{names:?}")) } else { Ok(()) }
    };
    crate::harness::wait_for("nothing left behind", LONG, left).await;
}

/// An operator's wish ends the act while the target does not answer in the midst of a swap: what was sent is waited out
/// before the swap is finished, so that it does not come into force later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_swap_that_an_operator_cuts_short_is_finished_without_what_is_in_flight() {
    let Pair { source, target } =
        Pair::with(ReplicaSetOptions::default(), with_test_commands()).await;
    fill(&source, &["shop.orders", "shop.carts"]).await;
    let mut daemon = Daemon::start(DaemonOptions::new(&source, &target).toml(OFTEN));
    daemon.wait_state("live").await;
    let before = hold(&target, "renameCollection", 0).await;
    assert!(daemon.command(&["resync", "shop.orders", "--yes"]).status.success());
    wait_held(&target, before).await;
    assert!(daemon.command(&["resync", "shop.carts", "--yes"]).status.success());
    daemon.wait_log("resync of shop.carts finished").await;
    let log = daemon.log();
    let cleared = log.find("waiting for what was left in flight").expect("what is held is ended");
    let finished = log.find("resync of shop.orders finished").expect("the swap is finished");
    assert!(cleared < finished, "{}", daemon.log_tail());
    quiesce(&mut daemon, &source).await;
    assert_equal(&source, &target).await;
}

/// What was copied anew is removed by somebody just before it takes its place: what it was to replace stays readable.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_somebody_removes_replaces_nothing() {
    let Pair { source, target } =
        Pair::with(ReplicaSetOptions::default(), with_test_commands()).await;
    fill(&source, &["shop.orders", "shop.carts"]).await;
    let mut daemon = Daemon::start(DaemonOptions::new(&source, &target).toml(OFTEN));
    daemon.wait_state("live").await;
    // Refused again and again, and not held: what is held may be carried out after the kill.
    let refuse = doc! {"failCommands": ["renameCollection"], "errorCode": 91};
    let refuse = doc! {"configureFailPoint": "failCommand", "mode": "alwaysOn", "data": refuse};
    let before = target.admin(refuse).await.get_i32("count").unwrap().into();
    assert!(daemon.command(&["resync", "shop.orders", "--yes"]).status.success());
    wait_held(&target, before).await;
    daemon.kill9();
    let_go(&target).await;
    let shop = target.client().database("shop");
    for name in shop.list_collection_names().await.unwrap() {
        if name.starts_with("snapsync_tmp_") {
            shop.collection::<Document>(&name).drop().await.unwrap();
        }
    }
    let again = hold(&target, "insert", 0).await;
    daemon.restart();
    tokio::time::timeout(Duration::from_secs(120), wait_held(&target, again)).await.unwrap();
    assert_eq!(orders(&target).count_documents(doc! {}).await.unwrap(), 200, "the old one");
    let_go(&target).await;
    let mended = |status: &serde_json::Value| {
        assert_ne!(status["state"], "halted", "{}", status["reason"]);
        status["state"] == "live" && status["copying"] == serde_json::json!([])
    };
    daemon.wait_status("mended", LONG, mended).await;
    quiesce(&mut daemon, &source).await;
    assert_equal(&source, &target).await;
}
