//! `snapsync check`: whether a migration can work, without writing anything.

use std::process::ExitCode;
use std::time::Duration;

use super::{block_on, fail, load, output};
use crate::catalogue::Catalogue;
use crate::config::{Config, Inputs, OnExistingData};
use crate::copy::prepare;
use crate::exit::{Code, Exit};
use crate::mongo::{Deployment, Error, Failure, Side, Version, listing};
use crate::source::{catalog, scan, tail};
use crate::status::bar::span;
use crate::sync::preflight::{self, Check, Verdict};
use crate::sync::record::{self, RecordStore};
use crate::sync::{carried, ownership, startup};
use crate::target::lease::taking;

/// Bytes a second that a copy is reckoned with, on the safe side of what two cores do.
const COPY_BYTES_PER_SECOND: u64 = 20 * 1024 * 1024;
const CONNECTIONS: u32 = 2;

pub(super) fn run(inputs: &Inputs, json: bool) -> ExitCode {
    let config = match load(inputs) {
        Ok(loaded) => loaded.config,
        Err(exit) => return fail(&exit),
    };
    let checks = block_on(all(&config));
    match checks {
        Ok(checks) => report(&checks, json),
        Err(exit) => fail(&exit),
    }
}

fn report(checks: &[Check], json: bool) -> ExitCode {
    let failed = checks.iter().any(|check| check.verdict == Verdict::Fail);
    let text = if json {
        let shape = serde_json::json!({ "passed": !failed, "checks": checks });
        format!("{shape:#}\n")
    } else {
        output::checks(checks)
    };
    match output::print(&text) {
        Ok(()) if failed => Code::Config.into(),
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

async fn all(config: &Config) -> Result<Vec<Check>, Exit> {
    let at_start = |error: Error| Exit::at_start(&error);
    let source = startup::connect(config, Side::Source, "snapsync check", CONNECTIONS).await?;
    let target = startup::connect(config, Side::Target, "snapsync check", CONNECTIONS).await?;
    let (mut checks, _, target_facts) =
        preflight::check(&source, &target, config, true).await.map_err(at_start)?;
    // The rest asks for what the first part found missing.
    if checks.iter().all(|check| check.verdict != Verdict::Fail) {
        let rest =
            contents(config, &source, &target, target_facts.version).await.map_err(at_start)?;
        checks.extend(rest);
    }
    checks.push(disk(config));
    Ok(checks)
}

async fn contents(
    config: &Config,
    source: &Deployment,
    target: &Deployment,
    target_version: Version,
) -> Result<Vec<Check>, Error> {
    let selection = &config.sync.selection;
    let catalogue = catalog::read(source, selection).await?;
    let bytes = total_bytes(source, &catalogue).await?;
    let window = tail::window_wall_ms(source).await?;
    let nobody = ownership::owner("", &config.state.directory);
    let holder = taking::held_by_another(target, &nobody, &selection.target_set()).await?;
    let collections = catalogue.collections.values().map(|found| found.target.clone());
    let views = catalogue.views.values().map(|view| view.target.clone());
    let mapped = collections.chain(views).collect();
    let existing = prepare::existing(target, selection, &mapped).await?;
    let mut checks = carried::check(&catalogue, target_version);
    checks.extend(never_copied(source).await?);
    checks.extend(renaming(config));
    checks.extend([
        oplog_window(bytes, window),
        match holder {
            Some(holder) => {
                let text = format!("held by {} for {}", holder.owner, holder.overlap);
                Check::new("lease", Verdict::Warn, text)
            }
            None => Check::new("lease", Verdict::Pass, "free"),
        },
        target_data(config, &existing, is_begun(config)),
    ]);
    Ok(checks)
}

/// Applications' own collections in `admin`, which nobody may expect to find on the target.
async fn never_copied(source: &Deployment) -> Result<Option<Check>, Error> {
    let listed = match listing::collections(source, "admin").await {
        Err(error) if error.failure == Failure::Privilege => return Ok(None),
        listed => listed?,
    };
    let names = listed.iter().map(|found| &found.namespace);
    let names = names.filter(|name| !name.collection.starts_with("system."));
    let names: Vec<String> = names.map(ToString::to_string).collect();
    Ok((!names.is_empty()).then(|| {
        let text = format!("the database admin is never copied; it holds {}", names.join(", "));
        Check::new("never copied", Verdict::Warn, text)
    }))
}

async fn total_bytes(source: &Deployment, catalogue: &Catalogue) -> Result<u64, Error> {
    let mut bytes = 0;
    for collection in catalogue.collections.values() {
        let name = &collection.source;
        match scan::size(source, &name.database, &name.collection).await {
            Ok(size) => bytes += size.bytes,
            // Dropped meanwhile.
            Err(error) if error.code().is_some() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(bytes)
}

/// The spool carries a copy over a short oplog; a restart that takes longer than the oplog reaches does not.
fn oplog_window(bytes: u64, window: Option<(i64, i64)>) -> Check {
    let copy = Duration::from_secs(bytes / COPY_BYTES_PER_SECOND);
    let reach = window.map_or(0, |(oldest, newest)| newest.saturating_sub(oldest).max(0));
    let reach = Duration::from_millis(reach.unsigned_abs());
    let text = format!(
        "the oplog reaches back {}; copying {} may take {}",
        span(reach),
        bytesize::ByteSize(bytes),
        span(copy),
    );
    let verdict = if reach < copy { Verdict::Warn } else { Verdict::Pass };
    Check::new("oplog window", verdict, text)
}

/// Whether the state directory holds a migration that has written something.
fn is_begun(config: &Config) -> bool {
    let directory = &config.state.directory;
    // Looking for a record makes its file.
    if !directory.join(record::FILE).exists() {
        return false;
    }
    RecordStore::find(directory)
        .is_ok_and(|record| record.is_some_and(|record| record.resume.is_some()))
}

/// A start halts where the renaming has changed.
fn renaming(config: &Config) -> Option<Check> {
    if !is_begun(config) {
        return None;
    }
    let record = RecordStore::find(&config.state.directory).ok()??;
    let changed = record.renames != config.sync.selection.rename_fingerprint();
    changed.then(|| {
        let text = "sync.rename is not what the target was made with: a start halts";
        Check::new("renaming", Verdict::Fail, text)
    })
}

fn target_data(config: &Config, existing: &[crate::mongo::Listed], is_begun: bool) -> Check {
    let name = "target data";
    if is_begun {
        let text = format!("of the migration in {}", config.state.directory.display());
        return Check::new(name, Verdict::Pass, text);
    }
    if existing.is_empty() {
        return Check::new(name, Verdict::Pass, "nothing is in the way");
    }
    let text = crate::sync::copying::existing_data(existing).message;
    match config.target.on_existing_data {
        // A running migration of another directory or machine looks the same from here.
        OnExistingData::Refuse => Check::new(name, Verdict::Warn, text),
        OnExistingData::Drop => Check::new(name, Verdict::Warn, format!("will be dropped: {text}")),
    }
}

fn disk(config: &Config) -> Check {
    let name = "spool disk";
    let configured = config.spool.max_bytes.unwrap_or(0);
    let directory = &config.state.directory;
    let existing = directory.ancestors().find(|folder| folder.exists()).unwrap_or(directory);
    match crate::spool::free_space_limit(existing, configured) {
        Ok(bytes) if bytes < 1 << 30 => {
            let text = format!("only {} MiB for the spool in {}", bytes >> 20, directory.display());
            Check::new(name, Verdict::Warn, text)
        }
        Ok(bytes) => {
            let text = format!("{} GiB for the spool in {}", bytes >> 30, directory.display());
            Check::new(name, Verdict::Pass, text)
        }
        Err(error) => Check::new(name, Verdict::Fail, error.to_string()),
    }
}
