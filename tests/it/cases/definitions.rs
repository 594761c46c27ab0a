//! What can be done to collections, views and indexes; every scenario in a database of its own.

use bson::{DateTime, Document, doc};

use super::documents::{delete, insert, update};
use crate::scenario::{Scenario, Step};

pub(super) fn create(name: &str, options: Document) -> Step {
    let mut command = doc! {"create": name};
    command.extend(options);
    Step::Run(command)
}

pub(super) fn drop(name: &str) -> Step {
    Step::Run(doc! {"drop": name})
}

pub(super) fn indexes(collection: &str, specs: Vec<Document>) -> Step {
    Step::Run(doc! {"createIndexes": collection, "indexes": specs})
}

pub(super) fn index(name: &str, key: Document, rest: Document) -> Document {
    let mut spec = doc! {"name": name, "key": key};
    spec.extend(rest);
    spec
}

pub(super) fn modify(collection: &str, changes: Document) -> Step {
    let mut command = doc! {"collMod": collection};
    command.extend(changes);
    Step::Run(command)
}

fn rows(count: i32) -> Vec<Document> {
    (0..count).map(|n| doc! {"_id": n, "n": n, "a": n % 7, "text": "some words"}).collect()
}

pub(super) fn fill(collection: &str) -> Step {
    insert(collection, rows(30))
}

fn add(collection: &str, id: i32) -> Step {
    insert(collection, vec![doc! {"_id": id, "n": id}])
}

fn aggregate(collection: &str, pipeline: Vec<Document>) -> Step {
    Step::Run(doc! {"aggregate": collection, "pipeline": pipeline, "cursor": {}})
}

pub(super) fn scenario(name: &'static str, before: Vec<Step>, after: Vec<Step>) -> Scenario {
    Scenario { name, before, after }
}

/// Every scenario.
pub fn all() -> Vec<Scenario> {
    [
        creations(),
        drops(),
        renames(),
        copies(),
        views(),
        index_scenarios(),
        changes(),
        super::series::series(),
        super::series::apply_ops(),
    ]
    .concat()
}

fn collation() -> Document {
    doc! {"locale": "fr", "strength": 2}
}

fn creations() -> Vec<Scenario> {
    let clustered = || doc! {"clusteredIndex": {"key": {"_id": 1}, "unique": true, "name": "mine"}};
    let mut expiring = clustered();
    expiring.insert("expireAfterSeconds", 3600_i64);
    let validator = doc! {
        "validator": {"$jsonSchema": {"required": ["n"]}}, "validationLevel": "moderate", "validationAction": "warn",
    };
    vec![
        scenario(
            "options",
            vec![],
            vec![
                create("plain", doc! {}),
                create("capped", doc! {"capped": true, "size": 5000, "max": 10}),
                insert("capped", rows(25)),
                create("collation", doc! {"collation": collation()}),
                insert("collation", vec![doc! {"_id": "a"}, doc! {"_id": "b", "n": 1}]),
                create("clustered", clustered()),
                fill("clustered"),
                delete("clustered", doc! {"_id": {"$lt": 5}}),
                create("clustered_expiring", expiring),
                insert("clustered_expiring", vec![doc! {"_id": DateTime::now()}]),
                create("validated", validator),
                fill("validated"),
                create("pre_images", doc! {"changeStreamPreAndPostImages": {"enabled": true}}),
                fill("pre_images"),
                update("pre_images", doc! {"_id": 1}, doc! {"$set": {"x": 1}}),
                create(
                    "storage",
                    doc! {"storageEngine": {"wiredTiger": {"configString": "block_compressor=zlib"}}},
                ),
                create(
                    "index_options",
                    doc! {"indexOptionDefaults": {"storageEngine": {"wiredTiger": {}}}},
                ),
                create("dots.in.name", doc! {}),
                fill("dots.in.name"),
                create("naïve \u{1F600} name", doc! {}),
                fill("naïve \u{1F600} name"),
            ],
        ),
        scenario(
            "capped_overflow",
            vec![
                create("log", doc! {"capped": true, "size": 100_000, "max": 20}),
                insert("log", rows(15)),
            ],
            vec![
                insert("log", (15..50).map(|n| doc! {"_id": n}).collect()),
                update("log", doc! {"_id": 45}, doc! {"$set": {"x": 1}}),
                insert("log", (50..53).map(|n| doc! {"_id": n}).collect()),
                delete("log", doc! {"_id": 40}),
                insert("log", vec![doc! {"_id": 40, "again": true}]),
            ],
        ),
        scenario(
            "stored_functions",
            vec![insert("system.js", vec![doc! {"_id": "f", "value": 1}])],
            vec![
                insert("system.js", vec![doc! {"_id": "g", "value": 1}]),
                update("system.js", doc! {"_id": "f"}, doc! {"$set": {"value": 2}}),
            ],
        ),
        scenario(
            "stored_functions_later",
            vec![],
            vec![insert("system.js", vec![doc! {"_id": "g", "value": 1}])],
        ),
    ]
}

