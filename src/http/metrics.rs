//! `GET /metrics`: the status and the process's counters in Prometheus' text format. A page of code, as there is
//! nothing to register: everything is known at the moment of asking.

use std::fmt::Write as _;

use crate::mongo::Side;
use crate::status::{
    CollectionDelta, CopyProgress, CutoverOutcome, CutoverStep, OplogReserve, State, Status,
    VerifyReport,
};
use crate::telemetry::counters::COUNTERS;

/// Collections that get a line of their own, those that differ most first: a time series each is a burden on whoever
/// keeps them. The sums have all of them.
const COLLECTIONS_MAX: usize = 1000;

/// What the answer is.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// All states, of which exactly one is 1.
const STATES: [State; 8] = [
    State::Starting,
    State::Copying,
    State::CatchingUp,
    State::Live,
    State::Paused,
    State::Halted,
    State::CuttingOver,
    State::CutOver,
];

/// All steps of a cutover, of which one is 1 while there is one, and all it may come to.
const STEPS: [CutoverStep; 7] = [
    CutoverStep::Gating,
    CutoverStep::Stopping,
    CutoverStep::Draining,
    CutoverStep::Verifying,
    CutoverStep::Deciding,
    CutoverStep::Restoring,
    CutoverStep::Done,
];
const OUTCOMES: [CutoverOutcome; 4] = [
    CutoverOutcome::Ready,
    CutoverOutcome::CutOver,
    CutoverOutcome::Aborted,
    CutoverOutcome::Different,
];

/// Everything as text.
pub(super) fn render(status: &Status, reserve: Option<OplogReserve>) -> String {
    let mut page = Page::default();
    page.family("snapsync_info", "gauge", "Always 1; the version is a label.");
    page.labelled("snapsync_info", &[("version", &status.version)], 1.0);
    page.family("snapsync_state", "gauge", "1 for the state the daemon is in, 0 for the others.");
    for state in STATES {
        let is_in = f64::from(u8::from(state == status.state));
        page.labelled("snapsync_state", &[("state", state.name())], is_in);
    }
    let since = seconds(status.since.as_ms());
    page.gauge("snapsync_state_since_timestamp_seconds", "When it entered that state.", since);
    progress(&mut page, status, reserve);
    copy(&mut page, status);
    resync(&mut page, status);
    index_builds(&mut page, status);
    deltas(&mut page, status);
    verified(&mut page, status);
    cutover(&mut page, status);
    process(&mut page);
    page.text
}

fn progress(page: &mut Page, status: &Status, reserve: Option<OplogReserve>) {
    let place = |place: Option<crate::status::OplogPlace>| place.map(|at| seconds(at.wall.as_ms()));
    page.known(
        "snapsync_lag_seconds",
        "How far the target is behind the source.",
        status.lag_seconds,
    );
    page.known(
        "snapsync_resume_point_timestamp_seconds",
        "Wall time of the last entry that is durably applied.",
        place(status.resume_point),
    );
    page.known(
        "snapsync_source_optime_timestamp_seconds",
        "Wall time of the newest majority-committed entry seen on the source.",
        place(status.source_optime),
    );
    page.known(
        "snapsync_oplog_window_seconds",
        "How far the source's oplog reaches back.",
        status.oplog_window_seconds.map(number),
    );
    page.known(
        "snapsync_oplog_window_left_seconds",
        "Time until the source drops the entry that is read next.",
        reserve.map(|reserve| reserve.left.as_secs_f64()),
    );
    page.known(
        "snapsync_oplog_window_needed_seconds",
        "Time that catching up needs; an alarm when it is more than what is left.",
        reserve.map(|reserve| reserve.needed.as_secs_f64()),
    );
    let window = status.window;
    page.known(
        "snapsync_window_entries",
        "Entries of the oplog in the last window.",
        window.map(|window| number(window.entries)),
    );
    page.known(
        "snapsync_window_duration_seconds",
        "From the last window's first entry read to its end durable.",
        window.map(|window| window.seconds),
    );
    let totals = &status.totals;
    page.counter("snapsync_entries_read_total", "Entries of the oplog read.", totals.entries_read);
    page.counter(
        "snapsync_entries_applied_total",
        "Entries durably applied.",
        totals.entries_applied,
    );
    page.counter("snapsync_windows_total", "Windows applied.", totals.windows);
    page.counter("snapsync_resyncs_total", "Resyncs begun.", totals.resyncs);
}

