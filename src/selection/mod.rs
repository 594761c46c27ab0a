//! What is copied and what it is called on the target: the include and exclude globs and the rename rules.
//!
//! Pure: names in, names out. If this is wrong, either data is missing on the target or data that nobody asked for
//! is written there, so every rule has a test against a slow and obvious model.

mod fingerprint;
mod inverse;
mod pattern;
mod rename;
mod staged;
mod target_set;
mod views;

use std::collections::{BTreeMap, BTreeSet};

use crate::namespace::Namespace;
use pattern::{Pattern, glob};
use rename::renames;

pub use inverse::Inverse;
pub use rename::RenameRule;
pub use staged::{STAGED_PREFIX, unstaged, unstaged_view};
pub use target_set::{Claim, TargetSet};
pub use views::names_in_view;

/// Databases that are never copied, whatever the globs say: the server's own and snapsync's.
pub const NEVER_COPIED: [&str; 4] = ["admin", "config", "local", "snapsync"];

/// Collections with this prefix are snapsync's staging on a target and are never part of a source.
pub const STAGING_PREFIX: &str = "snapsync_tmp_";

/// What comes before a time-series collection's name to give the collection that holds its data.
const BUCKETS_PREFIX: &str = "system.buckets.";

/// The only `system.*` collections, besides time-series buckets, that belong to user data.
const SYSTEM_USER_DATA: [&str; 2] = ["system.views", "system.js"];

/// The namespaces to carry and their names on the target. Build it with [`Selection::new`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection {
    include: BTreeSet<Pattern>,
    exclude: BTreeSet<Pattern>,
    databases: BTreeMap<String, String>,
    collections: BTreeMap<Namespace, Namespace>,
    /// Everything has a name of its own on the target, beside its place.
    is_staged: bool,
}

/// What is wrong with a selection. The message names the entry and the mend; [`SelectionError::key`] names the key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectionError {
    /// `include` holds nothing.
    #[error("nothing is included; write [\"*\"] for everything")]
    NothingIncluded,
    /// A glob that cannot match anything.
    #[error(
        "{pattern:?} is not a glob for a database (\"shop\") or a collection (\"shop.orders*\")"
    )]
    Malformed {
        /// The key it stands in.
        key: &'static str,
        /// The entry as it is written.
        pattern: String,
    },
    /// A glob that asks for a database which is never copied.
    #[error("{pattern:?} can never be copied; take it out")]
    NeverCopied {
        /// The entry as it is written.
        pattern: String,
    },
    /// One side of a rename is not a usable name.
    #[error("{name:?} cannot be renamed from or to: {reason}")]
    BadName {
        /// The side as it is written.
        name: String,
        /// Why not.
        reason: &'static str,
    },
    /// A database renamed to a collection or the other way round.
    #[error(
        "{from:?} to {to:?} mixes a database and a collection; write two of the same kind, such as \
         {{ from = \"shop\", to = \"shop_v2\" }} or {{ from = \"shop.a\", to = \"crm.b\" }}"
    )]
    MixedKinds {
        /// Source side.
        from: String,
        /// Target side.
        to: String,
    },
    /// Two rules for one source.
    #[error("{from:?} is renamed twice; keep one rule")]
    RenamedTwice {
        /// The source named twice.
        from: String,
    },
    /// Two sources that would be one on the target.
    #[error("{first} and {second} would both become {target} on the target; rename or exclude one")]
    Collision {
        /// One source, a namespace or a database.
        first: String,
        /// The other source.
        second: String,
        /// Where both would be.
        target: String,
    },
}

impl SelectionError {
    /// The configuration key to mend: `sync.include`, `sync.exclude` or `sync.rename`.
    #[must_use]
    pub fn key(&self) -> &'static str {
        match self {
            Self::NothingIncluded | Self::NeverCopied { .. } => "sync.include",
            Self::Malformed { key, .. } => key,
            Self::BadName { .. }
            | Self::MixedKinds { .. }
            | Self::RenamedTwice { .. }
            | Self::Collision { .. } => "sync.rename",
        }
    }
}

