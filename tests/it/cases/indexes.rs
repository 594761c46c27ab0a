//! What can be done to indexes, and with `collMod`; every scenario in a database of its own.

use bson::{Document, doc};

use super::definitions::{collation, create, fill, index, indexes, modify, rows, scenario};
use super::documents::{delete, insert, update};
use crate::scenario::{Scenario, Step};

/// Every scenario.
pub(super) fn all() -> Vec<Scenario> {
    [builds(), changes()].concat()
}

/// Indexes of every kind.
fn kinds() -> Vec<Document> {
    vec![
        index("plain", doc! {"n": 1}, doc! {}),
        index("compound", doc! {"n": -1, "a": 1, "sub.x": 1}, doc! {}),
        index("unique", doc! {"_id": 1, "n": 1}, doc! {"unique": true}),
        index("sparse", doc! {"s": 1}, doc! {"sparse": true}),
        index("partial", doc! {"a": 1}, doc! {"partialFilterExpression": {"n": {"$gt": 3}}}),
        index("ttl", doc! {"at": 1}, doc! {"expireAfterSeconds": 7200}),
        index(
            "text",
            doc! {"text": "text", "title": "text"},
            doc! {"weights": {"title": 5}, "default_language": "french"},
        ),
        index("sphere", doc! {"place": "2dsphere"}, doc! {}),
        index("flat", doc! {"spot": "2d"}, doc! {"bits": 20, "min": -10, "max": 10}),
        index("hashed", doc! {"h": "hashed"}, doc! {}),
        index("compound_hashed", doc! {"b": 1, "h": "hashed"}, doc! {}),
        index("wildcard", doc! {"$**": 1}, doc! {"wildcardProjection": {"n": 0, "text": 0}}),
        index("wildcard_below", doc! {"sub.$**": 1}, doc! {}),
        index("hidden", doc! {"hid": 1}, doc! {"hidden": true}),
        index("collation", doc! {"c": 1}, doc! {"collation": collation()}),
        index("same_key", doc! {"c": 1}, doc! {}),
        index("double", doc! {"d": 1.0, "e": -1_i64}, doc! {}),
        index("id_hashed", doc! {"_id": "hashed"}, doc! {}),
        index("simple", doc! {"simple": 1}, doc! {"collation": {"locale": "simple"}}),
    ]
}

fn builds() -> Vec<Scenario> {
    let collated = || create("collated", doc! {"collation": collation()});
    let on_collated = || {
        vec![
            index("inherits", doc! {"n": 1}, doc! {}),
            index("simple", doc! {"n": 1, "a": 1}, doc! {"collation": {"locale": "simple"}}),
            index(
                "simple_unique",
                doc! {"s": 1},
                doc! {
                    "collation": {"locale": "simple"}, "unique": true,
                    "partialFilterExpression": {"s": {"$exists": true}},
                },
            ),
            index("other", doc! {"a": 1}, doc! {"collation": {"locale": "de"}}),
        ]
    };
    let dup = || vec![doc! {"_id": 100, "n": 1}];
    let old = index("old", doc! {"o": 1}, doc! {"v": 1});
    vec![
        scenario(
            "indexes",
            vec![fill("full"), create("empty", doc! {}), collated()],
            vec![
                indexes("full", kinds()),
                indexes("empty", kinds()),
                indexes("made_by_indexes", kinds()),
                indexes("full", kinds()),
                indexes("empty", vec![old.clone()]),
                indexes("collated", on_collated()),
                insert("collated", vec![doc! {"_id": 1, "s": "a"}, doc! {"_id": 2, "s": "A"}]),
                insert(
                    "full",
                    vec![
                        doc! {"_id": 50, "n": 50, "place": {"type": "Point", "coordinates": [1, 2]}},
                    ],
                ),
            ],
        ),
        scenario(
            "indexes_there",
            vec![
                fill("full"),
                indexes("full", kinds()),
                indexes("old", vec![old]),
                collated(),
                indexes("collated", on_collated()),
                insert("collated", vec![doc! {"_id": 1, "s": "a"}, doc! {"_id": 2, "s": "A"}]),
            ],
            vec![
                Step::Run(doc! {"dropIndexes": "full", "index": "plain"}),
                Step::Run(doc! {"dropIndexes": "full", "index": {"a": 1}}),
                Step::Run(doc! {"dropIndexes": "full", "index": ["ttl", "text"]}),
                indexes("full", vec![index("plain", doc! {"other": 1}, doc! {})]),
                Step::Run(doc! {"dropIndexes": "collated", "index": "*"}),
            ],
        ),
        scenario(
            "all_indexes_dropped",
            vec![fill("full"), indexes("full", kinds())],
            vec![
                Step::Run(doc! {"dropIndexes": "full", "index": "*"}),
                indexes("full", vec![kinds().remove(0)]),
            ],
        ),
        scenario(
            "failing_unique_index",
            vec![fill("full"), insert("full", dup())],
            vec![
                Step::Refused(doc! {
                    "createIndexes": "full", "indexes": [index("n", doc! {"n": 1}, doc! {"unique": true})],
                }),
                delete("full", doc! {"_id": 100}),
                indexes("full", vec![index("n2", doc! {"n": 1, "a": 1}, doc! {"unique": true})]),
            ],
        ),
    ]
}

