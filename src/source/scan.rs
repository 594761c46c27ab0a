//! Reading a whole collection in batches of raw documents. The copy reads by UUID, so that a rename meanwhile does no
//! harm.

use bson::spec::ElementType;
use bson::{RawBson, RawDocumentBuf, Uuid, cstr, rawdoc};
use futures_util::StreamExt;
use mongodb::options::{RunCursorCommandOptions, SelectionCriteria};
use mongodb::raw_batch_cursor::{RawBatch, RawBatchCursor};

use crate::mongo::{Deployment, Error, bson_count, run};
use crate::position::Ts;

/// Documents in one batch at the most: the server's limit on the statements of one command.
const BATCH_DOCUMENTS_MAX: u64 = 100_000;

/// What 5.0 says of the hint `{_id: 1}` for buckets, which have no such index.
const BAD_VALUE: i32 = 2;

/// Which collection of a database. Reading by UUID takes a privilege that those who only write a target do not need.
#[derive(Debug, Clone)]
pub enum Which {
    /// Whatever its name.
    Uuid(Uuid),
    /// Whatever has this name.
    Name(String),
}

impl From<&Which> for RawBson {
    fn from(which: &Which) -> Self {
        match which {
            Which::Uuid(uuid) => Self::Binary(bson::Binary::from(*uuid)),
            Which::Name(name) => Self::String(name.clone()),
        }
    }
}

/// What to read.
#[derive(Debug, Clone)]
pub struct ScanRequest {
    /// Database of the collection.
    pub database: String,
    /// Which collection of it.
    pub collection: Which,
    /// Read in natural order (capped collections) instead of by `_id`.
    pub natural: bool,
    /// Begin at this `{_id}`, inclusive. Only by `_id`.
    pub from_id: Option<RawDocumentBuf>,
    /// End before this `{_id}`. Only by `_id`.
    pub until_id: Option<RawDocumentBuf>,
    /// Read nothing older than this, which a lagging secondary would give.
    pub after: Ts,
    /// Documents in a batch.
    pub batch_documents: u32,
}

impl ScanRequest {
    fn command(&self) -> RawDocumentBuf {
        let mut command = RawDocumentBuf::new();
        command.append(cstr!("find"), RawBson::from(&self.collection));
        if self.natural {
            command.append(cstr!("hint"), rawdoc! { "$natural": 1 });
        } else {
            command.append(cstr!("hint"), rawdoc! { "_id": 1 });
            // `min` and `max`, and not `$gte` and `$lt`: the latter only find values of the same type.
            if let Some(id) = &self.from_id {
                command.append(cstr!("min"), id.clone());
            }
            if let Some(id) = &self.until_id {
                command.append(cstr!("max"), id.clone());
            }
        }
        self.finish(command)
    }

    /// A query with `min` and without `max` ends before `MaxKey`, which is an `_id` like any other: the query for it.
    fn command_for_max_key(&self) -> Option<RawDocumentBuf> {
        let open_end = self.from_id.is_some() && self.until_id.is_none() && !self.natural;
        open_end.then(|| {
            let mut command = RawDocumentBuf::new();
            command.append(cstr!("find"), RawBson::from(&self.collection));
            command.append(cstr!("filter"), rawdoc! { "_id": RawBson::MaxKey });
            self.finish(command)
        })
    }

    /// The same for a server that takes no hint for the buckets of a time-series collection (5.0): they are stored in
    /// the order of their `_id`s, which are all of one type.
    fn command_for_buckets(&self) -> RawDocumentBuf {
        let mut command = RawDocumentBuf::new();
        command.append(cstr!("find"), RawBson::from(&self.collection));
        command.append(cstr!("hint"), rawdoc! { "$natural": 1 });
        let mut range = RawDocumentBuf::new();
        let bounds = [(cstr!("$gte"), &self.from_id), (cstr!("$lt"), &self.until_id)];
        for (operator, bound) in bounds {
            if let Some(Ok(Some(id))) = bound.as_ref().map(|id| id.get("_id")) {
                range.append(operator, id);
            }
        }
        if !range.is_empty() {
            command.append(cstr!("filter"), rawdoc! { "_id": range });
        }
        self.finish(command)
    }

