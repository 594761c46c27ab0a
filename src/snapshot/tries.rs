//! How often each collection was tried, and what came in the way. Pure.

use std::collections::BTreeMap;

use bson::Uuid;

/// Failures by the collection's UUID on the source.
#[derive(Debug)]
pub(super) struct Tries {
    attempts: u32,
    failures: BTreeMap<Uuid, (u32, String)>,
}

impl Tries {
    pub(super) fn new(attempts: u32) -> Self {
        Self { attempts: attempts.max(1), failures: BTreeMap::new() }
    }

    /// Notes a failure. True if there is another attempt left.
    pub(super) fn fail(&mut self, uuid: Uuid, why: impl Into<String>) -> bool {
        let (count, last) = self.failures.entry(uuid).or_default();
        *count += 1;
        *last = why.into();
        *count < self.attempts
    }

    /// How many attempts are left.
    pub(super) fn left(&self, uuid: &Uuid) -> u32 {
        self.attempts.saturating_sub(self.failures.get(uuid).map_or(0, |(count, _)| *count))
    }

    /// Attempts that failed.
    pub(super) fn failures(&self, uuid: &Uuid) -> u32 {
        self.failures.get(uuid).map_or(0, |(count, _)| *count)
    }

    /// What came in the way last.
    pub(super) fn why(&self, uuid: &Uuid) -> Option<&str> {
        self.failures.get(uuid).map(|(_, why)| why.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_collection_has_its_own_attempts() {
        let mut tries = Tries::new(2);
        let [bad, good] = [Uuid::new(), Uuid::new()];
        assert!(tries.fail(bad, "first"));
        assert_eq!((tries.left(&bad), tries.left(&good)), (1, 2));
        assert!(!tries.fail(bad, "second"));
        assert_eq!(
            (tries.left(&bad), tries.failures(&bad), tries.why(&bad)),
            (0, 2, Some("second"))
        );
        assert!(!Tries::new(0).fail(good, "once"), "there is always one attempt");
    }
}
