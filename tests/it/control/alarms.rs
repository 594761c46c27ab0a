//! Alarms before it is too late, and the numbers that go with them.

use std::time::Duration;

use serde_json::Value;

use crate::harness::{
    Daemon, DaemonOptions, Pair, Workload, WorkloadOptions, assert_equal, quiesce,
};

/// The alarm is for more than half a minute behind; the rest is for a busy machine.
const LATER: Duration = Duration::from_secs(240);

/// The value of a metric without labels.
async fn metric(daemon: &Daemon, name: &str) -> Option<f64> {
    let page = daemon.get("/metrics").await.ok()?;
    let start = format!("{name} ");
    page.body.lines().find_map(|line| line.strip_prefix(&start))?.parse().ok()
}

/// While the target stands still, what has not been applied comes ever nearer to the end of a source's oplog that has
/// only just begun.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_source_s_oplog_runs_out() {
    let mut pair = Pair::start().await;
    let mut daemon = Daemon::start(DaemonOptions::new(&pair.source, &pair.target));
    daemon.wait_state("live").await;
    pair.target.freeze();
    let workload = Workload::start(pair.source.client(), WorkloadOptions::default()).await;
    let warns = |status: &Value| {
        status["reason"].as_str().is_some_and(|reason| reason.contains("replSetResizeOplog"))
    };
    daemon.wait_status("the alarm", LATER, warns).await;
    daemon.wait_log("the source's oplog will drop what is not read yet").await;
    let left = metric(&daemon, "snapsync_oplog_window_left_seconds").await.unwrap();
    let needed = metric(&daemon, "snapsync_oplog_window_needed_seconds").await.unwrap();
    assert!(needed > left && needed >= 30.0, "{needed} needed, {left} left");
    assert!(metric(&daemon, "snapsync_lag_seconds").await.unwrap() >= 30.0);
    // The lag has its own alarm, once, and no kill: nothing of the daemon's is wrong.
    assert_eq!(daemon.log_lines("more than live.max_lag allows").len(), 1);
    assert!(daemon.ended().is_none());

    pair.target.thaw();
    workload.stop().await;
    daemon.wait_status("no alarm", LATER, |status| status["reason"].is_null()).await;
    daemon.wait_log("the source's oplog holds enough again").await;
    quiesce(&mut daemon, &pair.source).await;
    assert_equal(&pair.source, &pair.target).await;
    assert_eq!(metric(&daemon, "snapsync_delta_documents").await, Some(0.0));
}
