//! From the decision to the end: there is only forward. Everything here may be done again.

use std::time::{Duration, Instant};

use bson::{Bson, Document, doc};

use super::plan::CutoverRecord;
use super::{failed, lost, note, report, show};
use crate::catalogue::{Catalogue, Collection};
use crate::mongo::{Hello, listing};
use crate::namespace::Namespace;
use crate::retry::{Stopped, until_reached};
use crate::state::Audit;
use crate::status::{CutoverOutcome, CutoverStep, HeldBack, WallTime};
use crate::stop::Stop;
use crate::sync::context::{Context, Interrupted};
use crate::sync::phase::Event;
use crate::sync::resync::kept;
use crate::telemetry::events;

const EXPIRES: &str = "expireAfterSeconds";
/// How often it is looked whether the mirror has the decision.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Brings a decided cutover to its end.
///
/// # Errors
/// [`Interrupted`]; what has been done stays done.
pub(in crate::sync) async fn finish(context: &Context, stop: &Stop) -> Result<(), Interrupted> {
    let began = Instant::now();
    show(context, |cutover| (cutover.step, cutover.reason) = (CutoverStep::Restoring, None));
    if cutover_of(context)?.reverse_from.is_none() {
        if cutover_of(context)?.source_unseen_seconds.is_some() {
            lost::drain(context, stop).await?;
        }
        // Before anything is restored: from here on the target's own TTL monitor deletes, and a way back needs that.
        let target = &context.target;
        let ask = || async { Hello::ask(target).await?.majority_optime(target) };
        let (at, _) = until_reached(target.side, stop, ask).await?;
        change(context, |cutover| cutover.reverse_from = Some(at))?;
    }
    // Whoever takes over from the mirror must not follow the source any more, and has to know where the way back
    // begins.
    mirrored(context, stop).await?;
    note(context, "the decision is on the target");
    kept::discard_all(context, stop).await?;
    let (restored, not_restored) = restore(context, stop).await?;
    context.board.update(|status| status.held_back.clone_from(&not_restored));
    note(context, &format!("restored {} settings that were held back", restored.len()));
    let now = WallTime::now().as_ms();
    change(context, |cutover| {
        if cutover.finished_ms.is_none() {
            cutover.finished_ms = Some(now);
            cutover.took(CutoverStep::Restoring, began.elapsed());
        }
    })?;
    let cutover = cutover_of(context)?;
    let made = report::make(context, &cutover, restored, not_restored, stop).await?;
    let directory = &context.config.state.directory;
    tokio::task::block_in_place(|| report::write(directory, &made))?;
    let detail = serde_json::json!({
        "final": made.final_optime.at.to_string(), "downtime_ms": made.downtime_ms,
    });
    Audit::open(directory)?.append("cut over", made.requested_by.as_deref(), detail)?;
    context.happen(Event::CutoverFinished)?;
    events::cut_over(Duration::from_millis(made.downtime_ms.unwrap_or(0)));
    note(context, "the target has taken over");
    show(context, |cutover| {
        (cutover.step, cutover.outcome) = (CutoverStep::Done, Some(CutoverOutcome::CutOver));
        cutover.report = Some(made);
    });
    // The mirror's last word is that it is over.
    mirrored(context, stop).await
}

fn cutover_of(context: &Context) -> Result<CutoverRecord, Interrupted> {
    let cutover = context.records.get().cutover;
    cutover.map(|cutover| *cutover).ok_or_else(|| failed("a cutover without its record"))
}

fn change(context: &Context, change: impl FnOnce(&mut CutoverRecord)) -> Result<(), Interrupted> {
    context.records.change(|record| {
        if let Some(cutover) = &mut record.cutover {
            change(cutover);
        }
    })?;
    Ok(())
}

/// Waits until the target holds a mirror that was begun from now on.
pub(super) async fn mirrored(context: &Context, stop: &Stop) -> Result<(), Interrupted> {
    // One that is under way may have been begun before.
    let wanted = context.records.get().mirrored + 2;
    while context.records.get().mirrored < wanted {
        context.mirror_wanted.notify_one();
        stop.sleep(LOOK_EVERY).await?;
    }
    Ok(())
}

/// Something that the source has and the target does not have yet.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Kept {
    /// Expiry by an index, and its seconds.
    Index(String, Bson),
    /// Expiry by the collection itself, and its seconds.
    Expiry(Bson),
    /// The limits of a capped collection: bytes, and documents where they are limited.
    Limits(Bson, Option<Bson>),
}

impl Kept {
    /// What it is, for people.
    fn what(&self) -> String {
        match self {
            Self::Index(name, _) => format!("expiry by the TTL index {name}"),
            Self::Expiry(_) => "expiry of documents".to_owned(),
            Self::Limits(..) => "limits of a capped collection".to_owned(),
        }
    }

    /// The change that makes the target as the source is.
    pub(crate) fn change(&self) -> Document {
        match self {
            Self::Index(name, seconds) => {
                doc! { "index": { "name": name, EXPIRES: seconds.clone() } }
            }
            Self::Expiry(seconds) => doc! { EXPIRES: seconds.clone() },
            Self::Limits(size, max) => {
                let mut change = doc! { "cappedSize": size.clone() };
                change.extend(max.iter().map(|max| ("cappedMax".to_owned(), max.clone())));
                change
            }
        }
    }

    /// Whether the target says what the source does: `found` are its options, or the specification of the index.
    fn is_in(&self, found: &Document) -> bool {
        let same = |field: &str, wanted: &Bson| {
            let found = found.get(field).and_then(number);
            found.is_some() && found == number(wanted)
        };
        match self {
            Self::Index(_, seconds) | Self::Expiry(seconds) => same(EXPIRES, seconds),
            Self::Limits(size, max) => {
                same("size", size) && max.as_ref().is_none_or(|max| same("max", max))
            }
        }
    }
}

