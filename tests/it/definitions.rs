//! What is made, changed, moved and dropped on the source is the same on the target: collections, views, indexes.

use std::time::Duration;

use bson::{Document, doc};

use crate::cases;
use crate::harness::{
    Daemon, DaemonOptions, Pair, ReplicaSet, ReplicaSetOptions, assert_equal, quiesce, wait_for,
};
use crate::scenario::{known_to, settle, while_stopped};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_definition_arrives() {
    let Pair { source, target } = Pair::start().await;
    run_everywhere(&source, &target).await;
}

/// The same scenarios before the copy, while the target follows, and while the daemon is stopped, so that it finds
/// them in one window. The database that differs says which it was.
pub async fn run_everywhere(source: &ReplicaSet, target: &ReplicaSet) {
    let client = source.client();
    let scenarios = known_to(client, cases::definitions::all()).await;
    for scenario in &scenarios {
        for phase in ["before", "live", "folded"] {
            scenario.prepare(client, &format!("{phase}_{}", scenario.name)).await;
        }
        scenario.change(client, &format!("before_{}", scenario.name)).await;
    }
    let mut daemon = Daemon::start(DaemonOptions::new(source, target));
    settle(source).await;
    quiesce(&mut daemon, source).await;
    assert_equal(source, target).await;
    for scenario in &scenarios {
        scenario.change(client, &format!("live_{}", scenario.name)).await;
    }
    settle(source).await;
    quiesce(&mut daemon, source).await;
    assert_equal(source, target).await;
    while_stopped(&mut daemon, async {
        for scenario in &scenarios {
            scenario.change(client, &format!("folded_{}", scenario.name)).await;
        }
        settle(source).await;
    })
    .await;
    quiesce(&mut daemon, source).await;
    assert_equal(source, target).await;
}

/// A server lists an index that is being built like any other. Whether it will ever be one is told later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_that_was_never_finished_is_not_on_the_target() {
    leaves_unfinished_indexes_out(ReplicaSetOptions::default()).await;
}

/// The same where the source is made like this.
pub async fn leaves_unfinished_indexes_out(source: ReplicaSetOptions) {
    let testing = source.parameter("enableTestCommands=1");
    let Pair { source, target } = Pair::with(testing, ReplicaSetOptions::default()).await;
    let shop = source.client().database("shop");
    let rows = (0..50).map(|n| doc! {"_id": n, "n": n, "twice": n / 2});
    shop.collection::<Document>("a").insert_many(rows).await.unwrap();
    let fail =
        |mode: &str| doc! {"configureFailPoint": "hangAfterStartingIndexBuild", "mode": mode};
    source.admin(fail("alwaysOn")).await;
    let build = |name: &str, key: Document, unique: bool| {
        let index = doc! {"name": name, "key": key, "unique": unique};
        let shop = shop.clone();
        tokio::spawn(async move {
            shop.run_command(doc! {"createIndexes": "a", "indexes": [index]}).await
        })
    };
    let refused = build("refused", doc! {"twice": 1}, true);
    let finished = build("finished", doc! {"n": -1}, true);
    wait_for("both builds", Duration::from_secs(60), || async {
        let listed = shop.run_command(doc! {"listIndexes": "a"}).await.unwrap().to_string();
        let both = listed.contains("refused") && listed.contains("finished");
        if both { Ok(()) } else { Err(listed) }
    })
    .await;
    settle(&source).await;
    let mut daemon = Daemon::start(DaemonOptions::new(&source, &target));
    daemon.wait_state("live").await;
    let ours = target.client().database("shop");
    let listed = ours.run_command(doc! {"listIndexes": "a"}).await.unwrap().to_string();
    assert!(!listed.contains("refused") && !listed.contains("finished"), "{listed}");
    source.admin(fail("off")).await;
    assert!(refused.await.unwrap().is_err(), "two documents have one key");
    finished.await.unwrap().unwrap();
    settle(&source).await;
    quiesce(&mut daemon, &source).await;
    assert_equal(&source, &target).await;
}
