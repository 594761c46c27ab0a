//! The notable happenings, each one function with its fixed fields, so that what can stand in the log can be read here
//! like a table of contents. In the journal a field `ns` is `SNAPSYNC_NS`. Nothing here may be given passwords, whole
//! URIs or contents of documents.

use std::time::Duration;

use bytesize::ByteSize;
use tracing::{error, info, warn};

use super::kinds;
use crate::exit::Exit;
use crate::mongo::Side;
use crate::status::{
    CollectionDelta, CopyProgress, CutoverStep, DatabaseDelta, State, VerifiedRound, WallTime,
};

/// The target of delta lines; as text they are printed bare.
pub const DELTA_TARGET: &str = "snapsync::delta";

/// So many exact counts may fail before that is an alarm.
const NOT_COUNTED_QUIETLY: u32 = 2;

/// The delta of one collection over the round `from` to `to`.
pub fn delta_collection(from: WallTime, to: WallTime, delta: &CollectionDelta) {
    let CollectionDelta { collection, source, target, delta, .. } = delta;
    let database = collection.split_once('.').map_or("", |(database, _)| database);
    info!(
        target: DELTA_TARGET,
        message_id = kinds::DELTA_COLLECTION,
        collection,
        database,
        delta,
        source_count = source,
        target_count = target,
        from = %from,
        to = %to,
        "from: {from}, to: {to}, delta: {delta}, source: {source}, target: {target}, collection: {collection}"
    );
}

/// The delta of one database.
pub fn delta_database(delta: &DatabaseDelta) {
    let DatabaseDelta { database, delta } = delta;
    info!(
        target: DELTA_TARGET,
        message_id = kinds::DELTA_DATABASE,
        database,
        delta,
        "database: {database}, delta: {delta}"
    );
}

/// The daemon has begun.
pub fn started(version: &str) {
    info!(message_id = kinds::STARTED, version, "snapsync {version} starts");
}

/// The daemon has entered another state. For `live` and `halted` use their own events as well.
pub fn state_changed(before: State, now: State, reason: Option<&str>) {
    info!(
        message_id = kinds::STATE_CHANGED,
        state = now.name(),
        before = before.name(),
        reason,
        "state: {before} -> {now}"
    );
}

/// The initial copy begins, or goes on after a restart. How much there is gets counted meanwhile.
pub fn copy_started(collections: usize) {
    info!(message_id = kinds::COPY_STARTED, collections, "copying {collections} collections");
}

/// How far a copy is, the initial one or that of a resync; every few seconds.
pub fn copy_progress(progress: &CopyProgress) {
    let eta = progress.eta_seconds.map_or_else(|| "?".to_owned(), |seconds| seconds.to_string());
    info!(
        message_id = kinds::COPY_PROGRESS,
        documents = progress.documents,
        documents_total = progress.documents_total,
        bytes = progress.bytes,
        bytes_total = progress.bytes_total,
        eta_seconds = progress.eta_seconds,
        "copied {} of {} documents, {} of {}, {eta} s to go",
        progress.documents,
        progress.documents_total,
        ByteSize(progress.bytes),
        ByteSize(progress.bytes_total),
    );
}

/// The copy is complete; what was written meanwhile is still to be replayed.
pub fn copy_finished(progress: &CopyProgress, took: Duration) {
    info!(
        message_id = kinds::COPY_FINISHED,
        documents = progress.documents,
        bytes = progress.bytes,
        seconds = took.as_secs_f64(),
        "copied {} documents, {} in {} s",
        progress.documents,
        ByteSize(progress.bytes),
        took.as_secs(),
    );
}

/// The target has caught up.
pub fn live(lag_seconds: f64) {
    info!(message_id = kinds::LIVE, lag_seconds, "live: {lag_seconds} s behind the source");
}

/// The target is further behind than `live.max_lag`.
pub fn lagging(lag_seconds: f64, max_seconds: f64) {
    warn!(
        message_id = kinds::LAGGING,
        lag_seconds,
        max_seconds,
        "the target is {lag_seconds} s behind the source, more than live.max_lag allows ({max_seconds} s)"
    );
}

/// Nothing is applied any more until a person has acted.
pub fn halted(reason: &str, remedy: &str) {
    error!(message_id = kinds::HALTED, reason, remedy, "halted: {reason}; {remedy}");
}

/// A server does not answer. Said at first and then now and again; it is waited for, for ever. The first failures are
/// ordinary, as in an election.
pub fn unreachable(side: Side, failures: u32, is_ordinary: bool, why: &str) {
    let id = kinds::UNREACHABLE;
    if is_ordinary {
        info!(message_id = id, side = %side, failures, "waiting for the {side}: {why}");
    } else {
        warn!(message_id = id, side = %side, failures, "still waiting for the {side}: {why}");
    }
}

