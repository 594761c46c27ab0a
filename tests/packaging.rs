//! What the package ships besides the program: units, configuration, manual, completions. What needs a booted systemd
//! is in `tests/systemd`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "test helpers panic with what is wrong"
)]

#[path = "../examples/package_files/completions.rs"]
mod completions;
#[path = "../examples/package_files/manual.rs"]
mod manual;
#[path = "../examples/package_files/notices.rs"]
mod notices;

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

/// The unit for snapshots is locked down as the daemon's is, and runs a command that there is.
#[test]
fn the_unit_for_snapshots_may_do_no_more_than_the_daemon() {
    let rules = |unit: &str| -> Vec<String> {
        let unit = read(unit);
        let (_, rules) = unit.split_once("\nCapabilityBoundingSet=").unwrap();
        let rules = rules.split("\n[Install]").next().unwrap();
        rules.lines().filter(|line| line.contains('=')).map(str::to_owned).collect()
    };
    let daemon = rules("systemd/snapsync@.service");
    assert!(daemon.len() > 20, "{daemon:?}");
    assert_eq!(rules("systemd/snapsync-snapshot@.service"), daemon);
    let unit = read("systemd/snapsync-snapshot@.service");
    let start = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
    assert_understood(start.split(' '));
    assert!(unit.contains("\nType=oneshot\n") && !unit.contains("[Install]"));
    let timer = read("systemd/snapsync-snapshot@.timer");
    assert!(timer.contains("\nOnCalendar=") && timer.contains("\nWantedBy=timers.target\n"));
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

fn commands() -> Vec<String> {
    let mut program = snapsync::cli::command();
    program.build();
    let names = program.get_subcommands().map(|command| command.get_name().to_owned());
    names.filter(|name| name != "help").collect()
}

#[test]
fn everything_has_a_manual_page_and_completions() {
    let folder = tempfile::tempdir().unwrap();
    for (name, write) in
        [("man", manual::write as fn(&Path)), ("completions", completions::write as fn(&Path))]
    {
        std::fs::create_dir(folder.path().join(name)).unwrap();
        write(&folder.path().join(name));
    }
    let text = |path: String| {
        let path = folder.path().join(path);
        std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    };
    let plain = |page: String| page.replace('\\', "");
    let overview = plain(text("man/snapsync.1".into()));
    for command in commands() {
        let page = plain(text(format!("man/snapsync-{command}.1")));
        assert!(page.contains(&format!("snapsync {command}")), "{page}");
        assert!(page.contains("Example: "), "{command} has no example");
        assert!(overview.contains(&format!("snapsync-{command}(1)")), "{overview}");
        for shell in ["snapsync.bash", "_snapsync", "snapsync.fish"] {
            assert!(text(format!("completions/{shell}")).contains(&command), "{shell}: {command}");
        }
    }
    let file = plain(text("man/snapsync.toml.5".into()));
    for key in snapsync::config::keys::KEYS {
        assert!(file.contains(key.meaning.replace('`', "").as_str()), "{}", key.name);
    }
    let notices = notices::collect();
    assert!(notices.contains("\nmongodb 3."), "libraries without their licences");
    assert!(notices.contains("Permission is hereby granted"), "licences without their texts");
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

/// A tool on `PATH` or in `.cache/tools/bin`.
fn tool(name: &str, from: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/tools/bin");
    let mut folders = std::env::split_paths(&path).chain([tools]);
    let found = folders.find_map(|folder| Some(folder.join(name)).filter(|file| file.is_file()));
    found.unwrap_or_else(|| panic!("{name} is missing: {from}"))
}

/// What Prometheus itself makes of the rules, and when they fire.
#[test]
#[ignore = "wants promtool, and is run by `make test-charts`"]
fn prometheus_takes_the_alert_rules() {
    let promtool = tool("promtool", "it is part of Debian's package prometheus");
    for arguments in [
        ["check", "rules", "packaging/prometheus/alerts.yml"],
        ["test", "rules", "tests/alerts.yml"],
    ] {
        let output = Command::new(&promtool)
            .args(arguments)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .unwrap();
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
    }
}

/// What the chart makes of these values.
fn rendered(helm: &Path, values: &str) -> Result<Vec<serde_yaml_ng::Value>, String> {
    let output = Command::new(helm)
        .args(["template", "shop", "packaging/helm/snapsync", "--kube-version", "1.30.0"])
        .args(["--set", values])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    use serde::Deserialize;
    let text = String::from_utf8(output.stdout).unwrap();
    let documents = serde_yaml_ng::Deserializer::from_str(&text);
    Ok(documents.map(|one| serde_yaml_ng::Value::deserialize(one).unwrap()).collect())
}

fn of_kind<'a>(documents: &'a [serde_yaml_ng::Value], kind: &str) -> &'a serde_yaml_ng::Value {
    let mut found = documents.iter().filter(|document| document["kind"] == kind);
    let one = found.next().unwrap_or_else(|| panic!("no {kind}"));
    assert!(found.next().is_none(), "more than one {kind}");
    one
}

