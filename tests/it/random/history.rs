//! Random histories, followed by a daemon that is killed, stopped and started again at random, and compared whenever
//! the source is quiet. Several go on side by side, in databases of their own, on a stage that is kept for many.

use std::any::Any;
use std::time::{Duration, Instant};

use futures_util::future::join_all;

use super::draw::Draw;
use super::meddling::meddle;
use super::stage::Stage;
use super::writer::{Turns, Writer};
use super::{number, seed};

/// How long the test goes on by itself; `SOAK_SECONDS` says otherwise.
const SECONDS: u64 = 20;
/// How many histories go on side by side; `SOAK_LANES` says otherwise.
const LANES: u64 = 6;
/// A stage is replaced after so many rounds, so that a failure that has to do with what was before can be repeated.
const ROUNDS_ON_A_STAGE: u64 = 40;
/// How long the shortest beginning that fails is looked for. It is looked for from half the history on, so that what is
/// found by then is told.
const SHRINK_FOR: Duration = Duration::from_secs(900);
/// More operations than a history has.
const OPERATIONS_MAX: u64 = 400;
/// Of a hundred rounds, how many begin with a copy; in the others the daemon goes on.
const COPIES_PERCENT: u32 = 25;
/// Of a hundred rounds, how many prepare transactions. In the others entries are applied by command, which waits for
/// every prepared transaction of the server, and lets nobody pass meanwhile.
const PREPARES_PERCENT: u32 = 30;

/// The writers of some histories, which go on at the same pace.
pub(super) struct Writers {
    writers: Vec<Writer>,
    /// Operations that are left to each.
    left: u64,
}

impl Writers {
    pub(super) async fn operations(&mut self, count: u64, until: Option<Instant>) {
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

    /// Ends what is open.
    pub(super) async fn settle(&mut self) {
        join_all(self.writers.iter_mut().map(Writer::settle)).await;
    }
}

/// Histories that are played together. Each comes from its own seed; what happens to the daemon from another, so that
/// it is the same for one of them alone.
#[derive(Debug, Clone)]
struct Round {
    seeds: Vec<u64>,
    meddling: u64,
    /// The most that each does.
    operations: u64,
}

impl Round {
    async fn play(&self, stage: &mut Stage) {
        let mut chance = Draw::new(!self.meddling);
        let copies = chance.chance(COPIES_PERCENT);
        let prepares = chance.chance(PREPARES_PERCENT);
        if copies {
            stage.clear().await;
        }
        let client = stage.source().client();
        let turns = Turns::default();
        let new =
            |(lane, seed): (usize, &u64)| Writer::new(client, *seed, lane, prepares, turns.clone());
        let writers = join_all(self.seeds.iter().enumerate().map(new)).await;
        let mut writers = Writers { writers, left: self.operations };
        for part in 0..4 {
            let operations = u64::from(20 + chance.random.below(40));
            if copies && part == 0 {
                writers.operations(operations, None).await;
                stage.copy(&mut chance);
            } else {
                meddle(stage, &mut chance, &mut writers, operations).await;
            }
        }
        writers.settle().await;
        stage.compare().await;
    }

    /// Whether one of them fails by itself, on a new stage.
    async fn fails(&self, seed: u64, operations: u64) -> bool {
        let alone = Self { seeds: vec![seed], meddling: self.meddling, operations };
        let play = async move { alone.play(&mut Stage::start(1).await).await };
        tokio::spawn(play).await.is_err()
    }

    /// Looks for the shortest beginning of one of these histories that fails by itself, and says how to repeat it:
    /// first of those that the failure names.
    async fn shrink(&self, failure: &str, first_on_the_stage: u64) {
        let began = Instant::now();
        let named = |lane: usize| {
            ["one", "two", "second"].iter().any(|name| failure.contains(&format!("{name}_{lane}.")))
        };
        let lanes = 0..self.seeds.len();
        let (mut order, rest): (Vec<_>, Vec<_>) = lanes.partition(|lane| named(*lane));
        order.extend(rest);
        for lane in order.into_iter().take_while(|_| began.elapsed() < SHRINK_FOR) {
            let seed = self.seeds[lane];
            if self.fails(seed, OPERATIONS_MAX).await {
                let (mut passing, mut failing) = (0, OPERATIONS_MAX);
                while passing + 1 < failing && began.elapsed() < SHRINK_FOR {
                    let middle = passing.midpoint(failing);
                    if self.fails(seed, middle).await {
                        failing = middle;
                    } else {
                        passing = middle;
                    }
                }
                let meddling = self.meddling;
                eprintln!(
                    "repeat with SNAPSYNC_SEED={seed} SNAPSYNC_MEDDLING={meddling} SNAPSYNC_OPERATIONS={failing}"
                );
                return;
            }
        }
        let (first, lanes) = (self.seeds[0], self.seeds.len());
        eprintln!(
            "none of them was seen to fail by itself; repeat all with SNAPSYNC_SEED={first} SOAK_LANES={lanes}, \
             or with what was before on the same servers, SNAPSYNC_SEED={first_on_the_stage} SOAK_LANES={lanes} \
             SOAK_SECONDS=3600"
        );
    }
}

fn text(panic: &(dyn Any + Send)) -> &str {
    let owned = panic.downcast_ref::<String>().map(String::as_str);
    owned.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_histories_arrive() {
    let began = Instant::now();
    let long = Duration::from_secs(number("SOAK_SECONDS").unwrap_or(SECONDS));
    let operations = number("SNAPSYNC_OPERATIONS");
    let meddling = number("SNAPSYNC_MEDDLING");
    let alone = operations.is_some() || meddling.is_some();
    let lanes = number("SOAK_LANES").unwrap_or(if alone { 1 } else { LANES });
    let first = seed();
    let start = || Stage::start(usize::try_from(lanes).unwrap());
    let mut stage = start().await;
    let mut count = 0;
    let mut first_on_the_stage = first;
    while count == 0 || (!alone && began.elapsed() < long) {
        let of_round = first + count;
        if count > 0 && count % (ROUNDS_ON_A_STAGE * lanes) == 0 {
            drop(stage);
            stage = start().await;
            first_on_the_stage = of_round;
        }
        let round = Round {
            seeds: (of_round..).take(usize::try_from(lanes).unwrap()).collect(),
            meddling: meddling.unwrap_or(of_round),
            operations: operations.unwrap_or(OPERATIONS_MAX),
        };
        eprintln!("histories from SNAPSYNC_SEED={of_round} on, {lanes} side by side");
        let playing = round.clone();
        let played = tokio::spawn(async move {
            playing.play(&mut stage).await;
            stage
        });
        stage = match played.await {
            Ok(stage) => stage,
            Err(error) => {
                let panic = error.into_panic();
                round.shrink(text(&*panic), first_on_the_stage).await;
                std::panic::resume_unwind(panic);
            }
        };
        count += lanes;
    }
    eprintln!("{count} histories, from seed {first} on, in {} s", began.elapsed().as_secs());
}
