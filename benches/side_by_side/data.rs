//! The data that is copied and the writes that are replayed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bson::{Binary, Bson, DateTime, Document, doc, oid::ObjectId, spec::BinarySubtype};
use mongodb::options::IndexOptions;
use mongodb::{Client, IndexModel};

/// The collections of the standard job, each with another kind of `_id`.
pub const COLLECTIONS: [&str; 5] =
    ["shop.orders", "shop.items", "shop.carts", "crm.people", "crm.notes"];
const BATCH: u64 = 2_000;
/// Statements in one command of the writer, so that the writer itself costs little.
const STATEMENTS: u64 = 500;

/// A cheap stream of numbers that look random, the same in every run.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// Begins at `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }

    /// Rank 0 far more often than rank 1, and so on (Zipf, exponent about 1).
    fn skewed(&mut self, limit: u64) -> u64 {
        let share = (self.next() >> 11) as f64 / (1_u64 << 53) as f64;
        ((share * (limit.max(1) as f64 + 1.0).ln()).exp() - 1.0) as u64 % limit.max(1)
    }
}

/// Loads `documents` in all into the standard job's collections, with three indexes each.
pub async fn load(client: &Client, documents: u64) {
    let share = documents / COLLECTIONS.len() as u64;
    let loads = COLLECTIONS.iter().enumerate().map(|(kind, name)| async move {
        fill(client, name, share, |n| sample(kind, n)).await;
        index(client, name).await;
    });
    futures_util::future::join_all(loads).await;
}

/// Loads documents into one collection.
pub async fn fill(client: &Client, namespace: &str, count: u64, make: impl Fn(u64) -> Document) {
    let (database, name) = namespace.split_once('.').expect("database.collection");
    let collection = client.database(database).collection::<Document>(name);
    let size = make(0).to_vec().map_or(1024, |bytes| bytes.len() as u64);
    let batch = (8 * 1024 * 1024 / size).clamp(1, BATCH);
    for begin in (0..count).step_by(batch as usize) {
        let documents = (begin..count.min(begin + batch)).map(&make);
        collection.insert_many(documents).await.expect("load");
    }
}

/// The three indexes of the standard job.
pub async fn index(client: &Client, namespace: &str) {
    let (database, name) = namespace.split_once('.').expect("database.collection");
    let collection = client.database(database).collection::<Document>(name);
    for keys in [doc! {"customer": 1, "at": -1}, doc! {"tag": 1}, doc! {"at": 1}] {
        let options = IndexOptions::builder().build();
        let model = IndexModel::builder().keys(keys).options(options).build();
        collection.create_index(model).await.expect("an index");
    }
}

/// A document of about 1 KiB; `_id`s of five kinds, half of them in no order.
pub fn sample(kind: usize, n: u64) -> Document {
    let number = i64::try_from(n).expect("fewer than 2^63");
    let mixed = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let id = match kind {
        0 => Bson::ObjectId(ObjectId::new()),
        1 => Bson::Int64(number),
        2 => Bson::String(format!("{mixed:016x}")),
        3 => Bson::Document(doc! { "region": number % 7, "number": number }),
        _ => {
            let bytes = u128::from(mixed) << 64 | u128::from(n);
            let bytes = bytes.to_be_bytes().to_vec();
            Bson::Binary(Binary { subtype: BinarySubtype::Uuid, bytes })
        }
    };
    doc! {
        "_id": id,
        "customer": number % 977,
        "at": DateTime::from_millis(1_700_000_000_000 + number * 1000),
        "tag": format!("t{}", n % 71),
        "lines": [{ "item": number % 101, "price": 9.99 }, { "item": number % 103, "price": 1.5 }],
        "note": format!("{mixed:016x}").repeat(48),
    }
}

/// A document of about 1 MiB.
pub fn large_sample(n: u64) -> Document {
    let mixed = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    doc! { "_id": ObjectId::new(), "n": n as i64, "body": format!("{mixed:016x}").repeat(65_000) }
}

/// Writes `count` skewed operations on `shop.items`, which holds `documents`: 50 % `$set` of several fields, 30 %
/// inserts, 5 % `$inc`, 5 % `$push`, 10 % deletes, and now and then a transaction of ten. Ends early when `enough`.
pub async fn write(
    client: &Client,
    count: u64,
    documents: u64,
    rate: Option<u64>,
    seed: u64,
    enough: &AtomicBool,
) {
    let mut random = Random::new(seed);
    let database = client.database("shop");
    let began = Instant::now();
    let (mut done, mut next_id, mut oldest_id) =
        (0, 1_000_000_000 * seed as i64, 1_000_000_000 * seed as i64);
    while done < count && !enough.load(Ordering::Relaxed) {
        let size =
            rate.map_or(STATEMENTS, |rate| (rate / 100).clamp(10, STATEMENTS)).min(count - done);
        let (mut updates, mut inserts, mut deletes) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..size {
            let key = random.skewed(documents) as i64;
            let value = random.next() as i64;
            let change = match random.below(20) {
                0..10 => {
                    doc! { "$set": { "customer": value % 977, "tag": format!("t{}", value % 71),
                    "touched": { "by": value, "round": done as i64 } } }
                }
                10..16 => {
                    let mut document = sample(1, 0);
                    document.insert("_id", next_id);
                    next_id += 1;
                    inserts.push(document);
                    continue;
                }
                16 => doc! { "$inc": { "touches": 1 } },
                17 => doc! { "$push": { "history": { "$each": [value], "$slice": -20 } } },
                _ if oldest_id + 1000 < next_id => {
                    deletes.push(doc! { "q": { "_id": oldest_id }, "limit": 1 });
                    oldest_id += 1;
                    continue;
                }
                _ => doc! { "$inc": { "touches": 1 } },
            };
            updates.push(doc! { "q": { "_id": key }, "u": change });
        }
        if random.below(10) == 0 {
            transaction(client, &mut updates).await;
        }
        for (command, field, statements) in [
            ("update", "updates", updates),
            ("insert", "documents", inserts),
            ("delete", "deletes", deletes),
        ] {
            if !statements.is_empty() {
                let command = doc! { command: "items", field: statements, "ordered": false };
                database.run_command(command).await.expect("write");
            }
        }
        done += size;
        if let Some(rate) = rate {
            let due = Duration::from_secs_f64(done as f64 / rate as f64);
            tokio::time::sleep(due.saturating_sub(began.elapsed())).await;
        }
    }
}

/// Carries out the last ten of these updates in one transaction.
async fn transaction(client: &Client, updates: &mut Vec<Document>) {
    let ten = updates.split_off(updates.len().saturating_sub(10));
    if ten.is_empty() {
        return;
    }
    let mut session = client.start_session().await.expect("a session");
    session.start_transaction().await.expect("a transaction");
    let command = doc! { "update": "items", "updates": ten };
    client.database("shop").run_command(command).session(&mut session).await.expect("write");
    session.commit_transaction().await.expect("commit");
}
