//! What is being mended: collections that are held (the main replay leaves their contents alone) until a new copy takes
//! their place, what was replaced and is kept for a while, and how often that happened. Pure; durable as a part of the
//! catalogue, so that a swap, the release of what was held and the list of what is kept change in one step.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bson::Uuid;
use serde::{Deserialize, Serialize};

use crate::namespace::Namespace;
use crate::position::Ts;

/// So many resyncs of one namespace within [`RECURS_WITHIN_MS`] mean that something else writes to the target.
pub const RECURS_TIMES: usize = 3;
/// One hour, in milliseconds.
pub const RECURS_WITHIN_MS: i64 = 60 * 60 * 1000;
/// Resyncs remembered at the most.
const REMEMBERED_MAX: usize = 10_000;

/// The mending under way.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Repair {
    /// Why each collection is held, by its UUID on the source.
    pub held: BTreeMap<Uuid, Held>,
    /// The run that copies some of them.
    pub run: Option<Run>,
    /// Collections that left the place they had, kept for a while.
    pub replaced: Vec<Kept>,
    /// Collections on the target that the source no longer has, and whose drop was never seen: they go with the next
    /// swap.
    pub leaving: BTreeMap<Uuid, Namespace>,
    /// Resyncs of the last hour: the namespace on the source, and when, in milliseconds since 1970.
    pub history: VecDeque<(Namespace, i64)>,
    /// Resyncs begun since the migration began.
    pub resyncs: u64,
}

/// A collection that the main replay leaves alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Why, in words.
    pub reason: String,
    /// Whether the run under way copies it; else it waits for the next one.
    pub in_run: bool,
    /// Nothing has diverged: it is copied for the first time, and that was never begun yet. It does not count among
    /// what recurs: applications may move collections into the selection as often as they like.
    #[serde(default)]
    pub is_new: bool,
}

/// One run: some collections are copied again, brought up to date, and put in their places together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Tells its files apart from those of other runs.
    pub id: String,
    /// When it was begun, in milliseconds since 1970.
    pub begun_ms: i64,
    /// Set before the first collection is moved into place: both replays stand at this optime, and neither goes on
    /// before everything is in place.
    pub swapping_at: Option<Ts>,
    /// It cannot go on, and is to be given up.
    #[serde(default)]
    pub is_broken: bool,
}

/// A collection that was replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Its name on the target when it was in use.
    pub collection: Namespace,
    /// The name it is kept under.
    pub kept_as: Namespace,
    /// Its UUID on the target.
    pub uuid: Uuid,
    /// Since when, in milliseconds since 1970.
    pub since_ms: i64,
}

impl Repair {
    /// Holds a collection, if it is not held yet; the first reason stands. True if it was not held.
    pub fn hold(&mut self, uuid: Uuid, reason: impl Into<String>) -> bool {
        if self.held.contains_key(&uuid) {
            return false;
        }
        self.held.insert(uuid, Held { reason: reason.into(), in_run: false, is_new: false });
        true
    }

    /// Holds a collection that was never copied.
    pub fn expect(&mut self, uuid: Uuid, reason: impl Into<String>) {
        self.held.insert(uuid, Held { reason: reason.into(), in_run: false, is_new: true });
    }

    /// The run under way copies it.
    pub fn join_run(&mut self, uuid: &Uuid) -> Option<&Held> {
        let held = self.held.get_mut(uuid)?;
        held.in_run = true;
        held.is_new = false;
        Some(held)
    }

    /// Whether this collection is copied for the first time, and for the first time tried to.
    #[must_use]
    pub fn is_new(&self, uuid: &Uuid) -> bool {
        self.held.get(uuid).is_some_and(|held| held.is_new)
    }

    /// Whether the main replay leaves this collection alone.
    #[must_use]
    pub fn is_held(&self, uuid: &Uuid) -> bool {
        self.held.contains_key(uuid)
    }

