//! What operators want of a migration. Each wish is carried out between two acts, so that nothing else changes the
//! durable state meanwhile.

use bson::Uuid;

use super::context::{Context, Interrupted};
use super::cutover;
use super::phase::{Event, Phase};
use super::resync::{self, kept};
use crate::http::control::{Command, Refusal, Reply, Wish};
use crate::state::Audit;
use crate::status::State;
use crate::stop::Stop;

/// Whether a wish makes sense now; a refusal needs no pause of the work.
///
/// # Errors
/// Why it does not.
pub(super) fn check(context: &Context, wish: &Wish) -> Result<(), Refusal> {
    let state = context.board.state();
    let follows = matches!(state, State::Live | State::CatchingUp);
    match wish {
        Wish::Pause if follows => Ok(()),
        Wish::Pause => Err(Refusal::wrong_state(format!("cannot pause: the state is {state}"))),
        Wish::Resume if matches!(state, State::Paused | State::Halted) => Ok(()),
        Wish::Resume => {
            Err(Refusal::wrong_state(format!("nothing to resume: the state is {state}")))
        }
        Wish::Resync { .. } | Wish::Discard if is_taking_over(context) => {
            let text = "the target is taking over: nothing is copied or dropped any more";
            Err(Refusal::wrong_state(text))
        }
        Wish::Cutover(options) => cutover::check(context, options),
        // Done without an end of the act that is under way.
        Wish::AbortCutover => Ok(()),
        Wish::Resync { namespaces } => {
            let has_copied = context.records.get().phase.consistent_from().is_some();
            if !has_copied {
                return Err(Refusal::wrong_state("the first copy is not complete yet"));
            }
            select(context, namespaces).map(drop)
        }
        Wish::Discard => Ok(()),
    }
}

fn is_taking_over(context: &Context) -> bool {
    let record = context.records.get();
    matches!(record.phase, Phase::CuttingOver { .. } | Phase::CutOver { .. })
        || cutover::is_decided(&record)
}

/// The collections that names of collections or databases mean.
fn select(context: &Context, names: &[String]) -> Result<Vec<Uuid>, Refusal> {
    let catalogue = context.catalogue.read();
    let mut selected = Vec::new();
    for name in names {
        let before = selected.len();
        let all = catalogue.collections.iter();
        let found = all.filter(|(_, collection)| collection.is_meant_by(name));
        selected.extend(found.map(|(uuid, _)| *uuid));
        if selected.len() == before {
            let text = format!("{name:?} is no collection or database that is followed");
            return Err(Refusal::wrong_wish(text));
        }
    }
    if names.is_empty() {
        selected.extend(catalogue.collections.keys().copied());
    }
    Ok(selected)
}

/// Carries out a wish; no act is under way.
///
/// # Errors
/// [`Interrupted`]: then nobody was answered, which the asker hears as the daemon ending.
pub(super) async fn carry_out(
    context: &Context,
    command: Command,
    stop: &Stop,
) -> Result<(), Interrupted> {
    let Command { wish, reply } = command;
    // The act that was under way may have changed the state.
    if let Err(refusal) = check(context, &wish) {
        answer(reply, Err(refusal));
        return Ok(());
    }
    if matches!(wish, Wish::Pause | Wish::Resync { .. }) {
        // One that has not begun to act yet.
        context.cutover.end("an operator wants something else").await;
    }
    match &wish {
        Wish::Pause => {
            context.happen(Event::Pause)?;
        }
        Wish::Resume => resume(context)?,
        Wish::Resync { namespaces } => {
            // What is taking its place is not given up half way: what it replaces has been moved already.
            resync::finish_swap(context, stop).await?;
            hold_again(context, namespaces)?;
        }
        Wish::Discard => {
            context.clear_cut_short(stop).await?;
            kept::discard_all(context, stop).await?;
        }
        Wish::Cutover(options) => {
            // One with a source that is there goes on beside the replay, and never comes here.
            let done = cutover::lose_source(context, options).await?;
            answer(reply, done);
            return Ok(());
        }
        Wish::AbortCutover => {}
    }
    note(context, &wish)?;
    answer(reply, Ok(()));
    Ok(())
}

fn resume(context: &Context) -> Result<(), Interrupted> {
    // A person has looked: what recurred may be tried again.
    context.catalogue.change(|catalogue| catalogue.repair.history.clear());
    context.catalogue.save()?;
    context.verified.assert();
    context.happen(Event::Resume).map(drop)
}

fn hold_again(context: &Context, names: &[String]) -> Result<(), Interrupted> {
    let Ok(selected) = select(context, names) else { return Ok(()) };
    context.catalogue.change(|catalogue| {
        let repair = &mut catalogue.repair;
        repair.history.clear();
        // A collection that is being copied already is copied from the beginning.
        if selected.iter().any(|uuid| repair.members().contains(uuid)) {
            repair.break_run();
        }
        for uuid in selected {
            repair.hold(uuid, "an operator asked for it");
        }
    });
    context.catalogue.save()?;
    kept::show(context);
    if context.board.state() == State::Halted {
        context.happen(Event::Resume)?;
    }
    Ok(())
}

fn note(context: &Context, wish: &Wish) -> Result<(), Interrupted> {
    let (event, detail) = match wish {
        Wish::Pause => ("pause", serde_json::json!({})),
        Wish::Resume => ("resume", serde_json::json!({})),
        Wish::Resync { namespaces } => ("resync", serde_json::json!({ "namespaces": namespaces })),
        Wish::Discard => ("discard", serde_json::json!({})),
        Wish::Cutover(_) | Wish::AbortCutover => return Ok(()),
    };
    let audit = Audit::open(&context.config.state.directory)?;
    Ok(audit.append(event, Some("operator"), detail)?)
}

/// Whoever asked may have gone.
pub(super) fn answer(reply: Reply, result: Result<(), Refusal>) {
    let _gone = reply.send(result);
}
