//! What can be done to documents, one collection a scenario.

use bson::spec::BinarySubtype;
use bson::{Bson, DateTime, Decimal128, Document, RawDocumentBuf, Timestamp, doc, oid::ObjectId};

use crate::scenario::{Scenario, Step};

/// The number, however it is written.
pub fn decimal(text: &str) -> Bson {
    Bson::Decimal128(text.parse::<Decimal128>().unwrap())
}

fn zero() -> Timestamp {
    Timestamp { time: 0, increment: 0 }
}

/// `insert` of documents.
pub fn insert(collection: &str, documents: Vec<Document>) -> Step {
    Step::Run(doc! {"insert": collection, "documents": documents})
}

/// `update` of the first document that matches.
pub fn update(collection: &str, q: Document, u: impl Into<Bson>) -> Step {
    Step::Run(doc! {"update": collection, "updates": [{"q": q, "u": u.into()}]})
}

fn update_all(collection: &str, q: Document, u: impl Into<Bson>) -> Step {
    Step::Run(doc! {"update": collection, "updates": [{"q": q, "u": u.into(), "multi": true}]})
}

fn upsert(collection: &str, q: Document, u: impl Into<Bson>) -> Step {
    Step::Run(doc! {"update": collection, "updates": [{"q": q, "u": u.into(), "upsert": true}]})
}

fn filtered(collection: &str, u: Document, filters: Vec<Document>) -> Step {
    let update = doc! {"q": {"_id": 1}, "u": u, "arrayFilters": filters};
    Step::Run(doc! {"update": collection, "updates": [update]})
}

/// `delete` of all that match.
pub fn delete(collection: &str, q: Document) -> Step {
    Step::Run(doc! {"delete": collection, "deletes": [{"q": q, "limit": 0}]})
}

fn find_and(collection: &str, rest: Document) -> Step {
    let mut command = doc! {"findAndModify": collection};
    command.extend(rest);
    Step::Run(command)
}

fn scenario(name: &'static str, before: Vec<Document>, after: Vec<Step>) -> Scenario {
    let before = if before.is_empty() { Vec::new() } else { vec![insert(name, before)] };
    Scenario { name, before, after }
}

/// One document with `_id: 1`, changed by one update after another.
fn updates(name: &'static str, document: Document, changes: Vec<Bson>) -> Scenario {
    let mut before = doc! {"_id": 1};
    before.extend(document);
    let after = changes.into_iter().map(|u| update(name, doc! {"_id": 1}, u)).collect();
    scenario(name, vec![before], after)
}

/// Every scenario.
pub fn all() -> Vec<Scenario> {
    [shapes(), operators(), arrays(), names(), values(), ids(), odd()].concat()
}

