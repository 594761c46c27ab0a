//! What the status says about index builds on the target.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::bar::span;

/// A build that the replay, the copy or a resync waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexBuild {
    /// The collection on the target.
    pub collection: String,
    /// Indexes that are built at once.
    pub indexes: u64,
    /// For how long it has been waited for.
    pub seconds: u64,
    /// What the target does, in its own words. `None`, like the next two, where it does not say: the user on the target
    /// wants the privilege `inprog` for that.
    pub step: Option<String>,
    /// Documents or keys that this step has done.
    pub done: Option<u64>,
    /// Documents or keys that it has to do.
    pub total: Option<u64>,
}

impl fmt::Display for IndexBuild {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let span = span(Duration::from_secs(self.seconds));
        write!(f, "{}: {} indexes for {span}", self.collection, self.indexes)?;
        match (&self.step, self.done, self.total) {
            (Some(step), Some(done), Some(total)) => write!(f, ", {step}, {done} of {total}"),
            _ => write!(f, ", how far is not known"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_says_how_far_it_is_or_that_nobody_knows() {
        let blind = IndexBuild {
            collection: "shop.orders".into(),
            indexes: 2,
            seconds: 61,
            step: None,
            done: None,
            total: None,
        };
        assert_eq!(blind.to_string(), "shop.orders: 2 indexes for 1m 1s, how far is not known");
        let step = Some("Index Build: scanning collection".into());
        let seen = IndexBuild { step, done: Some(5), total: Some(9), ..blind };
        let expected = "shop.orders: 2 indexes for 1m 1s, Index Build: scanning collection, 5 of 9";
        assert_eq!(seen.to_string(), expected);
    }
}
