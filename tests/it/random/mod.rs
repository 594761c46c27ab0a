//! Random tests. Everything comes from one seed, which a failure prints; `SNAPSYNC_SEED` repeats it.

mod appliers;
mod define;
mod draw;
mod history;
mod meddling;
mod prepared;
mod special;
mod stage;
mod writer;

/// The number in this variable.
fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is no number")))
}

/// The seed of `SNAPSYNC_SEED`, or one that no test had before.
fn seed() -> u64 {
    let now = || std::time::SystemTime::UNIX_EPOCH.elapsed().expect("a clock").as_millis() as u64;
    let seed = number("SNAPSYNC_SEED").unwrap_or_else(now);
    eprintln!("SNAPSYNC_SEED={seed}");
    seed
}