/// The server answers again.
pub fn reachable_again(side: Side, failures: u32) {
    info!(message_id = kinds::REACHABLE_AGAIN, side = %side, failures, "no longer waiting for the {side}");
}

/// What the source's oplog still holds ahead of reading is less than the time that catching up needs.
pub fn oplog_window_short(left: Duration, needed: Duration) {
    warn!(
        message_id = kinds::OPLOG_WINDOW_SHORT,
        left_seconds = left.as_secs(),
        needed_seconds = needed.as_secs(),
        "the source's oplog will drop what is not read yet in {} s, and catching up needs about {} s; enlarge it \
         (replSetResizeOplog) or mend what slows the reading down, else everything is copied again",
        left.as_secs(),
        needed.as_secs(),
    );
}

/// It is enough again.
pub fn oplog_window_enough(left: Duration) {
    info!(
        message_id = kinds::OPLOG_WINDOW_ENOUGH,
        left_seconds = left.as_secs(),
        "the source's oplog holds enough again: {} s",
        left.as_secs()
    );
}

/// The disk for the spool is running out; when it is full the source's oplog has to hold what is not read.
pub fn spool_short(bytes: u64, bytes_max: u64) {
    warn!(
        message_id = kinds::SPOOL_SHORT,
        bytes,
        bytes_max,
        "the spool holds {} of {}; free disk or enlarge spool.max_bytes",
        ByteSize(bytes),
        ByteSize(bytes_max),
    );
}

/// Something has made no progress for long.
pub fn no_progress(what: &str, stuck: Duration) {
    let seconds = stuck.as_secs();
    error!(
        message_id = kinds::NO_PROGRESS,
        what,
        stuck_seconds = seconds,
        "no progress for {seconds} s: {what}"
    );
}

/// A namespace is copied again.
pub fn resync_started(ns: &str, reason: &str) {
    warn!(message_id = kinds::RESYNC_STARTED, ns, reason, "resync of {ns}: {reason}");
}

/// A difference of fast counts could not be judged, `failures` times in a row.
pub fn not_counted(ns: &str, failures: u32, error: &str) {
    if failures < NOT_COUNTED_QUIETLY {
        info!(ns, failures, error, "{ns} is not counted exactly: {error}");
        return;
    }
    warn!(
        message_id = kinds::NOT_COUNTED,
        ns,
        failures,
        error,
        "whether {ns} has diverged cannot be told: its fast counts differ, and counting exactly failed {failures} \
         times: {error}; `snapsync resync {ns}` copies it again"
    );
}

/// A namespace that was copied again is followed again.
pub fn resync_finished(ns: &str, took: Duration) {
    let seconds = took.as_secs();
    info!(
        message_id = kinds::RESYNC_FINISHED,
        ns, seconds, "resync of {ns} finished after {seconds} s"
    );
}

/// Verifying found that contents differ.
pub fn verified_different(ns: &str, what: &str) {
    error!(message_id = kinds::VERIFIED_DIFFERENT, ns, what, "contents of {ns} differ: {what}");
}

/// Every collection was verified once more.
pub fn verified(round: &VerifiedRound) {
    let VerifiedRound { equal, different, unproven, .. } = *round;
    info!(
        message_id = kinds::VERIFIED,
        equal,
        different,
        unproven,
        "verified all collections: {equal} equal, {different} different, {unproven} not proved"
    );
}

/// Something happened in a cutover.
pub fn cutover(step: CutoverStep, text: &str) {
    info!(message_id = kinds::CUTOVER, step = step.name(), "cutover: {text}");
}

/// A cutover was given up; the migration goes on.
pub fn cutover_given_up(reason: &str) {
    warn!(message_id = kinds::CUTOVER_GIVEN_UP, reason, "the cutover is given up: {reason}");
}

/// The target has taken over; nothing is written to it any more.
pub fn cut_over(downtime: Duration) {
    let seconds = downtime.as_secs_f64();
    info!(
        message_id = kinds::CUT_OVER,
        downtime_seconds = seconds,
        "cut over after {seconds} s without writes"
    );
}

/// A snapshot is complete.
pub fn snapshot_finished(target: &str, collections: usize, documents: u64, took: Duration) {
    let seconds = took.as_secs_f64();
    info!(
        message_id = kinds::SNAPSHOT_FINISHED,
        collections,
        documents,
        seconds,
        "the snapshot in {target} is complete: {documents} documents in {collections} collections, in {seconds:.1} s"
    );
}

