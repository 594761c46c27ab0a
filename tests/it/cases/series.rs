//! Scenarios of time-series collections and of the `applyOps` command.

use bson::{DateTime, Document, doc};

use super::definitions::{create, drop, fill, index, indexes, modify, scenario};
use super::documents::{delete, insert};
use crate::scenario::{Scenario, Step};

pub(super) fn series() -> Vec<Scenario> {
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
                delete("s", doc! {"m.k": 1}),
                Step::Run(doc! {"update": "s", "updates": [
                    {"q": {"m.k": 2}, "u": {"$set": {"m.k": 20}}, "multi": true},
                ]}),
                indexes("s", vec![index("m_x", doc! {"m.k": 1, "x": 1}, doc! {})]),
                modify("s", doc! {"timeseries": {"granularity": "minutes"}}),
                points(60, 70),
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
pub(super) fn apply_ops() -> Vec<Scenario> {
    let row = |id: i32| doc! {"op": "i", "ns": "a", "o": {"_id": id, "by": "applyOps"}};
    let diff = doc! {"op": "u", "ns": "a", "o2": {"_id": 1}, "o": {"$v": 2, "diff": {"u": {"n": "x"}, "i": {"z": 1}}}};
    let replacement = doc! {"op": "u", "ns": "a", "o2": {"_id": 2}, "o": {"_id": 2, "whole": 1}};
    let removal = doc! {"op": "d", "ns": "a", "o": {"_id": 3}};
    let command = |o: Document| doc! {"op": "c", "ns": "$cmd", "o": o};
    vec![scenario(
        "apply_ops",
        vec![fill("a")],
        vec![
            Step::ApplyOps(vec![row(200)]),
            Step::ApplyOps(vec![row(201), diff, replacement, removal, row(202)]),
            Step::ApplyOps(vec![
                command(doc! {"create": "b", "capped": true, "size": 4096}),
                row(203),
            ]),
            Step::ApplyOps(vec![command(
                doc! {"collMod": "a", "validator": {"z": {"$exists": false}}},
            )]),
            Step::ApplyOps(vec![command(doc! {"drop": "b"}), row(204)]),
        ],
    )]
}
