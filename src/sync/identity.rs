//! Whether source and target are still those that the state directory speaks of. What is found to be another one halts:
//! going on would mix two histories, and copying anew could destroy a good target.

use super::context::{Context, Interrupted};
use super::record::{Record, ReplicaSets};
use crate::mongo::{Deployment, Side, merged, replica_set_identity, same_set};
use crate::retry::until_reached;
use crate::stop::Stop;
use crate::target::lease::mirror;

/// Looks at the target alone: the source may be gone for good.
///
/// # Errors
/// [`Interrupted`]; a halt if it is not the one.
pub(super) async fn verify_target(context: &Context, stop: &Stop) -> Result<(), Interrupted> {
    let ask = || replica_set_identity(&context.target);
    let found = until_reached(Side::Target, stop, ask).await?;
    is_the_target(context, &context.records.get(), &found, stop).await?;
    context.verified.set();
    Ok(())
}

async fn is_the_target(
    context: &Context,
    record: &Record,
    found: &Option<String>,
    stop: &Stop,
) -> Result<(), Interrupted> {
    not_another(Side::Target, &record.replica_sets.target, found)?;
    let mirrors = until_reached(Side::Target, stop, || mirror::list(&context.target)).await?;
    let mirrored = mirrors.iter().find(|mirror| mirror.instance == record.instance);
    let sequence = mirrored.map(|mirror| mirror.sequence);
    not_behind(record, sequence, context.verified.is_asserted())
}

/// Looks at both sides before anything is read or written; once all is well, the mirror may go on.
///
/// # Errors
/// [`Interrupted`]; a halt if one of them is not the one.
pub(super) async fn verify(context: &Context, stop: &Stop) -> Result<(), Interrupted> {
    let found = ReplicaSets {
        source: ask(&context.source, stop).await?,
        target: ask(&context.target, stop).await?,
    };
    let record = context.records.get();
    if record.resume.is_some() {
        not_another(Side::Source, &record.replica_sets.source, &found.source)?;
        is_the_target(context, &record, &found.target, stop).await?;
    }
    context.records.change(|record| {
        let known = &mut record.replica_sets;
        if record.resume.is_none() {
            *known = found;
        } else {
            // The right to read more may have been given since.
            known.source = merged(known.source.as_deref(), found.source.as_deref());
            known.target = merged(known.target.as_deref(), found.target.as_deref());
        }
    })?;
    context.verified.set();
    Ok(())
}

/// Looks at the source alone: enough for spooling it, which a target that is away need not keep from going on.
///
/// # Errors
/// [`Interrupted`]; a halt if it is another one.
pub(super) async fn verify_source(context: &Context, stop: &Stop) -> Result<(), Interrupted> {
    let found = ask(&context.source, stop).await?;
    not_another(Side::Source, &context.records.get().replica_sets.source, &found)
}

async fn ask(side: &Deployment, stop: &Stop) -> Result<Option<String>, Interrupted> {
    Ok(until_reached(side.side, stop, || replica_set_identity(side)).await?)
}

fn not_another(
    side: Side,
    known: &Option<String>,
    found: &Option<String>,
) -> Result<(), Interrupted> {
    let (Some(known), Some(found)) = (known, found) else { return Ok(()) };
    if same_set(known, found) != Some(false) {
        return Ok(());
    }
    Err(Interrupted::Halt {
        reason: format!(
            "the {side} is another replica set than before: it is known by {found}, and was by {known}"
        ),
        remedy: format!(
            "let {side}.uri lead to the one that was there, restart, then `snapsync resume`; to go on \
             with this one, `snapsync reset` and copy anew"
        ),
    })
}

/// Compares what is mirrored on the target with what is known to have been durable there. Nothing at all may be put up
/// with if a person has said so.
fn not_behind(record: &Record, sequence: Option<u64>, asserted: bool) -> Result<(), Interrupted> {
    match sequence {
        Some(sequence) if sequence < record.mirrored => Err(Interrupted::Halt {
            reason: "the target is behind its own record: it was set back to an earlier state, as by \
                     a restore from a backup"
                .to_owned(),
            remedy: "to go on from the position that the target itself holds, stop the service, move \
                     the state directory away and start again (the source's oplog has to reach back \
                     that far); else `snapsync reset` and copy anew"
                .to_owned(),
        }),
        None if record.mirrored > 0 && !asserted => Err(Interrupted::Halt {
            reason: "the target holds no record of this migration: it was restored from a backup of \
                     the time before, or its database snapsync was dropped"
                .to_owned(),
            remedy: "if nothing but the database snapsync was lost, `snapsync resume`; else `snapsync \
                     reset` and copy anew"
                .to_owned(),
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::phase::Phase;
    use crate::sync::record::Totals;

    #[test]
    fn a_target_is_behind_when_it_has_forgotten_what_was_durable() {
        let record = |mirrored: u64| Record {
            instance: String::new(),
            phase: Phase::Copying,
            since_ms: 0,
            resume: None,
            intent: None,
            selection: String::new(),
            renames: String::new(),
            totals: Totals::default(),
            replica_sets: ReplicaSets::default(),
            mirrored,
            cutover: None,
        };
        for (mirrored, sequence, asserted, well) in [
            (7, Some(7), false, true),
            (7, Some(8), false, true),
            (7, Some(6), false, false),
            (7, Some(6), true, false),
            (7, None, false, false),
            (7, None, true, true),
            (0, None, false, true),
        ] {
            let found = not_behind(&record(mirrored), sequence, asserted);
            assert_eq!(found.is_ok(), well, "{mirrored} {sequence:?} {asserted}");
        }
    }

    #[test]
    fn what_may_not_be_read_is_not_held_against_a_set() {
        let [a, b, other] = ["x a", "x b", "y a"].map(|id| Some(id.to_owned()));
        assert!(not_another(Side::Source, &a, &b).is_err());
        for (known, found) in [(&a, &a), (&None, &a), (&a, &None), (&a, &other)] {
            assert!(not_another(Side::Source, known, found).is_ok());
        }
    }
}
