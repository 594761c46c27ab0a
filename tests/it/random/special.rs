//! What is rarer in a history: time series, views on views, limits of capped collections and documents that grow in
//! them, indexes that refuse documents by their shape, definitions within transactions, collections that leave the
//! selection and come back, entries of the oplog as clients send them, and retryable writes with their images.

use bson::{Bson, DateTime, Document, Timestamp, doc};
use mongodb::error::Error;
use mongodb::options::ReturnDocument;

use super::writer::{Place, Writer};

const SERIES: &str = "series";
/// Not selected.
pub const HIDDEN: &str = "hidden";

impl Writer {
    /// One of them.
    pub(super) async fn special(&mut self) -> Result<(), Error> {
        let (place, name) = (self.place(), self.name());
        let command = match self.draw.random.below(16) {
            0..5 => self.series(),
            5..8 => self.view(name),
            8 => {
                let max = 1 + self.draw.random.below(9).cast_signed();
                doc! {"collMod": name, "cappedSize": 4096 * max, "cappedMax": max}
            }
            9 => self.shaped_index(name),
            10..13 => self.shaped_write(name),
            13..15 => return self.define_together(place, name).await,
            _ => return self.hide_or_show(place, name).await,
        };
        self.run_in(place, command).await
    }

    fn series(&mut self) -> Document {
        let number = self.draw.random.below(4).cast_signed();
        match self.draw.random.below(16) {
            12 => doc! {"create": SERIES, "timeseries": {"timeField": "t", "granularity": "hours"}},
            13 => {
                doc! {"create": SERIES, "timeseries": {"timeField": "t", "metaField": "m", "granularity": "seconds"},
                "expireAfterSeconds": 2_000_000_000_i64, "collation": {"locale": "en", "strength": 2}}
            }
            14 => {
                doc! {"collMod": SERIES, "expireAfterSeconds": 1_900_000_000_i64 + i64::from(number)}
            }
            15 => doc! {"update": SERIES, "updates": [
                {"q": {"m.k": number}, "u": {"$set": {"m.k": number + 1}}, "multi": true},
            ]},
            0..3 => doc! {"create": SERIES, "timeseries": {"timeField": "t", "metaField": "m"}},
            3..8 => {
                let count = 1 + self.draw.random.below(9);
                let points = (0..count).map(|_| {
                    let seconds = i64::from(self.draw.random.below(20_000));
                    let at = DateTime::from_millis(1_700_000_000_000 + seconds * 1000);
                    doc! {"t": at, "m": {"k": number}, "a": self.draw.value(1)}
                });
                doc! {"insert": SERIES, "documents": points.collect::<Vec<_>>(), "ordered": false}
            }
            8 => doc! {"delete": SERIES, "deletes": [{"q": {"m.k": number}, "limit": 0}]},
            9 => {
                let granularity = ["minutes", "hours"][number as usize % 2];
                doc! {"collMod": SERIES, "timeseries": {"granularity": granularity}}
            }
            10 => doc! {"createIndexes": SERIES, "indexes": [{"key": {"m.k": 1}, "name": "n"}]},
            _ => doc! {"drop": SERIES},
        }
    }

    fn view(&mut self, name: &str) -> Document {
        let number = self.draw.random.below(9).cast_signed();
        let on = ["view", name][self.draw.random.below(2) as usize];
        let pipeline = vec![doc! {"$match": {"b": number}}];
        match self.draw.random.below(5) {
            4 => doc! {"create": "outer", "viewOn": SERIES, "pipeline": pipeline},
            0 => doc! {"create": "outer", "viewOn": "view", "pipeline": pipeline},
            1 => doc! {"collMod": "view", "viewOn": name, "pipeline": pipeline},
            2 => doc! {"collMod": "outer", "viewOn": on, "pipeline": pipeline},
            _ => doc! {"drop": "outer"},
        }
    }

    fn shaped_index(&mut self, name: &str) -> Document {
        let index = match self.draw.random.below(3) {
            0 => doc! {"key": {"place": "2dsphere"}, "name": "place"},
            1 => doc! {"key": {"note": "text"}, "name": "words"},
            _ => doc! {"key": {"place.type": 1, "note": 1}, "name": "two"},
        };
        doc! {"createIndexes": name, "indexes": [index]}
    }

    /// Documents of which some indexes take some only.
    fn shaped_write(&mut self, name: &str) -> Document {
        let id = self.id();
        let point = |x: i32| doc! {"type": "Point", "coordinates": [x, 1]};
        let number = self.draw.random.below(5).cast_signed();
        let value: Bson = match number {
            0 => point(1).into(),
            1 => doc! {"type": "LineString", "coordinates": [[0, 0], [1, 1]]}.into(),
            2 => vec![point(2), point(3)].into(),
            3 => "nowhere".into(),
            _ => doc! {"type": [1, 2]}.into(),
        };
        let change = match self.draw.random.below(4) {
            0 => doc! {"$set": {"note": ["some words", "others"], "language": "de"}},
            1 => {
                let language = ["klingon", "fr"][number as usize % 2];
                doc! {"$set": {"note": "a note", "language": language}}
            }
            2 => doc! {"$set": {"place.coordinates": [number, number]}},
            _ => doc! {"$set": {"place": value}},
        };
        doc! {"update": name, "updates": [{"q": {"_id": {"$eq": id}}, "u": change, "upsert": self.draw.chance(30)}]}
    }

