//! The users of `docs/privileges.md`, made by the very commands that stand there: they are enough for everything, by
//! password and by certificate, over TLS, and the servers never refuse them anything.

use std::path::Path;
use std::time::Duration;

use bson::{Bson, Document, doc};
use mongodb::{Client, IndexModel};
use serde_json::Value;

use crate::harness::{
    Authority, Daemon, DaemonOptions, Pair, ReplicaSet, ReplicaSetOptions, assert_equal, quiesce,
};

const LONG: Duration = Duration::from_secs(120);
/// Has no character that a URI or a shell minds.
const PASSWORD: &str = "plugh-xyzzy";
const KEY_PASSWORD: &str = "xyzzy-plugh";
const FOLLOWING: &str = "[delta]\ninterval = \"500ms\"\n[log]\nlevel = \"debug\"\n[sync]\n";

/// One of each thing that wants a privilege of its own.
pub async fn fill(client: &Client, database: &str, has_time_series: bool) {
    let shop = client.database(database);
    shop.create_collection("log").capped(true).size(4096).await.unwrap();
    shop.create_collection("strict").validator(doc! {"n": {"$lt": 100}}).await.unwrap();
    shop.create_collection("dear").view_on("orders").pipeline([doc! {"$match": {}}]).await.unwrap();
    let ttl = doc! {"key": {"at": 1}, "name": "ttl", "expireAfterSeconds": 3600};
    shop.run_command(doc! {"createIndexes": "sessions", "indexes": [ttl]}).await.unwrap();
    let orders = shop.collection::<Document>("orders");
    orders.insert_many((0..50).map(|n| doc! {"_id": n, "n": n})).await.unwrap();
    orders.create_index(IndexModel::builder().keys(doc! {"n": -1}).build()).await.unwrap();
    // Written before there was a validator against it.
    let strict = shop.collection::<Document>("strict");
    let insert = doc! {"insert": "strict", "documents": [{"_id": 1, "n": 200}], "bypassDocumentValidation": true};
    shop.run_command(insert).await.unwrap();
    strict.insert_one(doc! {"_id": 2, "n": 1}).await.unwrap();
    if has_time_series {
        for name in ["weather", "tides"] {
            let series = doc! {"timeField": "at", "metaField": "place"};
            shop.run_command(doc! {"create": name, "timeseries": series}).await.unwrap();
        }
        let at = bson::DateTime::from_millis(0);
        let weather = shop.collection::<Document>("weather");
        weather.insert_one(doc! {"_id": 1, "at": at, "value": 1}).await.unwrap();
    }
    let functions = ["sum", "product"].map(|name| doc! {"_id": name, "value": 1});
    shop.collection::<Document>("system.js").insert_many(functions).await.unwrap();
}

/// Every kind of definition, and a transaction, while the daemon follows.
pub async fn change(client: &Client, database: &str) {
    let shop = client.database(database);
    let run = async |command: Document| shop.run_command(command).await.unwrap();
    let new = doc! {"key": {"x": 1}, "name": "x"};
    run(doc! {"createIndexes": "orders", "indexes": [new]}).await;
    run(doc! {"dropIndexes": "orders", "index": "n_-1"}).await;
    run(doc! {"collMod": "strict", "validator": {"n": {"$lt": 5}}}).await;
    run(doc! {"collMod": "dear", "viewOn": "orders", "pipeline": [{"$match": {"n": 2}}]}).await;
    run(doc! {"drop": "sessions"}).await;
    let update = doc! {"q": {"_id": "sum"}, "u": {"$set": {"value": 2}}};
    run(doc! {"update": "system.js", "updates": [update]}).await;
    let delete = doc! {"q": {"_id": "product"}, "limit": 1};
    run(doc! {"delete": "system.js", "deletes": [delete]}).await;
    let weather = (1..5).map(|n| doc! {"_id": n, "at": bson::DateTime::from_millis(n), "value": n});
    shop.collection::<Document>("weather").insert_many(weather).await.unwrap();
    for name in ["weather", "system.js"] {
        let index = doc! {"key": {"place": 1}, "name": "place"};
        run(doc! {"createIndexes": name, "indexes": [index]}).await;
        run(doc! {"dropIndexes": name, "index": "place"}).await;
    }
    run(doc! {"create": "brief"}).await;
    run(doc! {"drop": "brief"}).await;
    run(doc! {"convertToCapped": "strict", "size": 8192}).await;
    let (from, to) = (format!("{database}.log"), format!("{database}_archive.log"));
    let rename = doc! {"renameCollection": from, "to": &to};
    client.database("admin").run_command(rename).await.unwrap();
    let rename = doc! {"renameCollection": &to, "to": format!("{to}2")};
    client.database("admin").run_command(rename).await.unwrap();
    let gone = client.database(&format!("{database}_gone"));
    gone.collection("x").insert_one(doc! {"_id": 1}).await.unwrap();
    gone.drop().await.unwrap();
    let mut session = client.start_session().await.unwrap();
    session.start_transaction().await.unwrap();
    let orders = shop.collection::<Document>("orders");
    orders.insert_one(doc! {"_id": 1000}).session(&mut session).await.unwrap();
    orders.delete_one(doc! {"_id": 3}).session(&mut session).await.unwrap();
    session.commit_transaction().await.unwrap();
}

