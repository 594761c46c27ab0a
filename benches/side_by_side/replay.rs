//! Scenario `replay`: a backlog of skewed operations, applied by each contender to the same base.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use bson::{Bson, Document, RawDocumentBuf, Timestamp, cstr, doc, rawdoc};
use futures_util::TryStreamExt;
use mongodb::Client;
use serde_json::{Value, json};

use crate::harness::{Comparison, Daemon, DaemonOptions, ReplicaSet, resume_point};
use crate::measure::{Stretch, Usage};
use crate::report::{Rounds, SUBJECT};
use crate::settings::Settings;
use crate::{data, floor, server_options, tools};

const TIMEOUT: Duration = Duration::from_secs(3600);
/// Statements in one command of the floor.
const STATEMENTS: usize = 2_000;

/// Makes a base and a backlog, and lets every contender apply it, in turns.
pub async fn run(settings: &Settings) -> Value {
    let source = ReplicaSet::start(server_options(settings)).await;
    let mut target = ReplicaSet::start(server_options(settings)).await;
    // Items are a fifth of the documents, and the only ones that are written.
    let documents = settings.documents / 5;
    data::load(source.client(), settings.documents).await;
    let mut daemon = Daemon::start(DaemonOptions::new(&source, &target));
    daemon.wait_status("live", TIMEOUT, |status| status["state"] == "live").await;
    let status = daemon.status().await.expect("a status");
    let from = resume_point(&status);
    daemon.terminate().await;
    target.members[0].shut_down().await;
    let base = tempfile::tempdir().expect("a folder");
    let state = daemon.state_directory();
    save(&target.members[0].data(), &base.path().join("data"));
    save(&state, &base.path().join("state"));
    eprintln!("replay: loaded");
    let enough = std::sync::atomic::AtomicBool::new(false);
    data::write(source.client(), settings.operations, documents, None, 1, &enough).await;
    let entries = entries_after(source.client(), from).await;
    eprintln!("replay: {entries} entries");
    let commands = net_changes(source.client(), from).await;
    let slice = base.path().join("oplog.bson");
    let sliced = slice_oplog(source.client(), from, settings.restored, &slice).await;
    let mut rounds = Rounds::default();
    for _ in 0..settings.rounds {
        restore(&mut target, &base.path().join("data")).await;
        let row = by_floor(&source, &target, commands.clone()).await;
        rounds.add("floor", per_second(row, entries));
        restore(&mut target, &base.path().join("data")).await;
        save(&base.path().join("state"), &state);
        let row = by_snapsync(&source, &target, &mut daemon).await;
        rounds.add(SUBJECT, per_second(row, entries));
        if tools::find("mongorestore").is_some() {
            restore(&mut target, &base.path().join("data")).await;
            let stretch = Stretch::begin(&source, &target).await;
            let used = tokio::task::block_in_place(|| tools::oplog_replay(&target, &slice));
            let seconds = stretch.seconds();
            let row = stretch.end(seconds, used.unwrap_or_default(), &source, &target).await;
            rounds.add("mongorestore --oplogReplay", per_second(row, sliced));
        }
    }
    let mut summary = rounds.summary();
    summary["backlog"] = json!({ "entries": entries, "entries_for_mongorestore": sliced });
    summary
}

fn per_second(mut row: Value, entries: u64) -> Value {
    let seconds = row["seconds"].as_f64().unwrap_or(f64::NAN);
    row["entries_per_second"] = json!(entries as f64 / seconds);
    let cpu = row["target_cpu_seconds"].as_f64().unwrap_or(f64::NAN);
    row["target_cpu_seconds_per_100k"] = json!(cpu * 100_000.0 / entries as f64);
    row
}

async fn by_floor(
    source: &ReplicaSet,
    target: &ReplicaSet,
    commands: Vec<(String, RawDocumentBuf)>,
) -> Value {
    let stretch = Stretch::begin(source, target).await;
    floor::write(target.client(), commands).await;
    let seconds = stretch.seconds();
    stretch.end(seconds, Usage::default(), source, target).await
}

