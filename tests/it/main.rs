//! Integration tests against real servers and the real program. One binary, so that it is linked once.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::print_stderr,
    unreachable_pub,
    reason = "test helpers panic with what went wrong, and their modules are shared with the demo"
)]

mod cases;
mod control;
mod copying;
mod cutover;
mod definitions;
mod documents;
mod fencing;
#[allow(dead_code, unused_imports, reason = "shared with the demo: each uses a part")]
mod harness;
mod harness_works;
mod networks;
mod outages;
mod overlap;
mod privileges;
mod random;
mod reading;
mod recovery;
mod refusals;
mod repair;
mod restarts;
mod scenario;
mod selecting;
mod snapshot;
mod takeover;
mod transactions;
mod verifying;
mod versions;
