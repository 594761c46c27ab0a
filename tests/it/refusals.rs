//! What the daemon refuses to start with. Each refusal has its exit code, names the thing and the mend, comes soon, and
//! leaves both deployments as they were: not even the database `snapsync` comes into being.

mod config;
mod fake_mongos;
mod secrets;
pub mod witness;

use std::time::{Duration, Instant};

use bson::{Document, doc};
use mongodb::Client;

use crate::harness::{
    Comparison, Daemon, DaemonOptions, Mongod, Pair, ReplicaSet, assert_equal, documents_in,
    quiesce, user_databases,
};
use fake_mongos::FakeMongos;
use witness::Witness;

/// The daemon looks for a server for 10 s; the rest is for a busy machine.
const REFUSED_WITHIN: Duration = Duration::from_secs(30);

/// Runs a daemon that must refuse with this code and say all of these; returns its log.
async fn refused(options: DaemonOptions, code: i32, needles: &[&str]) -> String {
    let mut daemon = Daemon::start(options);
    refused_by(&mut daemon, code, needles).await
}

async fn refused_by(daemon: &mut Daemon, code: i32, needles: &[&str]) -> String {
    let status = daemon.wait_exit(REFUSED_WITHIN).await;
    let log = daemon.log();
    assert_eq!(status.code(), Some(code), "{log}");
    // The last words say it all in one line, for whoever reads only the end of the journal.
    let reason = log.lines().rev().find(|line| line.contains(" ERROR ")).expect("an error line");
    for needle in needles {
        assert!(reason.contains(needle), "{needle:?} is not in {reason:?}\n{log}");
    }
    assert!(!log.contains("panicked"), "{log}");
    log
}

/// A connection string to a port of this machine where nobody listens.
fn nobody() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    format!("mongodb://{}/?replicaSet=rs", listener.local_addr().unwrap())
}

