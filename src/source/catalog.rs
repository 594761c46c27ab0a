//! What the source holds, as of some moment while it was listed. Whatever changes meanwhile is told by the oplog.

use std::collections::{BTreeMap, BTreeSet};

use bson::{Document, Uuid, doc};

use crate::catalogue::{Catalogue, Collection, Spec, View};
use crate::mongo::{Deployment, Error, Listed, listing};
use crate::namespace::Namespace;
use crate::selection::Selection;

const NAMESPACE_NOT_FOUND: i32 = 26;

/// Lists every selected collection with its options and indexes, and every selected view.
///
/// # Errors
/// A call failed.
pub async fn read(source: &Deployment, selection: &Selection) -> Result<Catalogue, Error> {
    let mut catalogue = Catalogue::default();
    let databases = listing::databases(source).await?.into_iter();
    // Others may be none of the user's business.
    for database in databases.filter(|database| selection.may_include_database(database)) {
        let listed = match listing::collections(source, &database).await {
            // Dropped since the databases were listed.
            Err(error) if error.code() == Some(NAMESPACE_NOT_FOUND) => continue,
            listed => listed?,
        };
        for entry in listed.into_iter().filter(|entry| selection.includes(&entry.namespace)) {
            add(source, selection, entry, &mut catalogue).await?;
        }
    }
    Ok(catalogue)
}

/// Lists those of `wanted` (UUIDs with the databases they are in) that are there and selected.
///
/// # Errors
/// A call failed.
pub async fn read_some(
    source: &Deployment,
    selection: &Selection,
    wanted: &BTreeMap<Uuid, String>,
) -> Result<Catalogue, Error> {
    let mut catalogue = Catalogue::default();
    let databases: BTreeSet<&String> = wanted.values().collect();
    for database in databases {
        let listed = listing::collections(source, database).await?.into_iter();
        let wanted = listed.filter(|entry| {
            entry.uuid.is_some_and(|uuid| wanted.contains_key(&uuid))
                && selection.includes(&entry.namespace)
        });
        for entry in wanted {
            add(source, selection, entry, &mut catalogue).await?;
        }
    }
    Ok(catalogue)
}

async fn add(
    source: &Deployment,
    selection: &Selection,
    entry: Listed,
    catalogue: &mut Catalogue,
) -> Result<(), Error> {
    let target = selection.target_of(&entry.namespace);
    match (entry.kind.as_str(), entry.uuid) {
        ("view", _) => {
            let definition = selection.view_at_target(&entry.namespace, entry.options);
            let view = View { target, definition: Spec(definition) };
            catalogue.views.insert(entry.namespace, view);
        }
        // Made with the buckets; and views are made one by one, never by writing where they are stored.
        ("timeseries", _) => {}
        (_, Some(_)) if entry.namespace.collection == "system.views" => {
            catalogue.view_stores.insert(target.database);
        }
        (_, Some(uuid)) => {
            let Some(indexes) = indexes(source, &entry.namespace, uuid).await? else {
                return Ok(());
            };
            let collection = Collection {
                source: entry.namespace,
                target,
                target_uuid: None,
                options: Spec(entry.options),
                widened: false,
                id_index: entry.id_index.map(Spec),
                indexes,
            };
            catalogue.collections.insert(uuid, collection);
        }
        (kind, None) => {
            let text = format!("{} is a {kind} without a UUID", entry.namespace);
            return Err(Error::other(source.side, "list collections", text));
        }
    }
    Ok(())
}

/// Specifications by name, without `_id`; `None` if the collection is gone.
async fn indexes(
    source: &Deployment,
    namespace: &Namespace,
    uuid: Uuid,
) -> Result<Option<BTreeMap<String, Spec>>, Error> {
    match listing::indexes(source, &namespace.database, uuid).await {
        Ok(indexes) => Ok(Some(secondary(indexes))),
        Err(error) if error.code() == Some(NAMESPACE_NOT_FOUND) => Ok(None),
        Err(error) => Err(error),
    }
}

fn secondary(indexes: Vec<Document>) -> BTreeMap<String, Spec> {
    let named = indexes.into_iter().filter_map(|mut index| {
        let name = index.get_str("name").ok()?.to_owned();
        let on_id = index.get_document("key").is_ok_and(|key| *key == doc! { "_id": 1 });
        let clustered = index.get_bool("clustered").unwrap_or(false);
        index.remove("ns");
        (!on_id && !clustered).then_some((name, Spec(index)))
    });
    named.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_on_id_is_no_secondary_index() {
        let indexes = vec![
            doc! { "v": 2, "key": { "_id": 1 }, "name": "_id_" },
            doc! { "v": 2, "key": { "a": 1 }, "name": "a_1", "ns": "x.y" },
            doc! { "v": 2, "key": { "_id": "hashed" }, "name": "_id_hashed" },
        ];
        let names: Vec<String> = secondary(indexes).into_keys().collect();
        assert_eq!(names, ["_id_hashed", "a_1"]);
    }
}
