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
    // Names that go from one kind to another: what has them in the end is not what has to be made first.
    let view = |name: &str| doc! {"create": name, "viewOn": "again", "pipeline": []};
    let plain = |name: &str| doc! {"create": name};
    for (before, after) in [
        (plain("s1"), series("s1", "hours")),
        (series("s2", "hours"), plain("s2")),
        (plain("s3"), view("s3")),
        (series("s4", "hours"), view("s4")),
        (view("s5"), plain("s5")),
        (view("s6"), series("s6", "hours")),
    ] {
        let name = after.get_str("create").unwrap().to_owned();
        crm.run_command(before).await.unwrap();
        crm.run_command(doc! {"drop": name}).await.unwrap();
        crm.run_command(after).await.unwrap();
    }
    settle(&source).await;

    let last = [
        series("s1", "hours"),
        plain("s2"),
        view("s3"),
        view("s4"),
        plain("s5"),
        series("s6", "hours"),
    ];
    for made in last {
        target.client().database("crm").run_command(made).await.unwrap();
    }
    let theirs = target.client().database("shop");
    theirs.drop().await.unwrap();
    theirs.create_collection("made").await.unwrap();
    for name in ["system.buckets.gone", "system.buckets.again"] {
        let half = doc! {"op": "c", "ns": "crm.$cmd", "o": {"drop": name}};
        target.admin(doc! {"applyOps": [half]}).await;
    }
    let series = ["again", "s1", "s2", "s4", "s6"].map(|name| format!("system.buckets.{name}"));
    let mut making = vec![("shop", "made")];
    making.extend(["s1", "s2", "s3", "s4", "s5", "s6"].map(|name| ("crm", name)));
    making.extend(series.iter().map(|name| ("crm", name.as_str())));
    cut_short(&daemon, source.majority_ts().await, &making);
    daemon.restart();
    quiesce(&mut daemon, &source).await;
    assert_equal(&source, &target).await;
}
