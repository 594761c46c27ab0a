//! What a deployment says it holds: databases, collections, views, indexes.

use bson::{Bson, Document, Uuid, doc};

use super::client::Deployment;
use super::command::{cursor_documents, run};
use super::error::{Error, unwanted_reply};
use crate::namespace::Namespace;

/// A collection, view or time-series as a server lists it.
#[derive(Debug, Clone, PartialEq)]
pub struct Listed {
    /// Name.
    pub namespace: Namespace,
    /// "collection", "view" or "timeseries".
    pub kind: String,
    /// UUID; views have none.
    pub uuid: Option<Uuid>,
    /// Options as the server states them.
    pub options: Document,
    /// Specification of the `_id` index.
    pub id_index: Option<Document>,
}

/// Names of all databases of a deployment.
///
/// # Errors
/// The call failed.
pub async fn databases(deployment: &Deployment) -> Result<Vec<String>, Error> {
    let action = "list databases";
    let command = doc! { "listDatabases": 1, "nameOnly": true };
    let reply = run(deployment, "admin", action, command).await?;
    let databases = reply
        .get_array("databases")
        .map_err(|_| unwanted_reply(deployment.side, action, "databases"))?;
    let names =
        databases.iter().filter_map(|database| database.as_document()?.get_str("name").ok());
    Ok(names.map(str::to_owned).collect())
}

/// Every collection and view of a database, in order of name.
///
/// # Errors
/// The call failed.
pub async fn collections(deployment: &Deployment, database: &str) -> Result<Vec<Listed>, Error> {
    matching(deployment, database, doc! {}).await
}

/// The collections and views of a database that match `filter`, a `listCollections` filter.
///
/// # Errors
/// The call failed.
pub async fn matching(
    deployment: &Deployment,
    database: &str,
    filter: Document,
) -> Result<Vec<Listed>, Error> {
    let action = format!("list the collections of {database}");
    let command =
        doc! { "listCollections": 1, "filter": filter, "cursor": { "batchSize": 10_000 } };
    let documents = cursor_documents(deployment, database, &action, command).await?;
    let mut listed = Vec::with_capacity(documents.len());
    for document in documents {
        let document = Document::try_from(document.as_ref())
            .map_err(|_| unwanted_reply(deployment.side, &action, "collection"))?;
        let name = document
            .get_str("name")
            .map_err(|_| unwanted_reply(deployment.side, &action, "name"))?;
        listed.push(Listed {
            namespace: Namespace::new(database, name),
            kind: document.get_str("type").unwrap_or("collection").to_owned(),
            uuid: document.get_document("info").ok().and_then(uuid_of),
            options: document.get_document("options").cloned().unwrap_or_default(),
            id_index: document.get_document("idIndex").ok().cloned(),
        });
    }
    listed.sort_by(|a, b| a.namespace.cmp(&b.namespace));
    Ok(listed)
}

fn uuid_of(info: &Document) -> Option<Uuid> {
    match info.get("uuid") {
        Some(Bson::Binary(binary)) => binary.to_uuid().ok(),
        _ => None,
    }
}

/// The indexes of the collection with this UUID or name, `_id` included. An index that is still being built is left
/// out: whether it will ever be there is told by a later oplog entry.
///
/// # Errors
/// The call failed; code 26 if the collection is gone.
pub async fn indexes(
    deployment: &Deployment,
    database: &str,
    collection: impl Into<Bson>,
) -> Result<Vec<Document>, Error> {
    let action = format!("list the indexes of a collection of {database}");
    let command = doc! { "listIndexes": collection, "includeBuildUUIDs": true };
    let documents = cursor_documents(deployment, database, &action, command).await?;
    let parsed = documents.iter().map(|document| Document::try_from(document.as_ref()));
    let indexes: Result<Vec<Document>, _> = parsed.collect();
    let mut indexes = indexes.map_err(|_| unwanted_reply(deployment.side, &action, "index"))?;
    // With includeBuildUUIDs a finished index is listed as itself, an unfinished one as {spec, buildUUID}.
    indexes.retain(|index| !index.contains_key("buildUUID"));
    Ok(indexes)
}

/// Whether a collection has any document.
///
/// # Errors
/// The call failed.
pub async fn holds_documents(deployment: &Deployment, name: &Namespace) -> Result<bool, Error> {
    let command = doc! { "find": &name.collection, "limit": 1, "singleBatch": true,
    "projection": { "_id": 1 } };
    let reply = run(deployment, &name.database, "look for documents", command).await?;
    let batch = reply.get_document("cursor").and_then(|cursor| cursor.get_array("firstBatch"));
    Ok(batch.is_ok_and(|batch| !batch.is_empty()))
}