#[test]
fn the_chart_is_of_this_version_and_sets_keys_that_exist() {
    let chart: serde_yaml_ng::Value =
        serde_yaml_ng::from_str(&read("packaging/helm/snapsync/Chart.yaml")).unwrap();
    assert_eq!(chart["appVersion"], env!("CARGO_PKG_VERSION"));
    let values = read("packaging/helm/snapsync/values.yaml");
    let values: serde_yaml_ng::Value = serde_yaml_ng::from_str(&values).unwrap();
    for config in [&values["config"], &values["snapshot"]["config"]] {
        for (section, keys) in &config.as_str().unwrap().parse::<toml::Table>().unwrap() {
            for key in keys.as_table().unwrap().keys() {
                let name = format!("{section}.{key}");
                assert!(snapsync::config::keys::find(&name).is_some(), "there is no {name}");
            }
        }
    }
}

#[test]
#[ignore = "wants helm, and is run by `make test-charts`"]
fn the_chart_runs_one_daemon_with_no_more_rights_than_it_needs() {
    let helm = tool("helm", "go install helm.sh/helm/v3/cmd/helm@latest");
    let linted = Command::new(&helm)
        .args(["lint", "--strict", "packaging/helm/snapsync", "--set", "secret.name=uris"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(linted.status.success(), "{}", String::from_utf8_lossy(&linted.stdout));
    let refused = rendered(&helm, "secret.name=").unwrap_err();
    assert!(refused.contains("a Secret with both connection strings"), "{refused}");
    for values in ["secret.name=uris", "secret.name=uris,tokenKey=token,serviceMonitor=true"] {
        let documents = rendered(&helm, values).unwrap();
        let deployment = &of_kind(&documents, "Deployment")["spec"];
        assert_eq!(deployment["replicas"], 1);
        assert_eq!(deployment["strategy"]["type"], "Recreate");
        assert_eq!(deployment["progressDeadlineSeconds"], i32::MAX, "a copy is no failed rollout");
        let container = least_privileged(&deployment["template"]["spec"]);
        // No probe may end a daemon that only copies.
        let probe = &container["livenessProbe"];
        assert_ne!(probe["httpGet"]["path"], "/health/ready");
        let with_http = values.contains("tokenKey");
        assert_eq!(documents.iter().any(|document| document["kind"] == "Service"), with_http);
        let ready = &container["readinessProbe"];
        assert_eq!(ready["httpGet"]["path"] == "/health/ready", with_http);
        if !with_http {
            for probe in [ready, probe] {
                let command = probe["exec"]["command"].as_sequence().unwrap();
                assert_understood(command.iter().map(|word| word.as_str().unwrap()));
            }
        }
        of_kind(&documents, "PersistentVolumeClaim");
    }
}

/// The one container of a Pod that can do no more than it has to.
fn least_privileged(pod: &serde_yaml_ng::Value) -> &serde_yaml_ng::Value {
    assert_eq!(pod["automountServiceAccountToken"], false);
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
    let container = &pod["containers"][0];
    assert_eq!(container["securityContext"]["allowPrivilegeEscalation"], false);
    assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
    assert_eq!(container["securityContext"]["capabilities"]["drop"][0], "ALL");
    for variable in container["env"].as_sequence().unwrap() {
        let name = variable["name"].as_str().unwrap();
        let key = name.strip_prefix("SNAPSYNC__").unwrap().to_lowercase().replace("__", ".");
        assert!(snapsync::config::keys::find(&key).is_some(), "there is no {key}");
    }
    container
}

#[test]
#[ignore = "wants helm, and is run by `make test-charts`"]
fn the_chart_makes_snapshots_with_or_without_a_daemon() {
    let helm = tool("helm", "go install helm.sh/helm/v3/cmd/helm@latest");
    let snapshots = "secret.name=uris,snapshot.enabled=true";
    for (values, has_daemon) in
        [(snapshots.to_owned(), true), (format!("{snapshots},daemon=false"), false)]
    {
        let documents = rendered(&helm, &values).unwrap();
        let is_there = |kind: &str| documents.iter().any(|document| document["kind"] == kind);
        let of_daemon = ["Deployment", "PersistentVolumeClaim"].map(is_there);
        assert_eq!(of_daemon, [has_daemon; 2]);
        let cron = &of_kind(&documents, "CronJob")["spec"];
        assert_eq!(cron["concurrencyPolicy"], "Forbid");
        assert_eq!(cron["schedule"], "0 3 * * 0");
        let job = &cron["jobTemplate"]["spec"];
        assert_eq!(job["backoffLimit"], 0);
        assert_eq!(job["template"]["spec"]["restartPolicy"], "Never");
        let container = least_privileged(&job["template"]["spec"]);
        let arguments = container["args"].as_sequence().unwrap().iter();
        let arguments = arguments.map(|word| word.as_str().unwrap());
        assert_understood(std::iter::once("/usr/bin/snapsync").chain(arguments));
        let labels = &job["template"]["metadata"]["labels"];
        assert_ne!(labels["app.kubernetes.io/name"], "snapsync", "the Service would select it");
        let volumes = job["template"]["spec"]["volumes"].as_sequence().unwrap();
        let config = volumes.iter().find(|volume| volume["name"] == "config").unwrap();
        let named = &config["configMap"]["name"];
        assert!(documents.iter().any(|document| {
            document["kind"] == "ConfigMap" && document["metadata"]["name"] == *named
        }));
    }
    let documents = rendered(&helm, "secret.name=uris").unwrap();
    assert!(!documents.iter().any(|document| document["kind"] == "CronJob"), "only when asked for");
}

/// A command line of the program that its own parser takes.
fn assert_understood<'a>(words: impl Iterator<Item = &'a str>) {
    let words: Vec<&str> = words.collect();
    assert_eq!(words[0], "/usr/bin/snapsync");
    snapsync::cli::command().try_get_matches_from(&words).unwrap();
}

/// The image is built from what the build needs, and runs as nobody in particular.
#[test]
fn the_image_is_made_of_files_that_exist() {
    let recipe = read("packaging/container/Containerfile");
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let copies: Vec<&str> = recipe
        .lines()
        .filter_map(|line| line.strip_prefix("COPY "))
        .filter(|files| !files.starts_with("--from"))
        .collect();
    assert!(copies.len() > 3);
    for files in copies {
        let mut words: Vec<&str> = files.split(' ').collect();
        words.pop();
        for file in words {
            assert!(top.join(file).exists(), "{file}");
        }
    }
    assert!(recipe.contains("\nUSER 65532:65532\n"));
    let manifest: toml::Table = read("Cargo.toml").parse().unwrap();
    let rust = manifest["package"]["rust-version"].as_str().unwrap();
    assert!(recipe.contains(&format!("FROM rust:{rust}-")), "an image with Rust {rust}");
    let unit = read("systemd/snapsync.service");
    let tunables = unit.lines().find_map(|line| line.strip_prefix("Environment=GLIBC")).unwrap();
    assert!(recipe.contains(tunables), "the image lacks {tunables}");
}
