//! Somebody moves what is on the target.

use bson::{Document, doc};
use serde_json::Value;

use super::{LONG, OFTEN, fill, orders, resynced, wait_mended};
use crate::harness::{Daemon, DaemonOptions, Pair};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_renamed_while_nobody_looked_is_found_out() {
    let Pair { source, target } = Pair::start().await;
    fill(&source, &["shop.orders", "shop.carts", "shop.notes"]).await;
    let mut daemon = Daemon::start(DaemonOptions::new(&source, &target).toml(OFTEN));
    daemon.wait_state("live").await;
    daemon.kill9();
    // Two that swap their names, and one that goes elsewhere.
    for (from, to) in [("orders", "other"), ("carts", "orders"), ("other", "carts")] {
        let (from, to) = (format!("shop.{from}"), format!("shop.{to}"));
        target.admin(doc! {"renameCollection": from, "to": to}).await;
    }
    target.admin(doc! {"renameCollection": "shop.notes", "to": "shop.elsewhere"}).await;
    orders(&source).delete_one(doc! {"_id": 1}).await.unwrap();
    daemon.restart();
    wait_mended(&mut daemon, &source, &target, 1).await;
    let mut names = resynced(&daemon);
    names.sort();
    assert_eq!(names, ["shop.carts", "shop.notes", "shop.orders"]);
}

/// The source gives a collection a name that somebody has taken on the target: that is said, and not tried for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_was_taken_on_the_target_halts() {
    let Pair { source, target } = Pair::start().await;
    fill(&source, &["shop.orders", "shop.carts"]).await;
    // Lists are not compared before.
    let seldom = "[delta]\ninterval = \"1h\"\n[sync]\nwindow = \"200ms\"";
    let mut daemon = Daemon::start(DaemonOptions::new(&source, &target).toml(seldom));
    daemon.wait_state("live").await;
    let theirs = target.client().database("shop").collection::<Document>("ordered");
    theirs.insert_one(doc! {"_id": 1}).await.unwrap();
    source.admin(doc! {"renameCollection": "shop.orders", "to": "shop.ordered"}).await;
    let status = daemon.wait_state("halted").await;
    let reason = status["reason"].as_str().unwrap();
    assert!(reason.contains("shop.ordered"), "{reason}");
    assert_eq!(theirs.count_documents(doc! {}).await.unwrap(), 1, "left alone");
    theirs.drop().await.unwrap();
    assert!(daemon.command(&["resume"]).status.success());
    let mended = |status: &Value| {
        assert_ne!(status["state"], "halted", "{}", status["reason"]);
        status["copying"] == serde_json::json!([]) && status["totals"]["resyncs"] == 1
    };
    daemon.wait_status("mended", LONG, mended).await;
    wait_mended(&mut daemon, &source, &target, 1).await;
}
