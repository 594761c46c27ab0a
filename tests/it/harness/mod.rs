//! Real servers and the real program, for the integration tests and the demo.
//!
//! | what | with |
//! | --- | --- |
//! | replica sets of one or three real `mongod` | [`ReplicaSet`], [`ReplicaSetOptions`], [`Mongod`] |
//! | a source and a target, started together | [`Pair`] |
//! | a server without a replica set, for refusals | [`Mongod::standalone`] |
//! | the `snapsync run` process, its log, its HTTP answers | [`Daemon`], [`DaemonOptions`] |
//! | equality of two deployments | [`assert_equal`], [`Comparison`], [`quiesce`] |
//! | seeded random writes | [`Workload`], [`WorkloadOptions`] |
//! | a network that cuts, stalls and loses answers | [`Proxy`] |
//! | certificates, for TLS | [`Authority`] |
//! | unique keys that move, collections that come and go | [`Churn`] |
//! | waiting for a condition, never for a time | [`wait_for`] |
//!
//! Everything lives in temporary folders and on ports of 127.0.0.1. Processes are killed and folders removed when
//! their value is dropped, on a panic too, and by the kernel if the test binary itself is killed. A test that fails
//! with `SNAPSYNC_KEEP=1` set leaves its folders behind and prints where they are.
//!
//! Tests want `#[tokio::test(flavor = "multi_thread", worker_threads = 2)]`, so that a workload goes on while a test
//! waits in blocking code.

mod churn;
mod daemon;
mod http;
mod mongod;
mod oracle;
mod process;
mod proxy;
mod replica_set;
mod tls;
mod wait;
mod workload;

pub use churn::Churn;
pub use daemon::{Daemon, DaemonOptions, program, resume_point};
pub use http::{Reply, over_socket, over_tcp};
pub use mongod::Mongod;
pub use oracle::{Comparison, assert_equal, documents_in, quiesce, user_databases};
pub use process::Folder;
pub use proxy::Proxy;
pub use replica_set::{Pair, ReplicaSet, ReplicaSetOptions};
pub use tls::Authority;
pub use wait::wait_for;
pub use workload::{Counts, Random, Workload, WorkloadOptions};
