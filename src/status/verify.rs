//! What the status says about the verification that goes on all the time.

use serde::{Deserialize, Serialize};

use super::WallTime;

/// Collections named in each list at the most, the latest ones.
const NAMED_MAX: usize = 20;

/// How far the verification has come, and what it found since the daemon started.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct VerifyReport {
    /// The round under way, from 1.
    pub round: u64,
    /// Since when; `None` before the first one.
    pub since: Option<WallTime>,
    /// The collection that is being read, by its name on the source.
    pub collection: Option<String>,
    /// Collections that this round has done.
    pub collections: u64,
    /// Collections that it has to do.
    pub collections_total: u64,
    /// Documents read since the daemon started.
    pub documents: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Differences found since the daemon started.
    pub differences: u64,
    /// The latest of them.
    pub different: Vec<Noted>,
    /// What the last look at a collection could not judge, and why.
    pub unproven: Vec<Noted>,
    /// The last complete round.
    pub last_round: Option<VerifiedRound>,
}

/// Something about a collection.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Noted {
    /// Its name on the source.
    pub collection: String,
    /// In words, without contents.
    pub what: String,
    /// When.
    pub at: WallTime,
}

/// A round that was completed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VerifiedRound {
    /// When it began: what was there then was compared.
    pub began: WallTime,
    /// When it was complete.
    pub finished: WallTime,
    /// Collections that were equal.
    pub equal: u64,
    /// Collections that differed.
    pub different: u64,
    /// Collections that could not be judged.
    pub unproven: u64,
}

impl VerifyReport {
    /// Notes a difference.
    pub fn differs(&mut self, noted: Noted) {
        self.differences += 1;
        self.unproven.retain(|other| other.collection != noted.collection);
        push(&mut self.different, noted);
    }

    /// Notes what could not be judged, in place of what was noted of the same collection.
    pub fn is_unproven(&mut self, noted: Noted) {
        self.unproven.retain(|other| other.collection != noted.collection);
        push(&mut self.unproven, noted);
    }

    /// A collection was found to be equal.
    pub fn is_equal(&mut self, collection: &str) {
        self.unproven.retain(|other| other.collection != collection);
    }
}

fn push(list: &mut Vec<Noted>, noted: Noted) {
    list.push(noted);
    let surplus = list.len().saturating_sub(NAMED_MAX);
    list.drain(..surplus);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noted(collection: &str) -> Noted {
        let at = WallTime::from_ms(0);
        Noted { collection: collection.to_owned(), what: "w".to_owned(), at }
    }

    #[test]
    fn lists_stay_short_and_what_is_settled_leaves() {
        let mut report = VerifyReport::default();
        for number in 0..30 {
            report.is_unproven(noted(&format!("a.{number}")));
            report.is_unproven(noted("a.same"));
        }
        assert_eq!(report.unproven.len(), NAMED_MAX);
        assert_eq!(report.unproven.iter().filter(|n| n.collection == "a.same").count(), 1);
        report.is_equal("a.same");
        report.differs(noted("a.29"));
        assert!(report.unproven.iter().all(|n| n.collection != "a.same" && n.collection != "a.29"));
        assert_eq!((report.differences, report.different.len()), (1, 1));
    }
}
