//! What is made, changed, moved and dropped on the source is the same on the target: collections, views, indexes.

use crate::cases;
use crate::harness::{Daemon, DaemonOptions, Pair, ReplicaSet, assert_equal, quiesce};
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
