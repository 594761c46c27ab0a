//! What operators see of a running daemon and do to it: HTTP, the commands, signals, the service manager.

mod alarms;
mod service;
mod signals;

use std::collections::BTreeSet;
use std::time::Duration;

use bson::{Document, doc};
use mongodb::Client;
use serde_json::{Value, json};
use snapsync::status::WallTime;

use crate::harness::{
    Daemon, DaemonOptions, Mongod, Pair, Reply, over_socket, over_tcp, program, quiesce, wait_for,
};
use crate::refusals::witness::Witness;

/// Three collections of a megabyte each, which a slow copy takes one after another.
async fn fill(client: &Client) {
    for name in ["a", "b", "c"] {
        let collection = client.database("shop").collection::<Document>(name);
        let text = "x".repeat(10_000);
        collection.insert_many((0..100).map(|n| doc! {"_id": n, "text": &text})).await.unwrap();
    }
}

/// So slow that the copy of what [`fill`] makes takes more than half a minute.
const SLOWLY: &str = "[copy]\nmax_bytes_per_second = \"64KiB\"";

fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().expect("an object").keys().map(String::as_str).collect()
}

/// The documented shape of a status, down to the last key. Shapes may grow: then this grows too.
fn assert_documented_shape(status: &Value) {
    let expected = |names: &str| names.split(' ').map(str::to_owned).collect::<BTreeSet<_>>();
    let actual =
        |value: &Value| keys(value).into_iter().map(str::to_owned).collect::<BTreeSet<_>>();
    let top = "version state since reason source target resume_point source_optime lag_seconds oplog_window_seconds \
               window copy totals copying resync index_builds held_back replaced deltas databases total_delta verify \
               cutover archive";
    assert_eq!(actual(status), expected(top));
    for (key, names) in [
        ("source", "hosts replica_set version"),
        ("target", "hosts replica_set version"),
        ("resume_point", "ts wall"),
        ("source_optime", "ts wall"),
        ("window", "from to entries seconds"),
        ("copy", "documents documents_total bytes bytes_total eta_seconds complete"),
        ("totals", "entries_read entries_applied documents_copied bytes_copied windows resyncs"),
    ] {
        assert_eq!(actual(&status[key]), expected(names), "{key}");
    }
    for ts in [&status["resume_point"]["ts"], &status["source_optime"]["ts"]] {
        assert_eq!(actual(ts), expected("t i"));
        assert!(ts["t"].is_u64() && ts["i"].is_u64());
    }
    for time in [&status["since"], &status["window"]["to"], &status["resume_point"]["wall"]] {
        assert_is_a_time(time.as_str().unwrap());
    }
    for delta in status["deltas"].as_array().unwrap() {
        assert_eq!(
            actual(delta),
            expected("collection target_collection source target delta exact")
        );
    }
    for sum in status["databases"].as_array().unwrap() {
        assert_eq!(actual(sum), expected("database delta"));
    }
    for list in ["copying", "held_back", "replaced", "deltas", "databases"] {
        assert!(status[list].is_array(), "{list}");
    }
}

/// Exactly `2026-01-26T03:00:00.000Z`.
fn assert_is_a_time(text: &str) {
    let form: String = text.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    assert_eq!(form, "0000-00-00T00:00:00.000Z", "{text}");
    text.parse::<WallTime>().unwrap();
}

/// The value after `name: ` in a delta line.
fn field<'a>(line: &'a str, name: &str) -> &'a str {
    let (_, rest) = line.split_once(&format!("{name}: ")).unwrap_or_else(|| panic!("{line}"));
    rest.split(", ").next().unwrap()
}

