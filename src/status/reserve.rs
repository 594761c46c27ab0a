//! Whether the source's oplog still reaches far enough. Pure: the clocks are arguments.
//!
//! What has not been read is lost when the source drops it, and then everything has to be copied again. So the alarm
//! comes while something can still be done: when what is left of the oplog, in time, is less than catching up needs.

use std::time::Duration;

/// A reader less far behind than this is level: a short oplog alone is no alarm.
const BEHIND_MIN: Duration = Duration::from_secs(30);

/// What is known of the source's oplog and of reading it; wall times in milliseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OplogFacts {
    /// Wall time of the oldest entry.
    pub oldest_ms: i64,
    /// Wall time of the newest entry.
    pub newest_ms: i64,
    /// How long ago the source said so. What it has done since is not known, and is taken to be as much as before.
    pub seen_ago: Duration,
    /// Up to where its entries are durable on this side: applied, or in the spool.
    pub read_to_ms: i64,
    /// For how long nothing more can be read: the spool is full, and the copy needs this long yet.
    pub blocked: Duration,
}

/// How much of the oplog is left, and how much is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OplogReserve {
    /// Until the entry that is read next is dropped.
    pub left: Duration,
    /// What catching up needs: as long again as reading is behind, which is what it takes at twice the pace of the
    /// source, after whatever blocks it.
    pub needed: Duration,
}

impl OplogReserve {
    /// The reserve as of now.
    #[must_use]
    pub fn of(facts: &OplogFacts) -> Self {
        let span = |from: i64, to: i64| {
            Duration::from_millis(to.saturating_sub(from).max(0).unsigned_abs())
        };
        let left = span(facts.oldest_ms, facts.read_to_ms).saturating_sub(facts.seen_ago);
        // A source that cannot be seen has as a rule gone on writing.
        let behind = span(facts.read_to_ms, facts.newest_ms) + facts.seen_ago;
        let needed = if behind < BEHIND_MIN { Duration::ZERO } else { behind } + facts.blocked;
        Self { left, needed }
    }

    /// Whether it is time for an alarm.
    #[must_use]
    pub fn is_short(&self) -> bool {
        self.needed > self.left
    }

    /// One sentence for the status.
    #[must_use]
    pub fn warning(&self) -> Option<String> {
        self.is_short().then(|| {
            format!(
                "the source's oplog will drop what is not read yet in {} s, and catching up needs about {} s; enlarge \
                 it (replSetResizeOplog) or mend what slows the reading down",
                self.left.as_secs(),
                self.needed.as_secs(),
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3600;

    /// An oplog of `window` hours of which the last `behind` have not been read.
    fn facts(window: u64, behind: u64) -> OplogFacts {
        let ms = |hours: u64| i64::try_from(hours * HOUR * 1000).unwrap();
        OplogFacts {
            oldest_ms: 0,
            newest_ms: ms(window),
            seen_ago: Duration::ZERO,
            read_to_ms: ms(window - behind),
            blocked: Duration::ZERO,
        }
    }

    fn hours(hours: u64) -> Duration {
        Duration::from_secs(hours * HOUR)
    }

    #[test]
    fn the_alarm_comes_when_half_of_the_oplog_is_used_up() {
        let reserve = OplogReserve::of(&facts(24, 11));
        assert_eq!(reserve, OplogReserve { left: hours(13), needed: hours(11) });
        assert_eq!(reserve.warning(), None);
        let reserve = OplogReserve::of(&facts(24, 13));
        assert!(reserve.is_short());
        let warning = reserve.warning().unwrap();
        assert!(warning.contains("in 39600 s") && warning.contains("about 46800 s"), "{warning}");
    }

    #[test]
    fn a_short_oplog_that_is_read_at_once_is_no_alarm() {
        let level = OplogFacts { read_to_ms: 10_000, ..facts(0, 0) };
        let short = OplogFacts { newest_ms: 20_000, ..level };
        assert!(!OplogReserve::of(&level).is_short());
        assert!(!OplogReserve::of(&short).is_short());
    }

    #[test]
    fn a_source_that_cannot_be_seen_goes_on() {
        let seen = facts(24, 0);
        let lost = |ago| OplogReserve::of(&OplogFacts { seen_ago: hours(ago), ..seen });
        assert!(!lost(11).is_short());
        assert!(lost(13).is_short());
        assert_eq!(lost(30).left, Duration::ZERO);
    }

    #[test]
    fn a_full_spool_needs_the_rest_of_the_copy_too() {
        let blocked =
            |needs| OplogReserve::of(&OplogFacts { blocked: hours(needs), ..facts(24, 1) });
        assert!(!blocked(21).is_short());
        assert!(blocked(23).is_short());
    }
}
