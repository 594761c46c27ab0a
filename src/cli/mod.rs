//! What each command does. Prints, and says with which code to exit; everything else is in the rooms below.

pub mod config;
