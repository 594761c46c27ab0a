//! The memory that a copy may take, shared by all its readers.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::retry::Stopped;
use crate::stop::Stop;

/// What a batch takes while it is on its way, as a multiple of its own size: the reply and the batch out of it, the
/// command and its repeatable copy, and what the driver makes of that.
const COPIES: u64 = 8;
/// The copy takes the memory divided by this; the oplog beside it, its spool, everything else, and what the allocator
/// keeps have the rest. More would not make it faster.
const SHARE: u64 = 4;
/// Batches of one reader at the same time: one read, the others written.
pub(super) const BATCHES: usize = 3;
/// Bytes of documents in one batch. Larger ones cost no less processor time; and a command may hold 16 MiB, the reply
/// to a `find` a little less.
const BATCH_BYTES_MIN: u64 = 64 * 1024;
const BATCH_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// What is counted.
const UNIT: u64 = 1024;

/// Memory still free. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Budget {
    free: Arc<Semaphore>,
    units: u32,
}

impl Budget {
    /// For a process that may take `memory_bytes_max` in all.
    pub(super) fn new(memory_bytes_max: u64) -> Self {
        let units = u32::try_from(memory_bytes_max / SHARE / UNIT).unwrap_or(u32::MAX).max(1);
        let free = Arc::new(Semaphore::new(usize::try_from(units).unwrap_or(usize::MAX)));
        Self { free, units }
    }

    /// Bytes of documents in one batch, so that so many readers never wait for each other.
    pub(super) fn batch_bytes(&self, readers: usize) -> u64 {
        let batches = COPIES * u64::try_from(readers.max(1) * BATCHES).unwrap_or(u64::MAX);
        // Whole units, so that what is reserved is no more than what was shared out.
        let even = u64::from(self.units) / batches * UNIT;
        even.clamp(BATCH_BYTES_MIN, BATCH_BYTES_MAX)
    }

    /// Waits until there is room for a batch of so many bytes; for all there is, if it is larger than that.
    ///
    /// Whoever waits here must hold nothing of it already: two who wait for each other would wait for ever.
    pub(super) async fn reserve<E>(
        &self,
        batch_bytes: u64,
        stop: &Stop,
    ) -> Result<OwnedSemaphorePermit, Stopped<E>> {
        let wanted = u32::try_from(batch_bytes.saturating_mul(COPIES).div_ceil(UNIT));
        let wanted = wanted.unwrap_or(u32::MAX).min(self.units);
        tokio::select! {
            () = stop.requested() => Err(Stopped::Stop),
            // Never closed; were it, nothing could be copied any more.
            permit = self.free.clone().acquire_many_owned(wanted) => {
                permit.map_err(|_| Stopped::Stop)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    #[tokio::test]
    async fn batches_of_the_usual_size_never_wait() {
        for (memory, readers) in [(64 * MIB, 4), (256 * MIB, 4), (256 * MIB, 16), (8192 * MIB, 1)] {
            let budget = Budget::new(memory);
            let mut held = Vec::new();
            for _ in 0..readers * BATCHES {
                let batch = budget.batch_bytes(readers);
                let stop = Stop::new();
                let mut reserve = std::pin::pin!(budget.reserve::<()>(batch, &stop));
                let at_once = futures_util::poll!(&mut reserve);
                let std::task::Poll::Ready(Ok(permit)) = at_once else { panic!("has to wait") };
                held.push(permit);
            }
        }
    }

    #[tokio::test]
    async fn a_batch_larger_than_everything_goes_alone() {
        let budget = Budget::new(256 * MIB);
        let all = budget.reserve::<()>(1024 * MIB, &Stop::new()).await.unwrap();
        assert_eq!(budget.free.available_permits(), 0);
        let stop = Stop::new();
        let waiting = tokio::spawn({
            let (budget, stop) = (budget.clone(), stop.clone());
            async move { budget.reserve::<()>(1, &stop).await.is_err() }
        });
        stop.request();
        assert!(waiting.await.unwrap(), "a stop ends the waiting");
        drop(all);
        drop(budget.reserve::<()>(MIB, &Stop::new()).await.unwrap());
    }
}
