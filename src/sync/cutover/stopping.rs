//! Letting writes to the source come to an end: by making it refuse them, or by waiting for the applications.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::acting::{ASK_EVERY, Cutover, Failed, Request};
use super::finishing::mirrored;
use super::plan::named;
use super::proof::Proven;
use super::{again, show};
use crate::mongo::{Failure, ServerFacts, Version};
use crate::retry::{Stopped, unless_late, until_reached};
use crate::source::{start, writes};
use crate::status::{WallTime, WriteBlock, Writer};
use crate::stop::Stop;
use crate::sync::preflight;

/// How often it is said who still writes.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// The first server that can block writes.
const BLOCKS_SINCE: Version = Version(6, 0, 0);
/// The server's answer to a request that took longer than it was allowed to.
const MAX_TIME_EXPIRED: i32 = 50;

impl Cutover {
    /// Refuses by name what the source or its user cannot do.
    pub(super) async fn can_block(&self) -> Result<(), Failed> {
        let source = &self.context.source;
        let ask = || ServerFacts::ask(source);
        let facts = until_reached(source.side, &self.abort, ask).await?;
        let (Version(major, minor, _), feature) = (facts.version, facts.feature_version);
        let (major, minor) = feature.unwrap_or((major, minor));
        if facts.version < BLOCKS_SINCE || (major, minor) < (BLOCKS_SINCE.0, BLOCKS_SINCE.1) {
            return Err(Failed::GivenUp(format!(
                "the source (MongoDB {}, feature compatibility {major}.{minor}) cannot block writes: \
                 that came with 6.0; stop the applications and leave --block-source-writes out",
                facts.version
            )));
        }
        let ask = || preflight::missing_on_cluster(source, writes::BLOCK_ACTIONS);
        let Some(missing) = until_reached(source.side, &self.abort, ask).await? else {
            return Err(Failed::GivenUp(
                "the source has no authentication, so that everybody may write past a write block: stop \
                 the applications and leave --block-source-writes out"
                    .to_owned(),
            ));
        };
        if missing.is_empty() {
            return Ok(());
        }
        Err(Failed::GivenUp(format!(
            "the user on the source lacks privileges on the cluster: {}; the roles `hostManager` and \
             `clusterMonitor` grant them (docs/privileges.md)",
            missing.join(", ")
        )))
    }

    /// Waits until nothing more is written to the source, or sees to it.
    pub(super) async fn stop_writes(&self, proven: &mut Proven) -> Result<(), Failed> {
        if !self.options.block_source_writes {
            // However long that takes, next to nothing is left to be compared when it is.
            let is_quiet = self.abort.child();
            let waiting = async {
                self.wait_until_quiet().await?;
                is_quiet.request();
                Ok(())
            };
            let keeping_up = again::keep_up(self, proven, &is_quiet);
            return tokio::try_join!(waiting, keeping_up).map(drop);
        }
        let cutover = self.context.records.get().cutover;
        // The block stands since the last time.
        if cutover.is_some_and(|cutover| cutover.block != WriteBlock::None) {
            Ok(())
        } else {
            self.block().await
        }
    }

    /// A block that was lifted meanwhile, by whoever set it or by hand, has let writes through that nobody looks for.
    pub(super) async fn still_blocked(&self) -> Result<(), Failed> {
        let source = &self.context.source;
        let cutover = self.context.records.get().cutover;
        if cutover.is_none_or(|cutover| cutover.block == WriteBlock::None) {
            return Ok(());
        }
        if until_reached(source.side, &self.abort, || writes::is_blocked(source)).await? {
            return Ok(());
        }
        Err(Failed::GivenUp("somebody has lifted the write block on the source".to_owned()))
    }

