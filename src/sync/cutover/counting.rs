//! Exact numbers of documents, counted while writes go on and carried on from there, so that nothing has to be read
//! through while the source takes no writes.
//!
//! Each collection is counted on both sides at one optime. On the source every insert and removal after that is an
//! entry, which the replay adds up; on the target nobody else writes, and the server's own numbers tell the difference:
//! they may be off, but not by another amount than before as long as the same process keeps them. Where the two do not
//! meet, or nothing is known, both sides are counted once more at the end.

use std::collections::HashMap;

use bson::{Bson, Uuid, oid::ObjectId};
use futures_util::stream::{self, StreamExt};

use super::acting::{Cutover, Failed};
use super::plan::named;
use super::proof::{Proven, judge};
use crate::catalogue::Collection;
use crate::mongo::{Error, Hello};
use crate::position::Cut;
use crate::retry::{Stopped, until_reached};
use crate::sync::deltas::count as count_fast;
use crate::sync::divergence::exact::{Counters, count_now};
use crate::verify::changed::Again;

/// Collections that are asked about at once.
const AT_ONCE: usize = 4;
/// Collections that are counted at one optime, at the most, and their documents: servers keep their history for minutes
/// only.
const GROUP_MAX: usize = 100;
const GROUP_DOCUMENTS_MAX: u64 = 1_000_000;
/// How often a collection is counted that cannot be counted at an optime, and what is waited for in between.
const COUNTS_MAX: u32 = 5;
const COUNT_AGAIN: std::time::Duration = std::time::Duration::from_secs(1);

/// A collection that was counted, and found to be as large on both sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counted {
    documents: u64,
    /// What had been added up then.
    net: i64,
    /// What the target said then, and which process.
    fast: u64,
    process: Option<ObjectId>,
}

impl Counted {
    /// The number of documents now, if both sides have come to the same one.
    fn carried(self, net: Option<i64>, fast: u64, process: Option<ObjectId>) -> Option<u64> {
        let by = net?.checked_sub(self.net)?;
        let is_same = process.is_some() && process == self.process;
        let source = self.documents.checked_add_signed(by);
        let target =
            self.documents.checked_add_signed(fast.cast_signed() - self.fast.cast_signed());
        source.filter(|_| is_same && source == target)
    }
}

type Followed = (Uuid, Collection);

fn followed(cutover: &Cutover) -> Vec<Followed> {
    let catalogue = cutover.context.catalogue.read();
    catalogue.collections.iter().map(|(uuid, found)| (*uuid, found.clone())).collect()
}

/// What the target says of each, and which process says so; `None` if it was more than one.
async fn ask(
    cutover: &Cutover,
    all: &[Followed],
) -> Result<(HashMap<Uuid, u64>, Option<ObjectId>), Failed> {
    let target = &cutover.context.target;
    let hello = || until_reached(target.side, &cutover.abort, || Hello::ask(target));
    let process = hello().await?.process_id();
    let mut asking = stream::iter(all)
        .map(async |(uuid, found)| {
            let name = || Bson::String(found.target.collection.clone());
            let ask = || count_fast(target, &found.target.database, name());
            (*uuid, until_reached(target.side, &cutover.abort, ask).await)
        })
        .buffer_unordered(AT_ONCE);
    let mut fast = HashMap::new();
    while let Some((uuid, said)) = asking.next().await {
        fast.extend(said?.map(|documents| (uuid, documents)));
    }
    let is_same = hello().await?.process_id() == process;
    Ok((fast, process.filter(|_| is_same)))
}

