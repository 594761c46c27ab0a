//! What happens to the daemon and to the servers while a history goes on.

use std::time::{Duration, Instant};

use bson::doc;
use tokio::time::sleep;

use super::draw::Draw;
use super::history::Writers;
use super::stage::Stage;
use crate::harness::{Daemon, ReplicaSet, wait_for};
use crate::scenario::while_stopped;

/// The lease lasts longer than this, on a slow machine too.
const STOPPED_AT_MOST: Duration = Duration::from_secs(10);
/// Longer than a window takes, most of the time.
const KILLED_WITHIN_MS: u32 = 1200;
const SERVER_TIMEOUT: Duration = Duration::from_secs(60);

/// One more run of operations, and what happens meanwhile and after it.
pub(super) async fn meddle(
    stage: &mut Stage,
    chance: &mut Draw,
    writers: &mut Writers,
    operations: u64,
) {
    match chance.random.below(40) {
        0..12 => {
            let delays: Vec<u32> = (0..1 + chance.random.below(3))
                .map(|_| chance.random.below(KILLED_WITHIN_MS))
                .collect();
            tokio::join!(
                writers.operations(operations, None),
                kill_after(&mut stage.daemon, &delays)
            );
        }
        12..17 => {
            writers.operations(operations, None).await;
            stage.daemon.terminate().await;
            stage.resize(chance);
            stage.daemon.restart();
        }
        17..25 => {
            writers.operations(operations, None).await;
            let until = Instant::now() + STOPPED_AT_MOST;
            while_stopped(&mut stage.daemon, writers.operations(40, Some(until))).await;
        }
        25 => {
            writers.settle().await;
            step_down(&stage.pair.source).await;
            writers.operations(operations, None).await;
        }
        26 => {
            tokio::join!(writers.operations(operations, None), step_down(&stage.pair.target));
        }
        27 => {
            writers.operations(operations, None).await;
            stage.pair.target.kill9();
            stage.pair.target.restart().await;
        }
        _ => writers.operations(operations, None).await,
    }
}

/// Kills the daemon and starts it again, so many milliseconds after each other.
async fn kill_after(daemon: &mut Daemon, delays: &[u32]) {
    for delay in delays {
        sleep(Duration::from_millis((*delay).into())).await;
        daemon.kill9();
        daemon.restart();
    }
}

/// Returns when the set can be written to again.
async fn step_down(set: &ReplicaSet) {
    // Two of them go by before the server gives up waiting for other members.
    set.step_down(3).await;
    wait_for("a primary that takes writes", SERVER_TIMEOUT, || async {
        // In a database that is never followed.
        let command = doc! {"insert": "marks", "documents": [{}]};
        let written = set.client().database("admin").run_command(command).await;
        written.map(drop).map_err(|error| error.to_string())
    })
    .await;
}
