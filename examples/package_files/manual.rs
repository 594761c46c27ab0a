//! Man pages: `snapsync(1)`, one for each of its commands, and `snapsync.toml(5)`.

use std::fs;
use std::path::Path;

use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, italic, roman};
use snapsync::config::keys::{KEYS, Key, Kind, Reload, section_of};

/// The name of the manual, at the foot of every page.
const MANUAL: &str = "snapsync manual";

pub(crate) fn write(folder: &Path) {
    let mut program = snapsync::cli::command().disable_help_subcommand(true);
    program.build();
    page(folder, &program, &overview(&program));
    for command in program.get_subcommands() {
        pages_below(folder, command, "snapsync");
    }
    let page = configuration().to_roff();
    fs::write(folder.join("snapsync.toml.5"), page).expect("write a man page");
}

/// The page of a command, and those of the commands below it, as `snapsync-archive-list.1`.
fn pages_below(folder: &Path, command: &Command, parent: &str) {
    let name = format!("{parent}-{}", command.get_name());
    let leaked: &'static str = Box::leak(name.clone().into_boxed_str());
    page(folder, &command.clone().name(leaked), &see_also(&["snapsync(1)", "snapsync.toml(5)"]));
    for below in command.get_subcommands().filter(|below| below.get_name() != "help") {
        pages_below(folder, below, &name);
    }
}

fn page(folder: &Path, command: &Command, more: &Roff) {
    let man = Man::new(command.clone())
        .section("1")
        .manual(MANUAL)
        .source(format!("snapsync {}", env!("CARGO_PKG_VERSION")))
        .date("");
    let mut text = Vec::new();
    man.render_title(&mut text).unwrap();
    man.render_name_section(&mut text).unwrap();
    man.render_synopsis_section(&mut text).unwrap();
    man.render_description_section(&mut text).unwrap();
    man.render_options_section(&mut text).unwrap();
    if command.has_subcommands() {
        man.render_subcommands_section(&mut text).unwrap();
    }
    text.extend_from_slice(more.to_roff().as_bytes());
    fs::write(folder.join(format!("{}.1", command.get_name())), text).expect("write a man page");
}

/// What the page of the program says beyond its arguments.
fn overview(program: &Command) -> Roff {
    let mut roff = Roff::new();
    let mut list = |title: &str, entries: &[(&str, &str)]| {
        roff.control("SH", [title]);
        for (name, meaning) in entries {
            roff.control("TP", []);
            roff.text([bold(*name)]);
            roff.text([roman(*meaning)]);
        }
    };
    list(
        "EXIT STATUS",
        &[
            ("0", "Done."),
            ("1", "Failed for a reason that has no code of its own."),
            ("64", "Wrong arguments, or a password in one."),
            ("65", "Source and target differ."),
            ("69", "A server is unreachable at start."),
            ("70", "A defect, or ended by a second signal."),
            ("74", "The local disk."),
            ("75", "Another daemon holds the lease or the state directory."),
            ("78", "Configuration, and what only a person can mend at start."),
        ],
    );
    list(
        "SIGNALS",
        &[
            (
                "SIGTERM, SIGINT",
                "Finish what is in hand, make it durable and end. A second one ends at once.",
            ),
            (
                "SIGHUP",
                "Read the configuration again. What cannot change in flight is named; a bad file changes nothing.",
            ),
        ],
    );
    list(
        "FILES",
        &[
            ("/etc/snapsync/snapsync.toml", "The configuration; see snapsync.toml(5)."),
            ("/etc/default/snapsync", "Environment of the service, where it exists."),
            ("/var/lib/snapsync", "State and spool. Whoever deletes it copies everything again."),
            (
                "/run/snapsync/control.sock",
                "Where the commands reach the daemon. The group snapsync may use it.",
            ),
            (
                "/usr/share/doc/snapsync",
                "A complete example of the configuration, and everything else to read.",
            ),
        ],
    );
    list(
        "ENVIRONMENT",
        &[
            ("SNAPSYNC__SECTION__KEY", "Sets a key of the configuration, over the file."),
            (
                "CREDENTIALS_DIRECTORY",
                "Where systemd puts the credentials source-uri and target-uri.",
            ),
        ],
    );
    let mut pages: Vec<String> = program
        .get_subcommands()
        .map(|command| format!("snapsync-{}(1)", command.get_name()))
        .collect();
    pages.extend(["snapsync.toml(5)", "systemctl(1)", "journalctl(1)"].map(str::to_owned));
    roff.extend([see_also(&pages)]);
    roff
}

fn see_also<T: AsRef<str>>(pages: &[T]) -> Roff {
    let mut roff = Roff::new();
    let pages: Vec<&str> = pages.iter().map(AsRef::as_ref).collect();
    roff.control("SH", ["SEE ALSO"]);
    roff.text([roman(pages.join(", "))]);
    roff
}

/// The page of the configuration file, from the table of keys.
fn configuration() -> Roff {
    let mut roff = Roff::new();
    let version = format!("snapsync {}", env!("CARGO_PKG_VERSION"));
    roff.control("TH", ["snapsync.toml", "5", "", &version, MANUAL]);
    roff.control("SH", ["NAME"]);
    roff.text([roman("snapsync.toml - configuration of snapsync")]);
    roff.control("SH", ["DESCRIPTION"]);
    let paragraphs = [
        "TOML. Only the two connection strings have no default. Defaults, then this file, then the environment \
         (SNAPSYNC__SECTION__KEY), then --set: each wins over those before it. An unknown key, or a value of a wrong \
         type or out of range, is an error with its place, whichever layer it stands in.",
        "Durations have a unit (\"10s\", \"1h30m\"); sizes are bytes, or have one (\"64MiB\"). Percent-encode : / ? # \
         [ ] @ in user names and passwords of a connection string.",
        "snapsync config --check validates without connecting; snapsync config shows what is in effect, and why.",
    ];
    for paragraph in paragraphs {
        roff.control("PP", []);
        roff.text([roman(paragraph)]);
    }
    let mut section = "";
    for key in KEYS {
        if section_of(key) != section {
            section = section_of(key);
            roff.control("SH", [format!("[{section}]").as_str()]);
        }
        describe(key, &mut roff);
    }
    roff.control("SH", ["EXAMPLES"]);
    roff.text([roman(
        "/usr/share/doc/snapsync/examples/snapsync.example.toml holds every key with its default.",
    )]);
    roff.extend([see_also(&["snapsync(1)", "snapsync-config(1)", "systemd.exec(5)"])]);
    roff
}

fn describe(key: &Key, roff: &mut Roff) {
    let name = key.name.rsplit('.').next().unwrap();
    let (kind, range) = key.kind.describe();
    let default = match (&key.kind, key.default) {
        (Kind::List | Kind::Renames, "") => "[]",
        (_, "") => "empty",
        (_, text) => text,
    };
    roff.control("TP", []);
    roff.text([bold(name), roman(" = "), italic(kind)]);
    roff.text([roman(key.meaning.replace('`', ""))]);
    let range = if range.is_empty() { String::new() } else { format!("; {range}") };
    let when =
        if key.reload == Reload::InFlight { "at once on a reload" } else { "after a restart" };
    roff.control("br", []);
    roff.text([roman(format!("Default: {default}{range}. Takes effect {when}."))]);
}