impl Selection {
    /// Builds a selection from what the configuration says.
    ///
    /// # Errors
    ///
    /// All that is wrong, at once: malformed globs, an empty `include`, a database that is never copied, rules that
    /// are no names, and two sources for one target as far as the names alone can show it. For what only a listing of
    /// the source can show, see [`Selection::check_collisions`].
    pub fn new(
        include: &[String],
        exclude: &[String],
        rename: &[RenameRule],
    ) -> Result<Self, Vec<SelectionError>> {
        let mut errors = Vec::new();
        if include.is_empty() {
            errors.push(SelectionError::NothingIncluded);
        }
        let include = patterns("sync.include", include, &mut errors);
        for pattern in include.iter().filter(|p| NEVER_COPIED.contains(&p.database.as_str())) {
            errors.push(SelectionError::NeverCopied { pattern: pattern.to_string() });
        }
        let exclude = patterns("sync.exclude", exclude, &mut errors);
        let (databases, collections) = renames(rename, &mut errors);
        let selection = Self { include, exclude, databases, collections, is_staged: false };
        // Collisions seen through broken rules would only repeat the first complaint.
        if errors.is_empty() {
            errors.extend(selection.visible_collisions());
        }
        if errors.is_empty() { Ok(selection) } else { Err(errors) }
    }

    /// Whether this source namespace is carried. Time-series buckets follow the collection they belong to.
    ///
    /// A view is asked for under its own name; `system.views` answers only for the collection of definitions itself.
    /// The servers' own temporaries (of `$out`, `convertToCapped`) are carried until they get their name.
    #[must_use]
    pub fn includes(&self, namespace: &Namespace) -> bool {
        if NEVER_COPIED.contains(&namespace.database.as_str()) {
            return false;
        }
        let (buckets, name) = split_buckets(&namespace.collection);
        let system = name.starts_with("system.");
        let user_data = !system || (buckets.is_empty() && SYSTEM_USER_DATA.contains(&name));
        if !user_data || name.is_empty() || name.starts_with(STAGING_PREFIX) {
            return false;
        }
        if is_temporary(name) && self.may_include_database(&namespace.database) {
            return true;
        }
        let matches = |pattern: &Pattern| pattern.matches(&namespace.database, name);
        self.include.iter().any(matches) && !self.exclude.iter().any(matches)
    }

    /// Whether some collection of this database could be carried; false spares listing it.
    #[must_use]
    pub fn may_include_database(&self, database: &str) -> bool {
        !NEVER_COPIED.contains(&database)
            && self.include.iter().any(|p| glob(&p.database, database))
            && !self.exclude.iter().any(|p| p.is_whole_database() && glob(&p.database, database))
    }

    /// The name on the target of a source namespace. A rule for the collection wins over one for its database;
    /// without a rule the name stays. Time-series buckets follow the collection they belong to.
    #[must_use]
    pub fn target_of(&self, namespace: &Namespace) -> Namespace {
        let (buckets, name) = split_buckets(&namespace.collection);
        if let Some(to) = self.collections.get(&Namespace::new(&namespace.database, name)) {
            return Namespace::new(&to.database, format!("{buckets}{}", to.collection));
        }
        let database = self.databases.get(&namespace.database).unwrap_or(&namespace.database);
        let target = self.in_place(Namespace::new(database, name));
        Namespace::new(&target.database, format!("{buckets}{}", target.collection))
    }

    /// Whether some source namespace that is carried has this name on the target.
    #[must_use]
    pub fn may_write(&self, target: &Namespace) -> bool {
        let collections = self.collections.iter().filter(|(_, to)| *to == target);
        let databases = self.databases.iter().filter(|(_, to)| **to == target.database);
        let sources = collections
            .map(|(from, _)| from.clone())
            .chain(databases.map(|(from, _)| Namespace::new(from, &target.collection)))
            .chain([target.clone()]);
        let mut sources = sources.filter(|source| self.target_of(source) == *target);
        sources.any(|source| self.includes(&source))
    }

