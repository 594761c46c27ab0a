//! Putting the staging collections of a run in their places. Both replays stand at the same window end.
//!
//! What stands in the way is noted as kept, durably, before it is moved aside; the main catalogue takes over the new
//! collections in the same write that releases them. A kill in between is made good by doing it all again: every
//! collection is looked for by its UUID, and what is in its place stays there.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bson::Uuid;

use super::kept;
use super::stays_in_place;
use crate::catalogue::repair::Kept;
use crate::mongo::Listed;
use crate::namespace::Namespace;
use crate::position::Ts;
use crate::selection::STAGING_PREFIX;
use crate::state::Audit;
use crate::status::WallTime;
use crate::stop::Stop;
use crate::sync::context::{Context, Interrupted};
use crate::telemetry::events;

/// A collection that takes its place.
#[derive(Debug, Clone, PartialEq)]
struct Member {
    /// UUID on the source.
    source_uuid: Uuid,
    /// UUID of the new collection on the target.
    made: Uuid,
    /// UUID of the collection on the target that it replaces.
    old: Option<Uuid>,
    /// Where it belongs.
    place: Namespace,
}

/// Puts everything that the run copied in its place, and releases it.
///
/// # Errors
/// [`Interrupted`]; may be done again.
pub(super) async fn all(
    main: &Context,
    run: &Context,
    at: Ts,
    stop: &Stop,
) -> Result<(), Interrupted> {
    let members = members(main, run);
    let listed = list(main, &members, stop).await?;
    check_made(&members, &listed)?;
    let (leaving, kept) = {
        let catalogue = main.catalogue.read();
        (catalogue.repair.leaving.clone(), catalogue.repair.replaced.clone())
    };
    let mut aside = in_the_way(&members, &listed, &leaving, &kept);
    if let Some(view) = aside.iter().find(|entry| entry.uuid.is_none()) {
        return Err(taken(&view.namespace));
    }
    note_kept(main, &members, &aside, &leaving, at)?;
    drop_fixed(main, &listed, &leaving, stop).await?;
    for member in &members {
        // One after another, so that each name is missing for a moment only.
        let concerns = |entry: &mut Listed| {
            entry.namespace == member.place || (entry.uuid.is_some() && entry.uuid == member.old)
        };
        let replaced: Vec<Listed> = aside.extract_if(.., concerns).collect();
        move_aside(main, &replaced, stop).await?;
        let found = listed.iter().find(|entry| entry.uuid == Some(member.made));
        if let Some(found) = found.filter(|found| found.namespace != member.place) {
            let place = main.definer.place(&found.namespace, found.uuid);
            main.definer.rename(&place, &member.place, stop).await?;
        }
    }
    move_aside(main, &aside, stop).await?;
    drop_abandoned(main, run, &members, &listed, stop).await?;
    release(main, run, &members)
}

/// Moves aside what has one of these names until it is replaced, where a view or a time-series is to be made that
/// cannot be made under another name. It is kept like anything that is replaced.
///
/// # Errors
/// [`Interrupted`]; may be done again.
pub(super) async fn make_way(
    main: &Context,
    names: &BTreeSet<Namespace>,
    stop: &Stop,
) -> Result<(), Interrupted> {
    for name in names {
        let buckets = Namespace::new(&name.database, format!("system.buckets.{}", name.collection));
        for name in [name, &buckets] {
            let Some(found) = main.definer.find(name, stop).await? else { continue };
            let gives_way = |uuid: &Uuid| main.catalogue.read().gives_way(*uuid);
            let Some(uuid) = found.uuid.filter(gives_way) else { continue };
            if stays_in_place(name) {
                // That of this very collection goes when it is made anew.
                if main.catalogue.read().repair.is_leaving(&uuid) {
                    main.definer.drop_collection(name, uuid, stop).await?;
                }
                continue;
            }
            let kept = kept_of(&found, uuid, name.clone());
            let kept_as = kept.kept_as.clone();
            main.catalogue.change(|catalogue| {
                catalogue.repair.replaced.retain(|kept| kept.uuid != uuid);
                catalogue.repair.replaced.push(kept);
            });
            main.catalogue.save()?;
            let place = main.definer.place(name, Some(uuid));
            main.definer.rename(&place, &kept_as, stop).await?;
            main.catalogue.change(|catalogue| catalogue.moved(uuid, &kept_as));
            main.catalogue.save()?;
        }
    }
    Ok(())
}

/// How a collection is kept that was in use as `collection`.
fn kept_of(entry: &Listed, uuid: Uuid, collection: Namespace) -> Kept {
    let kept_as = format!("{STAGING_PREFIX}{uuid}");
    let kept_as = Namespace::new(&entry.namespace.database, kept_as);
    Kept { collection, kept_as, uuid, since_ms: WallTime::now().as_ms() }
}