    /// Whether the collection with this UUID on the target was followed once and is still to be dealt with.
    #[must_use]
    pub fn knows(&self, target_uuid: Uuid) -> bool {
        self.is_leaving(&target_uuid) || self.replaced.iter().any(|kept| kept.uuid == target_uuid)
    }

    /// Whether the source no longer has the collection with this UUID on the target.
    #[must_use]
    pub fn is_leaving(&self, target_uuid: &Uuid) -> bool {
        self.leaving.contains_key(target_uuid)
    }

    /// Whether there is something to copy again, or left of it to clear away.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        !self.held.is_empty() || self.run.is_some()
    }

    /// Those that the run under way copies.
    #[must_use]
    pub fn members(&self) -> BTreeSet<Uuid> {
        self.held.iter().filter(|(_, held)| held.in_run).map(|(uuid, _)| *uuid).collect()
    }

    /// The run is over, or given up: what it copied waits again, unless it was released before.
    pub fn end_run(&mut self) {
        self.run = None;
        self.held.values_mut().for_each(|held| held.in_run = false);
    }

    /// The run cannot go on: somebody meddled with what it made.
    pub fn break_run(&mut self) {
        if let Some(run) = &mut self.run {
            run.is_broken = true;
        }
    }

    /// Notes that these are copied again now. Those that were copied [`RECURS_TIMES`] times within the last hour before
    /// are returned: something else writes there.
    #[must_use]
    pub fn note(&mut self, namespaces: &[Namespace], now_ms: i64) -> Vec<Namespace> {
        self.history.retain(|(_, at)| now_ms.saturating_sub(*at) < RECURS_WITHIN_MS);
        let times = |name: &Namespace| self.history.iter().filter(|(n, _)| n == name).count();
        let recurring: Vec<Namespace> =
            namespaces.iter().filter(|name| times(name) >= RECURS_TIMES).cloned().collect();
        if recurring.is_empty() {
            self.history.extend(namespaces.iter().map(|name| (name.clone(), now_ms)));
            let surplus = self.history.len().saturating_sub(REMEMBERED_MAX);
            self.history.drain(..surplus);
        }
        recurring
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::slice;

    #[test]
    fn the_fourth_time_in_an_hour_is_too_often() {
        let mut repair = Repair::default();
        let name = Namespace::new("shop", "orders");
        let other = Namespace::new("shop", "carts");
        for at in [0, 1000, 2000] {
            assert_eq!(repair.note(slice::from_ref(&name), at), []);
        }
        assert_eq!(repair.note(&[other.clone(), name.clone()], 3000), slice::from_ref(&name));
        assert_eq!(repair.note(&[other], 3000), []);
        assert_eq!(
            repair.note(slice::from_ref(&name), RECURS_WITHIN_MS),
            [],
            "the first is forgotten"
        );
        assert_eq!(repair.note(slice::from_ref(&name), RECURS_WITHIN_MS), [name]);
    }

    #[test]
    fn the_first_reason_stands_and_members_wait_after_a_run() {
        let mut repair = Repair::default();
        let uuid = Uuid::new();
        assert!(repair.hold(uuid, "first"));
        assert!(!repair.hold(uuid, "second"));
        assert_eq!(repair.held[&uuid].reason, "first");
        repair.run = Some(Run { id: "a".into(), begun_ms: 0, swapping_at: None, is_broken: false });
        repair.join_run(&uuid).unwrap();
        assert_eq!(repair.members(), [uuid].into());
        repair.end_run();
        assert_eq!(repair.members(), [].into());
        assert!(repair.is_held(&uuid));
    }

    #[test]
    fn what_is_new_is_new_until_it_is_begun() {
        let mut repair = Repair::default();
        let [diverged, new] = [Uuid::new(), Uuid::new()];
        repair.hold(diverged, "diverged");
        repair.expect(new, "came");
        assert!(!repair.is_new(&diverged) && repair.is_new(&new));
        assert_eq!(repair.join_run(&new).unwrap().reason, "came");
        repair.end_run();
        assert!(!repair.is_new(&new), "what has to be tried again counts");
    }
}
