//! The set of target namespaces that a selection may ever write, as patterns: what the lease is for. Not only what is
//! there today: a collection that is created tomorrow is in the set as well.
//!
//! Whether two sets overlap is decided on the safe side: they are held to overlap unless it can be shown that no name
//! is in both. [`TargetSet::overlap`] says how.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::pattern::{Pattern, glob};
use super::{Selection, split_buckets};
use crate::namespace::Namespace;

/// Names on the target: a glob for databases with one for collections, less some.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Glob for the database.
    pub database: String,
    /// Glob for the collection.
    pub collection: String,
    /// Pairs of such globs that are left out.
    pub except: Vec<(String, String)>,
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.database, self.collection)
    }
}

impl Claim {
    /// Whether some name may be in both.
    fn meets(&self, other: &Self) -> bool {
        intersects(&self.database, &other.database)
            && intersects(&self.collection, &other.collection)
            && !self.except.iter().chain(&other.except).any(|(database, collection)| {
                // What is in both has its database in each of the two globs, so it is enough to cover one of them.
                (covers(database, &self.database) || covers(database, &other.database))
                    && (covers(collection, &self.collection)
                        || covers(collection, &other.collection))
            })
    }

    fn holds(&self, database: &str, collection: &str) -> bool {
        let within = |(databases, collections): (&str, &str)| {
            glob(databases, database) && glob(collections, collection)
        };
        within((&self.database, &self.collection))
            && !self.except.iter().any(|(database, collection)| within((database, collection)))
    }
}

/// The names on the target that a migration may write. Stored in its lease.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TargetSet {
    /// Whatever any of these holds is in the set.
    pub claims: Vec<Claim>,
}

impl TargetSet {
    /// A name for what may be in both sets, if anything may be.
    ///
    /// Two claims overlap if their globs for databases have a text in common, and those for collections too, unless one
    /// pattern that either leaves out covers all of that. A remainder that only several patterns cover together, or
    /// none of the names that exist, counts as overlapping.
    #[must_use]
    pub fn overlap(&self, other: &Self) -> Option<String> {
        self.claims.iter().find_map(|mine| {
            let theirs = other.claims.iter().find(|theirs| mine.meets(theirs))?;
            // The narrower of the two says more.
            let narrower = if theirs.to_string().contains('*') { mine } else { theirs };
            Some(narrower.to_string())
        })
    }

    /// Whether this name on the target is in the set. Time-series buckets are where their collection is.
    #[must_use]
    pub fn holds(&self, target: &Namespace) -> bool {
        let (_, name) = split_buckets(&target.collection);
        self.claims.iter().any(|claim| claim.holds(&target.database, name))
    }
}

impl Selection {
    /// Every name on the target that this selection may write.
    #[must_use]
    pub fn target_set(&self) -> TargetSet {
        let mut claims = Vec::new();
        for included in &self.include {
            let collection = included.collection.as_deref().unwrap_or("*");
            if included.database.contains('*') || !self.databases.contains_key(&included.database) {
                let renamed = self.databases.keys().map(|from| (from.clone(), "*".to_owned()));
                claims.push(Claim {
                    database: included.database.clone(),
                    collection: collection.to_owned(),
                    except: self.excluded(None).chain(renamed).collect(),
                });
            }
            for (from, to) in &self.databases {
                if glob(&included.database, from) {
                    claims.push(Claim {
                        database: to.clone(),
                        collection: collection.to_owned(),
                        except: self.excluded(Some((from, to))).collect(),
                    });
                }
            }
        }
        for (from, to) in &self.collections {
            if self.includes(from) {
                let (database, collection) = (to.database.clone(), to.collection.clone());
                claims.push(Claim { database, collection, except: Vec::new() });
            }
        }
        TargetSet { claims }
    }

    /// What is excluded, by its name on the target: where a database is renamed, by its new name.
    fn excluded<'a>(
        &'a self,
        renamed: Option<(&'a String, &'a String)>,
    ) -> impl Iterator<Item = (String, String)> + 'a {
        self.exclude.iter().filter_map(move |pattern: &Pattern| {
            let database = match renamed {
                Some((from, to)) => glob(&pattern.database, from).then(|| to.clone())?,
                None => pattern.database.clone(),
            };
            Some((database, pattern.collection.clone().unwrap_or_else(|| "*".to_owned())))
        })
    }
}

/// Whether some text matches both globs.
fn intersects(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    // `reached[j]`: what is read of `a` and the first j bytes of `b` have a text in common.
    let mut reached = vec![false; b.len() + 1];
    reached[0] = true;
    for (j, byte) in b.iter().enumerate() {
        reached[j + 1] = reached[j] && *byte == b'*';
    }
    for left in a {
        let before = reached.clone();
        reached[0] = before[0] && *left == b'*';
        for (j, right) in b.iter().enumerate() {
            let star = *left == b'*' || *right == b'*';
            reached[j + 1] = if star {
                // The star ends here, or takes what the other one has.
                before[j + 1] || reached[j] || before[j]
            } else {
                before[j] && left == right
            };
        }
    }
    reached[b.len()]
}

