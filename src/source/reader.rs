//! The tail as a task: reads the oplog for as long as it is wanted, over every outage of the source, into a short
//! queue.

use std::time::{Duration, Instant};

use mongodb::raw_batch_cursor::RawBatch;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::tail::{Tail, TailError, check_held, last_optime, told_apart};
use crate::mongo::Deployment;
use crate::position::OpTime;
use crate::retry::{Backoff, Outage};
use crate::stop::Stop;

/// Fetches (up to 16 MiB each) that wait to be taken, at the most.
const QUEUE: usize = 2;

/// How long the source may end before the entry to read from, as it does for a moment after an election. Longer, and it
/// has lost that entry.
const AHEAD_MAX: Duration = Duration::from_secs(60);

/// What the tail delivers.
#[derive(Debug)]
pub enum Fetched {
    /// Entries in order. None in it: the reader has everything that was majority-committed when it was asked.
    Entries(RawBatch),
    /// The source's oplog no longer holds what comes next. Nothing follows.
    Lost(TailError),
}

/// A running tail.
#[derive(Debug)]
pub struct Reader {
    queue: mpsc::Receiver<Fetched>,
    task: JoinHandle<()>,
    stop: Stop,
}

impl Reader {
    /// Begins reading at `from`, inclusive: the first entry delivered is that one.
    #[must_use]
    pub fn start(source: Deployment, from: OpTime, stop: &Stop) -> Self {
        let (sender, queue) = mpsc::channel(QUEUE);
        let stop = stop.child();
        let task = tokio::spawn(read(source, from, sender, stop.clone()));
        Self { queue, task, stop }
    }

    /// The next fetch; `None` once the tail has ended.
    pub async fn next(&mut self) -> Option<Fetched> {
        self.queue.recv().await
    }

    /// The next fetch, if it is here already.
    pub fn try_next(&mut self) -> Option<Fetched> {
        self.queue.try_recv().ok()
    }

    /// Ends the tail and waits until its cursor is closed.
    pub async fn finish(mut self) {
        self.stop.request();
        self.queue.close();
        if let Err(panic) = (&mut self.task).await {
            tracing::error!("internal error: the tail failed: {panic}");
        }
    }
}

impl Drop for Reader {
    /// Nobody takes what comes: the task ends.
    fn drop(&mut self) {
        self.stop.request();
    }
}

async fn read(source: Deployment, mut last: OpTime, sender: mpsc::Sender<Fetched>, stop: Stop) {
    tokio::select! {
        () = stop.requested() => {}
        () = deliver(&source, &mut last, &sender, &stop) => {}
    }
}

async fn deliver(
    source: &Deployment,
    last: &mut OpTime,
    sender: &mpsc::Sender<Fetched>,
    stop: &Stop,
) {
    let mut backoff = Backoff::reconnect();
    let mut outage = Outage::new(source.side);
    let mut ahead_since = Instant::now();
    loop {
        // Begun anew after every failure, at the last entry delivered, which has to be there still.
        let error = match read_until_failure(source, last, sender, || {
            backoff = Backoff::reconnect();
            outage = Outage::new(source.side);
            ahead_since = Instant::now();
        })
        .await
        {
            Ok(()) => return,
            Err(error) => error,
        };
        match error {
            lost @ (TailError::Lost { wanted, .. } | TailError::NeverHeld { wanted }) => {
                let lost = told_apart(source, wanted, lost).await;
                // If nobody takes it any more, nobody wants to know.
                let _nobody = sender.send(Fetched::Lost(lost)).await;
                return;
            }
            TailError::Ahead { wanted } if ahead_since.elapsed() > AHEAD_MAX => {
                let lost = TailError::NeverHeld { wanted };
                let _nobody = sender.send(Fetched::Lost(lost)).await;
                return;
            }
            ahead @ TailError::Ahead { .. } => tracing::info!("{ahead}; waiting"),
            TailError::Call(error) => {
                ahead_since = Instant::now();
                outage.report(&error);
            }
        }
        if stop.sleep(backoff.next_delay()).await.is_err() {
            return;
        }
    }
}

async fn read_until_failure(
    source: &Deployment,
    last: &mut OpTime,
    sender: &mpsc::Sender<Fetched>,
    mut reached: impl FnMut(),
) -> Result<(), TailError> {
    check_held(source, *last).await?;
    let mut tail = Tail::open(source, *last).await?;
    loop {
        let batch = tail.next().await?;
        reached();
        if let Some(newest) = last_optime(&batch) {
            *last = newest;
        }
        if sender.send(Fetched::Entries(batch)).await.is_err() {
            return Ok(());
        }
    }
}
