//! What the daemon says about itself. [`Status`] is the document behind `GET /status` and `snapsync status --json`: a
//! documented shape that only ever grows. The sync room writes it to a [`StatusBoard`]; HTTP, systemd and the commands
//! read it. Whoever writes here must do so *after* the fact is durable: a position that is not on disk is never shown.

pub mod bar;
mod board;
mod builds;
mod cutover;
mod lag;
mod reserve;
mod verify;
mod wall;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::position::Ts;

pub use board::StatusBoard;
pub use builds::IndexBuild;
pub use cutover::{
    CutoverLine, CutoverOutcome, CutoverReport, CutoverStatus, CutoverStep, FinalCount,
    FinalOptime, Proof, Timing, VerifyDepth, WriteBlock, Writer,
};
pub use lag::{LagFacts, Now, SOURCE_SEEN_MAX, lag};
pub use reserve::{OplogFacts, OplogReserve};
pub use verify::{Noted, VerifiedRound, VerifyReport};
pub use wall::{ParseWallTimeError, WallTime};

/// Where the daemon is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Connecting, checking, taking the lease.
    Starting,
    /// The first full copy runs; the oplog is spooled meanwhile.
    Copying,
    /// Replaying, but further behind than `live.max_lag`.
    CatchingUp,
    /// Lag is under `live.max_lag`.
    Live,
    /// Connected and spooling, not applying, because an operator said so.
    Paused,
    /// Not applying until a person has acted; the reason says why and what to do.
    Halted,
    /// A cutover is under way.
    CuttingOver,
    /// Finished: nothing is ever written to the target again.
    CutOver,
}

impl State {
    /// Whether `/health/ready` answers 200 in this state.
    #[must_use]
    pub const fn is_ready(self) -> bool {
        matches!(self, Self::Live | Self::CutOver)
    }

    /// The name users see, such as `catching-up`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Copying => "copying",
            Self::CatchingUp => "catching-up",
            Self::Live => "live",
            Self::Paused => "paused",
            Self::Halted => "halted",
            Self::CuttingOver => "cutting-over",
            Self::CutOver => "cut-over",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Everything the daemon says about itself at one moment. `None` means "not known yet", or "does not apply".
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The version of snapsync that answers.
    pub version: String,
    /// Where the daemon is in its life.
    pub state: State,
    /// When it entered that state.
    pub since: WallTime,
    /// Why it is in that state, and what to do, where that is not plain from the state itself.
    pub reason: Option<String>,
    /// The deployment that is read.
    pub source: Deployment,
    /// The deployment that is written.
    pub target: Deployment,
    /// The end of what is durably applied. Moves over no-ops too.
    pub resume_point: Option<OplogPlace>,
    /// The newest majority-committed entry of the source that was seen.
    pub source_optime: Option<OplogPlace>,
    /// How far the target is behind, in seconds; computed when it is read. See [`lag()`].
    pub lag_seconds: Option<f64>,
    /// How far the source's oplog reaches back, in seconds.
    pub oplog_window_seconds: Option<u64>,
    /// The last window that was applied.
    pub window: Option<WindowReport>,
    /// The initial copy.
    pub copy: CopyProgress,
    /// Counters since the migration began.
    pub totals: Totals,
    /// Names of the collections that a resync is copying again; what is said about the target does not hold for them.
    pub copying: Vec<String>,
    /// How far the copy of a resync is, while there is one.
    #[serde(default)]
    pub resync: Option<CopyProgress>,
    /// Index builds on the target that are waited for.
    #[serde(default)]
    pub index_builds: Vec<IndexBuild>,
    /// What the target does not yet have, and gets at cutover.
    pub held_back: Vec<HeldBack>,
    /// Collections that a resync replaced and that are still kept.
    pub replaced: Vec<Replaced>,
    /// Difference in documents, one entry a collection.
    pub deltas: Vec<CollectionDelta>,
    /// Difference in documents, summed by database of the source.
    pub databases: Vec<DatabaseDelta>,
    /// Difference in documents, summed over everything.
    pub total_delta: i64,
    /// The verification that goes on all the time, where that is configured.
    #[serde(default)]
    pub verify: Option<VerifyReport>,
    /// The cutover under way, or the last one since the daemon started, or the one that succeeded.
    #[serde(default)]
    pub cutover: Option<CutoverStatus>,
    /// The archive, where one is kept.
    pub archive: Option<serde_json::Value>,
}

