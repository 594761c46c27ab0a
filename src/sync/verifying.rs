//! Verification: once, for `snapsync verify`; and all the time beside the replay, with `verify.continuous`, where what
//! differs is told to the replay as a negative delta is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bson::Uuid;
use tokio::sync::Semaphore;

use super::divergence::desk::Desk;
use super::record::Record;
use super::startup;
use crate::catalogue::Collection;
use crate::config::Config;
use crate::copy::Pace;
use crate::exit::{Code, Exit};
use crate::mongo::{Deployment, Error, Hello, Side, replica_set_identity, same_set};
use crate::namespace::Namespace;
use crate::position::Still;
use crate::retry::Stopped;
use crate::state::catalogue::CatalogueStore;
use crate::status::{Noted, State, StatusBoard, VerifiedRound, VerifyReport, WallTime};
use crate::stop::Stop;
use crate::target::lease::mirror::Mirror;
use crate::telemetry::events;
use crate::verify::moment::{Floor, Mirrored, Moment, Moments, NoMoment};
use crate::verify::{CollectionReport, Outcome, Progress, Report, Verifier, VerifyError, verify};

/// Runs that are read at once all the time: it has time.
const CONTINUOUS_WORKERS: usize = 1;
/// Between two collections, so that many small ones do not keep the servers busy with lists.
const PAUSE: Duration = Duration::from_secs(1);
/// A round that comes to the same as the last one is told again after this time.
const TELL_EVERY: Duration = Duration::from_secs(3600);
/// How long a cut is waited for: the replay may be in the middle of a large window.
const CUT_WITHIN: Duration = Duration::from_secs(60);
/// Connections beside those of the readers.
const CONTROL_CONNECTIONS: usize = 4;

/// What to verify once.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Collections or databases by their names on the source; all if there are none.
    pub names: Vec<String>,
    /// The share of the documents, up to 1.
    pub sample: f64,
    /// Bytes a second of each side; 0 for no limit.
    pub bytes_per_second: u64,
}

/// Verifies once, on connections of its own. `watch` is given what counts how far it has come.
///
/// # Errors
/// A server that is not reached (69), a name that means nothing (64), or a call that failed.
pub async fn once(
    config: &Config,
    wanted: &Wanted,
    watch: impl FnOnce(Arc<Progress>),
) -> Result<Report, Exit> {
    let workers = config.copy_workers();
    let connections = u32::try_from(workers * 2 + CONTROL_CONNECTIONS).unwrap_or(u32::MAX);
    let connect = |side| startup::connect(config, side, "snapsync verify", connections);
    let (source, target) = (connect(Side::Source).await?, connect(Side::Target).await?);
    let at_start = |error: Error| Exit::at_start(&error);
    // Later, servers that are away are waited for.
    for side in [&source, &target] {
        Hello::ask(side).await.map_err(at_start)?;
    }
    let source_set = replica_set_identity(&source).await.map_err(at_start)?;
    let stop = Stop::new();
    let fingerprint = config.sync.selection.fingerprint();
    let is_ours = move |mirror: &Mirror| is_of(mirror, &fingerprint, source_set.as_deref());
    let mirrored = Mirrored::new(&target, is_ours, &stop);
    let verifier = Verifier {
        source,
        target,
        moments: Arc::new(mirrored),
        pace: Arc::new(Pace::new(wanted.bytes_per_second)),
        workers: Arc::new(Semaphore::new(workers)),
        sample: wanted.sample,
        progress: Arc::default(),
        stop,
    };
    watch(verifier.progress.clone());
    let verified = verify(&verifier, &config.sync.selection, &wanted.names).await;
    verified.map_err(|error| match error {
        VerifyError::Unknown(name) => {
            let text = format!("{name:?} is no collection, view or database that is selected");
            Exit::new(Code::Usage, text)
        }
        VerifyError::Stopped(Stopped::Stop) => Exit::new(Code::Failed, "stopped"),
        VerifyError::Stopped(Stopped::Failed(error)) => Exit::at_start(&error),
    })
}

