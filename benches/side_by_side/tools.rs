//! What users would take instead, where it is installed: `BENCH_TOOLS`, else `.cache/tools/bin`, else `PATH`. What is
//! missing is named as missing, and nothing is guessed about it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::harness::ReplicaSet;
use crate::measure::{Usage, wait_all};

/// The tools that are looked for.
pub const NAMES: [&str; 3] = ["mongodump", "mongorestore", "pcsm"];

/// Where a tool is.
pub fn find(name: &str) -> Option<PathBuf> {
    let own = std::env::var_os("BENCH_TOOLS").map(PathBuf::from);
    let cached = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/tools/bin");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = own.into_iter().chain([cached]).chain(std::env::split_paths(&path));
    folders.map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// How many collections, and how many writers each, `mongodump | mongorestore` works on.
#[derive(Debug, Clone, Copy)]
pub enum Parallelism {
    /// As the tools choose.
    Default,
    /// So many collections, with so many writers each.
    Of(u32, u32),
}

/// `mongodump --archive | mongorestore --archive` of everything, to its end. `None` if one of them is missing.
pub fn dump_restore(
    source: &ReplicaSet,
    target: &ReplicaSet,
    parallelism: Parallelism,
) -> Option<Usage> {
    let mut dump = Command::new(find("mongodump")?);
    let mut restore = Command::new(find("mongorestore")?);
    dump.args(["--quiet", "--archive", "--uri", &source.uri()]);
    restore.args(["--quiet", "--archive", "--uri", &target.uri()]);
    restore.args(["--nsExclude", "admin.*", "--nsExclude", "config.*"]);
    if let Parallelism::Of(collections, writers) = parallelism {
        dump.args(["--numParallelCollections", &collections.to_string()]);
        restore.args(["--numParallelCollections", &collections.to_string()]);
        restore.args(["--numInsertionWorkersPerCollection", &writers.to_string()]);
    }
    let mut dump = dump.stdout(Stdio::piped()).spawn().expect("start mongodump");
    let archive = dump.stdout.take().expect("mongodump's output");
    let restore = restore.stdin(archive).spawn().expect("start mongorestore");
    Some(wait_all(vec![("mongodump", dump), ("mongorestore", restore)]))
}

/// `mongorestore --oplogReplay` of a file of oplog entries, to its end. `None` if it is missing.
pub fn oplog_replay(target: &ReplicaSet, oplog: &Path) -> Option<Usage> {
    let mut restore = Command::new(find("mongorestore")?);
    // Nothing but the oplog is restored.
    let empty = oplog.parent().expect("a folder").join("empty");
    std::fs::create_dir_all(&empty).expect("create a folder");
    restore.args(["--quiet", "--oplogReplay", "--uri", &target.uri()]);
    restore.arg(format!("--oplogFile={}", oplog.display())).arg(empty);
    Some(wait_all(vec![("mongorestore", restore.spawn().expect("start mongorestore"))]))
}
