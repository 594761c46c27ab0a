//! What happens on the source while the copy runs is on the target in the end.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bson::{Document, doc};
use mongodb::Client;
use rustix::process::Signal;

use crate::cases;
use crate::cases::chaos::Chaos;
use crate::harness::{
    Daemon, DaemonOptions, Pair, ReplicaSet, ReplicaSetOptions, Workload, WorkloadOptions,
    assert_equal, quiesce, user_databases, wait_for,
};
use crate::scenario::{Scenario, settle};

/// Small collections are copied one after another at this pace.
const SLOW: &str = "[copy]\nmax_bytes_per_second = \"64KiB\"";
/// Large ones in some batches, after the first of which the copy waits until it is let go.
const LARGE_BATCHES: &str = "[copy]\nmax_bytes_per_second = \"64KiB\"";

/// Its copy does not end before it is let go, however long the scenarios take.
const HELD: &str = "pads.held";
const READS: &str = "waitInFindBeforeMakingBatch";

/// Holds whoever reads this collection; the server needs test commands. Gives how often it has held anybody.
pub(crate) async fn hold_reads(set: &ReplicaSet, namespace: &str) -> i64 {
    let hold = doc! {"configureFailPoint": READS, "mode": "alwaysOn", "data": {"nss": namespace}};
    set.admin(hold).await.get_i32("count").unwrap().into()
}

/// Waits until somebody is held.
pub(crate) async fn wait_held(set: &ReplicaSet, before: i64) {
    let wait = doc! {"waitForFailPoint": READS, "timesEntered": before + 1, "maxTimeMS": 120_000};
    set.admin(wait).await;
}

pub(crate) async fn let_reads_go(set: &ReplicaSet) {
    set.admin(doc! {"configureFailPoint": READS, "mode": "off"}).await;
}

/// Lets the copy go on as fast as it can.
fn let_go(daemon: &mut Daemon) {
    daemon.configure("[copy]\nmax_bytes_per_second = \"0\"");
    daemon.signal(Signal::HUP);
}

/// The scenarios, each with its database.
fn everything() -> Vec<(Scenario, String)> {
    let documents = cases::documents::all().into_iter().chain(cases::unique::all());
    let documents = documents.filter(|scenario| scenario.name != "large");
    let documents = documents.map(|scenario| (scenario, "during".to_owned()));
    let definitions = cases::definitions::all().into_iter().map(|scenario| {
        let database = format!("during_{}", scenario.name);
        (scenario, database)
    });
    documents.chain(definitions).collect()
}

/// Collections of all sizes, so that the copy at the slow pace lasts some seconds, before and between and after the
/// other collections: large ones are copied first.
async fn slow_down(source: &ReplicaSet, seconds: usize) {
    let pads = source.client().database("pads");
    for number in 1..=20 {
        let row = doc! {"_id": 1, "pad": "x".repeat(seconds * 65_536 * number / 210)};
        pads.collection::<Document>(&format!("pad{number}")).insert_one(row).await.unwrap();
    }
}

async fn assert_arrives(daemon: &mut Daemon, source: &ReplicaSet, target: &ReplicaSet) {
    settle(source).await;
    quiesce(daemon, source).await;
    assert_equal(source, target).await;
}

