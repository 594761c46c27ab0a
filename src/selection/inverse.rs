//! The way back: what carries from the target to the source what a selection carries the other way.

use std::collections::BTreeSet;

use super::pattern::{Pattern, glob};
use super::{RenameRule, Selection};

/// A selection as it is written in a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inverse {
    /// `sync.include`
    pub include: Vec<String>,
    /// `sync.exclude`
    pub exclude: Vec<String>,
    /// `sync.rename`
    pub rename: Vec<RenameRule>,
}

impl Selection {
    /// What carries everything back under its old name. Not every selection has such an inverse: whoever wants one
    /// compares it with what is really there.
    #[must_use]
    pub fn inverse(&self) -> Inverse {
        let mut include = self.at_target(&self.include);
        let mut exclude = self.at_target(&self.exclude);
        let mut rename = Vec::new();
        for (from, to) in &self.databases {
            rename.push(RenameRule { from: to.clone(), to: from.clone() });
        }
        for (from, to) in &self.collections {
            rename.push(RenameRule { from: to.to_string(), to: from.to_string() });
            if self.includes(from) {
                include.extend(Pattern::parse(&to.to_string()));
            }
            // Nothing comes from there, and whatever is made there would take the name of what was renamed.
            let database = self.databases.get(&from.database).unwrap_or(&from.database);
            let left = format!("{database}.{}", from.collection);
            if !self.collections.values().any(|taken| taken.to_string() == left) {
                exclude.extend(Pattern::parse(&left));
            }
        }
        let texts = |set: BTreeSet<Pattern>| set.iter().map(ToString::to_string).collect();
        Inverse { include: texts(include), exclude: texts(exclude), rename }
    }

    /// The globs for the databases under their names on the target.
    fn at_target(&self, patterns: &BTreeSet<Pattern>) -> BTreeSet<Pattern> {
        let mut there = BTreeSet::new();
        for pattern in patterns {
            let renamed = self.databases.iter().filter(|(from, _)| glob(&pattern.database, from));
            let renamed =
                renamed.map(|(_, to)| Pattern { database: to.clone(), ..pattern.clone() });
            there.extend(renamed);
            if !self.databases.contains_key(&pattern.database) {
                there.insert(pattern.clone());
            }
        }
        there
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::namespace::Namespace;

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    fn selection(include: &[&str], exclude: &[&str], rename: &[(&str, &str)]) -> Selection {
        let rule = |(from, to): &(&str, &str)| RenameRule {
            from: (*from).to_owned(),
            to: (*to).to_owned(),
        };
        let rename: Vec<RenameRule> = rename.iter().map(rule).collect();
        Selection::new(&texts(include), &texts(exclude), &rename).unwrap()
    }

    /// Whether everything that is carried comes back under its own name, and nothing else does.
    fn comes_back(selection: &Selection, names: &[&str]) {
        let inverse = selection.inverse();
        let back = Selection::new(&inverse.include, &inverse.exclude, &inverse.rename);
        let back = back.unwrap_or_else(|errors| panic!("{inverse:?}: {errors:?}"));
        for name in names {
            let name = Namespace::parse(name).unwrap();
            let there = selection.target_of(&name);
            if selection.includes(&name) {
                assert!(back.includes(&there), "{name} as {there} by {inverse:?}");
                assert_eq!(back.target_of(&there), name, "{inverse:?}");
            } else if selection.target_of(&name) == name && !selection.may_write(&name) {
                assert!(!back.includes(&name), "{name} by {inverse:?}");
            }
        }
    }

    #[test]
    fn what_is_carried_comes_back_under_its_own_name() {
        let names = [
            "shop.orders",
            "shop.a",
            "shop.log",
            "crm.b",
            "crm.people",
            "shop_v2.x",
            "other.c",
            "shop.system.buckets.temps",
        ];
        comes_back(&selection(&["*"], &[], &[]), &names);
        comes_back(&selection(&["shop", "crm.people"], &["shop.log"], &[]), &names);
        comes_back(&selection(&["shop"], &["shop.log"], &[("shop", "sales")]), &names);
        comes_back(&selection(&["sh*", "crm"], &["*.log"], &[("shop", "sales")]), &names);
        comes_back(&selection(&["shop"], &[], &[("shop.a", "crm.b")]), &names);
        comes_back(
            &selection(&["shop"], &[], &[("shop.a", "shop.b"), ("shop.b", "shop.a")]),
            &names,
        );
        let both = [("shop", "sales"), ("shop.a", "crm.b")];
        comes_back(&selection(&["shop"], &[], &both), &names);
        assert_eq!(selection(&["shop"], &[], &both).inverse().exclude, ["sales.a"]);
    }
}
