//! What definitions of the source become on the target as long as it follows: whatever would remove documents by itself
//! is held back. Pure.

use bson::{Document, doc};

use crate::mongo::Version;
use crate::namespace::Namespace;

/// The largest `expireAfterSeconds`: an index that never deletes. Held back until cutover, because the target's own TTL
/// monitor would delete a document that the source is about to refresh.
const NEVER_EXPIRES: i32 = i32::MAX;
/// The same for servers that refuse more seconds than have passed since 1970. It deletes what was due in 1972.
const NEVER_EXPIRES_BEFORE_6: i32 = 1_700_000_000;

/// The `expireAfterSeconds` of an index that deletes nothing, on a server of this version.
#[must_use]
pub fn never_expires(version: Version) -> i32 {
    if version >= Version(6, 0, 0) { NEVER_EXPIRES } else { NEVER_EXPIRES_BEFORE_6 }
}

/// What a capped collection holds on the target until cutover: more than any may hold. Its documents go when the oplog
/// says so. By itself the target would evict some of them too early: a window is folded, so documents that grow in it
/// are large from the beginning, and one that is applied again meets those that have grown before.
pub const WIDE_SIZE: i64 = 1 << 50;
/// The same for a limit to the number of documents.
pub const WIDE_MAX: i32 = i32::MAX;

/// A specification as `createIndexes` has to be told it. One without a collation is simple; left out of the command, it
/// would become that of the collection.
pub(super) fn index_to_build(spec: &Document, never_expires: i32) -> Document {
    let mut spec = held_back_index(spec, never_expires);
    // Indexes of version 1 have no collation, and none is taken for them.
    let version_one = spec.get("v").is_some_and(|v| *v == 1_i32.into() || *v == 1_i64.into());
    if !spec.contains_key("collation") && !version_one {
        spec.insert("collation", doc! { "locale": "simple" });
    }
    spec
}

/// An index specification as it is built while following: one that expires documents never does.
fn held_back_index(spec: &Document, never_expires: i32) -> Document {
    let mut spec = spec.clone();
    // Stated by servers before 4.4, refused by later ones.
    spec.remove("ns");
    if spec.contains_key("expireAfterSeconds") {
        spec.insert("expireAfterSeconds", never_expires);
    }
    spec
}

pub(super) fn create_command(
    namespace: &Namespace,
    options: &Document,
    id_index: Option<&Document>,
    widened: bool,
) -> Document {
    if let Some(name) = namespace.collection.strip_prefix("system.buckets.") {
        return create_time_series(name, options);
    }
    let mut command = doc! { "create": &namespace.collection };
    for (key, value) in options {
        // `temp` is refused by the command; a temporary gets its lasting name by a rename.
        // What expires documents is held back; it is left out, because for a collection, unlike for an index, servers
        // refuse more seconds than have passed since 1970.
        if !matches!(key.as_str(), "temp" | "uuid" | "expireAfterSeconds") {
            let value = match key.as_str() {
                "size" if widened => WIDE_SIZE.into(),
                "max" if widened => WIDE_MAX.into(),
                _ => value.clone(),
            };
            command.insert(key, value);
        }
    }
    // Servers take one of the two.
    if let Some(id_index) = id_index.filter(|_| !options.contains_key("autoIndexId")) {
        command.insert("idIndex", held_back_index(id_index, NEVER_EXPIRES));
    }
    command
}

/// The buckets come into being with the time-series collection they belong to; made first, they would be in its way.
fn create_time_series(name: &str, options: &Document) -> Document {
    let mut command = doc! { "create": name };
    for key in ["timeseries", "storageEngine", "collation"] {
        if let Some(value) = options.get(key) {
            command.insert(key, value.clone());
        }
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_expires_documents_is_held_back() {
        let spec =
            held_back_index(&doc! { "v": 2, "ns": "a.b", "expireAfterSeconds": 5 }, NEVER_EXPIRES);
        assert_eq!(spec, doc! { "v": 2, "expireAfterSeconds": NEVER_EXPIRES });
        let built = index_to_build(&doc! { "v": 1, "key": {} }, NEVER_EXPIRES);
        assert_eq!(built, doc! { "v": 1, "key": {} });
        let namespace = Namespace::new("a", "b");
        let clustered = doc! { "clusteredIndex": {}, "expireAfterSeconds": 5_i64 };
        let command = create_command(&namespace, &clustered, None, false);
        assert_eq!(command, doc! { "create": "b", "clusteredIndex": {} });
    }

    #[test]
    fn a_temporary_is_made_without_its_mark() {
        let namespace = Namespace::new("a", "b");
        let id_index = doc! { "v": 1 };
        let command = create_command(&namespace, &doc! { "temp": true }, Some(&id_index), false);
        assert_eq!(command, doc! { "create": "b", "idIndex": { "v": 1 } });
        let automatic = doc! { "autoIndexId": true };
        let command = create_command(&namespace, &automatic, Some(&id_index), false);
        assert_eq!(command, doc! { "create": "b", "autoIndexId": true });
    }

    #[test]
    fn buckets_are_made_by_their_time_series() {
        let namespace = Namespace::new("a", "system.buckets.t");
        let options = doc! { "validator": {}, "clusteredIndex": true, "timeseries": { "timeField": "t" },
        "expireAfterSeconds": 5_i64 };
        let command = create_command(&namespace, &options, None, false);
        assert_eq!(command, doc! { "create": "t", "timeseries": { "timeField": "t" } });
    }

    #[test]
    fn a_capped_collection_has_the_limits_that_it_has_but_wider() {
        let namespace = Namespace::new("a", "b");
        let made = |options: Document, widened| create_command(&namespace, &options, None, widened);
        let options = doc! { "capped": true, "size": 4096 };
        let wide = doc! { "create": "b", "capped": true, "size": WIDE_SIZE };
        assert_eq!(made(options.clone(), true), wide);
        let command = made(doc! { "capped": true, "size": 4096, "max": 5 }, true);
        assert_eq!(command.get_i32("max").unwrap(), WIDE_MAX);
        assert_eq!(made(options, false).get_i32("size").unwrap(), 4096);
    }
}
