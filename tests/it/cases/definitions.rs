//! What can be done to collections, views and indexes; every scenario in a database of its own.

use bson::{DateTime, Document, Timestamp, doc};

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

pub(super) fn rows(count: i32) -> Vec<Document> {
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
        super::indexes::all(),
        series(),
        apply_ops(),
    ]
    .concat()
}

pub(super) fn collation() -> Document {
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
                create("validated", validator),
                fill("validated"),
                create("auto", doc! {"autoIndexId": true}),
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
            "clustered",
            vec![],
            vec![
                create("clustered", clustered()),
                fill("clustered"),
                delete("clustered", doc! {"_id": {"$lt": 5}}),
                create("clustered_expiring", expiring),
                insert("clustered_expiring", vec![doc! {"_id": DateTime::now()}]),
            ],
        ),
        scenario(
            "clustered_and_capped",
            vec![create("a", clustered()), fill("a")],
            vec![
                Step::Run(doc! {"convertToCapped": "a", "size": 8192}),
                insert("a", vec![doc! {"_id": 100}]),
            ],
        ),
        scenario(
            "pre_images",
            vec![],
            vec![
                create("pre_images", doc! {"changeStreamPreAndPostImages": {"enabled": true}}),
                fill("pre_images"),
                update("pre_images", doc! {"_id": 1}, doc! {"$set": {"x": 1}}),
            ],
        ),
        scenario(
            "record_pre_images",
            vec![fill("later")],
            vec![
                create("recorded", doc! {"recordPreImages": true}),
                modify("later", doc! {"recordPreImages": true}),
                update("later", doc! {"_id": 1}, doc! {"$set": {"x": 1}}),
            ],
        ),
        scenario(
            "capped",
            vec![
                create("log", doc! {"capped": true, "size": 100_000, "max": 20}),
                insert("log", rows(15)),
                create("small", doc! {"capped": true, "size": 4096}),
                insert("small", rows(15)),
            ],
            vec![
                insert("log", (15..50).map(|n| doc! {"_id": n, "n": n}).collect()),
                update("log", doc! {"_id": 45}, doc! {"$set": {"n": -45}}),
                insert("log", (50..53).map(|n| doc! {"_id": n}).collect()),
                insert(
                    "small",
                    (15..120).map(|n| doc! {"_id": n, "pad": "x".repeat(90)}).collect(),
                ),
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
            "capped_growing",
            vec![
                create("log", doc! {"capped": true, "size": 4096}),
                insert("log", vec![doc! {"_id": 1, "pad": "x".repeat(2900)}, doc! {"_id": 2}]),
                create("numbered", doc! {"capped": true, "size": 4096, "max": 3}),
                insert("numbered", vec![doc! {"_id": 1, "pad": "x".repeat(2900)}]),
            ],
            vec![
                // It evicts nothing until the next insert.
                insert("log", vec![doc! {"_id": 3}, doc! {"_id": 4}]),
                update("log", doc! {"_id": 3}, doc! {"$set": {"pad": "x".repeat(1500)}}),
                insert("numbered", vec![doc! {"_id": 2}, doc! {"_id": 3}]),
                update("numbered", doc! {"_id": 2}, doc! {"$set": {"pad": "x".repeat(1500)}}),
                update("numbered", doc! {"_id": 1}, doc! {"$set": {"more": "x".repeat(1500)}}),
            ],
        ),
        scenario(
            "capped_order",
            vec![
                create("log", doc! {"capped": true, "size": 100_000}),
                insert("log", rows(15)),
                update(
                    "log",
                    doc! {"_id": 6},
                    vec![doc! {"$set": {"t": Timestamp { time: 0, increment: 0 }}}],
                ),
            ],
            vec![
                insert("log", vec![doc! {"_id": 20}, doc! {"_id": 21}]),
                delete("log", doc! {"_id": 3}),
                insert("log", vec![doc! {"_id": 3, "again": true}, doc! {"_id": 22}]),
                delete("log", doc! {"_id": 4}),
                delete("log", doc! {"_id": 20}),
                insert("log", vec![doc! {"_id": 20, "again": true}]),
                update("log", doc! {"_id": 5}, doc! {"$set": {"x": 1}}),
                insert("log", vec![doc! {"_id": 4, "again": true}, doc! {"_id": 23}]),
                delete("log", doc! {"_id": 3}),
                insert("log", vec![doc! {"_id": 3, "again": 2}]),
                update(
                    "log",
                    doc! {"_id": 20},
                    vec![doc! {"$set": {"t": Timestamp { time: 0, increment: 0 }}}],
                ),
                insert("log", vec![doc! {"_id": 24}]),
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
            vec![
                fill("a"),
                fill("b"),
                insert("system.js", vec![doc! {"_id": "f", "value": 1}]),
                create("v", doc! {"viewOn": "a", "pipeline": []}),
            ],
            vec![add("a", 100), Step::Run(doc! {"dropDatabase": 1})],
        ),
        scenario(
            "database_dropped_and_made_again",
            vec![
                fill("a"),
                fill("b"),
                insert("system.js", vec![doc! {"_id": "f", "value": 1}]),
                create("v", doc! {"viewOn": "a", "pipeline": []}),
            ],
            vec![
                Step::Run(doc! {"dropDatabase": 1}),
                insert("system.js", vec![doc! {"_id": "g", "value": 1}]),
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
                Step::Run(doc! {
                    "mapReduce": "a", "map": "function() { emit(this.a, 1); }",
                    "reduce": "function(key, values) { return Array.sum(values); }", "out": "reduced",
                }),
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
            ],
        ),
        scenario(
            "capped_limits",
            vec![
                create("c", doc! {"capped": true, "size": 4096, "max": 10}),
                insert("c", rows(20)),
            ],
            vec![
                modify("c", doc! {"cappedSize": 8192, "cappedMax": 15}),
                insert("c", (20..40).map(|n| doc! {"_id": n}).collect()),
                modify("c", doc! {"cappedMax": 5}),
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

fn series() -> Vec<Scenario> {
    let at = |seconds: i64| DateTime::from_millis(1_700_000_000_000 + seconds * 1000);
    let points = |from: i32, to: i32| {
        insert(
            "s",
            (from..to)
                .map(|n| doc! {"t": at(n.into()), "m": {"k": n % 3}, "x": n, "y": f64::from(n)})
                .collect(),
        )
    };
    let options = |granularity: &str| {
        doc! {"timeseries": {"timeField": "t", "metaField": "m", "granularity": granularity}}
    };
    let make = || create("s", options("seconds"));
    let mut expiring = options("minutes");
    expiring.insert("expireAfterSeconds", 1_000_000_000_i64);
    vec![
        scenario(
            "series",
            vec![make(), points(0, 20)],
            vec![
                points(20, 60),
                points(10, 15),
                insert("s", vec![doc! {"t": at(-100_000), "x": 1}]),
                indexes("s", vec![index("m_t", doc! {"m.k": 1, "t": 1}, doc! {})]),
                modify("s", doc! {"timeseries": {"granularity": "minutes"}}),
                points(60, 70),
            ],
        ),
        scenario(
            "series_changed",
            vec![make(), points(0, 20)],
            vec![
                delete("s", doc! {"m.k": 1}),
                Step::Run(doc! {"update": "s", "updates": [
                    {"q": {"m.k": 2}, "u": {"$set": {"m.k": 20}}, "multi": true},
                ]}),
                points(20, 40),
                indexes("s", vec![index("m_x", doc! {"m.k": 1, "x": 1}, doc! {})]),
            ],
        ),
        scenario(
            "series_made",
            vec![],
            vec![
                make(),
                points(0, 10),
                create("expiring", expiring),
                insert("expiring", vec![doc! {"t": at(0), "m": 1}]),
                create("by_hours", options("hours")),
                modify("expiring", doc! {"expireAfterSeconds": 1_500_000_000_i64}),
            ],
        ),
        scenario(
            "series_dropped",
            vec![make(), points(0, 10)],
            vec![drop("s"), make(), points(0, 5), drop("s"), fill("s")],
        ),
        scenario("series_gone", vec![make(), points(0, 10)], vec![points(10, 12), drop("s")]),
    ]
}

/// The command that carries oplog entries, as restore tools send it.
fn apply_ops() -> Vec<Scenario> {
    let row = |id: i32| doc! {"op": "i", "ns": "a", "o": {"_id": id, "by": "applyOps"}};
    let diff = doc! {"op": "u", "ns": "a", "o2": {"_id": 1}, "o": {"$v": 2, "diff": {"u": {"n": "x"}, "i": {"z": 1}}}};
    let replacement = doc! {"op": "u", "ns": "a", "o2": {"_id": 2}, "o": {"_id": 2, "whole": 1}};
    let removal = doc! {"op": "d", "ns": "a", "o": {"_id": 3}};
    let command = |o: Document| doc! {"op": "c", "ns": "$cmd", "o": o};
    let modifier = |id: i32, o: Document| doc! {"op": "u", "ns": "a", "o2": {"_id": id}, "o": o};
    let old = scenario(
        "apply_ops_of_old_servers",
        vec![fill("a")],
        vec![
            Step::ApplyOps(vec![
                modifier(
                    1,
                    doc! {"$v": 1, "$set": {"b.c": 1, "n": "x", "z": [1]}, "$unset": {"a": true}},
                ),
                modifier(1, doc! {"$set": {"z.2": 1, "b.a": 2}}),
                modifier(2, doc! {"$unset": {"n": true, "nothing.there": true}}),
            ]),
            update("a", doc! {"_id": 1}, doc! {"$set": {"later": 1}}),
            insert("a", vec![doc! {"_id": 300, "z": [1, {"k": 1}]}]),
            Step::ApplyOps(vec![modifier(300, doc! {"$v": 1, "$set": {"z.1.k": 2, "z.1.l": 3}})]),
        ],
    );
    vec![
        old,
        scenario(
            "apply_ops",
            vec![fill("a")],
            vec![
                Step::ApplyOps(vec![row(200)]),
                Step::ApplyOps(vec![row(201), diff, replacement, removal, row(202)]),
                // What is not there is made; where there is no collection nothing is removed.
                Step::ApplyOps(vec![
                    doc! {"op": "u", "ns": "a", "o2": {"_id": 203}, "o": {"$v": 2, "diff": {"i": {"z": 1}}}},
                    doc! {"op": "d", "ns": "nowhere", "o": {"_id": 1}},
                ]),
                Step::ApplyOps(vec![
                    command(doc! {"create": "b", "capped": true, "size": 4096}),
                    row(203),
                ]),
                Step::ApplyOps(vec![command(
                    doc! {"collMod": "a", "validator": {"z": {"$exists": false}}},
                )]),
                Step::ApplyOps(vec![command(doc! {"drop": "b"}), row(204)]),
            ],
        ),
    ]
}
