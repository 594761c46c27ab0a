//! Globs for databases and collections.

use std::fmt;

/// A glob for databases, or for collections in databases. Ordered and compared as it is written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Pattern {
    pub(super) database: String,
    pub(super) collection: Option<String>,
}

impl Pattern {
    /// `None` for a text that cannot match anything.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (database, collection) = match text.split_once('.') {
            Some((database, collection)) => (database, Some(collection)),
            None => (text, None),
        };
        if database.is_empty() || collection.is_some_and(str::is_empty) {
            return None;
        }
        Some(Self { database: database.to_owned(), collection: collection.map(str::to_owned) })
    }

    /// Whether it takes this collection of this database.
    pub(super) fn matches(&self, database: &str, collection: &str) -> bool {
        glob(&self.database, database)
            && self.collection.as_ref().is_none_or(|pattern| glob(pattern, collection))
    }

    /// Whether it takes every collection of its databases.
    pub(super) fn is_whole_database(&self) -> bool {
        self.collection.as_ref().is_none_or(|pattern| pattern == "*")
    }

    /// Whether it names one database or one collection letter by letter.
    pub(super) fn is_literal(&self) -> bool {
        let whole = self.is_whole_database();
        !self.database.contains('*')
            && (whole || self.collection.as_ref().is_none_or(|pattern| !pattern.contains('*')))
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.collection {
            Some(collection) => write!(f, "{}.{collection}", self.database),
            None => write!(f, "{}", self.database),
        }
    }
}

/// Whether `*` in the pattern, standing for any run of characters, can make it the text. Never more than the product
/// of both lengths: after a mismatch only the last `*` takes one character more.
pub(super) fn glob(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    let mut last_star: Option<(usize, usize)> = None;
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            last_star = Some((p, t));
            p += 1;
        } else if pattern.get(p) == Some(&text[t]) {
            p += 1;
            t += 1;
        } else if let Some((star, taken)) = last_star {
            last_star = Some((star, taken + 1));
            p = star + 1;
            t = taken + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The obvious matcher: try every length for every star.
    pub(in crate::selection) fn model_glob(pattern: &str, text: &str) -> bool {
        match pattern.chars().next() {
            None => text.is_empty(),
            Some('*') => (0..=text.len()).any(|n| model_glob(&pattern[1..], &text[n..])),
            Some(c) => text.starts_with(c) && model_glob(&pattern[1..], &text[1..]),
        }
    }

    proptest! {
        #[test]
        fn globs_match_like_the_model(pattern in "[ab*]{0,6}", text in "[ab]{0,8}") {
            prop_assert_eq!(glob(&pattern, &text), model_glob(&pattern, &text));
        }
    }
}
