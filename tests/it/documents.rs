//! What is written on the source arrives on the target, byte for byte: before the copy, while the target follows, and
//! folded into one window.

use bson::doc;

use crate::cases;
use crate::harness::{Daemon, DaemonOptions, Pair, ReplicaSet, assert_equal, quiesce};
use crate::scenario::{Scenario, known_to, settle, while_stopped};

/// Does the same scenarios before the copy, while the target follows, and while the daemon is stopped; the database of
/// a collection that differs says which of them it was.
pub async fn run_everywhere(scenarios: Vec<Scenario>, source: &ReplicaSet, target: &ReplicaSet) {
    let client = source.client();
    let scenarios = &known_to(client, scenarios).await;
    for scenario in scenarios {
        for phase in ["before", "live", "folded"] {
            scenario.prepare(client, phase).await;
        }
        scenario.change(client, "before").await;
    }
    let mut daemon = Daemon::start(DaemonOptions::new(source, target));
    settle(source).await;
    quiesce(&mut daemon, source).await;
    assert_equal(source, target).await;
    for scenario in scenarios {
        scenario.change(client, "live").await;
    }
    settle(source).await;
    quiesce(&mut daemon, source).await;
    assert_equal(source, target).await;
    while_stopped(&mut daemon, async {
        for scenario in scenarios {
            scenario.change(client, "folded").await;
        }
        settle(source).await;
    })
    .await;
    quiesce(&mut daemon, source).await;
    assert_equal(source, target).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_write_of_a_document_arrives() {
    let Pair { source, target } = Pair::start().await;
    run_everywhere(cases::documents::all(), &source, &target).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unique_keys_go_from_one_document_to_another() {
    let Pair { source, target } = Pair::start().await;
    run_everywhere(cases::unique::all(), &source, &target).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_where_nothing_happens_goes_live_with_its_indexes() {
    let Pair { source, target } = Pair::start().await;
    let orders = doc! {"createIndexes": "orders", "indexes": [{"key": {"n": 1}, "name": "n_1"}]};
    source.client().database("shop").run_command(orders).await.unwrap();
    settle(&source).await;
    let mut daemon = Daemon::start(DaemonOptions::new(&source, &target));
    daemon.wait_state("live").await;
    assert_equal(&source, &target).await;
}
