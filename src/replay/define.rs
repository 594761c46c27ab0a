//! Carrying out definitions: collections, views and indexes come, change their names and go, on the target and in the
//! catalogue together. In a tolerant window any of it may have been done already.

use bson::{Document, Uuid};

use super::apply::{Applier, ApplyError, concerning};
use super::plan::{CollectionChange, Definition};
use crate::catalogue::{Collection, Spec, View};
use crate::mongo::{Error, Listed, Side};
use crate::namespace::Namespace;
use crate::retry::Stopped;
use crate::stop::Stop;
use crate::target::held_back::WIDE_MAX;

type Outcome = Result<(), Stopped<ApplyError>>;

fn diverged(what: String) -> Stopped<ApplyError> {
    Stopped::Failed(ApplyError::Diverged { collections: Vec::new(), what })
}

impl Applier {
    /// Carries out one definition.
    pub(super) async fn define(
        &self,
        definition: Definition,
        tolerant: bool,
        stop: &Stop,
    ) -> Outcome {
        match definition {
            Definition::Collection { uuid, change } => {
                concerning(uuid, self.define_collection(uuid, change, tolerant, stop).await)
            }
            Definition::PutView { view, definition } => {
                self.put_view(view, definition, tolerant, stop).await
            }
            Definition::DropView { view } => self.drop_view(&view, stop).await,
            Definition::MakeViewStore { database } => {
                let target = self.selection.target_of(&Namespace::new(&database, "system.views"));
                Ok(self.definer.make_view_store(&target.database, stop).await?)
            }
            Definition::DropViews { database } => {
                let views: Vec<Namespace> = self.store.read().views.keys().cloned().collect();
                for view in views.iter().filter(|view| view.database == database) {
                    self.drop_view(view, stop).await?;
                }
                Ok(())
            }
            Definition::DropDatabase { database } => {
                self.drop_database(&database, tolerant, stop).await
            }
        }
    }

    async fn define_collection(
        &self,
        uuid: Uuid,
        change: CollectionChange,
        tolerant: bool,
        stop: &Stop,
    ) -> Outcome {
        match change {
            CollectionChange::Create { name, options } => {
                self.create(uuid, name, options, tolerant, stop).await
            }
            CollectionChange::Drop => self.drop_followed(uuid, stop).await,
            CollectionChange::Rename { from, to, drop_target } => {
                if let Some(dropped) = drop_target {
                    self.drop_followed(dropped, stop).await?;
                }
                self.rename(uuid, &from, to, tolerant, stop).await
            }
            CollectionChange::Empty => match self.locate(uuid) {
                Some((_, place)) => Ok(self.definer.empty(&place, stop).await?),
                None => Ok(()),
            },
            CollectionChange::Modify { changes } => self.modify(uuid, changes, stop).await,
            CollectionChange::CreateIndexes { specs } => {
                self.create_indexes(uuid, specs, tolerant, stop).await
            }
            CollectionChange::DropIndex { name } => self.drop_index(uuid, &name, stop).await,
        }
    }

    async fn create(
        &self,
        uuid: Uuid,
        source: Namespace,
        mut options: Document,
        tolerant: bool,
        stop: &Stop,
    ) -> Outcome {
        let target = self.selection.target_of(&source);
        if self.store.read().collections.contains_key(&uuid) {
            // Listed or created before: only its name may have been another at that time.
            return self.place_at(uuid, source, target, tolerant, stop).await;
        }
        let (shown, stored) = target.as_series();
        if tolerant && self.store.read().at_target(&stored).is_some() {
            // It cannot be moved aside. What is created here was dropped again later in this window.
            return Ok(());
        }
        self.clear_name(&target, tolerant, stop).await?;
        if tolerant && target == stored {
            self.clear_name(&shown, tolerant, stop).await?;
        }
        let id_index = match options.remove("idIndex") {
            Some(bson::Bson::Document(spec)) => Some(spec),
            // The server leaves it out for an index of the old version.
            _ if !options.contains_key("clusteredIndex") && !options.contains_key("timeseries") => {
                Some(bson::doc! { "v": 1, "key": { "_id": 1 }, "name": "_id_" })
            }
            _ => None,
        };
        let made = self.definer.create(&target, &options, id_index.as_ref(), stop).await?;
        let target_uuid = match made {
            Some(made) => made,
            // What a run that was cut short made has been cleared away: this is somebody else's.
            None => {
                return Err(diverged(format!(
                    "{target} was created on the source, but the target has something of that \
                     name that snapsync did not make"
                )));
            }
        };
        let collection = Collection {
            source,
            target,
            target_uuid: Some(target_uuid),
            widened: self.definer.widens(&options),
            options: Spec(options),
            id_index: id_index.map(Spec),
            indexes: Default::default(),
        };
        self.store.change(|catalogue| catalogue.collections.insert(uuid, collection));
        Ok(())
    }

