//! From a configuration to a daemon that may write: everything that can refuse a start is looked at first, nothing is
//! written before the lease is held, and what earlier runs left in flight is gone before the first write.

use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;
use tokio::task::JoinSet;

use super::context::{Context, Interrupted};
use super::copying;
use super::deltas::Counter;
use super::divergence::desk::Desk;
use super::phase::Phase;
use super::preflight::{self, Check, Verdict};
use super::record::{Record, RecordStore, Totals};
use super::standing::Standing;
use super::tuning::{InForce, Tuning};
use super::watch;
use crate::config::{Config, OnExistingData};
use crate::copy::{Pace, prepare};
use crate::exit::{Code, Exit};
use crate::http::control::Control;
use crate::http::server::Server;
use crate::mongo::{Deployment, Error, PoolOptions, ServerFacts, Side};
use crate::source::catalog;
use crate::state::Audit;
use crate::state::{LockError, StateLock};
use crate::status::{self, StatusBoard, WallTime};
use crate::stop::Stop;
use crate::target::definitions::Definer;
use crate::target::inflight;
use crate::target::lease::{self, Owner, Taken};
use crate::target::writers::Writers;

/// How long a server may stay away at start before the program gives up with 69.
const START_SELECTION: Duration = Duration::from_secs(10);
/// Connections for questions and definitions.
const CONTROL_CONNECTIONS: u32 = 8;

/// What is held while the daemon runs.
#[derive(Debug)]
pub struct Held {
    target: Deployment,
    owner: Owner,
    generation: u64,
    stop: Stop,
    tasks: JoinSet<Result<(), Exit>>,
    _lock: StateLock,
}

impl Held {
    /// Ends the tasks that run beside the work, and gives the lease back if the work ended in order.
    ///
    /// # Errors
    /// The lease had been lost.
    pub async fn release(mut self, in_order: bool) -> Result<(), Exit> {
        self.stop.request();
        let mut outcome = Ok(());
        while let Some(ended) = self.tasks.join_next().await {
            match ended {
                Ok(result) => outcome = outcome.and(result),
                Err(panic) => tracing::error!("internal error: {panic}"),
            }
        }
        // After a failure writes may still be under way: then the lease is left to expire.
        if outcome.is_ok() && in_order {
            let release = lease::release(&self.target, &self.owner, self.generation);
            if let Err(error) = release.await {
                tracing::info!("the lease is left to expire: {error}");
            }
        }
        outcome
    }
}

/// Starts the daemon.
///
/// # Errors
/// [`Interrupted`]: refused, with nothing written.
pub async fn start(
    config: Config,
    board: StatusBoard,
    control: Control,
    stop: &Stop,
) -> Result<(Context, Held), Interrupted> {
    let directory = config.state.directory.clone();
    let lock = lock(&config)?;
    let server = bind(&config).await?;
    let mut tasks = JoinSet::new();
    {
        let (board, stop) = (board.clone(), stop.clone());
        tasks.spawn(async move {
            server.serve(board, control, stop).await;
            Ok(())
        });
    }
    let source = connect(&config, Side::Source, "snapsync", config_connections(&config)).await?;
    let asking = connect(&config, Side::Target, "snapsync control", CONTROL_CONNECTIONS).await?;
    let (source_facts, target_facts) =
        reading(stop, pass_checks(&source, &asking, &config)).await?;
    show_deployments(&board, &source_facts, &target_facts);
    let records = Arc::new(open_record(&config)?);
    let record = records.get();
    let catalogue = Arc::new(copying::open_catalogue(&directory)?);
    let owner = owner(&record.instance);
    let looking = refuse_early(&config, &source, &asking, &source_facts, &record, &owner);
    reading(stop, looking).await?;
    let generation = take_lease(&asking, &owner).await?;
    let name = inflight::app_name(&record.instance, generation);
    let target = connect(&config, Side::Target, &name, config_connections(&config)).await?;
    keep_lease(&asking, &owner, generation, &records, &mut tasks, stop);
    inflight::clear_earlier_runs(&asking, &record.instance, generation, stop).await?;
    let writers = Writers::new(target.clone(), config.copy_workers() * 2);
    let context = Context {
        definer: Definer::new(target.clone(), target_facts.version, name),
        writers,
        source_version: source_facts.version,
        standing: Standing::new(board.clone()),
        pace: Arc::new(Pace::new(config.copy.max_bytes_per_second.unwrap_or(0))),
        settled: Arc::default(),
        desk: Desk::default(),
        tuning: InForce::new(Tuning::from(&config)),
        config: Arc::new(config),
        source,
        target,
        records,
        catalogue,
        board,
    };
    note(&directory, "started", &context)?;
    watch_over(&context, &asking, &mut tasks, stop);
    let held = Held { target: asking, owner, generation, stop: stop.clone(), tasks, _lock: lock };
    Ok((context, held))
}

/// Carries out what only reads, and gives it up when asked to stop.
async fn reading<T>(
    stop: &Stop,
    question: impl Future<Output = Result<T, Exit>>,
) -> Result<T, Interrupted> {
    tokio::select! {
        () = stop.requested() => Err(Interrupted::Stop),
        result = question => Ok(result?),
    }
}

fn lock(config: &Config) -> Result<StateLock, Exit> {
    let directory = &config.state.directory;
    crate::durable::create_dir_all_durable(directory)
        .map_err(|error| Exit::new(Code::Disk, error.to_string()))?;
    StateLock::acquire(directory).map_err(|error| {
        let held = matches!(error, LockError::InUse { .. });
        let code = if held { Code::Held } else { Code::Disk };
        Exit::new(code, error.to_string())
    })
}

