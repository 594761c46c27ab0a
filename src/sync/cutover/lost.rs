//! A source that is gone for good: the target takes over with everything that was read and is durable, and what it
//! lacks is named.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::plan::{CutoverRecord, Decided, named};
use super::{CONNECTIONS, is_decided, note};
use crate::catalogue::Catalogue;
use crate::config::Config;
use crate::exit::{Code, Exit};
use crate::http::control::{CutoverOptions, Refusal};
use crate::mongo::{Deployment, Hello, Side};
use crate::position::{OpTime, Ts};
use crate::replay::window::ResumePoint;
use crate::spool::SpoolError;
use crate::state::Audit;
use crate::status::{CutoverStatus, Proof, VerifyDepth, WallTime, WriteBlock};
use crate::stop::Stop;
use crate::sync::context::{Context, Interrupted};
use crate::sync::feed::{Entries, SPOOL_BATCH_BYTES};
use crate::sync::following::WINDOW_SHARE;
use crate::sync::phase::{Event, IllegalTransition, Phase};
use crate::sync::record::{Record, RecordStore};
use crate::sync::track::Track;
use crate::sync::{copying, reconcile, startup};

/// How long the replay is given to come to a window end, and how often that is looked at.
const REST_WITHIN: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// How long a source that is said to be lost is given to answer.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);

/// Whether the source answers after all.
async fn answers(source: &Deployment) -> bool {
    matches!(tokio::time::timeout(ANSWERS_WITHIN, Hello::ask(source)).await, Ok(Ok(_)))
}

const ANSWERS: &str = "the source answers: cut over without --source-lost, and nothing is lost";

/// Decides without the source. `seen_ms` says when it was last seen; `spooled`, how far what was read from it and is
/// durable goes.
fn decide(
    record: &Record,
    catalogue: &Catalogue,
    spooled: Option<OpTime>,
    seen_ms: i64,
    options: &CutoverOptions,
) -> Result<CutoverRecord, &'static str> {
    if is_decided(record) {
        return Err("the cutover is decided already");
    }
    let resume = record.resume.unwrap_or_default();
    let end = spooled.map_or(resume.applied, |spooled| spooled.max(resume.applied));
    if record.phase.consistent_from().is_none_or(|consistent_from| end.ts < consistent_from) {
        return Err("the target is not the source at one moment: what is there is a fragment");
    }
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
        // Further on when the spool has been applied.
        last: resume.applied,
        last_wall_ms: resume.wall_ms,
        proof: Proof::default(),
    });
    Ok(cutover)
}

/// The phase after the decision. A person who gives the source up for lost lets a halted migration go on.
fn decided_phase(phase: &Phase) -> Result<Phase, IllegalTransition> {
    match phase {
        Phase::Halted { reason, .. } => {
            tracing::warn!("it was halted: {reason}");
            phase.next(Event::Resume)?.next(Event::CutoverDecided)
        }
        phase => phase.next(Event::CutoverDecided),
    }
}

/// Whether the source may be given up for lost. Asked before anything is held up for it.
///
/// # Errors
/// It answers.
pub(in crate::sync) async fn check_lost(context: &Context) -> Result<(), Refusal> {
    if answers(&context.source).await { Err(Refusal::wrong_state(ANSWERS)) } else { Ok(()) }
}

