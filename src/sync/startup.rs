//! From a configuration to a daemon that may write: everything that can refuse a start is looked at first, nothing is
//! written before the lease is held, and what earlier runs left in flight is gone before the first write.

use std::sync::Arc;
use std::time::Duration;

use bson::doc;
use secrecy::SecretString;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::context::{Context, Interrupted};
use super::cutover::{self, Handover};
use super::deltas::Counter;
use super::divergence::desk::Desk;
use super::mirroring::{Mirroring, Verified};
use super::phase::{Event, Phase};
use super::preflight::{self, Check, Verdict};
use super::record::{Record, RecordStore, ReplicaSets};
use super::standing::Standing;
use super::tuning::{InForce, Tuning};
use super::verifying::Continuous;
use super::watch;
use super::{carried, copying, ownership, recovery};
use crate::config::{Config, OnExistingData};
use crate::copy::{Pace, prepare};
use crate::exit::{Code, Exit};
use crate::http::server::Server;
use crate::mongo::{
    Deployment, Error, PoolOptions, ServerFacts, Side, Version, replica_set_identity,
};
use crate::position::Still;
use crate::replay::noted::Noted;
use crate::source::catalog;
use crate::state::Audit;
use crate::state::catalogue::CatalogueStore;
use crate::state::{LockError, StateLock};
use crate::status::{self, StatusBoard, WallTime};
use crate::stop::Stop;
use crate::target::deadline::Deadline;
use crate::target::definitions::Definer;
use crate::target::inflight;
use crate::target::lease::taking::{self, Grant};
use crate::target::lease::{Lease, Owner};
use crate::target::writers::Writers;

/// How long a server may stay away at start before the program gives up with 69.
const START_SELECTION: Duration = Duration::from_secs(10);
/// How long the end of what runs beside the work, and giving the lease back, may take: a target that is away must not
/// keep a service manager waiting.
const RELEASE_WITHIN: Duration = Duration::from_millis(1500);
/// Connections for questions and definitions.
pub const CONTROL_CONNECTIONS: u32 = 8;

/// What is held while the daemon runs.
#[derive(Debug)]
pub struct Held {
    lease: Lease,
    writers: Writers,
    records: Arc<RecordStore>,
    catalogue: Arc<CatalogueStore>,
    stop: Stop,
    tasks: Tasks,
}

impl Held {
    /// Requested when the daemon has to stop: by a person, or because the lease is lost.
    #[must_use]
    pub fn stop(&self) -> &Stop {
        &self.stop
    }

    /// Ends the tasks that run beside the work, and gives the lease back if the work ended in order.
    ///
    /// # Errors
    /// The lease had been lost.
    pub async fn release(mut self, in_order: bool) -> Result<(), Exit> {
        self.stop.request();
        let mut outcome = Ok(());
        let releasing = async {
            end(&mut self.tasks, &mut outcome).await;
            // After a failure anything may still be under way: then the lease is left to expire.
            if outcome.is_ok() && in_order {
                let still = still(&self.records, &self.catalogue);
                let unsettled = self.writers.is_unsettled();
                if let Err(error) = self.lease.release(still.as_ref(), unsettled).await {
                    tracing::info!("the lease is left to expire: {error}");
                }
            }
        };
        if tokio::time::timeout(RELEASE_WITHIN, releasing).await.is_err() {
            let within = RELEASE_WITHIN.as_secs_f64();
            tracing::info!("the lease is left to expire: no answer within {within} s");
        }
        outcome
    }
}

/// The tasks that run beside the work. One that fails says so by requesting the stop.
pub type Tasks = JoinSet<Result<(), Exit>>;

/// Waits until all tasks have ended, as they do after a stop; the outcome is the first failure.
pub async fn end(tasks: &mut Tasks, outcome: &mut Result<(), Exit>) {
    while let Some(ended) = tasks.join_next().await {
        match ended {
            Ok(result) if outcome.is_ok() => *outcome = result,
            Ok(_) => {}
            Err(panic) => tracing::error!("internal error: {panic}"),
        }
    }
}

