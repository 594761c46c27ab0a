//! The target's lists against the replayed catalogue. Taken at a window end, when no definition of ours is under way,
//! whatever differs was changed by somebody else; taken while the replay goes on, it may be ours.

use std::collections::{BTreeMap, BTreeSet};

use bson::{Document, Uuid};

use crate::catalogue::Catalogue;
use crate::mongo::Listed;
use crate::namespace::Namespace;
use crate::selection::{STAGING_PREFIX, Selection};
use crate::stop::Stop;
use crate::sync::context::{Context, Interrupted};

/// What differs.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Differences {
    /// Collections, by their UUID on the source, that are gone from the target or not where they should be.
    pub collections: BTreeMap<Uuid, Displaced>,
    /// Views, by name on the source, that are gone or have another definition.
    pub views: BTreeSet<Namespace>,
    /// What stands where the selection writes and was not made by us.
    pub foreign: BTreeSet<Namespace>,
}

/// A collection that is not where it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Displaced {
    /// In words.
    pub what: String,
    /// Where it is now, if anywhere.
    pub now: Option<Namespace>,
}

/// Compares.
///
/// # Errors
/// [`Interrupted`].
pub async fn compare(main: &Context, stop: &Stop) -> Result<Differences, Interrupted> {
    let catalogue = main.catalogue.read().clone();
    let mut listed = Vec::new();
    for database in main.definer.databases(stop).await? {
        listed.extend(main.definer.list(&database, stop).await?);
    }
    Ok(differences(&catalogue, &listed, &main.config.sync.selection))
}

/// Pure. What is held is being mended, and is not looked at.
#[must_use]
pub fn differences(catalogue: &Catalogue, listed: &[Listed], selection: &Selection) -> Differences {
    let mut found = Differences::default();
    let by_uuid: BTreeMap<Uuid, &Namespace> =
        listed.iter().filter_map(|entry| Some((entry.uuid?, &entry.namespace))).collect();
    for (uuid, collection) in &catalogue.collections {
        if catalogue.repair.is_held(uuid) {
            continue;
        }
        let place = collection.target_uuid.and_then(|uuid| by_uuid.get(&uuid));
        // Where it belongs, and not where the catalogue has it: after a start that is wherever it was found.
        let expected = selection.target_of(&collection.source);
        match place {
            Some(place) if **place == expected => {}
            Some(place) => {
                let what = format!("{expected} was renamed to {place} on the target");
                let now = Some((*place).clone());
                found.collections.insert(*uuid, Displaced { what, now });
            }
            None => {
                let what = format!("{expected} is gone from the target");
                found.collections.insert(*uuid, Displaced { what, now: None });
            }
        }
    }
    for (name, view) in &catalogue.views {
        let there = listed.iter().find(|entry| entry.namespace == view.target);
        let same = there.is_some_and(|there| {
            there.kind == "view" && same_view(&there.options, &view.definition.0)
        });
        if !same {
            found.views.insert(name.clone());
        }
    }
    found.foreign = listed
        .iter()
        .filter(|entry| is_foreign(entry, catalogue, selection))
        .map(|entry| entry.namespace.clone())
        .collect();
    found
}

fn same_view(there: &Document, wanted: &Document) -> bool {
    // A collation is stated in full by the server, and is a view's for life.
    ["viewOn", "pipeline"].iter().all(|key| there.get(key) == wanted.get(key))
}

fn is_foreign(entry: &Listed, catalogue: &Catalogue, selection: &Selection) -> bool {
    let name = &entry.namespace;
    let ours = entry.uuid.is_some_and(|uuid| catalogue.knows(uuid) || catalogue.repair.knows(uuid));
    // Buckets belong to the time-series that is listed beside them.
    if ours || name.collection.starts_with("system.") || name.collection.starts_with(STAGING_PREFIX)
    {
        return false;
    }
    let buckets = Namespace::new(&name.database, format!("system.buckets.{}", name.collection));
    let leaves = catalogue.repair.leaving.values().any(|leaving| *leaving == buckets);
    let in_the_way_of_ours = catalogue.collections.values().any(|found| found.target == *name)
        || catalogue.views.values().any(|view| view.target == *name);
    let time_series = catalogue.collections.values().any(|found| found.target == buckets);
    !in_the_way_of_ours && !time_series && !leaves && selection.may_write(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::{Collection, Spec, View};
    use bson::doc;

    fn listed(name: &str, kind: &str, uuid: Option<Uuid>, options: Document) -> Listed {
        let namespace = Namespace::parse(name).unwrap();
        Listed { namespace, kind: kind.into(), uuid, options, id_index: None }
    }

    fn names(set: &BTreeSet<Namespace>) -> Vec<String> {
        set.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn tells_what_is_gone_moved_changed_and_foreign() {
        let [here, gone, moved, held] = [(); 4].map(|()| Uuid::new());
        let mut catalogue = Catalogue::default();
        let on_target: BTreeMap<Uuid, Uuid> =
            [here, gone, moved, held].into_iter().map(|uuid| (uuid, Uuid::new())).collect();
        for (uuid, name) in
            [(here, "a.here"), (gone, "a.gone"), (moved, "a.moved"), (held, "a.held")]
        {
            let name = Namespace::parse(name).unwrap();
            let collection = Collection {
                source: name.clone(),
                target: name,
                target_uuid: on_target.get(&uuid).copied(),
                widened: false,
                options: Spec::default(),
                id_index: None,
                indexes: BTreeMap::new(),
            };
            catalogue.collections.insert(uuid, collection);
        }
        catalogue.repair.hold(held, "mended already");
        let definition = doc! { "viewOn": "here", "pipeline": [] };
        for view in ["a.view", "a.changed", "a.lost"] {
            let target = Namespace::parse(view).unwrap();
            let made = View { target: target.clone(), definition: Spec(definition.clone()) };
            catalogue.views.insert(target, made);
        }
        let other = doc! { "viewOn": "gone", "pipeline": [] };
        let on_target = |uuid| on_target.get(&uuid).copied();
        let all = [
            listed("a.here", "collection", on_target(here), doc! {}),
            listed("a.elsewhere", "collection", on_target(moved), doc! {}),
            listed("a.moved", "collection", Some(Uuid::new()), doc! {}),
            listed("a.theirs", "collection", Some(Uuid::new()), doc! {}),
            listed("a.their_view", "view", None, other.clone()),
            listed("a.view", "view", None, definition),
            listed("a.changed", "view", None, other),
            listed("a.system.views", "collection", Some(Uuid::new()), doc! {}),
            listed("a.snapsync_tmp_1", "collection", Some(Uuid::new()), doc! {}),
            listed("a.not_selected", "collection", Some(Uuid::new()), doc! {}),
        ];
        let exclude = vec!["a.not_selected".to_owned()];
        let selection = Selection::new(&["a".to_owned()], &exclude, &[]).unwrap();
        let found = differences(&catalogue, &all, &selection);
        assert_eq!(found.collections.len(), 2, "{:?}", found.collections);
        assert!(found.collections[&gone].what.contains("a.gone is gone"));
        assert!(found.collections[&moved].what.contains("renamed to a.elsewhere"));
        assert_eq!(found.collections[&moved].now, Namespace::parse("a.elsewhere"));
        assert_eq!(names(&found.views), ["a.changed", "a.lost"]);
        assert_eq!(names(&found.foreign), ["a.their_view", "a.theirs"]);
    }
}