impl Status {
    /// The status of a daemon that has just begun.
    #[must_use]
    pub fn starting(version: impl Into<String>, now: WallTime) -> Self {
        Self {
            version: version.into(),
            state: State::Starting,
            since: now,
            reason: None,
            source: Deployment::default(),
            target: Deployment::default(),
            resume_point: None,
            source_optime: None,
            lag_seconds: None,
            oplog_window_seconds: None,
            window: None,
            copy: CopyProgress::default(),
            totals: Totals::default(),
            copying: Vec::new(),
            resync: None,
            index_builds: Vec::new(),
            held_back: Vec::new(),
            replaced: Vec::new(),
            deltas: Vec::new(),
            databases: Vec::new(),
            total_delta: 0,
            verify: None,
            cutover: None,
            archive: None,
        }
    }

    /// Enters `state`; `since` moves only when the state is another one, the reason is always replaced.
    pub fn enter(&mut self, state: State, reason: Option<String>, now: WallTime) {
        if self.state != state {
            self.since = now;
        }
        self.state = state;
        self.reason = reason;
    }

    /// Replaces the deltas, and with them the sums by database and over everything.
    pub fn set_deltas(&mut self, deltas: Vec<CollectionDelta>) {
        self.databases = sum_by_database(&deltas);
        self.total_delta = deltas.iter().map(|delta| delta.delta).sum();
        self.deltas = deltas;
    }

    /// `Ok` when the daemon is ready, else one sentence that says why not.
    ///
    /// # Errors
    /// The sentence, for `/health/ready` and for systemd.
    pub fn ready(&self) -> Result<(), String> {
        match (&self.reason, self.state.is_ready()) {
            (_, true) => Ok(()),
            (Some(reason), false) => Err(format!("{}: {reason}", self.state)),
            (None, false) => Err(self.state.to_string()),
        }
    }
}

/// Sums deltas by the database of the source, in order of name.
#[must_use]
pub fn sum_by_database(deltas: &[CollectionDelta]) -> Vec<DatabaseDelta> {
    let mut sums: BTreeMap<&str, i64> = BTreeMap::new();
    for delta in deltas {
        let database = delta.collection.split_once('.').map_or("", |(database, _)| database);
        *sums.entry(database).or_default() += delta.delta;
    }
    sums.into_iter()
        .map(|(database, delta)| DatabaseDelta { database: database.to_owned(), delta })
        .collect()
}

/// One of the two replica sets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deployment {
    /// Its members, as `host:port`.
    pub hosts: Vec<String>,
    /// The name of the replica set.
    pub replica_set: Option<String>,
    /// The version of the server.
    pub version: Option<String>,
}

/// An entry of the oplog: its timestamp, and what the clock said when it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct OplogPlace {
    /// Where in the oplog.
    pub ts: Ts,
    /// Wall clock of the server that wrote it.
    pub wall: WallTime,
}

/// A window that was applied.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct WindowReport {
    /// Wall time of the entry before the first one.
    pub from: WallTime,
    /// Wall time of the last entry.
    pub to: WallTime,
    /// How many entries of the oplog it held.
    pub entries: u64,
    /// From its first entry read to its end durable, in seconds.
    pub seconds: f64,
}

/// How far a copy is: the initial one, or that of a resync.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyProgress {
    /// Documents that are durable on the target.
    pub documents: u64,
    /// Documents expected, an estimate until the end.
    pub documents_total: u64,
    /// Bytes of those documents, uncompressed.
    pub bytes: u64,
    /// Bytes expected, an estimate until the end.
    pub bytes_total: u64,
    /// Seconds to go, once there is a rate to reckon with.
    pub eta_seconds: Option<u64>,
    /// Whether every byte has been copied.
    pub complete: bool,
}

