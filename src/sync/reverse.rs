//! The way back after a cutover: a migration of its own from the target to the old source, that needs no copy. It goes
//! on from the optime of the target at which both sides were the same, with the catalogue turned round.
//!
//! The report of the cutover is the consent to write to the old source. If this room is wrong, writes of applications
//! are missing there, or something that was written there meanwhile is lost; so it refuses on any gap.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use bson::{Document, Uuid, doc};

use super::cutover::{self, Kept, held_back, plan::named};
use super::phase::Phase;
use super::preflight::{self, Verdict};
use super::record::{Record, RecordStore, ReplicaSets, Totals};
use super::{copying, startup};
use crate::catalogue::{Catalogue, Collection, Spec, View};
use crate::config::{Config, Inputs};
use crate::durable::{DiskError, create_dir_all_durable, write_atomic};
use crate::exit::{Code, Exit};
use crate::mongo::{
    Deployment, Error, Failure, ServerFacts, Side, Version, replica_set_identity, run, same_set,
};
use crate::namespace::Namespace;
use crate::position::OpTime;
use crate::replay::window::ResumePoint;
use crate::selection::Selection;
use crate::source::writes::{self, Written};
use crate::source::{catalog, start, tail};
use crate::state::{Audit, StateError};
use crate::status::{CutoverReport, WallTime};
use crate::target::held_back::{WIDE_MAX, WIDE_SIZE, never_expires};

const CONNECTIONS: u32 = 4;
const EXPIRES: &str = "expireAfterSeconds";
/// What a user needs to write past a write block.
const BYPASS: &[&str] = &["bypassWriteBlockingMode"];

/// Where the way back is to be kept.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Its configuration.
    pub output: PathBuf,
    /// Its state directory.
    pub directory: PathBuf,
}

/// A way back that is ready to be followed.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// Where on the target it begins.
    pub from: OpTime,
    /// Collections, by their names on the old source.
    pub collections: usize,
    /// Those of them that are copied again, because the old source has expired documents since.
    pub again: Vec<String>,
    /// Whether ordinary users cannot write to the old source; `None` where that may not be asked.
    pub blocked: Option<bool>,
}

fn refuse(text: impl Into<String>) -> Exit {
    Exit::new(Code::Config, text)
}

/// Programs that are run when the way back is cut over.
const HOOKS: &str = "/etc/snapsync/reverse.d";

/// Prepares the way back.
///
/// # Errors
/// [`Exit`]; the old source is not changed before everything else has been looked at.
pub async fn prepare(config: &Config, wanted: &Wanted) -> Result<Prepared, Exit> {
    let old = &config.state.directory;
    let record = RecordStore::find(old)?;
    let record = record.filter(|record| matches!(record.phase, Phase::CutOver { .. }));
    let record = record
        .ok_or_else(|| refuse(format!("{} holds no migration that was cut over", old.display())))?;
    let report = cutover::read_report(old)
        .ok_or_else(|| refuse(format!("{} holds no report of the cutover", old.display())))?;
    if report.source_unseen_seconds.is_some() {
        return Err(refuse(
            "the source was given up for lost: there is no way back to it without a copy",
        ));
    }
    if report.migration != record.instance {
        return Err(refuse("the report is of another migration's cutover"));
    }
    if wanted.output.exists() {
        return Err(refuse(format!("{} is there already", wanted.output.display())));
    }
    if RecordStore::exists(&wanted.directory) {
        return Err(refuse(format!("{} holds a migration already", wanted.directory.display())));
    }
    let catalogue = copying::open_catalogue(old)?.read().clone();
    let turned = turned_config(config, wanted)?;
    let inverse = &turned.config.sync.selection;
    let at_start = |error: Error| Exit::at_start(&error);
    let name = "snapsync reverse";
    let source = startup::connect(&turned.config, Side::Source, name, CONNECTIONS).await?;
    let target = startup::connect(&turned.config, Side::Target, name, CONNECTIONS).await?;
    let sets = same_sides(&record, &source, &target).await?;
    let version = check_servers(&turned.config, &source, &target).await?;
    let missing = "the target's oplog does not reach back to the cutover any more";
    tail::check_held(&source, report.reverse_from)
        .await
        .map_err(|error| refuse(format!("{missing}: {error}")))?;
    let read_from = start::reads_from(&source, report.reverse_from).await;
    let read_from = read_from.map_err(|error| refuse(format!("{missing}: {error}")))?;
    let blocked = check_block(&target).await?;
    let listed = catalog::read(&target, &config.sync.selection).await.map_err(at_start)?;
    let mut back = turn_round(&catalogue, &listed, inverse)?;
    let selection = &config.sync.selection;
    expired_since(&target, &report, selection, &catalogue).await?;
    // From here on the old source is written to.
    hold_back(&target, &catalogue, version).await.map_err(at_start)?;
    let again = expired_since(&target, &report, selection, &catalogue).await?;
    for (uuid, collection) in back.collections.clone() {
        if again.contains(&collection.target) {
            back.repair.hold(uuid, "the old source expired documents of it after the cutover");
        }
    }
    let prepared = Prepared {
        from: report.reverse_from,
        collections: back.collections.len(),
        again: again.iter().map(ToString::to_string).collect(),
        blocked,
    };
    keep(wanted, &turned, back, record_of(&report, read_from, inverse, sets), old)?;
    Ok(prepared)
}

