//! What is done at a window end about a target that has diverged: looking, holding what differs, copying it again, or
//! halting where only a person can tell what is right.

use std::collections::BTreeMap;
use std::time::Instant;

use bson::Uuid;
use tokio::task::JoinHandle;

use super::context::{Context, Interrupted};
use super::divergence::lists::{self, Differences};
use super::feed::Feed;
use super::resync::{Outcome, Resync, ended, give_up, kept};
use super::track::Track;
use crate::config::OnDivergence;
use crate::mongo::Hello;
use crate::position::{Cut, Ts};
use crate::retry::until_reached;
use crate::stop::Stop;

/// How many names a reason states at the most.
const NAMED_MAX: usize = 5;

/// The run that mends, and when to look again.
#[derive(Debug, Default)]
pub(super) struct Mending {
    resync: Resync,
    taken_up: bool,
    /// A comparison of the lists that goes on beside the replay. A definition may be under way meanwhile: a difference
    /// is only a reason to look again when the replay stands at a window end.
    glance: Option<JoinHandle<Result<Differences, Interrupted>>>,
    looked: Option<Instant>,
}

impl Mending {
    /// Looks after everything. The replay stands at a window end.
    ///
    /// # Errors
    /// [`Interrupted`].
    pub(super) async fn at_window_end(
        &mut self,
        main: &Context,
        track: &mut Track,
        feed: &Feed,
        stop: &Stop,
    ) -> Result<(), Interrupted> {
        let mut found = main.desk.take_found();
        if self.glance(main, stop).await? {
            found.append(&mut self.look(main, stop).await?);
        }
        if !found.is_empty() {
            hold(main, found)?;
            track.set_scope(main.catalogue.read().scope())?;
        }
        if let Feed::Spooled { reader, .. } = feed {
            if !self.taken_up {
                self.taken_up = true;
                self.resync.take_up(main, reader, stop)?;
            }
            let at = track.resume();
            if self.resync.at_window_end(main, at, reader, stop).await? == Outcome::Changed {
                track.set_scope(main.catalogue.read().scope())?;
            }
        }
        if main.desk.is_asked() {
            main.desk.answer(cut(main, track, stop).await?);
        }
        Ok(())
    }

    /// Whether a look is worth its while: every `delta.interval` the lists are compared without holding the replay.
    async fn glance(&mut self, main: &Context, stop: &Stop) -> Result<bool, Interrupted> {
        if let Some(glance) = self.glance.take_if(|glance| glance.is_finished()) {
            return Ok(ended(glance.await)? != Differences::default());
        }
        let interval = main.tuning.get().delta_interval;
        if self.glance.is_some() || self.looked.is_some_and(|looked| looked.elapsed() < interval) {
            return Ok(false);
        }
        self.looked = Some(Instant::now());
        kept::expire(main, stop).await?;
        let (main, stop) = (main.clone(), stop.clone());
        let compare = async move { lists::compare(&main, &stop).await };
        self.glance = Some(tokio::spawn(compare));
        Ok(false)
    }

    /// Compares the lists. Views are put right at once.
    async fn look(
        &self,
        main: &Context,
        stop: &Stop,
    ) -> Result<BTreeMap<Uuid, String>, Interrupted> {
        let Differences { collections, views, foreign } = lists::compare(main, stop).await?;
        if !foreign.is_empty() {
            return Err(not_ours(&foreign.iter().map(ToString::to_string).collect::<Vec<_>>()));
        }
        for name in views {
            let view = main.catalogue.read().views.get(&name).cloned();
            if let Some(view) = view {
                tracing::warn!(view = %view.target, "putting back the view {}", view.target);
                main.definer.put_view(&view.target, &view.definition.0, stop).await?;
            }
        }
        if main.config.sync.on_divergence == OnDivergence::Resync {
            main.catalogue.change(|catalogue| {
                for (uuid, displaced) in &collections {
                    catalogue.displace(uuid, displaced.now.clone());
                }
            });
        }
        Ok(collections.into_iter().map(|(uuid, displaced)| (uuid, displaced.what)).collect())
    }

