//! Verifying everything that is selected, or some of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use bson::Uuid;
use futures_util::stream::{self, StreamExt};
use serde::Serialize;

use super::listed::Looked;
use super::moment::Moments;
use super::{CollectionReport, Outcome, Verifier};
use crate::catalogue::{Catalogue, Spec, View};
use crate::mongo::{Deployment, Error, listing};
use crate::namespace::Namespace;
use crate::retry::{Stopped, until_reached};
use crate::selection::{NEVER_COPIED, STAGING_PREFIX, Selection};
use crate::source::catalog;
use crate::stop::Stop;

/// How often the source is listed for collections that were renamed or made while others were verified.
const LISTINGS_MAX: u32 = 4;

/// What a verification came to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The worst of what follows.
    pub outcome: Outcome,
    /// The share of the documents that was read; 1 for all.
    pub sample: f64,
    /// How long it took.
    pub seconds: f64,
    /// Documents read on the source.
    pub documents: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Each collection, in order of its name on the source.
    pub collections: Vec<CollectionReport>,
    /// Views that differ, as phrases.
    pub views: Vec<String>,
    /// Names on the target that the source knows nothing of, where the selection writes; looked for only if everything
    /// is verified.
    pub only_on_target: Vec<String>,
    /// What else could not be judged, and why.
    pub unproven: Vec<String>,
}

/// Why there is no report.
#[derive(Debug)]
pub enum VerifyError {
    /// Nothing of the source is meant by this name.
    Unknown(String),
    /// A call failed, or it was stopped.
    Stopped(Stopped<Error>),
}

impl From<Stopped<Error>> for VerifyError {
    fn from(stopped: Stopped<Error>) -> Self {
        Self::Stopped(stopped)
    }
}

/// Verifies the collections and views that these names of collections or databases of the source mean; everything that
/// is selected if there are none.
///
/// # Errors
/// [`VerifyError`].
pub async fn verify<M: Moments>(
    verifier: &Verifier<M>,
    selection: &Selection,
    names: &[String],
) -> Result<Report, VerifyError> {
    let began = Instant::now();
    let (source, stop) = (&verifier.source, &verifier.stop);
    let read = || catalog::read(source, selection);
    let mut catalogue = until_reached(source.side, stop, read).await?;
    select(&mut catalogue, names)?;
    let mut reports = BTreeMap::new();
    let mut unproven = Vec::new();
    for _ in 0..LISTINGS_MAX {
        verifier.each(&catalogue, &mut reports, &mut unproven).await?;
        // What was renamed or made meanwhile, too.
        let mut again = until_reached(source.side, stop, read).await?;
        // All that was meant may be gone by now.
        if select(&mut again, names).is_ok() {
            catalogue = again;
        }
        catalogue.collections.retain(|uuid, _| !reports.contains_key(uuid));
        if catalogue.collections.is_empty() {
            break;
        }
    }
    let left = catalogue.collections.values();
    unproven
        .extend(left.map(|left| format!("{}: it comes, goes or moves all the time", left.source)));
    let mut collections: Vec<CollectionReport> = reports.into_values().flatten().collect();
    collections.sort_by(|a, b| a.collection.cmp(&b.collection));
    let mut report = Report {
        outcome: Outcome::Equal,
        sample: verifier.sample,
        seconds: 0.0,
        documents: collections.iter().map(|found| found.documents).sum(),
        bytes: collections.iter().map(|found| found.bytes).sum(),
        collections,
        views: Vec::new(),
        only_on_target: Vec::new(),
        unproven,
    };
    for name in catalogue.views.keys() {
        let wanted = |options| View {
            target: selection.target_of(name),
            definition: Spec(selection.view_at_target(name, options)),
        };
        match verifier.view(name, wanted).await? {
            Looked::Gone => {}
            Looked::At(differences) => report.views.extend(differences),
            Looked::Unproven(why) => report.unproven.push(format!("view {name}: {why}")),
        }
    }
    if names.is_empty() {
        match verifier.only_on_target(selection).await? {
            Looked::Gone => {}
            Looked::At(found) => report.only_on_target = found,
            Looked::Unproven(why) => report.unproven.push(why),
        }
    }
    report.judge();
    report.seconds = (began.elapsed().as_secs_f64() * 1000.0).round() / 1000.0;
    Ok(report)
}

impl Report {
    fn judge(&mut self) {
        let worst = self.collections.iter().map(|found| found.outcome).max();
        let own = if !self.views.is_empty() || !self.only_on_target.is_empty() {
            Outcome::Different
        } else if self.unproven.is_empty() {
            Outcome::Equal
        } else {
            Outcome::Unproven
        };
        self.outcome = worst.unwrap_or(Outcome::Equal).max(own);
    }
}

