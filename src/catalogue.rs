//! The replayed catalogue: which collections and views there are on the source as of the resume point, and where each
//! of them is on the target. A collection is its UUID on the source; its names and its UUID on the target are only
//! where to find it. Pure data: whoever changes the target changes the catalogue with it and has it made durable.

pub mod repair;

use std::collections::{BTreeMap, BTreeSet};

use bson::{Document, Uuid};
use serde::{Deserialize, Serialize};

use crate::namespace::Namespace;
use crate::replay::scope::Scope;
use crate::status::HeldBack;

/// A BSON document of the control plane (options, an index specification), stored byte for byte.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Spec(
    #[serde(
        serialize_with = "crate::hex::serialize_document",
        deserialize_with = "crate::hex::deserialize_document"
    )]
    pub Document,
);

/// One collection.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Collection {
    /// Its name on the source.
    pub source: Namespace,
    /// Its name on the target.
    pub target: Namespace,
    /// Its UUID on the target; `None` until it has been created there.
    pub target_uuid: Option<Uuid>,
    /// The options of the `create` command.
    pub options: Spec,
    /// Whether it is capped and its limits are wider on the target: what it evicts is told by the oplog alone.
    #[serde(default)]
    pub widened: bool,
    /// The specification of the `_id` index, where there is one.
    pub id_index: Option<Spec>,
    /// Specifications of all other indexes, as the source states them, by name.
    pub indexes: BTreeMap<String, Spec>,
}

impl Collection {
    /// Whether it is capped: its documents have an order, so it is copied and replayed by one worker.
    #[must_use]
    pub fn is_capped(&self) -> bool {
        self.options.0.get_bool("capped").unwrap_or(false)
    }

    /// Whether somebody who names a collection or a database of the source means this one. A time-series collection is
    /// known by its own name, not by that of its buckets.
    #[must_use]
    pub fn is_meant_by(&self, name: &str) -> bool {
        let source = &self.source;
        let series = source.collection.strip_prefix("system.buckets.");
        let known_as = format!("{}.{}", source.database, series.unwrap_or(&source.collection));
        known_as == name || source.to_string() == name || source.database == name
    }

    /// Whether any of its indexes other than `_id` refuses equal keys.
    #[must_use]
    pub fn has_unique_index(&self) -> bool {
        self.indexes.values().any(|spec| spec.0.get_bool("unique").unwrap_or(false))
    }
}

/// One view.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct View {
    /// Its name on the target.
    pub target: Namespace,
    /// `viewOn` (by its name on the target), `pipeline` and `collation`.
    pub definition: Spec,
}

/// Everything that is followed.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Catalogue {
    /// Collections by their UUID on the source.
    pub collections: BTreeMap<Uuid, Collection>,
    /// Views by their name on the source.
    pub views: BTreeMap<Namespace, View>,
    /// Databases on the target that have a place where views are stored, even where it is empty: it is part of what is
    /// compared. As of the copy; later ones come with their views.
    #[serde(default)]
    pub view_stores: BTreeSet<String>,
    /// Whether the secondary indexes are on the target. Until they have been built, after the catch-up with the copy,
    /// index definitions change this catalogue only.
    pub indexes_built: bool,
    /// Names on the target that the window in hand creates collections at. Durable before the first of them is: what a
    /// run that was cut short left there, and could not note, is ours and may go.
    #[serde(default)]
    pub making: BTreeSet<Namespace>,
    /// What is being copied again, and what that replaced.
    #[serde(default)]
    pub repair: repair::Repair,
}

impl Catalogue {
    /// The collection that has this name on the target. One that is gone from there has no name any more.
    #[must_use]
    pub fn at_target(&self, target: &Namespace) -> Option<Uuid> {
        let found = self.collections.iter().find(|(_, collection)| {
            collection.target == *target && collection.target_uuid.is_some()
        });
        found.map(|(uuid, _)| *uuid)
    }

    /// Whether the collection with this UUID on the target is one of these.
    #[must_use]
    pub fn knows(&self, target_uuid: Uuid) -> bool {
        self.collections.values().any(|collection| collection.target_uuid == Some(target_uuid))
    }

    /// Whether the collection with this UUID on the target stands there only until a new copy takes its place, or until
    /// the next swap.
    #[must_use]
    pub fn gives_way(&self, target_uuid: Uuid) -> bool {
        let held = self.repair.held.keys().filter_map(|uuid| self.collections.get(uuid));
        self.repair.is_leaving(&target_uuid)
            || held.into_iter().any(|held| held.target_uuid == Some(target_uuid))
    }