    /// Moves whatever followed collection has this name on the target out of the way: a later entry of the window gave
    /// it the name before the run that was cut short. One that this run made and could not note goes.
    async fn clear_name(&self, target: &Namespace, tolerant: bool, stop: &Stop) -> Outcome {
        let (other, unnoted) = {
            let catalogue = self.store.read();
            (catalogue.at_target(target), catalogue.making.contains(target))
        };
        if tolerant {
            let view = {
                let catalogue = self.store.read();
                let mut views = catalogue.views.iter();
                views.find(|(_, view)| view.target == *target).map(|(source, _)| source.clone())
            };
            if let Some(view) = view {
                self.drop_view(&view, stop).await?;
            }
        }
        let Some(other) = other else {
            self.clear_leaving(target, stop).await?;
            if tolerant && unnoted {
                self.drop_unnoted(target, stop).await?;
            }
            return Ok(());
        };
        // One that is held may stand anywhere until its new copy takes its place.
        if !tolerant && !self.store.read().repair.is_held(&other) {
            return Err(diverged(format!(
                "{target} is taken by another collection that is followed"
            )));
        }
        let aside = self.selection.aside(&target.database, other);
        self.rename_known(other, &aside, stop).await?;
        self.store.change(|catalogue| {
            if let Some(collection) = catalogue.collections.get_mut(&other) {
                collection.target = aside;
            }
        });
        Ok(())
    }

    /// Drops what a run that was cut short made under this name and could not note.
    async fn drop_unnoted(&self, target: &Namespace, stop: &Stop) -> Outcome {
        let Some(found) = self.definer.find(target, stop).await? else {
            return Ok(self.definer.drop_bare_series(target, stop).await?);
        };
        match (found.uuid, found.kind.as_str()) {
            (Some(uuid), _) if self.store.read().knows(uuid) => Ok(()),
            (Some(uuid), _) => Ok(self.definer.drop_collection(target, uuid, stop).await?),
            (None, "timeseries") => {
                let (_, stored) = target.as_series();
                let buckets = self.definer.find(&stored, stop).await?;
                match buckets.and_then(|listed| listed.uuid) {
                    Some(uuid) if self.store.read().knows(uuid) => Ok(()),
                    _ => Ok(self.definer.drop_time_series(target, stop).await?),
                }
            }
            (None, _) if self.store.read().views.values().any(|view| view.target == *target) => {
                Ok(())
            }
            (None, _) => Ok(self.definer.drop_view(target, stop).await?),
        }
    }

    /// Moves what the source does not have any more, and what goes with the next swap only, out of the way.
    async fn clear_leaving(&self, target: &Namespace, stop: &Stop) -> Outcome {
        if self.store.read().repair.leaving.is_empty() {
            return Ok(());
        }
        let (shown, stored) = target.as_series();
        for name in [shown, stored] {
            let found = self.definer.find(&name, stop).await?.and_then(|listed| listed.uuid);
            let Some(uuid) = found.filter(|uuid| self.store.read().repair.is_leaving(uuid)) else {
                continue;
            };
            if name.collection.starts_with("system.") {
                // It cannot have another name.
                self.definer.drop_collection(&name, uuid, stop).await?;
            } else {
                let aside = self.selection.aside(&name.database, uuid);
                let place = self.definer.place(&name, Some(uuid));
                self.definer.rename(&place, &aside, stop).await?;
            }
        }
        Ok(())
    }

    /// Renames a followed collection. After a kill it is found under its new name by its UUID, so the catalogue with
    /// that is made durable first: the collection may have been created in this very window.
    async fn rename_known(&self, uuid: Uuid, to: &Namespace, stop: &Stop) -> Outcome {
        let Some((_, place)) = self.locate(uuid) else { return Ok(()) };
        let saved = tokio::task::block_in_place(|| self.store.save());
        saved.map_err(|error| {
            let error = Error::disk(Side::Target, "save the catalogue", error.to_string());
            Stopped::Failed(ApplyError::Call(error))
        })?;
        Ok(self.definer.rename(&place, to, stop).await?)
    }

