//! Everything that is written to the target: documents ([`writers`], [`statements`]), definitions ([`definitions`],
//! with what is [`held_back`], and [`builds`] of indexes), the lease that says who may write ([`lease`]) and until when
//! ([`deadline`]), and what has to be cleared away before the first write ([`inflight`]).

pub mod builds;
pub mod deadline;
pub mod definitions;
pub mod held_back;
pub mod inflight;
pub mod lease;
pub mod statements;
pub mod writers;
