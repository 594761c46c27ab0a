//! `snapsync snapshot`: makes one, and says what it came to.

use std::process::ExitCode;

use serde_json::json;

use super::{begin_log, block_on, fail, output};
use crate::config::{Config, Inputs};
use crate::exit::Exit;
use crate::snapshot::{self, Planned};
use crate::telemetry::events;

pub(super) fn run(inputs: &Inputs, dry_run: bool, as_json: bool) -> ExitCode {
    let loaded = match Config::load_snapshot(inputs) {
        Ok(loaded) => loaded,
        Err(errors) => return fail(&errors.into()),
    };
    let logs = match begin_log(&loaded) {
        Ok(logs) => logs,
        Err(exit) => return fail(&exit),
    };
    if dry_run {
        let planned = block_on(snapshot::plan(&loaded.config));
        return match planned.map(|planned| output::print(&plan_text(&planned, as_json))) {
            Ok(Ok(())) => ExitCode::SUCCESS,
            Ok(Err(_)) => ExitCode::FAILURE,
            Err(exit) => ended(&exit),
        };
    }
    let (report, exit) = match block_on(Box::pin(snapshot::run(loaded.config, &logs))) {
        Ok(ended) => ended,
        Err(exit) => return ended(&exit),
    };
    let text = if as_json {
        let shape = serde_json::to_value(&report).unwrap_or_default();
        format!("{shape:#}\n")
    } else {
        report.text()
    };
    match (output::print(&text), exit) {
        (_, Some(exit)) => exit.code.into(),
        (Ok(()), None) => ExitCode::SUCCESS,
        (Err(_), None) => ExitCode::FAILURE,
    }
}

fn ended(exit: &Exit) -> ExitCode {
    events::failed(exit);
    exit.code.into()
}

fn plan_text(planned: &[Planned], as_json: bool) -> String {
    if as_json {
        let shape = json!({ "collections": planned });
        return format!("{shape:#}\n");
    }
    let mut table =
        output::Columns::new(&["COLLECTION", "DOCUMENTS", "BYTES", "TAKES THE PLACE OF"]);
    table.align_right(1);
    table.align_right(2);
    for one in planned {
        let (documents, bytes) = match (one.documents, one.bytes) {
            (Some(documents), Some(bytes)) => {
                (documents.to_string(), bytesize::ByteSize(bytes).to_string())
            }
            _ => ("not on the source".to_owned(), String::new()),
        };
        let replaces = if one.replaces { one.target_collection.as_str() } else { "nothing" };
        table.row([one.collection.as_str(), &documents, &bytes, replaces]);
    }
    table.render()
}