async fn state(daemon: &Daemon) -> String {
    let status = daemon.status().await.expect("a status");
    status["state"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_scenario_may_happen_while_the_copy_runs() {
    let testable = ReplicaSetOptions::default().parameter("enableTestCommands=1");
    let Pair { source, target } = Pair::with(testable, ReplicaSetOptions::default()).await;
    let scenarios = Arc::new(everything());
    let began = Instant::now();
    for (scenario, database) in scenarios.iter() {
        scenario.prepare(source.client(), database).await;
    }
    // On a slow machine the scenarios last longer: the copy goes on beside most of them, and is not over before them.
    let prepared = usize::try_from(began.elapsed().as_secs()).unwrap();
    slow_down(&source, (4 * prepared).max(16)).await;
    let pads = source.client().database("pads");
    pads.collection::<Document>("held").insert_one(doc! {"_id": 1}).await.unwrap();
    let before = hold_reads(&source, HELD).await;
    let mut daemon = Daemon::start(DaemonOptions::new(&source, &target).toml(SLOW));
    daemon
        .wait_status("some of the copy", Duration::from_secs(60), |status| {
            status["copy"]["documents"].as_u64() > Some(0)
        })
        .await;
    // Two writers, who take the scenarios in another order than that of the copy, so that some collections have been
    // copied by then, some are just being copied, and some come later.
    let next = Arc::new(AtomicUsize::new(0));
    let writers = (0..2).map(|_| {
        let (client, scenarios, next) = (source.client().clone(), scenarios.clone(), next.clone());
        tokio::spawn(async move {
            loop {
                // A step that has no common divisor with the number of scenarios meets each of them once.
                let number = next.fetch_add(1, Ordering::Relaxed);
                let Some(_) = scenarios.get(number) else { return };
                let (scenario, database) = &scenarios[number * 7919 % scenarios.len()];
                scenario.change(&client, database).await;
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    assert_eq!(state(&daemon).await, "copying", "the copy was over before the scenarios were");
    wait_held(&source, before).await;
    let_reads_go(&source).await;
    let_go(&mut daemon);
    assert_arrives(&mut daemon, &source, &target).await;
}

/// A collection that is copied in several batches, while its documents move from what was copied to what was not, and
/// the other way round.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn documents_move_while_their_collection_is_copied() {
    const COUNT: i32 = 120;
    let Pair { source, target } = Pair::start().await;
    let shop = source.client().database("shop");
    let moving = shop.collection::<Document>("moving");
    let pad = "x".repeat(60_000);
    let key = doc! {"key": {"k": 1}, "name": "k", "unique": true};
    shop.run_command(doc! {"createIndexes": "moving", "indexes": [key]}).await.unwrap();
    let kinds = [
        doc! {"key": {"p": 1, "q": 1}, "name": "one_array_at_the_most"},
        doc! {"key": {"place": "2dsphere"}, "name": "place"},
    ];
    shop.run_command(doc! {"createIndexes": "moving", "indexes": kinds.to_vec()}).await.unwrap();
    let point = doc! {"type": "Point", "coordinates": [0, 0]};
    let rows = (0..COUNT)
        .map(|n| doc! {"_id": n, "k": n, "pad": &pad, "p": 1, "q": 1, "place": &point, "h": [1]});
    moving.insert_many(rows.collect::<Vec<_>>()).await.unwrap();
    let workload = Workload::start(source.client(), WorkloadOptions::default()).await;
    let mut daemon = Daemon::start(DaemonOptions::new(&source, &target).toml(LARGE_BATCHES));
    daemon
        .wait_status("the first batch", Duration::from_secs(60), |status| {
            status["copy"]["documents"].as_u64() > Some(0)
        })
        .await;
    // An older change over a newer document makes what the indexes do not allow.
    let line = doc! {"type": "LineString", "coordinates": [[0, 0], [1, 1]]};
    for change in [
        doc! {"q": [1], "place.coordinates": [1, 2], "h": [2]},
        doc! {"q": 1, "place": line, "h": 3},
        doc! {"p": [1]},
    ] {
        moving.update_many(doc! {}, doc! {"$set": change}).await.unwrap();
    }
    let hashed = doc! {"key": {"h": "hashed"}, "name": "no_array"};
    shop.run_command(doc! {"createIndexes": "moving", "indexes": [hashed]}).await.unwrap();
    let set = async |id: i32, k: i32| {
        moving
            .update_one(doc! {"_id": id}, doc! {"$set": {"k": k}, "$inc": {"moved": 1}})
            .await
            .unwrap();
    };
    for (left, right) in (0..COUNT / 2).map(|n| (n, COUNT - 1 - n)) {
        match left % 4 {
            // The two exchange their keys.
            0 | 1 => {
                set(left, -1).await;
                set(right, left).await;
                set(left, right).await;
            }
            // One goes, and its key and its `_id` go to others.
            2 => {
                moving.delete_one(doc! {"_id": left}).await.unwrap();
                set(right, left).await;
                moving.insert_one(doc! {"_id": left, "k": right, "new": true}).await.unwrap();
            }
            _ => {
                moving.delete_one(doc! {"_id": right}).await.unwrap();
                moving
                    .insert_one(doc! {"_id": 1000 + left, "k": right, "pad": &pad})
                    .await
                    .unwrap();
                moving.update_one(doc! {"_id": left}, doc! {"$unset": {"pad": ""}}).await.unwrap();
            }
        }
    }
    assert_eq!(state(&daemon).await, "copying", "the copy was over before the documents had moved");
    let_go(&mut daemon);
    workload.stop().await;
    assert_arrives(&mut daemon, &source, &target).await;
}

/// Whatever random writers do to a few names, from before the copy begins until the target follows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_definitions_from_several_writers_converge() {
    let rounds =
        std::env::var("SNAPSYNC_CHAOS_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(2);
    let first: u64 =
        std::env::var("SNAPSYNC_CHAOS_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let Pair { source, target } = Pair::start().await;
    for seed in first..first + rounds {
        empty(source.client()).await;
        empty(target.client()).await;
        slow_down(&source, 3).await;
        target.client().database("snapsync").drop().await.unwrap();
        let chaos = Chaos::start(source.client(), seed, 3);
        let done = async |count: u64| {
            let done = || async {
                let tried = chaos.tried();
                if tried >= count { Ok(()) } else { Err(format!("{tried} of {count} operations")) }
            };
            wait_for("the writers", Duration::from_secs(60), done).await;
        };
        done(250).await;
        eprintln!("seed {seed}");
        let mut daemon = Daemon::start(DaemonOptions::new(&source, &target).toml(SLOW));
        daemon
            .wait_status("the end of the copy", Duration::from_secs(60), |status| {
                status["copy"]["complete"] == true
            })
            .await;
        done(chaos.tried() + 250).await;
        chaos.stop().await;
        assert_arrives(&mut daemon, &source, &target).await;
        daemon.terminate().await;
    }
}

async fn empty(client: &Client) {
    for database in user_databases(client).await {
        client.database(&database).drop().await.unwrap();
    }
}
