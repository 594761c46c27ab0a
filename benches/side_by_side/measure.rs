//! What a process and a server have used so far.

use std::process::Child;
use std::time::{Duration, Instant};

use bson::doc;
use mongodb::Client;
use serde_json::{Value, json};

use crate::harness::ReplicaSet;

/// How often a process that will end by itself is looked at: it cannot be asked afterwards.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Processor time and memory of one process.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    /// User and system time in seconds.
    pub cpu: f64,
    /// The most memory it ever held, in MiB.
    pub peak_mib: f64,
}

impl Usage {
    /// Of a process that runs; nothing if it does not.
    pub fn of(process: u32) -> Self {
        Self { cpu: processor_seconds(process), peak_mib: peak_mib(process) }
    }

    /// Both at their larger, for a process that is looked at again and again.
    fn seen(self, other: Self) -> Self {
        Self { cpu: self.cpu.max(other.cpu), peak_mib: self.peak_mib.max(other.peak_mib) }
    }

    /// Of two processes at the same time.
    fn plus(self, other: Self) -> Self {
        Self { cpu: self.cpu + other.cpu, peak_mib: self.peak_mib + other.peak_mib }
    }
}

fn processor_seconds(process: u32) -> f64 {
    const TICKS_PER_SECOND: f64 = 100.0;
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks = fields.get(11..13).unwrap_or_default().iter();
    ticks.map(|field| field.parse::<f64>().unwrap_or(0.0)).sum::<f64>() / TICKS_PER_SECOND
}

fn peak_mib(process: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
    kib.unwrap_or(0.0) / 1024.0
}

/// Waits for all of them to end well, and returns what they used together.
///
/// # Panics
/// If one fails.
pub fn wait_all(mut children: Vec<(&str, Child)>) -> Usage {
    let mut usages = vec![Usage::default(); children.len()];
    loop {
        let mut running = false;
        for ((name, child), usage) in children.iter_mut().zip(&mut usages) {
            *usage = usage.seen(Usage::of(child.id()));
            match child.try_wait().expect("ask for the exit status") {
                None => running = true,
                Some(status) => assert!(status.success(), "{name} failed: {status}"),
            }
        }
        if !running {
            return usages.into_iter().fold(Usage::default(), Usage::plus);
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// A server's processor time and its bytes on the wire so far.
#[derive(Debug, Clone, Copy)]
struct Server {
    cpu: f64,
    wire_bytes: f64,
}

impl Server {
    async fn look(set: &ReplicaSet) -> Self {
        let cpu = set.members.iter().map(|member| processor_seconds(member.process_id())).sum();
        Self { cpu, wire_bytes: wire_bytes(set.client()).await }
    }
}

async fn wire_bytes(client: &Client) -> f64 {
    let status = client.database("admin").run_command(doc! { "serverStatus": 1 }).await;
    let status = status.expect("serverStatus");
    let network = status.get_document("network").expect("network");
    let count = |name: &str| match network.get(name) {
        Some(bson::Bson::Int64(n)) => *n as f64,
        Some(bson::Bson::Int32(n)) => f64::from(*n),
        _ => 0.0,
    };
    count("bytesIn") + count("bytesOut")
}

/// A stopwatch over both servers.
#[derive(Debug)]
pub struct Stretch {
    began: Instant,
    source: Server,
    target: Server,
}

impl Stretch {
    /// Begins now.
    pub async fn begin(source: &ReplicaSet, target: &ReplicaSet) -> Self {
        let (source, target) = (Server::look(source).await, Server::look(target).await);
        Self { began: Instant::now(), source, target }
    }

    /// Seconds so far.
    pub fn seconds(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }

    /// Ends after `seconds`: one row of results.
    pub async fn end(
        self,
        seconds: f64,
        tool: Usage,
        source: &ReplicaSet,
        target: &ReplicaSet,
    ) -> Value {
        let (from, to) = (Server::look(source).await, Server::look(target).await);
        let wire = |now: Server, then: Server| (now.wire_bytes - then.wire_bytes) / 1048576.0;
        let memory = |set: &ReplicaSet| {
            set.members.iter().map(|member| Usage::of(member.process_id()).peak_mib).sum::<f64>()
        };
        json!({
            "seconds": seconds,
            "tool_cpu_seconds": tool.cpu,
            "tool_peak_mib": tool.peak_mib,
            "source_cpu_seconds": from.cpu - self.source.cpu,
            "source_peak_mib": memory(source),
            "source_wire_mib": wire(from, self.source),
            "target_cpu_seconds": to.cpu - self.target.cpu,
            "target_peak_mib": memory(target),
            "target_wire_mib": wire(to, self.target),
        })
    }
}

/// The value below which `share` of the sorted values lie.
pub fn quantile(sorted: &[f64], share: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * share) as usize).copied().unwrap_or(f64::NAN)
}