    async fn drop_followed(&self, uuid: Uuid, stop: &Stop) -> Outcome {
        let found = self.store.read().collections.get(&uuid).cloned();
        let Some(collection) = found else { return Ok(()) };
        match collection.target_uuid {
            Some(target_uuid) => {
                self.definer.drop_collection(&collection.target, target_uuid, stop).await?;
            }
            None => self.definer.drop_bare_series(&collection.target, stop).await?,
        }
        self.store.change(|catalogue| catalogue.forget(&uuid));
        Ok(())
    }

    async fn rename(
        &self,
        uuid: Uuid,
        from: &Namespace,
        to: Namespace,
        tolerant: bool,
        stop: &Stop,
    ) -> Outcome {
        if self.store.read().collections.contains_key(&uuid) {
            if self.selection.includes(&to) {
                let target = self.selection.target_of(&to);
                return self.place_at(uuid, to, target, tolerant, stop).await;
            }
            return self.drop_followed(uuid, stop).await;
        }
        if self.selection.includes(&to) && !self.selection.includes(from) {
            let target = self.selection.target_of(&to);
            self.store.change(|catalogue| catalogue.expect(uuid, to, target));
        }
        // Dropped before it was listed: its drop follows.
        Ok(())
    }

    /// Gives a followed collection this name on the target.
    async fn place_at(
        &self,
        uuid: Uuid,
        source: Namespace,
        target: Namespace,
        tolerant: bool,
        stop: &Stop,
    ) -> Outcome {
        let found = self.store.read().collections.get(&uuid).cloned();
        let Some(collection) = found else { return Ok(()) };
        if collection.target != target {
            self.clear_name(&target, tolerant, stop).await?;
            match self.rename_known(uuid, &target, stop).await {
                // Somebody removed it, or took the name. A new copy comes, which finds its place by itself.
                Err(Stopped::Failed(ApplyError::Call(error)))
                    if ApplyError::is_divergence(&error)
                        && self.store.read().repair.is_held(&uuid) =>
                {
                    self.store.change(|catalogue| {
                        if let Some(collection) = catalogue.collections.get_mut(&uuid) {
                            collection.source = source;
                        }
                    });
                    return Ok(());
                }
                renamed => renamed?,
            }
        }
        let found = self.definer.find(&target, stop).await?.and_then(|listed| listed.uuid);
        self.store.change(|catalogue| {
            if let Some(collection) = catalogue.collections.get_mut(&uuid) {
                // A rename across databases makes a collection of its own.
                collection.target_uuid = collection.target_uuid.and(found);
                collection.source = source;
                collection.target = target;
            }
        });
        Ok(())
    }

    async fn modify(&self, uuid: Uuid, changes: Document, stop: &Stop) -> Outcome {
        let found = self.store.read().collections.get(&uuid).cloned();
        let Some(mut collection) = found else { return Ok(()) };
        let indexes_built = self.store.read().indexes_built;
        let immediate = note_modification(
            &mut collection,
            &changes,
            indexes_built,
            self.definer.never_expires(),
        );
        if !immediate.is_empty() && collection.target_uuid.is_some() {
            let name = &collection.target;
            let stored = name.collection.strip_prefix("system.buckets.");
            let name = Namespace::new(&name.database, stored.unwrap_or(&name.collection));
            // What is a time-series to clients has another UUID underneath.
            let uuid = collection.target_uuid.filter(|_| stored.is_none());
            let place = self.definer.place(&name, uuid);
            self.definer.modify(&place, &immediate, stop).await?;
        }
        self.store.change(|catalogue| catalogue.collections.insert(uuid, collection));
        Ok(())
    }

    /// Builds everything the catalogue says a collection has, where that had to wait for the end of a tolerant window:
    /// before, its documents may break the rules that indexes make.
    pub(super) async fn complete_indexes(&self, uuid: Uuid, stop: &Stop) -> Outcome {
        let Some((collection, place)) = self.locate(uuid) else { return Ok(()) };
        if self.store.read().indexes_built {
            let specs: Vec<Document> =
                collection.indexes.values().map(|spec| spec.0.clone()).collect();
            let built = self.definer.create_indexes(&place, &specs, stop).await;
            concerning(uuid, built.map_err(Into::into))?;
        }
        Ok(())
    }