fn shapes() -> Vec<Scenario> {
    let many = |from: i32, to: i32| (from..to).map(|n| doc! {"_id": n, "n": n}).collect::<Vec<_>>();
    let name = "insert";
    let unordered = doc! {
        "insert": name, "ordered": false,
        "documents": [{"_id": 101, "a": 1}, {"_id": 0, "taken": true}, {"_id": 102, "a": 2}],
    };
    vec![
        scenario(
            name,
            many(0, 5),
            vec![
                insert(name, many(5, 60)),
                insert(name, vec![doc! {"_id": 100}, doc! {"x": 1}, doc! {}]),
                Step::Refused(unordered),
                Step::Refused(doc! {"insert": name, "documents": [{"_id": 103}, {"_id": 0}]}),
            ],
        ),
        scenario("made_by_an_insert", vec![], vec![insert("made_by_an_insert", many(0, 3))]),
        scenario(
            "replace",
            many(0, 4),
            vec![
                update("replace", doc! {"_id": 0}, doc! {"z": 1, "a": 2, "n": 0}),
                update("replace", doc! {"_id": 0}, doc! {"a": 2, "n": 0, "z": 1}),
                update("replace", doc! {"_id": 1}, doc! {}),
                update("replace", doc! {"_id": 2}, doc! {"n": 2_i64}),
            ],
        ),
        scenario(
            "upsert",
            many(0, 2),
            vec![
                upsert(
                    "upsert",
                    doc! {"_id": 0},
                    doc! {"$set": {"a": 1}, "$setOnInsert": {"b": 1}},
                ),
                upsert(
                    "upsert",
                    doc! {"_id": 7},
                    doc! {"$set": {"a": 1}, "$setOnInsert": {"b": 1}},
                ),
                upsert("upsert", doc! {"_id": 8}, doc! {"z": 1, "a": 1}),
                upsert("upsert", doc! {"n": 77}, doc! {"$inc": {"m": 1}}),
                upsert("upsert", doc! {"_id": 9}, vec![doc! {"$set": {"p": {"$add": [1, 2]}}}]),
            ],
        ),
        scenario(
            "many",
            many(0, 300),
            vec![
                update_all("many", doc! {"n": {"$lt": 200}}, doc! {"$set": {"even": true}}),
                update_all(
                    "many",
                    doc! {},
                    vec![doc! {"$set": {"twice": {"$multiply": ["$n", 2]}}}],
                ),
                delete("many", doc! {"n": {"$mod": [3, 0]}}),
                update_all("many", doc! {"n": {"$gt": 250}}, doc! {"$unset": {"even": ""}}),
            ],
        ),
        scenario(
            "delete_and_insert",
            many(0, 6),
            vec![
                delete("delete_and_insert", doc! {"_id": 0}),
                insert("delete_and_insert", vec![doc! {"_id": 0, "new": 1}]),
                delete("delete_and_insert", doc! {"_id": 1}),
                insert("delete_and_insert", vec![doc! {"_id": 1, "new": 1}]),
                update("delete_and_insert", doc! {"_id": 1}, doc! {"$set": {"then": 1}}),
                delete("delete_and_insert", doc! {"_id": 1}),
                insert("delete_and_insert", vec![doc! {"_id": 50}]),
                update("delete_and_insert", doc! {"_id": 50}, doc! {"$set": {"b": 1, "a": 1}}),
                delete("delete_and_insert", doc! {"_id": 50}),
                delete("delete_and_insert", doc! {"_id": 2}),
                insert("delete_and_insert", vec![doc! {"_id": 2.0, "other_type": true}]),
                update("delete_and_insert", doc! {"_id": 3}, doc! {"_id": 3_i64, "n": 3}),
                update("delete_and_insert", doc! {"_id": 3}, doc! {"$inc": {"n": 1}}),
            ],
        ),
        scenario(
            "find_and_modify",
            many(0, 5),
            vec![
                find_and(
                    "find_and_modify",
                    doc! {"query": {"_id": 0}, "update": {"$inc": {"n": 5}}, "new": true},
                ),
                find_and("find_and_modify", doc! {"query": {"_id": 1}, "update": {"x": 1, "a": 1}}),
                find_and("find_and_modify", doc! {"query": {"_id": 2}, "remove": true}),
                find_and(
                    "find_and_modify",
                    doc! {"query": {"_id": 9}, "update": {"$set": {"n": 1}}, "upsert": true},
                ),
                find_and(
                    "find_and_modify",
                    doc! {"query": {"_id": 3}, "update": [{"$unset": "n"}]},
                ),
            ],
        ),
    ]
}

