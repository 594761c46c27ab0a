//! The mirror: what the state directory holds of a migration, kept on the target as well, in its lease. If the state
//! directory is lost it is taken from here; and it shows a target that was set back.
//!
//! The catalogue can be large, so it lies in pieces of its own in `snapsync.catalogue`. A new one is written beside the
//! old one, and comes into force with the position that belongs to it, in one write to the lease.

use bson::spec::BinarySubtype;
use bson::{Binary, Bson, Document, doc};
use serde::{Deserialize, Serialize};

use super::{COLLECTION, DATABASE, Lease, Renewed, is_live};
use crate::mongo::{Deployment, Error, bson_count, cursor_documents, run};
use crate::position::{Cut, Still};

const CATALOGUE: &str = "catalogue";
/// Bytes of a piece: well below the 16 MiB that a document may have.
const PIECE_BYTES: usize = 8 * 1024 * 1024;

/// Which catalogue, and how to know it whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CatalogueReference {
    /// The lease's generation that it was written under.
    generation: i64,
    /// Counts the catalogues of that generation.
    version: i64,
    pieces: i32,
    bytes: i64,
    crc: i64,
}

/// A mirrored migration.
#[derive(Debug, Clone, PartialEq)]
pub struct Mirror {
    /// Identity of the migration.
    pub instance: String,
    /// Where the state directory was that is mirrored.
    pub home: String,
    /// Whether somebody else has taken the lease away.
    pub is_taken: bool,
    /// When the lease ends or ended, in seconds since 1970 by the server's clock.
    pub expires: i64,
    /// Grows with every mirroring.
    pub sequence: u64,
    /// The durable record, as JSON.
    pub record: String,
    /// The catalogue that belongs to it.
    pub catalogue: Option<CatalogueReference>,
    /// The generation of the lease.
    pub generation: u64,
    /// Whether somebody holds the lease now.
    pub is_held: bool,
    /// The newest pair of optimes at which both sides held the same.
    pub cut: Option<Cut>,
    /// Nothing is being applied, for as long as this stands here.
    pub still: Option<Still>,
}

impl Mirror {
    fn read(lease: &Document) -> Option<Self> {
        let mirror = lease.get_document("mirror").ok()?;
        let catalogue = mirror.get("catalogue").cloned();
        Some(Self {
            instance: lease.get_str("_id").ok()?.to_owned(),
            home: lease.get_str("home").unwrap_or_default().to_owned(),
            is_taken: lease.get_str("taken_by").is_ok(),
            expires: lease.get_datetime("expires").ok()?.timestamp_millis() / 1000,
            sequence: bson_count(mirror, "sequence"),
            record: mirror.get_str("record").ok()?.to_owned(),
            catalogue: catalogue.and_then(|value| bson::deserialize_from_bson(value).ok()),
            generation: bson_count(lease, "generation"),
            is_held: lease.get_bool("live").unwrap_or(false),
            cut: mirror.get("cut").cloned().and_then(|cut| bson::deserialize_from_bson(cut).ok()),
            still: lease.get("still").cloned().and_then(|at| bson::deserialize_from_bson(at).ok()),
        })
    }
}

/// Mirrors a record, with the catalogue that belongs to it and the newest cut, on a target that holds the mirroring
/// before this one, or a later one; and renews the lease with that.
///
/// # Errors
/// The call failed; it may be done again under the same number.
pub async fn store_record(
    lease: &Lease,
    sequence: u64,
    record: &str,
    catalogue: Option<&CatalogueReference>,
    cut: Option<&Cut>,
) -> Result<Renewed, Error> {
    let failed = |error: bson::error::Error| {
        Error::other(lease.target.side, "mirror the position", error.to_string())
    };
    let catalogue = catalogue.map(bson::serialize_to_bson).transpose().map_err(failed)?;
    let cut = cut.map(bson::serialize_to_bson).transpose().map_err(failed)?;
    let sequence = i64::try_from(sequence).unwrap_or(i64::MAX);
    let held = doc! { "$or": [
        { "mirror.sequence": { "$gte": sequence - 1 } },
        // The first one, or the first one after a person said that all is well although there was none.
        { "mirror": { "$exists": false } },
    ] };
    let mirror =
        doc! { "sequence": sequence, "record": record, "catalogue": catalogue, "cut": cut };
    lease.renew_where(held, doc! { "mirror": mirror }).await
}