/// Lets the replay come to a window end before its act is ended: the entries of a window that is cut short may be
/// nowhere else.
pub(in crate::sync) async fn come_to_rest(context: &Context) {
    let resting = async {
        // It stands still only where the target is the source at one moment.
        let is_settled = || context.settled.load(Ordering::Relaxed);
        while context.cutover.is_followed() && is_settled() && context.cutover.stands_at().is_none()
        {
            // One that is given up meanwhile lets the replay go on.
            if !context.cutover.is_wanted() {
                context.cutover.want(true);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    // It is waited for no longer than anybody who asks waits for an answer.
    if tokio::time::timeout(REST_WITHIN, resting).await.is_err() {
        tracing::warn!("the replay does not come to the end of its window, and is cut short");
    }
}

/// Applies what was read from the source and is durable, up to its end. The source is not asked.
///
/// # Errors
/// [`Interrupted`]; it may be done again.
pub(super) async fn drain(context: &Context, stop: &Stop) -> Result<(), Interrupted> {
    let resume = context.records.get().resume.unwrap_or_default();
    let mut spool = copying::open_spool(context, resume.read_from)?;
    let mut reader = spool.reader(resume.read_from.ts.just_before());
    let _gone = reconcile::names(context, stop).await?;
    let mut track = Track::new(context, &context.config.state.directory)?;
    track.set_scope(context.catalogue.read().scope())?;
    let bytes_max = usize::try_from(context.tuning.get().memory_bytes_max / WINDOW_SHARE);
    let bytes_max = bytes_max.unwrap_or(usize::MAX);
    let mut entries = 0;
    loop {
        stop.check()?;
        let batch = tokio::task::block_in_place(|| reader.read_batch(SPOOL_BATCH_BYTES))?;
        let has_ended = batch.is_empty();
        track.take(&Entries::Spooled(batch))?;
        if (has_ended || (track.has_reached() && track.bytes() >= bytes_max))
            && let Some(carried) = track.carry_out(stop).await?
        {
            entries += carried.entries;
            context.standing.resumes_at(carried.end);
            if carried.defines {
                track.set_scope(context.catalogue.read().scope())?;
            }
        }
        if has_ended {
            break;
        }
    }
    let resume = track.resume();
    context.records.change(|record| {
        let decided = record.cutover.as_mut().and_then(|cutover| cutover.decided.as_mut());
        if let Some(decided) = decided {
            (decided.last, decided.last_wall_ms) = (resume.applied, resume.wall_ms);
        }
    })?;
    if entries > 0 {
        let at = resume.applied.ts;
        note(context, &format!("applied {entries} entries that had been read, up to {at}"));
    }
    let copying = context.catalogue.read().copying();
    if !copying.is_empty() {
        note(
            context,
            &format!("came into the selection too late to be copied: {}", named(&copying)),
        );
    }
    if let Some(until) = cut_short(&context.records.get()) {
        note(context, &format!("parts of what the source did up to {until} are missing"));
    }
    Ok(tokio::task::block_in_place(|| spool.remove_all())?)
}

/// Up to where the target may hold some of what the source did and not the rest: a window was being applied when the
/// daemon was killed, and its entries are lost with the source.
pub(super) fn cut_short(record: &Record) -> Option<Ts> {
    let applied = record.resume.unwrap_or_default().applied.ts;
    record.intent.filter(|intent| *intent > applied)
}

fn audit(
    config: &Config,
    options: &CutoverOptions,
    cutover: &CutoverRecord,
    record: &Record,
) -> Result<(), Exit> {
    let detail = serde_json::json!({
        "state": record.phase.state().to_string(),
        "applied": record.resume.unwrap_or_default().applied.to_string(),
        "source_unseen_seconds": cutover.source_unseen_seconds,
    });
    let by = options.requested_by().or(Some("operator"));
    let audit = Audit::open(&config.state.directory)?;
    Ok(audit.append("source given up for lost", by, detail)?)
}

/// Decides without the source, between two acts, after [`check_lost`]. What it had that was not read is lost.
///
/// # Errors
/// The disk. The refusal says why it makes no sense now; nothing is changed then.
pub(in crate::sync) async fn lose_source(
    context: &Context,
    options: &CutoverOptions,
) -> Result<Result<(), Refusal>, Interrupted> {
    // One that has blocked writes waits for the source, to let them through again.
    context.cutover.end("the source is given up for lost").await;
    let record = context.records.get();
    let seen = context.board.read().source_optime.map(|seen| seen.wall.as_ms());
    let seen = seen.unwrap_or(record.resume.unwrap_or_default().wall_ms);
    let from = record.resume.unwrap_or_default().read_from;
    let spooled = copying::spooled_from(&context.config, from)?;
    let decided = decide(&record, &context.catalogue.read(), spooled, seen, options);
    let cutover = match decided {
        Ok(decided) => decided,
        Err(why) => return Ok(Err(Refusal::wrong_state(why))),
    };
    let began = WallTime::from_ms(cutover.began_ms);
    let status = CutoverStatus::begun(began, cutover.verify, false);
    context.board.update(|board| board.cutover = Some(status));
    audit(&context.config, options, &cutover, &record)?;
    let unseen = cutover.source_unseen_seconds.unwrap_or(0);
    let decided = context.records.try_change(|record| {
        record.phase = decided_phase(&record.phase)?;
        (record.since_ms, record.cutover) = (cutover.began_ms, Some(Box::new(cutover)));
        Ok::<(), Interrupted>(())
    })?;
    context.show(&decided.phase);
    note(context, &format!("decided: the source is lost, and was last seen {unseen} s ago"));
    Ok(Ok(()))
}

/// What was decided without a daemon.
#[derive(Debug, Clone, Copy)]
pub struct Unattended {
    /// Where the target stands.
    pub resume: ResumePoint,
    /// The last entry that was read and is to be applied yet, if there is one.
    pub spooled: Option<OpTime>,
    /// Up to where the target holds some of what the source did and not the rest.
    pub cut_short: Option<Ts>,
}

/// Decides without the source and without a daemon, which cannot start without it. The next start brings it to its
/// end. Returns where the target stands.
///
/// # Errors
/// A daemon runs (75), the source answers, the target is a fragment, or the disk.
pub async fn lose_source_unattended(
    config: &Config,
    options: &CutoverOptions,
) -> Result<Unattended, Exit> {
    let refuse = |text: &str| Exit::new(Code::Failed, text);
    let _lock = startup::lock(config)?;
    let directory = &config.state.directory;
    let record = RecordStore::find(directory)?;
    let mut record =
        record.ok_or_else(|| refuse("the state directory holds no migration that follows"))?;
    match startup::connect(config, Side::Source, "snapsync cutover", CONNECTIONS).await {
        Ok(source) if answers(&source).await => return Err(refuse(ANSWERS)),
        // One whose very name cannot be looked up any more does not answer either.
        Err(exit) if exit.code != Code::Unavailable => return Err(exit),
        _ => {}
    }
    let catalogue = copying::open_catalogue(directory)?.read().clone();
    let resume = record.resume.unwrap_or_default();
    let disk = |error: SpoolError| Exit::new(Code::Disk, error.to_string());
    let spooled = copying::spooled_from(config, resume.read_from).map_err(disk)?;
    let cutover = decide(&record, &catalogue, spooled, resume.wall_ms, options).map_err(refuse)?;
    audit(config, options, &cutover, &record)?;
    let next = decided_phase(&record.phase);
    record.phase = next.map_err(|error| Exit::new(Code::Internal, error.to_string()))?;
    (record.since_ms, record.cutover) = (WallTime::now().as_ms(), Some(Box::new(cutover)));
    let spooled = spooled.filter(|spooled| *spooled > resume.applied);
    let cut_short =
        cut_short(&record).filter(|until| spooled.is_none_or(|spooled| spooled.ts < *until));
    RecordStore::create(directory, record)?;
    Ok(Unattended { resume, spooled, cut_short })
}
