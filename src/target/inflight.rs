//! Clearing away what earlier runs left in flight. A command sent before a kill goes on running in the server and would
//! overwrite newer state, so before the first write every such operation is killed and waited out.

use std::time::Duration;

use bson::{Document, Uuid, doc};

use crate::mongo::{Deployment, Error, Failure, bson_count, cursor_documents, run, session_id};
use crate::retry::{Stopped, until_reached};
use crate::stop::Stop;

/// All connections that write are named by this, the migration's identity and the lease's generation.
#[must_use]
pub fn app_name(instance: &str, generation: u64) -> String {
    format!("{}{generation}", app_name_prefix(instance))
}

fn app_name_prefix(instance: &str) -> String {
    format!("snapsync {instance} run ")
}

const POLL: Duration = Duration::from_millis(100);

/// Kills operations of runs of this migration other than that of `generation`, and of all runs of the migrations in
/// `others`, and waits until they are gone.
///
/// Index builds of this migration are left: they are adopted, not repeated.
///
/// # Errors
/// [`Stopped`]; a server that goes away is waited for.
pub async fn clear_earlier_runs(
    target: &Deployment,
    instance: &str,
    generation: u64,
    others: &[String],
    stop: &Stop,
) -> Result<(), Stopped<Error>> {
    let others: Vec<String> = others.iter().map(|instance| app_name_prefix(instance)).collect();
    let own = app_name(instance, generation);
    let prefix = app_name_prefix(instance);
    wait_out(target, stop, |operation| {
        let name = operation.get_str("appName").unwrap_or_default();
        others.iter().any(|other| name.starts_with(other))
            || (name.starts_with(&prefix) && name != own && !is_index_build(operation))
    })
    .await
}

/// Kills what this run left in flight when it was told to stop waiting for an answer, and waits until it is gone:
/// document writes, known by the `sessions` they go in, and definitions, known by their comments. To be called while
/// nothing else of this run writes in those ways.
///
/// # Errors
/// [`Stopped`]; a server that goes away is waited for.
pub async fn clear_cut_short(
    target: &Deployment,
    app_name: &str,
    sessions: &[Uuid],
    stop: &Stop,
) -> Result<(), Stopped<Error>> {
    let definition = definition_comment(app_name, "");
    wait_out(target, stop, |operation| {
        let session = operation.get_document("lsid").ok().and_then(session_id);
        let writes = session.is_some_and(|session| sessions.contains(&session));
        let command = operation.get_document("command");
        let comment = command.and_then(|command| command.get_str("comment")).unwrap_or_default();
        writes || (comment.starts_with(&definition) && !is_index_build(operation))
    })
    .await
}

/// What a definition is found again by; `number` tells it apart from others of the run.
#[must_use]
pub fn definition_comment(app_name: &str, number: &str) -> String {
    format!("{app_name} definition {number}")
}

/// Kills the operation that carries this `comment`, and waits until it is gone.
///
/// # Errors
/// [`Stopped`]; a server that goes away is waited for.
pub async fn clear_commented(
    target: &Deployment,
    comment: &str,
    stop: &Stop,
) -> Result<(), Stopped<Error>> {
    wait_out(target, stop, |operation| {
        let command = operation.get_document("command");
        command.and_then(|command| command.get_str("comment")).is_ok_and(|text| text == comment)
    })
    .await
}

/// Ends transactions that programs of this name began, and have left alone for `idle` or longer. One whose program was
/// killed would hold what it touched for a minute. Whoever is alive after all finds it ended, and begins again.
///
/// # Errors
/// The operations could not be listed.
pub async fn end_abandoned(
    target: &Deployment,
    app_name: &str,
    idle: Duration,
) -> Result<(), Error> {
    for operation in operations_of_all_users(target).await? {
        let named = operation.get_str("appName").is_ok_and(|name| name == app_name);
        if named && idle_for(&operation).is_some_and(|time| time >= idle) {
            kill(target, &operation).await;
        }
    }
    Ok(())
}

/// How long a transaction has been waiting for its next statement; none if this is no such thing.
fn idle_for(operation: &Document) -> Option<Duration> {
    if operation.contains_key("opid") {
        return None;
    }
    let transaction = operation.get_document("transaction").ok()?;
    Some(Duration::from_micros(bson_count(transaction, "timeInactiveMicros")))
}

fn is_index_build(operation: &Document) -> bool {
    operation.get_document("command").is_ok_and(|command| command.contains_key("createIndexes"))
}

async fn wait_out(
    target: &Deployment,
    stop: &Stop,
    concerned: impl Fn(&Document) -> bool,
) -> Result<(), Stopped<Error>> {
    let mut round = 0_u32;
    loop {
        let operations =
            until_reached(target.side, stop, || operations_of_all_users(target)).await?;
        let left: Vec<&Document> =
            operations.iter().filter(|operation| concerned(operation)).collect();
        if left.is_empty() {
            return Ok(());
        }
        if round.is_multiple_of(50) {
            tracing::info!(
                operations = left.len(),
                "waiting for what was left in flight on the target to end"
            );
        }
        for operation in left {
            kill(target, operation).await;
        }
        round += 1;
        stop.sleep(POLL).await?;
    }
}

/// Asks for an operation's end. Failing is harmless: the caller looks again until it is gone.
async fn kill(target: &Deployment, operation: &Document) {
    let command = match (operation.get("opid"), operation.get_document("lsid")) {
        (Some(id), _) => doc! { "killOp": 1, "op": id.clone() },
        // A transaction that was begun and is idle now. It holds its documents for a minute if nobody ends it.
        (None, Ok(session)) => doc! { "killSessions": [{ "id": session.get("id") }] },
        (None, Err(_)) => return,
    };
    if let Err(error) = run(target, "admin", "kill an operation of an earlier run", command).await {
        tracing::debug!("{error}");
    }
}

async fn operations_of_all_users(target: &Deployment) -> Result<Vec<Document>, Error> {
    match operations(target, true).await {
        // Without the privilege `inprog` a user sees its own operations, and those are the ones sought.
        Err(error) if error.failure == Failure::Privilege => operations(target, false).await,
        result => result,
    }
}

async fn operations(target: &Deployment, all_users: bool) -> Result<Vec<Document>, Error> {
    let action = "list running operations";
    let command = doc! {
        "aggregate": 1,
        "pipeline": [
            { "$currentOp": { "allUsers": all_users } },
            { "$match": { "appName": { "$regex": "^snapsync " } } },
            { "$project": {
                "opid": 1, "lsid": 1, "appName": 1, "command.comment": 1, "command.createIndexes": 1,
                "transaction.timeInactiveMicros": 1,
            } },
        ],
        "cursor": {},
    };
    let documents = cursor_documents(target, "admin", action, command).await?;
    Ok(documents.iter().filter_map(|document| Document::try_from(document.as_ref()).ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generations_do_not_share_a_name() {
        assert_ne!(app_name("a", 1), app_name("a", 11));
        assert!(app_name("a", 11).starts_with(&app_name_prefix("a")));
    }
}
