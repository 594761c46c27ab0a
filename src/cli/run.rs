//! `snapsync run`: everything that can fail without a server first, then the runtime, then the daemon.

use std::process::ExitCode;

use super::{block_on, fail, load};
use crate::config::Inputs;
use crate::exit::{Code, Exit};
use crate::sync::supervisor;
use crate::telemetry::{events, logging};

pub(super) fn run(inputs: Inputs) -> ExitCode {
    let loaded = match load(&inputs) {
        Ok(loaded) => loaded,
        Err(exit) => return fail(&exit),
    };
    let log = &loaded.config.log;
    let logs = match logging::init(log.format, log.level) {
        Ok(logs) => logs,
        Err(error) => return fail(&Exit::new(Code::Internal, error.to_string())),
    };
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    match block_on(supervisor::run(loaded.config, inputs, &logs)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(exit) => {
            events::failed(&exit);
            exit.code.into()
        }
    }
}
