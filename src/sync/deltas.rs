//! Counting: the difference in documents of every collection, round after round.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bson::{Bson, doc};

use super::tuning::InForce;
use crate::catalogue::Collection;
use crate::mongo::{Deployment, Error, bson_count, run};
use crate::state::catalogue::CatalogueStore;
use crate::status::{CollectionDelta, State, StatusBoard, WallTime, sum_by_database};
use crate::stop::Stop;
use crate::telemetry::delta_log::DeltaLog;
use crate::telemetry::events;

const NAMESPACE_NOT_FOUND: i32 = 26;

/// What rounds of counting work with.
#[derive(Debug, Clone)]
pub struct Counter {
    /// Counted by UUID.
    pub source: Deployment,
    /// Counted by name.
    pub target: Deployment,
    /// What is counted.
    pub store: Arc<CatalogueStore>,
    /// Whether counts may be compared.
    pub settled: Arc<AtomicBool>,
    /// How often, and what is logged.
    pub tuning: InForce,
    /// Where the result is shown.
    pub board: StatusBoard,
}

impl Counter {
    /// Counts every `delta.interval` while the target follows the source, until stopped.
    pub async fn run(self, stop: Stop) {
        let mut log = DeltaLog::new(self.tuning.get().delta_log);
        let mut from = WallTime::now();
        loop {
            let tuning = self.tuning.get();
            if stop.sleep(tuning.delta_interval).await.is_err() {
                return;
            }
            log.set_mode(self.tuning.get().delta_log);
            let to = WallTime::now();
            if self.follows() {
                match self.round().await {
                    // A state that changed meanwhile makes the counts meaningless.
                    Ok(deltas) if self.follows() => self.report(from, to, deltas, &mut log),
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
        let lines = log.round(std::time::Instant::now(), &deltas, &databases);
        for delta in lines.collections {
            events::delta_collection(from, to, delta);
        }
        for delta in lines.databases {
            events::delta_database(delta);
        }
        self.board.update(|status| status.set_deltas(deltas));
    }

    /// Counts every collection on both sides, by metadata: an estimate that costs next to nothing.
    async fn round(&self) -> Result<Vec<CollectionDelta>, Error> {
        let collections: Vec<(bson::Uuid, Collection)> = {
            let catalogue = self.store.read();
            catalogue.collections.iter().map(|(uuid, found)| (*uuid, found.clone())).collect()
        };
        let mut deltas = Vec::with_capacity(collections.len());
        for (uuid, collection) in collections {
            let database = &collection.source.database;
            let Some(source) = count(&self.source, database, uuid.into()).await? else { continue };
            let target = &collection.target;
            let name = Bson::String(target.collection.clone());
            let Some(target_count) = count(&self.target, &target.database, name).await? else {
                continue;
            };
            // Renamed or dropped while it was counted: the counts are of different things.
            let now = self.store.read().collections.get(&uuid).map(|now| now.target.clone());
            if now.as_ref() != Some(target) {
                continue;
            }
            deltas.push(CollectionDelta::estimated(
                collection.source.to_string(),
                collection.target.to_string(),
                source,
                target_count,
            ));
        }
        deltas.sort_by(|a, b| a.collection.cmp(&b.collection));
        Ok(deltas)
    }
}

async fn count(
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
