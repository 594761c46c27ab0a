//! Draws documents and updates from a seed. Few names and few values, so that they meet all the time.

use bson::oid::ObjectId;
use bson::spec::BinarySubtype;
use bson::{Binary, Bson, DateTime, Document, JavaScriptCodeWithScope, Regex, Timestamp, doc};

use crate::cases::documents::decimal;
use crate::harness::Random;

/// Names that are ordered in one way as text and in another as numbers, and words of the formats themselves.
const NAMES: [&str; 14] = ["a", "b", "c", "z", "10", "9", "0", "1", "01", "2", "u", "s", "d", "i"];

/// Names that no server before 5.0 takes, or that say something else in a path.
const ODD_NAMES: [&str; 6] = ["a.b", "$x", "", "$db", "a.", "é"];

/// Draws from one generator.
#[derive(Debug)]
pub struct Draw {
    /// Where chance comes from.
    pub random: Random,
    /// Some names in documents are odd.
    odd: bool,
}

impl Draw {
    /// The same seed gives the same draws.
    pub fn new(seed: u64) -> Self {
        Self { random: Random::new(seed), odd: false }
    }

    /// With names in documents that only servers from 5.0 on take.
    pub fn odd(mut self) -> Self {
        self.odd = true;
        self
    }

    /// True so many times out of a hundred.
    pub fn chance(&mut self, percent: u32) -> bool {
        self.random.below(100) < percent
    }