/// Everything that is held back, in order of name.
pub(crate) fn held_back(catalogue: &Catalogue) -> Vec<(Kept, Collection)> {
    let mut found = Vec::new();
    for collection in catalogue.collections.values() {
        let options = &collection.options.0;
        let expiry = options.get(EXPIRES).cloned().map(Kept::Expiry);
        let size = options.get("size").filter(|_| collection.widened);
        let limits = size.map(|size| Kept::Limits(size.clone(), options.get("max").cloned()));
        let indexes = collection.indexes.iter().filter_map(|(name, spec)| {
            spec.0.get(EXPIRES).map(|seconds| Kept::Index(name.clone(), seconds.clone()))
        });
        let all = expiry.into_iter().chain(limits).chain(indexes);
        found.extend(all.map(|kept| (kept, collection.clone())));
    }
    found.sort_by(|(_, a), (_, b)| a.target.cmp(&b.target));
    found
}

/// Restores what is held back; what was, and what could not be.
async fn restore(
    context: &Context,
    stop: &Stop,
) -> Result<(Vec<HeldBack>, Vec<HeldBack>), Interrupted> {
    let all = held_back(&context.catalogue.read());
    let (mut restored, mut left) = (Vec::new(), Vec::new());
    for (kept, collection) in all {
        let stored = collection.target.collection.strip_prefix("system.buckets.");
        let name = stored.unwrap_or(&collection.target.collection);
        let name = Namespace::new(&collection.target.database, name);
        // What is a time-series to clients has another UUID underneath.
        let uuid = collection.target_uuid.filter(|_| stored.is_none());
        let place = context.definer.place(&name, uuid);
        match context.definer.modify(&place, &kept.change(), stop).await {
            Ok(()) => {}
            // A number that the command does not take, although it may have been made with it.
            Err(Stopped::Failed(error)) if error.code().is_some() => {
                tracing::warn!(collection = %collection.target, "{error}");
            }
            Err(stopped) => return Err(stopped.into()),
        }
        let is_restored = is_restored(context, &kept, &collection, stop).await?;
        let list = if is_restored { &mut restored } else { &mut left };
        list.push(HeldBack { collection: collection.target.to_string(), what: kept.what() });
    }
    if !left.is_empty() {
        let names: Vec<String> = left.iter().map(|left| left.collection.clone()).collect();
        let text = format!("not restored, do so by hand: {}", super::plan::named(&names));
        tracing::warn!("{text}");
        note(context, &text);
    }
    Ok((restored, left))
}

/// Whether the target says what the source did.
async fn is_restored(
    context: &Context,
    kept: &Kept,
    collection: &Collection,
    stop: &Stop,
) -> Result<bool, Interrupted> {
    let target = &context.target;
    let found = match kept {
        Kept::Expiry(_) | Kept::Limits(..) => {
            context.definer.find(&collection.target, stop).await?.map(|found| found.options)
        }
        Kept::Index(name, _) => {
            let place = &collection.target;
            let list = || listing::indexes(target, &place.database, place.collection.as_str());
            let listed = until_reached(target.side, stop, list).await?;
            listed.into_iter().find(|spec| spec.get_str("name").is_ok_and(|found| found == name))
        }
    };
    Ok(found.is_some_and(|found| kept.is_in(&found)))
}

fn number(value: &Bson) -> Option<f64> {
    match value {
        Bson::Int32(n) => Some(f64::from(*n)),
        #[expect(clippy::cast_precision_loss, reason = "seconds are far below 2^52")]
        Bson::Int64(n) => Some(*n as f64),
        Bson::Double(n) => Some(*n),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::Spec;
    use bson::Uuid;
    use std::collections::BTreeMap;

    #[test]
    fn everything_that_is_held_back_is_restored_as_the_source_has_it() {
        let index = Spec(doc! { "name": "at", EXPIRES: 60 });
        let plain = Spec(doc! { "name": "n" });
        let collection = |name: &str, options: Document| Collection {
            source: Namespace::new("a", name),
            target: Namespace::new("b", name),
            target_uuid: None,
            widened: options.contains_key("capped"),
            options: Spec(options),
            id_index: None,
            indexes: BTreeMap::from([("at".into(), index.clone()), ("n".into(), plain.clone())]),
        };
        let mut catalogue = Catalogue::default();
        let clustered = doc! { "clusteredIndex": {}, EXPIRES: 7_i64 };
        let capped = doc! { "capped": true, "size": 4096, "max": 5 };
        for (name, options) in [("y", capped), ("x", clustered)] {
            catalogue.collections.insert(Uuid::new(), collection(name, options));
        }
        let found = held_back(&catalogue);
        let changes: Vec<Document> = found.iter().map(|(kept, _)| kept.change()).collect();
        let of_index = doc! { "index": { "name": "at", EXPIRES: 60 } };
        let limits = doc! { "cappedSize": 4096, "cappedMax": 5 };
        assert_eq!(changes, [doc! { EXPIRES: 7_i64 }, of_index.clone(), limits, of_index]);
        let held = catalogue.held_back();
        assert_eq!(held.len(), found.len(), "what is shown as held back is restored");
        let limits = &found[2].0;
        assert!(limits.is_in(&doc! { "size": 4096_i64, "max": 5.0 }));
        assert!(!limits.is_in(&doc! { "size": 4096, "max": 6 }));
        assert!(!limits.is_in(&doc! { "size": 8192, "max": 5 }));
    }
}
