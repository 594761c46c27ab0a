//! Counting a collection exactly on both sides at one optime.

use bson::{Document, Timestamp, Uuid, doc};

use crate::catalogue::Collection;
use crate::mongo::{Deployment, Error, SnapshotReader, bson_count, cursor_documents, listing};
use crate::namespace::Namespace;
use crate::position::{Cut, Ts};

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

/// Counts on both sides.
#[derive(Debug)]
pub struct Counters {
    source: SnapshotReader,
    target: SnapshotReader,
}

impl Counters {
    /// Of these two.
    #[must_use]
    pub fn new(source: &Deployment, target: &Deployment) -> Self {
        let [source, target] = [source, target].map(|side| SnapshotReader::new(side.clone()));
        Self { source, target }
    }

    /// Counts both sides at the two optimes of a cut, so that nothing that is written meanwhile matters. `None` if the
    /// collection is not the one of that name on the source any more: what was counted is then another one, or none.
    ///
    /// # Errors
    /// A call failed, or the servers do not keep their history that long: another time may do better.
    pub async fn count(
        &mut self,
        uuid: Uuid,
        collection: &Collection,
        cut: &Cut,
    ) -> Result<Option<Exact>, Error> {
        let Collection { source: name, target, .. } = collection;
        let counted = tokio::join!(
            count_at(&mut self.source, name, cut.source),
            count_at(&mut self.target, target, cut.target)
        );
        let filter = doc! { "name": &name.collection };
        let source = self.source.deployment();
        let listed = listing::matching(source, &name.database, filter).await?;
        if listed.first().and_then(|listed| listed.uuid) != Some(uuid) {
            return Ok(None);
        }
        Ok(Some(Exact { source: counted.0?, target: counted.1? }))
    }
}

const COUNT: &str = "count documents exactly";

fn counting(name: &Namespace) -> Document {
    doc! {
        "aggregate": &name.collection,
        "pipeline": [{ "$group": { "_id": null, "n": { "$sum": 1 } } }],
        "cursor": {},
    }
}

/// Counts documents as of now.
///
/// # Errors
/// The call failed.
pub async fn count_now(side: &Deployment, name: &Namespace) -> Result<u64, Error> {
    let found = cursor_documents(side, &name.database, COUNT, counting(name)).await?;
    let found = found.first().and_then(|count| Document::try_from(count.as_ref()).ok());
    Ok(found.map_or(0, |count| bson_count(&count, "n")))
}

async fn count_at(reader: &mut SnapshotReader, name: &Namespace, at: Ts) -> Result<u64, Error> {
    // An empty collection gives no group.
    let found = reader.first(&name.database, COUNT, counting(name), Timestamp::from(at)).await?;
    Ok(found.map_or(0, |count| bson_count(&count, "n")))
}