    async fn create_indexes(
        &self,
        uuid: Uuid,
        specs: Vec<Document>,
        tolerant: bool,
        stop: &Stop,
    ) -> Outcome {
        let Some((_, place)) = self.locate(uuid) else { return Ok(()) };
        let indexes_built = self.store.change(|catalogue| {
            if let Some(collection) = catalogue.collections.get_mut(&uuid) {
                for spec in &specs {
                    if let Ok(name) = spec.get_str("name") {
                        collection.indexes.insert(name.to_owned(), Spec(spec.clone()));
                    }
                }
            }
            catalogue.indexes_built
        });
        if indexes_built && !tolerant {
            self.definer.create_indexes(&place, &specs, stop).await?;
        }
        Ok(())
    }

    async fn drop_index(&self, uuid: Uuid, name: &str, stop: &Stop) -> Outcome {
        let Some((_, place)) = self.locate(uuid) else { return Ok(()) };
        let indexes_built = self.store.change(|catalogue| {
            if let Some(collection) = catalogue.collections.get_mut(&uuid) {
                collection.indexes.remove(name);
            }
            catalogue.indexes_built
        });
        if indexes_built {
            self.definer.drop_index(&place, name, stop).await?;
        }
        Ok(())
    }

    async fn put_view(
        &self,
        source: Namespace,
        definition: Document,
        tolerant: bool,
        stop: &Stop,
    ) -> Outcome {
        let target = self.selection.target_of(&source);
        let definition = self.selection.view_at_target(&source, definition);
        let in_place = self.definer.find(&target, stop).await?.and_then(|listed| listed.uuid);
        if in_place.is_some_and(|uuid| self.store.read().gives_way(uuid)) {
            self.clear_name(&target, tolerant, stop).await?;
        }
        let found = self.definer.find(&target, stop).await?;
        // A later entry of the window gave the name to something else, before the run that was cut short.
        let taken = found.is_some_and(|listed| listed.kind != "view");
        if !(tolerant && taken) {
            self.definer.put_view(&target, &definition, stop).await?;
        }
        let view = View { target, definition: Spec(definition) };
        self.store.change(|catalogue| catalogue.views.insert(source, view));
        Ok(())
    }

    async fn drop_view(&self, source: &Namespace, stop: &Stop) -> Outcome {
        let found = self.store.read().views.get(source).cloned();
        let Some(view) = found else { return Ok(()) };
        self.definer.drop_view(&view.target, stop).await?;
        self.store.change(|catalogue| catalogue.views.remove(source));
        Ok(())
    }

    /// The collections of the database were dropped one by one before. What is left on the target is dropped only if
    /// nothing but empty system collections is.
    async fn drop_database(&self, source: &str, tolerant: bool, stop: &Stop) -> Outcome {
        let (uuids, views): (Vec<Uuid>, Vec<Namespace>) = {
            let catalogue = self.store.read();
            let collections = catalogue.collections.iter();
            let followed = collections.filter(|(_, found)| found.source.database == source);
            let views = catalogue.views.keys().filter(|view| view.database == source);
            (followed.map(|(uuid, _)| *uuid).collect(), views.cloned().collect())
        };
        for uuid in uuids {
            self.drop_followed(uuid, stop).await?;
        }
        for view in views {
            self.drop_view(&view, stop).await?;
        }
        let target = self.selection.target_of(&Namespace::new(source, "any")).database;
        if tolerant {
            // What a later entry of the window creates comes again.
            let making = self.store.read().making.clone();
            for name in making.iter().filter(|name| name.database == target) {
                self.drop_unnoted(name, stop).await?;
            }
        }
        let still_used = self.store.read().target_databases().contains(&target);
        let left = self.definer.list(&target, stop).await?;
        for Listed { namespace, .. } in &left {
            let empty = namespace.collection == "system.views"
                || self.definer.is_emptied(namespace, stop).await?;
            if still_used || !empty {
                return Ok(());
            }
        }
        if !left.is_empty() {
            self.definer.drop_database(&target, stop).await?;
        }
        Ok(())
    }
}

