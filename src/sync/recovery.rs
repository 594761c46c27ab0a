//! What a start goes on from: the state directory, or where that is lost, or older than what the target holds of the
//! same migration, the mirror on the target.

use std::path::Path;

use super::record::{Record, RecordStore, ReplicaSets, Totals};
use super::{copying, ownership, phase::Phase};
use crate::catalogue::Catalogue;
use crate::config::Config;
use crate::exit::Exit;
use crate::mongo::{Deployment, Error, same_set};
use crate::position::Ts;
use crate::selection::Selection;
use crate::source::start;
use crate::state::Audit;
use crate::status::WallTime;
use crate::target::lease::mirror::{self, Mirror};
use crate::target::lease::taking;

/// How long after the end of its lease a daemon's writes may reach, in seconds of the source's clock: as far as the
/// clocks of source and target may be apart.
const CLOCKS_APART: u32 = 600;

/// What there is to go on from.
#[derive(Debug, Clone, PartialEq)]
enum Basis {
    /// What the state directory holds.
    Local(Box<Record>),
    /// What the target holds.
    Mirrored(Box<(Mirror, Record)>),
    /// Nothing: a migration begins.
    Nothing,
}

/// Chooses. A state directory whose migration has gone on elsewhere since (a copy of it, an older backup) is as good as
/// lost: replay would begin far behind what is on the target. A mirror of another migration is never taken where a
/// migration of our own has begun.
fn choose(
    local: Option<Record>,
    home: &str,
    mirrors: Vec<Mirror>,
    source: Option<&str>,
    selection: &str,
) -> Basis {
    let begun = local.filter(|record| record.resume.is_some());
    let readable = mirrors.into_iter().filter(|mirror| !mirror.is_taken).filter_map(|mirror| {
        let record: Record = serde_json::from_str(&mirror.record).ok()?;
        record.resume.is_some().then_some((mirror, record))
    });
    let found = match &begun {
        Some(local) => {
            readable.filter(|(mirror, _)| mirror.instance == local.instance).find(|(mirror, _)| {
                // One more than is known where it was mirrored from: its answer was lost.
                let lost_answers = u64::from(mirror.home == home);
                mirror.sequence > local.mirrored + lost_answers
            })
        }
        None => readable
            .filter(|(_, record)| {
                let of_source = record.replica_sets.source.as_deref();
                let same = source.zip(of_source).and_then(|(source, of)| same_set(of, source));
                same == Some(true) && record.selection == selection
            })
            .max_by_key(|(_, record)| record.resume),
    };
    match (found, begun) {
        (Some(found), _) => Basis::Mirrored(Box::new(found)),
        (None, Some(local)) => Basis::Local(Box::new(local)),
        (None, None) => Basis::Nothing,
    }
}

/// Opens the record, from wherever there is one.
///
/// # Errors
/// The disk, a server that is not reached, or a lease that is held elsewhere.
pub(super) async fn open_record(
    config: &Config,
    source: &Deployment,
    target: &Deployment,
    replica_sets: &ReplicaSets,
) -> Result<RecordStore, Exit> {
    let at_start = |error: Error| Exit::at_start(&error);
    let directory = &config.state.directory;
    let selection = &config.sync.selection;
    let fingerprint = selection.fingerprint();
    let local = RecordStore::find(directory)?;
    let mirrors = mirror::list(target).await.map_err(at_start)?;
    let home = ownership::owner("", directory).home;
    let (known, of) = (local.clone(), replica_sets.source.as_deref());
    let record = match choose(known, &home, mirrors.clone(), of, &fingerprint) {
        Basis::Local(record) => {
            let mut record = *record;
            let mirror = mirrors.iter().find(|mirror| mirror.instance == record.instance);
            // A copy of the directory that was made while its daemon ran.
            if let Some(mirror) = mirror.filter(|mirror| mirror.home != home) {
                let (newest, _) = start::majority_optime(source).await.map_err(at_start)?;
                record.intent = record.intent.max(Some(horizon(mirror.expires, newest.ts)));
            }
            record
        }
        Basis::Nothing => fresh(local, selection),
        Basis::Mirrored(found) => {
            let (mirror, record) = *found;
            let owner = ownership::owner(&mirror.instance, directory);
            let set = selection.target_set();
            // As long as somebody goes on there, it would be out of date at once.
            if let Some(holder) =
                taking::held_by_another(target, &owner, &set).await.map_err(at_start)?
            {
                return Err(ownership::held(&holder));
            }
            let adopted = adopt(directory, source, target, &mirror, record).await?;
            // A mirror without its catalogue is none.
            let begun = local.clone().filter(|record| record.resume.is_some());
            adopted.or(begun).unwrap_or_else(|| fresh(local, selection))
        }
    };
    Ok(RecordStore::create(directory, record)?)
}

/// A migration that has not begun; its identity stays, once it has one.
#[must_use]
pub fn fresh(local: Option<Record>, selection: &Selection) -> Record {
    let instance = local.map_or_else(|| bson::Uuid::new().to_string(), |record| record.instance);
    Record {
        instance,
        phase: Phase::Copying,
        since_ms: WallTime::now().as_ms(),
        resume: None,
        intent: None,
        selection: selection.fingerprint(),
        renames: selection.rename_fingerprint(),
        totals: Totals::default(),
        replica_sets: ReplicaSets::default(),
        mirrored: 0,
        cutover: None,
    }
}

