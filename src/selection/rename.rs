//! Rename rules: which names may stand in them, and what they rename.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{NEVER_COPIED, STAGING_PREFIX, SelectionError};
use crate::namespace::Namespace;

/// One rename as it is written: a database (`shop` to `shop_v2`) or a collection (`shop.a` to `crm.b`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RenameRule {
    /// Name on the source.
    pub from: String,
    /// Name on the target.
    pub to: String,
}

/// Renamed databases and renamed collections, by their names on the source.
pub(super) type Renames = (BTreeMap<String, String>, BTreeMap<Namespace, Namespace>);

/// Sorts rules into databases and collections, and reports those that are neither.
pub(super) fn renames(rules: &[RenameRule], errors: &mut Vec<SelectionError>) -> Renames {
    let mut databases = BTreeMap::new();
    let mut collections = BTreeMap::new();
    for rule in rules {
        let sides = [&rule.from, &rule.to];
        let before = errors.len();
        for name in sides {
            if let Some(reason) = bad_name(name) {
                errors.push(SelectionError::BadName { name: name.clone(), reason });
            }
        }
        if errors.len() > before {
            continue;
        }
        let twice = match sides.map(|name| Namespace::parse(name)) {
            [None, None] => databases.insert(rule.from.clone(), rule.to.clone()).is_some(),
            [Some(from), Some(to)] => collections.insert(from, to).is_some(),
            _ => {
                let (from, to) = (rule.from.clone(), rule.to.clone());
                errors.push(SelectionError::MixedKinds { from, to });
                continue;
            }
        };
        if twice {
            errors.push(SelectionError::RenamedTwice { from: rule.from.clone() });
        }
    }
    // A name that stays is the same as no rule, and must give the same fingerprint.
    collections.retain(|from: &Namespace, to| from != to || databases.contains_key(&from.database));
    databases.retain(|from, to| from != to);
    (databases, collections)
}

/// Why this is no name to rename from or to, if so. The servers' own rules, and the names that are never copied.
fn bad_name(name: &str) -> Option<&'static str> {
    let (database, collection) = match name.split_once('.') {
        Some((database, collection)) => (database, Some(collection)),
        None => (name, None),
    };
    if name.contains('*') {
        return Some("a rename takes names, not globs; leave out the dot for a whole database");
    }
    if database.is_empty() || collection.is_some_and(str::is_empty) {
        return Some("write a database (\"shop\") or a collection (\"shop.orders\")");
    }
    if NEVER_COPIED.contains(&database) {
        return Some("the database belongs to the server or to snapsync");
    }
    // The server counts a database name as fewer than 64 bytes.
    if database.len() > 63 || database.contains(['/', '\\', ' ', '"', '$', '\0']) {
        return Some("a database name is at most 63 bytes without / \\ . \" $ and spaces");
    }
    let collection = collection?;
    if collection.starts_with("system.") || collection.starts_with(STAGING_PREFIX) {
        return Some("the collection belongs to the server or to snapsync");
    }
    collection.contains(['$', '\0']).then_some("a collection name holds no $")
}
