//! Snapshots: some collections of one database, all as of one moment, in another database; once, and then the program
//! ends.
//!
//! A snapshot is a migration that never goes live. Everything is copied into a stage beside its place while the oplog
//! is spooled; the oplog is applied up to one optime, which all collections then have in common, however long the copy
//! took; and one after another they take their places, each in one step. Whatever happens before that leaves the old
//! snapshot as it was. What is left of a stage is dropped by the next run, which knows it by its names.
//!
//! Owns the order of these steps and what is told of them. The work is that of the daemon: its copy, its spool, its
//! replay, its lease.

mod clock;
mod copying;
mod moment;
mod place;
mod plan;
mod report;
mod series;
mod start;
mod tries;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bson::{RawArrayBuf, RawDocumentBuf, Uuid};
use tokio::sync::mpsc;

pub use plan::{Planned, plan};
pub use report::{Collection, Moment, Outcome, Report, Side, Status};

use self::clock::Clock;
use self::moment::{Counted, Oplog, is_of_one};
use self::start::{Held, Sides};
use self::tries::Tries;
use crate::config::{Config, METADATA_COLLECTION, Uri};
use crate::durable::remove_if_there;
use crate::exit::{Code, Exit};
use crate::mongo::Error;
use crate::namespace::Namespace;
use crate::oplog::document;
use crate::replay::window::ResumePoint;
use crate::retry::{Stopped, until_reached};
use crate::selection::{Selection, is_temporary};
use crate::source::{catalog, start as moments};
use crate::state::StateError;
use crate::status::WallTime;
use crate::stop::Stop;
use crate::sync::context::{Context, Interrupted};
use crate::sync::spooling::Spooler;
use crate::sync::{copying as copies, preflight, resync, startup, track};
use crate::systemd::Signals;
use crate::target::lease::mirror;
use crate::target::statements;
use crate::telemetry::events;
use crate::telemetry::logging::LogHandle;

/// The folder in the state directory that holds one for each target database.
const FOLDER: &str = "snapshot";
/// Collections take their places within this, also when the deadline passes meanwhile: half of them would be worse.
const PLACES_WITHIN: Duration = Duration::from_secs(60);
/// Clearing up may take so long. The lease lasts that long without being renewed.
const CLEAR_WITHIN: Duration = Duration::from_secs(20);
/// And giving the lease back so long.
const RELEASE_WITHIN: Duration = Duration::from_secs(5);

/// A snapshot in the making.
struct Run<'a> {
    context: Context,
    /// Where everything goes in the end.
    selection: Selection,
    logs: &'a LogHandle,
    tries: Tries,
    counted: BTreeMap<Uuid, Counted>,
    /// What has taken its place, by UUIDs on the source.
    placed: BTreeSet<Uuid>,
    failed_views: Vec<(String, String)>,
    moment: Option<Moment>,
    /// Whether something may be under way on the target that was not waited out.
    uncleared: bool,
    /// What the source lists has been read.
    is_listed: bool,
}

/// Makes one. The report says what it came to; if that is less than everything, the exit says with what code to end.
///
/// # Errors
/// [`Exit`]: refused, with nothing done.
pub async fn run(mut config: Config, logs: &LogHandle) -> Result<(Report, Option<Exit>), Exit> {
    let started_at = WallTime::now();
    let folder = config.state.directory.join(FOLDER).join(&config.snapshot.target_database);
    config.state.directory = folder;
    let stop = Stop::new();
    let signals = Signals::register()
        .map_err(|error| Exit::new(Code::Internal, format!("cannot take signals: {error}")))?;
    // There is nothing to be reloaded.
    let (reload, _reloads) = mpsc::channel(1);
    tokio::spawn(signals.run(stop.clone(), reload));
    let clock = Clock::new(config.snapshot.deadline);
    tokio::spawn(clock.clone().run(stop.clone()));
    let _lock = startup::lock(&config)?;
    let (selection, uris) =
        (config.sync.selection.clone(), [&config.source.uri, &config.target.uri].map(Uri::clone));
    let (context, sides, held) = match start::start(config, &stop).await {
        Ok(started) => started,
        Err(interrupted) => return Err(exit_of(interrupted, &clock)),
    };
    let tries = Tries::new(context.config.snapshot.attempts);
    let mut run = Run {
        context,
        selection,
        logs,
        tries,
        counted: BTreeMap::new(),
        placed: BTreeSet::new(),
        failed_views: Vec::new(),
        moment: None,
        uncleared: false,
        is_listed: false,
    };
    let outcome = run.attempts(&clock, &stop).await;
    let exit = outcome.err().map(|interrupted| exit_of(interrupted, &clock));
    let report = run.end(started_at, &sides, &uris, exit.as_ref()).await;
    let unsettled = run.uncleared || run.context.writers.is_unsettled();
    let lost = release(held, unsettled).await;
    let exit = lost.err().or(exit);
    let exit = exit.or_else(|| {
        (report.status != Status::Complete)
            .then(|| Exit::new(Code::Failed, format!("the snapshot is {}", report.status.as_str())))
    });
    tell(&report, exit.as_ref());
    Ok((report, exit))
}

