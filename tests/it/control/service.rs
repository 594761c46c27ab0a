//! What a service manager is told.

use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bson::doc;
use tempfile::TempDir;

use super::{SLOWLY, fill};
use crate::harness::{Daemon, DaemonOptions, Pair, wait_for};

const SOON: Duration = Duration::from_secs(20);

/// The socket of a service manager, and all that was said to it.
struct Manager {
    folder: TempDir,
    said: Arc<Mutex<Vec<String>>>,
}

impl Manager {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        let said: Arc<Mutex<Vec<String>>> = Arc::default();
        let messages = Arc::clone(&said);
        // Ends with the test binary.
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length) = socket.recv(&mut buffer) {
                let message = String::from_utf8_lossy(&buffer[..length]).into_owned();
                messages.lock().unwrap().push(message);
            }
        });
        Self { folder, said }
    }

    /// Two seconds are twice what the supervisor takes for a turn.
    fn manage(&self, options: DaemonOptions) -> DaemonOptions {
        let socket = self.folder.path().join("notify").display().to_string();
        options.env("NOTIFY_SOCKET", &socket).env("WATCHDOG_USEC", "2000000")
    }

    fn said(&self) -> Vec<String> {
        self.said.lock().unwrap().clone()
    }

    fn count(&self, text: &str) -> usize {
        self.said().iter().filter(|message| message.contains(text)).count()
    }

    async fn hears(&self, text: &str, times: usize) {
        wait_for(&format!("{text} {times} times"), SOON, || async {
            if self.count(text) >= times { Ok(()) } else { Err(format!("{:?}", self.said())) }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_service_manager_is_told_what_happens() {
    let mut pair = Pair::start().await;
    fill(pair.source.client()).await;
    pair.source.freeze();
    let manager = Manager::start();
    let options = DaemonOptions::new(&pair.source, &pair.target).toml(SLOWLY);
    let mut daemon = Daemon::start(manager.manage(options));
    // Before the checks have passed it is alive, and not ready.
    manager.hears("WATCHDOG=1", 4).await;
    assert_eq!(manager.count("READY=1"), 0);
    pair.source.thaw();
    manager.hears("READY=1", 1).await;
    // What there is to copy is counted only after the copy has begun.
    manager.hears("of 300 documents", 1).await;
    let said = manager.said();
    let first = |text: &str| said.iter().position(|message| message.contains(text)).unwrap();
    assert!(first("READY=1") < first("STATUS=copying: "), "{said:?}");

    let (status, _) = daemon.terminate().await;
    assert!(status.success());
    let stopping = "STOPPING=1\nEXTEND_TIMEOUT_USEC=30000000\n";
    manager.hears(stopping, 1).await;
    assert_eq!(manager.count("READY=1"), 1);

    daemon.configure("[copy]\nmax_bytes_per_second = \"0\"");
    daemon.restart();
    manager.hears("STATUS=live, lag ", 2).await;
    assert_eq!(manager.count("READY=1"), 2);
    let beats = manager.count("WATCHDOG=1");
    manager.hears("WATCHDOG=1", beats + 2).await;
    let (status, _) = daemon.terminate().await;
    assert!(status.success());
    manager.hears(stopping, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_start_is_never_ready() {
    let Pair { source, target } = Pair::start().await;
    for set in [&source, &target] {
        set.client().database("shop").collection("a").insert_one(doc! {"_id": 1}).await.unwrap();
    }
    let manager = Manager::start();
    let mut daemon = Daemon::start(manager.manage(DaemonOptions::new(&source, &target)));
    assert_eq!(daemon.wait_exit(SOON).await.code(), Some(78));
    manager.hears("WATCHDOG=1", 1).await;
    assert_eq!(manager.count("READY=1"), 0, "{:?}", manager.said());
}
