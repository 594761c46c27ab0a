//! What collections and views are besides their documents: options, indexes, definitions. Pure.
//!
//! Not a difference is what is held back on the target until cutover: expiry, and capped limits that are wider. Nor is
//! another way of stating the same, which servers of other versions have.

use std::collections::BTreeMap;

use bson::{Bson, Document};

/// A TTL with this many seconds or more is held back. Not one exact value: servers before 5.0 take less than later
/// ones.
const HELD_BACK_SECONDS_MIN: f64 = 1_000_000_000.0;
const EXPIRES: &str = "expireAfterSeconds";
/// Options that say nothing lasting: a temporary gets its name by a rename, the others are gone from servers.
const PASSING: [&str; 3] = ["temp", "autoIndexId", "uuid"];

/// Indexes by name.
pub(super) type Indexes = BTreeMap<String, Document>;

/// What differs between the options of a collection on the source and those on the target, as phrases.
pub(super) fn compare_options(
    source: &Document,
    target: &Document,
    is_buckets: bool,
) -> Vec<String> {
    let mut found = Vec::new();
    let ignored = |key: &str| {
        // The validator of buckets is the server's own.
        PASSING.contains(&key) || (is_buckets && key == "validator")
    };
    for (key, theirs) in source.iter().filter(|(key, _)| !ignored(key)) {
        let held_back = match (key.as_str(), target.get(key)) {
            (EXPIRES, ours) => ours.is_none_or(is_held_back),
            ("size" | "max", Some(ours)) => {
                source.get_bool("capped").unwrap_or(false) && number(ours) > number(theirs)
            }
            _ => false,
        };
        match target.get(key) {
            _ if held_back => {}
            None => found.push(format!("option {key} is missing on the target")),
            Some(ours) if !same_value(theirs, ours) => {
                found.push(format!("option {key} differs"));
            }
            Some(_) => {}
        }
    }
    for key in target.keys().filter(|key| !ignored(key) && !source.contains_key(key)) {
        found.push(format!("option {key} is only on the target"));
    }
    found
}

/// What differs between indexes, as phrases.
pub(super) fn compare_indexes(source: &Indexes, target: &Indexes) -> Vec<String> {
    let mut found = Vec::new();
    for (name, theirs) in source {
        match target.get(name) {
            None => found.push(format!("index {name} is missing on the target")),
            Some(ours) if !same_index(theirs, ours) => found.push(format!("index {name} differs")),
            Some(_) => {}
        }
    }
    for name in target.keys().filter(|name| !source.contains_key(*name)) {
        found.push(format!("index {name} is only on the target"));
    }
    found
}

/// Whether a view on the target is as its definition says it should be there.
pub(super) fn same_view(wanted: &Document, there: &Document) -> bool {
    // A collation is stated in full by the server, and is a view's for life.
    ["viewOn", "pipeline"].iter().all(|key| match (wanted.get(key), there.get(key)) {
        (Some(wanted), Some(there)) => same_bytes(wanted, there),
        (wanted, there) => wanted.is_none() && there.is_none(),
    })
}

/// Indexes by name, as servers list them.
pub(super) fn by_name(listed: Vec<Document>) -> Indexes {
    let named = listed.into_iter().map(|mut spec| {
        // Servers before 4.4 say where the index is.
        spec.remove("ns");
        (spec.get_str("name").unwrap_or_default().to_owned(), spec)
    });
    named.collect()
}

/// The order of the outermost fields says nothing in a specification; everything else counts.
fn same_index(source: &Document, target: &Document) -> bool {
    // What a clustered collection is ordered by is listed as an index.
    let is_clustered = source.get_bool("clustered").unwrap_or(false);
    let left_out = is_clustered && source.contains_key(EXPIRES) && !target.contains_key(EXPIRES);
    source.len() == target.len() + usize::from(left_out)
        && source.iter().filter(|(key, _)| !(left_out && *key == EXPIRES)).all(|(key, theirs)| {
            target.get(key).is_some_and(|ours| {
                (key == EXPIRES && is_held_back(ours)) || same_value(theirs, ours)
            })
        })
}

