//! What is looked after beside the main work: the source's newest optime and oplog window, and the lease.

use std::sync::Arc;
use std::time::Duration;

use bson::doc;

use super::record::RecordStore;
use super::standing::Standing;
use crate::exit::{Code, Exit};
use crate::mongo::Deployment;
use crate::retry::Outage;
use crate::source::{start, tail};
use crate::status::StatusBoard;
use crate::stop::Stop;
use crate::target::lease::{self, Owner, Taken};

/// How often the source is asked for its newest majority optime.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// How often the source's oplog window is looked at, in rounds of [`ASK_EVERY`].
const WINDOW_EVERY: u32 = 10;

/// Keeps asking the source where it is, until stopped.
pub async fn source(source: Deployment, standing: Standing, board: StatusBoard, stop: Stop) {
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
                Ok(window) => board.update(|status| {
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