/// A snapshot is not complete.
pub fn snapshot_failed(target: &str, status: &str, why: &str) {
    error!(
        message_id = kinds::SNAPSHOT_FAILED,
        status, "the snapshot in {target} is {status}: {why}"
    );
}

/// Lines were lost because whoever takes them stood still.
pub(super) fn log_dropped(dropped: u64) {
    warn!(
        message_id = kinds::LOG_DROPPED,
        dropped, "{dropped} log lines were dropped: nobody took them in time"
    );
}

/// The process ends, and not because it was asked to.
pub fn failed(exit: &Exit) {
    error!(message_id = kinds::FAILED, code = exit.code as u8, "{exit}");
}

/// A stop was asked for; what is in hand is finished first.
pub fn stopping() {
    info!(message_id = kinds::STOPPING, "stopping");
}

/// The end, with everything durable.
pub fn stopped() {
    info!(message_id = kinds::STOPPED, "stopped");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::record::{FieldValue, Record, caught};
    use crate::telemetry::render::{json_line, text_line};
    use serde_json::{Value, json};

    fn one(log: impl FnOnce()) -> Record {
        let records = caught(log);
        assert_eq!(records.len(), 1);
        records.into_iter().next().unwrap()
    }

    fn orders() -> Record {
        let from = "2026-01-26T03:00:00.000Z".parse().unwrap();
        let to = "2026-01-26T03:00:10.000Z".parse().unwrap();
        let delta = CollectionDelta {
            collection: "shop.orders".into(),
            target_collection: "crm.orders".into(),
            source: 1234,
            target: 1234,
            delta: 0,
            exact: false,
        };
        one(|| delta_collection(from, to, &delta))
    }

    #[test]
    fn delta_lines_are_exactly_the_documented_ones() {
        assert_eq!(
            text_line(&orders()),
            "from: 2026-01-26T03:00:00.000Z, to: 2026-01-26T03:00:10.000Z, delta: 0, source: 1234, \
             target: 1234, collection: shop.orders\n"
        );
        let database = DatabaseDelta { database: "shop".into(), delta: 0 };
        assert_eq!(text_line(&one(|| delta_database(&database))), "database: shop, delta: 0\n");
    }

    #[test]
    fn delta_lines_carry_their_parts_as_fields() {
        let record = orders();
        let details: Vec<_> = record.details().map(|(name, value)| (name, value.clone())).collect();
        let text = |text: &str| FieldValue::Text(text.to_owned());
        let expected = [
            ("message_id", text(kinds::DELTA_COLLECTION)),
            ("collection", text("shop.orders")),
            ("database", text("shop")),
            ("delta", FieldValue::Signed(0)),
            ("source_count", FieldValue::Unsigned(1234)),
            ("target_count", FieldValue::Unsigned(1234)),
            ("from", text("2026-01-26T03:00:00.000Z")),
            ("to", text("2026-01-26T03:00:10.000Z")),
        ];
        assert_eq!(details, expected);
    }

    #[test]
    fn other_lines_have_time_level_message_and_fields() {
        let mut record = one(|| halted("two writers", "stop the other one\nand resume"));
        record.at = WallTime::from_ms(1_769_396_400_000);
        assert_eq!(
            text_line(&record),
            "2026-01-26T03:00:00.000Z ERROR halted: two writers; stop the other one\\nand resume \
             reason=\"two writers\" remedy=\"stop the other one\\nand resume\"\n"
        );
        let object: Value = serde_json::from_str(&json_line(&record)).unwrap();
        let expected = json!({
            "time": "2026-01-26T03:00:00.000Z", "level": "ERROR", "target": "snapsync::telemetry::events",
            "message": "halted: two writers; stop the other one\nand resume", "message_id": kinds::HALTED,
            "reason": "two writers", "remedy": "stop the other one\nand resume",
        });
        assert_eq!(object, expected);
        assert_eq!(json_line(&record).matches('\n').count(), 1);
    }

    #[test]
    fn what_is_not_known_is_left_out() {
        let progress = CopyProgress { documents_total: 10, ..CopyProgress::default() };
        let line = text_line(&one(|| copy_progress(&progress)));
        assert!(line.contains("copied 0 of 10 documents") && line.contains("? s to go"), "{line}");
        assert!(!line.contains("eta_seconds"), "{line}");
        let line = text_line(&one(|| state_changed(State::Copying, State::CatchingUp, None)));
        assert!(
            line.contains("INFO state: copying -> catching-up state=catching-up before=copying")
        );
        assert!(!line.contains("reason"), "{line}");
    }
}
