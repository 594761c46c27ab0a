//! How far a copy is, in one line with a bar, for terminals. Pure.

use std::time::Duration;

use bytesize::ByteSize;

use super::{CopyProgress, State, Status};

/// Characters between the brackets.
const WIDTH: u64 = 24;

/// One line for a terminal on which the daemon runs: a bar while something is copied, else state and lag.
#[must_use]
pub fn line(status: &Status) -> String {
    let lag = status.lag_seconds.map_or(String::new(), |lag| format!(", lag {lag:.1} s"));
    match (status.state, &status.resync) {
        (State::Copying, _) => format!("copying {}", bar(&status.copy)),
        (state, Some(resync)) => format!("{state}{lag}, copying again {}", bar(resync)),
        (state, None) => match status.index_builds.first() {
            Some(build) => format!("{state}{lag}, building indexes on {build}"),
            None => format!("{state}{lag}, delta {}", status.total_delta),
        },
    }
}

/// `[######------------------]  25 %, 5 of 20 documents, 1.0 GiB of 4.0 GiB, 50.0 MiB/s, 1m 1s to go`.
#[must_use]
pub fn bar(progress: &CopyProgress) -> String {
    let percent = percent(progress);
    let full = percent * WIDTH / 100;
    let drawn: String = (0..WIDTH).map(|at| if at < full { '#' } else { '-' }).collect();
    format!("[{drawn}] {percent:>3} %, {}", amounts(progress))
}

/// In bytes, as documents differ in size; an estimate that was too low does not show more than all.
#[must_use]
pub fn percent(progress: &CopyProgress) -> u64 {
    if progress.complete {
        return 100;
    }
    let all = u128::from(progress.bytes_total.max(1));
    u64::try_from(100 * u128::from(progress.bytes) / all).unwrap_or(100).min(100)
}

/// What has been copied of what, how fast, and how long it still takes.
#[must_use]
pub fn amounts(progress: &CopyProgress) -> String {
    let (bytes, all) = (ByteSize(progress.bytes), ByteSize(progress.bytes_total));
    let mut text = format!(
        "{} of {} documents, {bytes} of {all}",
        progress.documents, progress.documents_total
    );
    if let Some(eta) = progress.eta_seconds {
        let left = progress.bytes_total.saturating_sub(progress.bytes);
        // The estimate is made of the rate, so the rate can be had from it.
        if let Some(rate) = left.checked_div(eta) {
            text.push_str(&format!(", {}/s", ByteSize(rate)));
        }
        text.push_str(&format!(", {} to go", span(Duration::from_secs(eta))));
    }
    text
}

/// A length of time in its two largest units, such as `3d 4h`.
#[must_use]
pub fn span(length: Duration) -> String {
    let seconds = length.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {}s", seconds % 60),
        (0, _, _) => format!("{hours}h {}m", minutes % 60),
        _ => format!("{days}d {}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::samples;

    fn third() -> CopyProgress {
        CopyProgress {
            documents: 5,
            documents_total: 10,
            bytes: 1 << 30,
            bytes_total: 3 << 30,
            eta_seconds: Some(128),
            complete: false,
        }
    }

    #[test]
    fn a_bar_tells_how_far_how_fast_and_how_long() {
        let expected = "[#######-----------------]  33 %, 5 of 10 documents, 1.0 GiB of 3.0 GiB, 16.0 MiB/s, \
                        2m 8s to go";
        assert_eq!(bar(&third()), expected);
        let begun = CopyProgress { bytes: 0, documents: 0, eta_seconds: None, ..third() };
        assert!(bar(&begun).starts_with("[------------------------]   0 %, 0 of 10 documents"));
        assert!(!bar(&begun).contains("to go"));
        let beyond = CopyProgress { bytes: 4 << 30, eta_seconds: Some(0), ..third() };
        assert!(bar(&beyond).starts_with("[########################] 100 %, "));
        let nothing = CopyProgress::default();
        assert_eq!(
            (percent(&nothing), percent(&CopyProgress { complete: true, ..nothing })),
            (0, 100)
        );
    }

    #[test]
    fn the_line_of_a_terminal_says_what_is_being_done() {
        let mut status = samples::live();
        assert!(line(&status).starts_with("live, lag 0.4 s, building indexes on shop.carts: 2 "));
        status.index_builds.clear();
        assert_eq!(line(&status), "live, lag 0.4 s, delta 2");
        status.resync = Some(third());
        assert!(line(&status).starts_with("live, lag 0.4 s, copying again [#######---"));
        status.state = State::Copying;
        status.copy = third();
        assert!(line(&status).starts_with("copying [#######---"));
    }

    #[test]
    fn lengths_of_time_have_two_units() {
        let spans = [59, 60, 3725, 90_000].map(|seconds| span(Duration::from_secs(seconds)));
        assert_eq!(spans, ["59s", "1m 0s", "1h 2m", "1d 1h"]);
    }
}