/// Counters since the migration began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Entries of the oplog read.
    pub entries_read: u64,
    /// Entries of the oplog durably applied.
    pub entries_applied: u64,
    /// Documents copied, those of resyncs too.
    pub documents_copied: u64,
    /// Bytes copied, those of resyncs too.
    pub bytes_copied: u64,
    /// Windows applied.
    pub windows: u64,
    /// Resyncs begun.
    pub resyncs: u64,
}

/// Something the source has and the target gets only at cutover.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldBack {
    /// The collection on the target.
    pub collection: String,
    /// What is held back, such as `TTL of index expires_1`.
    pub what: String,
}

/// A collection that a resync replaced and that is kept for a while.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replaced {
    /// Its name when it was in use.
    pub collection: String,
    /// The name it is kept under.
    pub kept_as: String,
    /// When it is dropped, unless `snapsync discard` does so earlier.
    pub until: WallTime,
}

/// Documents of one collection on both sides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectionDelta {
    /// The collection on the source.
    pub collection: String,
    /// The collection on the target; another name only where one is configured.
    pub target_collection: String,
    /// Documents on the source.
    pub source: u64,
    /// Documents on the target.
    pub target: u64,
    /// Documents on the source less those on the target.
    pub delta: i64,
    /// Whether both were counted at one optime, rather than taken from fast metadata counts.
    pub exact: bool,
}

impl CollectionDelta {
    /// A delta by fast metadata counts.
    #[must_use]
    pub fn estimated(
        collection: String,
        target_collection: String,
        source: u64,
        target: u64,
    ) -> Self {
        let signed = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        let delta = signed(source) - signed(target);
        Self { collection, target_collection, source, target, delta, exact: false }
    }
}

/// Sum of the deltas of one database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabaseDelta {
    /// The database on the source.
    pub database: String,
    /// Documents on the source less those on the target.
    pub delta: i64,
}