/// What can be done to a time-series, of MongoDB 6.0.
async fn change_series(client: &Client, database: &str) {
    let shop = client.database(database);
    let delete = doc! {"q": {"place": Bson::Null}, "limit": 0};
    for command in [
        doc! {"delete": "weather", "deletes": [delete]},
        doc! {"collMod": "weather", "timeseries": {"granularity": "hours"}},
        doc! {"drop": "tides"},
    ] {
        shop.run_command(command).await.unwrap();
    }
}

/// A command of the page, and the database that it is for.
#[derive(Debug)]
struct Statement {
    database: String,
    command: Document,
}

/// The commands below this heading.
fn statements(page: &str, heading: &str) -> Vec<Statement> {
    let section = page.split("\n## ").find(|section| section.starts_with(heading)).unwrap();
    let blocks = section.split("```js\n").skip(1).map(|block| block.split("```").next().unwrap());
    blocks.map(Statement::read).collect()
}

impl Statement {
    fn read(text: &str) -> Self {
        let code: Vec<&str> =
            text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
        let code = code.join("\n");
        let (call, body) = code.split_once("mmand(").unwrap();
        let database = match call.strip_prefix("db.getSiblingDB(\"") {
            Some(rest) => rest.split('"').next().unwrap(),
            None => {
                assert_eq!(call, "db.adminCo");
                "admin"
            }
        };
        let body = body.trim_end().strip_suffix(')').unwrap();
        let body = body.replace("passwordPrompt()", &format!("\"{PASSWORD}\""));
        let command = serde_json::from_str(&body).unwrap_or_else(|e| panic!("{e} in {body}"));
        Self { database: database.to_owned(), command }
    }

    async fn run(&self, set: &ReplicaSet) {
        let database = set.client().database(&self.database);
        let reply = database.run_command(self.command.clone()).await;
        reply.unwrap_or_else(|error| panic!("{}: {error}", self.command));
    }
}

/// Makes the users of one side: as the page has it, and one for a single database, as it says how to.
async fn make_users(set: &ReplicaSet, page: &str, heading: &str) {
    let narrow =
        page.replace("\"db\": \"\"", "\"db\": \"shop\"").replace("\"snapsync", "\"shop-snapsync");
    let narrow = narrow.replace("{ \"db\": \"shop-snapsync\"", "{ \"db\": \"snapsync\"");
    let narrow = statements(&narrow, heading);
    for statement in statements(page, heading).iter().chain(&narrow[..2]) {
        statement.run(set).await;
    }
}

fn with_tls(set: &ReplicaSet, user: &str, authority: &Authority) -> String {
    let (host, name) = (set.members[0].host(), set.name());
    let tls = format!("tls=true&tlsCAFile={}", authority.certificate().display());
    format!("mongodb://{user}{host}/?replicaSet={name}&{tls}")
}

fn by_password(set: &ReplicaSet, user: &str, authority: &Authority) -> String {
    let uri = with_tls(set, &format!("{user}:{PASSWORD}@"), authority);
    format!("{uri}&authMechanism=SCRAM-SHA-256&authSource=admin")
}

fn by_certificate(set: &ReplicaSet, file: &Path, authority: &Authority) -> String {
    let uri = with_tls(set, "", authority);
    format!(
        "{uri}&authMechanism=MONGODB-X509&authSource=$external&tlsCertificateKeyFile={}",
        file.display()
    )
}

/// What the server refused to anybody; the connections by which a test waits for the server have no user.
fn refusals(set: &ReplicaSet) -> Vec<String> {
    let log = set.members[0].log();
    let failed = log.lines().filter(|line| line.contains("Checking authorization failed"));
    let refused = failed.filter(|line| line.contains("Unauthorized"));
    refused.filter(|line| !line.contains("{ endSessions: ")).map(str::to_owned).collect()
}

