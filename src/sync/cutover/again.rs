//! Comparing again what has changed since it was compared: in rounds while writes go on, so that little is left for the
//! time without them, and the last of it while the replay stands still.
//!
//! What is taken from the notes is compared, or noted again, or kept for the next round; nothing else may become of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bson::{RawDocumentBuf, Uuid};
use futures_util::stream::{FuturesUnordered, StreamExt};

use super::acting::{Cutover, Failed};
use super::proof::{Proven, everything, judge, verifier};
use crate::copy::Pace;
use crate::position::{Still, Ts};
use crate::replay::noted::{Changed, Documents};
use crate::retry::Stopped;
use crate::status::VerifyDepth;
use crate::stop::Stop;
use crate::sync::context::Context;
use crate::sync::verifying::Asked;
use crate::verify::Verifier;
use crate::verify::changed::Again;
use crate::verify::moment::{Floor, Moment, Moments, NoMoment};

/// Rounds while writes go on, at the most.
const ROUNDS_MAX: u32 = 10;
/// A round that takes no longer leaves next to nothing for the time without writes.
const ROUND_SHORT: Duration = Duration::from_millis(500);
/// Between two rounds while the source is waited for.
const ROUND_EVERY: Duration = Duration::from_secs(1);
/// Documents of a collection that are compared in one go, and goes that are under way at once.
const AT_ONCE: usize = 1000;
const GOES_MAX: usize = 4;
/// Bytes of `_id`s that wait for others of their collection.
const WAITING_BYTES_MAX: usize = 4 << 20;

/// Compares what has changed, while writes go on, until that takes next to no time or does not become less.
///
/// # Errors
/// Something differs, or there is so much of it that the time without writes would not be enough.
pub(super) async fn catch_up(cutover: &Cutover, proven: &mut Proven) -> Result<(), Failed> {
    if cutover.options.verify != VerifyDepth::Full {
        return Ok(());
    }
    let mut before = Duration::MAX;
    for _ in 0..ROUNDS_MAX {
        let began = Instant::now();
        let documents = round(cutover, proven, &cutover.abort).await?;
        let took = began.elapsed();
        if documents > 0 {
            cutover.note(&format!(
                "compared again while writes go on: {documents} documents that had changed, {:.1} s",
                took.as_secs_f64()
            ));
        }
        if took <= ROUND_SHORT {
            return Ok(());
        }
        if took >= before {
            break;
        }
        before = took;
    }
    // About as much is left for the time without writes.
    if before <= cutover.options.timeout / 2 {
        return Ok(());
    }
    Err(Failed::GivenUp(format!(
        "what is written to the source while it is compared takes {:.0} s to compare again, too much for a \
         time-out of {:.0} s: try when less is written, or with --verify counts",
        before.as_secs_f64(),
        cutover.options.timeout.as_secs_f64()
    )))
}

/// Goes on comparing what has changed while the source is waited for, until told that it need not be any more.
///
/// # Errors
/// Something differs.
pub(super) async fn keep_up(
    cutover: &Cutover,
    proven: &mut Proven,
    until: &Stop,
) -> Result<(), Failed> {
    if cutover.options.verify != VerifyDepth::Full {
        return Ok(());
    }
    while until.sleep(ROUND_EVERY).await.is_ok() {
        round(cutover, proven, until).await?;
    }
    Ok(())
}

/// Compares what has changed up to now, while writes go on. What cannot be judged meanwhile is kept for later. Returns
/// the number of documents.
async fn round(cutover: &Cutover, proven: &mut Proven, until: &Stop) -> Result<u64, Failed> {
    let context = &cutover.context;
    if proven.left.is_none() {
        let Changed { whole, everything: all, documents } =
            tokio::task::block_in_place(|| context.noted.take());
        if all {
            return everything_anew(cutover, proven).await;
        }
        proven.whole.extend(whole);
        proven.left = documents;
    }
    // What was noted before is on the target, and in the catalogue, at the next window end.
    tokio::select! {
        cut = context.desk.ask() => {
            cut.map_err(|_| Failed::GivenUp("the replay has ended".to_owned()))?;
        }
        () = until.requested() => return Ok(0),
    }
    let verifier = verifier(cutover, Arc::new(Pace::new(0)), Asked::new(context.desk.clone()));
    for uuid in proven.whole.clone() {
        if until.is_requested() {
            return Ok(0);
        }
        let again = whole(cutover, &verifier, uuid).await?;
        let is_proven = again.unproven.is_empty();
        judge(Again { unproven: Vec::new(), ..again })?;
        if is_proven {
            proven.whole.remove(&uuid);
        }
    }
    let documents = contents(cutover, &verifier, proven, (Ts::ZERO, until)).await?;
    proven.proof.documents_again += verifier.progress.read().0 + documents;
    Ok(documents)
}

