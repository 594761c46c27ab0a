//! Looking again at what is suspicious, at a moment when both sides have to be the same: what still differs then does
//! differ.
//!
//! At a cut both sides are read as of its optimes, so nothing that is written meanwhile matters, and a difference has
//! to show at two cuts. Where servers keep no history (capped collections; a history window that is too short)
//! documents are read before and after the replay has passed: source, target, source.

use std::collections::{HashMap, HashSet};

use bson::{Document, Timestamp, Uuid, doc};

use super::align::{Hash, Suspect, hash};
use super::moment::{Floor, Moment, Moments, NoMoment};
use crate::mongo::{Deployment, Error, SnapshotReader, cursor_documents};
use crate::namespace::Namespace;
use crate::oplog::document;
use crate::oplog::id_key::IdKey;
use crate::position::{Cut, Still, Ts};
use crate::retry::{Backoff, Outage, Stopped, until_reached};
use crate::source::{start, tail};
use crate::stop::Stop;
use crate::target::statements::Place;

/// `_id`s in one query.
const IDS_MAX: usize = 100;
/// How often another moment is tried where the servers refuse to read at one.
const REFUSED_MAX: u32 = 3;
/// How often a document is read again where nothing can be read at an optime.
const ROUNDS_MAX: u32 = 6;
/// So many rounds in a row must show the same difference.
const CONFIRMED: u32 = 2;
const NAMESPACE_NOT_FOUND: i32 = 26;

/// How a document differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Only the source has it.
    Missing,
    /// Only the target has it.
    Extra,
    /// Both have it, with other bytes.
    Different,
}

/// What became of suspicions.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    /// These differ.
    pub(super) found: Vec<(Suspect, Kind)>,
    /// How many could not be judged.
    pub(super) undecided: u64,
    /// Why not.
    pub(super) why: Option<Why>,
}

/// Why suspicions could not be judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Why {
    /// The collection is being copied again.
    Held,
    /// There is no moment to judge at.
    NoMoment(String),
    /// These documents change too fast to be caught.
    Busy,
}

impl Verdict {
    fn undecided(suspects: &[Suspect], why: Why) -> Self {
        Self { found: Vec::new(), undecided: suspects.len() as u64, why: Some(why) }
    }

    fn of(suspects: Vec<Suspect>, source: &Hashes, target: &Hashes) -> Self {
        let kind = |suspect: &Suspect| match (source.get(&suspect.key), target.get(&suspect.key)) {
            (Some(_), None) => Kind::Missing,
            (None, _) => Kind::Extra,
            (Some(_), Some(_)) => Kind::Different,
        };
        let found = suspects.into_iter().map(|suspect| (kind(&suspect), suspect));
        let found = found.map(|(kind, suspect)| (suspect, kind)).collect();
        Self { found, ..Self::default() }
    }
}

/// Documents that were found, by what their `_id` means.
type Hashes = HashMap<IdKey, Hash>;

/// The collection that suspicions are about.
#[derive(Debug, Clone)]
pub(super) struct Pair {
    /// UUID on the source.
    pub(super) uuid: Uuid,
    /// Name on the source.
    pub(super) source: Namespace,
    /// Name on the target.
    pub(super) target: Namespace,
    /// Whether servers read it at optimes at all.
    pub(super) has_history: bool,
}

/// Judges suspicions.
#[derive(Debug)]
pub(super) struct Judge<'a, M> {
    moments: &'a M,
    source: SnapshotReader,
    target: SnapshotReader,
    stop: &'a Stop,
}

impl<'a, M: Moments> Judge<'a, M> {
    pub(super) fn new(
        moments: &'a M,
        source: &Deployment,
        target: &Deployment,
        stop: &'a Stop,
    ) -> Self {
        let [source, target] = [source, target].map(|side| SnapshotReader::new(side.clone()));
        Self { moments, source, target, stop }
    }

