//! From every supported server version to every one that it may be followed to.

use bson::{Document, doc};

use crate::cases;
use crate::harness::{
    Churn, Daemon, DaemonOptions, Pair, ReplicaSetOptions, Workload, WorkloadOptions, assert_equal,
    quiesce, wait_for,
};
use crate::scenario::settle;
use crate::{cutover, definitions, documents, transactions};

async fn pair(source: &'static str, target: &'static str) -> Pair {
    // 4.4 comes to a standstill over a large transaction when it has little memory.
    let version = |version| {
        let mut options = ReplicaSetOptions::default().version(version);
        options.args.extend(["--wiredTigerCacheSizeGB", "1"].map(str::to_owned));
        options
    };
    Pair::with(version(source), version(target)).await
}

/// The scenarios of documents, and transactions.
async fn documents_arrive(source: &'static str, target: &'static str) {
    let Pair { source, target } = pair(source, target).await;
    let scenarios = [cases::documents::all(), cases::unique::all()].concat();
    documents::run_everywhere(scenarios, &source, &target).await;
}

async fn definitions_arrive(source: &'static str, target: &'static str) {
    let Pair { source, target } = pair(source, target).await;
    definitions::run_everywhere(&source, &target).await;
}

/// Transactions, and a daemon that is killed while everything is being written.
async fn survives_kills(source: &'static str, target: &'static str) {
    let Pair { source, target } = pair(source, target).await;
    transactions::run_everywhere(&source, &target).await;
    // The lease of that daemon, which is no more.
    target.client().database("snapsync").drop().await.unwrap();
    let workload = Workload::start(source.client(), WorkloadOptions::default()).await;
    let churn = Churn::start(source.client(), 7).await;
    let mut daemon = Daemon::start(
        DaemonOptions::new(&source, &target).toml("[target]\non_existing_data = \"drop\""),
    );
    for round in 1..=3 {
        wait_for("some churn", std::time::Duration::from_secs(60), || async {
            if churn.done() > round * 60 { Ok(()) } else { Err(churn.done().to_string()) }
        })
        .await;
        daemon.kill9();
        daemon.restart();
    }
    churn.stop().await;
    workload.stop().await;
    settle(&source).await;
    quiesce(&mut daemon, &source).await;
    assert_equal(&source, &target).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_that_4_2_never_finished_is_not_on_the_target() {
    let old = ReplicaSetOptions::default().version("4.2.6");
    definitions::leaves_unfinished_indexes_out(old).await;
}

/// Its definitions take no comment, by which snapsync finds again what got no answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_before_4_4_is_refused_by_name() {
    let Pair { source, target } = pair("4.2.6", "4.2.6").await;
    let mut daemon = Daemon::start(DaemonOptions::new(&source, &target));
    let status = daemon.wait_exit(std::time::Duration::from_secs(60)).await;
    assert_eq!(status.code(), Some(78), "{}", daemon.log());
    let said = daemon.log_lines("MongoDB 4.2.6 is too old for a target");
    assert!(!said.is_empty(), "{}", daemon.log());
}

/// Servers before 6.0 cannot block writes: that is refused by name, and whoever stops the applications can do without.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_before_6_0_cannot_be_blocked_and_is_cut_over_once_it_is_quiet() {
    let Pair { source, target } = pair("4.4.2", "6.0.5").await;
    let crm = source.client().database("crm");
    let rows = || (0..200).map(|n| doc! {"_id": n});
    crm.collection::<Document>("people").insert_many(rows()).await.unwrap();
    let ttl = doc! {"key": {"at": 1}, "name": "at", "expireAfterSeconds": 100_000};
    crm.run_command(doc! {"createIndexes": "people", "indexes": [ttl]}).await.unwrap();
    crm.run_command(doc! {"create": "capped", "capped": true, "size": 100_000}).await.unwrap();
    crm.collection::<Document>("capped").insert_many(rows()).await.unwrap();
    let options = DaemonOptions::new(&source, &target).toml("[cutover]\nquiet_for = \"1s\"");
    let mut daemon = Daemon::start(options);
    daemon.wait_state("live").await;
    let (code, said) = cutover::cutover(&daemon, &["--block-source-writes"]).await;
    assert_eq!(code, Some(1), "{said:#}");
    let reason = said["reason"].as_str().unwrap();
    assert!(reason.contains("MongoDB 4.4.2") && reason.contains("came with 6.0"), "{reason}");
    for verify in ["counts", "full"] {
        let rehearsed = cutover::cutover(&daemon, &["--dry-run", "--verify", verify]).await;
        assert_eq!(rehearsed.0, Some(0), "{:#}", rehearsed.1);
    }
    let (code, said) = cutover::cutover(&daemon, &["--verify", "full"]).await;
    assert_eq!(code, Some(0), "{said:#}");
    assert_equal(&source, &target).await;
}

macro_rules! versions {
    ($($name:ident: $source:literal to $target:literal;)*) => {$(
        mod $name {
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn documents_arrive() {
                super::documents_arrive($source, $target).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn definitions_arrive() {
                super::definitions_arrive($source, $target).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn survives_kills() {
                super::survives_kills($source, $target).await;
            }
        }
    )*};
}

versions! {
    from_4_2_to_6_0: "4.2.6" to "6.0.5";
    from_4_4_to_4_4: "4.4.2" to "4.4.2";
    from_4_4_to_6_0: "4.4.2" to "6.0.5";
    from_5_0_to_6_0: "5.0.4" to "6.0.5";
    from_6_0_27_to_6_0_5: "6.0.27" to "6.0.5";
    from_6_0_5_to_6_0_27: "6.0.5" to "6.0.27";
}
