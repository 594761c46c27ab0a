//! Users, passwords and privileges: what is refused, what is enough, and that no password is ever shown.

use bson::{Document, doc};
use mongodb::Client;

use super::{Witness, refused};
use crate::harness::{
    Daemon, DaemonOptions, Pair, ReplicaSet, ReplicaSetOptions, assert_equal, program, quiesce,
};
use crate::privileges::{change, fill};

/// Of the root users; no part of any name.
const ROOT_PASSWORD: &str = "xyzzy-root-xyzzy";
/// Of the daemon's users, with characters that a URI wants percent-encoded.
const PASSWORD: &str = "plugh:xyzzy@plugh/xyzzy";
const ENCODED: &str = "plugh%3Axyzzy%40plugh%2Fxyzzy";
/// What all of them, plain and encoded, have in common.
const TRACE: &str = "xyzzy";

async fn pair() -> Pair {
    let options = || ReplicaSetOptions::default().auth("root", ROOT_PASSWORD);
    Pair::with(options(), options()).await
}

async fn create_user(set: &ReplicaSet, name: &str, roles: &[Document]) {
    set.admin(doc! {"createUser": name, "pwd": PASSWORD, "roles": roles}).await;
}

fn role(role: &str) -> Document {
    doc! {"role": role, "db": "admin"}
}

fn uri(set: &ReplicaSet, user: &str, password: &str) -> String {
    let host = set.members[0].host();
    format!("mongodb://{user}:{password}@{host}/?replicaSet={}&authSource=admin", set.name())
}

fn without_user(set: &ReplicaSet) -> String {
    format!("mongodb://{}/?replicaSet={}", set.members[0].host(), set.name())
}