/// Takes the catalogue from the target into the state directory, and returns the record that goes with it; the caller
/// makes that durable. `None` if the mirror is not whole.
async fn adopt(
    directory: &Path,
    source: &Deployment,
    target: &Deployment,
    mirror: &Mirror,
    mut record: Record,
) -> Result<Option<Record>, Exit> {
    let at_start = |error: Error| Exit::at_start(&error);
    let Some(reference) = &mirror.catalogue else { return Ok(None) };
    let json = mirror::load_catalogue(target, &mirror.instance, reference).await;
    let json = json.map_err(at_start)?.unwrap_or_default();
    let Ok(catalogue) = serde_json::from_slice::<Catalogue>(&json) else {
        tracing::warn!("the catalogue that is mirrored on the target is not whole");
        return Ok(None);
    };
    let store = copying::open_catalogue_anew(directory);
    store.change(|stored| {
        *stored = catalogue;
        // The files of a resync are not mirrored: what it copied waits for the next one.
        stored.repair.end_run();
    });
    store.save()?;
    let (newest, _) = start::majority_optime(source).await.map_err(at_start)?;
    let horizon = horizon(mirror.expires, newest.ts);
    record.mirrored = mirror.sequence;
    record.intent = record.intent.max(Some(horizon));
    let resume = record.resume.unwrap_or_default().applied;
    tracing::warn!(
        "the state directory does not hold what the target does: going on from the position that is \
         mirrored there, {resume}"
    );
    let detail = serde_json::json!({ "position": resume.to_string() });
    Audit::open(directory)?.append("taken from the target", None, detail)?;
    Ok(Some(record))
}

/// Up to where the target may hold newer state than its mirror says: whoever wrote there stopped when its lease ended.
fn horizon(lease_ends: i64, newest: Ts) -> Ts {
    let last = u32::try_from(lease_ends).unwrap_or(u32::MAX).saturating_add(CLOCKS_APART);
    newest.min(Ts::new(last, 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::position::OpTime;
    use crate::replay::window::ResumePoint;

    fn record(instance: &str, t: u32, mirrored: u64) -> Record {
        let at = OpTime::new(Ts::new(t, 1), 1);
        let resume = ResumePoint { applied: at, wall_ms: 0, read_from: at };
        Record {
            instance: instance.to_owned(),
            resume: (t > 0).then_some(resume),
            replica_sets: ReplicaSets { source: Some("s".into()), target: None },
            mirrored,
            selection: "all".into(),
            ..fresh(None, &Selection::new(&["*".into()], &[], &[]).unwrap())
        }
    }

    fn mirror(record: &Record, sequence: u64) -> Mirror {
        Mirror {
            instance: record.instance.clone(),
            home: "here".into(),
            is_taken: false,
            expires: 0,
            sequence,
            record: serde_json::to_string(record).unwrap(),
            catalogue: None,
            generation: 1,
            is_held: false,
            cut: None,
            still: None,
        }
    }

    #[test]
    fn a_lost_state_directory_is_found_again_by_source_and_selection() {
        let [old, new] = [record("a", 10, 3), record("b", 20, 5)];
        let mirrors = vec![mirror(&old, 4), mirror(&new, 6)];
        let find = |local: Option<Record>, source: Option<&str>, selection: &str| match choose(
            local,
            "here",
            mirrors.clone(),
            source,
            selection,
        ) {
            Basis::Mirrored(found) => Some(found.1.instance),
            _ => None,
        };
        assert_eq!(find(None, Some("s"), "all").as_deref(), Some("b"));
        assert_eq!(find(Some(record("c", 0, 0)), Some("s"), "all").as_deref(), Some("b"));
        assert_eq!(find(Some(record("c", 5, 0)), Some("s"), "all"), None, "one has begun here");
        assert_eq!(find(None, Some("other"), "all"), None);
        assert_eq!(find(None, None, "all"), None);
        assert_eq!(find(None, Some("s"), "some"), None);
        let taken = Mirror { is_taken: true, ..mirror(&new, 6) };
        assert_eq!(choose(None, "here", vec![taken], Some("s"), "all"), Basis::Nothing);
        let nowhere = mirror(&record("d", 0, 0), 1);
        assert_eq!(choose(None, "here", vec![nowhere], Some("s"), "all"), Basis::Nothing);
    }

    #[test]
    fn a_state_directory_that_others_went_on_from_is_as_good_as_lost() {
        let local = record("a", 10, 3);
        let later = record("a", 30, 9);
        for (sequence, here, elsewhere) in
            [(0, false, false), (3, false, false), (4, false, true), (5, true, true)]
        {
            for (home, stale) in [("here", here), ("elsewhere", elsewhere)] {
                let mirrors = vec![mirror(&later, sequence)];
                let basis = choose(Some(local.clone()), home, mirrors, None, "all");
                assert_eq!(matches!(basis, Basis::Mirrored(_)), stale, "{sequence} {home}");
            }
        }
    }

    #[test]
    fn what_may_be_newer_ends_with_the_lease() {
        let ends = i64::from(1_000_u32);
        assert_eq!(horizon(ends, Ts::new(1_200, 7)), Ts::new(1_200, 7));
        assert_eq!(horizon(ends, Ts::new(9_000, 7)), Ts::new(1_000 + CLOCKS_APART, 0));
    }
}
