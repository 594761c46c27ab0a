//! A filled-in [`Status`] for tests.

use super::*;

pub(crate) fn time(text: &str) -> WallTime {
    text.parse().unwrap()
}

pub(crate) fn live() -> Status {
    let deployment = |host: &str, set: &str| Deployment {
        hosts: vec![host.into()],
        replica_set: Some(set.into()),
        version: Some("6.0.5".into()),
    };
    let place = |i, wall| OplogPlace { ts: Ts::new(1_731_681_000, i), wall: time(wall) };
    let mut status = Status::starting("0.1.0", time("2026-01-26T03:00:00.000Z"));
    status.state = State::Live;
    status.source = deployment("s1:27017", "rs0");
    status.target = deployment("t1:27017", "rs1");
    status.resume_point = Some(place(3, "2026-01-26T03:00:10.000Z"));
    status.source_optime = Some(place(9, "2026-01-26T03:00:10.400Z"));
    status.lag_seconds = Some(0.4);
    status.oplog_window_seconds = Some(86_400);
    status.window = Some(WindowReport {
        from: time("2026-01-26T03:00:09.000Z"),
        to: time("2026-01-26T03:00:10.000Z"),
        entries: 123,
        seconds: 0.05,
    });
    status.copy = CopyProgress {
        documents: 10,
        documents_total: 10,
        bytes: 99,
        bytes_total: 99,
        eta_seconds: Some(0),
        complete: true,
    };
    status.totals = Totals {
        entries_read: 1,
        entries_applied: 1,
        documents_copied: 10,
        bytes_copied: 99,
        windows: 7,
        resyncs: 0,
    };
    status.copying = vec!["shop.carts".into()];
    status.index_builds = vec![IndexBuild {
        collection: "shop.carts".into(),
        indexes: 2,
        seconds: 61,
        step: Some("Index Build: scanning collection".into()),
        done: Some(5),
        total: Some(9),
    }];
    status.held_back = vec![HeldBack {
        collection: "shop.sessions".into(),
        what: "TTL of index expires_1".into(),
    }];
    status.replaced = vec![Replaced {
        collection: "shop.carts".into(),
        kept_as: "shop.snapsync_tmp_1".into(),
        until: time("2026-01-27T03:00:00.000Z"),
    }];
    let began = time("2026-01-26T02:00:00.000Z");
    let at = status.since;
    let (collection, what) = ("shop.carts".into(), "1 documents different".into());
    status.verify = Some(VerifyReport {
        round: 2,
        since: Some(at),
        collection: Some("shop.orders".into()),
        collections: 1,
        collections_total: 2,
        documents: 30,
        bytes: 297,
        differences: 1,
        different: vec![Noted { collection, what, at }],
        unproven: Vec::new(),
        last_round: Some(VerifiedRound {
            began,
            finished: at,
            equal: 1,
            different: 1,
            unproven: 0,
        }),
    });
    status.set_deltas(vec![CollectionDelta {
        collection: "shop.orders".into(),
        target_collection: "crm.orders".into(),
        source: 10,
        target: 8,
        delta: 2,
        exact: false,
    }]);
    status
}
