//! Scenarios: what is done to a source, as data, so that the same thing can be done before the copy, while the copy
//! runs, while the target follows, and while the daemon is stopped, so that it sees all of it in one window.

use std::time::{Duration, Instant};

use bson::{Document, RawDocumentBuf, doc};
use mongodb::{Client, ClientSession};
use rustix::process::Signal;

use crate::harness::{Daemon, ReplicaSet};

/// One thing that is done on the source.
#[derive(Debug, Clone)]
pub enum Step {
    /// A command in the scenario's database. It must succeed.
    Run(Document),
    /// The same, for documents that cannot be written down otherwise.
    Raw(RawDocumentBuf),
    /// A command in a second database.
    RunOther(Document),
    /// A command that must be refused.
    Refused(Document),
    /// `renameCollection` from one collection to another; `other/name` is in the second database.
    Rename(&'static str, &'static str),
    /// The same over a collection that is there.
    RenameOver(&'static str, &'static str),
    /// The `applyOps` command. Namespaces are given without their database.
    ApplyOps(Vec<Document>),
    /// Commands in one transaction, which commits.
    Transaction(Vec<Document>),
    /// Commands in one transaction, which is aborted.
    Aborted(Vec<Document>),
}

/// A named scenario.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// Names its database or collection, so that a difference names the scenario.
    pub name: &'static str,
    /// What is there at first.
    pub before: Vec<Step>,
    /// What is done then.
    pub after: Vec<Step>,
}

/// What servers of before a version do not know, as it stands in the text of a scenario.
const NEEDS: [(&str, (i32, i32)); 23] = [
    ("\"hidden\"", (4, 4)),
    ("\"compound_hashed\"", (4, 4)),
    ("series_changed", (6, 0)),
    // Documents of capped collections that grow, or are deleted.
    ("capped_overflow", (6, 0)),
    ("capped_growing", (6, 0)),
    ("capped_order", (6, 0)),
    ("\"timeseries\"", (5, 0)),
    ("\"$setField\"", (5, 0)),
    ("\"$v\": Int32(2)", (5, 0)),
    // Names that begin with a dollar.
    ("\"$a\"", (5, 0)),
    ("\"$c\"", (5, 0)),
    ("\"$d\"", (5, 0)),
    ("\"$x\"", (5, 0)),
    ("\"$y\"", (5, 0)),
    ("\"$z\"", (5, 0)),
    ("doubled_and_dollar_names", (5, 0)),
    ("doubled_names_exchanged", (5, 0)),
    ("\"clusteredIndex\"", (5, 3)),
    ("\"changeStreamPreAndPostImages\"", (6, 0)),
    ("\"recordPreImages\"", (5, 0)),
    ("\"cappedSize\"", (6, 0)),
    ("\"prepareUnique\"", (6, 0)),
    ("\"$unsetField\"", (5, 0)),
];

/// Major and minor version of the server.
pub async fn version_of(client: &Client) -> (i32, i32) {
    let reply = client.database("admin").run_command(doc! {"buildInfo": 1}).await.unwrap();
    let parts = reply.get_array("versionArray").unwrap();
    (parts[0].as_i32().unwrap(), parts[1].as_i32().unwrap())
}

/// The scenarios that this server knows. What it does not know is named: an index alone is left out of its command,
/// anything else takes its scenario along.
pub async fn known_to(client: &Client, mut scenarios: Vec<Scenario>) -> Vec<Scenario> {
    let version = version_of(client).await;
    let known = |name: &str, text: String| {
        let missing = NEEDS.iter().find(|(word, since)| *since > version && text.contains(word));
        if let Some((word, (major, minor))) = missing {
            eprintln!("{name}: skipped, {word} came with MongoDB {major}.{minor}");
        }
        missing.is_none()
    };
    for scenario in &mut scenarios {
        for step in scenario.before.iter_mut().chain(&mut scenario.after) {
            if let Step::Run(command) = step
                && let Ok(specs) = command.get_array_mut("indexes")
            {
                specs.retain(|spec| known(scenario.name, format!("{spec:?}")));
            }
        }
    }
    scenarios.retain(|scenario| known(scenario.name, format!("{scenario:?}")));
    scenarios
}

impl Scenario {
    /// Sets up what is there at first.
    pub async fn prepare(&self, client: &Client, database: &str) {
        self.run_all(client, database, &self.before).await;
    }