    /// Whether the oplog has to go through the spool.
    #[must_use]
    pub(super) fn needs_spool(&self, main: &Context) -> bool {
        self.resync.is_preparing() || main.catalogue.read().repair.is_busy()
    }

    /// The spool has to keep everything from here on; `main` is what the main replay needs.
    #[must_use]
    pub(super) fn keeps(&self, main: Ts) -> Ts {
        self.resync.keeps(main)
    }

    /// Ends what goes on beside the replay, and waits for it.
    pub(super) async fn stop(&mut self) {
        if let Some(glance) = self.glance.take() {
            // It only reads.
            glance.abort();
        }
        self.resync.stop().await;
    }

    /// What an interruption comes to: what has diverged is held, and the replay goes on without it.
    #[must_use]
    pub(super) fn judge(&self, main: &Context, interrupted: Interrupted) -> Interrupted {
        let Interrupted::Diverged { collections, what } = interrupted else { return interrupted };
        let is_held = |uuid: &Uuid| main.catalogue.read().repair.is_held(uuid);
        if collections.iter().all(is_held) {
            // Another look would find the same again, for ever.
            return Interrupted::Diverged { collections, what };
        }
        let found = collections.into_iter().map(|uuid| (uuid, what.clone())).collect();
        match hold(main, found) {
            Ok(()) => Interrupted::Again,
            Err(interrupted) => interrupted,
        }
    }
}

/// Holds collections that differ, durably, or halts, as is configured.
fn hold(main: &Context, found: BTreeMap<Uuid, String>) -> Result<(), Interrupted> {
    let found: BTreeMap<Uuid, String> = {
        let catalogue = main.catalogue.read();
        let is_new = |uuid: &Uuid| {
            catalogue.collections.contains_key(uuid) && !catalogue.repair.is_held(uuid)
        };
        found.into_iter().filter(|(uuid, _)| is_new(uuid)).collect()
    };
    if main.config.sync.on_divergence == OnDivergence::Halt
        && let Some(what) = found.values().next()
    {
        return Err(Interrupted::Halt {
            reason: format!("source and target have diverged: {what}"),
            remedy: "find out what else writes to the target, then `snapsync resync` the \
                     namespaces concerned"
                .into(),
        });
    }
    main.catalogue.change(|catalogue| {
        for (uuid, what) in found {
            catalogue.repair.hold(uuid, what);
        }
    });
    main.catalogue.save()?;
    kept::show(main);
    Ok(())
}

fn not_ours(names: &[String]) -> Interrupted {
    let more = names.len().saturating_sub(NAMED_MAX);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let named = names.iter().take(NAMED_MAX).cloned().collect::<Vec<_>>().join(", ");
    Interrupted::Halt {
        reason: format!(
            "{named}{more} on the target: made by somebody else, and neither on the source nor made \
             by snapsync"
        ),
        remedy:
            "something else writes to the target: stop it, drop or rename what it made (or leave \
                 it out with sync.exclude), then `snapsync resume`"
                .into(),
    }
}

/// Everything of the window is acknowledged by the majority, and nothing else is being written.
async fn cut(main: &Context, track: &Track, stop: &Stop) -> Result<Cut, Interrupted> {
    let target = &main.target;
    let ask = || async { Hello::ask(target).await?.majority_optime(target) };
    let (newest, _) = until_reached(target.side, stop, ask).await?;
    let held = main.catalogue.read().repair.held.keys().copied().collect();
    Ok(Cut { source: track.resume().applied.ts, target: newest.ts, held })
}

/// Gives up a run that cannot go on.
///
/// # Errors
/// [`Interrupted`].
pub(super) async fn clear_broken_run(main: &Context, stop: &Stop) -> Result<(), Interrupted> {
    let is_broken = main.catalogue.read().repair.run.as_ref().is_some_and(|run| run.is_broken);
    if is_broken { give_up(main, stop).await } else { Ok(()) }
}