/// Runs the daemon to its refusal, at the level that tells most; no password may be in its log.
async fn refused_silently(source: &str, target: &str, needles: &[&str]) {
    let options = DaemonOptions::with_uris(source, target).toml("[log]\nlevel = \"trace\"");
    let log = refused(options, 78, needles).await;
    assert!(!log.contains(TRACE), "a password is shown:\n{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_users_are_refused() {
    let Pair { source, target } = pair().await;
    create_user(&source, "copier", &[role("backup"), role("readAnyDatabase")]).await;
    create_user(&source, "shopkeeper", &[doc! {"role": "read", "db": "shop"}]).await;
    create_user(&source, "reader", &[role("readAnyDatabase")]).await;
    create_user(&target, "reader", &[role("readAnyDatabase")]).await;
    let writer_of_one =
        [doc! {"role": "readWrite", "db": "shop"}, doc! {"role": "dbAdmin", "db": "shop"}];
    create_user(&target, "shopkeeper", &writer_of_one).await;
    shop(source.client()).insert_one(doc! {"_id": 1}).await.unwrap();
    let witnesses = [Witness::of(source.client()).await, Witness::of(target.client()).await];

    let (good_source, good_target) = (uri(&source, "copier", ENCODED), target.uri());
    let wrong_source = uri(&source, "copier", "xyzzy-wrong");
    let wrong_target = uri(&target, "root", "xyzzy-wrong");
    let credentials = ["authentication failed", "check user, password and authSource"];
    let nobody = ["source", "wants authentication", "no user"];
    let cases: [(&str, &str, &[&str]); 8] = [
        (&wrong_source, &good_target, &[&["source: "], &credentials[..]].concat()),
        (&good_source, &wrong_target, &[&["target: "], &credentials[..]].concat()),
        (&without_user(&source), &good_target, &nobody),
        (&good_source, &without_user(&target), &["target", "wants authentication", "no user"]),
        (
            &uri(&source, "shopkeeper", ENCODED),
            &good_target,
            &["source", "find on any database", "`backup` and `readAnyDatabase`"],
        ),
        (&uri(&source, "reader", ENCODED), &good_target, &["source", "`backup`"]),
        (
            &good_source,
            &uri(&target, "reader", ENCODED),
            &["target", "insert on any database", "`readWriteAnyDatabase`", "`restore`"],
        ),
        (
            &good_source,
            &uri(&target, "shopkeeper", ENCODED),
            &["target", "insert on snapsync", "`readWriteAnyDatabase`", "`dbAdminAnyDatabase`"],
        ),
    ];
    for (source, target, needles) in cases {
        refused_silently(source, target, needles).await;
    }
    for witness in &witnesses {
        witness.nothing_was_written().await;
    }
}

fn shop(client: &Client) -> mongodb::Collection<Document> {
    client.database("shop").collection("orders")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documented_roles_are_enough_and_no_password_is_shown() {
    let Pair { source, target } = pair().await;
    create_user(&source, "copier", &[role("backup"), role("readAnyDatabase")]).await;
    let writer = [role("readWriteAnyDatabase"), role("dbAdminAnyDatabase"), role("restore")];
    create_user(&target, "writer", &writer).await;
    let info = source.admin(doc! {"buildInfo": 1}).await;
    let has_time_series = !info.get_str("version").unwrap().starts_with("4.");
    fill(source.client(), "shop", has_time_series).await;
    source.client().database("js").run_command(doc! {"create": "system.js"}).await.unwrap();

    let uris = (uri(&source, "copier", ENCODED), uri(&target, "writer", ENCODED));
    let options = DaemonOptions::with_uris(&uris.0, &uris.1)
        .toml("[log]\nlevel = \"trace\"\n[delta]\ninterval = \"200ms\"");
    let mut daemon = Daemon::start(options);
    daemon.wait_state("live").await;
    change(source.client(), "shop").await;
    quiesce(&mut daemon, &source).await;
    assert_equal(&source, &target).await;

    // A restart finds, kills and adopts what an earlier run left: these want privileges too.
    daemon.kill9();
    daemon.restart();
    daemon.wait_state("live").await;
    shop(source.client()).insert_one(doc! {"_id": 2000}).await.unwrap();
    quiesce(&mut daemon, &source).await;
    assert_equal(&source, &target).await;

    let process = daemon.process_id();
    let arguments = std::fs::read(format!("/proc/{process}/cmdline")).unwrap();
    let mut shown = vec![
        ("the arguments", String::from_utf8_lossy(&arguments).into_owned()),
        ("the status", daemon.get("/status").await.unwrap().body),
    ];
    for args in [
        &["status"][..],
        &["status", "--json"],
        &["config"],
        &["config", "--json"],
        &["config", "--check"],
        &["check"],
        &["check", "--json"],
    ] {
        let output = daemon.command(args);
        assert!(output.status.success(), "{args:?}: {output:?}");
        let text = [output.stdout, output.stderr].concat();
        shown.push((args[0], String::from_utf8_lossy(&text).into_owned()));
    }
    let (status, _) = daemon.terminate().await;
    assert_eq!(status.code(), Some(0));
    shown.push(("the log", daemon.log()));
    for entry in std::fs::read_dir(daemon.state_directory()).unwrap() {
        let file = entry.unwrap().path();
        if file.is_file() {
            let text = std::fs::read(&file).unwrap();
            shown.push(("a state file", String::from_utf8_lossy(&text).into_owned()));
        }
    }
    for (what, text) in shown {
        assert!(!text.is_empty(), "{what} is empty");
        assert!(!text.contains(TRACE), "{what} shows a password:\n{text}");
    }
}

/// A password that somebody put where it does not belong is not repeated, wherever it was put.
#[test]
fn a_password_among_the_arguments_is_refused_and_not_repeated() {
    let uri = format!("mongodb://u:{ENCODED}@h/");
    let cases: [(&[&str], i32); 8] = [
        (&["run", "--set", &format!("source.uri={uri}")], 64),
        (&["check", &format!("--set=target.uri={uri}")], 64),
        (&["config", "--check", "--set", &format!("target.uri={uri}")], 64),
        (&["run", &uri], 64),
        (&["run", "--target-uri", &uri], 64),
        (&["run", &format!("--source-uri={uri}")], 64),
        (&["run", "--set", &format!("source.uri:{uri}")], 64),
        (&[&uri], 64),
    ];
    for (args, code) in cases {
        let output = program().args(args).output().unwrap();
        let text = [&output.stdout[..], &output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {text}");
        assert!(!text.contains(TRACE), "{args:?} shows the password: {text}");
        assert!(!text.is_empty());
    }
    let assigned = format!("source.uri={uri}");
    let output = program().args(["run", "--set", &assigned]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("source.uri") && text.contains("uri_file"), "{text}");
}
