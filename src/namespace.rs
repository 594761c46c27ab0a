//! Names of collections. A name is only where a collection is at some moment; what it *is* is its UUID.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A database and a collection name, such as `shop.orders`. Split at the first dot: collection names may hold dots.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Namespace {
    /// Database name.
    pub database: String,
    /// Collection name, without the database.
    pub collection: String,
}

/// What a server puts before the name of a time-series for the collection that holds its buckets.
const BUCKETS: &str = "system.buckets.";

impl Namespace {
    /// The namespace with these parts.
    #[must_use]
    pub fn new(database: impl Into<String>, collection: impl Into<String>) -> Self {
        Self { database: database.into(), collection: collection.into() }
    }

    /// Splits `database.collection` at the first dot; `None` if either part would be empty.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (database, collection) = text.split_once('.')?;
        (!database.is_empty() && !collection.is_empty()).then(|| Self::new(database, collection))
    }

    /// What clients call a time-series that has this name or these buckets, and where its buckets are.
    #[must_use]
    pub fn as_series(&self) -> (Self, Self) {
        let shown = self.collection.strip_prefix(BUCKETS).unwrap_or(&self.collection);
        let stored = format!("{BUCKETS}{shown}");
        (Self::new(&self.database, shown), Self::new(&self.database, stored))
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.database, self.collection)
    }
}

impl From<Namespace> for String {
    fn from(namespace: Namespace) -> Self {
        namespace.to_string()
    }
}

impl TryFrom<String> for Namespace {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text).ok_or_else(|| format!("{text:?} is not database.collection"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_at_the_first_dot() {
        assert_eq!(Namespace::parse("a.b.c"), Some(Namespace::new("a", "b.c")));
        for text in ["", "a", "a.", ".a"] {
            assert_eq!(Namespace::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_time_series_has_two_names() {
        let both = (Namespace::new("a", "t"), Namespace::new("a", "system.buckets.t"));
        assert_eq!(both.0.as_series(), both);
        assert_eq!(both.1.as_series(), both);
    }
}