/// Counts everything while writes go on.
///
/// # Errors
/// Numbers differ at one optime.
pub(super) async fn before(cutover: &Cutover, proven: &mut Proven) -> Result<(), Failed> {
    let context = &cutover.context;
    cutover.note("counting documents while writes go on");
    context.noted.count();
    let all = followed(cutover);
    let (sizes, _) = ask(cutover, &all).await?;
    let mut left = Vec::new();
    for group in groups(all, &sizes) {
        // It may take hours, and the source be busy now and then.
        cutover.gate().await?;
        cutover.stand_still().await?;
        let (fast, process) = ask(cutover, &group).await?;
        let asked = context.desk.ask();
        let cut = asked.await.map_err(|_| Failed::GivenUp("the replay has ended".to_owned()))?;
        // Somebody else's write in between would be taken for what the numbers are off by.
        let (again, process_again) = ask(cutover, &group).await?;
        let net: HashMap<Uuid, Option<i64>> =
            group.iter().map(|(uuid, _)| (*uuid, context.noted.net(uuid))).collect();
        context.cutover.want(false);
        let exact = exactly(cutover, group, &cut).await?;
        let mut found = Again::default();
        for (uuid, collection, exact) in exact {
            let name = &collection.source;
            match (exact, net.get(&uuid).copied().flatten()) {
                (Some((source, target)), _) if source != target => {
                    found.different.push(differ(name, source, target));
                }
                (Some((documents, _)), Some(net))
                    if fast.get(&uuid) == again.get(&uuid) && process == process_again =>
                {
                    let fast = fast.get(&uuid).copied().unwrap_or(0);
                    proven.numbers.insert(uuid, Counted { documents, net, fast, process });
                }
                _ => left.push(name.to_string()),
            }
        }
        judge(found)?;
        cutover
            .wait_for(format!("counting documents: {} collections so far", proven.numbers.len()));
    }
    cutover
        .note(&format!("numbers of documents are equal in {} collections", proven.numbers.len()));
    if !left.is_empty() {
        cutover.note(&format!(
            "no history is kept for it, or not for long enough: to be counted without writes: {}",
            named(&left)
        ));
    }
    Ok(())
}

fn differ(name: &crate::namespace::Namespace, source: u64, target: u64) -> String {
    format!("{name}: {source} documents, {target} on the target")
}

/// Such as can be counted before the servers forget the optime, the smallest collections first.
fn groups(mut all: Vec<Followed>, sizes: &HashMap<Uuid, u64>) -> Vec<Vec<Followed>> {
    let size = |uuid: &Uuid| sizes.get(uuid).copied().unwrap_or(0);
    all.sort_by_key(|(uuid, _)| size(uuid));
    let mut groups: Vec<(u64, Vec<Followed>)> = Vec::new();
    for followed in all {
        let documents = size(&followed.0);
        match groups.last_mut() {
            Some((sum, group))
                if group.len() < GROUP_MAX
                    && sum.saturating_add(documents) <= GROUP_DOCUMENTS_MAX =>
            {
                *sum += documents;
                group.push(followed);
            }
            _ => groups.push((documents, vec![followed])),
        }
    }
    groups.into_iter().map(|(_, group)| group).collect()
}

/// Counts on both sides at a cut; `None` for what cannot be counted so.
async fn exactly(
    cutover: &Cutover,
    group: Vec<Followed>,
    cut: &Cut,
) -> Result<Vec<(Uuid, Collection, Option<(u64, u64)>)>, Failed> {
    let context = &cutover.context;
    let mut counting = stream::iter(group)
        .map(async |(uuid, found)| {
            let mut counters = Counters::new(&context.source, &context.target);
            let counted = match counters.count(uuid, &found, cut).await {
                Ok(exact) => Ok(exact.map(|exact| (exact.source, exact.target))),
                Err(error) if error.code().is_some() || error.is_unreachable() => Ok(None),
                Err(error) => Err(Failed::from(Stopped::<Error>::Failed(error))),
            };
            counted.map(|counted| (uuid, found, counted))
        })
        .buffer_unordered(AT_ONCE);
    let mut counted = Vec::new();
    while let Some(next) = counting.next().await {
        counted.push(next?);
    }
    Ok(counted)
}

