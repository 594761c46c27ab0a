//! The settings that may change in flight, by SIGHUP.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use crate::config::{Config, DeltaLog};

/// Their values at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Tuning {
    /// `sync.window`
    pub window: Duration,
    /// `live.max_lag`
    pub max_lag: Duration,
    /// `memory.max_bytes`
    pub memory_bytes_max: u64,
    /// `replay.workers`, chosen if 0.
    pub replay_workers: usize,
    /// `delta.interval`
    pub delta_interval: Duration,
    /// `delta.log`
    pub delta_log: DeltaLog,
}

impl From<&Config> for Tuning {
    fn from(config: &Config) -> Self {
        Self {
            window: config.sync.window,
            max_lag: config.live.max_lag,
            memory_bytes_max: config.memory.max_bytes,
            replay_workers: config.replay_workers(),
            delta_interval: config.delta.interval,
            delta_log: config.delta.log,
        }
    }
}

/// The values in force, for everybody. Cheap to clone.
#[derive(Debug, Clone)]
pub struct InForce(Arc<RwLock<Tuning>>);

impl InForce {
    /// Begins with these.
    #[must_use]
    pub fn new(tuning: Tuning) -> Self {
        Self(Arc::new(RwLock::new(tuning)))
    }

    /// The values now.
    #[must_use]
    pub fn get(&self) -> Tuning {
        *self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Other values from now on.
    pub fn set(&self, tuning: Tuning) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = tuning;
    }
}