/// A configuration and its text.
#[derive(Debug)]
struct Turned {
    config: Config,
    text: String,
}

/// The configuration with both sides exchanged.
fn turned_config(config: &Config, wanted: &Wanted) -> Result<Turned, Exit> {
    let inverse = config.sync.selection.inverse();
    let list = |texts: &[String]| texts.iter().cloned().map(toml::Value::from).collect::<Vec<_>>();
    let rename = |rule: &crate::selection::RenameRule| {
        let (from, to) = (rule.from.clone(), rule.to.clone());
        toml::Value::Table(
            [("from".to_owned(), from.into()), ("to".to_owned(), to.into())].into_iter().collect(),
        )
    };
    let renames: Vec<toml::Value> = inverse.rename.iter().map(rename).collect();
    let sections: [(&str, Vec<(&str, toml::Value)>); 6] = [
        ("source", vec![("uri", config.target.uri.expose().into())]),
        ("target", vec![("uri", config.source.uri.expose().into())]),
        (
            "sync",
            vec![
                ("include", list(&inverse.include).into()),
                ("exclude", list(&inverse.exclude).into()),
                ("rename", renames.into()),
            ],
        ),
        ("state", vec![("directory", wanted.directory.display().to_string().into())]),
        // Those of the way there would lead applications the wrong way.
        ("cutover", vec![("hooks", HOOKS.into())]),
        // The daemon of the cutover may still answer there.
        ("control", vec![("listen", "".into())]),
    ];
    let mut table = toml::Table::new();
    for (section, keys) in sections {
        let keys = keys.into_iter().map(|(key, value)| (key.to_owned(), value));
        table.insert(section.to_owned(), toml::Value::Table(keys.collect()));
    }
    let written = toml::to_string(&table)
        .map_err(|error| Exit::new(Code::Internal, format!("no configuration: {error}")))?;
    let text =
        format!("# The way back; made by `snapsync reverse`. Holds connection strings.\n{written}");
    // As it will be read: what is wrong with it shows now.
    let draft = wanted.output.with_extension("draft");
    write_secret(&draft, &text)?;
    let inputs = Inputs {
        file: draft.clone(),
        file_required: true,
        env: Vec::new(),
        overrides: Vec::new(),
        credentials_directory: None,
    };
    let loaded = Config::load(&inputs);
    crate::durable::remove_if_there(&draft).map_err(StateError::from)?;
    let loaded =
        loaded.map_err(|errors| refuse(format!("the way back cannot be configured: {errors}")))?;
    Ok(Turned { config: loaded.config, text })
}

/// Writes a file that only its owner may read.
fn write_secret(path: &Path, text: &str) -> Result<(), Exit> {
    let written = write_atomic(path, text.as_bytes()).map_err(StateError::from);
    written?;
    let only_ours = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(path, only_ours)
        .map_err(|error| StateError::from(DiskError::at("protect", path)(error)).into())
}

