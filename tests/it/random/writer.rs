//! Random operations of every kind on few names, one after another, so that a seed makes a history.

use std::sync::Arc;

use bson::{Bson, Document, doc};
use mongodb::Client;
use mongodb::error::Error;
use tokio::sync::RwLock;

use super::draw::Draw;
use super::prepared::Prepared;

/// One of the two databases that are written to.
pub(super) type Place = usize;

/// Collections of any kind that take each other's names.
const NAMES: [&str; 3] = ["a", "b", "c"];
/// A rarer one.
const DOTTED: &str = "d.e";
/// A collection with unique keys, which documents take from each other.
const SEATS: &str = "seats";

/// So large that a copy at a slow pace goes on for a while.
const PAD: &str = "pad";
const PAD_BYTES: usize = 12_000;
/// For one that waits for what a prepared transaction holds.
const MAX_TIME_MS: i32 = 2000;

/// What the writers of a round share: whoever is in a transaction holds it with others, or one of them alone.
pub(super) type Turns = Arc<RwLock<()>>;

/// Writes a history.
#[derive(Debug)]
pub struct Writer {
    pub(super) client: Client,
    databases: [String; 2],
    pub(super) draw: Draw,
    /// Entries are applied by command while no writer has a transaction open: the server would come to a standstill.
    pub(super) turns: Turns,
    /// Whether transactions are prepared, or entries applied by command.
    pub(super) prepares: bool,
    /// A transaction that is prepared, and waits for what becomes of it.
    pub(super) open: Option<Prepared>,
}

impl Writer {
    /// Begins anew: nothing is in the databases. Writers of several lanes do not meet.
    pub async fn new(
        client: &Client,
        seed: u64,
        lane: usize,
        prepares: bool,
        turns: Turns,
    ) -> Self {
        let databases = ["one", "two"].map(|name| format!("{name}_{lane}"));
        for database in &databases {
            client.database(database).drop().await.unwrap();
            let pad = doc! {"insert": PAD, "documents": [{"_id": 1, "pad": "x".repeat(PAD_BYTES)}]};
            client.database(database).run_command(pad).await.unwrap();
        }
        let draw = Draw::new(seed).odd();
        let mut writer =
            Self { client: client.clone(), databases, draw, turns, prepares, open: None };
        writer.make_seats().await;
        writer
    }

    async fn make_seats(&mut self) {
        let key = |name: &str, key: Document, rest: Document| {
            let mut index = doc! {"name": name, "key": key, "unique": true};
            index.extend(rest);
            index
        };
        let indexes = [
            key("seat", doc! {"seat": 1}, doc! {}),
            key("place", doc! {"row": 1, "column": 1}, doc! {"sparse": true}),
            key(
                "tags",
                doc! {"tags": 1},
                doc! {"partialFilterExpression": {"tags": {"$exists": true}}},
            ),
        ];
        let one = self.client.database(&self.databases[0]);
        one.run_command(doc! {"createIndexes": SEATS, "indexes": indexes.to_vec()}).await.unwrap();
        let rows = (0..10).map(|n| doc! {"_id": n, "seat": n, "row": n / 3, "column": n % 3});
        one.collection::<Document>(SEATS).insert_many(rows).await.unwrap();
    }

    /// Ends what is open.
    pub(super) async fn settle(&mut self) {
        if let Some(prepared) = self.open.take() {
            prepared.end(&self.client, true).await;
        }
    }

    /// One more operation. What the server refuses is part of the history.
    pub async fn operation(&mut self) {
        let outcome = match self.draw.random.below(100) {
            0..44 => self.write().await,
            44..62 => self.move_keys().await,
            62..70 => self.transaction().await,
            70..86 => self.define().await,
            86..95 => self.special().await,
            95..98 => self.odd_one().await,
            98 if self.prepares => self.prepare_or_end().await,
            98 => self.odd_one().await,
            _ => {
                let place = usize::from(self.draw.chance(25));
                self.run_in(place, doc! {"dropDatabase": 1}).await
            }
        };
        drop(outcome);
    }