fn operators() -> Vec<Scenario> {
    let set = |document: Document| Bson::Document(doc! {"$set": document});
    let mut every = updates(
        "operators",
        doc! {"a": 5, "b": 2.5, "c": 7, "sub": {"x": 1, "y": 2}, "bits": 13},
        vec![
            set(doc! {"a": 6, "new": 1, "sub.z": 3, "deep.er.still": 1}),
            doc! {"$inc": {"a": 1, "sub.x": 2_i64, "made": 1}}.into(),
            doc! {"$mul": {"b": 3, "zero": 2}}.into(),
            doc! {"$min": {"a": 3}, "$max": {"c": 70}}.into(),
            doc! {"$rename": {"c": "sub.moved", "sub.y": "out"}}.into(),
            doc! {"$unset": {"a": "", "sub.x": "", "nothing": ""}}.into(),
            doc! {"$bit": {"bits": {"and": 10}}}.into(),
            doc! {"$currentDate": {"at": true, "ts": {"$type": "timestamp"}}}.into(),
            doc! {"$setOnInsert": {"never": 1}}.into(),
            set(doc! {"sub": {"y": 2, "x": 1}}),
            set(doc! {"sub": {"x": 1, "y": 2}}),
        ],
    );
    every.after.push(update(
        "operators",
        doc! {"_id": 1, "a": {"$exists": false}},
        set(doc! {"q": 1}),
    ));
    let order = updates(
        "field_order",
        doc! {"m": 1},
        vec![
            vec![Bson::from(doc! {"$replaceWith": {"$mergeObjects": ["$$ROOT", {"z": 1, "b": 2, "y": 3, "a": 4}]}})]
                .into(),
            vec![Bson::from(doc! {"$replaceWith": {"$mergeObjects": ["$$ROOT", {"10": 1, "9": 2}]}})].into(),
            set(doc! {"10": 5, "9": 6, "1": 7, "01": 8}),
            vec![Bson::from(doc! {"$unset": ["z", "m"]}), Bson::from(doc! {"$set": {"z": 1}})].into(),
        ],
    );
    let words = updates(
        "words_of_the_diff_format",
        doc! {"u": 1, "d": 1, "i": 1, "s": {"a": true, "u0": 1, "l": 2}, "l": [1], "a": true, "su": {"u": 1}},
        vec![
            set(doc! {"u": 2, "diff": {"u": {"a": 1}}, "s.u0": 2, "su.u": 3, "b": {"$v": 2}}),
            set(doc! {"s.a": false, "i": {"i": 1}, "d": {"d": 1}, "sdiff": {"a": true}}),
            doc! {"$unset": {"d": "", "s.l": ""}, "$set": {"i.d": 1}}.into(),
        ],
    );
    vec![every, order, words]
}

fn arrays() -> Vec<Scenario> {
    let push = |each: Vec<i32>, rest: Document| {
        let mut push = doc! {"$each": each};
        push.extend(rest);
        Bson::Document(doc! {"$push": {"y": push}})
    };
    let plain = updates(
        "arrays",
        doc! {"y": [3, 1, 2], "objects": [{"k": 1}, {"k": 2}, {"k": 3}], "grid": [[1, 2], [3]]},
        vec![
            push(vec![9, 8], doc! {}),
            push(vec![5], doc! {"$position": 1}),
            push(vec![4], doc! {"$sort": 1}),
            push(vec![7, 7], doc! {"$slice": -5}),
            push(vec![], doc! {"$slice": 3}),
            doc! {"$addToSet": {"y": {"$each": [7, 70, 71]}}}.into(),
            doc! {"$pull": {"y": {"$gte": 71}, "objects": {"k": 2}}}.into(),
            doc! {"$pullAll": {"y": [7]}}.into(),
            doc! {"$pop": {"y": -1}}.into(),
            doc! {"$pop": {"y": 1}}.into(),
            doc! {"$set": {"y.6": 1, "grid.0.3": 5, "grid.1.0": {"a": 1}}}.into(),
            doc! {"$unset": {"y.0": ""}}.into(),
            doc! {"$set": {"objects.0.n.m": 1, "objects.5": 1}}.into(),
            vec![Bson::from(doc! {"$set": {"y": {"$slice": ["$y", 2]}}})].into(),
            doc! {"$set": {"y": {"0": "an object now"}}}.into(),
            doc! {"$set": {"y.0": "its field", "y.1": "new"}}.into(),
            doc! {"$set": {"y": []}}.into(),
        ],
    );
    let mut items = updates(
        "array_filters",
        doc! {"items": [{"k": 1, "v": [1, 2, 3]}, {"k": 2, "v": [4]}, {"k": 3, "v": []}], "n": [5, 50, 500]},
        vec![doc! {"$set": {"items.$[].all": true}}.into(), doc! {"$inc": {"n.$[]": 1}}.into()],
    );
    let name = "array_filters";
    let nested = doc! {"$inc": {"items.$[i].v.$[j]": 100}};
    items.after.push(filtered(
        name,
        nested,
        vec![doc! {"i.k": {"$lt": 3}}, doc! {"j": {"$gt": 1}}],
    ));
    items.after.push(filtered(
        name,
        doc! {"$unset": {"items.$[i].all": ""}},
        vec![doc! {"i.k": 2}],
    ));
    items.after.push(update(
        name,
        doc! {"_id": 1, "items.k": 3},
        doc! {"$set": {"items.$.hit": 1}},
    ));
    let long: Vec<i32> = (0..40).collect();
    let truncated = updates(
        "long_arrays",
        doc! {"y": long.iter().map(|n| doc! {"n": *n, "pad": "x".repeat(200)}).collect::<Vec<_>>()},
        vec![
            doc! {"$set": {"y.9.n": 1, "y.10.n": 2, "y.11": "x", "y.39.n": 0}}.into(),
            vec![Bson::from(doc! {"$set": {"y": {"$slice": ["$y", 12]}}})].into(),
            vec![Bson::from(doc! {"$set": {"y": {"$map": {
                "input": {"$slice": ["$y", 8]}, "in": {"$mergeObjects": ["$$this", {"n": -1}]},
            }}}})]
            .into(),
            doc! {"$push": {"y": {"$each": [1, 2, 3]}}}.into(),
        ],
    );
    vec![plain, items, truncated]
}

