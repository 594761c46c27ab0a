//! Random definitions and writes from several writers at once, over so few names that they meet all the time. What the
//! source refuses is part of the game.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bson::{Document, doc};
use mongodb::Client;
use mongodb::error::Error;
use tokio::task::JoinHandle;

const DATABASES: [&str; 2] = ["east", "west"];
const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// Writers that run until they are stopped.
pub struct Chaos {
    stop: Arc<AtomicBool>,
    tried: Arc<AtomicU64>,
    tasks: Vec<JoinHandle<()>>,
}

impl Chaos {
    /// Starts so many writers.
    pub fn start(client: &Client, seed: u64, writers: u64) -> Self {
        let (stop, tried) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let tasks = (0..writers).map(|writer| {
            let (client, stop, tried) = (client.clone(), stop.clone(), tried.clone());
            tokio::spawn(async move {
                let mut random = Random(seed.wrapping_mul(1000) + writer);
                while !stop.load(Ordering::Relaxed) {
                    // What the source refuses is part of the game.
                    drop(operation(&client, &mut random).await);
                    tried.fetch_add(1, Ordering::Relaxed);
                    // The target needs more time for a definition than the source.
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            })
        });
        let tasks = tasks.collect();
        Self { stop, tried, tasks }
    }

    /// How many operations there were so far.
    pub fn tried(&self) -> u64 {
        self.tried.load(Ordering::Relaxed)
    }

    /// Ends after the operations in hand.
    pub async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.expect("a writer does not panic");
        }
    }
}

/// A linear congruential generator, which is good enough to choose operations with.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).expect("31 bits") % bound
    }

    fn of<'a>(&mut self, names: &[&'a str]) -> &'a str {
        names[self.below(names.len())]
    }

    fn id(&mut self) -> i32 {
        i32::try_from(self.below(40)).expect("below 40")
    }
}

async fn operation(client: &Client, random: &mut Random) -> Result<(), Error> {
    let database = random.of(&DATABASES);
    let name = random.of(&NAMES);
    let id = random.id();
    let mut target = database;
    let command = match random.below(100) {
        0..20 => {
            let rows: Vec<Document> =
                (0..5).map(|n| doc! {"_id": id + n, "u": random.id(), "list": [n]}).collect();
            doc! {"insert": name, "ordered": false, "documents": rows}
        }
        20..40 => doc! {"update": name, "updates": [change(random)]},
        40..48 => doc! {"delete": name, "deletes": [{"q": {"_id": id}, "limit": 1}]},
        48..52 => doc! {"update": name, "updates": [
            {"q": {"_id": {"$gt": id}}, "u": {"$inc": {"n": 1}}, "multi": true},
        ]},
        52..60 => create(name, random),
        60..66 => doc! {"drop": name},
        66..74 => {
            target = "admin";
            let to = format!("{}.{}", random.of(&DATABASES), random.of(&NAMES));
            doc! {"renameCollection": format!("{database}.{name}"), "to": to, "dropTarget": random.below(2) == 0}
        }
        74..82 => index(name, random),
        82..86 => doc! {"dropIndexes": name, "index": random.of(&["u", "n", "*"])},
        86..90 => {
            doc! {"collMod": name, "validator": {"n": {"$lt": id}}, "validationAction": "warn"}
        }
        90..93 => doc! {"aggregate": name, "cursor": {}, "pipeline": [
            {"$match": {"_id": {"$type": "number"}}}, {"$out": random.of(&NAMES)},
        ]},
        93..95 => doc! {"convertToCapped": name, "size": 100_000},
        95..97 => {
            doc! {"collMod": name, "viewOn": random.of(&NAMES), "pipeline": [{"$match": {"n": id}}]}
        }
        97..99 => return transaction(client, random).await,
        _ => doc! {"dropDatabase": 1},
    };
    client.database(target).run_command(command).await.map(drop)
}

fn change(random: &mut Random) -> Document {
    let (id, value) = (random.id(), random.id());
    let u = match random.below(6) {
        0 => doc! {"$set": {"u": value}},
        1 => doc! {"$push": {"list": {"$each": [value], "$slice": -4}}},
        2 => doc! {"$unset": {"n": ""}, "$set": {"sub.x": value}},
        3 => doc! {"u": value, "list": [], "whole": true},
        4 => doc! {"$set": {"list.1": value}},
        _ => doc! {"$inc": {"n": 1}},
    };
    doc! {"q": {"_id": id}, "u": u, "upsert": random.below(3) == 0}
}

fn create(name: &str, random: &mut Random) -> Document {
    let mut command = doc! {"create": name};
    command.extend(match random.below(6) {
        0 => doc! {"collation": {"locale": "en", "strength": 2}},
        1 => doc! {"validator": {"u": {"$lt": 30}}},
        // No clustered ones: converted to capped ones, they cannot be made by a command.
        2 => doc! {"changeStreamPreAndPostImages": {"enabled": true}},
        3 | 4 => doc! {"viewOn": random.of(&NAMES), "pipeline": [{"$match": {"u": 1}}]},
        _ => doc! {},
    });
    command
}

fn index(name: &str, random: &mut Random) -> Document {
    let spec = match random.below(5) {
        0 => doc! {"key": {"u": 1}, "name": "u", "unique": true},
        1 => doc! {"key": {"u": 1}, "name": "u", "sparse": true},
        2 => doc! {"key": {"n": 1}, "name": "n", "expireAfterSeconds": 100_000},
        3 => doc! {"key": {"list": 1, "n": -1}, "name": "n"},
        _ => doc! {"key": {"sub.x": "hashed"}, "name": "hashed"},
    };
    doc! {"createIndexes": name, "indexes": [spec]}
}

/// Some writes together; aborted once in a while.
async fn transaction(client: &Client, random: &mut Random) -> Result<(), Error> {
    let mut session = client.start_session().await?;
    session.start_transaction().await?;
    for _ in 0..3 {
        let database = client.database(random.of(&DATABASES));
        let command = doc! {"update": random.of(&NAMES), "updates": [change(random)]};
        if let Err(error) = database.run_command(command).session(&mut session).await {
            drop(session.abort_transaction().await);
            return Err(error);
        }
    }
    if random.below(4) == 0 {
        return session.abort_transaction().await;
    }
    session.commit_transaction().await
}