    pub(super) async fn run_in(&self, place: Place, mut command: Document) -> Result<(), Error> {
        if self.open.is_some() {
            command.insert("maxTimeMS", MAX_TIME_MS);
        }
        self.client.database(&self.databases[place]).run_command(command).await.map(drop)
    }

    async fn write(&mut self) -> Result<(), Error> {
        let (place, command) = self.write_command();
        self.run_in(place, command).await
    }

    pub(super) fn database(&self, place: Place) -> &str {
        &self.databases[place]
    }

    pub(super) async fn rename(&self, from: String, to: String, over: bool) -> Result<(), Error> {
        let mut command = doc! {"renameCollection": from, "to": to, "dropTarget": over};
        if self.open.is_some() {
            command.insert("maxTimeMS", MAX_TIME_MS);
        }
        self.client.database("admin").run_command(command).await.map(drop)
    }

    pub(super) fn place(&mut self) -> Place {
        self.draw.random.below(2) as usize
    }

    pub(super) fn name(&mut self) -> &'static str {
        if self.draw.chance(4) {
            return DOTTED;
        }
        NAMES[self.draw.random.below(3) as usize]
    }

    /// An `_id`; some are equal to others of another type, or under a collation.
    pub(super) fn id(&mut self) -> Bson {
        let number = self.draw.random.below(12).cast_signed();
        match self.draw.random.below(10) {
            0 => f64::from(number).into(),
            1 => i64::from(number).into(),
            2 => ["x", "X", "y", "Y"][number as usize % 4].into(),
            3 => {
                let b = ["x", "X"][number as usize % 2];
                doc! {"a": number % 3, "b": b}.into()
            }
            4 if self.draw.chance(60) => self.draw.rare_id(),
            _ => number.into(),
        }
    }

    /// A command that writes documents, and where.
    pub(super) fn write_command(&mut self) -> (Place, Document) {
        let (place, name, id) = (self.place(), self.name(), self.id());
        let matched = doc! {"_id": {"$eq": id.clone()}};
        let many = self.draw.chance(15);
        let q = if many {
            doc! {"_id": {"$gte": id.clone()}}
        } else {
            matched.clone()
        };
        let update = |u: Bson, upsert: bool, multi: bool| {
            doc! {
                "update": name, "updates": [{"q": q.clone(), "u": u, "upsert": upsert, "multi": multi}],
            }
        };
        let command = match self.draw.random.below(20) {
            0..5 => {
                let count = 1 + self.draw.random.below(4);
                let rows: Vec<Document> = (0..count)
                    .map(|_| {
                        let id = self.id();
                        self.draw.document(id)
                    })
                    .collect();
                doc! {"insert": name, "ordered": false, "documents": rows}
            }
            5..10 => {
                let u = self.draw.update(id);
                let whole = u.contains_key("_id");
                let upsert = self.draw.chance(20);
                update(u.into(), upsert && !many, many && !whole)
            }
            10..14 => {
                let pipeline = self.pipeline(&id);
                update(pipeline, !many && self.draw.chance(10), many)
            }
            14 => {
                let u = self.draw.update(id);
                doc! {"findAndModify": name, "query": matched, "update": u, "upsert": self.draw.chance(20)}
            }
            15 => doc! {"findAndModify": name, "query": matched, "remove": true},
            _ => doc! {"delete": name, "deletes": [{"q": q, "limit": i32::from(!many)}]},
        };
        (place, command)
    }

    fn pipeline(&mut self, id: &Bson) -> Bson {
        let name = self.draw.name();
        let odd = ["$d", "a.b", "", "$x"][self.draw.random.below(4) as usize];
        let literal = |value: Bson| doc! {"$literal": value};
        let stage = match self.draw.random.below(8) {
            0 => doc! {"$set": {name: literal(self.draw.value(2))}},
            1 => doc! {"$unset": name},
            2 => doc! {"$replaceWith": literal(self.draw.document(id.clone()).into())},
            3 => {
                doc! {"$replaceWith": {"$mergeObjects": ["$$ROOT", literal(self.draw.fields(2).into())]}}
            }
            4 => doc! {"$set": {name: {"$cond": [
                {"$isArray": format!("${name}")}, {"$slice": [format!("${name}"), 2]}, literal(1.into()),
            ]}}},
            5 => doc! {"$set": {name: bson::Timestamp { time: 0, increment: 0 }}},
            6 => doc! {"$replaceWith": {"$setField": {
                "field": {"$literal": odd},
                "input": "$$ROOT", "value": literal(self.draw.value(1)),
            }}},
            _ => doc! {"$replaceWith": {"$unsetField": {
                "field": {"$literal": odd},
                "input": "$$ROOT",
            }}},
        };
        Bson::Array(vec![stage.into()])
    }

    /// Keys go from one document to another, by way of nowhere.
    async fn move_keys(&mut self) -> Result<(), Error> {
        let commands = self.key_moves();
        if self.draw.chance(30) {
            return self.together(commands.into_iter().map(|command| (0, command)).collect()).await;
        }
        for command in commands {
            self.run_in(0, command).await?;
        }
        Ok(())
    }

    fn key_moves(&mut self) -> Vec<Document> {
        let mut person = || self.draw.random.below(10).cast_signed();
        let (one, other, seat, free) = (person(), person(), person(), person());
        let set = |id: i32, seat: i32| {
            let place = doc! {"seat": seat, "row": seat / 3, "column": seat % 3};
            doc! {"update": SEATS, "updates": [{"q": {"_id": id}, "u": {"$set": place, "$inc": {"moves": 1}}}]}
        };
        let delete = |id: i32| doc! {"delete": SEATS, "deletes": [{"q": {"_id": id}, "limit": 1}]};
        let insert = |id: i32, seat: i32| {
            doc! {"insert": SEATS, "documents": [{"_id": id, "seat": seat, "tags": [seat, -seat - 1]}]}
        };
        match self.draw.random.below(6) {
            // The two, if each has the seat of its number.
            0 => vec![set(one, -1), set(other, one), set(one, other)],
            1 => vec![set(one, 100 + one), set(other, seat), set(one, free)],
            2 => vec![delete(one), set(other, seat), insert(one, free)],
            3 => vec![delete(one), insert(one, seat)],
            4 => vec![doc! {"update": SEATS, "updates": [
                {"q": {}, "u": {"$inc": {"seat": 1000}}, "multi": true},
                {"q": {}, "u": {"$inc": {"seat": -999}}, "multi": true},
            ]}],
            _ => vec![doc! {"update": SEATS, "updates": [
                {"q": {"_id": one}, "u": {"$set": {"tags": [seat, free]}}},
                {"q": {"_id": other}, "u": {"$pull": {"tags": seat}}},
                {"q": {"_id": one}, "u": {"$addToSet": {"tags": seat}}},
            ]}],
        }
    }

    async fn transaction(&mut self) -> Result<(), Error> {
        let mut commands: Vec<_> =
            (0..1 + self.draw.random.below(6)).map(|_| self.write_command()).collect();
        if self.draw.chance(2) {
            // More than one oplog entry holds.
            let pad = "x".repeat(9 << 20);
            for n in 0..2 {
                let row = doc! {"_id": format!("large {n}"), "pad": &pad};
                commands.push((1, doc! {"insert": "large", "documents": [row]}));
            }
        }
        self.together(commands).await
    }

    pub(super) async fn together(&mut self, commands: Vec<(Place, Document)>) -> Result<(), Error> {
        let abort = self.draw.chance(15);
        let _shared = self.turns.read().await;
        let mut session = self.client.start_session().await?;
        session.start_transaction().await?;
        for (place, command) in commands {
            let database = self.client.database(&self.databases[place]);
            if let Err(error) = database.run_command(command).session(&mut session).await {
                drop(session.abort_transaction().await);
                return Err(error);
            }
        }
        if abort {
            return session.abort_transaction().await;
        }
        session.commit_transaction().await
    }
}
