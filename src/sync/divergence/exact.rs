//! Counting a collection exactly on both sides at one optime.

use bson::{Document, Timestamp, doc};

use super::desk::Cut;
use crate::mongo::{Deployment, Error, bson_count, cursor_documents};
use crate::namespace::Namespace;
use crate::position::Ts;

/// What exact counts found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exact {
    /// Documents on the source.
    pub source: u64,
    /// Documents on the target.
    pub target: u64,
}

impl Exact {
    /// Documents on the source less those on the target.
    #[must_use]
    pub fn delta(self) -> i64 {
        let signed = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        signed(self.source).saturating_sub(signed(self.target))
    }
}

/// Counts both sides at the two optimes of a cut, so that nothing that is written meanwhile matters.
///
/// # Errors
/// A call failed, or the servers do not keep their history that long: another time may do better.
pub async fn count(
    source: (&Deployment, &Namespace),
    target: (&Deployment, &Namespace),
    cut: Cut,
) -> Result<Exact, Error> {
    let (source, target) = tokio::join!(
        count_at(source.0, source.1, cut.source),
        count_at(target.0, target.1, cut.target)
    );
    Ok(Exact { source: source?, target: target? })
}

async fn count_at(deployment: &Deployment, name: &Namespace, at: Ts) -> Result<u64, Error> {
    let command = command(&name.collection, at);
    let found = cursor_documents(deployment, &name.database, "count documents", command).await?;
    // An empty collection gives no group.
    let count = found.first().and_then(|found| Document::try_from(found.as_ref()).ok());
    Ok(count.map_or(0, |count| bson_count(&count, "n")))
}

fn command(collection: &str, at: Ts) -> Document {
    doc! {
        "aggregate": collection,
        "pipeline": [{ "$group": { "_id": null, "n": { "$sum": 1 } } }],
        "cursor": {},
        "readConcern": { "level": "snapshot", "atClusterTime": Timestamp::from(at) },
    }
}
