//! Putting what is complete in its place, one collection after another. Each place is taken in one step: whoever reads
//! there finds the old collection or the new one. What cannot be renamed is made anew ([`series`](super::series)).

use bson::Uuid;

use super::moment::is_of_one;
use super::{Run, series};
use crate::catalogue::{Catalogue, Collection};
use crate::mongo::Listed;
use crate::namespace::Namespace;
use crate::retry::Stopped;
use crate::selection::{is_temporary, unstaged, unstaged_view};
use crate::stop::Stop;
use crate::sync::context::{Context, Interrupted};
use crate::sync::cutover::held_back;
use crate::sync::resync::stays_in_place;

/// Foreign collections that are named in a warning.
const NAMED_MAX: usize = 5;

/// A collection that takes its place.
struct Member {
    uuid: Uuid,
    collection: Collection,
    place: Namespace,
}

impl Run<'_> {
    /// Puts everything in its place. One that fails stops no other.
    ///
    /// # Errors
    /// [`Interrupted`]: some are in their places, and noted as such.
    pub(super) async fn put_in_place(&mut self, stop: &Stop) -> Result<(), Interrupted> {
        for member in self.members() {
            stop.check()?;
            match put(&self.context, &member, stop).await {
                Ok(()) => drop(self.placed.insert(member.uuid)),
                Err(Stopped::Failed(error)) if is_of_one(&error) => {
                    // There is no second try: what is copied anew would be of another moment.
                    self.fail(member.uuid, &error.to_string());
                }
                Err(stopped) => return Err(stopped.into()),
            }
        }
        self.put_views(stop).await?;
        self.drop_absent(stop).await?;
        self.warn_of_others(stop).await
    }

    /// What is complete, under the name that it gets, in order of name; what cannot be renamed last, for it takes its
    /// time. What a server fills before it gives it the name
    /// that a client asked for has none.
    fn members(&self) -> Vec<Member> {
        let complete = self.complete().into_iter().filter_map(|(uuid, collection)| {
            if is_temporary(&collection.source.collection) {
                return None;
            }
            let place = self.selection.target_of(&collection.source);
            Some(Member { uuid, collection, place })
        });
        let mut members: Vec<Member> = complete.collect();
        members.sort_by_cached_key(|member| (stays_in_place(&member.place), member.place.clone()));
        members
    }

    /// Views have no contents of their own, and take their places last.
    async fn put_views(&mut self, stop: &Stop) -> Result<(), Interrupted> {
        let definer = &self.context.definer;
        let views: Vec<_> = self.context.catalogue.read().views.clone().into_iter().collect();
        for (source, view) in views {
            let place = self.selection.target_of(&source);
            let definition = unstaged_view(view.definition.0);
            let found = definer.find(&place, stop).await?;
            if let Some(found) = found.filter(|found| found.kind != "view") {
                clear(&self.context, &found, stop).await?;
            }
            match definer.put_view(&place, &definition, stop).await {
                Err(Stopped::Failed(error)) if is_of_one(&error) => {
                    tracing::warn!(collection = %source, "the view {source} has failed: {error}");
                    self.failed_views.push((source.collection, error.to_string()));
                }
                put => put?,
            }
        }
        Ok(())
    }

    /// What the list names and the source does not have, the target does not keep from an earlier snapshot.
    async fn drop_absent(&mut self, stop: &Stop) -> Result<(), Interrupted> {
        let database = &self.context.config.snapshot.target_database;
        for name in self.absent() {
            tracing::warn!(
                collection = name,
                "{name} is not on the source, and is not in the snapshot"
            );
            let place = Namespace::new(database, &name);
            if let Some(found) = self.context.definer.find(&place, stop).await? {
                clear(&self.context, &found, stop).await?;
            }
        }
        Ok(())
    }

    /// Names of the list that are nothing on the source.
    pub(super) fn absent(&self) -> Vec<String> {
        absent(&self.context.catalogue.read(), &self.context.config.snapshot.collections)
    }

    /// Where all collections are wanted, those of the target that the source does not have are nobody's wish, and may
    /// be somebody's work: they stay.
    async fn warn_of_others(&self, stop: &Stop) -> Result<(), Interrupted> {
        let wanted = &self.context.config.snapshot;
        if !wanted.collections.is_empty() {
            return Ok(());
        }
        let listed = self.context.definer.list(&wanted.target_database, stop).await?;
        let ours: Vec<Namespace> = {
            let catalogue = self.context.catalogue.read();
            let collections = catalogue.collections.values().map(|found| &found.source);
            collections
                .chain(catalogue.views.keys())
                .map(|name| self.selection.target_of(name))
                .collect()
        };
        let others = listed.iter().filter(|entry| {
            let name = &entry.namespace;
            let of_server = name.collection.starts_with("system.");
            let is_metadata = name.collection == crate::config::METADATA_COLLECTION;
            let is_staged = unstaged(&name.collection).is_some();
            let is_series = entry.kind == "timeseries";
            !(of_server || is_metadata || is_staged || is_series || ours.contains(name))
        });
        let others: Vec<&str> = others.map(|entry| entry.namespace.collection.as_str()).collect();
        if !others.is_empty() {
            let named = others[..others.len().min(NAMED_MAX)].join(", ");
            let count = others.len();
            tracing::warn!(
                "{count} collections of {} are not on the source and stay as they are: {named}",
                wanted.target_database
            );
        }
        Ok(())
    }

    /// Which of them are in their places, by a look at the target: of the last step the outcome may not be known.
    pub(super) async fn look(&mut self, stop: &Stop) -> Result<(), Interrupted> {
        let listed =
            self.context.definer.list(&self.context.config.snapshot.target_database, stop).await?;
        for member in self.members() {
            let made = member.collection.target_uuid;
            let stands = |entry: &Listed| entry.namespace == member.place && entry.uuid == made;
            if made.is_some() && listed.iter().any(stands) {
                self.placed.insert(member.uuid);
            }
        }
        Ok(())
    }
}

