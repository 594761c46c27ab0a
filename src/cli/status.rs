//! `snapsync status`: asks the running daemon, and shows what it says.

use std::fmt::Write as _;
use std::io::{self, IsTerminal};
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use bytesize::ByteSize;

use super::output::{Columns, print};
use crate::http::client::{self, ClientError};
use crate::status::bar::{self, span};
use crate::status::{
    CollectionDelta, CopyProgress, CutoverOutcome, CutoverStatus, Deployment, Noted, OplogPlace,
    Status, VerifyReport, WallTime,
};
use crate::telemetry::one_line;

/// How often `--watch` asks.
const WATCH_EVERY: Duration = Duration::from_secs(1);

/// Lines of deltas for people; `--json` has them all.
const DELTAS_SHOWN_MAX: usize = 40;

/// Prints the status once: for people, or with `json` as the daemon sends it.
///
/// # Errors
/// When no daemon answers on `socket`, or standard output cannot be written.
pub async fn show(socket: &Path, json: bool) -> anyhow::Result<()> {
    print(&ask(socket, json).await?).context("print the status")
}

/// Prints the status every second until the process is ended: on a terminal always in the same place, as JSON one
/// document a line. A daemon that does not answer, as during its restart, is shown as such and asked again.
///
/// # Errors
/// When standard output cannot be written.
pub async fn watch(socket: &Path, json: bool) -> anyhow::Result<()> {
    let redraw = io::stdout().is_terminal() && !json;
    loop {
        let text = match ask(socket, json).await {
            Ok(text) => text,
            Err(error) if json => {
                serde_json::json!({ "error": error.to_string() }).to_string() + "\n"
            }
            Err(error) => format!("{error}\n"),
        };
        print(&if redraw { redrawn(&text, rows()) } else { text }).context("print the status")?;
        tokio::time::sleep(WATCH_EVERY).await;
    }
}

/// Prints whether the daemon is ready, as `GET /health/ready` has it, and gives that.
///
/// # Errors
/// When no daemon answers on `socket`, or standard output cannot be written.
pub async fn ready(socket: &Path, json: bool) -> anyhow::Result<bool> {
    let reason = match client::get(socket, "/health/ready").await {
        Ok(_) => None,
        Err(ClientError::Refused { message, .. }) => Some(message),
        Err(error) => return Err(error.into()),
    };
    let text = match &reason {
        _ if json => {
            serde_json::json!({ "ready": reason.is_none(), "reason": reason }).to_string() + "\n"
        }
        None => "ready\n".to_owned(),
        Some(reason) => format!("not ready: {}\n", one_line(reason)),
    };
    print(&text).context("print the answer")?;
    Ok(reason.is_none())
}

async fn ask(socket: &Path, json: bool) -> anyhow::Result<String> {
    let answer = client::get(socket, "/status").await?;
    if json {
        let text = String::from_utf8(answer.into()).context("read the daemon's answer")?;
        return Ok(text + "\n");
    }
    let status: Status = serde_json::from_slice(&answer)
        .context("read the daemon's answer; is it another version of snapsync?")?;
    Ok(render(&status, WallTime::now()))
}

/// Lines that the terminal shows.
fn rows() -> usize {
    rustix::termios::tcgetwinsize(io::stdout()).map_or(usize::MAX, |size| match size.ws_row {
        // Some terminals do not know.
        0 => usize::MAX,
        rows => usize::from(rows),
    })
}

/// The text drawn over what stands on the terminal: home, each line cleared to its end, the rest below cleared. What
/// does not fit is left out, because it would push the state out of sight.
fn redrawn(text: &str, rows: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    // The cursor stands on the last row.
    let fit = rows.saturating_sub(1).max(1);
    let mut shown = lines.clone();
    let more;
    if lines.len() > fit {
        more = format!(" and {} lines more", lines.len() - fit + 1);
        shown.truncate(fit - 1);
        shown.push(&more);
    }
    let drawn: String = shown.iter().map(|line| format!("{line}\x1b[K\n")).collect();
    // Without wrapping, so that a line is a row.
    format!("\x1b[?7l\x1b[H{drawn}\x1b[J\x1b[?7h")
}