fn changes() -> Vec<Scenario> {
    let by_name = |name: &str, rest: Document| {
        let mut change = doc! {"name": name};
        change.extend(rest);
        modify("a", doc! {"index": change})
    };
    vec![
        scenario(
            "changed",
            vec![
                fill("a"),
                indexes("a", kinds()),
                indexes(
                    "a",
                    vec![
                        index("becomes_ttl", doc! {"soon": 1}, doc! {}),
                        index("ttl_of_long", doc! {"late": 1}, doc! {"expireAfterSeconds": 90_i64}),
                    ],
                ),
            ],
            vec![
                modify(
                    "a",
                    doc! {"validator": {"n": {"$type": "int"}}, "validationLevel": "moderate"},
                ),
                modify("a", doc! {"validationAction": "warn"}),
                insert("a", vec![doc! {"_id": "bad", "n": "no number"}]),
                modify("a", doc! {"validator": {}, "validationLevel": "off"}),
                update("a", doc! {"_id": 1}, doc! {"$set": {"x": 1}}),
                by_name("ttl", doc! {"expireAfterSeconds": 10}),
                by_name("ttl_of_long", doc! {"expireAfterSeconds": 20}),
                modify("a", doc! {}),
            ],
        ),
        scenario(
            "changed_hidden",
            vec![
                fill("a"),
                indexes(
                    "a",
                    vec![
                        index("plain", doc! {"n": 1}, doc! {}),
                        index("sparse", doc! {"s": 1}, doc! {"sparse": true}),
                        index("hidden", doc! {"hid": 1}, doc! {"hidden": true}),
                    ],
                ),
            ],
            vec![
                by_name("plain", doc! {"hidden": true}),
                by_name("hidden", doc! {"hidden": false}),
                modify("a", doc! {"index": {"keyPattern": {"s": 1}, "hidden": true}}),
            ],
        ),
        scenario(
            "changed_since_6_0",
            vec![
                fill("a"),
                indexes("a", kinds()),
                indexes(
                    "a",
                    vec![
                        index("becomes_unique", doc! {"n": 1, "u": 1}, doc! {}),
                        index("becomes_ttl", doc! {"soon": 1}, doc! {}),
                    ],
                ),
            ],
            vec![
                modify("a", doc! {"changeStreamPreAndPostImages": {"enabled": true}}),
                update("a", doc! {"_id": 1}, doc! {"$set": {"x": 1}}),
                by_name("becomes_ttl", doc! {"expireAfterSeconds": 1000}),
                by_name("becomes_unique", doc! {"prepareUnique": true}),
                by_name("becomes_unique", doc! {"unique": true}),
                by_name("compound", doc! {"prepareUnique": true}),
                by_name("compound", doc! {"prepareUnique": false}),
                modify("a", doc! {"changeStreamPreAndPostImages": {"enabled": false}}),
            ],
        ),
        scenario(
            "changed_clustered",
            vec![
                create("c", doc! {"clusteredIndex": {"key": {"_id": 1}, "unique": true}}),
                create(
                    "t",
                    doc! {"clusteredIndex": {"key": {"_id": 1}, "unique": true}, "expireAfterSeconds": 100},
                ),
            ],
            vec![
                modify("c", doc! {"expireAfterSeconds": 1000_i64}),
                modify("t", doc! {"expireAfterSeconds": "off"}),
                fill("c"),
            ],
        ),
        scenario(
            "changed_and_replaced",
            vec![fill("a"), create("b", doc! {"validator": {"n": {"$exists": true}}})],
            vec![
                modify("a", doc! {"validator": {"n": {"$gt": -1}}}),
                Step::RenameOver("a", "b"),
                modify("b", doc! {"validator": {"n": {"$gt": -2}}}),
                insert("a", rows(1)),
                modify("a", doc! {"validationLevel": "moderate"}),
            ],
        ),
    ]
}