/// Nothing is moved for copies that somebody removed: what they were to replace stays until there are others.
fn check_made(members: &[Member], listed: &[Listed]) -> Result<(), Interrupted> {
    let there: BTreeSet<Uuid> = listed.iter().filter_map(|entry| entry.uuid).collect();
    let gone: Vec<Uuid> = members
        .iter()
        .filter(|member| !there.contains(&member.made))
        .map(|member| member.source_uuid)
        .collect();
    if gone.is_empty() {
        return Ok(());
    }
    let what = "copies of a resync are gone from where they were made".to_owned();
    Err(Interrupted::Diverged { collections: gone, what })
}

/// Gives what is replaced the name that it is kept under.
async fn move_aside(main: &Context, entries: &[Listed], stop: &Stop) -> Result<(), Interrupted> {
    let kept = main.catalogue.read().repair.replaced.clone();
    for entry in entries {
        let kept = kept.iter().find(|kept| Some(kept.uuid) == entry.uuid);
        if let Some(kept) = kept.filter(|kept| kept.kept_as != entry.namespace) {
            let place = main.definer.place(&entry.namespace, entry.uuid);
            main.definer.rename(&place, &kept.kept_as, stop).await?;
            // It may be that of another one which waits for its own run. Durable with the release.
            main.catalogue.change(|catalogue| catalogue.moved(kept.uuid, &kept.kept_as));
        }
    }
    Ok(())
}

/// What the source no longer has and what cannot have another name cannot be kept.
async fn drop_fixed(
    main: &Context,
    listed: &[Listed],
    leaving: &BTreeMap<Uuid, Namespace>,
    stop: &Stop,
) -> Result<(), Interrupted> {
    for entry in listed.iter().filter(|entry| stays_in_place(&entry.namespace)) {
        if let Some(uuid) = entry.uuid.filter(|uuid| leaving.contains_key(uuid)) {
            main.definer.drop_collection(&entry.namespace, uuid, stop).await?;
        }
    }
    Ok(())
}

/// Those of the run that the source still has.
fn members(main: &Context, run: &Context) -> Vec<Member> {
    let selection = &main.config.sync.selection;
    let (own, catalogue) = (run.catalogue.read(), main.catalogue.read());
    let members = own.collections.iter().filter_map(|(uuid, made)| {
        let current = catalogue.collections.get(uuid)?;
        Some(Member {
            source_uuid: *uuid,
            made: made.target_uuid?,
            old: current.target_uuid,
            place: selection.target_of(&current.source),
        })
    });
    members.collect()
}

/// Everything in the databases concerned.
async fn list(main: &Context, members: &[Member], stop: &Stop) -> Result<Vec<Listed>, Interrupted> {
    let mut databases: Vec<&str> =
        members.iter().map(|member| member.place.database.as_str()).collect();
    let leaving = main.catalogue.read().repair.leaving.clone();
    databases.extend(leaving.values().map(|name| name.database.as_str()));
    databases.sort_unstable();
    databases.dedup();
    let mut listed = Vec::new();
    for database in databases {
        listed.extend(main.definer.list(database, stop).await?);
    }
    Ok(listed)
}

/// What is moved aside: whatever has the name of a member, the collection that a member replaces, wherever it is, and
/// what the source does not have any more. Pure.
fn in_the_way(
    members: &[Member],
    listed: &[Listed],
    leaving: &BTreeMap<Uuid, Namespace>,
    kept: &[Kept],
) -> Vec<Listed> {
    let is_new = |uuid: Uuid| members.iter().any(|member| member.made == uuid);
    let by_name: BTreeMap<&Namespace, &Member> =
        members.iter().map(|member| (&member.place, member)).collect();
    let concerned = listed.iter().filter(|entry| {
        // The view of a time-series collection comes and goes with its buckets.
        if entry.kind == "timeseries" || entry.namespace.collection.starts_with("system.") {
            return false;
        }
        if entry.uuid.is_some_and(is_new) {
            return false;
        }
        let replaced =
            members.iter().any(|member| entry.uuid.is_some() && member.old == entry.uuid);
        let leaves = entry.uuid.is_some_and(|uuid| leaving.contains_key(&uuid));
        by_name.contains_key(&entry.namespace) || replaced || leaves
    });
    // What was moved aside before a kill is where it belongs.
    let moved = |entry: &&Listed| {
        kept.iter().any(|kept| Some(kept.uuid) == entry.uuid && kept.kept_as == entry.namespace)
    };
    concerned.filter(|entry| !moved(entry)).cloned().collect()
}

fn taken(view: &Namespace) -> Interrupted {
    Interrupted::Halt {
        reason: format!(
            "a resync cannot give {view} its name: a view of that name is on the target"
        ),
        remedy: "drop that view on the target, then `snapsync resume`".into(),
    }
}