fn names() -> Vec<Scenario> {
    let stage = |name: &str, value: i32| {
        let field = doc! {"field": {"$literal": name}, "input": "$$ROOT", "value": value};
        Bson::Array(vec![doc! {"$replaceWith": {"$setField": field}}.into()])
    };
    let unset = |name: &str| {
        let field = doc! {"field": {"$literal": name}, "input": "$$ROOT"};
        Bson::Array(vec![doc! {"$replaceWith": {"$unsetField": field}}.into()])
    };
    let odd =
        || doc! {"a.b": 1, "": 2, "$x": 3, "5": 4, "sub": {"$y": 1, "c.d": 2, "": {"": 1}, "0": 1}};
    let changed = updates(
        "odd_names",
        odd(),
        vec![
            stage("a.b", 10),
            stage("$x", 30),
            doc! {"$set": {"sub.0": 5, "plain": 1}}.into(),
            stage("$new", 1),
            stage("new.dot", 1),
            unset("$x"),
            unset("a.b"),
            doc! {"$set": {"5": 50, "a.b": "not the dotted one"}}.into(),
        ],
    );
    let replaced = updates(
        "odd_names_replaced",
        odd(),
        vec![
            doc! {"x.y": 1, "": "", "sub": {"$z": 1, "$y": 2}}.into(),
            vec![Bson::from(doc! {"$replaceWith": {"$literal": {"_id": 1, "$z": 1, "a.b.": 2, ".": 3, "..": 4}}})]
                .into(),
            vec![Bson::from(doc! {"$replaceWith": {"$literal": {"_id": 1, "$z": zero(), "t": zero()}}})].into(),
        ],
    );
    let inserted = scenario(
        "odd_names_inserted",
        vec![],
        vec![insert(
            "odd_names_inserted",
            vec![
                odd(),
                doc! {"_id": 2, "$a": 1, "a.": 1, ".a": 1},
                doc! {"_id": 3, "": {"": {"": 1}}},
            ],
        )],
    );
    vec![changed, replaced, inserted]
}

