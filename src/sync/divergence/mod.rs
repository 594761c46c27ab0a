//! Judging whether the target is still what it should be: its lists of collections against the replayed catalogue
//! ([`lists`]), and its counts against the source's at one optime ([`counts`], [`exact`]).

pub mod counts;
pub mod desk;
pub mod exact;
pub mod lists;