/// Compares everything once more: what has changed is not known.
///
/// # Errors
/// Something differs, or could not be proved to be equal.
pub(super) async fn everything_anew(cutover: &Cutover, proven: &mut Proven) -> Result<u64, Failed> {
    cutover.note("what has changed is not known: comparing everything again");
    proven.resyncs = cutover.context.catalogue.read().repair.resyncs;
    (proven.left, proven.whole) = (None, Default::default());
    let report = everything(cutover).await?;
    Ok(report.documents)
}

/// Compares a whole collection.
///
/// # Errors
/// A call failed, or it was given up.
pub(super) async fn whole<M: Moments>(
    cutover: &Cutover,
    verifier: &Verifier<M>,
    uuid: Uuid,
) -> Result<Again, Failed> {
    let found = cutover.context.catalogue.read().collections.get(&uuid).cloned();
    // Dropped meanwhile, there is nothing to compare.
    let Some(collection) = found else { return Ok(Again::default()) };
    let again = verifier.whole_again(uuid, &collection).await?;
    if again.different.is_empty() && again.unproven.is_empty() {
        cutover.note(&format!("equal: {} whole", collection.source));
    }
    Ok(again)
}

/// Compares the last documents that have changed; the replay stands still at `at`. Returns their number.
///
/// # Errors
/// Something differs, or could not be proved to be equal.
pub(super) async fn rest(cutover: &Cutover, proven: &mut Proven, at: Ts) -> Result<u64, Failed> {
    let context = &cutover.context;
    let verifier = verifier(cutover, Arc::new(Pace::new(0)), Standing { context: context.clone() });
    let mut documents = contents(cutover, &verifier, proven, (at, &cutover.abort)).await?;
    let Changed { whole, everything, documents: changed } =
        tokio::task::block_in_place(|| context.noted.take());
    if !whole.is_empty() || everything {
        return Err(Failed::GivenUp("definitions on the source change all the time".to_owned()));
    }
    proven.left = changed;
    documents += contents(cutover, &verifier, proven, (at, &cutover.abort)).await?;
    Ok(documents)
}

/// Compares single documents, at a cut that is at or after `from`, until there are no more, or it need not go on: the
/// others are kept. While writes go on (`from` is zero) those that cannot be judged are noted again.
async fn contents<M: Moments>(
    cutover: &Cutover,
    verifier: &Verifier<M>,
    proven: &mut Proven,
    (from, until): (Ts, &Stop),
) -> Result<u64, Failed> {
    let Some(mut documents) = proven.left.take() else { return Ok(0) };
    let mut waiting = Waiting::default();
    let mut under_way = FuturesUnordered::new();
    let mut again = Again::default();
    let (mut count, mut ended) = (0, false);
    loop {
        while !ended && under_way.len() < GOES_MAX && !until.is_requested() {
            let next = tokio::task::block_in_place(|| waiting.fill(&mut documents));
            let next =
                next.map_err(|error| Failed::GivenUp(format!("what has changed: {error}")))?;
            ended = next.is_none();
            under_way.extend(next.map(|batch| compare(cutover, verifier, batch, from)));
        }
        // The last ones of each collection.
        while (ended || until.is_requested())
            && under_way.len() < GOES_MAX
            && let Some(batch) = waiting.pop()
        {
            under_way.push(compare(cutover, verifier, batch, from));
        }
        let Some(compared) = under_way.next().await else { break };
        let ((uuid, ids), found): (Batch, Again) = compared?;
        count += ids.len() as u64;
        if from == Ts::ZERO && !found.unproven.is_empty() {
            tokio::task::block_in_place(|| cutover.context.noted.put_back(uuid, &ids));
            again.different.extend(found.different);
        } else {
            again.extend(found);
        }
        if !again.different.is_empty() {
            break;
        }
    }
    proven.left = Some(documents).filter(|_| !ended);
    judge(again)?;
    Ok(count)
}

/// Documents of one collection, as `{_id}`.
type Batch = (Uuid, Vec<RawDocumentBuf>);

