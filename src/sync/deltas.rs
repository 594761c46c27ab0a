//! Counting: the difference in documents of every collection, round after round. Fast counts on every round; where they
//! differ and a second look does not explain it, exact counts at one optime. What is confirmed is told to the replay.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bson::{Bson, Uuid, doc};

use super::divergence::counts::{Fast, Judge};
use super::divergence::desk::Desk;
use super::divergence::exact::{Counters, Exact};
use super::record::RecordStore;
use super::tuning::InForce;
use crate::catalogue::Collection;
use crate::mongo::{Deployment, Error, bson_count, run};
use crate::source::start;
use crate::state::catalogue::CatalogueStore;
use crate::status::{CollectionDelta, State, StatusBoard, WallTime, sum_by_database};
use crate::stop::Stop;
use crate::telemetry::delta_log::DeltaLog;
use crate::telemetry::events;

const NAMESPACE_NOT_FOUND: i32 = 26;
/// How long the replay is given to pass what the source had when it was counted.
const PASS_WITHIN: Duration = Duration::from_secs(5);
const PASS_POLL: Duration = Duration::from_millis(20);
/// How long to wait for a cut: the replay may be in the middle of a large window.
const CUT_WITHIN: Duration = Duration::from_secs(30);

/// What rounds of counting work with.
#[derive(Debug, Clone)]
pub struct Counter {
    /// Counted by UUID.
    pub source: Deployment,
    /// Counted by name.
    pub target: Deployment,
    /// What is counted.
    pub store: Arc<CatalogueStore>,
    /// Where the replay stands.
    pub records: Arc<RecordStore>,
    /// Where cuts are asked for, and differences told.
    pub desk: Desk,
    /// Whether counts may be compared.
    pub settled: Arc<AtomicBool>,
    /// How often, and what is logged.
    pub tuning: InForce,
    /// Where the result is shown.
    pub board: StatusBoard,
}

/// One collection in a round.
#[derive(Debug, Clone)]
struct Counted {
    uuid: Uuid,
    collection: Collection,
    fast: Fast,
    exact: Option<Exact>,
}

impl Counter {
    /// Counts every `delta.interval` while the target follows the source, until stopped.
    pub async fn run(self, stop: Stop) {
        let mut log = DeltaLog::new(self.tuning.get().delta_log);
        let mut judge = Judge::default();
        let mut exactly = Counters::new(&self.source, &self.target);
        let mut from = WallTime::now();
        loop {
            let tuning = self.tuning.get();
            if stop.sleep(tuning.delta_interval).await.is_err() {
                return;
            }
            log.set_mode(self.tuning.get().delta_log);
            let to = WallTime::now();
            if self.follows() {
                let round = tokio::select! {
                    () = stop.requested() => return,
                    round = self.round(&mut judge, &mut exactly) => round,
                };
                match round {
                    // A state that changed meanwhile makes the counts meaningless.
                    Ok(counted) if self.follows() => {
                        self.report(from, to, deltas(&judge, &counted), &mut log);
                    }
                    Ok(_) => {}
                    Err(error) => tracing::info!("no counts this time: {error}"),
                }
            }
            from = to;
        }
    }

    fn follows(&self) -> bool {
        matches!(self.board.state(), State::Live | State::CatchingUp)
            && self.settled.load(Ordering::Relaxed)
    }

    fn report(
        &self,
        from: WallTime,
        to: WallTime,
        deltas: Vec<CollectionDelta>,
        log: &mut DeltaLog,
    ) {
        let databases = sum_by_database(&deltas);
        let lines = log.round(Instant::now(), &deltas, &databases);
        for delta in lines.collections {
            events::delta_collection(from, to, delta);
        }
        for delta in lines.databases {
            events::delta_database(delta);
        }
        self.board.update(|status| status.set_deltas(deltas));
    }

    async fn round(
        &self,
        judge: &mut Judge,
        exactly: &mut Counters,
    ) -> Result<Vec<Counted>, Error> {
        let mut counted = self.count_fast(judge).await?;
        let passed = self.count_target_again(judge, &mut counted).await?;
        counted.retain(|found| self.is_followed_as(found));
        judge.retain(|uuid| counted.iter().any(|found| found.uuid == *uuid));
        if passed {
            for found in &mut counted {
                if judge.suspects(found.uuid, found.fast, Instant::now()) {
                    self.count_exactly(judge, exactly, found).await;
                }
            }
        }
        Ok(counted)
    }

    /// Counts every collection on both sides, by metadata: an estimate that costs next to nothing.
    async fn count_fast(&self, judge: &mut Judge) -> Result<Vec<Counted>, Error> {
        let (followed, held): (Vec<(Uuid, Collection)>, Vec<Uuid>) = {
            let catalogue = self.store.read();
            let held = catalogue.repair.held.keys().copied().collect();
            let all = catalogue.collections.iter();
            let followed = all.filter(|(uuid, _)| !catalogue.repair.is_held(uuid));
            (followed.map(|(uuid, found)| (*uuid, found.clone())).collect(), held)
        };
        held.iter().for_each(|uuid| judge.forget(uuid));
        let mut counted = Vec::with_capacity(followed.len());
        for (uuid, collection) in followed {
            let Some(target) = self.count_target(&collection).await? else { continue };
            let database = &collection.source.database;
            let Some(source) = count(&self.source, database, uuid.into()).await? else { continue };
            let fast = Fast { target_before: target, source, target_after: target };
            counted.push(Counted { uuid, collection, fast, exact: None });
        }
        counted.sort_by(|a, b| a.collection.source.cmp(&b.collection.source));
        Ok(counted)
    }

