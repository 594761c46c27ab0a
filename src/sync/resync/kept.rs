//! What resyncs replaced: kept for `resync.keep_replaced`, listed in the status, dropped after that or by an operator.

use std::time::Duration;

use crate::catalogue::repair::Kept;
use crate::state::Audit;
use crate::status::{Replaced, WallTime};
use crate::stop::Stop;
use crate::sync::context::{Context, Interrupted};

/// Shows what is being copied again and what is kept.
pub fn show(main: &Context) {
    let keep = main.config.resync.keep_replaced;
    let (copying, replaced, resyncs) = {
        let catalogue = main.catalogue.read();
        let repair = &catalogue.repair;
        let replaced = repair.replaced.iter().map(|kept| Replaced {
            collection: kept.collection.to_string(),
            kept_as: kept.kept_as.to_string(),
            until: WallTime::from_ms(until_ms(kept, keep)),
        });
        (catalogue.copying(), replaced.collect(), repair.resyncs)
    };
    main.board.update(|status| {
        status.copying = copying;
        status.replaced = replaced;
        status.totals.resyncs = resyncs;
    });
}

fn until_ms(kept: &Kept, keep: Duration) -> i64 {
    kept.since_ms.saturating_add(i64::try_from(keep.as_millis()).unwrap_or(i64::MAX))
}

/// Drops what has been kept long enough.
///
/// # Errors
/// [`Interrupted`].
pub async fn expire(main: &Context, stop: &Stop) -> Result<(), Interrupted> {
    let keep = main.config.resync.keep_replaced;
    let now = WallTime::now().as_ms();
    discard(main, |kept| until_ms(kept, keep) <= now, "expired", stop).await.map(drop)
}

/// Drops everything that is kept; returns how many collections that were.
///
/// # Errors
/// [`Interrupted`].
pub async fn discard_all(main: &Context, stop: &Stop) -> Result<usize, Interrupted> {
    discard(main, |_| true, "discarded", stop).await
}

async fn discard(
    main: &Context,
    which: impl Fn(&Kept) -> bool,
    event: &str,
    stop: &Stop,
) -> Result<usize, Interrupted> {
    let due: Vec<Kept> = {
        let catalogue = main.catalogue.read();
        // While collections take their places, what is moved aside is still being moved.
        let swapping = catalogue.repair.run.as_ref().is_some_and(|run| run.swapping_at.is_some());
        let due = catalogue.repair.replaced.iter().filter(|kept| !swapping && which(kept));
        due.cloned().collect()
    };
    if due.is_empty() {
        return Ok(0);
    }
    for kept in &due {
        main.definer.drop_collection(&kept.kept_as, kept.uuid, stop).await?;
    }
    main.catalogue.change(|catalogue| {
        catalogue.repair.replaced.retain(|kept| !due.contains(kept));
    });
    main.catalogue.save()?;
    let names: Vec<String> = due.iter().map(|kept| kept.collection.to_string()).collect();
    tracing::info!(collections = names.join(", "), "dropped what resyncs had replaced");
    let detail = serde_json::json!({ "collections": names });
    Audit::open(&main.config.state.directory)?.append(event, None, detail)?;
    show(main);
    Ok(due.len())
}
