//! Forgetting a migration: on the target first, then here, so that it can be done again if it is cut short. What was
//! copied stays, and the record of what was done.

use std::collections::BTreeSet;
use std::path::Path;

use super::ownership;
use super::record::{self, RecordStore};
use super::{context::Interrupted, copying, cutover, resync, startup, track};
use crate::config::Config;
use crate::durable::{DiskError, remove_if_there, sync_dir};
use crate::exit::{Code, Exit};
use crate::mongo::{Deployment, Error, Side};
use crate::state::{Audit, StateError};
use crate::stop::Stop;
use crate::target::lease::taking::{self, Taken};
use crate::target::lease::{held_from, mirror};

const CONNECTIONS: u32 = 4;

/// What was forgotten.
#[derive(Debug, Clone)]
pub struct Forgotten {
    /// Identities of the migrations: one, as a rule.
    pub migrations: Vec<String>,
    /// Where replay stood, if it had begun.
    pub position: Option<String>,
}

/// Forgets the migration of the state directory.
///
/// # Errors
/// A daemon runs there (75), or a copy of it does elsewhere; the target is not reached (69): nothing is changed then.
/// The disk.
pub async fn forget(config: &Config) -> Result<Forgotten, Exit> {
    let directory = &config.state.directory;
    let _lock = startup::lock(config)?;
    let record = match RecordStore::find(directory) {
        Ok(record) => record,
        // To forget it is one way to mend it.
        Err(StateError::Damaged { .. } | StateError::Shape { .. } | StateError::Format { .. }) => {
            None
        }
        Err(error) => return Err(error.into()),
    };
    if record.is_some() {
        // Nobody else knows that it was blocked.
        cutover::lift_left_over(config).await?;
    }
    let target = startup::connect(config, Side::Target, taking::APP_NAME, CONNECTIONS).await?;
    let at_start = |error: Error| Exit::at_start(&error);
    let home = ownership::owner("", directory).home;
    let mut migrations: BTreeSet<String> =
        held_from(&target, &home).await.map_err(at_start)?.into_iter().collect();
    migrations.extend(record.iter().map(|record| record.instance.clone()));
    for instance in &migrations {
        on_target(config, &target, instance).await?;
    }
    let forgotten = Forgotten {
        migrations: migrations.into_iter().collect(),
        position: record
            .and_then(|record| record.resume)
            .map(|resume| resume.applied.ts.to_string()),
    };
    let detail = serde_json::json!({
        "migrations": forgotten.migrations,
        "position": forgotten.position,
    });
    let user = std::env::var("SUDO_USER").or_else(|_| std::env::var("USER")).ok();
    Audit::open(directory)?.append("reset", user.as_deref(), detail)?;
    here(directory).map_err(StateError::from)?;
    Ok(forgotten)
}

/// Ends what the migration may still have in flight, and removes its lease and its mirror.
async fn on_target(config: &Config, target: &Deployment, instance: &str) -> Result<(), Exit> {
    let at_start = |error: Error| Exit::at_start(&error);
    let owner = ownership::owner(instance, &config.state.directory);
    let set = config.sync.selection.target_set();
    match taking::take(target, &owner, &set).await.map_err(at_start)? {
        Taken::Ours(grant) => {
            // There is nobody to ask for a stop.
            match ownership::fence(config, &grant, &Stop::new()).await {
                Ok(()) => {}
                Err(Interrupted::Exit(exit)) => return Err(exit),
                Err(other) => {
                    let text = format!("an earlier run could not be fenced off: {other:?}");
                    return Err(Exit::new(Code::Failed, text));
                }
            }
        }
        Taken::Held(holder) if holder.is_copy => return Err(ownership::held(&holder)),
        // Another migration has taken it over, and has fenced this one off.
        Taken::Held(_) => {}
    }
    mirror::forget(target, instance).await.map_err(at_start)
}

/// Removes the files. The position goes first: without it nothing of the rest means anything.
fn here(directory: &Path) -> Result<(), DiskError> {
    remove_if_there(&directory.join(record::FILE))?;
    sync_dir(directory)?;
    remove_if_there(&directory.join(copying::CATALOGUE_FILE))?;
    remove_if_there(&directory.join(copying::PROGRESS_FILE))?;
    for report in cutover::REPORT_FILES {
        remove_if_there(&directory.join(report))?;
    }
    for folder in
        [copying::SPOOL_FOLDER, resync::FOLDER, track::TRANSACTIONS_FOLDER, cutover::FOLDER]
    {
        let folder = directory.join(folder);
        match std::fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(DiskError::at("remove", &folder)(error));
            }
            _ => {}
        }
    }
    sync_dir(directory)
}