/// Whether a migration that left its mark on the target is the one of this selection and source.
fn is_of(mirror: &Mirror, selection: &str, source: Option<&str>) -> bool {
    let Ok(record) = serde_json::from_str::<Record>(&mirror.record) else { return false };
    let followed = record.replica_sets.source.as_deref();
    let same_source = match (source, followed) {
        (Some(source), Some(followed)) => same_set(followed, source) != Some(false),
        // Where it may not be read, it is not compared.
        _ => true,
    };
    !mirror.is_taken && record.resume.is_some() && record.selection == selection && same_source
}

/// Moments by asking the replay.
#[derive(Debug)]
pub struct Asked {
    desk: Desk,
}

impl Asked {
    /// By this desk.
    #[must_use]
    pub fn new(desk: Desk) -> Self {
        Self { desk }
    }
}

impl Moments for Asked {
    async fn next(&self, floor: Floor) -> Result<Moment, NoMoment> {
        let asking = async {
            loop {
                let Ok(cut) = self.desk.ask().await else {
                    return Err(NoMoment::Unknown("the replay stands still".to_owned()));
                };
                if floor.is_reached_by(&cut) {
                    return Ok(Moment::Cut(cut));
                }
            }
        };
        let late = || NoMoment::Unknown("the replay is busy with a large window".to_owned());
        tokio::time::timeout(CUT_WITHIN, asking).await.unwrap_or_else(|_| Err(late()))
    }

    async fn still_stands(&self, _still: &Still) -> Result<bool, NoMoment> {
        // It is never told that it does.
        std::future::ready(Ok(false)).await
    }
}

/// Verifies all the time.
#[derive(Debug)]
pub struct Continuous {
    verifier: Verifier<Asked>,
    store: Arc<CatalogueStore>,
    settled: Arc<AtomicBool>,
    desk: Desk,
    board: StatusBoard,
}

impl Continuous {
    /// Of these two, with what they are followed by.
    #[must_use]
    pub fn new(context: &super::context::Context, target: &Deployment, stop: &Stop) -> Self {
        let verifier = Verifier {
            source: context.source.clone(),
            target: target.clone(),
            moments: Arc::new(Asked { desk: context.desk.clone() }),
            pace: context.verify_pace.clone(),
            workers: Arc::new(Semaphore::new(CONTINUOUS_WORKERS)),
            sample: 1.0,
            progress: Arc::default(),
            stop: stop.clone(),
        };
        Self {
            verifier,
            store: context.catalogue.clone(),
            settled: context.settled.clone(),
            desk: context.desk.clone(),
            board: context.board.clone(),
        }
    }

    /// Goes round all collections, until stopped.
    pub async fn run(self) {
        let mut report = VerifyReport::default();
        let mut told = None;
        self.show(&report);
        loop {
            if !self.wait_to_follow().await {
                return;
            }
            let mut round = VerifiedRound {
                began: WallTime::now(),
                finished: WallTime::now(),
                equal: 0,
                different: 0,
                unproven: 0,
            };
            let mut last = None;
            report.round += 1;
            report.since = Some(round.began);
            report.collections = 0;
            while let Some((uuid, collection)) = self.after(last.as_ref()) {
                let name = collection.source.to_string();
                report.collection = Some(name.clone());
                report.collections_total = self.store.read().collections.len() as u64;
                self.show(&report);
                let looked = match self.look(uuid, &collection).await {
                    Ok(looked) => looked,
                    Err(()) => return,
                };
                if let Some(found) = looked {
                    self.note(uuid, &found, &mut report, &mut round);
                }
                report.collections += 1;
                last = Some(collection.source);
                if self.verifier.stop.sleep(PAUSE).await.is_err() || !self.wait_to_follow().await {
                    return;
                }
            }
            round.finished = WallTime::now();
            report.collection = None;
            let counts = (round.equal, round.different, round.unproven);
            if told
                .is_none_or(|(at, same): (Instant, _)| same != counts || at.elapsed() >= TELL_EVERY)
            {
                events::verified(&round);
                told = Some((Instant::now(), counts));
            }
            report.last_round = Some(round);
            self.show(&report);
            if self.verifier.stop.sleep(PAUSE).await.is_err() {
                return;
            }
        }
    }