    /// Refuses a listing of the source in which two selected namespaces would be one on the target.
    ///
    /// # Errors
    ///
    /// One [`SelectionError::Collision`] for each source that comes second. Namespaces that are not selected and
    /// repetitions of the same namespace do not count.
    pub fn check_collisions(&self, namespaces: &[Namespace]) -> Result<(), Vec<SelectionError>> {
        let mut first_of: BTreeMap<Namespace, &Namespace> = BTreeMap::new();
        let mut errors = Vec::new();
        let selected: BTreeSet<&Namespace> =
            namespaces.iter().filter(|ns| self.includes(ns)).collect();
        for second in selected {
            let target = self.target_of(second);
            if let Some(first) = first_of.get(&target) {
                errors.push(collision(first, second, &target));
            } else {
                first_of.insert(target, second);
            }
        }
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    /// The databases that are concerned, on the source or under their names on the target; none where a glob leaves
    /// open which.
    #[must_use]
    pub fn named_databases(&self, on_target: bool) -> Vec<String> {
        if self.include.iter().any(|pattern| pattern.database.contains('*')) {
            return Vec::new();
        }
        let mut names: BTreeSet<String> = BTreeSet::new();
        for pattern in &self.include {
            let source = &pattern.database;
            let renamed = self.databases.get(source).filter(|_| on_target);
            names.insert(renamed.unwrap_or(source).clone());
            let moved = self.collections.iter().filter(|(from, _)| from.database == *source);
            names.extend(moved.filter(|_| on_target).map(|(_, to)| to.database.clone()));
        }
        names.into_iter().collect()
    }

    /// Collisions that show without a listing: among whole databases and among collections that the configuration
    /// names letter by letter.
    fn visible_collisions(&self) -> Vec<SelectionError> {
        let literal = || self.include.iter().filter(|p| p.is_literal());
        let mut errors = Vec::new();

        let named = literal().filter(|p| p.is_whole_database()).map(|p| &p.database);
        let databases: BTreeSet<&String> = self
            .databases
            .keys()
            .chain(named)
            .filter(|database| self.may_include_database(database))
            .collect();
        let mut first_of: BTreeMap<&String, &String> = BTreeMap::new();
        for second in databases {
            let target = self.databases.get(second).unwrap_or(second);
            if let Some(first) = first_of.get(target) {
                errors.push(collision(first, second, target));
            } else {
                first_of.insert(target, second);
            }
        }

        let named =
            literal().filter_map(|p| Some(Namespace::new(&p.database, p.collection.as_ref()?)));
        let collections: Vec<_> = self.collections.keys().cloned().chain(named).collect();
        errors.extend(self.check_collisions(&collections).err().unwrap_or_default());
        errors
    }
}

fn patterns(
    key: &'static str,
    texts: &[String],
    errors: &mut Vec<SelectionError>,
) -> BTreeSet<Pattern> {
    let mut patterns = BTreeSet::new();
    for text in texts {
        match Pattern::parse(text) {
            Some(pattern) => {
                patterns.insert(pattern);
            }
            None => errors.push(SelectionError::Malformed { key, pattern: text.clone() }),
        }
    }
    patterns
}

fn collision(
    first: &impl ToString,
    second: &impl ToString,
    target: &impl ToString,
) -> SelectionError {
    SelectionError::Collision {
        first: first.to_string(),
        second: second.to_string(),
        target: target.to_string(),
    }
}

/// Splits `system.buckets.x` into `system.buckets.` and `x`; any other name has an empty first part.
fn split_buckets(collection: &str) -> (&str, &str) {
    match collection.strip_prefix(BUCKETS_PREFIX) {
        Some(name) => (BUCKETS_PREFIX, name),
        None => ("", collection),
    }
}

/// Whether a server fills this collection and then renames it to what a client asked for.
#[must_use]
pub fn is_temporary(collection: &str) -> bool {
    const MARKS: [&str; 2] = ["renameCollection", "convertToCapped"];
    let Some(rest) = collection.strip_prefix("tmp") else { return false };
    if rest.starts_with(".agg_out.") || rest.starts_with(".mr.") {
        return true;
    }
    // Five random letters or digits, and what for.
    rest.split_once('.').is_some_and(|(random, mark)| {
        random.len() == 5
            && random.bytes().all(|byte| byte.is_ascii_alphanumeric())
            && MARKS.contains(&mark.split('.').next().unwrap_or_default())
    })
}

#[cfg(test)]
mod tests {
    use super::pattern::tests::model_glob;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn temporaries_of_the_server_are_carried() {
        let selection = Selection::new(&["shop.orders".into()], &["crm".into()], &[]).unwrap();
        let includes = |database, name| selection.includes(&Namespace::new(database, name));
        let names =
            ["tmp.agg_out.05c96c63", "tmpJa5K6.convertToCapped.p", "tmpJa5K6.renameCollection"];
        for name in names {
            assert!(includes("shop", name) && !includes("crm", name), "{name}");
        }
        for name in ["tmp", "tmp.orders", "tmp_1.renameCollection", "tmpJa5K6.mine", "tmpJa5K6"] {
            assert!(!includes("shop", name), "{name}");
        }
    }