/// Every type that a document may hold, and no two values of it the same.
fn every_type() -> Document {
    let binary = |subtype| Bson::Binary(bson::Binary { subtype, bytes: vec![1, 2, 3] });
    doc! {
        "double": 1.5, "string": "s\u{0}t", "object": {"b": 1, "a": 2}, "array": [1, "2", [3]],
        "generic": binary(BinarySubtype::Generic), "function": binary(BinarySubtype::Function),
        "user": binary(BinarySubtype::UserDefined(0x81)),
        "uuid": Bson::Binary(bson::Binary { subtype: BinarySubtype::Uuid, bytes: vec![7; 16] }),
        "undefined": Bson::Undefined, "object_id": ObjectId::from_bytes([9; 12]), "bool": true,
        "date": DateTime::from_millis(-1), "null": Bson::Null,
        "regex": bson::Regex { pattern: "^a".try_into().unwrap(), options: "i".try_into().unwrap() },
        "code": Bson::JavaScriptCode("return 1".into()), "symbol": Bson::Symbol("s".into()),
        "scoped": bson::JavaScriptCodeWithScope { code: "x".into(), scope: doc! {"x": 1} },
        "int": -1, "timestamp": Timestamp { time: 5, increment: 6 }, "long": i64::MIN, "decimal": decimal("1.70"),
        "min": Bson::MinKey, "max": Bson::MaxKey,
    }
}

fn values() -> Vec<Scenario> {
    let set = |name: &str, value: Bson| Bson::Document(doc! {"$set": {name: value}});
    let nothing: Document = every_type().into_iter().map(|(name, _)| (name, Bson::Null)).collect();
    let types = updates(
        "types",
        every_type(),
        vec![
            doc! {"$set": nothing}.into(),
            doc! {"$set": every_type()}.into(),
            doc! {"sub": every_type()}.into(),
            doc! {"$set": {"sub.min": Bson::MaxKey, "sub.symbol": "s", "sub.undefined": Bson::Null}}.into(),
        ],
    );
    let equal = [
        Bson::Int32(1),
        Bson::Int64(1),
        Bson::Double(1.0),
        decimal("1"),
        decimal("1.0"),
        decimal("1.00"),
    ];
    let zeros = [
        Bson::Int32(0),
        Bson::Double(0.0),
        Bson::Double(-0.0),
        decimal("0"),
        decimal("-0"),
        decimal("0E+3"),
    ];
    let nans = [
        Bson::Double(f64::NAN),
        Bson::Double(-f64::NAN),
        decimal("NaN"),
        Bson::Double(f64::INFINITY),
    ];
    let mut all = vec![types];
    for (name, numbers) in
        [("equal_numbers", &equal[..]), ("zeros", &zeros[..]), ("not_numbers", &nans[..])]
    {
        let mut changes: Vec<Bson> = numbers.iter().map(|n| set("n", n.clone())).collect();
        changes.extend(numbers.iter().map(|n| set("sub.n", n.clone())));
        changes
            .extend(numbers.iter().map(|n| Bson::from(doc! {"list": [n.clone()], "n": n.clone()})));
        // One document for each step on the way, else only the last one would be seen.
        let ids = || 0..i32::try_from(changes.len()).unwrap();
        let steps = |id: i32| changes.iter().take(usize::try_from(id).unwrap() + 1);
        let step = |id: i32| steps(id).map(move |u| update(name, doc! {"_id": id}, u.clone()));
        let rows = ids().map(|id| doc! {"_id": id}).collect();
        all.push(scenario(name, rows, ids().flat_map(step).collect()));
    }
    all.push(zero_timestamps());
    all
}

