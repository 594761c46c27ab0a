//! Which deltas get a line in the log this round. Pure: the clock is an argument.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::config::DeltaLog as Mode;
use crate::status::{CollectionDelta, DatabaseDelta};

/// Up to so many collections `auto` logs all of them every round.
pub const COLLECTIONS_ALL_MAX: usize = 100;

/// Above [`COLLECTIONS_ALL_MAX`], `auto` logs all of them this often.
pub const ALL_EVERY: Duration = Duration::from_secs(600);

/// What is worth a line in one round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeltaLines<'a> {
    /// Collections, in the order given.
    pub collections: Vec<&'a CollectionDelta>,
    /// Databases, in the order given.
    pub databases: Vec<&'a DatabaseDelta>,
}

/// Remembers the round before.
#[derive(Debug)]
pub struct DeltaLog {
    mode: Mode,
    collections: HashMap<String, i64>,
    databases: HashMap<String, i64>,
    all_at: Option<Instant>,
}

impl DeltaLog {
    /// A log that has seen no round: everything in the first one counts as changed.
    #[must_use]
    pub fn new(mode: Mode) -> Self {
        Self { mode, collections: HashMap::new(), databases: HashMap::new(), all_at: None }
    }

    /// Goes on in another mode, after a reload of the configuration.
    pub fn set_mode(&mut self, mode: Mode) {
        self.mode = mode;
    }

    /// Takes the deltas of one round and tells which of them to log.
    pub fn round<'a>(
        &mut self,
        now: Instant,
        collections: &'a [CollectionDelta],
        databases: &'a [DatabaseDelta],
    ) -> DeltaLines<'a> {
        let all = self.logs_all(now, collections.len());
        if all {
            self.all_at = Some(now);
        }
        let worth = |before: &HashMap<String, i64>, name: &String, delta: i64| {
            all || delta != 0 || before.get(name) != Some(&delta)
        };
        let lines = DeltaLines {
            collections: collections
                .iter()
                .filter(|now| worth(&self.collections, &now.collection, now.delta))
                .collect(),
            databases: databases
                .iter()
                .filter(|now| worth(&self.databases, &now.database, now.delta))
                .collect(),
        };
        self.collections =
            collections.iter().map(|now| (now.collection.clone(), now.delta)).collect();
        self.databases = databases.iter().map(|now| (now.database.clone(), now.delta)).collect();
        lines
    }

    fn logs_all(&self, now: Instant, count: usize) -> bool {
        match self.mode {
            Mode::All => true,
            Mode::Changed => false,
            Mode::Auto => {
                let is_due = |all_at| now.saturating_duration_since(all_at) >= ALL_EVERY;
                count <= COLLECTIONS_ALL_MAX || self.all_at.is_none_or(is_due)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::sum_by_database;

    /// Collections `shop.0`, `shop.1` and so on with these deltas.
    fn deltas(values: &[i64]) -> Vec<CollectionDelta> {
        let delta = |(number, &delta): (usize, &i64)| CollectionDelta {
            collection: format!("shop.{number}"),
            target_collection: format!("shop.{number}"),
            source: 0,
            target: 0,
            delta,
            exact: false,
        };
        values.iter().enumerate().map(delta).collect()
    }

    fn logged(log: &mut DeltaLog, now: Instant, values: &[i64]) -> (Vec<String>, usize) {
        let collections = deltas(values);
        let databases = sum_by_database(&collections);
        let lines = log.round(now, &collections, &databases);
        let names = lines.collections.iter().map(|delta| delta.collection.clone()).collect();
        (names, lines.databases.len())
    }

    #[test]
    fn all_is_all_always() {
        let mut log = DeltaLog::new(Mode::All);
        for _ in 0..3 {
            assert_eq!(logged(&mut log, Instant::now(), &[0; 200]).0.len(), 200);
        }
    }

    #[test]
    fn changed_is_what_moved_and_what_is_not_zero() {
        let mut log = DeltaLog::new(Mode::Changed);
        let now = Instant::now();
        assert_eq!(logged(&mut log, now, &[0, 0, 3]).0.len(), 3, "all are new");
        assert_eq!(logged(&mut log, now, &[0, 0, 3]), (vec!["shop.2".into()], 1));
        assert_eq!(logged(&mut log, now, &[0, 0, 0]), (vec!["shop.2".into()], 1));
        assert_eq!(logged(&mut log, now, &[0, 0, 0]), (vec![], 0));
        assert_eq!(logged(&mut log, now, &[0, 0, 0, 0]), (vec!["shop.3".into()], 0));
        assert_eq!(logged(&mut log, now, &[1, -1, 0, 0]).1, 0, "the sum is as it was");
    }

    #[test]
    fn auto_is_all_up_to_a_hundred_collections() {
        let mut log = DeltaLog::new(Mode::Auto);
        let now = Instant::now();
        for _ in 0..2 {
            assert_eq!(logged(&mut log, now, &[0; 100]).0.len(), 100);
        }
        assert_eq!(logged(&mut log, now, &[0; 101]).0, ["shop.100"]);
    }

    #[test]
    fn auto_with_more_is_what_changed_and_all_every_ten_minutes() {
        let mut log = DeltaLog::new(Mode::Auto);
        let start = Instant::now();
        let quiet = vec![0; 101];
        let mut moved = quiet.clone();
        moved[7] = 2;
        assert_eq!(logged(&mut log, start, &quiet), (logged_names(101), 1));
        let later = start + Duration::from_secs(599);
        assert_eq!(logged(&mut log, later, &moved), (vec!["shop.7".into()], 1));
        let due = start + ALL_EVERY;
        assert_eq!(logged(&mut log, due, &moved).0.len(), 101);
        assert_eq!(logged(&mut log, due + Duration::from_secs(599), &quiet).0.len(), 1);
        assert_eq!(logged(&mut log, due + ALL_EVERY, &quiet).0.len(), 101);
    }

    #[test]
    fn thousands_of_quiet_collections_are_quiet() {
        let mut log = DeltaLog::new(Mode::Auto);
        let start = Instant::now();
        let mut values = vec![0; 5000];
        assert_eq!(logged(&mut log, start, &values).0.len(), 5000);
        let mut lines = 0;
        for round in 1..60 {
            values[round] = 1;
            values[round - 1] = 0;
            let now = start + Duration::from_secs(10) * u32::try_from(round).unwrap();
            let (collections, databases) = logged(&mut log, now, &values);
            lines += collections.len() + databases;
        }
        assert!(lines < 59 * 4, "{lines}");
    }

    fn logged_names(count: usize) -> Vec<String> {
        (0..count).map(|number| format!("shop.{number}")).collect()
    }
}
