//! Verifying one collection: its definition, then its documents in several runs at once.

use bson::{RawDocumentBuf, Uuid};
use futures_util::stream::{FuturesUnordered, TryStreamExt};

use super::align::{Aligner, id_text};
use super::listed::{Definition, Looked};
use super::moment::{Floor, Moments};
use super::reading::Run;
use super::recheck::{Judge, Kind, Pair, Verdict, Why, named_since};
use super::{
    CollectionReport, DIFFERENCES_MAX, DifferingDocument, IDS_LISTED_MAX, Outcome, Verifier,
};
use crate::catalogue::Collection;
use crate::mongo::{Error, Side};
use crate::position::Ts;
use crate::retry::{Stopped, until_reached};
use crate::source::scan::{self, ScanRequest, Size, Which};
use crate::source::{split, start};

/// Bytes of a batch.
const BATCH_BYTES: u64 = 1 << 20;
/// The least that a run of its own is made for.
const RUN_BYTES_MIN: u64 = 64 << 20;
/// The same for a sample, so that it is taken at many places.
const SAMPLED_RUN_BYTES_MIN: u64 = 1 << 20;
/// Suspicions after which they are judged before more is read.
const SUSPECTS_MAX: usize = 1000;
/// How often a collection that was replaced meanwhile is begun anew.
const BEGINNINGS_MAX: u32 = 3;
/// So far the target may lag behind when a reading begins that nothing was waited for.
const BEHIND_SECONDS: u32 = 60;

/// What one run came to.
#[derive(Debug, Default)]
struct Part {
    documents: u64,
    bytes: u64,
    verdict: Verdict,
    counts: [u64; 3],
    complete: bool,
}

impl Part {
    fn take(&mut self, verdict: Verdict) {
        for (_, kind) in &verdict.found {
            self.counts[*kind as usize] += 1;
        }
        let room = IDS_LISTED_MAX.saturating_sub(self.verdict.found.len());
        self.verdict.found.extend(verdict.found.into_iter().take(room));
        self.verdict.undecided += verdict.undecided;
        self.verdict.why = self.verdict.why.take().or(verdict.why);
    }

    fn differences(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Whether there is no use in judging anything more.
    fn is_hopeless(&self) -> bool {
        matches!(self.verdict.why, Some(Why::Held | Why::NoMoment(_)))
    }
}

impl<M: Moments> Verifier<M> {
    /// Verifies one collection of the source, which has this name on the target. `None` if the source no longer has it.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn collection(
        &self,
        uuid: Uuid,
        collection: &Collection,
    ) -> Result<Option<CollectionReport>, Stopped<Error>> {
        let mut report = CollectionReport {
            collection: collection.source.to_string(),
            target_collection: collection.target.to_string(),
            outcome: Outcome::Equal,
            documents: 0,
            bytes: 0,
            missing: 0,
            extra: 0,
            different: 0,
            definitions: Vec::new(),
            differing: Vec::new(),
            complete: true,
            unproven: Vec::new(),
        };
        for beginning in 0..BEGINNINGS_MAX {
            let source = &self.source;
            // Before the wait: what comes after this shows in the oplog, what came before is on the target then.
            let began = until_reached(source.side, &self.stop, || start::newest(source)).await?;
            if beginning > 0
                && let Err(why) = self.passed().await?
            {
                report.unproven.push(why);
                report.judge();
                return Ok(Some(report));
            }
            let definition = match self.definition(uuid, collection).await? {
                Looked::Gone => return Ok(None),
                Looked::Unproven(why) => {
                    report.unproven.push(why);
                    report.judge();
                    return Ok(Some(report));
                }
                Looked::At(definition) => definition,
            };
            report.definitions.clone_from(&definition.differences);
            if definition.target_uuid.is_none() {
                report.judge();
                return Ok(Some(report));
            }
            let parts = self.documents(uuid, collection, &definition).await?;
            if self.target_uuid(&collection.target).await? != definition.target_uuid {
                continue;
            }
            if self.source_uuid(&collection.source).await? != Some(uuid) {
                return Ok(None);
            }
            // Documents are read by names, and the names may have been others' for a while. The target may have been
            // behind when the first reading began.
            let earlier = Ts::new(began.t.saturating_sub(BEHIND_SECONDS), 0);
            let since = if beginning == 0 { earlier } else { began };
            let name = &collection.source;
            let renamed = || named_since(source, name, since);
            if parts.iter().any(|part| part.differences() > 0)
                && until_reached(source.side, &self.stop, renamed).await?
            {
                continue;
            }
            sum(&mut report, parts);
            report.judge();
            return Ok(Some(report));
        }
        let why = "the collection was replaced or renamed again and again";
        report.unproven.push(why.to_owned());
        report.judge();
        Ok(Some(report))
    }

