//! Places in an oplog: [`Ts`], the timestamp of an entry, and [`OpTime`], a timestamp with the election term it was
//! written in. Every boundary inside snapsync is one of these, never a wall clock: wall clocks step back, `ts` does
//! not. And [`Cut`], a place in each of two oplogs.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use bson::Uuid;
use serde::{Deserialize, Serialize};

/// The timestamp of an oplog entry: seconds since 1970 and an ordinal within that second. Unique and strictly
/// increasing within one oplog; both parts compare as unsigned numbers.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct Ts {
    /// Seconds since 1970-01-01T00:00:00Z by the cluster's clock, which may run ahead of any wall clock.
    pub t: u32,
    /// Ordinal within the second, from 1.
    pub i: u32,
}

impl Ts {
    /// Before every entry of every oplog.
    pub const ZERO: Ts = Ts { t: 0, i: 0 };

    /// The timestamp with these parts.
    #[must_use]
    pub const fn new(t: u32, i: u32) -> Self {
        Self { t, i }
    }

    /// A timestamp right before this one: for those who read what comes *after* a timestamp.
    #[must_use]
    pub const fn just_before(self) -> Self {
        Self { t: self.t, i: self.i.saturating_sub(1) }
    }
}

impl fmt::Display for Ts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.t, self.i)
    }
}

impl FromStr for Ts {
    type Err = ParseTsError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseTsError { text: text.to_owned() };
        let (t, i) = text.split_once(':').ok_or_else(error)?;
        Ok(Self { t: t.parse().map_err(|_| error())?, i: i.parse().map_err(|_| error())? })
    }
}

impl From<bson::Timestamp> for Ts {
    fn from(ts: bson::Timestamp) -> Self {
        Self { t: ts.time, i: ts.increment }
    }
}

impl From<Ts> for bson::Timestamp {
    fn from(ts: Ts) -> Self {
        Self { time: ts.t, increment: ts.i }
    }
}

/// Two optimes at which both sides hold the same, for every collection that is not held. Reads at them need no pause of
/// the replay, as long as the servers keep their history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cut {
    /// The window end, an optime of the source.
    pub source: Ts,
    /// An optime of the target at which everything up to there, and nothing after it, is applied.
    pub target: Ts,
    /// What is being copied again, by its UUID on the source.
    pub held: BTreeSet<Uuid>,
}

/// What the target is while nothing is applied: the source at an optime.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Still {
    /// An optime of the source.
    pub source: Ts,
    /// What is being copied again, by its UUID on the source.
    pub held: BTreeSet<Uuid>,
}

/// A text that is not `t:i`, such as `1731681000:3`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not an oplog timestamp; write it as seconds:ordinal, for example 1731681000:3"
)]
pub struct ParseTsError {
    text: String,
}

/// An oplog entry's identity: its timestamp and election term. After a rollback another entry may carry the same
/// timestamp, but never with the same term. Ordered by timestamp first.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct OpTime {
    /// When.
    pub ts: Ts,
    /// Election term; -1 where the entry has none (the very first entry of a replica set).
    pub term: i64,
}

impl OpTime {
    /// The operation time with these parts.
    #[must_use]
    pub const fn new(ts: Ts, term: i64) -> Self {
        Self { ts, term }
    }
}

impl fmt::Display for OpTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (term {})", self.ts, self.term)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn prints_and_parses_back(t: u32, i: u32) {
            prop_assert_eq!(Ts::new(t, i).to_string().parse::<Ts>(), Ok(Ts::new(t, i)));
        }

        #[test]
        fn orders_by_second_then_ordinal(a: (u32, u32), b: (u32, u32)) {
            prop_assert_eq!(Ts::new(a.0, a.1).cmp(&Ts::new(b.0, b.1)), a.cmp(&b));
        }
    }

    #[test]
    fn refuses_what_is_not_a_timestamp() {
        for text in ["", "1", ":", "1:", ":1", "-1:2", "1:2:3", "4294967296:0"] {
            assert!(text.parse::<Ts>().is_err(), "{text}");
        }
    }
}
