//! What fast counts mean. Servers keep them outside of their versions and get them wrong after a crash, and two of them
//! are never of the same moment: so a difference that a second look does not explain is only a reason to count exactly,
//! and how far the fast counts were off then is remembered. Pure.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bson::Uuid;

/// Rounds in a row that must show a difference before documents are counted exactly.
const ROUNDS: u32 = 2;
/// Between two exact counts of a collection whose first one explained nothing new: doubled each time, from here ...
const AGAIN_MIN: Duration = Duration::from_secs(20);
/// ... to here.
const AGAIN_MAX: Duration = Duration::from_secs(60 * 60);

/// Fast counts of one collection: of the target, then of the source, then of the target again once everything was
/// applied that the source had when it was counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fast {
    /// Documents on the target, first.
    pub target_before: u64,
    /// Documents on the source.
    pub source: u64,
    /// Documents on the target, last; as before if the first count told nothing new.
    pub target_after: u64,
}

/// How far the fast counts of one collection are off, on each side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Bias {
    source: i64,
    target: i64,
}

/// What is known of one collection.
#[derive(Debug, Clone, Copy, Default)]
struct Known {
    /// Fast counts less exact ones, when both were last known.
    bias: Bias,
    /// Rounds in a row with a difference that nothing explains.
    unexplained: u32,
    /// No exact count before this.
    not_before: Option<Instant>,
    /// The pause after the last exact count that found no difference, or failed.
    pause: Option<Duration>,
    /// Exact counts in a row that failed.
    failures: u32,
}

impl Known {
    fn wait_longer(&mut self, now: Instant) {
        let pause = self.pause.map_or(AGAIN_MIN, |pause| (pause * 2).min(AGAIN_MAX));
        self.pause = Some(pause);
        self.not_before = Some(now + pause);
    }
}

/// Judges rounds of fast counts.
#[derive(Debug, Default)]
pub struct Judge {
    known: HashMap<Uuid, Known>,
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

impl Judge {
    /// The best that fast counts tell: source and target less what they are known to be off by.
    #[must_use]
    pub fn corrected(&self, uuid: Uuid, source: u64, target: u64) -> (u64, u64) {
        let bias = self.known.get(&uuid).map_or(Bias::default(), |known| known.bias);
        let less = |count: u64, bias: i64| signed(count).saturating_sub(bias).max(0).unsigned_abs();
        (less(source, bias.source), less(target, bias.target))
    }

    fn delta(&self, uuid: Uuid, source: u64, target: u64) -> i64 {
        let (source, target) = self.corrected(uuid, source, target);
        signed(source).saturating_sub(signed(target))
    }

    /// Whether the two counts are of the same number of documents, as far as fast counts can tell.
    #[must_use]
    pub fn differ(&self, uuid: Uuid, source: u64, target: u64) -> bool {
        self.delta(uuid, source, target) != 0
    }

    /// Takes a round in; true if documents should be counted exactly.
    pub fn suspects(&mut self, uuid: Uuid, fast: Fast, now: Instant) -> bool {
        let before = self.delta(uuid, fast.source, fast.target_before);
        let after = self.delta(uuid, fast.source, fast.target_after);
        let known = self.known.entry(uuid).or_default();
        // The target passed the source's count on its way: writes explain the difference.
        let explained = before.signum() * after.signum() <= 0;
        known.unexplained = if explained { 0 } else { known.unexplained + 1 };
        known.unexplained >= ROUNDS && known.not_before.is_none_or(|at| now >= at)
    }

    /// Both sides were counted exactly and are equal, but in the middle of writes: how far the fast counts are off
    /// cannot be told.
    pub fn equal_while_written(&mut self, uuid: Uuid, now: Instant) {
        let known = self.known.entry(uuid).or_default();
        known.unexplained = 0;
        known.failures = 0;
        known.wait_longer(now);
    }

    /// The collection could not be counted exactly; returns how often in a row.
    pub fn failed(&mut self, uuid: Uuid, now: Instant) -> u32 {
        let known = self.known.entry(uuid).or_default();
        known.failures += 1;
        known.wait_longer(now);
        known.failures
    }

    /// Both sides were counted exactly, and each holds `exact` documents where fast counts said otherwise, before and
    /// after.
    pub fn equal(&mut self, uuid: Uuid, fast: Fast, exact: u64, now: Instant) {
        let off = |count: u64| signed(count).saturating_sub(signed(exact));
        let bias = Bias { source: off(fast.source), target: off(fast.target_after) };
        let known = self.known.entry(uuid).or_default();
        let nothing_new = known.bias.source - known.bias.target == bias.source - bias.target;
        let pause = known.pause.filter(|_| nothing_new);
        *known = Known { bias, pause, ..Known::default() };
        known.wait_longer(now);
    }