    async fn documents(
        &self,
        uuid: Uuid,
        collection: &Collection,
        definition: &Definition,
    ) -> Result<Vec<Part>, Stopped<Error>> {
        let (source, target) = (&self.source, &self.target);
        let name = &collection.source;
        let size = || scan::size(source, &name.database, &name.collection);
        let size = until_reached(source.side, &self.stop, size).await?;
        let collation = definition.options.get_document("collation").ok();
        let run_bytes_min = if self.sample < 1.0 { SAMPLED_RUN_BYTES_MIN } else { RUN_BYTES_MIN };
        let points = split::points(source, name, collation, size, run_bytes_min).await;
        let points = match points {
            Ok(points) => points,
            // It stays whole.
            Err(error) if error.code().is_some() || error.is_unreachable() => Vec::new(),
            Err(error) => return Err(Stopped::Failed(error)),
        };
        let at_source = until_reached(source.side, &self.stop, || start::end(source)).await?;
        let at_target = until_reached(target.side, &self.stop, || start::end(target)).await?;
        let pair = Pair {
            uuid,
            source: name.clone(),
            target: collection.target.clone(),
            has_history: !definition.options.get_bool("capped").unwrap_or(false),
        };
        let floor = Floor { source: at_source, target: at_target };
        let count = points.len() as u64 + 1;
        let limit = (self.sample < 1.0).then(|| share(size.documents, self.sample, count));
        let starts = std::iter::once(None).chain(points.iter().cloned().map(Some));
        let ends = points.iter().cloned().map(Some).chain(std::iter::once(None));
        let runs: FuturesUnordered<_> =
            starts.zip(ends).map(|range| self.part(&pair, floor, size, range, limit)).collect();
        runs.try_collect().await
    }

    /// Verifies the documents from one `_id` up to another.
    async fn part(
        &self,
        pair: &Pair,
        floor: Floor,
        size: Size,
        (from_id, until_id): (Option<RawDocumentBuf>, Option<RawDocumentBuf>),
        limit: Option<u64>,
    ) -> Result<Part, Stopped<Error>> {
        let Ok(_permit) = self.workers.acquire().await else { return Err(Stopped::Stop) };
        let in_limit = limit.map_or(u32::MAX, |limit| u32::try_from(limit).unwrap_or(u32::MAX));
        let batch_documents = size.batch_documents(BATCH_BYTES).min(in_limit);
        let request = |side| {
            let (name, after) = match side {
                Side::Source => (&pair.source, floor.source),
                Side::Target => (&pair.target, floor.target),
            };
            ScanRequest {
                database: name.database.clone(),
                collection: Which::Name(name.collection.clone()),
                natural: false,
                from_id: from_id.clone(),
                until_id: until_id.clone(),
                after,
                batch_documents,
            }
        };
        let mut source = Run::new(&self.source, request(Side::Source));
        let mut target = Run::new(&self.target, request(Side::Target));
        let mut judge = Judge::new(&*self.moments, &self.source, &self.target, &self.stop);
        let mut aligner = Aligner::default();
        let mut part = Part { complete: true, ..Part::default() };
        loop {
            self.fill(&mut source, &mut target, &mut part).await?;
            let ended = step(&mut aligner, &mut source, &mut target, limit);
            if ended {
                aligner.finish();
            }
            if ended || aligner.suspects() >= SUSPECTS_MAX {
                let suspects = aligner.take_suspects();
                if part.is_hopeless() {
                    part.verdict.undecided += suspects.len() as u64;
                } else {
                    part.take(judge.judge(pair, suspects, floor).await?);
                }
            }
            if part.differences() >= DIFFERENCES_MAX && !ended {
                part.complete = false;
                break;
            }
            if ended {
                break;
            }
        }
        self.note(&mut source, &mut part);
        Ok(part)
    }