fn copy(page: &mut Page, status: &Status) {
    let (copy, totals) = (&status.copy, &status.totals);
    page.counter("snapsync_documents_copied_total", "Documents copied.", totals.documents_copied);
    page.counter("snapsync_copied_bytes_total", "Bytes of documents copied.", totals.bytes_copied);
    let complete = f64::from(u8::from(copy.complete));
    page.gauge("snapsync_copy_complete", "1 once everything has been copied.", complete);
    page.gauge("snapsync_copy_documents", "Documents copied so far.", number(copy.documents));
    page.gauge(
        "snapsync_copy_documents_expected",
        "Documents to copy.",
        number(copy.documents_total),
    );
    page.gauge("snapsync_copy_bytes", "Bytes copied so far.", number(copy.bytes));
    page.gauge("snapsync_copy_bytes_expected", "Bytes to copy.", number(copy.bytes_total));
    page.known(
        "snapsync_copy_eta_seconds",
        "Time the copy still needs.",
        copy.eta_seconds.map(number),
    );
}

fn resync(page: &mut Page, status: &Status) {
    let of = |value: fn(&CopyProgress) -> u64| status.resync.as_ref().map(|run| number(value(run)));
    page.known(
        "snapsync_resync_bytes",
        "Bytes copied so far by the resync under way.",
        of(|run| run.bytes),
    );
    page.known(
        "snapsync_resync_bytes_expected",
        "Bytes that it has to copy.",
        of(|run| run.bytes_total),
    );
}

fn index_builds(page: &mut Page, status: &Status) {
    let builds = &status.index_builds;
    page.gauge(
        "snapsync_index_builds",
        "Index builds on the target that are waited for.",
        number(builds.len() as u64),
    );
    let done: Option<u64> = builds.iter().map(|build| build.done).sum();
    page.known(
        "snapsync_index_builds_done",
        "Documents or keys that the present steps of those builds have done.",
        done.filter(|_| !builds.is_empty()).map(number),
    );
}

fn deltas(page: &mut Page, status: &Status) {
    let sum = signed(status.total_delta);
    page.gauge(
        "snapsync_delta_documents",
        "Documents on the source less those on the target.",
        sum,
    );
    let differing = status.deltas.iter().filter(|delta| delta.delta != 0).count();
    let count = |count: usize| number(count as u64);
    page.gauge(
        "snapsync_collections",
        "Collections that are compared.",
        count(status.deltas.len()),
    );
    page.gauge("snapsync_collections_differing", "Collections with a delta.", count(differing));
    page.gauge("snapsync_collections_resyncing", "Copied again now.", count(status.copying.len()));
    page.gauge(
        "snapsync_collections_replaced",
        "Still kept after a resync.",
        count(status.replaced.len()),
    );
    let name = "snapsync_database_delta_documents";
    page.family(name, "gauge", "The same for one database.");
    for delta in &status.databases {
        page.labelled(name, &[("database", &delta.database)], signed(delta.delta));
    }
    let name = "snapsync_collection_delta_documents";
    page.family(
        name,
        "gauge",
        "The same for one collection; at most 1000, those that differ most first.",
    );
    let mut most: Vec<&CollectionDelta> = status.deltas.iter().collect();
    most.sort_by_key(|delta| std::cmp::Reverse(delta.delta.unsigned_abs()));
    for delta in most.into_iter().take(COLLECTIONS_MAX) {
        page.labelled(name, &[("collection", &delta.collection)], signed(delta.delta));
    }
}

fn verified(page: &mut Page, status: &Status) {
    let nothing = VerifyReport::default();
    let report = status.verify.as_ref().unwrap_or(&nothing);
    page.counter("snapsync_verified_documents_total", "Documents compared.", report.documents);
    page.counter("snapsync_verified_bytes_total", "Bytes of documents compared.", report.bytes);
    page.counter(
        "snapsync_verify_differences_total",
        "Times that contents of a collection were found to differ.",
        report.differences,
    );
    page.known(
        "snapsync_verify_running_since_timestamp_seconds",
        "When the round of comparing began that is under way.",
        report.since.map(|since| seconds(since.as_ms())),
    );
    let round = report.last_round.as_ref();
    page.known(
        "snapsync_verify_round_timestamp_seconds",
        "When the last complete round of comparing began.",
        round.map(|round| seconds(round.began.as_ms())),
    );
    page.known(
        "snapsync_verify_collections_unproven",
        "Collections that the last complete round could not judge.",
        round.map(|round| number(round.unproven)),
    );
}

