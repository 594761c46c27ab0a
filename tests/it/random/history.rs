//! Random histories, followed by a daemon that is killed, stopped and started again at random, and compared whenever
//! the source is quiet. Several go on side by side, in databases of their own.

use std::time::{Duration, Instant};

use futures_util::future::join_all;

use super::draw::Draw;
use super::special::HIDDEN;
use super::writer::Writer;
use super::{number, seed};
use crate::harness::{Comparison, Daemon, DaemonOptions, Pair, quiesce};
use crate::scenario::{settle, while_stopped};

/// How long the test goes on by itself; `SOAK_SECONDS` says otherwise.
const SECONDS: u64 = 30;
/// How many histories go on side by side; `SOAK_LANES` says otherwise.
const LANES: u64 = 3;
/// How long the shortest beginning that fails is looked for. It is looked for from half the history on, so that what is
/// found by then is told.
const SHRINK_FOR: Duration = Duration::from_secs(900);
/// More operations than a history has.
const OPERATIONS_MAX: u64 = 400;

/// The lease lasts longer than this, on a slow machine too.
const STOPPED_AT_MOST: Duration = Duration::from_secs(10);

const WINDOWS: [&str; 4] = ["10ms", "200ms", "1s", "5s"];

/// What histories are played on.
struct Stage {
    pair: Pair,
    daemon: Daemon,
}

impl Stage {
    /// One of the two databases of every lane has another name on the target, and some collections are not selected.
    async fn start(lanes: usize) -> Self {
        let pair = Pair::start().await;
        let renames = (0..lanes).map(|n| format!("{{ from = \"two_{n}\", to = \"second_{n}\" }}"));
        let renames = renames.collect::<Vec<_>>().join(", ");
        let sync = format!("[sync]\nexclude = [\"*.{HIDDEN}\"]\nrename = [{renames}]");
        let options = DaemonOptions::new(&pair.source, &pair.target).toml(&sync);
        let daemon = Daemon::start(options.toml("[replay]\nworkers = 8"));
        Self { pair, daemon }
    }
}

/// Where a collection goes.
fn mapping(name: &str) -> Option<String> {
    let (database, collection) = name.split_once('.')?;
    let database = match database.strip_prefix("two_") {
        Some(lane) => format!("second_{lane}"),
        None => database.to_owned(),
    };
    (collection != HIDDEN).then(|| format!("{database}.{collection}"))
}

/// The writers of some histories, which go on at the same pace.
struct Writers {
    writers: Vec<Writer>,
    /// Operations that are left to each.
    left: u64,
}

impl Writers {
    async fn operations(&mut self, count: u64, until: Option<Instant>) {
        let count = count.min(self.left);
        self.left -= count;
        join_all(self.writers.iter_mut().map(async |writer| {
            for _ in 0..count {
                if until.is_none_or(|until| Instant::now() < until) {
                    writer.operation().await;
                }
            }
        }))
        .await;
    }
}

async fn meddle(daemon: &mut Daemon, chance: &mut Draw, writers: &mut Writers) {
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
            let until = Instant::now() + STOPPED_AT_MOST;
            while_stopped(daemon, writers.operations(40, Some(until))).await;
        }
        _ => {}
    }
}

/// Plays the histories of these seeds, `operations` of each at the most, and compares.
async fn play(seeds: &[u64], operations: u64, stage: &mut Stage) {
    let Pair { source, target } = &stage.pair;
    let new = |(lane, seed): (usize, &u64)| Writer::new(source.client(), *seed, lane);
    let writers = join_all(seeds.iter().enumerate().map(new)).await;
    let mut writers = Writers { writers, left: operations };
    let mut chance = Draw::new(!seeds[0]);
    for _ in 0..4 {
        writers.operations(u64::from(20 + chance.random.below(40)), None).await;
        meddle(&mut stage.daemon, &mut chance, &mut writers).await;
    }
    settle(source).await;
    quiesce(&mut stage.daemon, source).await;
    let compared = Comparison::new(source.client(), target.client()).mapping(mapping).run().await;
    compared.unwrap_or_else(|difference| panic!("source and target differ:\n{difference}"));
}

/// Whether the beginning of a history fails by itself, on servers of its own.
async fn fails(seed: u64, operations: u64) -> bool {
    let alone = async move { play(&[seed], operations, &mut Stage::start(1).await).await };
    tokio::spawn(alone).await.is_err()
}

/// Looks for the shortest beginning of one of these histories that fails by itself, and says how to repeat it.
async fn shrink(seeds: &[u64]) {
    let began = Instant::now();
    for seed in seeds.iter().take_while(|_| began.elapsed() < SHRINK_FOR) {
        if fails(*seed, OPERATIONS_MAX).await {
            let (mut passing, mut failing) = (0, OPERATIONS_MAX);
            while passing + 1 < failing && began.elapsed() < SHRINK_FOR {
                let middle = passing.midpoint(failing);
                if fails(*seed, middle).await {
                    failing = middle;
                } else {
                    passing = middle;
                }
            }
            eprintln!("repeat with SNAPSYNC_SEED={seed} SNAPSYNC_OPERATIONS={failing}");
            return;
        }
    }
    let lanes = seeds.len();
    eprintln!(
        "none of them was seen to fail by itself; repeat with SNAPSYNC_SEED={} SOAK_LANES={lanes}",
        seeds[0]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_histories_arrive() {
    let began = Instant::now();
    let long = Duration::from_secs(number("SOAK_SECONDS").unwrap_or(SECONDS));
    let operations = number("SNAPSYNC_OPERATIONS");
    let lanes = number("SOAK_LANES").unwrap_or(if operations.is_some() { 1 } else { LANES });
    let operations = operations.unwrap_or(OPERATIONS_MAX);
    let first = seed();
    let mut stage = Stage::start(usize::try_from(lanes).unwrap()).await;
    let mut count = 0;
    while count == 0 || began.elapsed() < long {
        let seeds: Vec<u64> = (first + count..).take(usize::try_from(lanes).unwrap()).collect();
        eprintln!("histories from SNAPSYNC_SEED={} on, {lanes} side by side", first + count);
        let playing = seeds.clone();
        let played = tokio::spawn(async move {
            play(&playing, operations, &mut stage).await;
            stage
        });
        stage = match played.await {
            Ok(stage) => stage,
            Err(error) => {
                shrink(&seeds).await;
                std::panic::resume_unwind(error.into_panic());
            }
        };
        count += lanes;
    }
    eprintln!("{count} histories, from seed {first} on");
}