/// Both deployments must be those of the cutover.
async fn same_sides(
    record: &Record,
    source: &Deployment,
    target: &Deployment,
) -> Result<ReplicaSets, Exit> {
    let at_start = |error: Error| Exit::at_start(&error);
    let found = ReplicaSets {
        source: replica_set_identity(source).await.map_err(at_start)?,
        target: replica_set_identity(target).await.map_err(at_start)?,
    };
    let known = &record.replica_sets;
    for (known, found, side) in
        [(&known.target, &found.source, "target"), (&known.source, &found.target, "source")]
    {
        if let (Some(known), Some(found)) = (known, found)
            && same_set(known, found) == Some(false)
        {
            return Err(refuse(format!("the {side} is another replica set than at the cutover")));
        }
    }
    Ok(found)
}

/// What the daemon would refuse at its start, and servers of different kinds; the version of the old source.
async fn check_servers(
    turned: &Config,
    source: &Deployment,
    target: &Deployment,
) -> Result<Version, Exit> {
    let at_start = |error: Error| Exit::at_start(&error);
    let (checks, new, old) =
        preflight::check(source, target, turned, true).await.map_err(at_start)?;
    let major =
        |facts: &ServerFacts| facts.feature_version.unwrap_or((facts.version.0, facts.version.1));
    if major(&new) != major(&old)
        || (new.version.0, new.version.1) != (old.version.0, old.version.1)
    {
        return Err(refuse(format!(
            "the servers are of different versions (MongoDB {} and {}): there is no way back to an older \
             one",
            new.version, old.version
        )));
    }
    let failed = checks.into_iter().filter(|check| check.verdict == Verdict::Fail);
    let failed: Vec<String> = failed.map(|check| check.text).collect();
    if failed.is_empty() { Ok(old.version) } else { Err(refuse(failed.join("; "))) }
}

/// A block on the old source keeps everybody off but those who may write past it; the user has to be one of them.
async fn check_block(target: &Deployment) -> Result<Option<bool>, Exit> {
    let at_start = |error: Error| Exit::at_start(&error);
    match writes::is_blocked(target).await {
        Ok(true) => {}
        Ok(false) => return Ok(Some(false)),
        Err(error) if error.failure == Failure::Privilege => return Ok(None),
        Err(error) => return Err(at_start(error)),
    }
    let missing = preflight::missing_on_cluster(target, BYPASS).await.map_err(at_start)?;
    if missing.is_some_and(|missing| !missing.is_empty()) {
        return Err(refuse(format!(
            "writes to the old source are blocked, and its user may not write past that: grant it the \
             role `restore`, or lift the block: {}",
            writes::LIFT_BY_HAND
        )));
    }
    Ok(Some(true))
}

/// The catalogue as seen from the other side. `listed` is what the old source holds now.
fn turn_round(
    catalogue: &Catalogue,
    listed: &Catalogue,
    inverse: &Selection,
) -> Result<Catalogue, Exit> {
    let mut back = Catalogue { indexes_built: true, ..Catalogue::default() };
    let mut lost = Vec::new();
    for (uuid, collection) in &catalogue.collections {
        let Collection { source, target, .. } = collection;
        let there = listed.collections.get(uuid);
        let comes_back = inverse.includes(target) && inverse.target_of(target) == *source;
        let (Some(target_uuid), Some(_), true) = (collection.target_uuid, there, comes_back) else {
            lost.push(target.to_string());
            continue;
        };
        let turned = Collection {
            source: target.clone(),
            target: source.clone(),
            target_uuid: Some(*uuid),
            ..collection.clone()
        };
        back.collections.insert(target_uuid, turned);
    }
    for (name, view) in &catalogue.views {
        let there = listed.views.get(name);
        let comes_back = inverse.includes(&view.target) && inverse.target_of(&view.target) == *name;
        let (Some(there), true) = (there, comes_back) else {
            lost.push(view.target.to_string());
            continue;
        };
        // Named as on the old source: that is where it goes.
        let definition = inverse.view_at_target(&view.target, there.definition.0.clone());
        let turned = View { target: name.clone(), definition: Spec(definition) };
        back.views.insert(view.target.clone(), turned);
    }
    let stores = catalogue.collections.values().map(|found| &found.source);
    let stores = stores.chain(catalogue.views.keys()).map(|name| name.database.clone());
    let has_views =
        |database: &String| listed.view_stores.contains(&inverse_database(database, catalogue));
    back.view_stores = stores.filter(has_views).collect();
    if lost.is_empty() {
        return Ok(back);
    }
    let lost = named(&lost);
    Err(refuse(format!(
        "{lost} cannot be carried back: gone from the old source, or renamed for good"
    )))
}

