//! Building the secondary indexes, once the target has caught up with the copy: before that, half-replayed documents
//! could break the rules that indexes make.

use std::time::Instant;

use bson::{Document, Uuid};
use tokio::task::JoinSet;

use super::context::{Context, Interrupted};
use crate::catalogue::Collection;
use crate::replay::apply::ApplyError;
use crate::retry::Stopped;
use crate::stop::Stop;

/// Collections whose indexes are built at once: each build takes a processor and some hundred MiB of the target.
const BUILDS: usize = 2;

/// Builds every index of the catalogue, or waits for the build of an earlier run; then says so durably.
///
/// # Errors
/// [`Interrupted`].
pub(super) async fn build_all(context: &Context, stop: &Stop) -> Result<(), Interrupted> {
    if context.catalogue.read().indexes_built {
        return Ok(());
    }
    let began = Instant::now();
    let mut waiting: Vec<(Uuid, Collection)> = {
        let catalogue = context.catalogue.read();
        let all = catalogue.collections.iter().filter(|(_, found)| !found.indexes.is_empty());
        all.map(|(uuid, found)| (*uuid, found.clone())).collect()
    };
    let count: usize = waiting.iter().map(|(_, collection)| collection.indexes.len()).sum();
    if count > 0 {
        tracing::info!(indexes = count, "building {count} indexes on the target");
    }
    let mut builds: JoinSet<Result<(), Stopped<ApplyError>>> = JoinSet::new();
    let mut outcome = Ok(());
    loop {
        while outcome.is_ok() && builds.len() < BUILDS {
            let Some((uuid, collection)) = waiting.pop() else { break };
            let (definer, stop) = (context.definer.clone(), stop.clone());
            builds.spawn(async move {
                let specs: Vec<Document> =
                    collection.indexes.values().map(|spec| spec.0.clone()).collect();
                let place = definer.place(&collection.target, collection.target_uuid);
                let built = definer.create_indexes(&place, &specs, &stop).await;
                built.map_err(|stopped| stopped.map(|error| ApplyError::Call(error).of(uuid)))
            });
        }
        let next = tokio::select! {
            next = builds.join_next() => next,
            // A build goes on in the server without us; the next start joins it.
            () = stop.requested() => return Err(Interrupted::Stop),
        };
        match next {
            None => break,
            Some(Ok(result)) => outcome = outcome.and(result),
            Some(Err(panic)) => {
                let error = ApplyError::Internal(panic.to_string());
                outcome = outcome.and(Err(Stopped::Failed(error)));
            }
        }
    }
    outcome?;
    context.catalogue.change(|catalogue| catalogue.indexes_built = true);
    context.catalogue.save()?;
    if count > 0 {
        let seconds = began.elapsed().as_secs_f64();
        tracing::info!(indexes = count, seconds, "built {count} indexes in {seconds:.1} s");
    }
    Ok(())
}