    fn begins_at_max_key(&self) -> bool {
        let from = self.from_id.as_ref().and_then(|id| id.get("_id").ok().flatten());
        from.is_some_and(|id| id.element_type() == ElementType::MaxKey)
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
    source: Deployment,
    request: ScanRequest,
    cursor: RawBatchCursor,
    /// What is read when the cursor has come to its end.
    rest: Option<RawDocumentBuf>,
}

impl std::fmt::Debug for Scan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scan").field("request", &self.request).finish_non_exhaustive()
    }
}

impl Scan {
    /// Begins reading, where the source's read preference says.
    ///
    /// # Errors
    /// The call failed; code 26 if the collection is gone.
    pub async fn open(source: &Deployment, request: ScanRequest) -> Result<Self, Error> {
        let rest = request.command_for_max_key();
        let (command, rest) = match rest {
            Some(rest) if request.begins_at_max_key() => (rest, None),
            rest => (request.command(), rest),
        };
        let (cursor, rest) = match open(source, &request, command).await {
            Err(error) if error.code() == Some(BAD_VALUE) && !request.natural => {
                (open(source, &request, request.command_for_buckets()).await?, None)
            }
            cursor => (cursor?, rest),
        };
        Ok(Self { source: source.clone(), request, cursor, rest })
    }

    /// The next batch; `None` at the end.
    ///
    /// # Errors
    /// The call failed; code 26 if the collection has been dropped.
    pub async fn next(&mut self) -> Result<Option<RawBatch>, Error> {
        loop {
            let next = self.cursor.next().await.transpose();
            let next = next.map_err(|error| self.source.error("read a collection", &error))?;
            match (next, self.rest.take()) {
                (None, Some(rest)) => {
                    self.cursor = open(&self.source, &self.request, rest).await?;
                }
                (next, rest) => {
                    self.rest = rest;
                    return Ok(next);
                }
            }
        }
    }
}

async fn open(
    source: &Deployment,
    request: &ScanRequest,
    command: RawDocumentBuf,
) -> Result<RawBatchCursor, Error> {
    let primary = SelectionCriteria::ReadPreference(mongodb::options::ReadPreference::Primary);
    let criteria = source.client.selection_criteria().cloned().unwrap_or(primary);
    // The command's own batchSize holds for the first batch only.
    let options = RunCursorCommandOptions::builder()
        .selection_criteria(criteria)
        .batch_size(request.batch_documents)
        .build();
    let database = source.client.database(&request.database);
    let cursor = database.run_raw_cursor_command(command).with_options(options).batch().await;
    cursor.map_err(|error| source.error("read a collection", &error))
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
    /// Documents that make a batch of about so many bytes.
    #[must_use]
    pub fn batch_documents(self, batch_bytes: u64) -> u32 {
        let average = self.bytes / self.documents.max(1);
        let count = (batch_bytes / average.max(1)).clamp(1, BATCH_DOCUMENTS_MAX);
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
        let of = |documents, bytes| Size { documents, bytes }.batch_documents(1 << 20);
        assert_eq!(of(1000, 1000 * 1024), 1024);
        assert_eq!(of(10, 160 << 20), 1);
        assert_eq!(of(0, 0), 100_000);
    }

    #[test]
    fn a_resumed_scan_begins_at_an_id_of_any_type() {
        let request = ScanRequest {
            database: "d".into(),
            collection: Which::Uuid(Uuid::new()),
            natural: false,
            from_id: Some(rawdoc! { "_id": f64::NAN }),
            until_id: Some(rawdoc! { "_id": "x" }),
            after: Ts::new(1, 1),
            batch_documents: 5,
        };
        let command = request.command();
        assert!(command.get_document("min").unwrap().get_f64("_id").unwrap().is_nan());
        assert_eq!(command.get_document("max").unwrap().get_str("_id").unwrap(), "x");
        assert!(command.get("filter").unwrap().is_none());
    }
}