    /// Makes sure that both sides have a document at hand, as far as they have any.
    async fn fill(
        &self,
        source: &mut Run,
        target: &mut Run,
        part: &mut Part,
    ) -> Result<(), Stopped<Error>> {
        let (one, other) = tokio::join!(source.fill(&self.stop), target.fill(&self.stop));
        one.and(other)?;
        let of_source = self.note(source, part);
        let bytes = of_source.max(target.take_unpaid());
        if bytes > 0 {
            self.pace.take(bytes, &self.stop).await?;
        }
        Ok(())
    }

    /// Counts what was read.
    fn note(&self, source: &mut Run, part: &mut Part) -> u64 {
        let (bytes, documents) = (source.take_unpaid(), source.documents - part.documents);
        part.documents = source.documents;
        part.bytes += bytes;
        self.progress.add(documents, bytes);
        bytes
    }
}

/// Goes through what is at hand, until one side has to be read from. True if both have come to their ends, or the
/// source to its limit.
fn step(aligner: &mut Aligner, source: &mut Run, target: &mut Run, limit: Option<u64>) -> bool {
    loop {
        if limit.is_some_and(|limit| source.documents >= limit) {
            return true;
        }
        let (side, document) = match (source.current(), target.current()) {
            (None, None) => return source.has_ended() && target.has_ended(),
            (Some(theirs), Some(ours)) if aligner.is_in_step() => {
                if theirs.as_bytes() == ours.as_bytes() {
                    source.advance();
                    target.advance();
                    continue;
                }
                (Side::Source, theirs)
            }
            (Some(theirs), Some(ours)) => match aligner.behind() {
                Side::Source => (Side::Source, theirs),
                Side::Target => (Side::Target, ours),
            },
            (Some(theirs), None) if target.has_ended() => (Side::Source, theirs),
            (None, Some(ours)) if source.has_ended() => (Side::Target, ours),
            _ => return false,
        };
        aligner.take(side, document);
        match side {
            Side::Source => source.advance(),
            Side::Target => target.advance(),
        }
        if aligner.suspects() >= SUSPECTS_MAX {
            return false;
        }
    }
}

/// How many documents of each of so many runs make this share of all.
fn share(documents: u64, sample: f64, runs: u64) -> u64 {
    #[expect(clippy::cast_precision_loss, reason = "a share is an estimate")]
    let wanted = documents as f64 * sample / runs as f64;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "not negative, and no larger than a count of documents"
    )]
    let wanted = wanted.ceil() as u64;
    wanted.max(1)
}

fn sum(report: &mut CollectionReport, parts: Vec<Part>) {
    let mut undecided = 0;
    let mut why = None;
    for part in parts {
        report.documents += part.documents;
        report.bytes += part.bytes;
        report.missing += part.counts[Kind::Missing as usize];
        report.extra += part.counts[Kind::Extra as usize];
        report.different += part.counts[Kind::Different as usize];
        report.complete &= part.complete;
        let room = IDS_LISTED_MAX.saturating_sub(report.differing.len());
        let found = part.verdict.found.into_iter().take(room);
        report.differing.extend(
            found.map(|(suspect, kind)| DifferingDocument { id: id_text(&suspect.id), kind }),
        );
        undecided += part.verdict.undecided;
        why = why.or(part.verdict.why);
    }
    if undecided > 0 {
        let why = match why {
            Some(Why::Held) => "the collection is being copied again".to_owned(),
            Some(Why::NoMoment(why)) => why,
            Some(Why::Busy) | None => "they change too fast, and their history is not kept".into(),
        };
        report.unproven.push(format!("{undecided} documents that do not match as read: {why}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_shared_among_the_runs() {
        assert_eq!(share(1000, 0.1, 1), 100);
        assert_eq!(share(1000, 0.1, 3), 34);
        assert_eq!(share(0, 0.1, 1), 1);
    }
}
