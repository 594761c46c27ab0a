//! Comparing again what has changed since everything was compared: single documents, and all definitions.

use bson::{RawDocumentBuf, Uuid};
use futures_util::stream::{self, StreamExt};

use super::align::{Suspect, id_text};
use super::listed::Looked;
use super::moment::{Floor, Moments};
use super::recheck::{Judge, Kind, Pair, Why};
use super::{Outcome, Verifier};
use crate::catalogue::{Catalogue, Collection, Spec, View};
use crate::mongo::Error;
use crate::oplog::document;
use crate::oplog::id_key::IdKey;
use crate::position::Ts;
use crate::retry::Stopped;
use crate::selection::Selection;

/// Documents that are named in one phrase.
const NAMED_MAX: usize = 3;

/// What comparing again came to, as phrases.
#[derive(Debug, Default)]
pub struct Again {
    /// What differs.
    pub different: Vec<String>,
    /// What could not be judged, and why.
    pub unproven: Vec<String>,
}

impl Again {
    /// Adds what another comparison came to.
    pub fn extend(&mut self, other: Self) {
        self.different.extend(other.different);
        self.unproven.extend(other.unproven);
    }
}

impl<M: Moments> Verifier<M> {
    /// Compares documents of one collection, given as `{_id}`, as of a cut that is at or after `from` on the source.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn documents_again(
        &self,
        uuid: Uuid,
        collection: &Collection,
        ids: &[RawDocumentBuf],
        from: Ts,
    ) -> Result<Again, Stopped<Error>> {
        let pair = Pair {
            uuid,
            source: collection.source.clone(),
            target: collection.target.clone(),
            has_history: !collection.is_capped(),
        };
        let suspects = ids
            .iter()
            .filter_map(|id| Some(Suspect { key: IdKey::new(document::id(id)?), id: id.clone() }));
        let mut judge = Judge::new(&*self.moments, &self.source, &self.target, &self.stop);
        // Nothing of these was read before, so that any cut is late enough for the target.
        let floor = Floor { source: from, target: Ts::ZERO };
        let verdict = judge.judge(&pair, suspects.collect(), floor).await?;
        let mut again = Again::default();
        if !verdict.found.is_empty() {
            let count = verdict.found.len();
            let name = |(suspect, kind): &(Suspect, Kind)| {
                let how = match kind {
                    Kind::Missing => "missing",
                    Kind::Extra => "extra",
                    Kind::Different => "different",
                };
                format!("{} {how}", id_text(&suspect.id))
            };
            let names: Vec<String> = verdict.found.iter().take(NAMED_MAX).map(name).collect();
            let names = names.join(", ");
            again
                .different
                .push(format!("{count} documents of {}: _id {names}", collection.source));
        }
        if verdict.undecided > 0 {
            let why = match verdict.why {
                Some(Why::Held) => "the collection is being copied again".to_owned(),
                Some(Why::NoMoment(why)) => why,
                Some(Why::Busy) | None => "they change too fast".to_owned(),
            };
            let (count, name) = (verdict.undecided, &collection.source);
            again.unproven.push(format!("{count} documents of {name}: {why}"));
        }
        Ok(again)
    }

    /// Compares a whole collection.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn whole_again(
        &self,
        uuid: Uuid,
        collection: &Collection,
    ) -> Result<Again, Stopped<Error>> {
        let mut again = Again::default();
        if let Some(report) = self.collection(uuid, collection).await? {
            let name = &report.collection;
            match (report.outcome, report.what_differs()) {
                (Outcome::Different, Some(what)) => again.different.push(format!("{name}: {what}")),
                (Outcome::Equal, _) => {}
                _ => again.unproven.push(format!("{name}: {}", report.unproven.join("; "))),
            }
        }
        Ok(again)
    }

    /// Compares the definitions of everything that is followed.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn definitions_again(
        &self,
        catalogue: &Catalogue,
        selection: &Selection,
    ) -> Result<Again, Stopped<Error>> {
        let mut again = Again::default();
        let at_once = self.workers.available_permits().max(1);
        let mut looking = stream::iter(&catalogue.collections)
            .map(async |(uuid, found)| (found, self.definition(*uuid, found).await))
            .buffer_unordered(at_once);
        while let Some((found, looked)) = looking.next().await {
            let name = &found.source;
            match looked? {
                Looked::Gone => again.unproven.push(format!("{name} is gone from the source")),
                Looked::At(definition) if definition.differences.is_empty() => {}
                Looked::At(definition) => {
                    again.different.push(format!("{name}: {}", definition.differences.join(", ")));
                }
                Looked::Unproven(why) => again.unproven.push(format!("{name}: {why}")),
            }
        }
        for name in catalogue.views.keys() {
            let wanted = |options| View {
                target: selection.target_of(name),
                definition: Spec(selection.view_at_target(name, options)),
            };
            match self.view(name, wanted).await? {
                Looked::Gone => again.unproven.push(format!("view {name} is gone from the source")),
                Looked::At(differences) => again.different.extend(differences),
                Looked::Unproven(why) => again.unproven.push(format!("view {name}: {why}")),
            }
        }
        Ok(again)
    }
}