fn tell(report: &Report, exit: Option<&Exit>) {
    let target = &report.target.database;
    match exit {
        None => {
            let documents = report.collections.iter().filter_map(|one| one.documents).sum();
            let took = report.finished_at.as_ms().saturating_sub(report.started_at.as_ms());
            let took = Duration::from_millis(took.max(0).unsigned_abs());
            events::snapshot_finished(target, report.collections.len(), documents, took);
        }
        Some(exit) => {
            let failed = report.collections.iter().filter(|one| one.outcome == Outcome::Failed);
            let names: Vec<&str> = failed.map(|one| one.collection.as_str()).collect();
            let of =
                if names.is_empty() { String::new() } else { format!(" ({})", names.join(", ")) };
            events::snapshot_failed(target, report.status.as_str(), &format!("{exit}{of}"));
        }
    }
}

/// What an end that is none in order comes to.
fn exit_of(interrupted: Interrupted, clock: &Clock) -> Exit {
    match interrupted {
        Interrupted::Exit(exit) => exit,
        Interrupted::Stop if clock.has_passed() => {
            Exit::new(Code::Failed, "snapshot.deadline has passed")
        }
        Interrupted::Stop | Interrupted::Again => Exit::new(Code::Failed, "stopped by a signal"),
        Interrupted::Halt { reason, .. } => Exit::new(Code::Failed, reason),
        Interrupted::Lost(what) | Interrupted::Diverged { what, .. } => {
            Exit::new(Code::Failed, what)
        }
    }
}

/// Gives the lease back. Nothing of a snapshot that has ended in order stays there.
async fn release(mut held: Held, unsettled: bool) -> Result<(), Exit> {
    held.keeping.request();
    let mut outcome = Ok(());
    let releasing = async {
        startup::end(&mut held.tasks, &mut outcome).await;
        if outcome.is_err() {
            return;
        }
        let released = if unsettled {
            held.lease.release(None, true).await
        } else {
            mirror::forget(held.lease.target(), held.lease.instance()).await
        };
        if let Err(error) = released {
            tracing::info!("the lease is left to expire: {error}");
        }
    };
    if tokio::time::timeout(RELEASE_WITHIN, releasing).await.is_err() {
        tracing::info!("the lease is left to expire: the target did not answer");
    }
    outcome
}

