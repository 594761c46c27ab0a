//! Definitions: collections, indexes and views come to be, change, take other names and go.

use bson::{Bson, Document, doc};
use mongodb::error::Error;

use super::writer::Writer;

/// Long enough for nothing to expire while a test runs.
const LONG_SECONDS: i32 = 100_000;

impl Writer {
    /// One definition, as most histories have many.
    pub(super) async fn define(&mut self) -> Result<(), Error> {
        let (place, name) = (self.place(), self.name());
        let (other_place, other) = (self.place(), self.name());
        let number = self.draw.random.below(9).cast_signed();
        let there = if self.draw.chance(70) { place } else { other_place };
        let there = doc! {"db": self.database(there), "coll": other};
        let command = match self.draw.random.below(24) {
            0..3 => self.create(name),
            3 => doc! {"drop": name},
            4..7 => {
                let from = format!("{}.{name}", self.database(place));
                let to = format!("{}.{other}", self.database(other_place));
                let over = self.draw.chance(60);
                return self.rename(from, to, over).await;
            }
            7..11 => self.index(name),
            11 | 12 => self.drop_indexes(name, number),
            13..16 => self.change(name, number),
            16 => doc! {"aggregate": name, "cursor": {}, "pipeline": [{"$out": there}]},
            17 => doc! {"aggregate": name, "cursor": {}, "pipeline": [
                {"$set": {"merged": number}}, {"$merge": {"into": there}},
            ]},
            18 => doc! {"convertToCapped": name, "size": 4096 * i64::from(1 + number * number)},
            19 => {
                doc! {"cloneCollectionAsCapped": name, "toCollection": other, "size": 8192, "maxTimeMS": 60_000}
            }
            20 | 21 => self.create_view(name, number),
            _ => doc! {"drop": "view"},
        };
        self.run_in(place, command).await
    }

    pub(super) fn create(&mut self, name: &str) -> Document {
        let mut command = doc! {"create": name};
        let number = self.draw.random.below(4).cast_signed();
        command.extend(match self.draw.random.below(14) {
            0 => doc! {"collation": {"locale": "en", "strength": 2}},
            1 => {
                doc! {"collation": {"locale": "fr", "strength": 1 + number % 2, "caseLevel": true}}
            }
            2 | 3 => doc! {"capped": true, "size": 20_000, "max": 8},
            4 => doc! {"capped": true, "size": 4096 * (1 + number)},
            5 => doc! {"changeStreamPreAndPostImages": {"enabled": true}},
            6 => doc! {"validator": {"b": {"$exists": true}}, "validationAction": "warn"},
            7 => doc! {"validator": {"$jsonSchema": {"properties": {"a": {"bsonType": "int"}}}},
            "validationLevel": "moderate"},
            8 => doc! {"clusteredIndex": {"key": {"_id": 1}, "unique": true}},
            9 => doc! {"clusteredIndex": {"key": {"_id": 1}, "unique": true, "name": "mine"},
            "expireAfterSeconds": i64::from(LONG_SECONDS + number), "collation": {"locale": "de"}},
            10 => doc! {"storageEngine": {"wiredTiger": {"configString": "block_compressor=zlib"}}},
            11 => doc! {"indexOptionDefaults": {"storageEngine": {"wiredTiger": {}}}},
            _ => doc! {},
        });
        command
    }

