//! `snapsync verify`: compares the contents of both sides, and prints what differs.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytesize::ByteSize;

use super::output::{self, Columns};
use super::{block_on, fail, load};
use crate::config::Inputs;
use crate::exit::Code;
use crate::sync::verifying::{self, Wanted};
use crate::telemetry::one_line;
use crate::verify::{CollectionReport, IDS_LISTED_MAX, Kind, Outcome, Progress, Report};

/// How often it says how far it has come: on a terminal, and elsewhere.
const SHOW_EVERY: Duration = Duration::from_secs(1);
const LOG_EVERY: Duration = Duration::from_secs(5);

/// What the arguments say.
#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// Collections or databases by their names on the source; all that are selected if none is given
    #[arg(value_name = "NS")]
    namespaces: Vec<String>,
    /// Reads only this share of the documents, such as 0.01; options, indexes and views are compared all the same
    #[arg(long, value_name = "F", default_value_t = 1.0, value_parser = share)]
    sample: f64,
    /// The most to read of each side in a second, such as 50MiB [default: no limit]
    #[arg(long, value_name = "SIZE")]
    max_bytes_per_second: Option<ByteSize>,
    /// Prints JSON
    #[arg(long)]
    json: bool,
}

fn share(text: &str) -> Result<f64, String> {
    let share: f64 = text.parse().map_err(|_| "it is not a number".to_owned())?;
    let is_share = share > 0.0 && share <= 1.0;
    if is_share { Ok(share) } else { Err("it must be more than 0 and at most 1".to_owned()) }
}

pub(super) fn run(inputs: &Inputs, options: Options) -> ExitCode {
    let config = match load(inputs) {
        Ok(loaded) => loaded.config,
        Err(exit) => return fail(&exit),
    };
    let wanted = Wanted {
        names: options.namespaces,
        sample: options.sample,
        bytes_per_second: options.max_bytes_per_second.map_or(0, |size| size.as_u64()),
    };
    let verified = block_on(async {
        let mut showing = None;
        let watch = |progress| showing = Some(tokio::spawn(show(progress)));
        let report = verifying::once(&config, &wanted, watch).await;
        if let Some(showing) = showing {
            showing.abort();
            clear();
        }
        report
    });
    let report = match verified {
        Ok(report) => report,
        Err(exit) => return fail(&exit),
    };
    let text = if options.json {
        let shape = serde_json::to_value(&report).unwrap_or_default();
        format!("{shape:#}\n")
    } else {
        render(&report)
    };
    match (output::print(&text), report.outcome) {
        (Err(_), _) => ExitCode::FAILURE,
        (Ok(()), Outcome::Equal) => ExitCode::SUCCESS,
        (Ok(()), Outcome::Different) => Code::Differ.into(),
        (Ok(()), Outcome::Unproven) => Code::Failed.into(),
    }
}

/// Says how far it has come, until it is aborted.
#[expect(
    clippy::print_stderr,
    reason = "progress is for people; the result goes to standard output"
)]
async fn show(progress: Arc<Progress>) {
    let is_terminal = std::io::stderr().is_terminal();
    let began = Instant::now();
    loop {
        tokio::time::sleep(if is_terminal { SHOW_EVERY } else { LOG_EVERY }).await;
        let (documents, bytes) = progress.read();
        let rate =
            f64::from(u32::try_from(documents).unwrap_or(u32::MAX)) / began.elapsed().as_secs_f64();
        let text =
            format!("{documents} documents, {} read, {rate:.0} documents/s", ByteSize(bytes));
        if is_terminal {
            eprint!("\r{text}\x1b[K");
            let _seldom = std::io::stderr().flush();
        } else {
            eprintln!("snapsync: verify: {text}");
        }
    }
}

#[expect(clippy::print_stderr, reason = "see above")]
fn clear() {
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[K");
    }
}

