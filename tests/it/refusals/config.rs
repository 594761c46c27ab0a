//! Arguments and configurations that are refused before anything is connected to.

use std::path::Path;

use crate::harness::program;

/// Runs the program and returns its exit code and all that it printed.
fn run(args: &[&str], config: Option<&Path>, env: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut command = program();
    command.args(args).envs(env.iter().copied());
    if let Some(file) = config {
        command.arg("--config").arg(file);
    }
    let output = command.output().expect("run snapsync");
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

fn says(text: &str, needles: &[&str]) {
    for needle in needles {
        assert!(text.contains(needle), "{needle:?} is not in:\n{text}");
    }
}

#[test]
fn every_mistake_in_the_configuration_is_told_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("snapsync.toml");
    let text = "[source]\nuri = \"mongodb://u:hunter2@a\"\n[target]\nuri = \"mongodb://b\"\n\
                [sync]\nwidnow = \"1s\"\nwindow = \"soon\"\n[memory]\nmax_bytes = \"1KiB\"\n[spol]\nx = 1\n";
    std::fs::write(&file, text).unwrap();
    let env = [("SNAPSYNC__COPY__WORKERS", "many"), ("SNAPSYNC__DELTA__INTERVL", "1s")];
    for args in [&["run"][..], &["check"], &["config"], &["config", "--check"]] {
        let (code, printed) =
            run(&[args, &["--set", "log.level=loud"]].concat(), Some(&file), &env);
        assert_eq!(code, Some(78), "{args:?}: {printed}");
        let lines = [
            "line 6: sync.widnow: no such key; the nearest is sync.window",
            "line 7: sync.window: ",
            "line 9: memory.max_bytes: ",
            "spol",
            "SNAPSYNC__COPY__WORKERS: copy.workers: ",
            "SNAPSYNC__DELTA__INTERVL: delta.intervl: no such key; the nearest is SNAPSYNC__DELTA__INTERVAL",
            "flag --set log.level: log.level: ",
        ];
        says(&printed, &lines);
        assert!(!printed.contains("hunter2"), "{printed}");
        assert!(printed.contains(&file.display().to_string()), "{printed}");
    }
}

#[test]
fn what_is_missing_or_contradicts_itself_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("nowhere.toml");
    let (code, printed) = run(&["run"], Some(&missing), &[]);
    assert_eq!(code, Some(78));
    says(&printed, &[&missing.display().to_string(), "cannot be read"]);

    let file = folder.path().join("snapsync.toml");
    let write = |text: &str| std::fs::write(&file, text).unwrap();
    write("[sync\nwindow = 1");
    let (code, printed) = run(&["run"], Some(&file), &[]);
    assert_eq!(code, Some(78));
    says(&printed, &["line 1", "not valid TOML"]);

    write("");
    let (code, printed) = run(&["run"], Some(&file), &[]);
    assert_eq!(code, Some(78));
    says(&printed, &["source.uri", "target.uri", "SNAPSYNC__SOURCE__URI", "target-uri"]);

    let uris = "[source]\nuri = \"mongodb://a\"\n[target]\nuri = \"mongodb://b\"\n";
    for (more, needles) in [
        ("[control]\nlisten = \"0.0.0.0:2727\"", &["control.listen", "token_file"][..]),
        ("[control]\nlisten = \"localhost\"", &["control.listen", "IP address"]),
        ("[archive]\nenabled = true", &["archive.enabled", "not available"]),
        (
            "[sync]\nrename = [{from = \"a.x\", to = \"c.x\"}, {from = \"b.x\", to = \"c.x\"}]",
            &["sync.rename", "c.x"],
        ),
        ("[sync]\ninclude = [\"\"]", &["sync.include"]),
    ] {
        write(&format!("{uris}{more}"));
        let (code, printed) = run(&["run"], Some(&file), &[]);
        assert_eq!(code, Some(78), "{more}: {printed}");
        says(&printed, needles);
    }
}

#[test]
fn wrong_arguments_are_wrong_usage() {
    for args in [
        &["rum"][..],
        &[],
        &["run", "--fast"],
        &["status", "--fast"],
        &["run", "--set", "sync.window"],
        &["config", "extra"],
        &["run", "--config"],
    ] {
        let (code, printed) = run(args, None, &[]);
        assert_eq!(code, Some(64), "{args:?}: {printed}");
        says(&printed, &["--help"]);
    }
    for args in [&["--help"][..], &["run", "--help"], &["--version"]] {
        let (code, printed) = run(args, None, &[]);
        assert_eq!(code, Some(0), "{args:?}: {printed}");
    }
}