    /// Judges suspicions that arose after `floor`.
    ///
    /// # Errors
    /// [`Stopped`].
    pub(super) async fn judge(
        &mut self,
        pair: &Pair,
        mut suspects: Vec<Suspect>,
        floor: Floor,
    ) -> Result<Verdict, Stopped<Error>> {
        let mut seen = HashSet::new();
        suspects.retain(|suspect| seen.insert(suspect.key.clone()));
        let mut verdict = Verdict::default();
        while !suspects.is_empty() {
            let rest = suspects.split_off(suspects.len().min(IDS_MAX));
            let some = self.judge_some(pair, suspects, floor).await?;
            verdict.found.extend(some.found);
            verdict.undecided += some.undecided;
            verdict.why = verdict.why.or(some.why);
            suspects = rest;
            if let Some(Why::Held | Why::NoMoment(_)) = &verdict.why {
                verdict.undecided += suspects.len() as u64;
                break;
            }
        }
        Ok(verdict)
    }

    async fn judge_some(
        &mut self,
        pair: &Pair,
        mut suspects: Vec<Suspect>,
        mut floor: Floor,
    ) -> Result<Verdict, Stopped<Error>> {
        if !pair.has_history {
            return self.by_reading(pair, suspects).await;
        }
        let (mut confirmed, mut refused) = (0, 0);
        loop {
            let cut = match self.moments.next(floor).await {
                Ok(moment) if moment.held().contains(&pair.uuid) => {
                    return Ok(Verdict::undecided(&suspects, Why::Held));
                }
                Ok(Moment::Cut(cut)) => cut,
                Ok(Moment::Still(still)) => {
                    match self.against(pair, &mut suspects, &still).await? {
                        Some(verdict) => return Ok(verdict),
                        None => continue,
                    }
                }
                Err(none) => return no_moment(&suspects, none),
            };
            floor = Floor { source: cut.source, target: cut.target };
            match self.read_at(pair, &suspects, &cut).await {
                Ok((source, target)) => {
                    suspects.retain(|suspect| differs(suspect, &source, &target));
                    confirmed += 1;
                    if suspects.is_empty() || confirmed == CONFIRMED {
                        return Ok(Verdict::of(suspects, &source, &target));
                    }
                }
                Err(Stopped::Failed(error)) if error.code().is_some() => {
                    // The history does not reach back, or a definition stands in between: a later cut may do.
                    refused += 1;
                    if refused == REFUSED_MAX {
                        return self.by_reading(pair, suspects).await;
                    }
                }
                Err(stopped) => return Err(stopped),
            }
        }
    }

    async fn read_at(
        &mut self,
        pair: &Pair,
        suspects: &[Suspect],
        cut: &Cut,
    ) -> Result<(Hashes, Hashes), Stopped<Error>> {
        tokio::try_join!(
            read(&mut self.source, &pair.source, suspects, Some(cut.source), self.stop),
            read(&mut self.target, &pair.target, suspects, Some(cut.target), self.stop),
        )
    }

    /// Source, target, source: what the target has is one of those, if the replay has passed the first of them.
    async fn by_reading(
        &mut self,
        pair: &Pair,
        mut suspects: Vec<Suspect>,
    ) -> Result<Verdict, Stopped<Error>> {
        let mut verdict = Verdict::default();
        let mut shown: HashMap<IdKey, u32> = HashMap::new();
        for _ in 0..ROUNDS_MAX {
            let stop = self.stop;
            let before = read(&mut self.source, &pair.source, &suspects, None, stop).await?;
            let source = self.source.deployment().clone();
            let passed = until_reached(source.side, stop, || start::end(&source)).await?;
            match self.moments.next(Floor { source: passed, target: Ts::ZERO }).await {
                Ok(moment) if moment.held().contains(&pair.uuid) => {
                    return Ok(Verdict::undecided(&suspects, Why::Held));
                }
                Ok(Moment::Cut(_)) => {}
                Ok(Moment::Still(still)) => {
                    match self.against(pair, &mut suspects, &still).await? {
                        Some(verdict) => return Ok(verdict),
                        None => continue,
                    }
                }
                Err(none) => return no_moment(&suspects, none),
            }
            let target = read(&mut self.target, &pair.target, &suspects, None, stop).await?;
            let after = read(&mut self.source, &pair.source, &suspects, None, stop).await?;
            let mut differing = Vec::new();
            let mut left = Vec::new();
            for suspect in suspects {
                if !differs(&suspect, &before, &target) || !differs(&suspect, &after, &target) {
                    continue;
                }
                let times = shown.entry(suspect.key.clone()).or_default();
                let changed = differs(&suspect, &before, &after);
                *times = if changed { 0 } else { *times + 1 };
                if *times == CONFIRMED { differing.push(suspect) } else { left.push(suspect) }
            }
            verdict.found.extend(Verdict::of(differing, &after, &target).found);
            suspects = left;
            if suspects.is_empty() {
                return Ok(verdict);
            }
        }
        let busy = Verdict::undecided(&suspects, Why::Busy);
        Ok(Verdict { found: verdict.found, ..busy })
    }