    /// Waits until the target follows; false if it is asked to stop before.
    async fn wait_to_follow(&self) -> bool {
        while !self.follows() {
            if self.verifier.stop.sleep(PAUSE).await.is_err() {
                return false;
            }
        }
        true
    }

    fn follows(&self) -> bool {
        self.board.state() == State::Live && self.settled.load(Ordering::Relaxed)
    }

    /// The collection that comes next, in order of names; what is being copied again is left out.
    fn after(&self, last: Option<&Namespace>) -> Option<(Uuid, Collection)> {
        let catalogue = self.store.read();
        let all = catalogue.collections.iter();
        let left = all.filter(|(uuid, found)| {
            !catalogue.repair.is_held(uuid) && last.is_none_or(|last| found.source > *last)
        });
        let next = left.min_by(|(_, a), (_, b)| a.source.cmp(&b.source));
        next.map(|(uuid, found)| (*uuid, found.clone()))
    }

    /// Verifies a collection. `None` if that told nothing; an error is the end.
    async fn look(
        &self,
        uuid: Uuid,
        collection: &Collection,
    ) -> Result<Option<CollectionReport>, ()> {
        let looked = tokio::select! {
            () = self.verifier.stop.requested() => return Err(()),
            looked = self.verifier.collection(uuid, collection) => looked,
        };
        match looked {
            // A replay that was interrupted makes a comparison meaningless; one that renamed it, too.
            Ok(found) if self.is_followed_as(uuid, collection) => Ok(found),
            Ok(_) => Ok(None),
            Err(Stopped::Stop) => Err(()),
            Err(Stopped::Failed(error)) => {
                tracing::info!("{} is not verified this time: {error}", collection.source);
                Ok(None)
            }
        }
    }

    fn is_followed_as(&self, uuid: Uuid, collection: &Collection) -> bool {
        let catalogue = self.store.read();
        let now = catalogue.collections.get(&uuid);
        self.follows()
            && !catalogue.repair.is_held(&uuid)
            && now.is_some_and(|now| {
                (&now.source, &now.target, &now.target_uuid)
                    == (&collection.source, &collection.target, &collection.target_uuid)
            })
    }

    fn note(
        &self,
        uuid: Uuid,
        found: &CollectionReport,
        report: &mut VerifyReport,
        round: &mut VerifiedRound,
    ) {
        let noted = |what: String| Noted {
            collection: found.collection.clone(),
            what,
            at: WallTime::now(),
        };
        match (found.outcome, found.what_differs()) {
            (Outcome::Equal, _) => {
                round.equal += 1;
                report.is_equal(&found.collection);
            }
            (Outcome::Different, Some(what)) => {
                round.different += 1;
                events::verified_different(&found.collection, &what);
                // A definition that differs may be another way of saying the same: that is told, and copies nothing.
                if found.documents_differ() {
                    let text = format!("contents of {} differ: {what}", found.collection);
                    self.desk.report(uuid, text);
                }
                report.differs(noted(what));
            }
            _ => {
                round.unproven += 1;
                report.is_unproven(noted(found.unproven.join("; ")));
            }
        }
        (report.documents, report.bytes) = self.verifier.progress.read();
        self.show(report);
    }

    fn show(&self, report: &VerifyReport) {
        let report = report.clone();
        self.board.update(|status| status.verify = Some(report));
    }
}
