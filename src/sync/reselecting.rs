//! A selection that has changed since the last start: what was added is copied like something that has diverged, what
//! was taken out stays on the target as it is and is not followed any more. A changed renaming needs a person.

use super::context::{Context, Interrupted};
use super::copying::existing_data;
use crate::catalogue::Catalogue;
use crate::config::OnExistingData;
use crate::copy::prepare;
use crate::namespace::Namespace;
use crate::retry::until_reached;
use crate::source::catalog;
use crate::state::Audit;
use crate::stop::Stop;

/// Halts if the renaming has changed: nothing may be moved on the target by other rules than it was made with.
///
/// # Errors
/// [`Interrupted::Halt`].
pub(super) fn check_renaming(context: &Context) -> Result<(), Interrupted> {
    let selection = &context.config.sync.selection;
    if context.records.get().renames == selection.rename_fingerprint() {
        return Ok(());
    }
    Err(Interrupted::Halt {
        reason: "sync.rename is not what the target was made with".into(),
        remedy: "set it back, then restart the service and `snapsync resume`; to rename what \
                 is there, forget the migration with `snapsync reset` and copy anew"
            .into(),
    })
}

/// Takes a changed selection over, if it has changed.
///
/// # Errors
/// [`Interrupted`].
pub(super) async fn take_over(context: &Context, stop: &Stop) -> Result<(), Interrupted> {
    let selection = &context.config.sync.selection;
    let record = context.records.get();
    if record.selection == selection.fingerprint() {
        return Ok(());
    }
    let source = &context.source;
    let list = || catalog::read(source, selection);
    let listed = until_reached(source.side, stop, list).await?;
    let added = added(&context.catalogue.read(), listed);
    refuse_existing(context, &added, stop).await?;
    let names = |catalogue: &Catalogue| -> Vec<String> {
        let collections = catalogue.collections.values().map(|found| found.source.to_string());
        collections.chain(catalogue.views.keys().map(ToString::to_string)).collect()
    };
    let added_names = names(&added);
    let views = added.views.clone();
    let removed_names = context.catalogue.change(|catalogue| {
        let removed = take_out(catalogue, |name| selection.includes(name));
        for (uuid, collection) in added.collections {
            catalogue.collections.insert(uuid, collection);
            catalogue.repair.expect(uuid, "it was added to the selection");
        }
        catalogue.views.extend(added.views);
        names(&removed)
    });
    context.catalogue.save()?;
    for view in views.values() {
        context.definer.put_view(&view.target, &view.definition.0, stop).await?;
    }
    let (added, removed) = (added_names.join(", "), removed_names.join(", "));
    tracing::warn!(
        added,
        removed,
        "the selection has changed; added: {added}; no longer followed, and left on the target: \
         {removed}"
    );
    let detail = serde_json::json!({ "added": added_names, "removed": removed_names });
    Audit::open(&context.config.state.directory)?.append("selection changed", None, detail)?;
    context.records.change(|record| record.selection = selection.fingerprint())?;
    super::resync::kept::show(context);
    Ok(())
}

/// What is listed and not followed yet. Pure.
fn added(followed: &Catalogue, mut listed: Catalogue) -> Catalogue {
    listed.collections.retain(|uuid, _| !followed.collections.contains_key(uuid));
    listed.views.retain(|name, _| !followed.views.contains_key(name));
    listed
}

/// Takes out what is no longer selected, and returns it. Pure.
fn take_out(catalogue: &mut Catalogue, selected: impl Fn(&Namespace) -> bool) -> Catalogue {
    let mut out = Catalogue::default();
    let gone = catalogue.collections.iter().filter(|(_, found)| !selected(&found.source));
    let gone: Vec<bson::Uuid> = gone.map(|(uuid, _)| *uuid).collect();
    for uuid in gone {
        if let Some(collection) = catalogue.forget(&uuid) {
            out.collections.insert(uuid, collection);
        }
    }
    let (stay, go) =
        std::mem::take(&mut catalogue.views).into_iter().partition(|(name, _)| selected(name));
    (catalogue.views, out.views) = (stay, go);
    out
}

async fn refuse_existing(
    context: &Context,
    added: &Catalogue,
    stop: &Stop,
) -> Result<(), Interrupted> {
    if context.config.target.on_existing_data == OnExistingData::Drop {
        // What stands there is moved aside when the copy takes its place.
        return Ok(());
    }
    let collections = added.collections.values().map(|found| found.target.clone());
    let mapped = collections.chain(added.views.values().map(|view| view.target.clone())).collect();
    let (target, selection) = (&context.target, &context.config.sync.selection);
    let look = || prepare::existing(target, selection, &mapped);
    let mut existing = until_reached(target.side, stop, look).await?;
    let catalogue = context.catalogue.read();
    existing.retain(|entry| {
        let known = entry.uuid.is_some_and(|uuid| catalogue.knows(uuid));
        mapped.contains(&entry.namespace) && !known
    });
    if existing.is_empty() { Ok(()) } else { Err(Interrupted::Exit(existing_data(&existing))) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::{Collection, Spec};
    use bson::Uuid;
    use std::collections::BTreeMap;

    fn catalogue(names: &[(Uuid, &str)]) -> Catalogue {
        let mut catalogue = Catalogue::default();
        for (uuid, name) in names {
            let name = Namespace::parse(name).unwrap();
            let collection = Collection {
                source: name.clone(),
                target: name,
                target_uuid: Some(Uuid::new()),
                widened: false,
                options: Spec::default(),
                id_index: None,
                indexes: BTreeMap::new(),
            };
            catalogue.collections.insert(*uuid, collection);
        }
        catalogue
    }

    #[test]
    fn what_is_new_comes_and_what_is_not_selected_goes() {
        let [a, b, c] = [(); 3].map(|()| Uuid::new());
        let mut followed = catalogue(&[(a, "x.a"), (b, "y.b")]);
        followed.repair.hold(b, "diverged");
        let new = added(&followed, catalogue(&[(a, "x.a"), (c, "x.c")]));
        assert_eq!(new.collections.keys().collect::<Vec<_>>(), [&c]);
        let out = take_out(&mut followed, |name| name.database == "x");
        assert_eq!(out.collections.keys().collect::<Vec<_>>(), [&b]);
        assert_eq!(followed.collections.keys().collect::<Vec<_>>(), [&a]);
        assert!(!followed.repair.is_held(&b));
    }
}
