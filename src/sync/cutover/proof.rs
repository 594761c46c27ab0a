//! Comparing both sides for a cutover: all of it before writes stop, and after that only what has changed meanwhile, so
//! that the time without writes does not grow with the data.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bson::Uuid;
use tokio::sync::Semaphore;

use super::acting::{Cutover, Failed};
use super::again;
use super::counting::{self, Counted};
use super::plan::named;
use crate::copy::Pace;
use crate::replay::noted::{self, Documents};
use crate::status::{Proof, VerifyDepth};
use crate::sync::verifying::Asked;
use crate::verify::changed::Again;
use crate::verify::moment::Moments;
use crate::verify::{Outcome, Report, Verifier, VerifyError, verify};

/// Where `_id`s are noted, in the state directory.
pub(in crate::sync) const FOLDER: &str = "cutover";
/// Runs that are read at once.
const WORKERS_MAX: usize = 4;
/// How often it is said how far the comparison has come.
const TELL_EVERY: Duration = Duration::from_secs(10);
const SHOW_EVERY: Duration = Duration::from_secs(1);

/// What was compared, and counted.
#[derive(Debug, Default)]
pub(super) struct Proven {
    pub(super) proof: Proof,
    pub(super) counted: HashMap<Uuid, u64>,
    /// How often anything had been copied again when everything was compared.
    pub(super) resyncs: u64,
    /// What was taken from the notes and is to be compared: whole collections, and single documents.
    pub(super) whole: BTreeSet<Uuid>,
    pub(super) left: Option<Documents>,
    /// What was counted while writes went on.
    pub(super) numbers: HashMap<Uuid, Counted>,
}

/// What compares, at this pace.
pub(super) fn verifier<M: Moments>(cutover: &Cutover, pace: Arc<Pace>, moments: M) -> Verifier<M> {
    let context = &cutover.context;
    let workers = context.config.copy_workers().clamp(1, WORKERS_MAX);
    Verifier {
        source: context.source.clone(),
        target: context.target.clone(),
        moments: Arc::new(moments),
        pace,
        workers: Arc::new(Semaphore::new(workers)),
        sample: 1.0,
        progress: Arc::default(),
        stop: cutover.abort.clone(),
    }
}

impl From<VerifyError> for Failed {
    fn from(error: VerifyError) -> Self {
        match error {
            VerifyError::Unknown(name) => Self::GivenUp(format!("{name} is not known")),
            VerifyError::Stopped(stopped) => stopped.into(),
        }
    }
}

/// Compares everything while writes go on, and notes what the replay changes from now on.
///
/// # Errors
/// Something differs, or could not be proved to be equal.
pub(super) async fn before(cutover: &Cutover) -> Result<Proven, Failed> {
    let mut proven = Proven::default();
    match cutover.options.verify {
        VerifyDepth::Full => {}
        VerifyDepth::Counts => {
            counting::before(cutover, &mut proven).await?;
            return Ok(proven);
        }
        VerifyDepth::None => return Ok(proven),
    }
    let folder = cutover.context.config.state.directory.join(FOLDER);
    let noted = &cutover.context.noted;
    tokio::task::block_in_place(|| noted.start(&folder, noted::BYTES_MAX))
        .map_err(|error| Failed::GivenUp(format!("{}: {error}", folder.display())))?;
    proven.resyncs = cutover.context.catalogue.read().repair.resyncs;
    cutover.note("comparing contents while writes go on");
    let report = everything(cutover).await?;
    proven.proof.collections = report.collections.len() as u64;
    proven.proof.documents = report.documents;
    cutover.note(&format!(
        "contents are equal: {} collections, {} documents, {:.1} s",
        report.collections.len(),
        report.documents,
        report.seconds
    ));
    Ok(proven)
}

