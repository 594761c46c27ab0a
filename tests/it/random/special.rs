//! What is rarer in a history: time series, views on views, limits of capped collections, indexes that refuse documents
//! by their shape, definitions within transactions, and collections that leave the selection and come back.

use bson::{Bson, DateTime, Document, doc};
use mongodb::error::Error;

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
        match self.draw.random.below(12) {
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
            9 => doc! {"collMod": SERIES, "timeseries": {"granularity": "minutes"}},
            10 => doc! {"createIndexes": SERIES, "indexes": [{"key": {"m.k": 1}, "name": "n"}]},
            _ => doc! {"drop": SERIES},
        }
    }

    fn view(&mut self, name: &str) -> Document {
        let number = self.draw.random.below(9).cast_signed();
        let on = ["view", name][self.draw.random.below(2) as usize];
        let pipeline = vec![doc! {"$match": {"b": number}}];
        match self.draw.random.below(4) {
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
}