    fn index(&mut self, name: &str) -> Document {
        let number = self.draw.random.below(4).cast_signed();
        let index = match self.draw.random.below(16) {
            0 => doc! {"key": {"a": 1}, "name": "u", "unique": true, "sparse": true},
            1 => doc! {"key": {"a": 1}, "name": "u"},
            2 => doc! {"key": {"a": 1}, "name": "u", "unique": true},
            3 => doc! {"key": {"b": 1}, "name": "n", "expireAfterSeconds": LONG_SECONDS},
            4 => {
                doc! {"key": {"b": 1}, "name": "n", "expireAfterSeconds": f64::from(LONG_SECONDS), "sparse": true}
            }
            5 => doc! {"key": {"b": 1, "c": -1}, "name": "n"},
            6 => doc! {"key": {"$**": 1}, "name": "wild"},
            7 => doc! {"key": {"$**": 1}, "name": "wild", "wildcardProjection": {"a": 1, "z.b": 1}},
            8 => doc! {"key": {"c": "hashed"}, "name": "hashed"},
            9 => doc! {"key": {"c": "hashed", "z": 1}, "name": "hashed"},
            10 => {
                doc! {"key": {"z": 1}, "name": "collated", "collation": {"locale": "en", "strength": 1 + number},
                "unique": number == 0}
            }
            11 => doc! {"key": {"z": 1}, "name": "part", "unique": true,
            "partialFilterExpression": {"z": {"$gt": number}}},
            12 => doc! {"key": {"0": 1}, "name": "h", "hidden": true},
            13 => doc! {"key": {"10": 1}, "name": "soon_unique", "prepareUnique": number < 2},
            14 => doc! {"key": {"u.s": 1, "d.i": -1}, "name": "deep", "background": true},
            _ => doc! {"key": {"_id": "hashed"}, "name": "ids"},
        };
        doc! {"createIndexes": name, "indexes": [index]}
    }

    fn drop_indexes(&mut self, name: &str, number: i32) -> Document {
        let index: Bson = match number {
            0 => "*".into(),
            1 => doc! {"b": 1}.into(),
            2 => vec!["u", "n"].into(),
            _ => {
                ["u", "n", "wild", "hashed", "collated", "soon_unique"][number as usize % 6].into()
            }
        };
        doc! {"dropIndexes": name, "index": index}
    }

    /// `collMod` of every kind, but for those of views and time series.
    fn change(&mut self, name: &str, number: i32) -> Document {
        let index = |rest: Document| {
            let mut index = doc! {"name": if number % 3 == 0 { "u" } else { "n" }};
            index.extend(rest);
            doc! {"index": index}
        };
        let yes = number % 2 == 0;
        let soon = |rest: Document| {
            let mut index = doc! {"name": if yes { "soon_unique" } else { "u" }};
            index.extend(rest);
            doc! {"index": index}
        };
        let mut command = doc! {"collMod": name};
        command.extend(match self.draw.random.below(16) {
            0 => doc! {"validator": {"a": {"$ne": number}}, "validationAction": "warn"},
            1 => doc! {"validator": {}},
            2 => {
                {
                let level = ["off", "strict", "moderate"][number as usize % 3];
                doc! {"validationLevel": level}
            }
            }
            3 => doc! {"validationAction": if yes { "warn" } else { "error" }},
            4 | 5 => index(doc! {"hidden": yes}),
            6 => index(doc! {"expireAfterSeconds": LONG_SECONDS + number}),
            7 => doc! {"index": {"keyPattern": {"b": 1}, "expireAfterSeconds": f64::from(LONG_SECONDS + number)}},
            8 => index(doc! {"hidden": yes, "expireAfterSeconds": i64::from(LONG_SECONDS + number)}),
            9 | 10 => soon(doc! {"prepareUnique": number % 3 > 0}),
            11 => soon(doc! {"unique": true}),
            12 => doc! {"changeStreamPreAndPostImages": {"enabled": yes}},
            13 => doc! {"expireAfterSeconds": i64::from(LONG_SECONDS + number)},
            14 => doc! {"expireAfterSeconds": "off"},
            _ => doc! {"validator": {"$expr": {"$ne": ["$a", number]}}, "validationLevel": "moderate"},
        });
        command
    }

    fn create_view(&mut self, name: &str, number: i32) -> Document {
        let mut command =
            doc! {"create": "view", "viewOn": name, "pipeline": [{"$match": {"a": number}}]};
        if number < 2 {
            command.insert("collation", doc! {"locale": "en", "strength": 1 + number});
        }
        command
    }
}