/// Starts the daemon.
///
/// # Errors
/// [`Interrupted`]: refused, with nothing written.
pub async fn start(
    config: Config,
    board: StatusBoard,
    stop: &Stop,
) -> Result<(Context, Held), Interrupted> {
    let mut tasks = Tasks::new();
    // When everything is done these end, and the daemon goes on to answer questions.
    let stop = &stop.child();
    match prepare(config, board, &mut tasks, stop).await {
        Ok((context, lease)) => {
            let held = Held {
                lease,
                writers: context.writers.clone(),
                records: context.records.clone(),
                catalogue: context.catalogue.clone(),
                stop: stop.clone(),
                tasks,
            };
            Ok((context, held))
        }
        // Perhaps not by a person: a lease that is lost stops everything.
        Err(Interrupted::Stop) => {
            let mut outcome = Ok(());
            end(&mut tasks, &mut outcome).await;
            Err(outcome.map_or_else(Into::into, |()| Interrupted::Stop))
        }
        Err(interrupted) => Err(interrupted),
    }
}

async fn prepare(
    config: Config,
    board: StatusBoard,
    tasks: &mut Tasks,
    stop: &Stop,
) -> Result<(Context, Lease), Interrupted> {
    let directory = config.state.directory.clone();
    reading(stop, cutover::lift_left_over(&config)).await?;
    let needs_no_source = cutover::needs_no_source(&config)?;
    let source = connect(&config, Side::Source, "snapsync", config_connections(&config));
    let source = match reading(stop, source).await {
        // Its name may have gone with it.
        Err(Interrupted::Exit(exit)) if needs_no_source => {
            tracing::warn!("{exit}; it is not needed any more");
            Deployment::gone(Side::Source).map_err(|error| Exit::at_start(&error))?
        }
        source => source?,
    };
    let asking = connect(&config, Side::Target, taking::APP_NAME, CONTROL_CONNECTIONS).await?;
    let (target_version, widens) = if needs_no_source {
        let ask = async { ServerFacts::ask(&asking).await.map_err(|error| Exit::at_start(&error)) };
        let facts = reading(stop, ask).await?;
        board.update(|status| status.target = shown(&facts));
        // Nothing is made any more.
        (facts.version, false)
    } else {
        let (theirs, ours) = reading(stop, pass_checks(&source, &asking, &config, true)).await?;
        board.update(|status| (status.source, status.target) = (shown(&theirs), shown(&ours)));
        (ours.version, widens(&theirs, &ours))
    };
    let at_start = |error: Error| Exit::at_start(&error);
    let opened = async {
        let source_set = if needs_no_source {
            None
        } else {
            replica_set_identity(&source).await.map_err(at_start)?
        };
        let sets = ReplicaSets { source: source_set, target: None };
        recovery::open_record(&config, &source, &asking, &sets).await
    };
    let records = Arc::new(reading(stop, opened).await?);
    let record = records.get();
    let catalogue = Arc::new(copying::open_catalogue(&directory)?);
    let owner = ownership::owner(&record.instance, &directory);
    let looking = refuse_early(&config, &source, &asking, target_version, &record, &owner);
    reading(stop, looking).await?;
    let (grant, deadline) =
        ownership::take(&config.sync.selection.target_set(), &asking, &owner).await?;
    if let Some(by) = grant.taken_by.as_deref() {
        halt_taken(&records, by)?;
    }
    let name = inflight::app_name(&record.instance, grant.lease.generation());
    let target = connect(&config, Side::Target, &name, config_connections(&config)).await?;
    let count = config.copy_workers() * 2;
    let writers = Writers::start(target.clone(), deadline.clone(), count).await;
    let writers = writers.map_err(|error| Exit::at_start(&error))?;
    keep_lease(&grant, &writers, &deadline, (&records, &catalogue), tasks, stop);
    let (verified, desk) = (Verified::default(), Desk::default());
    let mirror_wanted = Arc::new(Notify::new());
    let mirroring = Mirroring {
        lease: grant.lease.clone(),
        deadline: deadline.clone(),
        records: records.clone(),
        catalogue: catalogue.clone(),
        verified: verified.clone(),
        desk: desk.clone(),
        wanted: mirror_wanted.clone(),
    };
    stopping_all(tasks, mirroring.run(stop.clone()), stop);
    ownership::fence(&config, &grant, stop).await?;
    ownership::record_sessions(&grant, &writers, stop).await?;
    let context = Context {
        definer: Definer::new(target.clone(), target_version, widens, name, deadline),
        writers,
        standing: Standing::new(board.clone()),
        pace: Arc::new(Pace::new(config.copy.max_bytes_per_second.unwrap_or(0))),
        verify_pace: Arc::new(Pace::new(config.verify.max_bytes_per_second.unwrap_or(0))),
        settled: Arc::default(),
        desk,
        verified,
        cutover: Handover::default(),
        noted: Noted::default(),
        mirror_wanted,
        tuning: InForce::new(Tuning::from(&config)),
        config: Arc::new(config),
        source,
        target,
        records,
        catalogue,
        board,
    };
    note(&directory, "started", &context)?;
    watch_over(&context, &asking, tasks, stop);
    Ok((context, grant.lease))
}

