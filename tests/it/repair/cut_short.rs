//! What a window that was cut short has done and could not note.

use bson::{Document, Timestamp, doc};
use snapsync::namespace::Namespace;
use snapsync::state::Slot;
use snapsync::state::catalogue::CatalogueStore;
use snapsync::sync::record::Record;

use super::OFTEN;
use crate::harness::{Daemon, DaemonOptions, Pair, assert_equal, quiesce};
use crate::scenario::settle;

/// As the state is after a kill in the midst of a window that ends here and makes these collections.
fn cut_short(daemon: &Daemon, intent: Timestamp, making: &[(&str, &str)]) {
    let position = daemon.state_directory().join("position");
    let (mut slot, record) = Slot::<Record>::open(&position).unwrap();
    slot.write(&Record { intent: Some(intent.into()), ..record.unwrap() }).unwrap();
    let catalogue = CatalogueStore::open(daemon.state_directory().join("catalogue.json")).unwrap();
    let making = making.iter().map(|(database, name)| Namespace::new(*database, *name));
    catalogue.change(|catalogue| catalogue.making.extend(making));
    catalogue.save().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_run_that_was_cut_short_could_not_note_is_cleared_away() {
    let Pair { source, target } = Pair::start().await;
    let (shop, crm) = (source.client().database("shop"), source.client().database("crm"));
    let series = |name: &str, granularity: &str| {
        doc! {"create": name, "timeseries": {"timeField": "t", "granularity": granularity}}
    };
    shop.collection::<Document>("a").insert_one(doc! {"_id": 1}).await.unwrap();
    for name in ["gone", "again"] {
        crm.run_command(series(name, "seconds")).await.unwrap();
    }
    let mut daemon = Daemon::start(DaemonOptions::new(&source, &target).toml(OFTEN));
    daemon.wait_state("live").await;
    quiesce(&mut daemon, &source).await;
    daemon.kill9();

    // A place for views that comes and goes, and a collection that is made after that.
    shop.run_command(doc! {"create": "v", "viewOn": "a", "pipeline": []}).await.unwrap();
    shop.drop().await.unwrap();
    shop.collection::<Document>("made").insert_one(doc! {"_id": 1}).await.unwrap();
    // Two time series, which a server drops in two steps.
    for name in ["gone", "again"] {
        crm.run_command(doc! {"drop": name}).await.unwrap();
    }
    crm.run_command(series("again", "hours")).await.unwrap();
    settle(&source).await;

    let theirs = target.client().database("shop");
    theirs.drop().await.unwrap();
    theirs.create_collection("made").await.unwrap();
    for name in ["system.buckets.gone", "system.buckets.again"] {
        let half = doc! {"op": "c", "ns": "crm.$cmd", "o": {"drop": name}};
        target.admin(doc! {"applyOps": [half]}).await;
    }
    let making = [("shop", "made"), ("crm", "system.buckets.again")];
    cut_short(&daemon, source.majority_ts().await, &making);
    daemon.restart();
    quiesce(&mut daemon, &source).await;
    assert_equal(&source, &target).await;
}
