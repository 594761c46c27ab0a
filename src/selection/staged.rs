//! The selection of a snapshot: some collections of one database under the same names in another one. While it is
//! made everything stands beside its place, under a name of its own, so that who reads the place sees the old snapshot
//! until the new one is complete.

use bson::{Document, Uuid};

use super::{BUCKETS_PREFIX, RenameRule, STAGING_PREFIX, Selection, SelectionError};
use crate::namespace::Namespace;

/// Names of what a snapshot is made of begin with this, and go on with the name that it gets in the end. Whoever holds
/// the lease for a database knows them for its own, also where the state directory was lost.
pub const STAGED_PREFIX: &str = "snapsync_tmp_snap_";

impl Selection {
    /// These collections of one database (all if there are none), but `except`, under another name of the database.
    ///
    /// # Errors
    /// Names that the server does not take, or that are never copied.
    pub fn of_snapshot(
        source: &str,
        target: &str,
        collections: &[String],
        except: &str,
    ) -> Result<Self, Vec<SelectionError>> {
        let mut include: Vec<String> =
            collections.iter().map(|name| format!("{source}.{name}")).collect();
        if include.is_empty() {
            include.push(source.to_owned());
        }
        // What the server keeps its functions in cannot be renamed, and so cannot be staged.
        let exclude = [except, "system.js"].map(|name| format!("{source}.{name}"));
        let rename = RenameRule { from: source.to_owned(), to: target.to_owned() };
        Self::new(&include, &exclude, &[rename])
    }

    /// The same, with everything beside its place.
    #[must_use]
    pub fn staged(&self) -> Self {
        Self { is_staged: true, ..self.clone() }
    }

    /// A name on the target that a collection has while it is in nobody's way.
    #[must_use]
    pub fn aside(&self, database: &str, uuid: Uuid) -> Namespace {
        let prefix = if self.is_staged { STAGED_PREFIX } else { STAGING_PREFIX };
        Namespace::new(database, format!("{prefix}{uuid}"))
    }

    pub(super) fn in_place(&self, target: Namespace) -> Namespace {
        if !self.is_staged || target.collection.starts_with("system.") {
            return target;
        }
        Namespace::new(&target.database, format!("{STAGED_PREFIX}{}", target.collection))
    }
}

/// The name without its stage; `None` if it has none.
#[must_use]
pub fn unstaged(name: &str) -> Option<String> {
    match name.strip_prefix(BUCKETS_PREFIX) {
        Some(series) => series.strip_prefix(STAGED_PREFIX).map(|n| format!("{BUCKETS_PREFIX}{n}")),
        None => name.strip_prefix(STAGED_PREFIX).map(str::to_owned),
    }
}

/// The definition of a view with the collections that it names in their places.
#[must_use]
pub fn unstaged_view(mut definition: Document) -> Document {
    super::views::each_name(&mut definition, |name| {
        if let Some(place) = unstaged(name) {
            *name = place;
        }
    });
    definition
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::doc;

    fn selection(collections: &[&str]) -> Selection {
        let collections: Vec<String> = collections.iter().map(|name| (*name).to_owned()).collect();
        Selection::of_snapshot("shop", "preview", &collections, "meta").unwrap()
    }

    #[test]
    fn a_snapshot_is_of_one_database_or_some_of_its_collections() {
        let includes =
            |selection: &Selection, name| selection.includes(&Namespace::new("shop", name));
        let all = selection(&[]);
        assert!(includes(&all, "a") && includes(&all, "b.c") && includes(&all, "system.buckets.t"));
        assert!(!includes(&all, "meta") && !includes(&all, "system.js"));
        assert!(!all.includes(&Namespace::new("shop2", "a")));
        let some = selection(&["a", "b.c"]);
        assert!(includes(&some, "a") && includes(&some, "b.c") && !includes(&some, "b"));
        for bad in ["", "a b", "admin", "a*"] {
            assert!(Selection::of_snapshot("shop", bad, &[], "meta").is_err(), "{bad:?}");
        }
    }

    #[test]
    fn what_is_staged_has_its_place_in_its_name() {
        let (place, staged) = (selection(&[]), selection(&[]).staged());
        for name in ["a", "b.c", "system.buckets.t"] {
            let source = Namespace::new("shop", name);
            let (place, staged) = (place.target_of(&source), staged.target_of(&source));
            assert_eq!((place.database.as_str(), place.collection.as_str()), ("preview", name));
            assert!(staged.collection.contains(STAGED_PREFIX), "{staged}");
            assert_eq!(unstaged(&staged.collection).as_deref(), Some(name));
        }
        assert_eq!(
            staged.target_of(&Namespace::new("shop", "t")).collection,
            "snapsync_tmp_snap_t"
        );
        let views = staged.target_of(&Namespace::new("shop", "system.views"));
        assert_eq!(views, Namespace::new("preview", "system.views"));
        assert_eq!(unstaged("a"), None);
        let uuid = Uuid::new();
        assert!(unstaged(&staged.aside("preview", uuid).collection).is_some());
        assert!(unstaged(&place.aside("preview", uuid).collection).is_none());
    }

    #[test]
    fn a_view_is_staged_and_put_in_its_place() {
        let definition = doc! { "viewOn": "a", "pipeline": [{ "$lookup": { "from": "b" } }] };
        let view = Namespace::new("shop", "v");
        let staged = selection(&[]).staged().view_at_target(&view, definition.clone());
        assert_eq!(staged.get_str("viewOn").unwrap(), "snapsync_tmp_snap_a");
        assert_eq!(unstaged_view(staged), definition);
    }
}