fn zero_timestamps() -> Scenario {
    let name = "zero_timestamps";
    let literal = |document: Document| vec![doc! {"$replaceWith": {"$literal": document}}];
    let ids = (0..12).map(|n| doc! {"_id": n, "a": 1});
    scenario(
        name,
        ids.chain([doc! {"_id": zero()}, doc! {"_id": 20, "nested": {"t": zero()}}]).collect(),
        vec![
            update(name, doc! {"_id": 0}, doc! {"$set": {"t": zero()}}),
            update(name, doc! {"_id": 1}, vec![doc! {"$set": {"t": zero(), "b": 1}}]),
            update(name, doc! {"_id": 1}, doc! {"$inc": {"a": 1}}),
            update(name, doc! {"_id": 2}, literal(doc! {"_id": 2, "t": zero()})),
            update(name, doc! {"_id": 2}, doc! {"$set": {"more": 1}}),
            upsert(name, doc! {"_id": 30}, literal(doc! {"_id": 30, "t": zero()})),
            upsert(name, doc! {"_id": 31}, literal(doc! {"_id": 31, "t": zero(), "$d": 1})),
            update(name, doc! {"_id": 31}, doc! {"$set": {"more": 1}}),
            update(name, doc! {"_id": 3}, doc! {"t": zero(), "nested": {"t": zero()}}),
            update(name, doc! {"_id": zero()}, doc! {"$set": {"a": 1}}),
            update(name, doc! {"_id": 4}, doc! {"$set": {"t": zero()}}),
            update(name, doc! {"_id": 4}, doc! {"$unset": {"t": ""}}),
        ],
    )
}

fn ids() -> Vec<Scenario> {
    let mut values: Vec<Bson> = every_type().into_iter().map(|(_, value)| value).collect();
    values.retain(|value| {
        !matches!(value, Bson::Array(_) | Bson::RegularExpression(_) | Bson::Undefined)
    });
    values.extend([
        Bson::Double(f64::NAN),
        Bson::Double(-0.0),
        decimal("2.50"),
        Bson::Int64(5),
        "$dollar".into(),
        "a.b".into(),
        "".into(),
        "x".repeat(3000).into(),
        doc! {"b": 1, "a": 1}.into(),
        doc! {"a": 1, "b": 1}.into(),
        doc! {}.into(),
        doc! {"deep": {"er": [1, {"x": f64::NAN}]}}.into(),
        Bson::Boolean(false),
        DateTime::MAX.into(),
    ]);
    let rows: Vec<Document> = values.iter().map(|id| doc! {"_id": id.clone(), "n": 1}).collect();
    let by_id = |id: &Bson| doc! {"_id": {"$eq": id.clone()}};
    let mut after = vec![insert("new_ids", rows.clone())];
    after.extend(values.iter().map(|id| update("new_ids", by_id(id), doc! {"$inc": {"n": 1}})));
    after.extend(
        values.iter().step_by(2).map(|id| update("new_ids", by_id(id), doc! {"z": 1, "n": 1})),
    );
    let mut old = Vec::new();
    old.extend(values.iter().map(|id| update("old_ids", by_id(id), doc! {"$set": {"m": 2}})));
    old.extend(values.iter().step_by(2).map(|id| update("old_ids", by_id(id), doc! {"z": 1})));
    old.extend(values.iter().step_by(3).map(|id| delete("old_ids", by_id(id))));
    vec![scenario("new_ids", vec![], after), scenario("old_ids", rows, old)]
}

/// An element of a document, by bytes.
fn element(kind: u8, name: &str, value: &[u8]) -> Vec<u8> {
    [&[kind], name.as_bytes(), &[0], value].concat()
}

fn framed(elements: &[Vec<u8>]) -> RawDocumentBuf {
    let body = elements.concat();
    let length = i32::try_from(body.len() + 5).unwrap().to_le_bytes();
    RawDocumentBuf::from_bytes([&length[..], &body, &[0]].concat()).unwrap()
}

fn raw_insert(collection: &str, documents: &[RawDocumentBuf]) -> Step {
    let mut array = bson::RawArrayBuf::new();
    documents.iter().for_each(|document| array.push(document.clone()));
    Step::Raw(bson::rawdoc! {"insert": collection, "documents": array})
}

