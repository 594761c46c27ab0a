//! Documents that give unique keys to each other, and `_id`s that a collation makes equal: what is right one by one on
//! the source must not stumble on the target, where a window's writes arrive in another order.

use bson::{Bson, Document, doc};

use super::documents::{delete, insert, update};
use crate::scenario::{Scenario, Step};

fn unique(collection: &str, key: Document, rest: Document) -> Step {
    let mut index = doc! {"name": "key", "unique": true, "key": key};
    index.extend(rest);
    Step::Run(doc! {"createIndexes": collection, "indexes": [index]})
}

fn rows(count: i32) -> Vec<Document> {
    (0..count).map(|n| doc! {"_id": n, "k": n, "pad": "x".repeat(50)}).collect()
}

fn set(collection: &str, id: i32, k: impl Into<Bson>) -> Step {
    update(collection, doc! {"_id": id}, doc! {"$set": {"k": k.into()}})
}

/// The same as a command in a transaction.
fn set_command(collection: &str, id: i32, k: i32) -> Document {
    doc! {"update": collection, "updates": [{"q": {"_id": id}, "u": {"$set": {"k": k}, "$inc": {"moved": 1}}}]}
}

fn on(name: &'static str, rows: Vec<Document>, rest: Document, after: Vec<Step>) -> Scenario {
    let before = vec![unique(name, doc! {"k": 1}, rest), insert(name, rows)];
    Scenario { name, before, after }
}

/// Every scenario.
pub fn all() -> Vec<Scenario> {
    [exchanges(), kinds(), collations()].concat()
}

fn exchanges() -> Vec<Scenario> {
    let swap = "swap";
    let rotate = "rotate";
    let hand_on = "hand_on";
    let shift = "shift";
    // Every key moves to the next document, the last one first: on the target any other order is in conflict.
    let shifted = (0..200).rev().map(|n| set(shift, n, n + 1));
    let back = (0..200).map(|n| set(shift, n, n));
    let mut rotations = Vec::new();
    for turn in 0..5 {
        rotations.push(set(rotate, 0, "waits"));
        rotations.extend((1..6).rev().map(|n| set(rotate, n, (n + turn + 1) % 6)));
        rotations.push(set(rotate, 0, (turn + 1) % 6));
    }
    vec![
        on(
            swap,
            rows(6),
            doc! {},
            vec![
                Step::Transaction(vec![
                    set_command(swap, 0, -1),
                    set_command(swap, 1, 0),
                    set_command(swap, 0, 1),
                ]),
                Step::Aborted(vec![set_command(swap, 2, -2), set_command(swap, 3, 2)]),
                Step::Transaction(vec![
                    set_command(swap, 4, -1),
                    set_command(swap, 5, 4),
                    set_command(swap, 4, 5),
                ]),
                Step::Transaction(vec![
                    set_command(swap, 4, -1),
                    set_command(swap, 5, 5),
                    set_command(swap, 4, 4),
                ]),
            ],
        ),
        on(rotate, rows(6), doc! {}, rotations),
        on(
            hand_on,
            rows(8),
            doc! {},
            vec![
                delete(hand_on, doc! {"_id": 0}),
                set(hand_on, 1, 0),
                set(hand_on, 2, 1),
                delete(hand_on, doc! {"_id": 3}),
                insert(hand_on, vec![doc! {"_id": 30, "k": 3}]),
                set(hand_on, 30, 300),
                insert(hand_on, vec![doc! {"_id": 3, "k": 3}]),
                update(hand_on, doc! {"_id": 4}, doc! {"$unset": {"k": ""}}),
                update(hand_on, doc! {"_id": 5}, doc! {"k": 4}),
                set(hand_on, 4, 5),
            ],
        ),
        on(
            shift,
            rows(200),
            doc! {},
            shifted.chain(back).chain((0..200).rev().map(|n| set(shift, n, n + 1))).collect(),
        ),
    ]
}

