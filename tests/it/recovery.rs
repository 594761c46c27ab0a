//! A state directory that is lost, and a source or a target that is not the one it was.

use std::time::Duration;

use bson::{Document, doc};
use serde_json::{Value, json};

use crate::harness::{
    Daemon, DaemonOptions, Mongod, Pair, ReplicaSet, ReplicaSetOptions, Workload, WorkloadOptions,
    assert_equal, quiesce, wait_for,
};

const BRIEF: &str = "[sync]\nwindow = \"200ms\"";
const HELD: Option<i32> = Some(75);
const LONG: Duration = Duration::from_secs(120);

/// Waits until the record has been mirrored that often.
pub(crate) async fn wait_mirrored(target: &ReplicaSet, times: i64) {
    let mirrored = doc! {"mirror.sequence": {"$gte": times}};
    wait_for("the record to be mirrored", LONG, || async {
        let found = target.leases().find_one(mirrored.clone()).await;
        found.map_err(|error| error.to_string())?.map(drop).ok_or_else(|| "not yet".to_owned())
    })
    .await;
}

async fn sequence(target: &ReplicaSet) -> i64 {
    let lease = target.leases().find_one(doc! {}).await.unwrap().unwrap();
    lease.get_document("mirror").unwrap().get_i64("sequence").unwrap()
}

async fn wait_halted(daemon: &mut Daemon, reason: &str) {
    let status = daemon.wait_state("halted").await;
    assert!(status["reason"].as_str().unwrap().contains(reason), "{status}");
    assert_eq!(daemon.get("/health/ready").await.unwrap().status, 503);
}

async fn resume(daemon: &Daemon) {
    assert_eq!(daemon.post("/resume", &json!({})).await.unwrap().status, 200);
}