/// The status for people, as of `now`.
#[must_use]
pub fn render(status: &Status, now: WallTime) -> String {
    let mut text = head(status, now);
    text.push_str(&bars(status));
    text.push('\n');
    text.push_str(&facts(status));
    let sections = [
        ("being copied again", copying(status)),
        ("indexes being built on the target", index_builds(status)),
        ("held back until cutover", held_back(status)),
        ("replaced, still kept", replaced(status)),
        ("found to differ by verifying, latest last", noted(status, |report| &report.different)),
        ("not proved by verifying", noted(status, |report| &report.unproven)),
        ("deltas", deltas(status)),
    ];
    for (title, section) in sections {
        if !section.is_empty() {
            text.push_str(&format!("\n{title}\n{section}"));
        }
    }
    text
}

fn head(status: &Status, now: WallTime) -> String {
    let since = Duration::from_millis(
        now.as_ms().saturating_sub(status.since.as_ms()).max(0).unsigned_abs(),
    );
    let mut text = format!(
        "snapsync {}: {} for {} (since {})\n",
        one_line(&status.version),
        status.state,
        span(since),
        status.since
    );
    if let Some(reason) = &status.reason {
        text.push_str(&format!("{}\n", one_line(reason)));
    }
    text
}

/// A bar for every copy under way.
fn bars(status: &Status) -> String {
    let first = Some(&status.copy).filter(|copy| !copy.complete && copy.documents_total > 0);
    let copies = [("copy", first), ("resync", status.resync.as_ref())];
    let lines = copies
        .into_iter()
        .filter_map(|(name, copy)| copy.map(|progress| format!("{name} {}\n", bar::bar(progress))));
    lines.collect()
}

fn facts(status: &Status) -> String {
    let mut facts = Columns::new(&[]);
    facts.row(["source".to_owned(), deployment(&status.source)]);
    facts.row(["target".to_owned(), deployment(&status.target)]);
    facts.row([
        "lag".to_owned(),
        status.lag_seconds.map_or_else(unknown, |lag| format!("{lag:.1} s")),
    ]);
    facts.row(["resume point".to_owned(), place(status.resume_point)]);
    facts.row(["source optime".to_owned(), place(status.source_optime)]);
    let reach = status.oplog_window_seconds;
    let reach = reach.map_or_else(unknown, |seconds| span(Duration::from_secs(seconds)));
    facts.row(["source oplog".to_owned(), format!("reaches back {reach}")]);
    if let Some(window) = status.window {
        let entries = format!("{} entries in {:.3} s", window.entries, window.seconds);
        facts.row([
            "last window".to_owned(),
            format!("{} to {}, {entries}", window.from, window.to),
        ]);
    }
    facts.row(["copy".to_owned(), copy(&status.copy)]);
    if let Some(last) = &status.cutover {
        facts.row(["cutover".to_owned(), cutover(last)]);
    }
    let totals = &status.totals;
    let applied = format!("{} of {} entries read", totals.entries_applied, totals.entries_read);
    facts.row([
        "applied".to_owned(),
        format!("{applied}, {} windows, {} resyncs", totals.windows, totals.resyncs),
    ]);
    if let Some(report) = &status.verify {
        facts.row(["verify".to_owned(), verifying(report)]);
        if let Some(round) = &report.last_round {
            let judged = [(round.equal, "equal"), (round.different, "different")];
            let [equal, different] = judged.map(|(count, what)| format!("{count} {what}"));
            let unproven = round.unproven;
            facts.row([
                "verified".to_owned(),
                format!("{equal}, {different}, {unproven} not proved, as of {}", round.began),
            ]);
        }
    }
    facts.render()
}

/// What the verification that goes on all the time does now.
fn verifying(report: &VerifyReport) -> String {
    if report.round == 0 {
        return "waits until the target follows".to_owned();
    }
    let mut text = format!(
        "round {}, {} of {} collections",
        report.round, report.collections, report.collections_total
    );
    if let Some(name) = &report.collection {
        text.push_str(&format!(", at {name}"));
    }
    text
}

fn noted(status: &Status, list: fn(&VerifyReport) -> &[Noted]) -> String {
    let mut columns = Columns::new(&[]);
    for noted in status.verify.iter().flat_map(list) {
        columns.row([&noted.collection, &noted.what, &noted.at.to_string()]);
    }
    columns.render()
}

fn cutover(cutover: &CutoverStatus) -> String {
    let reason =
        cutover.reason.as_deref().map_or(String::new(), |why| format!(": {}", one_line(why)));
    match cutover.outcome {
        None => format!("{}{reason}", cutover.step.name()),
        Some(CutoverOutcome::Ready) => format!("rehearsed at {}", cutover.began),
        Some(CutoverOutcome::CutOver) => format!("done, begun at {}", cutover.began),
        Some(CutoverOutcome::Aborted | CutoverOutcome::Different) => format!("given up{reason}"),
    }
}