fn orders(client: &Client, database: &str) -> mongodb::Collection<Document> {
    client.database(database).collection("orders")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_that_do_not_answer() {
    let mut pair = Pair::start().await;
    orders(pair.source.client(), "shop").insert_one(doc! {"_id": 1}).await.unwrap();
    let Pair { source, target } = &pair;
    let witnesses = (Witness::of(source.client()).await, Witness::of(target.client()).await);
    let (nobody, source_uri, target_uri) = (nobody(), source.uri(), target.uri());
    let mend = "is it running, and reachable from here?";
    let no_source = DaemonOptions::with_uris(&nobody, &target_uri);
    let no_target = DaemonOptions::with_uris(&source_uri, &nobody);
    let says = [["source: ", "no suitable server", mend], ["target: ", "no suitable server", mend]];
    tokio::join!(refused(no_source, 69, &says[0]), refused(no_target, 69, &says[1]));
    witnesses.0.nothing_was_written().await;

    // A server that takes the connection and never answers.
    pair.source.freeze();
    let options = DaemonOptions::with_uris(&source_uri, &target_uri);
    refused(options, 69, &["source: ", mend]).await;
    pair.source.thaw();
    witnesses.1.nothing_was_written().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deployments_of_the_wrong_kind() {
    let (Pair { source, target }, standalone) = tokio::join!(Pair::start(), Mongod::standalone());
    let alone = standalone.client(None).await;
    for client in [source.client(), &alone] {
        orders(client, "shop").insert_one(doc! {"_id": 1}).await.unwrap();
    }
    let witnesses = [
        Witness::of(source.client()).await,
        Witness::of(target.client()).await,
        Witness::of(&alone).await,
    ];
    let mend = ["standalone", "--replSet rs0", "rs.initiate()"];
    let says = |side| [&[side][..], &mend].concat();
    let as_source = DaemonOptions::with_uris(&standalone.uri(), &target.uri());
    refused(as_source, 78, &says("the source is")).await;
    let as_target = DaemonOptions::with_uris(&source.uri(), &standalone.uri());
    refused(as_target, 78, &says("the target is")).await;
    // As it is written by most people, without directConnection.
    let plain = standalone.uri().replace("/?directConnection=true", "");
    refused(DaemonOptions::with_uris(&plain, &target.uri()), 78, &says("the source is")).await;

    let mongos = FakeMongos::start();
    let mend = "give the URI of a replica set";
    let as_source = DaemonOptions::with_uris(&mongos.uri(), &target.uri());
    refused(as_source, 78, &["the source is a mongos", mend]).await;
    let as_target = DaemonOptions::with_uris(&source.uri(), &mongos.uri());
    refused(as_target, 78, &["the target is a mongos", mend]).await;

    let old = FakeMongos::of_4_0();
    let too_old = "older than MongoDB 4.2";
    let (as_source, as_target) = (
        DaemonOptions::with_uris(&old.uri(), &target.uri()),
        DaemonOptions::with_uris(&source.uri(), &old.uri()),
    );
    let says = [["source: ", too_old], ["target: ", too_old]];
    tokio::join!(refused(as_source, 78, &says[0]), refused(as_target, 78, &says[1]));

    // With a replicaSet in the URI the driver does not even look at them, nor at a set of another name.
    let in_a_set = |uri: &str, set: &str| format!("{uri}?replicaSet={set}");
    let alone = in_a_set(&format!("{plain}/"), "elsewhere");
    let wrong_name = target.uri().replace(target.name(), "elsewhere");
    let host = target.members[0].host();
    let belongs = format!("{host} belongs to the replica set {}, not elsewhere", target.name());
    let says = [
        ["source: ", "is a standalone server", "--replSet elsewhere", "rs.initiate()"],
        ["source: ", "is a mongos", mend, "127.0.0.1"],
        ["target: ", &belongs, "correct replicaSet in the URI", &host],
    ];
    let (mongos, uris) = (in_a_set(&mongos.uri(), "elsewhere"), (source.uri(), target.uri()));
    tokio::join!(
        refused(DaemonOptions::with_uris(&alone, &uris.1), 78, &says[0]),
        refused(DaemonOptions::with_uris(&mongos, &uris.1), 78, &says[1]),
        refused(DaemonOptions::with_uris(&uris.0, &wrong_name), 78, &says[2]),
    );
    for witness in &witnesses {
        witness.nothing_was_written().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_deployment_as_both() {
    let set = ReplicaSet::single().await;
    orders(set.client(), "shop").insert_one(doc! {"_id": 1}).await.unwrap();
    let witness = Witness::of(set.client()).await;
    let mut same = Daemon::start(DaemonOptions::new(&set, &set));
    let status = same.wait_exit(REFUSED_WITHIN).await;
    assert_eq!(status.code(), Some(78));
    let host = set.members[0].host();
    for needle in ["source and target are the same", &host, "target.uri"] {
        assert!(same.log().contains(needle), "{}", same.log());
    }
    let other = set.uri().replace("127.0.0.1", "localhost");
    let needles = ["source and target are the same deployment", "correct one of the two URIs"];
    refused(DaemonOptions::with_uris(&set.uri(), &other), 78, &needles).await;
    refused(DaemonOptions::with_uris(&other, &set.uri()), 78, &needles).await;
    // By one member alone, too.
    let direct =
        format!("mongodb://{}/?directConnection=true", host.replace("127.0.0.1", "localhost"));
    refused(DaemonOptions::with_uris(&set.uri(), &direct), 78, &needles).await;
    witness.nothing_was_written().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_with_data_of_its_own() {
    let Pair { source, target } = Pair::start().await;
    for id in 0..10 {
        orders(source.client(), "shop").insert_one(doc! {"_id": id}).await.unwrap();
        orders(source.client(), "private").insert_one(doc! {"_id": id}).await.unwrap();
    }
    let shop = target.client().database("shop");
    orders(target.client(), "shop").insert_one(doc! {"_id": 77}).await.unwrap();
    // Selected by name, though the source has no such collection.
    shop.collection("extra").insert_one(doc! {"_id": 1}).await.unwrap();
    shop.create_collection("dear").view_on("orders").await.unwrap();
    orders(target.client(), "private").insert_one(doc! {"_id": "mine"}).await.unwrap();
    let options = DaemonOptions::new(&source, &target).toml("[sync]\ninclude = [\"shop\"]");
    let witness = Witness::of(target.client()).await;
    let mut daemon = Daemon::start(options);
    let names = "shop.dear, shop.extra, shop.orders";
    let mend = ["sync.include", "on_existing_data = \"drop\""];
    let log = refused_by(&mut daemon, 78, &["the target is not empty", names]).await;
    assert!(mend.iter().all(|mend| log.contains(mend)), "{log}");
    witness.nothing_was_written().await;
    // It stays refused, with the state that the refusal left.
    daemon.restart();
    refused_by(&mut daemon, 78, &["the target is not empty"]).await;
    let output = daemon.command(&["check"]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("shop.orders"), "{output:?}");
    witness.nothing_was_written().await;

    daemon.configure("[target]\non_existing_data = \"drop\"");
    daemon.restart();
    quiesce(&mut daemon, &source).await;
    only_shop(&source, &target).await;
    assert_eq!(documents_in(target.client(), "private.orders").await, 1);
    assert_eq!(documents_in(target.client(), "shop.orders").await, 10);

    // What it dropped once it does not drop again: the data is its own by now.
    let copied = daemon.status().await.unwrap()["totals"]["documents_copied"].clone();
    let (ended, _) = daemon.terminate().await;
    assert!(ended.success());
    daemon.restart();
    quiesce(&mut daemon, &source).await;
    assert_eq!(daemon.status().await.unwrap()["totals"]["documents_copied"], copied);
    assert_eq!(daemon.log_lines("dropping existing shop.orders").len(), 1, "{}", daemon.log());
    only_shop(&source, &target).await;
}

async fn only_shop(source: &ReplicaSet, target: &ReplicaSet) {
    // What is not selected is there on the target under a name that the source's has too.
    let aside = target.client().database("private");
    let mine = aside.collection::<Document>("orders").find_one(doc! {}).await.unwrap();
    assert_eq!(mine, Some(doc! {"_id": "mine"}));
    let comparison = Comparison::new(source.client(), target.client())
        .mapping(|name| name.starts_with("shop.").then(|| name.to_owned()));
    let difference = comparison.run().await.unwrap_err();
    // A server that has had views keeps the empty collection they were in.
    let difference = difference.replace("shop.system.views: only on the target\n", "");
    assert_eq!(difference, "private.orders: only on the target\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_that_is_not_selected_is_not_in_the_way() {
    let Pair { source, target } = Pair::start().await;
    orders(source.client(), "shop").insert_one(doc! {"_id": 1}).await.unwrap();
    orders(target.client(), "private").insert_one(doc! {"_id": "mine"}).await.unwrap();
    // An empty collection of a selected name holds nothing that could be lost.
    target.client().database("shop").create_collection("orders").await.unwrap();
    let options = DaemonOptions::new(&source, &target).toml("[sync]\ninclude = [\"shop\"]");
    let mut daemon = Daemon::start(options);
    daemon.wait_state("live").await;
    quiesce(&mut daemon, &source).await;
    only_shop(&source, &target).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_daemon() {
    let Pair { source, target } = Pair::start().await;
    orders(source.client(), "shop").insert_one(doc! {"_id": 1}).await.unwrap();
    let mut first = Daemon::start(DaemonOptions::new(&source, &target));
    first.wait_state("live").await;
    quiesce(&mut first, &source).await;
    let owner = lease(&target).await;
    let process = format!("process {}", first.process_id());

    let directory = first.state_directory().display().to_string();
    let state = format!("[state]\ndirectory = {directory:?}");
    let options = DaemonOptions::new(&source, &target);
    refused(options.clone().toml(&state), 75, &[&directory, "is in use by", &process]).await;
    let mut second = Daemon::start(options);
    let needles = ["the lease on the target is held by snapsync on", &process];
    refused_by(&mut second, 75, &needles).await;
    assert_eq!(lease(&target).await, owner, "the lease is untouched");
    assert_eq!(user_databases(target.client()).await.len(), 1);
    assert_eq!(first.status().await.unwrap()["state"], "live");
    assert_equal(&source, &target).await;

    // Killed, it leaves its lease behind. It takes it back at once; to others it is dead only after a while.
    first.kill9();
    second.restart();
    refused_by(&mut second, 75, &needles).await;
    let began = Instant::now();
    first.restart();
    first.wait_state("live").await;
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    orders(source.client(), "shop").insert_one(doc! {"_id": 2}).await.unwrap();
    quiesce(&mut first, &source).await;
    assert_equal(&source, &target).await;
    let now = lease(&target).await;
    assert_eq!(now.0, owner.0);
    assert_eq!(now.1, owner.1 + 1);

    // Ended in order, it gives the lease back: the other one is refused only for the data.
    let (ended, _) = first.terminate().await;
    assert!(ended.success());
    second.restart();
    refused_by(&mut second, 78, &["the target is not empty", "shop.orders"]).await;
}

/// Who holds the lease, in which generation.
async fn lease(target: &ReplicaSet) -> (String, i64) {
    let leases = target.leases();
    let lease = leases.find_one(doc! {}).await.unwrap().expect("a lease");
    let owner = lease.get_str("_id").unwrap().to_owned();
    (owner, lease.get_i64("generation").unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_that_is_older_than_the_source() {
    let Pair { source, target } = Pair::start().await;
    orders(source.client(), "shop").insert_one(doc! {"_id": 1}).await.unwrap();
    let info = target.admin(doc! {"buildInfo": 1}).await;
    let older = match info.get_str("version").unwrap() {
        version if version.starts_with("6.") => "5.0",
        version if version.starts_with("5.") => "4.4",
        _ => "4.2",
    };
    target.admin(doc! {"setFeatureCompatibilityVersion": older}).await;
    let witness = Witness::of(target.client()).await;
    let found = format!("feature compatibility {older}");
    let needles = ["the target", &found, "is older than the source", "upgrade the target"];
    refused(DaemonOptions::new(&source, &target), 78, &needles).await;
    witness.nothing_was_written().await;
}
