//! Before the first document: what is in the way on the target, and the empty collections to copy into.

use std::collections::BTreeSet;

use bson::Uuid;
use futures_util::{StreamExt, TryStreamExt, stream};

use crate::catalogue::Collection;
use crate::mongo::{Deployment, Error, Listed, Side, listing};
use crate::namespace::Namespace;
use crate::retry::{Stopped, until_reached};
use crate::selection::{NEVER_COPIED, Selection};
use crate::state::catalogue::CatalogueStore;
use crate::stop::Stop;
use crate::target::definitions::Definer;

/// Collections created at the same time: each waits for the majority, and there may be thousands.
const CREATED_AT_ONCE: usize = 8;

/// Collections and views on the target where the selection writes, that hold something: a namespace that a selected one
/// maps to, or one that is itself selected and keeps its name.
///
/// # Errors
/// A call failed.
pub async fn existing(
    target: &Deployment,
    selection: &Selection,
    mapped: &BTreeSet<Namespace>,
) -> Result<Vec<Listed>, Error> {
    let mut found = Vec::new();
    let databases = listing::databases(target).await?.into_iter();
    for database in databases.filter(|name| !NEVER_COPIED.contains(&name.as_str())) {
        for entry in listing::collections(target, &database).await? {
            let name = &entry.namespace;
            let kept = selection.includes(name) && selection.target_of(name) == *name;
            let system_views = name.collection == "system.views";
            let buckets = name.collection.starts_with("system.buckets.");
            if system_views || buckets || !(kept || mapped.contains(name)) {
                continue;
            }
            if entry.kind != "collection" || listing::holds_documents(target, name).await? {
                found.push(entry);
            }
        }
    }
    Ok(found)
}

/// Removes what is in the way, as the operator allowed.
///
/// # Errors
/// [`Stopped`].
pub async fn drop_existing(
    definer: &Definer,
    existing: &[Listed],
    stop: &Stop,
) -> Result<(), Stopped<Error>> {
    for entry in existing {
        tracing::warn!(collection = %entry.namespace, "dropping existing {}", entry.namespace);
        match (entry.kind.as_str(), entry.uuid) {
            ("collection", Some(uuid)) => {
                definer.drop_collection(&entry.namespace, uuid, stop).await?;
            }
            ("view", _) => definer.drop_view(&entry.namespace, stop).await?,
            (_, _) => definer.drop_time_series(&entry.namespace, stop).await?,
        }
    }
    Ok(())
}

/// Creates every collection and view of the catalogue that is not on the target yet, and makes the result durable.
///
/// # Errors
/// [`Stopped`]: what was created is found again, empty, and made anew.
pub async fn create_all(
    definer: &Definer,
    store: &CatalogueStore,
    stop: &Stop,
) -> Result<(), Stopped<Error>> {
    let missing: Vec<(Uuid, Collection)> = {
        let catalogue = store.read();
        let missing = catalogue.collections.iter().filter(|(_, c)| c.target_uuid.is_none());
        missing.map(|(uuid, collection)| (*uuid, collection.clone())).collect()
    };
    let creations = missing.into_iter().map(|(uuid, collection)| async move {
        stop.check()?;
        create(definer, &collection, stop).await.map(|made| (uuid, made))
    });
    let mut created = stream::iter(creations).buffer_unordered(CREATED_AT_ONCE);
    while let Some((uuid, made)) = created.try_next().await? {
        store.change(|catalogue| {
            if let Some(collection) = catalogue.collections.get_mut(&uuid) {
                collection.target_uuid = Some(made);
                collection.widened = definer.widens(&collection.options.0);
            }
        });
    }
    store.save().map_err(|error| disk(&error))?;
    let views: Vec<_> = store.read().views.values().cloned().collect();
    for view in views {
        definer.put_view(&view.target, &view.definition.0, stop).await?;
    }
    let stores = store.read().view_stores.clone();
    for database in stores {
        definer.make_view_store(&database, stop).await?;
    }
    Ok(())
}

fn disk(error: &crate::state::StateError) -> Stopped<Error> {
    Stopped::Failed(Error::disk(Side::Target, "save the catalogue", error.to_string()))
}

/// Creates one collection. What stands there already is an empty one that an earlier attempt made and could not note:
/// anything with documents in it has been refused before.
async fn create(
    definer: &Definer,
    collection: &Collection,
    stop: &Stop,
) -> Result<Uuid, Stopped<Error>> {
    let name = &collection.target;
    let id_index = collection.id_index.as_ref().map(|spec| &spec.0);
    for _attempt in 0..2 {
        let made = definer.create(name, &collection.options.0, id_index, stop).await?;
        if let Some(uuid) = made {
            return Ok(uuid);
        }
        let Some(uuid) = definer.find(name, stop).await?.and_then(|listed| listed.uuid) else {
            continue;
        };
        let target = definer.deployment();
        if until_reached(target.side, stop, || listing::holds_documents(target, name)).await? {
            break;
        }
        definer.drop_collection(name, uuid, stop).await?;
    }
    let text = "the target has something of that name that snapsync did not make";
    Err(Stopped::Failed(Error::other(Side::Target, format!("create {name}"), text)))
}

/// Replaces a half-copied capped collection by an empty one: its order cannot be taken up in the middle.
///
/// # Errors
/// [`Stopped`].
pub async fn recreate(
    definer: &Definer,
    store: &CatalogueStore,
    uuid: Uuid,
    collection: &mut Collection,
    stop: &Stop,
) -> Result<(), Stopped<Error>> {
    if let Some(old) = collection.target_uuid {
        definer.drop_collection(&collection.target, old, stop).await?;
    }
    let made = create(definer, collection, stop).await?;
    collection.target_uuid = Some(made);
    collection.widened = definer.widens(&collection.options.0);
    store.change(|catalogue| catalogue.collections.insert(uuid, collection.clone()));
    store.save().map_err(|error| disk(&error))
}
