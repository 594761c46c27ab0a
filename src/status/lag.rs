//! How far the target is behind. Pure: the clocks are arguments.

use std::time::{Duration, Instant};

/// A source that was seen longer ago than this may have written something since: the lag is not 0 any more.
pub const SOURCE_SEEN_MAX: Duration = Duration::from_secs(2);

/// What the lag is computed from. Facts rather than a number, because the lag grows by itself while nothing happens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LagFacts {
    /// When the durable resume point last reached the newest majority optime seen until then.
    pub caught_up_at: Option<Instant>,
    /// When the source last said what its majority optime is. Counts also when nothing new has come.
    pub source_seen_at: Option<Instant>,
    /// Wall time of the first entry known and not yet durably applied, in milliseconds since 1970; `None` when there is
    /// none. When the source is known to be ahead but that entry has not been read, the wall time of the resume point
    /// is the bound to put here.
    pub first_unapplied_wall_ms: Option<i64>,
}

/// One moment on both clocks: elapsed times are taken from the one that never steps, wall times from the other.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// The clock that never steps back.
    pub instant: Instant,
    /// The wall clock, in milliseconds since 1970.
    pub wall_ms: i64,
}

/// The lag in seconds, never negative; `None` until something is known.
///
/// - Something is not applied: the age of the first such entry.
/// - Everything seen is applied: 0 while the source has been seen within [`SOURCE_SEEN_MAX`]; else the time since it
///   was
///   seen, so that the lag grows while the source cannot be seen.
/// - The source is ahead by an amount nobody knows: the time since the target was last level with it.
#[must_use]
pub fn lag(facts: &LagFacts, now: Now) -> Option<f64> {
    if let Some(wall_ms) = facts.first_unapplied_wall_ms {
        let age_ms = now.wall_ms.saturating_sub(wall_ms).max(0);
        return Some(Duration::from_millis(age_ms.unsigned_abs()).as_secs_f64());
    }
    let caught_up_at = facts.caught_up_at?;
    let seen_at = facts.source_seen_at.unwrap_or(caught_up_at);
    if caught_up_at < seen_at {
        return Some(seconds_since(caught_up_at, now));
    }
    if now.instant.saturating_duration_since(seen_at) <= SOURCE_SEEN_MAX {
        return Some(0.0);
    }
    Some(seconds_since(seen_at, now))
}

fn seconds_since(then: Instant, now: Now) -> f64 {
    now.instant.saturating_duration_since(then).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WALL_MS: i64 = 1_769_396_400_000;

    fn after_ms(base: Instant, ms: u64) -> Instant {
        base + Duration::from_millis(ms)
    }

    fn now(base: Instant, ms: u64) -> Now {
        Now { instant: after_ms(base, ms), wall_ms: WALL_MS + i64::try_from(ms).unwrap() }
    }

    fn caught_up(base: Instant) -> LagFacts {
        LagFacts {
            caught_up_at: Some(base),
            source_seen_at: Some(base),
            first_unapplied_wall_ms: None,
        }
    }

    #[test]
    fn nothing_is_known_at_first() {
        let base = Instant::now();
        assert_eq!(lag(&LagFacts::default(), now(base, 5)), None);
        let seen = LagFacts { source_seen_at: Some(base), ..LagFacts::default() };
        assert_eq!(lag(&seen, now(base, 5)), None);
    }

    #[test]
    fn caught_up_with_a_source_just_seen_is_zero() {
        let base = Instant::now();
        assert_eq!(lag(&caught_up(base), now(base, 0)), Some(0.0));
        assert_eq!(lag(&caught_up(base), now(base, 2000)), Some(0.0));
    }

    #[test]
    fn grows_while_the_source_cannot_be_seen() {
        let base = Instant::now();
        assert_eq!(lag(&caught_up(base), now(base, 2001)), Some(2.001));
        assert_eq!(lag(&caught_up(base), now(base, 60_000)), Some(60.0));
    }

    #[test]
    fn reaching_an_old_sight_of_the_source_does_not_make_it_new() {
        let base = Instant::now();
        let facts = LagFacts { caught_up_at: Some(after_ms(base, 5000)), ..caught_up(base) };
        assert_eq!(lag(&facts, now(base, 6000)), Some(6.0));
    }

    #[test]
    fn is_the_age_of_the_first_entry_not_applied() {
        let base = Instant::now();
        let facts = LagFacts { first_unapplied_wall_ms: Some(WALL_MS - 400), ..caught_up(base) };
        assert_eq!(lag(&facts, now(base, 0)), Some(0.4));
        assert_eq!(lag(&facts, now(base, 100)), Some(0.5));
    }

    #[test]
    fn a_source_whose_clock_is_ahead_is_not_a_negative_lag() {
        let base = Instant::now();
        let facts = LagFacts { first_unapplied_wall_ms: Some(WALL_MS + 9000), ..caught_up(base) };
        assert_eq!(lag(&facts, now(base, 0)), Some(0.0));
    }

    #[test]
    fn a_source_known_to_be_ahead_counts_from_when_it_was_not() {
        let base = Instant::now();
        let facts = LagFacts { source_seen_at: Some(after_ms(base, 900)), ..caught_up(base) };
        assert_eq!(lag(&facts, now(base, 1000)), Some(1.0));
    }

    proptest! {
        #[test]
        fn never_negative_and_never_shrinks_by_waiting(
            caught_up_ms in proptest::option::of(0..10_000u64),
            seen_ms in proptest::option::of(0..10_000u64),
            unapplied_ms in proptest::option::of(any::<i64>()),
            first in 10_000..20_000u64,
            later in 0..10_000u64,
        ) {
            let base = Instant::now();
            let facts = LagFacts {
                caught_up_at: caught_up_ms.map(|ms| after_ms(base, ms)),
                source_seen_at: seen_ms.map(|ms| after_ms(base, ms)),
                first_unapplied_wall_ms: unapplied_ms,
            };
            let early = lag(&facts, now(base, first));
            prop_assert!(early.is_none_or(|seconds| seconds >= 0.0));
            prop_assert!(lag(&facts, now(base, first + later)) >= early);
        }
    }
}
