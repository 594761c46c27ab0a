//! The commands: they print, and ask the running daemon.

pub mod output;
pub mod status;
