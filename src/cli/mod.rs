//! The subcommands: what they do and print. Parsing of arguments is in `main`.

pub mod config;
pub mod output;
pub mod status;
