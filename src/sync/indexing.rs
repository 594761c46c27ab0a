//! Building the secondary indexes, once the target has caught up with the copy: before that, half-replayed documents
//! could break the rules that indexes make.

use std::collections::BTreeMap;
use std::time::Instant;

use bson::{Document, Uuid};
use tokio::task::JoinSet;

use super::context::{Context, Interrupted};
use crate::catalogue::Collection;
use crate::namespace::Namespace;
use crate::replay::apply::ApplyError;
use crate::retry::Stopped;
use crate::stop::Stop;

/// Builds at once: each takes a processor and some hundred MiB of the target.
const BUILDS: usize = 2;

/// Indexes of one collection that one scan of it builds.
#[derive(Debug)]
struct Build {
    uuid: Uuid,
    target: Namespace,
    target_uuid: Option<Uuid>,
    specs: Vec<Document>,
}

/// What is to be built: all indexes of a collection in one scan. Where there are fewer collections than may be built at
/// once, in as many scans as may.
fn builds(collections: &BTreeMap<Uuid, Collection>) -> Vec<Build> {
    let indexed: Vec<_> =
        collections.iter().filter(|(_, found)| !found.indexes.is_empty()).collect();
    let scans = BUILDS.div_ceil(indexed.len().max(1));
    let mut builds = Vec::new();
    for (uuid, collection) in indexed {
        let specs: Vec<&Document> = collection.indexes.values().map(|spec| &spec.0).collect();
        builds.extend(specs.chunks(specs.len().div_ceil(scans)).map(|specs| Build {
            uuid: *uuid,
            target: collection.target.clone(),
            target_uuid: collection.target_uuid,
            specs: specs.iter().copied().cloned().collect(),
        }));
    }
    builds
}

/// Builds every index of the catalogue, or waits for the build of an earlier run; then says so durably.
///
/// # Errors
/// [`Interrupted`].
pub(super) async fn build_all(context: &Context, stop: &Stop) -> Result<(), Interrupted> {
    if context.catalogue.read().indexes_built {
        return Ok(());
    }
    let began = Instant::now();
    let mut waiting = builds(&context.catalogue.read().collections);
    let count: usize = waiting.iter().map(|build| build.specs.len()).sum();
    if count > 0 {
        tracing::info!(indexes = count, "building {count} indexes on the target");
    }
    let mut running: JoinSet<Result<(), Stopped<ApplyError>>> = JoinSet::new();
    let mut outcome = Ok(());
    loop {
        while outcome.is_ok() && running.len() < BUILDS {
            let Some(build) = waiting.pop() else { break };
            let (definer, stop) = (context.definer.clone(), stop.clone());
            running.spawn(async move {
                let Build { uuid, target, target_uuid, specs } = build;
                let place = definer.place(&target, target_uuid);
                let built = definer.create_indexes(&place, &specs, &stop).await;
                built.map_err(|stopped| stopped.map(|error| ApplyError::Call(error).of(uuid)))
            });
        }
        let next = tokio::select! {
            next = running.join_next() => next,
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

#[cfg(test)]
mod tests {
    use bson::doc;

    use super::*;
    use crate::catalogue::Spec;

    fn collection(indexes: &[&str]) -> Collection {
        let spec = |name: &str| (name.to_owned(), Spec(doc! { "name": name }));
        Collection {
            source: Namespace::new("shop", "orders"),
            target: Namespace::new("shop", "orders"),
            target_uuid: None,
            widened: false,
            options: Spec(Document::new()),
            id_index: None,
            indexes: indexes.iter().map(|name| spec(name)).collect(),
        }
    }

    fn names(collections: &[&[&str]]) -> Vec<Vec<String>> {
        let collections =
            collections.iter().map(|indexes| (Uuid::new(), collection(indexes))).collect();
        let mut built: Vec<Vec<String>> = builds(&collections)
            .iter()
            .map(|build| build.specs.iter())
            .map(|specs| specs.map(|spec| spec.get_str("name").unwrap().to_owned()).collect())
            .collect();
        built.sort_unstable();
        built
    }

    #[test]
    fn a_collection_is_scanned_once_unless_a_processor_would_be_idle() {
        assert_eq!(names(&[&["a", "b", "c"]]), [vec!["a", "b"], vec!["c"]]);
        assert_eq!(names(&[&["a"], &[]]), [["a"]]);
        assert_eq!(names(&[&["a", "b"], &["c", "d", "e"]]), [vec!["a", "b"], vec!["c", "d", "e"]]);
        assert!(names(&[]).is_empty());
    }
}
