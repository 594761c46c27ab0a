//! What is looked after beside the main work: the source's newest optime and oplog window, and the lease.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bson::doc;

use super::record::RecordStore;
use crate::exit::{Code, Exit};
use crate::mongo::Deployment;
use crate::position::OpTime;
use crate::replay::window::ResumePoint;
use crate::retry::Outage;
use crate::source::{start, tail};
use crate::status::{LagFacts, OplogPlace, StatusBoard, WallTime};
use crate::stop::Stop;
use crate::target::lease::{self, Owner, Taken};

/// How often the source is asked for its newest majority optime.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// How often the source's oplog window is looked at, in rounds of [`ASK_EVERY`].
const WINDOW_EVERY: u32 = 10;

#[derive(Debug, Default)]
struct Seen {
    newest: Option<(OpTime, i64)>,
    resume: Option<ResumePoint>,
    level_once: bool,
    pending_wall_ms: Option<i64>,
}

/// Where source and target stand, as far as is known: what the lag is computed from. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Standing {
    board: StatusBoard,
    seen: Arc<Mutex<Seen>>,
}

impl Standing {
    /// Nothing is known yet.
    #[must_use]
    pub fn new(board: StatusBoard) -> Self {
        Self { board, seen: Arc::default() }
    }

    /// The source said that this is its newest majority optime.
    pub fn source_at(&self, newest: OpTime, wall_ms: i64) {
        self.note(Some(Instant::now()), |seen| {
            seen.newest = Some((newest, wall_ms)).max(seen.newest);
            // Known to be ahead, though the entry itself has not come yet.
            let ahead = seen.resume.is_some_and(|resume| resume.applied.ts < newest.ts);
            if ahead && seen.level_once {
                seen.pending_wall_ms.get_or_insert(wall_ms);
            }
        });
        self.board.update(|status| {
            status.source_optime =
                Some(OplogPlace { ts: newest.ts, wall: WallTime::from_ms(wall_ms) });
        });
    }

    /// A window is being gathered or applied; this is the wall time of its first entry.
    pub fn pending(&self, first_wall_ms: i64) {
        self.note(None, |seen| seen.pending_wall_ms = Some(first_wall_ms));
    }

    /// The resume point is durable here; `level_at` says when the source itself had nothing more to give, if that is
    /// where the resume point has come to.
    pub fn resumes_at(&self, resume: ResumePoint, level_at: Option<Instant>) {
        self.note(level_at, |seen| {
            seen.resume = Some(resume);
            if level_at.is_some() {
                seen.newest = Some((resume.applied, resume.wall_ms)).max(seen.newest);
            }
            let behind = seen.newest.filter(|(newest, _)| resume.applied.ts < newest.ts);
            seen.pending_wall_ms = match behind {
                None => None,
                Some((_, wall_ms)) if seen.level_once => Some(wall_ms),
                Some(_) => Some(resume.wall_ms),
            };
            seen.level_once |= behind.is_none();
        });
        self.board.update(|status| {
            status.resume_point =
                Some(OplogPlace { ts: resume.applied.ts, wall: WallTime::from_ms(resume.wall_ms) });
        });
    }

    /// `source_seen_at`: when the source last told where it is, if this comes from there.
    fn note(&self, source_seen_at: Option<Instant>, change: impl FnOnce(&mut Seen)) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut seen);
        let now = Instant::now();
        let pending = seen.pending_wall_ms;
        let known = seen.resume.is_some() && seen.newest.is_some();
        self.board.update_lag(|lag: &mut LagFacts| {
            lag.source_seen_at = lag.source_seen_at.max(source_seen_at);
            lag.first_unapplied_wall_ms = pending;
            if pending.is_none() && known {
                lag.caught_up_at = Some(now);
            }
        });
    }
}

/// Keeps asking the source where it is, until stopped.
pub async fn source(source: Deployment, standing: Standing, stop: Stop) {
    let mut outage = Outage::new(source.side);
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
                Ok(window) => standing.board.update(|status| {
                    status.oplog_window_seconds = window.map(|(oldest, newest)| {
                        newest.saturating_sub(oldest).max(0).unsigned_abs() / 1000
                    });
                }),
                Err(error) => tracing::debug!("{error}"),
            }
        }
        round = round.wrapping_add(1);
        if stop.sleep(ASK_EVERY).await.is_err() {
            return;
        }
    }
}

/// Keeps the lease until stopped; ends with an error as soon as somebody else has it.
///
/// # Errors
/// The lease is lost: nothing may be written any more.
pub async fn lease(
    target: Deployment,
    owner: Owner,
    generation: u64,
    records: Arc<RecordStore>,
    stop: Stop,
) -> Result<(), Exit> {
    let outage = Outage::new(target.side);
    loop {
        if stop.sleep(lease::RENEW_EVERY).await.is_err() {
            return Ok(());
        }
        let record = records.get();
        let mirror = doc! {
            "phase": record.phase.state().to_string(),
            "resume": record.resume.map(|resume| bson::Timestamp::from(resume.applied.ts)),
            "term": record.resume.map(|resume| resume.applied.term),
            "intent": record.intent.map(bson::Timestamp::from),
        };
        match lease::renew(&target, &owner, generation, mirror).await {
            Ok(Taken::Ours { .. }) => {}
            Ok(Taken::Held { by }) => {
                let text =
                    format!("the lease on the target was taken by {by}; nothing more is written");
                return Err(Exit::new(Code::Held, text));
            }
            Err(error) => outage.report(&error),
        }
    }
}
