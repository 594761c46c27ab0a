//! What both sides list: whether a collection, its options and its indexes are the same. Lists have no history, so the
//! source is listed before the replay has passed and again after the target was: what it says twice has to be there.

use std::collections::BTreeSet;

use bson::{Document, Uuid, doc};

use super::Verifier;
use super::moment::{Floor, Moment, Moments, NoMoment};
use super::recheck::{defined_since, named_since};
use super::shape::{Indexes, by_name, compare_indexes, compare_options, same_view};
use crate::catalogue::{Collection, View};
use crate::mongo::{Deployment, Error, Listed, Side, listing};
use crate::namespace::Namespace;
use crate::position::Ts;
use crate::retry::{Stopped, until_reached};
use crate::source::start;

const NAMESPACE_NOT_FOUND: i32 = 26;
/// How often definitions that change all the time are looked at.
const LOOKS_MAX: u32 = 5;

/// A collection as both sides list it.
#[derive(Debug, Clone)]
pub(super) struct Definition {
    /// Its UUID on the target; `None` if it is missing there, which is among the differences.
    pub(super) target_uuid: Option<Uuid>,
    /// Its options on the source.
    pub(super) options: Document,
    /// What differs, as phrases.
    pub(super) differences: Vec<String>,
}

/// What looking came to.
#[derive(Debug)]
pub(super) enum Looked<T> {
    /// The source no longer has it.
    Gone,
    /// It was seen on both sides.
    At(T),
    /// It could not be judged, for this reason.
    Unproven(String),
}

/// A collection as one side lists it.
#[derive(Debug, Clone, PartialEq)]
struct Seen {
    listed: Listed,
    indexes: Indexes,
}

impl<M: Moments> Verifier<M> {
    /// Compares what both sides say of a collection.
    pub(super) async fn definition(
        &self,
        uuid: Uuid,
        collection: &Collection,
    ) -> Result<Looked<Definition>, Stopped<Error>> {
        let is_buckets = collection.source.collection.starts_with("system.buckets.");
        let ours = || self.seen(Side::Target, &collection.target);
        let theirs = || async {
            let seen = self.seen(Side::Source, &collection.source).await?;
            Ok(seen.filter(|seen| seen.listed.uuid == Some(uuid)))
        };
        let compare = |theirs: &Seen, ours: Option<&Seen>| match ours {
            Some(ours) if ours.listed.kind == theirs.listed.kind => {
                let (wanted, there) = (&theirs.listed.options, &ours.listed.options);
                let mut found = compare_options(wanted, there, is_buckets);
                found.extend(compare_indexes(&theirs.indexes, &ours.indexes));
                found
            }
            Some(ours) => vec![format!("it is a {} on the target", ours.listed.kind)],
            None => vec!["it is missing on the target".to_owned()],
        };
        let looked = self.look((&collection.source, Some(uuid)), theirs, ours, compare).await?;
        Ok(match looked {
            Looked::At((theirs, ours, differences)) => Looked::At(Definition {
                target_uuid: ours.and_then(|ours| ours.listed.uuid),
                options: theirs.listed.options,
                differences,
            }),
            Looked::Gone => Looked::Gone,
            Looked::Unproven(why) => Looked::Unproven(why),
        })
    }

    /// Compares what both sides say of a view; the phrases say what differs.
    pub(super) async fn view(
        &self,
        name: &Namespace,
        wanted: impl Fn(Document) -> View,
    ) -> Result<Looked<Vec<String>>, Stopped<Error>> {
        let target = wanted(Document::new()).target;
        let listed = async |side, name: &Namespace| {
            let listed = self.listed(side, name).await?;
            Ok(listed.filter(|listed| listed.kind == "view"))
        };
        let theirs = || listed(Side::Source, name);
        let ours = || listed(Side::Target, &target);
        let compare = |theirs: &Listed, ours: Option<&Listed>| match ours {
            Some(ours) => {
                let wanted = wanted(theirs.options.clone()).definition.0;
                let same = same_view(&wanted, &ours.options);
                if same { Vec::new() } else { vec![format!("view {target} differs")] }
            }
            None => vec![format!("view {target} is missing on the target")],
        };
        Ok(match self.look((name, None), theirs, ours, compare).await? {
            Looked::At((_, _, differences)) => Looked::At(differences),
            Looked::Gone => Looked::Gone,
            Looked::Unproven(why) => Looked::Unproven(why),
        })
    }