    /// Does what is done then.
    pub async fn change(&self, client: &Client, database: &str) {
        self.run_all(client, database, &self.after).await;
    }

    async fn run_all(&self, client: &Client, database: &str, steps: &[Step]) {
        for step in steps {
            let result = run(client, database, step).await;
            result.unwrap_or_else(|error| panic!("{} ({database}): {error}\n{step:?}", self.name));
        }
    }
}

fn full_name(database: &str, name: &str) -> String {
    match name.strip_prefix("other/") {
        Some(name) => format!("{database}_other.{name}"),
        None => format!("{database}.{name}"),
    }
}

async fn run(client: &Client, database: &str, step: &Step) -> Result<(), String> {
    match step {
        Step::Run(command) => accepted(client, database, command.clone()).await,
        Step::RunOther(command) => {
            accepted(client, &format!("{database}_other"), command.clone()).await
        }
        Step::Raw(command) => {
            let reply = client.database(database).run_raw_command(command.clone()).await;
            accept(reply.map_err(|error| error.to_string())?)
        }
        Step::Refused(command) => match accepted(client, database, command.clone()).await {
            Ok(()) => Err("should have been refused".to_owned()),
            Err(_) => Ok(()),
        },
        Step::Rename(from, to) | Step::RenameOver(from, to) => {
            let drop = matches!(step, Step::RenameOver(..));
            let (from, to) = (full_name(database, from), full_name(database, to));
            let command = doc! {"renameCollection": from, "to": to, "dropTarget": drop};
            accepted(client, "admin", command).await
        }
        Step::ApplyOps(operations) => {
            let mut operations = operations.clone();
            for operation in &mut operations {
                let name = operation.get_str("ns").expect("ns").to_owned();
                operation.insert("ns", format!("{database}.{name}"));
            }
            accepted(client, "admin", doc! {"applyOps": operations}).await
        }
        Step::Transaction(commands) => {
            let mut session = transaction(client, database, commands).await?;
            session.commit_transaction().await.map_err(|error| error.to_string())
        }
        Step::Aborted(commands) => {
            let mut session = transaction(client, database, commands).await?;
            session.abort_transaction().await.map_err(|error| error.to_string())
        }
    }
}

/// Runs commands in a new transaction and leaves it open. A command may name its database in `$db`.
pub async fn transaction(
    client: &Client,
    database: &str,
    commands: &[Document],
) -> Result<ClientSession, String> {
    let text = |error: mongodb::error::Error| error.to_string();
    let mut session = client.start_session().causal_consistency(false).await.map_err(text)?;
    session.start_transaction().await.map_err(text)?;
    for command in commands {
        let mut command = command.clone();
        let other = command.remove("$db").and_then(|name| name.as_str().map(str::to_owned));
        let database = other.map_or(database.to_owned(), |other| format!("{database}_{other}"));
        let reply = client.database(&database).run_command(command).session(&mut session).await;
        check(&reply.map_err(text)?)?;
    }
    Ok(session)
}

async fn accepted(client: &Client, database: &str, command: Document) -> Result<(), String> {
    let reply = client.database(database).run_command(command).await;
    check(&reply.map_err(|error| error.to_string())?)
}

fn accept(reply: Document) -> Result<(), String> {
    check(&reply)
}

/// A write command answers `ok` even where statements of it failed.
fn check(reply: &Document) -> Result<(), String> {
    match reply.get("writeErrors") {
        Some(errors) => Err(errors.to_string()),
        None => Ok(()),
    }
}

/// A write that the majority has, so that everything before it is waited for too.
pub async fn settle(source: &ReplicaSet) {
    let marks = source.client().database("marks").collection::<Document>("marks");
    marks.insert_one(doc! {}).await.expect("a last write");
}

/// Stops the process while `work` is done, so that it finds all of it at once: one window, in which everything folds.
/// Not for longer than its lease lasts.
pub async fn while_stopped(daemon: &mut Daemon, work: impl Future<Output = ()>) {
    let began = Instant::now();
    daemon.signal(Signal::STOP);
    work.await;
    daemon.signal(Signal::CONT);
    assert!(began.elapsed() < Duration::from_secs(25), "stopped for {:?}", began.elapsed());
}
