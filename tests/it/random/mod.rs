//! Random tests. Everything comes from one seed, which a failure prints; `SNAPSYNC_SEED` repeats it.

mod appliers;
mod draw;
mod history;
mod writer;

/// The seed of `SNAPSYNC_SEED`, or one that no test had before.
fn seed() -> u64 {
    let given = std::env::var("SNAPSYNC_SEED").ok();
    let seed = given.map(|text| text.parse().expect("SNAPSYNC_SEED is a number"));
    let now = || std::time::SystemTime::UNIX_EPOCH.elapsed().expect("a clock").as_millis() as u64;
    let seed = seed.unwrap_or_else(now);
    eprintln!("SNAPSYNC_SEED={seed}");
    seed
}