fn unknown() -> String {
    "not known yet".to_owned()
}

fn deployment(deployment: &Deployment) -> String {
    if deployment.hosts.is_empty() {
        return unknown();
    }
    let set = deployment.replica_set.as_deref().unwrap_or("?");
    let version = deployment.version.as_deref().unwrap_or("?");
    format!("{set} ({}), MongoDB {version}", deployment.hosts.join(", "))
}

fn place(place: Option<OplogPlace>) -> String {
    place.map_or_else(unknown, |place| format!("{} ({})", place.ts, place.wall))
}

fn copy(copy: &CopyProgress) -> String {
    let bytes = ByteSize(copy.bytes);
    if copy.complete {
        return format!("complete: {} documents, {bytes}", copy.documents);
    }
    if copy.documents_total == 0 {
        return "not begun".to_owned();
    }
    format!("{} %: {}", bar::percent(copy), bar::amounts(copy))
}

fn copying(status: &Status) -> String {
    let mut columns = Columns::new(&[]);
    for name in &status.copying {
        columns.row([name]);
    }
    columns.render()
}

fn index_builds(status: &Status) -> String {
    let mut columns = Columns::new(&[]);
    for build in &status.index_builds {
        columns.row([build.to_string()]);
    }
    columns.render()
}

fn held_back(status: &Status) -> String {
    let mut columns = Columns::new(&[]);
    for held in &status.held_back {
        columns.row([&held.collection, &held.what]);
    }
    columns.render()
}

fn replaced(status: &Status) -> String {
    let mut columns = Columns::new(&[]);
    for old in &status.replaced {
        columns.row([&old.collection, &format!("as {} until {}", old.kept_as, old.until)]);
    }
    columns.render()
}