    async fn count_target(&self, collection: &Collection) -> Result<Option<u64>, Error> {
        let target = &collection.target;
        count(&self.target, &target.database, Bson::String(target.collection.clone())).await
    }

    /// Where the two differ: once more on the target, as soon as everything is applied that the source had when it was
    /// counted. False if that takes too long; then a difference means nothing.
    async fn count_target_again(
        &self,
        judge: &Judge,
        counted: &mut [Counted],
    ) -> Result<bool, Error> {
        let differ = |found: &&mut Counted| {
            judge.differ(found.uuid, found.fast.source, found.fast.target_before)
        };
        let mut differing: Vec<&mut Counted> = counted.iter_mut().filter(differ).collect();
        if differing.is_empty() {
            return Ok(true);
        }
        let (newest, _) = start::majority_optime(&self.source).await?;
        let began = Instant::now();
        while self.records.get().resume.is_none_or(|resume| resume.applied.ts < newest.ts) {
            if began.elapsed() > PASS_WITHIN {
                return Ok(false);
            }
            tokio::time::sleep(PASS_POLL).await;
        }
        for found in &mut differing {
            if let Some(target) = self.count_target(&found.collection).await? {
                found.fast.target_after = target;
            }
        }
        Ok(true)
    }

    /// Whether it was neither renamed nor dropped nor taken out while it was counted.
    fn is_followed_as(&self, found: &Counted) -> bool {
        let catalogue = self.store.read();
        let Some(now) = catalogue.collections.get(&found.uuid) else { return false };
        let Collection { source, target, target_uuid, .. } = &found.collection;
        let same = (&now.source, &now.target, &now.target_uuid) == (source, target, target_uuid);
        same && !catalogue.repair.is_held(&found.uuid)
    }

    /// Counts exactly, and once more if that shows a difference: only then it is one.
    async fn count_exactly(&self, judge: &mut Judge, exactly: &mut Counters, found: &mut Counted) {
        let (uuid, name) = (found.uuid, found.collection.source.clone());
        for confirmed in [false, true] {
            let exact = match self.exact(exactly, found).await {
                Ok(Some(exact)) => exact,
                // The replay ended or is busy, or it has another name by now; there will be another round.
                Ok(None) => return,
                Err(error) => {
                    let failures = judge.failed(uuid, Instant::now());
                    events::not_counted(&name.to_string(), failures, &error.to_string());
                    return;
                }
            };
            found.exact = Some(exact);
            if exact.delta() == 0 {
                match self.is_as_before(found).await {
                    Ok(true) => judge.equal(uuid, found.fast, exact.source, Instant::now()),
                    _ => judge.equal_while_written(uuid, Instant::now()),
                }
                return;
            }
            if confirmed {
                let what = format!(
                    "{name} holds {} documents on the source and {} on the target",
                    exact.source, exact.target
                );
                self.desk.report(uuid, what);
            }
        }
    }

    async fn exact(&self, exactly: &mut Counters, found: &Counted) -> Result<Option<Exact>, Error> {
        let asked = self.desk.ask();
        let Ok(Ok(cut)) = tokio::time::timeout(CUT_WITHIN, asked).await else { return Ok(None) };
        let exact = exactly.count(found.uuid, &found.collection, &cut).await?;
        Ok(exact.filter(|_| self.is_followed_as(found)))
    }

    /// Whether the fast counts still say what they said before documents were counted exactly. If not, the exact count
    /// is of another moment than they are, and tells nothing of them.
    async fn is_as_before(&self, found: &Counted) -> Result<bool, Error> {
        let Counted { uuid, collection, fast, .. } = found;
        let source = count(&self.source, &collection.source.database, (*uuid).into()).await?;
        let target = self.count_target(collection).await?;
        Ok((source, target) == (Some(fast.source), Some(fast.target_after)))
    }
}

fn deltas(judge: &Judge, counted: &[Counted]) -> Vec<CollectionDelta> {
    let delta = |found: &Counted| {
        let (source, target) = match found.exact {
            Some(exact) => (exact.source, exact.target),
            None => judge.corrected(found.uuid, found.fast.source, found.fast.target_after),
        };
        let Collection { source: name, target: target_name, .. } = &found.collection;
        let (name, target_name) = (name.to_string(), target_name.to_string());
        let delta = CollectionDelta::estimated(name, target_name, source, target);
        CollectionDelta { exact: found.exact.is_some(), ..delta }
    };
    counted.iter().map(delta).collect()
}

/// Documents of a collection by its name or UUID, as the server's metadata say; `None` if it is gone.
///
/// # Errors
/// The call failed.
pub async fn count(
    deployment: &Deployment,
    database: &str,
    collection: Bson,
) -> Result<Option<u64>, Error> {
    let command = doc! { "count": collection };
    match run(deployment, database, "count documents", command).await {
        Ok(reply) => Ok(Some(bson_count(&reply, "n"))),
        // Dropped since: its drop is on the way.
        Err(error) if error.code() == Some(NAMESPACE_NOT_FOUND) => Ok(None),
        Err(error) => Err(error),
    }
}