fn cutover(page: &mut Page, status: &Status) {
    let last = status.cutover.as_ref();
    let flag = |is: bool| f64::from(u8::from(is));
    let name = "snapsync_cutover_step";
    page.family(name, "gauge", "1 for the step that the last cutover is in, 0 for the others.");
    for step in STEPS {
        let is_in = last.is_some_and(|cutover| cutover.step == step);
        page.labelled(name, &[("step", step.name())], flag(is_in));
    }
    let name = "snapsync_cutover_outcome";
    page.family(name, "gauge", "1 for what the last cutover came to, 0 for the others.");
    for outcome in OUTCOMES {
        let is_so = last.is_some_and(|cutover| cutover.outcome == Some(outcome));
        page.labelled(name, &[("outcome", outcome.name())], flag(is_so));
    }
    let blocked = last.is_some_and(|cutover| cutover.blocked);
    page.gauge(
        "snapsync_cutover_source_blocked",
        "1 while the source refuses writes because of a cutover.",
        flag(blocked),
    );
    page.known(
        "snapsync_cutover_writers",
        "Applications that were seen to write to the source still.",
        last.map(|cutover| number(cutover.writers.len() as u64)),
    );
    page.known(
        "snapsync_cutover_began_timestamp_seconds",
        "When the last cutover was asked for.",
        last.map(|cutover| seconds(cutover.began.as_ms())),
    );
    let downtime = last.and_then(|cutover| cutover.report.as_ref()?.downtime_ms);
    page.known(
        "snapsync_cutover_downtime_seconds",
        "From the last moment at which the source took writes to the end of the cutover.",
        downtime.map(|ms| number(ms) / 1000.0),
    );
}

fn process(page: &mut Page) {
    let name = "snapsync_server_retries_total";
    page.family(name, "counter", "Calls to a server that failed and were tried again.");
    for side in [Side::Source, Side::Target] {
        page.labelled(name, &[("side", &side.to_string())], number(COUNTERS.retries(side)));
    }
    let [commands, bytes, documents, refused] = COUNTERS.writes().totals();
    page.counter(
        "snapsync_write_commands_total",
        "Write commands that the target carried out.",
        commands,
    );
    page.counter("snapsync_write_bytes_total", "Bytes of those commands.", bytes);
    page.counter("snapsync_write_documents_total", "Documents that they wrote.", documents);
    page.counter(
        "snapsync_write_errors_total",
        "Statements and commands that the target refused.",
        refused,
    );
    let (bytes, bytes_max) = COUNTERS.spool();
    page.gauge("snapsync_spool_bytes", "Oplog entries kept on the local disk.", number(bytes));
    page.gauge(
        "snapsync_spool_max_bytes",
        "How many it may keep; 0 while there is no spool.",
        number(bytes_max),
    );
    let dropped = COUNTERS.log_lines_dropped();
    page.counter("snapsync_log_lines_dropped_total", "Lines that nobody took in time.", dropped);
    page.known("process_resident_memory_bytes", "Resident memory.", resident_bytes());
}

/// Of this process, as the kernel counts it.
fn resident_bytes() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(number(kib * 1024))
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus knows no other numbers")]
fn number(value: u64) -> f64 {
    value as f64
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus knows no other numbers")]
fn signed(value: i64) -> f64 {
    value as f64
}

fn seconds(ms: i64) -> f64 {
    signed(ms) / 1000.0
}

/// The text so far.
#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {kind}"));
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.known(name, help, Some(value));
    }

    /// A gauge whose value may not be known yet: then it has no sample, rather than a wrong one.
    fn known(&mut self, name: &str, help: &str, value: Option<f64>) {
        self.family(name, "gauge", help);
        if let Some(value) = value {
            self.labelled(name, &[], value);
        }
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.family(name, "counter", help);
        self.labelled(name, &[], number(value));
    }

    fn labelled(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        let labels: Vec<String> =
            labels.iter().map(|(label, text)| format!("{label}=\"{}\"", escaped(text))).collect();
        match labels.as_slice() {
            [] => self.line(format_args!("{name} {value}")),
            labels => self.line(format_args!("{name}{{{}}} {value}", labels.join(","))),
        }
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        // Writing to a string cannot fail.
        let _infallible = writeln!(self.text, "{line}");
    }
}

