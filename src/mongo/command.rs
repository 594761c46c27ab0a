//! Running a command. The driver reports a command whose *writes* failed as a success, inherits no write concern for it
//! and never repeats it, so the reply is read here.

use bson::{Document, RawDocument, RawDocumentBuf};
use futures_util::{Stream, StreamExt};
use mongodb::raw_batch_cursor::RawBatch;

use super::client::Deployment;
use super::error::Error;

/// Runs `command` on the primary and returns the reply.
///
/// # Errors
/// The call failed, or a write concern was not met.
pub async fn run(
    deployment: &Deployment,
    database: &str,
    action: &str,
    command: Document,
) -> Result<Document, Error> {
    let reply = deployment
        .client
        .database(database)
        .run_command(command)
        .await
        .map_err(|error| deployment.error(action, &error))?;
    check_write_concern(deployment, action, &reply)?;
    Ok(reply)
}

fn check_write_concern(
    deployment: &Deployment,
    action: &str,
    reply: &Document,
) -> Result<(), Error> {
    match reply.get_document("writeConcernError") {
        Ok(error) => {
            let code = error.get_i32("code").unwrap_or(64);
            Err(Error::from_code(deployment.side, action, code, " (write concern)"))
        }
        Err(_) => Ok(()),
    }
}

/// Runs a command that answers with a cursor, and collects all its documents.
///
/// # Errors
/// The call or a later fetch failed.
pub async fn cursor_documents(
    deployment: &Deployment,
    database: &str,
    action: &str,
    command: Document,
) -> Result<Vec<RawDocumentBuf>, Error> {
    let db = deployment.client.database(database);
    let failed = |error: mongodb::error::Error| deployment.error(action, &error);
    let cursor = db.run_cursor_command(command).batch().await.map_err(failed)?;
    let mut documents = Vec::new();
    visit(deployment, action, cursor, &mut |document| documents.push(document.to_owned())).await?;
    Ok(documents)
}

/// Shows every document of a cursor, and keeps one batch of them at a time.
///
/// # Errors
/// A fetch failed.
pub(super) async fn visit(
    deployment: &Deployment,
    action: &str,
    mut batches: impl Stream<Item = Result<RawBatch, mongodb::error::Error>> + Unpin,
    visitor: &mut (dyn FnMut(&RawDocument) + Send),
) -> Result<(), Error> {
    let failed = |error: mongodb::error::Error| deployment.error(action, &error);
    while let Some(batch) = batches.next().await {
        let batch = batch.map_err(failed)?;
        for document in batch.doc_slices().map_err(failed)? {
            let document = document.map_err(|error| failed(error.into()))?;
            if let Some(document) = document.as_document() {
                visitor(document);
            }
        }
    }
    Ok(())
}