    fn strings(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    fn rules(pairs: &[(&str, &str)]) -> Vec<RenameRule> {
        let rule = |(from, to): &(&str, &str)| RenameRule {
            from: (*from).to_owned(),
            to: (*to).to_owned(),
        };
        pairs.iter().map(rule).collect()
    }

    fn selection(include: &[&str], exclude: &[&str], rename: &[(&str, &str)]) -> Selection {
        Selection::new(&strings(include), &strings(exclude), &rules(rename)).unwrap()
    }

    fn errors(include: &[&str], exclude: &[&str], rename: &[(&str, &str)]) -> Vec<SelectionError> {
        Selection::new(&strings(include), &strings(exclude), &rules(rename)).unwrap_err()
    }

    fn ns(text: &str) -> Namespace {
        Namespace::parse(text).unwrap()
    }

    fn included(include: &[&str], exclude: &[&str], names: &[&str]) -> Vec<String> {
        let selection = selection(include, exclude, &[]);
        let names = names.iter().filter(|name| selection.includes(&ns(name)));
        names.map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_star_alone_is_all_user_data_and_nothing_else() {
        let names = [
            "shop.orders",
            "shop.a.b",
            "shop.system.views",
            "shop.system.js",
            "shop.system.buckets.weather",
            "shop.tmp.agg_out.1",
        ];
        assert_eq!(included(&["*"], &[], &names), names);
        let never = [
            "admin.users",
            "config.x",
            "local.oplog.rs",
            "snapsync.lease",
            "shop.system.profile",
            "shop.system.indexBuilds",
            "shop.system.buckets.system.x",
            "shop.system.buckets.",
            "shop.snapsync_tmp_1",
            "shop.system.buckets.snapsync_tmp_1",
        ];
        assert_eq!(included(&["*", "*.*", "*.system.*"], &[], &never), [""; 0]);
    }

    #[test]
    fn globs_split_at_the_first_dot() {
        let names = ["db1.a", "db1.a.b", "db10.a", "db1.b"];
        assert_eq!(included(&["db1.*"], &[], &names), ["db1.a", "db1.a.b", "db1.b"]);
        assert_eq!(included(&["db1"], &[], &names), ["db1.a", "db1.a.b", "db1.b"]);
        assert_eq!(included(&["db1*"], &[], &names), names);
        assert_eq!(included(&["*.a*"], &[], &names), ["db1.a", "db1.a.b", "db10.a"]);
        assert_eq!(included(&["db1.a.b"], &[], &names), ["db1.a.b"]);
    }

    #[test]
    fn exclude_wins_and_buckets_follow_their_collection() {
        let names = ["shop.a", "shop.b", "shop.system.buckets.a", "shop.system.buckets.b"];
        let rest = ["shop.b", "shop.system.buckets.b"];
        assert_eq!(included(&["shop", "shop.a"], &["shop.a"], &names), rest);
        assert_eq!(included(&["shop.b"], &[], &names), rest);
    }

    #[test]
    fn a_collection_rule_wins_over_its_database_rule() {
        let selection = selection(&["*"], &[], &[("shop", "shop_v2"), ("shop.a", "crm.b")]);
        for (from, to) in [
            ("shop.a", "crm.b"),
            ("shop.a.c", "shop_v2.a.c"),
            ("shop.system.buckets.a", "crm.system.buckets.b"),
            ("shop.system.buckets.c", "shop_v2.system.buckets.c"),
            ("shop.system.views", "shop_v2.system.views"),
            ("shop_v2.a", "shop_v2.a"),
            ("other.a", "other.a"),
        ] {
            assert_eq!(selection.target_of(&ns(from)), ns(to), "{from}");
        }
    }

    #[test]
    fn refuses_two_sources_for_one_target_that_names_show() {
        let collide = |include: &[&str], rename: &[(&str, &str)]| {
            let errors = errors(include, &[], rename);
            assert!(matches!(errors[..], [SelectionError::Collision { .. }]), "{errors:?}");
        };
        collide(&["*"], &[("a", "c"), ("b", "c")]);
        collide(&["a", "c"], &[("a", "c")]);
        collide(&["a", "c.*"], &[("a", "c")]);
        collide(&["*"], &[("a.x", "c.z"), ("b.y", "c.z")]);
        collide(&["a", "c.z"], &[("a.x", "c.z")]);
        collide(&["*"], &[("a", "c"), ("b.y", "c.x"), ("a.x", "c.x")]);
        // Nobody stays where the other goes.
        selection(&["a", "b"], &[], &[("a", "b"), ("b", "a")]);
        // Only a listing can tell whether c exists, and whether it holds an x.
        let open = selection(&["*"], &[], &[("a", "c")]);
        assert_eq!(open.check_collisions(&[ns("a.x"), ns("c.y"), ns("c.y")]), Ok(()));
        let errors = open.check_collisions(&[ns("c.x"), ns("a.x")]).unwrap_err();
        assert_eq!(
            errors[0].to_string(),
            "a.x and c.x would both become c.x on the target; rename or exclude one"
        );
        // What is excluded does not count.
        let rename = rules(&[("a", "c"), ("b", "c")]);
        assert!(Selection::new(&strings(&["*"]), &strings(&["b"]), &rename).is_ok());
    }

    #[test]
    fn reports_every_error_with_its_key() {
        let found = errors(
            &["", "x.", "admin"],
            &[".x"],
            &[("a", "b.c"), ("a.*", "b.*"), ("c", "local"), ("d.x", "d.system.y"), ("e", "e e")],
        );
        let keys: Vec<_> = found.iter().map(SelectionError::key).collect();
        let (include, exclude, rename) = ("sync.include", "sync.exclude", "sync.rename");
        let wanted =
            [include, include, include, exclude, rename, rename, rename, rename, rename, rename];
        assert_eq!(keys, wanted, "{found:?}");
        assert_eq!(errors(&[], &[], &[]), [SelectionError::NothingIncluded]);
        assert!(matches!(
            errors(&["*"], &[], &[("a", "b"), ("a", "c")])[..],
            [SelectionError::RenamedTwice { .. }]
        ));
    }

    #[test]
    fn the_fingerprint_is_stable_over_order_and_releases() {
        let one = selection(&["a", "b"], &["a.x"], &[("a", "c"), ("b.x", "d.y")]);
        let other = selection(&["b", "a", "a"], &["a.x"], &[("b.x", "d.y"), ("a", "c")]);
        assert_eq!(one.fingerprint(), other.fingerprint());
        // These stand in state files: a change here is a change of format.
        assert_eq!(selection(&["*"], &[], &[]).fingerprint(), "c50eb4325b73a798");
        assert_eq!(one.fingerprint(), "d4ea017c27016387");
        assert_ne!(selection(&["a"], &["b"], &[]), selection(&["a", "b"], &[], &[]));
        let renamed = selection(&["a", "b"], &["a.x"], &[("a", "c")]);
        assert_ne!(one.rename_fingerprint(), renamed.rename_fingerprint());
        assert_ne!(one.fingerprint(), renamed.fingerprint());
        let wider = selection(&["*"], &[], &[("a", "c"), ("x", "x")]);
        assert_eq!(wider.rename_fingerprint(), renamed.rename_fingerprint());
    }

    fn model_includes(include: &[String], exclude: &[String], namespace: &Namespace) -> bool {
        let name = namespace.collection.replacen("system.buckets.", "", 1);
        let matches = |pattern: &String| match pattern.find('.') {
            None => model_glob(pattern, &namespace.database),
            Some(dot) => {
                model_glob(&pattern[..dot], &namespace.database)
                    && model_glob(&pattern[dot + 1..], &name)
            }
        };
        include.iter().any(matches) && !exclude.iter().any(matches)
    }

    fn model_target(rules: &[RenameRule], namespace: &Namespace) -> String {
        let whole = namespace.to_string().replacen("system.buckets.", "", 1);
        let buckets = if whole == namespace.to_string() { "" } else { "system.buckets." };
        if let Some(rule) = rules.iter().find(|rule| rule.from == whole) {
            let to = ns(&rule.to);
            return format!("{}.{buckets}{}", to.database, to.collection);
        }
        match rules.iter().find(|rule| rule.from == namespace.database) {
            Some(rule) => format!("{}.{}", rule.to, namespace.collection),
            None => namespace.to_string(),
        }
    }

    fn a_pattern() -> impl Strategy<Value = String> {
        "[ab*]{1,3}(\\.[ab*][ab.*]{0,3})?"
    }

    fn a_namespace() -> impl Strategy<Value = Namespace> {
        "[ab]{1,2}\\.(system\\.buckets\\.)?[ab][ab.]{0,3}".prop_map(|text| ns(&text))
    }

    fn some_rules() -> impl Strategy<Value = Vec<RenameRule>> {
        let name = prop_oneof!["[ab]{1,2}".boxed(), "[ab]{1,2}\\.[ab]{1,2}".boxed()];
        let rule = (name.clone(), name).prop_map(|(from, to)| RenameRule { from, to });
        prop::collection::vec(rule, 0..3)
    }

    proptest! {
        #[test]
        fn includes_like_the_model(
            include in prop::collection::vec(a_pattern(), 1..3),
            exclude in prop::collection::vec(a_pattern(), 0..3),
            namespace in a_namespace(),
        ) {
            let selection = Selection::new(&include, &exclude, &[]).unwrap();
            let expected = model_includes(&include, &exclude, &namespace);
            prop_assert_eq!(selection.includes(&namespace), expected);
            prop_assert!(!expected || selection.may_include_database(&namespace.database));
        }

        #[test]
        fn renames_like_the_model_and_finds_every_collision(
            rules in some_rules(),
            listing in prop::collection::btree_set(a_namespace(), 0..6),
        ) {
            let Ok(selection) = Selection::new(&["*".to_owned()], &[], &rules) else {
                return Ok(());
            };
            let listing: Vec<_> = listing.into_iter().collect();
            let mut targets = BTreeSet::new();
            let mut distinct = true;
            for namespace in &listing {
                let target = model_target(&rules, namespace);
                prop_assert_eq!(selection.target_of(namespace).to_string(), target.clone());
                distinct &= targets.insert(target);
            }
            prop_assert_eq!(selection.check_collisions(&listing).is_ok(), distinct);
        }
    }
}
