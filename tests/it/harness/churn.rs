//! Seeded writes of the kind that a replay most easily gets wrong: unique keys that move from document to document, and
//! collections, views and indexes that come, change their names and go.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bson::{Document, doc};
use mongodb::{Client, Database};
use tokio::task::JoinHandle;

use super::workload::Random;

/// Documents that hold a seat each; there are as many seats as documents, so that every move frees one and takes one.
const PERSONS: u32 = 12;
/// Names that collections take from each other.
const NAMES: u32 = 4;

/// A writer of churn that runs until it is stopped (or dropped). Writes to the databases `hall` and `stage`.
#[derive(Debug)]
pub struct Churn {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Churn {
    /// Makes the collection with unique keys, and starts writing.
    pub async fn start(client: &Client, seed: u64) -> Self {
        let mut writer = Writer { client: client.clone(), random: Random(seed) };
        writer.prepare().await;
        let stop = Arc::new(AtomicBool::new(false));
        let done = Arc::new(AtomicU64::new(0));
        let (stopped, counter) = (Arc::clone(&stop), Arc::clone(&done));
        let task = tokio::spawn(async move {
            while !stopped.load(Ordering::Relaxed) {
                writer.operation().await;
                counter.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        Self { stop, done, task }
    }

    /// How many operations were tried so far.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Stops after the operation in hand.
    pub async fn stop(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        (&mut self.task).await.expect("the churn does not panic");
    }
}

impl Drop for Churn {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Writer {
    client: Client,
    random: Random,
}

impl Writer {
    fn hall(&self) -> Database {
        self.client.database("hall")
    }

    fn stage(&self) -> Database {
        self.client.database("stage")
    }

    async fn prepare(&self) {
        let seats = self.hall().collection::<Document>("seats");
        let index = doc! {"key": {"seat": 1}, "name": "seat_1", "unique": true};
        let pair = doc! {"key": {"row": 1, "column": 1}, "name": "place", "unique": true};
        self.hall()
            .run_command(doc! {"createIndexes": "seats", "indexes": [index, pair]})
            .await
            .unwrap();
        let persons = (0..PERSONS).map(|id| self.person(id, id));
        seats.insert_many(persons).await.unwrap();
    }

    fn person(&self, id: u32, seat: u32) -> Document {
        doc! {"_id": id, "seat": seat, "row": seat / 4, "column": seat % 4, "moves": 0}
    }

    /// Fails now and then, which is part of it: a name is taken, or free.
    async fn operation(&mut self) {
        if self.random.below(100) < 60 { self.move_keys().await } else { self.define().await }
    }

    async fn move_keys(&mut self) {
        let seats = self.hall().collection::<Document>("seats");
        let (one, other) = (self.random.below(PERSONS), self.random.below(PERSONS));
        let (Ok(Some(a)), Ok(Some(b))) =
            (seats.find_one(doc! {"_id": one}).await, seats.find_one(doc! {"_id": other}).await)
        else {
            return;
        };
        if one == other {
            drop(seats.update_one(doc! {"_id": one}, doc! {"$inc": {"moves": 1}}).await);
            return;
        }
        let place = |person: &Document| {
            let field = |name: &str| person.get(name).cloned().unwrap_or_default();
            doc! {"seat": field("seat"), "row": field("row"), "column": field("column")}
        };
        let nowhere = doc! {"seat": -1, "row": -1, "column": -1};
        match self.random.below(3) {
            // Three steps through a seat that does not exist.
            0 => {
                for (id, to) in [(one, nowhere), (other, place(&a)), (one, place(&b))] {
                    let update = doc! {"$set": to, "$inc": {"moves": 1}};
                    drop(seats.update_one(doc! {"_id": id}, update).await);
                }
            }
            // In one transaction.
            1 => {
                let Ok(mut session) = self.client.start_session().await else { return };
                drop(session.start_transaction().await);
                for (id, to) in [(one, nowhere), (other, place(&a)), (one, place(&b))] {
                    let update = doc! {"$set": to, "$push": {"log": i64::from(id)}};
                    drop(seats.update_one(doc! {"_id": id}, update).session(&mut session).await);
                }
                drop(session.commit_transaction().await);
            }
            // One goes, the other takes its seat, the first comes back on the seat left free.
            _ => {
                drop(seats.delete_one(doc! {"_id": one}).await);
                drop(seats.update_one(doc! {"_id": other}, doc! {"$set": place(&a)}).await);
                let mut back = doc! {"_id": one, "back": true};
                back.extend(place(&b));
                drop(seats.insert_one(back).await);
            }
        }
    }

    async fn define(&mut self) {
        let stage = self.stage();
        let name = format!("c{}", self.random.below(NAMES));
        let collection = stage.collection::<Document>(&name);
        let number = i64::from(self.random.below(1000));
        let command = match self.random.below(12) {
            0..3 => {
                let documents = (0..3).map(|n| doc! {"_id": n, "in": &name, "number": number + n});
                drop(collection.insert_many(documents).await);
                let update = doc! {"$set": {"updated": number}};
                drop(collection.update_many(doc! {"_id": {"$gt": 0}}, update).await);
                return;
            }
            3 => doc! {"drop": &name},
            4..6 => {
                let to = format!("stage.c{}", self.random.below(NAMES));
                let drop_target = self.random.below(2) == 0;
                let rename = doc! {"renameCollection": format!("stage.{name}"), "to": to, "dropTarget": drop_target};
                drop(self.client.database("admin").run_command(rename).await);
                return;
            }
            6 => {
                let index =
                    doc! {"key": {"number": 1}, "name": "number_1", "sparse": number % 2 == 0};
                doc! {"createIndexes": &name, "indexes": [index]}
            }
            7 => doc! {"dropIndexes": &name, "index": "number_1"},
            8 => doc! {"collMod": &name, "validator": {"number": {"$lt": 5000 + number}}},
            9 => {
                let stages = vec![
                    doc! {"$match": {"_id": {"$lt": 6}}},
                    doc! {"$out": {"db": "stage", "coll": &name}},
                ];
                drop(self.hall().collection::<Document>("seats").aggregate(stages).await);
                return;
            }
            10 => doc! {"create": &name, "capped": true, "size": 8192},
            _ => {
                let view = format!("v{}", self.random.below(2));
                if number % 3 == 0 {
                    doc! {"drop": view}
                } else {
                    doc! {"create": view, "viewOn": &name, "pipeline": [{"$match": {"number": number}}]}
                }
            }
        };
        drop(stage.run_command(command).await);
    }
}