/// Leaves what these names mean.
fn select(catalogue: &mut Catalogue, names: &[String]) -> Result<(), VerifyError> {
    if names.is_empty() {
        return Ok(());
    }
    let is_view =
        |view: &Namespace, name: &String| view.to_string() == *name || view.database == *name;
    for name in names {
        let known = catalogue.collections.values().any(|found| found.is_meant_by(name))
            || catalogue.views.keys().any(|view| is_view(view, name));
        if !known {
            return Err(VerifyError::Unknown(name.clone()));
        }
    }
    let meant = |test: &dyn Fn(&String) -> bool| names.iter().any(test);
    catalogue.collections.retain(|_, found| meant(&|name| found.is_meant_by(name)));
    catalogue.views.retain(|view, _| meant(&|name| is_view(view, name)));
    Ok(())
}

impl<M: Moments> Verifier<M> {
    /// Verifies each of these collections. One that is gone by its name has no report; one that cannot be read has none
    /// to come, and stands among what is unproven.
    async fn each(
        &self,
        catalogue: &Catalogue,
        reports: &mut BTreeMap<Uuid, Option<CollectionReport>>,
        unproven: &mut Vec<String>,
    ) -> Result<(), Stopped<Error>> {
        let at_once = self.workers.available_permits().max(1);
        let mut verified = stream::iter(&catalogue.collections)
            .map(async |(uuid, found)| (*uuid, found, self.collection(*uuid, found).await))
            .buffer_unordered(at_once);
        while let Some((uuid, found, result)) = verified.next().await {
            match result {
                Ok(None) => {}
                Ok(report) => drop(reports.insert(uuid, report)),
                Err(Stopped::Failed(error)) => {
                    unproven.push(format!("{}: {error}", found.source));
                    reports.insert(uuid, None);
                }
                Err(stopped) => return Err(stopped),
            }
        }
        Ok(())
    }

    /// What stands on the target where the selection writes, and comes from nothing on the source.
    async fn only_on_target(
        &self,
        selection: &Selection,
    ) -> Result<Looked<Vec<String>>, Stopped<Error>> {
        let first = self.foreign(selection).await?;
        if first.is_empty() {
            return Ok(Looked::At(Vec::new()));
        }
        if let Err(why) = self.passed().await? {
            let text = format!("{} names are only on the target: {why}", first.len());
            return Ok(Looked::Unproven(text));
        }
        let again = self.foreign(selection).await?;
        Ok(Looked::At(again.intersection(&first).map(ToString::to_string).collect()))
    }

    async fn foreign(&self, selection: &Selection) -> Result<BTreeSet<Namespace>, Stopped<Error>> {
        let there = names(&self.target, &self.stop).await?;
        let theirs = names(&self.source, &self.stop).await?;
        let carried = theirs.iter().filter(|name| selection.includes(name));
        let carried: BTreeSet<Namespace> = carried.map(|name| selection.target_of(name)).collect();
        let is_foreign = |name: &Namespace| {
            // Those of the server belong to what is listed beside them.
            !name.collection.starts_with("system.")
                && !name.collection.starts_with(STAGING_PREFIX)
                && !carried.contains(name)
                && selection.may_write(name)
        };
        Ok(there.into_iter().filter(is_foreign).collect())
    }
}

/// Everything of users that a side lists.
async fn names(side: &Deployment, stop: &Stop) -> Result<Vec<Namespace>, Stopped<Error>> {
    let mut names = Vec::new();
    for database in until_reached(side.side, stop, || listing::databases(side)).await? {
        if NEVER_COPIED.contains(&database.as_str()) {
            continue;
        }
        let listed = until_reached(side.side, stop, || listing::collections(side, &database));
        names.extend(listed.await?.into_iter().map(|listed| listed.namespace));
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::Collection;
    use bson::Uuid;
    use std::collections::BTreeMap;

    fn catalogue() -> Catalogue {
        let mut catalogue = Catalogue::default();
        for name in ["shop.orders", "shop.system.buckets.temps", "crm.people"] {
            let name = Namespace::parse(name).unwrap();
            let collection = Collection {
                source: name.clone(),
                target: name,
                target_uuid: None,
                widened: false,
                options: Spec::default(),
                id_index: None,
                indexes: BTreeMap::new(),
            };
            catalogue.collections.insert(Uuid::new(), collection);
        }
        let view = Namespace::new("crm", "adults");
        let made = View { target: view.clone(), definition: Spec::default() };
        catalogue.views.insert(view, made);
        catalogue
    }

    #[test]
    fn names_mean_collections_time_series_views_and_databases() {
        let left = |names: &[&str]| {
            let mut catalogue = catalogue();
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            select(&mut catalogue, &names).ok()?;
            Some((catalogue.collections.len(), catalogue.views.len()))
        };
        assert_eq!(left(&[]), Some((3, 1)));
        assert_eq!(left(&["shop"]), Some((2, 0)));
        assert_eq!(left(&["shop.temps", "crm.adults"]), Some((1, 1)));
        assert_eq!(left(&["crm", "shop.orders"]), Some((2, 1)));
        assert_eq!(left(&["shop.orders", "shop.ordes"]), None);
    }
}
