//! The floor: the same bytes from the source to the target through as little as there can be between them.

use std::sync::Arc;

use bson::{Document, RawDocumentBuf, cstr, doc};
use futures_util::{StreamExt, TryStreamExt, stream};
use mongodb::Client;
use tokio::sync::Mutex;

/// Connections to each side.
pub const CONNECTIONS: usize = 4;
const BATCH_BYTES: u64 = 1 << 20;

/// Every user collection of a deployment.
pub async fn namespaces(client: &Client) -> Vec<(String, String)> {
    let mut names = Vec::new();
    for database in client.list_database_names().await.expect("databases") {
        if ["admin", "config", "local", "snapsync"].contains(&database.as_str()) {
            continue;
        }
        let collections = client.database(&database).list_collection_names().await;
        let collections = collections.expect("collections").into_iter();
        names.extend(collections.map(|name| (database.clone(), name)));
    }
    names
}

/// Reads every document, writes it, and then builds the indexes.
pub async fn copy(source: &Client, target: &Client) {
    let all = namespaces(source).await;
    let each = all.iter().cloned();
    stream::iter(each)
        .for_each_concurrent(CONNECTIONS, |(database, name)| one(source, target, database, name))
        .await;
    stream::iter(all)
        .for_each_concurrent(2, |(database, name)| build(source, target, database, name))
        .await;
}

async fn one(source: &Client, target: &Client, database: String, name: String) {
    let stats = source.database(&database).run_command(doc! { "collStats": &name }).await;
    let stats = stats.expect("collStats");
    let average = stats.get_i32("avgObjSize").map_or(1024, |n| u64::from(n.unsigned_abs())).max(1);
    let batch = u32::try_from((BATCH_BYTES / average).clamp(1, 100_000)).expect("small");
    let cursor = source
        .database(&database)
        .collection::<RawDocumentBuf>(&name)
        .find(doc! {})
        .batch_size(batch)
        .batch()
        .await
        .expect("read");
    // Two writers a reader, so that writing never waits for reading.
    let cursor = Arc::new(Mutex::new(cursor));
    let writers = (0..2).map(|_| {
        let (cursor, database, name) = (cursor.clone(), target.database(&database), name.as_str());
        async move {
            loop {
                let Some(batch) = cursor.lock().await.try_next().await.expect("read on") else {
                    return;
                };
                let documents = batch.doc_slices().expect("documents");
                if documents.is_empty() {
                    continue;
                }
                let mut command = RawDocumentBuf::new();
                command.append(cstr!("insert"), name);
                command.append(cstr!("documents"), documents);
                command.append(cstr!("ordered"), false);
                command.append(cstr!("writeConcern"), bson::rawdoc! { "w": "majority" });
                let reply = database.run_raw_command(command).await.expect("insert");
                assert!(!reply.contains_key("writeErrors"), "the floor writes everything once");
            }
        }
    });
    futures_util::future::join_all(writers).await;
}

async fn build(source: &Client, target: &Client, database: String, name: String) {
    let command = doc! { "listIndexes": &name };
    let reply = source.database(&database).run_command(command).await.expect("listIndexes");
    let cursor = reply.get_document("cursor").expect("cursor");
    let listed = cursor.get_array("firstBatch").expect("batch").iter();
    let indexes: Vec<Document> = listed.filter_map(|index| index.as_document().cloned()).collect();
    let indexes: Vec<Document> =
        indexes.into_iter().filter(|index| !matches!(index.get_str("name"), Ok("_id_"))).collect();
    if !indexes.is_empty() {
        let command = doc! { "createIndexes": &name, "indexes": indexes };
        target.database(&database).run_command(command).await.expect("createIndexes");
    }
}

/// Sends prepared write commands, each with the database it goes to.
pub async fn write(target: &Client, commands: Vec<(String, RawDocumentBuf)>) {
    stream::iter(commands)
        .for_each_concurrent(CONNECTIONS, |(database, command)| async move {
            let reply = target.database(&database).run_raw_command(command).await.expect("write");
            assert!(!reply.contains_key("writeErrors"), "the floor's writes are carried out");
        })
        .await;
}