async fn compare<M: Moments>(
    cutover: &Cutover,
    verifier: &Verifier<M>,
    (uuid, ids): Batch,
    from: Ts,
) -> Result<(Batch, Again), Failed> {
    let found = cutover.context.catalogue.read().collections.get(&uuid).cloned();
    let again = match found {
        Some(collection) => verifier.documents_again(uuid, &collection, &ids, from).await,
        // Dropped meanwhile, there is nothing to compare.
        None => Ok(Again::default()),
    };
    let again = again.map_err(|stopped: Stopped<_>| Failed::from(stopped))?;
    Ok(((uuid, ids), again))
}

/// Documents that wait for others of their collection, so that they are compared together.
#[derive(Debug, Default)]
struct Waiting {
    /// With the bytes that they take.
    ids: BTreeMap<Uuid, (usize, Vec<RawDocumentBuf>)>,
    bytes: usize,
}

impl Waiting {
    /// Takes documents in until there are enough of one collection; `None` if there are no more.
    fn fill(&mut self, documents: &mut Documents) -> std::io::Result<Option<Batch>> {
        while let Some((uuid, id)) = documents.next_id()? {
            let bytes = id.as_bytes().len();
            let (own, ids) = self.ids.entry(uuid).or_default();
            ids.push(id);
            *own += bytes;
            self.bytes += bytes;
            if ids.len() >= AT_ONCE {
                return Ok(self.remove(uuid));
            }
            if self.bytes >= WAITING_BYTES_MAX {
                return Ok(self.pop());
            }
        }
        Ok(None)
    }

    /// The collection that takes the most.
    fn pop(&mut self) -> Option<Batch> {
        let most = self.ids.iter().max_by_key(|(_, (bytes, _))| *bytes);
        most.map(|(uuid, _)| *uuid).and_then(|uuid| self.remove(uuid))
    }

    fn remove(&mut self, uuid: Uuid) -> Option<Batch> {
        let (bytes, ids) = self.ids.remove(&uuid)?;
        self.bytes -= bytes;
        Some((uuid, ids))
    }
}

/// The moment at which the replay stands still for a cutover.
#[derive(Debug)]
struct Standing {
    context: Context,
}

impl Moments for Standing {
    async fn next(&self, _floor: Floor) -> Result<Moment, NoMoment> {
        let found = self.context.cutover.stands_at();
        let at = std::future::ready(found).await;
        let at = at.ok_or_else(|| NoMoment::Unknown("the replay has ended".to_owned()))?;
        let held = self.context.catalogue.read().repair.held.keys().copied().collect();
        Ok(Moment::Still(Still { source: at.applied.ts, held }))
    }

    async fn still_stands(&self, still: &Still) -> Result<bool, NoMoment> {
        let at = std::future::ready(self.context.cutover.stands_at()).await;
        Ok(at.is_some_and(|at| at.applied.ts == still.source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::noted::{self, Noted};
    use bson::rawdoc;

    #[test]
    fn documents_wait_for_others_of_their_collection_in_bounded_space() {
        let folder = tempfile::tempdir().unwrap();
        let noted = Noted::default();
        noted.start(&folder.path().join("changed"), noted::BYTES_MAX).unwrap();
        let [many, few, large] = [Uuid::new(), Uuid::new(), Uuid::new()];
        for n in 0..2500 {
            noted.put_back(many, &[rawdoc! { "_id": n }]);
            if n % 1000 == 0 {
                noted.put_back(few, &[rawdoc! { "_id": n }]);
            }
        }
        for n in 0..6 {
            noted.put_back(large, &[rawdoc! { "_id": n.to_string() + &"x".repeat(1 << 20) }]);
        }
        let mut documents = noted.take().documents.unwrap();
        let mut waiting = Waiting::default();
        let mut batches = Vec::new();
        while let Some(batch) = waiting.fill(&mut documents).unwrap() {
            assert!(waiting.bytes < WAITING_BYTES_MAX);
            batches.push(batch);
        }
        batches.extend(std::iter::from_fn(|| waiting.pop()));
        let of = |uuid: Uuid| {
            let own = batches.iter().filter(|(found, _)| *found == uuid);
            own.map(|(_, ids)| ids.len()).collect::<Vec<_>>()
        };
        assert_eq!((of(many), of(few)), (vec![1000, 1000, 500], vec![3]));
        assert_eq!(of(large).iter().sum::<usize>(), 6);
        assert_eq!((waiting.bytes, batches.len()), (0, 4 + of(large).len()));
    }
}