    async fn block(&self) -> Result<(), Failed> {
        let source = &self.context.source;
        let is_blocked = || writes::is_blocked(source);
        if until_reached(source.side, &self.abort, is_blocked).await? {
            let now = WallTime::now().as_ms();
            self.keep(|cutover| {
                (cutover.block, cutover.stopped_ms) = (WriteBlock::Foreign, Some(now));
            })?;
            self.note(
                "writes to the source are blocked already, by somebody else; that is left as it is",
            );
            return self.wait_for_transactions().await;
        }
        // On disk first, and on the target: whatever happens now, a start lifts it.
        self.keep(|cutover| cutover.block = WriteBlock::Ours)?;
        mirrored(&self.context, &self.abort).await?;
        self.note(&format!(
            "blocking writes to the source; to lift that by hand: {}",
            writes::LIFT_BY_HAND
        ));
        show(&self.context, |cutover| cutover.blocked = true);
        let sent = WallTime::now().as_ms();
        let (done, answered) = tokio::sync::oneshot::channel();
        let (deployment, abort) = (source.clone(), self.abort.child());
        let stop = abort.clone();
        let task = tokio::spawn(async move {
            let set = || writes::set_block(&deployment, true);
            // Given up before the answer, it might come into force later.
            let never = Stop::new();
            let asking = until_reached(deployment.side, &never, set);
            let answer =
                unless_late(&stop, writes::BLOCK_WITHIN, asking).await.and_then(|answer| answer);
            // Whoever waits for it may have given it up.
            let _gone = done.send(());
            answer
        });
        let blocking = self.context.cutover.blocking();
        *blocking.lock().await = Some(Request { task, abort });
        let _gone = answered.await;
        let request = blocking.lock().await.take();
        match request {
            Some(request) => match request.task.await {
                Ok(Err(Stopped::Failed(error))) if error.code() == Some(MAX_TIME_EXPIRED) => {
                    return Err(Failed::GivenUp(
                        "operations on the source did not come to an end, so that writes could not be \
                         blocked"
                            .to_owned(),
                    ));
                }
                Ok(answer) => answer?,
                Err(panic) => return Err(Failed::GivenUp(format!("internal error: {panic}"))),
            },
            None => return Err(Failed::Stop),
        }
        self.keep(|cutover| cutover.stopped_ms = Some(sent))?;
        self.note("the source refuses writes");
        self.wait_for_transactions().await
    }

    /// A transaction that was open when writes were blocked can still commit.
    async fn wait_for_transactions(&self) -> Result<(), Failed> {
        let source = &self.context.source;
        let open = || writes::open_transactions(source);
        let mut left = until_reached(source.side, &self.abort, open).await?;
        while !left.is_empty() {
            self.wait_for(format!("{} transactions were open when writes stopped", left.len()));
            self.abort.sleep(ASK_EVERY).await?;
            let now = until_reached(source.side, &self.abort, open).await?;
            left = left.intersection(&now).cloned().collect();
        }
        Ok(())
    }

    /// Waits until nothing that is selected was written for as long as is configured.
    async fn wait_until_quiet(&self) -> Result<(), Failed> {
        let source = &self.context.source;
        let selection = &self.context.config.sync.selection;
        let quiet_for = self.context.config.cutover.quiet_for;
        let end = || start::end(source);
        let mut at = until_reached(source.side, &self.abort, end).await?;
        let mut last = (Instant::now(), WallTime::now().as_ms());
        let mut told: Option<Instant> = None;
        let mut writers: Option<BTreeSet<Writer>> = Some(BTreeSet::new());
        self.note(&format!("waiting until the source is quiet for {quiet_for:?}"));
        loop {
            self.still_follows()?;
            let look = || writes::look(source, at, selection);
            let found = until_reached(source.side, &self.abort, look).await?;
            at = found.to;
            if found.wrote.is_some() {
                last = (Instant::now(), WallTime::now().as_ms());
            }
            if last.0.elapsed() >= quiet_for && self.no_transaction_is_open().await? {
                break;
            }
            if let Some(named) = &mut writers {
                match writes::writers(source).await {
                    Ok(found) => named.extend(found),
                    Err(error) if error.failure == Failure::Privilege => {
                        self.note("who writes cannot be told: the role `clusterMonitor` allows it");
                        writers = None;
                    }
                    Err(error) => tracing::debug!("{error}"),
                }
            }
            if found.wrote.is_some() && told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
                told = Some(Instant::now());
                self.tell_writers(writers.iter_mut().flat_map(std::mem::take).collect());
            }
            self.abort.sleep(ASK_EVERY).await?;
        }
        show(&self.context, |cutover| cutover.writers = Vec::new());
        self.keep(|cutover| cutover.stopped_ms = Some(last.1))?;
        self.note("the source is quiet");
        Ok(())
    }

    /// What a transaction has written shows in the oplog when it commits, however long ago that was.
    async fn no_transaction_is_open(&self) -> Result<bool, Failed> {
        match writes::open_transactions(&self.context.source).await {
            Ok(open) if open.is_empty() => Ok(true),
            Ok(open) => {
                self.wait_for(format!("{} transactions are open on the source", open.len()));
                Ok(false)
            }
            // Who may not look is told so when the writers are looked for.
            Err(error) if error.failure == Failure::Privilege => Ok(true),
            Err(error) if error.is_unreachable() => Ok(false),
            Err(error) => Err(Failed::GivenUp(error.to_string())),
        }
    }

    fn tell_writers(&self, writers: Vec<Writer>) {
        let name = |writer: &Writer| {
            let application =
                if writer.application.is_empty() { "unnamed" } else { &writer.application };
            format!("{application} ({})", writer.client)
        };
        let names: Vec<String> = writers.iter().map(name).collect();
        let who = if names.is_empty() { "somebody".to_owned() } else { named(&names) };
        let text = format!("still writing to the source: {who}");
        show(&self.context, |cutover| cutover.writers = writers);
        self.note(&text);
        self.wait_for(text);
    }
}