/// Whether capped collections have wider limits on the target. From 6.0 on their documents may grow, so that what the
/// target evicts by itself would not always be what the source did; the source logs what it evicts; and the target can
/// be given their limits at cutover.
#[must_use]
pub fn widens(source: &ServerFacts, target: &ServerFacts) -> bool {
    const SINCE: Version = Version(6, 0, 0);
    let may_be_given = target.feature_version.is_none_or(|version| version >= (SINCE.0, SINCE.1));
    source.version >= SINCE && target.version >= SINCE && may_be_given
}

/// Carries out what only reads, and gives it up when asked to stop.
///
/// # Errors
/// Its own, or [`Interrupted::Stop`].
pub async fn reading<T>(
    stop: &Stop,
    question: impl Future<Output = Result<T, Exit>>,
) -> Result<T, Interrupted> {
    tokio::select! {
        () = stop.requested() => Err(Interrupted::Stop),
        result = question => Ok(result?),
    }
}

/// Takes the state directory, making it if need be.
///
/// # Errors
/// Another process has it, or the disk.
pub fn lock(config: &Config) -> Result<StateLock, Exit> {
    let directory = &config.state.directory;
    crate::durable::create_dir_all_durable(directory)
        .map_err(|error| Exit::new(Code::Disk, error.to_string()))?;
    StateLock::acquire(directory).map_err(|error| {
        let held = matches!(error, LockError::InUse { .. });
        let code = if held { Code::Held } else { Code::Disk };
        Exit::new(code, error.to_string())
    })
}

/// Takes the addresses to answer on.
///
/// # Errors
/// One of them cannot be had.
pub async fn bind(config: &Config) -> Result<Server, Exit> {
    let failed = |error: crate::http::server::HttpError| Exit::new(Code::Config, error.to_string());
    let listen = config.control.listen.map_or(String::new(), |address| address.to_string());
    let token = config.control.token.as_ref().map(|token| SecretString::from(token.expose()));
    Server::new()
        .with_tcp(&listen, token)
        .await
        .and_then(|server| server.with_socket(&config.control.socket))
        .map_err(failed)
}

/// Connections that the workers of this configuration want to one side.
#[must_use]
pub fn config_connections(config: &Config) -> u32 {
    let workers = config.copy_workers() * 2 + config.replay_workers();
    u32::try_from(workers).unwrap_or(u32::MAX).saturating_add(CONTROL_CONNECTIONS)
}

