//! Index builds that are under way on the target, and how far the server says they are. A build takes as long as it
//! takes and the replay waits for it, so whether it moves is what has to be seen.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bson::{Document, doc};

use crate::mongo::{Deployment, Error, Failure, bson_count, cursor_documents};
use crate::namespace::Namespace;

/// The builds that this process waits for. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Builds {
    next: Arc<AtomicU64>,
    awaited: Arc<Mutex<BTreeMap<u64, Awaited>>>,
}

#[derive(Debug, Clone)]
struct Awaited {
    collection: Namespace,
    indexes: usize,
    since: Instant,
}

/// A build, as far as is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Build {
    /// The collection on the target.
    pub collection: Namespace,
    /// Indexes that are built at once.
    pub indexes: usize,
    /// For how long this process has waited for it.
    pub lasts: Duration,
    /// What the server does and how far it is; `None` where it does not say.
    pub step: Option<Step>,
}

/// One of the steps of a build.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Step {
    /// In the server's words.
    pub name: String,
    /// How many of `total` it has done.
    pub done: u64,
    /// Documents or keys.
    pub total: u64,
}

/// Takes a build off the list when it is dropped.
#[derive(Debug)]
pub(super) struct Guard {
    builds: Builds,
    number: u64,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.builds.lock().remove(&self.number);
    }
}

impl Builds {
    /// A build is waited for until the guard is dropped.
    pub(super) fn begin(&self, collection: &Namespace, indexes: usize) -> Guard {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let awaited = Awaited { collection: collection.clone(), indexes, since: Instant::now() };
        self.lock().insert(number, awaited);
        Guard { builds: self.clone(), number }
    }

    /// Looks at all of them.
    ///
    /// # Errors
    /// The call failed.
    pub async fn look(&self, target: &Deployment) -> Result<Vec<Build>, Error> {
        let awaited: Vec<Awaited> = self.lock().values().cloned().collect();
        if awaited.is_empty() {
            return Ok(Vec::new());
        }
        let mut steps = steps(target).await?;
        let builds = awaited.into_iter().map(|Awaited { collection, indexes, since }| {
            // Of several on one collection nobody can tell which is which.
            let step = steps.get_mut(&collection.to_string()).and_then(Vec::pop);
            Build { collection, indexes, lasts: since.elapsed(), step }
        });
        Ok(builds.collect())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Awaited>> {
        self.awaited.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the server's own threads that build indexes say, by collection, in an order that stays. Nothing without the
/// privilege `inprog`: they are no user's.
async fn steps(target: &Deployment) -> Result<BTreeMap<String, Vec<Step>>, Error> {
    let command = doc! {
        "aggregate": 1,
        "pipeline": [
            { "$currentOp": { "allUsers": true } },
            { "$match": { "msg": { "$regex": "^Index" }, "progress": { "$exists": true } } },
            { "$project": { "ns": 1, "msg": 1, "progress": 1 } },
        ],
        "cursor": {},
    };
    match cursor_documents(target, "admin", "look at index builds", command).await {
        Ok(found) => {
            let found = found.iter().filter_map(|found| Document::try_from(found.as_ref()).ok());
            let mut steps: BTreeMap<String, Vec<Step>> = BTreeMap::new();
            for (collection, step) in found.filter_map(|operation| step(&operation)) {
                steps.entry(collection).or_default().push(step);
            }
            steps.values_mut().for_each(|of_one| of_one.sort());
            Ok(steps)
        }
        Err(error) if error.failure == Failure::Privilege => Ok(BTreeMap::new()),
        Err(error) => Err(error),
    }
}

fn step(operation: &Document) -> Option<(String, Step)> {
    let collection = operation.get_str("ns").ok()?.to_owned();
    let progress = operation.get_document("progress").ok()?;
    let [done, total] = ["done", "total"].map(|field| bson_count(progress, field));
    let name = name(operation.get_str("msg").ok()?);
    Some((collection, Step { name, done, total }))
}

/// The server says it twice, and how far it is: `Index Build: scanning collection Index Build: scanning collection: 5/9
/// 55%`.
fn name(message: &str) -> String {
    let counts = |end: &str| end.trim_start().starts_with(|c: char| c.is_ascii_digit());
    let text = match message.rsplit_once(':') {
        Some((text, end)) if counts(end) => text,
        _ => message,
    };
    let half = text.len() / 2;
    match (text.get(..half), text.get(half + 1..)) {
        (Some(first), Some(second)) if first == second => first.to_owned(),
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_is_listed_until_nobody_waits_for_it() {
        let builds = Builds::default();
        let first = builds.begin(&Namespace::new("a", "x"), 2);
        let second = builds.clone().begin(&Namespace::new("a", "y"), 1);
        assert_eq!(builds.lock().len(), 2);
        drop(first);
        let left: Vec<String> =
            builds.lock().values().map(|awaited| awaited.collection.to_string()).collect();
        assert_eq!(left, ["a.y"]);
        drop(second);
        assert!(builds.lock().is_empty());
    }

    #[test]
    fn what_the_server_says_is_taken_apart() {
        let said = doc! {
            "ns": "shop.orders",
            "msg": "Index Build: scanning collection Index Build: scanning collection: 5/9 55%",
            "progress": {"done": 5, "total": 9_i64},
        };
        let name = "Index Build: scanning collection".to_owned();
        let expected = ("shop.orders".to_owned(), Step { name, done: 5, total: 9 });
        assert_eq!(step(&said), Some(expected));
        assert_eq!(super::name("Index Build"), "Index Build");
        assert_eq!(super::name("Index Build: draining"), "Index Build: draining");
        assert_eq!(super::name("wörter wörter"), "wörter");
        assert_eq!(step(&doc! {"ns": "a.b", "msg": "Index Build"}), None);
    }
}
