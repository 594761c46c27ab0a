//! Seeded random writes: inserts, updates of several kinds, replacements, deletions, upserts and transactions.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bson::{Bson, DateTime, Document, doc};
use mongodb::error::Error;
use mongodb::{Client, ClientSession, Collection};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

/// What a workload does.
#[derive(Debug, Clone)]
pub struct WorkloadOptions {
    /// The same seed gives the same operations in the same order.
    pub seed: u64,
    /// The collections it writes to, as `database.collection`; created if need be.
    pub namespaces: Vec<String>,
    /// Operations per second that it aims at; a server that is slower makes it slower.
    pub rate: f64,
    /// `_id`s are whole numbers below this, so that operations meet the same documents again and again.
    pub keys: u32,
    /// How many of a hundred operations are transactions (of two to five writes).
    pub transactions_percent: u32,
}

impl Default for WorkloadOptions {
    fn default() -> Self {
        Self {
            seed: 1,
            namespaces: ["shop.orders", "shop.items", "crm.events"].map(str::to_owned).to_vec(),
            rate: 200.0,
            keys: 500,
            transactions_percent: 5,
        }
    }
}

/// The writes that the server acknowledged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Inserted documents.
    pub inserts: u64,
    /// Updates with operators and pipelines, upserts among them.
    pub updates: u64,
    /// Whole replacements.
    pub replaces: u64,
    /// Deletions.
    pub deletes: u64,
    /// Committed transactions.
    pub commits: u64,
    /// Transactions ended on purpose without effect.
    pub aborts: u64,
    /// Operations that failed (a failover, say) or whose outcome is unknown. An insert that finds its `_id` taken
    /// counts as nothing.
    pub errors: u64,
}

impl Counts {
    /// Everything acknowledged, a transaction as one.
    pub fn total(&self) -> u64 {
        self.inserts + self.updates + self.replaces + self.deletes + self.commits
    }
}

/// A writer that runs until it is stopped (or dropped).
#[derive(Debug)]
pub struct Workload {
    stop: Arc<AtomicBool>,
    task: JoinHandle<Counts>,
}

impl Workload {
    /// Starts writing. The collections exist when this returns: old servers do not create them in transactions.
    pub async fn start(client: &Client, options: WorkloadOptions) -> Self {
        for namespace in &options.namespaces {
            let (database, collection) = split(namespace);
            // It may exist already, which is just as good.
            drop(client.database(database).create_collection(collection).await);
        }
        let stop = Arc::new(AtomicBool::new(false));
        let writer = Writer {
            client: client.clone(),
            random: Random(options.seed),
            counts: Counts::default(),
            options,
        };
        let task = tokio::spawn(writer.run(Arc::clone(&stop)));
        Self { stop, task }
    }

    /// Writes exactly `operations` as fast as the server takes them, and returns.
    pub async fn run(client: &Client, options: WorkloadOptions, operations: u64) -> Counts {
        let stopped = Arc::new(AtomicBool::new(true));
        let mut writer = Writer {
            client: client.clone(),
            random: Random(options.seed),
            counts: Counts::default(),
            options,
        };
        for _ in 0..operations {
            writer.operation().await;
        }
        writer.run(stopped).await
    }