/// Prepares connections to one side.
///
/// # Errors
/// A URI that cannot be used.
pub async fn connect(
    config: &Config,
    side: Side,
    app_name: &str,
    connections: u32,
) -> Result<Deployment, Exit> {
    let uri = match side {
        Side::Source => &config.source.uri,
        Side::Target => &config.target.uri,
    };
    let pool = PoolOptions {
        app_name: app_name.to_owned(),
        connections,
        selection_timeout: Some(START_SELECTION),
    };
    Deployment::connect(side, uri, &pool).await.map_err(|error| Exit::at_start(&error))
}

/// Checks both sides; what is only unwise is logged.
///
/// # Errors
/// What has to be mended first, all of it, or a server that is not reached.
pub async fn pass_checks(
    source: &Deployment,
    target: &Deployment,
    config: &Config,
    wants_two: bool,
) -> Result<(ServerFacts, ServerFacts), Exit> {
    let (checks, source_facts, target_facts) = preflight::check(source, target, config, wants_two)
        .await
        .map_err(|error| Exit::at_start(&error))?;
    let texts = |verdict: Verdict| -> Vec<&str> {
        let found = checks.iter().filter(|check: &&Check| check.verdict == verdict);
        found.map(|check| check.text.as_str()).collect()
    };
    for warning in texts(Verdict::Warn) {
        tracing::warn!("{warning}");
    }
    let failures = texts(Verdict::Fail);
    if failures.is_empty() {
        return Ok((source_facts, target_facts));
    }
    Err(Exit::new(Code::Config, failures.join("; ")))
}

fn shown(facts: &ServerFacts) -> status::Deployment {
    status::Deployment {
        hosts: facts.hello.hosts(),
        replica_set: facts.hello.replica_set().map(str::to_owned),
        version: Some(facts.version.to_string()),
    }
}

/// Refusals that need no lease to be seen, so that nothing at all has been written when they are made.
async fn refuse_early(
    config: &Config,
    source: &Deployment,
    target: &Deployment,
    target_version: Version,
    record: &Record,
    owner: &Owner,
) -> Result<(), Exit> {
    let at_start = |error: Error| Exit::at_start(&error);
    let set = config.sync.selection.target_set();
    let holder = taking::held_by_another(target, owner, &set).await;
    if let Some(holder) = holder.map_err(at_start)? {
        return Err(ownership::held(&holder));
    }
    if record.resume.is_some() {
        return Ok(());
    }
    let selection = &config.sync.selection;
    let catalogue = catalog::read(source, selection).await.map_err(at_start)?;
    let checks = carried::check(&catalogue, target_version);
    if let Some(failed) = checks.into_iter().find(|check| check.verdict == Verdict::Fail) {
        return Err(Exit::new(Code::Config, failed.text));
    }
    if config.target.on_existing_data != OnExistingData::Refuse {
        return Ok(());
    }
    let collections = catalogue.collections.values().map(|found| found.target.clone());
    let views = catalogue.views.values().map(|view| view.target.clone());
    let mapped = collections.chain(views).collect();
    let existing = prepare::existing(target, selection, &mapped).await.map_err(at_start)?;
    if existing.is_empty() { Ok(()) } else { Err(copying::existing_data(&existing)) }
}

fn note(directory: &std::path::Path, event: &str, context: &Context) -> Result<(), Exit> {
    let audit = Audit::open(directory)?;
    let phase = context.records.get().phase.state().to_string();
    let detail = serde_json::json!({ "version": env!("CARGO_PKG_VERSION"), "state": phase });
    Ok(audit.append(event, None, detail)?)
}