    /// Looks until both sides say the same, or the source has said the same before and after the target said another,
    /// and nothing took this name in between: it may have been another's for a while.
    async fn look<T, Theirs, Ours>(
        &self,
        (name, uuid): (&Namespace, Option<Uuid>),
        theirs: impl Fn() -> Theirs,
        ours: impl Fn() -> Ours,
        compare: impl Fn(&T, Option<&T>) -> Vec<String>,
    ) -> Result<Looked<(T, Option<T>, Vec<String>)>, Stopped<Error>>
    where
        T: PartialEq,
        Theirs: Future<Output = Result<Option<T>, Stopped<Error>>>,
        Ours: Future<Output = Result<Option<T>, Stopped<Error>>>,
    {
        let Some(found) = theirs().await? else { return Ok(Looked::Gone) };
        let there = ours().await?;
        if compare(&found, there.as_ref()).is_empty() {
            return Ok(Looked::At((found, there, Vec::new())));
        }
        let source = &self.source;
        for _ in 0..LOOKS_MAX {
            let since = until_reached(source.side, &self.stop, || start::newest(source)).await?;
            let Some(before) = theirs().await? else { return Ok(Looked::Gone) };
            match self.passed().await? {
                Ok(held) if uuid.is_some_and(|uuid| held.contains(&uuid)) => {
                    let why = "the collection is being copied again";
                    return Ok(Looked::Unproven(why.to_owned()));
                }
                Ok(_) => {}
                Err(why) => {
                    return Ok(Looked::Unproven(format!("its definition does not match: {why}")));
                }
            }
            let there = ours().await?;
            let Some(after) = theirs().await? else { return Ok(Looked::Gone) };
            let differences = compare(&after, there.as_ref());
            let renamed = || named_since(source, name, since);
            if differences.is_empty()
                || (before == after && !until_reached(source.side, &self.stop, renamed).await?)
            {
                return Ok(Looked::At((after, there, differences)));
            }
        }
        Ok(Looked::Unproven("its definition changes all the time".to_owned()))
    }

    /// Waits until every definition that the source has by now is on the target, and returns what is being copied
    /// again; the other error says why that cannot be told.
    pub(super) async fn passed(&self) -> Result<Result<BTreeSet<Uuid>, String>, Stopped<Error>> {
        let (source, stop) = (&self.source, &self.stop);
        // Lists show what is not committed by the majority yet.
        let passed = until_reached(source.side, stop, || start::newest(source)).await?;
        match self.moments.next(Floor { source: passed, target: Ts::ZERO }).await {
            Ok(Moment::Cut(cut)) => Ok(Ok(cut.held)),
            Ok(Moment::Still(still)) => {
                let defined = || defined_since(source, still.source);
                if until_reached(source.side, stop, defined).await? {
                    let at = still.source;
                    return Ok(Err(format!(
                        "the target stands still at {at}, and the source has defined something since"
                    )));
                }
                Ok(Ok(still.held))
            }
            Err(NoMoment::Stop) => Err(Stopped::Stop),
            Err(NoMoment::Unknown(why)) => Ok(Err(why)),
        }
    }

    fn side(&self, side: Side) -> &Deployment {
        match side {
            Side::Source => &self.source,
            Side::Target => &self.target,
        }
    }

    async fn listed(&self, side: Side, name: &Namespace) -> Result<Option<Listed>, Stopped<Error>> {
        let deployment = self.side(side);
        let filter = doc! { "name": &name.collection };
        let list = || listing::matching(deployment, &name.database, filter.clone());
        Ok(until_reached(side, &self.stop, list).await?.pop())
    }

    async fn seen(&self, side: Side, name: &Namespace) -> Result<Option<Seen>, Stopped<Error>> {
        let Some(listed) = self.listed(side, name).await? else { return Ok(None) };
        if listed.kind != "collection" {
            return Ok(Some(Seen { listed, indexes: Indexes::new() }));
        }
        let deployment = self.side(side);
        let collection = name.collection.as_str();
        let list = || listing::indexes(deployment, &name.database, collection);
        match until_reached(side, &self.stop, list).await {
            Ok(indexes) => Ok(Some(Seen { listed, indexes: by_name(indexes) })),
            Err(Stopped::Failed(error)) if error.code() == Some(NAMESPACE_NOT_FOUND) => Ok(None),
            Err(stopped) => Err(stopped),
        }
    }

    /// The UUID of the collection that has this name on the source.
    pub(super) async fn source_uuid(
        &self,
        name: &Namespace,
    ) -> Result<Option<Uuid>, Stopped<Error>> {
        Ok(self.listed(Side::Source, name).await?.and_then(|listed| listed.uuid))
    }

    /// The UUID of the collection that has this name on the target.
    pub(super) async fn target_uuid(
        &self,
        name: &Namespace,
    ) -> Result<Option<Uuid>, Stopped<Error>> {
        Ok(self.listed(Side::Target, name).await?.and_then(|listed| listed.uuid))
    }
}