fn kinds() -> Vec<Scenario> {
    let partial = "unique_partial";
    let arrays = "unique_arrays";
    let types = "unique_types";
    let zero = "unique_zero_timestamps";
    let stamp = bson::Timestamp { time: 0, increment: 0 };
    let exchange = |name| vec![set(name, 0, "waits"), set(name, 1, 0), set(name, 0, 1)];
    vec![
        on(
            partial,
            rows(4),
            doc! {"partialFilterExpression": {"k": {"$lt": 2}}},
            vec![
                set(partial, 0, 3),
                set(partial, 1, 0),
                set(partial, 2, 1),
                set(partial, 3, 50),
                set(partial, 2, 50),
            ],
        ),
        on(
            arrays,
            vec![doc! {"_id": 0, "k": [1, 2]}, doc! {"_id": 1, "k": [3]}, doc! {"_id": 2}],
            doc! {"sparse": true},
            vec![
                update(arrays, doc! {"_id": 0}, doc! {"$pull": {"k": 2}}),
                update(arrays, doc! {"_id": 1}, doc! {"$push": {"k": 2}}),
                update(arrays, doc! {"_id": 1}, doc! {"$pull": {"k": 3}}),
                update(arrays, doc! {"_id": 2}, doc! {"$set": {"k": [3]}}),
            ],
        ),
        on(
            types,
            rows(2),
            doc! {},
            vec![
                set(types, 0, Bson::Int64(5)),
                set(types, 0, Bson::Null),
                insert(types, vec![doc! {"_id": 9, "k": 5.0}]),
                delete(types, doc! {"_id": 9}),
                insert(types, vec![doc! {"_id": 8, "k": 5}]),
            ],
        ),
        // Documents that a plain insert would change, in conflict with each other.
        Scenario {
            name: zero,
            before: vec![
                unique(zero, doc! {"k": 1}, doc! {}),
                insert(zero, rows(3)),
                Step::Run(doc! {"update": zero, "updates": [
                    {"q": {}, "u": [{"$set": {"t": stamp, "z": 1}}], "multi": true},
                ]}),
            ],
            after: exchange(zero),
        },
    ]
}

fn collations() -> Vec<Scenario> {
    let name = "collation";
    let odd = "collation_odd";
    let keys = "collation_keys";
    // What the server says of a conflict quotes its own form of the keys, which is not UTF-8.
    let collated = doc! {"collation": {"locale": "fr", "strength": 3, "caseLevel": true}};
    let letters = ["A", "B", "\u{e9}"].into_iter().zip(1..);
    let letters = letters.map(|(k, id)| doc! {"_id": id, "k": {"a": k}}).collect();
    let strings = ["abc", "xyz", "Mixed", "other"];
    let rows: Vec<Document> = strings.iter().map(|id| doc! {"_id": *id, "n": 1}).collect();
    let create =
        |name: &str| Step::Run(doc! {"create": name, "collation": {"locale": "en", "strength": 2}});
    let stamp = bson::Timestamp { time: 0, increment: 0 };
    vec![
        Scenario {
            name: keys,
            before: vec![unique(keys, doc! {"k": 1}, collated), insert(keys, letters)],
            after: vec![
                set(keys, 1, "waits"),
                set(keys, 2, doc! {"a": "A"}),
                set(keys, 3, doc! {"a": "B"}),
                set(keys, 1, doc! {"a": "\u{e9}"}),
                delete(keys, doc! {"_id": 2}),
                insert(keys, vec![doc! {"_id": 0, "k": {"a": "A"}}]),
            ],
        },
        Scenario {
            name,
            before: vec![create(name), insert(name, rows.clone())],
            after: vec![
                delete(name, doc! {"_id": "abc"}),
                insert(name, vec![doc! {"_id": "ABC", "n": 2}]),
                update(name, doc! {"_id": "abc"}, doc! {"$inc": {"n": 1}}),
                update(name, doc! {"_id": "XYZ"}, doc! {"$set": {"m": 1}}),
                update(name, doc! {"_id": "mixed"}, doc! {"n": 5}),
                delete(name, doc! {"_id": "OTHER"}),
                insert(name, vec![doc! {"_id": "other"}, doc! {"_id": "new"}]),
                delete(name, doc! {"_id": "NEW"}),
                insert(name, vec![doc! {"_id": "New"}]),
                delete(name, doc! {"_id": "NEW"}),
                insert(name, vec![doc! {"_id": {"a": ["NEW"]}}]),
                delete(name, doc! {"_id": {"a": ["new"]}}),
                insert(name, vec![doc! {"_id": {"a": ["new"]}}]),
            ],
        },
        Scenario {
            name: odd,
            before: vec![create(odd), insert(odd, rows)],
            after: vec![
                update(odd, doc! {"_id": "abc"}, vec![doc! {"$set": {"t": stamp}}]),
                delete(odd, doc! {"_id": "abc"}),
                insert(odd, vec![doc! {"_id": "ABC", "$d": 2}]),
                update(odd, doc! {"_id": "ABC"}, vec![doc! {"$set": {"t": stamp}}]),
            ],
        },
    ]
}
