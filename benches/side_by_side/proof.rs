//! Scenarios `verify` and `intent`: what proof of equality costs, and what the durable notes around a window do.

use std::process::Stdio;
use std::time::Instant;

use serde_json::{Value, json};
use snapsync::state::Slot;

use crate::harness::{Daemon, DaemonOptions, ReplicaSet, program};
use crate::live::{TIMEOUT, Writer};
use crate::measure::{Stretch, Usage, quantile, wait_all};
use crate::report::Rounds;
use crate::settings::Settings;
use crate::{data, server_options};

/// How often the note is written.
const NOTES: usize = 500;

/// `snapsync verify` of everything, on a quiet pair and under load.
pub async fn verify(settings: &Settings) -> Value {
    let source = ReplicaSet::start(server_options(settings));
    let (source, target) = tokio::join!(source, ReplicaSet::start(server_options(settings)));
    data::load(source.client(), settings.documents).await;
    let mut daemon = Daemon::start(DaemonOptions::new(&source, &target));
    daemon.wait_status("live", TIMEOUT, |status| status["state"] == "live").await;
    let mut rounds = Rounds::default();
    for round in 0..settings.rounds {
        rounds.add("quiet", verified(&daemon, &source, &target, settings.documents).await);
        let rate = settings.rates.first().copied().unwrap_or(1000);
        let writer = Writer::start(source.client(), rate, settings.documents / 5, round);
        let row = verified(&daemon, &source, &target, settings.documents).await;
        writer.finish().await;
        rounds.add(&format!("{rate} operations a second"), row);
    }
    rounds.summary()
}

async fn verified(
    daemon: &Daemon,
    source: &ReplicaSet,
    target: &ReplicaSet,
    documents: u64,
) -> Value {
    let stretch = Stretch::begin(source, target).await;
    let mut command = program();
    command.args(["verify", "--json", "--config"]).arg(daemon.config_file());
    let child = command.stdout(Stdio::null()).spawn().expect("run snapsync");
    let used: Usage = tokio::task::block_in_place(|| wait_all(vec![("snapsync verify", child)]));
    let seconds = stretch.seconds();
    let mut row = stretch.end(seconds, used, source, target).await;
    row["documents_per_second"] = json!(documents as f64 / seconds);
    row["peak_mib_per_million"] = json!(used.peak_mib * 1e6 / documents as f64);
    row
}

/// What a window costs on the local disk: its end as intent before the first write, the resume point after the last.
pub fn intent() -> Value {
    let folder = tempfile::tempdir().expect("a folder");
    let (mut slot, _) = Slot::<Value>::open(&folder.path().join("position")).expect("a slot");
    // As large as a position is.
    let note = json!({ "filler": "x".repeat(600) });
    let mut times = Vec::with_capacity(NOTES);
    for _ in 0..NOTES {
        let began = Instant::now();
        slot.write(&note).expect("a durable note");
        times.push(began.elapsed().as_secs_f64() * 1000.0);
    }
    times.sort_by(f64::total_cmp);
    let of = |share| quantile(&times, share);
    json!({ "notes": NOTES, "ms": { "p50": of(0.5), "p99": of(0.99), "max": of(1.0) } })
}
