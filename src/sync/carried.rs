//! What of the source's definitions the target cannot have as they are, or only later: refused before anything is
//! written, or told. Pure.

use bson::Document;

use super::preflight::{Check, Verdict};
use crate::catalogue::{Catalogue, Collection};
use crate::mongo::Version;
use crate::selection::names_in_view;

/// Options of collections that tests carry from server to server.
const KNOWN_OPTIONS: [&str; 16] = [
    "autoIndexId",
    "capped",
    "changeStreamPreAndPostImages",
    "clusteredIndex",
    "collation",
    "expireAfterSeconds",
    "indexOptionDefaults",
    "max",
    "recordPreImages",
    "size",
    "storageEngine",
    "temp",
    "timeseries",
    "validationAction",
    "validationLevel",
    "validator",
];
/// From here on there are no geoHaystack indexes.
const WITHOUT_HAYSTACK: Version = Version(5, 0, 0);
/// From here on documents can be removed from capped collections.
const REMOVES_FROM_CAPPED: Version = Version(5, 0, 0);
/// Names that one text lists at the most.
const NAMED_MAX: usize = 10;

/// Looks through everything that would be copied to a target of this version.
#[must_use]
pub fn check(catalogue: &Catalogue, target: Version) -> Vec<Check> {
    let collections: Vec<&Collection> = catalogue.collections.values().collect();
    [
        index_kinds(&collections, target),
        collection_options(&collections),
        held_back(catalogue),
        capped(&collections, target),
        parted_views(catalogue),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn index_kinds(collections: &[&Collection], target: Version) -> Option<Check> {
    let is_haystack = |spec: &Document| {
        let key = spec.get_document("key");
        key.is_ok_and(|key| key.values().any(|kind| kind.as_str() == Some("geoHaystack")))
    };
    let names = collections.iter().flat_map(|collection| {
        let found = collection.indexes.iter().filter(|(_, spec)| is_haystack(&spec.0));
        found.map(|(index, _)| format!("{index} of {}", collection.source))
    });
    let names = listed(names.filter(|_| target >= WITHOUT_HAYSTACK))?;
    let text = format!(
        "MongoDB {target} has no geoHaystack indexes: drop {names} on the source, or exclude the \
         collections"
    );
    Some(Check::new("index kinds", Verdict::Fail, text))
}

fn collection_options(collections: &[&Collection]) -> Option<Check> {
    let names = listed(collections.iter().flat_map(|collection| {
        let unknown = collection.options.0.keys();
        let unknown = unknown.filter(|key| !KNOWN_OPTIONS.contains(&key.as_str()));
        unknown.map(|key| format!("{key} of {}", collection.source))
    }))?;
    let text = format!(
        "not known to this version of snapsync, and handed to the target as they are: {names}"
    );
    Some(Check::new("collection options", Verdict::Warn, text))
}

fn held_back(catalogue: &Catalogue) -> Option<Check> {
    let names = listed(
        catalogue.held_back().iter().map(|held| format!("{} of {}", held.what, held.collection)),
    )?;
    let text = format!("nothing expires on the target by itself until cutover: {names}");
    Some(Check::new("held back", Verdict::Pass, text))
}

fn capped(collections: &[&Collection], target: Version) -> Option<Check> {
    let capped = collections.iter().filter(|collection| collection.is_capped());
    let capped = capped.filter(|_| target < REMOVES_FROM_CAPPED);
    let names = listed(capped.map(|collection| collection.source.to_string()))?;
    let text = format!(
        "MongoDB {target} removes nothing from capped collections: after a kill in the midst of \
         writes these are copied again: {names}"
    );
    Some(Check::new("capped collections", Verdict::Warn, text))
}

/// A view sees its own database only; the renaming takes what it names to another one.
fn parted_views(catalogue: &Catalogue) -> Option<Check> {
    let names = listed(catalogue.views.iter().flat_map(|(source, view)| {
        let mut named = names_in_view(&view.definition.0);
        named.sort_unstable();
        named.dedup();
        let parted = named.into_iter().filter(|name| {
            catalogue.collections.values().any(|collection| {
                collection.source.database == source.database
                    && collection.target.collection == *name
                    && collection.target.database != view.target.database
            })
        });
        parted.map(move |name| format!("{name} of {}", view.target)).collect::<Vec<_>>()
    }))?;
    let text = format!(
        "sync.rename takes these collections out of the database of the views that name them, which \
         will not see them there: {names}"
    );
    Some(Check::new("views", Verdict::Warn, text))
}

/// The names in one text; `None` if there are none.
fn listed(names: impl Iterator<Item = String>) -> Option<String> {
    let mut names: Vec<String> = names.collect();
    let more = names.len().saturating_sub(NAMED_MAX);
    names.truncate(NAMED_MAX);
    let text = names.join(", ");
    match (text.is_empty(), more) {
        (true, _) => None,
        (false, 0) => Some(text),
        (false, more) => Some(format!("{text} and {more} more")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::{Spec, View};
    use crate::namespace::Namespace;
    use bson::{Uuid, doc};

    fn catalogue(options: Document, index: Document) -> Catalogue {
        let collection = Collection {
            source: Namespace::new("shop", "a"),
            target: Namespace::new("shop", "a"),
            target_uuid: None,
            widened: false,
            options: Spec(options),
            id_index: None,
            indexes: [("x".to_owned(), Spec(index))].into(),
        };
        Catalogue { collections: [(Uuid::new(), collection)].into(), ..Catalogue::default() }
    }

    fn of(options: Document, index: Document, target: Version) -> Vec<(String, Verdict)> {
        let found = check(&catalogue(options, index), target).into_iter();
        found.map(|check| (check.name, check.verdict)).collect()
    }

    #[test]
    fn what_everybody_has_is_not_worth_a_word() {
        let options = doc! { "validator": {}, "collation": { "locale": "de" } };
        let found = of(options, doc! { "key": { "a": 1, "b": "text" } }, Version(6, 0, 5));
        assert_eq!(found, []);
    }

    #[test]
    fn an_index_that_the_target_does_not_know_is_refused_by_name() {
        let haystack = doc! { "key": { "p": "geoHaystack", "k": 1 }, "bucketSize": 1 };
        assert_eq!(of(doc! {}, haystack.clone(), Version(4, 4, 2)), []);
        let found = check(&catalogue(doc! {}, haystack), Version(5, 0, 0));
        assert_eq!((found.len(), found[0].verdict), (1, Verdict::Fail));
        assert!(found[0].text.contains("x of shop.a"), "{}", found[0].text);
    }

    #[test]
    fn what_is_new_or_comes_later_is_told() {
        let options = doc! { "capped": true, "encryptedFields": {} };
        let index = doc! { "key": { "at": 1 }, "expireAfterSeconds": 5 };
        let (option, held) = ("collection options".to_owned(), "held back".to_owned());
        let capped = ("capped collections".to_owned(), Verdict::Warn);
        let told = [(option, Verdict::Warn), (held, Verdict::Pass)];
        assert_eq!(of(options.clone(), index.clone(), Version(6, 0, 5)), told);
        assert_eq!(of(options, index, Version(4, 4, 2)), [&told[..], &[capped]].concat());
    }

    #[test]
    fn a_view_that_is_parted_from_what_it_names_is_told() {
        let mut all = catalogue(doc! {}, doc! {});
        let definition = doc! { "viewOn": "a", "pipeline": [{ "$unionWith": "other" }] };
        let view = View { target: Namespace::new("shop", "v"), definition: Spec(definition) };
        all.views.insert(Namespace::new("shop", "v"), view);
        assert!(check(&all, Version(6, 0, 5)).is_empty());
        for collection in all.collections.values_mut() {
            collection.target.database = "crm".to_owned();
        }
        let found = check(&all, Version(6, 0, 5));
        assert_eq!((found.len(), found[0].verdict), (1, Verdict::Warn));
        assert!(found[0].text.ends_with(": a of shop.v"), "{}", found[0].text);
    }

    #[test]
    fn many_names_are_cut_short() {
        let names = |count: usize| listed((0..count).map(|n| n.to_string()));
        assert_eq!(names(0), None);
        assert_eq!(names(2).unwrap(), "0, 1");
        assert!(names(12).unwrap().ends_with("9 and 2 more"));
    }
}
