//! A source that is gone for good: the target takes over as it stands, and what it lacks is named.

use std::time::Duration;

use super::plan::{CutoverRecord, Decided};
use super::{CONNECTIONS, is_decided, note};
use crate::catalogue::Catalogue;
use crate::config::Config;
use crate::exit::{Code, Exit};
use crate::http::control::{CutoverOptions, Refusal};
use crate::mongo::{Deployment, Hello, Side};
use crate::replay::window::ResumePoint;
use crate::state::Audit;
use crate::status::{CutoverStatus, Proof, VerifyDepth, WallTime, WriteBlock};
use crate::sync::context::{Context, Interrupted};
use crate::sync::phase::{Event, Phase};
use crate::sync::record::{Record, RecordStore};
use crate::sync::{copying, startup};

/// How long a source that is said to be lost is given to answer.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);

/// Whether the source answers after all.
async fn answers(source: &Deployment) -> bool {
    matches!(tokio::time::timeout(ANSWERS_WITHIN, Hello::ask(source)).await, Ok(Ok(_)))
}

const ANSWERS: &str = "the source answers: cut over without --source-lost, and nothing is lost";

/// Decides without the source. `seen_ms` says when it was last seen.
fn decide(
    record: &Record,
    catalogue: &Catalogue,
    seen_ms: i64,
    options: &CutoverOptions,
) -> Result<(CutoverRecord, ResumePoint), &'static str> {
    if is_decided(record) {
        return Err("the cutover is decided already");
    }
    let (Some(_), Some(resume)) = (record.consistent_at(), record.resume) else {
        return Err("the target is not the source at one moment: what is there is a fragment");
    };
    if !catalogue.indexes_built || catalogue.repair.is_busy() {
        return Err(
            "indexes are being built, or collections copied again: the target is incomplete",
        );
    }
    let now = WallTime::now();
    let unseen = now.as_ms().saturating_sub(seen_ms).max(0).unsigned_abs() / 1000;
    let mut cutover = CutoverRecord::new(now, now, options);
    cutover.source_unseen_seconds = Some(unseen);
    cutover.verify = VerifyDepth::None;
    // Should it come back, it does not take writes.
    cutover.block = record.cutover.as_ref().map_or(WriteBlock::None, |before| before.block);
    cutover.decided = Some(Decided {
        at_ms: now.as_ms(),
        last: resume.applied,
        last_wall_ms: resume.wall_ms,
        proof: Proof::default(),
    });
    Ok((cutover, resume))
}

fn audit(
    config: &Config,
    options: &CutoverOptions,
    cutover: &CutoverRecord,
    resume: ResumePoint,
) -> Result<(), Exit> {
    let detail = serde_json::json!({
        "final": resume.applied.to_string(),
        "source_unseen_seconds": cutover.source_unseen_seconds,
    });
    let by = options.by.as_deref().or(Some("operator"));
    let audit = Audit::open(&config.state.directory)?;
    Ok(audit.append("source given up for lost", by, detail)?)
}

/// Decides without the source, between two acts. What it had that was not read is lost.
///
/// # Errors
/// The disk. The refusal says why it makes no sense now; nothing is changed then.
pub(in crate::sync) async fn lose_source(
    context: &Context,
    options: &CutoverOptions,
) -> Result<Result<(), Refusal>, Interrupted> {
    if answers(&context.source).await {
        return Ok(Err(Refusal::wrong_state(ANSWERS)));
    }
    // One that has blocked writes waits for the source, to let them through again.
    context.cutover.end("the source is given up for lost").await;
    let record = context.records.get();
    let seen = context.board.read().source_optime.map(|seen| seen.wall.as_ms());
    let seen = seen.unwrap_or(record.resume.unwrap_or_default().wall_ms);
    let decided = decide(&record, &context.catalogue.read(), seen, options);
    let (cutover, resume) = match decided {
        Ok(decided) => decided,
        Err(why) => return Ok(Err(Refusal::wrong_state(why))),
    };
    let began = WallTime::from_ms(cutover.began_ms);
    let status = CutoverStatus::begun(began, cutover.verify, false);
    context.board.update(|board| board.cutover = Some(status));
    audit(&context.config, options, &cutover, resume)?;
    let unseen = cutover.source_unseen_seconds.unwrap_or(0);
    let kept = |record: &mut Record| record.cutover = Some(Box::new(cutover));
    context.happen_with(Event::CutoverDecided, kept)?;
    note(context, &format!("decided: the source is lost, and was last seen {unseen} s ago"));
    Ok(Ok(()))
}

/// Decides without the source and without a daemon, which cannot start without it. The next start brings it to its
/// end. Returns where the target stands.
///
/// # Errors
/// A daemon runs (75), the source answers, the target is a fragment, or the disk.
pub async fn lose_source_unattended(
    config: &Config,
    options: &CutoverOptions,
) -> Result<ResumePoint, Exit> {
    let refuse = |text: &str| Exit::new(Code::Failed, text);
    let _lock = startup::lock(config)?;
    let directory = &config.state.directory;
    let record = RecordStore::find(directory)?;
    let record = record
        .filter(|record| record.phase.next(Event::CutoverDecided).is_ok())
        .filter(|record| !matches!(record.phase, Phase::Paused { .. }));
    let mut record = record.ok_or_else(|| {
        refuse(
            "the state directory holds no migration that follows; what is paused or halted may not \
                have been applied",
        )
    })?;
    let source = startup::connect(config, Side::Source, "snapsync cutover", CONNECTIONS).await?;
    if answers(&source).await {
        return Err(refuse(ANSWERS));
    }
    let catalogue = copying::open_catalogue(directory)?.read().clone();
    let seen = record.resume.unwrap_or_default().wall_ms;
    let (cutover, resume) = decide(&record, &catalogue, seen, options).map_err(refuse)?;
    audit(config, options, &cutover, resume)?;
    let next = record.phase.next(Event::CutoverDecided);
    record.phase = next.map_err(|error| Exit::new(Code::Internal, error.to_string()))?;
    (record.since_ms, record.cutover) = (WallTime::now().as_ms(), Some(Box::new(cutover)));
    RecordStore::create(directory, record)?;
    Ok(resume)
}