    /// A field name.
    pub fn name(&mut self) -> &'static str {
        NAMES[self.random.below(NAMES.len() as u32) as usize]
    }

    /// A path of up to four names.
    pub fn path(&mut self) -> String {
        let parts = 1 + self.random.below(4).min(self.random.below(4));
        let parts: Vec<&str> = (0..parts).map(|_| self.name()).collect();
        parts.join(".")
    }

    /// Some paths of which none leads through another.
    pub fn paths(&mut self, most: u32) -> Vec<String> {
        let mut paths: Vec<String> = Vec::new();
        for _ in 0..1 + self.random.below(most) {
            let path = self.path();
            let meets = |other: &String| {
                let (short, long) =
                    if other.len() < path.len() { (other, &path) } else { (&path, other) };
                long == short || long.starts_with(&format!("{short}."))
            };
            if !paths.iter().any(meets) {
                paths.push(path);
            }
        }
        paths
    }

    /// A value of any type that can be written down; `depth` levels at the most.
    pub fn value(&mut self, depth: u32) -> Bson {
        let number = self.random.below(5).cast_signed();
        match self.random.below(if depth > 0 { 17 } else { 11 }) {
            10 => self.rare_value(),
            0 => number.into(),
            1 => i64::from(number).into(),
            2 => f64::from(number).into(),
            3 => decimal(["1.0", "1.00", "NaN", "-0", "7"][number as usize]),
            4 => [f64::NAN, -0.0, 0.0, f64::INFINITY, 0.5][number as usize].into(),
            5 => ["", "x", "a.b", "$x", "y"][number as usize].into(),
            6 => [Bson::Null, Bson::MinKey, Bson::MaxKey, true.into(), false.into()]
                [number as usize]
                .clone(),
            7 => DateTime::from_millis(i64::from(number) * 1000).into(),
            8 => Timestamp { time: 1, increment: number as u32 }.into(),
            9 => Bson::Array(Vec::new()),
            11..14 => {
                Bson::Array((0..self.random.below(5)).map(|_| self.value(depth - 1)).collect())
            }
            _ => self.fields(depth - 1).into(),
        }
    }

    /// A value of a type that is seldom seen.
    pub fn rare_value(&mut self) -> Bson {
        let number = self.random.below(3).cast_signed();
        match self.random.below(8) {
            0 => object_id(number).into(),
            1 => binary(number),
            2 => Bson::RegularExpression(Regex {
                pattern: "^a".try_into().expect("no zero bytes"),
                options: "i".try_into().expect("no zero bytes"),
            }),
            3 => Bson::JavaScriptCode(format!("f({number})")),
            4 => Bson::JavaScriptCodeWithScope(JavaScriptCodeWithScope {
                code: "f".to_owned(),
                scope: doc! {"a": number},
            }),
            5 => Bson::Symbol("x".to_owned()),
            6 => Bson::Undefined,
            _ => Timestamp { time: number as u32, increment: number as u32 }.into(),
        }
    }

    /// An `_id` of a type that is seldom one.
    pub fn rare_id(&mut self) -> Bson {
        let number = self.random.below(2).cast_signed();
        let of_two = |two: [Bson; 2]| two[number as usize].clone();
        match self.random.below(12) {
            0 => object_id(number).into(),
            1 => binary(number),
            2 => DateTime::from_millis(i64::from(number)).into(),
            3 => of_two([true.into(), false.into()]),
            4 => Bson::Null,
            5 => of_two([Bson::MinKey, Bson::MaxKey]),
            6 => Timestamp { time: number as u32, increment: 0 }.into(),
            7 => of_two([f64::NAN.into(), (-0.0).into()]),
            8 => of_two([decimal("1.0"), decimal("NaN")]),
            9 => of_two([Bson::JavaScriptCode("x".to_owned()), Bson::Symbol("x".to_owned())]),
            10 => of_two([doc! {}.into(), doc! {"a": {"b": [1, f64::from(2)]}}.into()]),
            _ => of_two(["".into(), f64::INFINITY.into()]),
        }
    }

    /// Fields of a document, in any order.
    pub fn fields(&mut self, depth: u32) -> Document {
        let mut document = Document::new();
        for _ in 0..self.random.below(6) {
            let name = if self.odd && self.chance(4) {
                ODD_NAMES[self.random.below(6) as usize]
            } else {
                self.name()
            };
            document.insert(name, self.value(depth));
        }
        document
    }

    /// A document with this `_id`.
    pub fn document(&mut self, id: impl Into<Bson>) -> Document {
        let mut document = doc! {"_id": id.into()};
        document.extend(self.fields(3));
        document
    }

    /// An update in the operator format as an oplog of before 5.0 holds it: in the order of bytes, or in none.
    pub fn modifier(&mut self, by_bytes: bool) -> Document {
        let (mut set, mut unset) = (Document::new(), Document::new());
        let mut paths = self.paths(6);
        paths.sort_by_cached_key(|path| path.split('.').map(str::to_owned).collect::<Vec<_>>());
        if !by_bytes {
            paths.reverse();
        }
        for path in paths {
            if self.chance(70) {
                set.insert(path, self.value(2));
            } else {
                unset.insert(path, true);
            }
        }
        let mut modifier = doc! {"$v": 1};
        if !set.is_empty() {
            modifier.insert("$set", set);
        }
        if !unset.is_empty() {
            modifier.insert("$unset", unset);
        }
        modifier
    }

    /// An update as clients write it: with operators, or a whole new document.
    pub fn update(&mut self, id: impl Into<Bson>) -> Document {
        if self.chance(10) {
            return self.document(id);
        }
        let mut update = Document::new();
        for path in self.paths(5) {
            let number = Bson::from(self.random.below(9).cast_signed());
            let (operator, operand) = match self.random.below(14) {
                0..4 => ("$set", self.value(2)),
                4..6 => ("$unset", "".into()),
                6 => ("$inc", number),
                7 => ("$mul", number),
                8 => ("$max", self.value(1)),
                9 => ("$min", self.value(1)),
                10 => ("$push", doc! {"$each": [self.value(1), number], "$slice": -4}.into()),
                11 => ("$pull", number),
                12 => ("$addToSet", self.value(1)),
                _ => ("$pop", 1.into()),
            };
            let operand = Bson::Document(doc! {path: operand});
            match update.get_document_mut(operator) {
                Ok(there) => there.extend(operand.as_document().expect("just made").clone()),
                Err(_) => {
                    update.insert(operator, operand);
                }
            }
        }
        update
    }
}

fn object_id(number: i32) -> ObjectId {
    ObjectId::from_bytes([number as u8; 12])
}

fn binary(number: i32) -> Bson {
    let subtype = [BinarySubtype::Generic, BinarySubtype::Uuid][number as usize % 2];
    Binary { subtype, bytes: vec![number as u8; 16] }.into()
}
