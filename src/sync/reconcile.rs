//! Finding the followed collections on the target again after a start. The catalogue may be one window older than the
//! target: a definition that was carried out just before a kill moved or removed what the catalogue still names.

use std::collections::HashMap;

use bson::Uuid;

use super::context::{Context, Interrupted};
use crate::copy::{CollectionProgress, ProgressStore};
use crate::namespace::Namespace;
use crate::stop::Stop;

/// Looks every collection up by its UUID on the target, and notes its name there, or that it is gone. Returns those
/// that are gone, by their UUID on the source.
///
/// # Errors
/// [`Interrupted`].
pub(super) async fn names(context: &Context, stop: &Stop) -> Result<Vec<Uuid>, Interrupted> {
    if context.catalogue.read().collections.is_empty() {
        return Ok(Vec::new());
    }
    let mut found: HashMap<Uuid, Namespace> = HashMap::new();
    for database in context.definer.databases(stop).await? {
        for listed in context.definer.list(&database, stop).await? {
            if let Some(uuid) = listed.uuid {
                found.insert(uuid, listed.namespace);
            }
        }
    }
    let gone = context.catalogue.change(|catalogue| {
        let mut gone = Vec::new();
        for (source_uuid, collection) in &mut catalogue.collections {
            let Some(uuid) = collection.target_uuid else { continue };
            match found.get(&uuid) {
                Some(name) => collection.target = name.clone(),
                None => {
                    gone.push((*source_uuid, collection.target.to_string()));
                    collection.target_uuid = None;
                }
            }
        }
        gone
    });
    if gone.is_empty() {
        return Ok(Vec::new());
    }
    let names: Vec<&str> = gone.iter().map(|(_, name)| name.as_str()).collect();
    tracing::info!(collections = names.join(", "), "no longer on the target");
    Ok(gone.into_iter().map(|(uuid, _)| uuid).collect())
}

/// As [`names`], for a copy that goes on: what is gone is made anew, so it is copied from the beginning.
///
/// # Errors
/// [`Interrupted`].
pub(super) async fn names_of_copy(
    context: &Context,
    progress: &ProgressStore,
    stop: &Stop,
) -> Result<(), Interrupted> {
    for uuid in names(context, stop).await? {
        progress.set(uuid, CollectionProgress::default())?;
    }
    Ok(progress.save()?)
}