async fn bind(config: &Config) -> Result<Server, Exit> {
    let failed = |error: crate::http::server::HttpError| Exit::new(Code::Config, error.to_string());
    let listen = config.control.listen.map_or(String::new(), |address| address.to_string());
    let token = config.control.token.as_ref().map(|token| SecretString::from(token.expose()));
    Server::new()
        .with_tcp(&listen, token)
        .await
        .and_then(|server| server.with_socket(&config.control.socket))
        .map_err(failed)
}

fn config_connections(config: &Config) -> u32 {
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

async fn pass_checks(
    source: &Deployment,
    target: &Deployment,
    config: &Config,
) -> Result<(ServerFacts, ServerFacts), Exit> {
    let (checks, source_facts, target_facts) =
        preflight::check(source, target, config).await.map_err(|error| Exit::at_start(&error))?;
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

fn show_deployments(board: &StatusBoard, source: &ServerFacts, target: &ServerFacts) {
    let shown = |facts: &ServerFacts| status::Deployment {
        hosts: facts.hello.hosts(),
        replica_set: facts.hello.replica_set().map(str::to_owned),
        version: Some(facts.version.to_string()),
    };
    board.update(|status| {
        status.source = shown(source);
        status.target = shown(target);
    });
}

fn open_record(config: &Config) -> Result<RecordStore, Exit> {
    let selection = config.sync.selection.fingerprint();
    let renames = config.sync.selection.rename_fingerprint();
    let fresh = || Record {
        instance: bson::Uuid::new().to_string(),
        phase: Phase::Copying,
        since_ms: WallTime::now().as_ms(),
        resume: None,
        intent: None,
        selection: selection.clone(),
        renames: renames.clone(),
        totals: Totals::default(),
    };
    let records = RecordStore::open(&config.state.directory, fresh)?;
    let record = records.get();
    // Nothing has been written for another selection; otherwise the change is taken over when the replay goes on.
    if record.resume.is_none() {
        records.change(|record| {
            record.selection = selection;
            record.renames = renames;
        })?;
    }
    Ok(records)
}

fn owner(instance: &str) -> Owner {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let description = format!("snapsync on {}, process {}", host.trim(), std::process::id());
    Owner { instance: instance.to_owned(), description }
}

/// Refusals that need no lease to be seen, so that nothing at all has been written when they are made.
async fn refuse_early(
    config: &Config,
    source: &Deployment,
    target: &Deployment,
    source_facts: &ServerFacts,
    record: &Record,
    owner: &Owner,
) -> Result<(), Exit> {
    let at_start = |error: Error| Exit::at_start(&error);
    if let Some(by) = lease::held_by_another(target, owner).await.map_err(at_start)? {
        return Err(held(&by));
    }
    let fresh = record.resume.is_none();
    if !fresh || config.target.on_existing_data != OnExistingData::Refuse {
        return Ok(());
    }
    let selection = &config.sync.selection;
    let catalogue =
        catalog::read(source, source_facts.version, selection).await.map_err(at_start)?;
    let collections = catalogue.collections.values().map(|found| found.target.clone());
    let views = catalogue.views.values().map(|view| view.target.clone());
    let mapped = collections.chain(views).collect();
    let existing = prepare::existing(target, selection, &mapped).await.map_err(at_start)?;
    if existing.is_empty() { Ok(()) } else { Err(copying::existing_data(&existing)) }
}

fn held(by: &str) -> Exit {
    let text = format!("the lease on the target is held by {by}: only one daemon may write there");
    Exit::new(Code::Held, text)
}

async fn take_lease(target: &Deployment, owner: &Owner) -> Result<u64, Exit> {
    match lease::take(target, owner).await {
        Ok(Taken::Ours { generation }) => Ok(generation),
        Ok(Taken::Held { by }) => Err(held(&by)),
        Err(error) => Err(Exit::at_start(&error)),
    }
}

fn note(directory: &std::path::Path, event: &str, context: &Context) -> Result<(), Exit> {
    let audit = Audit::open(directory)?;
    let phase = context.records.get().phase.state().to_string();
    let detail = serde_json::json!({ "version": env!("CARGO_PKG_VERSION"), "state": phase });
    Ok(audit.append(event, None, detail)?)
}

/// Keeps renewing the lease, from now on: clearing up after an earlier run may take longer than it lasts.
fn keep_lease(
    asking: &Deployment,
    owner: &Owner,
    generation: u64,
    records: &Arc<RecordStore>,
    tasks: &mut JoinSet<Result<(), Exit>>,
    stop: &Stop,
) {
    let (records, everything) = (records.clone(), stop.clone());
    let lease = watch::lease(asking.clone(), owner.clone(), generation, records, stop.clone());
    tasks.spawn(async move {
        let kept = lease.await;
        // Whoever has lost the lease must not write any more.
        everything.request();
        kept
    });
}

/// Begins what else runs beside the work.
fn watch_over(
    context: &Context,
    asking: &Deployment,
    tasks: &mut JoinSet<Result<(), Exit>>,
    stop: &Stop,
) {
    let (standing, board) = (context.standing.clone(), context.board.clone());
    let source = watch::source(context.source.clone(), standing, board, stop.clone());
    tasks.spawn(async move {
        source.await;
        Ok(())
    });
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
}
