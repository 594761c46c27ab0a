//! The report of a cutover: what a person wants to keep of it, and what a way back begins with.

use std::fmt::Write as _;
use std::path::Path;

use futures_util::stream::{self, StreamExt};

use super::plan::CutoverRecord;
use super::{failed, lost};
use crate::catalogue::Collection;
use crate::durable::{DiskError, write_atomic};
use crate::mongo::Deployment;
use crate::namespace::Namespace;
use crate::retry::until_reached;
use crate::source::writes;
use crate::state::StateError;
use crate::status::{CutoverReport, FinalCount, FinalOptime, HeldBack, WallTime, WriteBlock};
use crate::stop::Stop;
use crate::sync::context::{Context, Interrupted};
use crate::sync::deltas::count;

/// The report in the state directory, for programs and for people.
pub(super) const FILE: &str = "cutover-report.json";
const TEXT_FILE: &str = "cutover-report.txt";
/// What is left of a cutover in the state directory.
pub(in crate::sync) const FILES: [&str; 2] = [FILE, TEXT_FILE];
/// The shape of the report.
const FORMAT: u32 = 1;
/// Collections that are asked about at once.
const AT_ONCE: usize = 4;

/// Puts the report together.
///
/// # Errors
/// [`Interrupted`].
pub(super) async fn make(
    context: &Context,
    cutover: &CutoverRecord,
    restored: Vec<HeldBack>,
    not_restored: Vec<HeldBack>,
    stop: &Stop,
) -> Result<CutoverReport, Interrupted> {
    let (Some(decided), Some(reverse_from), Some(finished)) =
        (&cutover.decided, cutover.reverse_from, cutover.finished_ms)
    else {
        return Err(failed("a report of a cutover that is not over"));
    };
    let status = context.board.read();
    let time = WallTime::from_ms;
    Ok(CutoverReport {
        format: FORMAT,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        migration: context.records.get().instance,
        requested_by: cutover.by.clone(),
        source: status.source,
        target: status.target,
        began: time(cutover.began_ms),
        decided: time(decided.at_ms),
        finished: time(finished),
        downtime_ms: cutover.downtime_ms(),
        timings: cutover.timings.clone(),
        final_optime: FinalOptime { at: decided.last, wall: time(decided.last_wall_ms) },
        reverse_from,
        source_unseen_seconds: cutover.source_unseen_seconds,
        cut_short: lost::cut_short(&context.records.get()),
        verify: cutover.verify,
        proof: decided.proof,
        collections: counts(context, stop).await?,
        restored,
        not_restored,
        write_block: cutover.block,
        lift_write_block: (cutover.block == WriteBlock::Ours)
            .then(|| writes::LIFT_BY_HAND.to_owned()),
    })
}

/// Documents of every collection: as they were counted, or by the target's metadata.
async fn counts(context: &Context, stop: &Stop) -> Result<Vec<FinalCount>, Interrupted> {
    let all: Vec<(bson::Uuid, Collection)> = {
        let catalogue = context.catalogue.read();
        catalogue.collections.iter().map(|(uuid, found)| (*uuid, found.clone())).collect()
    };
    let mut counting = stream::iter(all)
        .map(async |(uuid, found)| {
            let counted = context.cutover.counted(&uuid);
            let documents = match counted {
                Some(documents) => documents,
                None => size(&context.target, &found, stop).await?,
            };
            Ok::<_, Interrupted>(FinalCount {
                collection: found.source.to_string(),
                target_collection: found.target.to_string(),
                documents,
                exact: counted.is_some(),
            })
        })
        .buffer_unordered(AT_ONCE);
    let mut counts = Vec::new();
    while let Some(counted) = counting.next().await {
        counts.push(counted?);
    }
    counts.sort_by(|a: &FinalCount, b| a.collection.cmp(&b.collection));
    Ok(counts)
}

async fn size(target: &Deployment, found: &Collection, stop: &Stop) -> Result<u64, Interrupted> {
    let Namespace { database, collection } = &found.target;
    let ask = || count(target, database, collection.as_str().into());
    Ok(until_reached(target.side, stop, ask).await?.unwrap_or(0))
}

/// Keeps the report in the state directory.
///
/// # Errors
/// The disk.
pub(super) fn write(directory: &Path, report: &CutoverReport) -> Result<(), StateError> {
    let json = crate::state::to_json(&directory.join(FILE), report)?;
    write_atomic(&directory.join(FILE), &json)?;
    write_atomic(&directory.join(TEXT_FILE), text(report).as_bytes())?;
    Ok(())
}

/// The report of the cutover that this state directory has had; `None` without one that can be read.
pub(in crate::sync) fn read(directory: &Path) -> Option<CutoverReport> {
    let path = directory.join(FILE);
    let json = match std::fs::read(&path) {
        Ok(json) => json,
        Err(error) => {
            tracing::warn!("{}", DiskError::at("read", &path)(error));
            return None;
        }
    };
    let report = serde_json::from_slice(&json);
    report.inspect_err(|_| tracing::warn!("{} cannot be read", path.display())).ok()
}

/// The report for people.
#[must_use]
pub fn text(report: &CutoverReport) -> String {
    let mut lines = vec![
        format!("cut over at {}, decided at {}", report.finished, report.decided),
        format!(
            "final optime {} ({}): everything up to there is on the target, and nothing after it",
            report.final_optime.at.ts, report.final_optime.wall
        ),
        match (report.downtime_ms, report.source_unseen_seconds) {
            (Some(ms), _) => {
                format!("downtime {ms} ms, from the last moment the source took writes")
            }
            (None, Some(seconds)) => format!(
                "the source was lost; it was last seen {seconds} s before, and what it took after the \
                 final optime is missing"
            ),
            (None, None) => "downtime not known".to_owned(),
        },
        format!(
            "verified: {} ({} collections, {} documents, {} of them again at the end)",
            report.verify.name(),
            report.proof.collections,
            report.proof.documents + report.proof.documents_after,
            report.proof.documents_after
        ),
        format!("a way back begins at {} of the target", report.reverse_from.ts),
    ];
    if let Some(until) = report.cut_short {
        lines.push(format!(
            "INCOMPLETE: a window was being applied when the daemon was killed, and the rest of it is lost: \
             of what the source did up to {until} some is on the target, and some is not"
        ));
    }
    match (report.write_block, &report.lift_write_block) {
        (WriteBlock::Ours, Some(by_hand)) => {
            lines.push(format!("the source stays blocked; to lift that: {by_hand}"));
        }
        (WriteBlock::Foreign, _) => {
            lines.push("the source was blocked by somebody else, and still is".to_owned());
        }
        _ => lines.push("the source is not blocked: nothing may write there any more".to_owned()),
    }
    let mut text = lines.iter().map(|line| format!("{line}\n")).collect::<String>();
    for timing in &report.timings {
        // Writing to a string cannot fail.
        writeln!(text, "  {:<10} {:>8} ms", timing.step.name(), timing.ms).unwrap_or_default();
    }
    for (title, list) in [("restored", &report.restored), ("NOT RESTORED", &report.not_restored)] {
        for held in list {
            let line = format!("{title}: {}, {}", held.collection, held.what);
            writeln!(text, "{line}").unwrap_or_default();
        }
    }
    for count in &report.collections {
        let exact = if count.exact { "" } else { " (by metadata)" };
        let FinalCount { target_collection, documents, .. } = count;
        writeln!(text, "{target_collection}: {documents} documents{exact}").unwrap_or_default();
    }
    text
}