impl Run<'_> {
    /// Makes the snapshot; from the beginning again if something comes in the way that concerns all collections.
    async fn attempts(&mut self, clock: &Clock, stop: &Stop) -> Result<(), Interrupted> {
        let (attempts, delay) =
            (self.context.config.snapshot.attempts, self.context.config.snapshot.retry_delay);
        let mut attempt = 1;
        loop {
            let made = self.make(clock, stop).await;
            let may_again = matches!(
                made,
                Err(Interrupted::Lost(_) | Interrupted::Halt { .. } | Interrupted::Diverged { .. })
            );
            // Once the first has its place, nothing of another moment may follow.
            if !may_again || attempt >= attempts || !self.placed.is_empty() {
                return made;
            }
            if let Err(interrupted) = made {
                let why = exit_of(interrupted, clock).message;
                tracing::warn!("attempt {attempt} of {attempts} has failed: {why}");
            }
            attempt += 1;
            stop.sleep(delay).await?;
            self.context.clear_cut_short(stop).await?;
            self.tries = Tries::new(attempts);
            self.counted.clear();
        }
    }

    async fn make(&mut self, clock: &Clock, stop: &Stop) -> Result<(), Interrupted> {
        start::sweep(&self.context, stop).await?;
        self.clear_files()?;
        self.begin(stop).await?;
        let oplog = self.spool(stop)?;
        let made = self.reach_one_moment(&oplog, stop).await;
        // Its task ends after what it has in hand, and only then may another one write there.
        let spooled = oplog.spooler.finish().await;
        let at = made?;
        if let Err(error) = spooled {
            tracing::debug!("{error}");
        }
        let wall_ms = self.context.records.get().resume.unwrap_or_default().wall_ms;
        self.moment = Some(Moment { ts: at, wall: WallTime::from_ms(wall_ms) });
        clock.allow(PLACES_WITHIN);
        self.put_in_place(stop).await
    }

    /// Chooses the moment to copy from, and lists what there is to copy.
    async fn begin(&mut self, stop: &Stop) -> Result<(), Interrupted> {
        let context = &self.context;
        let (source, selection) = (&context.source, &context.config.sync.selection);
        // The moment first, then the listing: whatever changes in between is told by the oplog.
        let start = until_reached(source.side, stop, || moments::choose(source)).await?;
        let list = || catalog::read(source, selection);
        let mut catalogue = until_reached(source.side, stop, list).await?;
        // Nobody compares where views are stored.
        catalogue.view_stores.clear();
        let is_wanted = |name: &Namespace| !is_temporary(&name.collection);
        let mut names = catalogue.collections.values().map(|found| &found.source);
        if !names.any(is_wanted) && catalogue.views.is_empty() {
            return Err(Interrupted::Exit(self.nothing_there()));
        }
        if let Some(lacking) = resync::lacking_room(context, &catalogue, stop).await? {
            let text = format!("the snapshot needs {lacking}");
            return Err(Interrupted::Exit(Exit::new(Code::Failed, text)));
        }
        let uuids: Vec<Uuid> = catalogue.collections.keys().copied().collect();
        for uuid in uuids {
            catalogue.repair.hold(uuid, "it is to be copied");
        }
        for view in catalogue.views.values() {
            match context.definer.put_view(&view.target, &view.definition.0, stop).await {
                // What the target makes of it is said when the view takes its place.
                Err(Stopped::Failed(error)) if is_of_one(&error) => {}
                staged => staged?,
            }
        }
        context.catalogue.change(|stored| *stored = catalogue);
        context.catalogue.save()?;
        let resume = ResumePoint {
            applied: start.apply_after,
            wall_ms: start.wall_ms,
            read_from: start.read_from,
        };
        context.records.change(|record| {
            (record.resume, record.intent) = (Some(resume), None);
        })?;
        self.is_listed = true;
        Ok(())
    }

    /// A name that is mistaken must not be taken for a database that has been emptied.
    fn nothing_there(&self) -> Exit {
        let wanted = &self.context.config.snapshot;
        let of = if wanted.collections.is_empty() {
            "no collections"
        } else {
            "none of these collections"
        };
        let text = format!(
            "the source's database {} has {of}; correct snapshot.source_database or snapshot.collections",
            wanted.source_database
        );
        Exit::new(Code::Config, text)
    }

    fn spool(&self, stop: &Stop) -> Result<Oplog, Interrupted> {
        let from = self.context.records.get().resume.unwrap_or_default().read_from;
        let writer = copies::open_spool(&self.context, from)?;
        let reader = writer.reader(from.ts.just_before());
        let spooler = Spooler::start(self.context.source.clone(), writer, from, stop);
        Ok(Oplog { spooler, reader })
    }

    /// Removes what an earlier run left on the local disk; its identity stays.
    fn clear_files(&self) -> Result<(), Interrupted> {
        let directory = &self.context.config.state.directory;
        let failed = |error: std::io::Error| {
            let text = format!("cannot clear {}: {error}", directory.display());
            Interrupted::Exit(Exit::new(Code::Disk, text))
        };
        for folder in [copies::SPOOL_FOLDER, track::TRANSACTIONS_FOLDER] {
            match std::fs::remove_dir_all(directory.join(folder)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(failed(error));
                }
                _ => {}
            }
        }
        for entry in std::fs::read_dir(directory).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                remove_if_there(&path).map_err(StateError::from)?;
            }
        }
        Ok(())
    }

    /// Says what became of it, on the target too, and clears up.
    async fn end(
        &mut self,
        started_at: WallTime,
        sides: &Sides,
        uris: &[Uri; 2],
        exit: Option<&Exit>,
    ) -> Report {
        // Not the stop of the work, which may have been requested.
        let stop = Stop::new();
        let late = tokio::spawn(Clock::new(CLEAR_WITHIN).run(stop.clone()));
        let is_lost = exit.is_some_and(|exit| exit.code == Code::Held);
        if !is_lost && let Err(interrupted) = self.look_again(exit.is_some(), &stop).await {
            self.uncleared = true;
            tracing::warn!("not cleared up: {}", exit_of(interrupted, &Clock::new(CLEAR_WITHIN)));
        }
        let collections = self.collections(exit);
        let cluster = |name: &str, facts: &crate::mongo::ServerFacts| {
            let set = facts.hello.replica_set().unwrap_or_default();
            if name.is_empty() { set.to_owned() } else { name.to_owned() }
        };
        let wanted = &self.context.config.snapshot;
        let reason = exit.map(|exit| exit.message.clone());
        let report = Report {
            status: Report::status(reason.as_deref(), &collections),
            reason,
            source: Side {
                cluster: cluster(&wanted.source_cluster, &sides.source),
                database: wanted.source_database.clone(),
                host: uris[0].hosts().join(","),
            },
            target: Side {
                cluster: cluster(&wanted.target_cluster, &sides.target),
                database: wanted.target_database.clone(),
                host: uris[1].hosts().join(","),
            },
            cross_cluster: !preflight::are_one(&sides.source, &sides.target),
            moment: self.moment,
            started_at,
            finished_at: WallTime::now(),
            collections,
        };
        // What came to nothing before there was anything to copy leaves the description of the last one.
        if !is_lost
            && self.is_listed
            && let Err(error) = self.describe(&report, &stop).await
        {
            tracing::warn!("{METADATA_COLLECTION} was not written: {error}");
        }
        late.abort();
        report
    }

    /// Waits out what was cut short, looks what stands in its place, and drops what is staged.
    async fn look_again(&mut self, is_early: bool, stop: &Stop) -> Result<(), Interrupted> {
        if is_early {
            self.context.clear_cut_short(stop).await?;
            if self.moment.is_some() {
                self.look(stop).await?;
            }
        }
        start::sweep(&self.context, stop).await?;
        self.clear_files()
    }

    /// What became of each.
    fn collections(&self, exit: Option<&Exit>) -> Vec<Collection> {
        let mut all: Vec<Collection> = Vec::new();
        let listed: Vec<_> = {
            let catalogue = self.context.catalogue.read();
            let listed = catalogue.collections.iter();
            listed.map(|(uuid, found)| (*uuid, found.source.collection.clone())).collect()
        };
        for (uuid, name) in listed.into_iter().filter(|(_, name)| !is_temporary(name)) {
            let name = name.strip_prefix("system.buckets.").map_or(name.clone(), str::to_owned);
            let counted = self.counted.get(&uuid).filter(|_| self.placed.contains(&uuid));
            let outcome = match counted {
                None if !self.placed.contains(&uuid) => Outcome::Failed,
                Some(counted) if counted.documents == 0 => Outcome::Empty,
                _ => Outcome::Replaced,
            };
            if outcome == Outcome::Empty {
                tracing::warn!(
                    collection = name,
                    "{name} is empty on the source, and now here too"
                );
            }
            let failed = outcome == Outcome::Failed;
            let why = self.tries.why(&uuid).or(exit.map(|exit| exit.message.as_str()));
            all.push(Collection {
                collection: name,
                outcome,
                documents: counted.map(|counted| counted.documents),
                verified: counted.is_some_and(|counted| counted.verified),
                failed_attempts: self.tries.failures(&uuid),
                error: why.filter(|_| failed).map(str::to_owned),
            });
        }
        let without = |collection: String, outcome, error| Collection {
            collection,
            outcome,
            documents: None,
            verified: false,
            failed_attempts: 0,
            error,
        };
        for (view, why) in &self.failed_views {
            all.push(without(view.clone(), Outcome::Failed, Some(why.clone())));
        }
        // Of what was never listed nothing is known.
        let absent = if self.is_listed { self.absent() } else { Vec::new() };
        let outcome = if exit.is_none() { Outcome::Absent } else { Outcome::Failed };
        all.extend(
            absent
                .into_iter()
                .map(|name| without(name, outcome, exit.map(|exit| exit.message.clone()))),
        );
        all.sort_by(|a, b| a.collection.cmp(&b.collection));
        all
    }

    /// Writes the document that describes the snapshot.
    async fn describe(&self, report: &Report, stop: &Stop) -> Result<(), String> {
        let database = &self.context.config.snapshot.target_database;
        let place =
            self.context.definer.place(&Namespace::new(database, METADATA_COLLECTION), None);
        let metadata = RawDocumentBuf::try_from(&report.metadata()).map_err(|e| e.to_string())?;
        let mut puts = RawArrayBuf::new();
        if let Some(id) = document::id(&metadata) {
            puts.push(statements::put(id, &metadata));
        }
        let action = "describe the snapshot";
        let command = place.update(puts, true);
        let written = self.context.writers.write(database, action, command, stop).await;
        match written {
            Ok(reply) if reply.errors.is_empty() => Ok(()),
            Ok(reply) => Err(format!("error {}", reply.errors[0].code)),
            Err(Stopped::Stop) => Err("the target did not answer in time".to_owned()),
            Err(Stopped::Failed(error)) => Err(Error::to_string(&error)),
        }
    }
}
