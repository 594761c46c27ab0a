//! The act of standing still: the oplog goes to the spool, and nothing is applied.

use std::future::Future;
use std::time::Duration;

use futures_util::FutureExt;

use super::context::{Context, Interrupted};
use super::feed::{Feed, FeedError};
use super::following::feed_failure;
use crate::stop::Stop;

/// How often the spool is looked after.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How often it is said that the oplog cannot be spooled any more.
const WARN_EVERY: u32 = 600;

/// Spools until asked to stop, or `certain` finds a reason against it. What the source's oplog no longer holds is
/// missed only when replay goes on.
///
/// # Errors
/// [`Interrupted`], always: a pause has no end of its own.
pub(super) async fn pause(
    context: &Context,
    mut feed: Feed,
    certain: impl Future<Output = Result<(), Interrupted>>,
    stop: &Stop,
) -> Interrupted {
    let mut certain = std::pin::pin!(certain.fuse());
    let mut round = 0_u32;
    let mut failure: Option<FeedError> = None;
    loop {
        if failure.is_none()
            && let Feed::Spooled { spooler, .. } = &mut feed
        {
            failure = spooler.check().err();
        }
        if let Some(error) = &failure {
            match feed_failure(error) {
                Interrupted::Lost(text) => warn(context, round, &text),
                interrupted => return interrupted,
            }
            round = round.wrapping_add(1);
        }
        let ended = tokio::select! {
            slept = stop.sleep(LOOK_EVERY) => slept.map_err(Interrupted::from),
            certain = &mut certain => certain,
        };
        if let Err(interrupted) = ended {
            // Why it had ended was said already.
            let _ended = feed.finish().await;
            return interrupted;
        }
    }
}

fn warn(context: &Context, round: u32, text: &str) {
    if round.is_multiple_of(WARN_EVERY) {
        tracing::error!(
            state = %context.board.state(),
            "paused for too long: {text}; everything will be copied again when it is resumed"
        );
    }
}