fn drops() -> Vec<Scenario> {
    vec![
        scenario("dropped", vec![fill("a"), fill("b")], vec![add("a", 100), drop("a"), drop("b")]),
        scenario(
            "dropped_and_made_again",
            vec![fill("a"), indexes("a", vec![index("n", doc! {"n": 1}, doc! {})])],
            vec![
                update("a", doc! {"_id": 1}, doc! {"$set": {"x": 1}}),
                drop("a"),
                create(
                    "a",
                    doc! {"collation": collation(), "validator": {"x": {"$exists": false}}},
                ),
                insert("a", vec![doc! {"_id": 1, "other": true}, doc! {"_id": "s"}]),
                indexes("a", vec![index("n", doc! {"n": -1}, doc! {})]),
                drop("a"),
                create("a", doc! {"capped": true, "size": 4096}),
                insert("a", rows(3)),
                drop("a"),
                insert("a", rows(2)),
            ],
        ),
        scenario(
            "database_dropped",
            vec![fill("a"), fill("b"), create("v", doc! {"viewOn": "a", "pipeline": []})],
            vec![add("a", 100), Step::Run(doc! {"dropDatabase": 1})],
        ),
        scenario(
            "database_dropped_and_made_again",
            vec![fill("a"), fill("b"), create("v", doc! {"viewOn": "a", "pipeline": []})],
            vec![
                Step::Run(doc! {"dropDatabase": 1}),
                insert("a", rows(3)),
                create("b", doc! {"viewOn": "a", "pipeline": []}),
                Step::Run(doc! {"dropDatabase": 1}),
                insert("b", rows(3)),
                create("a", doc! {"viewOn": "b", "pipeline": []}),
            ],
        ),
        scenario(
            "database_of_views_dropped",
            vec![create("v", doc! {"viewOn": "a", "pipeline": []})],
            vec![Step::Run(doc! {"dropDatabase": 1})],
        ),
    ]
}

fn renames() -> Vec<Scenario> {
    vec![
        scenario(
            "renamed",
            vec![fill("a"), indexes("a", vec![index("n", doc! {"n": 1}, doc! {"unique": true})])],
            vec![
                add("a", 100),
                Step::Rename("a", "b"),
                add("b", 101),
                insert("a", rows(2)),
                Step::Rename("b", "dots.c"),
                update("dots.c", doc! {"_id": 1}, doc! {"$set": {"x": 1}}),
                delete("a", doc! {"_id": 1}),
            ],
        ),
        scenario(
            "renamed_over",
            vec![fill("a"), insert("b", rows(3)), create("c", doc! {"capped": true, "size": 4096})],
            vec![
                add("b", 70),
                Step::RenameOver("a", "b"),
                add("b", 71),
                Step::RenameOver("b", "c"),
                insert("b", vec![doc! {"_id": "new b"}]),
                add("c", 72),
            ],
        ),
        scenario(
            "renamed_in_a_circle",
            vec![insert("a", rows(1)), insert("b", rows(2)), insert("c", rows(3))],
            vec![
                Step::Rename("a", "t"),
                Step::Rename("c", "a"),
                Step::Rename("b", "c"),
                Step::Rename("t", "b"),
                add("a", 50),
                add("b", 51),
                add("c", 52),
                Step::Rename("a", "t"),
                Step::Rename("c", "a"),
                Step::Rename("b", "c"),
                Step::Rename("t", "b"),
                add("a", 60),
            ],
        ),
        scenario(
            "renamed_across_databases",
            vec![
                fill("a"),
                indexes(
                    "a",
                    vec![
                        index("n", doc! {"n": 1}, doc! {}),
                        index(
                            "ttl",
                            doc! {"at": 1},
                            doc! {
                                "expireAfterSeconds": 5000,
                            },
                        ),
                    ],
                ),
                fill("b"),
                Step::RunOther(doc! {"insert": "there", "documents": [{"_id": 1}]}),
            ],
            vec![
                Step::Rename("a", "other/a"),
                Step::RunOther(doc! {"insert": "a", "documents": [{"_id": "x"}]}),
                Step::RenameOver("b", "other/there"),
                Step::Rename("other/a", "back"),
                add("back", 100),
            ],
        ),
    ]
}

