//! From the decision to the end: there is only forward. Everything here may be done again.

use std::time::{Duration, Instant};

use bson::{Bson, Document, doc};

use super::plan::CutoverRecord;
use super::{failed, note, report, show};
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
    // Whoever takes over from the mirror must not follow the source any more.
    mirrored(context, stop).await?;
    note(context, "the decision is on the target");
    if cutover_of(context)?.reverse_from.is_none() {
        // Before anything is restored: from here on the target's own TTL monitor deletes, and a way back needs that.
        let target = &context.target;
        let ask = || async { Hello::ask(target).await?.majority_optime(target) };
        let (at, _) = until_reached(target.side, stop, ask).await?;
        change(context, |cutover| cutover.reverse_from = Some(at))?;
    }
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
async fn mirrored(context: &Context, stop: &Stop) -> Result<(), Interrupted> {
    // One that is under way may have been begun before.
    let wanted = context.records.get().mirrored + 2;
    while context.records.get().mirrored < wanted {
        context.mirror_wanted.notify_one();
        stop.sleep(LOOK_EVERY).await?;
    }
    Ok(())
}

/// Something that expires documents on the source and not yet on the target.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::sync) struct Expiry {
    /// The index, or none if the collection itself expires them.
    pub(in crate::sync) index: Option<String>,
    seconds: Bson,
}

/// Everything that is held back, in order of name.
pub(in crate::sync) fn held_back(catalogue: &Catalogue) -> Vec<(Expiry, Collection)> {
    let mut found = Vec::new();
    for collection in catalogue.collections.values() {
        let of_collection = collection.options.0.get(EXPIRES).map(|seconds| (None, seconds));
        let of_indexes = collection.indexes.iter().filter_map(|(name, spec)| {
            spec.0.get(EXPIRES).map(|seconds| (Some(name.clone()), seconds))
        });
        for (index, seconds) in of_collection.into_iter().chain(of_indexes) {
            let expiry = Expiry { index, seconds: seconds.clone() };
            found.push((expiry, collection.clone()));
        }
    }
    found.sort_by(|(_, a), (_, b)| a.target.cmp(&b.target));
    found
}

/// The change that lets the target expire documents as the source does.
fn restoring(expiry: &Expiry) -> Document {
    match &expiry.index {
        Some(name) => doc! { "index": { "name": name, EXPIRES: expiry.seconds.clone() } },
        None => doc! { EXPIRES: expiry.seconds.clone() },
    }
}

/// Restores what is held back; what was, and what could not be.
async fn restore(
    context: &Context,
    stop: &Stop,
) -> Result<(Vec<HeldBack>, Vec<HeldBack>), Interrupted> {
    let all = held_back(&context.catalogue.read());
    let (mut restored, mut left) = (Vec::new(), Vec::new());
    for (expiry, collection) in all {
        let what = match &expiry.index {
            Some(index) => format!("expiry by the TTL index {index}"),
            None => "expiry of documents".to_owned(),
        };
        let told = |what: String| HeldBack { collection: collection.target.to_string(), what };
        let stored = collection.target.collection.strip_prefix("system.buckets.");
        let name = stored.unwrap_or(&collection.target.collection);
        let name = Namespace::new(&collection.target.database, name);
        // What is a time-series to clients has another UUID underneath.
        let uuid = collection.target_uuid.filter(|_| stored.is_none());
        let place = context.definer.place(&name, uuid);
        match context.definer.modify(&place, &restoring(&expiry), stop).await {
            Ok(()) => {}
            // A number that the command does not take, although an index may have been made with it.
            Err(Stopped::Failed(error)) if error.code().is_some() => {
                tracing::warn!(collection = %collection.target, "{error}");
            }
            Err(stopped) => return Err(stopped.into()),
        }
        if is_restored(context, &expiry, &collection, stop).await? {
            restored.push(told(what));
        } else {
            left.push(told(format!("{what}: {}", expiry.seconds)));
        }
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
    expiry: &Expiry,
    collection: &Collection,
    stop: &Stop,
) -> Result<bool, Interrupted> {
    let target = &context.target;
    let found = match &expiry.index {
        None => context.definer.find(&collection.target, stop).await?.map(|found| found.options),
        Some(name) => {
            let place = &collection.target;
            let list = || listing::indexes(target, &place.database, place.collection.as_str());
            let listed = until_reached(target.side, stop, list).await?;
            listed.into_iter().find(|spec| spec.get_str("name").is_ok_and(|found| found == name))
        }
    };
    let seconds = found.and_then(|found| found.get(EXPIRES).and_then(number));
    Ok(seconds.is_some() && seconds == number(&expiry.seconds))
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
    fn everything_that_expires_documents_is_restored_as_the_source_has_it() {
        let index = Spec(doc! { "name": "at", EXPIRES: 60 });
        let plain = Spec(doc! { "name": "n" });
        let collection = |name: &str, options: Document| Collection {
            source: Namespace::new("a", name),
            target: Namespace::new("b", name),
            target_uuid: None,
            options: Spec(options),
            id_index: None,
            indexes: BTreeMap::from([("at".into(), index.clone()), ("n".into(), plain.clone())]),
        };
        let mut catalogue = Catalogue::default();
        let clustered = doc! { "clusteredIndex": {}, EXPIRES: 7_i64 };
        catalogue.collections.insert(Uuid::new(), collection("y", Document::new()));
        catalogue.collections.insert(Uuid::new(), collection("x", clustered));
        let found = held_back(&catalogue);
        let changes: Vec<Document> = found.iter().map(|(expiry, _)| restoring(expiry)).collect();
        let of_index = doc! { "index": { "name": "at", EXPIRES: 60 } };
        assert_eq!(changes, [doc! { EXPIRES: 7_i64 }, of_index.clone(), of_index]);
        let held = catalogue.held_back();
        assert_eq!(held.len(), found.len(), "what is shown as held back is restored");
    }
}