/// The report for people.
fn render(report: &Report) -> String {
    let mut columns =
        Columns::new(&["collection", "result", "documents", "missing", "extra", "different"]);
    (2..=5).for_each(|column| columns.align_right(column));
    for found in &report.collections {
        let renamed = found.target_collection != found.collection;
        let name = if renamed {
            format!("{} -> {}", found.collection, found.target_collection)
        } else {
            found.collection.clone()
        };
        let more = if found.complete { "" } else { "+" };
        let count = |count: u64| if count == 0 { "0".to_owned() } else { format!("{count}{more}") };
        let counts = [found.missing, found.extra, found.different].map(count);
        let [missing, extra, different] = counts;
        let documents = found.documents.to_string();
        columns.row([name, word(found.outcome).into(), documents, missing, extra, different]);
    }
    let mut text = columns.render();
    report.collections.iter().for_each(|found| details(found, &mut text));
    for view in &report.views {
        line(&mut text, view);
    }
    for name in &report.only_on_target {
        line(&mut text, &format!("{name} is only on the target"));
    }
    for why in &report.unproven {
        line(&mut text, &format!("not proved: {why}"));
    }
    let read = format!("{} documents, {}", report.documents, ByteSize(report.bytes));
    let part = if report.sample < 1.0 { ", a sample" } else { "" };
    line(&mut text, &format!("{}: {read}{part}, {:.1} s", word(report.outcome), report.seconds));
    text
}

fn details(found: &CollectionReport, text: &mut String) {
    let name = &found.collection;
    for what in &found.definitions {
        line(text, &format!("{name}: {what}"));
    }
    for document in &found.differing {
        let what = match document.kind {
            Kind::Missing => "is missing on the target",
            Kind::Extra => "is only on the target",
            Kind::Different => "differs",
        };
        line(text, &format!("{name}: _id {} {what}", document.id));
    }
    let all = found.missing + found.extra + found.different;
    if all > found.differing.len() as u64 || !found.complete {
        line(text, &format!("{name}: the first {IDS_LISTED_MAX} at the most are listed"));
    }
    for why in &found.unproven {
        line(text, &format!("{name}: not proved: {why}"));
    }
}

fn line(text: &mut String, what: &str) {
    // Writing to a string cannot fail.
    let _infallible = writeln!(text, "{}", one_line(what));
}

fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Equal => "equal",
        Outcome::Unproven => "not proved",
        Outcome::Different => "DIFFERENT",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::DifferingDocument;

    #[test]
    fn what_differs_is_named_and_nothing_of_its_contents() {
        let found = CollectionReport {
            collection: "shop.orders".into(),
            target_collection: "crm.orders".into(),
            outcome: Outcome::Different,
            documents: 10,
            bytes: 2048,
            missing: 0,
            extra: 0,
            different: 1,
            definitions: vec!["index n_1 is missing on the target".into()],
            differing: vec![DifferingDocument { id: "\"a\n\"".into(), kind: Kind::Different }],
            complete: true,
            unproven: Vec::new(),
        };
        let report = Report {
            outcome: Outcome::Different,
            sample: 1.0,
            seconds: 1.25,
            documents: 10,
            bytes: 2048,
            collections: vec![found],
            views: vec!["view crm.v differs".into()],
            only_on_target: vec!["crm.theirs".into()],
            unproven: Vec::new(),
        };
        let expected = " collection                 result     documents  missing  extra  different
 shop.orders -> crm.orders  DIFFERENT         10        0      0          1
shop.orders: index n_1 is missing on the target
shop.orders: _id \"a\\n\" differs
view crm.v differs
crm.theirs is only on the target
DIFFERENT: 10 documents, 2.0 KiB, 1.2 s
";
        assert_eq!(render(&report), expected);
    }

    #[test]
    fn a_share_is_more_than_nothing() {
        assert_eq!(share("0.5"), Ok(0.5));
        assert!(share("0").is_err() && share("1.1").is_err() && share("NaN").is_err());
    }
}
