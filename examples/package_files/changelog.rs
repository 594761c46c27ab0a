//! The changelog of the package, in Debian's format. What changed for users stands in `CHANGELOG.md`.

use std::process::Command;

/// One entry, for the version that is built. `DEB_VERSION` names another version than the program's.
pub(crate) fn debian() -> String {
    let version =
        std::env::var("DEB_VERSION").unwrap_or_else(|_| format!("{}-1", env!("CARGO_PKG_VERSION")));
    let maintainer = maintainer();
    format!(
        "snapsync ({version}) unstable; urgency=medium\n\n  \
         * Built from the sources of version {}; CHANGELOG.md says what changed.\n\n \
         -- {maintainer}  {}\n",
        env!("CARGO_PKG_VERSION"),
        date(),
    )
}

/// As the package itself names it.
fn maintainer() -> String {
    let control = include_str!("../../packaging/debian/control");
    let line = control.lines().find_map(|line| line.strip_prefix("Maintainer: "));
    line.expect("packaging/debian/control lacks its line `Maintainer: NAME <ADDRESS>`").to_owned()
}

/// The time of the sources (`SOURCE_DATE_EPOCH`, else the last commit), so that the same sources give the same file.
fn date() -> String {
    let epoch = std::env::var("SOURCE_DATE_EPOCH").unwrap_or_else(|_| {
        let log = Command::new("git").args(["log", "-1", "--format=%ct"]).output();
        log.ok()
            .map(|log| String::from_utf8_lossy(&log.stdout).trim().to_owned())
            .unwrap_or_default()
    });
    let time = jiff::Timestamp::from_second(epoch.trim().parse().unwrap_or(0));
    let time = time.expect("SOURCE_DATE_EPOCH is no time in seconds since 1970");
    time.strftime("%a, %d %b %Y %H:%M:%S +0000").to_string()
}