/// Exactly the documented lines, nothing before and nothing after.
fn assert_delta_lines(log: &str, collection: &str, count: i64) {
    let ending = format!(", collection: {collection}");
    let lines: Vec<&str> = log.lines().filter(|line| line.ends_with(&ending)).collect();
    assert!(!lines.is_empty(), "no delta line of {collection}:\n{log}");
    let mut before: Option<WallTime> = None;
    for line in &lines {
        let (from, to) = (field(line, "from"), field(line, "to"));
        assert_is_a_time(from);
        assert_is_a_time(to);
        let number = |name: &str| field(line, name).parse::<i64>().unwrap();
        let (delta, source, target) = (number("delta"), number("source"), number("target"));
        assert_eq!(delta, source - target, "{line}");
        let again = format!(
            "from: {from}, to: {to}, delta: {delta}, source: {source}, target: {target}, collection: {collection}"
        );
        assert_eq!(*line, again);
        let (from, to): (WallTime, WallTime) = (from.parse().unwrap(), to.parse().unwrap());
        assert!(from < to, "{line}");
        assert!(before.is_none_or(|before| before <= from), "rounds overlap: {line}");
        before = Some(to);
    }
    let last = lines.last().unwrap();
    let ending = format!("delta: 0, source: {count}, target: {count}, collection: {collection}");
    assert!(last.ends_with(&ending), "{last}");
    let database = collection.split_once('.').unwrap().0;
    let line = format!("database: {database}, delta: 0");
    assert!(log.lines().any(|text| text == line), "no line {line:?}:\n{log}");
}