    /// A collection with indexes and documents, which all come to be at once.
    async fn define_together(&mut self, place: Place, name: &str) -> Result<(), Error> {
        let index = doc! {"key": {"a": 1}, "name": "u", "unique": true};
        let id = self.id();
        let row = self.draw.document(id);
        let mut commands = vec![
            (place, self.create(name)),
            (place, doc! {"createIndexes": name, "indexes": [index]}),
            (place, doc! {"insert": name, "documents": [row]}),
        ];
        if self.draw.chance(50) {
            commands.push(self.write_command());
        }
        self.together(commands).await
    }

    async fn hide_or_show(&mut self, place: Place, name: &str) -> Result<(), Error> {
        let name = format!("{}.{name}", self.database(place));
        let hidden = format!("{}.{HIDDEN}", self.database(place));
        let (from, to) = if self.draw.chance(50) { (name, hidden) } else { (hidden, name) };
        self.rename(from, to, true).await
    }

    /// What is rarer still.
    pub(super) async fn odd_one(&mut self) -> Result<(), Error> {
        let (place, name) = (self.place(), self.name());
        match self.draw.random.below(8) {
            0..3 => self.apply_ops(place, name).await,
            3..5 => self.retryable(place, name).await,
            5 | 6 => {
                // Documents of a capped collection that grow until others have no room.
                let pad = "y".repeat(500 * (1 + self.draw.random.below(5)) as usize);
                let q = doc! {"_id": {"$eq": self.id()}};
                let grow = doc! {"q": q, "u": {"$set": {"pad": &pad}}, "multi": false};
                self.run_in(place, doc! {"update": name, "updates": [grow]}).await
            }
            _ => {
                let function = doc! {"_id": "f", "value": self.draw.value(1)};
                let update = doc! {"q": {"_id": "f"}, "u": function, "upsert": true};
                self.run_in(place, doc! {"update": "system.js", "updates": [update]}).await
            }
        }
    }

    /// A document without fields that a primary sets to the time, and its oplog does not.
    fn without_zero_times(&mut self, id: Bson) -> Document {
        let document = self.draw.document(id);
        let zero = Bson::from(Timestamp { time: 0, increment: 0 });
        document.into_iter().filter(|(name, value)| name == "_id" || *value != zero).collect()
    }

    /// Entries as restore tools send them.
    async fn apply_ops(&mut self, place: Place, name: &str) -> Result<(), Error> {
        let ns = format!("{}.{name}", self.database(place));
        let operations: Vec<Document> = (0..1 + self.draw.random.below(4))
            .map(|_| {
                let id = self.id();
                match self.draw.random.below(4) {
                    0 => doc! {"op": "i", "ns": &ns, "o": self.without_zero_times(id)},
                    1 => {
                        let o = self.without_zero_times(id.clone());
                        doc! {"op": "u", "ns": &ns, "o2": {"_id": id}, "o": o}
                    }
                    2 => {
                        let number = self.draw.random.below(9).cast_signed();
                        let diff = doc! {"u": {"a": [self.draw.value(1)]}, "i": {"z": number}};
                        doc! {"op": "u", "ns": &ns, "o2": {"_id": id}, "o": {"$v": 2, "diff": diff}}
                    }
                    _ => doc! {"op": "d", "ns": &ns, "o": {"_id": id}},
                }
            })
            .collect();
        // What a capped collection evicts for them is not in the oplog.
        let database = self.client.database(self.database(place));
        let capped = doc! {"name": name, "options.capped": true};
        let capped = database.list_collections().filter(capped).await?.advance().await?;
        if self.prepares || capped {
            return Ok(());
        }
        let _alone = self.turns.write().await;
        self.client.database("admin").run_command(doc! {"applyOps": operations}).await.map(drop)
    }

    /// One whose image the server keeps, before or after.
    async fn retryable(&mut self, place: Place, name: &str) -> Result<(), Error> {
        let collection = self.client.database(self.database(place)).collection::<Document>(name);
        let id = self.id();
        let q = doc! {"_id": {"$eq": id.clone()}};
        let update = self.draw.update(id);
        let after = self.draw.chance(50);
        if update.keys().next().is_some_and(|key| key.starts_with('$')) {
            let when = if after { ReturnDocument::After } else { ReturnDocument::Before };
            collection.find_one_and_update(q, update).return_document(when).await.map(drop)
        } else {
            collection.find_one_and_replace(q, update).upsert(after).await.map(drop)
        }
    }
}