/// Compares everything.
///
/// # Errors
/// Something differs, or could not be proved to be equal.
pub(super) async fn everything(cutover: &Cutover) -> Result<Report, Failed> {
    let context = &cutover.context;
    let moments = Asked::new(context.desk.clone());
    // At the pace that is configured, as long as the source is at work.
    let verifier = verifier(cutover, context.verify_pace.clone(), moments);
    let progress = verifier.progress.clone();
    let telling = async {
        let mut ticks = tokio::time::interval(SHOW_EVERY);
        let mut told = tokio::time::Instant::now();
        loop {
            ticks.tick().await;
            let (documents, _) = progress.read();
            let text = format!("comparing contents: {documents} documents so far");
            if told.elapsed() >= TELL_EVERY {
                told = tokio::time::Instant::now();
                cutover.note(&text);
            }
            cutover.wait_for(text);
        }
    };
    let selection = &cutover.context.config.sync.selection;
    let report = tokio::select! {
        report = verify(&verifier, selection, &[]) => report?,
        () = telling => return Err(Failed::Stop),
    };
    let mut again = Again::default();
    for found in &report.collections {
        match (found.outcome, found.what_differs()) {
            (Outcome::Different, Some(what)) => {
                again.different.push(format!("{}: {what}", found.collection));
            }
            (Outcome::Unproven, _) => {
                again.unproven.push(format!("{}: {}", found.collection, found.unproven.join("; ")));
            }
            _ => {}
        }
    }
    again.different.extend(report.views.iter().cloned());
    let only = report.only_on_target.iter();
    again.different.extend(only.map(|name| format!("{name} is only on the target")));
    again.unproven.extend(report.unproven.iter().cloned());
    judge(again)?;
    Ok(report)
}

/// # Errors
/// Something differs, or could not be proved to be equal.
pub(super) fn judge(again: Again) -> Result<(), Failed> {
    if !again.different.is_empty() {
        return Err(Failed::Different(again.different));
    }
    if again.unproven.is_empty() {
        return Ok(());
    }
    Err(Failed::GivenUp(format!("not proved to be equal: {}", named(&again.unproven))))
}

/// Compares what has to be compared now that nothing is written any more. Returns how many operations had been applied
/// by then: if there are more later, something has changed since.
///
/// # Errors
/// Something differs, or could not be proved to be equal.
pub(super) async fn after(cutover: &Cutover, proven: &mut Proven) -> Result<u64, Failed> {
    let applied = || cutover.context.records.get().totals.entries_applied;
    let counted = match cutover.options.verify {
        VerifyDepth::None => applied(),
        depth => {
            if depth == VerifyDepth::Full {
                definitions(cutover, proven).await?;
            }
            // As long as the replay stands still it tells at once where both sides are the same.
            let at = cutover.stand_still().await?.applied.ts;
            let counted = applied();
            match depth {
                VerifyDepth::Full => {
                    let count = again::rest(cutover, proven, at).await?;
                    proven.proof.documents_after += count;
                    cutover.note(&format!(
                        "equal: all definitions, and {count} documents that had changed"
                    ));
                }
                _ => counting::after(cutover, proven).await?,
            }
            counted
        }
    };
    cutover.context.cutover.want(false);
    Ok(counted)
}

/// Compares all definitions, and whole collections where a definition has changed meanwhile.
async fn definitions(cutover: &Cutover, proven: &mut Proven) -> Result<(), Failed> {
    let context = &cutover.context;
    let verifier = verifier(cutover, Arc::new(Pace::new(0)), Asked::new(context.desk.clone()));
    let catalogue = context.catalogue.read().clone();
    let selection = &context.config.sync.selection;
    judge(verifier.definitions_again(&catalogue, selection).await?)?;
    loop {
        let (whole, everything) = context.noted.whole();
        // What was copied again since was never compared.
        if everything || catalogue.repair.resyncs != proven.resyncs {
            tokio::task::block_in_place(|| context.noted.take());
            proven.proof.documents_after += again::everything_anew(cutover, proven).await?;
            continue;
        }
        proven.whole.extend(whole);
        let Some(uuid) = proven.whole.pop_first() else {
            proven.proof.documents_after += verifier.progress.read().0;
            return Ok(());
        };
        judge(again::whole(cutover, &verifier, uuid).await?)?;
    }
}