fn odd() -> Vec<Scenario> {
    let id = |n: i32| element(0x10, "_id", &n.to_le_bytes());
    let int = |name: &str, n: i32| element(0x10, name, &n.to_le_bytes());
    let text = [&5_i32.to_le_bytes()[..], b"a\xff\xfeb\0"].concat();
    let pointer = [&4_i32.to_le_bytes()[..], b"a.b\0", &[3; 12]].concat();
    let strange = |n: i32| {
        framed(&[
            id(n),
            element(2, "not_utf8", &text),
            element(0x0c, "pointer", &pointer),
            int("n", 1),
        ])
    };
    let doubled = |n: i32| framed(&[id(n), int("a", 1), int("a", 2), int("b", 1)]);
    let dollar = |n: i32| framed(&[id(n), int("a", 1), int("a", 2), int("b", 1), int("$c", 1)]);
    // What changes is one of the two, and only a pipeline could put it there.
    let exchanged = |n: i32| framed(&[id(n), int("a", 7), int("b", 1), int("a", 8), int("$c", 1)]);
    let twice = |name: &'static str, documents: [RawDocumentBuf; 2]| Scenario {
        name,
        before: vec![raw_insert(name, &documents[..1])],
        after: vec![
            raw_insert(name, &documents[1..]),
            update_all(name, doc! {}, doc! {"$set": {"more": 1}}),
            update(name, doc! {"_id": 2}, doc! {"$inc": {"b": 1}}),
        ],
    };
    // With it and one more number a document has exactly the 16 MiB that servers allow.
    let pad = "p".repeat(16 * 1024 * 1024 - 31);
    let large = Scenario {
        name: "large",
        before: vec![insert("large", vec![doc! {"_id": 1, "pad": &pad, "n": 1}])],
        after: vec![
            insert("large", vec![doc! {"_id": 2, "pad": &pad}]),
            update("large", doc! {"_id": 1}, doc! {"$inc": {"n": 1}}),
            update("large", doc! {"_id": 2}, doc! {"$set": {"n": 1}}),
            update("large", doc! {"_id": 2}, doc! {"pad": &pad, "n": 2}),
        ],
    };
    let mut deep = doc! {"leaf": 1};
    for level in 0..100 {
        deep = if level % 2 == 0 {
            doc! {"d": deep}
        } else {
            doc! {"d": [deep]}
        };
    }
    let wide: Document = (0..20_000).map(|n| (format!("field{n}"), Bson::Int32(n))).collect();
    vec![
        twice("strange_bytes", [strange(1), strange(2)]),
        twice("doubled_names", [doubled(1), doubled(2)]),
        twice("doubled_and_dollar_names", [dollar(1), dollar(2)]),
        Scenario {
            name: "doubled_names_exchanged",
            before: vec![raw_insert("doubled_names_exchanged", &[doubled(1), exchanged(2)])],
            after: vec![
                delete("doubled_names_exchanged", doc! {}),
                raw_insert("doubled_names_exchanged", &[exchanged(1), doubled(2)]),
            ],
        },
        large,
        updates("deep", deep, vec![doc! {"$set": {"d.0.x": 1}}.into()]),
        updates("wide", wide, vec![doc! {"$set": {"field77": "x", "field4999": 0}}.into()]),
        Scenario {
            name: "violates_its_validator",
            before: vec![
                insert(
                    "violates_its_validator",
                    vec![doc! {"_id": 1, "a": "no number"}, doc! {"_id": 2, "a": 1}],
                ),
                Step::Run(
                    doc! {"collMod": "violates_its_validator", "validator": {"a": {"$type": "int"}}},
                ),
            ],
            after: vec![
                Step::Refused(
                    doc! {"insert": "violates_its_validator", "documents": [{"_id": 3, "a": "x"}]},
                ),
                Step::Run(doc! {
                    "insert": "violates_its_validator", "documents": [{"_id": 3, "a": "x"}],
                    "bypassDocumentValidation": true,
                }),
                Step::Run(doc! {
                    "update": "violates_its_validator", "bypassDocumentValidation": true,
                    "updates": [{"q": {"_id": 1}, "u": {"$set": {"b": 1}}}, {"q": {"_id": 2}, "u": {"a": "y"}}],
                }),
            ],
        },
    ]
}
