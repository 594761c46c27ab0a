//! What is measured, and how much of it: environment variables, so that a small run is quick.

/// The scenarios, in the order in which they run.
pub const SCENARIOS: [&str; 10] =
    ["copy", "large", "small", "big", "replay", "lag", "repair", "idle", "verify", "intent"];

/// Everything that can be set.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `BENCH_SCENARIOS`: names of [`SCENARIOS`] with commas; all of them.
    pub scenarios: Vec<String>,
    /// `BENCH_ROUNDS`: how often each contender runs, in turns (3).
    pub rounds: u64,
    /// `BENCH_DOCUMENTS`: documents of about 1 KiB (1000000).
    pub documents: u64,
    /// `BENCH_COLLECTIONS`: collections of the scenario `small` (2000).
    pub collections: u64,
    /// `BENCH_OPERATIONS`: operations of the backlog (500000).
    pub operations: u64,
    /// `BENCH_RESTORED`: entries that `mongorestore --oplogReplay` is given, which is slow (20000).
    pub restored: u64,
    /// `BENCH_RATES`: operations a second with commas (500,1000,2000,4000).
    pub rates: Vec<u64>,
    /// `BENCH_SECONDS`: how long each rate, and each idle time, is watched (30).
    pub seconds: u64,
    /// `BENCH_OPLOG`: entries in the oplog while the daemon is idle, with commas (100000,500000,2000000).
    pub oplog: Vec<u64>,
    /// `BENCH_CACHE_GB`: WiredTiger cache of each server (2).
    pub cache_gb: u64,
    /// `BENCH_OUTPUT`: where the results go as JSON (target/bench.json).
    pub output: String,
}

impl Settings {
    /// Reads the environment.
    ///
    /// # Panics
    /// On a value that makes no sense, naming the variable.
    pub fn from_environment() -> Self {
        let scenarios: Vec<String> =
            text("BENCH_SCENARIOS", &SCENARIOS.join(",")).split(',').map(str::to_owned).collect();
        for name in &scenarios {
            let known = SCENARIOS.contains(&name.as_str());
            assert!(known, "BENCH_SCENARIOS: no scenario {name:?}; there are {SCENARIOS:?}");
        }
        Self {
            scenarios,
            rounds: number("BENCH_ROUNDS", 3).max(1),
            documents: number("BENCH_DOCUMENTS", 1_000_000),
            collections: number("BENCH_COLLECTIONS", 2_000),
            operations: number("BENCH_OPERATIONS", 500_000),
            restored: number("BENCH_RESTORED", 20_000),
            rates: numbers("BENCH_RATES", "500,1000,2000,4000"),
            seconds: number("BENCH_SECONDS", 30),
            oplog: numbers("BENCH_OPLOG", "100000,500000,2000000"),
            cache_gb: number("BENCH_CACHE_GB", 2),
            output: text("BENCH_OUTPUT", "target/bench.json"),
        }
    }

    /// Whether a scenario is asked for.
    pub fn wants(&self, scenario: &str) -> bool {
        self.scenarios.iter().any(|name| name == scenario)
    }
}

fn text(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.to_owned())
}

fn number(name: &str, default: u64) -> u64 {
    numbers(name, &default.to_string())[0]
}

fn numbers(name: &str, default: &str) -> Vec<u64> {
    let parse = |part: &str| part.parse().unwrap_or_else(|_| panic!("{name}: {part:?}: a number"));
    text(name, default).split(',').map(parse).collect()
}