/// All mirrors on the target.
///
/// # Errors
/// The call failed.
pub async fn list(target: &Deployment) -> Result<Vec<Mirror>, Error> {
    let command = doc! {
        "aggregate": COLLECTION,
        "pipeline": [{ "$match": { "mirror": { "$exists": true } } }, is_live()],
        "cursor": {},
    };
    let documents = cursor_documents(target, DATABASE, "read the mirrors", command).await?;
    let parsed = documents.iter().filter_map(|document| Document::try_from(document.as_ref()).ok());
    Ok(parsed.filter_map(|lease| Mirror::read(&lease)).collect())
}

/// Writes a catalogue beside those that are there.
///
/// # Errors
/// The call failed; it may be done again.
pub async fn store_catalogue(
    lease: &Lease,
    version: i64,
    json: &[u8],
) -> Result<CatalogueReference, Error> {
    let generation = i64::try_from(lease.generation).unwrap_or(i64::MAX);
    let mut pieces = 0;
    for (number, piece) in (0..).zip(json.chunks(PIECE_BYTES)) {
        let id = doc! {
            "instance": &lease.instance, "generation": generation, "version": version, "piece": number,
        };
        let bytes = Binary { subtype: BinarySubtype::Generic, bytes: piece.to_vec() };
        let command = doc! {
            "update": CATALOGUE,
            "updates": [{ "q": { "_id": id }, "u": { "$set": { "json": bytes } }, "upsert": true }],
            "writeConcern": { "w": "majority" },
        };
        run(&lease.target, DATABASE, "mirror the catalogue", command).await?;
        pieces = number + 1;
    }
    let bytes = i64::try_from(json.len()).unwrap_or(i64::MAX);
    let crc = i64::from(crc32c::crc32c(json));
    Ok(CatalogueReference { generation, version, pieces, bytes, crc })
}

/// Removes the catalogues that another one has replaced.
///
/// # Errors
/// The call failed.
pub async fn remove_replaced(lease: &Lease, kept: &CatalogueReference) -> Result<(), Error> {
    // Never those of a later holder: this one may have slept.
    let older = doc! { "$or": [
        { "_id.generation": { "$lt": kept.generation } },
        { "_id.generation": kept.generation, "_id.version": { "$lt": kept.version } },
    ] };
    let query = doc! { "$and": [{ "_id.instance": &lease.instance }, older] };
    let command = doc! { "delete": CATALOGUE, "deletes": [{ "q": query, "limit": 0 }] };
    run(&lease.target, DATABASE, "remove a replaced catalogue", command).await.map(drop)
}

/// Reads a mirrored catalogue, as JSON; `None` if it is not there whole.
///
/// # Errors
/// The call failed.
pub async fn load_catalogue(
    target: &Deployment,
    instance: &str,
    reference: &CatalogueReference,
) -> Result<Option<Vec<u8>>, Error> {
    let mut json = Vec::new();
    for number in 0..reference.pieces {
        let id = doc! {
            "instance": instance, "generation": reference.generation, "version": reference.version,
            "piece": number,
        };
        let command = doc! { "find": CATALOGUE, "filter": { "_id": id }, "limit": 1 };
        let found = cursor_documents(target, DATABASE, "read the mirrored catalogue", command);
        let found = found.await?;
        let piece = found.first().and_then(|document| document.get_binary("json").ok());
        let Some(piece) = piece else { return Ok(None) };
        json.extend_from_slice(piece.bytes);
    }
    let whole = i64::try_from(json.len()) == Ok(reference.bytes)
        && i64::from(crc32c::crc32c(&json)) == reference.crc;
    Ok(whole.then_some(json))
}

/// Forgets a migration on the target: its lease and its mirror. What it copied stays.
///
/// # Errors
/// The call failed; it may be done again.
pub async fn forget(target: &Deployment, instance: &str) -> Result<(), Error> {
    let forget = |collection: &str, field: &str| -> Document {
        let query: Document = [(field.to_owned(), Bson::from(instance))].into_iter().collect();
        doc! {
            "delete": collection,
            "deletes": [{ "q": query, "limit": 0 }],
            "writeConcern": { "w": "majority" },
        }
    };
    let action = "forget the migration on the target";
    // The lease last: as long as it is there this can be done again.
    run(target, DATABASE, action, forget(CATALOGUE, "_id.instance")).await?;
    run(target, DATABASE, action, forget(COLLECTION, "_id")).await.map(drop)
}
