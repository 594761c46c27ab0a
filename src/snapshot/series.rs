//! Time-series collections. Servers rename none, so a new one is made in the place of the old one, and filled from the
//! stage on the target itself: the old one stays until everything that it is replaced by is there.

use bson::{RawArray, RawArrayBuf};

use super::place::clear;
use crate::catalogue::Collection;
use crate::mongo::{Error, Side};
use crate::namespace::Namespace;
use crate::oplog::document;
use crate::retry::{Backoff, Outage, Stopped, until_reached};
use crate::source::scan::{Scan, ScanRequest, Which};
use crate::source::start;
use crate::stop::Stop;
use crate::sync::context::Context;
use crate::target::statements;

/// Buckets read at once: each may have some hundred KiB.
const BATCH_DOCUMENTS: u32 = 100;
const DUPLICATE_KEY: i32 = 11_000;
const CURSOR_NOT_FOUND: i32 = 43;
const CURSOR_KILLED: i32 = 237;

/// Makes the time-series with the buckets `place` out of the one that is staged; what was made.
pub(super) async fn put(
    context: &Context,
    staged: &Collection,
    place: &Namespace,
    stop: &Stop,
) -> Result<Collection, Stopped<Error>> {
    let (definer, target) = (&context.definer, &context.target);
    let name = place.collection.strip_prefix("system.buckets.").unwrap_or(&place.collection);
    if let Some(old) = definer.find(&Namespace::new(&place.database, name), stop).await? {
        clear(context, &old, stop).await?;
    }
    let made = definer.create(place, &staged.options.0, None, stop).await?;
    let Some(uuid) = made else {
        let text = "something has that name";
        return Err(Stopped::Failed(Error::from_code(
            Side::Target,
            format!("create {place}"),
            48,
            text,
        )));
    };
    let after = until_reached(target.side, stop, || start::end(target)).await?;
    let request = ScanRequest {
        database: staged.target.database.clone(),
        collection: Which::Name(staged.target.collection.clone()),
        natural: false,
        from_id: None,
        until_id: None,
        after,
        batch_documents: BATCH_DOCUMENTS,
    };
    let made = definer.place(place, Some(uuid));
    let (mut backoff, outage) = (Backoff::reconnect(), Outage::new(target.side));
    // The old one is gone by now. From the beginning again: what is there already is there.
    while let Err(stopped) = fill(context, &request, &made, stop).await {
        match stopped {
            Stopped::Failed(error) if may_pass(&error) => outage.report(&error),
            stopped => return Err(stopped),
        }
        stop.sleep(backoff.next_delay()).await?;
    }
    let collection =
        Collection { target: place.clone(), target_uuid: Some(uuid), ..staged.clone() };
    let specs: Vec<_> = collection.indexes.values().map(|spec| spec.0.clone()).collect();
    definer.create_indexes(&made, &specs, stop).await?;
    let staged_name = staged.target.collection.strip_prefix("system.buckets.").unwrap_or_default();
    definer.drop_time_series(&Namespace::new(&place.database, staged_name), stop).await?;
    Ok(collection)
}

/// Whether another read may succeed: an election, or a cursor that is gone.
fn may_pass(error: &Error) -> bool {
    error.is_unreachable() || matches!(error.code(), Some(CURSOR_NOT_FOUND | CURSOR_KILLED))
}

async fn fill(
    context: &Context,
    request: &ScanRequest,
    made: &statements::Place,
    stop: &Stop,
) -> Result<(), Stopped<Error>> {
    let mut scan = Scan::open(&context.target, request.clone()).await.map_err(Stopped::Failed)?;
    while let Some(batch) = scan.next().await.map_err(Stopped::Failed)? {
        stop.check()?;
        if let Ok(buckets) = batch.doc_slices() {
            insert(context, made, buckets, stop).await?;
        }
    }
    Ok(())
}

/// Writes buckets as they are. A plain insert would give those a time that hold an empty timestamp.
async fn insert(
    context: &Context,
    place: &statements::Place,
    buckets: &RawArray,
    stop: &Stop,
) -> Result<(), Stopped<Error>> {
    let action = format!("copy into {}", place.namespace);
    let (mut plain, mut odd) = (RawArrayBuf::new(), RawArrayBuf::new());
    for bucket in buckets.into_iter().filter_map(|bucket| bucket.ok()?.as_document()) {
        match document::id(bucket) {
            Some(id) if document::shape(bucket).zero_timestamp => {
                odd.push(statements::put(id, bucket));
            }
            _ => plain.push(bucket.to_owned()),
        }
    }
    let inserts = (!plain.is_empty()).then(|| place.insert(&plain));
    let puts = (!odd.is_empty()).then(|| place.update(odd, false));
    for command in inserts.into_iter().chain(puts) {
        let database = &place.namespace.database;
        let reply = context.writers.write(database, &action, command, stop).await?;
        if let Some(error) = reply.errors.iter().find(|error| error.code != DUPLICATE_KEY) {
            return Err(Stopped::Failed(Error::from_code(Side::Target, action, error.code, "")));
        }
    }
    Ok(())
}
