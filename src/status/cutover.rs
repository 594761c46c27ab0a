//! What the status says about a cutover, and the report that one ends with.

use serde::{Deserialize, Serialize};

use super::{Deployment, HeldBack, WallTime};
use crate::position::{OpTime, Ts};

/// Lines kept of what happened, the latest ones.
const LINES_MAX: usize = 200;

/// Where a cutover stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CutoverStep {
    /// Nothing has been done yet; what has to hold is waited for and looked at.
    Gating,
    /// Writes to the source are being stopped, or waited to end.
    Stopping,
    /// What was written until then is being replayed.
    Draining,
    /// Both sides are compared.
    Verifying,
    /// Hooks, the postpone file, and the last look at the source.
    Deciding,
    /// Past the point of no return: what was held back is being restored.
    Restoring,
    /// Over, one way or the other.
    Done,
}

impl CutoverStep {
    /// The name users see.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gating => "gating",
            Self::Stopping => "stopping",
            Self::Draining => "draining",
            Self::Verifying => "verifying",
            Self::Deciding => "deciding",
            Self::Restoring => "restoring",
            Self::Done => "done",
        }
    }
}

/// How much is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VerifyDepth {
    /// Contents, byte for byte, with definitions.
    #[default]
    Full,
    /// Exact numbers of documents.
    Counts,
    /// Nothing.
    None,
}

impl VerifyDepth {
    /// The word that users write.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Counts => "counts",
            Self::None => "none",
        }
    }
}

/// What a cutover came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CutoverOutcome {
    /// A rehearsal: everything that has to hold does.
    Ready,
    /// The target has taken over.
    CutOver,
    /// Given up; the migration goes on as before.
    Aborted,
    /// Given up, because source and target differ.
    Different,
}

impl CutoverOutcome {
    /// The word that users see.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::CutOver => "cut-over",
            Self::Aborted => "aborted",
            Self::Different => "different",
        }
    }
}

/// Somebody who writes to the source.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Writer {
    /// The name that the application gave itself; empty if none.
    pub application: String,
    /// Its address.
    pub client: String,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CutoverLine {
    /// When.
    pub at: WallTime,
    /// In which step.
    pub step: CutoverStep,
    /// What.
    pub text: String,
}

/// A cutover, under way or over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CutoverStatus {
    /// When it was asked for: what tells one cutover from the next.
    pub began: WallTime,
    /// Where it stands.
    pub step: CutoverStep,
    /// What it came to; `None` while it is under way.
    pub outcome: Option<CutoverOutcome>,
    /// Why it was given up, or what it waits for.
    pub reason: Option<String>,
    /// Whether it ends before anything is done.
    pub dry_run: bool,
    /// What is compared.
    pub verify: VerifyDepth,
    /// Whether the source refuses writes because of it.
    pub blocked: bool,
    /// When it is given up if it has not been decided.
    pub deadline: Option<WallTime>,
    /// Who still writes to the source, as far as that was looked for.
    pub writers: Vec<Writer>,
    /// What differs, as phrases without contents.
    pub different: Vec<String>,
    /// What happened, in order.
    pub log: Vec<CutoverLine>,
    /// The report of one that succeeded.
    pub report: Option<CutoverReport>,
}

impl CutoverStatus {
    /// One that was asked for just now.
    #[must_use]
    pub fn begun(began: WallTime, verify: VerifyDepth, dry_run: bool) -> Self {
        Self {
            began,
            step: CutoverStep::Gating,
            outcome: None,
            reason: None,
            dry_run,
            verify,
            blocked: false,
            deadline: None,
            writers: Vec::new(),
            different: Vec::new(),
            log: Vec::new(),
            report: None,
        }
    }

    /// Notes what happened.
    pub fn note(&mut self, text: impl Into<String>) {
        if self.log.len() >= LINES_MAX {
            self.log.remove(0);
        }
        // Strictly later than the one before, so that whoever asks again and again knows what is new.
        let after = self.log.last().map_or(i64::MIN, |last| last.at.as_ms() + 1);
        let at = WallTime::now().max(WallTime::from_ms(after));
        let line = CutoverLine { at, step: self.step, text: text.into() };
        self.log.push(line);
    }
}

/// How long a step took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timing {
    /// Which.
    pub step: CutoverStep,
    /// How long, in milliseconds.
    pub ms: u64,
}

/// A place in an oplog and its wall time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FinalOptime {
    /// Where.
    #[serde(flatten)]
    pub at: OpTime,
    /// Wall time of that entry.
    pub wall: WallTime,
}

/// Documents of a collection at the final optime.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FinalCount {
    /// Its name on the source.
    pub collection: String,
    /// Its name on the target.
    pub target_collection: String,
    /// How many documents the target holds.
    pub documents: u64,
    /// Whether they were counted, rather than taken from the server's metadata.
    pub exact: bool,
}

/// What was compared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// Collections.
    pub collections: u64,
    /// Documents compared before writes were stopped.
    pub documents: u64,
    /// Documents that had changed meanwhile, and were compared again before writes were stopped.
    #[serde(default)]
    pub documents_again: u64,
    /// Documents compared after that: those that had changed meanwhile.
    pub documents_after: u64,
}

/// Who holds the source's write block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WriteBlock {
    /// Nobody.
    #[default]
    None,
    /// Set by the cutover.
    Ours,
    /// It was there before.
    Foreign,
}

/// The report of a cutover that succeeded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CutoverReport {
    /// Of this shape.
    pub format: u32,
    /// The version of snapsync that did it.
    pub version: String,
    /// Identity of the migration.
    pub migration: String,
    /// Who asked for it, if they said so.
    pub requested_by: Option<String>,
    /// The deployment that was followed.
    pub source: Deployment,
    /// The one that has taken over.
    pub target: Deployment,
    /// When it was asked for.
    pub began: WallTime,
    /// When it could not be undone any more.
    pub decided: WallTime,
    /// When everything was restored.
    pub finished: WallTime,
    /// From the last moment at which the source took writes to `finished`, in milliseconds; `None` if the source was
    /// lost.
    pub downtime_ms: Option<u64>,
    /// How long each step took.
    pub timings: Vec<Timing>,
    /// Everything up to here is on the target, and nothing after it.
    pub final_optime: FinalOptime,
    /// The target's optime right before it took over: where a way back begins.
    pub reverse_from: OpTime,
    /// With `--source-lost`: for how long the source had not been seen, and so how much may be missing.
    pub source_unseen_seconds: Option<u64>,
    /// With `--source-lost`, if the daemon was killed while it applied a window, and that was not kept: up to here the
    /// target holds some of what the source did and not the rest.
    #[serde(default)]
    pub cut_short: Option<Ts>,
    /// What was compared.
    pub verify: VerifyDepth,
    /// How much that was.
    pub proof: Proof,
    /// Documents by collection.
    pub collections: Vec<FinalCount>,
    /// What had been held back and is as on the source now.
    pub restored: Vec<HeldBack>,
    /// What could not be restored, and has to be by hand.
    pub not_restored: Vec<HeldBack>,
    /// The write block on the source. It stays.
    pub write_block: WriteBlock,
    /// The command that lifts it.
    pub lift_write_block: Option<String>,
}