/// Notes a collMod in the catalogue; returns what of it is to be done on the target now. What expires documents is held
/// back, and indexes that are not built yet are only noted.
fn note_modification(
    collection: &mut Collection,
    changes: &Document,
    indexes_built: bool,
    never_expires: i32,
) -> Document {
    let mut immediate = Document::new();
    for (key, value) in changes {
        match (key.as_str(), value) {
            ("index", bson::Bson::Document(change)) => {
                let change = note_index(collection, change, never_expires);
                if indexes_built && change.len() > 1 {
                    immediate.insert("index", change);
                }
            }
            // "off". The target does not expire anything, whatever it is on the source.
            ("expireAfterSeconds", bson::Bson::String(_)) => {
                collection.options.0.remove(key);
            }
            ("expireAfterSeconds", _) => {
                collection.options.0.insert(key, value.clone());
            }
            ("cappedSize", _) => {
                collection.options.0.insert("size", value.clone());
                if !collection.widened {
                    immediate.insert(key, value.clone());
                }
            }
            ("cappedMax", _) => {
                let before = collection.options.0.insert("max", value.clone());
                match collection.widened {
                    false => drop(immediate.insert(key, value.clone())),
                    // It has a limit on the target if it has one on the source.
                    true if before.is_none() => drop(immediate.insert(key, WIDE_MAX)),
                    true => {}
                }
            }
            _ => {
                collection.options.0.insert(key, value.clone());
                immediate.insert(key, value.clone());
            }
        }
    }
    immediate
}

/// Notes a change of an index; returns the change as it is made on the target now.
fn note_index(collection: &mut Collection, change: &Document, never_expires: i32) -> Document {
    let by_name = change.get_str("name").ok();
    let by_key = change.get_document("keyPattern").ok();
    let mut immediate = change.clone();
    let spec = collection.indexes.iter_mut().find(|(name, spec)| {
        by_name == Some(name.as_str())
            || by_key.is_some_and(|key| spec.0.get_document("key").is_ok_and(|found| found == key))
    });
    if let Some((_, spec)) = spec {
        for (key, value) in
            change.iter().filter(|(key, _)| !matches!(key.as_str(), "name" | "keyPattern"))
        {
            match (key.as_str(), value) {
                // Stated only when set.
                ("hidden" | "prepareUnique", bson::Bson::Boolean(false)) => {
                    spec.0.remove(key);
                }
                ("unique", _) => {
                    spec.0.insert("unique", true);
                    spec.0.remove("prepareUnique");
                }
                _ => {
                    spec.0.insert(key, value.clone());
                }
            }
        }
        if change.contains_key("expireAfterSeconds") {
            immediate.insert("expireAfterSeconds", never_expires);
        }
    }
    immediate
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::doc;

    fn collection() -> Collection {
        Collection {
            source: Namespace::new("a", "b"),
            target: Namespace::new("a", "b"),
            target_uuid: None,
            options: Spec::default(),
            widened: false,
            id_index: None,
            indexes: [("x_1".to_owned(), Spec(doc! { "key": { "x": 1 }, "name": "x_1" }))].into(),
        }
    }

    #[test]
    fn a_validator_is_noted_and_set() {
        let mut collection = collection();
        let changes = doc! { "validator": { "a": 1 }, "validationLevel": "off" };
        assert_eq!(note_modification(&mut collection, &changes, true, i32::MAX), changes);
        assert_eq!(collection.options.0, changes);
    }

    #[test]
    fn an_index_that_is_not_built_yet_is_only_noted() {
        let mut collection = collection();
        let changes = doc! { "index": { "name": "x_1", "hidden": true } };
        assert_eq!(note_modification(&mut collection, &changes, false, i32::MAX), doc! {});
        assert!(collection.indexes["x_1"].0.get_bool("hidden").unwrap());
        assert_eq!(note_modification(&mut collection, &changes, true, i32::MAX), changes);
    }

    #[test]
    fn limits_are_noted_and_stay_wide() {
        let mut collection = Collection { widened: true, ..collection() };
        let changes = doc! { "cappedSize": 4096, "cappedMax": 5 };
        let now = note_modification(&mut collection, &changes, true, i32::MAX);
        assert_eq!(now, doc! { "cappedMax": WIDE_MAX });
        assert_eq!(collection.options.0, doc! { "size": 4096, "max": 5 });
        assert_eq!(note_modification(&mut collection, &changes, true, i32::MAX), doc! {});
        collection.widened = false;
        assert_eq!(note_modification(&mut collection, &changes, true, i32::MAX), changes);
    }

    #[test]
    fn expiry_is_noted_and_held_back() {
        let mut collection = collection();
        let changes = doc! { "index": { "keyPattern": { "x": 1 }, "expireAfterSeconds": 5_i64 } };
        let now = note_modification(&mut collection, &changes, true, i32::MAX);
        let index = now.get_document("index").unwrap();
        assert_eq!(index.get_i32("expireAfterSeconds").unwrap(), i32::MAX);
        assert_eq!(collection.indexes["x_1"].0.get_i64("expireAfterSeconds").unwrap(), 5);
    }
}
