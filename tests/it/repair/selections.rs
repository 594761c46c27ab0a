//! What comes into the selection with contents that were never copied.

use bson::{Document, doc};
use serde_json::Value;

use super::{LONG, OFTEN, fill};
use crate::harness::{Comparison, Daemon, DaemonOptions, Pair, ReplicaSet, quiesce};

async fn assert_same(
    source: &ReplicaSet,
    target: &ReplicaSet,
    selected: fn(&str) -> Option<String>,
) {
    Comparison::new(source.client(), target.client()).mapping(selected).wait(LONG).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rename_into_the_selection_is_a_copy_and_out_of_it_a_drop() {
    let Pair { source, target } = Pair::start().await;
    fill(&source, &["shop.orders", "shop.hidden", "crm.people"]).await;
    let options = DaemonOptions::new(&source, &target).toml(OFTEN);
    let mut daemon = Daemon::start(options.toml("[sync]\nexclude = [\"shop.hidden*\"]"));
    daemon.wait_state("live").await;
    let hidden = source.client().database("shop").collection::<Document>("hidden");
    hidden.delete_many(doc! {"_id": {"$gte": 100}}).await.unwrap();
    source.admin(doc! {"renameCollection": "shop.hidden", "to": "shop.seen"}).await;
    let seen = source.client().database("shop").collection::<Document>("seen");
    seen.insert_one(doc! {"_id": "after", "n": -1}).await.unwrap();
    source.admin(doc! {"renameCollection": "shop.orders", "to": "shop.hidden_orders"}).await;
    let selected = |name: &str| (!name.starts_with("shop.hidden")).then(|| name.to_owned());
    assert_same(&source, &target, selected).await;
    source.admin(doc! {"renameCollection": "shop.hidden_orders", "to": "shop.orders"}).await;
    seen.delete_one(doc! {"_id": "after"}).await.unwrap();
    assert_same(&source, &target, selected).await;
    // As often as somebody likes: nothing has diverged.
    for _ in 0..4 {
        source.admin(doc! {"renameCollection": "shop.orders", "to": "shop.hidden_orders"}).await;
        source.admin(doc! {"renameCollection": "shop.hidden_orders", "to": "shop.orders"}).await;
        // Not said to be live and copying nothing before it is there.
        quiesce(&mut daemon, &source).await;
        let comparison = Comparison::new(source.client(), target.client()).mapping(selected);
        assert_eq!(comparison.run().await, Ok(()));
    }
    assert_eq!(daemon.log_lines("halted").len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_selection_is_taken_over_and_a_changed_renaming_is_not() {
    let Pair { source, target } = Pair::start().await;
    fill(&source, &["shop.orders", "shop.carts", "crm.people"]).await;
    let options = DaemonOptions::new(&source, &target).toml(OFTEN);
    let mut daemon = Daemon::start(options.toml("[sync]\ninclude = [\"shop\"]"));
    daemon.wait_state("live").await;
    assert_same(&source, &target, |name| name.starts_with("shop.").then(|| name.to_owned())).await;
    daemon.terminate().await;
    daemon.configure("[sync]\ninclude = [\"shop.orders\", \"crm\"]");
    daemon.restart();
    daemon.wait_log("resync of crm.people finished").await;
    let carts = source.client().database("shop").collection::<Document>("carts");
    carts.delete_many(doc! {}).await.unwrap();
    let people = source.client().database("crm").collection::<Document>("people");
    people.delete_one(doc! {"_id": 1}).await.unwrap();
    quiesce(&mut daemon, &source).await;
    let found = target.client().database("shop").collection::<Document>("carts");
    assert_eq!(found.count_documents(doc! {}).await.unwrap(), 200, "it stays as it was");
    found.drop().await.unwrap();
    let selected = |name: &str| (name != "shop.carts").then(|| name.to_owned());
    assert_same(&source, &target, selected).await;
    assert_eq!(
        daemon.log_lines("shop.carts").iter().filter(|l| l.contains("no longer followed")).count(),
        1
    );

    daemon.terminate().await;
    daemon.configure("[sync]\nrename = [{ from = \"crm\", to = \"crm2\" }]");
    daemon.restart();
    let halted = |status: &Value| status["state"] == "halted";
    let status = daemon.wait_status("halted", LONG, halted).await;
    assert!(status["reason"].as_str().unwrap().contains("sync.rename"), "{status}");
    let told = daemon.command(&["check"]);
    assert_eq!(told.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&told.stdout).contains("sync.rename is not what"), "{told:?}");
    daemon.terminate().await;
    daemon.configure("[sync]\nrename = []");
    daemon.restart();
    daemon.wait_state("halted").await;
    assert!(daemon.command(&["resume"]).status.success());
    quiesce(&mut daemon, &source).await;
    assert_same(&source, &target, selected).await;
}
