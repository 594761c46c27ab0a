//! `snapsync run`: everything that can fail without a server first, then the runtime, then the daemon.

use std::process::ExitCode;

use super::{begin_log, block_on, fail, load};
use crate::config::Inputs;
use crate::sync::supervisor;
use crate::telemetry::events;

pub(super) fn run(inputs: Inputs) -> ExitCode {
    let loaded = match load(&inputs) {
        Ok(loaded) => loaded,
        Err(exit) => return fail(&exit),
    };
    let logs = match begin_log(&loaded) {
        Ok(logs) => logs,
        Err(exit) => return fail(&exit),
    };
    match block_on(supervisor::run(loaded.config, inputs, &logs)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(exit) => {
            events::failed(&exit);
            exit.code.into()
        }
    }
}
