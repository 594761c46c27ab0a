//! What histories are played on: a pair of replica sets and a daemon, which are kept for many of them.

use std::time::Duration;

use bson::doc;
use rustix::process::Signal;

use super::draw::Draw;
use super::special::HIDDEN;
use crate::harness::{
    Comparison, Daemon, DaemonOptions, Pair, ReplicaSet, ReplicaSetOptions, quiesce, user_databases,
};
use crate::scenario::settle;

const WINDOWS: [&str; 4] = ["10ms", "200ms", "1s", "5s"];
const WORKERS: [u32; 3] = [1, 3, 8];
/// A copy at such a pace goes on while some operations are done, with as little as a history has by then.
const PACES: [&str; 2] = ["64KiB", "0"];

const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// A pair and a daemon, for as many lanes as it was started for.
pub(super) struct Stage {
    pub(super) pair: Pair,
    pub(super) daemon: Daemon,
}

impl Stage {
    /// One of the two databases of every lane has another name on the target, and so has one collection of the other;
    /// some collections are not selected.
    pub(super) async fn start(lanes: usize) -> Self {
        // A server that flushes seldom makes whoever waits for the majority wait for that.
        let mut target = ReplicaSetOptions::default();
        target.args.extend(["--journalCommitInterval", "5"].map(str::to_owned));
        let source = target.clone().parameter("enableTestCommands=1");
        let pair = Pair::with(source, target).await;
        // What is not on the majority yet when a history goes on is so before anything is compared.
        pair.source.admin(doc! {"setDefaultRWConcern": 1, "defaultWriteConcern": {"w": 1}}).await;
        let daemon = Daemon::start(Self::options(&pair, lanes));
        Self { pair, daemon }
    }

    fn options(pair: &Pair, lanes: usize) -> DaemonOptions {
        let renames = (0..lanes).map(|n| {
            format!(
                "{{ from = \"two_{n}\", to = \"second_{n}\" }}, {{ from = \"one_{n}.b\", to = \"one_{n}.bee\" }}"
            )
        });
        let renames = renames.collect::<Vec<_>>().join(", ");
        let sync = format!("[sync]\nexclude = [\"*.{HIDDEN}\"]\nrename = [{renames}]");
        DaemonOptions::new(&pair.source, &pair.target).toml(&sync).toml("[replay]\nworkers = 8")
    }

    /// The source, for writing.
    pub(super) fn source(&self) -> &ReplicaSet {
        &self.pair.source
    }

    /// Ends the daemon and takes away all it has made, here and on the target; [`Stage::copy`] begins anew.
    pub(super) async fn clear(&mut self) {
        self.daemon.terminate().await;
        self.daemon.lose_state();
        let target = self.pair.target.client();
        target.database("snapsync").drop().await.expect("drop the lease");
        for database in user_databases(target).await {
            target.database(&database).drop().await.expect("drop a database");
        }
    }

    /// Starts the daemon that has nothing, so that it copies, at a pace that lasts.
    pub(super) fn copy(&mut self, chance: &mut Draw) {
        let pace = PACES[chance.random.below(2) as usize];
        self.daemon.configure(&format!("[copy]\nmax_bytes_per_second = \"{pace}\""));
        self.daemon.restart();
    }

    /// Windows of another size, written by fewer workers or more; for the next process.
    pub(super) fn resize(&mut self, chance: &mut Draw) {
        let window = WINDOWS[chance.random.below(4) as usize];
        let workers = WORKERS[chance.random.below(3) as usize];
        let text = format!("[sync]\nwindow = \"{window}\"\n[replay]\nworkers = {workers}");
        self.daemon.configure(&text);
    }

    /// Waits until everything has arrived, and compares.
    pub(super) async fn compare(&mut self) {
        settle(&self.pair.source).await;
        self.daemon.configure("[copy]\nmax_bytes_per_second = \"0\"");
        // Before it answers the signal would end it.
        self.daemon.wait_status("an answer", ANSWER_TIMEOUT, |_| true).await;
        self.daemon.signal(Signal::HUP);
        quiesce(&mut self.daemon, &self.pair.source).await;
        let (source, target) = (self.pair.source.client(), self.pair.target.client());
        let compared = Comparison::new(source, target).mapping(mapping).run().await;
        compared.unwrap_or_else(|difference| panic!("source and target differ:\n{difference}"));
    }
}

/// Where a collection goes.
fn mapping(name: &str) -> Option<String> {
    let (database, collection) = name.split_once('.')?;
    let mapped = match (database.split_once('_'), collection) {
        (Some(("two", lane)), _) => format!("second_{lane}.{collection}"),
        (Some(("one", _)), "b") => format!("{database}.bee"),
        _ => name.to_owned(),
    };
    (collection != HIDDEN).then_some(mapped)
}
