//! What is looked at beside the main work: the source's newest optime and its oplog window, and index builds on the
//! target.

use std::time::{Duration, Instant};

use super::standing::Standing;
use crate::mongo::Deployment;
use crate::retry::Outage;
use crate::source::{start, tail};
use crate::status::{IndexBuild, OplogFacts, OplogReserve, StatusBoard};
use crate::target::builds::{Build, Builds};
use crate::telemetry::counters::COUNTERS;
use crate::telemetry::events;

/// How often the source is asked for its newest majority optime.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// How often the source's oplog window is looked at, in rounds of [`ASK_EVERY`].
const WINDOW_EVERY: u32 = 10;

/// An alarm that lasts is repeated so often, in rounds of [`ASK_EVERY`].
const ALARM_EVERY: u32 = 600;

/// How often the target is asked how far its index builds are, while there are any.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// A build that lasts is told in the log so often, in rounds of [`LOOK_EVERY`].
const TELL_EVERY: u32 = 30;

/// Keeps asking the source where it is, for ever.
pub async fn source(source: Deployment, standing: Standing, board: StatusBoard) {
    let mut outage = Outage::new(source.side);
    let mut oplog = OplogWatch::default();
    let mut round = 0_u32;
    loop {
        match start::majority_optime(&source).await {
            Ok((newest, wall_ms)) => {
                standing.source_at(newest, wall_ms);
                outage = Outage::new(source.side);
            }
            Err(error) => outage.report(&error),
        }
        if round.is_multiple_of(WINDOW_EVERY) {
            match tail::window_wall_ms(&source).await {
                Ok(window) => oplog.window = window.map(|window| (window, Instant::now())),
                Err(error) => tracing::debug!("{error}"),
            }
            oplog.show(&board, round);
        }
        round = round.wrapping_add(1);
        tokio::time::sleep(ASK_EVERY).await;
    }
}

/// Shows index builds for as long as they last, for ever.
pub async fn index_builds(target: Deployment, builds: Builds, board: StatusBoard) {
    let mut rounds = 0_u32;
    loop {
        match builds.look(&target).await {
            Ok(found) => {
                rounds = if found.is_empty() { 0 } else { rounds.wrapping_add(1) };
                let shown: Vec<IndexBuild> = found.into_iter().map(shown).collect();
                if rounds > 0 && rounds.is_multiple_of(TELL_EVERY) {
                    for build in &shown {
                        tracing::info!("building indexes on {build}");
                    }
                }
                board.update(|status| status.index_builds = shown);
            }
            // What was seen last stays: nothing is known to have moved.
            Err(error) => tracing::debug!("{error}"),
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn shown(build: Build) -> IndexBuild {
    let (step, done, total) = match build.step {
        Some(step) => (Some(step.name), Some(step.done), Some(step.total)),
        None => (None, None, None),
    };
    IndexBuild {
        collection: build.collection.to_string(),
        indexes: build.indexes as u64,
        seconds: build.lasts.as_secs(),
        step,
        done,
        total,
    }
}

/// What was last seen of the source's oplog, and the alarm when it will not reach.
#[derive(Debug, Default)]
struct OplogWatch {
    /// Wall times of the oldest and the newest entry, and when they were asked for.
    window: Option<((i64, i64), Instant)>,
    /// The round in which the alarm was last given.
    alarmed: Option<u32>,
}

impl OplogWatch {
    fn show(&mut self, board: &StatusBoard, round: u32) {
        let Some(((oldest_ms, newest_ms), seen)) = self.window else { return };
        let window = newest_ms.saturating_sub(oldest_ms).max(0).unsigned_abs() / 1000;
        board.update(|status| status.oplog_window_seconds = Some(window));
        let status = board.read();
        let Some(resume) = status.resume_point else { return };
        let spooled_ms = COUNTERS.spooled_to().map_or(0, |second| i64::from(second) * 1000);
        let (bytes, bytes_max) = COUNTERS.spool();
        // A full spool takes nothing more before the copy is complete; 16 MiB are one batch.
        let full = bytes_max > 0 && bytes.saturating_add(16 << 20) >= bytes_max;
        let copying = status.copy.eta_seconds.filter(|_| full && !status.copy.complete);
        let reserve = OplogReserve::of(&OplogFacts {
            oldest_ms,
            newest_ms,
            seen_ago: seen.elapsed(),
            read_to_ms: resume.wall.as_ms().max(spooled_ms),
            blocked: Duration::from_secs(copying.unwrap_or(0)),
        });
        board.note_reserve(reserve);
        match self.alarmed {
            None if !reserve.is_short() => {}
            Some(at) if reserve.is_short() && round.wrapping_sub(at) < ALARM_EVERY => {}
            Some(_) if !reserve.is_short() => {
                events::oplog_window_enough(reserve.left);
                self.alarmed = None;
            }
            _ => {
                events::oplog_window_short(reserve.left, reserve.needed);
                self.alarmed = Some(round);
            }
        }
    }
}