async fn by_snapsync(source: &ReplicaSet, target: &ReplicaSet, daemon: &mut Daemon) -> Value {
    let newest = source.majority_ts().await;
    let stretch = Stretch::begin(source, target).await;
    daemon.restart();
    daemon.wait_status("the end", TIMEOUT, |status| resume_point(status) >= newest).await;
    let (seconds, used) = (stretch.seconds(), Usage::of(daemon.process_id()));
    let row = stretch.end(seconds, used, source, target).await;
    daemon.terminate().await;
    let equal = Comparison::new(source.client(), target.client()).run().await;
    equal.unwrap_or_else(|difference| panic!("source and target differ:\n{difference}"));
    row
}

/// Makes `to` a copy of the folder `from`.
fn save(from: &Path, to: &Path) {
    drop(std::fs::remove_dir_all(to));
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().expect("run cp");
    assert!(status.success(), "cp: {status}");
}

async fn restore(target: &mut ReplicaSet, data: &Path) {
    target.kill9();
    save(data, &target.members[0].data());
    target.restart().await;
}

async fn entries_after(client: &Client, from: Timestamp) -> u64 {
    let oplog = client.database("local").collection::<Document>("oplog.rs");
    oplog
        .count_documents(doc! { "ts": { "$gt": from }, "op": { "$ne": "n" } })
        .await
        .expect("count")
}

/// What the backlog comes to, as commands that are ready to be sent: the last state of every document touched.
async fn net_changes(client: &Client, from: Timestamp) -> Vec<(String, RawDocumentBuf)> {
    let oplog = client.database("local").collection::<Document>("oplog.rs");
    let touched = oplog.find(doc! { "ts": { "$gt": from }, "ns": "shop.items" });
    let entries: Vec<Document> = touched.await.expect("read").try_collect().await.expect("read");
    let id = |entry: &Document| {
        let of = |field: &str| entry.get_document(field).ok()?.get("_id").cloned();
        of("o2").or_else(|| of("o"))
    };
    let mut ids: Vec<i64> =
        entries.iter().filter_map(|entry| id(entry).as_ref().and_then(Bson::as_i64)).collect();
    ids.sort_unstable();
    ids.dedup();
    let items = client.database("shop").collection::<RawDocumentBuf>("items");
    let mut commands = Vec::new();
    for run in ids.chunks(STATEMENTS) {
        let found = items.find(doc! { "_id": { "$in": run } }).await.expect("read");
        let found: Vec<RawDocumentBuf> = found.try_collect().await.expect("read");
        let there: Vec<i64> = found.iter().filter_map(|d| d.get_i64("_id").ok()).collect();
        let gone = run.iter().filter(|id| !there.contains(id));
        let deletes: Vec<RawDocumentBuf> =
            gone.map(|id| rawdoc! { "q": { "_id": *id }, "limit": 1 }).collect();
        let updates: Vec<RawDocumentBuf> = found
            .into_iter()
            .zip(there)
            .map(|(document, id)| rawdoc! { "q": { "_id": id }, "u": document, "upsert": true })
            .collect();
        for (name, field, statements) in [
            (cstr!("delete"), cstr!("deletes"), deletes),
            (cstr!("update"), cstr!("updates"), updates),
        ] {
            if !statements.is_empty() {
                let mut command = RawDocumentBuf::new();
                command.append(name, "items");
                command.append(field, statements.into_iter().collect::<bson::RawArrayBuf>());
                command.append(cstr!("ordered"), false);
                command.append(cstr!("writeConcern"), rawdoc! { "w": "majority" });
                commands.push(("shop".to_owned(), command));
            }
        }
    }
    commands
}

/// Writes the first entries of the backlog to a file, as `mongodump` would; how many there are in it.
async fn slice_oplog(client: &Client, from: Timestamp, count: u64, file: &Path) -> u64 {
    let oplog = client.database("local").collection::<RawDocumentBuf>("oplog.rs");
    let limit = i64::try_from(count).expect("fewer than 2^63");
    let entries = oplog.find(doc! { "ts": { "$gt": from }, "op": { "$ne": "n" } }).limit(limit);
    let entries: Vec<RawDocumentBuf> =
        entries.await.expect("read").try_collect().await.expect("read");
    let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.as_bytes().to_vec()).collect();
    std::fs::write(file, bytes).expect("write the slice");
    entries.len() as u64
}