/// The name on the target of a database of the source.
fn inverse_database(database: &str, catalogue: &Catalogue) -> String {
    let of = catalogue.collections.values().find(|found| found.source.database == database);
    of.map_or_else(|| database.to_owned(), |found| found.target.database.clone())
}

/// The collections of the old source in which nothing but expiry has happened since the cutover.
///
/// # Errors
/// Something else was written there since, or that cannot be told any more.
async fn expired_since(
    target: &Deployment,
    report: &CutoverReport,
    selection: &Selection,
    catalogue: &Catalogue,
) -> Result<Vec<Namespace>, Exit> {
    let at_start = |error: Error| Exit::at_start(&error);
    let last = report.final_optime.at;
    tail::check_held(target, last).await.map_err(|error| {
        refuse(format!(
            "what was written to the old source since the cutover cannot be told: {error}"
        ))
    })?;
    let written = writes::written(target, last.ts, selection).await.map_err(at_start)?;
    let expires = |name: &Namespace| {
        let found = catalogue.collections.values().find(|found| found.source == *name);
        found.is_some_and(|found| {
            found.options.0.contains_key(EXPIRES)
                || found.indexes.values().any(|spec| spec.0.contains_key(EXPIRES))
        })
    };
    let is_expiry =
        |(name, what): &(&Namespace, &Written)| **what == Written::Deletes && expires(name);
    let others: Vec<String> = written
        .iter()
        .filter(|found| !is_expiry(found))
        .map(|(name, _)| name.to_string())
        .collect();
    if others.is_empty() {
        return Ok(written.into_keys().collect());
    }
    Err(refuse(format!(
        "the old source was written after the cutover, which the way back would lose: {}",
        named(&others)
    )))
}

/// Keeps the old source from removing by itself what the applications may still have.
async fn hold_back(
    target: &Deployment,
    catalogue: &Catalogue,
    version: Version,
) -> Result<(), Error> {
    let mut changes: BTreeMap<Namespace, Vec<Document>> = BTreeMap::new();
    for (kept, collection) in held_back(catalogue) {
        let name = &collection.source;
        let stored = name.collection.strip_prefix("system.buckets.").unwrap_or(&name.collection);
        let change = match kept {
            Kept::Index(index, _) => {
                doc! { "index": { "name": index, EXPIRES: never_expires(version) } }
            }
            Kept::Expiry(_) => doc! { EXPIRES: "off" },
            Kept::Limits(_, None) => doc! { "cappedSize": WIDE_SIZE },
            Kept::Limits(_, Some(_)) => doc! { "cappedSize": WIDE_SIZE, "cappedMax": WIDE_MAX },
        };
        changes.entry(Namespace::new(&name.database, stored)).or_default().push(change);
    }
    for (name, changes) in changes {
        for change in changes {
            let mut command = doc! { "collMod": &name.collection };
            command.extend(change);
            command.insert("writeConcern", doc! { "w": "majority" });
            run(target, &name.database, "hold expiry back on the old source", command).await?;
        }
    }
    Ok(())
}

fn record_of(
    report: &CutoverReport,
    read_from: OpTime,
    inverse: &Selection,
    replica_sets: ReplicaSets,
) -> Record {
    let from = report.reverse_from;
    Record {
        instance: Uuid::new().to_string(),
        phase: Phase::CatchingUp { consistent_from: from.ts },
        since_ms: WallTime::now().as_ms(),
        resume: Some(ResumePoint { applied: from, wall_ms: report.decided.as_ms(), read_from }),
        intent: None,
        selection: inverse.fingerprint(),
        renames: inverse.rename_fingerprint(),
        totals: Totals::default(),
        replica_sets,
        mirrored: 0,
        cutover: None,
    }
}

