//! The only room that knows how the MongoDB driver behaves: connecting, running commands with their true outcome read
//! from the reply, telling what an error means, and what kind of deployment answers. It holds no policy: whoever calls
//! decides what to do with a [`Failure`].

mod client;
mod command;
mod error;
mod identity;
pub mod listing;
mod probe;
mod relay;
mod server;
mod session;
mod snapshot;
mod tls;

pub use client::{Deployment, PoolOptions};
pub use command::{cursor_documents, run};
pub use error::{Error, Failure, Side, describe, unwanted_reply};
pub use identity::{merged, replica_set_identity, same_set};
pub use listing::Listed;
pub use probe::strangers;
pub use relay::{ForeignSessions, session_id};
pub use server::{Hello, ServerFacts, Version};
pub(crate) use session::bson_count;
pub use session::{Numbered, StatementError, Transaction, WriteReply, WriteSession};
pub use snapshot::SnapshotReader;