    /// The target as it stands, against the source at the optime that it stands at. `None` if it went on meanwhile.
    async fn against(
        &mut self,
        pair: &Pair,
        suspects: &mut Vec<Suspect>,
        still: &Still,
    ) -> Result<Option<Verdict>, Stopped<Error>> {
        let stop = self.stop;
        let target = read(&mut self.target, &pair.target, suspects, None, stop).await?;
        let at = Some(still.source).filter(|_| pair.has_history);
        let source = match read(&mut self.source, &pair.source, suspects, at, stop).await {
            Err(Stopped::Failed(error)) if error.code().is_some() => {
                read(&mut self.source, &pair.source, suspects, None, stop).await?
            }
            Ok(source) if at.is_some() => {
                suspects.retain(|suspect| differs(suspect, &source, &target));
                return self.stands(suspects, still, &source, &target).await;
            }
            other => other?,
        };
        // As it is now: the same as it was, if nothing was written since.
        suspects.retain(|suspect| differs(suspect, &source, &target));
        let deployment = self.source.deployment().clone();
        let written = || written_since(&deployment, &pair.source, still.source);
        if !suspects.is_empty() && until_reached(deployment.side, stop, written).await? {
            let text = format!(
                "the target stands still at {}; the collection was written since on the source, whose \
                 history does not reach back to there",
                still.source
            );
            return Ok(Some(Verdict::undecided(suspects, Why::NoMoment(text))));
        }
        self.stands(suspects, still, &source, &target).await
    }

    async fn stands(
        &self,
        suspects: &mut Vec<Suspect>,
        still: &Still,
        source: &Hashes,
        target: &Hashes,
    ) -> Result<Option<Verdict>, Stopped<Error>> {
        if suspects.is_empty() {
            return Ok(Some(Verdict::default()));
        }
        match self.moments.still_stands(still).await {
            Ok(true) => Ok(Some(Verdict::of(std::mem::take(suspects), source, target))),
            Ok(false) => Ok(None),
            Err(none) => no_moment(suspects, none).map(Some),
        }
    }
}

fn no_moment(suspects: &[Suspect], none: NoMoment) -> Result<Verdict, Stopped<Error>> {
    match none {
        NoMoment::Stop => Err(Stopped::Stop),
        NoMoment::Unknown(why) => Ok(Verdict::undecided(suspects, Why::NoMoment(why))),
    }
}

fn differs(suspect: &Suspect, one: &Hashes, other: &Hashes) -> bool {
    one.get(&suspect.key) != other.get(&suspect.key)
}

