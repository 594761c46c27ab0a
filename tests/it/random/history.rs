//! Random histories, followed by a daemon that is killed, stopped and started again at random, and compared whenever
//! the source is quiet.

use std::time::{Duration, Instant};

use super::draw::Draw;
use super::seed;
use super::writer::Writer;
use crate::harness::{Daemon, DaemonOptions, Pair, ReplicaSet, assert_equal, quiesce};
use crate::scenario::{settle, while_stopped};

/// How long the test goes on by itself; `SOAK_SECONDS` says otherwise.
const SECONDS: u64 = 30;

/// The lease lasts longer than this, on a slow machine too.
const STOPPED_AT_MOST: Duration = Duration::from_secs(10);

const WINDOWS: [&str; 4] = ["10ms", "200ms", "1s", "5s"];

/// Says which seed it was, if the history does not arrive.
struct Naming(u64);

impl Drop for Naming {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("repeat with SNAPSYNC_SEED={}", self.0);
        }
    }
}

async fn meddle(daemon: &mut Daemon, chance: &mut Draw, writer: &mut Writer) {
    match chance.random.below(10) {
        0..3 => {
            daemon.kill9();
            daemon.restart();
        }
        3 => {
            daemon.terminate().await;
            let window = WINDOWS[chance.random.below(4) as usize];
            daemon.configure(&format!("[sync]\nwindow = \"{window}\""));
            daemon.restart();
        }
        4..7 => {
            while_stopped(daemon, async {
                let began = Instant::now();
                for _ in 0..40 {
                    if began.elapsed() < STOPPED_AT_MOST {
                        writer.operation().await;
                    }
                }
            })
            .await;
        }
        _ => {}
    }
}

async fn history(seed: u64, source: &ReplicaSet, target: &ReplicaSet, daemon: &mut Daemon) {
    let _naming = Naming(seed);
    let mut writer = Writer::new(source.client(), seed).await;
    let mut chance = Draw::new(!seed);
    for _ in 0..4 {
        for _ in 0..20 + chance.random.below(40) {
            writer.operation().await;
        }
        meddle(daemon, &mut chance, &mut writer).await;
    }
    settle(source).await;
    quiesce(daemon, source).await;
    assert_equal(source, target).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_histories_arrive() {
    let seconds = std::env::var("SOAK_SECONDS").ok().and_then(|text| text.parse().ok());
    let (began, long) = (Instant::now(), Duration::from_secs(seconds.unwrap_or(SECONDS)));
    let first = seed();
    let Pair { source, target } = Pair::start().await;
    let mut daemon = Daemon::start(DaemonOptions::new(&source, &target));
    let mut count = 0;
    while count == 0 || began.elapsed() < long {
        history(first + count, &source, &target, &mut daemon).await;
        count += 1;
    }
    eprintln!("{count} histories, from seed {first} on");
}