    /// Forgets what is not among these any more.
    pub fn retain(&mut self, is_there: impl Fn(&Uuid) -> bool) {
        self.known.retain(|uuid, _| is_there(uuid));
    }

    /// Begins anew with a collection: it was copied again.
    pub fn forget(&mut self, uuid: &Uuid) {
        self.known.remove(uuid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fast(target_before: u64, source: u64, target_after: u64) -> Fast {
        Fast { target_before, source, target_after }
    }

    #[test]
    fn a_lasting_difference_is_counted_exactly_in_the_second_round() {
        let (mut judge, uuid, now) = (Judge::default(), Uuid::new(), Instant::now());
        assert!(!judge.suspects(uuid, fast(12, 10, 12), now));
        assert!(judge.suspects(uuid, fast(12, 10, 12), now));
        assert!(judge.suspects(uuid, fast(12, 10, 12), now), "until it was counted");
    }

    #[test]
    fn what_fast_counts_are_off_by_is_subtracted_later() {
        let (mut judge, uuid, now) = (Judge::default(), Uuid::new(), Instant::now());
        judge.equal(uuid, fast(100, 107, 100), 100, now);
        assert_eq!(judge.corrected(uuid, 117, 110), (110, 110));
        assert_eq!(judge.delta(uuid, 107, 100), 0);
        for _ in 0..5 {
            assert!(!judge.suspects(uuid, fast(100, 107, 100), now));
        }
        // Another difference than that: counted again, but not at once.
        assert!(!judge.suspects(uuid, fast(101, 107, 101), now));
        assert!(!judge.suspects(uuid, fast(101, 107, 101), now));
        assert!(judge.suspects(uuid, fast(101, 107, 101), now + AGAIN_MIN));
        judge.forget(&uuid);
        assert_eq!(judge.delta(uuid, 107, 100), 7);
    }

    #[test]
    fn exact_counts_that_tell_nothing_new_become_rare() {
        let (mut judge, uuid) = (Judge::default(), Uuid::new());
        let start = Instant::now();
        let mut now = start;
        let mut counted = 0;
        for _ in 0..1000 {
            now += Duration::from_secs(10);
            if judge.suspects(uuid, fast(1, 2, 1), now) {
                counted += 1;
                judge.equal(uuid, fast(1, 2, 2), 2, now);
            }
        }
        assert!((5..20).contains(&counted), "{counted} in {:?}", now - start);
    }

    #[test]
    fn exact_counts_that_fail_become_rare() {
        let (mut judge, uuid, start) = (Judge::default(), Uuid::new(), Instant::now());
        let mut tried = 0;
        for round in 0..1000 {
            let now = start + Duration::from_secs(10) * round;
            if judge.suspects(uuid, fast(1, 2, 1), now) {
                tried += 1;
                assert_eq!(judge.failed(uuid, now), tried);
            }
        }
        assert!((5..20).contains(&tried), "{tried}");
    }

    #[test]
    fn nothing_is_learned_in_the_middle_of_writes() {
        let (mut judge, uuid, now) = (Judge::default(), Uuid::new(), Instant::now());
        assert!(!judge.suspects(uuid, fast(100, 120, 110), now));
        assert!(judge.suspects(uuid, fast(100, 120, 110), now));
        judge.equal_while_written(uuid, now);
        assert_eq!(judge.corrected(uuid, 107, 107), (107, 107));
        assert!(!judge.suspects(uuid, fast(1, 2, 1), now + AGAIN_MIN));
        assert!(judge.suspects(uuid, fast(1, 2, 1), now + AGAIN_MIN));
    }

    proptest! {
        /// Writes that run while counting: the target goes through the source's count, in either direction.
        #[test]
        fn writes_never_lead_to_an_exact_count(
            rounds in proptest::collection::vec((0_u64..1000, -50_i64..50), 1..50)
        ) {
            let (mut judge, uuid, now) = (Judge::default(), Uuid::new(), Instant::now());
            for (count, change) in rounds {
                let behind = count.saturating_add_signed(-change);
                let ahead = count.saturating_add_signed(change);
                prop_assert!(!judge.suspects(uuid, fast(behind, count, ahead), now));
            }
        }
    }
}