fn note_kept(
    main: &Context,
    members: &[Member],
    aside: &[Listed],
    leaving: &BTreeMap<Uuid, Namespace>,
    at: Ts,
) -> Result<(), Interrupted> {
    main.catalogue.change(|catalogue| {
        let repair = &mut catalogue.repair;
        if let Some(run) = &mut repair.run {
            run.swapping_at = Some(at);
        }
        for entry in aside {
            let Some(uuid) = entry.uuid else { continue };
            if repair.replaced.iter().any(|kept| kept.uuid == uuid) {
                continue;
            }
            // It may have been moved out of the way before.
            let replacing = members.iter().find(|member| member.old == Some(uuid));
            let name = replacing.map(|member| &member.place).or_else(|| leaving.get(&uuid));
            let is_out_of_the_way = entry.namespace.collection.starts_with(STAGING_PREFIX);
            let name = name.filter(|_| is_out_of_the_way).unwrap_or(&entry.namespace);
            let collection = name.clone();
            repair.replaced.push(kept_of(entry, uuid, collection));
        }
    });
    Ok(main.catalogue.save()?)
}

/// Copies of what the source has dropped meanwhile go.
async fn drop_abandoned(
    main: &Context,
    run: &Context,
    members: &[Member],
    listed: &[Listed],
    stop: &Stop,
) -> Result<(), Interrupted> {
    let made: Vec<_> = run.catalogue.read().collections.values().cloned().collect();
    for collection in made {
        let Some(uuid) = collection.target_uuid else { continue };
        if members.iter().any(|member| member.made == uuid) {
            continue;
        }
        let found = listed.iter().find(|entry| entry.uuid == Some(uuid));
        let name = found.map_or(&collection.target, |entry| &entry.namespace);
        main.definer.drop_collection(name, uuid, stop).await?;
    }
    Ok(())
}

/// The main catalogue takes over: one durable step.
fn release(main: &Context, run: &Context, members: &[Member]) -> Result<(), Interrupted> {
    let own = run.catalogue.read().collections.clone();
    let begun_ms = main.catalogue.read().repair.run.as_ref().map_or(0, |run| run.begun_ms);
    let took_ms = WallTime::now().as_ms().saturating_sub(begun_ms).max(0).unsigned_abs();
    let names: Vec<String> = main.catalogue.change(|catalogue| {
        let mut names = Vec::with_capacity(members.len());
        for member in members {
            let current = catalogue.collections.get_mut(&member.source_uuid);
            let (Some(current), Some(made)) = (current, own.get(&member.source_uuid)) else {
                continue;
            };
            names.push(current.source.to_string());
            let source = current.source.clone();
            *current = made.clone();
            current.source = source;
            current.target.clone_from(&member.place);
            catalogue.repair.held.remove(&member.source_uuid);
        }
        catalogue.repair.leaving.clear();
        catalogue.repair.end_run();
        names
    });
    main.catalogue.save()?;
    for name in &names {
        events::resync_finished(name, Duration::from_millis(took_ms));
    }
    let detail = serde_json::json!({ "collections": names });
    Audit::open(&main.config.state.directory)?.append("resync finished", None, detail)?;
    kept::show(main);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(name: &str, uuid: Uuid) -> Listed {
        Listed {
            namespace: Namespace::parse(name).unwrap(),
            kind: "collection".into(),
            uuid: Some(uuid),
            options: bson::Document::new(),
            id_index: None,
        }
    }

    #[test]
    fn what_stands_in_the_way_is_moved_and_what_is_in_its_place_is_not() {
        let [made, old, foreign, gone, other] = [(); 5].map(|()| Uuid::new());
        let place = Namespace::new("a", "b");
        let member = Member { source_uuid: Uuid::new(), made, old: Some(old), place };
        let kept_as = Namespace::new("a", "snapsync_tmp_2");
        let kept = Kept { collection: Namespace::new("a", "b"), kept_as, uuid: old, since_ms: 0 };
        let names = |entries: &[Listed], leaving: &BTreeMap<Uuid, Namespace>| -> Vec<String> {
            let kept = std::slice::from_ref(&kept);
            let aside = in_the_way(std::slice::from_ref(&member), entries, leaving, kept);
            aside.iter().map(|entry| entry.namespace.to_string()).collect()
        };
        let none = BTreeMap::new();
        let staging = listed("a.snapsync_tmp_1", made);
        assert_eq!(names(&[staging.clone(), listed("a.b", old)], &none), ["a.b"]);
        // Renamed by somebody, and something else took its name.
        let both = [staging.clone(), listed("a.b", foreign), listed("a.c", old)];
        assert_eq!(names(&both, &none), ["a.b", "a.c"]);
        assert_eq!(names(&[staging, listed("a.c", other)], &none), [""; 0]);
        // After a kill in between.
        let halfway = [listed("a.b", made), listed("a.snapsync_tmp_2", old)];
        assert_eq!(names(&halfway, &none), [""; 0]);
        // Moved out of the way of something else before, and not kept yet.
        let before = [listed("a.snapsync_tmp_3", old)];
        assert_eq!(names(&before, &none), ["a.snapsync_tmp_3"]);
        let leaving = BTreeMap::from([(gone, Namespace::new("a", "d"))]);
        assert_eq!(names(&[listed("a.d", gone)], &leaving), ["a.d"]);
    }
}