fn assert_checked(daemon: &Daemon) {
    let output = daemon.command(&["check", "--json"]);
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{told}{}", String::from_utf8_lossy(&output.stderr));
    let told: Value = serde_json::from_str(&told).unwrap();
    for check in told["checks"].as_array().unwrap() {
        let of_users = check["name"].as_str().unwrap().ends_with(" privileges");
        assert!(!of_users || check["text"] == "sufficient", "{check}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documented_users_may_do_what_they_need_over_tls_and_nothing_is_refused_to_them() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/privileges.md");
    let page = std::fs::read_to_string(page).unwrap();
    let authority = Authority::new();
    // The page is about this one.
    let version = || ReplicaSetOptions::default().version("6.0.5");
    let options = || version().auth("root", PASSWORD).tls(&authority);
    let Pair { source, target } = Pair::with(options(), options()).await;
    make_users(&source, &page, "On the source").await;
    make_users(&target, &page, "On the target").await;
    for database in ["shop", "crm"] {
        fill(source.client(), database, true).await;
    }
    let name =
        statements(&page, "On the target")[2].command.get_str("createUser").unwrap().to_owned();
    let certificate = authority.user(&name, None);
    let locked = authority.user(&name, Some(KEY_PASSWORD));

    // One with rights for a single database, the other for all.
    let mut shop = Daemon::start(
        DaemonOptions::with_uris(
            &by_password(&source, "shop-snapsync", &authority),
            &by_password(&target, "shop-snapsync", &authority),
        )
        .toml(&format!("{FOLLOWING}include = [\"shop\"]")),
    );
    let target_uri = by_certificate(&target, &locked, &authority);
    let mut rest = Daemon::start(
        DaemonOptions::with_uris(
            &by_certificate(&source, &certificate, &authority),
            &format!("{target_uri}&tlsCertificateKeyFilePassword={KEY_PASSWORD}"),
        )
        .toml(&format!("{FOLLOWING}exclude = [\"shop\"]")),
    );
    for daemon in [&mut shop, &mut rest] {
        wait_live(daemon).await;
        assert_checked(daemon);
    }
    for database in ["shop", "crm"] {
        change(source.client(), database).await;
        change_series(source.client(), database).await;
    }
    level(&mut shop, &mut rest, &source, &target).await;

    // Counted exactly, and copied again; the other on demand.
    let foreign = target.client().database("shop").collection::<Document>("orders");
    foreign.insert_many((0..5).map(|n| doc! {"_id": format!("theirs {n}")})).await.unwrap();
    assert!(rest.command(&["resync", "crm.orders", "--yes"]).status.success());
    shop.wait_log("resync of shop.orders finished").await;
    rest.wait_log("resync of crm.orders finished").await;
    level(&mut shop, &mut rest, &source, &target).await;

    for (daemon, database) in [(&mut shop, "shop"), (&mut rest, "crm")] {
        let before = sessions(&target, database).await;
        daemon.kill9();
        daemon.restart();
        wait_live(daemon).await;
        assert_fenced(&target, &before).await;
    }
    for (database, id) in [("shop", 2000), ("crm", 2001)] {
        let orders = source.client().database(database).collection::<Document>("orders");
        orders.insert_one(doc! {"_id": id}).await.unwrap();
    }
    level(&mut shop, &mut rest, &source, &target).await;
    for daemon in [&shop, &rest] {
        let output = daemon.command(&["verify"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        let output = daemon.command(&["discard", "--yes"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    may_block_writes(&source, &page, &by_password(&source, "snapsync", &authority)).await;
    for daemon in [&mut shop, &mut rest] {
        daemon.terminate().await;
        let output = daemon.command(&["reset", "--yes"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!((refusals(&source), refusals(&target)), (Vec::new(), Vec::new()));
}

/// What is refused for want of a privilege halts, and would be waited for in vain.
async fn wait_live(daemon: &mut Daemon) {
    let is_live = |status: &Value| {
        assert_ne!(status["state"], "halted", "{status:#}");
        status["state"] == "live"
    };
    daemon.wait_status("state live", LONG, is_live).await;
}

async fn level(shop: &mut Daemon, rest: &mut Daemon, source: &ReplicaSet, target: &ReplicaSet) {
    for daemon in [shop, rest] {
        let settled = |status: &Value| status["copying"] == serde_json::json!([]);
        daemon.wait_status("nothing is copied", LONG, settled).await;
        quiesce(daemon, source).await;
    }
    assert_equal(source, target).await;
}

/// The sessions that whoever holds the lease for this database writes in.
async fn sessions(target: &ReplicaSet, database: &str) -> Vec<Bson> {
    let leases = target.leases();
    let only = if database == "shop" { "shop" } else { "*" };
    let lease = leases.find_one(doc! {"set.claims.database": only}).await.unwrap().unwrap();
    let sessions = lease.get_array("sessions").unwrap().clone();
    assert!(!sessions.is_empty());
    sessions
}

/// A session belongs to a user: only under the same one is the highest number used up in the same session.
async fn assert_fenced(target: &ReplicaSet, sessions: &[Bson]) {
    let known = target.client().database("config").collection::<Document>("transactions");
    let used = doc! {"_id.id": {"$in": sessions.to_vec()}};
    let all = known.count_documents(used.clone()).await.unwrap();
    let mut last = used;
    last.insert("txnNum", i64::MAX);
    let fenced = known.count_documents(last).await.unwrap();
    assert_eq!((all, fenced), (sessions.len() as u64, sessions.len() as u64));
}

/// What a cutover asks of the source.
async fn may_block_writes(source: &ReplicaSet, page: &str, uri: &str) {
    for statement in statements(page, "For a cutover") {
        statement.run(source).await;
    }
    let user = Client::with_uri_str(uri).await.unwrap();
    let admin = user.database("admin");
    for global in [true, false] {
        admin.run_command(doc! {"setUserWriteBlockMode": 1, "global": global}).await.unwrap();
    }
    let writers = [doc! {"$currentOp": {"allUsers": true, "idleConnections": true}}];
    admin.aggregate(writers).await.unwrap();
}