/// Newer servers state numbers among options as other types than older ones.
fn same_value(source: &Bson, target: &Bson) -> bool {
    match (number(source), number(target)) {
        (Some(theirs), Some(ours)) => theirs.to_bits() == ours.to_bits(),
        _ => same_bytes(source, target),
    }
}

/// Documents compare as equal with their fields in any order; their bytes do not.
fn same_bytes(a: &Bson, b: &Bson) -> bool {
    let bytes = |value: &Bson| bson::serialize_to_vec(&bson::doc! { "": value }).ok();
    bytes(a).is_some_and(|a| Some(a) == bytes(b))
}

fn is_held_back(seconds: &Bson) -> bool {
    number(seconds).is_some_and(|seconds| seconds >= HELD_BACK_SECONDS_MIN)
}

fn number(value: &Bson) -> Option<f64> {
    match value {
        Bson::Int32(n) => Some(f64::from(*n)),
        #[expect(clippy::cast_precision_loss, reason = "options are small")]
        Bson::Int64(n) => Some(*n as f64),
        Bson::Double(n) => Some(*n),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::doc;

    fn index(spec: Document) -> Indexes {
        by_name(vec![spec])
    }

    #[test]
    fn what_is_held_back_is_no_difference() {
        let differ = |source, target| !compare_options(&source, &target, false).is_empty();
        let capped = |size: i64| doc! { "capped": true, "size": size };
        assert!(!differ(capped(4096), doc! { "capped": true, "size": 8192 }));
        assert!(differ(capped(8192), capped(4096)));
        assert!(!differ(doc! { EXPIRES: 5_i64 }, doc! {}));
        assert!(differ(doc! { EXPIRES: 5_i64 }, doc! { EXPIRES: 7_i64 }));
        let ttl =
            |seconds: Bson| index(doc! { "name": "at", "key": { "at": 1 }, EXPIRES: seconds });
        let found = |target| compare_indexes(&ttl(60.into()), &target);
        assert_eq!(found(ttl(i32::MAX.into())), [""; 0]);
        assert_eq!(found(ttl(1_700_000_000_i64.into())), [""; 0]);
        assert_eq!(found(ttl(61.into())), ["index at differs"]);
    }

    #[test]
    fn options_and_indexes_that_differ_are_named() {
        let source = doc! { "validator": { "a": 1, "b": 1 }, "temp": true, "x": 1 };
        let target = doc! { "validator": { "b": 1, "a": 1 }, "y": 1 };
        let found = compare_options(&source, &target, false);
        let expected = [
            "option validator differs",
            "option x is missing on the target",
            "option y is only on the target",
        ];
        assert_eq!(found, expected);
        assert_eq!(compare_options(&source, &target, true), expected[1..]);
        let keys = |keys: Document| doc! { "v": 2, "name": "k", "key": keys };
        let (ab, ba) = (keys(doc! { "a": 1, "b": 1 }), keys(doc! { "b": 1, "a": 1 }));
        assert_eq!(compare_indexes(&index(ab.clone()), &index(ba)), ["index k differs"]);
        let found = compare_indexes(&index(ab.clone()), &index(doc! { "name": "l" }));
        assert_eq!(found, ["index k is missing on the target", "index l is only on the target"]);
        let other_type = doc! { "name": "k", "v": 2.0, "key": { "a": 1, "b": 1 } };
        assert_eq!(compare_indexes(&index(ab), &index(other_type)), [""; 0]);
    }

    #[test]
    fn a_view_is_its_base_and_its_pipeline() {
        let view = |field: &str| {
            let stage = doc! { "$match": { field: 1, "z": 1 } };
            doc! { "viewOn": "orders", "pipeline": [stage] }
        };
        let mut there = view("a");
        there.insert("collation", doc! { "locale": "de" });
        assert!(same_view(&view("a"), &there));
        assert!(!same_view(&view("b"), &there));
        assert!(!same_view(&view("a"), &doc! { "viewOn": "orders" }));
    }
}