/// Proves that numbers of documents are equal; the replay stands still, and the source takes no writes.
///
/// # Errors
/// They differ.
pub(super) async fn after(cutover: &Cutover, proven: &mut Proven) -> Result<(), Failed> {
    let context = &cutover.context;
    let all = followed(cutover);
    let (fast, process) = ask(cutover, &all).await?;
    proven.counted.clear();
    let mut rest = Vec::new();
    for (uuid, found) in all {
        let carried =
            proven.numbers.get(&uuid).zip(fast.get(&uuid)).and_then(|(counted, fast)| {
                counted.carried(context.noted.net(&uuid), *fast, process)
            });
        match carried {
            Some(documents) => drop(proven.counted.insert(uuid, documents)),
            None => rest.push((uuid, found)),
        }
    }
    let carried = proven.counted.len();
    let asked = context.desk.ask();
    let cut = asked.await.map_err(|_| Failed::GivenUp("the replay has ended".to_owned()))?;
    let mut again = Again::default();
    for (uuid, found, exact) in exactly(cutover, rest, &cut).await? {
        let (source, target) = match exact {
            Some(exact) => exact,
            // No history is kept of it, or not for long enough: nothing should be written any more.
            None => count_as_it_is(cutover, &found).await?,
        };
        if source == target {
            proven.counted.insert(uuid, target);
        } else {
            again.different.push(differ(&found.source, source, target));
        }
    }
    judge(again)?;
    proven.proof.collections = proven.counted.len() as u64;
    cutover.note(&format!(
        "numbers of documents are equal in {} collections, {} of them counted again",
        proven.counted.len(),
        proven.counted.len() - carried
    ));
    Ok(())
}

async fn count_as_it_is(cutover: &Cutover, found: &Collection) -> Result<(u64, u64), Failed> {
    let context = &cutover.context;
    let failed = |error: Error| Failed::GivenUp(error.to_string());
    let mut counted = (0, 1);
    for _ in 0..COUNTS_MAX {
        let source = count_now(&context.source, &found.source).await.map_err(failed)?;
        counted = (source, count_now(&context.target, &found.target).await.map_err(failed)?);
        if counted.0 == counted.1 {
            break;
        }
        cutover.abort.sleep(COUNT_AGAIN).await?;
    }
    Ok(counted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::Spec;
    use crate::namespace::Namespace;
    use std::collections::BTreeMap;

    #[test]
    fn a_number_is_carried_only_where_both_sides_have_come_to_the_same() {
        let process = Some(ObjectId::new());
        // The target's own numbers are off by 7.
        let counted = Counted { documents: 100, net: 5, fast: 93, process };
        assert_eq!(counted.carried(Some(5), 93, process), Some(100));
        assert_eq!(counted.carried(Some(-5), 83, process), Some(90));
        assert_eq!(counted.carried(Some(15), 103, process), Some(110));
        for (net, fast, process) in [
            (Some(6), 93, process),
            (Some(5), 94, process),
            (None, 93, process),
            (Some(5), 93, Some(ObjectId::new())),
            (Some(5), 93, None),
            (Some(-200), 0, process),
        ] {
            assert_eq!(counted.carried(net, fast, process), None, "{net:?} {fast}");
        }
        let unknown = Counted { process: None, ..counted };
        assert_eq!(unknown.carried(Some(5), 93, None), None, "before 4.4 nobody can tell");
    }

    #[test]
    fn collections_are_counted_in_groups_that_do_not_take_too_long() {
        let collection = |n: usize| Collection {
            source: Namespace::new("a", n.to_string()),
            target: Namespace::new("a", n.to_string()),
            target_uuid: None,
            options: Spec::default(),
            id_index: None,
            indexes: BTreeMap::new(),
            widened: false,
        };
        let all: Vec<Followed> = (0..250).map(|n| (Uuid::new(), collection(n))).collect();
        let mut sizes: HashMap<Uuid, u64> = all.iter().map(|(uuid, _)| (*uuid, 10)).collect();
        for ((uuid, _), size) in all.iter().zip([u64::MAX, 900_000, 200_000]) {
            sizes.insert(*uuid, size);
        }
        let lengths: Vec<usize> = groups(all, &sizes).iter().map(Vec::len).collect();
        assert_eq!(lengths, [100, 100, 48, 1, 1]);
        assert_eq!(groups(Vec::new(), &sizes).len(), 0);
    }
}
