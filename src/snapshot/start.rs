//! From a configuration to a snapshot that may write: both sides are checked, the lease is taken, and what an earlier
//! one left is cleared away.

use std::sync::Arc;

use bson::doc;

use crate::config::{Config, METADATA_COLLECTION};
use crate::copy::Pace;
use crate::exit::{Code, Exit};
use crate::mongo::{Deployment, Error, ServerFacts, Side};
use crate::selection::{Claim, TargetSet, unstaged};
use crate::status::StatusBoard;
use crate::stop::Stop;
use crate::sync::context::{Context, Interrupted};
use crate::sync::record::RecordStore;
use crate::sync::standing::Standing;
use crate::sync::startup::{self, CONTROL_CONNECTIONS, Tasks};
use crate::sync::tuning::{InForce, Tuning};
use crate::sync::{copying, ownership, preflight, recovery};
use crate::target::definitions::Definer;
use crate::target::inflight;
use crate::target::lease::Lease;
use crate::target::lease::taking;
use crate::target::writers::Writers;

/// What both sides said of themselves.
#[derive(Debug)]
pub(super) struct Sides {
    pub(super) source: ServerFacts,
    pub(super) target: ServerFacts,
}

/// What is held while a snapshot is made.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) lease: Lease,
    pub(super) tasks: Tasks,
    /// Ends the keeping of the lease.
    pub(super) keeping: Stop,
}

/// Both sides, checked. Nothing is written by this.
#[derive(Debug)]
pub(super) struct Connected {
    pub(super) source: Deployment,
    /// The target, for questions and for the lease.
    pub(super) asking: Deployment,
    pub(super) sides: Sides,
}

/// Connects to both sides and checks them.
pub(super) async fn connect(config: &Config) -> Result<Connected, Exit> {
    let connections = startup::config_connections(config);
    let source = startup::connect(config, Side::Source, "snapsync", connections).await?;
    let asking =
        startup::connect(config, Side::Target, taking::APP_NAME, CONTROL_CONNECTIONS).await?;
    let (theirs, ours) = startup::pass_checks(&source, &asking, config, false).await?;
    let sides = Sides { source: theirs, target: ours };
    refuse_itself(config, &sides)?;
    Ok(Connected { source, asking, sides })
}

/// Checks, takes the lease, and clears up. `config` is of a snapshot, with a state directory of its own, which the
/// caller has locked.
pub(super) async fn start(
    config: Config,
    stop: &Stop,
) -> Result<(Context, Sides, Held), Interrupted> {
    let directory = config.state.directory.clone();
    let Connected { source, asking, sides } = startup::reading(stop, connect(&config)).await?;
    let connections = startup::config_connections(&config);
    let staged = config.sync.selection.staged();
    let record = recovery::fresh(RecordStore::find(&directory).map_err(Exit::from)?, &staged);
    let records = Arc::new(RecordStore::create(&directory, record)?);
    let owner = ownership::owner(&records.get().instance, &directory);
    let (grant, deadline) = ownership::take(&claims(&config), &asking, &owner).await?;
    let name = inflight::app_name(grant.lease.instance(), grant.lease.generation());
    let target = startup::connect(&config, Side::Target, &name, connections).await?;
    let count = config.copy_workers() * 2;
    let writers = Writers::start(target.clone(), deadline.clone(), count).await;
    let writers = writers.map_err(|error: Error| Exit::at_start(&error))?;
    let (mut tasks, keeping) = (Tasks::new(), Stop::new());
    let sessions = writers.ids().iter().copied().chain(grant.all_fenced()).collect();
    let fields = || doc! { "phase": "snapshot" };
    let (lease, until) = (grant.lease.clone(), deadline.clone());
    let kept = ownership::keep(lease, until, sessions, fields, keeping.clone());
    startup::stopping_all(&mut tasks, kept, stop);
    ownership::fence(&config, &grant, stop).await?;
    ownership::record_sessions(&grant, &writers, stop).await?;
    let widens = startup::widens(&sides.source, &sides.target);
    let version = sides.target.version;
    let board = StatusBoard::new(env!("CARGO_PKG_VERSION"));
    let mut config = config;
    config.sync.selection = staged;
    let context = Context {
        definer: Definer::new(target.clone(), version, widens, name, deadline),
        writers,
        standing: Standing::new(board.clone()),
        pace: Arc::new(Pace::new(config.copy.max_bytes_per_second.unwrap_or(0))),
        verify_pace: Arc::new(Pace::new(0)),
        settled: Arc::default(),
        desk: Default::default(),
        verified: Default::default(),
        cutover: Default::default(),
        noted: Default::default(),
        mirror_wanted: Arc::default(),
        tuning: InForce::new(Tuning::from(&config)),
        source,
        target,
        records,
        catalogue: Arc::new(copying::open_catalogue_anew(&directory)),
        board,
        config: Arc::new(config),
    };
    Ok((context, sides, Held { lease: grant.lease, tasks, keeping }))
}

/// What no other may write meanwhile: the collections, and the one that describes the snapshot. So of two snapshots
/// into one database there is one at a time, whatever is staged there.
fn claims(config: &Config) -> TargetSet {
    let mut set = config.sync.selection.target_set();
    set.claims.push(Claim {
        database: config.snapshot.target_database.clone(),
        collection: METADATA_COLLECTION.to_owned(),
        except: Vec::new(),
    });
    set
}

/// A database cannot take its own place, however the two URIs are written.
fn refuse_itself(config: &Config, sides: &Sides) -> Result<(), Exit> {
    let wanted = &config.snapshot;
    let is_itself = wanted.source_database == wanted.target_database
        && preflight::are_one(&sides.source, &sides.target);
    if is_itself {
        let text = format!(
            "source and target are the database {} of the same deployment; set snapshot.target_database to another one",
            wanted.source_database
        );
        return Err(Exit::new(Code::Config, text));
    }
    Ok(())
}

/// Drops whatever is staged in the target database: the lease for that database is ours, so all of it is.
pub(super) async fn sweep(context: &Context, stop: &Stop) -> Result<(), Interrupted> {
    let database = &context.config.snapshot.target_database;
    let mut count = 0;
    for entry in context.definer.list(database, stop).await? {
        let name = &entry.namespace;
        if unstaged(&name.collection).is_none() {
            continue;
        }
        count += 1;
        match (entry.kind.as_str(), entry.uuid) {
            ("view", _) => context.definer.drop_view(name, stop).await?,
            ("timeseries", _) => context.definer.drop_time_series(name, stop).await?,
            (_, Some(uuid)) => context.definer.drop_collection(name, uuid, stop).await?,
            (_, None) => {}
        }
    }
    if count > 0 {
        tracing::info!("dropped {count} collections that a snapshot had left behind");
    }
    Ok(())
}