/// Makes everything durable; the record comes last, and with it the migration is there.
fn keep(
    wanted: &Wanted,
    turned: &Turned,
    back: Catalogue,
    record: Record,
    old: &Path,
) -> Result<(), Exit> {
    let directory = &wanted.directory;
    create_dir_all_durable(directory).map_err(StateError::from)?;
    let store = copying::open_catalogue_anew(directory);
    store.change(|stored| *stored = back);
    store.save()?;
    write_secret(&wanted.output, &turned.text)?;
    let detail = serde_json::json!({
        "from": record.resume.unwrap_or_default().applied.to_string(),
        "cut_over_in": old.display().to_string(),
    });
    Audit::open(directory)?.append("reverse prepared", Some("operator"), detail.clone())?;
    Audit::open(old)?.append("reverse prepared", Some("operator"), detail)?;
    RecordStore::create(directory, record)?;
    belongs_to_whoever_has(old, directory, &wanted.output)
}

/// The service, which is not run by the one who types this, has to be able to read it all.
fn belongs_to_whoever_has(old: &Path, directory: &Path, output: &Path) -> Result<(), Exit> {
    let owner =
        std::fs::metadata(old).map_err(DiskError::at("read", old)).map_err(StateError::from)?;
    let (uid, gid) = (owner.uid(), owner.gid());
    let mut all = vec![directory.to_owned(), output.to_owned()];
    let entries = std::fs::read_dir(directory).map_err(DiskError::at("list", directory));
    all.extend(entries.map_err(StateError::from)?.flatten().map(|entry| entry.path()));
    for path in all {
        let is_theirs = std::fs::metadata(&path).is_ok_and(|found| found.uid() == uid);
        if !is_theirs {
            std::os::unix::fs::chown(&path, Some(uid), Some(gid))
                .map_err(DiskError::at("hand over", &path))
                .map_err(StateError::from)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selection(rename: &[(&str, &str)]) -> Selection {
        let rule = |(from, to): &(&str, &str)| crate::selection::RenameRule {
            from: (*from).to_owned(),
            to: (*to).to_owned(),
        };
        let rules: Vec<_> = rename.iter().map(rule).collect();
        Selection::new(&["shop".into()], &[], &rules).unwrap()
    }

    #[test]
    fn a_catalogue_is_turned_round_with_uuids_and_names() {
        let (theirs, ours) = (Uuid::new(), Uuid::new());
        let forward = selection(&[("shop", "sales")]);
        let inverse = forward.inverse();
        let inverse = Selection::new(&inverse.include, &inverse.exclude, &inverse.rename).unwrap();
        let mut catalogue = Catalogue::default();
        let index = Spec(doc! { "name": "at", "key": { "at": 1 }, EXPIRES: 60 });
        let collection = Collection {
            source: Namespace::new("shop", "orders"),
            target: Namespace::new("sales", "orders"),
            target_uuid: Some(ours),
            options: Spec::default(),
            id_index: None,
            indexes: BTreeMap::from([("at".to_owned(), index)]),
            widened: false,
        };
        catalogue.collections.insert(theirs, collection);
        let mut listed = catalogue.clone();
        let view = View {
            target: Namespace::new("sales", "v"),
            definition: Spec(doc! { "viewOn": "orders", "pipeline": [] }),
        };
        listed.views.insert(Namespace::new("shop", "v"), view.clone());
        catalogue.views.insert(Namespace::new("shop", "v"), view);
        let back = turn_round(&catalogue, &listed, &inverse).unwrap();
        let turned = &back.collections[&ours];
        assert_eq!(
            (turned.source.to_string().as_str(), turned.target_uuid),
            ("sales.orders", Some(theirs))
        );
        assert_eq!(turned.target.to_string(), "shop.orders");
        assert!(turned.indexes["at"].0.contains_key(EXPIRES), "held back, as everywhere");
        assert_eq!(back.views[&Namespace::new("sales", "v")].target, Namespace::new("shop", "v"));
        assert!(back.indexes_built);
        listed.collections.clear();
        let refused = turn_round(&catalogue, &listed, &inverse).unwrap_err();
        assert!(refused.message.contains("sales.orders"), "{refused}");
        assert!(turn_round(&catalogue, &catalogue, &selection(&[])).is_err(), "another name");
    }
}
