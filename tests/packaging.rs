//! What the package ships besides the program: units, configuration, manual, completions. What needs a booted systemd
//! is in `tests/systemd`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "test helpers panic with what is wrong"
)]

use std::path::{Path, PathBuf};
use std::process::Command;

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The two units are kept alike by hand, because systemd has no way to share a text without changing what an
/// administrator sees.
#[test]
fn the_unit_for_instances_is_the_unit_with_other_names() {
    let service = read("systemd/snapsync.service");
    let names = [
        ("equal to another\n", "equal to another (%i)\n"),
        ("-/etc/default/snapsync\n", "-/etc/default/snapsync-%i\n"),
        ("/etc/snapsync/source-uri", "/etc/snapsync/%i.source-uri"),
        ("/etc/snapsync/target-uri", "/etc/snapsync/%i.target-uri"),
        ("/etc/snapsync/snapsync.toml", "/etc/snapsync/%i.toml"),
        ("\nStateDirectory=snapsync\n", "\nStateDirectory=snapsync/%i\n"),
        ("\nRuntimeDirectory=snapsync\n", "\nRuntimeDirectory=snapsync-%i\n"),
    ];
    let expected = names.iter().fold(service, |unit, (one, many)| {
        assert!(unit.contains(one), "the unit lacks {one:?}");
        unit.replace(one, many)
    });
    let instance = read("systemd/snapsync@.service");
    let (comment, unit) = instance.split_at(instance.find("[Unit]").unwrap());
    assert!(comment.lines().all(|line| line.starts_with("# ")), "{comment}");
    assert_eq!(unit, expected);
}

#[test]
fn the_shipped_configuration_is_refused_with_what_to_do() {
    let output = Command::new(env!("CARGO_BIN_EXE_snapsync"))
        .args(["run", "--config", "packaging/snapsync.toml"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env_clear()
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(78));
    let told = String::from_utf8(output.stderr).unwrap();
    for side in ["source", "target"] {
        let sentence = format!("no connection string for the {side}; set {side}.uri");
        assert!(told.contains(&sentence), "{told}");
    }
}

/// Everything that a build makes, in a folder of its own.
fn package_files() -> tempfile::TempDir {
    let program = PathBuf::from(env!("CARGO_BIN_EXE_snapsync"));
    let maker = program.with_file_name("examples").join("package_files");
    let folder = tempfile::tempdir().unwrap();
    let made = Command::new(&maker).arg(folder.path()).status();
    assert!(made.unwrap_or_else(|e| panic!("{}: {e}", maker.display())).success());
    folder
}

fn commands() -> Vec<String> {
    let mut program = snapsync::cli::command();
    program.build();
    let names = program.get_subcommands().map(|command| command.get_name().to_owned());
    names.filter(|name| name != "help").collect()
}

#[test]
fn everything_has_a_manual_page_and_completions() {
    let folder = package_files();
    let text = |path: String| {
        let path = folder.path().join(path);
        std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    };
    let plain = |page: String| page.replace('\\', "");
    let overview = plain(text("man/snapsync.1".into()));
    for command in commands() {
        let page = plain(text(format!("man/snapsync-{command}.1")));
        assert!(page.contains(&format!("snapsync {command}")), "{page}");
        assert!(page.contains("Example: snapsync "), "{command} has no example");
        assert!(overview.contains(&format!("snapsync-{command}(1)")), "{overview}");
        for shell in ["snapsync.bash", "_snapsync", "snapsync.fish"] {
            assert!(text(format!("completions/{shell}")).contains(&command), "{shell}: {command}");
        }
    }
    let file = plain(text("man/snapsync.toml.5".into()));
    for key in snapsync::config::keys::KEYS {
        assert!(file.contains(key.meaning.replace('`', "").as_str()), "{}", key.name);
    }
    assert!(text("doc/NOTICES".into()).contains("mongodb 3."), "libraries without their licences");
}

/// Every kind of event is documented, and what the catalog explains are kinds of events.
#[test]
fn events_are_documented_and_explained() {
    let (documented, catalog) = (read("docs/journal.md"), read("packaging/snapsync.catalog"));
    let ids: Vec<&str> = snapsync::telemetry::kinds::KINDS.iter().map(|(_, id)| *id).collect();
    for id in &ids {
        assert!(documented.contains(&format!("| `{id}` |")), "docs/journal.md lacks {id}");
        assert_eq!(ids.iter().filter(|other| *other == id).count(), 1, "{id} is used twice");
    }
    let explained: Vec<&str> =
        catalog.lines().filter_map(|line| line.strip_prefix("-- ")).collect();
    assert!(explained.len() > 8, "{explained:?}");
    assert!(explained.iter().all(|id| ids.contains(id)), "{explained:?}");
}

/// The names of our metrics in an expression of Prometheus.
fn metrics_in(expression: &str) -> Vec<&str> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("snapsync_") || word.starts_with("process_")).collect()
}

fn assert_documented(place: &str, expression: &str) {
    let documented = read("docs/metrics.md");
    let names = metrics_in(expression);
    assert!(!names.is_empty(), "{place}: {expression} asks for no metric");
    for name in names {
        assert!(documented.contains(&format!("| `{name}` |")), "{place}: there is no {name}");
    }
}

#[test]
fn alert_rules_and_dashboard_ask_for_metrics_that_exist() {
    let rules: serde_yaml_ng::Value =
        serde_yaml_ng::from_str(&read("packaging/prometheus/alerts.yml")).unwrap();
    let rules = rules["groups"][0]["rules"].as_sequence().unwrap();
    assert!(rules.len() > 5);
    for rule in rules {
        let name = rule["alert"].as_str().unwrap();
        assert!(rule["annotations"]["summary"].is_string(), "{name} has no summary");
        assert!(rule["labels"]["severity"].is_string(), "{name} has no severity");
        assert_documented(name, rule["expr"].as_str().unwrap());
    }
    let dashboard: serde_json::Value =
        serde_json::from_str(&read("packaging/prometheus/dashboard.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    assert!(panels.len() > 5);
    for panel in panels {
        let title = panel["title"].as_str().unwrap();
        for target in panel["targets"].as_array().unwrap() {
            assert_documented(title, target["expr"].as_str().unwrap());
        }
    }
}