/// Keeps renewing the lease, from now on: clearing up after an earlier run may take longer than it lasts.
fn keep_lease(
    grant: &Grant,
    writers: &Writers,
    deadline: &Deadline,
    state: (&Arc<RecordStore>, &Arc<CatalogueStore>),
    tasks: &mut Tasks,
    stop: &Stop,
) {
    let (records, catalogue) = (state.0.clone(), state.1.clone());
    let sessions = writers.ids().iter().copied().chain(grant.all_fenced()).collect();
    // For people who look at the target, and those who verify; the mirror has all the rest.
    let fields = move || {
        let record = records.get();
        let stands = matches!(record.phase, Phase::Paused { .. } | Phase::Halted { .. });
        let stands = still(&records, &catalogue).filter(|_| stands);
        doc! {
            "phase": record.phase.state().to_string(),
            "resume": record.resume.map(|resume| bson::Timestamp::from(resume.applied.ts)),
            "still": stands.and_then(|still| bson::serialize_to_bson(&still).ok()),
        }
    };
    let kept =
        ownership::keep(grant.lease.clone(), deadline.clone(), sessions, fields, stop.clone());
    stopping_all(tasks, kept, stop);
}

/// What the target is if nothing is applied.
fn still(records: &RecordStore, catalogue: &CatalogueStore) -> Option<Still> {
    let (is_built, held) = {
        let catalogue = catalogue.read();
        (catalogue.indexes_built, catalogue.repair.held.keys().copied().collect())
    };
    let at = records.get().consistent_at().filter(|_| is_built);
    at.map(|source| Still { source, held })
}

/// Runs a task whose end is the end of everything: whoever has lost the lease must not write any more.
pub fn stopping_all(
    tasks: &mut Tasks,
    task: impl Future<Output = Result<(), Exit>> + Send + 'static,
    stop: &Stop,
) {
    let everything = stop.clone();
    tasks.spawn(async move {
        let ended = task.await;
        everything.request();
        ended
    });
}

/// Halts a migration whose lease another one had taken for the same names: nobody knows what is there now.
fn halt_taken(records: &RecordStore, by: &str) -> Result<(), Exit> {
    let record = records.get();
    if record.resume.is_none() {
        return Ok(());
    }
    let halt = Event::Halt {
        reason: format!("another migration, of {by}, has written to the same names since"),
        remedy: "`snapsync reset` and copy anew; `snapsync resume` only if it wrote nothing".into(),
    };
    let next = record.phase.next(halt);
    let phase = next.map_err(|error| Exit::new(Code::Internal, error.to_string()))?;
    records.change(|record| {
        record.phase = phase;
        record.since_ms = WallTime::now().as_ms();
    })?;
    Ok(())
}

/// Begins what else runs beside the work.
/// Goes on beside the work until stopped, also while it waits for a server.
fn watching(tasks: &mut Tasks, watch: impl Future<Output = ()> + Send + 'static, stop: &Stop) {
    let stop = stop.clone();
    tasks.spawn(async move {
        tokio::select! {
            () = stop.requested() => {}
            () = watch => {}
        }
        Ok(())
    });
}

fn watch_over(context: &Context, asking: &Deployment, tasks: &mut Tasks, stop: &Stop) {
    let (standing, board) = (context.standing.clone(), context.board.clone());
    let source = watch::source(context.source.clone(), standing, board);
    watching(tasks, source, stop);
    let builds = context.definer.builds().clone();
    let building = watch::index_builds(asking.clone(), builds, context.board.clone());
    watching(tasks, building, stop);
    let counter = Counter {
        source: context.source.clone(),
        target: asking.clone(),
        store: context.catalogue.clone(),
        records: context.records.clone(),
        desk: context.desk.clone(),
        settled: context.settled.clone(),
        tuning: context.tuning.clone(),
        board: context.board.clone(),
    };
    let counting = counter.run(stop.clone());
    tasks.spawn(async move {
        counting.await;
        Ok(())
    });
    if context.config.verify.continuous {
        let verifying = Continuous::new(context, asking, stop).run();
        tasks.spawn(async move {
            verifying.await;
            Ok(())
        });
    }
}