/// Names that are neither a collection nor a view. A time-series is known by its own name. Pure.
pub(super) fn absent(catalogue: &Catalogue, wanted: &[String]) -> Vec<String> {
    let is_there = |name: &String| {
        let mut collections = catalogue.collections.values();
        let mut views = catalogue.views.keys();
        collections.any(|found| {
            found.source.collection == *name
                || found.source.collection.strip_prefix("system.buckets.") == Some(name)
        }) || views.any(|view| view.collection == *name)
    };
    wanted.iter().filter(|name| !is_there(name)).cloned().collect()
}

/// Gives back what was held back while the oplog was applied, and gives the collection its name.
async fn put(
    context: &Context,
    member: &Member,
    stop: &Stop,
) -> Result<(), Stopped<crate::mongo::Error>> {
    let Member { uuid, collection, place } = member;
    let Some(made) = collection.target_uuid else { return Ok(()) };
    let definer = &context.definer;
    if place.collection.starts_with("system.buckets.") {
        let made = series::put(context, collection, place, stop).await?;
        return give_back(context, *uuid, &made, stop).await;
    }
    give_back(context, *uuid, collection, stop).await?;
    // Nothing but a collection is replaced in one step.
    if let Some(found) = definer.find(place, stop).await?
        && found.kind != "collection"
    {
        clear(context, &found, stop).await?;
    }
    definer.replace(&collection.target, made, place, stop).await
}

/// Expiry and limits, as the source has them. What the server does not take is told, and stays held back.
async fn give_back(
    context: &Context,
    uuid: Uuid,
    collection: &Collection,
    stop: &Stop,
) -> Result<(), Stopped<crate::mongo::Error>> {
    let one =
        Catalogue { collections: [(uuid, collection.clone())].into(), ..Catalogue::default() };
    for (kept, collection) in held_back(&one) {
        let target = &collection.target;
        let stored = target.collection.strip_prefix("system.buckets.");
        let name = Namespace::new(&target.database, stored.unwrap_or(&target.collection));
        // What is a time-series to clients has another UUID underneath.
        let place =
            context.definer.place(&name, collection.target_uuid.filter(|_| stored.is_none()));
        match context.definer.modify(&place, &kept.change(), stop).await {
            Err(Stopped::Failed(error)) if is_of_one(&error) => {
                tracing::warn!(collection = %collection.source, "not as on the source: {error}");
            }
            modified => modified?,
        }
    }
    Ok(())
}

/// Drops what has a name that something else gets: the list of collections is the consent.
pub(super) async fn clear(
    context: &Context,
    found: &Listed,
    stop: &Stop,
) -> Result<(), Stopped<crate::mongo::Error>> {
    let (definer, name) = (&context.definer, &found.namespace);
    match (found.kind.as_str(), found.uuid) {
        ("view", _) => definer.drop_view(name, stop).await,
        ("timeseries", _) => definer.drop_time_series(name, stop).await,
        (_, Some(uuid)) => definer.drop_collection(name, uuid, stop).await,
        (_, None) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::{Spec, View};

    #[test]
    fn what_is_named_and_is_nothing_is_absent() {
        let mut catalogue = Catalogue::default();
        let target = Namespace::new("b", "x");
        for name in ["a", "system.buckets.t"] {
            catalogue.expect(Uuid::new(), Namespace::new("shop", name), target.clone());
        }
        let view = View { target, definition: Spec::default() };
        catalogue.views.insert(Namespace::new("shop", "v"), view);
        let wanted = ["a", "b", "t", "v", "w"].map(str::to_owned);
        assert_eq!(absent(&catalogue, &wanted), ["b", "w"]);
        assert_eq!(absent(&catalogue, &[]), [""; 0]);
    }
}
