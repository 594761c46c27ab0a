//! Random operations of every kind on few names, one after another, so that a seed makes a history.

use bson::{Bson, Document, doc};
use mongodb::Client;
use mongodb::error::Error;

use super::draw::Draw;

/// One of the two databases that are written to.
pub(super) type Place = usize;

/// Collections of any kind that take each other's names.
const NAMES: [&str; 3] = ["a", "b", "c"];
/// A collection with unique keys, which documents take from each other.
const SEATS: &str = "seats";

/// Writes a history.
#[derive(Debug)]
pub struct Writer {
    client: Client,
    databases: [String; 2],
    pub(super) draw: Draw,
}

impl Writer {
    /// Begins anew: nothing is in the databases. Writers of several lanes do not meet.
    pub async fn new(client: &Client, seed: u64, lane: usize) -> Self {
        let databases = ["one", "two"].map(|name| format!("{name}_{lane}"));
        for database in &databases {
            client.database(database).drop().await.unwrap();
        }
        let mut writer = Self { client: client.clone(), databases, draw: Draw::new(seed) };
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

    /// One more operation. What the server refuses is part of the history.
    pub async fn operation(&mut self) {
        let outcome = match self.draw.random.below(100) {
            0..46 => self.write().await,
            46..66 => self.move_keys().await,
            66..74 => self.transaction().await,
            74..90 => self.define().await,
            90..99 => self.special().await,
            _ => self.run_in(0, doc! {"dropDatabase": 1}).await,
        };
        drop(outcome);
    }

    pub(super) async fn run_in(&self, place: Place, command: Document) -> Result<(), Error> {
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
        let command = doc! {"renameCollection": from, "to": to, "dropTarget": over};
        self.client.database("admin").run_command(command).await.map(drop)
    }

    pub(super) fn place(&mut self) -> Place {
        self.draw.random.below(2) as usize
    }

    pub(super) fn name(&mut self) -> &'static str {
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
        if self.draw.chance(3) {
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
        let mut session = self.client.start_session().await?;
        session.start_transaction().await?;
        for (place, command) in commands {
            let database = self.client.database(&self.databases[place]);
            if let Err(error) = database.run_command(command).session(&mut session).await {
                drop(session.abort_transaction().await);
                return Err(error);
            }
        }
        if self.draw.chance(15) {
            return session.abort_transaction().await;
        }
        session.commit_transaction().await
    }

    async fn define(&mut self) -> Result<(), Error> {
        let (place, name) = (self.place(), self.name());
        let (other_place, other) = (self.place(), self.name());
        let number = self.draw.random.below(9).cast_signed();
        let index = ["u", "n", "*"][number as usize % 3];
        let command = match self.draw.random.below(20) {
            0..3 => self.create(name),
            3 => doc! {"drop": name},
            4..7 => {
                let from = format!("{}.{name}", self.databases[place]);
                let to = format!("{}.{other}", self.databases[other_place]);
                let over = self.draw.chance(60);
                return self.rename(from, to, over).await;
            }
            7..11 => self.index(name),
            11 => doc! {"dropIndexes": name, "index": index},
            12 => {
                doc! {"collMod": name, "validator": {"a": {"$ne": number}}, "validationAction": "warn"}
            }
            13 => doc! {"collMod": name, "index": {"name": "n", "hidden": self.draw.chance(50)}},
            14 => {
                doc! {"collMod": name, "index": {"name": "n", "expireAfterSeconds": 100_000 + number}}
            }
            15 => doc! {"aggregate": name, "cursor": {}, "pipeline": [{"$out": other}]},
            16 => doc! {"aggregate": name, "cursor": {}, "pipeline": [
                {"$set": {"merged": number}}, {"$merge": {"into": other}},
            ]},
            17 => doc! {"convertToCapped": name, "size": 100_000},
            18 => doc! {"create": "view", "viewOn": name, "pipeline": [{"$match": {"a": number}}]},
            _ => doc! {"drop": "view"},
        };
        self.run_in(place, command).await
    }

    pub(super) fn create(&mut self, name: &str) -> Document {
        let mut command = doc! {"create": name};
        command.extend(match self.draw.random.below(6) {
            4 => doc! {"clusteredIndex": {"key": {"_id": 1}, "unique": true}},
            0 => doc! {"collation": {"locale": "en", "strength": 2}},
            1 => doc! {"capped": true, "size": 20_000, "max": 8},
            2 => doc! {"changeStreamPreAndPostImages": {"enabled": true}},
            3 => doc! {"validator": {"b": {"$exists": true}}, "validationAction": "warn"},
            _ => doc! {},
        });
        command
    }

    fn index(&mut self, name: &str) -> Document {
        let index = match self.draw.random.below(6) {
            0 => doc! {"key": {"a": 1}, "name": "u", "unique": true, "sparse": true},
            1 => doc! {"key": {"a": 1}, "name": "u"},
            2 => doc! {"key": {"b": 1}, "name": "n", "expireAfterSeconds": 100_000},
            3 => doc! {"key": {"b": 1, "c": -1}, "name": "n"},
            4 => doc! {"key": {"$**": 1}, "name": "wild"},
            _ => doc! {"key": {"c": "hashed"}, "name": "hashed"},
        };
        doc! {"createIndexes": name, "indexes": [index]}
    }
}
