//! Reading a whole collection in batches of raw documents, by UUID, so that a rename meanwhile does no harm.

use bson::{RawDocumentBuf, Uuid, cstr, rawdoc};
use futures_util::StreamExt;
use mongodb::options::{RunCursorCommandOptions, SelectionCriteria};
use mongodb::raw_batch_cursor::{RawBatch, RawBatchCursor};

use crate::mongo::{Deployment, Error, bson_count, run};
use crate::position::Ts;

/// Bytes of documents in one batch, about. Larger batches cost no less processor time but more memory.
pub const BATCH_BYTES: u64 = 1024 * 1024;
/// Documents in one batch at the most: the server's limit on the statements of one command.
const BATCH_DOCUMENTS_MAX: u64 = 100_000;

/// What 5.0 says of the hint `{_id: 1}` for buckets, which have no such index.
const BAD_VALUE: i32 = 2;

/// What to read.
#[derive(Debug, Clone)]
pub struct ScanRequest {
    /// Database of the collection.
    pub database: String,
    /// UUID of the collection.
    pub uuid: Uuid,
    /// Read in natural order (capped collections) instead of by `_id`.
    pub natural: bool,
    /// Begin at this `{_id}`, inclusive. Only by `_id`.
    pub from_id: Option<RawDocumentBuf>,
    /// Read nothing older than this, which a lagging secondary would give.
    pub after: Ts,
    /// Documents in a batch.
    pub batch_documents: u32,
}

impl ScanRequest {
    fn command(&self) -> RawDocumentBuf {
        let mut command = RawDocumentBuf::new();
        command.append(cstr!("find"), bson::Binary::from(self.uuid));
        if self.natural {
            command.append(cstr!("hint"), rawdoc! { "$natural": 1 });
        } else {
            command.append(cstr!("hint"), rawdoc! { "_id": 1 });
            if let Some(id) = &self.from_id {
                // `min` and not `$gte`: the latter only finds values of the same type.
                command.append(cstr!("min"), id.clone());
            }
        }
        self.finish(command)
    }

    /// The same for a server that takes no hint for the buckets of a time-series collection (5.0): they are stored in
    /// the order of their `_id`s, which are all of one type.
    fn command_for_buckets(&self) -> RawDocumentBuf {
        let mut command = RawDocumentBuf::new();
        command.append(cstr!("find"), bson::Binary::from(self.uuid));
        command.append(cstr!("hint"), rawdoc! { "$natural": 1 });
        if let Some(Ok(Some(id))) = self.from_id.as_ref().map(|id| id.get("_id")) {
            let mut from = RawDocumentBuf::new();
            from.append(cstr!("$gte"), id);
            command.append(cstr!("filter"), rawdoc! { "_id": from });
        }
        self.finish(command)
    }

    fn finish(&self, mut command: RawDocumentBuf) -> RawDocumentBuf {
        command.append(cstr!("batchSize"), i32::try_from(self.batch_documents).unwrap_or(i32::MAX));
        command.append(cstr!("noCursorTimeout"), true);
        let after = bson::Timestamp::from(self.after);
        let concern = rawdoc! { "level": "majority", "afterClusterTime": after };
        command.append(cstr!("readConcern"), concern);
        command
    }
}

/// A collection being read.
pub struct Scan {
    deployment: Deployment,
    cursor: RawBatchCursor,
}

impl std::fmt::Debug for Scan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scan").finish_non_exhaustive()
    }
}

impl Scan {
    /// Begins reading, where the source's read preference says.
    ///
    /// # Errors
    /// The call failed; code 26 if the collection is gone.
    pub async fn open(source: &Deployment, request: &ScanRequest) -> Result<Self, Error> {
        let options = source.client.selection_criteria().cloned().unwrap_or(
            SelectionCriteria::ReadPreference(mongodb::options::ReadPreference::Primary),
        );
        // The command's own batchSize holds for the first batch only.
        let options = RunCursorCommandOptions::builder()
            .selection_criteria(options)
            .batch_size(request.batch_documents)
            .build();
        let database = source.client.database(&request.database);
        let open = async |command| {
            let cursor = database.run_raw_cursor_command(command).with_options(options.clone());
            cursor.batch().await.map_err(|error| source.error("read a collection", &error))
        };
        let cursor = match open(request.command()).await {
            Err(error) if error.code() == Some(BAD_VALUE) && !request.natural => {
                open(request.command_for_buckets()).await?
            }
            cursor => cursor?,
        };
        Ok(Self { deployment: source.clone(), cursor })
    }

    /// The next batch; `None` at the end.
    ///
    /// # Errors
    /// The call failed; code 26 if the collection has been dropped.
    pub async fn next(&mut self) -> Result<Option<RawBatch>, Error> {
        let next = self.cursor.next().await.transpose();
        next.map_err(|error| self.deployment.error("read a collection", &error))
    }
}

/// How large a collection is, by its metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Size {
    /// Documents.
    pub documents: u64,
    /// Bytes of documents, uncompressed.
    pub bytes: u64,
}

impl Size {
    /// Documents that make a batch of about [`BATCH_BYTES`].
    #[must_use]
    pub fn batch_documents(self) -> u32 {
        let average = self.bytes / self.documents.max(1);
        let count = (BATCH_BYTES / average.max(1)).clamp(1, BATCH_DOCUMENTS_MAX);
        u32::try_from(count).unwrap_or(u32::MAX)
    }
}

/// Asks for the size of a collection.
///
/// # Errors
/// The call failed.
pub async fn size(source: &Deployment, database: &str, collection: &str) -> Result<Size, Error> {
    let command = bson::doc! { "collStats": collection };
    let reply = run(source, database, "read the size of a collection", command).await?;
    Ok(Size { documents: bson_count(&reply, "count"), bytes: bson_count(&reply, "size") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_hold_about_as_many_bytes_whatever_the_documents() {
        assert_eq!(Size { documents: 1000, bytes: 1000 * 1024 }.batch_documents(), 1024);
        assert_eq!(Size { documents: 10, bytes: 160 << 20 }.batch_documents(), 1);
        assert_eq!(Size { documents: 0, bytes: 0 }.batch_documents(), 100_000);
    }

    #[test]
    fn a_resumed_scan_begins_at_an_id_of_any_type() {
        let request = ScanRequest {
            database: "d".into(),
            uuid: Uuid::new(),
            natural: false,
            from_id: Some(rawdoc! { "_id": f64::NAN }),
            after: Ts::new(1, 1),
            batch_documents: 5,
        };
        let command = request.command();
        assert!(command.get_document("min").unwrap().get_f64("_id").unwrap().is_nan());
        assert!(command.get("filter").unwrap().is_none());
    }
}