/// Whether everything that `narrow` matches is matched by `wide`. Certain when true.
fn covers(wide: &str, narrow: &str) -> bool {
    // A star of `narrow` read as a character is taken only by a star of `wide`, which takes all it stands for.
    glob(wide, narrow)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::selection::RenameRule;
    use crate::selection::pattern::tests::model_glob;
    use proptest::prelude::*;

    fn selection(include: &[&str], exclude: &[&str], rename: &[(&str, &str)]) -> Selection {
        let strings = |texts: &[&str]| -> Vec<String> {
            texts.iter().map(|text| (*text).to_owned()).collect()
        };
        let rule = |(from, to): &(&str, &str)| RenameRule {
            from: (*from).to_owned(),
            to: (*to).to_owned(),
        };
        let rename: Vec<RenameRule> = rename.iter().map(rule).collect();
        Selection::new(&strings(include), &strings(exclude), &rename).unwrap()
    }

    fn overlap(a: &Selection, b: &Selection) -> Option<String> {
        let (a, b) = (a.target_set(), b.target_set());
        let found = a.overlap(&b);
        assert_eq!(found.is_some(), b.overlap(&a).is_some(), "not symmetric");
        found
    }

    #[test]
    fn sets_meet_where_a_name_may_be_in_both() {
        let shop = selection(&["shop"], &[], &[]);
        let disjoint = [
            selection(&["crm"], &[], &[]),
            selection(&["*"], &["shop"], &[]),
            selection(&["*"], &["sh*"], &[]),
            selection(&["shop2.*"], &[], &[]),
            selection(&["shop"], &[], &[("shop", "crm")]),
            selection(&["shop.a"], &[], &[("shop.a", "crm.a")]),
            selection(&["*"], &[], &[("shop", "old")]),
        ];
        for other in &disjoint[..5] {
            assert_eq!(overlap(&shop, other), None, "{other:?}");
        }
        assert_eq!(overlap(&disjoint[6], &shop), None);
        // The collection's own name is not left out of the pattern that takes it: on the safe side.
        assert!(overlap(&shop, &disjoint[5]).is_some());
        for other in [
            selection(&["*"], &[], &[]),
            selection(&["*.a"], &[], &[]),
            selection(&["s*p.o*"], &["shop.x"], &[]),
            selection(&["crm"], &[], &[("crm", "shop")]),
            selection(&["crm.a"], &["crm.b"], &[("crm.a", "shop.b")]),
        ] {
            assert!(overlap(&shop, &other).is_some(), "{other:?}");
        }
        let orders = selection(&["shop.orders*"], &[], &[]);
        assert_eq!(overlap(&orders, &selection(&["shop.users*"], &[], &[])), None);
        assert_eq!(overlap(&shop, &orders).as_deref(), Some("shop.*"));
        assert_eq!(
            overlap(&orders, &selection(&["shop.*_1"], &[], &[])).as_deref(),
            Some("shop.orders*")
        );
    }

    #[test]
    fn buckets_are_where_their_collection_is() {
        let set = selection(&["shop.weather"], &[], &[]).target_set();
        assert!(set.holds(&Namespace::new("shop", "system.buckets.weather")));
        assert!(!set.holds(&Namespace::new("shop", "system.buckets.water")));
    }

    fn pattern() -> impl Strategy<Value = String> {
        "[ab*]{1,2}(\\.[ab*]{1,2})?"
    }

    fn selections() -> impl Strategy<Value = Selection> {
        let rename =
            prop_oneof![("[ab]{1,2}", "[ab]{1,2}"), ("[ab]\\.[ab]{1,2}", "[ab]\\.[ab]{1,2}"),];
        let lists = (
            proptest::collection::vec(pattern(), 1..3),
            proptest::collection::vec(pattern(), 0..3),
            proptest::collection::vec(rename, 0..3),
        );
        lists.prop_filter_map("no selection", |(include, exclude, rename)| {
            let rename: Vec<RenameRule> =
                rename.into_iter().map(|(from, to)| RenameRule { from, to }).collect();
            Selection::new(&include, &exclude, &rename).ok()
        })
    }

    /// Every name of one or two letters in every such database.
    fn names() -> Vec<Namespace> {
        let words = ["a", "b", "aa", "ab", "ba", "bb"];
        let pairs = words.iter().flat_map(|a| words.iter().map(move |b| (a, b)));
        pairs.map(|(database, name)| Namespace::new(*database, *name)).collect()
    }

    proptest! {
        #[test]
        fn globs_intersect_like_the_model(a in "[ab*]{0,4}", b in "[ab*]{0,4}") {
            // The shortest common text of two globs is no longer than both together.
            let texts = (0..=8_u32).flat_map(|n| (0..1_u32 << n).map(move |bits| -> String {
                (0..n).map(|i| if bits >> i & 1 == 0 { 'a' } else { 'b' }).collect()
            }));
            let common = texts.into_iter().any(|text| model_glob(&a, &text) && model_glob(&b, &text));
            prop_assert_eq!(intersects(&a, &b), common);
        }

        #[test]
        fn what_covers_matches_all(wide in "[ab*]{0,4}", narrow in "[ab*]{0,4}", text in "[ab]{0,6}") {
            if covers(&wide, &narrow) && model_glob(&narrow, &text) {
                prop_assert!(model_glob(&wide, &text));
            }
        }

        /// The promise: whatever a selection writes is in its set, and two that write the same name overlap.
        #[test]
        fn two_that_write_one_name_overlap(a in selections(), b in selections()) {
            let writes = |selection: &Selection| -> Vec<Namespace> {
                let names = names().into_iter().filter(|name| selection.includes(name));
                names.map(|name| selection.target_of(&name)).collect()
            };
            for selection in [&a, &b] {
                for target in writes(selection) {
                    prop_assert!(selection.target_set().holds(&target), "{}", target);
                }
            }
            let (first, second) = (writes(&a), writes(&b));
            if first.iter().any(|target| second.contains(target)) {
                prop_assert!(a.target_set().overlap(&b.target_set()).is_some());
            }
        }
    }
}