/// Says that the cause is mended although it is not.
async fn resume_in_vain(daemon: &mut Daemon, reason: &str) {
    let before = daemon.log_lines(reason).len();
    resume(daemon).await;
    wait_for("another halt", LONG, || {
        let lines = daemon.log_lines(reason).len();
        let more = if lines > before { Ok(()) } else { Err(format!("{lines} lines")) };
        std::future::ready(more)
    })
    .await;
    wait_halted(daemon, reason).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_state_directory_is_taken_from_the_target() {
    let Pair { source, target } = Pair::start().await;
    let shop = source.client().database("shop");
    let people = shop.collection::<Document>("people");
    people.insert_many((0..10).map(|id| doc! {"_id": id, "seat": id})).await.unwrap();
    let index = doc! {"createIndexes": "people", "indexes": [{"key": {"seat": 1}, "name": "seat", "unique": true}]};
    shop.run_command(index).await.unwrap();
    let workload = Workload::start(source.client(), WorkloadOptions::default()).await;
    let mut daemon = Daemon::start(DaemonOptions::new(&source, &target).toml(BRIEF));
    daemon.wait_state("live").await;
    for round in 0_i32..3 {
        wait_mirrored(&target, i64::from(round) * 2 + 2).await;
        shop.create_collection(format!("new{round}")).await.unwrap();
        // Keys that move on: in the state of any one moment they are unique, across moments they are not.
        for id in 0..10 {
            let away = doc! {"$set": {"seat": 1000 * (round + 1) + 9 - id}};
            people.update_one(doc! {"_id": id}, away).await.unwrap();
        }
        if round == 0 {
            daemon.terminate().await;
        } else {
            // The target is further than its mirror says.
            daemon.kill9();
        }
        daemon.lose_state();
        let renamed =
            doc! {"renameCollection": format!("shop.new{round}"), "to": format!("shop.old{round}")};
        source.admin(renamed).await;
        daemon.restart();
        if round > 0 {
            assert_eq!(daemon.wait_exit(LONG).await.code(), HELD, "{}", daemon.log_tail());
            let past = vec![doc! {"$set": {"expires": {"$subtract": ["$$NOW", 1000]}}}];
            target.leases().update_many(doc! {}, past).await.unwrap();
            daemon.restart();
        }
        daemon.wait_state("live").await;
        let lines = usize::try_from(round).unwrap() + 1;
        assert_eq!(daemon.log_lines("going on from the position").len(), lines);
    }
    workload.stop().await;
    quiesce(&mut daemon, &source).await;
    assert_equal(&source, &target).await;
    let copied = daemon.log_lines("starting -> copying").len();
    assert_eq!(copied, 1, "copied again");
    let catalogues = target.client().database("snapsync").collection::<Document>("catalogue");
    assert_eq!(catalogues.count_documents(doc! {}).await.unwrap(), 1, "older ones are removed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_replica_set_halts_until_the_right_one_is_back() {
    let Pair { source, target } = Pair::start().await;
    let other = ReplicaSet::single().await;
    let orders = source.client().database("shop").collection::<Document>("orders");
    orders.insert_one(doc! {"_id": 1}).await.unwrap();
    let mut daemon = Daemon::start(DaemonOptions::new(&source, &target).toml(BRIEF));
    for side in ["source", "target"] {
        daemon.wait_state("live").await;
        wait_mirrored(&target, 2).await;
        let right = if side == "source" { &source } else { &target };
        let uri = |set: &ReplicaSet| format!("[{side}]\nuri = \"{}\"", set.uri());
        daemon.terminate().await;
        daemon.configure(&uri(&other));
        daemon.restart();
        wait_halted(&mut daemon, &format!("the {side} is another replica set")).await;
        resume_in_vain(&mut daemon, &format!("the {side} is another replica set")).await;
        daemon.terminate().await;
        daemon.configure(&uri(right));
        daemon.restart();
        // Until a person says so.
        wait_halted(&mut daemon, &format!("the {side} is another replica set")).await;
        resume(&daemon).await;
        daemon.wait_state("live").await;
    }
    orders.insert_one(doc! {"_id": 2}).await.unwrap();
    quiesce(&mut daemon, &source).await;
    assert_equal(&source, &target).await;
    assert_eq!(other.client().database("shop").list_collection_names().await.unwrap().len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_that_was_set_back_halts_and_can_be_gone_on_from() {
    let Pair { source, mut target } = Pair::start().await;
    let orders = source.client().database("shop").collection::<Document>("orders");
    orders.insert_one(doc! {"_id": 1}).await.unwrap();
    let mut daemon = Daemon::start(DaemonOptions::new(&source, &target).toml(BRIEF));
    daemon.wait_state("live").await;
    wait_mirrored(&target, 2).await;
    target.members[0].shut_down().await;
    let backup = target.members[0].back_up();
    target.members[0].restart().await;
    daemon.wait_state("live").await;
    orders.insert_one(doc! {"_id": 2}).await.unwrap();
    let before = sequence(&target).await;
    wait_mirrored(&target, before + 2).await;
    quiesce(&mut daemon, &source).await;
    set_back(&mut target.members[0], &backup).await;
    // Seen while it runs, too.
    assert_eq!(daemon.wait_exit(LONG).await.code(), Some(1), "{}", daemon.log_tail());
    orders.insert_one(doc! {"_id": 3}).await.unwrap();
    daemon.restart();
    wait_halted(&mut daemon, "behind its own record").await;
    resume_in_vain(&mut daemon, "behind its own record").await;
    // What the remedy says: without the state directory the target's own position counts.
    daemon.terminate().await;
    daemon.lose_state();
    daemon.restart();
    quiesce(&mut daemon, &source).await;
    assert_equal(&source, &target).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_was_set_back_halts() {
    let Pair { mut source, target } = Pair::start().await;
    let orders = source.client().database("shop").collection::<Document>("orders");
    orders.insert_one(doc! {"_id": 1}).await.unwrap();
    source.members[0].shut_down().await;
    let backup = source.members[0].back_up();
    source.members[0].restart().await;
    let mut daemon = Daemon::start(DaemonOptions::new(&source, &target).toml(BRIEF));
    daemon.wait_state("live").await;
    orders.insert_one(doc! {"_id": 2}).await.unwrap();
    quiesce(&mut daemon, &source).await;
    set_back(&mut source.members[0], &backup).await;
    orders.insert_one(doc! {"_id": 3}).await.unwrap();
    wait_halted(&mut daemon, "does not hold the entry").await;
    let on_target = target.client().database("shop").collection::<Document>("orders");
    assert_eq!(on_target.count_documents(doc! {}).await.unwrap(), 2, "the target is left as it is");
}

/// The roles that are documented are enough to know the replica sets again, and to fence.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documented_roles_are_enough_to_know_the_replica_sets() {
    let with_auth = || ReplicaSetOptions::default().auth("root", "secret");
    let Pair { source, target } = Pair::with(with_auth(), with_auth()).await;
    let sides = [
        (&source, vec!["backup", "readAnyDatabase"]),
        (&target, vec!["readWriteAnyDatabase", "dbAdminAnyDatabase", "restore"]),
    ];
    let mut uris = Vec::new();
    for (set, roles) in sides {
        let roles: Vec<Document> =
            roles.iter().map(|role| doc! {"role": *role, "db": "admin"}).collect();
        set.admin(doc! {"createUser": "sync", "pwd": "pass", "roles": roles}).await;
        uris.push(set.uri().replace("root:secret@", "sync:pass@"));
    }
    let mut daemon = Daemon::start(DaemonOptions::with_uris(&uris[0], &uris[1]).toml(BRIEF));
    daemon.wait_state("live").await;
    wait_mirrored(&target, 1).await;
    let lease = target.leases().find_one(doc! {}).await.unwrap().unwrap();
    let record = lease.get_document("mirror").unwrap().get_str("record").unwrap();
    let record: Value = serde_json::from_str(record).unwrap();
    assert!(record["replica_sets"]["source"].is_string(), "{record}");
    daemon.kill9();
    daemon.restart();
    daemon.wait_state("live").await;
    assert_eq!(daemon.log_lines("fencing off").len(), 1, "{}", daemon.log_tail());
    daemon.terminate().await;
    assert!(daemon.command(&["reset", "--yes"]).status.success());
}

async fn set_back(member: &mut Mongod, backup: &crate::harness::Folder) {
    member.shut_down().await;
    member.set_back(backup);
    member.restart().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reset_forgets_the_migration_and_keeps_what_it_copied() {
    let Pair { source, mut target } = Pair::start().await;
    let orders = source.client().database("shop").collection::<Document>("orders");
    orders.insert_one(doc! {"_id": 1}).await.unwrap();
    let mut daemon = Daemon::start(DaemonOptions::new(&source, &target).toml(BRIEF));
    daemon.wait_state("live").await;
    wait_mirrored(&target, 1).await;
    assert_eq!(daemon.command(&["reset", "--yes"]).status.code(), HELD, "a daemon runs");
    assert_eq!(daemon.status().await.unwrap()["state"], "live");
    daemon.kill9();
    assert_eq!(daemon.command(&["reset"]).status.code(), Some(64), "nobody to ask");

    target.members[0].shut_down().await;
    let files = || -> Vec<String> {
        let entries = std::fs::read_dir(daemon.state_directory()).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort_unstable();
        names
    };
    let before = files();
    assert_eq!(daemon.command(&["reset", "--yes"]).status.code(), Some(69));
    assert_eq!(files(), before, "nothing is changed");
    target.members[0].restart().await;

    let output = daemon.command(&["reset", "--yes", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(said["forgotten"].as_array().unwrap().len(), 1, "{said}");
    assert_eq!(said["data_on_target"], "kept");
    assert_eq!(files(), ["audit.jsonl", "lock"]);
    let audit = std::fs::read_to_string(daemon.state_directory().join("audit.jsonl")).unwrap();
    assert!(audit.lines().last().unwrap().contains("\"reset\""), "{audit}");
    for name in ["lease", "catalogue"] {
        let left = target.client().database("snapsync").collection::<Document>(name);
        assert_eq!(left.count_documents(doc! {}).await.unwrap(), 0, "{name}");
    }
    let copied = target.client().database("shop").collection::<Document>("orders");
    assert_eq!(copied.count_documents(doc! {}).await.unwrap(), 1);
    // Again is as good as once.
    let output = daemon.command(&["reset", "--yes"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&output.stdout).contains("still on the target"));

    // What is there now was made by somebody unknown.
    daemon.restart();
    assert_eq!(daemon.wait_exit(LONG).await.code(), Some(78), "{}", daemon.log_tail());
    daemon.configure("[target]\non_existing_data = \"drop\"");
    daemon.restart();
    quiesce(&mut daemon, &source).await;
    assert_equal(&source, &target).await;
}
