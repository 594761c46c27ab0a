//! SIGHUP: taking over what may change in flight.

use std::sync::Arc;

use super::context::Context;
use super::tuning::Tuning;
use crate::config::{Config, Inputs};
use crate::telemetry::logging::LogHandle;

/// Reads the configuration again and takes over what may change in flight; one with errors changes nothing. `newest` is
/// the configuration read last.
pub(super) fn reload(
    inputs: &Inputs,
    logs: &LogHandle,
    context: &Context,
    newest: &mut Arc<Config>,
) {
    let loaded = match Config::load(inputs) {
        Ok(loaded) => loaded.config,
        Err(errors) => {
            tracing::error!("the configuration was not reloaded: {errors}");
            return;
        }
    };
    let changes = newest.changes(&loaded);
    logs.set_level(loaded.log.level);
    context.pace.set(loaded.copy.max_bytes_per_second.unwrap_or(0));
    context.verify_pace.set(loaded.verify.max_bytes_per_second.unwrap_or(0));
    context.tuning.set(Tuning::from(&loaded));
    *newest = Arc::new(loaded);
    tracing::info!("configuration reloaded; taken over: {}", list(&changes.reloadable));
    // Against the start, not the reload before: what still waits for a restart.
    let waiting = context.config.changes(newest).needs_restart;
    if !waiting.is_empty() {
        tracing::warn!("these changes need a restart: {}", list(&waiting));
    }
}

fn list(keys: &[&str]) -> String {
    if keys.is_empty() { "nothing".to_owned() } else { keys.join(", ") }
}