/// The collections with the largest deltas first, then the others in their order.
fn deltas(status: &Status) -> String {
    if status.deltas.is_empty() {
        return String::new();
    }
    let mut ordered: Vec<&CollectionDelta> = status.deltas.iter().collect();
    ordered.sort_by_key(|delta| std::cmp::Reverse(delta.delta.unsigned_abs()));
    let mut columns = Columns::new(&["collection", "source", "target", "delta", ""]);
    (1..=3).for_each(|column| columns.align_right(column));
    for delta in ordered.iter().take(DELTAS_SHOWN_MAX) {
        let renamed = delta.target_collection != delta.collection;
        let name = if renamed {
            format!("{} -> {}", delta.collection, delta.target_collection)
        } else {
            delta.collection.clone()
        };
        let exact = if delta.exact { "exact" } else { "" };
        let [source, target] = [delta.source, delta.target].map(|count| count.to_string());
        columns.row([name, source, target, delta.delta.to_string(), exact.to_owned()]);
    }
    let mut text = columns.render();
    let more = ordered.len().saturating_sub(DELTAS_SHOWN_MAX);
    if more > 0 {
        // Writing to a string cannot fail; the line is only a hint.
        writeln!(text, " and {more} more (--json has all)").unwrap_or_default();
    }
    text.push_str(&format!(" total delta: {}\n", status.total_delta));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::control::Control;
    use crate::http::server::Server;
    use crate::status::{State, StatusBoard, samples};
    use crate::stop::Stop;

    #[test]
    fn people_see_everything_that_matters() {
        let text = render(&samples::live(), samples::time("2026-01-29T07:00:00.000Z"));
        let expected = "\
snapsync 0.1.0: live for 3d 4h (since 2026-01-26T03:00:00.000Z)

 source         rs0 (s1:27017), MongoDB 6.0.5
 target         rs1 (t1:27017), MongoDB 6.0.5
 lag            0.4 s
 resume point   1731681000:3 (2026-01-26T03:00:10.000Z)
 source optime  1731681000:9 (2026-01-26T03:00:10.400Z)
 source oplog   reaches back 1d 0h
 last window    2026-01-26T03:00:09.000Z to 2026-01-26T03:00:10.000Z, 123 entries in 0.050 s
 copy           complete: 10 documents, 99 B
 applied        1 of 1 entries read, 7 windows, 0 resyncs
 verify         round 2, 1 of 2 collections, at shop.orders
 verified       1 equal, 1 different, 0 not proved, as of 2026-01-26T02:00:00.000Z

being copied again
 shop.carts

indexes being built on the target
 shop.carts: 2 indexes for 1m 1s, Index Build: scanning collection, 5 of 9

held back until cutover
 shop.sessions  TTL of index expires_1

replaced, still kept
 shop.carts  as shop.snapsync_tmp_1 until 2026-01-27T03:00:00.000Z

found to differ by verifying, latest last
 shop.carts  1 documents different  2026-01-26T03:00:00.000Z

deltas
 collection                 source  target  delta
 shop.orders -> crm.orders      10       8      2
 total delta: 2
";
        assert_eq!(text, expected);
    }

    #[test]
    fn what_is_not_known_yet_is_said_so_and_the_reason_is_shown() {
        let mut status = Status::starting("0.1.0", WallTime::from_ms(0));
        status.enter(State::Halted, Some("two writers;\nstop one".into()), WallTime::from_ms(0));
        let text = render(&status, WallTime::from_ms(59_999));
        assert!(text.starts_with("snapsync 0.1.0: halted for 59s"), "{text}");
        assert!(text.contains("\ntwo writers;\\nstop one\n"), "{text}");
        assert_eq!(text.matches("not known yet").count(), 6, "{text}");
        assert!(text.contains("not begun"), "{text}");
    }

    #[test]
    fn a_copy_under_way_shows_how_far_it_is() {
        let mut status = samples::live();
        let progress = CopyProgress {
            documents: 5,
            documents_total: 10,
            bytes: 1 << 30,
            bytes_total: 3 << 30,
            eta_seconds: Some(125),
            complete: false,
        };
        assert!(copy(&progress).starts_with("33 %: 5 of 10 documents, 1.0 GiB of 3.0 GiB, "));
        assert_eq!(bars(&status), "");
        status.resync = Some(progress);
        let text = render(&status, WallTime::now());
        assert!(text.lines().nth(1).unwrap().starts_with("resync [#######----"), "{text}");
        status.copy = progress;
        assert!(bars(&status).starts_with("copy [#######----"));
    }

    #[test]
    fn many_deltas_show_the_largest_first() {
        let mut status = samples::live();
        let delta = |number: i64| CollectionDelta {
            collection: format!("shop.c{number}"),
            target_collection: format!("shop.c{number}"),
            source: 9,
            target: 9,
            delta: if number == 70 { -7 } else { 0 },
            exact: number == 70,
        };
        status.set_deltas((0..100).map(delta).collect());
        let text = deltas(&status);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].starts_with(" shop.c70 ") && lines[1].ends_with("-7  exact"), "{text}");
        assert!(lines[2].starts_with(" shop.c0 "), "{text}");
        assert_eq!(lines.len(), 1 + DELTAS_SHOWN_MAX + 2);
        assert_eq!(lines[lines.len() - 2], " and 60 more (--json has all)");
    }

    #[test]
    fn redrawing_leaves_nothing_of_what_stood_there_and_the_state_in_sight() {
        let drawn = |inside: &str| format!("\x1b[?7l\x1b[H{inside}\x1b[J\x1b[?7h");
        assert_eq!(redrawn("a\nb\n", 3), drawn("a\x1b[K\nb\x1b[K\n"));
        assert_eq!(redrawn("a\nb\nc\n", 3), drawn("a\x1b[K\n and 2 lines more\x1b[K\n"));
        assert_eq!(redrawn("a\n", usize::MAX), drawn("a\x1b[K\n"));
    }

    #[tokio::test]
    async fn asks_the_running_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("control.sock");
        let board = StatusBoard::new("0.1.0");
        board.update(|status| *status = samples::live());
        let stop = Stop::new();
        let server = Server::new().with_socket(&socket).unwrap();
        let (control, _commands) = Control::channel();
        let serving = server.serve(board.clone(), control, stop.clone());
        let asking = async {
            let json = ask(&socket, true).await.unwrap();
            assert_eq!(serde_json::from_str::<Status>(&json).unwrap(), board.read());
            assert!(ask(&socket, false).await.unwrap().starts_with("snapsync 0.1.0: live for "));
            assert!(ready(&socket, false).await.unwrap());
            board.enter(State::Paused, None);
            assert!(!ready(&socket, true).await.unwrap());
            stop.request();
        };
        tokio::join!(serving, asking);
        let error = show(&socket, false).await.unwrap_err();
        assert!(error.to_string().starts_with("no daemon answers on "), "{error}");
    }
}
