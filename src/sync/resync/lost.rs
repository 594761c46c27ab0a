//! The source's oplog no longer reaches back to where replay stands: everything is copied again, and what is on the
//! target stays readable until each new copy is complete.

use std::collections::BTreeMap;

use bson::Uuid;

use super::{give_up, place};
use crate::catalogue::Catalogue;
use crate::namespace::Namespace;
use crate::replay::window::ResumePoint;
use crate::retry::until_reached;
use crate::source::{catalog, start};
use crate::state::Audit;
use crate::status::WallTime;
use crate::stop::Stop;
use crate::sync::context::{Context, Interrupted};
use crate::sync::phase::Event;

/// Holds everything that the source has now, and goes on from its newest optime. What the target has stays where it is
/// until it is replaced.
///
/// # Errors
/// [`Interrupted`].
pub async fn everything_again(
    main: &Context,
    reason: &str,
    stop: &Stop,
) -> Result<(), Interrupted> {
    tracing::error!(reason, "everything is copied again: {reason}");
    give_up(main, stop).await?;
    let source = &main.source;
    let selection = &main.config.sync.selection;
    let start = until_reached(source.side, stop, || start::choose(source)).await?;
    let list = || catalog::read(source, selection);
    let listed = until_reached(source.side, stop, list).await?;
    let views = listed.views.clone();
    let gone: Vec<Namespace> = {
        let catalogue = main.catalogue.read();
        let gone = catalogue.views.iter().filter(|(name, _)| !views.contains_key(name));
        gone.map(|(_, view)| view.target.clone()).collect()
    };
    // Before the catalogue forgets them: after a kill in between nobody would know whose they are.
    for view in gone {
        main.definer.drop_view(&view, stop).await?;
    }
    main.catalogue.change(|catalogue| {
        *catalogue = anew(std::mem::take(catalogue), listed, reason);
    });
    main.catalogue.save()?;
    place::make_way(main, &views.values().map(|view| view.target.clone()).collect(), stop).await?;
    for view in views.values() {
        main.definer.put_view(&view.target, &view.definition.0, stop).await?;
    }
    let resume = ResumePoint {
        applied: start.apply_after,
        wall_ms: start.wall_ms,
        read_from: start.read_from,
    };
    let now = WallTime::now().as_ms();
    let begun = Event::BegunAnew { consistent_from: start.apply_after.ts };
    let phase = main.records.get().phase.next(begun)?;
    main.records.change(|record| {
        record.phase = phase;
        record.since_ms = now;
        record.resume = Some(resume);
        record.intent = None;
    })?;
    main.show(&main.records.get().phase);
    let detail = serde_json::json!({ "reason": reason, "from": start.apply_after.ts.to_string() });
    Audit::open(&main.config.state.directory)?.append("everything copied again", None, detail)?;
    Ok(())
}

/// What the source lists, all of it held, with what is known of the target. Pure.
fn anew(old: Catalogue, listed: Catalogue, reason: &str) -> Catalogue {
    let mut new = Catalogue { indexes_built: true, repair: old.repair, ..listed };
    let mut left: BTreeMap<Uuid, Namespace> = BTreeMap::new();
    for (uuid, known) in old.collections {
        match (new.collections.get_mut(&uuid), known.target_uuid) {
            (Some(collection), target_uuid) => {
                collection.target = known.target;
                collection.target_uuid = target_uuid;
                collection.widened = known.widened;
            }
            (None, Some(target_uuid)) => {
                left.insert(target_uuid, known.target);
            }
            (None, None) => {}
        }
    }
    new.repair.held.clear();
    for uuid in new.collections.keys().copied().collect::<Vec<_>>() {
        new.repair.hold(uuid, reason);
    }
    new.repair.leaving.append(&mut left);
    new
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::{Collection, Spec};

    fn collection(name: &str, target_uuid: Option<Uuid>) -> Collection {
        let name = Namespace::parse(name).unwrap();
        Collection {
            source: name.clone(),
            target: name,
            target_uuid,
            options: Spec::default(),
            widened: false,
            id_index: None,
            indexes: BTreeMap::new(),
        }
    }

    #[test]
    fn what_is_on_the_target_stays_known_until_it_is_replaced() {
        let [kept, renamed, dropped, new] = [(); 4].map(|()| Uuid::new());
        let [on_target, moved, orphan] = [(); 3].map(|()| Uuid::new());
        let mut old = Catalogue::default();
        old.collections.insert(kept, collection("a.kept", Some(on_target)));
        old.collections.insert(renamed, collection("a.before", Some(moved)));
        old.collections.insert(dropped, collection("a.dropped", Some(orphan)));
        let mut listed = Catalogue::default();
        for (uuid, name) in [(kept, "a.kept"), (renamed, "a.after"), (new, "a.new")] {
            listed.collections.insert(uuid, collection(name, None));
        }
        let all = anew(old, listed, "lost");
        assert!(all.indexes_built);
        assert_eq!(all.collections[&kept].target_uuid, Some(on_target));
        assert_eq!(all.collections[&renamed].target_uuid, Some(moved));
        assert_eq!(all.collections[&renamed].source.to_string(), "a.after");
        assert_eq!(all.collections[&renamed].target.to_string(), "a.before");
        assert_eq!(all.collections[&new].target_uuid, None);
        let held: Vec<Uuid> = all.repair.held.keys().copied().collect();
        assert_eq!(held, all.collections.keys().copied().collect::<Vec<_>>());
        assert_eq!(all.repair.leaving, [(orphan, Namespace::new("a", "dropped"))].into());
    }
}