    /// Notes that a collection of the target has another name there.
    pub fn moved(&mut self, target_uuid: Uuid, to: &Namespace) {
        let all = self.collections.values_mut();
        for moved in all.filter(|found| found.target_uuid == Some(target_uuid)) {
            moved.target.clone_from(to);
        }
    }

    /// Notes where a collection is on the target, if it is there at all.
    pub fn displace(&mut self, uuid: &Uuid, now: Option<Namespace>) {
        if let Some(collection) = self.collections.get_mut(uuid) {
            match now {
                Some(now) => collection.target = now,
                None => collection.target_uuid = None,
            }
        }
    }

    /// Removes a collection. Nothing of it is held any more.
    pub fn forget(&mut self, uuid: &Uuid) -> Option<Collection> {
        self.repair.held.remove(uuid);
        self.collections.remove(uuid)
    }

    /// Takes in a collection that came into the selection with contents that were never copied. What else there is to
    /// know of it is found out when it is copied.
    pub fn expect(&mut self, uuid: Uuid, source: Namespace, target: Namespace) {
        let collection = Collection {
            source,
            target,
            target_uuid: None,
            options: Spec::default(),
            widened: false,
            id_index: None,
            indexes: BTreeMap::new(),
        };
        self.collections.insert(uuid, collection);
        self.repair.expect(uuid, "it came into the selection");
    }

    /// What the main replay is about.
    #[must_use]
    pub fn scope(&self) -> Scope {
        Scope::AllBut(self.repair.held.keys().copied().collect())
    }

    /// Whether there is nothing that is followed while the rest is copied again.
    #[must_use]
    pub fn is_all_held(&self) -> bool {
        !self.collections.is_empty()
            && self.collections.keys().all(|uuid| self.repair.is_held(uuid))
    }

    /// Names on the source of what is being copied again, or waits for it, in order.
    #[must_use]
    pub fn copying(&self) -> Vec<String> {
        let held = self.repair.held.keys().filter_map(|uuid| self.collections.get(uuid));
        let mut names: Vec<String> = held.map(|found| found.source.to_string()).collect();
        names.sort_unstable();
        names
    }

    /// What the target does not have as the source states it, until cutover.
    #[must_use]
    pub fn held_back(&self) -> Vec<HeldBack> {
        let mut held_back = Vec::new();
        for collection in self.collections.values() {
            let name = collection.target.to_string();
            if collection.options.0.contains_key("expireAfterSeconds") {
                let what = "expiry of documents".to_owned();
                held_back.push(HeldBack { collection: name.clone(), what });
            }
            if collection.widened {
                let what = "limits of a capped collection".to_owned();
                held_back.push(HeldBack { collection: name.clone(), what });
            }
            let expiring = collection.indexes.iter();
            for (index, _) in expiring.filter(|(_, spec)| spec.0.contains_key("expireAfterSeconds"))
            {
                let what = format!("expiry by the TTL index {index}");
                held_back.push(HeldBack { collection: name.clone(), what });
            }
        }
        held_back.sort_by(|a, b| a.collection.cmp(&b.collection));
        held_back
    }

    /// The databases on the target that hold something followed, in order.
    #[must_use]
    pub fn target_databases(&self) -> Vec<String> {
        let collections = self.collections.values().map(|collection| &collection.target);
        let views = self.views.values().map(|view| &view.target);
        let mut databases: Vec<String> =
            collections.chain(views).map(|target| target.database.clone()).collect();
        databases.sort_unstable();
        databases.dedup();
        databases
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::doc;

    #[test]
    fn specifications_survive_byte_for_byte() {
        let document = doc! { "a": 1_i32, "b": 1_i64, "c": 1.0, "d": { "$regex": "x" } };
        let spec = Spec(document);
        let text = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<Spec>(&text).unwrap(), spec);
    }

    #[test]
    fn a_catalogue_survives_json() {
        let collection = Collection {
            source: Namespace::new("a", "b"),
            target: Namespace::new("c", "d"),
            target_uuid: Some(Uuid::new()),
            options: Spec(doc! { "capped": true }),
            widened: true,
            id_index: None,
            indexes: BTreeMap::from([("x_1".into(), Spec(doc! { "unique": true }))]),
        };
        let mut catalogue = Catalogue::default();
        catalogue.collections.insert(Uuid::new(), collection);
        let text = serde_json::to_string(&catalogue).unwrap();
        assert_eq!(serde_json::from_str::<Catalogue>(&text).unwrap(), catalogue);
    }
}