/// A label's value. Names of collections may hold any character.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::samples;
    use std::time::Duration;

    fn reserve() -> OplogReserve {
        OplogReserve { left: Duration::from_secs(3600), needed: Duration::from_secs(60) }
    }

    #[test]
    fn values_are_those_of_the_status() {
        let page = render(&samples::live(), Some(reserve()));
        for line in [
            "snapsync_info{version=\"0.1.0\"} 1",
            "snapsync_state{state=\"live\"} 1",
            "snapsync_state{state=\"halted\"} 0",
            "snapsync_state_since_timestamp_seconds 1769396400",
            "snapsync_lag_seconds 0.4",
            "snapsync_oplog_window_left_seconds 3600",
            "snapsync_windows_total 7",
            "snapsync_copy_complete 1",
            "snapsync_delta_documents 2",
            "snapsync_database_delta_documents{database=\"shop\"} 2",
            "snapsync_collection_delta_documents{collection=\"shop.orders\"} 2",
            "snapsync_index_builds 1",
            "snapsync_index_builds_done 5",
            "snapsync_verify_running_since_timestamp_seconds 1769396400",
        ] {
            assert!(page.lines().any(|found| found == line), "no {line} in\n{page}");
        }
    }

    #[test]
    fn a_cutover_is_one_of_its_steps_and_then_what_it_came_to() {
        let holds = |status: &Status, line: &str| {
            let page = render(status, None);
            assert!(page.lines().any(|found| found == line), "no {line} in\n{page}");
        };
        let mut status = samples::live();
        status.cutover = None;
        holds(&status, "snapsync_cutover_step{step=\"gating\"} 0");
        holds(&status, "snapsync_cutover_source_blocked 0");
        assert!(!render(&status, None).contains("\nsnapsync_cutover_writers "));
        let began = crate::status::WallTime::from_ms(5_000);
        let depth = crate::status::VerifyDepth::Full;
        let mut cutover = crate::status::CutoverStatus::begun(began, depth, false);
        cutover.step = CutoverStep::Stopping;
        cutover.blocked = true;
        status.cutover = Some(cutover.clone());
        holds(&status, "snapsync_cutover_step{step=\"stopping\"} 1");
        holds(&status, "snapsync_cutover_source_blocked 1");
        holds(&status, "snapsync_cutover_writers 0");
        holds(&status, "snapsync_cutover_began_timestamp_seconds 5");
        holds(&status, "snapsync_cutover_outcome{outcome=\"different\"} 0");
        cutover.outcome = Some(CutoverOutcome::Different);
        status.cutover = Some(cutover);
        holds(&status, "snapsync_cutover_outcome{outcome=\"different\"} 1");
    }

    #[test]
    fn what_is_not_known_has_no_sample() {
        let status = Status::starting("0", crate::status::WallTime::from_ms(0));
        let page = render(&status, None);
        assert!(page.contains("# TYPE snapsync_lag_seconds gauge\n"));
        assert!(!page.contains("\nsnapsync_lag_seconds "), "{page}");
    }

    #[test]
    fn names_of_collections_cannot_break_the_format() {
        let mut status = samples::live();
        status.deltas[0].collection = "a.\"} 1\nx\\".into();
        let page = render(&status, None);
        let line = "snapsync_collection_delta_documents{collection=\"a.\\\"} 1\\nx\\\\\"} 2\n";
        assert!(page.contains(line), "{page}");
    }

    #[test]
    fn the_number_of_series_is_bounded_and_the_worst_are_kept() {
        let mut status = samples::live();
        let one = |delta: i64| CollectionDelta {
            collection: format!("a.{delta}"),
            delta,
            ..status.deltas[0].clone()
        };
        status.deltas = (0..1500).map(|n| one(-n)).collect();
        let page = render(&status, None);
        let series =
            page.lines().filter(|line| line.starts_with("snapsync_collection_delta_")).count();
        assert_eq!(series, COLLECTIONS_MAX);
        assert!(page.contains("{collection=\"a.-1499\"} -1499\n"));
        assert!(page.contains("\nsnapsync_collections 1500\n"));
    }

    /// Metrics are a contract: what is not documented is not there, and the other way round.
    #[test]
    fn every_metric_is_documented() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md");
        let documented = std::fs::read_to_string(path).unwrap();
        let rows: Vec<&str> = documented.lines().filter(|line| line.starts_with("| `")).collect();
        let page = render(&samples::live(), Some(reserve()));
        let types: Vec<&str> =
            page.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
        for line in &types {
            let (name, kind) = line.split_once(' ').unwrap();
            let row = format!("| `{name}` | {kind} |");
            assert!(
                rows.iter().any(|found| found.starts_with(&row)),
                "docs/metrics.md lacks {row}"
            );
        }
        assert_eq!(rows.len(), types.len());
    }
}