fn copies() -> Vec<Scenario> {
    let out = |to: &str| {
        vec![doc! {"$match": {"n": {"$lt": 20}}}, doc! {"$set": {"x": 1}}, doc! {"$out": to}]
    };
    vec![
        scenario(
            "out",
            vec![
                fill("a"),
                insert("there", rows(2)),
                indexes("there", vec![index("n", doc! {"n": 1}, doc! {"unique": true})]),
                create(
                    "options",
                    doc! {"collation": collation(), "validator": {"z": {"$exists": false}}},
                ),
            ],
            vec![
                aggregate("a", out("new")),
                aggregate("a", out("there")),
                aggregate("a", out("options")),
                add("new", 100),
                update("there", doc! {"_id": 1}, doc! {"$set": {"x": 2}}),
                aggregate("a", out("a")),
                aggregate("a", vec![doc! {"$set": {"m": 1}}, doc! {"$merge": {"into": "merged"}}]),
                aggregate(
                    "merged",
                    vec![doc! {"$set": {"m": 2}}, doc! {"$merge": {"into": "new"}}],
                ),
            ],
        ),
        scenario(
            "converted_to_capped",
            vec![fill("a"), indexes("a", vec![index("n", doc! {"n": 1}, doc! {})]), fill("b")],
            vec![
                add("a", 100),
                Step::Run(doc! {"convertToCapped": "a", "size": 8192}),
                add("a", 101),
                Step::Run(doc! {"cloneCollectionAsCapped": "b", "toCollection": "c", "size": 4096}),
                add("c", 102),
                modify("c", doc! {"cappedSize": 8192, "cappedMax": 15}),
                add("c", 103),
            ],
        ),
    ]
}

fn views() -> Vec<Scenario> {
    let view = |name: &str, on: &str, n: i32| {
        create(name, doc! {"viewOn": on, "pipeline": [{"$match": {"n": {"$gt": n}}}]})
    };
    vec![
        scenario(
            "views",
            vec![
                fill("a"),
                view("old", "a", 1),
                view("gone", "a", 1),
                view("becomes_a_collection", "a", 1),
                fill("x"),
            ],
            vec![
                view("v", "a", 3),
                view("on_v", "v", 5),
                create("collated", doc! {"viewOn": "a", "pipeline": [], "collation": collation()}),
                view("on_nothing", "nothing", 1),
                modify("old", doc! {"viewOn": "v", "pipeline": [{"$project": {"n": 1, "_id": 0}}]}),
                modify("collated", doc! {"viewOn": "a", "pipeline": [{"$limit": 1}]}),
                drop("gone"),
                drop("becomes_a_collection"),
                insert("becomes_a_collection", rows(2)),
                drop("x"),
                view("x", "a", 9),
                drop("x"),
                view("x", "v", 9),
            ],
        ),
        scenario("last_view_dropped", vec![view("v", "a", 1)], vec![drop("v")]),
        scenario("view_made_and_dropped", vec![fill("a")], vec![view("v", "a", 1), drop("v")]),
        scenario(
            "view_refused",
            vec![fill("a")],
            vec![Step::Refused(doc! {"create": "v", "viewOn": "v", "pipeline": []})],
        ),
        scenario("no_view_left", vec![fill("a"), view("v", "a", 1), drop("v")], vec![]),
    ]
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

fn index_scenarios() -> Vec<Scenario> {
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
                        index("becomes_unique", doc! {"n": 1, "u": 1}, doc! {}),
                        index("becomes_ttl", doc! {"soon": 1}, doc! {}),
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
                modify("a", doc! {"changeStreamPreAndPostImages": {"enabled": true}}),
                update("a", doc! {"_id": 1}, doc! {"$set": {"x": 1}}),
                by_name("plain", doc! {"hidden": true}),
                by_name("hidden", doc! {"hidden": false}),
                by_name("ttl", doc! {"expireAfterSeconds": 10}),
                by_name("becomes_ttl", doc! {"expireAfterSeconds": 1000}),
                modify("a", doc! {"index": {"keyPattern": {"s": 1}, "hidden": true}}),
                by_name("becomes_unique", doc! {"prepareUnique": true}),
                by_name("becomes_unique", doc! {"unique": true}),
                by_name("compound", doc! {"prepareUnique": true}),
                by_name("compound", doc! {"prepareUnique": false}),
                modify("a", doc! {}),
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
