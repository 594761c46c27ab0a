//! Being the one writer: taking the lease, fencing off whoever held it before, keeping it.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant, UNIX_EPOCH};

use bson::{Document, Uuid};

use super::context::Interrupted;
use crate::config::Config;
use crate::exit::{Code, Exit};
use crate::mongo::{Deployment, Error, ForeignSessions};
use crate::retry::{Backoff, Outage, until_reached};
use crate::selection::TargetSet;
use crate::stop::Stop;
use crate::target::deadline::{Deadline, Moment};
use crate::target::inflight;
use crate::target::lease::taking::{self, Grant, Holder, Taken};
use crate::target::lease::{self, Lease, Owner, Renewed};
use crate::target::writers::Writers;

/// How soon a renewal that failed is tried again.
const RENEW_AGAIN: Duration = Duration::from_secs(1);
const WRITE_CONFLICT: i32 = 112;
/// How long a target that was reached just now may stay away while the lease is taken.
const TAKE_WITHIN: Duration = Duration::from_secs(10);
/// How often sessions are kept alive: several times within the shortest time-out that servers are run with.
const REFRESH_EVERY: Duration = Duration::from_secs(5 * 60);

/// Who this process is.
#[must_use]
pub fn owner(instance: &str, directory: &Path) -> Owner {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim();
    let description = format!("snapsync on {host}, process {}", std::process::id());
    // A copy of the directory has another inode, or got a free one later; one on another machine has another host.
    let path = directory.canonicalize().unwrap_or_else(|_| directory.to_owned());
    let metadata = path.metadata().ok();
    let inode = metadata.as_ref().map_or(0, MetadataExt::ino);
    let made = metadata.and_then(|metadata| metadata.created().ok());
    let made = made.and_then(|made| made.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    let home = format!("{host} {inode} {} {}", made.as_nanos(), path.display());
    Owner { instance: instance.to_owned(), home, description }
}

/// The refusal of a target that somebody else writes to.
#[must_use]
pub fn held(holder: &Holder) -> Exit {
    let Holder { owner, overlap, .. } = holder;
    let text = format!(
        "the lease on the target is held by {owner} for {overlap}: only one daemon may write there"
    );
    Exit::new(Code::Held, text)
}

/// The end of a daemon that may not write any more.
#[must_use]
pub fn lost(renewed: &Renewed) -> Exit {
    let text = match renewed {
        Renewed::Lost { to } => {
            format!("the lease on the target was taken by {to}; nothing more is written")
        }
        // What to do about it is said at the next start.
        Renewed::SetBack | Renewed::Ours => {
            let text = "the target was set back to an earlier state; nothing more is written";
            return Exit::new(Code::Failed, text);
        }
    };
    Exit::new(Code::Held, text)
}

/// Whether the same may succeed when it is tried again: somebody else took a lease at the same moment, or the answer
/// was lost.
fn may_pass(error: &Error) -> bool {
    error.is_unreachable() || error.code() == Some(WRITE_CONFLICT)
}

/// Takes the lease for this set.
///
/// # Errors
/// Somebody else holds it, or the server was not reached.
pub async fn take(
    set: &TargetSet,
    target: &Deployment,
    owner: &Owner,
) -> Result<(Grant, Deadline), Exit> {
    let mut backoff = Backoff::reconnect();
    let began = Instant::now();
    loop {
        let asked = Moment::now();
        match taking::take(target, owner, set).await {
            Ok(Taken::Ours(grant)) => return Ok((*grant, Deadline::granted(asked))),
            Ok(Taken::Held(holder)) => return Err(held(&holder)),
            // Asked again after a lost answer, the lease is found to be held from this very place.
            Err(error) if may_pass(&error) && began.elapsed() < TAKE_WITHIN => {
                tokio::time::sleep(backoff.next_delay()).await;
            }
            Err(error) => return Err(Exit::at_start(&error)),
        }
    }
}

/// Makes sure that nothing of earlier holders lands any more: their sessions are fenced off, what they have in flight
/// is killed and waited out.
///
/// # Errors
/// [`Interrupted`].
pub async fn fence(config: &Config, grant: &Grant, stop: &Stop) -> Result<(), Interrupted> {
    let target = grant.lease.target();
    let clear = || {
        let (instance, generation) = (grant.lease.instance(), grant.lease.generation());
        inflight::clear_earlier_runs(target, instance, generation, &grant.dispossessed, stop)
    };
    if !grant.to_fence.is_empty() {
        tracing::info!(
            sessions = grant.to_fence.len(),
            "fencing off an earlier holder of the lease"
        );
        let directory = &config.state.directory;
        let fencing = until_reached(target.side, stop, || async {
            let sessions = ForeignSessions::open(target, &config.target.uri, directory).await?;
            grant.fence(&sessions).await
        });
        // Side by side: a session is fenced off once the write that is under way in it has ended.
        let both = async { tokio::try_join!(fencing, clear()) };
        tokio::select! {
            () = stop.requested() => return Err(Interrupted::Stop),
            done = both => drop(done?),
        }
    }
    Ok(clear().await?)
}

/// Notes in the lease the sessions that will be written in.
///
/// # Errors
/// [`Interrupted`]; in the end of a lease that is lost.
pub async fn record_sessions(
    grant: &Grant,
    writers: &Writers,
    stop: &Stop,
) -> Result<(), Interrupted> {
    let fenced = grant.all_fenced();
    let record = || grant.lease.record_sessions(writers.ids(), &fenced);
    match until_reached(writers.deployment().side, stop, record).await? {
        Renewed::Ours => Ok(()),
        other => Err(Interrupted::Exit(lost(&other))),
    }
}

/// Keeps the lease until stopped, with `fields` in its document, and `sessions` alive on the server; ends with an error
/// as soon as somebody else has it.
///
/// # Errors
/// The lease is lost: nothing may be written any more.
pub async fn keep(
    lease: Lease,
    deadline: Deadline,
    sessions: Vec<Uuid>,
    fields: impl Fn() -> Document,
    stop: Stop,
) -> Result<(), Exit> {
    let mut outage = Outage::new(lease.target().side);
    let mut wait = lease::RENEW_EVERY;
    let mut refreshed = Instant::now();
    loop {
        tokio::select! {
            slept = stop.sleep(wait) => if slept.is_err() { return Ok(()) },
            () = deadline.wanted() => {}
        }
        let asked = Moment::now();
        match lease.renew(fields()).await {
            Ok(Renewed::Ours) => {
                deadline.renewed(asked);
                outage = Outage::new(lease.target().side);
                wait = lease::RENEW_EVERY;
            }
            Ok(other) => return Err(lost(&other)),
            Err(error) => {
                outage.report(&error);
                wait = RENEW_AGAIN;
                continue;
            }
        }
        if refreshed.elapsed() >= REFRESH_EVERY {
            match lease::refresh_sessions(lease.target(), &sessions).await {
                Ok(()) => refreshed = Instant::now(),
                Err(error) => outage.report(&error),
            }
        }
    }
}