#[cfg(test)]
pub(crate) mod samples;

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// The shape that users rely on, written out by hand: a renamed or lost field must fail here.
    #[test]
    fn serialises_to_the_documented_shape() {
        let expected = json!({
            "version": "0.1.0", "state": "live", "since": "2026-01-26T03:00:00.000Z", "reason": null,
            "source": {"hosts": ["s1:27017"], "replica_set": "rs0", "version": "6.0.5"},
            "target": {"hosts": ["t1:27017"], "replica_set": "rs1", "version": "6.0.5"},
            "resume_point": {"ts": {"t": 1_731_681_000, "i": 3}, "wall": "2026-01-26T03:00:10.000Z"},
            "source_optime": {"ts": {"t": 1_731_681_000, "i": 9}, "wall": "2026-01-26T03:00:10.400Z"},
            "lag_seconds": 0.4, "oplog_window_seconds": 86400,
            "window": {"from": "2026-01-26T03:00:09.000Z", "to": "2026-01-26T03:00:10.000Z",
                       "entries": 123, "seconds": 0.05},
            "copy": {"documents": 10, "documents_total": 10, "bytes": 99, "bytes_total": 99,
                     "eta_seconds": 0, "complete": true},
            "totals": {"entries_read": 1, "entries_applied": 1, "documents_copied": 10,
                       "bytes_copied": 99, "windows": 7, "resyncs": 0},
            "copying": ["shop.carts"], "resync": null,
            "index_builds": [{"collection": "shop.carts", "indexes": 2, "seconds": 61,
                              "step": "Index Build: scanning collection", "done": 5, "total": 9}],
            "held_back": [{"collection": "shop.sessions", "what": "TTL of index expires_1"}],
            "replaced": [{"collection": "shop.carts", "kept_as": "shop.snapsync_tmp_1",
                          "until": "2026-01-27T03:00:00.000Z"}],
            "deltas": [{"collection": "shop.orders", "target_collection": "crm.orders",
                        "source": 10, "target": 8, "delta": 2, "exact": false}],
            "databases": [{"database": "shop", "delta": 2}], "total_delta": 2,
            "verify": {"round": 2, "since": "2026-01-26T03:00:00.000Z", "collection": "shop.orders",
                       "collections": 1, "collections_total": 2, "documents": 30, "bytes": 297,
                       "differences": 1,
                       "different": [{"collection": "shop.carts", "what": "1 documents different",
                                      "at": "2026-01-26T03:00:00.000Z"}],
                       "unproven": [],
                       "last_round": {"began": "2026-01-26T02:00:00.000Z", "equal": 1,
                                      "finished": "2026-01-26T03:00:00.000Z",
                                      "different": 1, "unproven": 0}},
            "cutover": null, "archive": null });
        assert_eq!(serde_json::to_value(samples::live()).unwrap(), expected);
        assert_eq!(serde_json::from_value::<Status>(expected).unwrap(), samples::live());
    }

    #[test]
    fn what_is_not_known_yet_is_null_and_never_absent() {
        let status = Status::starting("0.1.0", WallTime::from_ms(0));
        let value = serde_json::to_value(status).unwrap();
        for key in [
            "reason",
            "resume_point",
            "source_optime",
            "lag_seconds",
            "oplog_window_seconds",
            "window",
            "verify",
            "cutover",
            "archive",
        ] {
            assert_eq!(value.get(key), Some(&Value::Null), "{key}");
        }
        assert_eq!(value["copy"]["eta_seconds"], Value::Null);
    }

    #[test]
    fn a_field_of_a_later_version_is_no_error() {
        let mut value = serde_json::to_value(samples::live()).unwrap();
        value["from_a_later_version"] = json!(1);
        assert_eq!(serde_json::from_value::<Status>(value).unwrap(), samples::live());
    }

    #[test]
    fn states_are_named_alike_in_json_and_in_print() {
        for state in [
            State::Starting,
            State::Copying,
            State::CatchingUp,
            State::Live,
            State::Paused,
            State::Halted,
            State::CuttingOver,
            State::CutOver,
        ] {
            assert_eq!(serde_json::to_value(state).unwrap(), json!(state.to_string()));
            let ready = matches!(state.name(), "live" | "cut-over");
            assert_eq!(state.is_ready(), ready, "{state}");
        }
    }

    #[test]
    fn since_moves_only_with_the_state() {
        let at = WallTime::from_ms;
        let mut status = Status::starting("0", at(1));
        status.enter(State::Starting, Some("waiting for the source".into()), at(2));
        assert_eq!(
            (status.since, status.reason.as_deref()),
            (at(1), Some("waiting for the source"))
        );
        status.enter(State::Live, None, at(3));
        assert_eq!((status.since, status.reason), (at(3), None));
    }

    #[test]
    fn not_ready_says_why() {
        let mut status = Status::starting("0", WallTime::from_ms(0));
        assert_eq!(status.ready(), Err("starting".into()));
        status.enter(State::Halted, Some("the lease is gone".into()), WallTime::from_ms(0));
        assert_eq!(status.ready(), Err("halted: the lease is gone".into()));
        status.enter(State::CutOver, Some("done".into()), WallTime::from_ms(0));
        assert_eq!(status.ready(), Ok(()));
    }

    #[test]
    fn sums_follow_the_deltas() {
        let delta = |name: &str, source, target| CollectionDelta {
            collection: name.into(),
            target_collection: name.into(),
            source,
            target,
            delta: i64::try_from(source).unwrap() - i64::try_from(target).unwrap(),
            exact: false,
        };
        let mut status = Status::starting("0", WallTime::from_ms(0));
        status.set_deltas(vec![delta("b.x.y", 5, 9), delta("a.x", 3, 1), delta("b.z", 1, 0)]);
        let sums: Vec<_> =
            status.databases.iter().map(|d| (d.database.as_str(), d.delta)).collect();
        assert_eq!(sums, [("a", 2), ("b", -3)]);
        assert_eq!(status.total_delta, -1);
    }
}
