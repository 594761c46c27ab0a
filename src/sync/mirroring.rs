//! Keeping the mirror on the target: the record every few seconds, the catalogue when it has changed. What a mirroring
//! holds is what was durable here when it began, so it never runs ahead of the state directory.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};

use super::divergence::desk::Desk;
use super::phase::Phase;
use super::record::RecordStore;
use super::{cutover, ownership};
use crate::exit::{Code, Exit};
use crate::mongo::Error;
use crate::position::Cut;
use crate::retry::Outage;
use crate::state::catalogue::CatalogueStore;
use crate::stop::Stop;
use crate::target::deadline::Deadline;
use crate::target::lease::mirror::{self, CatalogueReference};
use crate::target::lease::{Lease, Renewed};

/// How often.
const MIRROR_EVERY: Duration = Duration::from_secs(5);
/// How long a cut is waited for; without one the last one stands until the next mirroring.
const CUT_WITHIN: Duration = Duration::from_secs(1);

/// Whether what is on the target has been seen to be no older than the state directory says: before that it must not be
/// written over. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Verified {
    seen: Arc<AtomicBool>,
    asserted: Arc<AtomicBool>,
}

impl Verified {
    /// It has been seen.
    pub fn set(&self) {
        self.seen.store(true, Ordering::Release);
    }

    /// A person says that the migration may go on.
    pub fn assert(&self) {
        self.asserted.store(true, Ordering::Release);
    }

    /// Whether a person has said so since the start.
    #[must_use]
    pub fn is_asserted(&self) -> bool {
        self.asserted.load(Ordering::Acquire)
    }

    fn get(&self) -> bool {
        self.seen.load(Ordering::Acquire)
    }
}

/// Mirrors the state directory.
#[derive(Debug)]
pub struct Mirroring {
    /// Under this lease.
    pub lease: Lease,
    /// What is certain of it.
    pub deadline: Deadline,
    /// The record.
    pub records: Arc<RecordStore>,
    /// The catalogue.
    pub catalogue: Arc<CatalogueStore>,
    /// Whether it may begin.
    pub verified: Verified,
    /// Where cuts are asked for: those who verify from elsewhere find the newest one in the mirror.
    pub desk: Desk,
    /// Asks for a mirroring before the next one is due.
    pub wanted: Arc<Notify>,
}

/// The catalogue that is on the target.
#[derive(Debug, Default)]
struct Stored {
    /// The local one that it is, by the count of its saves; `None` before the first one.
    saves: Option<u64>,
    versions: i64,
    reference: Option<CatalogueReference>,
    cut: Option<Cut>,
    /// A cut that was asked for and has not come yet.
    asked: Option<oneshot::Receiver<Cut>>,
}

impl Mirroring {
    /// Mirrors until stopped.
    ///
    /// # Errors
    /// The lease is lost, or the local disk.
    pub async fn run(self, stop: Stop) -> Result<(), Exit> {
        let mut outage = Outage::new(self.lease.target().side);
        let mut stored = Stored::default();
        loop {
            tokio::select! {
                slept = stop.sleep(MIRROR_EVERY) => if slept.is_err() { break },
                () = self.wanted.notified() => {}
            }
            // A halt may mean that what is on the target must stay as it is.
            let halted = matches!(self.records.get().phase, Phase::Halted { .. });
            if !self.verified.get() || halted || self.deadline.hold(&stop).await.is_err() {
                continue;
            }
            match self.mirror(&mut stored).await? {
                Ok(Renewed::Ours) => outage = Outage::new(self.lease.target().side),
                Ok(lost) => return Err(ownership::lost(&lost)),
                Err(error) => outage.report(&error),
            }
        }
        Ok(())
    }

    async fn mirror(&self, stored: &mut Stored) -> Result<Result<Renewed, Error>, Exit> {
        // In this order: a catalogue that is newer than the position does no harm, an older one would.
        if !cutover::is_decided(&self.records.get()) {
            let mut asked = stored.asked.take().unwrap_or_else(|| self.desk.ask());
            match tokio::time::timeout(CUT_WITHIN, &mut asked).await {
                Ok(Ok(cut)) => stored.cut = Some(cut),
                // The replay was interrupted: the next one is asked.
                Ok(Err(_)) => {}
                // In a long window it comes later.
                Err(_) => stored.asked = Some(asked),
            }
        }
        let record = self.records.get();
        let saves = self.catalogue.saves();
        if stored.saves != Some(saves) {
            let json = tokio::task::block_in_place(|| self.catalogue.stored())?;
            if let Some(json) = json {
                let version = stored.versions;
                match mirror::store_catalogue(&self.lease, version, &json).await {
                    Ok(reference) => stored.reference = Some(reference),
                    Err(error) => return Ok(Err(error)),
                }
                stored.versions += 1;
            }
        }
        let sequence = record.mirrored + 1;
        let json = serde_json::to_string(&record).map_err(|error| {
            Exit::new(Code::Internal, format!("the record cannot be mirrored: {error}"))
        })?;
        let catalogue = stored.reference.as_ref();
        let renewed =
            mirror::store_record(&self.lease, sequence, &json, catalogue, stored.cut.as_ref())
                .await;
        if !matches!(renewed, Ok(Renewed::Ours)) {
            return Ok(renewed);
        }
        self.records.change(|record| record.mirrored = sequence)?;
        if stored.saves != Some(saves) {
            stored.saves = Some(saves);
            if let Some(kept) = &stored.reference
                && let Err(error) = mirror::remove_replaced(&self.lease, kept).await
            {
                // The next one takes them along.
                tracing::debug!("{error}");
            }
        }
        Ok(renewed)
    }
}