    /// Stops after the operation in hand and returns what was acknowledged.
    pub async fn stop(mut self) -> Counts {
        self.stop.store(true, Ordering::Relaxed);
        (&mut self.task).await.expect("the workload does not panic")
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Splits at the first dot.
fn split(namespace: &str) -> (&str, &str) {
    namespace.split_once('.').expect("database.collection")
}

struct Writer {
    client: Client,
    options: WorkloadOptions,
    random: Random,
    counts: Counts,
}

/// One write, drawn before it is sent, so that what comes next does not depend on the server.
#[derive(Debug)]
enum Write {
    Insert(Document),
    Update(i32, Change),
    Replace(i32, Document),
    Delete(i32),
}

#[derive(Debug)]
enum Change {
    Operators { update: Document, upsert: bool },
    Pipeline(Vec<Document>),
}

impl Writer {
    async fn run(mut self, stop: Arc<AtomicBool>) -> Counts {
        let mut next = Instant::now();
        let pause = Duration::from_secs_f64(1.0 / self.options.rate);
        while !stop.load(Ordering::Relaxed) {
            self.operation().await;
            // After a long wait the lost operations are not made up for in a burst.
            next = (next + pause).max(Instant::now() - pause * 10);
            sleep_until(next).await;
        }
        self.counts
    }

    async fn operation(&mut self) {
        if self.random.below(100) < self.options.transactions_percent {
            self.transaction().await;
        } else {
            let (collection, write) = self.draw();
            let result = apply(&collection, &write, None).await;
            self.count(&write, &result);
        }
    }

    async fn transaction(&mut self) {
        let writes: Vec<_> = (0..2 + self.random.below(4)).map(|_| self.draw()).collect();
        let commit = self.random.below(10) > 0;
        match transaction(&self.client, &writes, commit).await {
            Ok(()) if commit => self.counts.commits += 1,
            Ok(()) => self.counts.aborts += 1,
            Err(error) if is_duplicate(&error) => self.counts.aborts += 1,
            Err(_) => self.counts.errors += 1,
        }
    }

    fn count(&mut self, write: &Write, result: &Result<bool, Error>) {
        match (result, write) {
            (Ok(false), _) => {}
            (Ok(true), Write::Insert(_)) => self.counts.inserts += 1,
            (Ok(true), Write::Update(..)) => self.counts.updates += 1,
            (Ok(true), Write::Replace(..)) => self.counts.replaces += 1,
            (Ok(true), Write::Delete(_)) => self.counts.deletes += 1,
            (Err(error), _) if is_duplicate(error) => {}
            (Err(_), _) => self.counts.errors += 1,
        }
    }

    fn draw(&mut self) -> (Collection<Document>, Write) {
        let which = self.random.below(self.options.namespaces.len() as u32) as usize;
        let (database, collection) = split(&self.options.namespaces[which]);
        let collection = self.client.database(database).collection(collection);
        let id = self.random.below(self.options.keys).cast_signed();
        let write = match self.random.below(100) {
            0..30 => Write::Insert(self.document(id)),
            30..70 => Write::Update(id, self.change()),
            70..85 => Write::Replace(id, self.document(id)),
            _ => Write::Delete(id),
        };
        (collection, write)
    }

    fn document(&mut self, id: i32) -> Document {
        let mut document =
            doc! {"_id": id, "n": self.value(), "list": [], "sub": {"a": self.value()}};
        for _ in 0..self.random.below(4) {
            let name = format!("f{}", self.random.below(8));
            let value = self.value();
            document.insert(name, value);
        }
        document
    }

    fn change(&mut self) -> Change {
        let field = format!("f{}", self.random.below(8));
        let value = self.value();
        let operators = |update| Change::Operators { update, upsert: false };
        match self.random.below(8) {
            0 => operators(doc! {"$set": {field: value}}),
            1 => operators(doc! {"$inc": {"counter": 1, "sub.counter": 2_i64}}),
            2 => operators(doc! {"$push": {"list": {"$each": [value], "$slice": -6}}}),
            3 => operators(doc! {"$unset": {field: ""}}),
            4 => operators(doc! {"$set": {"sub.b.c": value}, "$unset": {"sub.a": ""}}),
            5 => operators(doc! {"$rename": {field: "renamed"}}),
            6 => Change::Operators { update: doc! {"$set": {"upserted": value}}, upsert: true },
            _ => Change::Pipeline(vec![
                doc! {"$set": {"n": {"$literal": value}}},
                doc! {"$unset": "renamed"},
            ]),
        }
    }

    /// A value of one of several types, so that equality is of types too.
    fn value(&mut self) -> Bson {
        let n = self.random.below(1000);
        match self.random.below(7) {
            0 => Bson::Int32(n.cast_signed()),
            1 => Bson::Int64(n.into()),
            2 => Bson::Double(f64::from(n) / 8.0),
            3 => Bson::String("x".repeat(n as usize % 60)),
            4 => Bson::DateTime(DateTime::from_millis(i64::from(n) * 1_000_003)),
            5 => Bson::Document(doc! {"z": n, "a": Bson::Null}),
            _ => Bson::Array(vec![Bson::Int64(n.into()), Bson::Boolean(n.is_multiple_of(2))]),
        }
    }
}

/// Sends one write; true if it changed something.
async fn apply(
    collection: &Collection<Document>,
    write: &Write,
    session: Option<&mut ClientSession>,
) -> Result<bool, Error> {
    match write {
        Write::Insert(document) => {
            let insert = collection.insert_one(document);
            match session {
                Some(session) => insert.session(session).await?,
                None => insert.await?,
            };
            Ok(true)
        }
        Write::Update(id, change) => {
            let update = match change {
                Change::Operators { update, upsert } => {
                    collection.update_one(doc! {"_id": id}, update.clone()).upsert(*upsert)
                }
                Change::Pipeline(stages) => collection.update_one(doc! {"_id": id}, stages.clone()),
            };
            let result = match session {
                Some(session) => update.session(session).await?,
                None => update.await?,
            };
            Ok(result.modified_count > 0 || result.upserted_id.is_some())
        }
        Write::Replace(id, document) => {
            let replace = collection.replace_one(doc! {"_id": id}, document);
            let result = match session {
                Some(session) => replace.session(session).await?,
                None => replace.await?,
            };
            Ok(result.modified_count > 0)
        }
        Write::Delete(id) => {
            let delete = collection.delete_one(doc! {"_id": id});
            let result = match session {
                Some(session) => delete.session(session).await?,
                None => delete.await?,
            };
            Ok(result.deleted_count > 0)
        }
    }
}

async fn transaction(
    client: &Client,
    writes: &[(Collection<Document>, Write)],
    commit: bool,
) -> Result<(), Error> {
    let mut session = client.start_session().await?;
    session.start_transaction().await?;
    for (collection, write) in writes {
        apply(collection, write, Some(&mut session)).await?;
    }
    if commit { session.commit_transaction().await } else { session.abort_transaction().await }
}

/// Whether an insert found its `_id` taken, which is part of the game.
fn is_duplicate(error: &Error) -> bool {
    use mongodb::error::{ErrorKind, WriteFailure};
    match &*error.kind {
        ErrorKind::Write(WriteFailure::WriteError(write)) => write.code == 11000,
        ErrorKind::InsertMany(many) => {
            many.write_errors.iter().flatten().any(|write| write.code == 11000)
        }
        ErrorKind::Command(command) => command.code == 11000,
        _ => false,
    }
}

/// SplitMix64: small, and good enough to choose operations with.
#[derive(Debug, Clone)]
pub struct Random(pub(super) u64);

impl Random {
    /// The same seed gives the same numbers.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which must not be 0.
    pub fn below(&mut self, bound: u32) -> u32 {
        let scaled = ((self.next() >> 32) * u64::from(bound)) >> 32;
        u32::try_from(scaled).expect("below a u32")
    }
}