/// The same request over both doors.
async fn both(daemon: &Daemon, path: &str) -> [Reply; 2] {
    let socket = over_socket(&daemon.control_socket(), "GET", path, String::new()).await.unwrap();
    [daemon.get(path).await.unwrap(), socket]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_from_the_start_to_the_end() {
    let mut pair = Pair::start().await;
    let orders = pair.source.client().database("shop").collection::<Document>("orders");
    orders.insert_many((0..20).map(|n| doc! {"_id": n})).await.unwrap();
    let ttl = doc! {"key": {"at": 1}, "name": "ttl", "expireAfterSeconds": 3600};
    let command = doc! {"createIndexes": "sessions", "indexes": [ttl]};
    pair.source.client().database("crm").run_command(command).await.unwrap();
    // While the source does not answer, the daemon stays in its first state.
    pair.source.freeze();
    let options =
        DaemonOptions::new(&pair.source, &pair.target).toml("[delta]\ninterval = \"300ms\"");
    let mut daemon = Daemon::start(options);
    wait_for("an answer", Duration::from_secs(8), || daemon.get("/health/live")).await;
    for reply in both(&daemon, "/health/live").await {
        assert_eq!((reply.status, reply.json()), (200, json!({"live": true})));
    }
    for reply in both(&daemon, "/health/ready").await {
        assert_eq!((reply.status, reply.json()), (503, json!({"error": "starting"})));
    }
    assert_eq!(daemon.status().await.unwrap()["state"], "starting");
    pair.source.thaw();
    daemon.wait_state("live").await;

    orders.delete_one(doc! {"_id": 0}).await.unwrap();
    quiesce(&mut daemon, &pair.source).await;
    for reply in both(&daemon, "/health/ready").await {
        assert_eq!((reply.status, reply.json()), (200, json!({"ready": true})));
    }
    let counted =
        |status: &Value| status["deltas"][1]["source"] == 19 && status["total_delta"] == 0;
    daemon.wait_status("deltas", Duration::from_secs(20), counted).await;
    for reply in both(&daemon, "/status").await {
        assert_eq!(reply.status, 200);
        let status = reply.json();
        assert_documented_shape(&status);
        assert_eq!(status["source"]["hosts"], json!([pair.source.members[0].host()]));
        assert_eq!(status["target"]["replica_set"], pair.target.name());
        assert_eq!(status["copy"]["documents"], 20);
        assert_eq!(status["copy"]["complete"], true);
        assert_eq!(status["totals"]["entries_applied"], 1);
        assert_eq!(status["held_back"][0]["collection"], "crm.sessions");
        assert!(status["lag_seconds"].as_f64().unwrap() < 10.0, "{status}");
    }
    commands(&daemon);
    refuses_what_makes_no_sense(&daemon).await;

    let (status, _) = daemon.terminate().await;
    assert_eq!(status.code(), Some(0));
    assert!(!daemon.control_socket().exists(), "the socket is left behind");
    assert_delta_lines(&daemon.log(), "shop.orders", 19);
    assert_delta_lines(&daemon.log(), "crm.sessions", 0);
    let output = daemon.command(&["status"]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    let socket = daemon.control_socket().display().to_string();
    assert!(text.contains("no daemon answers on") && text.contains(&socket), "{text}");
    assert!(output.stdout.is_empty());
}

/// The commands that ask a running daemon, or the servers.
fn commands(daemon: &Daemon) {
    let text = |args: &[&str]| {
        let output = daemon.command(args);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let people = text(&["status"]);
    for needle in [": live for ", "shop.orders", "lag", "crm.sessions", "TTL"] {
        assert!(people.contains(needle), "{needle:?} is not in:\n{people}");
    }
    let status: Value = serde_json::from_str(&text(&["status", "--json"])).unwrap();
    assert_documented_shape(&status);
    assert_eq!(status["state"], "live");

    let table = text(&["check"]);
    for check in [
        "source topology",
        "target version",
        "source oplog",
        "target privileges",
        "lease",
        "spool disk",
    ] {
        assert!(table.lines().any(|line| line.trim().starts_with(check)), "{check}:\n{table}");
    }
    assert!(table.lines().next().unwrap().contains("RESULT") && !table.contains("FAIL"), "{table}");
    let checks: Value = serde_json::from_str(&text(&["check", "--json"])).unwrap();
    assert_eq!(checks["passed"], true);
    for check in checks["checks"].as_array().unwrap() {
        assert_eq!(keys(check), BTreeSet::from(["name", "verdict", "text"]));
        assert_ne!(check["verdict"], "fail");
    }
}

async fn refuses_what_makes_no_sense(daemon: &Daemon) {
    let error = |reply: &Reply| reply.json()["error"].as_str().unwrap().to_owned();
    let none = daemon.get("/nothing").await.unwrap();
    assert_eq!((none.status, error(&none)), (404, "there is nothing at /nothing".to_owned()));
    let wrong = daemon.get("/pause").await.unwrap();
    assert_eq!(wrong.status, 405);
    let wrong = daemon.post("/resume", &json!({})).await.unwrap();
    assert_eq!((wrong.status, error(&wrong)), (409, "nothing to resume: the state is live".into()));
    let bad = daemon.post("/resume", &json!({"now": true})).await.unwrap();
    assert_eq!(bad.status, 400);
    // Whoever may connect over TCP may look, but without a token change nothing.
    let body = "{}".to_owned();
    let denied = over_tcp(daemon.address(), "POST", "/pause", &[], body).await.unwrap();
    assert_eq!(denied.status, 403);
    assert!(error(&denied).contains("control.token_file"), "{}", denied.body);
    assert_eq!(daemon.status().await.unwrap()["state"], "live");
}

/// The servers are away: what is asked here is answered before they are looked for in vain.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_wanted_over_tcp_and_not_over_the_socket() {
    const TOKEN: &str = "a-token-nobody-can-guess";
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, format!("{TOKEN}\n")).unwrap();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let uri = format!("mongodb://{}/?replicaSet=rs", silent.local_addr().unwrap());
    let options = DaemonOptions::with_uris(&uri, "mongodb://127.0.0.1:9/")
        .toml(&format!("[control]\ntoken_file = {:?}", file.display().to_string()));
    let mut daemon = Daemon::start(options);
    wait_for("an answer", Duration::from_secs(8), || daemon.get("/health/live")).await;
    let address = daemon.address();
    let bearer = format!("Bearer {TOKEN}");
    let ask = async |method: &str, path: &str, token: Option<&str>| {
        let headers: Vec<_> = token.map(|token| ("authorization", token)).into_iter().collect();
        over_tcp(address, method, path, &headers, String::new()).await.unwrap().status
    };
    assert_eq!(ask("GET", "/health/live", None).await, 200);
    assert_eq!(ask("GET", "/health/ready", None).await, 503);
    assert_eq!(ask("GET", "/status", None).await, 401);
    assert_eq!(ask("GET", "/status", Some("Bearer a-token-nobody-can-gues")).await, 401);
    assert_eq!(ask("GET", "/status", Some(TOKEN)).await, 401);
    assert_eq!(ask("GET", "/status", Some(&bearer)).await, 200);
    assert_eq!(ask("POST", "/pause", None).await, 401);
    let foreign = [("authorization", bearer.as_str()), ("origin", "http://evil.example")];
    let reply = over_tcp(address, "POST", "/pause", &foreign, String::new()).await.unwrap();
    assert_eq!(reply.status, 403);
    let socket = daemon.control_socket();
    let reply = over_socket(&socket, "GET", "/status", String::new()).await.unwrap();
    assert_eq!(reply.status, 200);
    let output = daemon.command(&["status", "--json"]);
    assert!(output.status.success(), "{output:?}");
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&socket).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o660);
    let output = daemon.command(&["config"]);
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(shown.contains("control.token_file"), "{shown}");
    daemon.signal(rustix::process::Signal::KILL);
    daemon.wait_exit(Duration::from_secs(5)).await;
    assert!(!format!("{shown}{}", daemon.log()).contains(TOKEN));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn check_tells_what_is_wrong_and_writes_nothing() {
    let (Pair { source, target }, standalone) = tokio::join!(Pair::start(), Mongod::standalone());
    source.client().database("shop").collection("a").insert_one(doc! {"_id": 1}).await.unwrap();
    target.client().database("shop").collection("a").insert_one(doc! {"_id": 2}).await.unwrap();
    let witnesses = [Witness::of(source.client()).await, Witness::of(target.client()).await];
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state").display().to_string();
    let check = |source: &str, target: &str, more: &[&str]| {
        let mut command = program();
        command.arg("check").args(more).args(["--config", "/dev/null", "--set"]);
        command.arg(format!("state.directory={state}"));
        command.env("SNAPSYNC__SOURCE__URI", source).env("SNAPSYNC__TARGET__URI", target);
        let output = command.output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let (code, table, _) = check(&source.uri(), &target.uri(), &[]);
    assert_eq!(code, Some(0), "{table}");
    let row = table.lines().find(|line| line.contains("target data")).unwrap();
    assert!(row.contains("warning") && row.contains("shop.a"), "{table}");

    let (code, table, _) = check(&source.uri(), &standalone.uri(), &[]);
    assert_eq!(code, Some(78), "{table}");
    let row = table.lines().find(|line| line.contains("target topology")).unwrap();
    assert!(row.contains("FAIL") && table.contains("rs.initiate()"), "{table}");
    let (code, text, _) = check(&standalone.uri(), &target.uri(), &["--json"]);
    assert_eq!(code, Some(78), "{text}");
    let checks: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(checks["passed"], false);
    let failed: Vec<&Value> =
        checks["checks"].as_array().unwrap().iter().filter(|c| c["verdict"] == "fail").collect();
    assert_eq!(failed.len(), 1, "{text}");
    assert_eq!(failed[0]["name"], "source topology");

    let (code, _, text) = check("mongodb://127.0.0.1:9/", &target.uri(), &[]);
    assert_eq!(code, Some(69), "{text}");
    assert!(text.contains("source: ") && text.contains("127.0.0.1:9"), "{text}");
    for witness in &witnesses {
        witness.nothing_was_written().await;
    }
    assert!(!folder.path().join("state").exists(), "check made a state directory");
}

#[test]
fn config_shows_each_value_and_where_it_came_from() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("snapsync.toml");
    std::fs::write(&file, "[source]\nuri = \"mongodb://u:hunter2@a\"\n\n[sync]\nwindow = \"3s\"\n")
        .unwrap();
    let run = |args: &[&str]| {
        let mut command = program();
        command.args(args).arg("--config").arg(&file).args(["--set", "log.level=warn"]);
        command.env("SNAPSYNC__TARGET__URI", "mongodb://v:hunter2@b/?replicaSet=rs1");
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let text = [&output.stdout[..], &output.stderr].concat();
        assert!(!String::from_utf8_lossy(&text).contains("hunter2"), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let expected = [
        ("source.uri", "mongodb://u:***@a", format!("{}, line 2", file.display())),
        (
            "target.uri",
            "mongodb://v:***@b/?replicaSet=rs1",
            "environment variable SNAPSYNC__TARGET__URI".into(),
        ),
        ("sync.window", "3s", format!("{}, line 5", file.display())),
        ("log.level", "warn", "flag --set log.level".into()),
        ("live.max_lag", "10s", "default".into()),
    ];
    let text = run(&["config"]);
    let json: Value = serde_json::from_str(&run(&["config", "--json"])).unwrap();
    assert_eq!(json["valid"], true);
    for (key, value, origin) in expected {
        let line = text.lines().find(|line| line.starts_with(&format!("{key} "))).unwrap();
        let words = line.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(words, format!("{key} {value} {origin}"));
        let mut settings = json["settings"].as_array().unwrap().iter();
        let setting = settings.find(|setting| setting["key"] == key).unwrap();
        assert_eq!(*setting, json!({"key": key, "value": value, "origin": origin}));
    }
    let valid = format!("{}: the configuration is valid\n", file.display());
    assert_eq!(run(&["config", "--check"]), valid);
}
