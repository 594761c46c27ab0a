//! `[snapshot]`: what a snapshot is of, and where it goes. Only `snapsync snapshot` wants it filled in.

use std::time::Duration;

use super::error::Problem;
use super::layers::{Layered, Settings};
use super::secret::Uri;
use crate::selection::{STAGING_PREFIX, Selection, SelectionError};

/// The collection of the target database that says what the snapshot is, beside its collections.
pub const METADATA_COLLECTION: &str = "snapshot_metadata";

const SOURCE: &str = "snapshot.source_database";
const TARGET: &str = "snapshot.target_database";
const COLLECTIONS: &str = "snapshot.collections";

/// `[snapshot]`
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The database on the source.
    pub source_database: String,
    /// The database on the target.
    pub target_database: String,
    /// The collections; empty = all.
    pub collections: Vec<String>,
    /// What people call the source; may be empty.
    pub source_cluster: String,
    /// What people call the target; may be empty.
    pub target_cluster: String,
    /// How often a collection is tried.
    pub attempts: u32,
    /// The pause between two attempts.
    pub retry_delay: Duration,
    /// The time after which it fails.
    pub deadline: Duration,
    /// Collections copied at the same time.
    pub parallel_collections: usize,
}

impl Snapshot {
    /// What the settings say, checked or not.
    pub(super) fn of(settings: &Settings) -> Self {
        let text = |key| settings.text(key).clone();
        let number = |key| *settings.integer(key);
        Self {
            source_database: text(SOURCE),
            target_database: text(TARGET),
            collections: settings.list(COLLECTIONS).clone(),
            source_cluster: text("snapshot.source_cluster"),
            target_cluster: text("snapshot.target_cluster"),
            attempts: u32::try_from(number("snapshot.attempts")).unwrap_or(u32::MAX),
            retry_delay: *settings.duration("snapshot.retry_delay"),
            deadline: *settings.duration("snapshot.deadline"),
            parallel_collections: usize::try_from(number("snapshot.parallel_collections"))
                .unwrap_or(usize::MAX),
        }
    }

    /// The collections with their names in both databases.
    ///
    /// # Errors
    /// Names that the server does not take, or that are never copied.
    pub fn selection(&self) -> Result<Selection, Vec<SelectionError>> {
        let Self { source_database, target_database, collections, .. } = self;
        let except = METADATA_COLLECTION;
        Selection::of_snapshot(source_database, target_database, collections, except)
    }
}

/// Checks the section. What is wrong with one side's database is said of its key.
pub(super) fn check(
    source: Option<&Uri>,
    target: Option<&Uri>,
    layered: &mut Layered,
) -> Option<Selection> {
    let keys = [SOURCE, TARGET, COLLECTIONS];
    if keys.iter().any(|key| layered.failed.contains(key)) {
        return None;
    }
    let wanted = Snapshot::of(&layered.settings);
    let mut faults: Vec<(&'static str, Problem)> = Vec::new();
    for (key, database) in [(SOURCE, &wanted.source_database), (TARGET, &wanted.target_database)] {
        if database.is_empty() {
            let text = format!("is empty; a snapshot wants a database, such as {key} = \"shop\"");
            faults.push((key, Problem::Conflict(text)));
        }
    }
    let bad = wanted.collections.iter().filter_map(|name| Some((name, bad_name(name)?)));
    faults.extend(bad.map(|(name, why)| {
        (COLLECTIONS, Problem::Conflict(format!("{name:?} cannot be in a snapshot: {why}")))
    }));
    let shared = source.zip(target).and_then(|(source, target)| source.shared_host(target));
    if let Some(host) = shared.filter(|_| wanted.source_database == wanted.target_database) {
        let text = format!(
            "is snapshot.source_database, and both URIs name the host {host}; a snapshot cannot take the place of \
             what it is of"
        );
        faults.push((TARGET, Problem::Conflict(text)));
    }
    let selection = if faults.is_empty() { wanted.selection() } else { Err(Vec::new()) };
    let selection = selection.map_err(|errors| {
        faults.extend(errors.into_iter().map(|error| (key_of(&error, &wanted), error.into())));
    });
    for (key, problem) in faults {
        let origin = layered.settings.get(key).origin.clone();
        layered.fail(key, origin, problem);
    }
    selection.ok()
}

fn key_of(error: &SelectionError, wanted: &Snapshot) -> &'static str {
    match error {
        SelectionError::BadName { name, .. } if *name == wanted.target_database => TARGET,
        _ => SOURCE,
    }
}

fn bad_name(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        Some("it is empty")
    } else if name == METADATA_COLLECTION {
        Some("that is where the snapshot itself is described")
    } else if name.starts_with("system.") || name.starts_with(STAGING_PREFIX) {
        Some("it belongs to the server or to snapsync")
    } else if name.contains(['*', '$', '\0']) {
        Some("collections are named letter by letter, without the database, and hold no * or $")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::super::uris::tests::{Fixture, URIS};
    use super::*;
    use crate::namespace::Namespace;

    const DATABASES: &str =
        "[snapshot]\nsource_database = \"shop\"\ntarget_database = \"preview\"\n";

    fn errors(fixture: &Fixture) -> String {
        Config::load_snapshot(&fixture.inputs).unwrap_err().to_string()
    }

    #[test]
    fn a_snapshot_wants_its_databases_and_nothing_of_a_migration() {
        let fixture = Fixture::new(URIS);
        let found = errors(&fixture);
        assert!(found.contains("snapshot.source_database: is empty"), "{found}");
        assert!(found.contains("snapshot.target_database: is empty"), "{found}");
        let fixture =
            Fixture::new(&format!("{URIS}{DATABASES}")).set("snapshot.collections", "a,b");
        let config = Config::load_snapshot(&fixture.inputs).unwrap().config;
        let target = config.sync.selection.target_of(&Namespace::new("shop", "a"));
        assert_eq!(target, Namespace::new("preview", "a"));
        assert_eq!(config.snapshot.attempts, 3);
        // The daemon does not look at it.
        let migration = Fixture::new(URIS).load();
        assert!(migration.sync.selection.includes(&Namespace::new("crm", "x")));
    }

    #[test]
    fn one_deployment_will_do_for_two_databases_and_not_for_one() {
        let one = URIS.replace("//b", "//a");
        let fixture = Fixture::new(&format!("{one}{DATABASES}"));
        assert!(Config::load_snapshot(&fixture.inputs).is_ok());
        assert!(fixture.errors().contains("source and target are the same"), "for a migration");
        let fixture = fixture.set("snapshot.target_database", "shop");
        assert!(errors(&fixture).contains("cannot take the place of what it is of"));
    }

    #[test]
    fn names_that_make_no_sense_are_refused_at_their_key() {
        for name in ["system.users", "snapshot_metadata", "a*", "snapsync_tmp_x"] {
            let fixture =
                Fixture::new(&format!("{URIS}{DATABASES}")).set("snapshot.collections", name);
            let found = errors(&fixture);
            assert!(found.contains("snapshot.collections") && found.contains(name), "{found}");
        }
        for (key, name) in [(SOURCE, "admin"), (TARGET, "local"), (TARGET, "a b")] {
            let fixture = Fixture::new(&format!("{URIS}{DATABASES}")).set(key, name);
            let found = errors(&fixture);
            assert!(found.contains(key) && found.contains(name), "{found}");
        }
    }
}