/// What is at these `_id`s, as of an optime or as of now.
async fn read(
    reader: &mut SnapshotReader,
    namespace: &Namespace,
    suspects: &[Suspect],
    at: Option<Ts>,
    stop: &Stop,
) -> Result<Hashes, Stopped<Error>> {
    let place = Place { namespace: namespace.clone(), uuid: None };
    let query = |some: std::ops::Range<usize>| {
        let some = suspects.get(some).unwrap_or_default();
        let ids: Vec<_> = some.iter().filter_map(|suspect| document::id(&suspect.id)).collect();
        place.find(ids.into_iter())
    };
    let mut backoff = Backoff::reconnect();
    let outage = Outage::new(reader.deployment().side);
    loop {
        let mut found = Hashes::new();
        let mut note = |found_document: &bson::RawDocument| {
            if let Some(id) = document::id(found_document) {
                found.insert(IdKey::new(id), hash(found_document));
            }
        };
        let at = at.map(Timestamp::from);
        let count = suspects.len();
        match reader.find(&namespace.database, count, &query, at, &mut note).await {
            Ok(()) => return Ok(found),
            // The collection is gone, and with it all that was in it.
            Err(error) if error.code() == Some(NAMESPACE_NOT_FOUND) => return Ok(Hashes::new()),
            Err(error) if error.is_unreachable() => {
                outage.report(&error);
                stop.sleep(backoff.next_delay()).await?;
            }
            Err(error) => return Err(Stopped::Failed(error)),
        }
    }
}

/// Whether anything was written to a collection of the source after this optime, or may have been.
async fn written_since(source: &Deployment, name: &Namespace, after: Ts) -> Result<bool, Error> {
    // What a definition was about is not looked at; one that prepared a transaction says so elsewhere.
    let (collection, definitions) = (name.to_string(), format!("{}.$cmd", name.database));
    let names = vec![collection, definitions];
    let filter = doc! { "op": { "$ne": "n" }, "$or": [
        { "ns": { "$in": &names } },
        { "ns": "admin.$cmd", "o.applyOps.ns": { "$in": &names } },
        { "ns": "admin.$cmd", "o.commitTransaction": { "$exists": true } },
    ] };
    entry_since(source, after, filter, "majority").await
}

/// Whether anything of users was defined on the source after this optime, or may have been. Definitions stand in their
/// databases, those of views as documents; a transaction may hold either. Lists show what is not committed by the
/// majority yet, and so does this.
///
/// # Errors
/// The call failed.
pub async fn defined_since(source: &Deployment, after: Ts) -> Result<bool, Error> {
    let filter = doc! { "$or": [
        { "op": "c", "ns": { "$not": { "$regex": "^(config|local|admin)[.]" } } },
        { "op": { "$ne": "n" }, "ns": { "$regex": "[.]system[.]views$" } },
        { "ns": "admin.$cmd", "o.applyOps.op": "c" },
        { "ns": "admin.$cmd", "o.applyOps.ns": { "$regex": "[.]system[.]views$" } },
    ] };
    entry_since(source, after, filter, "local").await
}

/// Whether any collection was given this name after this optime, as far as the oplog reaches back.
pub(super) async fn named_since(
    source: &Deployment,
    name: &Namespace,
    after: Ts,
) -> Result<bool, Error> {
    let filter = doc! {
        "ts": { "$gt": Timestamp::from(after) },
        "op": "c",
        "ns": format!("{}.$cmd", name.database),
        "o.to": name.to_string(),
    };
    let command = doc! {
        "find": "oplog.rs",
        "filter": filter,
        "projection": { "ts": 1 },
        "limit": 1,
        "readConcern": { "level": "local" },
    };
    let found = cursor_documents(source, "local", "look for renames", command).await?;
    Ok(!found.is_empty())
}

async fn entry_since(
    source: &Deployment,
    after: Ts,
    mut filter: Document,
    level: &str,
) -> Result<bool, Error> {
    let held = tail::first_at_or_after(source, after).await?;
    if held.is_none_or(|held| held.ts != after) {
        return Ok(true);
    }
    filter.insert("ts", doc! { "$gt": Timestamp::from(after) });
    let command = doc! {
        "find": "oplog.rs",
        "filter": filter,
        "projection": { "ts": 1 },
        "limit": 1,
        "readConcern": { "level": level },
    };
    let found = cursor_documents(source, "local", "look for later writes", command).await?;
    Ok(!found.is_empty())
}
